//! The kernel objects of one Service: its virtual services and their destinations.
//!
//! A pure function of the Service, its endpoints, this node, the tunnels that end on it, and the configuration. All other kernel objects (local
//! routes, set elements) follow from the virtual services of all parts together (`plan`).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::config::ProxyConfig;
use crate::kernel::ipvs::{Destination, Destinations, Forwarding, Service as VirtualService, ServiceKey, Virtual};
use crate::model::{Endpoints, ExternalField, Service, ServicePort, TrafficPolicy};
use crate::net::{Family, Protocol};

use super::clients::Clients;
use super::dsr::tunnels;
use super::endpoints::{self, Reach};
use super::local_node::LocalNode;
use super::other_nodes::OtherNodes;
use super::{
    external_ip, inside, node_port, overlay_port, scheduler, session_affinity, source_ranges, speaker_port,
    traffic_policy,
};

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
    pub wanted: Wanted,
}

/// The kernel objects that a claim asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub virtual_service: Virtual,
    pub clients: Clients,
    /// It is served through tunnels, so the kernel knows it by a mark of packets (`dsr`).
    pub is_tunnelled: bool,
}

impl Claim {
    /// Joins a weaker claim of the same Service to this one, if it is to the same key; returns whether it is. The source ranges of
    /// either hold: a node port that is also the port of a load balancer address is no way around them.
    pub fn joins(weaker: &mut Claim, stronger: &mut Claim) -> bool {
        let is_same = weaker.key == stronger.key;
        let (weaker, stronger) = (&mut weaker.wanted.clients, &mut stronger.wanted.clients);
        if is_same && stronger.sources.is_none() {
            stronger.sources = weaker.sources.take();
        }
        is_same
    }
}

/// Precedence of a claim to an address. Addresses allocated by the control plane precede addresses that anybody may
/// write into a Service, so no tenant can take a cluster IP, or the address that a load balancer has given to a younger Service, by naming it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rank {
    /// A cluster IP: made local by a route.
    Cluster,
    /// A node port: the address is the host's own.
    NodePort,
    /// A load balancer address, which stands in the status, where controllers write: made local by a route.
    LoadBalancer,
    /// An external address, which stands in the spec: made local by a route.
    External,
}

/// Inputs of a part, besides its Service.
#[derive(Clone, Copy)]
pub struct PartInputs<'a> {
    pub node: &'a LocalNode,
    pub others: &'a OtherNodes,
    pub config: &'a ProxyConfig,
    /// The Service's endpoints on this node in which no tunnel ends (`dsr::Untunnelled`); `None` is none.
    pub untunnelled: Option<&'a BTreeSet<IpAddr>>,
}

impl PartInputs<'_> {
    /// Returns whether an endpoint is known to be one in which no tunnel of the Service ends.
    pub fn is_untunnelled(self, endpoint: IpAddr) -> bool {
        self.untunnelled.is_some_and(|those| those.contains(&endpoint))
    }
}

/// Computes the part of one Service.
pub fn part(service: &Service, endpoints: &Endpoints, inputs: PartInputs<'_>) -> Part {
    // Exact for most Services.
    let mut claims = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
    let mut own_endpoints = Vec::new();
    // Once for all ports: a Service may name thousands of both.
    let external: Vec<(IpAddr, ExternalField)> = external_ip::served_with_fields(service, inputs).collect();
    for port in &service.ports {
        let endpoints = overlay_port::without(endpoints, port, inputs.config);
        let endpoints = speaker_port::without(endpoints, port, inputs.node, inputs.config);
        for family in inputs.node.enabled_families() {
            let of_family = external.iter().copied().filter(|(address, _)| Family::from(*address) == family);
            claims.extend(claims_of_port(service, &endpoints, port, (family, of_family), inputs));
            let on_node = endpoints::on_node(&endpoints, port, family, inputs.node);
            own_endpoints.extend(on_node.into_iter().map(|endpoint| (endpoint, port.protocol)));
        }
    }
    Part { claims, own_endpoints }
}

fn claims_of_port(
    service: &Service,
    endpoints: &Endpoints,
    port: &ServicePort,
    (family, external): (Family, impl Iterator<Item = (IpAddr, ExternalField)> + Clone),
    inputs: PartInputs<'_>,
) -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut claim = |rank, address: IpAddr, number, served: &Served| {
        if rank != Rank::Cluster && speaker_port::is_own(inputs.node, inputs.config, port.protocol, address, number) {
            return;
        }
        let key = ServiceKey::Address { address, protocol: port.protocol, port: number };
        // A node port on an address that is the load balancer's too stays open.
        let sources = if rank == Rank::NodePort { None } else { source_ranges::sources(service, address) };
        let clients = Clients { sources, inside_only: served.inside_only };
        let virtual_service = virtual_service(service, served.destinations.clone());
        claims.push(Claim {
            key,
            rank,
            wanted: Wanted { virtual_service, clients, is_tunnelled: served.is_tunnelled },
        });
    };
    let drains = scheduler::allows_weight_zero(service.annotations.scheduler);
    let chosen_of = |those: &Endpoints, policy| -> Destinations {
        endpoints::destinations(those, port, family, reach(policy, inputs.node), drains).into()
    };
    let choose = |policy| chosen_of(endpoints, policy);
    let within = traffic_policy::internal(service);
    let internal = Served { destinations: choose(within), inside_only: false, is_tunnelled: false };
    for address in service.cluster_ips.iter().filter(|ip| Family::from(**ip) == family) {
        claim(Rank::Cluster, *address, port.port, &internal);
    }
    let chosen = |policy| if policy == within { internal.destinations.clone() } else { choose(policy) };
    let with_nat = outside(service, family, inputs, chosen);
    let has_family = service.cluster_ips.iter().any(|ip| Family::from(*ip) == family);
    if let (Some(number), true, Some(served)) = (port.node_port, has_family, &with_nat) {
        for address in node_port::node_port_addresses(inputs.node, inputs.config.nodeport_bindon_all_ip, family) {
            claim(Rank::NodePort, address, number, served);
        }
    }
    let is_tunnelled = |address: IpAddr| tunnels::uses_tunnel(service, endpoints, port, address, inputs);
    let through_tunnels = external.clone().any(|(address, _)| is_tunnelled(address)).then(|| {
        let those = tunnels::that_end_tunnels(endpoints, inputs);
        outside(service, family, inputs, |policy| chosen_of(&those, policy)).map(Served::through_tunnels)
    });
    // Endpoints that end no tunnels serve clients outside where no others do: such an address may be announced, and counts as healthy. With NAT a pod of
    // this node answers whatever became of its tunnel, because its answers pass here anyway.
    let serves = |served: &Option<Served>| served.as_ref().is_some_and(Served::has_clients_outside);
    let through_tunnels = through_tunnels.filter(|tunnelled| serves(tunnelled) || !serves(&with_nat));
    for (address, field) in external {
        let served = match &through_tunnels {
            Some(tunnelled) if is_tunnelled(address) => tunnelled.as_ref(),
            _ => with_nat.as_ref(),
        };
        let rank = match field {
            ExternalField::LoadBalancer => Rank::LoadBalancer,
            ExternalField::ExternalIps => Rank::External,
        };
        served.into_iter().for_each(|served| claim(rank, address, port.port, served));
    }
    claims
}

/// How one port is served at its addresses of one family.
struct Served {
    destinations: Destinations,
    inside_only: bool,
    is_tunnelled: bool,
}

impl Served {
    fn has_clients_outside(&self) -> bool {
        !self.inside_only && !self.destinations.is_empty()
    }

    fn through_tunnels(self) -> Served {
        let forwarding = Forwarding::Tunnel;
        let destinations = self.destinations.iter().map(|found| Destination { forwarding, ..found }).collect();
        Served { destinations, is_tunnelled: true, ..self }
    }
}

/// Returns how clients outside are served, by destinations that `choose` returns for a traffic policy; `None` where nobody is.
fn outside(
    service: &Service,
    family: Family,
    inputs: PartInputs<'_>,
    choose: impl Fn(TrafficPolicy) -> Destinations,
) -> Option<Served> {
    let policy = traffic_policy::external(service);
    let mut destinations = choose(policy);
    // Clients on this node are served from all endpoints; where there are none at all, everybody is refused.
    let lacks_local = policy == TrafficPolicy::Local && destinations.is_empty();
    if lacks_local {
        destinations = choose(TrafficPolicy::Cluster);
    }
    let is_left_out = lacks_local && !inside::knows_pods(inputs.node, family);
    let inside_only = lacks_local && !destinations.is_empty();
    (!is_left_out).then_some(Served { destinations, inside_only, is_tunnelled: false })
}

/// Returns which endpoints a traffic policy lets a node use.
fn reach(policy: TrafficPolicy, node: &LocalNode) -> Reach<'_> {
    match policy {
        TrafficPolicy::Cluster => Reach::Cluster(node.place()),
        TrafficPolicy::Local => Reach::Node(&node.name),
    }
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
