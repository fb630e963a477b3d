//! How the kernel tells tunnels to nodes apart: by names of devices, and by link addresses on those of `vxlan`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::problems::NAMED;
use super::{Around, Nodes};
use crate::kernel::link::LinkName;
use crate::router::problem::{About, Problem};

impl Nodes {
    /// Has tunnels told apart by other names and link addresses. Before the first node.
    #[cfg(test)]
    pub fn tell_tunnels_by(&mut self, names: super::TunnelNames, links: super::LinkAddresses) {
        (self.tunnel_names, self.link_addresses) = (names, links);
    }

    /// Takes the names of the tunnels that an earlier run has left. Before the first node.
    pub fn adopt_tunnels(&mut self, found: BTreeMap<LinkName, IpAddr>) {
        self.tunnel_names.adopt(found);
    }

    /// Returns the name of the tunnel to a node. It is another one's where the node has [none](Nodes::is_nameless).
    pub fn tunnel_name(&self, address: IpAddr) -> LinkName {
        self.tunnel_names.of(address)
    }

    /// Returns whether both names of the tunnel to the node with this address are those of tunnels to others.
    pub fn is_nameless(&self, address: IpAddr) -> bool {
        self.tunnel_names.is_nameless(address)
    }

    /// Returns whether the link address that a node with this address would have for `vxlan` is that of another one, which comes first, or ours.
    pub fn has_anothers_link_address(&self, address: IpAddr) -> bool {
        self.link_addresses.is_beaten(address)
    }

    /// Notes which tunnels there may be after a change of who has an address. Returns the addresses of the nodes to which the ways may differ through that from
    /// before, whichever of them is a next hop.
    pub(super) fn note_tunnel(&mut self, address: IpAddr, around: Around<'_>) -> BTreeSet<IpAddr> {
        let Some(overlay) = around.config.overlay else { return BTreeSet::new() };
        let (addresses, own) = (&self.addresses, &around.own.name);
        let is_own = |address: &IpAddr| addresses.owners(address).any(|claimant| claimant.node == *own);
        let place = |address: &IpAddr| (!is_own(address), addresses.owners(address).next(), *address);
        let precedes = |one: IpAddr, other: IpAddr| place(&one) < place(&other);
        let is_there = addresses.contains(&address);
        let mut changed = BTreeSet::new();
        if overlay.device_of_each_node().is_some() {
            changed.extend(self.tunnel_names.note(address, is_there && !is_own(&address), &precedes));
        }
        if overlay.vxlan().is_some() {
            changed.extend(self.link_addresses.note(address, is_there, &precedes));
        }
        let nodes = changed.iter().flat_map(|address| self.with_address(address));
        nodes.flat_map(|node| self.addresses_of(node)).copied().collect()
    }

    /// Returns the problems of nodes to which no tunnel leads because the kernel could not tell it from that to another node.
    pub(super) fn problems_of_tunnels(&self) -> Vec<Problem> {
        let about = |address: IpAddr, text: String| {
            let node = self.with_address(&address).next()?;
            Some(Problem::new(About::Node(node.clone()), text))
        };
        let beaten = self.link_addresses.beaten().take(NAMED).filter_map(|(address, first)| {
            let why = format!("has the link address of {first} for vxlan, which comes first");
            about(address, format!("its address {address} {why}; no tunnel leads to it"))
        });
        let nameless = self.tunnel_names.nameless().take(NAMED).filter_map(|address| {
            let why = format!("both names of the tunnel to its address {address} are those of tunnels to other nodes");
            about(address, format!("{why}; there is none to it"))
        });
        beaten.chain(nameless).collect()
    }
}
