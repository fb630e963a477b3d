//! Applies the table of the source guard to the kernel: everything that differs in one transaction, so that a frame meets all of
//! the old or all of the new, and a process that is killed leaves one of the two.
//!
//! What is desired is known completely, from this host alone, so what is not desired always goes.

use std::time::Instant;

use compact_str::CompactString;

use crate::kernel::nftables::{Content, Object};
use crate::reconcile::{Growth, Moment, Target};
use crate::subsystem::{Kinds, kinds};

use super::table::Contents;

/// The kinds of kernel objects of the source guard, and what it asks of the kernel besides.
pub trait Kernel {
    type Table: Target<Key = Object, Value = Content>;

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
    /// It is one end of a pair, or a virtual machine's, and a port of a bridge: what comes from it is one pod's.
    pub is_port: bool,
}

kinds! {
    /// Last seen state of the kernel.
    pub struct Mirrors {
        table: Table after Rules,
    }
    with {}
}

impl<K: Kernel> Mirrors<K> {
    pub fn new(targets: Targets<K>) -> Mirrors<K> {
        Mirrors::of(targets)
    }

    /// Marks objects whose desired content has changed.
    pub fn mark(&mut self, objects: impl IntoIterator<Item = Object>) {
        objects.into_iter().for_each(|object| self.table.mark(object));
        self.table.try_at_once();
    }

    /// Runs one round.
    pub fn round(&mut self, desired: &Contents, at: Moment) {
        self.table.transact(desired, Growth::Full, true, at);
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
        self.reflections().into_iter().filter_map(|kind| kind.retry_at()).min()
    }

    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }
}
