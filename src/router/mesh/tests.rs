use std::net::Ipv4Addr;

use super::*;
use crate::router::given::{address, config, host, node, with};

const CLUSTER: [u8; 4] = [0, 0, 0, 7];
const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

fn local() -> Local {
    Local { asn: 64512, identifier: Ipv4Addr::new(192, 0, 2, 1) }
}

fn identity(own: &Node, config: &RouterConfig, families: PerFamily<bool>) -> Identity {
    Identity::new(&host("192.0.2.1/24 2001:db8::1/64"), Some(own), config, families)
}

fn peer(own: &Node, other: &Node, words: &[&str], families: PerFamily<bool>) -> Peering {
    let config = config(words);
    let own = identity(own, &config, families);
    let asn = own.asn.unwrap_or(64512);
    peering(&own, other, &config, Local { asn, ..local() }, &Password::None)
}

fn wanted(own: &Node, other: &Node, words: &[&str]) -> WantedNeighbour {
    match peer(own, other, words, BOTH) {
        Peering::With(wanted) => Arc::unwrap_or_clone(wanted),
        other => panic!("they are to peer, but: {other:?}"),
    }
}

fn dual(number: u8) -> Node {
    node(&format!("192.0.2.{number} 2001:db8::{number}"), "")
}

#[test]
fn nodes_peer_by_their_primary_addresses_over_one_session_for_both_families() {
    let wanted = wanted(&dual(1), &dual(2), &[]);
    assert_eq!(wanted.address, address("192.0.2.2"));
    assert_eq!(wanted.transport.local, Some(address("192.0.2.1")));
    assert_eq!(wanted.settings.families, BOTH);
    assert_eq!(wanted.own, PerFamily { v4: Some(address("192.0.2.1")), v6: Some(address("2001:db8::1")) });
    assert_eq!((wanted.transport.port, wanted.settings.hold_time), (179, 90));
    assert!(!wanted.client && wanted.transport.password.is_none());
}

#[test]
fn nodes_peer_between_the_addresses_that_were_detected_where_they_were() {
    let detected = |mut node: Node, v4: Option<&str>, v6: Option<&str>| {
        node.set_detected(PerFamily { v4: v4.map(address), v6: v6.map(address) });
        node
    };
    let own = detected(dual(1), Some("198.51.100.1"), Some("2001:db8:1::1"));
    let other = detected(dual(2), Some("198.51.100.2"), None);
    let neighbour = wanted(&own, &other, &[]);
    assert_eq!(neighbour.address, address("198.51.100.2"));
    assert_eq!(neighbour.transport.local, Some(address("198.51.100.1")));
    assert_eq!(neighbour.own, PerFamily { v4: Some(address("198.51.100.1")), v6: Some(address("2001:db8:1::1")) });
    assert_eq!(neighbour.settings.families, BOTH, "its InternalIP of IPv6 counts");
    let neighbour = wanted(&own, &dual(3), &[]);
    assert_eq!((neighbour.address, neighbour.transport.local), (address("192.0.2.3"), Some(address("198.51.100.1"))));
    for renamed in [dual(1), own.clone()] {
        assert_eq!(peer(&own, &renamed, &[], BOTH), Peering::Impossible(Obstacle::OwnAddress));
    }
}

#[test]
fn in_a_full_mesh_a_neighbour_has_the_number_of_the_cluster_and_no_other() {
    assert_eq!(wanted(&dual(1), &dual(2), &[]).settings.asn, Some(64512));
}

#[test]
fn flags_for_external_peers_do_not_concern_nodes_but_the_port_and_restarts_do() {
    let words = ["--bgp-holdtime=30s", "--peer-router-multihop-ttl=5", "--bgp-port=1179"];
    let wanted = wanted(&dual(1), &dual(2), &words);
    assert_eq!((wanted.settings.hold_time, wanted.transport.time_to_live), (90, TimeToLive::System));
    assert_eq!(wanted.transport.port, 1179);
}

#[test]
fn sessions_between_nodes_have_settings_of_their_own() {
    let plain = wanted(&dual(1), &dual(2), &[]);
    assert_eq!(plain.most, PerFamily { v4: Some(2_000_000), v6: Some(2_000_000) });
    let words = ["--bgp-mesh-holdtime=9s", "--bgp-mesh-ttl-security=2", "--bgp-mesh-max-prefixes=500"];
    let set = wanted(&dual(1), &dual(2), &words);
    assert_eq!((set.settings.hold_time, set.transport.time_to_live), (9, TimeToLive::Secured { hops: 2 }));
    assert_eq!(set.most, PerFamily { v4: Some(500), v6: Some(500) });
}

#[test]
fn nodes_keep_each_others_routes_through_a_restart_whatever_outside_neighbours_are_offered() {
    for (words, seconds) in [
        (&[][..], 90),
        (&["--bgp-graceful-restart"], 90),
        (&["--bgp-graceful-restart", "--bgp-graceful-restart-time=30s"], 30),
    ] {
        let restart = wanted(&dual(1), &dual(2), words).settings.restart.expect("always");
        assert_eq!((restart.seconds, restart.stale), (seconds, Duration::from_secs(360)), "{words:?}");
    }
}

#[test]
fn a_session_carries_the_families_that_both_nodes_have_and_that_are_on() {
    let families = |other: &str| wanted(&dual(1), &node(other, ""), &[]).settings.families;
    assert_eq!(families("192.0.2.2"), PerFamily { v4: true, v6: false });
    assert_eq!(families("2001:db8::2 192.0.2.2"), BOTH);
    let only_v4 = PerFamily { v4: true, v6: false };
    let Peering::With(wanted) = peer(&dual(1), &dual(2), &[], only_v4) else { panic!("they peer") };
    assert_eq!(wanted.settings.families, only_v4);
    assert_eq!(wanted.own.v6, None);
}

#[test]
fn nodes_whose_first_addresses_are_of_different_families_meet_where_both_are() {
    let (one, other) = (dual(1), node("2001:db8::2 192.0.2.2", ""));
    assert_eq!(wanted(&one, &other, &[]).address, address("192.0.2.2"));
    let config = config(&[]);
    let there = Identity::new(&host("192.0.2.2/24"), Some(&other), &config, BOTH);
    let Peering::With(back) = peering(&there, &one, &config, local(), &Password::None) else { panic!("they peer") };
    assert_eq!((back.address, back.transport.local), (address("192.0.2.1"), Some(address("192.0.2.2"))));
}

#[test]
fn a_node_that_cannot_be_a_peer_says_why() {
    let only_v4 = node("192.0.2.1", "");
    let v4_is_on = PerFamily { v4: true, v6: false };
    for (own, other, families, obstacle) in [
        (&dual(1), "", BOTH, Obstacle::NoAddress),
        (&only_v4, "2001:db8::2", BOTH, Obstacle::NoCommonFamily),
        (&dual(1), "2001:db8::2", v4_is_on, Obstacle::NoCommonFamily),
        (&dual(1), "192.0.2.1", BOTH, Obstacle::OwnAddress),
    ] {
        assert_eq!(peer(own, &node(other, ""), &[], families), Peering::Impossible(obstacle), "{other}");
    }
}

#[test]
fn without_sessions_between_nodes_nobody_peers() {
    assert_eq!(peer(&dual(1), &dual(2), &["--enable-ibgp=false"], BOTH), Peering::None);
}

#[test]
fn without_a_full_mesh_only_nodes_of_one_system_peer() {
    let in_system = |number, asn| with(dual(number), |routing| routing.asn = Some(asn));
    let words = ["--nodes-full-mesh=false"];
    assert_eq!(wanted(&in_system(1, 65001), &in_system(2, 65001), &words).settings.asn, Some(65001));
    assert_eq!(peer(&in_system(1, 65001), &in_system(2, 65002), &words, BOTH), Peering::None);
    assert_eq!(peer(&in_system(1, 65001), &dual(2), &words, BOTH), Peering::None);
}

#[test]
fn both_ends_agree_on_whether_they_peer_and_who_is_whose_client() {
    let cluster = |number| Ipv4Addr::from_bits(number);
    let roles = [
        Reflection::None,
        Reflection::Server(cluster(1)),
        Reflection::Server(cluster(2)),
        Reflection::Client(cluster(1)),
        Reflection::Client(cluster(2)),
    ];
    for one in roles {
        for other in roles {
            let (there, back) = (relation(one, other), relation(other, one));
            assert_eq!(there.is_some(), back.is_some(), "{one:?} {other:?}");
            let is_client = matches!((one, other), (Reflection::Server(a), Reflection::Client(b)) if a == b);
            assert_eq!(there == Some(true), is_client, "{one:?} {other:?}");
        }
    }
    assert_eq!(relation(roles[3], roles[3]), None, "clients talk through their reflector");
    assert_eq!(relation(roles[1], roles[4]), None, "clients belong to the reflectors of their own cluster");
    assert_eq!(relation(roles[1], roles[2]), Some(false), "reflectors of two clusters are plain neighbours");
    assert_eq!(relation(roles[1], roles[0]), Some(false));
}

#[test]
fn nodes_watch_each_other_only_where_that_is_asked_for_and_at_the_port_that_both_have() {
    let path = |words: &[&str]| {
        let liveness = wanted(&dual(1), &dual(2), words).liveness;
        liveness.map(|liveness| (liveness.path, liveness.wanted.port, liveness.wanted.settings.multiplier))
    };
    assert_eq!(path(&["--enable-bfd"]), None);
    let words = ["--enable-bfd-mesh", "--bfd-port=1234", "--bfd-detection-multiplier=7"];
    assert_eq!(path(&words), Some((Path::Multihop, 4784, 7)));
}

#[test]
fn a_node_whose_routes_come_from_node_objects_answers_nodes_and_expects_none() {
    let answered = wanted(&dual(1), &dual(2), &["--node-routes=api"]);
    assert!(answered.settings.passive && !answered.expected);
    let dialled = wanted(&dual(1), &dual(2), &[]);
    assert!(!dialled.settings.passive && dialled.expected);
    let like =
        WantedNeighbour { settings: Settings { passive: false, ..answered.settings }, expected: true, ..answered };
    assert_eq!(like, dialled, "all else is as the other end has it");
    for words in [&["--node-routes=api", "--enable-ibgp=false"][..], &["--enable-ibgp=false"]] {
        assert_eq!(peer(&dual(1), &dual(2), words, BOTH), Peering::None);
    }
    let nowhere = node("", "");
    assert_eq!(peer(&dual(1), &nowhere, &["--node-routes=api"], BOTH), Peering::None, "nobody is missed");
    assert_eq!(peer(&dual(1), &dual(1), &["--node-routes=api"], BOTH), Peering::None);
    let (reflector, client) = (
        with(dual(1), |routing| routing.reflection = Reflection::Server(CLUSTER.into())),
        with(dual(2), |routing| routing.reflection = Reflection::Client(CLUSTER.into())),
    );
    assert_eq!(peer(&reflector, &client, &["--node-routes=api"], BOTH), Peering::None, "it has nothing to reflect");
    assert!(!wanted(&client, &reflector, &["--node-routes=api"]).expected, "a reflector hears its clients");
    let beside = with(dual(2), |routing| routing.reflection = Reflection::Server(CLUSTER.into()));
    assert!(!wanted(&reflector, &beside, &["--node-routes=api"]).expected, "which has the same clients");
    let of_another = with(dual(2), |routing| routing.reflection = Reflection::Server([0, 0, 0, 8].into()));
    for other in [of_another, dual(2)] {
        assert_eq!(peer(&reflector, &other, &["--node-routes=api"], BOTH), Peering::None, "it learns clients from us");
    }
    let config = config(&["--node-routes=api"]);
    let lacking = peering(&identity(&dual(1), &config, BOTH), &dual(2), &config, local(), &Password::Unknown);
    assert_eq!(lacking, Peering::Impossible(Obstacle::NoPassword), "which is told");
}
