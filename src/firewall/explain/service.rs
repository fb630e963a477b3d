//! The Service at an address: the verdict on the connections to each of its endpoints.
//!
//! Which endpoint the service proxy chooses is not known, so each of them is answered for, by the address and port that it
//! has itself: policies speak of those. Its conditions are told, and decide nothing here. Where an endpoint in the network
//! of this node itself is denied, the Service is refused as a whole (`host_endpoints`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{EndpointSlice, Endpoints, ExternalField, ObjectName, Pod, Service, ServicePort, Shared};
use crate::net::{Family, Protocol};

use super::super::fill::pods_of;
use super::super::service_addresses;
use super::super::verdict::{Decision, Packet, Traffic, Verdict};
use super::judged::{denied_behind, judged};
use super::party::{Party, Standing, is_this_node, standing_at};
use super::{Answer, Explanation, Known};

/// The Service that is reached at an address and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    pub service: ObjectName,
    pub entrance: SocketAddr,
    pub protocol: Protocol,
    /// The verdict on the Service as a whole, where it is refused because of an endpoint on this node itself.
    pub refused: Option<Answer>,
    /// Number of its endpoints in this family; the first [`MOST`] are answered for.
    pub endpoints: usize,
}

/// An endpoint as its Service describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointState {
    /// `nodeName`.
    pub node: Option<Shared<str>>,
    pub on_this_node: bool,
    /// Its address is a node's own.
    pub host_network: bool,
    /// It takes new connections: it is ready, or still serves while it terminates.
    pub usable: bool,
}

/// Field that leads to a Service at an address and port, in the order in which Services have it (`proxy::part::Rank`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    ClusterIp,
    NodePort,
    External(ExternalField),
}

/// The most endpoints that are answered for: the answer is read by people, and made on the firewall's thread.
pub const MOST: usize = 100;

/// Returns the explanation for a Service; `None` if none that is known is reached there.
pub(super) fn explanation(known: Known<'_>, from: &Party, to: SocketAddr, protocol: Protocol) -> Option<Explanation> {
    let (name, port) = owner(known, to, protocol)?;
    let mut targets = known.world.cluster.endpoints.get(name).map(|all| targets(all, port, to)).unwrap_or_default();
    let endpoints = targets.len();
    let on_hosts = pods_on_hosts(known, name);
    let answers = std::iter::from_fn(|| targets.pop_first()).take(MOST).map(|(target, mut state)| {
        let standing = standing_of(known, &on_hosts, target, &state);
        state.host_network = matches!(standing, Standing::HostNetwork(_) | Standing::ThisNode | Standing::Node(_));
        state.on_this_node |= matches!(standing, Standing::Here(_)) || is_this_node(known.world, target.ip());
        let packet = packet(known, from.address, target, protocol);
        let (verdict, bridges) = judged(known, &packet);
        let to = Party { address: target.ip(), standing };
        Answer { packet, from: from.clone(), to, verdict, bridges, endpoint: Some(state), enforced: None }
    });
    let answers = answers.collect();
    let refused = refused(known, from, to, protocol);
    let served = Served { service: name.clone(), entrance: to, protocol, refused, endpoints };
    Some(Explanation { served: Some(served), answers })
}

/// Returns the Service that the service proxy reaches there: one with this cluster IP, then one with this node port, one that a load balancer has given the
/// address to, and one that names it itself; of these the older one, then by name.
fn owner<'a>(known: Known<'a>, to: SocketAddr, protocol: Protocol) -> Option<(&'a ObjectName, &'a ServicePort)> {
    let Known { world, config, host_endpoints, .. } = known;
    let is_own = host_endpoints.is_own(to.ip());
    let serves = |service: &'a Service| {
        let ports = service.ports.iter().filter(move |port| port.protocol == protocol);
        let by_address = service_addresses::addresses(service, &config.ranges).filter(|(own, _)| *own == to.ip());
        let field = by_address.map(|(_, field)| field.map_or(Place::ClusterIp, Place::External)).min();
        let at = |port: &'a ServicePort| {
            let at_node = (is_own && port.node_port == Some(to.port())).then_some(Place::NodePort);
            let place = at_node.into_iter().chain(field.filter(|_| port.port == to.port())).min()?;
            Some((place, port))
        };
        ports.filter_map(at).min_by_key(|(place, _)| *place)
    };
    let all = world.cluster.services.iter().filter_map(|(name, service)| {
        let (place, port) = serves(service)?;
        Some(((place, service.created, name), port))
    });
    all.min_by_key(|(order, _)| *order).map(|((.., name), port)| (name, port))
}

/// Returns the endpoints of a port in a family, each once; its better condition counts.
fn targets(endpoints: &Endpoints, port: &ServicePort, to: SocketAddr) -> BTreeMap<SocketAddr, EndpointState> {
    let mut targets: BTreeMap<SocketAddr, EndpointState> = BTreeMap::new();
    let of_family = |slice: &&Arc<EndpointSlice>| slice.family == Family::from(to.ip());
    for slice in endpoints.slices.values().filter(of_family) {
        let is_its = |one: &&crate::model::EndpointPort| one.name == port.name && one.protocol == port.protocol;
        for number in slice.ports.iter().filter(is_its) {
            for endpoint in slice.endpoints.listed() {
                let usable = endpoint.conditions.use_of().is_some();
                let new =
                    EndpointState { node: endpoint.node.cloned(), on_this_node: false, host_network: false, usable };
                let place = targets.entry(SocketAddr::new(endpoint.address, number.port)).or_insert_with(|| new);
                place.usable |= usable;
            }
        }
    }
    targets
}

/// Returns the pods of the Service's namespace that use the network of their nodes: candidates for its endpoints there.
fn pods_on_hosts<'a>(known: Known<'a>, service: &'a ObjectName) -> Vec<(&'a ObjectName, &'a Arc<Pod>)> {
    let pods = pods_of(&known.world.cluster.pods, &service.namespace);
    pods.filter(|(_, pod)| pod.host_network && !pod.finished).collect()
}

/// Returns who is at an endpoint. Several pods may have their node's address: one is named where it alone has it, or it
/// alone has this port by name.
fn standing_of(
    known: Known<'_>,
    on_hosts: &[(&ObjectName, &Arc<Pod>)],
    target: SocketAddr,
    state: &EndpointState,
) -> Standing {
    let standing = standing_at(known, target.ip());
    if matches!(standing, Standing::Here(_) | Standing::Elsewhere(..)) {
        return standing;
    }
    let is_there = |pod: &Pod| {
        pod.addresses.contains(&target.ip()) && (state.node.is_none() || pod.node.as_deref() == state.node.as_deref())
    };
    let there: Vec<_> = on_hosts.iter().filter(|(_, pod)| is_there(pod)).collect();
    let with_port: Vec<_> =
        there.iter().filter(|(_, pod)| pod.ports.iter().any(|port| port.number == target.port())).collect();
    match (there.as_slice(), with_port.as_slice()) {
        ([(name, _)], _) | (_, [(name, _)]) => Standing::HostNetwork((*name).clone()),
        _ => standing,
    }
}

fn packet(known: Known<'_>, source: IpAddr, to: SocketAddr, protocol: Protocol) -> Packet {
    let traffic = Traffic::Port { protocol, port: to.port() };
    let from_this_node = is_this_node(known.world, source);
    Packet { source, destination: to.ip(), traffic, from_this_node }
}

/// Returns the answer for the Service as a whole, where it is refused.
fn refused(known: Known<'_>, from: &Party, to: SocketAddr, protocol: Protocol) -> Option<Answer> {
    let packet = packet(known, from.address, to, protocol);
    let egress = denied_behind(known.rules, known.host_endpoints, &packet)?;
    let to = Party { address: to.ip(), standing: standing_at(known, to.ip()) };
    let verdict = Verdict { egress, ingress: Decision::NotHere };
    Some(Answer { packet, from: from.clone(), to, verdict, bridges: Vec::new(), endpoint: None, enforced: None })
}
