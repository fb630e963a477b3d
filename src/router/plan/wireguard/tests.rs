use super::*;
use crate::bgp::message::Attributes;
use crate::bgp::rib::{Best, PeerId, RouteChange};
use crate::kernel::route::{RouteKey, RouteKind, TABLE_MAIN};
use crate::model::{Node, World};
use crate::net::PerFamily;
use crate::router::given::{address, config, host, node, prefix, world};
use crate::router::routes::wall;

const HOST: &str = "192.0.2.1/24 2001:db8::1/64";
const ENCRYPTED: [&str; 3] = ["--overlay-encap=wireguard", "--overlay-type=full", "--node-routes=api"];

fn key(number: u8) -> PublicKey {
    PublicKey::new(&[number; 32]).expect("a key")
}

/// A node with the key of this number; none with 0.
fn with_key(number: u8, addresses: &str, ranges: &str) -> Node {
    Node { wireguard_key: PublicKey::new(&[number; 32]), ..node(addresses, ranges) }
}

fn own() -> (&'static str, Node) {
    ("node-1", with_key(1, "192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64"))
}

fn second() -> (&'static str, Node) {
    ("node-2", with_key(2, "192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64"))
}

fn third() -> (&'static str, Node) {
    ("node-3", with_key(3, "10.0.0.3", "10.244.3.0/24"))
}

fn with(nodes: &[(&str, Node)]) -> World {
    world(host(HOST), nodes)
}

fn plan_of(words: &[&str], nodes: &[(&str, Node)]) -> Plan {
    let mut plan = Plan::new(Arc::new(config(words)), PerFamily { v4: true, v6: true });
    plan.update(&with(nodes));
    plan
}

/// The peers, each as the first byte of its key, its endpoint and what it may use.
fn peers(plan: &Plan) -> Vec<String> {
    let line = |(key, peer): (&PeerKey, &Peer)| {
        let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
        let endpoint = peer.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
        format!("{} {endpoint} {}", key.key.bytes()[0], allowed.join(" "))
    };
    plan.desired().wireguard_peers.iter().map(line).collect()
}

fn walls(plan: &Plan) -> Vec<String> {
    let routes = plan.routes().routes().iter();
    let walls = routes.filter(|(key, _)| **key == wall(key.destination));
    walls.map(|(key, route)| format!("{} {:?}", key.destination, route.kind)).collect()
}

#[test]
fn each_node_with_a_key_is_a_peer_with_its_pods_and_addresses_and_the_same_endpoint_at_both_ends() {
    let six = ("node-4", with_key(4, "2001:db8::4", "fd00:10:244:4::/64"));
    let without = ("node-5", with_key(0, "192.0.2.5", "10.244.5.0/24"));
    let plan = plan_of(&ENCRYPTED, &[own(), second(), third(), six, without]);
    assert_eq!(
        peers(&plan),
        [
            "2 192.0.2.2:51820 10.244.2.0/24 192.0.2.2/32 2001:db8::2/128 fd00:10:244:2::/64",
            "3 10.0.0.3:51820 10.0.0.3/32 10.244.3.0/24",
            "4 [2001:db8::4]:51820 2001:db8::4/128 fd00:10:244:4::/64",
        ]
    );
    for nothing in [&["--node-routes=api"][..], &["--overlay-encap=vxlan"]] {
        let plan = plan_of(nothing, &[own(), second()]);
        assert_eq!((peers(&plan), walls(&plan)), (vec![], vec![]), "{nothing:?}");
    }
}

#[test]
fn nobody_gets_what_is_another_nodes_or_ours() {
    // It claims our pods, our address, another node's pods and address; and has its own range.
    let greedy = |name| {
        (name, with_key(9, "192.0.2.9 192.0.2.1 192.0.2.2", "10.244.1.0/24 10.244.2.0/24 10.244.9.0/24 0.0.0.0/0"))
    };
    let plan = plan_of(&ENCRYPTED, &[own(), second(), greedy("node-9")]);
    let of_second = "2 192.0.2.2:51820 10.244.2.0/24 192.0.2.2/32 2001:db8::2/128 fd00:10:244:2::/64";
    assert_eq!(peers(&plan), [of_second, "9 192.0.2.9:51820 10.244.9.0/24 192.0.2.9/32"]);
}

#[test]
fn a_key_is_one_nodes_alone_and_never_ours() {
    let copied = |number| ("node-4", with_key(number, "192.0.2.4", "10.244.4.0/24"));
    let mut plan = plan_of(&ENCRYPTED, &[own(), second(), copied(2)]);
    assert_eq!(peers(&plan).len(), 1, "{:?}", peers(&plan));
    assert!(peers(&plan)[0].starts_with("2 192.0.2.2:51820"));
    let said: Vec<String> = plan.desired().problems.iter().map(ToString::to_string).collect();
    assert!(
        said.iter().any(|text| text.contains("Node node-4: its WireGuard key is that of Node node-2 too")),
        "{said:?}"
    );
    // The first one goes, or gets another key.
    plan.update(&with(&[own(), copied(2)]));
    assert_eq!(peers(&plan), ["2 192.0.2.4:51820 10.244.4.0/24 192.0.2.4/32"]);
    plan.update(&with(&[own(), second(), copied(5)]));
    assert_eq!(peers(&plan).len(), 2);
    let changed = plan.set_own_key(Some(key(5)));
    assert_eq!(changed.wireguard_peers.len(), 1);
    assert_eq!(peers(&plan).len(), 1, "the kernel would leave out a peer with our own key");
}

#[test]
fn what_a_route_leads_to_through_a_tunnel_goes_to_its_node() {
    let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second(), third()]);
    let learn = |plan: &mut Plan, text: &str, hops: &[&str]| {
        let next_hops: Vec<IpAddr> = hops.iter().map(|hop| address(hop)).collect();
        let best =
            next_hops.first().map(|first| Best { source: PeerId(7), attributes: Arc::new(Attributes::local(*first)) });
        plan.learn(&[RouteChange { prefix: prefix(text), best, next_hops }])
    };
    let changed = learn(&mut plan, "198.51.100.0/24", &["10.0.0.3", "192.0.2.2"]);
    assert_eq!(changed.wireguard_peers.len(), 1);
    assert_eq!(peers(&plan)[1], "3 10.0.0.3:51820 10.0.0.3/32 10.244.3.0/24 198.51.100.0/24");
    let route = plan.routes().routes().get(&RouteKey::new(TABLE_MAIN, prefix("198.51.100.0/24"))).cloned();
    let hops = route.expect("it is there").next_hops.len();
    assert_eq!(hops, 1, "one device: the range belongs to one node");
    learn(&mut plan, "198.51.100.0/24", &["192.0.2.2"]);
    assert!(peers(&plan)[0].contains("198.51.100.0/24") && !peers(&plan)[1].contains("198.51.100.0/24"));
    learn(&mut plan, "198.51.100.0/24", &[]);
    assert!(!peers(&plan).concat().contains("198.51.100.0/24"));
    // Two nodes have a range: the first by name, until a route says otherwise.
    let fourth = ("node-4", with_key(4, "192.0.2.4", "10.244.3.0/24"));
    plan.update(&with(&[own(), second(), third(), fourth]));
    assert!(peers(&plan)[1].contains("10.244.3.0/24") && !peers(&plan)[2].contains("10.244.3.0/24"));
    learn(&mut plan, "10.244.3.0/24", &["192.0.2.4"]);
    assert!(!peers(&plan)[1].contains("10.244.3.0/24") && peers(&plan)[2].contains("10.244.3.0/24"));
}

#[test]
fn behind_each_range_that_a_tunnel_leads_to_there_is_a_wall_whether_or_not_there_is_a_route() {
    let third = ("node-3", with_key(0, "10.0.0.3", "10.244.3.0/24"));
    let all = ["10.244.2.0/24 Unreachable", "10.244.3.0/24 Unreachable", "fd00:10:244:2::/64 Unreachable"];
    let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second(), third.clone()]);
    assert_eq!(walls(&plan), all, "nothing was learned yet");
    plan.update(&with(&[own(), second()]));
    assert_eq!(walls(&plan), [all[0], all[2]]);
    // What is on our link goes there in the clear, as everything between nodes of one subnet.
    let plan = plan_of(&ENCRYPTED[..1], &[own(), second(), third]);
    assert_eq!(walls(&plan), [all[1]]);
    let kinds = plan.routes().routes().iter().filter(|(_, route)| route.kind == RouteKind::Unreachable);
    assert_eq!(kinds.count(), 1);
}

#[test]
fn a_node_without_a_key_is_not_reached_and_named() {
    use crate::router::plan::Circumstances;
    use std::time::Instant;
    let third = |number| ("node-3", with_key(number, "10.0.0.3", "10.244.3.0/24"));
    let mut plan = plan_of(&ENCRYPTED, &[own(), second(), third(0)]);
    let now = Instant::now();
    let around = Circumstances { now, since: now, nodes_are_read: true };
    let unreached = plan.unreached(around, |_, _| true);
    assert_eq!(unreached.count, 1);
    let said = unreached.missing.expect("it is named");
    assert!(
        said.contains("10.244.3.0/24 of Node node-3 (its Node has no kube-router.io/wireguard-public-key"),
        "{said}"
    );
    plan.update(&with(&[own(), second(), third(3)]));
    assert_eq!(plan.unreached(around, |_, _| true).count, 0);
}

#[test]
fn while_our_own_node_is_gone_nothing_is_withdrawn() {
    let mut plan = plan_of(&ENCRYPTED, &[own(), second(), third()]);
    let changed = plan.update(&with(&[second(), third()]));
    assert!(changed.withdrawn.is_empty(), "{:?}", changed.withdrawn);
    plan.update(&with(&[own(), second(), third()]));
    assert_eq!((peers(&plan).len(), walls(&plan).len()), (2, 3));
}
