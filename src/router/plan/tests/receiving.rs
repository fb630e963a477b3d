//! Kinds of tunnels that are received by and not sent by (`--overlay-encap-receive`).

use std::collections::BTreeMap;

use super::{learned, planned, prefix};
use crate::config::Encapsulation;
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::link::LinkName;
use crate::kernel::route::{RouteKey, RouteKind, TABLE_MAIN};
use crate::kernel::sysctl::Setting;
use crate::model::{Node, World};
use crate::net::PublicKey;
use crate::router::given::{host, node, world};
use crate::router::names::TUNNEL_TABLE;
use crate::router::plan::Plan;

const KINDS: [&str; 4] = ["ipip", "fou", "vxlan", "wireguard"];

fn nodes() -> World {
    let with_key = |number: u8, addresses: &str, ranges: &str| Node {
        wireguard_key: PublicKey::new(&[number; 32]),
        ..node(addresses, ranges)
    };
    world(
        host("192.0.2.1/24 2001:db8::1/64"),
        &[
            ("node-1", with_key(1, "192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64")),
            ("node-2", with_key(2, "192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64")),
            ("node-3", with_key(3, "10.0.0.3 2001:db8:3::3", "10.244.3.0/24 fd00:10:244:3::/64")),
        ],
    )
}

fn of(sent: &str, received: &str, reach: &str) -> Plan {
    let receive = format!("--overlay-encap-receive={received}");
    let words = [
        "--node-routes=api".to_owned(),
        format!("--overlay-type={reach}"),
        format!("--overlay-encap={sent}"),
        if received.is_empty() { "--overlay-encap-receive=".to_owned() } else { receive },
    ];
    planned(&words.each_ref().map(String::as_str), &nodes())
}

/// All that the kernel has to have to receive, by kind of objects and name; the devices for tunnels to nodes without what they send by.
fn receives(plan: &Plan) -> BTreeMap<String, String> {
    let desired = plan.desired();
    let ports = desired.receive_ports.keys().map(|port| (port.to_string(), String::new()));
    let tunnels = plan.routes().tunnels().iter().map(|(name, tunnel)| (name.to_string(), tunnel.remote.to_string()));
    let vxlan = desired.overlay_devices.iter().map(|(name, device)| (name.to_string(), format!("{device:?}")));
    let wireguard = desired.wireguard_devices.iter().map(|(name, device)| (name.to_string(), format!("{device:?}")));
    let peers = desired.wireguard_peers.iter().map(|(key, peer)| (key.to_string(), format!("{peer:?}")));
    let each =
        |(piece, rules): (&Piece, &Rules)| rules.0.iter().map(|rule| format!("{piece}: {rule}")).collect::<Vec<_>>();
    let rules = desired.rules.iter().flat_map(each).map(|rule| (rule, String::new()));
    ports.chain(tunnels).chain(vxlan).chain(wireguard).chain(peers).chain(rules).collect()
}

fn routes(plan: &Plan) -> Vec<(RouteKey, String)> {
    let mtu_aside = plan.routes().routes().iter();
    mtu_aside.map(|(key, route)| (key.clone(), format!("{route:?}"))).collect()
}

fn loose(plan: &Plan) -> Vec<String> {
    let links =
        plan.desired().settings.keys().filter_map(|Setting(name)| {
            Some(name.strip_prefix("net/ipv4/conf/")?.strip_suffix("/rp_filter")?.to_owned())
        });
    links.collect()
}

#[test]
fn what_is_received_is_all_that_both_kinds_have_by_themselves_and_routes_lead_through_the_one_that_is_sent_by_alone() {
    for reach in ["full", "subnet"] {
        for sent in KINDS {
            for received in KINDS.into_iter().filter(|received| *received != sent) {
                let (plan, sent_alone, other) =
                    (of(sent, received, reach), of(sent, "", reach), of(received, "", reach));
                let case = format!("{sent}, and {received} received, {reach}");
                let mut all = receives(&sent_alone);
                all.extend(receives(&other));
                assert_eq!(receives(&plan), all, "{case}");
                assert_eq!(routes(&plan), routes(&sent_alone), "{case}");
                assert_eq!(plan.routes().entries(), sent_alone.routes().entries(), "{case}");
                let swapped = of(received, sent, reach);
                assert_eq!(receives(&swapped), all, "{case}: the next step takes nothing away");
                assert_eq!(swapped.desired().bridge, plan.desired().bridge, "{case}: pods' MTU is that of both");
                let mtu = |plan: &Plan| plan.desired().bridge.and_then(|bridge| bridge.mtu);
                assert_eq!(mtu(&plan), mtu(&sent_alone).min(mtu(&other)), "{case}");
            }
        }
    }
}

#[test]
fn devices_that_no_route_leads_through_check_sources_loosely() {
    let tunnel_of = |remote: &str| crate::router::names::tunnel(remote.parse().expect("an address")).to_string();
    let (near, far) = (tunnel_of("192.0.2.2"), tunnel_of("10.0.0.3"));
    let mut both = [near, far.clone()];
    both.sort();
    for sent in KINDS {
        assert_eq!(loose(&of(sent, "", "full")), Vec::<String>::new(), "{sent}");
    }
    assert_eq!(loose(&of("ipip", "fou", "full")), Vec::<String>::new(), "one device has both");
    assert_eq!(loose(&of("ipip", "vxlan,wireguard", "full")), ["sluice-vxlan4", "sluice-wg0"]);
    assert_eq!(loose(&of("vxlan", "ipip", "full")), both);
    assert_eq!(loose(&of("vxlan", "ipip", "subnet")), [far]);
    assert_eq!(loose(&of("wireguard", "fou,vxlan", "full")), [&["sluice-vxlan4".to_owned()], &both[..]].concat());
}

#[test]
fn a_device_whose_node_is_learned_by_a_session_checks_sources_loosely_too() {
    // Which Node is believed follows of its routes there, of the others of the Node.
    for (sent, is_there_before) in [("wireguard", false), ("vxlan", true)] {
        let sent = format!("--overlay-encap={sent}");
        let mut plan = planned(&[&sent, "--overlay-encap-receive=ipip", "--overlay-type=full"], &nodes());
        let tunnel = crate::router::names::tunnel("192.0.2.2".parse().expect("an address")).to_string();
        assert_eq!(loose(&plan).contains(&tunnel), is_there_before, "{sent}");
        let changed = plan.learn(&[learned("10.244.2.0/24", "192.0.2.2"), learned("fd00:10:244:2::/64", "192.0.2.2")]);
        let name = LinkName(tunnel.as_str().into());
        assert!(plan.routes().tunnels().contains_key(&name), "{sent}: {:?}", plan.routes().tunnels());
        assert_eq!((changed.settings, loose(&plan).contains(&tunnel)), (!is_there_before, true), "{sent}");
    }
}

#[test]
fn a_tunnel_that_comes_and_goes_takes_its_setting_along() {
    let words = ["--node-routes=api", "--overlay-encap=vxlan", "--overlay-encap-receive=ipip", "--overlay-type=full"];
    let mut plan = planned(&words, &nodes());
    assert_eq!(loose(&plan).len(), 2);
    let own =
        |world: &World| world.cluster.nodes.get(&"node-1".into()).map(|node| (**node).clone()).expect("it is there");
    let alone = world(host("192.0.2.1/24 2001:db8::1/64"), &[("node-1", own(&nodes()))]);
    let changed = plan.update(&alone);
    assert!(changed.settings && loose(&plan).is_empty(), "{:?}", loose(&plan));
    assert!(plan.update(&nodes()).settings);
    assert_eq!(plan.desired().settings, planned(&words, &nodes()).desired().settings);
}

#[test]
fn a_tunnel_sends_inside_udp_only_where_fou_is_what_is_sent_by_or_nothing_plain_is_received() {
    let ports = |sent: &str, received: &str| {
        let plan = of(sent, received, "full");
        plan.routes().tunnels().values().map(|tunnel| tunnel.udp_port).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(ports("ipip", "fou"), [None].into());
    assert_eq!(ports("fou", "ipip"), [Some(5555)].into());
    assert_eq!(ports("vxlan", "fou"), [Some(5555)].into());
    assert_eq!(ports("vxlan", "fou,ipip"), [None].into(), "a plain one takes both");
}

#[test]
fn received_encrypted_packets_make_no_walls_and_sent_ones_keep_theirs() {
    let refused =
        |plan: &Plan| plan.routes().routes().iter().filter(|(_, route)| route.kind == RouteKind::Unreachable).count();
    assert_eq!(refused(&of("ipip", "wireguard", "full")), 0);
    assert_eq!(of("ipip", "wireguard", "full").desired().wireguard_peers.len(), 2);
    let sent = of("wireguard", "ipip,fou,vxlan", "full");
    assert_eq!(refused(&sent), refused(&of("wireguard", "", "full")));
    assert!(refused(&sent) > 0);
    let wg = LinkName("sluice-wg0".into());
    for (key, route) in sent.routes().routes().iter().filter(|(_, route)| route.kind != RouteKind::Unreachable) {
        assert!([TABLE_MAIN, TUNNEL_TABLE].contains(&key.table) && route.next_hops.iter().all(|hop| hop.link == wg));
    }
    let ends = sent.tunnel_of(
        prefix("10.244.2.0/24"),
        &sent.route_to([10, 244, 2, 5].into(), true).expect("a route").1.next_hops[0],
    );
    assert!(matches!(ends.expect("a tunnel").encapsulation, Encapsulation::Wireguard(_)));
}

#[test]
fn of_received_encrypted_packets_a_range_that_several_nodes_claim_is_nobodys_and_its_routes_stay() {
    let mut nodes: Vec<(&str, Node)> = vec![("node-1", node("192.0.2.1", "10.244.1.0/24"))];
    for (name, number, range) in
        [("node-2", 2, "10.244.2.0/24"), ("node-3", 3, "10.244.2.0/24"), ("node-4", 4, "10.244.4.0/24")]
    {
        let address = format!("192.0.2.{number}");
        nodes.push((name, Node { wireguard_key: PublicKey::new(&[number; 32]), ..node(&address, range) }));
    }
    let words = ["--node-routes=api", "--overlay-encap-receive=wireguard", "--overlay-type=full"];
    let plan = planned(&words, &world(host("192.0.2.1/24"), &nodes));
    let allowed = plan.desired().wireguard_peers.values().flat_map(|peer| peer.allowed.iter().copied());
    let allowed: Vec<String> = allowed.map(|range| range.to_string()).collect();
    assert_eq!(allowed, ["192.0.2.2/32", "192.0.2.3/32", "10.244.4.0/24", "192.0.2.4/32"]);
    assert!(plan.routes().has_way(prefix("10.244.2.0/24")), "as without it");
}
