//! Who is allowed for some ports, or denied: everybody, or the peers in any of several sets.
//!
//! Up to four sets are looked up one after the other. Of more than that there is one set that holds what any of them holds, so
//! that a packet costs the same with 1,000 policies: a union of the sets of pods, one of the sets of named ports, and all
//! blocks as one set of blocks. A set that two unions have in common is in both; one that no rule looks up by itself is not
//! in the kernel.
//!
//! What unions hold is bounded by that: where the ports of a class have many combinations of peers, a set that occurs in more than
//! [`SHARED`] of them is in no union, but looked up by itself. So the elements of each set are at most [`SHARED`] times in the
//! kernel for a class, and once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::kernel::nftables::{Match, Rule, Verdict};
use crate::net::PerFamily;

use super::super::rules::{ClusterPolicyKey, Direction, SetKey};
use super::names;
use super::parts::{Lowered, Part};
use super::sets::{self, in_set, in_union};

/// Who is allowed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Allowed {
    Everybody,
    /// The addresses in any of these sets.
    Peers(BTreeSet<Arc<SetKey>>),
}

/// The peers of one direction that are in any of these sets: the sources of ingress, the destinations of egress.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Peers {
    pub direction: Direction,
    pub sets: BTreeSet<Arc<SetKey>>,
    /// Those of the sets that are in no union.
    pub alone: BTreeSet<Arc<SetKey>>,
    pub outcome: Outcome,
}

/// The outcome for a packet whose peer is found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    Accept,
    /// This ClusterNetworkPolicy denies it.
    Deny(ClusterPolicyKey),
}

/// The same with the direction in which the peer is looked for.
#[derive(Clone, Copy, Debug)]
pub struct PeerOutcome<'a> {
    pub direction: Direction,
    pub outcome: &'a Outcome,
}

/// Sets of one kind, all of pods or all of named ports, at least two. Their union is kept up to date as one set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Union {
    pub sets: BTreeSet<Arc<SetKey>>,
}

/// Number of sets that are looked up in turn, and of ports, or of ranges of a protocol, that are compared in turn.
pub const IN_TURN: usize = 4;

/// Number of combinations of one class in which a set may be part of a union.
const SHARED: usize = 4;

impl Default for Allowed {
    fn default() -> Allowed {
        Allowed::Peers(BTreeSet::new())
    }
}

impl Allowed {
    /// Allows one peer more; `None` is everybody.
    pub fn add(&mut self, peer: Option<&Arc<SetKey>>) {
        match (self, peer) {
            (Allowed::Everybody, _) => {}
            (Allowed::Peers(sets), Some(set)) => drop(sets.insert(set.clone())),
            (this, None) => *this = Allowed::Everybody,
        }
    }

    /// Allows what another one allows.
    pub fn join(&mut self, other: &Allowed) {
        match other {
            Allowed::Everybody => *self = Allowed::Everybody,
            Allowed::Peers(sets) => sets.iter().for_each(|set| self.add(Some(set))),
        }
    }

    /// Returns the sets if they are too many to be looked up in turn.
    fn joined(&self) -> Option<&BTreeSet<Arc<SetKey>>> {
        match self {
            Allowed::Peers(sets) if sets.len() > IN_TURN => Some(sets),
            Allowed::Peers(_) | Allowed::Everybody => None,
        }
    }

    /// Returns the number of sets, at least one.
    pub fn weight(&self) -> usize {
        match self {
            Allowed::Everybody => 1,
            Allowed::Peers(sets) => sets.len().max(1),
        }
    }
}

impl Outcome {
    /// Returns the verdict, and adds the part that it needs.
    pub fn verdict(&self, needs: &mut BTreeSet<Part>) -> Verdict {
        match self {
            Outcome::Accept => Verdict::Accept,
            Outcome::Deny(policy) => {
                needs.insert(Part::Denied(policy.clone()));
                Verdict::Goto(names::denied(policy))
            }
        }
    }
}

/// Returns the sets that are part of too many of these combinations for a union.
pub fn crowded<'a>(all: impl Iterator<Item = &'a Allowed>) -> BTreeSet<Arc<SetKey>> {
    let joined: BTreeSet<&BTreeSet<Arc<SetKey>>> = all.filter_map(Allowed::joined).collect();
    let mut counts: BTreeMap<&Arc<SetKey>, usize> = BTreeMap::new();
    joined.into_iter().flatten().for_each(|set| *counts.entry(set).or_default() += 1);
    counts.into_iter().filter(|(_, count)| *count > SHARED).map(|(set, _)| set.clone()).collect()
}

impl Peers {
    /// `crowded` are the sets that the class, or the run of rules of a tier, has in no union.
    pub fn new(
        direction: Direction,
        sets: &BTreeSet<Arc<SetKey>>,
        crowded: &BTreeSet<Arc<SetKey>>,
        outcome: &Outcome,
    ) -> Peers {
        let alone = if sets.len() > IN_TURN { sets.intersection(crowded).cloned().collect() } else { BTreeSet::new() };
        Peers { direction, sets: sets.clone(), alone, outcome: outcome.clone() }
    }

    /// Returns the rules that accept or deny these peers, and the parts that they need.
    pub fn rules(&self, families: PerFamily<bool>, needs: &mut BTreeSet<Part>) -> Vec<Rule> {
        let mut found: Vec<Match> = Vec::new();
        for source in self.sources() {
            match source {
                Source::One(set) => {
                    found.extend(in_set(&set, self.direction, families));
                    needs.extend(sets::parts(&set, families));
                }
                Source::Union(union) => {
                    found.extend(in_union(&union, self.direction, families));
                    needs.insert(Part::Union(union.clone()));
                }
            }
        }
        if found.is_empty() {
            return Vec::new();
        }
        let verdict = self.outcome.verdict(needs);
        found.into_iter().map(|one| Rule::new([one], verdict.clone())).collect()
    }

    /// Returns the sets to look up.
    fn sources(&self) -> Vec<Source> {
        let mut sources: Vec<Source> = self.alone.iter().cloned().map(Source::One).collect();
        let rest: BTreeSet<&Arc<SetKey>> = self.sets.difference(&self.alone).collect();
        if rest.len() <= IN_TURN {
            sources.extend(rest.into_iter().cloned().map(Source::One));
            return sources;
        }
        let all_of = |is_its: fn(&SetKey) -> bool| -> BTreeSet<Arc<SetKey>> {
            rest.iter().filter(|set| is_its(set)).map(|set| Arc::clone(set)).collect()
        };
        let pods = all_of(|set| matches!(set.plain(), SetKey::Pods(_)));
        let ports = all_of(|set| matches!(set.plain(), SetKey::NamedPort { .. }));
        for sets in [pods, ports] {
            match sets.len() {
                0 => {}
                1 => sources.extend(sets.into_iter().map(Source::One)),
                _ => sources.push(Source::Union(Arc::new(Union { sets }))),
            }
        }
        let blocks = rest.iter().filter_map(|set| match &***set {
            SetKey::Blocks(blocks) => Some(blocks.iter().cloned()),
            SetKey::Pods(_) | SetKey::NamedPort { .. } | SetKey::Denied(_) => None,
        });
        let blocks: BTreeSet<_> = blocks.flatten().collect();
        if !blocks.is_empty() {
            sources.push(Source::One(Arc::new(SetKey::Blocks(blocks.into_iter().collect()))));
        }
        sources
    }
}

/// Returns the chain that accepts or denies these peers, and returns for all others.
pub fn peers(peers: &Peers, families: PerFamily<bool>) -> Lowered {
    let mut lowered = Lowered::default();
    let rules = peers.rules(families, &mut lowered.needs);
    lowered.chain(names::peers(peers), rules);
    lowered
}

/// A set to look up.
enum Source {
    One(Arc<SetKey>),
    Union(Arc<Union>),
}
