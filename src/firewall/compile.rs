//! One direction of one NetworkPolicy, compiled: what its rules match, and which sets they need.
//!
//! Kubernetes: `spec.ingress[] { from[], ports[] }`, `spec.egress[] { to[], ports[] }`. A pure function of the policy
//! alone: pods, their labels and their port numbers only decide what the sets hold, so a change in the cluster never
//! changes a rule.
//!
//! A rule is the product of its peers and its ports. Each peer that selects pods has its own set, which other rules
//! share; all blocks of a rule are one set. Two cases are no plain product:
//! - a named port of ingress is looked up at the isolated pod: any pod of this node has its numbers in one set, and a
//!   rule is only asked about packets to the pod that it isolates;
//! - a named port of egress is looked up at the peer: the set of its addresses and numbers says both who and where.

use std::sync::Arc;

use crate::model::{NetworkPolicy, Peer, Peers, PolicyPort, PolicyRule, Ports};

use super::rules::{Block, Direction, Match, PortMatch, PortOwners, Rule, SetKey};
use super::{ip_block, named_port, port_number, selection};

/// The rules of one direction of a policy in this namespace; `None` where the policy leaves the direction alone.
pub fn rules(namespace: &str, policy: &NetworkPolicy, direction: Direction) -> Option<Arc<[Rule]>> {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    let rules = rules.as_ref()?.iter().map(|one| rule(namespace, one, direction));
    Some(rules.collect())
}

fn rule(namespace: &str, rule: &PolicyRule, direction: Direction) -> Rule {
    let mut matches = Vec::new();
    for peer in peers(namespace, &rule.peers) {
        match &rule.ports {
            Ports::Any => matches.push(Match { peer, port: PortMatch::Any }),
            Ports::Of(ports) => matches.extend(with_ports(peer, ports, direction)),
        }
    }
    Rule { matches: matches.into() }
}

/// The sets of peers, any of which will do; `None` is everybody.
fn peers(namespace: &str, peers: &Peers) -> Vec<Option<Arc<SetKey>>> {
    let Peers::Of(peers) = peers else { return vec![None] };
    let mut sets = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    for peer in peers {
        match peer {
            Peer::Pods { namespaces, pods } => {
                sets.push(SetKey::Pods(selection::selection(namespace, namespaces, pods)));
            }
            Peer::Block { cidr, except } => blocks.push(ip_block::block(*cidr, except)),
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

fn with_ports(peer: Option<Arc<SetKey>>, ports: &[PolicyPort], direction: Direction) -> Vec<Match> {
    let by_number = port_number::by_number(ports);
    let mut matches: Vec<Match> = by_number.into_iter().map(|port| Match { peer: peer.clone(), port }).collect();
    let mut named: Vec<SetKey> = named_port::names(ports)
        .map(|(name, protocol)| {
            let pods = match direction {
                Direction::Ingress => PortOwners::Local,
                Direction::Egress => named_port::owners(peer.as_deref()),
            };
            SetKey::NamedPort { pods, name: name.clone(), protocol }
        })
        .collect();
    named.sort();
    named.dedup();
    matches.extend(named.into_iter().map(|set| Match {
        // For egress the set of ports names the peers already.
        peer: peer.clone().filter(|_| direction == Direction::Ingress),
        port: PortMatch::Named(Arc::new(set)),
    }));
    matches
}
