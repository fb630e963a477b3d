use std::sync::Arc as Shared;
use std::time::Instant;

use super::*;
use crate::bfd::Path;
use crate::bgp::rib::{Best, PeerId};
use crate::bgp::speaker::Order;
use crate::config::RouterConfig;
use crate::kernel::route::{RouteKey, TABLE_MAIN};
use crate::model::{Authority, Host, Node, Prepend, Reflection, Routing, Service};
use crate::net::{ExternalPeer, Secret};
use crate::router::given::{address, config, host, node, prefix, three_nodes, with, world};
use crate::router::password_files;

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

fn plan(words: &[&str]) -> Plan {
    let config: RouterConfig = config(&[&["--enable-ipv6"], words].concat());
    Plan::new(Shared::new(config), BOTH)
}

pub(super) fn planned(words: &[&str], world: &World) -> Plan {
    let mut plan = plan(words);
    plan.update(world);
    plan
}

fn peers(plan: &Plan) -> Vec<String> {
    plan.desired().peers.keys().map(ToString::to_string).collect()
}

fn announcements(plan: &Plan) -> Vec<String> {
    let line = |(prefix, attributes): (&IpNet, &Attributes)| format!("{prefix} {}", attributes.next_hop);
    plan.desired().announcements.iter().map(line).collect()
}

fn elements(plan: &Plan) -> Vec<String> {
    plan.desired().elements.keys().map(ToString::to_string).collect()
}

fn problems(plan: &Plan) -> Vec<String> {
    plan.desired().problems.iter().map(|problem| format!("{}: {}", problem.about, problem.text)).collect()
}

fn change_node(world: &mut World, name: &str, change: impl FnOnce(&mut Routing)) {
    let node = (**world.cluster.nodes.get(&name.into()).expect("it is there")).clone();
    world.cluster.nodes.insert(name.into(), with(node, change));
}

pub(super) fn learned(text: &str, next_hop: &str) -> RouteChange {
    let next_hop = address(next_hop);
    let best = Best { source: PeerId(7), attributes: Shared::new(Attributes::local(next_hop)) };
    RouteChange { prefix: prefix(text), best: Some(best), next_hops: vec![next_hop] }
}

const NOTHING: [&str; 0] = [];

mod detected;
mod receiving;

#[test]
fn a_node_peers_with_all_others_and_announces_its_pods() {
    let plan = planned(&[], &three_nodes());
    assert_eq!(peers(&plan), ["10.0.0.3", "192.0.2.2"]);
    assert_eq!(announcements(&plan), ["10.244.1.0/24 192.0.2.1", "fd00:10:244:1::/64 2001:db8::1"]);
    let speaker = plan.desired().speaker.clone().expect("there is one");
    assert_eq!((speaker.own.asn, speaker.own.identifier.to_string()), (64512, "192.0.2.1".to_owned()));
    assert_eq!(speaker.own.cluster, speaker.own.identifier);
    let listen: Vec<String> = speaker.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["192.0.2.1:179", "[2001:db8::1]:179"]);
    assert_eq!(problems(&plan), NOTHING);
}

#[test]
fn a_speaker_is_told_what_may_pass_and_what_is_ours_before_it_meets_anybody() {
    let words = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001"];
    let plan = planned(&words, &three_nodes());
    let kinds: Vec<&str> = plan
        .desired()
        .all_orders()
        .iter()
        .map(|order| match order {
            Order::Policies(_) => "policies",
            Order::Originate(..) => "ours",
            Order::Want(_) => "neighbour",
            _ => "something else",
        })
        .collect();
    assert_eq!(kinds, ["policies", "ours", "ours", "neighbour", "neighbour", "neighbour"]);
}

#[test]
fn pods_and_addresses_of_all_nodes_are_in_the_sets_also_of_nodes_without_pods() {
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-4".into(), node("192.0.2.4", ""));
    let plan = planned(&[], &world);
    let elements = elements(&plan);
    for element in [
        "kube-router-pod-subnets 10.244.1.0/24",
        "kube-router-pod-subnets 10.244.3.0/24",
        "kube-router-node-ips 192.0.2.1",
        "kube-router-node-ips 192.0.2.4",
        "inet6:kube-router-pod-subnets fd00:10:244:2::/64",
        "inet6:kube-router-node-ips 2001:db8:3::3",
    ] {
        assert!(elements.contains(&element.to_owned()), "{element} is not in {elements:?}");
    }
    assert_eq!(elements.len(), 13);
    assert_eq!(plan.desired().sets.len(), 4);
}

#[test]
fn a_new_node_is_known_at_once_and_costs_only_itself() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    world.cluster.nodes.insert("node-4".into(), node("192.0.2.4", "10.244.4.0/24"));
    let changed = plan.update(&world);
    assert_eq!((changed.nodes_computed, changed.services_computed), (1, 0));
    assert_eq!(changed.peers, [address("192.0.2.4")].into());
    assert_eq!(changed.elements.len(), 2);
    assert!(changed.policies && !changed.speaker && changed.announcements.is_empty());
    world.cluster.nodes.remove(&"node-4".into());
    let changed = plan.update(&world);
    assert_eq!(changed.peers, [address("192.0.2.4")].into());
    let orders = plan.desired().orders(&changed);
    assert!(orders.iter().any(|order| matches!(order, Order::Remove(one, _) if *one == address("192.0.2.4"))));
}

#[test]
fn annotations_are_taken_live() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    change_node(&mut world, "node-1", |routing| routing.communities = vec![7]);
    let changed = plan.update(&world);
    assert!(!changed.speaker && changed.peers.is_empty());
    change_node(&mut world, "node-2", |routing| routing.reflection = Reflection::Client([0, 0, 0, 1].into()));
    assert_eq!(plan.update(&world).peers, [address("192.0.2.2")].into());
    assert_eq!(peers(&plan), ["10.0.0.3"], "a client of a reflector that we are not");
    change_node(&mut world, "node-1", |routing| routing.reflection = Reflection::Server([0, 0, 0, 1].into()));
    let changed = plan.update(&world);
    assert!(changed.speaker, "a reflector is another speaker, because its cluster is");
    assert!(plan.desired().peers.get(&address("192.0.2.2")).is_some_and(|wanted| wanted.client));
    assert_eq!(plan.desired().speaker.as_ref().map(|it| it.own.cluster.to_string()).as_deref(), Some("0.0.0.1"));
    change_node(&mut world, "node-1", |routing| routing.local_addresses = vec![address("192.0.2.1")]);
    let changed = plan.update(&world);
    assert!(changed.listen && !changed.speaker, "where it listens can change while sessions stand");
}

#[test]
fn another_address_of_ours_leaves_the_sessions_as_they_are() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    let mut node = (**world.cluster.nodes.get(&"node-1".into()).expect("it is there")).clone();
    let more = crate::model::NodeAddress { address: address("198.51.100.1"), ..node.addresses[0] };
    node.addresses.push(more);
    world.cluster.nodes.insert("node-1".into(), node);
    let changed = plan.update(&world);
    assert!(changed.addresses && !changed.speaker && !changed.listen && changed.peers.is_empty(), "{changed:?}");
    let orders = plan.desired().orders(&changed);
    assert!(matches!(&orders[0], Order::OwnAddresses(all) if all.contains(&address("198.51.100.1"))), "{orders:?}");
}

#[test]
fn the_kind_of_a_bfd_session_outlives_the_networks_of_a_link_that_is_down() {
    let words = ["--peer-router-ips=203.0.113.1,192.0.2.254", "--peer-router-asns=64512,64512", "--enable-bfd"];
    let mut world = three_nodes();
    let mut plan = planned(&words, &world);
    let kinds = |plan: &Plan| {
        let peers = &plan.desired().peers;
        ["203.0.113.1", "192.0.2.254"].map(|text| peers[&address(text)].liveness.expect("it is watched").path)
    };
    let before = kinds(&plan);
    assert_eq!(before, [Path::Multihop, Path::SingleHop]);
    let host_of = |addresses: &str| Shared::new(Host { node_name: world.host.node_name.clone(), ..host(addresses) });
    let (down, up) = (host_of("192.0.2.1/32"), world.host.clone());
    assert!(down.on_link.is_empty(), "addresses of IPv4 stay where a link is set down");
    for (host, kinds_then) in [(down.clone(), before), (up, before)] {
        world.host = host;
        plan.update(&world);
        assert_eq!(kinds(&plan), kinds_then);
    }
    world.host = down;
    let fresh = planned(&words, &world);
    assert_eq!(kinds(&fresh), [Path::SingleHop; 2], "without an earlier session they may be on the link");
}

#[test]
fn a_node_without_a_number_has_no_sessions_and_all_the_rest() {
    let mut world = three_nodes();
    change_node(&mut world, "node-2", |routing| routing.asn = Some(65001));
    let words = ["--nodes-full-mesh=false"];
    let mut plan = planned(&words, &world);
    assert_eq!((plan.desired().speaker.is_none(), peers(&plan).len()), (true, 0));
    assert!(!plan.desired().elements.is_empty() && !plan.desired().rules.is_empty());
    assert!(plan.desired().cni.is_some() && plan.desired().bridge.is_some());
    let [problem] = problems(&plan).try_into().expect("one problem");
    assert!(problem.contains("kube-router.io/node.asn is absent or no number"), "{problem}");
    change_node(&mut world, "node-1", |routing| routing.asn = Some(65001));
    let changed = plan.update(&world);
    assert!(changed.speaker && changed.problems);
    assert_eq!((peers(&plan), problems(&plan)), (vec!["192.0.2.2".to_owned()], vec![]));
}

#[test]
fn each_thing_that_is_wrong_is_said_in_one_sentence_and_stops_nothing_else() {
    let good = three_nodes();
    let check = |words: &[&str], change: fn(&mut World), sentence: &str, count: usize| {
        let mut world = good.clone();
        change(&mut world);
        let plan = planned(words, &world);
        let found = problems(&plan);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(sentence), "{found:?}");
        assert_eq!(plan.desired().peers.len(), count, "{sentence}");
    };
    let external = ["--peer-router-ips=203.0.113.1,203.0.113.1", "--peer-router-asns=65001,65002"];
    check(&external, |_| {}, "external peer 203.0.113.1: it is named twice; the first one counts", 3);
    let file = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001", "--peer-router-passwords-file=/p"];
    check(&file, |_| {}, "external peer 203.0.113.1: its password is not known (yet)", 2);
    let nowhere = |world: &mut World| {
        world.cluster.nodes.insert("node-4".into(), node("", "10.244.4.0/24"));
    };
    check(&[], nowhere, "Node node-4: it has no usable InternalIP or ExternalIP", 2);
    let twice = |world: &mut World| {
        world.cluster.nodes.insert("node-4".into(), node("192.0.2.2", ""));
    };
    check(&[], twice, "Node node-4: its address 192.0.2.2 is that of Node node-2 too", 2);
    let podless = |world: &mut World| {
        world.cluster.nodes.insert("node-1".into(), node("192.0.2.1 2001:db8::1", "10.244.1.0/24"));
    };
    check(&[], podless, "IPv6: the Node has no pod range of it", 2);
    let gone = |world: &mut World| {
        world.cluster.nodes.remove(&"node-1".into());
    };
    check(&[], gone, "BGP: the Node node-1 has no usable InternalIP or ExternalIP", 0);
}

#[test]
fn a_node_whose_identifier_is_ours_is_named() {
    let mut world = three_nodes();
    let addresses = "2001:db8::77 192.0.2.1";
    world.cluster.nodes.insert("node-4".into(), node(addresses, ""));
    let found = problems(&planned(&[], &world));
    assert!(
        found.iter().any(|text| text.starts_with("Node node-4: its BGP identifier is that of this node")),
        "{found:?}"
    );
}

#[test]
fn a_node_that_has_our_address_is_no_neighbour_in_either_family() {
    for addresses in ["192.0.2.1", "2001:db8::1"] {
        let mut world = three_nodes();
        world.cluster.nodes.insert("node-2".into(), node(addresses, "10.244.2.0/24"));
        let plan = planned(&[], &world);
        assert_eq!(peers(&plan), ["10.0.0.3"], "{addresses}");
        let found = problems(&plan);
        assert!(
            found.contains(&"Node node-2: its address is that of this node, so there is no session with it".to_owned()),
            "{found:?}"
        );
    }
}

#[test]
fn passwords_of_a_file_are_used_when_they_have_been_read() {
    let words = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001", "--peer-router-passwords-file=/p"];
    let mut plan = planned(&words, &three_nodes());
    let secret = Secret::from_base64("cGFzcw==").expect("base64").expect("a secret");
    let changed = plan.set_passwords(vec![Password::Key(secret)]);
    assert_eq!(changed.peers, [address("203.0.113.1")].into());
    assert!(changed.policies && changed.problems);
    assert!(plan.desired().peers[&address("203.0.113.1")].transport.password.is_some());
    plan.set_passwords(vec![Password::None]);
    assert!(plan.desired().peers[&address("203.0.113.1")].transport.password.is_none());
    plan.set_passwords(vec![Password::Unknown]);
    assert_eq!(peers(&plan).len(), 2);
}

#[test]
fn nodes_peer_when_the_password_of_their_sessions_is_known() {
    let mut plan = planned(&["--bgp-mesh-password-file=/mesh"], &three_nodes());
    assert_eq!(peers(&plan), NOTHING);
    let problem = "other nodes: the password of --bgp-mesh-password-file is not known (yet): the file must be there, with \
                   base64; there are no sessions with them";
    assert_eq!(problems(&plan), [problem], "one for all of them");
    assert!(plan.lacks_password());
    let secret = Secret::from_base64("cGFzcw==").expect("base64").expect("a secret");
    let files = |mesh| FilePasswords { mesh, ..FilePasswords::default() };
    let nodes = ["10.0.0.3", "192.0.2.2"];
    for (mesh, has) in [(Password::None, false), (Password::Key(secret), true)] {
        let changed = plan.set_file_passwords(files(mesh));
        assert_eq!(changed.peers, nodes.map(address).into());
        assert!(!plan.lacks_password());
        assert_eq!((peers(&plan), problems(&plan)), (nodes.map(str::to_owned).to_vec(), vec![]));
        assert!(plan.desired().peers.values().all(|peer| peer.transport.password.is_some() == has));
    }
    let mut late = three_nodes();
    late.cluster.nodes.insert("node-4".into(), node("192.0.2.4", "10.244.4.0/24"));
    plan.update(&late);
    assert!(plan.desired().peers[&address("192.0.2.4")].transport.password.is_some());
    let mut none = planned(&[], &three_nodes());
    assert!(none.set_file_passwords(files(Password::Unknown)).peers.is_empty(), "without the flag no file counts");
}

#[test]
fn a_peer_with_its_password_in_a_file_waits_for_that_file() {
    let mut world = three_nodes();
    let peer =
        ExternalPeer { password: Password::File("tor".into()), ..ExternalPeer::new(address("203.0.113.1"), 65001) };
    change_node(&mut world, "node-1", |routing| routing.peers = vec![peer]);
    let mut plan = planned(&["--peer-router-passwords-dir=/peers"], &world);
    assert_eq!(peers(&plan).len(), 2);
    assert!(plan.lacks_password());
    assert_eq!(*plan.routers_without_password(), [address("203.0.113.1")].into(), "it is awaited");
    let nowhere = planned(&[], &world);
    assert!(!nowhere.lacks_password(), "without the directory it never is");
    assert_eq!(password_files::names(&plan.own().routing.peers), ["tor".into()].into());
    let secret = Secret::from_base64("cGFzcw==").expect("base64").expect("a secret");
    let named = [("tor".into(), Password::Key(secret))].into();
    let changed = plan.set_file_passwords(FilePasswords { named, ..FilePasswords::default() });
    assert_eq!(changed.peers, [address("203.0.113.1")].into());
    assert!(plan.desired().peers[&address("203.0.113.1")].transport.password.is_some() && !plan.lacks_password());
    let changed = plan.set_file_passwords(FilePasswords::default());
    assert_eq!((changed.peers.len(), peers(&plan).len()), (1, 2));
}

#[test]
fn a_peer_stays_desired_while_its_password_goes_to_another_place() {
    let secret = || Password::Key(Secret::from_base64("cGFzcw==").expect("base64").expect("a secret"));
    let with = |password: Password| {
        let mut world = three_nodes();
        let peer = ExternalPeer { password, ..ExternalPeer::new(address("203.0.113.1"), 65001) };
        change_node(&mut world, "node-1", |routing| routing.peers = vec![peer]);
        world
    };
    let all: FilePasswords = FilePasswords {
        named: [("tor".into(), secret()), ("tor2".into(), secret())].into(),
        ..FilePasswords::default()
    };
    for next in [Password::File("tor2".into()), secret(), Password::File("tor".into())] {
        let mut plan = planned(&["--peer-router-passwords-dir=/peers"], &with(Password::File("tor".into())));
        let mut only = all.clone();
        only.named.retain(|name, _| name == "tor");
        plan.set_file_passwords(only);
        let world = with(next.clone());
        let named =
            password_files::names(&world.cluster.nodes.get(&"node-1".into()).expect("it is there").routing().peers);
        let is_new = next == Password::File("tor2".into());
        let names = password_files::names_meanwhile(&plan.own().routing.peers, named);
        assert_eq!(names.is_some(), is_new, "{next:?}");
        if let Some(names) = names {
            let mut read = all.clone();
            read.named.retain(|name, _| names.contains(name));
            plan.set_file_passwords(read);
        }
        assert_eq!(peers(&plan).len(), 3, "before the World counts: {next:?}");
        plan.update(&world);
        assert_eq!(peers(&plan).len(), 3, "and then: {next:?}");
    }
}

#[test]
fn what_an_administrator_says_of_a_neighbour_comes_before_what_follows_from_its_node() {
    let plan = planned(&["--peer-router-ips=192.0.2.2", "--peer-router-asns=65001"], &three_nodes());
    assert_eq!(plan.desired().peers[&address("192.0.2.2")].settings.asn, Some(65001));
}

#[test]
fn nothing_is_wanted_of_what_is_not_known() {
    let mut world = three_nodes();
    world.authority.router = Authority::Nothing;
    let mut plan = planned(&[], &world);
    let desired = plan.desired();
    assert!(desired.speaker.is_none() && desired.peers.is_empty() && desired.elements.is_empty());
    assert!(desired.sets.is_empty() && desired.rules.is_empty() && desired.cni.is_none());
    assert_eq!(problems(&plan), NOTHING, "nothing is wrong, it is only early");
    world.authority.router = Authority::Complete;
    world.authority.proxy = Authority::Nothing;
    plan.update(&world);
    assert!(plan.desired().speaker.is_none(), "what is announced first is taken for all");
    assert_eq!(elements(&plan).len(), 12);
    world.authority.proxy = Authority::Complete;
    assert!(plan.update(&world).speaker);
    assert_eq!(peers(&plan).len(), 2);
}

fn service(addresses: &[&str]) -> Service {
    Service::new(addresses.iter().map(|text| address(text)).collect(), vec![])
}

#[test]
fn a_speaker_that_awaited_services_in_vain_runs_and_announces_them_when_they_are_known() {
    let mut world = three_nodes();
    world.cluster.services.insert(ObjectName::new("default", "a"), service(&["10.96.0.9", "fd00:96::9"]));
    world.authority.proxy = Authority::Nothing;
    let mut plan = planned(&["--advertise-cluster-ip"], &world);
    assert!(plan.desired().speaker.is_none());
    assert!(plan.go_without_services().speaker);
    assert_eq!((peers(&plan).len(), announcements(&plan).len()), (2, 2), "the ranges of its own pods");
    world.authority.proxy = Authority::Complete;
    let changed = plan.update(&world);
    assert!(!changed.speaker && changed.peers.is_empty(), "sessions stand: {changed:?}");
    assert_eq!((peers(&plan).len(), announcements(&plan).len()), (2, 2), "nobody serves them yet");
    let changed = plan.announce_services();
    assert!(!changed.speaker && changed.peers.is_empty(), "sessions stand: {changed:?}");
    assert_eq!((peers(&plan).len(), announcements(&plan).len()), (2, 4));
}

#[test]
fn an_address_that_two_services_share_is_announced_until_the_last_of_them_goes() {
    let mut world = three_nodes();
    let name = |name| ObjectName::new("default", name);
    world.cluster.services.insert(name("a"), service(&["10.96.0.9"]));
    world.cluster.services.insert(name("b"), service(&["10.96.0.9", "10.96.0.10"]));
    let mut plan = planned(&["--advertise-cluster-ip"], &world);
    assert_eq!(announcements(&plan).len(), 4);
    world.cluster.services.remove(&name("a"));
    let changed = plan.update(&world);
    assert_eq!((changed.services_computed, changed.announcements.len(), changed.policies), (1, 0, false));
    world.cluster.services.remove(&name("b"));
    let changed = plan.update(&world);
    assert_eq!((changed.announcements.len(), changed.policies), (2, true));
    assert_eq!(announcements(&plan).len(), 2);
}

#[test]
fn the_address_of_a_node_is_nobodys_service_address() {
    let mut world = three_nodes();
    let words = ["--advertise-cluster-ip"];
    world.cluster.services.insert(ObjectName::new("default", "a"), service(&["192.0.2.2", "192.0.2.77"]));
    let mut plan = planned(&words, &world);
    assert_eq!(announcements(&plan)[1..], ["192.0.2.77/32 192.0.2.1", "fd00:10:244:1::/64 2001:db8::1"]);
    assert_eq!(problems(&plan), ["service address 192.0.2.2: it is an address of a node; it is not announced"]);
    world.cluster.nodes.remove(&"node-2".into());
    let changed = plan.update(&world);
    assert_eq!(changed.announcements, [prefix("192.0.2.2/32")].into());
    assert_eq!(problems(&plan), NOTHING);
}

/// A first look at pod ranges.
pub(super) fn at_first() -> Circumstances {
    let now = Instant::now();
    Circumstances { now, since: now, nodes_are_read: true }
}

#[test]
fn learned_routes_and_their_tunnels_follow_the_nodes() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    let unreached = |plan: &mut Plan| plan.unreached(at_first(), |_, _| false);
    assert_eq!(unreached(&mut plan).count, 4);
    let changed = plan.learn(&[learned("10.244.2.0/24", "192.0.2.2"), learned("10.244.3.0/24", "10.0.0.3")]);
    assert_eq!((changed.routes.len(), changed.tunnels.len()), (3, 1));
    let missing = "no route yet to pods: fd00:10:244:2::/64 of Node node-2, fd00:10:244:3::/64 of Node node-3";
    let found = unreached(&mut plan);
    assert_eq!((found.missing.as_deref(), found.trouble), (Some(missing), None));
    world.cluster.nodes.remove(&"node-3".into());
    let changed = plan.update(&world);
    assert_eq!((changed.routes.len(), changed.tunnels.len()), (2, 1));
    assert_eq!(plan.routes().tunnels().len(), 0, "no tunnel leads to what is no node any more");
}

#[test]
fn a_host_that_moves_looks_at_all_its_routes_again() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    plan.learn(&[learned("10.244.3.0/24", "10.0.0.3")]);
    assert_eq!(plan.routes().tunnels().len(), 1);
    world.host = Shared::new(host("192.0.2.1/24 2001:db8::1/64 10.0.0.1/24"));
    plan.update(&world);
    assert_eq!(plan.routes().tunnels().len(), 0, "it is on our link now");
    assert_eq!(plan.routes().routes().len(), 1);
}

#[test]
fn what_the_host_needs_follows_from_its_node() {
    let mut world = three_nodes();
    let plan = planned(&[], &world);
    let cni = plan.desired().cni.clone().expect("it is kept");
    assert_eq!(cni.ranges, [prefix("10.244.1.0/24"), prefix("fd00:10:244:1::/64")]);
    assert_eq!((cni.mtu, plan.desired().bridge.map(|bridge| bridge.mtu)), (Some(1500), Some(Some(1500))));
    let rules: Vec<String> = plan.desired().source_rules.keys().map(ToString::to_string).collect();
    assert_eq!(rules, ["from 10.244.1.0/24 lookup 77", "from fd00:10:244:1::/64 lookup 77"]);
    assert!(plan.desired().receive_ports.is_empty());
    assert_eq!(plan.desired().rules.len(), 8, "two chains and two jumps in each family");
    let fou = planned(&["--overlay-encap=fou"], &world);
    let ports: Vec<String> = fou.desired().receive_ports.keys().map(ToString::to_string).collect();
    assert_eq!(ports, ["port 5555 IPv4", "port 5555 IPv6"]);
    let plain = planned(&["--enable-overlay=false", "--enable-pod-egress=false", "--enable-cni=false"], &world);
    assert!(plain.desired().source_rules.is_empty() && plain.desired().cni.is_none());
    assert_eq!(plain.desired().rules.len(), 4);
    assert!(plain.desired().bridge.is_some(), "pods need it all the same");
    world.cluster.nodes.insert("node-1".into(), node("192.0.2.1 2001:db8::1", "10.244.9.0/24"));
    let mut moved = plan;
    let changed = moved.update(&world);
    assert!(changed.cni && changed.source_rules.len() == 3, "rules of earlier ranges go");
}

#[test]
fn a_family_that_is_off_does_not_exist() {
    let config = config(&[]);
    let mut plan = Plan::new(Shared::new(config), PerFamily { v4: true, v6: false });
    plan.update(&three_nodes());
    let desired = plan.desired();
    assert!(desired.announcements.keys().all(|prefix| prefix.addr().is_ipv4()));
    assert!(desired.peers.values().all(|wanted| !wanted.settings.families.v6));
    assert_eq!((desired.sets.len(), desired.rules.len(), elements(&plan).len()), (2, 4, 6));
    assert_eq!(plan.unreached(at_first(), |_, _| false).count, 2);
}

#[test]
fn a_pod_range_that_stays_without_a_route_is_trouble_with_its_reason_and_a_node_that_is_down_is_none() {
    let mut world = three_nodes();
    change_node(&mut world, "node-1", |routing| routing.import_reject = vec![prefix("10.244.3.0/24")]);
    world.cluster.nodes.insert("node-2".into(), node("192.0.2.2 2001:db8::2", "10.0.0.0/24 fd00:10:244:2::/64"));
    let mut plan = planned(&[], &world);
    let down = plan.unreached(at_first(), |_, _| false);
    let refused = "pods cannot be reached: 10.0.0.0/24 of Node node-2 (it contains 10.0.0.3, an address of Node node-3), \
                   10.244.3.0/24 of Node node-3 (kube-router.io/node.bgp.customimportreject of this node names 10.244.3.0/24)";
    let awaited = "no route yet to pods: fd00:10:244:2::/64 of Node node-2, fd00:10:244:3::/64 of Node node-3";
    assert_eq!((down.count, down.trouble.as_deref(), down.missing.as_deref()), (4, Some(refused), Some(awaited)));
    plan.look_at_peer(address("192.0.2.2"));
    let silent = plan.unreached(at_first(), |peer, family| peer == address("192.0.2.2") && family == Family::V6);
    let said = format!(
        "{}, fd00:10:244:2::/64 of Node node-2 (it does not announce it), {}",
        refused.split_once("), ").map_or("", |(first, _)| first).to_owned() + ")",
        refused.split_once("), ").map_or("", |(_, second)| second)
    );
    assert_eq!(silent.trouble, Some(said));
    assert_eq!(
        problems(&plan),
        [
            "Node node-2: routes to its pod range 10.0.0.0/24 are refused, its pods cannot be reached: it contains 10.0.0.3, an \
             address of Node node-3",
            "Node node-3: routes to its pod range 10.244.3.0/24 are refused, its pods cannot be reached: \
             kube-router.io/node.bgp.customimportreject of this node names 10.244.3.0/24",
        ]
    );
    let mut alone = planned(&["--enable-ibgp=false"], &world);
    assert_eq!(alone.unreached(at_first(), |_, _| true), Unreached::default());
    assert_eq!(problems(&alone), NOTHING);
}

#[test]
fn two_nodes_with_one_pod_range_are_named() {
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-3".into(), node("10.0.0.3", "10.244.2.0/24 10.244.1.0/24"));
    let plan = planned(&[], &world);
    assert_eq!(
        problems(&plan),
        [
            "Node node-3: its pod range 10.244.2.0/24 is that of Node node-2 too; pods of one of them cannot be reached",
            "Node node-3: routes to its pod range 10.244.1.0/24 are refused, its pods cannot be reached: it overlaps 10.244.1.0/24, a \
             pod range of this node",
        ]
    );
}

#[test]
fn clusters_of_ipv6_alone_work_the_same_way() {
    let six = |number: u8| node(&format!("2001:db8::{number}"), &format!("fd00:10:244:{number}::/64"));
    let world = world(host("2001:db8::1/64"), &[("node-1", six(1)), ("node-2", six(2))]);
    let config = config(&["--enable-ipv4=false", "--enable-ipv6"]);
    let mut plan = Plan::new(Shared::new(config), PerFamily { v4: false, v6: true });
    plan.update(&world);
    assert_eq!((peers(&plan), problems(&plan)), (vec!["2001:db8::2".to_owned()], vec![]));
    assert_eq!(announcements(&plan), ["fd00:10:244:1::/64 2001:db8::1"]);
    let id = plan.desired().speaker.as_ref().map(|speaker| speaker.own.identifier);
    assert!(id.is_some_and(|id| !id.is_unspecified()), "a node without IPv4 has an identifier all the same");
}

#[test]
fn prepending_needs_no_new_sessions() {
    let mut world = three_nodes();
    let mut plan = planned(&["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001"], &world);
    change_node(&mut world, "node-1", |routing| routing.prepend = Some(Prepend { asn: 65000, times: 2 }));
    let changed = plan.update(&world);
    assert!(changed.policies && changed.peers.is_empty() && changed.announcements.is_empty());
}

#[test]
fn only_the_pod_ranges_of_nodes_about_which_something_is_new_are_looked_at() {
    let mut world = three_nodes();
    for number in 10..110 {
        let ranges = format!("10.244.{number}.0/24 fd00:10:244:{number}::/64");
        world.cluster.nodes.insert(format!("node-{number}").into(), node(&format!("192.0.2.{number}"), &ranges));
    }
    let mut plan = planned(&[], &world);
    let looks = |plan: &mut Plan| {
        let before = plan.pod_ranges_looked_at();
        let count = plan.unreached(at_first(), |peer, _| peer == address("192.0.2.12")).count;
        (plan.pod_ranges_looked_at() - before, count)
    };
    assert_eq!(looks(&mut plan), (103, 204), "all at first, our own among them");
    assert_eq!(looks(&mut plan), (0, 204));
    plan.learn(&[learned("10.244.10.0/24", "192.0.2.10"), learned("203.0.113.0/24", "192.0.2.2")]);
    assert_eq!(looks(&mut plan), (1, 203));
    plan.learn(&[RouteChange { prefix: prefix("10.244.10.0/24"), best: None, next_hops: Vec::new() }]);
    assert_eq!(looks(&mut plan), (1, 204));
    plan.look_at_peer(address("192.0.2.12"));
    assert_eq!(looks(&mut plan), (1, 204));
    world.cluster.services.insert(ObjectName::new("default", "web"), service(&["10.96.0.1"]));
    plan.update(&world);
    assert_eq!(looks(&mut plan), (0, 204));
    world.cluster.nodes.insert("node-11".into(), node("192.0.2.11", "10.244.11.0/24"));
    world.cluster.nodes.remove(&"node-20".into());
    plan.update(&world);
    assert_eq!(looks(&mut plan), (2, 201));
}

#[test]
fn who_lists_the_address_of_another_node_takes_neither_its_tunnel_nor_its_session() {
    for (victim, range, own_ones) in
        [("10.0.0.3", "10.244.3.0/24", "192.0.2.9"), ("2001:db8:3::3", "fd00:10:244:3::/64", "2001:db8::9")]
    {
        let nodes = |name: &'static str, claimed: String, created| {
            let claiming = Node { created, ..node(&claimed, "10.244.9.0/24") };
            let claiming = with(claiming, |routing| routing.reflection = Reflection::Client([0, 0, 0, 1].into()));
            let own = node("192.0.2.1 2001:db8::1", "10.244.1.0/24");
            let own = with(own, |routing| routing.reflection = Reflection::Server([0, 0, 0, 1].into()));
            let third = Node { created: 10, ..node(victim, range) };
            [("node-1", own), ("node-3", third), (name, claiming)]
        };
        for name in ["node-0", "node-9"] {
            let host = host("192.0.2.1/24 2001:db8::1/64");
            // Behind its own address, however old it is; and in front, where it is younger.
            for (claimed, created) in [(format!("{own_ones} {victim}"), 1), (victim.to_owned(), 20)] {
                let world = world(host.clone(), &nodes(name, claimed, created));
                let plan = planned(&["--overlay-type=full", "--node-routes=api"], &world);
                let next_hop = plan.routes().routes().get(&RouteKey::new(TABLE_MAIN, prefix(range))).cloned();
                let link = next_hop.expect("its pods are reached").next_hops[0].link.clone();
                assert_eq!(plan.routes().tunnels()[&link].remote, address(victim), "{name} {created}");
                assert!(!planned(&[], &world).desired().peers[&address(victim)].client, "{name} {created}");
            }
        }
    }
}

#[test]
fn of_the_addresses_of_a_node_eight_keep_the_addresses_of_pods() {
    let many: String = (1..100).map(|number| format!(" 198.51.100.{number}")).collect();
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-9".into(), node(&format!("192.0.2.9{many}"), ""));
    let plan = planned(&[], &world);
    assert_eq!(elements(&plan).iter().filter(|text| text.contains("198.51.100.")).count(), 7);
    assert_eq!(plan.masquerade(address("198.51.100.7")), Masquerade::ToNode);
    assert_eq!(plan.masquerade(address("198.51.100.8")), Masquerade::ToOutside);
    // What our own Node lists is ours.
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-1".into(), node(&format!("192.0.2.1{many}"), ""));
    assert_eq!(planned(&[], &world).masquerade(address("198.51.100.99")), Masquerade::ToNode);
}
