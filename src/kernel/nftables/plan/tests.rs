use std::sync::Arc;

use super::super::object::{Base, BaseKind, Fields, Hook};
use super::super::rule::{Rule, Verdict as NftVerdict};
use super::*;
use crate::net::{PortRange, Protocol};

/// A base chain that changes, a new one, a new chain, and an element of a set that exists beside one of a new set. Returns the chains
/// and elements of the first transaction, and those of the last one.
fn early_and_late(intervals: bool) -> (Vec<String>, Vec<String>) {
    let spec = |intervals| SetSpec { fields: Fields::Port, kind: Kind::Verdicts, intervals };
    let base = Base { kind: BaseKind::Filter, hook: Hook::Forward, priority: 0 };
    let chain = |base| Content::Chain(Arc::new(Chain { base, rules: Vec::new() }));
    let (of_host, plain) = (chain(Some(base)), chain(None));
    let ports = Key::Ports(PortRange { first: 80, last: 81 });
    let chains = ["changed", "entered", "new"].map(|name| Object::Chain(name.into()));
    let elements = ["known", "fresh"].map(|set| Object::Element(set.into(), ports.clone()));
    let set = (Object::Set("fresh".into()), Content::Set(spec(intervals)));
    let step = |key, have, want| Step { key, have, want: Some(want) };
    let [changed, entered, new] = &chains;
    let [known, fresh] = &elements;
    let steps = [
        step(changed, Some(&of_host), &of_host),
        step(entered, None, &of_host),
        step(new, None, &plain),
        step(&set.0, None, &set.1),
        step(known, None, &Content::Element),
        step(fresh, None, &Content::Element),
    ];
    let mut plan = Plan::of(&steps, &[("known".into(), Some(spec(true)))].into()).expect("its sets exist");
    let named = |plan: &Plan<'_>| {
        let chains = plan.made_chains.iter().chain(&plan.changed_chains).map(|(name, _)| name.to_string());
        chains.chain(plan.added.keys().map(|set| format!("element of {set}"))).collect::<Vec<_>>()
    };
    let early = plan.take_unreachable(&Unreached::new()).map(|early| named(&early)).unwrap_or_default();
    assert!(plan.take_left().is_none(), "nothing goes");
    (early, named(&plan))
}

#[test]
fn a_map_that_goes_does_so_behind_what_leads_there_no_longer_and_a_set_with_it() {
    let of = |kind| Some(SetSpec { fields: Fields::ProtocolPort, kind, intervals: false });
    let kinds = [("map", Kind::Verdicts), ("marks", Kind::Marks), ("set", Kind::Set)];
    let sets: Sets = kinds.map(|(name, kind)| (name.into(), of(kind))).into();
    let contents: Vec<(Object, Content)> =
        sets.iter().filter_map(|(name, spec)| Some((Object::Set(name.clone()), Content::Set((*spec)?)))).collect();
    let goes = |(key, have): &'_ (Object, Content)| -> usize {
        let steps = [Step { key, have: Some(have), want: None }];
        let mut plan = Plan::of(&steps, &sets).expect("it exists");
        plan.take_left().map_or(0, |left| left.gone_sets.len())
    };
    assert_eq!(contents.iter().map(goes).collect::<Vec<_>>(), [1, 1, 0]);
}

#[test]
fn what_is_new_comes_before_an_element_that_leads_there_where_one_of_another_map_goes() {
    let spec = |kind| Some(SetSpec { fields: Fields::ProtocolPort, kind, intervals: false });
    let chain = Content::Chain(Arc::new(Chain { base: None, rules: Vec::new() }));
    let verdict = Content::Verdict(Arc::new(crate::kernel::nftables::Verdict::Jump("new".into())));
    let new = Object::Chain("new".into());
    let key = Key::ProtocolPort(crate::net::Protocol::Tcp, 80);
    let [goes, comes] = ["first", "second"].map(|map| Object::Element(map.into(), key.clone()));
    for (kind, have, early) in [
        (Kind::Verdicts, &verdict, true),
        (Kind::Set, &Content::Element, false),
        (Kind::Marks, &Content::Mark(1), false),
    ] {
        let sets: Sets = [("first".into(), spec(kind)), ("second".into(), spec(Kind::Verdicts))].into();
        let steps = [
            Step { key: &new, have: None, want: Some(&chain) },
            Step { key: &goes, have: Some(have), want: None },
            Step { key: &comes, have: None, want: Some(&verdict) },
        ];
        let mut plan = Plan::of(&steps, &sets).expect("its sets exist");
        assert_eq!(plan.take_unreachable(&Unreached::new()).is_some(), early, "{kind:?}");
    }
}

#[test]
fn what_is_new_comes_before_an_element_that_leads_there_in_place_of_elsewhere() {
    let spec = SetSpec { fields: Fields::ProtocolPort, kind: Kind::Verdicts, intervals: false };
    let chain = Content::Chain(Arc::new(Chain { base: None, rules: Vec::new() }));
    let verdict = Content::Verdict(Arc::new(crate::kernel::nftables::Verdict::Jump("new".into())));
    let new = Object::Chain("new".into());
    let element = Object::Element("known".into(), Key::ProtocolPort(crate::net::Protocol::Tcp, 80));
    let sets: Sets = [("known".into(), Some(spec))].into();
    for (have, early) in [(None, false), (Some(&verdict), true)] {
        let steps =
            [Step { key: &new, have: None, want: Some(&chain) }, Step { key: &element, have, want: Some(&verdict) }];
        let mut plan = Plan::of(&steps, &sets).expect("its set exists");
        assert_eq!(plan.take_unreachable(&Unreached::new()).is_some(), early);
    }
}

#[test]
fn what_is_new_comes_before_what_leads_to_it_where_a_new_set_has_intervals() {
    let (early, late) = early_and_late(true);
    assert_eq!(early, ["new", "element of fresh"]);
    assert_eq!(late, ["entered", "changed", "element of known"]);
}

#[test]
fn everything_comes_together_where_no_new_set_has_intervals() {
    let (early, late) = early_and_late(false);
    assert!(early.is_empty());
    assert_eq!(late, ["entered", "new", "changed", "element of fresh", "element of known"]);
}

/// A map that exists with some of its elements, and a chain beside it, as a change left them that was broken off.
#[test]
fn a_map_whose_filling_was_broken_off_is_filled_before_anything_leads_there() {
    let spec = SetSpec { fields: Fields::Port, kind: Kind::Verdicts, intervals: true };
    let changed = Content::Chain(Arc::new(Chain { base: None, rules: Vec::new() }));
    let element = Object::Element("map".into(), Key::Ports(PortRange { first: 80, last: 90 }));
    let class = Object::Chain("class".into());
    let steps = [
        Step { key: &class, have: Some(&changed), want: Some(&changed) },
        Step { key: &element, have: None, want: Some(&Content::Element) },
    ];
    let sets: Sets = [("map".into(), Some(spec))].into();
    for (unreached, in_turn) in [(vec![], vec![vec![0, 1]]), (vec![Object::Set("map".into())], vec![vec![1], vec![0]])]
    {
        let plan = Plan::of(&steps, &sets).expect("its set exists");
        let InTurn { early, main, late, .. } = plan.in_turn(&unreached.into_iter().collect());
        assert!(late.is_none());
        let found: Vec<Vec<usize>> = early.into_iter().chain([main]).map(|plan| places(&steps, &[plan])).collect();
        assert_eq!(found, in_turn);
    }
}

#[test]
fn a_large_set_whose_filling_was_broken_off_is_filled_in_portions() {
    let spec = SetSpec { fields: Fields::Address(crate::net::Family::V4), kind: Kind::Set, intervals: false };
    let element = |number: u32| Object::Element("set".into(), Key::Address(std::net::Ipv4Addr::from(number).into()));
    let elements: Vec<Object> = (0..40_000).map(element).collect();
    let steps: Vec<_> = elements.iter().map(|key| Step { key, have: None, want: Some(&Content::Element) }).collect();
    let sets: Sets = [("set".into(), Some(spec))].into();
    for (unreached, count) in [(vec![], 0), (vec![Object::Set("set".into())], 3)] {
        let plan = Plan::of(&steps, &sets).expect("its set exists");
        let InTurn { early, main, .. } = plan.in_turn(&unreached.into_iter().collect());
        assert_eq!((early.len(), main.is_empty()), (count, count > 0));
        let all: usize = early.iter().chain([&main]).map(|plan| places(&steps, std::slice::from_ref(plan)).len()).sum();
        assert_eq!(all, steps.len());
    }
}

#[test]
fn what_goes_and_nothing_leads_to_does_not_wait_for_the_change() {
    let spec = SetSpec { fields: Fields::ProtocolPort, kind: Kind::Verdicts, intervals: false };
    let chain = Content::Chain(Arc::new(Chain { base: None, rules: Vec::new() }));
    let [left, old] = ["left", "old"].map(|name| Object::Chain(name.into()));
    let steps =
        [Step { key: &left, have: Some(&chain), want: None }, Step { key: &old, have: Some(&chain), want: None }];
    let sets: Sets = [("map".into(), Some(spec))].into();
    let plan = Plan::of(&steps, &sets).expect("there are no elements");
    let mut in_turn = plan.in_turn(&[left.clone()].into());
    let leftovers = in_turn.leftovers.take().expect("there are some");
    let named = |plan: &Plan<'_>| places(&steps, std::slice::from_ref(plan));
    assert_eq!((named(&leftovers), named(&in_turn.main)), (vec![0], vec![1]));
    in_turn.main.take_back(leftovers);
    assert_eq!(named(&in_turn.main), [0, 1]);
}

/// The chains that get another name where elements of a map lead from the first chain to the second, and a rule of a chain that changes leads to this one.
/// An empty name is none; a chain exists before and then, if its name begins so.
fn successors(elements: &[(&str, &str)], also: &str) -> Vec<(String, String)> {
    let to = |name: &str| (!name.is_empty()).then(|| NftVerdict::Jump(name.into()));
    let chain = |rules| Content::Chain(Arc::new(Chain { base: None, rules }));
    let of_rule = to(also).map(|verdict| Rule::new([], verdict)).into_iter().collect();
    let changed = (Object::Chain("changed".into()), (Some(chain(Vec::new())), Some(chain(of_rule))));
    let mut contents = BTreeMap::from([changed]);
    for (port, (have, want)) in (1..).zip(elements) {
        let key = Object::Element("map".into(), Key::ProtocolPort(Protocol::Tcp, port));
        let content = |name: &str| to(name).map(|verdict| Content::Verdict(Arc::new(verdict)));
        contents.insert(key, (content(have), content(want)));
        let there = Some(chain(Vec::new()));
        for (name, states) in [(have, (there.clone(), None)), (want, (None, there))] {
            if !name.is_empty() && !name.starts_with("stays") {
                contents.insert(Object::Chain((*name).into()), states);
            }
        }
    }
    let steps: Vec<_> =
        contents.iter().map(|(key, (have, want))| Step { key, have: have.as_ref(), want: want.as_ref() }).collect();
    let spec = SetSpec { fields: Fields::ProtocolPort, kind: Kind::Verdicts, intervals: false };
    let sets: Sets = [("map".into(), Some(spec))].into();
    let mut plan = Plan::of(&steps, &sets).expect("its set exists");
    let found = plan.successors(&Unreached::new());
    found.iter().for_each(|(from, to)| plan.rename(from, to, 1));
    let InTurn { early, main, .. } = plan.in_turn(&Unreached::new());
    let all = early.iter().chain([&main]).flat_map(|plan| places(&steps, std::slice::from_ref(plan)));
    assert_eq!(all.collect::<BTreeSet<_>>(), (0..steps.len()).collect(), "nothing is forgotten");
    found.into_iter().map(|(from, to)| (from.to_string(), to.to_string())).collect()
}

#[test]
fn a_chain_gets_another_name_where_everything_that_led_to_it_is_all_that_leads_to_the_new_one() {
    let (ab, none) = (vec![("a".to_owned(), "b".to_owned())], Vec::new());
    assert_eq!(successors(&[("a", "b")], ""), ab);
    assert_eq!(successors(&[("a", "b"), ("a", "b")], ""), ab);
    assert_eq!(successors(&[("a", "b"), ("a", "")], ""), ab, "one leads nowhere then");
    assert_eq!(successors(&[("a", "b"), ("a", "c")], ""), ab, "one chain has one name");
    assert_eq!(successors(&[("a", "b"), ("a", "stays_1")], ""), ab);
    assert_eq!(successors(&[("a", "b"), ("", "b")], ""), none, "an element that is new leads there too");
    assert_eq!(successors(&[("a", "b"), ("c", "b")], ""), none, "two chains become one");
    assert_eq!(successors(&[("stays_1", "b")], ""), none, "the former chain stays");
    assert_eq!(successors(&[("a", "stays_1")], ""), none, "the other chain exists");
    assert_eq!(successors(&[("a", "b")], "b"), none, "a rule leads there too");
    assert_eq!(successors(&[("a", "b")], "stays_1"), ab);
}

#[test]
fn a_new_set_with_intervals_comes_before_the_change_without_the_new_chains() {
    let spec = SetSpec { fields: Fields::Address(crate::net::Family::V4), kind: Kind::Set, intervals: true };
    let contents = [
        (Object::Set("blocks".into()), Content::Set(spec)),
        (Object::Chain("new".into()), Content::Chain(Arc::new(Chain { base: None, rules: Vec::new() }))),
    ];
    let steps = contents.each_ref().map(|(key, want)| Step { key, have: None, want: Some(want) });
    let turns = transactions(&steps, &Sets::new(), true).expect("there are no elements");
    assert_eq!(turns.into_iter().map(|turn| turn.steps).collect::<Vec<_>>(), [[0], [1]]);
}

#[test]
fn where_memory_lacks_the_largest_set_is_at_fault_also_where_another_one_has_more_elements_in_that_portion() {
    let spec = SetSpec { fields: Fields::Mark, kind: Kind::Set, intervals: false };
    let count = [("large", PORTION as u32 + 10), ("small", 1000), ("tiny", 3)];
    let made = count.map(|(set, _)| (Object::Set(set.into()), Content::Set(spec)));
    let elements: Vec<Object> = count
        .iter()
        .flat_map(|(set, count)| (0..*count).map(|mark| Object::Element((*set).into(), Key::Mark(mark))))
        .collect();
    let of_sets = made.iter().map(|(key, want)| Step { key, have: None, want: Some(want) });
    let of_elements = elements.iter().map(|key| Step { key, have: None, want: Some(&Content::Element) });
    let steps: Vec<_> = of_sets.chain(of_elements).collect();
    let plan = Plan::of(&steps, &Sets::new()).expect("its sets are made");
    let InTurn { early, .. } = plan.in_turn(&Unreached::new());
    let sizes = Plan::sizes(&early);
    assert_eq!(sizes.values().copied().collect::<Vec<_>>(), count.map(|(_, count)| count as usize));
    let last = early.last().expect("two portions");
    assert_eq!(last.added.values().map(|(_, elements)| elements.len()).collect::<Vec<_>>(), [10, 1000, 3]);
    assert_eq!(last.largest_set(&sizes).map(Name::as_str), Some("large"));
    assert_eq!(Plan::default().largest_set(&sizes), None, "nothing is filled");
}
