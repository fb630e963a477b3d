//! Addresses for Services of a directory of manifests (`--manifests`), for trying out. Without I/O.
//!
//! There is no status that could be written and no Lease that could elect anybody, so everything is decided anew, from the files alone,
//! whenever one of them changes: nodes with the same files come to the same addresses, and so does a restart. The price is that a Service
//! may get another address because of one that comes before it, by age or else by name. One that asks for an address comes before all that do
//! not, and an address that a file names in a status stays.

pub mod driver;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use compact_str::format_compact;

use super::allocator::Allocator;
use super::notice::{Matter, Notice};
use super::pools::{PoolUse, Pools};
use super::writes::Outcome;
use crate::config::LoadBalancerConfig;
use crate::model::{BalancedService, LoadBalancerAddress, ObjectName, Service, ServiceType};

/// Services of the files, by name.
pub type Services = BTreeMap<ObjectName, Arc<BalancedService>>;

/// The outcome of one decision about all Services.
#[derive(Default, Debug)]
pub struct Decided {
    /// Services whose status is to be another one than in the file.
    changed: BTreeMap<ObjectName, StatusChange>,
    /// Addresses given, and what Services lack.
    pub matters: BTreeSet<(ObjectName, Matter)>,
    pub pools: Vec<PoolUse>,
    /// Number of Services that lack an address.
    pub wanting: usize,
}

/// The status of one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
struct StatusChange {
    addresses: Vec<IpAddr>,
    /// Those that the file does not have, or with a mode in which nodes do not serve them.
    new: BTreeSet<IpAddr>,
}

/// Decides about all Services at once.
pub fn decided(config: &LoadBalancerConfig, services: &Services, pools: Pools, now: Instant) -> Decided {
    let mut allocator = Allocator::new(config.takes_default_class, config.served_external_ips.clone());
    allocator.set_pools(Some(pools), now);
    // Versions are ours to count: those of files say nothing, where there are any.
    let as_version = |service: &BalancedService, version: u64| {
        Arc::new(BalancedService { version: format_compact!("{version}"), created: turn(service), ..service.clone() })
    };
    let mut statuses: Services =
        services.iter().map(|(name, service)| (name.clone(), as_version(service, 1))).collect();
    allocator.list(statuses.iter().map(|(name, service)| (name.clone(), service.clone())).collect(), "1", now);
    let mut version = 1;
    // Every Service is written once, and again where its address turned out to be another's.
    let most = services.len().saturating_mul(4).saturating_add(16);
    for _ in 0..most {
        let Some(write) = allocator.next_writes(now, 1).pop() else { break };
        let Some(service) = statuses.get_mut(&write.service) else { break };
        version += 1;
        let written = Arc::make_mut(service);
        (written.version, written.status) = (format_compact!("{version}"), write.addresses.clone());
        written.not_served.retain(|address| !write.given.contains(address));
        allocator.finish(&write, Outcome::Written(service.clone()), now);
    }
    let differs = |(name, service): (ObjectName, Arc<BalancedService>)| {
        let before = services.get(&name)?;
        let addresses = service.status.clone();
        let is_new = |address: &&IpAddr| {
            !before.status.contains(address)
                || before.not_served.contains(address) && !service.not_served.contains(address)
        };
        let new: BTreeSet<IpAddr> = addresses.iter().filter(is_new).copied().collect();
        (addresses != before.status || !new.is_empty()).then_some((name, StatusChange { addresses, new }))
    };
    let matters = allocator.take_notices().into_iter().map(|Notice { service, matter, .. }| (service, matter));
    Decided {
        matters: matters.collect(),
        pools: allocator.pool_uses(),
        wanting: allocator.wanting(),
        changed: statuses.into_iter().filter_map(differs).collect(),
    }
}

/// The place of a Service among those of its name's order: those that ask for an address come before all that do not.
fn turn(service: &BalancedService) -> i64 {
    let request = &service.request;
    let asks = request.addresses.v4.is_some() || request.addresses.v6.is_some();
    if asks { service.created.saturating_sub(AGES) } else { service.created }
}

/// More seconds than lie between the creation of any two Services.
const AGES: i64 = 1 << 40;

impl Decided {
    /// The Service of the files with the addresses that are decided.
    pub fn with_addresses(&self, name: &ObjectName, service: &Arc<Service>) -> Arc<Service> {
        let Some(changed) = self.changed.get(name).filter(|_| service.kind == ServiceType::LoadBalancer) else {
            return service.clone();
        };
        let of_address = |address: &IpAddr| {
            if changed.new.contains(address) {
                return Some(LoadBalancerAddress { address: *address, through_balancer: false });
            }
            // What the file has, and is not in the Service, nobody may serve.
            service.load_balancer.iter().find(|known| known.address == *address).copied()
        };
        let load_balancer = changed.addresses.iter().filter_map(of_address).collect();
        Arc::new(Service { load_balancer, ..(**service).clone() })
    }
}

#[cfg(test)]
pub(super) mod tests;
