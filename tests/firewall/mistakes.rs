//! Known mistakes of policy engines, put back into the compiled rules or into what they are compiled from: the
//! comparison with the oracle has to find each of them.
//!
//! The first ten are those that were found in kube-router, by their numbers D1 to D9 and D13. D7 (an exemption that outlives
//! its flag) is a matter of the kernel's rules; here stands its kin, what an earlier state allowed and nobody took away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use sluice::firewall::ip_block::Span;
use sluice::firewall::rules::{
    ClusterPolicyKey, ClusterRule, Contents, Direction, Element, Isolation, Match, PolicyKey, PortMatch, PortOwners,
    PortRange, Rule, RuleSet, Scope, Selection, SetKey,
};
use sluice::model::{
    Action, NetworkPolicy, Node, ObjectName, Operator, Peer, Peers, Pod, PolicyPort, PolicyRule,
    PortMatch as PolicyPortMatch, Ports, Requirement, Selector, Tier, World,
};
use sluice::net::{Family, PerFamily};

use super::support::random::Random;
use super::{clusters, histories};

/// Worlds that are tried at most until a mistake shows.
const WORLDS: u64 = 4000;
const PACKETS: usize = 400;

enum Mistake {
    Rules(fn(&mut RuleSet)),
    Cluster(fn(&mut World)),
    /// Of the rules of an earlier World and of those of the present one.
    History(fn(&RuleSet, &mut RuleSet)),
}

use Mistake::{Cluster, History, Rules};

const MISTAKES: [(&str, Mistake); 36] = [
    ("D1: what a policy allows in, its targets may send to each other", Rules(mix_directions)),
    ("D2: a port name that nobody has opens all ports to the peers", Rules(open_unresolved_names)),
    ("D3: the addresses of one named port leak into those of another", Rules(leak_port_addresses)),
    ("D4: a hole cuts into other blocks too", Rules(cut_all_blocks)),
    ("D5: overlapping blocks are refused", Rules(refuse_overlapping_blocks)),
    ("D6: all of IPv6 is only its usual parts", Rules(shrink_everything)),
    ("D7: what was allowed stays allowed", History(keep_elements)),
    ("D8: a set that is too large is not loaded", Rules(refuse_large_sets)),
    ("D9: names that run together to one text share their rules", Rules(join_names)),
    ("D13: a named port of egress without peers is a number at every destination", Rules(names_become_numbers)),
    ("policies of egress are not enforced", Rules(|rules| open(rules, Direction::Egress))),
    ("policies of ingress are not enforced", Rules(|rules| open(rules, Direction::Ingress))),
    ("only the first policy of a pod counts", Rules(keep_first_policy)),
    ("only the first match of a rule counts", Rules(keep_first_match)),
    ("the annotation of the namespace does not isolate", Cluster(forget_annotations)),
    ("pods that have finished are peers and targets", Cluster(revive_finished)),
    ("pods with their node's network are peers and targets", Cluster(forget_host_network)),
    ("only the first address of a pod counts", Cluster(keep_first_address)),
    ("of two pods with one address the first has it", Cluster(first_comes_first)),
    ("only matchLabels are read", Cluster(drop_expressions)),
    ("NotIn asks for the label to be there", Cluster(not_in_needs_label)),
    ("the end of a range of ports is ignored", Cluster(drop_range_ends)),
    ("a port name is looked up whatever the protocol", Cluster(forget_protocols_of_names)),
    ("an empty list of ports is a missing one", Cluster(open_empty_ports)),
    ("an empty list of peers is a missing one", Cluster(open_empty_peers)),
    ("a policy without rules does not isolate", Cluster(forget_empty_policies)),
    ("the last rule of a cluster policy that matches decides", Rules(reverse_rules)),
    ("cluster policies are evaluated by name", Rules(|rules| edit_keys(rules, |key| key.priority = 0))),
    ("the Admin tier comes behind policies", Rules(|rules| edit_keys(rules, |key| key.tier = Tier::Baseline))),
    (
        "the Baseline tier comes before policies",
        Rules(|rules| {
            edit_keys(rules, |key| {
                key.priority += if key.tier == Tier::Baseline { 2000 } else { 0 };
                key.tier = Tier::Admin;
            });
        }),
    ),
    ("what is passed on is accepted", Rules(accept_what_is_passed_on)),
    ("a rule that denies is for an address if it is for all of its pods", Rules(deny_only_for_all)),
    ("a selector of Nodes selects all of them", Cluster(select_all_nodes)),
    ("only the first address of a Node counts", Cluster(|world| edit_nodes(world, |node| node.addresses.truncate(1)))),
    ("Nodes are no peers", Cluster(|world| edit_nodes(world, |node| node.addresses.clear()))),
    (
        "a protocol without a port number means TCP's",
        Rules(|rules| {
            edit_matches(rules, |one| {
                if let PortMatch::Protocol(protocol) = &mut one.port {
                    *protocol = sluice::net::Protocol::Tcp;
                }
            });
        }),
    ),
];

#[test]
fn the_oracle_finds_each_known_mistake_when_it_is_put_back() {
    let mut missed = Vec::new();
    for (name, mistake) in &MISTAKES {
        match (0..WORLDS).find(|seed| shows(mistake, *seed)) {
            Some(seed) => println!("{name}: shows in world {seed}"),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not found in {WORLDS} worlds: {missed:#?}");
}

fn shows(mistake: &Mistake, seed: u64) -> bool {
    let mut random = Random::new(seed);
    let earlier = clusters::world(&mut random, 50);
    let mut world = earlier.clone();
    for _ in 0..10 {
        clusters::change(&mut world, &mut random);
    }
    let rules = match mistake {
        Rules(make) => {
            let mut rules = histories::rules(&world);
            make(&mut rules);
            rules
        }
        Cluster(make) => {
            let mut mistaken = clusters::copied(&world);
            make(&mut mistaken);
            histories::rules(&mistaken)
        }
        History(make) => {
            let mut rules = histories::rules(&world);
            make(&histories::rules(&earlier), &mut rules);
            rules
        }
    };
    histories::disagreement(&rules, &world, &mut random, PACKETS).is_some()
}

fn edit_matches(rules: &mut RuleSet, edit: impl Fn(&mut Match)) {
    for list in rules.policies.values_mut() {
        let edited = list.iter().cloned().map(|mut rule| {
            rule.matches.iter_mut().for_each(&edit);
            rule
        });
        *list = edited.collect();
    }
}

fn edit_cluster_rules(rules: &mut RuleSet, edit: impl Fn(&mut Vec<ClusterRule>)) {
    for list in rules.cluster_policies.values_mut() {
        let mut edited = list.to_vec();
        edit(&mut edited);
        *list = edited.into();
    }
}

fn edit_nodes(world: &mut World, edit: impl Fn(&mut Node)) {
    let nodes: Vec<_> = world.cluster.nodes.iter().map(|(name, node)| (name.clone(), (**node).clone())).collect();
    for (name, mut node) in nodes {
        edit(&mut node);
        world.cluster.nodes.insert(name, node);
    }
}

fn select_all_nodes(world: &mut World) {
    let policies = world.cluster.cluster_policies.iter().map(|(name, policy)| (name.clone(), (**policy).clone()));
    for (name, mut policy) in policies.collect::<Vec<_>>() {
        for rule in &mut policy.egress {
            if let Peers::Of(peers) = &mut rule.matches.peers {
                let of_nodes = peers.iter_mut().filter(|peer| matches!(peer, Peer::Nodes(_)));
                of_nodes.for_each(|peer| *peer = Peer::Nodes(Selector::everything()));
            }
        }
        world.cluster.cluster_policies.insert(name, policy);
    }
}

fn reverse_rules(rules: &mut RuleSet) {
    edit_cluster_rules(rules, |list| list.reverse());
}

fn accept_what_is_passed_on(rules: &mut RuleSet) {
    edit_cluster_rules(rules, |list| {
        list.iter_mut().filter(|rule| rule.action == Action::Pass).for_each(|rule| rule.action = Action::Accept);
    });
}

fn deny_only_for_all(rules: &mut RuleSet) {
    let sets = rules.sets.clone();
    for (set, contents) in &mut rules.sets {
        if let SetKey::Denied(plain) = &**set {
            *contents = sets.get(&**plain).cloned().unwrap_or_else(|| contents.clone());
        }
    }
}

/// Rewrites what decides about the order of cluster policies.
fn edit_keys(rules: &mut RuleSet, edit: impl Fn(&mut ClusterPolicyKey)) {
    let edited = |key: &ClusterPolicyKey| {
        let mut key = key.clone();
        edit(&mut key);
        key
    };
    rules.cluster_policies = rules.cluster_policies.iter().map(|(key, list)| (edited(key), list.clone())).collect();
    rules.pods.edit_all(|pod| {
        let mut keys: Vec<ClusterPolicyKey> = pod.cluster_policies.iter().map(edited).collect();
        keys.sort();
        pod.cluster_policies = keys.into();
    });
}

fn mix_directions(rules: &mut RuleSet) {
    let ingress: Vec<(PolicyKey, Arc<[Rule]>)> = rules
        .policies
        .iter()
        .filter(|(key, _)| key.direction == Direction::Ingress)
        .map(|(key, list)| (key.clone(), list.clone()))
        .collect();
    for (key, list) in ingress {
        let egress = PolicyKey { policy: key.policy.clone(), direction: Direction::Egress };
        let Some(own) = rules.policies.get(&egress) else { continue };
        // The rule of ingress looks at the source's peers, and at the destination as a target of the policy.
        let targets = targets(rules, &key.policy);
        let mixed = list.iter().flat_map(|rule| rule.matches.iter()).filter(|one| one.peer.is_none());
        let mixed = mixed.map(|one| Match { peer: Some(targets.0.clone()), port: one.port.clone() });
        let rule = Rule { matches: mixed.collect() };
        let list = own.iter().cloned().chain([rule]).collect();
        rules.sets.insert(targets.0, targets.1);
        rules.policies.insert(egress, list);
    }
}

/// The pods of this node that a policy isolates for ingress, as a set under a name that no real one has.
fn targets(rules: &RuleSet, policy: &ObjectName) -> (Arc<SetKey>, Contents) {
    let named =
        Selection { namespaces: Scope::Named(format!("targets of {policy}").into()), pods: Selector::default() };
    let isolated = rules
        .pods
        .values()
        .filter(|pod| matches!(&pod.ingress, Isolation::Isolated { policies, .. } if policies.contains(policy)));
    let elements = isolated.flat_map(|pod| pod.addresses.iter().map(|address| Element::Address(*address)));
    (Arc::new(SetKey::Pods(named)), elements.collect())
}

fn open_unresolved_names(rules: &mut RuleSet) {
    let empty: BTreeSet<Arc<SetKey>> =
        rules.sets.iter().filter(|(_, contents)| contents.is_empty()).map(|(set, _)| set.clone()).collect();
    edit_matches(rules, |one| {
        if matches!(&one.port, PortMatch::Named(set) if one.peer.is_some() && empty.contains(set)) {
            one.port = PortMatch::Any;
        }
    });
}

fn leak_port_addresses(rules: &mut RuleSet) {
    let named = rules.sets.iter_mut().filter(|(set, _)| matches!(***set, SetKey::NamedPort { .. }));
    for (_, contents) in named {
        for family in Family::BOTH {
            let elements = contents.elements.of_mut(family);
            let parts = elements.iter().filter_map(|element| match element {
                Element::Port(address, number) => Some((*address, *number)),
                _ => None,
            });
            let (addresses, numbers): (Vec<_>, Vec<_>) = parts.unzip();
            let all = addresses.iter().flat_map(|a| numbers.iter().map(|number| Element::Port(*a, *number)));
            *elements = all.collect();
        }
    }
}

/// Rewrites what the sets of blocks hold.
fn edit_blocks(rules: &mut RuleSet, edit: impl Fn(&[(IpNet, Vec<IpNet>)], &Contents) -> Contents) {
    for (set, contents) in &mut rules.sets {
        if let SetKey::Blocks(blocks) = &**set {
            let blocks: Vec<_> = blocks.iter().map(|block| (block.cidr, block.except.to_vec())).collect();
            *contents = edit(&blocks, contents);
        }
    }
}

fn prefixes(contents: &Contents) -> impl Iterator<Item = IpNet> {
    let of_family =
        |family: Family, ranges: &[Span]| ranges.iter().flat_map(|range| range.prefixes(family)).collect::<Vec<_>>();
    contents.ranges.iter().flat_map(move |(family, ranges)| of_family(family, ranges))
}

/// These prefixes as they are, joined to nothing.
fn of_prefixes(prefixes: impl Iterator<Item = IpNet>) -> Contents {
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = prefixes.partition(|prefix| Family::from(*prefix) == Family::V4);
    let spans = |prefixes: Vec<IpNet>| prefixes.into_iter().map(Span::from).collect();
    Contents { ranges: PerFamily { v4: spans(v4), v6: spans(v6) }, ..Contents::default() }
}

fn cut_all_blocks(rules: &mut RuleSet) {
    edit_blocks(rules, |blocks, contents| {
        let holes: Vec<IpNet> = blocks.iter().flat_map(|(_, holes)| holes).copied().collect();
        let left = prefixes(contents).filter(|prefix| !holes.iter().any(|hole| hole.contains(prefix)));
        of_prefixes(left)
    });
}

fn refuse_overlapping_blocks(rules: &mut RuleSet) {
    edit_blocks(rules, |blocks, contents| {
        let overlaps = |(at, (one, _)): (usize, &(IpNet, Vec<IpNet>))| {
            blocks[..at].iter().any(|(other, _)| other.contains(one) || one.contains(other))
        };
        if blocks.iter().enumerate().any(overlaps) { Contents::default() } else { contents.clone() }
    });
}

fn shrink_everything(rules: &mut RuleSet) {
    edit_blocks(rules, |_, contents| {
        let everything: IpNet = "::/0".parse().expect("a prefix");
        let usual = || ["2000::/3", "fd00::/8"].map(|text| text.parse::<IpNet>().expect("a prefix"));
        let shrunk =
            prefixes(contents).flat_map(|prefix| if prefix == everything { usual().to_vec() } else { vec![prefix] });
        of_prefixes(shrunk)
    });
}

fn keep_elements(earlier: &RuleSet, rules: &mut RuleSet) {
    for (set, contents) in &mut rules.sets {
        let before = earlier.sets.get(set).cloned().unwrap_or_default();
        for family in Family::BOTH {
            contents.elements.of_mut(family).extend(before.elements.of(family));
        }
    }
}

fn refuse_large_sets(rules: &mut RuleSet) {
    rules.sets.values_mut().filter(|contents| contents.len() > 4).for_each(|contents| *contents = Contents::default());
}

fn join_names(rules: &mut RuleSet) {
    let mut last: BTreeMap<String, Arc<[Rule]>> = BTreeMap::new();
    let joined = |key: &PolicyKey| format!("{}{}{:?}", key.policy.namespace, key.policy.name, key.direction);
    for (key, list) in &rules.policies {
        last.insert(joined(key), list.clone());
    }
    for (key, list) in &mut rules.policies {
        *list = last[&joined(key)].clone();
    }
}

fn names_become_numbers(rules: &mut RuleSet) {
    let sets = rules.sets.clone();
    edit_matches(rules, |one| {
        let PortMatch::Named(set) = &one.port else { return };
        let SetKey::NamedPort { pods: PortOwners::All, protocol, .. } = **set else { return };
        let elements = sets[set].elements.iter().flat_map(|(_, elements)| elements);
        let numbers: BTreeSet<u16> = elements
            .filter_map(|element| if let Element::Port(_, number) = element { Some(*number) } else { None })
            .collect();
        let ranges = numbers.iter().map(|number| PortRange { first: *number, last: *number });
        one.port = PortMatch::Numbers(protocol, ranges.collect());
    });
}

fn open(rules: &mut RuleSet, direction: Direction) {
    rules.pods.edit_all(|pod| match direction {
        Direction::Ingress => pod.ingress = Isolation::Open,
        Direction::Egress => pod.egress = Isolation::Open,
    });
}

fn keep_first_policy(rules: &mut RuleSet) {
    rules.pods.edit_all(|pod| {
        for isolation in [&mut pod.ingress, &mut pod.egress] {
            if let Isolation::Isolated { policies, .. } = isolation {
                *policies = policies.first().cloned().into_iter().collect();
            }
        }
    });
}

fn keep_first_match(rules: &mut RuleSet) {
    for list in rules.policies.values_mut() {
        *list = list.iter().map(|rule| Rule { matches: rule.matches.first().cloned().into_iter().collect() }).collect();
    }
}

fn edit_pods(world: &mut World, edit: impl Fn(&mut Pod)) {
    for (name, pod) in world.cluster.pods.clone().iter() {
        let mut pod = (**pod).clone();
        edit(&mut pod);
        world.cluster.pods.insert(name.clone(), pod);
    }
}

fn edit_policies(world: &mut World, edit: impl Fn(&mut NetworkPolicy)) {
    for (name, policy) in world.cluster.policies.clone().iter() {
        let mut policy = (**policy).clone();
        edit(&mut policy);
        world.cluster.policies.insert(name.clone(), policy);
    }
}

fn edit_rules(world: &mut World, edit: impl Fn(&mut PolicyRule)) {
    edit_policies(world, |policy| {
        let lists = [&mut policy.ingress, &mut policy.egress];
        lists.into_iter().flatten().flat_map(|rules| rules.iter_mut()).for_each(&edit);
    });
}

fn edit_ports(world: &mut World, edit: impl Fn(&mut PolicyPort)) {
    edit_rules(world, |rule| {
        if let Ports::Of(ports) = &mut rule.ports {
            ports.iter_mut().for_each(&edit);
        }
    });
}

/// Replaces the requirements of the selectors of pods.
fn edit_selectors(world: &mut World, edit: impl Fn(Requirement) -> Option<Requirement>) {
    let edited = |selector: &Selector| selector.requirements.iter().cloned().filter_map(&edit).collect();
    edit_policies(world, |policy| policy.pods = edited(&policy.pods));
    edit_rules(world, |rule| {
        let Peers::Of(peers) = &mut rule.peers else { return };
        for peer in peers.iter_mut() {
            if let Peer::Pods { pods, .. } = peer {
                *pods = edited(pods);
            }
        }
    });
}

fn forget_annotations(world: &mut World) {
    for (name, namespace) in world.cluster.namespaces.clone().iter() {
        let mut namespace = (**namespace).clone();
        namespace.isolated = false;
        world.cluster.namespaces.insert(name.clone(), namespace);
    }
}

fn revive_finished(world: &mut World) {
    edit_pods(world, |pod| pod.finished = false);
}

fn forget_host_network(world: &mut World) {
    edit_pods(world, |pod| pod.host_network = false);
}

fn keep_first_address(world: &mut World) {
    edit_pods(world, |pod| pod.addresses = pod.addresses.first().copied().into_iter().collect());
}

fn first_comes_first(world: &mut World) {
    let mut seen = BTreeSet::new();
    for (name, pod) in world.cluster.pods.clone().iter().filter(|(_, pod)| pod.takes_part()) {
        let mut pod = (**pod).clone();
        pod.addresses = pod.addresses.iter().copied().filter(|address| seen.insert(*address)).collect();
        world.cluster.pods.insert(name.clone(), pod);
    }
}

fn drop_expressions(world: &mut World) {
    edit_selectors(world, |requirement| match &requirement.operator {
        Operator::In(values) if values.len() == 1 => Some(requirement),
        _ => None,
    });
}

fn not_in_needs_label(world: &mut World) {
    let exists = |key: &str| Requirement { key: key.into(), operator: Operator::Exists };
    edit_rules(world, |rule| {
        let Peers::Of(peers) = &mut rule.peers else { return };
        for peer in peers.iter_mut() {
            let Peer::Pods { pods, .. } = peer else { continue };
            let negated = pods.requirements.iter().filter(|one| matches!(one.operator, Operator::NotIn(_)));
            let needed: Vec<Requirement> = negated.map(|one| exists(&one.key)).collect();
            *pods = pods.requirements.iter().cloned().chain(needed).collect();
        }
    });
}

fn drop_range_ends(world: &mut World) {
    edit_ports(world, |port| {
        if let PolicyPortMatch::Range { first, last } = &mut port.number {
            *last = *first;
        }
    });
}

fn forget_protocols_of_names(world: &mut World) {
    edit_pods(world, |pod| {
        let of_all = |protocol| pod.ports.iter().map(move |port| sluice::model::NamedPort { protocol, ..port.clone() });
        pod.ports = sluice::net::Protocol::ALL.into_iter().flat_map(of_all).collect();
    });
}

fn open_empty_ports(world: &mut World) {
    edit_rules(world, |rule| {
        if matches!(&rule.ports, Ports::Of(ports) if ports.is_empty()) {
            rule.ports = Ports::Any;
        }
    });
}

fn open_empty_peers(world: &mut World) {
    edit_rules(world, |rule| {
        if matches!(&rule.peers, Peers::Of(peers) if peers.is_empty()) {
            rule.peers = Peers::Any;
        }
    });
}

fn forget_empty_policies(world: &mut World) {
    edit_policies(world, |policy| {
        for rules in [&mut policy.ingress, &mut policy.egress] {
            if rules.as_ref().is_some_and(|rules| rules.is_empty()) {
                *rules = None;
            }
        }
    });
}
