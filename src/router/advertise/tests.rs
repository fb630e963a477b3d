use std::sync::Arc;

use super::*;
use crate::model::{
    AnnounceAnnotations, Conditions, Endpoint, EndpointPort, EndpointSlice, LoadBalancerAddress, ServicePort,
    ServiceType,
};
use crate::net::Protocol;
use crate::router::given::{address, config};

const READY: Conditions = Conditions::READY;
const LEAVING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const NOT_READY: Conditions = Conditions { ready: false, serving: false, terminating: false };
const GONE: Conditions = Conditions { ready: false, serving: false, terminating: true };

const ALL: [&str; 6] = [
    "--advertise-cluster-ip",
    "--advertise-external-ip",
    "--advertise-loadbalancer-ip",
    "--enable-ipv6",
    "--service-external-ip-range=203.0.113.0/25",
    "--loadbalancer-ip-range=203.0.113.128/25,2001:db8:113::/64",
];

fn service() -> Service {
    Service {
        kind: ServiceType::LoadBalancer,
        external_ips: vec![address("203.0.113.1")],
        load_balancer: vec![LoadBalancerAddress { address: address("203.0.113.129"), through_balancer: false }],
        ..Service::new(
            vec![address("10.96.0.9"), address("fd00:10:96::9")],
            vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        )
    }
}

/// Endpoints of IPv4, each on a node and in a condition.
fn endpoints(given: &[(&str, Conditions)]) -> Endpoints {
    slice(given, "http", Family::V4)
}

fn slice(given: &[(&str, Conditions)], port: &str, family: Family) -> Endpoints {
    let endpoint = |(node, conditions): &(&str, Conditions)| Endpoint {
        address: address(if family == Family::V4 { "10.244.1.5" } else { "fd00:10:244:1::5" }),
        node: Some((*node).into()),
        conditions: *conditions,
        hints: None,
    };
    let slice = EndpointSlice {
        family,
        ports: [EndpointPort { name: port.into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: given.iter().map(endpoint).collect(),
    };
    Endpoints { slices: [("slice".into(), Arc::new(slice))].into() }
}

fn check(service: &Service, endpoints: &Endpoints, words: &[&str], expected: &str) {
    let own = Announcer { name: "node-1", families: PerFamily { v4: true, v6: true } };
    let found = announced(service, endpoints, own, &config(words));
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), expected, "{words:?}");
}

#[test]
fn flags_say_which_addresses_are_announced_and_by_default_none_is() {
    let here = endpoints(&[("node-1", READY)]);
    check(&service(), &here, &[], "");
    check(&service(), &here, &ALL, "10.96.0.9 203.0.113.1 203.0.113.129 fd00:10:96::9");
    check(&service(), &here, &["--advertise-cluster-ip"], "10.96.0.9 fd00:10:96::9");
}

#[test]
fn a_service_may_say_something_else_of_itself() {
    let here = endpoints(&[("node-1", READY)]);
    let announce =
        AnnounceAnnotations { cluster_ips: Some(false), external_ips: Some(true), load_balancer_ips: Some(false) };
    check(&Service { announce, ..service() }, &here, &ALL, "203.0.113.1");
    check(&Service { announce, ..service() }, &here, &ALL[3..], "203.0.113.1");
}

#[test]
fn external_addresses_have_to_be_allowed() {
    let here = endpoints(&[("node-1", READY)]);
    check(&service(), &here, &ALL[..3], "10.96.0.9 fd00:10:96::9");
    let loose = [&ALL[..3], &["--strict-external-ip-validation=false"]].concat();
    check(&service(), &here, &loose, "10.96.0.9 203.0.113.1 203.0.113.129 fd00:10:96::9");
}

#[test]
fn addresses_that_belong_to_the_balancer_or_are_skipped_are_not_announced() {
    let here = endpoints(&[("node-1", READY)]);
    let mut behind = service();
    behind.load_balancer[0].through_balancer = true;
    check(&behind, &here, &ALL, "10.96.0.9 203.0.113.1 fd00:10:96::9");
    let mut skipped = service();
    skipped.annotations.skip_load_balancer_ips = true;
    check(&skipped, &here, &ALL, "10.96.0.9 203.0.113.1 fd00:10:96::9");
}

#[test]
fn a_service_without_any_slice_is_announced_and_disturbs_nobody() {
    check(&service(), &Endpoints::default(), &ALL, "10.96.0.9 203.0.113.1 203.0.113.129 fd00:10:96::9");
}

#[test]
fn with_a_local_policy_only_nodes_with_a_ready_endpoint_announce() {
    let local = Service { external_traffic_policy: TrafficPolicy::Local, ..service() };
    let inside = "10.96.0.9 fd00:10:96::9";
    let outside = "10.96.0.9 203.0.113.1 203.0.113.129 fd00:10:96::9";
    for (given, expected) in [
        (&[("node-1", READY)][..], outside),
        (&[("node-2", READY)], inside),
        (&[("node-1", NOT_READY), ("node-2", READY)], inside),
        (&[("node-1", GONE)], inside),
        (&[], inside),
    ] {
        check(&local, &endpoints(given), &ALL, expected);
    }
    let local = Service { internal_traffic_policy: TrafficPolicy::Local, ..service() };
    check(&local, &endpoints(&[("node-2", READY)]), &ALL, "203.0.113.1 203.0.113.129");
    check(&local, &endpoints(&[("node-1", READY)]), &ALL, "10.96.0.9 203.0.113.1 203.0.113.129");
}

#[test]
fn a_node_whose_last_ready_endpoint_goes_stops_to_announce_before_that_stops_to_serve() {
    let local = Service { external_traffic_policy: TrafficPolicy::Local, cluster_ips: vec![], ..service() };
    check(&local, &endpoints(&[("node-1", LEAVING), ("node-2", READY)]), &ALL, "");
    check(&local, &endpoints(&[("node-1", LEAVING), ("node-1", READY)]), &ALL, "203.0.113.1 203.0.113.129");
    // If none is ready, terminating endpoints serve to their end, and can be reached.
    check(&local, &endpoints(&[("node-1", LEAVING), ("node-2", LEAVING)]), &ALL, "203.0.113.1 203.0.113.129");
    check(&local, &endpoints(&[("node-2", LEAVING)]), &ALL, "");
}

#[test]
fn the_annotation_makes_all_addresses_local() {
    let mut local = service();
    local.annotations.local = true;
    check(&local, &endpoints(&[("node-2", READY)]), &ALL, "");
    check(&local, &endpoints(&[("node-1", READY)]), &ALL, "10.96.0.9 203.0.113.1 203.0.113.129");
}

#[test]
fn endpoints_of_another_family_or_port_serve_nobody_here() {
    let local = Service { external_traffic_policy: TrafficPolicy::Local, cluster_ips: vec![], ..service() };
    check(&local, &slice(&[("node-1", READY)], "http", Family::V6), &ALL, "");
    check(&local, &slice(&[("node-1", READY)], "metrics", Family::V4), &ALL, "");
}

#[test]
fn a_family_without_a_next_hop_is_not_announced() {
    let own = Announcer { name: "node-1", families: PerFamily { v4: true, v6: false } };
    let found = announced(&service(), &Endpoints::default(), own, &config(&ALL));
    assert!(found.iter().all(IpAddr::is_ipv4) && found.len() == 3, "{found:?}");
}
