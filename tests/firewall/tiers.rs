//! ClusterNetworkPolicies made by chance.

use sluice::firewall::plan::Plan;
use sluice::model::{
    Action, Cluster, ClusterNetworkPolicy, ClusterRule, Namespaces, Node, NodeAddress, NodeAddressKind, Peer, Peers,
    PolicyRule, PortMatch, Ports, Subject, Tier, World,
};

use super::clusters::{LABELS, OF_NAMESPACES, block, labels, policy_ports, remove_one, selector};
use super::support::random::{Random, for_many};
use super::{clusters, histories};

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
