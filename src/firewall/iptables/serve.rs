//! The counters of pods' chains, for the metrics endpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::kernel::iptables::{Families, Table, counted};
use crate::kernel::{Error, Name};

use super::super::backend::{Dropped, Owner};
use super::drops::{Drops, ON_BRIDGES, Owners};
use super::names::POD_CHAINS;

/// Reads the counters of pods' chains with `iptables-save -c`. Packets counted between the last reading and a change of
/// a pod's chain are lost.
pub struct Counters {
    owners: watch::Receiver<Arc<Owners>>,
    programs: Families,
    drops: Drops,
}

impl Counters {
    /// Creates a reader of the chains of these owners.
    pub fn new(owners: watch::Receiver<Arc<Owners>>, programs: Families) -> Counters {
        Counters { owners, programs, drops: Drops::default() }
    }
}

impl Dropped for Counters {
    fn count(&mut self) -> Result<(), Error> {
        let owners = self.owners.borrow().clone();
        let of_bridges = ON_BRIDGES.map(|(chain, _)| Name::Exact(chain.into()));
        let chains: Vec<Name> = of_bridges.into_iter().chain([Name::Prefix(POD_CHAINS.into())]).collect();
        let counted = counted(&self.programs, Table::Filter, &chains)?;
        self.drops.add(&counted, &owners);
        Ok(())
    }

    fn on_bridges(&self) -> &BTreeMap<&'static str, u64> {
        self.drops.on_bridges()
    }

    fn sums(&mut self) -> &BTreeMap<Owner, u64> {
        self.drops.forget_others(&self.owners.borrow());
        self.drops.sums()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::rules::Direction;

    #[test]
    fn a_policy_that_is_gone_has_no_sum_although_nothing_was_counted_since() {
        let owner =
            |policy: &str| Owner { namespace: "shop".into(), policy: policy.into(), direction: Direction::Ingress };
        let owned = |policies: &[&str]| {
            let all = policies.iter().map(|policy| owner(policy)).collect();
            Arc::new(Owners::from([("chain".into(), all)]))
        };
        let (owners, receiver) = watch::channel(owned(&["a", "b"]));
        let mut counters = Counters::new(receiver, Families::default());
        counters.count().expect("there is no program to ask");
        assert_eq!(counters.sums().keys().cloned().collect::<Vec<_>>(), [owner("a"), owner("b")]);
        owners.send_replace(owned(&["b"]));
        assert_eq!(counters.sums().keys().cloned().collect::<Vec<_>>(), [owner("b")]);
    }
}
