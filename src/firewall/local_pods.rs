//! The pods of this node in the rule set, found by their names and by their addresses.
//!
//! A packet is judged by its addresses, so that a verdict costs the same on a node with many pods as on one with few.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::net::IpAddr;
use std::ops::Deref;

use crate::model::ObjectName;

use super::rules::{Direction, Isolation, LocalPod};

/// Pods by name. The index by address follows every change, so pods change only by the functions here.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LocalPods {
    by_name: BTreeMap<ObjectName, LocalPod>,
    /// Each address of each pod.
    by_address: BTreeSet<(IpAddr, ObjectName)>,
}

impl LocalPods {
    /// Returns the pods that have this address: one, or several for a moment; sorted by name.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = (&ObjectName, &LocalPod)> {
        let from = (address, ObjectName::new("", ""));
        let claims = self.by_address.range(from..).take_while(move |(other, _)| *other == address);
        claims.filter_map(|(_, name)| self.by_name.get_key_value(name))
    }

    /// Adds a pod, or puts it in the place of the one of this name.
    pub fn insert(&mut self, name: ObjectName, pod: LocalPod) {
        self.remove(&name);
        self.by_address.extend(pod.addresses.iter().map(|address| (*address, name.clone())));
        self.by_name.insert(name, pod);
    }

    /// Removes a pod, if there is one of this name.
    pub fn remove(&mut self, name: &ObjectName) {
        let Some(pod) = self.by_name.remove(name) else { return };
        for address in pod.addresses {
            self.by_address.remove(&(address, name.clone()));
        }
    }

    /// Returns the isolation of a pod in one direction, mutable.
    pub fn isolation_mut(&mut self, name: &ObjectName, direction: Direction) -> Option<&mut Isolation> {
        self.by_name.get_mut(name).map(|pod| pod.isolation_mut(direction))
    }

    /// Changes every pod.
    pub fn edit_all(&mut self, mut edit: impl FnMut(&mut LocalPod)) {
        for (name, mut pod) in std::mem::take(self).by_name {
            edit(&mut pod);
            self.insert(name, pod);
        }
    }

    pub fn into_names(self) -> impl Iterator<Item = ObjectName> {
        self.by_name.into_keys()
    }
}

impl Deref for LocalPods {
    type Target = BTreeMap<ObjectName, LocalPod>;

    fn deref(&self) -> &BTreeMap<ObjectName, LocalPod> {
        &self.by_name
    }
}

impl<'a> IntoIterator for &'a LocalPods {
    type Item = (&'a ObjectName, &'a LocalPod);
    type IntoIter = btree_map::Iter<'a, ObjectName, LocalPod>;

    fn into_iter(self) -> Self::IntoIter {
        self.by_name.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::given::{address, object};
    use super::*;

    fn pod(addresses: &[u8]) -> LocalPod {
        LocalPod {
            uid: None,
            addresses: addresses.iter().map(|last| place(*last)).collect(),
            ingress: Isolation::Open,
            egress: Isolation::Open,
            cluster_policies: [].into(),
        }
    }

    /// Of either family.
    fn place(last: u8) -> IpAddr {
        address(&if last.is_multiple_of(2) { format!("10.244.1.{last}") } else { format!("fd00:10:244:1::{last}") })
    }

    proptest! {
        #[test]
        fn pods_are_found_at_their_addresses_and_at_no_others_after_any_history(
            history in proptest::collection::vec((0..4_u8, proptest::option::of(proptest::collection::vec(0..6_u8, 0..3))), 0..20),
        ) {
            let mut pods = LocalPods::default();
            for (number, addresses) in history {
                let name = object(&format!("shop/{number}"));
                match addresses {
                    Some(addresses) => pods.insert(name, pod(&addresses)),
                    None => pods.remove(&name),
                }
                for last in 0..6 {
                    let at = place(last);
                    let found: Vec<_> = pods.at(at).collect();
                    let looked_for: Vec<_> = pods.iter().filter(|(_, pod)| pod.addresses.contains(&at)).collect();
                    prop_assert_eq!(found, looked_for);
                }
            }
            let mut edited = pods.clone();
            edited.edit_all(|pod| pod.addresses = [place(9)].into());
            prop_assert_eq!(edited.at(place(9)).count(), pods.len());
            prop_assert_eq!(edited.by_address.len(), pods.len());
        }
    }
}
