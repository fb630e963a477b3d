//! A policy's chain: one rule for each condition under which the policy allows a packet.
//!
//! ```text
//! -A KUBE-NWPLCY-… -p tcp -m comment --comment "shop/web ingress 0" -m set --match-set KUBE-SRC-… src -m multiport --dports 80,443 -g KUBE-NWPLCY-DEFAULT
//! ```
//!
//! A rule that matches goes to the chain that marks the packet, which returns to the pod's chain. No rule
//! names a pod: one chain serves every pod that the policy selects, and only packets to (from) such a pod enter it.
//!
//! Kernel: `xt_multiport` takes 15 numbers in a rule, a range counting as two; it supports SCTP, so no module for that
//! protocol is needed. A packet without ports is only matched by rules without a port match.

use crate::kernel::ipset::SetName;
use crate::kernel::iptables::rule::{IpProtocol, SetSides, Side};
use crate::kernel::iptables::{self, Rules, Verdict};
use crate::model::Action;
use crate::net::{Family, Protocol};

use super::super::rules::{
    ClusterPolicyKey, ClusterRule, Direction, Match, PolicyKey, PortMatch, PortRange, Rule, SetKey,
};
use super::comment::comment;
use super::names::{CHAIN_DEFAULT, CHAIN_DENY, CHAIN_PASS};

/// Maximum number of ports in one rule.
const SLOTS: usize = 15;

/// Returns the rules of a policy's chain in one family. `named` returns a set's name there.
pub fn rules(key: &PolicyKey, rules: &[Rule], family: Family, named: &dyn Fn(&SetKey) -> SetName) -> Rules {
    let mut all = Vec::new();
    for (place, rule) in rules.iter().enumerate() {
        let said = comment(&format!("{} {} {place}", key.policy, key.direction.name()));
        all.extend(going(rule, key.direction, Destination { chain: CHAIN_DEFAULT, said: &said }, family, named));
    }
    Rules(all)
}

/// Returns the rules of the chain of a ClusterNetworkPolicy: of several that match a packet the first decides, because it goes
/// to another chain, which returns to the pod's.
pub fn cluster_rules(
    key: &ClusterPolicyKey,
    rules: &[ClusterRule],
    family: Family,
    named: &dyn Fn(&SetKey) -> SetName,
) -> Rules {
    let mut all = Vec::new();
    for (place, ClusterRule { name, action, rule, contested }) in rules.iter().enumerate() {
        let to = match action {
            Action::Accept => CHAIN_DEFAULT,
            Action::Deny => CHAIN_DENY,
            Action::Pass => CHAIN_PASS,
        };
        let said = comment(format!("{} {} {place} {name}", key.policy, key.direction.name()).trim_end());
        all.extend(going(rule, key.direction, Destination { chain: to, said: &said }, family, named));
        all.extend(going(contested, key.direction, Destination { chain: CHAIN_DENY, said: &said }, family, named));
    }
    Rules(all)
}

/// The chain to which rules go, and the comment that they bear.
#[derive(Clone, Copy)]
struct Destination<'a> {
    chain: &'static str,
    said: &'a iptables::Match,
}

/// Returns the rules that go to a chain with what a rule matches.
fn going(
    rule: &Rule,
    direction: Direction,
    to: Destination<'_>,
    family: Family,
    named: &dyn Fn(&SetKey) -> SetName,
) -> Vec<iptables::Rule> {
    let matching = rule.matches.iter().filter(|one| can_hold(one, family));
    let conditions = matching.flat_map(|one| conditions(one, direction, named));
    let going = conditions.map(|Condition { protocol, rest }| {
        let protocol = protocol.map(|protocol| iptables::Match::Protocol(IpProtocol::Transport(protocol)));
        let matches: Box<[_]> = protocol.into_iter().chain([to.said.clone()]).chain(rest).collect();
        iptables::Rule::new(matches, Verdict::Goto(to.chain.into()))
    });
    going.collect()
}

/// Matches of one rule: iptables prints the protocol first, the rest after the comment.
struct Condition {
    protocol: Option<Protocol>,
    rest: Vec<iptables::Match>,
}

fn can_hold(one: &Match, family: Family) -> bool {
    let named = match &one.port {
        PortMatch::Named(set) => Some(set),
        PortMatch::Any | PortMatch::Protocol(_) | PortMatch::Numbers(..) => None,
    };
    one.peer.iter().chain(named).all(|set| set.is_of(family))
}

fn conditions(one: &Match, direction: Direction, named: &dyn Fn(&SetKey) -> SetName) -> Vec<Condition> {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    let peer = one.peer.iter().map(|set| iptables::Match::in_set(&named(set), SetSides::Address(side)));
    let mut rest: Vec<iptables::Match> = peer.collect();
    match &one.port {
        PortMatch::Any => vec![Condition { protocol: None, rest }],
        PortMatch::Protocol(protocol) => vec![Condition { protocol: Some(*protocol), rest }],
        PortMatch::Numbers(protocol, ranges) => {
            let with = |ports| [&rest[..], &[iptables::Match::Ports(ports)]].concat();
            lists(ranges).map(|ports| Condition { protocol: Some(*protocol), rest: with(ports) }).collect()
        }
        PortMatch::Named(set) => {
            // The set holds address, protocol and port together.
            rest.push(iptables::Match::in_set(&named(set), SetSides::DestinationPort));
            vec![Condition { protocol: None, rest }]
        }
    }
}

/// Returns the ranges as lists that each fit into one rule.
fn lists(ranges: &[PortRange]) -> impl Iterator<Item = Box<[PortRange]>> {
    let mut lists: Vec<(usize, Vec<PortRange>)> = Vec::new();
    for range in ranges {
        let slots = if range.first == range.last { 1 } else { 2 };
        match lists.last_mut() {
            Some((used, list)) if *used + slots <= SLOTS => {
                *used += slots;
                list.push(*range);
            }
            _ => lists.push((slots, vec![*range])),
        }
    }
    lists.into_iter().map(|(_, list)| list.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::names;
    use super::*;
    use crate::firewall::rules::{Block, PortOwners, Scope, Selection};
    use crate::model::{ObjectName, Selector};

    fn web() -> Arc<SetKey> {
        Arc::new(SetKey::Pods(Selection { namespaces: Scope::Named("shop".into()), pods: Selector::everything() }))
    }

    fn block(cidr: &str) -> Arc<SetKey> {
        Arc::new(SetKey::Blocks([Block { cidr: cidr.parse().unwrap(), except: [].into() }].into()))
    }

    fn check(matches: &[Match], direction: Direction, family: Family, expected: &[&str]) {
        let key = PolicyKey { policy: ObjectName::new("shop", "web"), direction };
        let named = |set: &SetKey| names::set(set).of(family).clone();
        let asked = [Rule { matches: [].into() }, Rule { matches: matches.into() }];
        let Rules(found) = rules(&key, &asked, family, &named);
        let found: Vec<String> = found.iter().map(iptables::Rule::to_string).collect();
        let (web, port) = (names::set(&web()), names::set(&http()));
        let (blocks, six) = (names::set(&block("10.0.0.0/8")), names::set(&block("fd00::/8")));
        let expected: Vec<String> = expected
            .iter()
            .map(|rule| {
                rule.replace("WEB", &web.of(family).0)
                    .replace("HTTP", &port.of(family).0)
                    .replace("BLOCKS", &blocks.of(family).0)
                    .replace("SIX", &six.of(family).0)
            })
            .collect();
        assert_eq!(found, expected);
    }

    fn http() -> SetKey {
        SetKey::NamedPort { pods: PortOwners::Local, name: "http".into(), protocol: Protocol::Tcp }
    }

    fn numbers(ranges: &[(u16, u16)]) -> PortMatch {
        let range = |(first, last): &(u16, u16)| PortRange { first: *first, last: *last };
        PortMatch::Numbers(Protocol::Sctp, ranges.iter().map(range).collect())
    }

    #[test]
    fn a_peer_is_the_source_of_ingress_and_the_destination_of_egress() {
        let one = [Match { peer: Some(web()), port: PortMatch::Any }];
        let head = r#"-m comment --comment "shop/web"#;
        let rule =
            |direction, side| format!("{head} {direction} 1\" -m set --match-set WEB {side} -g KUBE-NWPLCY-DEFAULT");
        check(&one, Direction::Ingress, Family::V4, &[&rule("ingress", "src")]);
        check(&one, Direction::Egress, Family::V6, &[&rule("egress", "dst")]);
    }

    #[test]
    fn ports_are_lists_of_fifteen_numbers_a_range_being_two() {
        let ranges: Vec<(u16, u16)> = (0..8).map(|n| (n * 10, n * 10 + 1)).chain([(99, 99)]).collect();
        check(
            &[Match { peer: None, port: numbers(&ranges) }],
            Direction::Ingress,
            Family::V4,
            &[
                "-p sctp -m comment --comment \"shop/web ingress 1\" -m multiport --dports 0:1,10:11,20:21,30:31,40:41,50:51,60:61 -g KUBE-NWPLCY-DEFAULT",
                "-p sctp -m comment --comment \"shop/web ingress 1\" -m multiport --dports 70:71,99 -g KUBE-NWPLCY-DEFAULT",
            ],
        );
    }

    #[test]
    fn a_protocol_alone_and_a_named_port() {
        let named = Match { peer: Some(web()), port: PortMatch::Named(Arc::new(http())) };
        let udp = Match { peer: None, port: PortMatch::Protocol(Protocol::Udp) };
        check(
            &[named, udp],
            Direction::Ingress,
            Family::V4,
            &[
                "-m comment --comment \"shop/web ingress 1\" -m set --match-set WEB src -m set --match-set HTTP dst,dst -g KUBE-NWPLCY-DEFAULT",
                "-p udp -m comment --comment \"shop/web ingress 1\" -g KUBE-NWPLCY-DEFAULT",
            ],
        );
    }

    #[test]
    fn a_block_of_the_other_family_is_no_rule() {
        let blocks = [
            Match { peer: Some(block("10.0.0.0/8")), port: PortMatch::Any },
            Match { peer: Some(block("fd00::/8")), port: PortMatch::Any },
        ];
        let rule = |set| {
            format!("-m comment --comment \"shop/web egress 1\" -m set --match-set {set} dst -g KUBE-NWPLCY-DEFAULT")
        };
        check(&blocks, Direction::Egress, Family::V4, &[&rule("BLOCKS")]);
        check(&blocks, Direction::Egress, Family::V6, &[&rule("SIX")]);
    }
}
