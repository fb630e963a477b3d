//! The counters of pods' chains, for whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::kernel::iptables::{Families, Table, counted};
use crate::kernel::{Error, Name};

use super::super::backend::{Dropped, Owner};
use super::drops::{Drops, Owners};
use super::names::POD_CHAINS;

/// Reads the counters of pods' chains with `iptables-save -c`. What was counted between the last reading and a change of a
/// pod's chain is lost.
pub struct Counters {
    owners: watch::Receiver<Arc<Owners>>,
    programs: Families,
    drops: Drops,
}

impl Counters {
    /// The counters of the chains that these own.
    pub fn new(owners: watch::Receiver<Arc<Owners>>, programs: Families) -> Counters {
        Counters { owners, programs, drops: Drops::default() }
    }
}

impl Dropped for Counters {
    fn count(&mut self) -> Result<(), Error> {
        let owners = self.owners.borrow().clone();
        let counted = counted(&self.programs, Table::Filter, &[Name::Prefix(POD_CHAINS.into())])?;
        self.drops.add(&counted, &owners);
        self.drops.forget_others(&owners);
        Ok(())
    }

    fn sums(&self) -> &BTreeMap<Owner, u64> {
        self.drops.sums()
    }
}
