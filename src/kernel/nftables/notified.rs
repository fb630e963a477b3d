//! Changes of a table by others, from the kernel's notifications.
//!
//! Kernel: the group `NFNLGRP_NFTABLES`. A notification carries the port of the socket that caused it.

use std::collections::BTreeSet;

use super::listener::RuleListener;
use super::object::Object;
use super::wire::{HEADER, TABLE, TableId, chain, message, object, rule, set};
use crate::kernel::netlink::{Answer, Bus};
use crate::kernel::{Error, own};

/// Objects of one table that others made, changed or removed.
#[derive(Debug)]
pub(super) struct Notified {
    listener: RuleListener,
    table: TableId<'static>,
    touched: Touched,
}

#[derive(Default, Debug)]
struct Touched {
    objects: BTreeSet<Object>,
    /// Notifications were lost, or the whole table was removed or put to sleep.
    everything: bool,
}

impl Notified {
    /// Listens from now on, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn listen(table: TableId<'static>) -> Result<Notified, Error> {
        let listener = RuleListener::open()?;
        Ok(Notified { listener, table, touched: Touched::default() })
    }

    /// Reads what has arrived, so that there is room for more.
    pub fn hear(&mut self) {
        let (table, touched) = (self.table, &mut self.touched);
        let heard = self.listener.receive(|answer| {
            if !own::is_own(Bus::Netfilter, answer.port) {
                touched.note(answer, table);
            }
        });
        self.touched.everything |= heard.is_err();
    }

    /// Returns what others did since the last call: a set where it or one of its elements changed. `None` where it may be
    /// anything.
    pub fn take(&mut self) -> Option<BTreeSet<Object>> {
        self.hear();
        let Touched { objects, everything } = std::mem::take(&mut self.touched);
        (!everything).then_some(objects)
    }
}

impl Touched {
    fn note(&mut self, answer: &Answer<'_>, table: TableId<'_>) {
        let attributes = answer.attributes(HEADER);
        let text = |kind: u16| attributes.get(kind).and_then(|text| text.text());
        let is_of_family = answer.header::<HEADER>().is_some_and(|[family, ..]| *family == table.family);
        if !is_of_family || text(TABLE) != Some(table.name) {
            return;
        }
        let touched = match answer.kind {
            message::NEW_CHAIN | message::DELETE_CHAIN => text(chain::NAME).map(|name| Object::Chain(name.into())),
            message::NEW_RULE | message::DELETE_RULE => text(rule::CHAIN).map(|name| Object::Chain(name.into())),
            message::NEW_SET | message::DELETE_SET | message::NEW_ELEMENT | message::DELETE_ELEMENT => {
                text(set::NAME).map(|name| Object::Set(name.into()))
            }
            message::NEW_OBJECT | message::DELETE_OBJECT => text(object::NAME).map(|name| Object::Counter(name.into())),
            message::NEW_TABLE | message::DELETE_TABLE => None,
            _ => return,
        };
        match touched {
            Some(object) => drop(self.objects.insert(object)),
            None => self.everything = true,
        }
    }
}
