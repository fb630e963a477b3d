//! Addresses that pods left, the last one each, while ClusterNetworkPolicies cannot be read.
//!
//! What such a policy denied to a pod stays in the table, and does not pass to the next pod with its address (`kept`). That matters only as long as the
//! table has the former pod's verdict, which goes with the next transaction, so the addresses that were left last are enough. One that is forgotten
//! earlier, because the kernel refuses every transaction, opens nothing: the next pod there is denied what the former one was.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The addresses, as many as there is room for; those that were left last.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LeftAddresses {
    /// When each was left: the number of the departure.
    departures: BTreeMap<IpAddr, u64>,
    by_departure: BTreeSet<(u64, IpAddr)>,
    last: u64,
}

/// More than a node has pods: all of them may leave at once.
const MOST: usize = 4096;

impl LeftAddresses {
    pub fn add(&mut self, address: IpAddr) {
        self.last += 1;
        if let Some(before) = self.departures.insert(address, self.last) {
            self.by_departure.remove(&(before, address));
        }
        self.by_departure.insert((self.last, address));
        if self.by_departure.len() > MOST
            && let Some((_, oldest)) = self.by_departure.pop_first()
        {
            self.departures.remove(&oldest);
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.departures.contains_key(&address)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::given::{config, object, pod};
    use super::super::super::plan::Plan;
    use super::super::lowering::Lowering;
    use super::*;
    use crate::model::{Host, Namespace, UnreadPolicies, World};
    use crate::net::PerFamily;

    fn address(number: usize) -> IpAddr {
        let [.., high, low] = u32::try_from(number).expect("a small number").to_be_bytes();
        if number.is_multiple_of(2) {
            IpAddr::from([10, 244, high, low])
        } else {
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, u16::from(high), u16::from(low)])
        }
    }

    #[test]
    fn those_that_were_left_last_are_known_and_memory_has_a_bound() {
        let mut left = LeftAddresses::default();
        (0..MOST).for_each(|number| left.add(address(number)));
        assert!((0..MOST).all(|number| left.contains(address(number))));
        left.add(address(0));
        left.add(address(MOST));
        assert!(left.contains(address(0)), "it was left again");
        assert!(!left.contains(address(1)) && left.contains(address(2)) && left.contains(address(MOST)));
        (0..5 * MOST).for_each(|number| left.add(address(number)));
        assert_eq!((left.departures.len(), left.by_departure.len()), (MOST, MOST));
    }

    /// A node with these pods, each with its address, and policies that cannot be read.
    fn node(pods: &[(&str, &str)]) -> World {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.namespaces.insert("shop".into(), Namespace::default());
        for (name, addresses) in pods {
            world.cluster.pods.insert(object(&format!("shop/{name}")), pod(addresses, "", ""));
        }
        world.unread = UnreadPolicies::Any;
        world
    }

    /// Whether the pods at the address stay denied what the policies denied there, after each of these worlds.
    fn denied(address: &str, worlds: &[World]) -> Vec<bool> {
        let (mut plan, mut lowering) =
            (Plan::new(), Lowering::new(Arc::new(config()), PerFamily { v4: true, v6: true }));
        let address = address.parse().expect("an address");
        let after = |world: &World| {
            let changed = plan.update(world);
            lowering.update(plan.rules(), world, &changed);
            lowering.desired().lost.as_ref().expect("policies cannot be read").addresses.contains(&address)
        };
        worlds.iter().map(after).collect()
    }

    #[test]
    fn an_address_that_another_pod_still_has_is_not_left() {
        for (shared, other) in [("10.244.1.8", "10.244.1.9"), ("fd00:10:244:1::8", "fd00:10:244:1::9")] {
            let both = || node(&[("db", shared), ("twin", shared)]);
            let both_addresses = format!("{shared} {other}");
            let next = || node(&[("next", shared)]);
            let gone = [both(), node(&[("twin", shared)]), node(&[]), next()];
            assert_eq!(denied(shared, &gone), [true, true, false, false], "one goes, then the other one");
            let moved = [both(), node(&[("db", other), ("twin", &both_addresses)]), next()];
            assert_eq!(denied(shared, &moved), [true, true, false], "one moves while the other one gets one more");
            let changed = [both(), node(&[("db", other), ("twin", other)]), next()];
            assert_eq!(denied(shared, &changed), [true, false, false], "both move");
            assert_eq!(
                denied(shared, &[node(&[("db", shared)]), next()]),
                [true, false],
                "one takes the place of the former"
            );
        }
    }
}
