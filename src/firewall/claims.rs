//! Who has an address: the running pods of the whole cluster, by address.
//!
//! Kubernetes: `Pod.status.podIPs[]`. Nearly every address has one pod. A pod that has finished, or uses its node's
//! network, has none of its own and does not count, so its address is free for the next pod at once. But for a moment
//! two running pods may say the same address: one was deleted, its address given to another, and its object is not gone
//! yet. Which of them a packet belongs to cannot be told, so the address has the rights that all of them have:
//!
//! - it is in a set only when every one of them belongs there (for named ports: with the same number);
//! - every one of them that is of this node has to agree to its packets, each by the policies that select it.
//!
//! Nothing opens that way, whatever the order of events, and a pod that replaces one with the same labels loses nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::slice;
use std::sync::Arc;

use crate::model::{ObjectName, Pod};

/// The pods that take part (`Pod::takes_part`), by address.
#[derive(Default)]
pub struct Claims {
    all: HashMap<IpAddr, Claimants>,
}

/// A pod that takes part.
pub struct Claimant {
    pub name: ObjectName,
    pub pod: Arc<Pod>,
    /// Whether it is a pod of this node.
    pub is_local: bool,
}

enum Claimants {
    One(Arc<Claimant>),
    /// Two or more, sorted by name.
    Several(Vec<Arc<Claimant>>),
}

impl Claims {
    /// Makes room for so many addresses more than there are.
    pub fn reserve(&mut self, more: usize) {
        self.all.reserve(more);
    }

    /// The pods that have this address, sorted by name.
    pub fn of(&self, address: IpAddr) -> &[Arc<Claimant>] {
        match self.all.get(&address) {
            None => &[],
            Some(Claimants::One(claimant)) => slice::from_ref(claimant),
            Some(Claimants::Several(claimants)) => claimants,
        }
    }

    /// Takes in one claim of a pod that has none to this address yet.
    pub fn add(&mut self, address: IpAddr, claimant: &Arc<Claimant>) {
        let mut claimants = self.of(address).to_vec();
        claimants.push(claimant.clone());
        claimants.sort_by(|one, other| one.name.cmp(&other.name));
        self.put(address, claimants);
    }

    /// Forgets one claim.
    pub fn remove(&mut self, address: IpAddr, name: &ObjectName) {
        let others = self.of(address).iter().filter(|claimant| claimant.name != *name);
        self.put(address, others.cloned().collect());
    }

    fn put(&mut self, address: IpAddr, mut claimants: Vec<Arc<Claimant>>) {
        match (claimants.len(), claimants.pop()) {
            (_, None) => drop(self.all.remove(&address)),
            (1, Some(only)) => drop(self.all.insert(address, Claimants::One(only))),
            (_, Some(last)) => {
                claimants.push(last);
                self.all.insert(address, Claimants::Several(claimants));
            }
        }
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
            assert!(names(&claims).is_empty() && claims.all.is_empty());
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
