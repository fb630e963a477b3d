//! The sets of all nodes: their pod CIDRs, and their own addresses.
//!
//! Packets from pods to these keep their source address ([`pod_egress`](super::pod_egress)). The addresses of a node
//! without a pod CIDR are in the set, too.
//!
//! In the kernel: `ipset create kube-router-pod-subnets hash:net timeout 0` and `kube-router-node-ips hash:ip timeout 0`; those
//! of IPv6 begin with `inet6:`. With nftables: `pods4` and `nodes4`, `pods6` and `nodes6` in our own table. There the ranges of a
//! set must be apart, so a range within another one is left out.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::kernel::ipset::{ElementKey, Entry, SetKind, SetSpec};
use crate::kernel::nftables::{self, Content, Fields, Object};
use crate::net::{Family, PerFamily};

use super::names::Set;

/// Returns the elements of a node with these pod CIDRs and addresses, without duplicates.
pub fn elements(ranges: &[IpNet], addresses: &[IpAddr], families: PerFamily<bool>) -> Vec<ElementKey> {
    let ranges = ranges.iter().map(|range| (Set::PodRanges, Family::from(*range), Entry::Net(*range)));
    let of_address = |address: &IpAddr| (Set::NodeAddresses, Family::from(*address), Entry::Ip(*address));
    let addresses = addresses.iter().map(of_address);
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

/// Returns one of the sets in our table of nf_tables.
pub fn table_set(set: Set, family: Family) -> (Object, Content) {
    let intervals = match set {
        Set::PodRanges => true,
        Set::NodeAddresses => false,
    };
    let spec = nftables::SetSpec { fields: Fields::Address(family), kind: nftables::Kind::Set, intervals };
    (Object::Set(set.in_table(family)), Content::Set(spec))
}
