//! Routes to pods of other nodes from sessions between nodes and from Node objects alone (`--node-routes`): both ways give the same
//! ones, and a change from one to the other writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use sluice::bgp::message::Attributes;
use sluice::bgp::rib::{Best, PeerId, RouteChange};
use sluice::kernel::address::AddressKey;
use sluice::kernel::link::LinkName;
use sluice::kernel::route::{Route, RouteKey, TABLE_MAIN};
use sluice::kernel::tunnel::Tunnel;
use sluice::model::{Authority, Node, NodeAddress, NodeAddressKind, Reflection, World};
use sluice::net::Family;
use sluice::reconcile::Moment;
use sluice::router::apply::{Leave, Mirrors};
use sluice::router::desired::RouterChanges;
use sluice::router::plan::{Circumstances, Plan};

use crate::cluster::{Cluster, External, address, prefix};
use crate::support::memory::{MemoryKernel, State};
use crate::support::random::{Random, for_many};

/// A node of a cluster made by chance.
struct Member {
    networks: Vec<IpNet>,
    addresses: Vec<NodeAddress>,
    ranges: String,
    reflection: Reflection,
}

const CLUSTER_ID: Reflection = Reflection::Client(std::net::Ipv4Addr::new(0, 0, 0, 7));

fn members(random: &mut Random) -> Vec<Member> {
    let has_reflectors = random.chance(25);
    let members = (1..=2 + random.below(5)).map(|number| {
        // Reflectors carry what all others say, so they speak both families.
        let families = if has_reflectors { "both" } else { *random.pick(&["v4", "v6", "both", "both", "both"]) };
        let link = *random.pick(&["192.0.2", "192.0.2", "198.51.100"]);
        member(number, link, families, random)
    });
    let mut members: Vec<Member> = members.collect();
    // A reflector passes on one of several routes, so clients do not know all who have a range.
    if !has_reflectors && random.chance(30) {
        let shared = ranges(99, random);
        members.iter_mut().take(2).for_each(|member| member.ranges = format!("{} {shared}", member.ranges));
    }
    if has_reflectors {
        let server = Reflection::Server([0, 0, 0, 7].into());
        members.iter_mut().for_each(|member| member.reflection = CLUSTER_ID);
        members.iter_mut().take(1).for_each(|first| first.reflection = server);
    }
    members
}

/// Some have a network of one host alone, some a wide one, some a second address or a public one, some an address in their Node object that
/// no link of theirs has, and some share a pod range with another one.
fn member(number: usize, link: &str, families: &str, random: &mut Random) -> Member {
    let third = link.split('.').next_back().expect("a link has a number");
    let v4_length = *random.pick(&["24", "24", "24", "32"]);
    let v6_length = *random.pick(&["64", "64", "64", "128"]);
    let mut networks = Vec::new();
    if families != "v6" {
        networks.push(prefix(&format!("{link}.{number}/{v4_length}")));
    }
    if families != "v4" {
        networks.push(prefix(&format!("2001:db8:{third}::{number}/{v6_length}")));
    }
    if random.chance(20) {
        networks.reverse();
    }
    let of = |kind: NodeAddressKind, address| NodeAddress { kind, address };
    let mut addresses: Vec<NodeAddress> =
        networks.iter().map(|network| of(NodeAddressKind::Internal, network.addr())).collect();
    if random.chance(20) {
        addresses.insert(0, of(NodeAddressKind::External, address(&format!("203.0.113.{number}"))));
    }
    if random.chance(20) {
        addresses.push(of(NodeAddressKind::Internal, address(&format!("10.9.0.{number}"))));
        if random.chance(50) {
            networks.push(prefix(&format!("10.9.0.{number}/24")));
        }
    }
    let ranges = (0..random.below(3)).map(|place| ranges(number + 20 * place, random)).collect::<Vec<_>>().join(" ");
    Member { networks, addresses, ranges, reflection: Reflection::None }
}

/// The pod range of this number in one family or in both.
fn ranges(number: usize, random: &mut Random) -> String {
    match random.below(4) {
        0 => format!("10.244.{number}.0/24"),
        1 => format!("fd00:10:244:{number}::/64"),
        _ => format!("10.244.{number}.0/24 fd00:10:244:{number}::/64"),
    }
}

fn cluster(words: &[&str], members: &[Member], originates: &[IpNet]) -> Cluster {
    let mut cluster = Cluster::new(words);
    for (place, member) in members.iter().enumerate() {
        cluster.add_node_with(place + 1, &member.networks, member.addresses.clone(), &member.ranges);
        if member.reflection != Reflection::None {
            cluster.annotate(place + 1, |routing| routing.reflection = member.reflection);
        }
    }
    if !originates.is_empty() {
        let originates = originates.to_vec();
        cluster.add_external(External { address: address("192.0.2.254"), asn: 65010, originates });
    }
    cluster.settle();
    cluster
}

/// The flags of a run, but for the one that is compared.
fn words(random: &mut Random) -> Vec<&'static str> {
    let mut words = vec!["--enable-ipv6"];
    words.extend(random.pick(&[&[][..], &["--overlay-type=full"], &["--enable-overlay=false"]]).iter());
    words.extend(*random.pick(&[
        None,
        Some("--overlay-encap=fou"),
        Some("--overlay-encap=vxlan"),
        Some("--overlay-encap=wireguard"),
    ]));
    for word in ["--netfilter=nftables", "--router-id=generate"] {
        words.extend(random.chance(25).then_some(word));
    }
    words
}

const OUTSIDE: [&str; 2] = ["--peer-router-ips=192.0.2.254", "--peer-router-asns=65010"];

type Wanted = (BTreeMap<RouteKey, Route>, BTreeMap<LinkName, Tunnel>);

/// Routes and tunnels of a node. The next hops of a range that two nodes have are in no order that counts, but for the first one.
fn wanted(plan: &Plan) -> Wanted {
    let sorted = |route: &Arc<Route>| {
        let mut route = (**route).clone();
        let mut next_hops = route.next_hops.to_vec();
        if let Some(others) = next_hops.get_mut(1..) {
            others.sort();
        }
        route.next_hops = next_hops.into();
        route
    };
    let routes = plan.routes().routes().iter().map(|(key, route)| (key.clone(), sorted(route)));
    (routes.collect(), plan.routes().tunnels().clone())
}

#[test]
fn node_objects_and_sessions_between_nodes_give_the_same_routes_in_clusters_made_by_chance() {
    for_many(60, |random| {
        let (members, mut flags) = (members(random), words(random));
        let originates =
            if random.chance(40) { vec![prefix("172.16.0.0/12"), prefix("10.244.1.0/25")] } else { vec![] };
        if !originates.is_empty() {
            flags.extend(OUTSIDE);
        }
        let by_bgp = cluster(&flags, &members, &originates);
        flags.push("--node-routes=api");
        let by_api = cluster(&flags, &members, &originates);
        for number in 1..=members.len() {
            let [bgp, api] = [&by_bgp, &by_api].map(|cluster| wanted(cluster.plan(number)));
            assert_eq!(bgp, api, "node {number} with {flags:?}");
            let neighbours = by_api.plan(number).desired().expected().count();
            assert!(neighbours <= usize::from(!originates.is_empty()), "a node with Node objects expects no other");
            assert!(
                by_api.sessions(number) <= usize::from(!originates.is_empty()),
                "nodes have no session with each other"
            );
        }
    });
}

#[test]
fn a_restart_with_the_other_source_of_routes_writes_nothing() {
    for_many(40, |random| {
        let (members, mut flags) = (members(random), words(random));
        let by_bgp = cluster(&flags, &members, &[]);
        flags.push("--node-routes=api");
        let by_api = cluster(&flags, &members, &[]);
        for number in 1..=members.len() {
            let mut state = State::of_others();
            let own = |address: &IpNet| AddressKey { link: LinkName("eth0".into()), address: *address };
            state.addresses.extend(members[number - 1].networks.iter().map(|network| (own(network), ())));
            let kernel = MemoryKernel::new(state);
            // BGP, as it is when all nodes have spoken; then Node objects alone; then BGP, before and after they have spoken.
            let spoken = learned(by_bgp.plan(number));
            run(&kernel, &by_bgp, number, &spoken);
            let (state, acts) = kernel.with(|machine| (machine.state.clone(), machine.acts));
            let routes = state.routes.keys().filter(|key| key.table == TABLE_MAIN).count();
            assert!(routes >= main_routes(by_bgp.plan(number)), "the kernel has the routes");
            run(&kernel, &by_api, number, &[]);
            assert_eq!(
                kernel.with(|machine| (machine.state.clone(), machine.acts)),
                (state.clone(), acts),
                "to Node objects"
            );
            run(&kernel, &by_bgp, number, &spoken);
            assert_eq!(kernel.with(|machine| (machine.state.clone(), machine.acts)), (state, acts), "and back");
        }
    });
}

#[test]
fn a_cluster_changes_over_node_by_node_and_back_however_slowly_and_every_node_keeps_its_routes() {
    for_many(20, |random| {
        let (mut members, flags) = (members(random), words(random));
        // Who answers has to be dialled, at an address that a host has.
        for Member { networks, addresses, .. } in &mut members {
            addresses.retain(|one| networks.iter().any(|network| network.addr() == one.address));
        }
        let all: Vec<usize> = (1..=members.len()).collect();
        let mut cluster = cluster(&flags, &members, &[]);
        let expected: BTreeMap<usize, Wanted> =
            all.iter().map(|number| (*number, wanted(cluster.plan(*number)))).collect();
        let sessions = |cluster: &Cluster| all.iter().map(|number| cluster.sessions(*number)).sum::<usize>();
        let before = sessions(&cluster);
        let mut by_objects = BTreeSet::new();
        for source in ["--node-routes=api", "--node-routes=bgp"] {
            let mut rest = all.clone();
            // Where there is a reflector it is the first member, which is the last one to change and the first one back.
            let has_reflector = members.iter().any(|member| member.reflection != Reflection::None);
            while !rest.is_empty() {
                let chosen = match (has_reflector, source) {
                    (false, _) => random.below(rest.len()),
                    (true, "--node-routes=api") => rest.len() - 1,
                    (true, _) => 0,
                };
                let number = rest.remove(chosen);
                cluster.restart_with(number, &[&flags[..], &[source]].concat());
                if source == "--node-routes=api" {
                    by_objects.insert(number)
                } else {
                    by_objects.remove(&number)
                };
                // Longer than nodes keep routes for each other.
                cluster.settle();
                for (number, expected) in &expected {
                    assert_eq!(wanted(cluster.plan(*number)), *expected, "node {number}, {by_objects:?} of {flags:?}");
                }
                let addresses = |number: &usize| members[number - 1].addresses.iter().map(|one| one.address);
                let of_these: BTreeSet<IpAddr> = by_objects.iter().flat_map(addresses).collect();
                for number in &by_objects {
                    let with = cluster.neighbours_up(*number);
                    assert!(
                        of_these.is_disjoint(&with),
                        "two nodes with Node objects have a session: {number}, {with:?}"
                    );
                }
            }
            let left = sessions(&cluster);
            assert_eq!(left, if source == "--node-routes=api" { 0 } else { before });
        }
    });
}

fn main_routes(plan: &Plan) -> usize {
    plan.routes().routes().iter().filter(|(key, _)| key.table == TABLE_MAIN).count()
}

/// What a node has learned of its neighbours. Routes that refuse are none of that.
fn learned(plan: &Plan) -> Vec<RouteChange> {
    let is_learned = |(key, route): &(&RouteKey, &Arc<Route>)| key.table == TABLE_MAIN && !route.next_hops.is_empty();
    let prefixes = plan.routes().routes().iter().filter(is_learned);
    let learned = prefixes.map(|(key, _)| {
        let next_hops = plan.routes().next_hops_to(key.destination).to_vec();
        let first = next_hops.first().copied().expect("a route has a next hop");
        let best = Best { source: PeerId::FIRST, attributes: Arc::new(Attributes::local(first)) };
        RouteChange { prefix: key.destination, best: Some(best), next_hops }
    });
    learned.collect()
}

/// A run of the program on this kernel, from its first World on until everything is heard.
fn run(kernel: &MemoryKernel, cluster: &Cluster, number: usize, spoken: &[RouteChange]) {
    let (config, families) = cluster.config();
    let mut mirrors = Mirrors::new(kernel.router_targets_of(config.backend));
    let mut plan = Plan::new(config, families);
    let mut round = |plan: &Plan, changed: &RouterChanges, routes_are_complete: bool| {
        mirrors.mark(changed);
        let leave = Leave { authority: Authority::Complete, routes_are_complete };
        for _ in 0..4 {
            mirrors.round(plan.desired(), plan.routes(), leave, Moment { now: Instant::now(), jitter: 0 });
        }
        assert!(mirrors.is_settled() || !routes_are_complete, "nothing fails");
    };
    let changed = plan.update(&cluster.world(number));
    round(&plan, &changed, false);
    let changed = plan.learn(spoken);
    round(&plan, &changed, true);
}

#[test]
fn a_node_object_gives_a_route_when_it_comes_and_takes_it_along_when_it_goes() {
    let both = |number: usize| format!("10.244.{number}.0/24 fd00:10:244:{number}::/64");
    let mut cluster = Cluster::new(&["--enable-ipv6", "--node-routes=api"]);
    for (number, link) in [(1, "192.0.2"), (2, "192.0.2"), (3, "198.51.100")] {
        cluster.add_node(number, link, "both", &both(number));
    }
    cluster.settle();
    cluster.all_pods_reach_each_other();
    assert_eq!(([1, 2, 3].map(|number| cluster.sessions(number)), cluster.tunnels(1)), ([0; 3], 2));
    assert_eq!(cluster.problems(), [""; 0]);
    cluster.add_node(4, "198.51.100", "both", &both(4));
    cluster.settle();
    cluster.all_pods_reach_each_other();
    cluster.remove_node(3);
    cluster.settle();
    cluster.all_pods_reach_each_other();
    assert!(cluster.routes(1).iter().all(|route| !route.contains("10.244.3.0") && !route.contains(":244:3:")));
}

#[test]
fn a_node_without_an_address_of_a_family_is_named_as_one_whose_pods_have_no_route() {
    let mut cluster = Cluster::new(&["--enable-ipv6", "--node-routes=api"]);
    cluster.add_node(1, "192.0.2", "both", "10.244.1.0/24 fd00:10:244:1::/64");
    cluster.add_node(2, "192.0.2", "v4", "10.244.2.0/24 fd00:10:244:2::/64");
    cluster.settle();
    let (config, families) = cluster.config();
    let mut plan = Plan::new(config, families);
    plan.update(&cluster.world(1));
    let now = Instant::now();
    let around = Circumstances { now, since: now, nodes_are_read: true };
    let unreached = plan.unreached(around, |_, _: Family| false);
    assert_eq!(unreached.count, 1);
    let missing = unreached.missing.expect("it is named");
    assert!(missing.contains("fd00:10:244:2::/64 of Node node-2 (it has no IPv6 address)"), "{missing}");
}

/// Takes the addresses out of a Node, or the whole Node out of the cluster.
fn lose(world: &mut World, name: &str, whole: bool) {
    let node = world.cluster.nodes.remove(&name.into()).expect("it is there");
    if !whole {
        world.cluster.nodes.insert(name.into(), Node { addresses: Vec::new(), ..(*node).clone() });
    }
}

#[test]
fn a_node_whose_own_node_object_goes_or_loses_its_addresses_keeps_its_routes_and_tunnels() {
    for (flag, whole) in [("subnet", true), ("subnet", false), ("full", true), ("full", false)] {
        let overlay = format!("--overlay-type={flag}");
        let mut cluster = Cluster::new(&["--enable-ipv6", "--node-routes=api", &overlay]);
        for (number, link) in [(1, "192.0.2"), (2, "192.0.2"), (3, "198.51.100")] {
            cluster.add_node(number, link, "both", &format!("10.244.{number}.0/24 fd00:10:244:{number}::/64"));
        }
        cluster.settle();
        let (config, families) = cluster.config();
        let mut state = State::of_others();
        let own = |text: &str| AddressKey { link: LinkName("eth0".into()), address: prefix(text) };
        state.addresses.extend([(own("192.0.2.1/24"), ()), (own("2001:db8:2::1/64"), ())]);
        let kernel = MemoryKernel::new(state);
        let mut mirrors = Mirrors::new(kernel.router_targets_of(config.backend));
        let mut plan = Plan::new(config, families);
        let mut take = |world: &World, routes_are_complete: bool| {
            let changed = plan.update(world);
            mirrors.mark(&changed);
            let leave = Leave { authority: Authority::Complete, routes_are_complete };
            for _ in 0..4 {
                mirrors.round(plan.desired(), plan.routes(), leave, Moment { now: Instant::now(), jitter: 0 });
            }
            let state = kernel.with(|machine| machine.state.clone());
            let keys: Vec<RouteKey> = state.routes.keys().cloned().collect();
            (keys, state.tunnels.keys().cloned().collect::<Vec<_>>())
        };
        let whole_world = cluster.world(1);
        let before = take(&whole_world, true);
        assert!(before.0.len() >= 4 && before.1.len() >= 2, "{before:?}");
        let mut world = whole_world.clone();
        lose(&mut world, "node-1", whole);
        // Without an own address there is no speaker, and what was learned is never complete.
        assert_eq!(take(&world, false), before, "{overlay}");
        let mut fewer = world.clone();
        lose(&mut fewer, "node-3", true);
        let gone = [prefix("10.244.3.0/24"), prefix("fd00:10:244:3::/64")];
        let routes = take(&fewer, false).0;
        assert!(routes.iter().all(|key| !gone.contains(&key.destination)), "{overlay}: {routes:?}");
        assert!(routes.len() + gone.len() == before.0.len(), "{overlay}: the others stay: {routes:?}");
        assert_eq!(take(&whole_world, true), before, "{overlay}: it is back");
        lose(&mut world, "node-3", true);
        take(&world, false);
        let mut without = whole_world.clone();
        lose(&mut without, "node-3", true);
        let (routes, tunnels) = take(&without, true);
        assert!(routes.len() < before.0.len() && tunnels.len() < before.1.len(), "others' Nodes count when it is back");
    }
}

#[test]
fn routes_of_one_link_follow_the_other_nodes_also_while_the_own_node_is_gone() {
    let mut cluster = Cluster::new(&["--enable-ipv6", "--node-routes=api"]);
    for number in 1..=3 {
        cluster.add_node(number, "192.0.2", "both", &format!("10.244.{number}.0/24 fd00:10:244:{number}::/64"));
    }
    cluster.settle();
    let (config, families) = cluster.config();
    let mut plan = Plan::new(config, families);
    let mut world = cluster.world(1);
    plan.update(&world);
    assert_eq!(main_routes(&plan), 4);
    lose(&mut world, "node-1", true);
    assert_eq!((plan.update(&world).withdrawn, main_routes(&plan)), (vec![], 4));
    lose(&mut world, "node-3", true);
    assert_eq!((plan.update(&world).withdrawn.len(), main_routes(&plan)), (2, 2));
}
