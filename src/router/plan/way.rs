//! The plan for who asks which way a packet takes: whose an address is, which desired route leads to it, through which tunnel, and why there is none.

use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use crate::config::Encapsulation;
use crate::kernel::ipset::Entry;
use crate::kernel::route::{NextHop, Route, RouteKey, TABLE_MAIN};
use crate::kernel::rule::RuleKey;
use crate::kernel::vxlan::gateway;
use crate::kernel::wireguard::Peer;
use crate::model::{NodeAddress, NodeAddressKind};
use crate::net::{Family, PerFamily};
use crate::router::names::{Set, TUNNEL_TABLE};

/// Owner of an address, as Node objects tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    ThisNode,
    /// In this pod range of this node.
    OwnPods(IpNet),
    /// In a pod range of another node.
    PodsOf {
        node: CompactString,
        range: IpNet,
    },
    /// An ExternalIP of this Node that no link of the host has: as one that a cloud's gateway translates.
    ThisNodeOutside,
    /// An address of another node itself.
    Node(CompactString),
    /// Nobody's of whom Nodes tell.
    Other,
}

/// Whether packets of this node's pods to an address leave with the node's address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Masquerade {
    /// `--enable-pod-egress` is off.
    Off,
    /// No Node is known, or the family is off: there is no rule yet.
    Unknown,
    /// They keep theirs: the address is in this pod range of a node.
    ToPods(IpNet),
    /// They keep theirs: it is an address of a node.
    ToNode,
    /// They get the address of the link over which they leave.
    ToOutside,
}

/// The tunnel of a next hop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelEnds {
    pub local: IpAddr,
    pub remote: IpAddr,
    pub encapsulation: Encapsulation,
    /// UDP port of the other end, where the encapsulation has one.
    pub port: Option<u16>,
    /// MTU inside, in bytes; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
}

/// Returns the prefixes around an address, the longest first.
fn around(address: IpAddr) -> impl Iterator<Item = IpNet> {
    let longest = Family::from(address).host_bits();
    (0..=longest).rev().filter_map(move |length| Some(IpNet::new(address, length).ok()?.trunc()))
}

impl Plan {
    /// Returns whose an address is.
    pub fn owner_of(&self, address: IpAddr) -> Owner {
        if self.here.contains(&address) {
            return Owner::ThisNode;
        }
        if self.own.all.contains(&address) {
            let own = self.known.nodes.get(&self.own.name);
            let is_external = |one: &NodeAddress| one.address == address && one.kind == NodeAddressKind::External;
            let is_outside = own.is_some_and(|node| node.addresses.iter().any(is_external));
            return if is_outside { Owner::ThisNodeOutside } else { Owner::ThisNode };
        }
        let is_own = |node: &&CompactString| **node != self.own.name;
        if let Some(node) = self.nodes.with_address(&address).find(is_own) {
            return Owner::Node(node.clone());
        }
        let own: Vec<IpNet> = self.own.all_pod_cidrs().collect();
        let owner = |range: IpNet| match own.contains(&range) {
            true => Some(Owner::OwnPods(range)),
            false => {
                let node = self.nodes.with_range(&range).next()?.clone();
                Some(Owner::PodsOf { node, range })
            }
        };
        around(address).find_map(owner).unwrap_or(Owner::Other)
    }

    /// Returns the desired route by which packets to an address leave; with `of_pods` those of this node's pods, for which rules may choose
    /// another table.
    pub fn route_to(&self, address: IpAddr, of_pods: bool) -> Option<(RouteKey, Arc<Route>)> {
        let family = Family::from(address);
        let is_ruled =
            |source: &IpNet| self.desired.source_rules.contains_key(&RuleKey { source: *source, table: TUNNEL_TABLE });
        let of = |key: RouteKey| self.routes.routes().get(&key).map(|route| (key.clone(), route.clone()));
        if of_pods && self.own.pod_cidrs.of(family).iter().any(is_ruled) {
            let ruled = around(address).find_map(|prefix| of(RouteKey::new(TUNNEL_TABLE, prefix)));
            if ruled.is_some() {
                return ruled;
            }
        }
        around(address).find_map(|prefix| of(RouteKey::new(TABLE_MAIN, prefix)))
    }

    /// Returns the narrowest prefix around an address to which a route was learned that has no path.
    pub fn pathless_to(&self, address: IpAddr) -> Option<IpNet> {
        around(address).find(|prefix| self.routes.has(*prefix) && !self.routes.has_way(*prefix))
    }

    /// Returns why a pod CIDR of another node has no route, as far as the last look at it has found out, as a sentence without its end;
    /// `None` of one that has a route, or was not looked at.
    pub fn why_unreached(&self, node: &CompactString, range: IpNet) -> Option<String> {
        self.pod_ranges.why_unreached(node, range)
    }

    /// Returns whether packets of this node's pods to an address are masqueraded: looked up in what the sets of all nodes hold.
    pub fn masquerade(&self, address: IpAddr) -> Masquerade {
        let has = |set: Set, entry: Entry| self.nodes.has_element(&set.element(entry));
        if !self.config.pod_egress {
            return Masquerade::Off;
        }
        if !self.known.has_nodes || !*self.own.families.of(Family::from(address)) {
            return Masquerade::Unknown;
        }
        if let Some(range) = around(address).find(|range| has(Set::PodRanges, Entry::Net(*range))) {
            return Masquerade::ToPods(range);
        }
        if has(Set::NodeAddresses, Entry::Ip(address)) { Masquerade::ToNode } else { Masquerade::ToOutside }
    }

    /// Returns the tunnel that a next hop of the route to this destination leads into; `None` of one on a link.
    pub fn tunnel_of(&self, destination: IpNet, hop: &NextHop) -> Option<TunnelEnds> {
        let encapsulation = self.config.overlay?.encapsulation;
        if let Some(device) = self.desired.wireguard_devices.get(&hop.link) {
            let has_it = |peer: &&Peer| peer.allowed.iter().any(|range| range.contains(&destination));
            let remote = self.desired.wireguard_peers.values().find(has_it)?.endpoint?.ip();
            let local = (*self.own.addresses.of(Family::from(remote)))?;
            return Some(TunnelEnds { local, remote, encapsulation, port: Some(device.port), mtu: device.mtu });
        }
        if let Some(tunnel) = self.routes.tunnels().get(&hop.link) {
            let (local, remote, port, mtu) = (tunnel.local, tunnel.remote, tunnel.udp_port, tunnel.mtu);
            return Some(TunnelEnds { local, remote, encapsulation, port, mtu });
        }
        let device = self.desired.overlay_devices.get(&hop.link)?;
        let mut entries = self.routes.entries().keys().filter(|key| key.link == hop.link);
        let remote = entries.find(|key| Some(gateway(key.remote)) == hop.gateway)?.remote;
        Some(TunnelEnds { local: device.local, remote, encapsulation, port: Some(device.port), mtu: device.mtu })
    }

    /// Returns the MTU of the link by which packets from this node's address of each family leave, and that of pods, in bytes, so far as they follow from each other
    /// (`--auto-mtu`).
    pub fn mtus(&self) -> (PerFamily<Option<u32>>, Option<u32>) {
        (self.own.mtus, self.desired.bridge.and_then(|bridge| bridge.mtu))
    }

    /// Returns a pod range of this node of this family.
    pub fn own_range(&self, family: Family) -> Option<IpNet> {
        self.own.pod_cidrs.of(family).first().copied()
    }
}
