//! The pools in force: which addresses belong to each, which of them are free, and which Services a pool is for.
//!
//! The pool `default` has the addresses of `--loadbalancer-ip-range` that no pool of the ConfigMap has. With
//! `--strict-external-ip-validation` that flag bounds all pools: nodes would not serve an address beyond it, and who may write the
//! ConfigMap may not give more than the flag allows. An address belongs to one pool: where two name it, it is the first one's, by name,
//! and the range of the other one is left out. That is a mistake, which takes nothing away: who has an address of such a range keeps it.
//!
//! Not given, and left to who has them: the edges of a network, be it the pool's own range or one of the flag's that a longer range of a pool
//! reaches, addresses of Nodes, which no other node serves, and those that no host has (loopback, link-local and the like). A range of a pool with such an address is
//! left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use compact_str::CompactString;
use ipnet::IpNet;

use super::free::FreeNumbers;
use crate::config::ServiceRanges;
use crate::model::{AddressPool, AddressPools, BalancedService, ObjectName, ReservedAddresses, Selector};
use crate::net::{AddressRange, Family, NOT_OF_HOSTS, PerFamily, address_of, number_of};

/// The pools in force.
#[derive(Clone, Debug)]
pub struct Pools {
    /// Those that are for certain Services first, `default` last.
    pools: Vec<Pool>,
    /// The last number of each range of addresses, and its pool, by the first number.
    members: PerFamily<BTreeMap<u128, (u128, PoolId)>>,
    /// Ranges that a pool names and does not have, because they overlap with another pool's.
    left_out: Vec<(PoolId, AddressRange)>,
    /// Addresses of Nodes.
    nodes: BTreeSet<IpAddr>,
}

/// One of the pools in force.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PoolId(usize);

/// One pool.
#[derive(Clone, Debug)]
struct Pool {
    name: CompactString,
    namespaces: Vec<CompactString>,
    selector: Selector,
    class: Option<CompactString>,
    is_automatic: bool,
    free: PerFamily<FreeNumbers>,
    /// Number of addresses that may be given.
    size: PerFamily<u128>,
    /// Number of addresses in use.
    used: PerFamily<usize>,
}

/// A Service that addresses are for.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    pub name: &'a ObjectName,
    pub service: &'a BalancedService,
    /// Its class, where that begins with `kube-router/`.
    pub class: Option<&'a str>,
}

/// The use of a pool in one family.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolUse {
    pub pool: CompactString,
    pub family: Family,
    /// Number of addresses that may be given; inexact where it is very large.
    pub size: f64,
    pub used: usize,
}

/// The pool of `--loadbalancer-ip-range`.
const DEFAULT: &str = "default";

impl Pools {
    /// The pools of the flag and of the ConfigMap, all addresses free but those that are reserved; and ranges that are left out, each as a
    /// sentence.
    pub fn new(ranges: &ServiceRanges, named: &AddressPools, reserved: &ReservedAddresses) -> (Pools, Vec<String>) {
        let mut mistakes = Vec::new();
        let ranges = &ranges.in_cluster(reserved.cluster_ips.iter().copied());
        let (members, nodes) = (PerFamily::default(), reserved.nodes.clone());
        let mut pools = Pools { pools: Vec::new(), members, left_out: Vec::new(), nodes };
        let edges = edges(&ranges.load_balancer_ips);
        let mut ordered: Vec<&AddressPool> = named.pools.values().collect();
        ordered.sort_by_key(|pool| !is_selective(pool));
        // Which of two pools has an address is decided by name alone, and not by what they select.
        let NamedRanges { accepted, overlapping } = named_ranges(ranges, named, &mut mistakes);
        for pool in ordered {
            let of_pool = |all: &[(&CompactString, AddressRange)]| -> Vec<AddressRange> {
                all.iter().filter(|(name, _)| *name == pool.name).map(|(_, range)| *range).collect()
            };
            let id = PoolId(pools.pools.len());
            pools.left_out.extend(of_pool(&overlapping).into_iter().map(|range| (id, range)));
            let numbers = |range: AddressRange| {
                let (family, hosts) = (range.family(), range.host_numbers());
                // One address or two are meant as they are written, as a /32 and a /31 are.
                let is_short = hosts.end().saturating_sub(*hosts.start()) < 2;
                let edges = if is_short { &BTreeSet::new() } else { edges.of(family) };
                (family, range.numbers(), pools.to_be_given(family, hosts, edges))
            };
            let numbers: Vec<Numbers> = of_pool(&accepted).into_iter().map(numbers).collect();
            pools.add(Pool::of(pool), numbers.into_iter());
        }
        // What is left out of a pool for certain Services is for nobody, rather than for everybody.
        let named: Vec<AddressRange> = named.pools.values().flat_map(|pool| pool.ranges.clone()).collect();
        let mut rest = Vec::new();
        for network in &ranges.load_balancer_ips {
            let range = AddressRange::Network(*network);
            let others = named.iter().copied().chain(networks(&ranges.cluster_ips)).chain(rest.clone());
            let others: Vec<_> = others.filter(|other| other.family() == range.family()).collect();
            for numbers in without(range.numbers(), &others) {
                let hosts = intersection(&numbers, &range.host_numbers());
                let hosts = pools.to_be_given(range.family(), hosts, &BTreeSet::new());
                rest.push(between(range.family(), &numbers));
                pools.add_later((range.family(), numbers, hosts));
            }
        }
        (pools, mistakes)
    }

    /// The runs of these numbers that hosts may have, without these edges and what is a Node's.
    fn to_be_given(
        &self,
        family: Family,
        hosts: RangeInclusive<u128>,
        edges: &BTreeSet<u128>,
    ) -> Vec<RangeInclusive<u128>> {
        let not_of_hosts: Vec<_> = NOT_OF_HOSTS.into_iter().filter(|range| range.family() == family).collect();
        let of_hosts = without(hosts, &not_of_hosts);
        of_hosts.into_iter().flat_map(|hosts| self.not_of_nodes(family, hosts, edges)).collect()
    }

    fn not_of_nodes(
        &self,
        family: Family,
        hosts: RangeInclusive<u128>,
        edges: &BTreeSet<u128>,
    ) -> Vec<RangeInclusive<u128>> {
        let (first, last) = hosts.clone().into_inner();
        let nodes = match hosts.is_empty() {
            true => None,
            false => Some(self.nodes.range(address_of(family, first)..=address_of(family, last)).copied()),
        };
        let of_nodes = nodes.into_iter().flatten().map(number_of);
        let of_edges = edges.iter().copied().filter(|edge| hosts.contains(edge));
        let left_out: BTreeSet<u128> = of_nodes.chain(of_edges).collect();
        let mut runs = Vec::new();
        let mut next = first;
        for number in left_out {
            if next < number {
                runs.push(next..=number - 1);
            }
            // Behind the last number there is no run.
            let Some(behind) = number.checked_add(1) else { return runs };
            next = behind;
        }
        if next <= last {
            runs.push(next..=last);
        }
        runs
    }

    fn add(&mut self, mut pool: Pool, ranges: impl Iterator<Item = Numbers>) {
        let id = PoolId(self.pools.len());
        for numbers in ranges {
            pool.add(&numbers);
            let (family, all, _) = numbers;
            self.members.of_mut(family).insert(*all.start(), (*all.end(), id));
        }
        self.pools.push(pool);
    }

    /// Adds addresses to the pool of the flag.
    fn add_later(&mut self, numbers: Numbers) {
        let is_there = self.pools.last().is_some_and(|pool| pool.name == DEFAULT);
        if !is_there {
            self.add(Pool::default_pool(), std::iter::empty());
        }
        let id = PoolId(self.pools.len().saturating_sub(1));
        if let Some(pool) = self.pools.last_mut() {
            pool.add(&numbers);
        }
        let (family, all, _) = numbers;
        self.members.of_mut(family).insert(*all.start(), (*all.end(), id));
    }

    /// The pool that an address belongs to.
    pub fn pool_of(&self, address: IpAddr) -> Option<PoolId> {
        let number = number_of(address);
        let (_, (last, id)) = self.members.of(address.into()).range(..=number).next_back()?;
        (*last >= number).then_some(*id)
    }

    pub fn name(&self, id: PoolId) -> &str {
        self.pools.get(id.0).map_or("", |pool| &pool.name)
    }

    pub fn is_known(&self, name: &str) -> bool {
        self.pools.iter().any(|pool| pool.name == name)
    }

    /// Returns whether a Service may have addresses of a pool.
    pub fn admits(&self, id: PoolId, to: Recipient<'_>) -> bool {
        let asked = to.service.request.pool.as_deref();
        asked.is_none_or(|asked| asked == self.name(id)) && self.is_for(id, to)
    }

    /// Returns whether an address is of a pool, or of a range that a pool names and does not have because of another one.
    pub fn name_address(&self, address: IpAddr) -> bool {
        self.naming(address).next().is_some()
    }

    /// Returns whether a Service may keep an address that it has. A pool that does not exist is a mistake, which takes nothing away, and
    /// so is a range of two pools.
    pub fn may_keep(&self, address: IpAddr, to: Recipient<'_>) -> bool {
        let asked = to.service.request.pool.as_deref().filter(|asked| self.is_known(asked));
        let may_keep = |id| asked.is_none_or(|asked| asked == self.name(id)) && self.is_for(id, to);
        self.naming(address).any(may_keep)
    }

    /// The pools that name an address, the one that has it first.
    fn naming(&self, address: IpAddr) -> impl Iterator<Item = PoolId> {
        let (family, number) = (Family::from(address), number_of(address));
        let names = move |range: &AddressRange| range.family() == family && range.numbers().contains(&number);
        let left_out = self.left_out.iter().filter(move |(_, range)| names(range)).map(|(id, _)| *id);
        self.pool_of(address).into_iter().chain(left_out)
    }

    fn is_for(&self, id: PoolId, Recipient { name, service, class }: Recipient<'_>) -> bool {
        let Some(pool) = self.pools.get(id.0) else { return false };
        pool.class.as_deref() == class
            && (pool.namespaces.is_empty() || pool.namespaces.contains(&name.namespace))
            && pool.selector.selects(&service.labels)
    }

    /// The pools from which a Service is given addresses that it does not name, the first one first.
    pub fn offers(&self, to: Recipient<'_>) -> impl Iterator<Item = PoolId> {
        (0..self.pools.len()).map(PoolId).filter(move |id| self.is_offered(*id, to))
    }

    /// Returns whether a Service is given addresses of a pool that it does not name.
    pub fn is_offered(&self, id: PoolId, to: Recipient<'_>) -> bool {
        let is_automatic = self.pools.get(id.0).is_some_and(|pool| pool.is_automatic);
        (is_automatic || to.service.request.pool.is_some()) && self.admits(id, to)
    }

    /// Returns whether a pool has addresses of a family at all.
    pub fn has_family(&self, id: PoolId, family: Family) -> bool {
        self.pools.get(id.0).is_some_and(|pool| *pool.size.of(family) > 0)
    }

    /// Returns whether an address is a Node's.
    pub fn is_of_node(&self, address: IpAddr) -> bool {
        self.nodes.contains(&address)
    }

    /// Returns whether an address may be given, free or not: an edge of a network may not, and a Node's neither.
    pub fn may_give(&self, address: IpAddr) -> bool {
        let pool = self.pool_of(address).and_then(|id| self.pools.get(id.0));
        pool.is_some_and(|pool| pool.free.of(address.into()).is_within_bounds(number_of(address)))
    }

    /// The first free address of a pool.
    pub fn first_free(&self, id: PoolId, family: Family) -> Option<IpAddr> {
        let number = self.pools.get(id.0)?.free.of(family).first()?;
        Some(address_of(family, number))
    }

    /// Records that an address, which was free, is in use.
    pub fn take(&mut self, address: IpAddr) {
        if let Some(pool) = self.pool_of(address).and_then(|id| self.pools.get_mut(id.0)) {
            pool.free.of_mut(address.into()).take(number_of(address));
            *pool.used.of_mut(address.into()) += 1;
        }
    }

    /// Records that an address, which was in use, is free.
    pub fn put_back(&mut self, address: IpAddr) {
        if let Some(pool) = self.pool_of(address).and_then(|id| self.pools.get_mut(id.0)) {
            pool.free.of_mut(address.into()).put_back(number_of(address));
            let used = pool.used.of_mut(address.into());
            *used = used.saturating_sub(1);
        }
    }

    /// The use of each pool that has addresses, in each family.
    pub fn uses(&self) -> impl Iterator<Item = PoolUse> {
        let of_pool = |pool: &Pool, family| PoolUse {
            pool: pool.name.clone(),
            family,
            size: *pool.size.of(family) as f64,
            used: *pool.used.of(family),
        };
        let all = self.pools.iter().flat_map(move |pool| Family::BOTH.map(|family| of_pool(pool, family)));
        all.filter(|of_pool| of_pool.size > 0.0 || of_pool.used > 0)
    }
}

/// Addresses of a family: those that belong to a pool, and the runs of them that may be given.
type Numbers = (Family, RangeInclusive<u128>, Vec<RangeInclusive<u128>>);

impl Pool {
    fn of(pool: &AddressPool) -> Pool {
        Pool {
            name: pool.name.clone(),
            namespaces: pool.namespaces.clone(),
            selector: pool.selector.clone(),
            class: pool.class.clone(),
            is_automatic: pool.is_automatic,
            free: PerFamily::default(),
            size: PerFamily::default(),
            used: PerFamily::default(),
        }
    }

    fn default_pool() -> Pool {
        Pool::of(&AddressPool {
            name: DEFAULT.into(),
            ranges: Vec::new(),
            namespaces: Vec::new(),
            selector: Selector::everything(),
            class: None,
            is_automatic: true,
        })
    }

    fn add(&mut self, (family, _, hosts): &Numbers) {
        for run in hosts.iter().filter(|run| !run.is_empty()) {
            self.free.of_mut(*family).add(run);
            let size = self.size.of_mut(*family);
            *size = size.saturating_add((run.end() - run.start()).saturating_add(1));
        }
    }
}

fn is_selective(pool: &AddressPool) -> bool {
    !pool.namespaces.is_empty() || pool.selector != Selector::everything() || pool.class.is_some()
}

/// Ranges of the ConfigMap, each with the name of its pool.
#[derive(Default)]
struct NamedRanges<'a> {
    /// Those that are in force.
    accepted: Vec<(&'a CompactString, AddressRange)>,
    /// Those that would be in force but for another pool's, or for a range of cluster IPs.
    overlapping: Vec<(&'a CompactString, AddressRange)>,
}

fn named_ranges<'a>(ranges: &ServiceRanges, named: &'a AddressPools, mistakes: &mut Vec<String>) -> NamedRanges<'a> {
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
fn edges(of: &[IpNet]) -> PerFamily<BTreeSet<u128>> {
    let mut edges = PerFamily::<BTreeSet<u128>>::default();
    for range in networks(of) {
        let (all, hosts) = (range.numbers(), range.host_numbers());
        let ends = [*all.start(), *all.end()].into_iter().filter(|end| !hosts.contains(end));
        edges.of_mut(range.family()).extend(ends);
    }
    edges
}

fn networks(networks: &[IpNet]) -> impl Iterator<Item = AddressRange> {
    networks.iter().map(|network| AddressRange::Network(*network))
}

fn overlap(one: AddressRange, other: AddressRange) -> bool {
    one.family() == other.family() && !intersection(&one.numbers(), &other.numbers()).is_empty()
}

fn covers(outer: AddressRange, inner: AddressRange) -> bool {
    outer.family() == inner.family() && intersection(&outer.numbers(), &inner.numbers()) == inner.numbers()
}

fn intersection(one: &RangeInclusive<u128>, other: &RangeInclusive<u128>) -> RangeInclusive<u128> {
    *one.start().max(other.start())..=*one.end().min(other.end())
}

fn between(family: Family, numbers: &RangeInclusive<u128>) -> AddressRange {
    AddressRange::Between(address_of(family, *numbers.start()), address_of(family, *numbers.end()))
}

/// The numbers that are in none of the other ranges.
fn without(numbers: RangeInclusive<u128>, others: &[AddressRange]) -> Vec<RangeInclusive<u128>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(allowed: &[&str]) -> ServiceRanges {
        ServiceRanges {
            strict: true,
            cluster_ips: vec!["10.96.0.0/12".parse().expect("a prefix")],
            load_balancer_ips: allowed.iter().map(|text| text.parse().expect("a prefix")).collect(),
            ..ServiceRanges::default()
        }
    }

    fn named(pools: &[(&str, &[&str])]) -> AddressPools {
        let pool = |name: &str, texts: &[&str]| AddressPool {
            name: name.into(),
            ranges: texts.iter().map(|text| AddressRange::parse(text).expect("a range")).collect(),
            namespaces: Vec::new(),
            selector: Selector::everything(),
            class: None,
            is_automatic: true,
        };
        let pools = pools.iter().map(|(name, texts)| ((*name).into(), pool(name, texts)));
        AddressPools { pools: pools.collect(), unreadable: BTreeMap::new() }
    }

    fn pool(pools: &Pools, address: &str) -> Option<String> {
        pools.pool_of(address.parse().expect("an address")).map(|id| pools.name(id).to_owned())
    }

    #[test]
    fn the_default_pool_has_what_no_other_pool_has_and_no_edge_is_given() {
        let (mut pools, mistakes) = Pools::new(
            &ranges(&["203.0.113.0/29", "2001:db8::/64"]),
            &named(&[("gold", &["203.0.113.2-203.0.113.3"])]),
            &ReservedAddresses::default(),
        );
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(pool(&pools, "203.0.113.2").as_deref(), Some("gold"));
        assert_eq!(pool(&pools, "203.0.113.4").as_deref(), Some("default"));
        assert_eq!(pool(&pools, "203.0.113.8"), None);
        let edges = ["203.0.113.0", "203.0.113.7", "2001:db8::"].map(|text| text.parse().expect("an address"));
        for edge in edges {
            assert!(pools.pool_of(edge).is_some() && !pools.may_give(edge), "{edge}");
        }
        let default = PoolId(1);
        let mut given = Vec::new();
        while let Some(address) = pools.first_free(default, Family::V4) {
            pools.take(address);
            given.push(address.to_string());
        }
        assert_eq!(given, ["203.0.113.1", "203.0.113.4", "203.0.113.5", "203.0.113.6"]);
        let first: IpAddr = "2001:db8::1".parse().expect("an address");
        assert_eq!(pools.first_free(default, Family::V6), Some(first));
        pools.put_back("203.0.113.5".parse().expect("an address"));
        assert_eq!(pools.first_free(default, Family::V4), "203.0.113.5".parse().ok());
        let uses: Vec<_> = pools.uses().map(|used| (used.pool, used.family, used.size, used.used)).collect();
        assert_eq!(uses[0], ("gold".into(), Family::V4, 2.0, 0));
        assert_eq!(uses[1], ("default".into(), Family::V4, 4.0, 3));
        assert_eq!(uses.len(), 3);
    }

    #[test]
    fn ranges_that_overlap_or_that_nodes_would_not_serve_are_left_out_and_named() {
        let (allowed, nothing) = (ranges(&["203.0.113.0/24", "10.96.0.0/24"]), ReservedAddresses::default());
        let all = named(&[
            ("a", &["203.0.113.0/28", "198.51.100.0/24"]),
            ("b", &["203.0.113.8/29", "10.96.0.0/28", "203.0.113.16/28"]),
        ]);
        let (pools, mistakes) = Pools::new(&allowed, &all, &nothing);
        assert_eq!(
            mistakes,
            [
                "pool a: 198.51.100.0/24 is left out: it is not within a range of --loadbalancer-ip-range",
                "pool b: 203.0.113.8/29 is left out: it overlaps with 203.0.113.0/28 of pool a",
                "pool b: 10.96.0.0/28 is left out: it overlaps with a range of cluster IPs",
            ]
        );
        assert_eq!(pool(&pools, "203.0.113.20").as_deref(), Some("b"));
        assert_eq!(pool(&pools, "10.96.0.5"), None, "cluster IPs belong to no pool");
        assert_eq!(pool(&pools, "203.0.113.14").as_deref(), Some("a"));
        let two = named(&[("first", &["203.0.113.8/30"]), ("second", &["203.0.113.0/28"])]);
        let (both, _) = Pools::new(&allowed, &two, &nothing);
        assert_eq!(pool(&both, "203.0.113.2"), None, "what is left out of a pool is not everybody's");
        let loose = ServiceRanges { strict: false, ..allowed };
        assert_eq!(Pools::new(&loose, &all, &nothing).1.len(), 2);
    }

    #[test]
    fn addresses_that_no_node_serves_are_not_given_and_ranges_with_them_are_named() {
        let flag = ranges(&["0.0.0.0/0", "::/0"]);
        let all = named(&[
            ("a", &["169.254.0.0/16", "203.0.113.5/28", "126.0.0.0-128.0.0.1"]),
            ("b", &["fe80::/64", "2001:db8::5/120", "::/8"]),
        ]);
        let (pools, mistakes) = Pools::new(&flag, &all, &ReservedAddresses::default());
        assert_eq!(
            mistakes,
            [
                "pool a: 169.254.0.0/16 is left out: addresses of 169.254.0.0-169.254.255.255 are no host's, and no node serves them",
                "pool a: 203.0.113.5/28 is not the beginning of a prefix, and counts as 203.0.113.0/28",
                "pool a: 126.0.0.0-128.0.0.1 is left out: addresses of 127.0.0.0-127.255.255.255 are no host's, and no node serves them",
                "pool b: fe80::/64 is left out: addresses of fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff are no host's, and no node serves them",
                "pool b: 2001:db8::5/120 is not the beginning of a prefix, and counts as 2001:db8::/120",
                "pool b: ::/8 is left out: addresses of ::-::ffff:ffff are no host's, and no node serves them",
            ]
        );
        let may_give = |text: &str| pools.may_give(text.parse().expect("an address"));
        for text in ["0.0.0.1", "127.0.0.1", "169.254.0.1", "126.0.0.1", "224.0.0.1", "::1", "fe80::1", "ff02::1"] {
            assert!(!may_give(text), "{text}");
        }
        for text in ["203.0.113.1", "203.0.113.14", "198.51.100.1", "2001:db8::1", "2001:db8:1::1"] {
            assert!(may_give(text), "{text}");
        }
        let default = PoolId(2);
        assert_eq!(pools.first_free(default, Family::V4), "1.0.0.0".parse().ok());
        let had: IpAddr = "169.254.0.1".parse().expect("an address");
        assert!(pools.name_address(had), "who has it keeps it");
    }

    #[test]
    fn a_longer_range_of_a_pool_gives_no_edge_of_the_flags_network_and_a_short_one_what_it_says() {
        let flag = ranges(&["203.0.113.0/28", "2001:db8::/120"]);
        let all = named(&[
            ("long", &["203.0.113.0-203.0.113.5", "2001:db8::-2001:db8::5"]),
            ("short", &["203.0.113.14-203.0.113.15"]),
        ]);
        let (pools, mistakes) = Pools::new(&flag, &all, &ReservedAddresses::default());
        assert_eq!(mistakes, [""; 0]);
        let may_give = |text: &str| pools.may_give(text.parse().expect("an address"));
        assert!(!may_give("203.0.113.0") && !may_give("2001:db8::"), "the edges of the flag's networks");
        assert!(may_give("203.0.113.1") && may_give("203.0.113.5") && may_give("2001:db8::5"));
        assert!(may_give("203.0.113.14") && may_give("203.0.113.15"), "who writes two addresses means both");
        assert_eq!(pool(&pools, "203.0.113.0").as_deref(), Some("long"), "who has it keeps it");
        let sizes: Vec<_> = pools.uses().map(|used| (used.pool, used.size)).collect();
        assert_eq!(sizes[..2], [("long".into(), 5.0), ("long".into(), 5.0)]);
    }

    #[test]
    fn addresses_of_nodes_are_not_given_and_ranges_that_the_cluster_names_belong_to_no_pool() {
        let nodes = ["192.0.2.1", "192.0.2.3", "192.0.2.14", "2001:db8::1", "2001:db8::ff"];
        let reserved = ReservedAddresses {
            nodes: nodes.iter().map(|text| text.parse().expect("an address")).collect(),
            cluster_ips: ["192.0.2.4/30".parse().expect("a range")].into(),
        };
        let flag = ranges(&["192.0.2.0/28", "2001:db8::/120"]);
        let named = named(&[("gold", &["192.0.2.12/30", "192.0.2.6-192.0.2.7"])]);
        let (mut pools, mistakes) = Pools::new(&flag, &named, &reserved);
        assert_eq!(mistakes, ["pool gold: 192.0.2.6-192.0.2.7 is left out: it overlaps with a range of cluster IPs"]);
        let mut given = Vec::new();
        for pool in [PoolId(0), PoolId(1)] {
            while let Some(address) = pools.first_free(pool, Family::V4) {
                pools.take(address);
                given.push(address.to_string());
            }
        }
        let wanted = [13, 2, 8, 9, 10, 11].map(|host| format!("192.0.2.{host}"));
        assert_eq!(given, wanted);
        assert_eq!(pools.first_free(PoolId(1), Family::V6), "2001:db8::2".parse().ok());
        let node: IpAddr = "192.0.2.3".parse().expect("an address");
        assert!(pools.is_of_node(node) && !pools.may_give(node));
        pools.take(node);
        pools.put_back(node);
        assert_eq!(pools.first_free(PoolId(1), Family::V4), None, "who had it lets it go, and nobody is given it");
        assert!(!pools.may_give("2001:db8::ff".parse().expect("an address")));
    }
}
