//! The table of nf_tables as the kernel gets it against the rule set that it comes from, packet by packet, and its history.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use ipnet::IpNet;
use sluice::firewall::multicast;
use sluice::firewall::nftables::desired::Desired;
use sluice::firewall::nftables::lowering::Lowering;
use sluice::firewall::nftables::names::{self, ChainKind};
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::{Direction, RuleSet};
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::kernel::nftables::{Content, Hook, Key, Name, Object, Verdict};
use sluice::model::{
    Action, ClusterNetworkPolicy, ClusterRule, Node, Peer, PolicyRule, Selector, Subject, Tier, World,
};
use sluice::net::{Family, PerFamily, Protocol};

use super::cases::{Case, ELSEWHERE, HERE, block, pods, pods_in, port, rule};
use super::lowered::{BOTH, config, local, passes_invalid};
use super::support::chains::State;
use super::support::random::{Random, for_many};
use super::support::tables::{Fate, Table, refusal, rules_name};
use super::{clusters, oracle, services, tiers};

/// Everything lowered at once.
fn lowered(world: &World, default_deny: bool, families: PerFamily<bool>) -> (RuleSet, Desired) {
    let mut plan = Plan::new();
    let changed = plan.update(&clusters::copied(world));
    let mut lowering = Lowering::new(config(default_deny), families);
    lowering.update(plan.rules(), world, &changed);
    (plan.rules().clone(), lowering.desired().clone())
}

/// Returns whether the table of a World forwards a packet.
pub fn is_forwarded(world: &World, packet: &Packet) -> bool {
    let (_, desired) = lowered(world, false, BOTH);
    Table { table: &desired.table, local: &local() }.passes(Hook::Forward, packet, State::New)
}

/// The same of a packet to this node itself.
pub fn is_taken(world: &World, packet: &Packet) -> bool {
    let (_, desired) = lowered(world, false, BOTH);
    Table { table: &desired.table, local: &local() }.passes(Hook::Input, packet, State::New)
}

/// The same of a packet that IPVS gave its real destination, which leaves the host by the hook for output.
pub fn is_sent(world: &World, packet: &Packet) -> bool {
    let (_, desired) = lowered(world, false, BOTH);
    Table { table: &desired.table, local: &local() }.passes(Hook::Output, packet, State::New)
}

fn check_packets(rules: &RuleSet, desired: &Desired, random: &mut Random, packets: usize) {
    let local = local();
    let table = Table { table: &desired.table, local: &local };
    for _ in 0..packets {
        let packet = clusters::packet(random);
        let judged = verdict(rules, &packet);
        // Link-local and multicast packets of pods never reach IPVS and OUTPUT.
        let of_link = ["fe80::1", "ff02::fb", "ff05::fb", "224.0.0.251", "255.255.255.255"];
        let on_link = of_link.iter().any(|a| [packet.source, packet.destination].contains(&a.parse().unwrap()));
        let by_ipvs = !on_link && random.chance(20);
        let hook = if packet.from_this_node || by_ipvs { Hook::Output } else { Hook::Forward };
        let passes = table.passes(hook, &packet, State::New);
        assert_eq!(passes, judged.passes(), "{packet:?} in {hook:?}: {judged:?}");

        let to_host = Packet {
            destination: if packet.source.is_ipv4() { "192.0.2.11" } else { "2001:db8:2::11" }.parse().unwrap(),
            ..packet
        };
        if !local.contains(&to_host.source) {
            let judged = verdict(rules, &to_host);
            let passes = table.passes(Hook::Input, &to_host, State::New);
            assert_eq!(passes, judged.egress.passes(), "{to_host:?}: {judged:?}");
        }
        // To many there are no connections, whatever connection tracking says.
        let is_for_many = multicast::refuses(&Packet { from_this_node: false, ..packet });
        let expected = !(is_for_many && multicast::is_closed(rules));
        let passes = table.passes(Hook::Forward, &packet, State::Established);
        assert_eq!(passes, expected, "{packet:?} belongs to a connection");
        let passes = table.passes(hook, &packet, State::Invalid);
        assert_eq!(passes, passes_invalid(rules, &packet), "{packet:?} in state INVALID");
    }
}

#[test]
fn the_table_does_what_the_rules_mean() {
    for_many(60, |random| {
        let changes = 20 + random.below(60);
        let world = if random.chance(50) { clusters::world(random, changes) } else { tiers::world(random, changes) };
        let (rules, desired) = lowered(&world, false, BOTH);
        assert_eq!(refusal(&desired.table), None, "the kernel takes it");
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
        assert_eq!(refusal(&desired.table), None, "the kernel takes it");
        let own = world.host.addresses.iter().map(|own| own.address);
        let local: BTreeSet<IpAddr> = own.chain(["10.244.0.254".parse().unwrap()]).collect();
        let table = Table { table: &desired.table, local: &local };
        let mut sources = clusters::addresses();
        let pods: [IpNet; 2] = ["10.244.0.0/16", "fd00:10:244::/64"].map(|range| range.parse().unwrap());
        sources.retain(|address| pods.iter().any(|range| range.contains(address)));
        for _ in 0..200 {
            let packet = services::packet(random, &world, &sources);
            let expected = services::is_refused(&world, &packet);
            asked.fetch_add(1, Ordering::Relaxed);
            refused.fetch_add(usize::from(expected), Ordering::Relaxed);
            let fate = table.trace(Hook::Input, &packet, State::New).fate;
            assert_eq!(fate == Fate::Rejected, expected, "{packet:?} {:#?}", world.cluster);
            assert!(table.passes(Hook::Input, &packet, State::Established), "{packet:?} belongs to a connection");
            let tunnelled = table.trace(Hook::Input, &packet, State::Tunnelled).fate;
            assert_eq!(tunnelled == Fate::Rejected, expected, "{packet:?}, whatever connection it belongs to");
            for sent in services::translated(&world, &packet) {
                if services::is_delivered_here(&world, &sent) {
                    continue;
                }
                let expected = Direction::BOTH.iter().all(|side| oracle::passes(&world, &sent, *side));
                assert_eq!(table.passes(Hook::Output, &sent, State::New), expected, "{sent:?} behind {packet:?}");
            }
        }
    });
    // One seed alone may have none.
    let (asked, refused) = (asked.into_inner(), refused.into_inner());
    assert!(asked < 10_000 || refused > 20, "hardly any packet was to be refused: {refused} of {asked}");
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
            if random.chance(10) {
                told.push(many_peers(&mut world, random));
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
            assert_eq!(lowering.desired(), &expected, "after {told:#?}");
            let mut replayed = before.table.clone();
            for object in &told_changed.objects {
                match expected.table.get(object) {
                    Some(content) => drop(replayed.insert(object.clone(), content.clone())),
                    None => drop(replayed.remove(object)),
                }
            }
            assert_eq!(replayed, expected.table, "every difference is named, after {told:#?}");
            assert_eq!(told_changed.settings, before.settings != expected.settings);
            let is_element = |object: &&Object| matches!(object, Object::Element(..));
            let mut gone =
                before.table.keys().filter(|object| !expected.table.contains_key(*object)).filter(is_element);
            let left: BTreeSet<&Object> = told_changed.left.iter().collect();
            assert!(gone.all(|object| left.contains(object)), "all that left is told, after {told:#?}");
            let count = |is_one: fn(&Object) -> bool| expected.table.keys().filter(|object| is_one(object)).count();
            let sets = count(|object| matches!(object, Object::Set(_)));
            let elements = count(|object| matches!(object, Object::Element(..)));
            assert_eq!((lowering.desired().sets, lowering.desired().elements), (sets, elements));
        }
        let (rules, desired) = lowered(&world, false, BOTH);
        check_packets(&rules, &desired, random, 100);
    });
}

/// A policy with so many peers that no rule looks them up in turn.
fn many_peers(world: &mut World, random: &mut Random) -> String {
    let labels = ["app=web", "app=db", "tier=front", "tier=back", "app=api", "app=none", "canary="];
    let blocks = ["10.244.0.0/30", "203.0.113.0/24", "10.244.0.2/31", "fd00:10:244::/126"];
    let peers: Vec<Peer> = labels
        .iter()
        .map(|of| pods(of))
        .chain(blocks.iter().map(|range| block(range, &[])))
        .filter(|_| random.chance(80))
        .collect();
    let ports = [port("tcp/80"), port("tcp/80-8080"), port("tcp/53-81"), port("udp/*"), port("tcp/http")];
    let rules: Vec<_> = (0..2)
        .map(|_| {
            let some: Vec<_> = ports.iter().filter(|_| random.chance(40)).cloned().collect();
            rule(&peers, &some)
        })
        .collect();
    let name = *random.pick(&["a/many", "ab/many"]);
    let both = random.chance(50);
    let case = Case(world.clone()).policy(name, "", [Some(&rules), both.then_some(&rules)]);
    *world = case.0;
    format!("policy {name} {rules:?} for both directions: {both}")
}

#[test]
fn many_peers_are_one_set_and_mean_the_same() {
    for_many(15, |random| {
        let mut world = clusters::world(random, 60);
        for _ in 0..3 {
            many_peers(&mut world, random);
        }
        let (rules, desired) = lowered(&world, false, BOTH);
        assert_eq!(refusal(&desired.table), None, "the kernel takes it");
        check_packets(&rules, &desired, random, 400);
        let most = desired.table.iter().filter_map(|(object, content)| match (object, content) {
            // Of an address that several pods claim, which lasts for moments.
            (Object::Chain(name), _) if name.as_str().starts_with("each_") => None,
            // Of rules in order, which are not looked up at once.
            (Object::Chain(name), _) if names::kind(name) == Some(ChainKind::Tier) => None,
            (_, Content::Chain(chain)) if chain.base.is_none() => Some(chain.rules.len()),
            _ => None,
        });
        assert!(most.max().unwrap_or_default() < 40, "no chain grows with the number of peers");
    });
}

/// Each port has other peers: what unions hold stays within a few times what the sets themselves hold.
#[test]
fn many_combinations_of_peers_do_not_multiply_elements() {
    let mut case = Case::new().namespace("shop", "").pod("shop/web", HERE, ["10.244.0.1", "app=web", ""]);
    for number in 0..240_u8 {
        let (name, app) = (format!("shop/peer-{number}"), format!("app=peer-{}", number % 12));
        case = case.pod(&name, ELSEWHERE, [&format!("10.244.1.{number}"), &app, ""]);
    }
    // Every choice of six out of twelve, as bits.
    let choices: Vec<u32> = (0..1_u32 << 12).filter(|choice| choice.count_ones() == 6).collect();
    let ports = |number: usize| 1000 + u16::try_from(number).unwrap();
    let rules = choices.iter().enumerate().map(|(number, choice)| {
        let peers: Vec<_> =
            (0..12).filter(|peer| choice >> peer & 1 == 1).map(|peer| pods(&format!("app=peer-{peer}"))).collect();
        rule(&peers, &[port(&format!("tcp/{}", ports(number)))])
    });
    let rules: Vec<_> = rules.collect();
    let world = case.policy("shop/web", "app=web", [Some(&rules), None]).0;
    let (_, desired) = lowered(&world, false, PerFamily { v4: true, v6: false });
    assert_eq!(refusal(&desired.table), None, "the kernel takes it");
    assert!(desired.elements < choices.len() + 6 * 240, "{} elements for {} ports", desired.elements, choices.len());
    let (local, destination) = (local(), "10.244.0.1".parse().unwrap());
    let table = Table { table: &desired.table, local: &local };
    for (number, choice) in choices.iter().enumerate().step_by(100) {
        for peer in 0..24_u8 {
            let traffic = Traffic::Port { protocol: Protocol::Tcp, port: ports(number) };
            let source = format!("10.244.1.{peer}").parse().unwrap();
            let packet = Packet { source, destination, traffic, from_this_node: false };
            let passes = table.passes(Hook::Forward, &packet, State::New);
            assert_eq!(passes, choice >> (peer % 12) & 1 == 1, "{packet:?}");
        }
    }
}

/// The kernel checks each element that leads to a chain at every change of the table that adds a jump.
#[test]
fn many_ports_of_the_same_peers_are_one_jump() {
    let ports: Vec<_> = (0..3000).map(|number| port(&format!("tcp/{}", 1000 + 2 * number))).collect();
    let rules = [rule(&[pods("app=peer")], &ports), rule(&[pods("app=few")], &[port("tcp/80"), port("tcp/1000")])];
    let world = Case::new()
        .namespace("shop", "")
        .pod("shop/web", HERE, ["10.244.0.1", "app=web", ""])
        .pod("shop/peer", ELSEWHERE, ["10.244.1.1", "app=peer", ""])
        .pod("shop/few", ELSEWHERE, ["10.244.1.2", "app=few", ""])
        .policy("shop/web", "app=web", [Some(&rules), None])
        .0;
    let (rules, desired) = lowered(&world, false, PerFamily { v4: true, v6: false });
    assert_eq!(refusal(&desired.table), None, "the kernel takes it");
    let leads = |content: &&Content| match content {
        Content::Verdict(verdict) => matches!(&**verdict, sluice::kernel::nftables::Verdict::Jump(_)),
        _ => false,
    };
    let leading = desired.table.values().filter(leads).count();
    assert!(leading < 10, "{leading} elements lead to chains");
    let (local, destination) = (local(), "10.244.0.1".parse().unwrap());
    let table = Table { table: &desired.table, local: &local };
    for (source, number) in ["10.244.1.1", "10.244.1.2", "203.0.113.9"]
        .into_iter()
        .flat_map(|source| [80, 999, 1000, 1001, 1002, 6998, 7000].map(|number| (source, number)))
    {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let traffic = Traffic::Port { protocol, port: number };
            let packet = Packet { source: source.parse().unwrap(), destination, traffic, from_this_node: false };
            let passes = table.passes(Hook::Forward, &packet, State::New);
            assert_eq!(passes, verdict(&rules, &packet).passes(), "{packet:?}");
        }
    }
}

/// Chains of a cluster's table, each with its number of rules.
fn shape(world: &World) -> Vec<(Name, usize)> {
    let (_, desired) = lowered(world, false, PerFamily { v4: true, v6: false });
    let chains = desired.table.iter().filter_map(|(object, content)| match (object, content) {
        (Object::Chain(name), Content::Chain(chain)) => Some((name.clone(), chain.rules.len())),
        _ => None,
    });
    chains.collect()
}

/// Cost per packet: a chain of a pod has as many rules with many policies as with one.
#[test]
fn the_chain_of_a_pod_does_not_grow_with_its_policies() {
    let with = |count: u32| {
        let mut case = Case::new().namespace("shop", "").pod("shop/web", HERE, ["10.244.0.1", "app=web", ""]);
        for number in 0..count {
            let peer = pods(&format!("app=peer-{number}"));
            let ports = [
                port(&format!("tcp/{}", 1000 + number)),
                port(&format!("udp/{}-{}", 2000 + 10 * number, 2005 + 10 * number)),
            ];
            let rules = [
                rule(&[peer.clone(), block(&format!("203.0.{}.0/24", number % 250), &[])], &ports),
                rule(&[peer], &[]),
            ];
            case = case.policy(&format!("shop/policy-{number}"), "app=web", [Some(&rules), None]);
        }
        let shape = shape(&case.0);
        shape.iter().find(|(name, _)| name.as_str().starts_with("in_")).map(|(_, rules)| *rules).unwrap()
    };
    let (few, many) = (with(5), with(300));
    assert_eq!(few, many);
    assert!(few <= 8, "{few}");
}

/// The rules that the first packet of a connection between two pods of this node meets, of which the first policies for the one that
/// gets it allow others, and the last allows the sender; with so many blocks besides.
fn rules_met(policies: u32, blocks: u32) -> usize {
    let case = Case::new().namespace("shop", "").namespace("clients", "of=clients");
    let mut case = case.pod("shop/web", HERE, ["10.244.0.1", "app=web", ""]);
    case = case.pod("clients/one", HERE, ["10.244.0.2", "", ""]);
    for number in 1..=policies {
        let other = pods(&format!("app=other-{number}"));
        let peer = if number == policies { pods_in("of=clients", "") } else { other };
        let more = (0..blocks).map(|at| block(&format!("198.{}.{}.128/25", 18 + at / 256, at % 256), &[]));
        let peers: Vec<Peer> = more.chain([peer]).collect();
        let rules = [rule(&peers, &[port("tcp/8080"), port("tcp/9090")])];
        case = case.policy(&format!("shop/guard-{number}"), "app=web", [Some(&rules), None]);
    }
    let (_, desired) = lowered(&case.0, false, BOTH);
    let [source, destination] = ["10.244.0.2", "10.244.0.1"].map(|text| text.parse().unwrap());
    let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 8080 };
    let packet = Packet { source, destination, traffic, from_this_node: false };
    let traced = Table { table: &desired.table, local: &local() }.trace(Hook::Forward, &packet, State::New);
    assert_eq!(traced.fate, Fate::Passes, "{policies} policies, {blocks} blocks");
    traced.met.rules
}

#[test]
fn the_first_packet_of_a_connection_meets_as_many_rules_with_1000_policies_as_with_one() {
    let none = rules_met(0, 0);
    let one = rules_met(1, 0);
    println!("{none} rules without a policy, {one} with one");
    assert!(one <= none + 5 && none <= 22, "{none} {one}");
    for policies in [10, 300, 1000] {
        assert_eq!(rules_met(policies, 0), one, "{policies} policies");
    }
    // Pods and blocks are two sets, and so one rule more, however many blocks there are.
    assert_eq!(rules_met(1, 1000), rules_met(1, 1));
    assert!(rules_met(1, 1000) <= one + 1);
}

/// A policy of a tier for all pods, with these rules for what they get.
fn of_tier(case: Case, tier: Tier, rules: Vec<(Action, PolicyRule)>) -> Case {
    let Case(mut world) = case;
    let rule = |(action, matches)| ClusterRule { name: "".into(), action, matches };
    let policy = ClusterNetworkPolicy {
        tier,
        priority: 7,
        subject: Subject { namespaces: Selector::everything(), pods: Selector::everything() },
        ingress: rules.into_iter().map(rule).collect(),
        egress: [].into(),
    };
    world.cluster.cluster_policies.insert(tier.name().into(), policy);
    Case(world)
}

/// Cost per packet: rules in a row with the same action are looked up together, and pods of all namespaces share the chain.
#[test]
fn the_chain_of_a_tier_does_not_grow_with_rules_in_a_row() {
    let with = |count: u32, tier| {
        let rules = |action| {
            let peer = |number| pods_in("", &format!("app=peer-{number}"));
            let ports = |number| {
                [port(&format!("tcp/{}", 1000 + number)), port(&format!("udp/{}-{}", 10 * number, 10 * number + 5))]
            };
            (0..count)
                .flat_map(move |number| [rule(&[peer(number)], &ports(number)), rule(&[peer(number)], &[])])
                .map(move |rule| (action, rule))
        };
        let case = Case::new().namespace("shop", "").namespace("bank", "");
        let case = case.pod("shop/web", HERE, ["10.244.0.1", "", ""]).pod("bank/web", HERE, ["10.244.0.2", "", ""]);
        let shape = shape(&of_tier(case, tier, rules(Action::Deny).chain(rules(Action::Accept)).collect()).0);
        let of_tier = shape.iter().filter(|(name, _)| names::kind(name) == Some(ChainKind::Tier));
        let its: Vec<usize> = of_tier.map(|(_, rules)| *rules).collect();
        assert_eq!(its.len(), 1, "{shape:?}");
        its[0]
    };
    for tier in [Tier::Admin, Tier::Baseline] {
        let (few, many) = (with(5, tier), with(300, tier));
        assert_eq!(few, many);
        assert!(few <= 8, "{few}");
    }
}

/// Such a packet is dropped where any policy may refuse something, as with iptables: an accepting Admin tier does not come first.
#[test]
fn what_connection_tracking_cannot_assign_passes_no_isolated_pod_by_an_accepting_admin_tier() {
    let everything = || rule(&[], &[]);
    let only = |action| vec![(action, everything())];
    for (admin, baseline, isolated, expected) in [
        (Some(Action::Accept), None, false, true),
        (Some(Action::Accept), None, true, false),
        (Some(Action::Pass), None, true, false),
        (Some(Action::Accept), Some(Action::Accept), false, true),
        (Some(Action::Accept), Some(Action::Deny), false, false),
        (Some(Action::Deny), Some(Action::Accept), false, false),
        (None, Some(Action::Accept), false, true),
        (None, Some(Action::Deny), false, false),
        (None, None, true, false),
    ] {
        // Alone at its address, and beside a pod that no policy but those of the tiers selects.
        for pods in [1, 2] {
            let mut case = Case::new().namespace("shop", "").pod("shop/db", HERE, ["10.244.0.1", "app=db", ""]);
            if pods == 2 {
                case = case.pod("shop/web", HERE, ["10.244.0.1", "app=web", ""]);
            }
            let tiers = [(Tier::Admin, admin), (Tier::Baseline, baseline)];
            for (tier, action) in tiers {
                if let Some(action) = action {
                    case = of_tier(case, tier, only(action));
                }
            }
            if isolated {
                case = case.policy("shop/db", "app=db", [Some(&[everything()]), None]);
            }
            let (_, desired) = lowered(&case.0, false, BOTH);
            let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
            let [source, destination] = ["203.0.113.9", "10.244.0.1"].map(|text| text.parse().unwrap());
            let packet = Packet { source, destination, traffic, from_this_node: false };
            let local = local();
            let passes = Table { table: &desired.table, local: &local }.passes(Hook::Forward, &packet, State::Invalid);
            assert_eq!(passes, expected, "Admin {admin:?}, Baseline {baseline:?}, isolated {isolated}, {pods} pods");
        }
    }
}

#[test]
fn what_a_tier_denies_counts_for_its_policy() {
    for tier in [Tier::Admin, Tier::Baseline] {
        let case = Case::new().namespace("shop", "").pod("shop/db", HERE, ["10.244.0.1", "app=db", ""]);
        let world = of_tier(case, tier, vec![(Action::Deny, rule(&[], &[]))]).0;
        let (rules, desired) = lowered(&world, false, BOTH);
        let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
        let [source, destination] = ["203.0.113.9", "10.244.0.1"].map(|text| text.parse().unwrap());
        let packet = Packet { source, destination, traffic, from_this_node: false };
        let local = local();
        let traced = Table { table: &desired.table, local: &local }.trace(Hook::Forward, &packet, State::New);
        assert_eq!(traced.fate, Fate::Rejected);
        assert_eq!(traced.met.counted, rules.cluster_policies.keys().map(names::denied).collect::<Vec<_>>());
    }
}

#[test]
fn pods_with_the_same_policies_share_a_chain_and_a_label_of_a_peer_costs_one_element() {
    let mut case = Case::new().namespace("shop", "");
    for number in 1..=5 {
        case = case.pod(&format!("shop/db-{number}"), HERE, [&format!("10.244.0.{number}"), "app=db", ""]);
    }
    let case = case.policy("shop/db", "app=db", [Some(&[rule(&[pods("app=web")], &[port("tcp/5432")])]), None]);
    let of = |case: Case, app: &str| case.pod("shop/web", ELSEWHERE, ["10.244.1.1", app, ""]).0;
    let world = of(Case(case.0.clone()), "app=other");
    let classes = shape(&world).into_iter().filter(|(name, _)| name.as_str().starts_with("in_shop_db_")).count();
    assert_eq!(classes, 1);
    let (mut plan, mut lowering) = (Plan::new(), Lowering::new(config(false), BOTH));
    let mut costs = |world: &World| {
        let changed = plan.update(world);
        lowering.update(plan.rules(), world, &changed).objects
    };
    costs(&world);
    let label = costs(&of(case, "app=web"));
    assert!(matches!(&*label, [Object::Element(_, Key::Address(_))]), "{label:?}");
}

/// Pods of other policies that claim one address: each has to allow, whatever the order of their names.
#[test]
fn an_address_of_several_pods_has_what_all_of_them_allow() {
    let allows =
        |ports: &[&str]| -> Vec<_> { ports.iter().map(|text| rule(&[pods("app=web")], &[port(text)])).collect() };
    let case = Case::new()
        .namespace("shop", "")
        .pod("shop/a", HERE, ["10.244.0.1", "app=a", ""])
        .pod("shop/b", HERE, ["10.244.0.1", "app=b", ""])
        .pod("shop/open", HERE, ["10.244.0.1", "app=open", ""])
        .pod("shop/web", ELSEWHERE, ["10.244.1.1", "app=web", ""])
        .policy("shop/a", "app=a", [Some(&allows(&["tcp/80", "tcp/81-90"])), None])
        .policy("shop/b", "app=b", [Some(&allows(&["tcp/80", "tcp/85", "udp/53"])), None]);
    let (rules, desired) = lowered(&case.0, false, BOTH);
    let (local, mut passing) = (local(), Vec::new());
    let table = Table { table: &desired.table, local: &local };
    for number in 50..100 {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let traffic = Traffic::Port { protocol, port: number };
            let (source, destination) = ("10.244.1.1".parse().unwrap(), "10.244.0.1".parse().unwrap());
            let packet = Packet { source, destination, traffic, from_this_node: false };
            let passes = table.passes(Hook::Forward, &packet, State::New);
            assert_eq!(passes, verdict(&rules, &packet).passes(), "{packet:?}");
            if passes {
                passing.push(number);
            }
        }
    }
    assert_eq!(passing, [80, 85]);
}

/// The kinds are written down here once more, so that none gets lost: RFC 792, RFC 4443, RFC 4861, RFC 4890.
#[test]
fn the_kinds_of_icmp_that_networks_need_pass_to_and_from_closed_pods_and_no_others_do() {
    let case = Case::new().namespace("shop", "").pod("shop/shut", HERE, ["10.244.0.1 fd00:10:244::1", "", ""]);
    let world = case.policy("shop/shut", "", [Some(&[]), Some(&[])]).0;
    let (_, desired) = lowered(&world, false, BOTH);
    let local = local();
    let table = Table { table: &desired.table, local: &local };
    for (pod, other, passing) in [
        ("10.244.0.1", "203.0.113.1", &[3, 8, 11][..]),
        ("fd00:10:244::1", "2001:db8:113::9", &[1, 2, 3, 128, 129, 135, 136]),
    ] {
        let (pod, other): (IpAddr, IpAddr) = (pod.parse().unwrap(), other.parse().unwrap());
        for (source, destination) in [(pod, other), (other, pod)] {
            for hook in [Hook::Forward, Hook::Output] {
                let passes = |kind: &u8| {
                    let traffic = Traffic::Icmp { kind: *kind };
                    let packet = Packet { source, destination, traffic, from_this_node: false };
                    table.passes(hook, &packet, State::New)
                };
                let found: Vec<u8> = (0..=255).filter(passes).collect();
                assert_eq!(found, passing, "{source} to {destination} in {hook:?}");
            }
        }
    }
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
    let table = Table { table: &desired.table, local: &local };
    let sent = |traffic, hook, source: &str, destination: &str, state| {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        table.passes(hook, &Packet { source, destination, traffic, from_this_node: hook == Hook::Output }, state)
    };
    let passes = |hook, source, destination, state| {
        sent(Traffic::Port { protocol: Protocol::Tcp, port: 80 }, hook, source, destination, state)
    };
    let (gateway, node, outside, unknown) = ("10.244.0.254", "192.0.2.11", "203.0.113.9", "10.244.0.9");
    // A ping is refused to unknown addresses like everything else, but for one between such an address and a known pod.
    for (hook, source, destination, kind, expected) in [
        (Hook::Forward, unknown, outside, 8, false),
        (Hook::Forward, outside, unknown, 8, false),
        (Hook::Forward, "fd00:10:244::9", "2001:db8:113::9", 128, false),
        (Hook::Input, unknown, node, 8, false),
        (Hook::Output, unknown, outside, 8, false),
        (Hook::Forward, unknown, known, 8, true),
        (Hook::Forward, known, unknown, 8, true),
        (Hook::Forward, known, outside, 8, true),
        (Hook::Forward, outside, known, 8, true),
        (Hook::Forward, "10.244.1.9", outside, 8, true),
        (Hook::Input, known, node, 8, true),
        (Hook::Output, node, unknown, 8, true),
    ] {
        let passes = sent(Traffic::Icmp { kind }, hook, source, destination, State::New);
        assert_eq!(passes, expected, "ping: {hook:?} {source} {destination}");
    }
    for (hook, source, destination, expected) in [
        (Hook::Forward, unknown, outside, false),
        (Hook::Forward, outside, unknown, false),
        (Hook::Forward, known, unknown, false),
        (Hook::Forward, known, outside, true),
        (Hook::Forward, outside, known, true),
        (Hook::Forward, "10.244.1.9", outside, true),
        (Hook::Forward, "fd00:10:244::9", "2001:db8:113::9", false),
        (Hook::Input, unknown, node, false),
        (Hook::Input, known, node, true),
        (Hook::Input, known, gateway, true),
        (Hook::Input, unknown, gateway, true),
        (Hook::Output, node, known, true),
        (Hook::Output, node, unknown, true),
        (Hook::Output, gateway, unknown, true),
        (Hook::Output, gateway, known, true),
        (Hook::Output, unknown, outside, false),
    ] {
        assert_eq!(passes(hook, source, destination, State::New), expected, "{hook:?} {source} {destination}");
    }
    assert!(passes(Hook::Input, unknown, node, State::Established), "it answers a probe");
    assert!(!passes(Hook::Forward, unknown, outside, State::Invalid));
}

#[test]
fn a_family_that_is_off_has_nothing_but_what_links_need_and_nothing_is_there_without_use() {
    for_many(40, |random| {
        let world = clusters::world(random, 60);
        for families in [BOTH, PerFamily { v4: true, v6: false }, PerFamily { v4: false, v6: true }] {
            let (_, desired) = lowered(&world, true, families);
            assert_eq!(refusal(&desired.table), None, "the kernel takes it");
            let of_other = |object: &&Object| match object {
                Object::Element(_, Key::Address(one) | Key::Itself(one) | Key::Service(one, ..)) => {
                    !*families.of(Family::from(*one))
                }
                Object::Element(_, Key::Prefix(one)) => !*families.of(Family::from(*one)),
                Object::Element(_, Key::Range(ends)) => !*families.of(Family::from(ends.0)),
                _ => false,
            };
            assert_eq!(desired.table.keys().find(of_other), None, "{families:?}");
            let used: BTreeSet<Object> = desired
                .table
                .values()
                .flat_map(|content| match content {
                    Content::Chain(chain) => rules_name(chain).collect(),
                    Content::Verdict(verdict) => match &**verdict {
                        Verdict::Jump(to) | Verdict::Goto(to) => vec![Object::Chain(to.clone())],
                        _ => Vec::new(),
                    },
                    _ => Vec::new(),
                })
                .collect();
            let is_idle = |(object, content): &(&Object, &Content)| match (object, content) {
                (_, Content::Chain(chain)) if chain.base.is_some() => false,
                // Of a class that allows everything, and of the set of known pods where no range is closed.
                (Object::Counter(_) | Object::Element(..), _) => false,
                (Object::Set(name), _) if name.as_str().starts_with("pods") && name.as_str().len() == 5 => false,
                // For who reads the table.
                (Object::Set(name), _) if Family::BOTH.map(names::pod_ids).contains(name) => false,
                _ => !used.contains(*object),
            };
            assert_eq!(desired.table.iter().find(is_idle), None, "{families:?}");
        }
    });
}

#[test]
fn the_classes_of_counters_are_those_of_the_pods_and_count_what_is_refused() {
    let case = Case::new().namespace("shop", "").pod("shop/db", HERE, ["10.244.0.1", "app=db", ""]);
    let world = case.policy("shop/db", "app=db", [Some(&[]), None]).0;
    let mut plan = Plan::new();
    let changed = plan.update(&world);
    let mut lowering = Lowering::new(config(false), BOTH);
    lowering.update(plan.rules(), &world, &changed);
    let (local, destination) = (local(), "10.244.0.1".parse().unwrap());
    let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
    let packet = Packet { source: "203.0.113.9".parse().unwrap(), destination, traffic, from_this_node: false };
    let traced = Table { table: &lowering.desired().table, local: &local }.trace(Hook::Forward, &packet, State::New);
    assert_eq!(traced.fate, Fate::Rejected);
    let names: Vec<Name> = lowering.classes().map(|class| names::class(class)).collect();
    assert_eq!(traced.met.counted, names, "one class, which counts");
}

#[test]
fn named_ports_for_peers_of_one_family_have_no_set_in_the_other_for_an_address_that_pods_share() {
    for (peer, family) in [("203.0.113.0/24", "_4"), ("2001:db8::/32", "_6")] {
        let case = Case::new().namespace("shop", "");
        let addresses = "10.244.0.1 fd00:10:244::1";
        let case = case.pod("shop/a", HERE, [addresses, "app=a", "http/tcp/80"]);
        let case = case.pod("shop/b", HERE, [addresses, "app=b", "http/tcp/80"]);
        let to_named = [rule(&[block(peer, &[])], &[port("tcp/http")])];
        let case = case.policy("shop/a", "app=a", [Some(&to_named), None]);
        let world = case.policy("shop/b", "app=b", [Some(&to_named), None]).0;
        let (_, desired) = lowered(&world, false, BOTH);
        let of_ports = desired.table.keys().filter_map(|object| match object {
            Object::Set(name) if name.as_str().starts_with("port_") => Some(name.as_str()),
            _ => None,
        });
        let of_ports: Vec<&str> = of_ports.collect();
        assert!(!of_ports.is_empty() && of_ports.iter().all(|name| name.ends_with(family)), "{of_ports:?}");
    }
}
