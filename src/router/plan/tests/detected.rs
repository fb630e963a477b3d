//! Nodes with addresses that were detected (`--node-ip-autodetect`): their InternalIPs stay theirs.

use super::*;
use crate::kernel::route::TABLE_MAIN;
use crate::net::PublicKey;
use crate::router::given::detected;
use crate::router::names::TUNNEL_TABLE;

/// InternalIP of node-2, the address that it detected, and a pod range of it; of each family.
const FAMILIES: [(&str, &str, &str); 2] =
    [("192.0.2.2", "10.0.0.2", "10.244.2.0/24"), ("2001:db8::2", "2001:db8:f::2", "fd00:10:244:2::/64")];
const ENCAPSULATIONS: [&str; 4] = ["ipip", "fou", "vxlan", "wireguard"];

/// A node made this many seconds after 1970, whose key is this number as well.
fn made(at: u8, node: Node) -> Node {
    Node { created: at.into(), wireguard_key: PublicKey::new(&[at; 32]), ..node }
}

fn own() -> (&'static str, Node) {
    let own = node("192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64");
    ("node-1", made(1, detected(own, "10.0.0.1 2001:db8:f::1")))
}

fn with_nodes(nodes: &[(&str, Node)]) -> World {
    world(host("192.0.2.1/24 2001:db8::1/64 10.0.0.1/24 2001:db8:f::1/64"), nodes)
}

fn full(encapsulation: &str) -> [String; 3] {
    ["--node-routes=api".to_owned(), "--overlay-type=full".to_owned(), format!("--overlay-encap={encapsulation}")]
}

fn planned_with(words: &[String], world: &World) -> Plan {
    planned(&words.iter().map(String::as_str).collect::<Vec<_>>(), world)
}

/// Destinations of routes of pods to nodes, each with its way; walls aside.
fn of_pods(plan: &Plan) -> Vec<String> {
    let routes = plan.routes().routes().iter();
    let of_pods = routes.filter(|(key, _)| **key == RouteKey::new(TUNNEL_TABLE, key.destination));
    of_pods.map(|(key, route)| format!("{} {}", key.destination.addr(), route.next_hops[0].link)).collect()
}

/// The ranges that packets may have which a peer with this key sends, or is sent.
fn allowed(plan: &Plan, key: u8) -> Vec<String> {
    let peers = plan.desired().wireguard_peers.iter();
    let its = peers.filter(|(of, _)| of.key.bytes()[0] == key);
    its.flat_map(|(_, peer)| peer.allowed.iter()).map(ToString::to_string).collect()
}

#[test]
fn an_internal_ip_beside_a_detected_address_is_taken_by_no_younger_node() {
    for (internal, found, range) in FAMILIES {
        let second = ("node-2", made(2, detected(node(internal, range), found)));
        // By its status, or by its annotation.
        let by_status = made(9, node(internal, "10.244.9.0/24 fd00:10:244:9::/64"));
        let by_annotation =
            made(9, detected(node("192.0.2.9 2001:db8::9", "10.244.9.0/24 fd00:10:244:9::/64"), internal));
        for younger in [by_status, by_annotation] {
            let world = with_nodes(&[own(), second.clone(), ("node-9", younger)]);
            for encapsulation in ENCAPSULATIONS {
                let plan = planned_with(&full(encapsulation), &world);
                let host = Family::host_prefix(address(internal)).to_string();
                assert!(!allowed(&plan, 9).contains(&host), "{encapsulation}: {:?}", allowed(&plan, 9));
                let tunnels = plan.routes().tunnels();
                // What is sent to its pods goes where it says, and nothing that is sent to the other one's host.
                let led: Vec<String> =
                    of_pods(&plan).into_iter().filter(|way| way.starts_with(&format!("{internal} "))).collect();
                let to_found = |way: &String| {
                    let link = way.split(' ').next_back().unwrap_or_default();
                    tunnels.iter().all(|(name, tunnel)| name.0 != link || tunnel.remote == address(found))
                };
                assert!(encapsulation == "wireguard" || led.iter().all(to_found), "{encapsulation}: {led:?}");
                let said = format!("Node node-9: its address {internal} is that of Node node-2 too, which comes first");
                assert_eq!(
                    problems(&plan).iter().filter(|problem| **problem == said).count(),
                    1,
                    "{:?}",
                    problems(&plan)
                );
                assert!(!problems(&plan).iter().any(|problem| problem.starts_with("Node node-2")));
            }
        }
    }
}

#[test]
fn an_older_node_that_names_the_address_of_another_as_its_internal_ip_gets_no_packet_for_that_one() {
    for (victim, found, range) in FAMILIES {
        let older = made(1, detected(node(victim, "10.244.9.0/24 fd00:10:244:9::/64"), found));
        let second = made(5, node(victim, range));
        let orders = [
            vec![own(), ("node-9", older.clone()), ("node-2", second.clone())],
            vec![own(), ("node-2", second), ("node-9", older)],
        ];
        for nodes in orders {
            for encapsulation in ["ipip", "fou", "vxlan"] {
                let plan = planned_with(&full(encapsulation), &with_nodes(&nodes));
                let key = RouteKey::new(TABLE_MAIN, range.parse().expect("a prefix"));
                let route = plan.routes().routes().get(&key).expect("its pods are reached");
                let tunnels = plan.routes().tunnels();
                match tunnels.get(&route.next_hops[0].link) {
                    Some(tunnel) => assert_eq!(tunnel.remote, address(victim), "{encapsulation}"),
                    None => assert!(plan.routes().entries().keys().any(|entry| entry.remote == address(victim))),
                }
                let led = of_pods(&plan);
                assert!(!led.iter().any(|way| way.starts_with(&format!("{victim} "))), "{encapsulation}: {led:?}");
            }
        }
    }
}

#[test]
fn where_all_nodes_have_one_internal_ip_the_detected_addresses_work_with_all_encapsulations() {
    let one = "10.0.2.15 2001:db8:a::15";
    let of = |number: u8| {
        let ranges = format!("10.244.{number}.0/24 fd00:10:244:{number}::/64");
        let found = format!("10.0.0.{number} 2001:db8:f::{number}");
        (format!("node-{number}"), made(number, detected(node(one, &ranges), &found)))
    };
    let nodes: Vec<(String, Node)> = (1..=4).map(of).collect();
    let nodes: Vec<(&str, Node)> = nodes.iter().map(|(name, node)| (name.as_str(), node.clone())).collect();
    let world = world(host("10.0.2.15/24 2001:db8:a::15/64 10.0.0.1/24 2001:db8:f::1/64"), &nodes);
    for encapsulation in ENCAPSULATIONS {
        let plan = planned_with(&full(encapsulation), &world);
        assert_eq!(problems(&plan), NOTHING, "{encapsulation}");
        for number in 2..=4 {
            for (range, found) in [
                (format!("10.244.{number}.0/24"), format!("10.0.0.{number}")),
                (format!("fd00:10:244:{number}::/64"), format!("2001:db8:f::{number}")),
            ] {
                assert_eq!(plan.routes().tunnel_to(prefix(&range)), Some(address(&found)), "{encapsulation}");
            }
        }
        let to_nodes = of_pods(&plan);
        assert_eq!(to_nodes.len(), 6, "{encapsulation}: {to_nodes:?}");
        assert!(!to_nodes.iter().any(|line| line.contains("15 ")), "{encapsulation}: {to_nodes:?}");
        if encapsulation == "wireguard" {
            let its = ["10.0.0.2/32", "10.244.2.0/24", "2001:db8:f::2/128", "fd00:10:244:2::/64"];
            assert_eq!(allowed(&plan, 2), its);
        }
    }
}

/// A host with one link for each of these lists of addresses: `eth0`, `eth1` and so on.
fn host_with_links(links: &[&str]) -> crate::model::Host {
    let mut all = host("");
    for (number, addresses) in links.iter().enumerate() {
        let mut of_link = host(addresses);
        let name = format!("eth{number}");
        of_link.addresses.iter_mut().for_each(|one| one.link = name.as_str().into());
        of_link.on_link.iter_mut().for_each(|one| one.link = name.as_str().into());
        all.addresses.extend(of_link.addresses);
        all.on_link.extend(of_link.on_link);
    }
    all.on_link.sort();
    all
}

/// Whether import policy lets a route through that a neighbour announces with itself as the next hop.
fn is_taken(plan: &Plan, route: &str, neighbour: &str) -> bool {
    let import = &plan.desired().policies.as_ref().expect("there are policies").import;
    let from = address(neighbour);
    let applicable = import.applicable(Some(from));
    let outcome = import.outcome(&applicable, prefix(route), &Attributes::local(from), None);
    outcome != crate::bgp::policy::Outcome::Rejected
}

#[test]
fn nothing_in_the_network_of_the_internal_ip_is_taken_from_a_node() {
    let links = ["192.0.2.1/24 2001:db8::1/64", "10.0.0.1/24 2001:db8:f::1/64"];
    let second = (
        "node-2",
        detected(node("192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64"), "10.0.0.2 2001:db8:f::2"),
    );
    let plan = planned(&[], &world(host_with_links(&links), &[own(), second]));
    for (neighbour, its_pods, others) in [
        ("10.0.0.2", "10.244.2.0/24", ["192.0.2.254/32", "192.0.2.128/25", "192.0.2.0/24", "10.0.0.254/32"]),
        (
            "10.0.0.2",
            "fd00:10:244:2::/64",
            ["2001:db8::fe/128", "2001:db8::/80", "2001:db8::/64", "2001:db8:f::fe/128"],
        ),
    ] {
        assert!(is_taken(&plan, its_pods, neighbour));
        let taken: Vec<&str> = others.into_iter().filter(|route| is_taken(&plan, route, neighbour)).collect();
        assert_eq!(taken, NOTHING, "a router, the API server's address, or the network of a link of this host");
    }
}

/// The way of our pods to this address of a node; `None` where they have no route of their own there.
fn way_of_pods(plan: &Plan, to: &str) -> Option<crate::kernel::route::NextHop> {
    let key = RouteKey::new(TUNNEL_TABLE, Family::host_prefix(address(to)));
    plan.routes().routes().get(&key).map(|route| route.next_hops[0].clone())
}

#[test]
fn packets_of_pods_to_the_internal_ip_of_a_node_take_the_tunnel_to_its_detected_address() {
    for (internal, found, range) in FAMILIES {
        let nodes =
            |second: Node, more: &[(&'static str, Node)]| with_nodes(&[&[own(), ("node-2", second)], more].concat());
        let second = || made(2, detected(node(internal, range), found));
        for encapsulation in &ENCAPSULATIONS[..3] {
            let words = full(encapsulation);
            let mut plan = planned_with(&words, &nodes(second(), &[]));
            let tunnel = way_of_pods(&plan, found);
            assert!(
                tunnel.is_some() && way_of_pods(&plan, internal) == tunnel,
                "{encapsulation}: {:?}",
                of_pods(&plan)
            );
            let mut then = |world: &World, expected: bool| {
                plan.update(world);
                let fresh = planned_with(&words, world);
                assert_eq!(of_pods(&plan), of_pods(&fresh), "history does not matter");
                let tunnel = way_of_pods(&plan, found).filter(|_| expected);
                assert_eq!((way_of_pods(&plan, internal), tunnel.is_some()), (tunnel, expected), "{encapsulation}");
            };
            // Another Node claims it: whose host it is nobody can say, so it is reached as without tunnels.
            then(&nodes(second(), &[("node-9", made(9, node(internal, "")))]), false);
            then(&nodes(second(), &[]), true);
            then(
                &nodes(made(12, detected(node(internal, range), found)), &[("node-9", made(9, node(internal, "")))]),
                false,
            );
            then(&nodes(second(), &[]), true);
            // It is in another node's pods.
            let around = if internal.contains(':') { "2001:db8::/64" } else { "192.0.2.0/24" };
            then(&nodes(second(), &[("node-3", made(3, node("192.0.2.3 2001:db8::3", around)))]), false);
            then(&nodes(second(), &[]), true);
            // It is another one, or none.
            then(&nodes(made(2, detected(node("", range), found)), &[]), false);
            then(&nodes(second(), &[]), true);
            plan.update(&with_nodes(&[own()]));
            assert_eq!(of_pods(&plan), NOTHING);
        }
    }
}

#[test]
fn a_router_outside_meets_the_nodes_address_of_its_own_network_and_is_told_that_as_next_hop() {
    let links = ["192.0.2.1/24 2001:db8::1/64", "10.0.0.1/24 2001:db8:f::1/64"];
    let at = |text: &str| Some(address(text));
    let (internal, found) = (
        PerFamily { v4: at("192.0.2.1"), v6: at("2001:db8::1") },
        PerFamily { v4: at("10.0.0.1"), v6: at("2001:db8:f::1") },
    );
    let plain = ("node-1", node("192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64"));
    let listening = |plan: &Plan| {
        let speaker = plan.desired().speaker.as_ref().expect("there is one");
        speaker.listen.iter().map(|at| at.ip()).collect::<BTreeSet<IpAddr>>()
    };
    for (router, addresses) in [
        ("192.0.2.254", internal),
        ("2001:db8::fe", internal),
        ("10.0.0.254", found),
        ("2001:db8:f::fe", found),
        // It is on none of our links.
        ("203.0.113.1", found),
        ("2001:db8:113::1", found),
    ] {
        let flag = format!("--peer-router-ips={router}");
        let words = [flag.as_str(), "--peer-router-asns=65001"];
        let plan = planned(&words, &world(host_with_links(&links), &[own()]));
        let wanted = &plan.desired().peers[&address(router)];
        let family = Family::from(address(router));
        assert_eq!((wanted.own, wanted.transport.local), (addresses, *addresses.of(family)), "{router}");
        let at_router = [*addresses.of(family), found.v4, found.v6].into_iter().flatten().collect();
        assert_eq!(listening(&plan), at_router, "{router}");
        assert_eq!(
            announcements(&plan),
            ["10.244.1.0/24 0.0.0.0", "fd00:10:244:1::/64 ::"],
            "what is told follows from the session"
        );
        // Without another address of its own the node is known by its first one, wherever the router is.
        let plan = planned(&words, &world(host_with_links(&links), std::slice::from_ref(&plain)));
        assert_eq!(plan.desired().peers[&address(router)].own, internal, "{router}");
        assert_eq!(announcements(&plan), ["10.244.1.0/24 192.0.2.1", "fd00:10:244:1::/64 2001:db8::1"]);
    }
}

#[test]
fn where_a_node_listens_is_its_own_word_also_with_routers_outside() {
    let links = ["192.0.2.1/24", "10.0.0.1/24"];
    let (name, own) = own();
    let own = with(own, |routing| routing.local_addresses = vec![address("10.0.0.1")]);
    let words = ["--peer-router-ips=192.0.2.254", "--peer-router-asns=65001"];
    let plan = planned(&words, &world(host_with_links(&links), &[(name, own)]));
    let speaker = plan.desired().speaker.as_ref().expect("there is one");
    assert_eq!(speaker.listen.iter().map(|at| at.ip().to_string()).collect::<Vec<_>>(), ["10.0.0.1"]);
}
