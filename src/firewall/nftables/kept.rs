//! Objects that stay in the table although they are not desired, so that nothing opens.
//!
//! - The cluster is not known completely ([`Authority::Partial`]): absence proves nothing. Nothing goes but what was seen to go, and
//!   what follows from policies alone. So pods that are judged stay judged, by the classes that they are known by, and the base
//!   chains keep what closes bridges. Of a tier less may be known than was: what it denied and denies no longer is asked first, and
//!   then the tier as it is known; what it passed on is passed on, unless the tier as it is known denies it ([`tiers`](self::tiers)).
//!   In each of the maps from addresses to chains, an element that is desired takes the place of the former one; one that is not desired stays. So an address that a pod claims which is known
//!   is judged by the Admin tier and by the class of that pod in place of those of before, where it has them (a class stays in place of a Baseline tier). To keep the former ones as well would
//!   hold up every pod that is started with an address which another one has left, for as long as an object cannot be read. Of two pods with one address one is running,
//!   and if that is the one that is not known, nothing but its former class, of which the table does not say whose it was, would speak for it.
//!   Addresses that several pods claimed when all were known keep all their judges.
//! - ClusterNetworkPolicies alone are not known ([`Desired::lost`]): what these denied stays denied to pods that are known, and what they passed on passed on.
//! - Services are not known completely ([`Desired::unsure`]): what an isolated pod is refused of them stays refused.

mod decisions;
mod passed;
mod tiers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::nftables::{Chain, Content, Key, Match, Name, Object, Rule, Statement, Verdict};
use crate::model::Authority;
use crate::net::Family;

use super::super::rules::Direction;
use super::desired::{Desired, Table, elements_of};
use super::names::{self, ChainKind, FORWARD_EGRESS, INPUT_EGRESS, LINK_LOCAL, MULTICAST};

/// Objects that stay, in the form in which they do.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Kept(BTreeMap<Object, Content>);

impl Kept {
    /// Returns what stays of what was seen.
    pub fn of(seen: &Table, desired: &Desired, authority: Authority) -> Kept {
        let mut kept = Kept::default();
        for address in desired.unsure.iter().flatten() {
            kept.keep_refusals(*address, seen, &desired.table);
        }
        if authority == Authority::Partial {
            kept.keep_shared(seen, &desired.table);
            kept.keep_tiers(None, seen, &desired.table);
            for chain in [FORWARD_EGRESS, INPUT_EGRESS] {
                kept.keep_bridges(&Object::Chain(chain.into()), seen, &desired.table);
            }
        } else if let Some(lost) = &desired.lost {
            kept.keep_tiers(Some(lost), seen, &desired.table);
        }
        kept
    }

    /// Returns whether anything may have to stay.
    pub fn is_needed(desired: &Desired, authority: Authority) -> bool {
        authority == Authority::Partial || desired.unsure.is_some() || desired.lost.is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the form in which an object stays.
    pub fn get(&self, object: &Object) -> Option<&Content> {
        self.0.get(object)
    }

    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.0.keys()
    }

    /// Returns a table with what stays.
    pub fn over(&self, table: &Table) -> Table {
        let mut table = table.clone();
        table.extend(self.0.iter().map(|(object, content)| (object.clone(), content.clone())));
        table
    }

    /// Keeps what this address is refused of Services.
    fn keep_refusals(&mut self, address: IpAddr, seen: &Table, desired: &Table) {
        let name = names::refused_services(address);
        let element = Object::Element(names::host_endpoints(Family::from(address)), Key::Address(address));
        let object = Object::Chain(name);
        let (Some(verdict), Some(Content::Chain(found))) = (seen.get(&element), seen.get(&object)) else { return };
        let wanted = match desired.get(&object) {
            Some(Content::Chain(chain)) => chain.rules.clone(),
            _ => Vec::new(),
        };
        let more: Vec<Rule> = found.rules.iter().filter(|rule| !wanted.contains(rule)).cloned().collect();
        for named in found.rules.iter().flat_map(named) {
            if let (false, Some(content)) = (desired.contains_key(&named), seen.get(&named)) {
                self.0.insert(named.clone(), content.clone());
            }
            if let Object::Set(set) = &named {
                let elements = elements_of(seen, set).filter(|(element, _)| !desired.contains_key(*element));
                self.0.extend(elements.map(|(element, content)| (element.clone(), content.clone())));
            }
        }
        if !more.is_empty() {
            let rules = wanted.into_iter().chain(more).collect();
            self.0.insert(object, Content::Chain(Arc::new(Chain { base: None, rules })));
        }
        if !desired.contains_key(&element) {
            self.0.insert(element, verdict.clone());
        }
    }

    /// Keeps the verdicts of addresses that several pods claimed: one of them may only not be known. Where several still
    /// do, those of before are asked as well.
    fn keep_shared(&mut self, seen: &Table, desired: &Table) {
        let shared = |content: Option<&Content>| {
            target(content).filter(|chain| names::kind(chain) == Some(ChainKind::Shared)).cloned()
        };
        for map in maps(names::admin) {
            for (element, verdict) in elements_of(seen, &map) {
                let Some(before) = shared(Some(verdict)) else { continue };
                match shared(desired.get(element)) {
                    Some(now) => self.keep_classes(&Object::Chain(before), Object::Chain(now), seen, desired),
                    None => drop(self.0.insert(element.clone(), verdict.clone())),
                }
            }
        }
    }

    /// Keeps what was asked for an address in the chain that is asked for it now.
    fn keep_classes(&mut self, before: &Object, now: Object, seen: &Table, desired: &Table) {
        let asked = self.0.get(&now).or_else(|| desired.get(&now));
        let (Some(Content::Chain(found)), Some(Content::Chain(asked))) = (seen.get(before), asked) else { return };
        let lost: Vec<Rule> = found.rules.iter().filter(|rule| !asked.rules.contains(rule)).cloned().collect();
        if !lost.is_empty() {
            // The last rule accepts.
            let rules = [&*lost, &*asked.rules].concat();
            self.0.insert(now, Content::Chain(Arc::new(Chain { base: None, rules })));
        }
    }

    /// Keeps the rules of a base chain that close bridges.
    fn keep_bridges(&mut self, object: &Object, seen: &Table, desired: &Table) {
        let (Some(Content::Chain(found)), Some(Content::Chain(wanted))) = (seen.get(object), desired.get(object))
        else {
            return;
        };
        let leads_to =
            |rule: &Rule, chain: &str| matches!(rule.verdict(), Some(Verdict::Jump(to)) if to.as_str() == chain);
        let lost = |chain: &str| -> Vec<Rule> {
            let of_chain = found.rules.iter().filter(|rule| leads_to(rule, chain));
            of_chain.filter(|rule| !wanted.rules.contains(rule)).cloned().collect()
        };
        let (to_many, link_local) = (lost(MULTICAST), lost(LINK_LOCAL));
        if to_many.is_empty() && link_local.is_empty() {
            return;
        }
        // Packets to many are judged before those of connections, what is link-local behind them.
        let first = wanted.rules.iter().position(|rule| !leads_to(rule, MULTICAST)).unwrap_or_default();
        let (before, behind) = wanted.rules.split_at((first + 1).min(wanted.rules.len()));
        let rules = [&to_many, before, &link_local, behind].concat();
        self.0.insert(object.clone(), Content::Chain(Arc::new(Chain { base: wanted.base, rules })));
    }
}

/// Returns the maps of this name in both directions and families.
fn maps(named: fn(Direction, Family) -> Name) -> impl Iterator<Item = Name> {
    Family::BOTH.into_iter().flat_map(move |family| Direction::BOTH.map(|direction| named(direction, family)))
}

/// Returns the chain that a verdict jumps to.
fn target(content: Option<&Content>) -> Option<&Name> {
    match content {
        Some(Content::Verdict(verdict)) => match &**verdict {
            Verdict::Jump(to) => Some(to),
            _ => None,
        },
        _ => None,
    }
}

/// Returns whether an element may go that was seen to, although not everything is known: it opens a path, and its set is desired. A set or map that is not
/// stays as it is: chains that stay may look it up, and so do packets that are under way.
pub fn may_leave(element: &Object, desired: &Desired) -> bool {
    let is_desired = |set: &Name| desired.table.contains_key(&Object::Set(set.clone()));
    matches!(element, Object::Element(set, _) if is_desired(set)) && !names::closes(element)
}

/// Returns whether an object follows from policies alone, and the class or tier is desired that looks it up: its sets and maps of ports may go with all they
/// hold, although pods are not known.
pub fn follows_from_policies(object: &Object, desired: &Desired) -> bool {
    let (Object::Set(set) | Object::Element(set, _)) = object else { return false };
    names::looking_up(set).any(|chain| desired.table.contains_key(&Object::Chain(chain)))
}

/// Returns the sets and counters that a rule names.
fn named(rule: &Rule) -> BTreeSet<Object> {
    let sets = rule.matches().iter().filter_map(|one| match one {
        Match::InSet { set, .. } => Some(Object::Set(set.clone())),
        _ => None,
    });
    let counters = rule.statements().iter().filter_map(|statement| match statement {
        Statement::Count(counter) => Some(Object::Counter(Name::clone(counter))),
        _ => None,
    });
    sets.chain(counters).collect()
}
