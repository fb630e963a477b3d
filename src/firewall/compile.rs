//! Compiles one direction of one NetworkPolicy or ClusterNetworkPolicy: the matches of its rules, and the sets they need.
//!
//! Kubernetes: `spec.ingress[] { from[], ports[] }`, `spec.egress[] { to[], ports[] }`. A pure function of the policy
//! alone: pods, their labels and their port numbers only decide what the sets hold, so their changes never
//! change a rule. One thing beside the policy counts: the Nodes, where a rule is about them (`node_peers`).
//!
//! A rule is the product of its peers and its ports. Each peer that selects pods has its own set, which other rules
//! share; all blocks of a rule are one set. Two cases are no plain product:
//! - a named port of ingress is looked up at the isolated pod: one set holds the numbers of all pods of this node, and
//!   a rule is only evaluated for packets to the pod that it isolates;
//! - a named port of egress is looked up at the peer: the set of its addresses and numbers matches both peer and port.

use std::collections::BTreeSet;
use std::sync::Arc;

use compact_str::CompactString;

use crate::model::{
    self, Action, ClusterNetworkPolicy, NetworkPolicy, Peer, Peers, PolicyPort, PolicyRule, Ports, Selector,
};
use crate::net::Protocol;

use super::node_peers::{Nodes, is_about_nodes};
use super::oversized::Excess;
use super::rules::{Block, ClusterRule, Direction, Match, PortMatch, PortOwners, Rule, Scope, Selection, SetKey};
use super::{ip_block, named_port, port_number, selection};

/// Returns the rules of one direction of a policy in this namespace; `None` if it does not affect the direction. Of one that has
/// too much (`oversized`), the blocks or all rules match nothing.
pub fn rules(
    namespace: &str,
    policy: &NetworkPolicy,
    direction: Direction,
    excess: Option<Excess>,
) -> Option<Arc<[Rule]>> {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    let own = Own { namespace, nodes: None, takes_blocks: excess.is_none() };
    let rules = rules.as_ref()?.iter().map(|one| match excess {
        Some(Excess::Combinations | Excess::Sets) => Rule { matches: [].into() },
        Some(Excess::Blocks) | None => rule(&own, one, direction),
    });
    Some(rules.collect())
}

/// Returns the rules of one direction of a ClusterNetworkPolicy; `None` if it has none. Of one that has too
/// much (`oversized`), those with networks or all are closed.
pub fn cluster_rules(
    policy: &ClusterNetworkPolicy,
    direction: Direction,
    nodes: Nodes<'_>,
    excess: Option<Excess>,
) -> Option<Arc<[ClusterRule]>> {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    // Their peers name the namespaces that they are in.
    let rules = rules.iter().map(|one| {
        let none = Rule { matches: [].into() };
        if !nodes.are_known && is_about_nodes(one) || excess.is_some_and(|excess| excess.closes(&one.matches)) {
            return closed(one);
        }
        let own = Own { namespace: "", nodes: Some((nodes, one.action)), takes_blocks: true };
        let rule = rule(&own, &one.matches, direction);
        let (rule, contested) = match one.action {
            Action::Accept => (rule, none),
            Action::Deny => (denied(rule), none),
            Action::Pass => {
                let can_be_contested = |one: &&Match| one.peer.iter().chain(named(&one.port)).any(|set| depends(set));
                let contested = rule.matches.iter().filter(can_be_contested).cloned().collect();
                (rule, denied(Rule { matches: contested }))
            }
        };
        ClusterRule { name: one.name.clone(), action: one.action, rule, contested }
    });
    Some(rules.collect()).filter(|rules: &Arc<[ClusterRule]>| !rules.is_empty())
}

/// Returns what a rule stands for whose peers are not known, or too many: it accepts nothing, or denies everything.
fn closed(rule: &model::ClusterRule) -> ClusterRule {
    let none = Rule { matches: [].into() };
    let (action, rule_closed) = match rule.action {
        Action::Accept => (Action::Accept, none.clone()),
        Action::Deny | Action::Pass => {
            (Action::Deny, Rule { matches: [Match { peer: None, port: PortMatch::Any }].into() })
        }
    };
    ClusterRule { name: rule.name.clone(), action, rule: rule_closed, contested: none }
}

/// Returns whether of several pods with one address some may be in the set and others not. All are in the set of all pods, which
/// is often the largest of the cluster.
fn depends(set: &SetKey) -> bool {
    let everybody = Selection { namespaces: Scope::Selected(Selector::everything()), pods: Selector::everything() };
    !matches!(set, SetKey::Blocks(_)) && *set != SetKey::Pods(everybody)
}

/// Makes the conditions of a rule those of one that denies.
fn denied(mut rule: Rule) -> Rule {
    let deny = |set: &mut Arc<SetKey>| {
        if !matches!(**set, SetKey::Blocks(_)) {
            *set = Arc::new(SetKey::Denied(Box::new((**set).clone())));
        }
    };
    for one in &mut rule.matches {
        one.peer.iter_mut().for_each(deny);
        if let PortMatch::Named(set) = &mut one.port {
            deny(set);
        }
    }
    rule
}

fn named(port: &PortMatch) -> Option<&Arc<SetKey>> {
    match port {
        PortMatch::Named(set) => Some(set),
        PortMatch::Any | PortMatch::Protocol(_) | PortMatch::Numbers(..) => None,
    }
}

/// Where the peers of a policy are looked for.
struct Own<'a> {
    namespace: &'a str,
    /// With the action of the rule; `None` for a NetworkPolicy, which has no such peers.
    nodes: Option<(Nodes<'a>, Action)>,
    takes_blocks: bool,
}

fn rule(own: &Own<'_>, rule: &PolicyRule, direction: Direction) -> Rule {
    let peers = peers(own, &rule.peers);
    let matches = match &rule.ports {
        Ports::Any => peers.into_iter().map(|peer| Match { peer, port: PortMatch::Any }).collect(),
        Ports::Of(ports) => with_ports(&peers, ports, direction).into(),
    };
    Rule { matches }
}

/// Returns the sets of peers, any of which may match; `None` matches every peer.
fn peers(own: &Own<'_>, peers: &Peers) -> Vec<Option<Arc<SetKey>>> {
    let Peers::Of(peers) = peers else { return vec![None] };
    let mut sets = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    for peer in peers {
        match peer {
            Peer::Pods { namespaces, pods } => {
                sets.push(SetKey::Pods(selection::selection(own.namespace, namespaces, pods)));
            }
            Peer::Block { .. } if !own.takes_blocks => {}
            Peer::Block { cidr, except } => blocks.push(ip_block::block(*cidr, except)),
            Peer::Nodes(selector) => {
                blocks.extend(own.nodes.into_iter().flat_map(|(nodes, action)| nodes.blocks(selector, action)));
            }
        }
    }
    blocks.sort();
    blocks.dedup();
    if !blocks.is_empty() {
        sets.push(SetKey::Blocks(blocks.into()));
    }
    sets.sort();
    sets.dedup();
    sets.into_iter().map(|set| Some(Arc::new(set))).collect()
}

fn with_ports(peers: &[Option<Arc<SetKey>>], ports: &[PolicyPort], direction: Direction) -> Vec<Match> {
    let by_number = port_number::by_number(ports);
    let names: BTreeSet<(&CompactString, Protocol)> = named_port::names(ports).collect();
    let of = |pods: &PortOwners| -> Vec<PortMatch> {
        let all = names.iter().map(|(name, protocol)| (pods.clone(), (*name).clone(), *protocol));
        let set = |(pods, name, protocol)| SetKey::NamedPort { pods, name, protocol };
        all.map(|one| PortMatch::Named(Arc::new(set(one)))).collect()
    };
    // What is looked up at the isolated pod is the same for all peers.
    let here = match direction {
        Direction::Ingress => of(&PortOwners::Local),
        Direction::Egress => Vec::new(),
    };
    let mut matches = Vec::new();
    for peer in peers {
        let of_peer = by_number.iter().chain(&here).cloned();
        matches.extend(of_peer.map(|port| Match { peer: peer.clone(), port }));
        if direction == Direction::Egress && !names.is_empty() {
            // The set of ports already implies the peers.
            let at_peer = of(&named_port::owners(peer.as_deref()));
            matches.extend(at_peer.into_iter().map(|port| Match { peer: None, port }));
        }
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::super::given::{block, pods, pods_in, policy, rule};
    use super::*;

    fn compiled(rule: PolicyRule, direction: Direction) -> Vec<Match> {
        let list = Some(std::slice::from_ref(&rule));
        let both = policy("", list, list);
        let rules = rules("shop", &both, direction, None).unwrap();
        assert_eq!(rules.len(), 1);
        rules[0].matches.to_vec()
    }

    fn kinds(matches: &[Match]) -> Vec<&'static str> {
        let kind = |set: &SetKey| match set {
            SetKey::Pods(_) => "pods",
            SetKey::Blocks(_) => "blocks",
            SetKey::NamedPort { pods: PortOwners::Local, .. } => "ports here",
            SetKey::NamedPort { pods: PortOwners::All, .. } => "ports anywhere",
            SetKey::NamedPort { pods: PortOwners::Selected(_), .. } => "ports of pods",
            SetKey::NamedPort { pods: PortOwners::Inside(_), .. } => "ports inside",
            SetKey::Denied(_) => "denied",
        };
        let words = |one: &Match| {
            let peer = one.peer.as_deref().map_or("any", kind);
            let port = match &one.port {
                PortMatch::Any => "any",
                PortMatch::Protocol(_) => "protocol",
                PortMatch::Numbers(..) => "numbers",
                PortMatch::Named(set) => kind(set),
            };
            [peer, port]
        };
        matches.iter().flat_map(words).collect()
    }

    #[test]
    fn a_rule_without_anything_allows_everything() {
        for direction in Direction::BOTH {
            assert_eq!(kinds(&compiled(rule(&[], &[]), direction)), ["any", "any"]);
        }
    }

    #[test]
    fn a_rule_is_the_product_of_its_peers_and_its_ports() {
        let peers = [pods("app=web"), block("10.0.0.0/8"), pods_in("", ""), block("192.0.2.0/24 192.0.2.1/32")];
        let matches = compiled(rule(&peers, &["tcp/80", "udp/*", "tcp/443"]), Direction::Ingress);
        let each = |peer| [peer, "numbers", peer, "protocol"];
        assert_eq!(kinds(&matches), [each("pods"), each("pods"), each("blocks")].concat());
    }

    #[test]
    fn a_named_port_of_ingress_is_looked_up_here_and_one_of_egress_at_the_peers() {
        let peers = [pods("app=web"), block("10.0.0.0/8")];
        let named = rule(&peers, &["tcp/http"]);
        assert_eq!(kinds(&compiled(named.clone(), Direction::Ingress)), ["pods", "ports here", "blocks", "ports here"]);
        assert_eq!(kinds(&compiled(named, Direction::Egress)), ["any", "ports of pods", "any", "ports inside"]);
        assert_eq!(kinds(&compiled(rule(&[], &["tcp/http"]), Direction::Egress)), ["any", "ports anywhere"]);
        assert_eq!(kinds(&compiled(rule(&[], &["tcp/http"]), Direction::Ingress)), ["any", "ports here"]);
    }

    #[test]
    fn a_port_name_of_ingress_is_one_set_in_memory_whatever_the_number_of_peers() {
        let matches = compiled(rule(&[pods("app=a"), pods("app=b")], &["tcp/http"]), Direction::Ingress);
        let [Match { port: PortMatch::Named(one), .. }, Match { port: PortMatch::Named(other), .. }] = &*matches else {
            panic!("{matches:?}")
        };
        assert!(Arc::ptr_eq(one, other));
    }

    #[test]
    fn of_a_policy_with_too_many_combinations_nothing_matches() {
        let one = rule(&[pods("app=a"), block("10.0.0.0/8")], &["tcp/80"]);
        let list = Some(std::slice::from_ref(&one));
        for direction in Direction::BOTH {
            let found = |excess| rules("shop", &policy("", list, list), direction, excess).expect("it has rules");
            assert_eq!(found(Some(Excess::Blocks))[0].matches.len(), 1);
            let nothing = found(Some(Excess::Combinations));
            assert_eq!((nothing.len(), nothing[0].matches.len()), (1, 0));
        }
    }

    #[test]
    fn of_a_policy_of_the_cluster_with_too_many_combinations_all_rules_are_closed() {
        let rule = |action| model::ClusterRule {
            name: "".into(),
            action,
            matches: rule(&[pods_in("", "app=a")], &["tcp/80"]),
        };
        let rules = [Action::Accept, Action::Deny, Action::Pass].map(rule);
        let subject = model::Subject { namespaces: Selector::everything(), pods: Selector::everything() };
        let tier = model::Tier::Admin;
        let policy = ClusterNetworkPolicy { tier, priority: 1, subject, ingress: rules.into(), egress: [].into() };
        let (all, host) = (model::Table::default(), model::Host::default());
        let nodes = Nodes { all: &all, host: &host, are_known: true };
        let excess = Some(Excess::Combinations);
        let rules = cluster_rules(&policy, Direction::Ingress, nodes, excess).expect("it has rules");
        let found: Vec<(Action, usize)> = rules.iter().map(|one| (one.action, one.rule.matches.len())).collect();
        assert_eq!(found, [(Action::Accept, 0), (Action::Deny, 1), (Action::Deny, 1)]);
        let is_all = |one: &ClusterRule| one.rule.matches.iter().all(|one| one.peer.is_none());
        assert!(rules.iter().all(is_all), "{rules:?}");
    }

    #[test]
    fn the_order_of_peers_and_ports_does_not_matter() {
        let one = rule(&[pods("app=a"), pods("app=b"), block("10.0.0.0/8"), block("::/0")], &["tcp/80", "tcp/http"]);
        let other = rule(
            &[block("::/0"), pods("app=b"), block("10.0.0.7/8"), pods("app=a"), pods("app=a")],
            &["tcp/http", "tcp/80", "tcp/80"],
        );
        for direction in Direction::BOTH {
            assert_eq!(compiled(one.clone(), direction), compiled(other.clone(), direction));
        }
    }

    #[test]
    fn what_could_not_be_read_matches_nothing() {
        let nobody = PolicyRule { peers: Peers::Of([].into()), ports: Ports::Any };
        let nowhere = PolicyRule { peers: Peers::Any, ports: Ports::Of([].into()) };
        for direction in Direction::BOTH {
            assert!(compiled(nobody.clone(), direction).is_empty() && compiled(nowhere.clone(), direction).is_empty());
        }
    }

    #[test]
    fn a_direction_that_is_left_alone_has_no_rules_and_one_without_rules_has_none_either() {
        let ingress = policy("", Some(&[]), None);
        assert_eq!(rules("shop", &ingress, Direction::Ingress, None).as_deref(), Some(&[][..]));
        assert_eq!(rules("shop", &ingress, Direction::Egress, None), None);
    }
}
