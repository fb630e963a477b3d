use std::sync::Arc as Shared;

use super::*;
use crate::bgp::message::Attributes;
use crate::bgp::policy;
use crate::model::{Prepend, Reflection, World};
use crate::net::ExternalPeer;
use crate::router::given::{address, config, host, node, prefix, three_nodes, with, world};
use crate::router::plan::Plan;

const PEERS: [&str; 3] = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001", "--enable-ipv6"];

/// The policies of the first of three nodes.
fn policies(words: &[&str], world: &World) -> Policies {
    let words: Vec<&str> = PEERS.iter().chain(words).copied().collect();
    let mut plan = Plan::new(Shared::new(config(&words)), PerFamily { v4: true, v6: true });
    plan.update(world);
    plan.desired().policies.clone().expect("the cluster is known")
}

fn names(policy: &Policy) -> Vec<&str> {
    policy.statements.iter().map(|statement| statement.name.as_str()).collect()
}

/// Returns the outcome of a route between us and a neighbour.
fn outcome(policy: &Policy, neighbour: &str, text: &str) -> policy::Outcome {
    let applicable = policy.applicable(Some(address(neighbour)));
    policy.outcome(&applicable, prefix(text), &Attributes::local(address("192.0.2.1")), Some(address("192.0.2.1")))
}

fn passes(policy: &Policy, neighbour: &str, text: &str) -> bool {
    outcome(policy, neighbour, text) != policy::Outcome::Rejected
}

const NODE: &str = "192.0.2.2";
const EXTERNAL: &str = "203.0.113.1";
const OWN_PODS: &str = "10.244.1.0/24";

/// Three nodes, and a Service whose cluster address is announced.
fn announcing() -> World {
    let mut world = three_nodes();
    let service = crate::model::Service {
        announce: crate::model::AnnounceAnnotations { cluster_ips: Some(true), ..Default::default() },
        ..crate::model::Service::new(vec![address("10.96.0.9"), address("fd00:10:96::9")], vec![])
    };
    world.cluster.services.insert(crate::model::ObjectName::new("default", "web"), service);
    world
}

#[test]
fn pods_go_to_nodes_and_services_only_to_the_outside() {
    let export = policies(&[], &announcing()).export;
    for (route, inside, outside) in [
        (OWN_PODS, true, true),
        ("fd00:10:244:1::/64", true, true),
        ("10.96.0.9/32", false, true),
        ("fd00:10:96::9/128", false, true),
        ("10.244.2.0/24", false, false),
        ("198.51.100.0/24", false, false),
    ] {
        assert_eq!(passes(&export, NODE, route), inside, "{route}");
        assert_eq!(passes(&export, EXTERNAL, route), outside, "{route}");
    }
    let export = policies(&["--advertise-pod-cidr=false"], &announcing()).export;
    assert!(passes(&export, NODE, OWN_PODS) && !passes(&export, EXTERNAL, OWN_PODS));
    assert!(!passes(&export, "198.51.100.7", OWN_PODS), "nobody else is told anything");
}

#[test]
fn nobody_brings_a_default_route_or_our_own_ranges_also_who_was_added_by_a_client() {
    let import = policies(&[], &announcing()).import;
    for neighbour in [NODE, EXTERNAL, "198.51.100.7", "2001:db8:51::7"] {
        for route in ["0.0.0.0/0", "::/0", OWN_PODS, "fd00:10:244:1::/64", "10.96.0.9/32", "fd00:10:96::9/128"] {
            assert!(!passes(&import, neighbour, route), "{route} from {neighbour}");
        }
        assert_eq!(passes(&import, neighbour, "198.18.7.0/24"), neighbour != NODE, "from {neighbour}");
    }
}

#[test]
fn sets_and_statements_have_the_names_that_users_look_for() {
    let Policies { import, export } = policies(&[], &announcing());
    assert_eq!((import.name.as_str(), import.otherwise), ("kube_router_import1", Decision::Accept));
    assert_eq!((export.name.as_str(), export.otherwise), ("kube_router_export1", Decision::Reject));
    assert_eq!(
        names(&export),
        [
            "podcidrdefinedsetiBGPpeerset",
            "podcidrdefinedsetv6iBGPpeerset",
            "servicevipsdefinedsetexternalpeerset",
            "servicevipsdefinedsetv6externalpeerset",
            "podcidrdefinedsetexternalpeerset",
            "podcidrdefinedsetv6externalpeerset",
        ]
    );
    let known = [
        "gracefulshutdownsetexternalpeerset",
        "servicevipsdefinedsetallpeerset",
        "servicevipsdefinedsetv6allpeerset",
        "defaultroutedefinedsetallpeerset",
        "defaultroutedefinedsetv6allpeerset",
    ];
    assert_eq!(names(&import)[..5], known);
}

#[test]
fn where_nodes_are_known_by_ipv6_addresses_their_statements_are_for_them_and_for_nobody_else() {
    let six =
        |number: u8| node(&format!("2001:db8::{number}"), &format!("fd00:10:244:{number}::/64 10.244.{number}.0/24"));
    let world = world(host("2001:db8::1/64"), &[("node-1", six(1)), ("node-2", six(2))]);
    let words = ["--advertise-pod-cidr=false", "--enable-ipv6"];
    let mut plan = Plan::new(
        Shared::new(config(&[&words[..], &["--peer-router-ips=2001:db8:113::1", "--peer-router-asns=65001"]].concat())),
        PerFamily { v4: true, v6: true },
    );
    plan.update(&world);
    let export = plan.desired().policies.clone().expect("known").export;
    assert_eq!(names(&export), ["podcidrdefinedsetiBGPpeersetv6", "podcidrdefinedsetv6iBGPpeersetv6"]);
    assert!(passes(&export, "2001:db8::2", "fd00:10:244:1::/64"));
    assert!(!passes(&export, "2001:db8:113::1", "fd00:10:244:1::/64"));
}

#[test]
fn what_external_peers_are_told_is_changed_as_the_annotations_say() {
    let mut world = announcing();
    let own = (**world.cluster.nodes.get(&"node-1".into()).expect("it is there")).clone();
    let own = with(own, |routing| {
        routing.prepend = Some(Prepend { asn: 65000, times: 2 });
        routing.communities = vec![7];
    });
    world.cluster.nodes.insert("node-1".into(), own);
    let export = policies(&["--override-nexthop"], &world).export;
    for route in [OWN_PODS, "10.96.0.9/32"] {
        let policy::Outcome::Changed(changed) = outcome(&export, EXTERNAL, route) else { panic!("{route} is changed") };
        assert_eq!(changed.as_path.to_string(), "65000 65000");
        assert_eq!(changed.communities.as_ref(), [Community(7)]);
    }
    assert_eq!(outcome(&export, NODE, OWN_PODS), policy::Outcome::Unchanged, "nodes are told the plain truth");
    let nexthop = |change: &Change| *change == Change::NextHopSelf;
    assert!(export.statements.iter().any(|statement| statement.changes.iter().any(nexthop)));
}

#[test]
fn only_the_peers_that_are_to_have_it_get_our_next_hop() {
    let export = |words: &[&str], said: [Option<bool>; 2]| {
        let mut world = announcing();
        let own = (**world.cluster.nodes.get(&"node-1".into()).expect("it is there")).clone();
        let peer = |(text, next_hop_self)| ExternalPeer { next_hop_self, ..ExternalPeer::new(address(text), 65001) };
        let own = with(own, |routing| {
            routing.peers = [EXTERNAL, "2001:db8:113::1"].into_iter().zip(said).map(peer).collect();
        });
        world.cluster.nodes.insert("node-1".into(), own);
        let config = config(&[&["--enable-ipv6"], words].concat());
        let mut plan = Plan::new(Shared::new(config), PerFamily { v4: true, v6: true });
        plan.update(&world);
        plan.desired().policies.clone().expect("the cluster is known").export
    };
    let is_changed = |policy: &Policy, neighbour: &str| {
        let mut route = Attributes::local(address("192.0.2.77"));
        route.med = Some(1);
        let applicable = policy.applicable(Some(address(neighbour)));
        match policy.outcome(&applicable, prefix(OWN_PODS), &route, Some(address("192.0.2.1"))) {
            policy::Outcome::Changed(changed) => changed.next_hop == address("192.0.2.1"),
            policy::Outcome::Unchanged => false,
            policy::Outcome::Rejected => panic!("it is announced"),
        }
    };
    for (words, said, expected) in [
        (&[][..], [None, None], [false, false]),
        (&[], [Some(true), None], [true, false]),
        (&[], [Some(false), Some(true)], [false, true]),
        (&["--override-nexthop"], [None, None], [true, true]),
        (&["--override-nexthop"], [Some(false), None], [false, true]),
        (&["--override-nexthop"], [Some(false), Some(false)], [false, false]),
    ] {
        let export = export(words, said);
        let found = [EXTERNAL, "2001:db8:113::1"].map(|neighbour| is_changed(&export, neighbour));
        assert_eq!(found, expected, "{words:?} {said:?}");
        assert!(!is_changed(&export, NODE));
    }
}

#[test]
fn what_is_ours_is_never_learned_from_anybody() {
    let import = policies(&[], &announcing()).import;
    for neighbour in [NODE, EXTERNAL] {
        for route in [
            "0.0.0.0/0",
            "::/0",
            OWN_PODS,
            "10.244.1.128/25",
            "10.244.1.5/32",
            "10.244.2.0/25",
            "fd00:10:244:3:1::/80",
            "fd00:10:244:1:2::/80",
            "10.96.0.9/32",
            "10.96.0.10/32",
            "10.100.0.0/16",
            "192.0.2.2/32",
            "10.0.0.3/32",
            "192.0.2.0/24",
            "192.0.2.128/25",
            "2001:db8::2/128",
            "2001:db8::/64",
        ] {
            assert!(!passes(&import, neighbour, route), "{route} from {neighbour}");
        }
    }
    for (route, from) in [
        ("10.244.2.0/24", NODE),
        ("fd00:10:244:2::/64", NODE),
        ("fd00:10:244:3::/64", "10.0.0.3"),
        ("198.51.100.0/24", EXTERNAL),
        ("10.0.0.0/8", EXTERNAL),
        ("192.0.0.0/16", EXTERNAL),
        ("2001:db8:7::/48", EXTERNAL),
    ] {
        assert!(passes(&import, from, route), "{route} from {from}");
    }
}

#[test]
fn pods_of_other_nodes_are_learned_also_where_the_flag_about_services_says_less_than_the_truth() {
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-2".into(), node("192.0.2.2", "10.100.2.0/24"));
    let import = policies(&[], &world).import;
    assert!(passes(&import, NODE, "10.100.2.0/24"));
    assert!(passes(&import, EXTERNAL, "10.100.2.0/24"), "where nodes peer with routers alone it comes from those");
    assert!([NODE, EXTERNAL].iter().all(|from| !passes(&import, from, "10.100.2.0/25")));
}

#[test]
fn pod_ranges_inside_the_network_of_a_link_are_learned_and_other_parts_of_it_are_not() {
    for (own, other, hosts) in [
        ("10.0.0.1/8 fd00::1/8", "10.0.0.2 fd00::2", ["10.9.0.0/16", "10.0.0.2/32", "fd00:9::/32", "fd00::2/128"]),
        ("10.0.0.1/32 fd00::1/128", "10.0.0.2 fd00::2", ["10.0.0.1/32", "10.0.0.2/32", "fd00::1/128", "fd00::2/128"]),
    ] {
        let here = own.replace("/8", "").replace("/32", "").replace("/128", "");
        let nodes = [
            ("node-1", node(&here, "10.244.1.0/24 fd00:10:244:1::/64")),
            ("node-2", node(other, "10.244.2.0/24 fd00:10:244:2::/64")),
        ];
        let import = policies(&[], &world(host(own), &nodes)).import;
        for range in ["10.244.2.0/24", "fd00:10:244:2::/64"] {
            assert!(["10.0.0.2", EXTERNAL].iter().all(|from| passes(&import, from, range)), "{range} with {own}");
        }
        for refused in hosts.iter().chain(&["10.244.1.0/24", "10.244.2.0/25", "fd00:10:244:2:1::/80"]) {
            assert!(["10.0.0.2", EXTERNAL].iter().all(|from| !passes(&import, from, refused)), "{refused} with {own}");
        }
    }
}

#[test]
fn a_pod_range_that_contains_an_address_of_a_third_node_is_not_learned_and_its_own_nodes_address_may_be_in_it() {
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-2".into(), node("192.0.2.2 10.244.2.1", "10.0.0.0/24 10.244.2.0/24"));
    let import = policies(&[], &world).import;
    assert!(!passes(&import, NODE, "10.0.0.0/24"), "10.0.0.3 is node 3");
    assert!(passes(&import, NODE, "10.244.2.0/24"), "10.244.2.1 is the bridge of node 2");
}

#[test]
fn nothing_that_an_operator_adds_takes_the_place_of_a_pod_range_or_of_an_address_of_a_node() {
    let import = policies(&[], &announcing()).import;
    let operator = crate::bgp::rib::PeerId::OPERATOR_ADDRESS.to_string();
    for added in ["198.51.100.7", "2001:db8:51::7", &operator] {
        for route in
            ["10.244.1.0/24", "10.244.2.0/24", "10.244.2.0/25", "fd00:10:244:2::/64", "192.0.2.2/32", "192.0.2.0/25"]
        {
            assert!(!passes(&import, added, route), "{route} from {added}");
        }
        assert!(passes(&import, added, "198.18.7.0/24"));
        assert_eq!(passes(&import, added, "10.96.0.77/32"), *added == operator, "{added}");
    }
}

#[test]
fn a_default_route_in_parts_is_a_default_route() {
    let import = policies(&[], &three_nodes()).import;
    for part in ["0.0.0.0/1", "128.0.0.0/1", "64.0.0.0/2", "8.0.0.0/7", "::/1", "8000::/1", "2000::/3", "fc00::/6"] {
        assert!([NODE, EXTERNAL].iter().all(|from| !passes(&import, from, part)), "{part}");
    }
    for network in ["11.0.0.0/8", "172.16.0.0/12", "fc00::/7", "2400::/12"] {
        assert!(passes(&import, EXTERNAL, network), "{network}");
    }
}

#[test]
fn what_the_annotation_names_is_refused_with_all_inside() {
    let mut world = three_nodes();
    let own = (**world.cluster.nodes.get(&"node-1".into()).expect("it is there")).clone();
    let own = with(own, |routing| routing.import_reject = vec![prefix("198.51.100.0/24"), prefix("2001:db8:7::/48")]);
    world.cluster.nodes.insert("node-1".into(), own);
    let import = policies(&[], &world).import;
    for (route, taken) in [
        ("198.51.100.0/24", false),
        ("198.51.100.4/30", false),
        ("198.51.0.0/16", true),
        ("2001:db8:7:1::/64", false),
        ("2001:db8:7:1::5/128", false),
    ] {
        assert_eq!(passes(&import, EXTERNAL, route), taken, "{route}");
    }
    assert!(names(&import).contains(&"customimportrejectdefinedsetv6allpeerset"));
}

#[test]
fn a_reflector_passes_on_what_it_learned_and_has_policies_like_everybody() {
    let mut world = announcing();
    let own = (**world.cluster.nodes.get(&"node-1".into()).expect("it is there")).clone();
    let own = with(own, |routing| {
        routing.reflection = Reflection::Server([0, 0, 0, 1].into());
        routing.communities = vec![7];
    });
    world.cluster.nodes.insert("node-1".into(), own);
    let Policies { import, export } = policies(&[], &world);
    for (route, inside, outside) in [
        (OWN_PODS, true, true),
        ("10.244.2.0/24", true, true),
        ("198.51.100.0/24", true, false),
        ("10.96.0.9/32", false, true),
    ] {
        assert_eq!(passes(&export, NODE, route), inside, "{route}");
        assert_eq!(passes(&export, EXTERNAL, route), outside, "{route}");
    }
    assert!(!passes(&import, EXTERNAL, "0.0.0.0/0") && !passes(&import, NODE, OWN_PODS));
    assert!(matches!(outcome(&export, EXTERNAL, "10.244.2.0/24"), policy::Outcome::Changed(_)));
    let closed = policies(&["--advertise-pod-cidr=false"], &world).export;
    assert!(!passes(&closed, EXTERNAL, "10.244.2.0/24"));
}

#[test]
fn an_external_peer_is_told_what_external_peers_are_also_where_a_node_lists_its_address() {
    let mut world = announcing();
    let of = |world: &World, name: &str| (**world.cluster.nodes.get(&name.into()).expect("it is there")).clone();
    let own = with(of(&world, "node-1"), |routing| routing.reflection = Reflection::Server([0, 0, 0, 1].into()));
    world.cluster.nodes.insert("node-1".into(), own);
    let told = |world: &World| {
        let routes = ["10.96.0.9/32", OWN_PODS, "10.244.2.0/24", "198.51.100.0/24"];
        [&[][..], &["--advertise-pod-cidr=false"]].map(|words| {
            let export = policies(words, world).export;
            routes.map(|route| passes(&export, EXTERNAL, route))
        })
    };
    let before = told(&world);
    world.cluster.nodes.insert("node-3".into(), node("203.0.113.1 10.0.0.3", "10.244.3.0/24"));
    assert_eq!(told(&world), before, "a kubelet writes the addresses of its Node");
    let export = policies(&[], &world).export;
    assert!(passes(&export, NODE, OWN_PODS) && !passes(&export, NODE, "10.96.0.9/32"), "other nodes are nodes");
}

#[test]
fn without_sessions_between_nodes_there_are_no_statements_about_them() {
    let Policies { import, export } = policies(&["--enable-ibgp=false"], &announcing());
    assert!(names(&export).iter().chain(&names(&import)).all(|name| !name.contains("iBGP")));
    assert!(!passes(&import, EXTERNAL, "0.0.0.0/0"));
}

#[test]
fn where_node_objects_give_the_routes_nobody_else_does() {
    let Policies { import, export } = policies(&["--node-routes=api"], &announcing());
    for route in ["10.244.2.0/24", "10.244.2.0/25", "198.51.100.0/24"] {
        assert!(!passes(&import, NODE, route), "a node is told, and tells nothing: {route}");
    }
    assert!(passes(&export, NODE, OWN_PODS) && !passes(&export, NODE, "198.51.100.0/24"));
    let alone = policies(&["--node-routes=api", "--enable-ibgp=false"], &announcing());
    assert!(names(&alone.export).iter().chain(&names(&alone.import)).all(|name| !name.contains("iBGP")));
    for (route, passes_with_bgp) in [("10.244.2.0/24", true), ("10.244.2.0/25", false), ("fd00:10:244:2::/64", true)] {
        assert!(!passes(&import, EXTERNAL, route), "{route}");
        assert_eq!(passes(&policies(&[], &announcing()).import, EXTERNAL, route), passes_with_bgp, "{route}");
    }
    assert!(passes(&import, EXTERNAL, "198.51.100.0/24") && passes(&export, EXTERNAL, OWN_PODS));
}

#[test]
fn a_route_that_a_router_outside_is_about_to_withdraw_loses_to_any_other_one() {
    let import = policies(&["--peer-router-ips=2001:db8:113::1", "--peer-router-asns=65002"], &announcing()).import;
    for (route, next_hop) in [("198.51.100.0/24", "203.0.113.1"), ("2001:db8:99::/48", "2001:db8:113::1")] {
        for neighbour in [EXTERNAL, "2001:db8:113::1"] {
            let mut attributes = Attributes::local(address(next_hop));
            attributes.local_pref = Some(200);
            let outcome = |attributes: &Attributes| {
                let applicable = import.applicable(Some(address(neighbour)));
                import.outcome(&applicable, prefix(route), attributes, None)
            };
            assert_eq!(outcome(&attributes), policy::Outcome::Unchanged, "{route} of {neighbour}");
            attributes.add_communities(&[Community::GRACEFUL_SHUTDOWN]);
            let policy::Outcome::Changed(left) = outcome(&attributes) else { panic!("{route} of {neighbour}") };
            assert_eq!(left.preference(), 0);
        }
        let applicable = import.applicable(Some(address(NODE)));
        let mut attributes = Attributes::local(address(next_hop));
        attributes.add_communities(&[Community::GRACEFUL_SHUTDOWN]);
        let its_pods = if route.contains(':') { "fd00:10:244:2::/64" } else { "10.244.2.0/24" };
        let outcome = import.outcome(&applicable, prefix(its_pods), &attributes, None);
        assert_eq!(outcome, policy::Outcome::Unchanged, "nodes say it by LOCAL_PREF themselves");
    }
}

/// A reflector or a client of the cluster 0.0.0.1, or neither.
fn reflection(word: &str) -> Reflection {
    match word {
        "server" => Reflection::Server([0, 0, 0, 1].into()),
        "client" => Reflection::Client([0, 0, 0, 1].into()),
        _ => Reflection::None,
    }
}

fn put(world: &mut World, name: &str, change: impl FnOnce(crate::model::Node) -> crate::model::Node) {
    let node = (**world.cluster.nodes.get(&name.into()).expect("it is there")).clone();
    world.cluster.nodes.insert(name.into(), change(node));
}

/// The same three nodes, whose sessions are of IPv6, and of IPv4.
fn of_each_family() -> [(World, [&'static str; 2]); 2] {
    let six =
        |number: u8| node(&format!("2001:db8::{number}"), &format!("10.244.{number}.0/24 fd00:10:244:{number}::/64"));
    let sixes = [("node-1", six(1)), ("node-2", six(2)), ("node-3", six(3))];
    [(three_nodes(), [NODE, "10.0.0.3"]), (world(host("2001:db8::1/64"), &sixes), ["2001:db8::2", "2001:db8::3"])]
}

const ELSEWHERE: [&str; 4] = ["198.18.7.1/32", "198.18.0.0/15", "2001:db8:7::7/128", "2001:db8:4000::/34"];

#[test]
fn an_ordinary_node_brings_its_own_pod_ranges_and_nothing_else() {
    for (world, [second, third]) in of_each_family() {
        for words in [&[][..], &["--nodes-full-mesh=false"]] {
            let mut world = world.clone();
            (1..=3).for_each(|number| {
                put(&mut world, &format!("node-{number}"), |one| with(one, |routing| routing.asn = Some(64512)));
            });
            let import = policies(words, &world).import;
            for (from, own, other) in [(second, "2", "3"), (third, "3", "2")] {
                for its in [format!("10.244.{own}.0/24"), format!("fd00:10:244:{own}::/64")] {
                    assert!(passes(&import, from, &its), "{its} from {from}");
                }
                let anothers = [format!("10.244.{other}.0/24"), format!("fd00:10:244:{other}::/64")];
                for foreign in anothers.iter().map(String::as_str).chain(ELSEWHERE) {
                    assert!(!passes(&import, from, foreign), "{foreign} from {from}");
                }
            }
            // Others are as they were: routers outside, and neighbours and routes of the GoBGP client.
            let operator = crate::bgp::rib::PeerId::OPERATOR_ADDRESS.to_string();
            for from in [EXTERNAL, "198.51.100.7", "2001:db8:51::7", &operator] {
                assert!(ELSEWHERE.iter().all(|route| passes(&import, from, route)), "from {from}");
            }
            // A host without an address of IPv4 has no session with the router outside.
            let is_peer = second == NODE;
            for range in ["10.244.3.0/24", "fd00:10:244:3::/64"] {
                assert_eq!(passes(&import, EXTERNAL, range), is_peer, "{range}");
            }
        }
    }
}

#[test]
fn what_reflectors_pass_on_is_taken_where_this_node_is_their_client_or_one_of_them() {
    for (world, [second, _]) in of_each_family() {
        // Our part, that of node 2 and of node 3; whether pod ranges of node 3 and other routes are taken from node 2.
        for (own, its, of_third, pods, others) in [
            ("client", "server", "client", true, true),
            ("client", "server", "none", true, true),
            ("server", "server", "client", true, true),
            ("server", "client", "client", false, false),
            ("server", "none", "client", false, false),
            // Whoever makes itself a reflector in a full mesh gains nothing: a kubelet may annotate its own Node.
            ("none", "server", "none", false, false),
            ("none", "server", "server", false, false),
            // A node that is neither hears of clients by reflectors alone, and of clients only.
            ("none", "server", "client", true, false),
        ] {
            let mut world = world.clone();
            for (name, word) in [("node-1", own), ("node-2", its), ("node-3", of_third)] {
                put(&mut world, name, |one| with(one, |routing| routing.reflection = reflection(word)));
            }
            let import = policies(&[], &world).import;
            let what = format!("{own} {its} {of_third} {second}");
            assert!(["10.244.2.0/24", "fd00:10:244:2::/64"].iter().all(|its| passes(&import, second, its)), "{what}");
            for range in ["10.244.3.0/24", "fd00:10:244:3::/64"] {
                assert_eq!(passes(&import, second, range), pods, "{range}: {what}");
            }
            for route in ELSEWHERE {
                assert_eq!(passes(&import, second, route), others, "{route}: {what}");
            }
        }
    }
}
