//! Clusters in memory: every node has its plan and its speaker, and packets walk over the routes that come of them.
//!
//! Nothing between a Node object and a route of the kernel is left out but the sockets and the kernel itself.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

#[path = "router/cluster.rs"]
mod cluster;
#[path = "router/drain_walk.rs"]
mod drain_walk;
#[path = "router/node_routes.rs"]
mod node_routes;
#[path = "router/overlay.rs"]
mod overlay;
#[path = "router/rotation.rs"]
mod rotation;
#[path = "support/mod.rs"]
mod support;
#[path = "router/wireguard.rs"]
mod wireguard;

use std::collections::BTreeSet;

use sluice::bgp::message::Community;
use sluice::model::{AnnounceAnnotations, ObjectName, Prepend, Reflection, Service};

use cluster::{Cluster, External, address, prefix};

/// Nodes 1 and 2 on one link, nodes 3 and 4 on another one.
const LINKS: [&str; 4] = ["192.0.2", "192.0.2", "198.51.100", "198.51.100"];

fn ranges(families: &str, number: usize) -> String {
    let v4 = format!("10.244.{number}.0/24");
    let v6 = format!("fd00:10:244:{number}::/64");
    match families {
        "v4" => v4,
        "v6" => v6,
        _ => format!("{v4} {v6}"),
    }
}

fn flags(families: &str) -> Vec<&'static str> {
    match families {
        "v4" => vec![],
        "v6" => vec!["--enable-ipv4=false", "--enable-ipv6"],
        _ => vec!["--enable-ipv6"],
    }
}

fn cluster(families: &str, links: &[&str], words: &[&str]) -> Cluster {
    let words: Vec<&str> = flags(families).into_iter().chain(words.iter().copied()).collect();
    let mut cluster = Cluster::new(&words);
    for (place, link) in links.iter().enumerate() {
        cluster.add_node(place + 1, link, families, &ranges(families, place + 1));
    }
    cluster
}

#[test]
fn all_pods_reach_each_other_with_every_kind_of_overlay_and_in_every_family() {
    for families in ["v4", "v6", "both"] {
        for words in [
            &[][..],
            &["--overlay-type=full"],
            &["--overlay-encap=fou"],
            &["--overlay-encap=vxlan"],
            &["--bgp-graceful-restart"],
        ] {
            let mut cluster = cluster(families, &LINKS, words);
            cluster.settle();
            cluster.all_pods_reach_each_other();
            assert_eq!(cluster.problems(), [""; 0]);
        }
        let mut flat = cluster(families, &LINKS[..2], &["--enable-overlay=false"]);
        flat.settle();
        flat.all_pods_reach_each_other();
        assert_eq!(flat.tunnels(1), 0);
    }
}

#[test]
fn pods_reach_each_other_where_the_nodes_network_contains_their_ranges_and_where_nodes_have_no_network() {
    for (v4, v6) in [(8, 8), (32, 128)] {
        let mut cluster = Cluster::new(&["--enable-ipv6"]);
        for number in 1..=3 {
            let networks = [prefix(&format!("10.0.0.{number}/{v4}")), prefix(&format!("fd00::{number}/{v6}"))];
            cluster.add_node_in(number, &networks, &ranges("both", number));
        }
        cluster.settle();
        cluster.all_pods_reach_each_other();
        assert_eq!(cluster.problems(), [""; 0]);
        assert_eq!(cluster.tunnels(1), if v4 == 8 { 0 } else { 4 });
    }
}

#[test]
fn tunnels_are_only_where_they_are_needed() {
    let mut subnet = cluster("v4", &LINKS, &[]);
    subnet.settle();
    assert_eq!([1, 2, 3, 4].map(|node| subnet.tunnels(node)), [2; 4]);
    let mut full = cluster("v4", &LINKS, &["--overlay-type=full"]);
    full.settle();
    assert_eq!([1, 2, 3, 4].map(|node| full.tunnels(node)), [3; 4]);
}

#[test]
fn a_node_that_comes_is_reached_and_one_that_goes_leaves_nothing_behind() {
    let mut cluster = cluster("both", &LINKS, &[]);
    cluster.settle();
    cluster.add_node(5, "198.51.100", "both", &ranges("both", 5));
    cluster.settle();
    cluster.all_pods_reach_each_other();
    cluster.remove_node(3);
    cluster.settle();
    cluster.all_pods_reach_each_other();
    for node in [1, 2, 4, 5] {
        assert!(cluster.routes(node).iter().all(|route| !route.contains("10.244.3.0") && !route.contains("51.100.3")));
    }
}

#[test]
fn clients_reach_each_other_through_their_reflectors() {
    let mut cluster = cluster("both", &["192.0.2", "192.0.2", "192.0.2", "198.51.100", "198.51.100"], &[]);
    for (node, reflection) in [
        (1, Reflection::Server([0, 0, 0, 7].into())),
        (2, Reflection::Server([0, 0, 0, 7].into())),
        (3, Reflection::Client([0, 0, 0, 7].into())),
        (4, Reflection::Client([0, 0, 0, 7].into())),
        (5, Reflection::Client([0, 0, 0, 7].into())),
    ] {
        cluster.annotate(node, |routing| routing.reflection = reflection);
    }
    cluster.settle();
    assert_eq!([1, 3, 4].map(|node| cluster.sessions(node)), [4, 2, 2], "clients speak with reflectors alone");
    cluster.all_pods_reach_each_other();
}

#[test]
fn nodes_of_one_system_reach_each_other_without_a_full_mesh() {
    let mut cluster = cluster("v4", &LINKS, &["--nodes-full-mesh=false"]);
    (1..=4).for_each(|node| cluster.annotate(node, |routing| routing.asn = Some(if node < 3 { 65001 } else { 65002 })));
    cluster.settle();
    assert_eq!([1, 2, 3, 4].map(|node| cluster.sessions(node)), [1; 4]);
    (1..=4).for_each(|node| cluster.annotate(node, |routing| routing.asn = Some(65001)));
    cluster.settle();
    assert_eq!([1, 2, 3, 4].map(|node| cluster.sessions(node)), [3; 4]);
    cluster.all_pods_reach_each_other();
}

fn service(addresses: &[&str]) -> Service {
    Service {
        announce: AnnounceAnnotations { cluster_ips: Some(true), ..AnnounceAnnotations::default() },
        ..Service::new(addresses.iter().map(|text| address(text)).collect(), vec![])
    }
}

const OUTSIDE: [&str; 2] = ["--peer-router-ips=192.0.2.254", "--peer-router-asns=65010"];

#[test]
fn a_router_outside_learns_pods_and_services_and_nothing_else() {
    let mut cluster = cluster("both", &LINKS[..2], &OUTSIDE);
    cluster.add_external(External { address: address("192.0.2.254"), asn: 65010, originates: vec![] });
    cluster.annotate(1, |routing| {
        routing.prepend = Some(Prepend { asn: 65000, times: 2 });
        routing.communities = vec![65001 << 16 | 7];
    });
    cluster.put_service(ObjectName::new("default", "web"), service(&["10.96.0.9", "fd00:10:96::9"]));
    cluster.settle();
    let seen: BTreeSet<String> = cluster.seen_outside(1).into_iter().map(|(prefix, _)| prefix.to_string()).collect();
    let expected = ["10.244.1.0/24", "10.96.0.9/32", "fd00:10:244:1::/64", "fd00:10:96::9/128"];
    assert_eq!(seen, expected.map(str::to_owned).into());
    for (prefix, attributes) in cluster.seen_outside(1) {
        assert_eq!(attributes.as_path.to_string(), "65000 65000 64512", "{prefix}");
        assert_eq!(attributes.communities.as_ref(), [Community(65001 << 16 | 7)]);
    }
    assert_eq!(cluster.seen_outside(2).len(), 4, "every node announces the Service");
    assert!(cluster.routes(2).iter().all(|route| !route.contains("10.96.0.9")), "nodes do not tell each other");
    cluster.remove_service(&ObjectName::new("default", "web"));
    cluster.settle();
    assert_eq!(cluster.seen_outside(1).len(), 2);
}

#[test]
fn what_a_router_outside_says_of_our_own_addresses_is_not_believed() {
    let lies = [
        "0.0.0.0/0",
        "::/0",
        "10.244.1.0/24",
        "10.244.1.7/32",
        "10.244.2.0/25",
        "10.96.0.9/32",
        "10.96.1.0/24",
        "192.0.2.2/32",
        "192.0.2.0/25",
    ];
    let originates = lies.iter().chain(&["172.16.0.0/12", "2001:db8:99::/48"]).map(|text| prefix(text)).collect();
    let mut cluster = cluster("both", &LINKS[..2], &OUTSIDE);
    cluster.put_service(ObjectName::new("default", "web"), service(&["10.96.0.9"]));
    cluster.add_external(External { address: address("192.0.2.254"), asn: 65010, originates });
    cluster.settle();
    cluster.all_pods_reach_each_other();
    let routes = cluster.routes(1);
    assert!(routes.contains(&"172.16.0.0/12 via 192.0.2.254 dev eth0".to_owned()), "{routes:?}");
    for lie in lies.iter().filter(|lie| !lie.starts_with("192.0.2")) {
        assert!(!routes.iter().any(|route| route.starts_with(&format!("{lie} "))), "{lie}: {routes:?}");
    }
    assert_eq!(routes.len(), 4, "{routes:?}");
}

#[test]
fn a_node_that_was_taken_over_gets_no_packets_but_those_for_its_own_pods() {
    let lies =
        ["10.244.3.0/24", "fd00:10:244:3::/64", "198.18.7.1/32", "2001:db8:7::7/128", "198.18.0.0/15"].map(prefix);
    for is_reflector in [false, true] {
        let mut cluster = cluster("both", &LINKS, &[]);
        // By its own annotation it may call itself a reflector of anything: without clients of it nobody believes it more for that.
        if is_reflector {
            cluster.annotate(2, |routing| routing.reflection = Reflection::Server([0, 0, 0, 7].into()));
        }
        cluster.settle();
        let before = [1, 3, 4].map(|node| cluster.routes(node));
        cluster.lie(2, &lies);
        cluster.settle();
        assert_eq!([1, 3, 4].map(|node| cluster.routes(node)), before);
    }
}

#[test]
fn a_client_that_was_taken_over_gets_no_packets_by_way_of_its_reflectors_either() {
    let lies = ["10.244.4.0/24", "fd00:10:244:4::/64", "198.18.7.1/32", "2001:db8:7::7/128"].map(prefix);
    let mut cluster = cluster("both", &LINKS, &[]);
    for (node, reflection) in [
        (1, Reflection::Server([0, 0, 0, 7].into())),
        (2, Reflection::Client([0, 0, 0, 7].into())),
        (3, Reflection::Client([0, 0, 0, 7].into())),
        (4, Reflection::None),
    ] {
        cluster.annotate(node, |routing| routing.reflection = reflection);
    }
    cluster.settle();
    cluster.all_pods_reach_each_other();
    let before = [1, 3, 4].map(|node| cluster.routes(node));
    cluster.lie(2, &lies);
    cluster.settle();
    assert_eq!([1, 3, 4].map(|node| cluster.routes(node)), before);
    cluster.lie(1, &[prefix("198.18.7.1/32")]);
    cluster.settle();
    let taken = [3, 4].map(|node| cluster.routes(node).iter().any(|route| route.starts_with("198.18.7.1")));
    assert_eq!(taken, [true, false], "reflectors are believed by their clients");
}
