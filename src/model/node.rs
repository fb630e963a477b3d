//! A Node: its addresses and the pod ranges it was given.
//!
//! Kubernetes: `Node.status.addresses[]`, `Node.spec.podCIDRs` and `podCIDR`, and the annotations
//! `kube-router.io/pod-cidr` and `kube-router.io/pod-cidrs`, which win over the spec.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::Family;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Node {
    /// Internal and external addresses, in the API's order. Host names are left out.
    pub addresses: Vec<NodeAddress>,
    /// Both families, without duplicates, masked to the prefix.
    pub pod_cidrs: Vec<IpNet>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeAddress {
    pub kind: NodeAddressKind,
    pub address: IpAddr,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeAddressKind {
    Internal,
    External,
}

impl Node {
    /// The address by which the node is known in one family: its first internal address of that family,
    /// else its first external one.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        let of_kind = |kind| {
            self.addresses.iter().find(|a| a.kind == kind && Family::from(a.address) == family).map(|a| a.address)
        };
        of_kind(NodeAddressKind::Internal).or_else(|| of_kind(NodeAddressKind::External))
    }
}
