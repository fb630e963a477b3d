use super::*;
use crate::bgp::message::Attributes;
use crate::bgp::rib::{Best, PeerId, RouteChange};
use crate::kernel::route::{RouteKey, RouteKind, TABLE_MAIN};
use crate::model::{Node, World};
use crate::net::PerFamily;
use crate::router::given::{address, config, host, node, prefix, world};
use crate::router::routes::wall;

mod claims;
mod lost;
mod second;
mod unanswered;

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

/// The same Node, created this many seconds after 1970.
fn created(at: i64, (name, node): (&'static str, Node)) -> (&'static str, Node) {
    (name, Node { created: at, ..node })
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

/// Returns whether packets to an address are refused in the main table where no route leads to it.
fn is_walled(plan: &Plan, text: &str) -> bool {
    let address = address(text);
    let mut keys = plan.routes().routes().keys();
    keys.any(|key| *key == wall(key.destination) && key.destination.contains(&address))
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
    // Whichever name comes first: nobody knows whose pods they are, so they are nobody's. The address stays that of the node whose first one it is.
    for name in ["node-0", "node-9"] {
        let plan = plan_of(&ENCRYPTED, &[own(), second(), greedy(name)]);
        let of_second = "2 192.0.2.2:51820 192.0.2.2/32 2001:db8::2/128 fd00:10:244:2::/64";
        assert_eq!(peers(&plan), [of_second, "9 192.0.2.9:51820 10.244.9.0/24 192.0.2.9/32"], "{name}");
        assert_eq!(main_route(&plan, "10.244.2.0/24"), None, "{name}");
        assert!(walls(&plan).contains(&"10.244.2.0/24 Unreachable".to_owned()), "{name}");
    }
}

/// The next hops of the route to a prefix in the main table, the wall aside: links and gateways.
fn main_route(plan: &Plan, destination: &str) -> Option<Vec<String>> {
    let route = plan.routes().routes().get(&RouteKey::new(TABLE_MAIN, prefix(destination)))?;
    let hop = |hop: &crate::kernel::route::NextHop| {
        let gateway = hop.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        format!("{}{gateway}", hop.link)
    };
    Some(route.next_hops.iter().map(hop).collect())
}

fn learn(plan: &mut Plan, text: &str, hops: &[&str]) -> RouterChanges {
    let next_hops: Vec<IpAddr> = hops.iter().map(|hop| address(hop)).collect();
    let best =
        next_hops.first().map(|first| Best { source: PeerId(7), attributes: Arc::new(Attributes::local(*first)) });
    plan.learn(&[RouteChange { prefix: prefix(text), best, next_hops }])
}

fn through_tunnel() -> Option<Vec<String>> {
    Some(vec![WIREGUARD.to_owned()])
}

#[test]
fn pods_of_a_node_take_no_way_but_a_tunnel_to_that_node_whoever_announces_them() {
    let six = ("node-6", with_key(6, "192.0.2.6 2001:db8::6", "10.244.6.0/24"));
    for (range, part, router, other, right) in [
        ("10.244.2.0/24", "10.244.2.128/25", "192.0.2.254", "192.0.2.6", "192.0.2.2"),
        ("fd00:10:244:2::/64", "fd00:10:244:2:8000::/65", "2001:db8::fe", "2001:db8::6", "2001:db8::2"),
    ] {
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second(), six.clone()]);
        for wrong in [&[router][..], &[other], &[other, router]] {
            for destination in [range, part] {
                learn(&mut plan, destination, wrong);
                assert_eq!(main_route(&plan, destination), None, "{destination} by {wrong:?}");
            }
            let of_second = "2 192.0.2.2:51820 10.244.2.0/24 192.0.2.2/32 2001:db8::2/128 fd00:10:244:2::/64";
            assert_eq!(
                peers(&plan),
                [of_second, "6 192.0.2.6:51820 10.244.6.0/24 192.0.2.6/32 2001:db8::6/128"],
                "{wrong:?}"
            );
        }
        assert_eq!(plan.ways_to(prefix(range))[1].1, Some(crate::router::routes::NoWay::NotItsNode));
        learn(&mut plan, range, &[router, other, right]);
        assert_eq!(main_route(&plan, range), through_tunnel());
        assert!(walls(&plan).contains(&format!("{range} Unreachable")));
        // On one link packets are not encrypted with `subnet`, and go to nobody else either.
        let mut plan = plan_of(&ENCRYPTED[..1], &[own(), second(), six.clone()]);
        learn(&mut plan, range, &[router, other]);
        assert_eq!(main_route(&plan, range), None);
        learn(&mut plan, range, &[router, other, right]);
        assert_eq!(main_route(&plan, range), Some(vec![format!("eth0 via {right}")]));
    }
}

#[test]
fn a_route_around_what_nodes_have_leads_through_no_tunnel_and_to_nobody_by_a_tunnel() {
    let without = ("node-5", with_key(0, "10.9.0.5", "10.245.5.0/24"));
    let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second(), third(), without]);
    let before = peers(&plan);
    // Around pods of a node without a key, around an address of it, around our own pods, an address itself.
    for around in ["10.245.0.0/16", "10.9.0.0/24", "10.244.0.0/16", "fd00:10:244::/48", "10.9.0.5/32"] {
        learn(&mut plan, around, &["10.0.0.3"]);
        learn(&mut plan, around, &["192.0.2.2"]);
        assert_eq!((main_route(&plan, around), peers(&plan)), (None, before.clone()), "{around}");
    }
    // A router on the link may have what is around them.
    learn(&mut plan, "10.244.0.0/16", &["192.0.2.254"]);
    assert_eq!(main_route(&plan, "10.244.0.0/16"), Some(vec!["eth0 via 192.0.2.254".to_owned()]));
}

#[test]
fn what_a_tunnel_led_to_is_refused_and_never_plain_once_another_node_has_something_inside() {
    for (network, joins, refused) in [
        ("198.51.100.0/24", with_key(7, "10.9.0.7 198.51.100.7", "10.245.7.0/24"), "198.51.100.128/25"),
        ("198.51.100.0/24", with_key(7, "10.9.0.7", "198.51.100.0/25"), "198.51.100.0/24"),
        ("2001:db8:7::/48", with_key(7, "10.9.0.7 2001:db8:7::7", "10.245.7.0/24"), "2001:db8:7:8000::/49"),
    ] {
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second(), third()]);
        let next_hop = if network.contains(':') { "2001:db8::2" } else { "192.0.2.2" };
        learn(&mut plan, network, &[next_hop]);
        assert_eq!(main_route(&plan, network), through_tunnel());
        plan.update(&with(&[own(), second(), third(), ("node-7", joins)]));
        assert_eq!(main_route(&plan, network), None, "{network}");
        assert!(walls(&plan).contains(&format!("{refused} Unreachable")), "{network}: {:?}", walls(&plan));
    }
}

#[test]
fn an_address_of_a_node_in_its_own_range_makes_no_hole_in_the_wall_behind_the_route() {
    for (addresses, range, next_hop) in [
        ("192.0.2.5 10.244.5.1", "10.244.5.0/24", "192.0.2.5"),
        ("192.0.2.5 2001:db8::5 fd00:10:244:5::1", "fd00:10:244:5::/64", "2001:db8::5"),
    ] {
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), ("node-5", with_key(5, addresses, range))]);
        learn(&mut plan, range, &[next_hop]);
        assert_eq!(main_route(&plan, range), through_tunnel(), "{range}");
        assert_eq!(walls(&plan), [format!("{range} Unreachable")]);
    }
}

#[test]
fn what_was_learned_of_a_node_that_goes_or_moves_never_turns_plain_and_its_walls_go_last() {
    let nodes = [own(), second(), third()];
    for (then, has_its_range) in [
        (vec![own(), third()], false),
        (vec![own(), ("node-2", with_key(2, "192.0.2.7 2001:db8::7", "10.244.2.0/24")), third()], true),
    ] {
        let mut plan = plan_of(&ENCRYPTED[..2], &nodes);
        for (range, next_hop) in
            [("10.244.2.0/24", "192.0.2.2"), ("198.51.100.0/24", "192.0.2.2"), ("fd00:10:244:2::/64", "2001:db8::2")]
        {
            learn(&mut plan, range, &[next_hop]);
            assert_eq!(main_route(&plan, range), through_tunnel());
        }
        let changed = plan.update(&with(&then));
        for range in ["10.244.2.0/24", "198.51.100.0/24", "fd00:10:244:2::/64"] {
            assert_eq!(main_route(&plan, range), None, "{range}");
            assert!(walls(&plan).contains(&format!("{range} Unreachable")), "{range}: {:?}", walls(&plan));
            assert!(!changed.withdrawn.contains(&wall(prefix(range))));
        }
        assert_eq!(plan.ways_to(prefix("198.51.100.0/24"))[0].1, Some(crate::router::routes::NoWay::NodeIsGone));
        // The speaker has heard of it.
        for range in ["10.244.2.0/24", "198.51.100.0/24", "fd00:10:244:2::/64"] {
            learn(&mut plan, range, &[]);
        }
        let left: Vec<&str> = if has_its_range { vec!["10.244.2.0/24 Unreachable"] } else { vec![] };
        let left: Vec<String> = left.into_iter().chain(["10.244.3.0/24 Unreachable"]).map(str::to_owned).collect();
        assert_eq!(walls(&plan), left);
        // A router that is where the node was may have what is nobody's.
        learn(&mut plan, "198.51.100.0/24", &["192.0.2.2"]);
        assert_eq!(main_route(&plan, "198.51.100.0/24"), Some(vec!["eth0 via 192.0.2.2".to_owned()]));
    }
}

/// The routes in the table of pods, each with its kind.
fn of_pods(plan: &Plan) -> Vec<String> {
    let routes = plan.routes().routes().iter().filter(|(key, _)| key.table == crate::router::names::TUNNEL_TABLE);
    routes
        .map(|(key, route)| {
            let link = route.next_hops.iter().map(|hop| hop.link.to_string()).collect::<String>();
            format!("{} {}{link}", key.destination, if route.next_hops.is_empty() { "refused" } else { "" })
        })
        .collect()
}

#[test]
fn packets_of_pods_to_every_address_of_other_nodes_are_encrypted_or_refused_whether_or_not_a_route_uses_the_tunnel() {
    let several = ("node-4", with_key(0, "192.0.2.4 10.0.0.4 2001:db8:4::4", ""));
    // Our own address, one of our pods', and one of this host that is not in its Node.
    let odd = ("node-5", with_key(5, "192.0.2.1 10.244.1.9 172.16.0.1", ""));
    let nodes = [own(), several, odd];
    let mut world = with(&nodes);
    world.host = Arc::new(host(&format!("{HOST} 172.16.0.1/24")));
    let both = |address: &str| [format!("{address} {WIREGUARD}"), format!("{address} refused")];
    for source in ["--node-routes=api", "--node-routes=bgp"] {
        let mut plan =
            Plan::new(Arc::new(config(&[ENCRYPTED[0], ENCRYPTED[1], source])), PerFamily { v4: true, v6: true });
        plan.update(&world);
        assert_eq!(of_pods(&plan), ["10.0.0.4/32", "192.0.2.4/32", "2001:db8:4::4/128"].map(both).concat(), "{source}");
        let changed = plan.update(&with(&[own()]));
        assert_eq!((of_pods(&plan), changed.withdrawn.len()), (vec![], 6));
        // What is on our link is not encrypted with `subnet`.
        let mut plan = Plan::new(Arc::new(config(&[ENCRYPTED[0], source])), PerFamily { v4: true, v6: true });
        plan.update(&world);
        assert_eq!(of_pods(&plan), ["10.0.0.4/32", "2001:db8:4::4/128"].map(both).concat(), "{source}");
    }
}

#[test]
fn ranges_that_overlap_are_nobodys_whichever_is_wider_and_both_are_refused() {
    let narrow = |ranges| ("node-7", with_key(7, "192.0.2.7 2001:db8::7", ranges));
    for source in ["--node-routes=api", "--node-routes=bgp"] {
        for (others, ours_too) in [
            ("10.244.2.128/25 fd00:10:244:2:8000::/65", false),
            ("10.244.2.0/23 fd00:10:244:2::/63", false),
            // Around ours as well.
            ("10.244.0.0/16 fd00:10:244::/48", true),
        ] {
            let words = [ENCRYPTED[0], ENCRYPTED[1], source];
            let mut plan = plan_of(&words, &[own(), second(), narrow(others)]);
            let ranges: Vec<&str> = others.split(' ').chain(["10.244.2.0/24", "fd00:10:244:2::/64"]).collect();
            for range in &ranges {
                learn(&mut plan, range, &["192.0.2.2", "192.0.2.7"]);
                assert_eq!(main_route(&plan, range), None, "{range} {source}");
                assert!(walls(&plan).contains(&format!("{range} Unreachable")), "{range}: {:?}", walls(&plan));
            }
            let alone =
                ["2 192.0.2.2:51820 192.0.2.2/32 2001:db8::2/128", "7 192.0.2.7:51820 192.0.2.7/32 2001:db8::7/128"];
            assert_eq!(peers(&plan), alone, "{others} {source}");
            // With a range of its own each has its pods again.
            let changed = plan.update(&with(&[own(), second(), narrow("10.244.7.0/24")]));
            assert_eq!(changed.wireguard_peers.len(), 2, "{ours_too}");
            assert!(peers(&plan)[0].contains("10.244.2.0/24 ") && peers(&plan)[0].contains("fd00:10:244:2::/64"));
            learn(&mut plan, "10.244.2.0/24", &["192.0.2.2"]);
            assert_eq!(main_route(&plan, "10.244.2.0/24"), through_tunnel());
            // One machine under two names may have both.
            let same = ("node-7", with_key(2, "192.0.2.2 2001:db8::2", others));
            let plan = plan_of(&words, &[own(), second(), same]);
            assert!(peers(&plan)[0].contains("10.244.2.0/24 "), "{:?}", peers(&plan));
        }
    }
    // Without encryption the longest prefix has the packets, as it always was.
    let mut plan = plan_of(&["--overlay-type=full"], &[own(), second(), narrow("10.244.2.128/25")]);
    learn(&mut plan, "10.244.2.0/24", &["192.0.2.2"]);
    assert!(main_route(&plan, "10.244.2.0/24").is_some());
}

#[test]
fn a_range_keeps_its_wall_whatever_another_node_says_and_a_mistake_gets_none() {
    let rejecting = || {
        let (name, node) = own();
        (name, crate::router::given::with(node, |routing| routing.import_reject = vec![prefix("10.244.2.0/24")]))
    };
    let six = |addresses, ranges| ("node-6", with_key(6, addresses, ranges));
    for (nodes, range, inside, expected) in [
        // An address in it that another node claims.
        ([own(), second(), six("192.0.2.6 10.244.2.9", "")], "10.244.2.0/24", "10.244.2.77", true),
        ([own(), second(), six("192.0.2.6 fd00:10:244:2::9", "")], "fd00:10:244:2::/64", "fd00:10:244:2::77", true),
        ([rejecting(), second(), six("192.0.2.6", "")], "10.244.2.0/24", "10.244.2.77", true),
        // Ours, a part of a default route, and our address.
        ([own(), second(), six("192.0.2.6", "10.244.1.0/24")], "10.244.1.0/24", "10.244.1.77", false),
        ([own(), second(), six("192.0.2.6", "0.0.0.0/1")], "0.0.0.0/1", "99.0.0.1", false),
        ([own(), second(), six("192.0.2.6", "192.0.2.0/30")], "192.0.2.0/30", "192.0.2.3", false),
        ([own(), third(), six("10.0.0.6", "10.0.0.0/24")], "10.0.0.0/24", "10.0.0.77", true),
    ] {
        let plan = plan_of(&ENCRYPTED, &nodes);
        assert_eq!(is_walled(&plan, inside), expected, "{range}: {:?}", walls(&plan));
        assert_eq!(main_route(&plan, range), None, "{range}");
    }
    let more = ("node-4", with_key(4, "10.0.0.4", ""));
    let plan = plan_of(&ENCRYPTED, &[own(), third(), more, six("10.0.0.6", "10.0.0.0/24")]);
    for (inside, expected) in [("10.0.0.3", false), ("10.0.0.4", false), ("10.0.0.6", false), ("10.0.0.77", true)] {
        assert_eq!(is_walled(&plan, inside), expected, "nodes reach each other: {inside}");
    }
    assert!(peers(&plan)[0].starts_with("3 10.0.0.3:51820 "), "{:?}", peers(&plan));
}

#[test]
fn an_address_in_pods_of_another_node_is_nobodys() {
    let six = ("node-6", with_key(6, "192.0.2.6 10.244.2.9", ""));
    let plan = plan_of(&ENCRYPTED, &[own(), second(), six]);
    assert!(!peers(&plan).concat().contains("10.244.2.9"), "{:?}", peers(&plan));
}

#[test]
fn with_subnet_a_range_has_a_wall_also_where_its_node_has_no_address_of_its_family() {
    for (addresses, range, is_walled) in [
        ("10.0.0.3", "fd00:10:244:3::/64", true),
        ("2001:db8:3::3", "10.244.3.0/24", true),
        ("192.0.2.3", "fd00:10:244:3::/64", false),
        ("", "10.244.3.0/24", true),
    ] {
        for source in ["--node-routes=api", "--node-routes=bgp"] {
            let plan = plan_of(&[ENCRYPTED[0], source], &[own(), ("node-3", with_key(3, addresses, range))]);
            assert_eq!(!walls(&plan).is_empty(), is_walled, "{range} of {addresses}");
        }
    }
}

#[test]
fn what_becomes_an_address_of_this_host_is_no_peers_any_more_also_where_only_a_route_led_to_it() {
    for (own_address, next_hop) in [("203.0.113.7/32", "10.0.0.3"), ("2001:db8:f::7/128", "2001:db8::2")] {
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second(), third()]);
        learn(&mut plan, own_address, &[next_hop]);
        assert!(peers(&plan).concat().contains(own_address), "{:?}", peers(&plan));
        let mut world = with(&[own(), second(), third()]);
        world.host = Arc::new(host(&format!("{HOST} {own_address}")));
        let changed = plan.update(&world);
        assert!(!peers(&plan).concat().contains(own_address), "{:?}", peers(&plan));
        assert_eq!(changed.wireguard_peers.len(), 1);
    }
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
    let changed = plan.set_own_keys(OwnKeys { first: Some(key(5)), ..OwnKeys::default() });
    assert_eq!(changed.wireguard_peers.len(), 1);
    assert_eq!(peers(&plan).len(), 1, "the kernel would leave out a peer with our own key");
}

#[test]
fn who_copies_the_key_of_a_node_gets_nothing_of_what_is_sent_to_it_unless_it_is_older() {
    for (name, addresses, copies_at, endpoint) in [
        ("node-0", "192.0.2.9 2001:db8::9", 20, "192.0.2.2:51820"),
        ("node-9", "192.0.2.9 2001:db8::9", 20, "192.0.2.2:51820"),
        // A Node without an address says nothing of where its machine is, however old it is.
        ("node-0", "", 1, "192.0.2.2:51820"),
        // The present Node of a machine that was made anew under another name has the same address.
        ("node-9", "192.0.2.2 2001:db8::2", 20, "192.0.2.2:51820"),
        // Nobody can tell an older copy from a machine with two Nodes.
        ("node-0", "192.0.2.9 2001:db8::9", 1, "192.0.2.9:51820"),
    ] {
        let copy = created(copies_at, (name, with_key(2, addresses, "10.244.9.0/24")));
        let plan = plan_of(&ENCRYPTED, &[own(), created(10, second()), copy]);
        assert_eq!(peers(&plan).len(), 1, "{:?}", peers(&plan));
        assert!(peers(&plan)[0].starts_with(&format!("2 {endpoint} ")), "{name} {copies_at}: {:?}", peers(&plan));
    }
}

#[test]
fn what_a_route_leads_to_through_a_tunnel_goes_to_its_node() {
    let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second(), third()]);
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
    let main = plan.routes().routes().iter().filter(|(key, _)| key.table == TABLE_MAIN);
    let kinds = main.filter(|(_, route)| route.kind == RouteKind::Unreachable);
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
