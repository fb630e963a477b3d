//! The objects of a table that no packet comes to.
//!
//! A change that is refused, or a process that ends in the middle of one, leaves such objects behind: what is new comes before anything leads to it
//! ([`plan`](super::plan)).

use std::collections::{BTreeMap, BTreeSet};

use super::object::{Content, Key, Name, Object};
use super::plan::Unreached;
use super::rule::{Rule, Verdict};

/// Returns the chains, sets and counters that no base chain leads to. None, where a rule or a chain is not understood: it may lead anywhere.
pub(super) fn unreached(contents: &BTreeMap<Object, Content>) -> Unreached {
    let objects = || contents.iter().take_while(|(object, _)| !matches!(object, Object::Element(..)));
    let is_foreign = |content: &Content| match content {
        Content::Foreign => true,
        Content::Chain(chain) => chain.rules.iter().any(Rule::is_foreign),
        _ => false,
    };
    if objects().any(|(_, content)| is_foreign(content)) {
        return Unreached::new();
    }
    let is_base = |content: &Content| matches!(content, Content::Chain(chain) if chain.base.is_some());
    let mut left: Vec<Object> =
        objects().filter(|(_, content)| is_base(content)).map(|(object, _)| object.clone()).collect();
    let mut reached = BTreeSet::new();
    while let Some(object) = left.pop() {
        if reached.contains(&object) {
            continue;
        }
        match (&object, contents.get(&object)) {
            (_, Some(Content::Chain(chain))) => left.extend(chain.rules.iter().flat_map(Object::named_by)),
            (Object::Set(map), Some(Content::Set(spec))) if spec.kind == super::Kind::Verdicts => {
                left.extend(verdicts_of(map, contents).filter_map(Object::led_to));
            }
            _ => {}
        }
        reached.insert(object);
    }
    objects().map(|(object, _)| object).filter(|object| !reached.contains(*object)).cloned().collect()
}

fn verdicts_of<'a>(map: &'a Name, contents: &'a BTreeMap<Object, Content>) -> impl Iterator<Item = &'a Verdict> {
    let first = Object::Element(map.clone(), Key::first());
    let elements = contents.range(first..);
    let elements = elements.take_while(move |(object, _)| matches!(object, Object::Element(of, _) if of == map));
    elements.filter_map(|(_, content)| match content {
        Content::Verdict(verdict) => Some(&**verdict),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::object::{Base, BaseKind, Chain, Fields, Hook, Kind, SetSpec};
    use super::super::rule::{Lookup, Match, Side, Statement};
    use super::*;
    use crate::net::Family;

    #[test]
    fn what_no_base_chain_leads_to_is_unreached() {
        let base = Base { kind: BaseKind::Filter, hook: Hook::Forward, priority: 0 };
        let lookup = Lookup::Address(Family::V4, Side::Source);
        let in_set = |set: &str| Match::InSet { lookup, set: set.into(), negated: false };
        let mapped = |map: &str| Rule::new([], Verdict::Map { lookup, map: map.into() });
        let class = |set: &str, counter: &str| {
            let counted = Rule::with([], [Statement::Count(counter.into())], Some(Verdict::Reject));
            vec![Rule::new([in_set(set)], Verdict::Accept), counted]
        };
        let chain =
            |name: &str, base, rules| (Object::Chain(name.into()), Content::Chain(Arc::new(Chain { base, rules })));
        let set = |name: &str, kind| {
            let spec = SetSpec { fields: Fields::Address(Family::V4), kind, intervals: false };
            (Object::Set(name.into()), Content::Set(spec))
        };
        let element = |map: &str, to: &str| {
            let key = Key::Address(std::net::IpAddr::from([10, 0, 0, 1]));
            (Object::Element(map.into(), key), Content::Verdict(Arc::new(Verdict::Jump(to.into()))))
        };
        let mut contents = BTreeMap::from([
            chain("forward", Some(base), vec![mapped("judged")]),
            chain("in_a", None, class("peers", "refused")),
            chain("in_b", None, class("left_peers", "left_refused")),
            chain("left", None, vec![mapped("left_map"), mapped("judged")]),
            set("judged", Kind::Verdicts),
            set("left_map", Kind::Verdicts),
            set("peers", Kind::Set),
            set("left_peers", Kind::Set),
            (Object::Counter("refused".into()), Content::Counter),
            (Object::Counter("left_refused".into()), Content::Counter),
            element("judged", "in_a"),
            element("left_map", "in_b"),
        ]);
        let names: Vec<String> = unreached(&contents).iter().map(ToString::to_string).collect();
        let left = ["counter left_refused", "set left_map", "set left_peers", "chain in_b", "chain left"];
        assert_eq!(names, left);
        contents.insert(Object::Chain("strange".into()), Content::Foreign);
        assert_eq!(unreached(&contents), Unreached::new(), "it may lead anywhere");
    }
}
