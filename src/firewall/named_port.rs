//! Named ports: a name in a policy stands for whatever number the destination pod gives it.
//!
//! Kubernetes: `NetworkPolicyPort.port` as text, and `containers[].ports[] { name, containerPort, protocol }`. Name and
//! protocol are asked of each destination pod on its own: one pod's `http` may be 80 and another's 8080. Where a pod has
//! no such name in this protocol, nothing of it is reached; a name that nobody has opens nothing.
//!
//! The destination of ingress is the isolated pod itself; that of egress is a peer: a selected pod, a pod inside one of
//! the blocks, or, without `to`, any pod of the cluster. Either way the answer is a set of addresses with numbers
//! (`hash:ip,port`), so rules stay as they are while pods come and go.

use std::net::IpAddr;

use compact_str::CompactString;

use crate::model::{Labels, ObjectName, Pod, PolicyPort, PortMatch as Asked};
use crate::net::Protocol;

use super::rules::{Element, PortOwners, SetKey};
use super::{ip_block, selection};

/// The names that `ports[]` asks for.
pub fn names(ports: &[PolicyPort]) -> impl Iterator<Item = (&CompactString, Protocol)> {
    ports.iter().filter_map(|port| match &port.number {
        Asked::Named(name) => Some((name, port.protocol)),
        Asked::Any | Asked::Range { .. } => None,
    })
}

/// The destinations that a rule of egress names when it asks for a port name among these peers.
pub fn owners(peer: Option<&SetKey>) -> PortOwners {
    match peer {
        None => PortOwners::All,
        Some(SetKey::Pods(selection)) => PortOwners::Selected(selection.clone()),
        Some(SetKey::Blocks(blocks)) => PortOwners::Inside(blocks.clone()),
        Some(SetKey::NamedPort { pods, .. }) => pods.clone(),
    }
}

/// What a pod is asked about.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    pub name: &'a ObjectName,
    pub pod: &'a Pod,
    /// The labels of its namespace, where that is known.
    pub namespace: Option<&'a Labels>,
    /// Whether it is a pod of this node.
    pub is_local: bool,
}

/// Whether a pod that takes part is among these, with this address of its.
pub fn is_among(owners: &PortOwners, candidate: Candidate<'_>, address: IpAddr) -> bool {
    match owners {
        PortOwners::Local => candidate.is_local,
        PortOwners::All => true,
        PortOwners::Selected(wanted) => selection::selects(wanted, candidate.name, candidate.pod, candidate.namespace),
        PortOwners::Inside(blocks) => ip_block::holds(blocks, address),
    }
}

/// The numbers of a port name at one address of a pod; usually one, mostly none.
pub fn elements<'a>(
    pod: &'a Pod,
    address: IpAddr,
    name: &'a str,
    protocol: Protocol,
) -> impl Iterator<Item = Element> + 'a {
    pod.port_numbers(name, protocol).map(move |number| Element::Port(address, number))
}
