//! The router's plan: what it wants does not depend on how it came there, and work follows the change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use sluice::bgp::message::Attributes;
use sluice::bgp::rib::{Best, PeerId, RouteChange};
use sluice::config::RouterConfig;
use sluice::kernel::link::LinkName;
use sluice::kernel::tunnel::Tunnel;
use sluice::model::{
    AnnounceAnnotations, Authority, Cluster, Host, HostLink, Node, NodeAddress, NodeAddressKind, OnLink, Prepend,
    Reflection, Routing, UnreadPeers, World,
};
use sluice::net::{ExternalPeer, Password, PerFamily, PublicKey};
use sluice::reconcile::Sorted;
use sluice::router::desired::RouterChanges;
use sluice::router::drain::Stage;
use sluice::router::plan::{Circumstances, Plan};

use crate::support::random::{Random, for_many};
use crate::support::{flags, generate};

const NODES: [&str; 5] = ["node1", "node2", "node3", "node4", "node5"];
/// Some of several nodes, some of none, on the link and elsewhere; two whose tunnels would have one name.
const ADDRESSES: [&str; 10] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "10.0.0.3",
    "21.3.0.4",
    "2.13.0.4",
    "2001:db8::2",
    "2001:db8::3",
    "2001:db8:3::3",
    "203.0.113.1",
];
/// Some with addresses of nodes inside.
const RANGES: [&str; 10] = [
    "10.244.0.0/24",
    "10.244.1.0/24",
    "10.244.0.0/22",
    "10.244.1.128/25",
    "10.244.2.0/24",
    "10.96.0.0/24",
    "10.0.0.0/24",
    "fd00:10:244:1::/64",
    "fd00:10:244:2::/64",
    "2001:db8:3::/64",
];

pub struct Setup {
    pub config: Arc<RouterConfig>,
    pub families: PerFamily<bool>,
}

/// Everything that a plan is made from.
#[derive(Clone)]
pub struct Inputs {
    pub world: World,
    pub learned: BTreeMap<IpNet, Vec<IpAddr>>,
    pub passwords: Vec<Password>,
    /// Whether, and how far, the node drains.
    pub stage: Stage,
}

pub fn setup(random: &mut Random) -> Setup {
    let mut words = vec!["--enable-ipv6=true"];
    for word in [
        "--overlay-type=full",
        "--enable-overlay=false",
        "--nodes-full-mesh=false",
        "--enable-ibgp=false",
        "--node-routes=api",
        "--router-id=generate",
        "--bgp-graceful-restart=true",
        "--advertise-cluster-ip=true",
        "--advertise-pod-cidr=false",
        "--override-nexthop=true",
        "--strict-external-ip-validation=false",
        "--netfilter=nftables",
    ] {
        if random.chance(30) {
            words.push(word);
        }
    }
    words.extend(*random.pick(&[
        None,
        None,
        Some("--overlay-encap=fou"),
        Some("--overlay-encap=vxlan"),
        Some("--overlay-encap=wireguard"),
    ]));
    let sent = words.iter().find_map(|word| word.strip_prefix("--overlay-encap=")).unwrap_or("ipip").to_owned();
    let received = ["ipip", "fou", "vxlan", "wireguard"].into_iter().filter(|kind| *kind != sent);
    let received: Vec<&str> = received.filter(|_| random.chance(25)).collect();
    let received = format!("--overlay-encap-receive={}", received.join(","));
    if !received.ends_with('=') && !words.contains(&"--enable-overlay=false") {
        words.push(&received);
    }
    if random.chance(40) {
        words.extend(["--peer-router-ips=203.0.113.1,192.0.2.2", "--peer-router-asns=65001,65002"]);
        words.push("--peer-router-passwords-file=/etc/peers");
    }
    if random.chance(30) {
        words.push("--enable-ipv6=false");
    }
    words.insert(0, "sluice");
    let config = flags::meant(&words);
    Setup { config: Arc::new(config.router.expect("the router is not switched off")), families: config.families }
}

fn at_once(setup: &Setup, inputs: &Inputs, tunnels: &BTreeMap<LinkName, Tunnel>) -> Plan {
    let mut plan = Plan::new(setup.config.clone(), setup.families).with_tunnels(tunnels.clone());
    let mut world = generate::copied(&inputs.world);
    world.host = Arc::new((*inputs.world.host).clone());
    plan.set_passwords(inputs.passwords.clone());
    plan.stand(inputs.stage);
    plan.update(&world);
    let all: Vec<RouteChange> = inputs.learned.iter().map(|(prefix, hops)| learned(*prefix, hops)).collect();
    plan.learn(&all);
    plan
}

pub fn learned(prefix: IpNet, next_hops: &[IpAddr]) -> RouteChange {
    let best =
        next_hops.first().map(|first| Best { source: PeerId::FIRST, attributes: Arc::new(Attributes::local(*first)) });
    RouteChange { prefix, best, next_hops: next_hops.to_vec() }
}

pub fn start() -> Inputs {
    let mut world = generate::empty_world();
    world.authority.router = Authority::Complete;
    world.host = Arc::new(host(true));
    Inputs { world, learned: BTreeMap::new(), passwords: Vec::new(), stage: Stage::default() }
}

fn host(wide: bool) -> Host {
    let mut host = generate::host(true);
    let network = |text: &str| OnLink { prefix: text.parse().expect("a prefix"), link: "eth0".into() };
    host.on_link = vec![network("192.0.2.0/24"), network("2001:db8::/64")];
    if wide {
        host.on_link.insert(0, network("10.0.0.0/24"));
    }
    host.links = vec![HostLink { name: "eth0".into(), mtu: 1500, bridge: false }];
    host
}

/// Changes one input, hands it to the plan and says what it was.
pub fn step(inputs: &mut Inputs, plan: &mut Plan, random: &mut Random) -> (String, RouterChanges) {
    let what = match random.below(100) {
        0..=29 => {
            let name = *random.pick(&NODES);
            let known = inputs.world.cluster.nodes.get(&name.into()).cloned();
            let new = node(random);
            match known.filter(|_| random.chance(25)) {
                // The control plane gives it ranges, or somebody annotates those that it has.
                Some(known) => {
                    let node = Node { spec_pod_cidrs: new.spec_pod_cidrs, ..(*known).clone() };
                    inputs.world.cluster.nodes.insert(name.into(), node);
                    format!("change the spec of {name}")
                }
                None => {
                    inputs.world.cluster.nodes.insert(name.into(), new);
                    format!("put {name}")
                }
            }
        }
        30..=36 => {
            let name = *random.pick(&NODES);
            inputs.world.cluster.nodes.remove(&name.into());
            format!("remove {name}")
        }
        37..=41 => {
            inputs.world.host = Arc::new(host(random.chance(50)));
            "change the host".to_owned()
        }
        42..=45 => {
            let known = |random: &mut Random| if random.chance(60) { Authority::Complete } else { Authority::Nothing };
            inputs.world.authority.proxy = known(random);
            inputs.world.authority.router = known(random);
            "know more or less".to_owned()
        }
        46..=70 => {
            let prefix: IpNet = random.pick(&RANGES).parse().expect("a prefix");
            let hops: Vec<IpAddr> = (0..random.below(4)).map(|_| address(random)).collect();
            match hops.is_empty() {
                true => inputs.learned.remove(&prefix),
                false => inputs.learned.insert(prefix, hops.clone()),
            };
            return (format!("learn {prefix} by {hops:?}"), plan.learn(&[learned(prefix, &hops)]));
        }
        71..=74 => {
            let password = |random: &mut Random| if random.chance(50) { Password::None } else { Password::Unknown };
            inputs.passwords = (0..random.below(3)).map(|_| password(random)).collect();
            return ("read the passwords".to_owned(), plan.set_passwords(inputs.passwords.clone()));
        }
        75..=77 => {
            inputs.stage = *random.pick(&[Stage::Announced, Stage::Leaving, Stage::Withdrawn]);
            return (format!("stand {:?}", inputs.stage), plan.stand(inputs.stage));
        }
        _ => change_services(&mut inputs.world, random),
    };
    (what, plan.update(&inputs.world))
}

fn change_services(world: &mut World, random: &mut Random) -> String {
    let nodes = world.cluster.nodes.clone();
    let host = world.host.clone();
    let what = generate::change(world, random);
    // Those are changed by others here.
    world.cluster.nodes = nodes;
    world.host = host;
    let names = world.cluster.services.iter().map(|(name, service)| (name.clone(), service.clone()));
    if let Some((name, service)) = random.pick_from(names)
        && random.chance(30)
    {
        let mut service = (*service).clone();
        let mut said = || random.chance(50).then(|| random.chance(70));
        service.announce = AnnounceAnnotations { cluster_ips: said(), external_ips: said(), load_balancer_ips: said() };
        world.cluster.services.insert(name, service);
    }
    what
}

fn address(random: &mut Random) -> IpAddr {
    random.pick(&ADDRESSES).parse().expect("an address")
}

fn node(random: &mut Random) -> Node {
    let mut addresses: Vec<NodeAddress> = Vec::new();
    for _ in 0..random.below(4) {
        let kind = if random.chance(80) { NodeAddressKind::Internal } else { NodeAddressKind::External };
        let address = address(random);
        if !addresses.iter().any(|one| one.address == address) {
            addresses.push(NodeAddress { kind, address });
        }
    }
    let mut pod_cidrs: Vec<IpNet> = Vec::new();
    for _ in 0..random.below(3) {
        let range = random.pick(&RANGES).parse().expect("a prefix");
        if !pod_cidrs.contains(&range) {
            pod_cidrs.push(range);
        }
    }
    // An annotation names them: some of them, none, or others are in the spec.
    let spec_pod_cidrs = random.chance(30).then(|| {
        let mut spec: Vec<IpNet> = pod_cidrs.iter().filter(|_| random.chance(50)).copied().collect();
        spec.extend(random.chance(30).then(|| random.pick(&RANGES).parse::<IpNet>().expect("a prefix")));
        spec.into()
    });
    let routing = random.chance(40).then(|| Box::new(routing(random)));
    Node {
        created: random.below(3) as i64,
        addresses,
        pod_cidrs,
        spec_pod_cidrs,
        should_announce: random.chance(50),
        // Sometimes that of another node.
        wireguard_key: random.chance(70).then(|| PublicKey::new(&[1 + random.below(6) as u8; 32])).flatten(),
        wireguard_next_key: random.chance(20).then(|| PublicKey::new(&[1 + random.below(9) as u8; 32])).flatten(),
        routing: routing.filter(|routing| **routing != Routing::default()),
        ..Node::default()
    }
}

fn routing(random: &mut Random) -> Routing {
    let cluster = Ipv4Addr::from_bits(1 + random.below(2) as u32);
    Routing {
        asn: random.chance(60).then(|| 65001 + random.below(2) as u32),
        reflection: *random.pick(&[Reflection::None, Reflection::Server(cluster), Reflection::Client(cluster)]),
        prepend: random.chance(20).then_some(Prepend { asn: 65000, times: 2 }),
        communities: if random.chance(20) { vec![7] } else { Vec::new() },
        import_reject: random.chance(20).then(|| "198.51.100.0/24".parse().expect("a prefix")).into_iter().collect(),
        peers: (0..random.below(2)).map(|_| ExternalPeer::new(address(random), 65001)).collect(),
        local_addresses: random.chance(20).then(|| address(random)).into_iter().collect(),
        unread_peers: if random.chance(20) { UnreadPeers::List } else { UnreadPeers::None },
    }
}

#[test]
fn a_routers_plan_after_any_history_equals_the_one_made_at_once() {
    for_many(150, |random| {
        let setup = setup(random);
        let mut plan = Plan::new(setup.config.clone(), setup.families);
        let mut inputs = start();
        let mut sent: BTreeSet<IpAddr> = BTreeSet::new();
        let began = Instant::now();
        plan.update(&inputs.world);
        for _ in 0..50 {
            let mut history = Vec::new();
            for _ in 0..1 + random.below(3) {
                history.push(step(&mut inputs, &mut plan, random).0);
            }
            // What a speaker says of a Node that is none any more, or several, is held back until it has said that it is not so.
            let held: Vec<RouteChange> = inputs
                .learned
                .iter()
                .filter(|(prefix, _)| plan.routes().has_lost(**prefix))
                .map(|(prefix, hops)| learned(*prefix, hops))
                .collect();
            let nothing: Vec<RouteChange> = held.iter().map(|one| learned(one.prefix, &[])).collect();
            plan.learn(&nothing);
            plan.learn(&held);
            let mut fresh = at_once(&setup, &inputs, plan.routes().tunnels());
            same_rows(&plan.desired().peers, &fresh.desired().peers, &history);
            same_rows(&plan.desired().announcements, &fresh.desired().announcements, &history);
            same_rows(&plan.desired().elements, &fresh.desired().elements, &history);
            same_rows(&plan.desired().table, &fresh.desired().table, &history);
            same_rows(&plan.desired().wireguard_peers, &fresh.desired().wireguard_peers, &history);
            same_rows(plan.routes().routes(), fresh.routes().routes(), &history);
            same_rows(plan.routes().tunnels(), fresh.routes().tunnels(), &history);
            same_rows(plan.routes().entries(), fresh.routes().entries(), &history);
            assert_eq!(plan.desired().problems, fresh.desired().problems, "{history:?}");
            assert_eq!(plan.desired(), fresh.desired(), "{history:?}");
            // A neighbour has sent everything, or has not any more.
            let peer = address(random);
            if !sent.remove(&peer) {
                sent.insert(peer);
            }
            plan.look_at_peer(peer);
            let has_sent_all = |peer: IpAddr, _| sent.contains(&peer);
            let around = Circumstances { now: began, since: began, nodes_are_read: true };
            let unreached = plan.unreached(around, has_sent_all);
            assert_eq!(unreached, fresh.unreached(around, has_sent_all), "{history:?}");
        }
    });
}

fn same_rows<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    found: &impl Sorted<K, V>,
    expected: &impl Sorted<K, V>,
    history: &[String],
) {
    for (key, _) in found.entries().chain(expected.entries()) {
        assert_eq!(found.value(key), expected.value(key), "{key:?} after {history:?}");
    }
}

#[test]
fn what_an_update_of_the_router_does_not_name_has_not_changed() {
    for_many(150, |random| {
        let setup = setup(random);
        let mut plan = Plan::new(setup.config.clone(), setup.families);
        let mut inputs = start();
        plan.update(&inputs.world);
        for _ in 0..50 {
            let (older, routes, tunnels) =
                (plan.desired().clone(), plan.routes().routes().clone(), plan.routes().tunnels().clone());
            let entries = plan.routes().entries().clone();
            let (own, cluster) = (plan.own().clone(), inputs.world.cluster.clone());
            let known = (inputs.world.authority.proxy, inputs.world.authority.router);
            let (what, changed) = step(&mut inputs, &mut plan, random);
            let newer = plan.desired();
            named(&older.peers, &newer.peers, &changed.peers, &what);
            named(&older.announcements, &newer.announcements, &changed.announcements, &what);
            named(&older.elements, &newer.elements, &changed.elements.iter().cloned().collect(), &what);
            named(&older.sets, &newer.sets, &changed.sets.iter().cloned().collect(), &what);
            named(&older.rules, &newer.rules, &changed.rules.iter().cloned().collect(), &what);
            named(&older.table, &newer.table, &changed.table.iter().cloned().collect(), &what);
            named(&older.passages, &newer.passages, &changed.passages.iter().copied().collect(), &what);
            named(&older.source_rules, &newer.source_rules, &changed.source_rules.iter().copied().collect(), &what);
            named(&older.receive_ports, &newer.receive_ports, &changed.receive_ports.iter().copied().collect(), &what);
            named(&routes, plan.routes().routes(), &changed.routes.iter().cloned().collect(), &what);
            named(&tunnels, plan.routes().tunnels(), &changed.tunnels.iter().cloned().collect(), &what);
            named(&entries, plan.routes().entries(), &changed.overlay_entries.iter().cloned().collect(), &what);
            let peers = changed.wireguard_peers.iter().cloned().collect();
            named(&older.wireguard_peers, &newer.wireguard_peers, &peers, &what);
            let devices = changed.wireguard_devices.iter().cloned().collect();
            named(&older.wireguard_devices, &newer.wireguard_devices, &devices, &what);
            let devices = changed.overlay_devices.iter().cloned().collect();
            named(&older.overlay_devices, &newer.overlay_devices, &devices, &what);
            assert!(changed.policies || older.policies == newer.policies, "{what}");
            assert!(changed.cni || older.cni == newer.cni, "{what}");
            assert!(changed.bridge || older.bridge == newer.bridge, "{what}");
            assert!(changed.problems || older.problems == newer.problems, "{what}");
            let [before, after] = [&older.speaker, &newer.speaker].map(|speaker| speaker.as_ref());
            assert!(changed.speaker || before.map(|one| one.own) == after.map(|one| one.own), "{what}");
            assert!(changed.listen || before.map(|one| &one.listen) == after.map(|one| &one.listen), "{what}");
            assert!(changed.addresses || before.map(|one| &one.addresses) == after.map(|one| &one.addresses), "{what}");
            if own == *plan.own() && known == (inputs.world.authority.proxy, inputs.world.authority.router) {
                let ranges_move = what.contains("ServiceCIDR");
                let rows = match ranges_move {
                    true => inputs.world.cluster.services.len(),
                    false => rows_changed(&cluster, &inputs.world.cluster),
                };
                // What annotations name is judged again where what was given to another node is otherwise than before.
                let nodes = &inputs.world.cluster.nodes;
                let annotated = nodes.iter().filter(|(_, node)| node.spec_pod_cidrs.is_some()).count();
                assert!(changed.nodes_computed + changed.services_computed <= rows + annotated, "{what}: {changed:?}");
            }
        }
    });
}

fn rows_changed(older: &Cluster, newer: &Cluster) -> usize {
    let nodes = newer.nodes.changes_since(&older.nodes).count();
    let mut services: BTreeSet<_> = newer.services.changes_since(&older.services).map(|c| c.key().clone()).collect();
    services.extend(newer.endpoints.changes_since(&older.endpoints).map(|c| c.key().clone()));
    nodes + services.len()
}

fn named<K: Ord + std::fmt::Debug, V: PartialEq>(
    older: &impl Sorted<K, V>,
    newer: &impl Sorted<K, V>,
    named: &BTreeSet<K>,
    what: &str,
) {
    for (key, _) in older.entries().chain(newer.entries()) {
        assert!(
            named.contains(key) || older.value(key) == newer.value(key),
            "{what}: {key:?} changed and is not named"
        );
    }
}
