//! Addresses that the cluster uses itself, so that none of them is given to a Service of type LoadBalancer: no node would serve it, but the
//! one whose address it is.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Authority, World};

/// Addresses that the cluster uses itself.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ReservedAddresses {
    /// Addresses of Nodes, of every kind.
    pub nodes: BTreeSet<IpAddr>,
    /// Ranges of cluster IPs that the cluster names (ServiceCIDR objects).
    pub cluster_ips: BTreeSet<IpNet>,
}

impl ReservedAddresses {
    /// Returns those of a World; `None` while not all Nodes are known: one that joined since the last known state was written is missing there.
    pub fn of(world: &World) -> Option<ReservedAddresses> {
        // The authority of the router is the one over all Nodes.
        let are_known = world.authority.router > Authority::Remembered;
        are_known.then(|| ReservedAddresses {
            nodes: world.cluster.nodes.iter().flat_map(|(_, node)| &node.addresses).map(|it| it.address).collect(),
            cluster_ips: world.cluster.service_ranges().collect(),
        })
    }

    /// Returns whether a newer World may have others than an older one. Most news is of neither Nodes nor ranges.
    pub fn may_differ(older: &World, newer: &World) -> bool {
        older.authority.router != newer.authority.router
            || newer.cluster.nodes.changes_since(&older.cluster.nodes).next().is_some()
            || newer.cluster.service_cidrs.changes_since(&older.cluster.service_cidrs).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Node, NodeAddress, NodeAddressKind, ServiceCidr};

    #[test]
    fn addresses_of_all_nodes_and_ranges_of_the_cluster_are_reserved_once_all_nodes_are_known() {
        let mut world = World::empty();
        let address: IpAddr = "192.0.2.11".parse().expect("an address");
        let addresses = vec![NodeAddress { kind: NodeAddressKind::External, address }];
        world.cluster.nodes.insert("node1".into(), Node { addresses, ..Node::default() });
        assert_eq!(ReservedAddresses::of(&world), None);
        let before = world.clone();
        assert!(!ReservedAddresses::may_differ(&before, &world));
        world.authority.router = Authority::Remembered;
        assert_eq!(ReservedAddresses::of(&world), None, "a Node may have joined since");
        world.authority.router = Authority::Partial;
        assert!(ReservedAddresses::may_differ(&before, &world));
        let range: IpNet = "10.97.0.0/16".parse().expect("a range");
        let before = world.clone();
        world.cluster.service_cidrs.insert("more".into(), ServiceCidr { ranges: [range].into() });
        assert!(ReservedAddresses::may_differ(&before, &world));
        let wanted = ReservedAddresses { nodes: [address].into(), cluster_ips: [range].into() };
        assert_eq!(ReservedAddresses::of(&world), Some(wanted));
    }
}
