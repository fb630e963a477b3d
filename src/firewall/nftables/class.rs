//! The chain of a class: all pods of this node that the same policies isolate in one direction.
//!
//! ```text
//! chain in_shop_db_… {
//!     ct state invalid drop
//!     meta l4proto . th dport @in_shop_db_…_ports_… jump from_…      many single ports with the same peers
//!     meta l4proto . th dport vmap @in_shop_db_…_ports_…     single ports: accept, or jump to the chain of the peers
//!     tcp dport 5432 jump from_…                             the same where there are few
//!     tcp dport vmap @in_shop_db_…_tcp_…                     ranges of ports, disjoint
//!     tcp dport 8000-8080 jump from_…                        the same where there are few
//!     ip daddr . meta l4proto . th dport @port_here_… jump from_…     named ports
//!     meta l4proto udp jump from_…                           all ports of a protocol
//!     ip saddr @pods_shop_… accept                           peers of every port
//!     limit rate 10/minute burst 10 packets log prefix "in_shop_db_…" group 100
//!     counter name in_shop_db_… reject                       comment "isolated by shop/db"
//! }
//! ```
//!
//! Policies of a class are not asked one after the other: what they allow for one port is one element, so a packet costs the
//! same with one policy and with 1,000. Up to four ports, or ranges of a protocol, are rules in place of elements: four comparisons cost a packet no more than
//! a lookup, a class without a map takes the kernel less to make, to check and to find, and what goes without one needs no transaction behind the change. A pod that comes under the same policies as another is one element of the map of
//! isolated pods.
//!
//! `accept` in here ends the base chain of this direction, and nothing else: the other direction has a base chain of its own.
//!
//! An address that several pods claim is judged by the classes of all of them ([`each`], [`shared`]), and by their tiers: there a permission
//! is a `return`, which leads to the next class. That lasts for moments, so its rules are in turn. What passes all of them is
//! accepted, because no other map judges such an address.

use std::sync::Arc;

use compact_str::CompactString;

use crate::kernel::nftables::rule::States;
use crate::kernel::nftables::{
    Content, Fields, Key, Kind, Lookup, Match, Name, Object, Rule, SetSpec, Statement, Verdict,
};
use crate::model::ObjectName;
use crate::net::{Family, PerFamily, PortRange, Protocol};

use super::super::rules::{self, Direction, Isolation, PolicyKey, PortMatch, RuleSet, SetKey};
use super::names;
use super::parts::{Lowered, Part};
use super::peers::{self, Allowed, IN_TURN, Outcome, PeerOutcome, Peers};
use super::permissions::{Permissions, Ranges};
use super::sets::{self, in_one, in_set};
use super::tiers::Judged;

/// The pods of one namespace that the same policies isolate in one direction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Class {
    pub direction: Direction,
    pub namespace: CompactString,
    /// Sorted.
    pub policies: Box<[ObjectName]>,
    pub by_namespace: bool,
}

impl Class {
    /// Returns the class of a pod; `None` for one that is not isolated.
    pub fn of(direction: Direction, pod: &ObjectName, isolation: &Isolation) -> Option<Class> {
        let Isolation::Isolated { policies, by_namespace } = isolation else { return None };
        let (namespace, policies) = ((*pod.namespace).clone(), policies.clone());
        Some(Class { direction, namespace, policies, by_namespace: *by_namespace })
    }

    /// Returns the keys of the class's policies.
    pub fn policy_keys(&self) -> impl Iterator<Item = PolicyKey> {
        self.policies.iter().map(|policy| PolicyKey { policy: policy.clone(), direction: self.direction })
    }

    /// Returns everything that the class's policies allow.
    fn matches<'a>(&'a self, rules: &'a RuleSet) -> impl Iterator<Item = &'a rules::Match> {
        let of_policy = |key: PolicyKey| rules.policies.get(&key);
        self.policy_keys().filter_map(of_policy).flat_map(|rules| rules.iter()).flat_map(|rule| &rule.matches)
    }
}

/// Returns the chain of a class with its maps.
pub fn class(class: &Arc<Class>, rules: &RuleSet, families: PerFamily<bool>) -> Lowered {
    let name = names::class(class);
    let (mut lowered, mut chain) = (Lowered::default(), vec![invalid()]);
    let permissions = Permissions::of(class.matches(rules));
    let found = PeerOutcome { direction: class.direction, outcome: &Outcome::Accept };
    chain.extend(permissions.rules(&name, found, families, &mut lowered));
    if permissions.any != Allowed::Everybody {
        chain.extend(refusing(class));
    }
    lowered.needs.insert(Part::Counter(class.clone()));
    lowered.chain(name, chain);
    lowered
}

impl Permissions {
    /// Returns the rules that look a packet up among these permissions, or among what is to be denied. The names of their maps begin
    /// with this name.
    pub fn rules(
        &self,
        name: &Name,
        found: PeerOutcome<'_>,
        families: PerFamily<bool>,
        lowered: &mut Lowered,
    ) -> Vec<Rule> {
        let PeerOutcome { direction, outcome } = found;
        let crowded = peers::crowded(self.allowed());
        let of_peers = |sets: &_| Peers::new(direction, sets, &crowded, outcome);
        let verdict = |allowed: &Allowed, lowered: &mut Lowered| match allowed {
            Allowed::Everybody => outcome.verdict(&mut lowered.needs),
            Allowed::Peers(sets) => {
                let peers = Arc::new(of_peers(sets));
                let verdict = Verdict::Jump(names::peers(&peers));
                lowered.needs.insert(Part::Peers(peers));
                verdict
            }
        };
        let mut chain = single_ports(name, self, verdict, lowered);
        for (protocol, ranges) in &self.ranges {
            let protocol = *protocol;
            match ranges {
                Ranges::Disjoint(ranges) if ranges.len() > IN_TURN => {
                    let verdicts: Vec<(PortRange, Verdict)> =
                        ranges.iter().map(|(range, allowed)| (*range, verdict(allowed, lowered))).collect();
                    let map = names::ranges(name, protocol, &verdicts);
                    lowered.map(&map, SetSpec { fields: Fields::Port, kind: Kind::Verdicts, intervals: true });
                    for (range, verdict) in verdicts {
                        lowered.verdict(&map, Key::Ports(range), verdict);
                    }
                    chain.push(Rule::new([], Verdict::Map { lookup: Lookup::DestinationPort(protocol), map }));
                }
                Ranges::Disjoint(ranges) | Ranges::InTurn(ranges) => {
                    chain.extend(ranges.iter().map(|(range, allowed)| {
                        let to_range = Match::DestinationPort { protocol, range: *range };
                        Rule::new([to_range], verdict(allowed, lowered))
                    }))
                }
            }
        }
        for (set, allowed) in &self.named {
            lowered.needs.extend(sets::parts(set, families));
            let in_sets: Vec<Match> = in_set(set, direction, families).collect();
            if in_sets.is_empty() {
                continue;
            }
            let verdict = verdict(allowed, lowered);
            chain.extend(in_sets.into_iter().map(|one| Rule::new([one], verdict.clone())));
        }
        for (protocol, allowed) in &self.protocols {
            chain.push(Rule::new([Match::Protocol(*protocol)], verdict(allowed, lowered)));
        }
        match &self.any {
            Allowed::Everybody => chain.push(Rule::new([], outcome.verdict(&mut lowered.needs))),
            Allowed::Peers(sets) if sets.is_empty() => {}
            Allowed::Peers(sets) => {
                chain.extend(of_peers(sets).rules(families, &mut lowered.needs));
            }
        }
        chain
    }
}

/// Returns the rules for single ports: a set for each of the peers with the most ports, and a map for all others, or rules in turn where these are few.
fn single_ports(
    name: &Name,
    permissions: &Permissions,
    verdict: impl Fn(&Allowed, &mut Lowered) -> Verdict,
    lowered: &mut Lowered,
) -> Vec<Rule> {
    let mut chain = Vec::new();
    let lookup = Lookup::DestinationProtocolPort;
    let spec = |kind| SetSpec { fields: Fields::ProtocolPort, kind, intervals: false };
    let of_many_ports = permissions.of_many_ports();
    for allowed in &of_many_ports {
        let verdict = verdict(allowed, lowered);
        let singles = permissions.singles.iter().filter(|(_, one)| one == allowed);
        let ports: Vec<(Protocol, u16)> = singles.map(|(port, _)| *port).collect();
        let set = names::ports_of(name, &verdict, &ports);
        lowered.map(&set, spec(Kind::Set));
        let elements = ports.into_iter().map(|(protocol, port)| Key::ProtocolPort(protocol, port));
        lowered.objects.extend(elements.map(|key| (Object::Element(set.clone(), key), Content::Element)));
        chain.push(Rule::new([Match::InSet { lookup, set, negated: false }], verdict));
    }
    let few = permissions.singles.iter().filter(|(_, allowed)| !of_many_ports.contains(allowed));
    let verdicts: Vec<((Protocol, u16), Verdict)> =
        few.map(|(port, allowed)| (*port, verdict(allowed, lowered))).collect();
    if verdicts.len() <= IN_TURN {
        chain.extend(verdicts.into_iter().map(|((protocol, port), verdict)| {
            let to_port = Match::DestinationPort { protocol, range: PortRange { first: port, last: port } };
            Rule::new([to_port], verdict)
        }));
    } else {
        let map = names::ports(name, &verdicts);
        lowered.map(&map, spec(Kind::Verdicts));
        for ((protocol, port), verdict) in verdicts {
            lowered.verdict(&map, Key::ProtocolPort(protocol, port), verdict);
        }
        chain.push(Rule::new([], Verdict::Map { lookup, map }));
    }
    chain
}

/// Returns the chain that asks a class whether it allows a packet, and returns if it does.
pub fn each(class: &Arc<Class>, rules: &RuleSet, families: PerFamily<bool>) -> Lowered {
    let mut lowered = Lowered::default();
    let mut chain = vec![invalid()];
    for one in class.matches(rules) {
        let each = looked_up(one, class.direction, families, &mut lowered);
        chain.extend(each.into_iter().map(|matches| Rule::new(matches, Verdict::Return)));
    }
    chain.extend(refusing(class));
    lowered.needs.insert(Part::Counter(class.clone()));
    lowered.chain(names::each(class), chain);
    lowered
}

/// Returns the chain of an address that these judge, each of a pod that claims it: each has to allow.
pub fn shared(judged: &[Judged]) -> Lowered {
    let (mut lowered, mut chain) = (Lowered::default(), Vec::new());
    for (name, part) in judged.iter().filter_map(Judged::each) {
        chain.push(Rule::new([], Verdict::Jump(name)));
        lowered.needs.insert(part);
    }
    chain.push(Rule::new([], Verdict::Accept));
    lowered.chain(names::shared(judged), chain);
    lowered
}

/// Returns the counter of what a class refuses.
pub fn counter(class: &Class) -> Lowered {
    let mut lowered = Lowered::default();
    lowered.objects.insert(Object::Counter(names::class(class)), Content::Counter);
    lowered
}

/// Limits how many refused packets are logged.
pub const LOG_LIMIT: Match = Match::Limit { per_minute: 10, burst: 10 };

/// Returns the statement that logs a refused packet, to the group that kube-router uses.
pub fn log(prefix: &str) -> Statement {
    Statement::Log { group: 100, prefix: prefix.into() }
}

/// Returns the rules that refuse a packet for which these matches hold: the counter of this name counts it, and it is logged by it.
pub fn refusal(name: &Name, matches: &[Match], said: &str) -> [Rule; 2] {
    let limited: Box<[Match]> = matches.iter().cloned().chain([LOG_LIMIT]).collect();
    let counted = Rule::with(matches, [Statement::Count(name.clone())], Some(Verdict::Reject));
    [Rule::with(limited, [log(name.as_str())], None), counted.commented(said)]
}

/// Returns the last rules of a class's chain.
fn refusing(class: &Class) -> [Rule; 2] {
    refusal(&names::class(class), &[], &format!("isolated by {}", names::policies(class)))
}

/// Matches what connection tracking cannot assign to any connection.
pub const IS_INVALID: Match = Match::State { states: States::INVALID, negated: false };

/// Returns the rule that drops what connection tracking calls invalid.
pub fn invalid() -> Rule {
    Rule::new([IS_INVALID], Verdict::Drop)
}

/// Returns the matches of the rules for one condition of a policy, of which any has to hold as a whole; adds the sets that they need.
pub fn looked_up(
    one: &rules::Match,
    direction: Direction,
    families: PerFamily<bool>,
    lowered: &mut Lowered,
) -> Vec<Vec<Match>> {
    let conditions = conditions(one, direction, families);
    if !conditions.is_empty() {
        let sets = || one.peer.iter().chain(named(one));
        let looked_up = possible(one, families).flat_map(|family| sets().map(move |set| (set, family)));
        lowered.needs.extend(looked_up.map(|(set, family)| Part::Set(set.clone(), family)));
    }
    conditions
}

fn conditions(one: &rules::Match, direction: Direction, families: PerFamily<bool>) -> Vec<Vec<Match>> {
    let named = named(one);
    let peers: Vec<Vec<Match>> = if one.peer.is_none() && named.is_none() {
        vec![Vec::new()]
    } else {
        let sets = || one.peer.iter().chain(named);
        let in_all = |family| sets().map(|set| in_one(set, direction, family)).collect();
        possible(one, families).map(in_all).collect()
    };
    let ports: Vec<Option<Match>> = match &one.port {
        PortMatch::Any | PortMatch::Named(_) => vec![None],
        PortMatch::Protocol(protocol) => vec![Some(Match::Protocol(*protocol))],
        PortMatch::Numbers(protocol, ranges) => {
            let to_range = |range| Some(Match::DestinationPort { protocol: *protocol, range });
            ranges.iter().copied().map(to_range).collect()
        }
    };
    let with = |peer: &Vec<Match>| -> Vec<Vec<Match>> {
        ports.iter().map(|port| peer.iter().cloned().chain(port.clone()).collect()).collect()
    };
    peers.iter().flat_map(with).collect()
}

/// Returns the enabled families in which all sets of a condition can have elements.
fn possible(one: &rules::Match, families: PerFamily<bool>) -> impl Iterator<Item = Family> + '_ {
    let is_of = move |family| one.peer.iter().chain(named(one)).all(|set| set.is_of(family));
    Family::BOTH.into_iter().filter(move |family| *families.of(*family) && is_of(*family))
}

fn named(one: &rules::Match) -> Option<&Arc<SetKey>> {
    match &one.port {
        PortMatch::Named(set) => Some(set),
        PortMatch::Any | PortMatch::Protocol(_) | PortMatch::Numbers(..) => None,
    }
}
