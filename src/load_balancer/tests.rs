//! Tests of the allocator on Services as the API has them.

mod deciding;
mod leaving;
mod many;
mod observing;
mod others;
mod pauses;
mod sharing;
mod walk;
mod writing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::format_compact;

use super::allocator::Allocator;
use super::notice::{Matter, Notice};
use super::pools::Pools;
use super::writes::{Outcome, Write};
use crate::config::ServiceRanges;
use crate::model::{
    AddressPool, AddressPools, AddressRequest, BalancedService, ClientPolicy, Labels, ObjectName, ReservedAddresses,
    Selector,
};
use crate::net::{AddressRange, Family, Protocol};

/// Services of a cluster, and an allocator that gives them addresses.
struct Bed {
    services: BTreeMap<ObjectName, BalancedService>,
    version: u64,
    allocator: Allocator,
    now: Instant,
    /// Writes that took effect.
    writes: usize,
    notices: Vec<Notice>,
}

fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("shop", text));
    ObjectName::new(namespace, name)
}

fn ranges(allowed: &[&str]) -> ServiceRanges {
    let load_balancer_ips = allowed.iter().map(|text| text.parse().expect("a prefix")).collect();
    ServiceRanges { strict: true, load_balancer_ips, ..ServiceRanges::default() }
}

/// Entries of `externalIPs` count in this range.
fn externals() -> ServiceRanges {
    ServiceRanges { external_ips: vec!["203.0.113.0/29".parse().expect("a prefix")], ..ranges(&[]) }
}

fn pools(allowed: &[&str], named: Vec<AddressPool>) -> Pools {
    pools_beside(allowed, named, &[])
}

/// The pools where Nodes have these addresses.
fn pools_beside(allowed: &[&str], named: Vec<AddressPool>, nodes: &[&str]) -> Pools {
    let named = named.into_iter().map(|pool| (pool.name.clone(), pool)).collect();
    let nodes = nodes.iter().map(|text| text.parse().expect("an address")).collect();
    let reserved = ReservedAddresses { nodes, ..ReservedAddresses::default() };
    let named = AddressPools { pools: named, unreadable: BTreeMap::new() };
    let (pools, mistakes) = Pools::new(&ranges(allowed), &named, &reserved);
    assert_eq!(mistakes, [""; 0]);
    pools
}

fn pool(name: &str, range: &str) -> AddressPool {
    AddressPool {
        name: name.into(),
        ranges: vec![AddressRange::parse(range).expect("a range")],
        namespaces: Vec::new(),
        selector: Selector::everything(),
        class: None,
        is_automatic: true,
    }
}

/// A Service of type LoadBalancer that asks for nothing in particular.
fn service() -> BalancedService {
    BalancedService {
        uid: "".into(),
        version: "".into(),
        created: 0,
        labels: Labels::default(),
        is_balancer: true,
        class: None,
        families: vec![Family::V4],
        needs_all_families: false,
        request: AddressRequest::default(),
        misspelt: Vec::new(),
        sharing_key: None,
        ports: vec![(Protocol::Tcp, 80)],
        clients: ClientPolicy::Cluster,
        external_ips: Vec::new(),
        status: Vec::new(),
        not_served: Vec::new(),
        is_given_here: false,
    }
}

impl Bed {
    /// A cluster without Services, with these ranges of the flag.
    fn new(allowed: &[&str]) -> Bed {
        Bed::with(pools(allowed, Vec::new()))
    }

    fn with(pools: Pools) -> Bed {
        let now = Instant::now();
        let mut bed = Bed {
            services: BTreeMap::new(),
            version: 100,
            allocator: Allocator::new(true, externals()),
            now,
            writes: 0,
            notices: Vec::new(),
        };
        bed.begin(pools);
        bed
    }

    /// Another agent takes over, or the same after a restart.
    fn begin(&mut self, pools: Pools) {
        self.allocator = Allocator::new(true, externals());
        self.allocator.set_pools(Some(pools), self.now);
        let all = self.services.iter().map(|(name, service)| (name.clone(), Arc::new(service.clone()))).collect();
        self.allocator.list(all, &self.version.to_string(), self.now);
    }

    /// Creates or changes a Service, and lets the allocator see it.
    fn put(&mut self, text: &str, service: BalancedService) {
        self.put_unseen(text, service);
        self.see(text);
    }

    fn put_unseen(&mut self, text: &str, mut service: BalancedService) {
        self.version += 1;
        service.version = format_compact!("{}", self.version);
        // Of a status that somebody else has written the API server remembers who.
        service.is_given_here &= self.services.get(&name(text)).is_some_and(|known| known.status == service.status);
        self.services.insert(name(text), service);
    }

    fn see(&mut self, text: &str) {
        let service = self.services.get(&name(text)).cloned().expect("it exists");
        self.allocator.observe(name(text), Arc::new(service), self.now);
    }

    /// Changes a Service as it is.
    fn change(&mut self, text: &str, change: impl FnOnce(&mut BalancedService)) {
        let mut service = self.services.get(&name(text)).cloned().expect("it exists");
        change(&mut service);
        self.put(text, service);
    }

    fn delete(&mut self, text: &str) {
        self.version += 1;
        self.services.remove(&name(text));
        self.allocator.gone(&name(text), &self.version.to_string(), self.now);
    }

    /// Brings everything about that is due.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let Some(write) = self.allocator.next_writes(self.now, 1).pop() else {
                self.notices.extend(self.allocator.take_notices());
                return;
            };
            let outcome = self.apply(&write);
            self.allocator.finish(&write, outcome, self.now);
        }
        panic!("it never settles");
    }

    /// Answers a write as the API server does.
    fn apply(&mut self, write: &Write) -> Outcome {
        let Some(service) = self.services.get_mut(&write.service) else { return Outcome::Refused };
        if service.version != write.version {
            return Outcome::Newer(Arc::new(service.clone()));
        }
        let is_same = service.status == write.addresses && service.not_served.is_empty();
        assert!(!is_same, "a write that changes nothing");
        self.version += 1;
        self.writes += 1;
        service.version = format_compact!("{}", self.version);
        service.status.clone_from(&write.addresses);
        service.not_served.retain(|address| !write.given.contains(address));
        service.is_given_here = write.given == write.addresses;
        Outcome::Written(Arc::new(service.clone()))
    }

    /// The status of a Service.
    fn status(&self, text: &str) -> String {
        let service = self.services.get(&name(text)).expect("it exists");
        service.status.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// The reasons of the Events since the last call.
    fn reasons(&mut self) -> Vec<&'static str> {
        self.notices.drain(..).map(|notice| notice.matter.reason()).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.allocator.tick(self.now);
    }
}
