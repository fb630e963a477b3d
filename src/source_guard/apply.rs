//! Applies the tables of the source guard to the kernel, each with everything that differs in one transaction, so that a frame meets all of
//! the old or all of the new, and a process that is killed leaves one of the two; and the option of the bridges whose ports are guarded.
//!
//! What is desired is known completely, from this host alone, so what is not desired goes, unless it may be another agent's.

use std::collections::BTreeSet;
use std::time::Instant;

use compact_str::CompactString;

use crate::kernel::bridge::OfBridges;
use crate::kernel::link::LinkName;
use crate::kernel::nftables::{Content, Object};
use crate::reconcile::{Growth, Mirror, Moment, Reflection, Target};
use crate::subsystem::{Kinds, kinds};

use super::table::{Contents, Desired};

/// The kinds of kernel objects of the source guard, and what it asks of the kernel besides.
pub trait Kernel {
    type Table: Target<Key = Object, Value = Content>;
    type Learning: OfBridges;

    /// Returns the names of this host's links by which pods may be ports of bridges.
    ///
    /// # Errors
    /// The kernel does not tell; why.
    fn pod_links(&mut self) -> Result<Vec<PodLink>, String>;
}

/// A link of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodLink {
    pub name: CompactString,
    /// The bridge that it is a port of, where it is one end of a pair, or a virtual machine's: what comes from it is one pod's.
    pub bridge: Option<CompactString>,
}

kinds! {
    /// Last seen state of the kernel.
    pub struct Mirrors {
        table: Table after Rules,
        by_port: Table after Rules,
        arp: Table after Rules,
        learning: Learning after Ports,
    }
    with {}
}

impl<K: Kernel> Mirrors<K> {
    pub fn new(targets: Targets<K>) -> Mirrors<K> {
        Mirrors::of(targets)
    }

    /// Marks what is desired differently.
    pub fn mark(&mut self, before: &Desired, now: &Desired) {
        let desired = before.tables().into_iter().zip(now.tables());
        for (mirror, (before, now)) in self.tables().into_iter().zip(desired) {
            differing(before, now).for_each(|object| mirror.mark(object));
            mirror.try_at_once();
        }
        if before.bridges != now.bridges {
            self.learning.mark_all();
        }
        self.learning.try_at_once();
    }

    /// The tables in the order of [`Desired::tables`].
    fn tables(&mut self) -> [&mut Mirror<K::Table>; 3] {
        [&mut self.table, &mut self.by_port, &mut self.arp]
    }

    /// Has the option of this bridge read before the next round ends: it may be another bridge of the same name.
    pub fn doubt(&mut self, bridge: LinkName) {
        self.learning.doubt(bridge);
    }

    /// Returns the contents of the table of the family `bridge`.
    ///
    /// # Errors
    /// The kernel does not tell; why.
    pub fn found(&mut self) -> Result<Contents, String> {
        self.table.target().read().map_err(|error| error.to_string())
    }

    /// Returns what the kernel has in the table of the family `bridge` and is not desired; `None` while that is not known. Reads it where it
    /// may have changed.
    pub fn surplus(&mut self, desired: &Desired, at: Moment) -> Option<Contents> {
        if self.table.is_settled() {
            return Some(Contents::new());
        }
        if !self.table.learn(at) {
            return None;
        }
        let seen = self.table.seen().into_iter().flatten();
        let surplus = seen.filter(|(object, _)| !desired.frames.contains_key(object));
        Some(surplus.map(|(object, content)| (object.clone(), content.clone())).collect())
    }

    /// Runs one round. `may_remove`: whether what is not desired goes from the tables.
    pub fn round(&mut self, desired: &Desired, may_remove: bool, at: Moment) {
        self.learning.target().of(desired.bridges.keys().cloned().collect());
        self.learning.transact(&desired.bridges, Growth::Full, true, at);
        for (mirror, contents) in self.tables().into_iter().zip(desired.tables()) {
            mirror.transact(contents, Growth::Full, may_remove, at);
        }
    }

    /// Returns whether the kernel is known to be as desired.
    pub fn is_settled(&self) -> bool {
        self.is_as_wanted()
    }

    /// Returns why the last change failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.reflections().into_iter().find_map(|kind| kind.trouble()).map(|trouble| trouble.error.clone())
    }

    /// Returns when the next retry of a failed step is due.
    pub fn retry_at(&self) -> Option<Instant> {
        self.first_retry()
    }

    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }
}

/// Returns the objects whose content differs.
fn differing<'a>(one: &'a Contents, other: &'a Contents) -> impl Iterator<Item = Object> + use<'a> {
    let all: BTreeSet<&Object> = one.keys().chain(other.keys()).collect();
    all.into_iter().filter(|object| one.get(*object) != other.get(*object)).cloned()
}
