//! Accounting of refused packets by policy.
//!
//! A class refuses what none of its policies allows, so a packet that it refuses counts for each of them. What a ClusterNetworkPolicy
//! denies counts for it alone, without a namespace. The counters are objects of the table, one for each class and each policy that
//! denies: a chain that is replaced goes on counting, and one that comes back starts at zero ([`DropSums`]).

use std::collections::BTreeMap;

use crate::kernel::nftables::Name;

use super::super::backend::Owner;
use super::super::drop_sums::{CountsFor, DropSums};
use super::super::rules::ClusterPolicyKey;
use super::class::Class;
use super::names::{self, LINK_LOCAL, MULTICAST};

/// The policies on whose behalf each counter counts.
pub type Owners = BTreeMap<Name, Box<[Owner]>>;

/// The counters of what is dropped on bridges, each with its reason.
const ON_BRIDGES: [(&str, &str); 2] = [(LINK_LOCAL, "link-local"), (MULTICAST, "multicast")];

/// Sums of refused packets, from the counters of the table.
pub struct Drops(DropSums<Name>);

impl Default for Drops {
    fn default() -> Drops {
        Drops(DropSums::new(ON_BRIDGES.map(|(_, reason)| reason)))
    }
}

/// Updates the owners of the counters of these classes, each with whether it is there, and of these ClusterNetworkPolicies, which belong to no
/// namespace.
pub fn update_owners<'a>(
    owners: &mut Owners,
    classes: impl Iterator<Item = (&'a Class, bool)>,
    cluster_policies: impl Iterator<Item = (&'a ClusterPolicyKey, bool)> + Clone,
) {
    for (class, is_there) in classes {
        put(owners, names::class(class), is_there.then(|| owners_of_class(class)));
    }
    // One that has another priority, and so another key, may keep its counter.
    cluster_policies.clone().for_each(|(key, _)| put(owners, names::denied(key), None));
    for (key, _) in cluster_policies.filter(|(_, is_there)| *is_there) {
        let owner = Owner { namespace: "".into(), policy: key.policy.clone(), direction: key.direction };
        put(owners, names::denied(key), Some([owner].into()));
    }
}

fn owners_of_class(class: &Class) -> Box<[Owner]> {
    let owner = |namespace: &str, policy: &str| Owner {
        namespace: namespace.into(),
        policy: policy.into(),
        direction: class.direction,
    };
    let policies = class.policies.iter().map(|policy| owner(&policy.namespace, &policy.name));
    let annotation = class.by_namespace.then(|| owner(&class.namespace, ""));
    policies.chain(annotation).collect()
}

fn put(owners: &mut Owners, counter: Name, of_counter: Option<Box<[Owner]>>) {
    match of_counter {
        Some(of_counter) => drop(owners.insert(counter, of_counter)),
        None => drop(owners.remove(&counter)),
    }
}

impl Drops {
    /// Adds the kernel's current counters. Policies that isolate a pod have a sum, even if it is zero.
    pub fn add(&mut self, counted: BTreeMap<Name, u64>, owners: &Owners) {
        self.0.begin(owners.values().flatten());
        let counts_for = |counter: &Name| {
            let reason = ON_BRIDGES.iter().find(|(name, _)| *name == counter.as_str()).map(|(_, reason)| *reason);
            reason.map_or_else(
                || CountsFor::Owners(owners.get(counter).map(|owners| &**owners).unwrap_or_default()),
                CountsFor::Reason,
            )
        };
        self.0.add(counted, |_| true, counts_for);
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

    /// Removes the sums of all other policies, which isolate no pod any more.
    pub fn forget_others(&mut self, owners: &Owners) {
        self.0.forget_others(owners.values().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::given::object;
    use super::super::super::rules::Direction;
    use super::*;
    use crate::model::Tier;

    fn class(policies: &[&str], by_namespace: bool) -> Class {
        let policies = policies.iter().map(|name| object(name)).collect();
        Class { direction: Direction::Ingress, namespace: "shop".into(), policies, by_namespace }
    }

    /// The owners of these and of no others.
    fn owners(classes: &[&Class], cluster_policies: &[&ClusterPolicyKey]) -> Owners {
        let mut owners = Owners::new();
        let classes = classes.iter().map(|class| (*class, true));
        update_owners(&mut owners, classes, cluster_policies.iter().map(|key| (*key, true)));
        owners
    }

    fn sums(drops: &Drops) -> Vec<(String, u64)> {
        drops.sums().iter().map(|(owner, packets)| (owner.policy.to_string(), *packets)).collect()
    }

    #[test]
    fn a_packet_counts_for_every_policy_that_isolates_its_pod() {
        let (both, one) = (class(&["shop/a", "shop/b"], true), class(&["shop/b"], false));
        let owners = owners(&[&both, &one], &[]);
        let counted = |both_has: u64, one_has: u64| -> BTreeMap<Name, u64> {
            [(names::class(&both), both_has), (names::class(&one), one_has), ("other".into(), 9)].into()
        };
        let mut drops = Drops::default();
        drops.add(counted(3, 4), &owners);
        drops.add(counted(5, 4), &owners);
        assert_eq!(sums(&drops), [(String::new(), 5), ("a".into(), 5), ("b".into(), 9)]);
        // One was made anew, the other is gone.
        drops.add([(names::class(&one), 1)].into(), &owners);
        assert_eq!(sums(&drops), [(String::new(), 5), ("a".into(), 5), ("b".into(), 10)]);
        drops.forget_others(&super::tests::owners(&[&one], &[]));
        assert_eq!(sums(&drops), [("b".into(), 10)]);
    }

    #[test]
    fn what_a_cluster_policy_denies_counts_for_it_alone() {
        let of = |tier| ClusterPolicyKey { tier, priority: 7, policy: "guard".into(), direction: Direction::Ingress };
        let [guard, other] = [Tier::Admin, Tier::Baseline].map(of);
        let class = class(&["shop/a"], false);
        let owners = owners(&[&class], &[&guard]);
        let mut drops = Drops::default();
        let counted = [(names::class(&class), 2), (names::denied(&guard), 3), (names::denied(&other), 9)];
        drops.add(counted.into(), &owners);
        assert_eq!(sums(&drops), [("guard".to_owned(), 3), ("a".to_owned(), 2)]);
        assert!(drops.sums().keys().any(|owner| owner.namespace.is_empty() && owner.policy == "guard"));
    }

    #[test]
    fn a_policy_that_refused_nothing_says_so_and_what_bridges_drop_counts_by_its_reason() {
        let mut drops = Drops::default();
        let owners = owners(&[&class(&["shop/a"], false)], &[]);
        drops.add([(LINK_LOCAL.into(), 2)].into(), &owners);
        assert_eq!(sums(&drops), [("a".to_owned(), 0)]);
        assert_eq!(*drops.on_bridges(), BTreeMap::from([("link-local", 2), ("multicast", 0)]));
    }
}
