//! The endpoints that serve a Service port: ready, terminating, local, near.
//!
//! Kubernetes: EndpointSlice conditions. Ready endpoints get new connections. Only when there is none do
//! endpoints that are terminating and still serving, so that a Service whose pods all go away at once keeps
//! answering for as long as any of them can. While ready ones exist, terminating ones keep their
//! connections and get no new ones: weight 0. A ready endpoint that hints keep from this node (`topology`) gets none either.
//!
//! An endpoint is matched to a Service port by the port's name and protocol. An address listed in several slices, which
//! happens while the controller moves it, counts once, in its best condition.

use std::net::SocketAddr;

use crate::kernel::ipvs::{Destination, Forwarding};
use crate::model::{EndpointPort, EndpointSlice, Endpoints, Listed, ServicePort, Use};
use crate::net::Family;

use super::local_node::LocalNode;
use super::topology::{Place, Preference};

/// The subset of a Service's endpoints that may be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach<'a> {
    /// All of them, or those that hints prefer for this place.
    Cluster(Place<'a>),
    /// Those on the node of this name.
    Node(&'a str),
}

/// The weight of a destination that takes new connections.
pub const SERVING: u32 = 1;
/// The weight of a destination that only keeps the connections it has.
pub const DRAINING: u32 = 0;

/// Returns the destinations of one port in one family, sorted by address, without duplicates.
///
/// `drains`: terminating endpoints may stay with weight 0 (`scheduler::allows_weight_zero`).
pub fn destinations(
    endpoints: &Endpoints,
    port: &ServicePort,
    family: Family,
    reach: Reach<'_>,
    drains: bool,
) -> Vec<Destination> {
    let candidates = candidates(endpoints, port, family, reach);
    let any_ready = candidates.iter().any(|(_, standing)| *standing == Use::Ready);
    let weight = |standing: Use| match standing {
        Use::Ready => Some(SERVING),
        Use::Terminating if !any_ready => Some(SERVING),
        Use::Terminating if drains => Some(DRAINING),
        Use::Terminating => None,
    };
    let mut destinations = Vec::with_capacity(candidates.len());
    destinations.extend(candidates.into_iter().filter_map(|(address, standing)| {
        weight(standing).map(|weight| Destination { address, weight, forwarding: Forwarding::Nat })
    }));
    destinations
}

/// Returns whether an endpoint of a family is on this node. Where it does not say its node, the pod ranges decide. The node's own address, of pods on the host's network, is
/// not: the host knows itself by any of its addresses.
pub fn is_here(endpoint: &Listed<'_>, family: Family, node: &LocalNode) -> bool {
    match endpoint.node_name() {
        _ if *node.address.of(family) == Some(endpoint.address) => false,
        Some(name) => *name == *node.name,
        None => node.pod_cidrs.of(family).iter().any(|range| range.contains(&endpoint.address)),
    }
}

/// Returns the endpoints of one port that are on this node ([`is_here`]), whatever their condition, sorted by address, without duplicates.
pub fn on_node(endpoints: &Endpoints, port: &ServicePort, family: Family, node: &LocalNode) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for slice in endpoints.slices.values().filter(|slice| slice.family == family) {
        let here: Vec<Listed<'_>> = slice.endpoints.listed().filter(|it| is_here(it, family, node)).collect();
        let numbers = numbers(slice, port);
        found.extend(numbers.flat_map(|number| here.iter().map(move |it| SocketAddr::new(it.address, number.port))));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Returns the candidate endpoints sorted by address, without duplicates.
fn candidates(endpoints: &Endpoints, port: &ServicePort, family: Family, reach: Reach<'_>) -> Vec<(SocketAddr, Use)> {
    let most = endpoints.slices.values().map(|slice| slice.endpoints.len()).sum();
    let mut candidates = Vec::with_capacity(most);
    let preference = match reach {
        Reach::Cluster(place) => Preference::of(of_port(endpoints, port, family).map(|(_, endpoint)| endpoint), place),
        Reach::Node(_) => Preference::Everywhere,
    };
    for (number, endpoint) in of_port(endpoints, port, family).filter(|(_, endpoint)| is_within(*endpoint, reach)) {
        let Some(standing) = endpoint.conditions.use_of() else { continue };
        if standing != Use::Ready || preference.allows(endpoint) {
            candidates.push((SocketAddr::new(endpoint.address, number), standing));
        }
    }
    // The best condition of an address sorts first and is kept.
    candidates.sort_unstable_by(|(one, standing), (other, others)| one.cmp(other).then(others.cmp(standing)));
    candidates.dedup_by_key(|(address, _)| *address);
    candidates
}

/// Returns the endpoints of one port in one family, each with its port's number.
pub fn of_port<'a>(
    endpoints: &'a Endpoints,
    port: &'a ServicePort,
    family: Family,
) -> impl Iterator<Item = (u16, Listed<'a>)> {
    endpoints.slices.values().filter(move |slice| slice.family == family).flat_map(move |slice| {
        let numbers = numbers(slice, port);
        numbers.flat_map(|number| slice.endpoints.listed().map(|endpoint| (number.port, endpoint)))
    })
}

/// Returns the numbers that one port has in a slice.
pub fn numbers<'a>(slice: &'a EndpointSlice, port: &'a ServicePort) -> impl Iterator<Item = &'a EndpointPort> {
    slice.ports.iter().filter(|number| number.name == port.name && number.protocol == port.protocol)
}

fn is_within(endpoint: Listed<'_>, reach: Reach<'_>) -> bool {
    match reach {
        Reach::Cluster(_) => true,
        Reach::Node(name) => endpoint.node_name() == Some(name),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Conditions, Endpoint, Hints};
    use crate::net::Protocol;

    const READY: Conditions = Conditions::READY;
    const NOT_READY: Conditions = Conditions { ready: false, serving: false, terminating: false };
    const LEAVING: Conditions = Conditions { ready: false, serving: true, terminating: true };
    const ALL: Reach<'_> = Reach::Cluster(Place { node: "node1", zone: Some("east") });
    const GONE: Conditions = Conditions { ready: false, serving: false, terminating: true };

    #[test]
    fn only_ready_endpoints_get_new_connections() {
        check(&[(1, READY), (2, NOT_READY), (3, GONE)], ALL, true, "10.244.1.1:8080=1");
    }

    #[test]
    fn terminating_endpoints_keep_their_connections_while_others_are_ready() {
        check(&[(1, READY), (2, LEAVING)], ALL, true, "10.244.1.1:8080=1 10.244.1.2:8080=0");
    }

    #[test]
    fn terminating_endpoints_serve_when_no_other_is_left() {
        check(&[(1, NOT_READY), (2, LEAVING), (3, GONE)], ALL, true, "10.244.1.2:8080=1");
    }

    #[test]
    fn a_scheduler_that_cannot_drain_loses_terminating_endpoints_at_once() {
        check(&[(1, READY), (2, LEAVING)], ALL, false, "10.244.1.1:8080=1");
        check(&[(2, LEAVING)], ALL, false, "10.244.1.2:8080=1");
    }

    #[test]
    fn a_local_policy_chooses_among_local_endpoints_only() {
        // Endpoints with an even number are on node2.
        check(&[(1, READY), (2, LEAVING), (4, NOT_READY)], Reach::Node("node2"), true, "10.244.1.2:8080=1");
        check(&[(1, READY)], Reach::Node("node2"), true, "");
    }

    #[test]
    fn an_address_in_two_slices_counts_once_in_its_best_condition() {
        let mut endpoints = endpoints(&[(1, LEAVING), (2, READY)]);
        endpoints.slices.insert("moved".into(), Arc::new(slice(&[(1, READY)])));
        let found = destinations(&endpoints, &port("http"), Family::V4, ALL, true);
        assert_eq!(text(&found), "10.244.1.1:8080=1 10.244.1.2:8080=1");
    }

    #[test]
    fn another_port_name_protocol_or_family_does_not_match() {
        let endpoints = endpoints(&[(1, READY)]);
        let none = |port: &ServicePort, family| {
            assert_eq!(text(&destinations(&endpoints, port, family, ALL, true)), "");
        };
        none(&port("https"), Family::V4);
        none(&port("http"), Family::V6);
        none(&ServicePort { protocol: Protocol::Udp, ..port("http") }, Family::V4);
    }

    #[test]
    fn hints_for_this_node_precede_hints_for_its_zone() {
        // The endpoints 1 and 3 are for node1, 2 for node2; 1 and 2 are for zone east, 3 for west.
        let all = ["node1 east", "node2 east", "node1 west"];
        hinted(&all, "node1", Some("east"), "1 3");
        hinted(&all, "node2", Some("west"), "2");
        hinted(&all, "node3", Some("east"), "1 2");
        hinted(&all, "node3", Some("west"), "3");
    }

    #[test]
    fn hints_that_serve_nobody_here_or_are_not_complete_are_ignored() {
        hinted(&["- east", "- west"], "node1", Some("east"), "1");
        hinted(&["- east", "- west"], "node1", Some("north"), "1 2");
        hinted(&["- east", "- west"], "node1", None, "1 2");
        hinted(&["- east", "- -"], "node1", Some("east"), "1 2");
        hinted(&["node1 east", "- east", "- west"], "node1", Some("east"), "1 2");
        hinted(&["node1 -", "node2 -"], "node3", Some("east"), "1 2");
    }

    #[test]
    fn endpoints_that_are_not_ready_have_no_say_in_hints_and_terminating_ones_serve_from_any_zone() {
        let hinted = |given: &[(u8, Conditions, &str)], expected: &str| {
            let mut slice = slice(&given.iter().map(|(number, is, _)| (*number, *is)).collect::<Vec<_>>());
            let with_hints = |(endpoint, (_, _, hints)): (Endpoint, &(u8, Conditions, &str))| {
                let hints = hints_of(hints);
                Endpoint { hints, ..endpoint }
            };
            slice.endpoints = slice.endpoints.iter().zip(given).map(with_hints).collect();
            let endpoints = Endpoints { slices: [("web-1".into(), Arc::new(slice))].into() };
            assert_eq!(text(&destinations(&endpoints, &port("http"), Family::V4, ALL, true)), expected);
        };
        let (far, near) = ("- west", "- east");
        hinted(&[(1, READY, near), (2, READY, far), (3, NOT_READY, "- -")], "10.244.1.1:8080=1");
        hinted(&[(1, NOT_READY, near), (2, READY, far)], "10.244.1.2:8080=1");
        hinted(&[(1, READY, near), (2, LEAVING, far)], "10.244.1.1:8080=1 10.244.1.2:8080=0");
        hinted(&[(1, LEAVING, near), (2, LEAVING, far)], "10.244.1.1:8080=1 10.244.1.2:8080=1");
    }

    #[test]
    fn a_local_policy_does_not_ask_for_hints() {
        let mut slice = slice(&[(1, READY), (3, READY)]);
        let hints = ["node2 west", "node1 east"].map(hints_of);
        let hinted = slice.endpoints.iter().zip(hints).map(|(endpoint, hints)| Endpoint { hints, ..endpoint });
        slice.endpoints = hinted.collect();
        let endpoints = Endpoints { slices: [("web-1".into(), Arc::new(slice))].into() };
        let found = destinations(&endpoints, &port("http"), Family::V4, Reach::Node("node1"), true);
        assert_eq!(text(&found), "10.244.1.1:8080=1 10.244.1.3:8080=1");
    }

    /// Ready endpoints with these hints, `NODE ZONE` with `-` for none, at a node in a zone: the numbers of those chosen.
    fn hinted(given: &[&str], node: &str, zone: Option<&str>, expected: &str) {
        let numbers: Vec<(u8, Conditions)> = (1..).zip(given).map(|(number, _)| (number, READY)).collect();
        let mut slice = slice(&numbers);
        let hints = given.iter().map(|hints| hints_of(hints));
        let hinted = slice.endpoints.iter().zip(hints).map(|(endpoint, hints)| Endpoint { hints, ..endpoint });
        slice.endpoints = hinted.collect();
        let endpoints = Endpoints { slices: [("web-1".into(), Arc::new(slice))].into() };
        let reach = Reach::Cluster(Place { node, zone });
        let found = destinations(&endpoints, &port("http"), Family::V4, reach, true);
        let expected: Vec<String> = expected.split(' ').map(|number| format!("10.244.1.{number}:8080=1")).collect();
        assert_eq!(text(&found), expected.join(" "), "{given:?} at {node} in {zone:?}");
    }

    fn hints_of(text: &str) -> Option<Arc<Hints>> {
        let (node, zone) = text.split_once(' ').expect("a node and a zone");
        let list = |name: &str| [name].into_iter().filter(|name| *name != "-").map(Into::into).collect();
        Some(Hints { nodes: list(node), zones: list(zone) }).filter(|hints| *hints != Hints::default()).map(Arc::new)
    }

    fn check(given: &[(u8, Conditions)], reach: Reach<'_>, drains: bool, expected: &str) {
        let found = destinations(&endpoints(given), &port("http"), Family::V4, reach, drains);
        assert_eq!(text(&found), expected);
    }

    fn text(destinations: &[Destination]) -> String {
        destinations.iter().map(|d| format!("{}={}", d.address, d.weight)).collect::<Vec<_>>().join(" ")
    }

    fn port(name: &str) -> ServicePort {
        ServicePort { name: name.into(), protocol: Protocol::Tcp, port: 80, node_port: None }
    }

    fn endpoints(given: &[(u8, Conditions)]) -> Endpoints {
        Endpoints { slices: [("web-1".into(), Arc::new(slice(given)))].into() }
    }

    fn slice(given: &[(u8, Conditions)]) -> EndpointSlice {
        let endpoint = |(number, conditions): &(u8, Conditions)| Endpoint {
            address: [10, 244, 1, *number].into(),
            node: Some(if number % 2 == 0 { "node2".into() } else { "node1".into() }),
            conditions: *conditions,
            hints: None,
        };
        EndpointSlice {
            family: Family::V4,
            ports: [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
            endpoints: given.iter().map(endpoint).collect(),
        }
    }
}
