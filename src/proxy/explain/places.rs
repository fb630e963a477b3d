//! The addresses that a Service asks for, and whether this node serves them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::kernel::ipvs::ServiceKey;
use crate::model::{Endpoints, ExternalField, ObjectName, Service, ServicePort, TrafficPolicy};
use crate::net::Family;

use super::super::apply::Beside;
use super::super::part::{Claim, Rank};
use super::super::plan::Plan;
use super::super::{external_ip, health_check, node_port, speaker_port, traffic_policy};
use super::endpoints::{self, Choice, Listed};
use super::{HealthCheckState, KernelState, Place, Question, Role, Served, Standing};

/// A port of a Service at one of the addresses that it is wanted at.
struct WantedPlace<'a> {
    port: &'a ServicePort,
    /// With the port's number there.
    key: ServiceKey,
    role: Role,
}

/// A Service that a question is about.
#[derive(Clone, Copy)]
struct ServiceQuestion<'a> {
    plan: &'a Plan,
    name: &'a ObjectName,
    service: &'a Service,
    /// The answer has endpoints.
    in_full: bool,
}

/// Returns each address of a Service with each of its ports that a question is about, at most `room` of them, and the number of those that are
/// left off. A question for all Services gets no endpoints.
pub fn places(
    plan: &Plan,
    (name, service): (&ObjectName, &Service),
    question: &Question,
    room: usize,
) -> (Vec<Place>, usize) {
    let mut places: Vec<Place> = Vec::new();
    // The index in `places`, or none such where there was no more room.
    let mut known: BTreeMap<ServiceKey, usize> = BTreeMap::new();
    let service_asked = ServiceQuestion { plan, name, service, in_full: *question != Question::All };
    for port in &service.ports {
        for wanted in wanted_places(plan, service, port) {
            let WantedPlace { key, role, .. } = wanted;
            if !question.is_about(&key) {
                continue;
            }
            let is_full = places.len() >= room;
            let index = *known.entry(key).or_insert(if is_full { usize::MAX } else { places.len() });
            if index == usize::MAX {
                continue;
            }
            let standing = standing(service_asked, &wanted);
            let is_served = matches!(standing, Standing::Served(_));
            // An address may stand in two fields; one of them is why it is served. Of an external and a load balancer address it is the latter, which comes first.
            match places.get_mut(index) {
                Some(known)
                    if is_served && (!matches!(known.standing, Standing::Served(_)) || role == Role::LoadBalancer) =>
                {
                    (known.role, known.standing) = (role, standing);
                }
                Some(_) => {}
                None => places.push(Place { key, role, port_name: port.name.clone(), standing }),
            }
        }
    }
    let left_off = known.len().saturating_sub(places.len());
    (places, left_off)
}

/// Returns where a port of a Service is wanted.
fn wanted_places<'a>(plan: &Plan, service: &Service, port: &'a ServicePort) -> Vec<WantedPlace<'a>> {
    let at = |role: Role, number: u16| {
        let key = move |address| ServiceKey::Address { address, protocol: port.protocol, port: number };
        move |address: IpAddr| WantedPlace { port, key: key(address), role }
    };
    let mut asked: Vec<_> = service.cluster_ips.iter().copied().map(at(Role::ClusterIp, port.port)).collect();
    asked.extend(service.external_ips.iter().copied().map(at(Role::ExternalIp, port.port)));
    asked.extend(service.load_balancer.iter().map(|it| it.address).map(at(Role::LoadBalancer, port.port)));
    if let Some(number) = port.node_port {
        let families = Family::BOTH.into_iter().filter(|family| has_family(service, *family));
        asked.extend(families.flat_map(|family| node_addresses(plan, family)).map(at(Role::NodePort, number)));
    }
    asked
}

fn has_family(service: &Service, family: Family) -> bool {
    service.cluster_ips.iter().any(|address| Family::from(*address) == family)
}

fn node_addresses(plan: &Plan, family: Family) -> Vec<IpAddr> {
    let inputs = plan.part_inputs();
    node_port::node_port_addresses(inputs.node, inputs.config.nodeport_bindon_all_ip, family)
}

/// Returns whether a Service asks for an address, at this port or at any. Cheap.
pub fn asks_for(plan: &Plan, service: &Service, address: IpAddr, port: Option<u16>) -> bool {
    let balanced = service.load_balancer.iter().map(|entry| entry.address);
    let mut named = service.cluster_ips.iter().chain(&service.external_ips).copied().chain(balanced);
    let is_wanted = |number: u16| port.is_none_or(|port| port == number);
    let has_port = || service.ports.iter().any(|port| is_wanted(port.port));
    let has_node_port = || service.ports.iter().filter_map(|port| port.node_port).any(is_wanted);
    let family = Family::from(address);
    has_port() && named.any(|named| named == address)
        || has_node_port() && has_family(service, family) && node_addresses(plan, family).contains(&address)
}

fn standing(asked: ServiceQuestion<'_>, wanted: &WantedPlace<'_>) -> Standing {
    let ServiceQuestion { plan, name, service, .. } = asked;
    let WantedPlace { port, key, role } = *wanted;
    let ServiceKey::Address { address, protocol, port: number } = key else { return Standing::NoLocalEndpoint };
    let inputs = plan.part_inputs();
    if !*inputs.node.families.of(Family::from(address)) {
        return Standing::FamilyOff;
    }
    let balanced = || service.load_balancer.iter().filter(|entry| entry.address == address);
    let field = match role {
        Role::LoadBalancer if service.annotations.skip_load_balancer_ips => return Standing::Skipped,
        Role::LoadBalancer if balanced().all(|entry| entry.through_balancer) => return Standing::ThroughBalancer,
        Role::LoadBalancer => Some(ExternalField::LoadBalancer),
        Role::ExternalIp => Some(ExternalField::ExternalIps),
        Role::ClusterIp | Role::NodePort => None,
    };
    if let Some(reason) = field.and_then(|field| external_ip::refusal(address, field, inputs)) {
        return Standing::Refused(reason);
    }
    if role != Role::ClusterIp && speaker_port::is_own(inputs.node, inputs.config, protocol, address, number) {
        return Standing::SpeakerPort;
    }
    let claims = plan.claims_of(name);
    let Some(claim) = claims.binary_search_by_key(&key, |claim| claim.key).ok().and_then(|index| claims.get(index))
    else {
        return if plan.is_closing_for(&key) { Standing::Closing } else { Standing::NoLocalEndpoint };
    };
    match plan.owner(&key) {
        Some(owner) if owner != name => return Standing::LostTo(owner.clone()),
        _ => {}
    }
    Standing::Served(Box::new(served(asked, port, claim)))
}

fn served(asked: ServiceQuestion<'_>, port: &ServicePort, claim: &Claim) -> Served {
    let ServiceQuestion { plan, name, service, in_full } = asked;
    // With destinations that drain, which no claim names.
    let desired = plan.desired().virtual_of(&claim.key).unwrap_or(&claim.wanted.virtual_service).clone();
    let policy = match claim.rank {
        Rank::Cluster => traffic_policy::internal(service),
        Rank::NodePort | Rank::LoadBalancer | Rank::External => traffic_policy::external(service),
    };
    // Clients on this node are served from all endpoints where none is here.
    let is_local = policy == TrafficPolicy::Local && !claim.wanted.clients.inside_only;
    let here = Some(plan.node().name.as_str()).filter(|_| is_local);
    // Without any slice, destinations may still drain.
    let none = Endpoints::default();
    let slices = plan.world().cluster.endpoints.get(name).map_or(&none, |endpoints| &**endpoints);
    let untunnelled = plan.inputs_of(name).untunnelled.filter(|_| claim.wanted.is_tunnelled);
    let choice = Choice { here, untunnelled, config: Some(plan.inputs_of(name).config), node: Some(plan.node()) };
    let Listed { states: endpoints, left_off, without_port } = match in_full {
        true => endpoints::states(slices, port, claim.key.family(), &desired, choice),
        false => Listed::default(),
    };
    let kernel = KernelState::Unread("not read".to_owned());
    let (clients, beside) = (claim.wanted.clients.clone(), Beside::default());
    Served { desired, clients, endpoints, left_off, without_port, kernel, beside }
}

/// Returns the state of the health check port that a Service asks for, if it does.
pub fn health_check(plan: &Plan, name: &ObjectName, service: &Service) -> Option<HealthCheckState> {
    let none = Default::default();
    let endpoints = plan.world().cluster.endpoints.get(name).map_or(&none, |endpoints| &**endpoints);
    let wanted = health_check::wanted(name, service, endpoints, plan.node(), plan.inputs_of(name).untunnelled)?;
    let checks = plan.health_checks().checks;
    let lost_to = checks.get(&wanted.port).map(|check| check.service.clone()).filter(|owner| owner != name);
    let local_endpoints = wanted.local_endpoints;
    Some(HealthCheckState { port: wanted.port, lost_to, local_endpoints, is_pending: false })
}
