//! The sets of what belongs to all nodes: the ranges of their pods, and their own addresses.
//!
//! Packets from pods keep their source address on the way to these ([`pod_egress`](super::pod_egress)). A node without a pod range
//! has addresses all the same, and they are in the set.
//!
//! In the kernel: `ipset create kube-router-pod-subnets hash:net timeout 0` and `kube-router-node-ips hash:ip timeout 0`; those
//! of IPv6 begin with `inet6:`.

use crate::kernel::ipset::{ElementKey, Entry, SetKind, SetSpec};
use crate::model::Node;
use crate::net::{Family, PerFamily};

use super::names::Set;

/// The elements of one node, each once.
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

/// How a set that shall hold so many elements is made. It keeps the usual size until it must grow.
pub fn spec(set: Set, family: Family, elements: usize) -> SetSpec {
    let kind = match set {
        Set::PodRanges => SetKind::HashNet,
        Set::NodeAddresses => SetKind::HashIp,
    };
    SetSpec::for_elements(kind, family, elements, true)
}
