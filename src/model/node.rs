//! A Node: its addresses, its pod ranges, its labels, and its annotations about routing.
//!
//! Kubernetes: `metadata.creationTimestamp`, `Node.status.addresses[]`, the conditions `NetworkUnavailable` and `Ready`, `Node.spec.providerID`, `Node.spec.podCIDRs` and `podCIDR`, `metadata.labels`, of which `topology.kubernetes.io/zone` and `kubernetes.io/os` have a meaning here, and the annotations
//! `kube-router.io/pod-cidrs`, which wins over the spec, and `kube-router.io/pod-cidr`, which counts where neither names any.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use super::selector::Labels;
use super::unread_peers::UnreadPeers;
use crate::net::{ExternalPeer, Family, PerFamily, PublicKey};

/// The annotation of a Node with its public key for WireGuard. Its own agent writes it.
pub const WIREGUARD_KEY_ANNOTATION: &str = "kube-router.io/wireguard-public-key";

/// The annotation of a Node with the public key that is to follow that one. Its own agent writes it, while the key changes.
pub const WIREGUARD_NEXT_KEY_ANNOTATION: &str = "kube-router.io/wireguard-next-public-key";

/// The annotation of a Node with the addresses that its own agent has found for routing (`--node-ip-autodetect`): one of each family,
/// separated by a comma.
pub const NODE_ADDRESS_ANNOTATION: &str = "kube-router.io/node-address";

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Node {
    /// `metadata.creationTimestamp` in seconds since 1970 (0 where absent). The API server writes it, so who may write a Node cannot make it older.
    pub created: i64,
    /// Internal and external addresses, in the API's order, and behind them those that were detected. Host names are left out.
    pub addresses: Vec<NodeAddress>,
    /// Both families, without duplicates, masked to the prefix.
    pub pod_cidrs: Vec<IpNet>,
    /// `spec.podCIDRs`, of the same shape, where annotations name others in their place; `None` where these are them. A kubelet may write
    /// the annotations of its Node, and cannot change a spec that has ranges.
    pub spec_pod_cidrs: Option<Box<[IpNet]>>,
    /// The condition `NetworkUnavailable` is there and not `False`. Where it is `True` no pod comes here.
    pub network_unavailable: bool,
    /// The condition `Ready` is `True`, and the label `kubernetes.io/os` names nothing but `linux`: an agent runs there and
    /// announces the pod CIDRs, if all is well. False for a remembered node, whose present condition nobody knows.
    pub should_announce: bool,
    /// The kubelet says in the condition `Ready` that the host shuts down. False for a remembered node.
    pub is_shutting_down: bool,
    /// The ID of the instance of EC2 that `spec.providerID` names (`i-…`); `None` for other machines, and for a remembered Node.
    pub ec2_instance: Option<Box<str>>,
    /// The label `topology.kubernetes.io/zone`; `None` where it is absent or empty.
    pub zone: Option<CompactString>,
    /// All of them: policies select Nodes by their labels.
    pub labels: Labels,
    /// `spec.taints`, in the API's order.
    pub taints: Vec<Taint>,
    /// `kube-router.io/wireguard-public-key`: others encrypt with it what they send to this node.
    pub wireguard_key: Option<PublicKey>,
    /// `kube-router.io/wireguard-next-public-key`: the same at its second port, while its key changes.
    pub wireguard_next_key: Option<PublicKey>,
    /// Present on few nodes.
    pub routing: Option<Box<Routing>>,
}

/// A taint, written as `key=value:Effect` or `key:Effect`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taint {
    pub key: CompactString,
    /// Empty where it has none.
    pub value: CompactString,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`, or one of the future.
    pub effect: CompactString,
}

/// A text that is no taint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no taint (key=value:Effect)")]
pub struct NoTaint(String);

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Taint { key, value, effect } = self;
        match value.as_str() {
            "" => write!(f, "{key}:{effect}"),
            _ => write!(f, "{key}={value}:{effect}"),
        }
    }
}

impl FromStr for Taint {
    type Err = NoTaint;

    fn from_str(text: &str) -> Result<Taint, NoTaint> {
        let (words, effect) = text.rsplit_once(':').ok_or_else(|| NoTaint(text.to_owned()))?;
        let (key, value) = words.split_once('=').unwrap_or((words, ""));
        match key {
            "" => Err(NoTaint(text.to_owned())),
            _ => Ok(Taint { key: key.into(), value: value.into(), effect: effect.into() }),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeAddress {
    pub kind: NodeAddressKind,
    pub address: IpAddr,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeAddressKind {
    /// `InternalIP`.
    Internal,
    /// `ExternalIP`.
    External,
    /// `kube-router.io/node-address`, one of each family at most; of this host's own Node what was found here. Other nodes route to it in place of the
    /// internal one of its family.
    Detected,
}

/// The annotations of a Node about BGP, parsed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Routing {
    /// `kube-router.io/node.asn`; not 0.
    pub asn: Option<u32>,
    pub reflection: Reflection,
    pub prepend: Option<Prepend>,
    /// `kube-router.io/node.bgp.communities`, in their order, without repetitions.
    pub communities: Vec<u32>,
    /// `kube-router.io/node.bgp.customimportreject`, masked.
    pub import_reject: Vec<IpNet>,
    /// `kube-router.io/peers`, or the lists `kube-router.io/peer.*`.
    pub peers: Vec<ExternalPeer>,
    /// Those of them that cannot be read: in the World the last good ones are among `peers` in their place.
    pub unread_peers: UnreadPeers,
    /// `kube-router.io/bgp-local-addresses`; empty for the node's own.
    pub local_addresses: Vec<IpAddr>,
}

/// A node's role in route reflection (RFC 4456), and its cluster ID; of 0.0.0.0 that of a reflector is its router identifier.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Reflection {
    #[default]
    None,
    /// `kube-router.io/rr.server`.
    Server(Ipv4Addr),
    /// `kube-router.io/rr.client`, where it is no server.
    Client(Ipv4Addr),
}

/// `kube-router.io/path-prepend.as` and `.repeat-n`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prepend {
    pub asn: u32,
    /// Not 0.
    pub times: u8,
}

/// Maximum number of another node's addresses that count, of [`ordered_addresses`](Node::ordered_addresses). Each may be a route of pods into a tunnel, an element of a set, a hole in a wall, and an
/// address at which no Service is served.
pub const COUNTED_ADDRESSES: usize = 8;

impl Node {
    /// The address by which the cluster knows the node in one family: its first internal address of that family,
    /// else its first external one.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.listed(|address| Family::from(address) == family)
    }

    /// The address by which other nodes route to the node in one family, as BGP neighbour, next hop and end of tunnels: the one that was detected,
    /// else that of [`address`](Node::address).
    pub fn routing_address(&self, family: Family) -> Option<IpAddr> {
        self.detected(family).or_else(|| self.address(family))
    }

    /// The routing address by which the node is known to its neighbours: that of the family of its first internal address, else of its first
    /// external one, among the families that are on; else the first that was detected.
    pub fn primary(&self, families: PerFamily<bool>) -> Option<IpAddr> {
        let is_on = |address: IpAddr| *families.of(Family::from(address));
        let first = self.listed(is_on).or_else(|| self.first(NodeAddressKind::Detected, is_on))?;
        self.routing_address(Family::from(first))
    }

    /// The address of one family that was detected.
    pub fn detected(&self, family: Family) -> Option<IpAddr> {
        self.first(NodeAddressKind::Detected, |address| Family::from(address) == family)
    }

    /// The pod ranges in use, each with whether the control plane gave it: it is of the spec, or a part of one of the spec. Otherwise an annotation alone names it.
    pub fn sources_of_pod_cidrs(&self) -> impl Iterator<Item = (IpNet, bool)> {
        let is_given = |range: &IpNet| {
            self.spec_pod_cidrs.as_deref().is_none_or(|spec| spec.iter().any(|given| given.contains(range)))
        };
        self.pod_cidrs.iter().map(move |range| (*range, is_given(range)))
    }

    /// The ranges of the spec that are in use as parts of wider ones, which an annotation names.
    pub fn pod_cidrs_given_inside(&self) -> impl Iterator<Item = IpNet> {
        let is_inside = |given: &&IpNet| self.pod_cidrs.iter().any(|used| used != *given && used.contains(*given));
        self.spec_pod_cidrs.iter().flatten().filter(is_inside).copied()
    }

    /// Replaces the addresses that were detected.
    pub fn set_detected(&mut self, detected: PerFamily<Option<IpAddr>>) {
        self.addresses.retain(|one| one.kind != NodeAddressKind::Detected);
        let kind = NodeAddressKind::Detected;
        self.addresses
            .extend(detected.iter().filter_map(|(_, address)| Some(NodeAddress { kind, address: (*address)? })));
        self.addresses.shrink_to_fit();
    }

    /// Returns the addresses by which the node is spoken with, and behind them those by which the cluster knows it: a detected address takes nothing of its
    /// protection from the InternalIP, at which the API server and kubelets are reached.
    pub fn first_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let spoken_with = Family::BOTH.into_iter().filter_map(|family| self.routing_address(family));
        let known_by = Family::BOTH.into_iter().filter_map(|family| self.address(family));
        let mut seen = BTreeSet::new();
        spoken_with.chain(known_by).filter(move |address| seen.insert(*address))
    }

    /// Returns all addresses, each once: the first ones of all families, then the other internal ones, then the external ones. Who has a node's token may write any, and so
    /// of another node [`COUNTED_ADDRESSES`] of them count.
    pub fn ordered_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let of_kind = |kind| self.addresses.iter().filter(move |one| one.kind == kind).map(|one| one.address);
        let others = of_kind(NodeAddressKind::Internal).chain(of_kind(NodeAddressKind::External));
        let mut seen = BTreeSet::new();
        self.first_addresses().chain(others).filter(move |address| seen.insert(*address))
    }

    /// Its annotations about routing.
    pub fn routing(&self) -> &Routing {
        static NOTHING: std::sync::LazyLock<Routing> = std::sync::LazyLock::new(Routing::default);
        self.routing.as_deref().unwrap_or(&NOTHING)
    }

    /// The same Node, with the external peers of before in the place of those that cannot be read.
    #[must_use]
    pub fn or_last_good_peers(mut self: Arc<Node>, before: &Node) -> Arc<Node> {
        if self.routing().unread_peers != UnreadPeers::None {
            let routing = self.routing().clone().or_last_good(before.routing());
            Arc::make_mut(&mut self).routing = Some(Box::new(routing));
        }
        self
    }

    /// The same Node without its external peers, which are its own agent's alone.
    #[must_use]
    pub fn without_external_peers(mut self: Arc<Node>) -> Arc<Node> {
        let Routing { peers, unread_peers, .. } = self.routing();
        if !peers.is_empty() || *unread_peers != UnreadPeers::None {
            let rest = Routing { peers: Vec::new(), unread_peers: UnreadPeers::None, ..self.routing().clone() };
            Arc::make_mut(&mut self).routing = Some(Box::new(rest)).filter(|rest| **rest != Routing::default());
        }
        self
    }

    fn listed(&self, fits: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        self.first(NodeAddressKind::Internal, &fits).or_else(|| self.first(NodeAddressKind::External, &fits))
    }

    fn first(&self, kind: NodeAddressKind, fits: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        self.addresses.iter().find(|a| a.kind == kind && fits(a.address)).map(|a| a.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taint_is_read_as_it_is_written() {
        for text in ["example.com/leaving=now:NoExecute", "node.kubernetes.io/unschedulable:NoSchedule"] {
            assert_eq!(text.parse::<Taint>().expect("a taint").to_string(), text);
        }
        for text in ["", "key", ":NoExecute", "=value:NoExecute"] {
            assert!(text.parse::<Taint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_node_is_known_by_its_first_internal_address_of_a_family_that_is_on() {
        let address = |kind, text: &str| NodeAddress { kind, address: text.parse().expect("an address") };
        let node = Node {
            addresses: vec![
                address(NodeAddressKind::External, "203.0.113.1"),
                address(NodeAddressKind::Internal, "2001:db8::1"),
                address(NodeAddressKind::Internal, "192.0.2.1"),
            ],
            ..Node::default()
        };
        let primary = |v4, v6| node.primary(PerFamily { v4, v6 }).map(|address| address.to_string());
        assert_eq!(primary(true, true).as_deref(), Some("2001:db8::1"));
        assert_eq!(primary(true, false).as_deref(), Some("192.0.2.1"));
        assert_eq!(primary(false, false), None);
    }

    #[test]
    fn a_detected_address_stands_for_the_internal_one_of_its_family_in_routing_alone() {
        let at = |text: &str| text.parse::<IpAddr>().expect("an address");
        let internal = |text| NodeAddress { kind: NodeAddressKind::Internal, address: at(text) };
        let mut node = Node { addresses: vec![internal("192.0.2.1"), internal("2001:db8::1")], ..Node::default() };
        let both = PerFamily { v4: true, v6: true };
        let routed = |node: &Node| PerFamily::from_fn(|family| node.routing_address(family));
        node.set_detected(PerFamily { v4: Some(at("198.51.100.1")), v6: None });
        assert_eq!(routed(&node), PerFamily { v4: Some(at("198.51.100.1")), v6: Some(at("2001:db8::1")) });
        assert_eq!(node.address(Family::V4), Some(at("192.0.2.1")), "elsewhere it stays what it was");
        assert_eq!(node.primary(both), Some(at("198.51.100.1")));
        node.set_detected(PerFamily { v4: None, v6: Some(at("2001:db8:1::1")) });
        assert_eq!(node.primary(both), Some(at("192.0.2.1")), "the family is that of the first internal address");
        assert_eq!(node.primary(PerFamily { v4: false, v6: true }), Some(at("2001:db8:1::1")));
        node.set_detected(PerFamily::default());
        assert_eq!(routed(&node), PerFamily { v4: Some(at("192.0.2.1")), v6: Some(at("2001:db8::1")) });
        let mut bare = Node::default();
        bare.set_detected(PerFamily { v4: None, v6: Some(at("2001:db8::7")) });
        assert_eq!((bare.primary(both), bare.address(Family::V6)), (Some(at("2001:db8::7")), None));
    }

    #[test]
    fn the_first_of_each_family_then_internal_and_then_external_addresses_count_eight_in_all() {
        let of = |kind, text: &str| NodeAddress { kind, address: text.parse().expect("an address") };
        let (internal, external) = (NodeAddressKind::Internal, NodeAddressKind::External);
        let mut node = Node {
            addresses: vec![
                of(external, "203.0.113.1"),
                of(external, "2001:db8:e::1"),
                of(internal, "192.0.2.1"),
                of(internal, "10.0.0.1"),
            ],
            ..Node::default()
        };
        let texts = |node: &Node| {
            node.ordered_addresses().take(COUNTED_ADDRESSES).map(|address| address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(texts(&node), ["192.0.2.1", "2001:db8:e::1", "10.0.0.1", "203.0.113.1"]);
        node.addresses.extend((2..200).map(|number| of(internal, &format!("10.0.0.{number}"))));
        assert_eq!(
            texts(&node),
            ["192.0.2.1", "2001:db8:e::1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
    }
}
