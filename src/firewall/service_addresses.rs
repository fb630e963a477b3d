//! The addresses of Services, as far as the service proxy serves them on this node, for the refusal of host endpoints.
//!
//! External and load balancer addresses count only where the service proxy may serve them (the ranges of the flags), and only for
//! the Service that it gives the address and port to, where that is certain: else whoever may write a Service could cut pods off
//! from a Service of others by naming its address. It is certain where another Service has the address as cluster IP with the
//! same port, and where a Service that comes before it (one that a load balancer gave the address to before one that names it itself, then the older one,
//! then by name) has them with external traffic policy Cluster; with
//! Local that one may be left out here (`proxy/inside.rs`), and then the other one is served. A cluster IP that no Service has with this
//! port is served for whoever names it (`--strict-external-ip-validation=false`), so it counts like any other address.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::config::ServiceRanges;
use crate::model::{Claim, Claims, ExternalField, ObjectName, Service, ServicePort, Table, TrafficPolicy};
use crate::net::Protocol;

/// The addresses of all Services, kept up to date at the cost of what changed.
#[derive(Default)]
pub struct ServiceAddresses {
    /// The addresses outside the ranges of cluster IPs, with the number of Services that have each.
    outside: BTreeMap<IpAddr, usize>,
    /// The Services of each entrance at an external or load balancer address, and at cluster IPs that may be named as such.
    claims: Claims<(Entrance, Protocol), ExternalClaim>,
}

/// Result of an update.
pub struct AddressChanges {
    /// The Services that changed, and those that claim the same entrances.
    pub dirty: BTreeSet<ObjectName>,
    /// The addresses outside the ranges of cluster IPs that came or went.
    pub turned: BTreeSet<IpAddr>,
}

/// An address and port at which a Service is reached: a cluster IP, external or load balancer address with a port of
/// the Service, or an address of this node with a node port. The protocol is the endpoint's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entrance {
    pub address: IpAddr,
    pub port: u16,
}

/// The claim of one Service to an external entrance, in the order in which the service proxy gives it (`proxy::owners`).
#[derive(Clone, PartialEq, Eq, Debug)]
struct ExternalClaim {
    /// The field of the Service that has the address; `None` for its cluster IP, which comes first.
    field: Option<ExternalField>,
    /// Seconds since 1970.
    created: i64,
    service: ObjectName,
    /// Whether it is claimed without an endpoint on this node as well.
    always: bool,
}

impl Claim for ExternalClaim {
    type Claimant = ObjectName;

    fn claimant(&self) -> &ObjectName {
        &self.service
    }

    fn order(&self, other: &ExternalClaim) -> Ordering {
        (self.field, self.created, &self.service).cmp(&(other.field, other.created, &other.service))
    }
}

impl ServiceAddresses {
    /// Updates from the Services as they were before and as they are now.
    pub fn update(
        &mut self,
        services: (&Table<ObjectName, Service>, &Table<ObjectName, Service>),
        ranges: &ServiceRanges,
    ) -> AddressChanges {
        AddressChanges { dirty: self.update_claims(services, ranges), turned: self.update_counts(services, ranges) }
    }

    /// Returns whether an address is that of a Service, or may be.
    pub fn has(&self, address: IpAddr, ranges: &ServiceRanges) -> bool {
        ranges.is_cluster_ip(address) || self.outside.contains_key(&address)
    }

    /// Returns whether the service proxy certainly gives an external entrance to another Service.
    pub fn is_of_another(&self, name: &ObjectName, entrance: Entrance, protocol: Protocol) -> bool {
        let before = self.claims.of(&(entrance, protocol)).iter().take_while(|claim| claim.service != *name);
        before.into_iter().any(|claim| claim.always)
    }

    /// Updates the addresses of changed Services; returns those that came or went.
    fn update_counts(
        &mut self,
        (before, services): (&Table<ObjectName, Service>, &Table<ObjectName, Service>),
        ranges: &ServiceRanges,
    ) -> BTreeSet<IpAddr> {
        let addresses = |service: &Service| -> Vec<IpAddr> {
            let all = service.cluster_ips.iter().copied().chain(external_addresses(service, ranges));
            all.filter(|address| !ranges.is_cluster_ip(*address)).collect()
        };
        let mut turned = BTreeSet::new();
        for change in services.changes_since(before) {
            let (old, new) = (before.get(change.key()), services.get(change.key()));
            for address in new.map(|service| addresses(service)).unwrap_or_default() {
                let count = self.outside.entry(address).or_default();
                *count += 1;
                if *count == 1 {
                    turned.insert(address);
                }
            }
            for address in old.map(|service| addresses(service)).unwrap_or_default() {
                let Some(count) = self.outside.get_mut(&address) else { continue };
                *count -= 1;
                if *count == 0 {
                    self.outside.remove(&address);
                    turned.insert(address);
                }
            }
        }
        turned
    }

    /// Updates the claims of changed Services; returns these and the Services that claim the same entrances.
    fn update_claims(
        &mut self,
        (earlier, services): (&Table<ObjectName, Service>, &Table<ObjectName, Service>),
        ranges: &ServiceRanges,
    ) -> BTreeSet<ObjectName> {
        let mut dirty: BTreeSet<ObjectName> =
            services.changes_since(earlier).map(|change| change.key().clone()).collect();
        let mut contested = BTreeSet::new();
        for name in &dirty {
            let claims = |services: &Table<ObjectName, Service>| {
                services.get(name).map(|service| claims(name, service, ranges)).unwrap_or_default()
            };
            let (before, after) = (claims(earlier), claims(services));
            for key in before.into_keys().filter(|key| !after.contains_key(key)) {
                self.claims.put(&key, name, None);
                contested.insert(key);
            }
            for (key, claim) in after {
                self.claims.put(&key, name, Some(claim));
                contested.insert(key);
            }
        }
        for key in contested {
            dirty.extend(self.claims.of(&key).iter().map(|claim| claim.service.clone()));
        }
        dirty
    }
}

/// Returns the external and load balancer addresses of a Service that the service proxy may serve.
pub fn external_addresses<'a>(service: &'a Service, ranges: &'a ServiceRanges) -> impl Iterator<Item = IpAddr> + 'a {
    with_fields(service, ranges).map(|(address, _)| address)
}

/// Returns the addresses of a Service that the service proxy may serve, each with the field that has it, `None` for a cluster IP. Where several fields have
/// one address, the one that comes before the others when Services claim it comes last.
pub fn addresses<'a>(
    service: &'a Service,
    ranges: &'a ServiceRanges,
) -> impl Iterator<Item = (IpAddr, Option<ExternalField>)> + 'a {
    let own = service.cluster_ips.iter().map(|address| (*address, None));
    with_fields(service, ranges).map(|(address, field)| (address, Some(field))).chain(own)
}

fn with_fields<'a>(
    service: &'a Service,
    ranges: &'a ServiceRanges,
) -> impl Iterator<Item = (IpAddr, ExternalField)> + 'a {
    let allowed = |(address, field): &(IpAddr, ExternalField)| match field {
        ExternalField::ExternalIps => ranges.allow_external_ip(*address),
        ExternalField::LoadBalancer => ranges.allow_load_balancer_ip(*address),
    };
    service.external_addresses().filter(allowed)
}

/// Returns the claims of a Service: to its external and load balancer addresses, and to its cluster IPs where others may name them.
fn claims(
    name: &ObjectName,
    service: &Service,
    ranges: &ServiceRanges,
) -> BTreeMap<(Entrance, Protocol), ExternalClaim> {
    let may_be_named = |address: IpAddr| ranges.allow_external_ip(address) || ranges.allow_load_balancer_ip(address);
    let counts = |(address, field): &(IpAddr, Option<ExternalField>)| field.is_some() || may_be_named(*address);
    let claim = |field: Option<ExternalField>| ExternalClaim {
        field,
        created: service.created,
        service: name.clone(),
        always: field.is_none() || service.external_policy() == TrafficPolicy::Cluster,
    };
    let ports = |(address, field)| {
        let at = move |one: &ServicePort| ((Entrance { address, port: one.port }, one.protocol), claim(field));
        service.ports.iter().map(at)
    };
    // Of the fields that have one address the last one counts.
    addresses(service, ranges).filter(counts).flat_map(ports).collect()
}
