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
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::model::{self, Claim, ObjectName, Pod, Store};
use crate::net::{Family, PerFamily};

/// The pods subject to policies (`Pod::takes_part`), by address.
#[derive(Default)]
pub struct Claims(model::Claims<IpAddr, Arc<Claimant>, Addresses>);

/// A pod subject to policies.
pub struct Claimant {
    pub name: ObjectName,
    pub pod: Arc<Pod>,
    /// True for a pod of this node.
    pub is_local: bool,
}

impl Claim for Claimant {
    type Claimant = ObjectName;

    fn claimant(&self) -> &ObjectName {
        &self.name
    }

    fn order(&self, other: &Claimant) -> Ordering {
        self.name.cmp(&other.name)
    }
}

/// The first pod of each address. Each family has its own table: with 300,000 addresses the size of an entry determines
/// the memory of all of this.
#[derive(Default)]
struct Addresses {
    v4: HashMap<Ipv4Addr, Arc<Claimant>>,
    v6: HashMap<Ipv6Addr, Arc<Claimant>>,
}

impl Store<IpAddr, Arc<Claimant>> for Addresses {
    fn get(&self, address: &IpAddr) -> Option<&Arc<Claimant>> {
        match address {
            IpAddr::V4(address) => self.v4.get(address),
            IpAddr::V6(address) => self.v6.get(address),
        }
    }

    fn set(&mut self, address: &IpAddr, claimant: Option<Arc<Claimant>>) {
        match (*address, claimant) {
            (IpAddr::V4(address), Some(claimant)) => drop(self.v4.insert(address, claimant)),
            (IpAddr::V6(address), Some(claimant)) => drop(self.v6.insert(address, claimant)),
            (IpAddr::V4(address), None) => drop(self.v4.remove(&address)),
            (IpAddr::V6(address), None) => drop(self.v6.remove(&address)),
        }
    }
}

impl Claims {
    /// Reserves capacity for this many more addresses.
    pub fn reserve(&mut self, more: PerFamily<usize>) {
        let Addresses { v4, v6 } = self.0.store();
        v4.reserve(*more.of(Family::V4));
        v6.reserve(*more.of(Family::V6));
    }

    /// Returns the pods that have this address, sorted by name.
    pub fn of(&self, address: IpAddr) -> &[Arc<Claimant>] {
        self.0.of(&address)
    }

    /// Adds one claim of a pod.
    pub fn add(&mut self, address: IpAddr, claimant: &Arc<Claimant>) {
        self.0.put(&address, &claimant.name, Some(claimant.clone()));
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

#[cfg(test)]
mod tests {
    use super::super::given::{address, object, pod};
    use super::*;

    fn claimant(name: &str) -> Arc<Claimant> {
        Arc::new(Claimant { name: object(name), pod: Arc::new(pod("10.244.1.1", "", "")), is_local: true })
    }

    fn names(claims: &Claims) -> Vec<String> {
        claims.of(address("10.244.1.1")).iter().map(|claimant| claimant.name.to_string()).collect()
    }

    #[test]
    fn the_order_of_events_does_not_show() {
        let all = ["shop/a", "shop/b", "shop/c"];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut claims = Claims::default();
            for place in order {
                claims.add(address("10.244.1.1"), &claimant(all[place]));
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
        claims.add(address("10.244.1.1"), &claimant("shop/a"));
        claims.remove(address("10.244.1.1"), &object("shop/b"));
        claims.remove(address("10.244.1.2"), &object("shop/a"));
        assert_eq!(names(&claims), ["shop/a"]);
    }
}
