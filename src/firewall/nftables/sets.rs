//! The sets of the rule set, and unions of them.
//!
//! ```text
//! set pods_shop_…_4      { type ipv4_addr; }                                  addresses of pods
//! set blocks_…_6         { type ipv6_addr; flags interval; }                  blocks, disjoint
//! set ranges_…_6         { type ipv6_addr; flags interval; }                  blocks with exceptions, which are cut out
//! set port_http_tcp_…_4  { type ipv4_addr . inet_proto . inet_service; }      destinations of a named port
//! ```
//!
//! Pods that come and go, and labels, are plain elements here: the kernel checks no rule for them, so they cost some
//! microseconds whatever else there is. What blocks hold depends on their definition alone, which is their name.
//!
//! Blocks are prefixes, at most as many as they are. With exceptions they are ranges, so that a hole is one element more, and not up to 128. Earlier versions
//! called both `blocks` and wrote prefixes: a set of theirs is left as it is until no rule looks it up, since prefixes and ranges overlap.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::nftables::rule::Side;
use crate::kernel::nftables::{Content, Fields, Key, Kind, Lookup, Match, Name, Object, SetSpec};
use crate::net::{Family, PerFamily};

use super::super::ip_block;
use super::super::rules::{Direction, Element, RuleSet, SetKey};
use super::names;
use super::parts::{Lowered, Part};
use super::peers::Union;

/// Returns a set with its elements in one family.
pub fn set(key: &SetKey, family: Family, rules: &RuleSet) -> Lowered {
    let mut lowered = Lowered::default();
    let name = names::set(key, family);
    lowered.objects.insert(Object::Set(name.clone()), Content::Set(spec(key, family)));
    let put = |element| Some((Object::Element(name.clone(), element), Content::Element));
    match key {
        SetKey::Blocks(blocks) => {
            let spans = ip_block::spans(blocks, family).into_iter();
            match ip_block::has_holes(blocks, family) {
                true => lowered.objects.extend(
                    spans.map(|span| span.ends(family)).filter_map(|(first, last)| put(Key::range(first, last))),
                ),
                false => lowered
                    .objects
                    .extend(spans.flat_map(|span| span.prefixes(family)).filter_map(|prefix| put(Key::prefix(prefix)))),
            }
        }
        SetKey::Pods(_) | SetKey::NamedPort { .. } | SetKey::Denied(_) => {
            let elements = rules.sets.get(key).into_iter().flat_map(|contents| contents.elements.of(family));
            lowered.objects.extend(elements.filter_map(|element| put(self::key(key, *element)?)));
        }
    }
    lowered
}

/// Returns a set as parts, one for each family in which it can have elements.
pub fn parts(key: &Arc<SetKey>, families: PerFamily<bool>) -> impl Iterator<Item = Part> + use<> {
    let key = key.clone();
    of(&key, families).map(move |family| Part::Set(key.clone(), family))
}

/// Returns the key of an element of a set in the kernel; `None` for one that its set does not have.
pub fn key(set: &SetKey, element: Element) -> Option<Key> {
    match element {
        Element::Address(address) => Some(Key::Address(address)),
        Element::Port(address, port) => Some(Key::Service(address, set.protocol()?, port)),
    }
}

/// Returns the matches of which one holds for a packet whose peer, or whose destination port, is in the set.
pub fn in_set<'a>(
    set: &'a Arc<SetKey>,
    direction: Direction,
    families: PerFamily<bool>,
) -> impl Iterator<Item = Match> + 'a {
    of(set, families).map(move |family| in_one(set, direction, family))
}

/// The same for one family.
pub fn in_one(set: &SetKey, direction: Direction, family: Family) -> Match {
    Match::InSet { lookup: lookup(set, direction, family), set: names::set(set, family), negated: false }
}

/// The same for a union.
pub fn in_union<'a>(
    union: &'a Arc<Union>,
    direction: Direction,
    families: PerFamily<bool>,
) -> impl Iterator<Item = Match> + 'a {
    let first = union.sets.first().cloned();
    union_of(union, families).filter_map(move |family| {
        let lookup = lookup(first.as_ref()?, direction, family);
        Some(Match::InSet { lookup, set: names::union(union, family), negated: false })
    })
}

/// The elements of the unions in use, kept up to date at the cost of what changed.
#[derive(Default)]
pub struct Unions {
    unions: BTreeMap<Arc<Union>, Counted>,
    /// The unions that each set belongs to.
    by_set: BTreeMap<Arc<SetKey>, Vec<Arc<Union>>>,
}

/// A union in the kernel.
struct Counted {
    /// Its names, which cost a hash of all its sets.
    names: PerFamily<Name>,
    /// Number of sets that have each element.
    counts: PerFamily<BTreeMap<Key, u32>>,
}

impl Unions {
    /// Returns a union with its elements, counted anew.
    pub fn lower(&mut self, union: &Arc<Union>, rules: &RuleSet, families: PerFamily<bool>) -> Lowered {
        let mut counts: PerFamily<BTreeMap<Key, u32>> = PerFamily::default();
        for set in &union.sets {
            for (family, elements) in rules.sets.get(set).into_iter().flat_map(|contents| contents.elements.iter()) {
                for key in elements.iter().filter_map(|element| key(set, *element)) {
                    *counts.of_mut(family).entry(key).or_default() += 1;
                }
            }
            let unions = self.by_set.entry(set.clone()).or_default();
            if !unions.contains(union) {
                unions.push(union.clone());
            }
        }
        let known = self.unions.get(union).map(|counted| counted.names.clone());
        let names = known.unwrap_or_else(|| PerFamily::from_fn(|family| names::union(union, family)));
        let mut lowered = Lowered::default();
        for family in union_of(union, families) {
            let name = names.of(family).clone();
            let spec = union.sets.first().map(|set| spec(set, family));
            lowered.objects.extend(spec.map(|spec| (Object::Set(name.clone()), Content::Set(spec))));
            let elements = counts.of(family).keys().cloned();
            lowered.objects.extend(elements.map(|key| (Object::Element(name.clone(), key), Content::Element)));
        }
        self.unions.insert(union.clone(), Counted { names, counts });
        lowered
    }

    /// Forgets a union that is not used any more.
    pub fn forget(&mut self, union: &Arc<Union>) {
        self.unions.remove(union);
        for set in &union.sets {
            let Some(unions) = self.by_set.get_mut(set) else { continue };
            unions.retain(|one| one != union);
            if unions.is_empty() {
                self.by_set.remove(set);
            }
        }
    }

    /// Returns the unions that a set belongs to.
    pub fn with(&self, set: &SetKey) -> &[Arc<Union>] {
        self.by_set.get(set).map_or(&[], |unions| unions)
    }

    /// Counts an element that entered a set, or left it; returns the names of the unions that now have it and did not, or the
    /// reverse.
    pub fn count(&mut self, set: &SetKey, element: Element, is_there: bool) -> Vec<Name> {
        let Some(key) = key(set, element) else { return Vec::new() };
        let mut turned = Vec::new();
        for union in self.by_set.get(set).into_iter().flatten() {
            let Some(Counted { names, counts }) = self.unions.get_mut(union) else { continue };
            let (name, counts) = (names.of(element.family()), counts.of_mut(element.family()));
            let before = counts.get(&key).copied().unwrap_or_default();
            let now = if is_there { before + 1 } else { before.saturating_sub(1) };
            match now {
                0 => drop(counts.remove(&key)),
                now => drop(counts.insert(key.clone(), now)),
            }
            if (before == 0) != (now == 0) {
                turned.push(name.clone());
            }
        }
        turned
    }
}

/// Returns the enabled families in which a set can have elements.
fn of(key: &SetKey, families: PerFamily<bool>) -> impl Iterator<Item = Family> + use<> {
    let can_have = PerFamily::from_fn(|family| *families.of(family) && key.is_of(family));
    Family::BOTH.into_iter().filter(move |family| *can_have.of(*family))
}

fn union_of(union: &Union, families: PerFamily<bool>) -> impl Iterator<Item = Family> + use<> {
    let can_have = PerFamily::from_fn(|family| *families.of(family) && union.sets.iter().any(|set| set.is_of(family)));
    Family::BOTH.into_iter().filter(move |family| *can_have.of(*family))
}

fn lookup(set: &SetKey, direction: Direction, family: Family) -> Lookup {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    match set {
        SetKey::Pods(_) | SetKey::Blocks(_) => Lookup::Address(family, side),
        SetKey::NamedPort { .. } => Lookup::DestinationService(family),
        SetKey::Denied(set) => lookup(set, direction, family),
    }
}

fn spec(key: &SetKey, family: Family) -> SetSpec {
    let (fields, intervals) = match key {
        SetKey::Pods(_) => (Fields::Address(family), false),
        SetKey::Blocks(_) => (Fields::Address(family), true),
        SetKey::NamedPort { .. } => (Fields::Service(family), false),
        SetKey::Denied(set) => return spec(set, family),
    };
    SetSpec { fields, kind: Kind::Set, intervals }
}
