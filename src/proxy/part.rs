//! The kernel objects of one Service: its virtual services and their destinations.
//!
//! A pure function of the Service, its endpoints, this node and the configuration. All other kernel objects (local
//! routes, set elements) follow from the virtual services of all parts together (`plan`).

use std::net::{IpAddr, SocketAddr};

use crate::config::ProxyConfig;
use crate::kernel::ipvs::{Destinations, Service as VirtualService, ServiceKey, Virtual};
use crate::model::{Endpoints, Service, ServicePort, TrafficPolicy};
use crate::net::{Family, Protocol};

use super::clients::Clients;
use super::endpoints::{self, Reach};
use super::local_node::LocalNode;
use super::other_nodes::OtherNodes;
use super::{external_ip, inside, node_port, scheduler, session_affinity, source_ranges, traffic_policy};

/// The virtual services that one Service claims, in the order in which they were computed; a key may occur twice if a
/// Service names one address twice.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Part {
    pub claims: Vec<Claim>,
    /// The endpoints on this node, which may reach themselves; one may occur twice.
    pub own_endpoints: Vec<OwnEndpoint>,
}

/// An endpoint on this node, and the protocol of its port.
pub type OwnEndpoint = (SocketAddr, Protocol);

/// A claim to one address, protocol and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    pub key: ServiceKey,
    pub rank: Rank,
    pub virtual_service: Virtual,
    pub clients: Clients,
}

impl Claim {
    /// Returns what the claim asks of the kernel.
    pub fn wanted(&self) -> (Virtual, Clients) {
        (self.virtual_service.clone(), self.clients.clone())
    }

    /// Joins a weaker claim of the same Service to this one, if it is to the same key; returns whether it is. The source ranges of
    /// either hold: a node port that is also the port of a load balancer address is no way around them.
    pub fn joins(weaker: &mut Claim, stronger: &mut Claim) -> bool {
        let is_same = weaker.key == stronger.key;
        if is_same && stronger.clients.sources.is_none() {
            stronger.clients.sources = weaker.clients.sources.take();
        }
        is_same
    }
}

/// Precedence of a claim to an address. Addresses allocated by the control plane precede addresses that anybody may
/// write into a Service, so no tenant can take a cluster IP by naming it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rank {
    /// A cluster IP: made local by a route.
    Cluster,
    /// A node port: the address is the host's own.
    NodePort,
    /// An external or load balancer address: made local by a route.
    External,
}

/// Inputs of a part, besides its Service.
#[derive(Clone, Copy)]
pub struct PartInputs<'a> {
    pub node: &'a LocalNode,
    pub others: &'a OtherNodes,
    pub config: &'a ProxyConfig,
}

/// Computes the part of one Service.
pub fn part(service: &Service, endpoints: &Endpoints, inputs: PartInputs<'_>) -> Part {
    // Exact for most Services.
    let mut claims = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
    let mut own_endpoints = Vec::new();
    for port in &service.ports {
        for family in inputs.node.enabled_families() {
            claims.extend(claims_of_port(service, endpoints, port, family, inputs));
            let on_node = endpoints::on_node(endpoints, port, family, inputs.node);
            own_endpoints.extend(on_node.into_iter().map(|endpoint| (endpoint, port.protocol)));
        }
    }
    Part { claims, own_endpoints }
}

fn claims_of_port(
    service: &Service,
    endpoints: &Endpoints,
    port: &ServicePort,
    family: Family,
    inputs: PartInputs<'_>,
) -> Vec<Claim> {
    let mut claims = Vec::new();
    let choose = |policy| {
        let reach = match policy {
            TrafficPolicy::Cluster => Reach::Cluster(inputs.node.place()),
            TrafficPolicy::Local => Reach::Node(&inputs.node.name),
        };
        let drains = scheduler::allows_weight_zero(service.annotations.scheduler);
        Destinations::from(endpoints::destinations(endpoints, port, family, reach, drains))
    };
    let (within, outside) = (traffic_policy::internal(service), traffic_policy::external(service));
    let internal = choose(within);
    let mut external = if outside == within { internal.clone() } else { choose(outside) };
    // Clients on this node are served from all endpoints; where there are none at all, everybody is refused.
    let lacks_local = outside == TrafficPolicy::Local && external.is_empty();
    if lacks_local {
        external = choose(TrafficPolicy::Cluster);
    }
    let is_left_out = lacks_local && !inside::knows_pods(inputs.node, family);
    let inside_only = lacks_local && !external.is_empty();
    let mut claim = |rank, address: IpAddr, number, destinations: &Destinations| {
        let key = ServiceKey::Address { address, protocol: port.protocol, port: number };
        // A node port on an address that is the load balancer's too stays open.
        let sources = if rank == Rank::NodePort { None } else { source_ranges::sources(service, address) };
        let clients = Clients { sources, inside_only: inside_only && rank != Rank::Cluster };
        claims.push(Claim { key, rank, virtual_service: virtual_service(service, destinations.clone()), clients });
    };
    for address in service.cluster_ips.iter().filter(|ip| Family::from(**ip) == family) {
        claim(Rank::Cluster, *address, port.port, &internal);
    }
    if is_left_out {
        return claims;
    }
    let has_family = service.cluster_ips.iter().any(|ip| Family::from(*ip) == family);
    if let (Some(number), true) = (port.node_port, has_family) {
        for address in node_port::node_port_addresses(inputs.node, inputs.config.nodeport_bindon_all_ip, family) {
            claim(Rank::NodePort, address, number, &external);
        }
    }
    for address in external_ip::served(service, inputs).filter(|ip| Family::from(*ip) == family) {
        claim(Rank::External, address, port.port, &external);
    }
    claims
}

/// Returns the virtual service of one claim; also used to recompose it with draining destinations.
pub fn virtual_service(service: &Service, destinations: Destinations) -> Virtual {
    let (persistent, persistence_seconds) = session_affinity::persistence(service);
    Virtual {
        service: VirtualService {
            scheduler: service.annotations.scheduler.name().into(),
            flags: persistent | scheduler::scheduler_flags(&service.annotations, destinations.iter()),
            persistence_seconds,
        },
        destinations,
    }
}
