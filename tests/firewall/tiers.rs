//! ClusterNetworkPolicies made by chance.

use sluice::firewall::plan::Plan;
use sluice::firewall::rules::{Direction, RuleSet};
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::model::{
    Action, Authority, Cluster, ClusterNetworkPolicy, ClusterRule, HostAddress, Namespaces, Node, NodeAddress,
    NodeAddressKind, Operator, Peer, Peers, PolicyRule, PortMatch, Ports, Requirement, Selector, Subject, Tier, World,
};
use sluice::net::Protocol;

use super::cases::{Case, HERE, block as case_block, rule as case_rule};
use super::clusters::{LABELS, OF_NAMESPACES, block, labels, policy_ports, remove_one, selector};
use super::support::random::{Random, for_many};
use super::{clusters, histories, lowered, oracle, tables};

/// Names and priorities are few, so that some meet.
const NAMES: [&str; 4] = ["a", "b", "c", "bc"];
const PRIORITIES: [u16; 3] = [0, 7, 1000];
/// None of them is this host: what is known of that one decides about more than peers.
const NODES: [&str; 3] = ["node3", "node4", "node5"];
const NODE_ADDRESSES: [&str; 6] =
    ["192.0.2.12", "2001:db8:2::12", "203.0.113.9", "2001:db8:113::9", "10.244.0.5", "fd00:10:244::5"];
const OF_NODES: [(&str, &[&str]); 2] = [("pool", &["gpu", "web"]), ("spot", &[""])];

/// Changes one policy, and says what.
pub fn change(cluster: &mut Cluster, random: &mut Random) -> String {
    match random.below(10) {
        0..=2 => remove_one(&mut cluster.cluster_policies, random),
        3..=4 => put_node(cluster, random),
        _ => put(cluster, random),
    }
}

/// Adds a Node, replaces one or takes it away. Some have addresses of pods, which the API does not forbid, and two may have the same.
fn put_node(cluster: &mut Cluster, random: &mut Random) -> String {
    let name = *random.pick(&NODES);
    if random.chance(20) {
        cluster.nodes.remove(&name.into());
        return format!("node {name} is gone");
    }
    let mut addresses = Vec::new();
    for _ in 0..random.below(3) {
        let address = random.pick(&NODE_ADDRESSES).parse().expect("an address");
        let kind = *random.pick(&[NodeAddressKind::Internal, NodeAddressKind::External]);
        addresses.push(NodeAddress { kind, address });
    }
    let node = Node { addresses, labels: labels(random, &OF_NODES), ..Node::default() };
    let told = format!("node {name} {node:?}");
    cluster.nodes.insert(name.into(), node);
    told
}

/// Adds a policy, or replaces one.
pub fn put(cluster: &mut Cluster, random: &mut Random) -> String {
    let name = *random.pick(&NAMES);
    let policy = ClusterNetworkPolicy {
        tier: *random.pick(&[Tier::Admin, Tier::Baseline]),
        priority: *random.pick(&PRIORITIES),
        subject: Subject { namespaces: selector(random, &OF_NAMESPACES), pods: selector(random, &LABELS) },
        ingress: rules(random, false),
        egress: rules(random, true),
    };
    let told = format!("cluster policy {name} {policy:?}");
    cluster.cluster_policies.insert(name.into(), policy);
    told
}

/// A World with so many changes and several policies of either tier.
pub fn world(random: &mut Random, changes: usize) -> World {
    let mut world = clusters::world(random, changes);
    for _ in 0..3 {
        put(&mut world.cluster, random);
        put_node(&mut world.cluster, random);
    }
    world
}

fn rules(random: &mut Random, are_for_egress: bool) -> Box<[ClusterRule]> {
    (0..random.below(4)).map(|_| rule(random, are_for_egress)).collect()
}

/// A sound rule, or what an unsound one counts as.
fn rule(random: &mut Random, is_for_egress: bool) -> ClusterRule {
    let action = *random.pick(&[Action::Accept, Action::Deny, Action::Pass]);
    let peer = |random: &mut Random| match random.below(10) {
        0..=6 => {
            let namespaces = Namespaces::Selected(selector(random, &OF_NAMESPACES));
            Peer::Pods { namespaces, pods: selector(random, &LABELS) }
        }
        7..=8 if is_for_egress => Peer::Nodes(selector(random, &OF_NODES)),
        _ => Peer::Block { cidr: block(random), except: [].into() },
    };
    let count = *random.pick(&[0, 1, 1, 1, 2, 3]);
    let peers: Box<[Peer]> = (0..count).map(|_| peer(random)).collect();
    let peers = if action == Action::Deny && random.chance(10) { Peers::Any } else { Peers::Of(peers) };
    let ports = match (policy_ports(random), &peers) {
        // Only pods have named ports.
        (Ports::Of(mut ports), Peers::Of(peers)) if !peers.iter().all(|peer| matches!(peer, Peer::Pods { .. })) => {
            let mut left = std::mem::take(&mut ports).into_vec();
            left.retain(|port| !matches!(port.number, PortMatch::Named(_)));
            Ports::Of(left.into())
        }
        (_, Peers::Any) => Ports::Any,
        (ports, _) => ports,
    };
    ClusterRule { name: "rule".into(), action, matches: PolicyRule { peers, ports } }
}

/// A pod here, two Nodes, and a policy about Nodes of the pool `web`, of which both are.
fn about_nodes(action: Action) -> World {
    let mut world = Case::new().namespace("shop", "").pod("shop/a", HERE, ["10.244.0.1 fd00:10:244::1", "app=a", ""]).0;
    let mut host = (*world.host).clone();
    for text in ["10.244.0.254", "127.0.0.1"] {
        let (link, global) = if text == "127.0.0.1" { ("lo", false) } else { ("kube-bridge", true) };
        host.addresses.push(HostAddress { address: text.parse().expect("an address"), link: link.into(), global });
    }
    world.host = host.into();
    for (name, addresses) in [(HERE, ["192.0.2.11", "2001:db8:2::11"]), ("node2", ["192.0.2.12", "2001:db8:2::12"])] {
        let of =
            |text: &str| NodeAddress { kind: NodeAddressKind::Internal, address: text.parse().expect("an address") };
        let labels = [("pool", "web")].into_iter().collect();
        world
            .cluster
            .nodes
            .insert(name.into(), Node { addresses: addresses.map(of).into(), labels, ..Node::default() });
    }
    let nodes =
        Selector::from_iter([Requirement { key: "pool".into(), operator: Operator::In(["web".into()].into()) }]);
    let egress = [
        ClusterRule { name: "".into(), action, matches: case_rule(&[Peer::Nodes(nodes)], &[]) },
        ClusterRule {
            name: "".into(),
            action: Action::Deny,
            matches: case_rule(&[case_block("192.0.2.0/24", &[])], &[]),
        },
    ];
    let subject = Subject { namespaces: Selector::everything(), pods: Selector::everything() };
    let policy =
        ClusterNetworkPolicy { tier: Tier::Admin, priority: 1, subject, ingress: [].into(), egress: egress.into() };
    world.cluster.cluster_policies.insert("nodes".into(), policy);
    world
}

/// Whether the pod of this family reaches an address, by the verdict, the oracle, and the rules of both packet filters.
fn reaches(world: &World, to: &str) -> bool {
    let destination: std::net::IpAddr = to.parse().expect("an address");
    let source = if destination.is_ipv4() { "10.244.0.1" } else { "fd00:10:244::1" }.parse().expect("an address");
    let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 10250 };
    let packet = Packet { source, destination, traffic, from_this_node: false };
    let is_here = world.host.addresses.iter().any(|own| own.address == destination);
    let found = [
        verdict(&histories::rules(world), &packet).passes(),
        Direction::BOTH.iter().all(|direction| oracle::passes(world, &packet, *direction)),
        if is_here { lowered::is_taken(world, packet) } else { lowered::is_forwarded(world, packet) },
        if is_here { tables::is_taken(world, &packet) } else { tables::is_forwarded(world, &packet) },
    ];
    assert!(found == [found[0]; 4], "{to}: {found:?}");
    found[0]
}

#[test]
fn the_pods_own_node_is_a_peer_and_what_denies_it_denies_all_of_its_addresses() {
    let all = ["192.0.2.11", "2001:db8:2::11", "192.0.2.12", "2001:db8:2::12", "10.244.0.254", "192.0.2.13"];
    let reached = |world: &World| all.map(|to| reaches(world, to));
    assert_eq!(reached(&about_nodes(Action::Deny)), [false; 6]);
    assert_eq!(reached(&about_nodes(Action::Accept)), [true, true, true, true, true, false]);
    let mut world = about_nodes(Action::Deny);
    let other = (**world.cluster.nodes.get(&"node2".into()).expect("it is there")).clone();
    world.cluster.nodes.insert(HERE.into(), Node { labels: Default::default(), ..other });
    assert!(reaches(&world, "10.244.0.254"), "the pod's own Node is not selected");
}

#[test]
fn a_rule_about_nodes_fails_closed_while_only_nodes_without_labels_are_remembered() {
    for (action, open) in [(Action::Deny, false), (Action::Accept, true), (Action::Pass, false)] {
        let complete = about_nodes(action);
        let mut remembered = complete.clone();
        for (name, node) in complete.cluster.nodes.iter() {
            let node = Node { labels: Default::default(), ..(**node).clone() };
            remembered.cluster.nodes.insert(name.clone(), node);
        }
        remembered.authority.firewall = Authority::Remembered;
        let reached = |rules: &RuleSet, to: &str| {
            let [source, destination] = ["10.244.0.1", to].map(|text| text.parse().expect("an address"));
            let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
            verdict(rules, &Packet { source, destination, traffic, from_this_node: false }).passes()
        };
        let mut plan = Plan::new();
        plan.update(&remembered);
        assert!(
            !reached(plan.rules(), "192.0.2.12"),
            "{action:?}: a rule that accepts does so for nobody, and the next denies"
        );
        assert_eq!(reached(plan.rules(), "203.0.113.1"), open, "{action:?}");
        // They are listed, and then everything else.
        let mut listed = complete.clone();
        listed.authority.firewall = Authority::Remembered;
        for world in [&listed, &complete] {
            plan.update(world);
            assert_eq!(*plan.rules(), histories::rules(world), "{action:?}");
            assert_eq!(reached(plan.rules(), "192.0.2.12"), action != Action::Deny, "{action:?}");
            assert!(reached(plan.rules(), "203.0.113.1"), "{action:?}");
        }
    }
}

/// What the first policy passes on, where it is for the pod, the NetworkPolicies refuse.
#[test]
fn what_a_policy_may_have_to_pass_on_no_later_one_accepts_while_the_namespace_is_not_known() {
    let (all, red) = (Selector::everything(), || {
        let values = ["red".into()].into();
        Selector::from_iter([Requirement { key: "team".into(), operator: Operator::In(values) }])
    });
    let policy = |tier, priority, namespaces: &Selector, actions: &[(Action, &str)]| {
        let rule = |(action, block): &(Action, &str)| ClusterRule {
            name: "".into(),
            action: *action,
            matches: case_rule(&[case_block(block, &[])], &[]),
        };
        let egress = actions.iter().map(rule).collect();
        let subject = Subject { namespaces: namespaces.clone(), pods: Selector::everything() };
        ClusterNetworkPolicy { tier, priority, subject, ingress: [].into(), egress }
    };
    let (there, everything) = ("203.0.113.0/24", "0.0.0.0/0");
    let accepts = policy(Tier::Admin, 3, &all, &[(Action::Accept, there)]);
    let accepts_and_denies = policy(Tier::Admin, 3, &all, &[(Action::Accept, there), (Action::Deny, everything)]);
    let [first, second] = [(1, red()), (2, all.clone())]
        .map(|(priority, of)| policy(Tier::Admin, priority, &of, &[(Action::Pass, there)]));
    let elsewhere = policy(Tier::Admin, 1, &red(), &[(Action::Pass, "198.51.100.0/24")]);
    let baseline = policy(Tier::Baseline, 1, &all, &[(Action::Accept, there)]);
    for (namespace, policies, is_reached) in [
        (None, vec![&first, &accepts], false),
        (Some("team=red"), vec![&first, &accepts], false),
        (Some("team=blue"), vec![&first, &accepts], true),
        (None, vec![&accepts], true),
        // What is passed on for certain stays so.
        (None, vec![&elsewhere, &second, &accepts_and_denies], false),
        (Some("team=blue"), vec![&elsewhere, &second, &accepts_and_denies], false),
        (None, vec![&first, &baseline], false),
    ] {
        let case = Case::new().pod("shop/a", HERE, ["10.244.0.1 fd00:10:244::1", "app=a", ""]);
        let case = namespace.iter().fold(case, |case, labels| case.namespace("shop", labels));
        let mut world = case.policy("shop/nothing", "", [None, Some(&[])]).0;
        for (number, policy) in policies.iter().enumerate() {
            world.cluster.cluster_policies.insert(number.to_string().into(), (*policy).clone());
        }
        assert_eq!(reaches(&world, "203.0.113.9"), is_reached, "{namespace:?} {policies:?}");
    }
}

#[test]
fn the_tiers_mean_what_the_api_says() {
    for_many(200, |random| {
        let changes = 20 + random.below(60);
        let world = world(random, changes);
        let rules = histories::rules(&world);
        let found = histories::disagreement(&rules, &world, random, 1500);
        assert!(found.is_none(), "{found:?} {:#?} {:#?}", world.cluster, rules);
    });
}

#[test]
fn the_history_of_tiers_does_not_matter() {
    for_many(60, |random| {
        let mut world = world(random, 30);
        let mut plan = Plan::new();
        plan.update(&world);
        let mut told = Vec::new();
        for _ in 0..40 {
            for _ in 0..*random.pick(&[1, 1, 2, 6]) {
                let change = if random.chance(50) {
                    change(&mut world.cluster, random)
                } else {
                    clusters::change(&mut world, random)
                };
                told.push(change);
            }
            let older = plan.rules().clone();
            let changed = plan.update(&world);
            assert_eq!(*plan.rules(), histories::rules(&world), "after {told:#?}");
            histories::names_what_changed(&older, plan.rules(), &changed);
        }
    });
}
