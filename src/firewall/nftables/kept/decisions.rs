//! Decisions of the former chain of a tier that are kept: denials as they were found, and so far as they come before one of a policy that is not known, what
//! was passed on and what was accepted.

use std::collections::BTreeSet;

use crate::kernel::nftables::{Content, Name, Object, Rule, Verdict};

use super::super::desired::{Lost, Table, elements_of};
use super::super::names::{self, ChainKind};
use super::super::refused::is_closing;
use super::{named, passed};

/// The tables that are compared.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// Objects of policies that are not known, if any.
    pub lost: Option<&'a Lost>,
    pub seen: &'a Table,
    pub desired: &'a Table,
}

/// A rule of a former chain, as it is kept.
pub(super) struct Decision {
    pub rule: Rule,
    /// The objects that it leads to, as they were found.
    pub objects: BTreeSet<Object>,
    /// The chains that are made for it.
    pub chains: Vec<(Object, Content)>,
}

/// Returns the rules of a former chain up to the last one of a policy that is not known, as they are kept.
pub(super) fn decisions(before: &Name, now: Option<&Name>, view: View<'_>) -> Vec<Decision> {
    let View { lost, seen, desired } = view;
    let known: BTreeSet<Object> = match (lost, now) {
        (None, Some(now)) => reached([Object::Chain(now.clone())], desired),
        _ => BTreeSet::new(),
    };
    let is_lost = |object: &Object| match object {
        Object::Chain(chain) if is_of_policy(chain) => match lost {
            Some(lost) => lost.chains.holds(chain.as_str()) && !desired.contains_key(object),
            None => !known.contains(object),
        },
        _ => false,
    };
    // The chain of a tier, or of an address that several pods claim, that was closed in place of what the kernel refused may have denied
    // anything; that of a class denied nothing by ClusterNetworkPolicies.
    let was_closed = now != Some(before) && is_whole(before);
    let (mut decisions, mut end): (Vec<Decision>, usize) = (Vec::new(), 0);
    for rule in asked(before, seen) {
        let objects = reached(leads_to(rule), seen);
        if let Some(policy) = passed::by(rule, seen) {
            let chain = Object::Chain(policy.clone());
            let is_its = is_lost(&chain);
            let objects = reached(named(rule).into_iter().chain([chain]), seen);
            let (kept, chains) = passed::passing(rule, policy, now, desired);
            decisions.push(Decision { rule: kept, objects, chains });
            end = if is_its { decisions.len() } else { end };
            if rule.matches().is_empty() {
                break;
            }
        } else if objects.iter().any(is_lost) || was_closed && is_closing(rule) {
            decisions.push(Decision { rule: rule.clone(), objects, chains: Vec::new() });
            end = decisions.len();
        } else {
            let accepted = passed::accepted(rule, seen);
            // Behind what accepts everything nothing is asked.
            if accepted.iter().any(Vec::is_empty) {
                break;
            }
            let accepting = accepted.into_iter().map(|matches| passed::accepting(matches, now));
            let decision = |rule: Rule| Decision { objects: reached(named(&rule), seen), rule, chains: Vec::new() };
            decisions.extend(accepting.map(decision));
        }
    }
    decisions.truncate(end);
    decisions
}

/// Returns the rules that a packet meets in a chain and where that goes on, each once. What such a chain goes on with does not come
/// back, so it has to be asked rule by rule where anything is to be asked behind it.
fn asked<'a>(chain: &'a Name, table: &'a Table) -> Vec<&'a Rule> {
    let (mut rules, mut met, mut chains) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut next = Some(chain);
    while let Some(Content::Chain(found)) = next.and_then(|name| table.get(&Object::Chain(name.clone()))) {
        next = None;
        for rule in &found.rules {
            match goes_on(rule).filter(|_| passed::by(rule, table).is_none()) {
                // Nothing behind it is asked.
                Some(to) => {
                    next = chains.insert(to).then_some(to);
                    break;
                }
                None if met.insert(rule) => rules.push(rule),
                None => {}
            }
        }
    }
    rules
}

/// Returns the chain with which every packet goes on that meets a rule, where that is a whole chain of an address.
fn goes_on(rule: &Rule) -> Option<&Name> {
    match rule.verdict() {
        Some(Verdict::Goto(to)) if rule.matches().is_empty() => Some(to).filter(|chain| is_whole(chain)),
        _ => None,
    }
}

/// Returns whether a chain is all that judges an address by tiers.
fn is_whole(chain: &Name) -> bool {
    is_of_tier(chain) || names::kind(chain) == Some(ChainKind::Shared)
}

/// Returns whether a chain is that of a tier, or asks one behind what is kept.
pub(super) fn is_of_tier(chain: &Name) -> bool {
    matches!(names::kind(chain), Some(ChainKind::Tier | ChainKind::Kept))
}

/// Returns whether a chain is one of a single policy, to which packets go about which it decides.
fn is_of_policy(chain: &Name) -> bool {
    matches!(names::kind(chain), Some(ChainKind::Denied | ChainKind::Passed))
}

/// Returns the objects that a rule names.
fn leads_to(rule: &Rule) -> BTreeSet<Object> {
    let mut objects = named(rule);
    match rule.verdict() {
        Some(Verdict::Jump(to) | Verdict::Goto(to)) => drop(objects.insert(Object::Chain(to.clone()))),
        Some(Verdict::Map { map, .. }) => drop(objects.insert(Object::Set(map.clone()))),
        _ => {}
    }
    objects
}

/// Returns these objects and all that they lead to.
pub(super) fn reached(from: impl IntoIterator<Item = Object>, table: &Table) -> BTreeSet<Object> {
    let (mut all, mut left) = (BTreeSet::new(), Vec::from_iter(from));
    while let Some(object) = left.pop() {
        if all.contains(&object) {
            continue;
        }
        match table.get(&object) {
            Some(Content::Chain(chain)) => left.extend(chain.rules.iter().flat_map(leads_to)),
            Some(Content::Verdict(verdict)) => {
                if let Verdict::Jump(to) | Verdict::Goto(to) = &**verdict {
                    left.push(Object::Chain(to.clone()));
                }
            }
            _ => {}
        }
        if let Object::Set(set) = &object {
            left.extend(elements_of(table, set).map(|(element, _)| element.clone()));
        }
        all.insert(object);
    }
    all
}
