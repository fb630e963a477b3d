//! Ranges of addresses: which of those that the ConfigMap names are in force, and what is left of a range without others.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::config::ServiceRanges;
use crate::model::AddressPools;
use crate::net::{AddressRange, Family, NOT_OF_HOSTS, PerFamily, address_of};

/// Ranges of the ConfigMap, each with the name of its pool.
#[derive(Default)]
pub(super) struct NamedRanges<'a> {
    /// Those that are in force.
    pub(super) accepted: Vec<(&'a CompactString, AddressRange)>,
    /// Those that would be in force but for another pool's, or for a range of cluster IPs.
    pub(super) overlapping: Vec<(&'a CompactString, AddressRange)>,
}

pub(super) fn named_ranges<'a>(
    ranges: &ServiceRanges,
    named: &'a AddressPools,
    mistakes: &mut Vec<String>,
) -> NamedRanges<'a> {
    let mut all = NamedRanges::default();
    for pool in named.pools.values() {
        for range in &pool.ranges {
            let other = all.accepted.iter().find(|(_, other)| overlap(*other, *range));
            let of_no_host = NOT_OF_HOSTS.into_iter().find(|of_no_host| overlap(*of_no_host, *range));
            let meant = range.without_host_bits();
            if meant != *range {
                mistakes.push(format!(
                    "pool {}: {range} is not the beginning of a prefix, and counts as {meant}",
                    pool.name
                ));
            }
            let mistake = if networks(&ranges.cluster_ips).any(|cluster| overlap(cluster, *range)) {
                // A range of cluster IPs may come later than the pool: who has an address keeps it.
                all.overlapping.push((&pool.name, *range));
                "it overlaps with a range of cluster IPs".to_owned()
            } else if let Some(of_no_host) = of_no_host {
                all.overlapping.push((&pool.name, *range));
                format!("addresses of {of_no_host} are no host's, and no node serves them")
            } else if ranges.strict && !networks(&ranges.load_balancer_ips).any(|allowed| covers(allowed, *range)) {
                "it is not within a range of --loadbalancer-ip-range".to_owned()
            } else if let Some((name, other)) = other {
                all.overlapping.push((&pool.name, *range));
                format!("it overlaps with {other} of pool {name}")
            } else {
                all.accepted.push((&pool.name, *range));
                continue;
            };
            mistakes.push(format!("pool {}: {range} is left out: {mistake}", pool.name));
        }
    }
    all
}

/// The numbers that hosts of these networks may not have: the network and the broadcast address of an IPv4 network larger than /31, the
/// first address of an IPv6 network larger than /127.
pub(super) fn edges(of: &[IpNet]) -> PerFamily<BTreeSet<u128>> {
    let mut edges = PerFamily::<BTreeSet<u128>>::default();
    for range in networks(of) {
        let (all, hosts) = (range.numbers(), range.host_numbers());
        let ends = [*all.start(), *all.end()].into_iter().filter(|end| !hosts.contains(end));
        edges.of_mut(range.family()).extend(ends);
    }
    edges
}

pub(super) fn networks(networks: &[IpNet]) -> impl Iterator<Item = AddressRange> {
    networks.iter().map(|network| AddressRange::Network(*network))
}

fn overlap(one: AddressRange, other: AddressRange) -> bool {
    one.family() == other.family() && !intersection(&one.numbers(), &other.numbers()).is_empty()
}

fn covers(outer: AddressRange, inner: AddressRange) -> bool {
    outer.family() == inner.family() && intersection(&outer.numbers(), &inner.numbers()) == inner.numbers()
}

pub(super) fn intersection(one: &RangeInclusive<u128>, other: &RangeInclusive<u128>) -> RangeInclusive<u128> {
    *one.start().max(other.start())..=*one.end().min(other.end())
}

pub(super) fn between(family: Family, numbers: &RangeInclusive<u128>) -> AddressRange {
    AddressRange::Between(address_of(family, *numbers.start()), address_of(family, *numbers.end()))
}

/// The numbers that are in none of the other ranges.
pub(super) fn without(numbers: RangeInclusive<u128>, others: &[AddressRange]) -> Vec<RangeInclusive<u128>> {
    let mut left = vec![numbers];
    for other in others {
        let (first, last) = other.numbers().into_inner();
        let mut next = Vec::new();
        for piece in left {
            let (start, end) = piece.clone().into_inner();
            if intersection(&piece, &(first..=last)).is_empty() {
                next.push(piece);
                continue;
            }
            if start < first {
                next.push(start..=first - 1);
            }
            if last < end {
                next.push(last + 1..=end);
            }
        }
        left = next;
    }
    left
}
