//! A NetworkPolicy, with the API's defaults worked out and nothing else decided.
//!
//! Kubernetes: `networking.k8s.io/v1` NetworkPolicy. The difference between a missing and an empty list is a type here:
//! a missing `from` is [`Peers::Any`], and there is no empty list of peers, because the API treats it as missing too.
//! What could not be read matches nothing (`k8s::parse::network_policy`), so a mistake never opens a path.

use compact_str::CompactString;
use ipnet::IpNet;

use super::selector::Selector;
use crate::net::Protocol;

/// A policy. Its namespace is that of its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPolicy {
    /// `spec.podSelector`: the pods of the policy's namespace that it isolates.
    pub pods: Selector,
    /// Rules for traffic to them; `None` where `policyTypes` leaves this direction alone, an empty list allows nothing.
    pub ingress: Option<Box<[PolicyRule]>>,
    /// Rules for traffic from them; like `ingress`.
    pub egress: Option<Box<[PolicyRule]>>,
}

/// One entry of `ingress[]` or `egress[]`: these peers at these ports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicyRule {
    pub peers: Peers,
    pub ports: Ports,
}

/// `from[]` or `to[]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peers {
    /// The list is missing or empty: every address, inside the cluster and outside.
    Any,
    /// Any one of these. Empty only where none of the listed could be read: then nobody.
    Of(Box<[Peer]>),
}

/// One entry of `from[]` or `to[]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peer {
    /// Pods, of the policy's own namespace or of the selected ones.
    Pods { namespaces: Namespaces, pods: Selector },
    /// `ipBlock`: the addresses of `cidr` without those of `except`. A hole is a hole in this block only.
    Block { cidr: IpNet, except: Box<[IpNet]> },
    /// `nodes`: the addresses of these Nodes, with everything that uses their network. Only where a ClusterNetworkPolicy says whereto.
    Nodes(Selector),
}

/// Namespaces of a peer's pods.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Namespaces {
    /// `namespaceSelector` is missing: the policy's own.
    Own,
    Selected(Selector),
}

/// `ports[]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Ports {
    /// The list is missing or empty: every port of every protocol, also of those without ports.
    Any,
    /// Any one of these. Empty only where none of the listed could be read: then none.
    Of(Box<[PolicyPort]>),
}

/// One entry of `ports[]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicyPort {
    /// TCP where absent.
    pub protocol: Protocol,
    pub number: PortMatch,
}

/// `port` and `endPort`. Ports are those of the destination pod, whatever the direction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PortMatch {
    /// `port` is missing: every port of the protocol.
    Any,
    /// From `first` to `last`, both included; equal for a single port.
    Range { first: u16, last: u16 },
    /// The number that the destination pod gives this name in this protocol; nothing where it knows no such name.
    Named(CompactString),
}
