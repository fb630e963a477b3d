//! Accounting of refused packets by policy.
//!
//! A packet is refused by a pod's chain if none of the policies that isolate the pod in that direction allows it, so it
//! counts for each of them. The counters are the kernel's and belong to rules; a chain that is rewritten restarts at
//! zero ([`DropSums`]).
//!
//! What a ClusterNetworkPolicy denies counts for it alone, without a namespace: by the rules of its chain that deny.

use std::collections::BTreeMap;

use compact_str::CompactString;

use crate::kernel::iptables::{Counted, Verdict};
use crate::model::ObjectName;
use crate::net::Family;

use super::super::backend::Owner;
use super::super::drop_sums::{CountsFor, DropSums};
use super::super::plan::RuleSetChanges;
use super::super::rules::{Direction, Isolation, LocalPod, RuleSet};
use super::names::{self, CHAIN_DENY, CHAIN_LINK_LOCAL, CHAIN_MULTICAST};
use super::pod_chain;

/// The policies on whose behalf each pod's chain refuses.
pub type Owners = BTreeMap<CompactString, Box<[Owner]>>;

/// The chains that drop packets on bridges, each with its reason.
pub const ON_BRIDGES: [(&str, &str); 2] = [(CHAIN_LINK_LOCAL, "link-local"), (CHAIN_MULTICAST, "multicast")];

/// Sums of refused packets, from the counters of each family's chains.
pub struct Drops(DropSums<(Family, CompactString)>);

impl Default for Drops {
    fn default() -> Drops {
        Drops(DropSums::new(ON_BRIDGES.map(|(_, reason)| reason)))
    }
}

/// Updates the owners of the chains of those pods and ClusterNetworkPolicies that changed.
pub fn update_owners(owners: &mut Owners, rules: &RuleSet, changed: &RuleSetChanges) {
    for name in &changed.pods {
        for direction in Direction::BOTH {
            let of_pod = rules.pods.get(name).and_then(|pod| owners_of_pod(name, pod, direction));
            if direction == Direction::Egress {
                put(owners, names::refusal_chain(name), of_pod.clone());
            }
            put(owners, names::pod_chain(name, direction), of_pod);
        }
    }
    // One that has another priority, and so another key, keeps its chain.
    changed.cluster_policies.iter().for_each(|key| put(owners, names::cluster_policy_chain(key), None));
    for key in changed.cluster_policies.iter().filter(|key| rules.cluster_policies.contains_key(key)) {
        let owner = Owner { namespace: "".into(), policy: key.policy.clone(), direction: key.direction };
        put(owners, names::cluster_policy_chain(key), Some([owner].into()));
    }
}

/// Returns the policies on whose behalf a pod's chain refuses; `None` for a pod without such a chain.
fn owners_of_pod(name: &ObjectName, pod: &LocalPod, direction: Direction) -> Option<Box<[Owner]>> {
    let Isolation::Isolated { policies, by_namespace } = pod.isolation(direction) else { return None };
    let owner = |policy: &ObjectName| Owner {
        namespace: (*policy.namespace).clone(),
        policy: policy.name.to_compact(),
        direction,
    };
    let annotation = by_namespace.then(|| owner(&ObjectName::new(&name.namespace, "")));
    Some(policies.iter().map(owner).chain(annotation).collect())
}

fn put(owners: &mut Owners, chain: CompactString, of_chain: Option<Box<[Owner]>>) {
    match of_chain {
        Some(of_chain) => drop(owners.insert(chain, of_chain)),
        None => drop(owners.remove(&chain)),
    }
}

/// Returns the packets that each chain has refused: that the rules of a pod's chain have rejected because no policy allows them, and
/// that the rules of a ClusterNetworkPolicy's chain have denied.
fn refused(counted: &[Counted]) -> BTreeMap<&CompactString, u64> {
    let mut refused = BTreeMap::new();
    let refuses = |rule: &&Counted| match rule.rule.verdict() {
        Some(Verdict::Reject(_)) => !pod_chain::refuses_for_cluster(&rule.rule),
        Some(Verdict::Goto(to)) => to == CHAIN_DENY,
        _ => false,
    };
    for rule in counted.iter().filter(refuses) {
        *refused.entry(&rule.chain).or_default() += rule.packets;
    }
    refused
}

/// Returns the packets that the rules of each chain for bridges have dropped together.
fn dropped_on_bridges(counted: &[Counted]) -> BTreeMap<&'static str, u64> {
    let mut dropped = BTreeMap::new();
    for rule in counted.iter().filter(|rule| rule.rule.verdict() == Some(&Verdict::Drop)) {
        if let Some((chain, _)) = ON_BRIDGES.iter().find(|(chain, _)| *chain == rule.chain) {
            *dropped.entry(*chain).or_default() += rule.packets;
        }
    }
    dropped
}

impl Drops {
    /// Policies that own a chain have a sum, even if it is zero.
    pub fn begin(&mut self, owners: &Owners) {
        self.0.begin(owners.values().flatten());
    }

    /// Adds the kernel's current counters of one family.
    pub fn add(&mut self, family: Family, counted: &[Counted], owners: &Owners) {
        let refused = refused(counted).into_iter().map(|(chain, packets)| ((family, chain.clone()), packets));
        let dropped = dropped_on_bridges(counted).into_iter().map(|(chain, packets)| ((family, chain.into()), packets));
        let counts_for = |(_, chain): &(Family, CompactString)| {
            let reason = ON_BRIDGES.into_iter().find(|(name, _)| name == chain).map(|(_, reason)| reason);
            reason.map_or_else(
                || CountsFor::Owners(owners.get(chain).map(|owners| &**owners).unwrap_or_default()),
                CountsFor::Reason,
            )
        };
        self.0.add(refused.chain(dropped).collect(), |(other, _)| *other == family, counts_for);
    }

    /// Sets the numbers of frames dropped for these reasons.
    pub fn set_frames(&mut self, dropped: impl IntoIterator<Item = (&'static str, u64)>) {
        dropped.into_iter().for_each(|(reason, packets)| self.0.set_on_bridges(reason, packets));
    }

    pub fn on_bridges(&self) -> &BTreeMap<&'static str, u64> {
        self.0.on_bridges()
    }

    pub fn sums(&self) -> &BTreeMap<Owner, u64> {
        self.0.sums()
    }

    /// Removes the sums of all other policies, which own no chain any more.
    pub fn forget_others(&mut self, owners: &Owners) {
        self.0.forget_others(owners.values().flatten());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::given::{labels, object, pod, policy};
    use super::super::super::plan::Plan;
    use super::*;
    use crate::model::{Host, Namespace, World};

    fn owner(policy: &str) -> Owner {
        Owner { namespace: "shop".into(), policy: policy.into(), direction: Direction::Ingress }
    }

    fn counted(chain: &str, packets: u64) -> Counted {
        let rule = "-m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable";
        Counted { chain: chain.into(), rule: rule.into(), packets }
    }

    fn add(drops: &mut Drops, counted: &[Counted], owners: &Owners) {
        drops.begin(owners);
        drops.add(Family::V4, counted, owners);
    }

    #[test]
    fn a_change_of_a_pod_names_its_own_owners_anew_and_no_others_and_equals_all_at_once() {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.namespaces.insert("shop".into(), Namespace { labels: labels(""), isolated: false });
        for (name, address) in [("web", "10.244.1.7"), ("db", "10.244.1.8")] {
            world.cluster.pods.insert(object(&format!("shop/{name}")), pod(address, &format!("app={name}"), ""));
        }
        for (name, of) in [("all", ""), ("web", "app=web"), ("front", "tier=front")] {
            world.cluster.policies.insert(object(&format!("shop/{name}")), policy(of, Some(&[]), Some(&[])));
        }
        let (mut plan, mut owners) = (Plan::default(), Owners::new());
        let mut update = |world: &World, owners: &mut Owners| {
            let changed = plan.update(world);
            update_owners(owners, plan.rules(), &changed);
            let (mut fresh, mut at_once) = (Plan::default(), Owners::new());
            let all = fresh.update(world);
            update_owners(&mut at_once, fresh.rules(), &all);
            assert_eq!(*owners, at_once);
        };
        let chain = |name: &str| names::pod_chain(&object(&format!("shop/{name}")), Direction::Ingress);
        update(&world, &mut owners);
        assert_eq!((owners.len(), owners[&chain("web")].len(), owners[&chain("db")].len()), (6, 2, 1));
        let of_db = owners[&chain("db")].as_ptr();
        world.cluster.pods.insert(object("shop/web"), pod("10.244.1.7", "app=web tier=front", ""));
        update(&world, &mut owners);
        assert_eq!(owners[&chain("web")].len(), 3);
        assert_eq!(owners[&chain("db")].as_ptr(), of_db, "nobody looked at it");
        world.cluster.pods.remove(&object("shop/web"));
        update(&world, &mut owners);
        assert_eq!(owners.len(), 3);
        world.cluster.policies.remove(&object("shop/all"));
        update(&world, &mut owners);
        assert!(owners.is_empty(), "nothing isolates the other one");
    }

    #[test]
    fn a_packet_counts_for_every_policy_that_isolates_its_pod() {
        let owners: Owners = [("A".into(), [owner("a"), owner("b")].into()), ("B".into(), [owner("b")].into())].into();
        let mut drops = Drops::default();
        add(&mut drops, &[counted("A", 3), counted("B", 4), counted("C", 5)], &owners);
        add(&mut drops, &[counted("A", 5), counted("B", 4)], &owners);
        assert_eq!(drops.sums().clone().into_iter().collect::<Vec<_>>(), [(owner("a"), 5), (owner("b"), 9)]);
    }

    #[test]
    fn what_a_cluster_policy_denies_counts_for_it_and_not_for_the_pods_policies() {
        let cluster = Owner { namespace: "".into(), ..owner("cluster") };
        let owners: Owners = [("A".into(), [owner("a")].into()), ("C".into(), [cluster.clone()].into())].into();
        let rule = |chain: &str, rule: &str, packets| Counted { chain: chain.into(), rule: rule.into(), packets };
        let counted = [
            rule("A", "-m mark --mark 0x30000/0x30000 -j REJECT --reject-with icmp-port-unreachable", 7),
            counted("A", 2),
            rule("C", "-p tcp -g KUBE-NWPLCY-DENY", 3),
            rule("C", "-p udp -g KUBE-NWPLCY-DENY", 4),
            rule("C", "-p sctp -g KUBE-NWPLCY-DEFAULT", 9),
        ];
        let mut drops = Drops::default();
        add(&mut drops, &counted, &owners);
        add(&mut drops, &counted, &owners);
        assert_eq!(drops.sums().clone().into_iter().collect::<Vec<_>>(), [(cluster, 7), (owner("a"), 2)]);
    }

    #[test]
    fn a_chain_that_is_written_anew_loses_nothing_that_was_counted() {
        let owners: Owners = [("A".into(), [owner("a")].into())].into();
        let mut drops = Drops::default();
        for packets in [10, 2, 3] {
            add(&mut drops, &[counted("A", packets)], &owners);
        }
        assert_eq!(drops.sums().get(&owner("a")), Some(&13));
        add(&mut drops, &[], &owners);
        add(&mut drops, &[counted("A", 3)], &owners);
        assert_eq!(drops.sums().get(&owner("a")), Some(&16), "the chain was gone in between");
    }

    #[test]
    fn all_rules_of_a_chain_that_refuse_count_together() {
        let owners: Owners = [("A".into(), [owner("a")].into())].into();
        let mut drops = Drops::default();
        for packets in [2, 3] {
            add(&mut drops, &[counted("A", packets), counted("A", 10)], &owners);
        }
        assert_eq!(drops.sums().get(&owner("a")), Some(&13));
    }

    #[test]
    fn a_family_that_was_not_read_goes_on_where_it_was() {
        let owners: Owners = [("A".into(), [owner("a")].into())].into();
        let mut drops = Drops::default();
        drops.add(Family::V4, &[counted("A", 5)], &owners);
        drops.add(Family::V6, &[counted("A", 2)], &owners);
        drops.add(Family::V6, &[counted("A", 3)], &owners);
        drops.add(Family::V4, &[counted("A", 6)], &owners);
        assert_eq!(drops.sums().get(&owner("a")), Some(&9));
    }

    #[test]
    fn what_is_dropped_on_bridges_counts_by_its_reason() {
        let dropped = |chain: &str, range: &str, packets| {
            let rule = format!("-d {range} -j DROP").as_str().into();
            Counted { chain: chain.into(), rule, packets }
        };
        let v4 = [dropped(CHAIN_MULTICAST, "224.0.0.0/4", 4), dropped("KUBE-POD-FW-A", "10.244.1.7/32", 6)];
        let v6 = [
            dropped(CHAIN_LINK_LOCAL, "fe80::/10", 2),
            dropped(CHAIN_LINK_LOCAL, "ff02::/16", 3),
            dropped(CHAIN_MULTICAST, "ff00::/8", 5),
        ];
        let mut drops = Drops::default();
        assert_eq!(*drops.on_bridges(), BTreeMap::from([("link-local", 0), ("multicast", 0)]));
        for _ in 0..2 {
            drops.add(Family::V4, &v4, &Owners::new());
            drops.add(Family::V6, &v6, &Owners::new());
        }
        assert_eq!(*drops.on_bridges(), BTreeMap::from([("link-local", 5), ("multicast", 9)]));
    }

    #[test]
    fn only_refusals_count_and_a_policy_that_refused_nothing_says_so() {
        let owners: Owners = [("A".into(), [owner("a")].into())].into();
        let mut drops = Drops::default();
        let invalid = Counted { rule: "-m conntrack --ctstate INVALID -j DROP".into(), ..counted("A", 7) };
        add(&mut drops, &[invalid], &owners);
        assert_eq!(drops.sums().get(&owner("a")), Some(&0));
        drops.forget_others(&Owners::new());
        assert!(drops.sums().is_empty());
    }
}
