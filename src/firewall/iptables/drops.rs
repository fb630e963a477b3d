//! Accounting of refused packets by policy.
//!
//! A packet is refused by a pod's chain if none of the policies that isolate the pod in that direction allows it, so it
//! counts for each of them. The counters are the kernel's and belong to rules; a chain that is rewritten restarts at
//! zero. Earlier counts stay in the sum.

use std::collections::{BTreeMap, BTreeSet};

use compact_str::CompactString;

use crate::kernel::iptables::{Counted, Verdict};
use crate::model::ObjectName;
use crate::net::Family;

use super::super::backend::Owner;
use super::super::rules::{Direction, Isolation, RuleSet};
use super::names;

/// The policies on whose behalf each pod's chain refuses.
pub type Owners = BTreeMap<CompactString, Box<[Owner]>>;

/// Sums of refused packets.
#[derive(Default)]
pub struct Drops {
    /// Last reading of each chain's counter.
    last: BTreeMap<(Family, CompactString), u64>,
    sums: BTreeMap<Owner, u64>,
}

/// Returns the owners of the chains of these pods.
pub fn owners(rules: &RuleSet) -> Owners {
    let mut owners = Owners::new();
    for (name, pod) in &rules.pods {
        for direction in Direction::BOTH {
            let Isolation::Isolated { policies, by_namespace } = pod.isolation(direction) else { continue };
            let owner = |policy: &ObjectName| Owner {
                namespace: policy.namespace.clone(),
                policy: policy.name.clone(),
                direction,
            };
            let annotation = by_namespace.then(|| owner(&ObjectName::new(&name.namespace, "")));
            let all = policies.iter().map(owner).chain(annotation).collect();
            owners.insert(names::pod_chain(name, direction), all);
        }
    }
    owners
}

impl Drops {
    /// Adds the kernel's current counters. Policies that isolate a pod have a sum, even if it is zero.
    pub fn add(&mut self, counted: &[Counted], owners: &Owners) {
        for owner in owners.values().flatten() {
            self.sums.entry(owner.clone()).or_default();
        }
        let mut now = BTreeMap::new();
        for rule in counted.iter().filter(|rule| matches!(rule.rule.verdict(), Some(Verdict::Reject(_)))) {
            let key = (rule.family, rule.chain.clone());
            // A counter that decreased belongs to a rewritten chain.
            let before = self.last.get(&key).copied().filter(|before| *before <= rule.packets).unwrap_or_default();
            for owner in owners.get(&rule.chain).into_iter().flatten() {
                *self.sums.entry(owner.clone()).or_default() += rule.packets - before;
            }
            now.insert(key, rule.packets);
        }
        self.last = now;
    }

    pub fn sums(&self) -> &BTreeMap<Owner, u64> {
        &self.sums
    }

    /// Removes the sums of all other policies, which own no chain any more.
    pub fn forget_others(&mut self, owners: &Owners) {
        let named: BTreeSet<&Owner> = owners.values().flatten().collect();
        self.sums.retain(|owner, _| named.contains(owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(policy: &str) -> Owner {
        Owner { namespace: "shop".into(), policy: policy.into(), direction: Direction::Ingress }
    }

    fn counted(chain: &str, packets: u64) -> Counted {
        let rule = "-m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable";
        Counted { family: Family::V4, chain: chain.into(), rule: rule.into(), packets }
    }

    #[test]
    fn a_packet_counts_for_every_policy_that_isolates_its_pod() {
        let owners: Owners = [("A".into(), [owner("a"), owner("b")].into()), ("B".into(), [owner("b")].into())].into();
        let mut drops = Drops::default();
        drops.add(&[counted("A", 3), counted("B", 4), counted("C", 5)], &owners);
        drops.add(&[counted("A", 5), counted("B", 4)], &owners);
        assert_eq!(drops.sums().clone().into_iter().collect::<Vec<_>>(), [(owner("a"), 5), (owner("b"), 9)]);
    }

    #[test]
    fn a_chain_that_is_written_anew_loses_nothing_that_was_counted() {
        let owners: Owners = [("A".into(), [owner("a")].into())].into();
        let mut drops = Drops::default();
        for packets in [10, 2, 3] {
            drops.add(&[counted("A", packets)], &owners);
        }
        assert_eq!(drops.sums().get(&owner("a")), Some(&13));
        drops.add(&[], &owners);
        drops.add(&[counted("A", 3)], &owners);
        assert_eq!(drops.sums().get(&owner("a")), Some(&16), "the chain was gone in between");
    }

    #[test]
    fn only_refusals_count_and_a_policy_that_refused_nothing_says_so() {
        let owners: Owners = [("A".into(), [owner("a")].into())].into();
        let mut drops = Drops::default();
        let invalid = Counted { rule: "-m conntrack --ctstate INVALID -j DROP".into(), ..counted("A", 7) };
        drops.add(&[invalid], &owners);
        assert_eq!(drops.sums().get(&owner("a")), Some(&0));
        drops.forget_others(&Owners::new());
        assert!(drops.sums().is_empty());
    }
}
