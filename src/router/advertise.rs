//! The addresses of a Service that this node announces.
//!
//! Kubernetes: `Service.spec.clusterIPs`, `externalIPs`, `status.loadBalancer`, `internalTrafficPolicy`,
//! `externalTrafficPolicy`, and EndpointSlices; flags `--advertise-cluster-ip`, `--advertise-external-ip` and
//! `--advertise-loadbalancer-ip`; annotations `kube-router.io/service.advertise.*`, which win over the flags,
//! `service.local` and `service.skiplbips`. An external address must be allowed (`config::ServiceRanges`).
//!
//! With policy Cluster every node announces, because every node can forward traffic. With policy Local, or
//! `service.local`, only nodes with an endpoint for new connections do, by the rule of the service proxy: a ready
//! endpoint, or if none in the cluster is ready, one that is terminating and still serving. So when the last ready
//! endpoint of a node starts terminating, the node withdraws first, while the proxy still serves what arrives.
//!
//! Each address becomes a host route; load sharing between nodes that announce the same one is the routers' part.

use std::net::IpAddr;

use crate::config::RouterConfig;
use crate::model::{Endpoints, ExternalField, Service, TrafficPolicy, Use};
use crate::net::{Family, PerFamily};

/// The announcing node, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Announcer<'a> {
    pub name: &'a str,
    /// The families in which it has a next hop to announce.
    pub families: PerFamily<bool>,
}

/// Returns the announced addresses of a Service, sorted, without duplicates.
pub fn announced(service: &Service, endpoints: &Endpoints, own: Announcer<'_>, config: &RouterConfig) -> Vec<IpAddr> {
    let flags = config.advertise;
    let said = service.announce;
    let mut addresses: Vec<IpAddr> = Vec::new();
    let local = |policy| policy == TrafficPolicy::Local || service.annotations.local;
    let serves = PerFamily::from_fn(|family| has_local_endpoint(service, endpoints, own.name, family));
    let reaches = |policy: TrafficPolicy| PerFamily::from_fn(|family| !local(policy) || *serves.of(family));
    let inside = reaches(service.internal_traffic_policy);
    let outside = reaches(service.external_traffic_policy);
    if said.cluster_ips.unwrap_or(flags.cluster_ips) {
        addresses.extend(service.cluster_ips.iter().filter(|address| *inside.of(Family::from(**address))));
    }
    let external = service.external_addresses().filter(|(address, field)| match field {
        ExternalField::ExternalIps => {
            said.external_ips.unwrap_or(flags.external_ips) && config.ranges.allow_external_ip(*address)
        }
        ExternalField::LoadBalancer => {
            said.load_balancer_ips.unwrap_or(flags.load_balancer_ips) && config.ranges.allow_load_balancer_ip(*address)
        }
    });
    addresses.extend(external.map(|(address, _)| address).filter(|address| *outside.of(Family::from(*address))));
    addresses.retain(|address| *own.families.of(Family::from(*address)));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Returns whether this node has an endpoint for new connections, of any of the Service's ports.
fn has_local_endpoint(service: &Service, endpoints: &Endpoints, name: &str, family: Family) -> bool {
    let mut terminating = false;
    let mut ready_elsewhere = false;
    for slice in endpoints.slices.values().filter(|slice| slice.family == family) {
        let serves = |port: &crate::model::EndpointPort| {
            service.ports.iter().any(|own| own.name == port.name && own.protocol == port.protocol)
        };
        if !slice.ports.iter().any(serves) {
            continue;
        }
        for endpoint in slice.endpoints.listed() {
            let is_local = endpoint.node_name() == Some(name);
            match endpoint.conditions.use_of() {
                Some(Use::Ready) if is_local => return true,
                Some(Use::Ready) => ready_elsewhere = true,
                Some(Use::Terminating) => terminating |= is_local,
                None => {}
            }
        }
    }
    terminating && !ready_elsewhere
}

#[cfg(test)]
mod tests;
