//! The counters of classes, for the metrics endpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::kernel::Error;
use crate::kernel::nftables::CounterReader;

use super::super::backend::{Dropped, Owner};
use super::super::frames::linux::DroppedFrames;
use super::drops::{Drops, Owners};
use super::names::TABLE;

/// Reads the counters of classes. Packets counted between the last reading and the end of a class are lost.
pub struct Counters {
    owners: watch::Receiver<Arc<Owners>>,
    table: CounterReader,
    drops: Drops,
    frames: DroppedFrames,
}

impl Counters {
    /// Creates a reader of the counters of these owners, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel refuses netlink sockets.
    pub fn new(owners: watch::Receiver<Arc<Owners>>) -> Result<Counters, Error> {
        Ok(Counters {
            owners,
            table: CounterReader::open(TABLE)?,
            drops: Drops::default(),
            frames: DroppedFrames::default(),
        })
    }
}

impl Dropped for Counters {
    fn count(&mut self) -> Result<(), Error> {
        let owners = self.owners.borrow().clone();
        self.drops.set_frames(self.frames.counts());
        let counted = self.table.counts("")?;
        self.drops.add(counted.into_iter().map(|(name, count)| (name, count.packets)).collect(), &owners);
        Ok(())
    }

    fn on_bridges(&self) -> &BTreeMap<&'static str, u64> {
        self.drops.on_bridges()
    }

    fn sums(&mut self) -> &BTreeMap<Owner, u64> {
        // Copied: the firewall's loop waits while they are borrowed.
        let owners = self.owners.borrow().clone();
        self.drops.forget_others(&owners);
        self.drops.sums()
    }
}
