//! Owners of addresses: the running pods of the whole cluster, by address.
//!
//! Kubernetes: `Pod.status.podIPs[]`. Nearly every address has one pod. A pod that has finished, or uses its node's
//! network, has none of its own and does not count, so its address is free for the next pod at once. But two running
//! pods may briefly report the same address: one was deleted, its address given to another, and its object is not gone
//! yet. A packet's pod is unknown, so the address has only the rights that all of them have:
//!
//! - it is in a set only when every one of them belongs there (for named ports: with the same number);
//! - each of them that runs on this node has to allow its packets, by the policies that select it.
//!
//! So nothing opens, whatever the order of events, and a pod that replaces one with the same labels loses nothing.

use std::cmp::Ordering;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::{self, Claim, ObjectName, Pod, Store, Table};
use crate::packed::BlockMap;

/// The pods subject to policies (`Pod::takes_part`), by address.
#[derive(Default)]
pub struct Claims(model::Claims<IpAddr, ObjectName, Addresses>);

/// A pod subject to policies.
#[derive(Clone, Copy)]
pub struct Claimant<'a> {
    pub name: &'a ObjectName,
    pub pod: &'a Pod,
    /// True for a pod of this node.
    pub is_local: bool,
}

impl Claim for ObjectName {
    type Claimant = ObjectName;

    fn claimant(&self) -> &ObjectName {
        self
    }

    fn order(&self, other: &ObjectName) -> Ordering {
        self.cmp(other)
    }
}

/// The first pod of each address. Each family has its own table: with 300,000 addresses the size of an entry determines
/// the memory of all of this.
#[derive(Default)]
struct Addresses {
    v4: BlockMap<Ipv4Addr, ObjectName>,
    v6: BlockMap<Ipv6Addr, ObjectName>,
}

impl Store<IpAddr, ObjectName> for Addresses {
    fn get(&self, address: &IpAddr) -> Option<&ObjectName> {
        match address {
            IpAddr::V4(address) => self.v4.get(address),
            IpAddr::V6(address) => self.v6.get(address),
        }
    }

    fn set(&mut self, address: &IpAddr, claimant: Option<ObjectName>) {
        match (*address, claimant) {
            (IpAddr::V4(address), Some(claimant)) => drop(self.v4.insert(address, claimant)),
            (IpAddr::V6(address), Some(claimant)) => drop(self.v6.insert(address, claimant)),
            (IpAddr::V4(address), None) => drop(self.v4.remove(&address)),
            (IpAddr::V6(address), None) => drop(self.v6.remove(&address)),
        }
    }
}

impl Claims {
    /// Packs the claims, of which the first World brings those of all pods.
    pub fn pack(&mut self) {
        let Addresses { v4, v6 } = self.0.store();
        v4.pack();
        v6.pack();
    }

    /// Returns the names of the pods that have this address, sorted.
    pub fn of(&self, address: IpAddr) -> &[ObjectName] {
        self.0.of(&address)
    }

    /// Returns the pods that have this address, sorted by name, as they are in this table. `node`: the name of this node.
    pub fn pods_at<'a>(
        &'a self,
        address: IpAddr,
        pods: &'a Table<ObjectName, Pod>,
        node: &'a str,
    ) -> impl Iterator<Item = Claimant<'a>> {
        self.of(address).iter().filter_map(move |name| Some(Claimant::new(name, pods.get(name)?, node)))
    }

    /// Adds one claim of a pod.
    pub fn add(&mut self, address: IpAddr, name: &ObjectName) {
        self.0.put(&address, name, Some(name.clone()));
    }

    /// Removes one claim.
    pub fn remove(&mut self, address: IpAddr, name: &ObjectName) {
        self.0.put(&address, name, None);
    }

    /// Returns whether no address is claimed.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.all().v4.is_empty() && self.0.all().v6.is_empty() && self.0.contested().next().is_none()
    }
}

impl<'a> Claimant<'a> {
    pub fn new(name: &'a ObjectName, pod: &'a Pod, node: &str) -> Claimant<'a> {
        Claimant { name, pod, is_local: pod.node.as_deref() == Some(node) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::given::{address, object};
    use super::*;

    fn names(claims: &Claims) -> Vec<String> {
        claims.of(address("10.244.1.1")).iter().map(ObjectName::to_string).collect()
    }

    #[test]
    fn the_order_of_events_does_not_show() {
        let all = ["shop/a", "shop/b", "shop/c"];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut claims = Claims::default();
            for place in order {
                claims.add(address("10.244.1.1"), &object(all[place]));
            }
            assert_eq!(names(&claims), all);
            claims.remove(address("10.244.1.1"), &object("shop/b"));
            assert_eq!(names(&claims), ["shop/a", "shop/c"]);
            claims.remove(address("10.244.1.1"), &object("shop/a"));
            assert_eq!(names(&claims), ["shop/c"]);
            claims.remove(address("10.244.1.1"), &object("shop/c"));
            assert!(names(&claims).is_empty() && claims.is_empty());
        }
    }

    #[test]
    fn who_has_no_claim_loses_none() {
        let mut claims = Claims::default();
        claims.add(address("10.244.1.1"), &object("shop/a"));
        claims.remove(address("10.244.1.1"), &object("shop/b"));
        claims.remove(address("10.244.1.2"), &object("shop/a"));
        assert_eq!(names(&claims), ["shop/a"]);
    }
}
