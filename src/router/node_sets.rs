//! The sets of all nodes: their pod CIDRs, and their own addresses.
//!
//! Packets from pods to these keep their source address ([`pod_egress`](super::pod_egress)). The addresses of a node
//! without a pod CIDR are in the set, too.
//!
//! In the kernel: `ipset create kube-router-pod-subnets hash:net timeout 0` and `kube-router-node-ips hash:ip timeout 0`; those
//! of IPv6 begin with `inet6:`.

use crate::kernel::ipset::{ElementKey, Entry, SetKind, SetSpec};
use crate::model::Node;
use crate::net::{Family, PerFamily};

use super::names::Set;

/// Returns the elements of one node, without duplicates.
pub fn elements(node: &Node, families: PerFamily<bool>) -> Vec<ElementKey> {
    let ranges = node.pod_cidrs.iter().map(|range| (Set::PodRanges, Family::from(*range), Entry::Net(*range)));
    let own = node.addresses.iter().map(|own| own.address);
    let addresses = own.map(|address| (Set::NodeAddresses, Family::from(address), Entry::Ip(address)));
    let all = ranges.chain(addresses).filter(|(_, family, _)| *families.of(*family));
    let mut elements: Vec<ElementKey> =
        all.map(|(set, family, entry)| ElementKey { set: set.name(family), entry }).collect();
    elements.sort();
    elements.dedup();
    elements
}

/// Returns the specification of a set for this number of elements. It keeps the usual size until it must grow.
pub fn spec(set: Set, family: Family, elements: usize) -> SetSpec {
    let kind = match set {
        Set::PodRanges => SetKind::HashNet,
        Set::NodeAddresses => SetKind::HashIp,
    };
    SetSpec::for_elements(kind, family, elements, true)
}
