use std::sync::Arc;

use super::*;
use crate::bgp::message::Attributes;
use crate::bgp::rib::Best;
use crate::bgp::rib::PeerId;
use crate::kernel::vxlan::gateway;
use crate::router::given::{address, config, host, node, prefix};
use crate::router::names::{other_tunnel, tunnel};
use crate::router::tunnel_names::TunnelNames;

/// A host at 192.0.2.1 and 2001:db8::1, and the nodes that it knows.
struct Rig {
    config: RouterConfig,
    own: Identity,
    on_link: Vec<OnLink>,
    nodes: BTreeMap<IpAddr, PerFamily<Option<IpAddr>>>,
    names: TunnelNames,
    /// The addresses whose link address is another node's.
    beaten: BTreeSet<IpAddr>,
    routes: Routes,
}

fn rig(words: &[&str], nodes: &[&str]) -> Rig {
    let config = config(words);
    let host = host("192.0.2.1/24 2001:db8::1/64");
    let families = PerFamily { v4: true, v6: true };
    let own = Identity::new(&host, Some(&node("192.0.2.1 2001:db8::1", "")), &config, families);
    let (names, routes) = (TunnelNames::default(), Routes::default());
    let (none, beaten) = (BTreeMap::new(), BTreeSet::new());
    let mut rig = Rig { config, own, on_link: host.on_link, nodes: none, names, beaten, routes };
    nodes.iter().for_each(|addresses| rig.add_node(addresses));
    rig
}

impl Rig {
    fn add_node(&mut self, addresses: &str) {
        let node = node(addresses, "");
        let both = PerFamily::from_fn(|family| node.address(family));
        self.nodes.extend(node.addresses.iter().map(|one| (one.address, both)));
        node.addresses.iter().for_each(|one| self.note(one.address, true));
    }

    fn note(&mut self, address: IpAddr, is_there: bool) {
        let renamed = self.names.note(address, is_there, &|one, other| one < other);
        renamed.into_iter().for_each(|address| self.routes.look_again(address));
    }

    fn learn(&mut self, text: &str, next_hops: &str) -> RouteTableChanges {
        let next_hops: Vec<IpAddr> = next_hops.split_whitespace().map(address).collect();
        let best =
            next_hops.first().map(|first| Best { source: PeerId(7), attributes: Arc::new(Attributes::local(*first)) });
        self.routes.learn(&[RouteChange { prefix: prefix(text), best, next_hops }]);
        self.settle()
    }

    fn settle(&mut self) -> RouteTableChanges {
        let nodes = &self.nodes;
        let node = |address| nodes.get(&address).copied();
        let place = Place {
            own: &self.own,
            config: &self.config,
            on_link: &self.on_link,
            node: &node,
            addresses: &Vec::new,
            exchanges: &|_| true,
            tunnel_name: &|address| self.names.of(address),
            is_nameless: &|address| self.names.is_nameless(address),
            has_anothers_link_address: &|address| self.beaten.contains(&address),
            internal: &|_| None,
            contested: &|_| false,
            protection: &|_, _| Protection::None,
            device: &|_| LinkName(crate::router::names::WIREGUARD.into()),
        };
        self.routes.settle(place)
    }

    /// As `ip route` would print it, one line for each route.
    fn routes(&self) -> Vec<String> {
        let way = |hop: &NextHop| {
            let via = hop.gateway.map(|gateway| format!("via {gateway} ")).unwrap_or_default();
            format!("{via}dev {}{}", hop.link, if hop.on_link { " onlink" } else { "" })
        };
        let line = |(key, route): (&RouteKey, &Arc<Route>)| {
            let ways: Vec<String> = route.next_hops.iter().map(way).collect();
            let table = if key.table == TABLE_MAIN { String::new() } else { format!(" table {}", key.table) };
            let source = route.source.map(|source| format!(" src {source}")).unwrap_or_default();
            format!("{} {}{table}{source} proto {}", key.destination, ways.join(" + "), route.protocol)
        };
        self.routes.routes().iter().map(line).collect()
    }

    fn tunnels(&self) -> Vec<String> {
        let line = |(name, tunnel): (&LinkName, &Tunnel)| format!("{name} {} {}", tunnel.local, tunnel.remote);
        self.routes.tunnels().iter().map(line).collect()
    }
}

const NOTHING: [&str; 0] = [];
const PEER: &str = "10.0.0.3";

#[test]
fn a_node_on_our_link_is_a_gateway_and_one_elsewhere_is_behind_a_tunnel() {
    let mut rig = rig(&[], &["192.0.2.2", PEER]);
    rig.learn("10.244.2.0/24", "192.0.2.2");
    rig.learn("10.244.3.0/24", PEER);
    let name = tunnel(address(PEER));
    assert_eq!(
        rig.routes(),
        [
            format!("10.0.0.3/32 dev {name} table 77 proto 3"),
            "10.244.2.0/24 via 192.0.2.2 dev eth0 proto 17".to_owned(),
            format!("10.244.3.0/24 dev {name} src 192.0.2.1 proto 17"),
        ]
    );
    assert_eq!(rig.tunnels(), [format!("{name} 192.0.2.1 10.0.0.3")]);
}

#[test]
fn with_full_tunnels_nodes_on_our_link_are_behind_one_too_and_without_any_the_network_has_to_know() {
    let mut full = rig(&["--overlay-type=full"], &["192.0.2.2"]);
    full.learn("10.244.2.0/24", "192.0.2.2");
    assert!(full.routes()[1].starts_with("10.244.2.0/24 dev tun-"), "{:?}", full.routes());
    let mut none = rig(&["--enable-overlay=false"], &["192.0.2.2", PEER]);
    none.learn("10.244.2.0/24", "192.0.2.2");
    none.learn("10.244.3.0/24", PEER);
    assert_eq!(none.routes(), ["10.244.2.0/24 via 192.0.2.2 dev eth0 proto 17"]);
    assert_eq!(none.tunnels(), NOTHING);
}

#[test]
fn with_vxlan_nodes_elsewhere_are_gateways_on_one_device_of_each_family_and_entries_there() {
    let both = "10.0.0.3 2001:db8:3::3";
    let mut rig = rig(&["--overlay-encap=vxlan"], &["192.0.2.2", both, "10.0.0.4 2001:db8:3::4"]);
    rig.learn("10.244.2.0/24", "192.0.2.2");
    rig.learn("10.244.3.0/24", PEER);
    rig.learn("fd00:10:244:3::/64", "2001:db8:3::3 2001:db8:3::4");
    let [third, fourth] = ["2001:db8:3::3", "2001:db8:3::4"].map(|text| gateway(address(text)));
    assert_eq!(
        rig.routes(),
        [
            "10.0.0.3/32 via 10.0.0.3 dev sluice-vxlan4 onlink table 77 proto 3".to_owned(),
            format!("2001:db8:3::3/128 via {third} dev sluice-vxlan6 table 77 proto 3"),
            format!("2001:db8:3::4/128 via {fourth} dev sluice-vxlan6 table 77 proto 3"),
            "10.244.2.0/24 via 192.0.2.2 dev eth0 proto 17".to_owned(),
            "10.244.3.0/24 via 10.0.0.3 dev sluice-vxlan4 onlink src 192.0.2.1 proto 17".to_owned(),
            format!(
                "fd00:10:244:3::/64 via {third} dev sluice-vxlan6 + via {fourth} dev sluice-vxlan6 src 2001:db8::1 proto 17"
            ),
        ]
    );
    assert_eq!(rig.tunnels(), NOTHING);
    let entries = |rig: &Rig| rig.routes.entries().keys().map(ToString::to_string).collect::<Vec<_>>();
    let of_v6 = ["2001:db8:3::3 dev sluice-vxlan6", "2001:db8:3::4 dev sluice-vxlan6"];
    assert_eq!(entries(&rig), ["10.0.0.3 dev sluice-vxlan4", of_v6[0], of_v6[1]]);
    let changed = rig.learn("10.244.3.0/24", "");
    assert_eq!((changed.entries.len(), entries(&rig)), (1, of_v6.map(str::to_owned).to_vec()));
}

#[test]
fn no_tunnel_is_built_to_an_address_that_is_ours_too() {
    let mut rig = rig(&[], &["10.0.0.3 fd00:9::3"]);
    rig.nodes.remove(&address(PEER));
    rig.learn("10.244.3.0/24", "fd00:9::3");
    assert_eq!((rig.routes(), rig.tunnels()), (vec![], vec![]));
}

#[test]
fn no_tunnel_is_built_to_a_router_that_is_no_node() {
    for words in [&[][..], &["--overlay-type=full"]] {
        let mut rig = rig(words, &[]);
        rig.learn("198.51.100.0/24", "203.0.113.1");
        rig.learn("198.51.101.0/24", "192.0.2.254");
        assert_eq!(rig.routes(), ["198.51.101.0/24 via 192.0.2.254 dev eth0 proto 17"], "{words:?}");
        assert_eq!(rig.tunnels(), NOTHING);
    }
}

#[test]
fn a_tunnel_stays_while_any_route_needs_it() {
    let mut rig = rig(&[], &[PEER]);
    rig.learn("10.244.3.0/24", PEER);
    rig.learn("10.244.4.0/24", PEER);
    let changed = rig.learn("10.244.3.0/24", "");
    assert_eq!((changed.routes.len(), changed.tunnels.len()), (1, 0));
    assert_eq!(rig.tunnels().len(), 1);
    rig.learn("10.244.4.0/24", "");
    assert_eq!((rig.routes(), rig.tunnels()), (vec![], vec![]));
}

#[test]
fn a_route_that_changes_its_next_hop_is_one_replacement() {
    let mut rig = rig(&[], &["192.0.2.2", "192.0.2.3"]);
    rig.learn("10.244.2.0/24", "192.0.2.2");
    let changed = rig.learn("10.244.2.0/24", "192.0.2.3");
    assert_eq!(changed.routes, [RouteKey::new(TABLE_MAIN, prefix("10.244.2.0/24"))]);
    assert_eq!(rig.routes(), ["10.244.2.0/24 via 192.0.2.3 dev eth0 proto 17"]);
    assert_eq!(rig.learn("10.244.2.0/24", "192.0.2.3"), RouteTableChanges::default(), "what is equal is no change");
}

#[test]
fn several_next_hops_share_the_traffic() {
    let mut rig = rig(&[], &["192.0.2.2", PEER]);
    rig.learn("198.51.100.0/24", "192.0.2.2 192.0.2.254 10.0.0.3 203.0.113.9");
    let name = tunnel(address(PEER));
    let expected = format!(
        "198.51.100.0/24 via 192.0.2.2 dev eth0 + via 192.0.2.254 dev eth0 + dev {name} src 192.0.2.1 proto 17"
    );
    assert_eq!(rig.routes()[1], expected, "a way that leads nowhere is none");
}

#[test]
fn ipv6_routes_go_the_same_way() {
    let mut rig = rig(&[], &["2001:db8::2", "2001:db8:3::3"]);
    rig.learn("fd00:10:244:2::/64", "2001:db8::2");
    rig.learn("fd00:10:244:3::/64", "2001:db8:3::3");
    let name = tunnel(address("2001:db8:3::3"));
    assert_eq!(
        rig.routes(),
        [
            format!("2001:db8:3::3/128 dev {name} table 77 proto 3"),
            "fd00:10:244:2::/64 via 2001:db8::2 dev eth0 proto 17".to_owned(),
            format!("fd00:10:244:3::/64 dev {name} src 2001:db8::1 proto 17"),
        ]
    );
    assert_eq!(rig.tunnels(), [format!("{name} 2001:db8::1 2001:db8:3::3")]);
}

#[test]
fn a_next_hop_of_the_other_family_stands_for_the_nodes_address_of_the_routes_own() {
    let mut rig = rig(&[], &["192.0.2.2 2001:db8::2", "10.0.0.3 2001:db8:3::3"]);
    rig.learn("fd00:10:244:2::/64", "192.0.2.2");
    rig.learn("10.244.2.0/24", "2001:db8::2");
    rig.learn("10.244.3.0/24", "2001:db8:3::3");
    let routes = rig.routes();
    assert!(routes.contains(&"fd00:10:244:2::/64 via 2001:db8::2 dev eth0 proto 17".to_owned()), "{routes:?}");
    assert!(routes.contains(&"10.244.2.0/24 via 192.0.2.2 dev eth0 proto 17".to_owned()), "{routes:?}");
    assert_eq!(rig.tunnels(), [format!("{} 192.0.2.1 10.0.0.3", tunnel(address(PEER)))]);
}

#[test]
fn a_router_without_ipv4_passes_ipv4_on_and_never_the_reverse() {
    let mut rig = rig(&[], &[]);
    rig.learn("198.51.100.0/24", "2001:db8::fe");
    rig.learn("2001:db8:77::/48", "192.0.2.254");
    assert_eq!(rig.routes(), ["198.51.100.0/24 via 2001:db8::fe dev eth0 proto 17"]);
}

#[test]
fn two_nodes_whose_tunnels_would_have_one_name_have_two() {
    let mut rig = rig(&[], &["2.13.0.4", "21.3.0.4"]);
    let other = other_tunnel(address("21.3.0.4"));
    rig.learn("10.244.3.0/24", "21.3.0.4");
    assert_eq!(rig.tunnels(), [format!("{other} 192.0.2.1 21.3.0.4")], "also before there is one to the other");
    rig.learn("10.244.4.0/24", "2.13.0.4");
    let mut expected = vec!["tun-8bbcaad3138 192.0.2.1 2.13.0.4".to_owned(), format!("{other} 192.0.2.1 21.3.0.4")];
    expected.sort();
    assert_eq!(rig.tunnels(), expected);
    let routes = rig.routes();
    assert!(routes.contains(&format!("10.244.3.0/24 dev {other} src 192.0.2.1 proto 17")), "{routes:?}");
    assert!(routes.contains(&format!("21.3.0.4/32 dev {other} table 77 proto 3")), "{routes:?}");
    rig.learn("10.244.4.0/24", "");
    assert_eq!(rig.tunnels(), [format!("{other} 192.0.2.1 21.3.0.4")], "what is learned changes no names");
    rig.nodes.remove(&address("2.13.0.4"));
    rig.note(address("2.13.0.4"), false);
    rig.routes.look_again(address("21.3.0.4"));
    rig.settle();
    assert_eq!(rig.tunnels(), [format!("{other} 192.0.2.1 21.3.0.4")], "nor is a tunnel renamed");
    rig.add_node("2.1.30.4");
    rig.learn("10.244.5.0/24", "2.1.30.4");
    assert!(rig.tunnels().contains(&"tun-8bbcaad3138 192.0.2.1 2.1.30.4".to_owned()), "{:?}", rig.tunnels());
}

#[test]
fn a_node_both_of_whose_names_are_taken_has_no_tunnel_until_one_is_free_and_takes_none_away() {
    let mut rig = rig(&["--overlay-type=full"], &[]);
    rig.names = TunnelNames::told_by(|_| LinkName("tun-1".into()), |_| LinkName("tun-2".into()));
    ["10.0.0.3", "10.0.0.4", "10.0.0.5"].into_iter().for_each(|addresses| rig.add_node(addresses));
    for (range, next_hop) in
        [("10.244.3.0/24", "10.0.0.3"), ("10.244.4.0/24", "10.0.0.4"), ("10.244.5.0/24", "10.0.0.5")]
    {
        rig.learn(range, next_hop);
    }
    let of_two = |third: &str| ["tun-1 192.0.2.1 10.0.0.3".to_owned(), format!("tun-2 192.0.2.1 {third}")];
    assert_eq!((rig.tunnels(), rig.routes.has_way(prefix("10.244.5.0/24"))), (of_two("10.0.0.4").to_vec(), false));
    rig.nodes.remove(&address("10.0.0.4"));
    rig.note(address("10.0.0.4"), false);
    rig.routes.look_again(address("10.0.0.4"));
    rig.settle();
    assert_eq!((rig.tunnels(), rig.routes.has_way(prefix("10.244.5.0/24"))), (of_two("10.0.0.5").to_vec(), true));
    // One that comes before it takes its name.
    rig.add_node("10.0.0.4");
    rig.routes.look_again(address("10.0.0.4"));
    rig.settle();
    assert_eq!((rig.tunnels(), rig.routes.has_way(prefix("10.244.5.0/24"))), (of_two("10.0.0.4").to_vec(), false));
}

#[test]
fn a_node_whose_link_address_is_another_ones_has_neither_entry_nor_way_as_long_as_that_is_so() {
    let mut rig = rig(&["--overlay-encap=vxlan"], &["2001:db8:3::3"]);
    rig.beaten.insert(address("2001:db8:3::3"));
    rig.learn("fd00:10:244:3::/64", "2001:db8:3::3");
    assert_eq!((rig.routes(), rig.routes.entries().len()), (vec![], 0));
    rig.beaten.clear();
    rig.routes.look_again(address("2001:db8:3::3"));
    assert_eq!((rig.settle().entries.len(), rig.routes().len()), (1, 2));
    rig.beaten.insert(address("2001:db8:3::3"));
    rig.routes.look_again(address("2001:db8:3::3"));
    assert_eq!((rig.settle().entries.len(), rig.routes(), rig.routes.entries().len()), (1, vec![], 0));
}

#[test]
fn a_next_hop_that_becomes_a_node_gets_its_tunnel_and_loses_it_with_the_node() {
    let mut rig = rig(&[], &[]);
    rig.learn("10.244.3.0/24", PEER);
    assert_eq!(rig.routes(), NOTHING);
    rig.add_node(PEER);
    rig.routes.look_again(address(PEER));
    rig.settle();
    assert_eq!((rig.routes().len(), rig.tunnels().len()), (2, 1));
    rig.nodes.clear();
    rig.routes.look_again(address(PEER));
    rig.settle();
    assert_eq!((rig.routes(), rig.tunnels()), (vec![], vec![]));
}

#[test]
fn another_address_of_ours_changes_tunnels_in_place() {
    let mut rig = rig(&[], &[PEER]);
    rig.learn("10.244.3.0/24", PEER);
    rig.own.addresses.v4 = Some(address("192.0.2.9"));
    rig.own.mtus = PerFamily { v4: Some(9000), v6: Some(9000) };
    rig.routes.look_at_all_again();
    let changed = rig.settle();
    assert_eq!(changed.tunnels, [tunnel(address(PEER))]);
    let found = rig.routes.tunnels().values().next().copied();
    assert_eq!(found.map(|tunnel| (tunnel.local, tunnel.mtu)), Some((address("192.0.2.9"), Some(8980))));
}

#[test]
fn tunnels_inside_udp_have_their_port_and_their_reach() {
    let mut rig = rig(&["--overlay-encap=fou", "--overlay-encap-port=6000"], &[PEER]);
    rig.learn("10.244.3.0/24", PEER);
    let tunnel = rig.routes.tunnels().values().next().copied().expect("there is one");
    assert_eq!((tunnel.udp_port, tunnel.ttl, tunnel.mtu), (Some(6000), 225, Some(1468)));
}

#[test]
fn routes_of_our_own_lead_nowhere_and_do_not_stop_the_others() {
    let mut rig = rig(&[], &["192.0.2.2"]);
    let change = |text: &str, source, next_hop: &str| RouteChange {
        prefix: prefix(text),
        best: Some(Best { source, attributes: Arc::new(Attributes::local(address(next_hop))) }),
        next_hops: vec![address(next_hop)],
    };
    let own = change("10.244.1.0/24", PeerId::LOCAL, "192.0.2.1");
    rig.routes.learn(&[own, change("10.244.2.0/24", PeerId(7), "192.0.2.2")]);
    rig.settle();
    assert_eq!(rig.routes(), ["10.244.2.0/24 via 192.0.2.2 dev eth0 proto 17"]);
}

#[test]
fn several_tunnels_share_ipv4_routes_and_of_ipv6_routes_one_counts_because_the_kernel_takes_no_more() {
    let mut rig = rig(&["--overlay-type=full"], &["192.0.2.2 2001:db8::2", "192.0.2.3 2001:db8::3"]);
    rig.learn("198.51.100.0/24", "192.0.2.2 192.0.2.3");
    rig.learn("2001:db8:51::/64", "2001:db8::2 2001:db8::3");
    let ways = |text: &str| {
        let key = RouteKey::new(TABLE_MAIN, prefix(text));
        rig.routes.routes().get(&key).expect("a route").next_hops.len()
    };
    assert_eq!((ways("198.51.100.0/24"), ways("2001:db8:51::/64")), (2, 1));
}

#[test]
fn what_a_new_speaker_does_not_learn_again_goes_when_it_has_said_all() {
    let mut rig = rig(&[], &["192.0.2.2", "192.0.2.3"]);
    rig.learn("10.244.2.0/24", "192.0.2.2");
    rig.learn("10.244.3.0/24", "192.0.2.3");
    rig.routes.mark_stale();
    rig.learn("10.244.3.0/24", "192.0.2.3");
    assert_eq!(rig.routes().len(), 2, "nothing goes before");
    rig.routes.drop_stale();
    rig.settle();
    assert_eq!(rig.routes(), ["10.244.3.0/24 via 192.0.2.3 dev eth0 proto 17"]);
}

#[test]
fn what_node_objects_give_comes_before_what_neighbours_say_before_and_after_and_goes_alone() {
    for (range, given, learned) in
        [("10.244.2.0/24", "192.0.2.2", "192.0.2.9"), ("fd00:10:244:2::/64", "2001:db8::2", "2001:db8::9")]
    {
        let mut rig = rig(&[], &["192.0.2.2 2001:db8::2"]);
        let way = |gateway: &str| [format!("{range} via {gateway} dev eth0 proto 17")];
        let give = |rig: &mut Rig, next_hops: &[&str]| {
            let next_hops: Vec<IpAddr> = next_hops.iter().map(|text| address(text)).collect();
            rig.routes.give(prefix(range), &next_hops);
            rig.settle()
        };
        rig.learn(range, learned);
        give(&mut rig, &[given]);
        assert_eq!(rig.routes(), way(given));
        assert_eq!(rig.routes.next_hops().count(), 0, "nobody asks the kernel about next hops that Nodes give");
        assert_eq!(give(&mut rig, &[given]), RouteTableChanges::default(), "nothing is new");
        // The speaker that said so is replaced, and the next one says it again.
        assert!(rig.routes.mark_stale());
        rig.learn(range, learned);
        rig.routes.drop_stale();
        rig.settle();
        assert_eq!(rig.routes(), way(given));
        give(&mut rig, &[]);
        assert_eq!(rig.routes(), way(learned), "what was learned counts again");
        give(&mut rig, &[given]);
        // One that says nothing takes nothing of Node objects along.
        assert!(rig.routes.mark_stale());
        rig.routes.drop_stale();
        rig.settle();
        assert_eq!(rig.routes(), way(given));
        let changed = give(&mut rig, &[]);
        assert_eq!((rig.routes().len(), changed.withdrawn.len()), (0, 1));
    }
}

#[test]
fn a_next_hop_that_is_another_address_of_a_node_is_behind_the_tunnel_to_that_node() {
    let name = tunnel(address(PEER));
    let gateway_v6 = gateway(address("2001:db8:3::3"));
    for (words, ways) in [
        (&[][..], [format!("dev {name}"), format!("dev {}", tunnel(address("2001:db8:3::3")))]),
        (
            &["--overlay-encap=vxlan"],
            [format!("via {PEER} dev sluice-vxlan4 onlink"), format!("via {gateway_v6} dev sluice-vxlan6")],
        ),
    ] {
        // The first address of each family is where the node's tunnels end.
        let mut rig = rig(words, &["10.0.0.3 10.0.0.4 2001:db8:3::3 2001:db8:3::4"]);
        rig.learn("10.244.3.0/24", "10.0.0.4");
        rig.learn("fd00:10:244:3::/64", "2001:db8:3::4");
        let routes = rig.routes();
        for way in &ways {
            assert!(routes.iter().any(|route| route.contains(" proto 17") && route.contains(way)), "{way}: {routes:?}");
        }
        assert!(
            routes.iter().all(|route| !route.contains("10.0.0.4") && !route.contains("2001:db8:3::4")),
            "{routes:?}"
        );
        // Of a node that has another first address since, the tunnel is another one.
        let moved = node("10.0.0.4 10.0.0.3 2001:db8:3::3 2001:db8:3::4", "");
        let both = PerFamily::from_fn(|family| moved.address(family));
        rig.nodes.values_mut().for_each(|addresses| *addresses = both);
        rig.routes.look_again(address("10.0.0.4"));
        rig.settle();
        let routes = rig.routes();
        assert!(routes.iter().any(|route| route.starts_with("10.0.0.4/32 ")), "{routes:?}");
        assert!(routes.iter().all(|route| !route.starts_with("10.0.0.3/32 ")), "{routes:?}");
    }
}
