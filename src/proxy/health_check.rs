//! `healthCheckNodePort`: what a load balancer is told about a Service on this node.
//!
//! Kubernetes: `Service.spec.healthCheckNodePort` of a Service of type LoadBalancer with the external traffic policy Local. Its load
//! balancer sends packets to the nodes that have an endpoint alone, and finds out by HTTP at this port which these are: 200 where
//! there is one, else 503, with the answer that kube-proxy gives, whatever the path and the method.
//!
//! The number is that of the ready endpoints on this node, by address, whatever ports they have; terminating ones do not count, so a
//! node leaves the balancer's list while its last pods still serve the connections that come. A pod of a dual-stack Service
//! counts once: the family with more endpoints decides. A pod of a Service with direct server return in which no tunnel ends counts only where there are
//! no others: it is served with NAT then (`dsr::tunnels`).
//!
//! While the kernel has not got the Service as desired (the first round is not over, steps of it fail), the answer is that of a proxy that is not
//! healthy, 503 ([`pending`]).
//!
//! A port that several Services name, which an API server does not allow, belongs to the oldest of them.
//!
//! [`serve`] listens, where node ports are served: at the Node's addresses, or at all with `--nodeport-bindon-all-ip`.

pub mod pending;
pub mod serve;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::model::{Claim, Claims, Endpoints, Listed, ObjectName, Service, ServiceType, Table, TrafficPolicy, Use};
use crate::net::Family;

use super::local_node::LocalNode;
use super::traffic_policy;

/// A Service's claim to a port, and what is answered there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    pub service: ObjectName,
    /// Seconds since 1970.
    pub created: i64,
    pub port: u16,
    /// Number of ready endpoints on this node.
    pub local_endpoints: usize,
}

/// Desired health checks, by port, and the addresses at which they are answered.
#[derive(Clone, Default, Debug)]
pub struct HealthChecks {
    pub checks: Table<u16, HealthCheck>,
    /// The addresses to listen on; an unspecified one stands for all.
    pub addresses: BTreeSet<IpAddr>,
    /// The Services that are not in place in the kernel.
    pub pending: Arc<BTreeSet<ObjectName>>,
}

/// The claims of all Services.
#[derive(Default)]
pub struct HealthCheckPorts {
    claims: Claims<u16, Arc<HealthCheck>, Table<u16, HealthCheck>>,
    /// The port that each Service claims.
    ports: BTreeMap<ObjectName, u16>,
}

/// Returns the health check that a Service asks for, if any.
///
/// `untunnelled`: its endpoints on this node in which no tunnel ends.
pub fn wanted(
    name: &ObjectName,
    service: &Service,
    endpoints: &Endpoints,
    node: &LocalNode,
    untunnelled: Option<&BTreeSet<IpAddr>>,
) -> Option<HealthCheck> {
    let is_local = traffic_policy::external(service) == TrafficPolicy::Local;
    let port = service.health_check_node_port.filter(|_| service.kind == ServiceType::LoadBalancer && is_local)?;
    let count = |family| {
        let ready = ready_here(endpoints, node, family);
        match ready.iter().filter(|address| untunnelled.is_none_or(|those| !those.contains(*address))).count() {
            0 => ready.len(),
            reached => reached,
        }
    };
    let local_endpoints = node.enabled_families().map(count).max().unwrap_or(0);
    Some(HealthCheck { service: name.clone(), created: service.created, port, local_endpoints })
}

fn ready_here(endpoints: &Endpoints, node: &LocalNode, family: Family) -> BTreeSet<IpAddr> {
    let of_family = endpoints.slices.values().filter(|slice| slice.family == family);
    let is_here = |endpoint: &Listed<'_>| {
        endpoint.node_name() == Some(node.name.as_str()) && endpoint.conditions.use_of() == Some(Use::Ready)
    };
    let here = of_family.flat_map(|slice| slice.endpoints.listed().filter(is_here)).map(|endpoint| endpoint.address);
    here.collect()
}

/// Returns the addresses to listen on.
pub fn addresses(node: &LocalNode, bind_on_all: bool) -> BTreeSet<IpAddr> {
    let families = &node.families;
    if bind_on_all {
        // The unspecified address of IPv6 takes in IPv4 as well.
        let all = if families.v6 { Some(Ipv6Addr::UNSPECIFIED.into()) } else { None };
        return all.or(families.v4.then_some(Ipv4Addr::UNSPECIFIED.into())).into_iter().collect();
    }
    node.enabled_families().filter_map(|family| node.own_address(family)).collect()
}

impl HealthCheckPorts {
    /// Returns the owner of each port; cheap to clone.
    pub fn all(&self) -> &Table<u16, HealthCheck> {
        self.claims.all()
    }

    /// Returns whether a Service claims a port.
    pub fn has(&self, name: &ObjectName) -> bool {
        self.ports.contains_key(name)
    }

    /// Sets or removes the claim of a Service. Returns whether anything has changed. Adds a message to `notes` when several
    /// Services begin to claim a port.
    pub fn update(&mut self, name: &ObjectName, check: Option<HealthCheck>, notes: &mut Vec<String>) -> bool {
        let before = self.ports.get(name).copied();
        let port = check.as_ref().map(|check| check.port);
        if let Some(before) = before.filter(|before| port != Some(*before)) {
            self.claims.put(&before, name, None);
            self.ports.remove(name);
        }
        let Some(check) = check else { return before.is_some() };
        let port = check.port;
        let (was_shared, was) = (self.claims.of(&port).len() > 1, self.claims.first(&port).cloned());
        self.claims.put(&port, name, Some(Arc::new(check)));
        self.ports.insert(name.clone(), port);
        if let ([first, second, ..], false) = (self.claims.of(&port), was_shared) {
            notes.push(format!(
                "the health check port {port} is claimed by {} and by {}; {} has it, because it is the older one",
                first.service, second.service, first.service
            ));
        }
        before != Some(port) || self.claims.first(&port) != was.as_ref()
    }
}

impl Claim for HealthCheck {
    type Claimant = ObjectName;

    fn claimant(&self) -> &ObjectName {
        &self.service
    }

    fn order(&self, other: &HealthCheck) -> Ordering {
        (self.created, &self.service).cmp(&(other.created, &other.service))
    }
}

impl HealthCheck {
    /// Returns the body of the answer.
    pub fn body(&self, proxy_is_healthy: bool) -> String {
        let (namespace, name) = (&self.service.namespace, &self.service.name);
        let count = self.local_endpoints;
        format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\
             \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {proxy_is_healthy}\n}}"
        )
    }
}

#[cfg(test)]
mod tests;
