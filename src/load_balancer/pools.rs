//! The pools in force: which addresses belong to each, which of them are free, and which Services a pool is for.
//!
//! The pool `default` has the addresses of `--loadbalancer-ip-range` that no pool of the ConfigMap has. With
//! `--strict-external-ip-validation` that flag bounds all pools: nodes would not serve an address beyond it, and who may write the
//! ConfigMap may not give more than the flag allows. An address belongs to one pool: where two name it, it is the first one's, by name,
//! and the range of the other one is left out. That is a mistake, which takes nothing away: who has an address of such a range keeps it.
//!
//! Not given, and left to who has them: the edges of a network, be it the pool's own range or one of the flag's that a longer range of a pool
//! reaches, addresses of Nodes, which no other node serves, and those that no host has (loopback, link-local and the like). A range of a pool with such an address is
//! left out. What is calculated of ranges is in `pools/ranges.rs`.

mod ranges;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use compact_str::CompactString;

use self::ranges::{NamedRanges, between, edges, intersection, named_ranges, networks, without};
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

#[cfg(test)]
mod tests;
