//! The local node, as the service proxy sees it: the inputs common to all of its Services.
//!
//! Kubernetes: `Node.status.addresses`, `Node.spec.podCIDRs`, the label `topology.kubernetes.io/zone`. Where the cluster has no Node object of our name (a
//! directory of manifests need not), the host's own addresses are used.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::kernel::ipset::Entry;
use crate::model::{HostAddress, World};
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
    /// The address that node ports listen on and that masqueraded packets come from.
    pub address: PerFamily<Option<IpAddr>>,
    /// The host's own addresses, of any scope.
    pub addresses: BTreeSet<IpAddr>,
    /// The links that carry the node's addresses.
    pub links: PerFamily<Option<CompactString>>,
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
        let address = PerFamily::from_fn(|family| {
            let known = node.and_then(|node| node.address(family));
            known.or_else(|| global(family).map(|a| a.address).next())
        });
        LocalNode {
            name: host.node_name.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            families,
            address,
            links: PerFamily::from_fn(|family| {
                let carries = |a: &&HostAddress| Some(a.address) == *address.of(family);
                host.addresses.iter().find(carries).map(|a| a.link.clone())
            }),
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

    /// Returns the link that carries the node's address in one family.
    pub fn link(&self, family: Family) -> Option<CompactString> {
        self.links.of(family).clone()
    }

    /// Returns the node's address in one family if it is configured on this host: only such an address can be the
    /// source of a route.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.address.of(family).filter(|address| self.addresses.contains(address))
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
