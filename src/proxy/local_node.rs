//! The node that we run on, as the service proxy sees it: what all of its Services have in common.
//!
//! Kubernetes: `Node.status.addresses`, `Node.spec.podCIDRs`. Where the cluster has no Node object of our name
//! (a directory of manifests need not), the host's own addresses say who we are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::kernel::ipset::Entry;
use crate::model::{HostAddress, World};
use crate::net::{Family, PerFamily};

/// Facts that every Service's part depends on. A change of any of them makes everything be computed anew.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LocalNode {
    pub name: CompactString,
    /// The families that are switched on.
    pub families: PerFamily<bool>,
    /// The address that node ports listen on and that masqueraded packets come from.
    pub address: PerFamily<Option<IpAddr>>,
    /// The host's own addresses, of any scope.
    pub addresses: BTreeSet<IpAddr>,
    /// The links that carry the node's addresses.
    pub links: PerFamily<Option<CompactString>>,
    /// Those of the host's addresses that others can reach.
    pub global_addresses: BTreeSet<IpAddr>,
    /// The ranges that pods of this node get their addresses from.
    pub pod_cidrs: PerFamily<Vec<IpNet>>,
}

impl LocalNode {
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
            families,
            address,
            links: PerFamily::from_fn(|family| {
                let carries = |a: &&HostAddress| Some(a.address) == *address.of(family);
                host.addresses.iter().find(carries).map(|a| a.link.clone())
            }),
            addresses: host.addresses.iter().map(|a| a.address).collect(),
            global_addresses: host.addresses.iter().filter(|a| a.global).map(|a| a.address).collect(),
            pod_cidrs: PerFamily::from_fn(|family| {
                let all = node.into_iter().flat_map(|node| &node.pod_cidrs);
                all.filter(|cidr| Family::from(**cidr) == family).copied().collect()
            }),
        }
    }

    /// The families that are switched on, IPv4 first.
    pub fn enabled_families(&self) -> impl Iterator<Item = Family> {
        self.families.iter().filter(|(_, enabled)| **enabled).map(|(family, _)| family)
    }

    /// The link that carries the node's address in one family.
    pub fn link(&self, family: Family) -> Option<CompactString> {
        self.links.of(family).clone()
    }

    /// The node's address in one family, where it is an address of this very host: only such a one can be
    /// the source of a route.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.address.of(family).filter(|address| self.addresses.contains(address))
    }

    /// Whether an address is the host's own, or the one that it is known by: such an address needs no route.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || *self.address.of(Family::from(address)) == Some(address)
    }

    /// Whether an element of the set of the host's addresses belongs there.
    pub fn lists(&self, entry: &Entry) -> bool {
        matches!(entry, Entry::Ip(address) if self.addresses.contains(address) && *self.families.of(Family::from(*address)))
    }
}
