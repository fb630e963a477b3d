//! The rules as the kernel gets them against the rule set that they come from, packet by packet, and their history.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use sluice::config::{FirewallConfig, ServiceRanges};
use sluice::firewall::iptables::desired::{Desired, Elements};
use sluice::firewall::iptables::lowering::Lowering;
use sluice::firewall::iptables::{dispatch, lowering, names};
use sluice::firewall::multicast;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::{Direction, RuleSet};
use sluice::firewall::verdict::{Decision, Packet, Traffic, verdict};
use sluice::kernel::ipset::ElementKey;
use sluice::kernel::iptables::Piece;
use sluice::model::{Node, ObjectName, World};
use sluice::net::{Family, PerFamily, Protocol};

use super::cases::{Case, HERE};
use super::support::chains::{Chains, Fate, State, Traced};
use super::support::random::{Random, for_many};
use super::support::tables::TUNNEL_MARK;
use super::{clusters, oracle, services, tiers};

pub const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

pub fn config(default_deny: bool) -> Arc<FirewallConfig> {
    let range = |text: &str| vec![text.parse().expect("a range")];
    Arc::new(FirewallConfig {
        backend: sluice::config::Backend::default(),
        sync_period: Duration::from_secs(300),
        default_deny,
        flush_established: false,
        ranges: ServiceRanges {
            cluster_ips: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/108".parse().unwrap()],
            external_ips: range("203.0.113.128/25"),
            ..ServiceRanges::default()
        },
        knows_services: true,
        tunnel_mode: true,
        service_node_port_range: 30000..=32767,
    })
}

/// Everything lowered at once.
fn lowered(world: &World, default_deny: bool, families: PerFamily<bool>) -> (RuleSet, Desired) {
    let mut plan = Plan::new();
    let changed = plan.update(&clusters::copied(world));
    let mut lowering = Lowering::new(config(default_deny), families);
    lowering.update(plan.rules(), world, &changed);
    (plan.rules().clone(), lowering.desired().clone())
}

/// The addresses of this node itself.
pub fn local() -> BTreeSet<IpAddr> {
    ["192.0.2.11", "2001:db8:2::11", "10.244.0.254"].iter().map(|text| text.parse().unwrap()).collect()
}

fn chains<'a>(desired: &'a Desired, local: &'a BTreeSet<IpAddr>) -> Chains<'a, Elements> {
    Chains { rules: &desired.rules, elements: &desired.elements, local }
}

/// Returns whether the rules of a World, lowered at once, let a forwarded packet through.
pub fn is_forwarded(world: &World, packet: Packet) -> bool {
    let (_, desired) = lowered(world, false, BOTH);
    let local = local();
    chains(&desired, &local).fate("FORWARD", Traced { packet, state: State::New, mark: 0 }).0.passes()
}

/// The same of a packet to this node itself.
pub fn is_taken(world: &World, packet: Packet) -> bool {
    let (_, desired) = lowered(world, false, BOTH);
    let local = local();
    chains(&desired, &local).fate("INPUT", Traced { packet, state: State::New, mark: 0 }).0.passes()
}

/// The same of a packet that IPVS gave its real destination, which leaves the host by OUTPUT.
pub fn is_sent(world: &World, packet: Packet) -> bool {
    let (_, desired) = lowered(world, false, BOTH);
    let local = local();
    chains(&desired, &local).fate("OUTPUT", Traced { packet, state: State::New, mark: 0 }).0.passes()
}

/// Returns whether a packet that connection tracking cannot assign passes: it does where no policy of the pods may refuse anything.
pub fn passes_invalid(rules: &RuleSet, packet: &Packet) -> bool {
    let judged = verdict(rules, packet);
    let drops = |direction| {
        let own = if direction == Direction::Ingress { packet.destination } else { packet.source };
        rules.local_pods_at(own).any(|(_, pod)| rules.drops_invalid(pod, direction))
    };
    Direction::BOTH.into_iter().all(|direction| match judged.of(direction) {
        Decision::NotHere | Decision::Exempt(_) => true,
        Decision::LinkLocal | Decision::Multicast => false,
        _ => !drops(direction),
    })
}

fn check_packets(rules: &RuleSet, desired: &Desired, random: &mut Random, packets: usize) {
    let local = local();
    let chains = chains(desired, &local);
    for _ in 0..packets {
        let packet = clusters::packet(random);
        let judged = verdict(rules, &packet);
        // Marks of others, also ours set by others, mean nothing.
        let mark = *random.pick(&[0, 0x10000, 0x20000, 0xdead_beef]);
        // Link-local and multicast packets of pods never reach IPVS and OUTPUT.
        let of_link = ["fe80::1", "ff02::fb", "ff05::fb", "224.0.0.251", "255.255.255.255"];
        let on_link = of_link.iter().any(|a| [packet.source, packet.destination].contains(&a.parse().unwrap()));
        let by_ipvs = !on_link && random.chance(20);
        let builtin = if packet.from_this_node || by_ipvs { "OUTPUT" } else { "FORWARD" };
        let (fate, after) = chains.fate(builtin, Traced { packet, state: State::New, mark });
        assert_eq!(fate.passes(), judged.passes(), "{packet:?} with mark {mark:x} in {builtin}: {fate:?}, {judged:?}");
        let ours = if rules.cluster_policies.is_empty() { 0x10000 } else { 0x30000 };
        assert_eq!(after & !ours, mark & !ours, "foreign bits of the mark stay");
        let concerns_pods =
            [packet.source, packet.destination].iter().any(|a| rules.local_pods_at(*a).next().is_some());
        assert_eq!(fate == Fate::Left, !concerns_pods && fate.passes(), "{packet:?}: {fate:?}");

        let to_host = Packet {
            destination: if packet.source.is_ipv4() { "192.0.2.11" } else { "2001:db8:2::11" }.parse().unwrap(),
            ..packet
        };
        if !local.contains(&to_host.source) {
            let judged = verdict(rules, &to_host);
            let (fate, _) = chains.fate("INPUT", Traced { packet: to_host, state: State::New, mark });
            assert_eq!(fate.passes(), judged.egress.passes(), "{to_host:?}: {fate:?}");
        }
        let (fate, _) = chains.fate("FORWARD", Traced { packet, state: State::Established, mark });
        // To many there are no connections, whatever connection tracking says.
        let is_for_many = multicast::refuses(&Packet { from_this_node: false, ..packet });
        let expected = !(is_for_many && multicast::is_closed(rules));
        assert_eq!(fate.passes(), expected, "{packet:?} belongs to a connection: {fate:?}");
        let (fate, _) = chains.fate(builtin, Traced { packet, state: State::Invalid, mark });
        assert_eq!(fate.passes(), passes_invalid(rules, &packet), "{packet:?} in state INVALID: {fate:?}");
    }
}

#[test]
fn the_chains_do_what_the_rules_mean() {
    for_many(60, |random| {
        let changes = 20 + random.below(60);
        let world = if random.chance(50) { clusters::world(random, changes) } else { tiers::world(random, changes) };
        let (rules, desired) = lowered(&world, false, BOTH);
        check_packets(&rules, &desired, random, 400);
    });
}

/// Every packet to a Service is judged before it arrives, wherever IPVS sends it; and no more is refused than that.
#[test]
fn what_pods_send_to_services_is_judged_wherever_it_ends() {
    let (asked, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    for_many(60, |random| {
        let changes = 60 + random.below(60);
        let mut world = clusters::world(random, changes);
        // What is expected follows from the ranges of the flags.
        world.cluster.service_cidrs = Default::default();
        for _ in 0..20 {
            services::change(&mut world.cluster, random, &clusters::addresses());
        }
        let (_, desired) = lowered(&world, false, BOTH);
        let own = world.host.addresses.iter().map(|own| own.address);
        let local: BTreeSet<IpAddr> = own.chain(["10.244.0.254".parse().unwrap()]).collect();
        let chains = chains(&desired, &local);
        let mut sources = clusters::addresses();
        let pods: [IpNet; 2] = ["10.244.0.0/16", "fd00:10:244::/64"].map(|range| range.parse().unwrap());
        sources.retain(|address| pods.iter().any(|range| range.contains(address)));
        for _ in 0..200 {
            let packet = services::packet(random, &world, &sources);
            let marked = |state, mark| chains.fate("INPUT", Traced { packet, state, mark }).0;
            let in_state = |state| marked(state, 0);
            let expected = services::is_refused(&world, &packet);
            asked.fetch_add(1, Ordering::Relaxed);
            refused.fetch_add(usize::from(expected), Ordering::Relaxed);
            assert_eq!(in_state(State::New) == Fate::Rejected, expected, "{packet:?} {:#?}", world.cluster);
            assert!(in_state(State::Established).passes(), "{packet:?} belongs to a connection");
            // Of a port in tunnel mode, and of another one at its address.
            let [tunnelled, other] = [TUNNEL_MARK, 0x3fff].map(|mark| marked(State::Tunnelled, mark));
            assert_eq!(tunnelled == Fate::Rejected, expected, "{packet:?}, whatever connection it belongs to");
            assert!(other.passes(), "{packet:?} belongs to a connection");
            for sent in services::translated(&world, &packet) {
                if services::is_delivered_here(&world, &sent) {
                    continue;
                }
                let (fate, _) = chains.fate("OUTPUT", Traced { packet: sent, state: State::New, mark: 0 });
                let expected = Direction::BOTH.iter().all(|side| oracle::passes(&world, &sent, *side));
                assert_eq!(fate.passes(), expected, "{sent:?} behind {packet:?}");
            }
        }
    });
    // One seed alone may have none.
    let (asked, refused) = (asked.into_inner(), refused.into_inner());
    assert!(asked < 10_000 || refused > 20, "hardly any packet was to be refused: {refused} of {asked}");
}

/// What is inside a tunnel is anybody's; what the host itself sends to an address in its ranges is a probe of a pod that is about to be known.
#[test]
fn with_default_deny_a_tunnel_to_an_address_of_this_nodes_ranges_that_is_no_known_pods_is_refused() {
    let mut world = clusters::world(&mut Random::new(1), 60);
    let pod_cidrs = ["10.244.0.0/24", "fd00:10:244::/64"].map(|range| range.parse().unwrap()).into();
    world.cluster.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
    let (rules, desired) = lowered(&world, true, BOTH);
    let (_, open) = lowered(&world, false, BOTH);
    let local = local();
    let fate = |desired: &Desired, source: &str, destination: &str, traffic| {
        let [source, destination] = [source, destination].map(|text| text.parse().unwrap());
        let packet = Packet { source, destination, traffic, from_this_node: true };
        assert_eq!(rules.local_pods_at(destination).count(), 0, "{destination} is no known pod");
        chains(desired, &local).fate("OUTPUT", Traced { packet, state: State::New, mark: 0 }).0
    };
    let probe = Traffic::Port { protocol: Protocol::Tcp, port: 8080 };
    for (source, unknown, node) in
        [("192.0.2.11", "10.244.0.253", "192.0.2.12"), ("2001:db8:2::11", "fd00:10:244::fd", "2001:db8:2::12")]
    {
        assert_eq!(fate(&desired, source, unknown, Traffic::Tunnel), Fate::Rejected, "{unknown}");
        assert_eq!(fate(&desired, source, unknown, probe), Fate::Left, "{unknown}");
        assert_eq!(fate(&desired, source, node, Traffic::Tunnel), Fate::Left, "an overlay");
        assert_eq!(fate(&open, source, unknown, Traffic::Tunnel), Fate::Left, "without the flag {unknown}");
    }
}

#[test]
fn with_default_deny_a_tunnel_to_a_node_meets_as_many_rules_with_a_hundred_isolated_pods_as_without_any() {
    let rules_met = |pods: usize| {
        let mut case = Case::new().namespace("shop", "").policy("shop/shut", "", [Some(&[]), Some(&[])]);
        for n in 1..=pods {
            let addresses = format!("10.244.0.{n} fd00:10:244::{n}");
            case = case.pod(&format!("shop/shut{n}"), HERE, [&addresses, "", ""]);
        }
        let mut world = case.0;
        let pod_cidrs = ["10.244.0.0/24", "fd00:10:244::/64"].map(|range| range.parse().unwrap()).into();
        world.cluster.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
        let (_, desired) = lowered(&world, true, BOTH);
        let local = local();
        [("192.0.2.11", "192.0.2.12"), ("2001:db8:2::11", "2001:db8:2::12")].map(|(source, node)| {
            let [source, destination] = [source, node].map(|text| text.parse().unwrap());
            let packet = Packet { source, destination, traffic: Traffic::Tunnel, from_this_node: true };
            let traced = Traced { packet, state: State::New, mark: 0 };
            chains(&desired, &local).rules_met("OUTPUT", traced)
        })
    };
    assert_eq!(rules_met(0), rules_met(100));
}

/// In tunnel mode packets reach their endpoints as the node's own, so a pod that may not reach one is refused the Service; however many it may
/// not reach, by as many rules.
#[test]
fn a_pod_is_refused_a_service_in_tunnel_mode_whose_endpoints_its_policies_deny_by_as_many_rules_for_a_thousand() {
    for count in [1, 1000] {
        let case = Case::new().namespace("shop", "").pod("shop/shut", HERE, ["10.244.0.1", "app=shut", ""]);
        let mut world = case.policy("shop/out", "app=shut", [None, Some(&[])]).0;
        let endpoints: Vec<String> = (0..count).map(|n| format!("10.244.{}.{}:443", 8 + n / 250, n % 250)).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        services::put(&mut world, "shop/api", ("10.96.0.1", 443), &endpoints);
        let name = ObjectName::new("shop", "api");
        let mut service = (**world.cluster.services.get(&name).expect("it was put")).clone();
        service.external_ips.push("203.0.113.200".parse().unwrap());
        service.annotations.dsr = true;
        world.cluster.services.insert(name.clone(), service.clone());
        let (_, desired) = lowered(&world, false, BOTH);
        let local = local();
        let fate = |destination: &str, desired: &Desired| {
            let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 443 };
            let [source, destination] = ["10.244.0.1", destination].map(|text| text.parse().unwrap());
            let packet = Packet { source, destination, traffic, from_this_node: false };
            chains(desired, &local).fate("INPUT", Traced { packet, state: State::New, mark: 0 }).0
        };
        assert_eq!(fate("203.0.113.200", &desired), Fate::Rejected);
        assert!(fate("10.96.0.1", &desired).passes(), "OUTPUT judges what has another address there");
        let is_refusal =
            |piece: &&Piece| matches!(piece, Piece::Chain { chain, .. } if chain.starts_with("KUBE-POD-FW-"));
        let refusing: usize =
            desired.rules.iter().filter(|(piece, _)| is_refusal(piece)).map(|(_, rules)| rules.0.len()).sum();
        assert!(refusing < 20, "{refusing} rules for {count} endpoints");
        service.annotations.dsr = false;
        world.cluster.services.insert(name, service);
        assert!(fate("203.0.113.200", &lowered(&world, false, BOTH).1).passes(), "served with NAT");
    }
}

#[test]
fn what_is_refused_of_a_service_costs_elements_where_the_service_changes_and_rules_where_a_policy_does() {
    let case = Case::new().namespace("shop", "").pod("shop/shut", HERE, ["10.244.0.1", "app=shut", ""]);
    let case = case.pod("shop/other", HERE, ["10.244.0.2", "", ""]);
    let mut world = case.policy("shop/out", "app=shut", [None, Some(&[])]).0;
    services::put(&mut world, "shop/api", ("10.96.0.1", 443), &["192.0.2.11:6443", "192.0.2.12:6443"]);
    let (mut plan, mut lowering) = (Plan::new(), Lowering::new(config(false), BOTH));
    let mut costs = |world: &World| {
        let changed = plan.update(world);
        let told = lowering.update(plan.rules(), world, &changed);
        [told.sets.len(), told.elements.len(), told.rules.len()]
    };
    costs(&world);
    assert_eq!(costs(&world), [0, 0, 0]);
    services::put(&mut world, "shop/api", ("10.96.0.1 10.96.0.2", 443), &["192.0.2.11:6443", "192.0.2.12:6443"]);
    assert_eq!(costs(&world), [0, 1, 0], "an address more");
    services::put(&mut world, "shop/api", ("10.96.0.1 10.96.0.2", 443), &["192.0.2.11:6443"]);
    assert_eq!(costs(&world), [0, 0, 0], "an endpoint of another node");
    services::put(&mut world, "shop/far", ("10.96.0.3", 443), &["192.0.2.12:6443", "10.244.0.2:80"]);
    assert_eq!(costs(&world), [0, 0, 0], "a Service without an endpoint on this node");
    let to_host = [super::cases::rule(&[super::cases::block("192.0.2.11/32", &[])], &[])];
    let policy = Case(world).policy("shop/out", "app=shut", [None, Some(&to_host)]).0;
    // Its two addresses and its node port, and the set; the policy's own set and element.
    assert_eq!(costs(&policy), [2, 4, 3], "the endpoint is allowed: two chains of refusals, one of the policy");
}

/// The kinds are written down here once more, so that none gets lost: RFC 792, RFC 4443, RFC 4861, RFC 4890.
#[test]
fn the_kinds_of_icmp_that_networks_need_pass_to_and_from_closed_pods_and_no_others_do() {
    let world = Case::new()
        .namespace("shop", "")
        .pod("shop/shut", HERE, ["10.244.0.1 fd00:10:244::1", "", ""])
        .policy("shop/shut", "", [Some(&[]), Some(&[])])
        .0;
    let (_, desired) = lowered(&world, false, BOTH);
    let local = local();
    for (pod, other, passing) in [
        ("10.244.0.1", "203.0.113.1", &[3, 8, 11][..]),
        ("fd00:10:244::1", "2001:db8:113::9", &[1, 2, 3, 128, 129, 135, 136]),
    ] {
        let (pod, other): (IpAddr, IpAddr) = (pod.parse().unwrap(), other.parse().unwrap());
        for (source, destination) in [(pod, other), (other, pod)] {
            for builtin in ["FORWARD", "OUTPUT"] {
                let found: Vec<u8> = (0..=255)
                    .filter(|kind| {
                        let traffic = Traffic::Icmp { kind: *kind };
                        let packet = Packet { source, destination, traffic, from_this_node: false };
                        let traced = Traced { packet, state: State::New, mark: 0 };
                        chains(&desired, &local).fate(builtin, traced).0.passes()
                    })
                    .collect();
                assert_eq!(found, passing, "{source} to {destination} in {builtin}");
            }
        }
    }
}

/// Exemptions by flags are removed with the flag: the chains are ours as a whole.
#[test]
fn exemptions_that_a_changed_flag_takes_away_are_not_wanted_any_more() {
    let world = clusters::empty_world();
    let inputs = |config: FirewallConfig| {
        let mut lowering = Lowering::new(Arc::new(config), BOTH);
        lowering.update(&RuleSet::default(), &world, &Default::default());
        let rules = &lowering.desired().rules;
        let input = rules.get(&dispatch::chain(Family::V4, names::CHAIN_INPUT)).unwrap();
        input.0.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let wide = inputs((*config(false)).clone());
    let narrow = inputs(FirewallConfig {
        ranges: ServiceRanges { cluster_ips: vec!["10.112.0.0/12".parse().unwrap()], ..ServiceRanges::default() },
        service_node_port_range: 31000..=31999,
        ..(*config(false)).clone()
    });
    for word in ["10.96.0.0/12", "203.0.113.128/25", "30000:32767"] {
        assert!(wide.iter().any(|rule| rule.contains(word)), "{word}: {wide:?}");
        assert!(!narrow.iter().any(|rule| rule.contains(word)), "{word}: {narrow:?}");
    }
    assert!(narrow.iter().any(|rule| rule.contains("31000:31999")), "{narrow:?}");
}

#[test]
fn a_range_that_nobody_names_any_more_stays_closed() {
    let mut world = clusters::empty_world();
    let with = |world: &mut World, ranges: &[&str]| {
        let pod_cidrs = ranges.iter().map(|range| range.parse().unwrap()).collect();
        world.cluster.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
    };
    let mut lowering = Lowering::new(config(true), BOTH);
    let mut closed = |world: &World| {
        lowering.update(&RuleSet::default(), world, &Default::default());
        lowering.closed().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    with(&mut world, &["10.244.0.0/24", "fd00:10:244::/64"]);
    assert_eq!(closed(&world), ["10.244.0.0/24", "fd00:10:244::/64"]);
    with(&mut world, &[]);
    assert_eq!(closed(&world), ["10.244.0.0/24", "fd00:10:244::/64"]);
    with(&mut world, &["10.244.7.0/24"]);
    assert_eq!(closed(&world), ["10.244.7.0/24", "fd00:10:244::/64"], "a family that has a new range has no old one");
    world.cluster.nodes.remove(&"node1".into());
    assert_eq!(closed(&world), ["10.244.7.0/24", "fd00:10:244::/64"]);
}

#[test]
fn what_is_lowered_does_not_depend_on_history() {
    for_many(25, |random| {
        let mut world = clusters::empty_world();
        for name in ["node1", "node2"] {
            let pod_cidrs = vec!["10.244.0.0/24".parse().unwrap()];
            world.cluster.nodes.insert(name.into(), Node { pod_cidrs, ..Node::default() });
        }
        let (mut plan, mut lowering) = (Plan::new(), Lowering::new(config(true), BOTH));
        let mut told = Vec::new();
        for _ in 0..50 {
            for _ in 0..*random.pick(&[1, 1, 1, 2, 8]) {
                told.push(clusters::change(&mut world, random));
            }
            if random.chance(5) {
                // Ranges move here and never go: those that were known stay closed, as is meant.
                let pod_cidrs = vec![random.pick(&["10.244.0.0/24", "10.244.1.0/24"]).parse().unwrap()];
                world.cluster.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
            }
            let before = lowering.desired().clone();
            let changed = plan.update(&world);
            let told_changed = lowering.update(plan.rules(), &world, &changed);
            let (_, expected) = lowered(&world, true, BOTH);
            assert_eq!(lowering.desired().sets, expected.sets, "after {told:#?}");
            assert_eq!(lowering.desired().elements, expected.elements, "after {told:#?}");
            assert_eq!(lowering.desired().rules, expected.rules, "after {told:#?}");
            let before_all = before.clone();
            let mut replayed = before;
            for key in &told_changed.sets {
                copy(&mut replayed.sets, &expected.sets, key);
            }
            for key in &told_changed.elements {
                match expected.elements.get(key) {
                    Some(()) => drop(replayed.elements.insert(key.clone(), ())),
                    None => drop(replayed.elements.remove(key)),
                }
            }
            for key in &told_changed.rules {
                copy(&mut replayed.rules, &expected.rules, key);
            }
            if told_changed.settings {
                replayed.settings.clone_from(&expected.settings);
            }
            if told_changed.frames {
                replayed.frames.clone_from(&expected.frames);
            }
            assert_eq!(lowering.desired().ports_here, expected.ports_here, "after {told:#?}");
            replayed.ports_here.clone_from(&expected.ports_here);
            assert_eq!(lowering.desired().closing, expected.closing, "after {told:#?}");
            replayed.closing.clone_from(&expected.closing);
            assert_eq!(lowering.desired().denied, expected.denied, "after {told:#?}");
            replayed.denied.clone_from(&expected.denied);
            let went = |key: &ElementKey| before_all.elements.contains_key(key) && !expected.elements.contains_key(key);
            assert!(told_changed.left.iter().all(went), "what left was there, after {told:#?}");
            let gone = before_all.elements.keys().filter(|key| !expected.elements.contains_key(*key)).count();
            assert_eq!(told_changed.left.len(), gone, "all that left is told, after {told:#?}");
            assert_eq!(replayed, expected, "every difference is named, after {told:#?}");
        }
    });
}

fn copy<K: Ord + Clone, V: Clone>(
    to: &mut std::collections::BTreeMap<K, V>,
    from: &std::collections::BTreeMap<K, V>,
    key: &K,
) {
    match from.get(key) {
        Some(value) => drop(to.insert(key.clone(), value.clone())),
        None => drop(to.remove(key)),
    }
}

/// Names of the sets behind `--match-set` in the text of a rule.
fn sets_named(rule: &str) -> Vec<String> {
    rule.split("--match-set ").skip(1).filter_map(|rest| Some(rest.split(' ').next()?.to_owned())).collect()
}

#[test]
fn rules_name_only_sets_that_are_there() {
    for_many(40, |random| {
        let world = tiers::world(random, 60);
        for families in [BOTH, PerFamily { v4: true, v6: false }, PerFamily { v4: false, v6: true }] {
            let (_, desired) = lowered(&world, true, families);
            let named: BTreeSet<String> = desired
                .rules
                .values()
                .flat_map(|rules| &rules.0)
                .flat_map(|rule| sets_named(&rule.to_string()))
                .collect();
            let there: BTreeSet<String> = desired.sets.keys().map(|set| set.to_string()).collect();
            assert!(named.is_subset(&there), "{named:?} {there:?}");
            assert!(desired.elements.keys().all(|key| desired.sets.contains_key(&key.set)));
            let of_families = desired.sets.values().all(|spec| *families.of(spec.family));
            let is_of_links = |piece: &Piece| {
                let closing =
                    [names::CHAIN_INPUT, names::CHAIN_FORWARD, names::CHAIN_LINK_LOCAL, names::CHAIN_MULTICAST];
                piece.family() == Family::V6
                    && match piece {
                        Piece::Chain { chain, .. } => closing.contains(&chain.as_str()),
                        Piece::Jump { to, .. } => closing.contains(&to.as_str()),
                        Piece::Leftover { .. } => false,
                    }
            };
            let rules_of_families =
                desired.rules.keys().all(|piece| *families.of(piece.family()) || is_of_links(piece));
            assert!(
                of_families && rules_of_families,
                "a family that is off closes addresses of links and has nothing else"
            );
        }
    });
}

#[test]
fn a_pod_that_is_not_known_is_closed_and_the_host_reaches_everybody() {
    let mut world = clusters::empty_world();
    let pod_cidrs = vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()];
    world.cluster.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
    let known = "10.244.0.7";
    clusters::put_plain_pod(&mut world, known);
    let (_, desired) = lowered(&world, true, BOTH);
    let local = local();
    let chains = chains(&desired, &local);
    let fate = |builtin, source: &str, destination: &str, state| {
        let packet = Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            traffic: Traffic::Port { protocol: Protocol::Tcp, port: 80 },
            from_this_node: builtin == "OUTPUT",
        };
        chains.fate(builtin, Traced { packet, state, mark: 0 }).0
    };
    let (gateway, node, outside, unknown) = ("10.244.0.254", "192.0.2.11", "203.0.113.9", "10.244.0.9");
    for (builtin, source, destination, expected) in [
        ("FORWARD", unknown, outside, Fate::Rejected),
        ("FORWARD", outside, unknown, Fate::Rejected),
        ("FORWARD", known, unknown, Fate::Rejected),
        ("FORWARD", known, outside, Fate::Accepted),
        ("FORWARD", outside, known, Fate::Accepted),
        ("FORWARD", "10.244.1.9", outside, Fate::Left),
        ("FORWARD", "fd00:10:244::9", "2001:db8:113::9", Fate::Rejected),
        ("INPUT", unknown, node, Fate::Rejected),
        ("INPUT", known, node, Fate::Accepted),
        ("INPUT", known, gateway, Fate::Accepted),
        ("INPUT", unknown, gateway, Fate::Left),
        ("OUTPUT", node, known, Fate::Accepted),
        ("OUTPUT", node, unknown, Fate::Left),
        ("OUTPUT", gateway, unknown, Fate::Left),
        ("OUTPUT", gateway, known, Fate::Accepted),
        ("OUTPUT", unknown, outside, Fate::Rejected),
    ] {
        assert_eq!(fate(builtin, source, destination, State::New), expected, "{builtin} {source} {destination}");
    }
    assert_eq!(fate("INPUT", unknown, node, State::Established), Fate::Left, "it answers a probe");
    assert_eq!(fate("FORWARD", unknown, outside, State::Invalid), Fate::Rejected);
}

#[test]
fn what_pods_send_to_services_is_judged_behind_them() {
    let world = clusters::empty_world();
    let (_, desired) = lowered(&world, false, BOTH);
    for (destination, protocol, port) in [
        ("10.96.0.10", Protocol::Tcp, 80),
        ("203.0.113.200", Protocol::Udp, 53),
        ("192.0.2.11", Protocol::Sctp, 30080),
        ("fd00:10:96::1", Protocol::Tcp, 443),
    ] {
        let destination: IpAddr = destination.parse().unwrap();
        let source: IpAddr = if destination.is_ipv4() { "10.244.0.7" } else { "fd00:10:244::7" }.parse().unwrap();
        let packet = Packet { source, destination, traffic: Traffic::Port { protocol, port }, from_this_node: false };
        let mut rules = desired.rules.clone();
        let input = Piece::Chain {
            family: Family::from(destination),
            table: sluice::kernel::iptables::Table::Filter,
            chain: names::CHAIN_INPUT.into(),
        };
        rules.get_mut(&input).expect("the chain").0.push("-j REJECT --reject-with icmp-port-unreachable".into());
        let (local, desired) = (local(), Desired { rules, ..desired.clone() });
        let (fate, _) = chains(&desired, &local).fate("INPUT", Traced { packet, state: State::New, mark: 0 });
        assert_eq!(fate, Fate::Left, "{packet:?}");
    }
}

#[test]
fn a_set_becomes_larger_before_it_is_full() {
    let mut world = clusters::empty_world();
    clusters::put_many_pods(&mut world, 70_000);
    let (_, desired) = lowered(&world, false, BOTH);
    let (set, spec) = desired.sets.iter().find(|(set, _)| set.0.starts_with("KUBE-SRC-")).expect("the set of peers");
    let count = desired.elements.range(lowering::elements_of(set)).count();
    assert_eq!((count, spec.max_elements), (70_001, 131_072));
}
