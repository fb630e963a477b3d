//! The local node, as the service proxy sees it: the inputs common to all of its Services.
//!
//! Kubernetes: `Node.status.addresses`, `Node.spec.podCIDRs`, the label `topology.kubernetes.io/zone`, the annotation `kube-router.io/node-address`. Where the
//! cluster has no Node object of our name (a directory of manifests need not), the host's own addresses are used.
//!
//! An address of the node has one of two uses. Clients and kubelets know the node by its InternalIP: node ports listen there, and pods on its network have it. A pod of
//! another node answers by the routes of that node, which lead to the address that this one is routed by, so that is the source of what is masqueraded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::kernel::ipset::Entry;
use crate::model::World;
use crate::net::{Family, PerFamily};

use super::topology::Place;

/// Inputs of every Service's part. A change of any but the zone recomputes everything.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LocalNode {
    pub name: CompactString,
    /// The zone that this node is in, if it is known: it concerns Services whose endpoints have hints for zones.
    pub zone: Option<CompactString>,
    /// The enabled families.
    pub families: PerFamily<bool>,
    /// The address by which the cluster knows the node: node ports listen on it, and pods on the host's network have it.
    pub address: PerFamily<Option<IpAddr>>,
    /// The address by which other nodes route to the node.
    pub routing_address: PerFamily<Option<IpAddr>>,
    /// The host's own addresses, of any scope.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of the Node's addresses that the host has, of whatever kind, and the link that carries each.
    pub links: BTreeMap<IpAddr, CompactString>,
    /// The host's addresses that are reachable from other hosts.
    pub global_addresses: BTreeSet<IpAddr>,
    /// The pod CIDRs of this node.
    pub pod_cidrs: PerFamily<Vec<IpNet>>,
    /// Nothing is served through tunnels yet ([`Host::runtime_awaited`](crate::model::Host)).
    pub runtime_awaited: bool,
}

impl LocalNode {
    /// Returns whether the node may be another one in a newer World: what is known of this host, or its Node, has been replaced.
    pub fn may_differ(older: &World, newer: &World) -> bool {
        let own = |world: &World| world.cluster.nodes.get(&newer.host.node_name).map(Arc::as_ptr);
        !Arc::ptr_eq(&older.host, &newer.host) || own(older) != own(newer)
    }

    pub fn new(world: &World, families: PerFamily<bool>) -> LocalNode {
        let host = &world.host;
        let node = world.cluster.nodes.get(&host.node_name);
        let global = |family| host.addresses.iter().filter(move |a| a.global && Family::from(a.address) == family);
        let first = |family| global(family).map(|a| a.address).next();
        let address = PerFamily::from_fn(|family| node.and_then(|node| node.address(family)).or_else(|| first(family)));
        let routing_address =
            PerFamily::from_fn(|family| node.and_then(|node| node.routing_address(family)).or_else(|| first(family)));
        let of_node = node.into_iter().flat_map(|node| node.addresses.iter().map(|one| one.address));
        let its: BTreeSet<IpAddr> = of_node.chain(address.iter().filter_map(|(_, address)| *address)).collect();
        // Of several links that carry an address the first counts.
        let carried = host.addresses.iter().rev().filter(|own| its.contains(&own.address));
        LocalNode {
            name: host.node_name.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            families,
            address,
            routing_address,
            links: carried.map(|own| (own.address, own.link.clone())).collect(),
            addresses: host.addresses.iter().map(|a| a.address).collect(),
            global_addresses: host.addresses.iter().filter(|a| a.global).map(|a| a.address).collect(),
            runtime_awaited: host.runtime_awaited,
            pod_cidrs: PerFamily::from_fn(|family| {
                let all = node.into_iter().flat_map(|node| &node.pod_cidrs);
                all.filter(|cidr| Family::from(**cidr) == family).copied().collect()
            }),
        }
    }

    /// Returns where this node is, for endpoints with hints.
    pub fn place(&self) -> Place<'_> {
        Place { node: &self.name, zone: self.zone.as_deref() }
    }

    /// Returns the enabled families, IPv4 first.
    pub fn enabled_families(&self) -> impl Iterator<Item = Family> {
        self.families.iter().filter(|(_, enabled)| **enabled).map(|(family, _)| family)
    }

    /// Returns the link that carries the source of masqueraded packets in one family.
    pub fn link(&self, family: Family) -> Option<CompactString> {
        self.links.get(&self.source(family)?).cloned()
    }

    /// Returns the address by which the cluster knows the node in one family, if it is configured on this host.
    pub fn own_address(&self, family: Family) -> Option<IpAddr> {
        self.address.of(family).filter(|address| self.addresses.contains(address))
    }

    /// Returns the source of masqueraded packets, and of the host's own to service addresses, in one family: the address that other nodes route to, else
    /// the one that the cluster knows, if either is configured on this host. Only such an address can be the source of a route.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        let routing = self.routing_address.of(family).filter(|address| self.addresses.contains(address));
        routing.or_else(|| self.own_address(family))
    }

    /// Returns the link that carries the address by which the cluster knows the node, with that address, where it is another link than the one by which
    /// other nodes route to it.
    ///
    /// What leaves by that link goes to no pod by a tunnel or a route of this cluster, but to programs on hosts, an API server outside of the cluster among them,
    /// which may know no other address of the node; and networks may drop what comes from one.
    pub fn apart(&self, family: Family) -> Option<(CompactString, IpAddr)> {
        let address = self.own_address(family)?;
        let link = self.links.get(&address)?;
        (self.source(family) != Some(address) && Some(link) != self.link(family).as_ref())
            .then(|| (link.clone(), address))
    }

    /// Returns whether an address is the host's own, or the node's address: such an address needs no route.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || *self.address.of(Family::from(address)) == Some(address)
    }

    /// Returns whether an element belongs in the set of the host's addresses.
    pub fn lists(&self, entry: &Entry) -> bool {
        matches!(entry, Entry::Ip(address) if self.addresses.contains(address) && *self.families.of(Family::from(*address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Host, HostAddress, Node, NodeAddress, NodeAddressKind};

    #[test]
    fn what_listens_has_the_address_of_the_cluster_and_what_is_sent_the_one_that_is_routed() {
        let at = |text: &str| text.parse::<IpAddr>().expect("an address");
        let on = |link: &str, address: &str| HostAddress { address: at(address), link: link.into(), global: true };
        let internal = |text| NodeAddress { kind: NodeAddressKind::Internal, address: at(text) };
        let mut node = Node { addresses: vec![internal("192.0.2.1"), internal("2001:db8::1")], ..Node::default() };
        node.set_detected(PerFamily { v4: Some(at("198.51.100.1")), v6: Some(at("2001:db8:1::1")) });
        let mut world = World::empty();
        world.cluster.nodes.insert("node1".into(), node);
        let host = |addresses: &[(&str, &str)]| {
            let mut addresses: Vec<HostAddress> = addresses.iter().map(|(link, address)| on(link, address)).collect();
            addresses.sort();
            Arc::new(Host { node_name: "node1".into(), addresses, ..Host::default() })
        };
        let families = PerFamily { v4: true, v6: true };
        let front = [("eth0", "192.0.2.1"), ("eth0", "2001:db8::1"), ("eth2", "203.0.113.1")];
        world.host = host(&[&front[..], &[("eth1", "198.51.100.1"), ("eth1", "2001:db8:1::1")]].concat());
        let local = LocalNode::new(&world, families);
        let links: Vec<&str> = local.links.values().map(CompactString::as_str).collect();
        assert_eq!(links, ["eth0", "eth1", "eth0", "eth1"], "and not that of an address that the Node does not list");
        for (family, ours, routed) in
            [(Family::V4, "192.0.2.1", "198.51.100.1"), (Family::V6, "2001:db8::1", "2001:db8:1::1")]
        {
            assert_eq!(local.own_address(family), Some(at(ours)));
            assert_eq!((local.source(family), local.link(family).as_deref()), (Some(at(routed)), Some("eth1")));
            assert_eq!(local.apart(family), Some(("eth0".into(), at(ours))));
        }
        world.host = host(&front);
        let local = LocalNode::new(&world, families);
        for (family, ours) in [(Family::V4, "192.0.2.1"), (Family::V6, "2001:db8::1")] {
            assert_eq!((local.source(family), local.apart(family)), (Some(at(ours)), None), "the host has it not");
        }
    }
}
