//! The parties of a packet, and how they stand towards policies.

use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;

use crate::model::{ObjectName, Pod, World};

use super::{End, Known};

/// The party at one side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Party {
    pub address: IpAddr,
    pub standing: Standing,
}

/// Standing of a party towards policies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// A pod of this node, which enforces its rules.
    Here(ObjectName),
    /// A pod of another node, which enforces its rules; with the node's name if known.
    Elsewhere(ObjectName, Option<CompactString>),
    /// A pod on the host network: policies do not apply to it, and only ipBlocks, networks and peers by Nodes match it.
    HostNetwork(ObjectName),
    /// This node itself.
    ThisNode,
    /// Another node itself, by its name: policies do not apply to it, and only ipBlocks, networks and peers by Nodes match it.
    Node(CompactString),
    /// An address of no running pod of the cluster.
    Nobody,
}

/// Returns the standing of one end of a question, at one of its addresses.
pub(super) fn standing(known: Known<'_>, end: &End, address: IpAddr) -> Standing {
    match end {
        End::Pod(name) => match known.world.cluster.pods.get(name) {
            Some(pod) => of_pod(known.world, name, pod),
            None => Standing::Nobody,
        },
        End::Address(_) => standing_at(known, address),
    }
}

/// Returns who has an address.
pub fn standing_at(known: Known<'_>, address: IpAddr) -> Standing {
    let World { cluster, host, .. } = known.world;
    if let Some(claimant) = known.claims.pods_at(address, &cluster.pods, &host.node_name).next() {
        return of_pod(known.world, claimant.name, claimant.pod);
    }
    if is_this_node(known.world, address) {
        return Standing::ThisNode;
    }
    let mut nodes = known.world.cluster.nodes.iter();
    let node = nodes.find(|(_, node)| node.addresses.iter().any(|own| own.address == address));
    node.map_or(Standing::Nobody, |(name, _)| Standing::Node(name.clone()))
}

/// Returns whether an address is one of this node.
pub fn is_this_node(world: &World, address: IpAddr) -> bool {
    let node = world.cluster.nodes.get(&world.host.node_name);
    let known = node.is_some_and(|node| node.addresses.iter().any(|own| own.address == address));
    known || world.host.addresses.iter().any(|own| own.address == address)
}

fn of_pod(world: &World, name: &ObjectName, pod: &Pod) -> Standing {
    match pod.node.as_deref() {
        _ if pod.host_network => Standing::HostNetwork(name.clone()),
        Some(node) if node == world.host.node_name => Standing::Here(name.clone()),
        node => Standing::Elsewhere(name.clone(), node.map(CompactString::from)),
    }
}

impl Standing {
    /// Returns the pod, if it is one.
    pub fn pod(&self) -> Option<&ObjectName> {
        match self {
            Standing::Here(pod) | Standing::Elsewhere(pod, _) | Standing::HostNetwork(pod) => Some(pod),
            Standing::ThisNode | Standing::Node(_) | Standing::Nobody => None,
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.standing {
            Standing::Here(pod) | Standing::Elsewhere(pod, _) | Standing::HostNetwork(pod) => {
                write!(f, "{pod} ({})", self.address)
            }
            Standing::ThisNode => write!(f, "this node ({})", self.address),
            Standing::Node(node) => write!(f, "node {node} ({})", self.address),
            Standing::Nobody => write!(f, "{}", self.address),
        }
    }
}
