//! The counters of pods' chains, for the metrics endpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::kernel::iptables::{Counted, Families, Table, counted};
use crate::kernel::{Error, Name};
use crate::net::Family;

use super::super::backend::{Dropped, Owner};
use super::super::frames::linux::DroppedFrames;
use super::drops::{Drops, ON_BRIDGES, Owners};
use super::names::{CLUSTER_POLICY_CHAINS, POD_CHAINS};

/// Reads the counters of pods' chains with `iptables-save -c`. Packets counted between the last reading and a change of
/// a pod's chain are lost.
pub struct Counters {
    owners: watch::Receiver<Arc<Owners>>,
    read: Reading,
    drops: Drops,
    frames: DroppedFrames,
}

/// Reads the counters of one family; `None` for a family without programs.
type Reading = Box<dyn FnMut(Family) -> Option<Result<Vec<Counted>, Error>> + Send>;

impl Counters {
    /// Creates a reader of the chains of these owners.
    pub fn new(owners: watch::Receiver<Arc<Owners>>, programs: Families) -> Counters {
        let of_bridges = ON_BRIDGES.map(|(chain, _)| Name::Exact(chain.into()));
        let prefixes = [POD_CHAINS, CLUSTER_POLICY_CHAINS].map(|prefix| Name::Prefix(prefix.into()));
        let chains: Vec<Name> = of_bridges.into_iter().chain(prefixes).collect();
        let read = move |family| programs.of(family).map(|programs| counted(programs, family, Table::Filter, &chains));
        Counters { owners, read: Box::new(read), drops: Drops::default(), frames: DroppedFrames::default() }
    }
}

impl Dropped for Counters {
    fn count(&mut self) -> Result<(), Error> {
        let owners = self.owners.borrow().clone();
        self.drops.begin(&owners);
        self.drops.set_frames(self.frames.counts());
        let mut result = Ok(());
        for family in Family::BOTH {
            match (self.read)(family) {
                Some(Ok(counted)) => self.drops.add(family, &counted, &owners),
                // The other family is counted all the same.
                Some(Err(error)) => result = result.and(Err(error)),
                None => {}
            }
        }
        result
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::rules::Direction;
    use crate::kernel::Cause;

    #[test]
    fn one_family_is_counted_although_the_program_of_the_other_fails() {
        let owner = Owner { namespace: "shop".into(), policy: "a".into(), direction: Direction::Ingress };
        let (_owners, receiver) =
            watch::channel(Arc::new(Owners::from([("KUBE-POD-FW-A".into(), [owner.clone()].into())])));
        for failing in Family::BOTH {
            let rule = "-j REJECT --reject-with icmp-port-unreachable";
            let counted = Counted { chain: "KUBE-POD-FW-A".into(), rule: rule.into(), packets: 3 };
            let read: Reading = Box::new(move |family| {
                let error = || Error::new("count packets", "filter", Cause::Rival("no program".to_owned()));
                Some(if family == failing { Err(error()) } else { Ok(vec![counted.clone()]) })
            });
            let mut counters =
                Counters { owners: receiver.clone(), read, drops: Drops::default(), frames: DroppedFrames::default() };
            assert!(counters.count().is_err(), "somebody has to hear of it");
            assert_eq!(counters.sums().get(&owner), Some(&3), "{failing} fails");
        }
    }

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
