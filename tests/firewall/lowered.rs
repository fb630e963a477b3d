//! The rules as the kernel gets them against the rule set that they come from, packet by packet, and their history.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice::config::FirewallConfig;
use sluice::firewall::desired::Desired;
use sluice::firewall::lowering::Lowering;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::RuleSet;
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::firewall::{lowering, names, overlay};
use sluice::kernel::ipset::ElementKey;
use sluice::kernel::iptables::Piece;
use sluice::model::{Node, World};
use sluice::net::{Family, PerFamily, Protocol};

use super::clusters;
use super::histories::for_many;
use super::support::chains::{Chains, Fate, State, Traced};
use super::support::random::Random;

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

fn config(default_deny: bool) -> Arc<FirewallConfig> {
    let range = |text: &str| vec![text.parse().expect("a range")];
    Arc::new(FirewallConfig {
        sync_period: Duration::from_secs(300),
        default_deny,
        service_cluster_ip_ranges: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/108".parse().unwrap()],
        external_ip_ranges: range("203.0.113.128/25"),
        load_balancer_ip_ranges: Vec::new(),
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
fn local() -> BTreeSet<IpAddr> {
    ["192.0.2.11", "2001:db8:2::11", "10.244.0.254"].iter().map(|text| text.parse().unwrap()).collect()
}

fn chains<'a>(desired: &'a Desired, local: &'a BTreeSet<IpAddr>) -> Chains<'a> {
    Chains { rules: &desired.rules, elements: &desired.elements, local }
}

fn check_packets(rules: &RuleSet, desired: &Desired, random: &mut Random, packets: usize) {
    let local = local();
    let chains = chains(desired, &local);
    for _ in 0..packets {
        let packet = clusters::packet(random);
        let judged = verdict(rules, &packet);
        // Marks of others, also ours set by others, mean nothing.
        let mark = *random.pick(&[0, 0x10000, 0x20000, 0xdead_beef]);
        let builtin = if packet.from_this_node || random.chance(20) { "OUTPUT" } else { "FORWARD" };
        let (fate, after) = chains.fate(builtin, Traced { packet, state: State::New, mark });
        assert_eq!(fate.passes(), judged.passes(), "{packet:?} with mark {mark:x} in {builtin}: {fate:?}, {judged:?}");
        assert_eq!(after & !0x10000, mark & !0x10000, "foreign bits of the mark stay");
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
        assert!(fate.passes(), "{packet:?} belongs to a connection: {fate:?}");
    }
}

#[test]
fn the_chains_do_what_the_rules_mean() {
    for_many(60, |random| {
        let changes = 20 + random.below(60);
        let world = clusters::world(random, changes);
        let (rules, desired) = lowered(&world, false, BOTH);
        check_packets(&rules, &desired, random, 400);
    });
}

#[test]
fn what_is_lowered_does_not_depend_on_history() {
    for_many(25, |random| {
        let mut world = clusters::empty_world();
        let (mut plan, mut lowering) = (Plan::new(), Lowering::new(config(true), BOTH));
        let mut told = Vec::new();
        for _ in 0..50 {
            for _ in 0..*random.pick(&[1, 1, 1, 2, 8]) {
                told.push(clusters::change(&mut world, random));
            }
            if random.chance(5) {
                let pod_cidrs = if random.chance(50) { vec!["10.244.0.0/24".parse().unwrap()] } else { Vec::new() };
                world.cluster.nodes.insert("node1".into(), Node { addresses: Vec::new(), pod_cidrs });
            }
            let before = lowering.desired().clone();
            let changed = plan.update(&world);
            let told_changed = lowering.update(plan.rules(), &world, &changed);
            let (_, expected) = lowered(&world, true, BOTH);
            assert_eq!(lowering.desired().sets, expected.sets, "after {told:#?}");
            assert_eq!(lowering.desired().elements, expected.elements, "after {told:#?}");
            assert_eq!(lowering.desired().rules, expected.rules, "after {told:#?}");
            let mut replayed = before;
            for key in &told_changed.sets {
                copy(&mut replayed.sets, &expected.sets, key);
            }
            for key in &told_changed.elements {
                copy(&mut replayed.elements, &expected.elements, key);
            }
            for key in &told_changed.rules {
                copy(&mut replayed.rules, &expected.rules, key);
            }
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

#[test]
fn rules_name_only_sets_that_are_there() {
    for_many(40, |random| {
        let world = clusters::world(random, 60);
        for families in [BOTH, PerFamily { v4: true, v6: false }, PerFamily { v4: false, v6: true }] {
            let (_, desired) = lowered(&world, true, families);
            let named: BTreeSet<&str> =
                desired.rules.values().flat_map(|rules| &rules.0).flat_map(|rule| overlay::sets_named(rule)).collect();
            let there: BTreeSet<&str> = desired.sets.keys().map(|set| &*set.0).collect();
            assert!(named.is_subset(&there), "{named:?} {there:?}");
            assert!(desired.elements.keys().all(|key| desired.sets.contains_key(&key.set)));
            let of_families = desired.sets.values().all(|spec| *families.of(spec.family));
            let rules_of_families = desired.rules.keys().all(|piece| *families.of(piece.family()));
            assert!(of_families && rules_of_families, "a family that is off has nothing");
        }
    });
}

#[test]
fn a_pod_that_is_not_known_is_closed_and_the_host_reaches_everybody() {
    let mut world = clusters::empty_world();
    let pod_cidrs = vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()];
    world.cluster.nodes.insert("node1".into(), Node { addresses: Vec::new(), pod_cidrs });
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
    let count = desired.elements.range::<ElementKey, _>(lowering::elements_of(set)).count();
    assert_eq!((count, spec.max_elements), (70_001, 131_072));
}
