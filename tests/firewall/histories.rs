//! Random histories: after every step the compiled rules mean what the oracle says, and history leaves no trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use sluice::firewall::plan::{Plan, RuleSetChanges};
use sluice::firewall::rules::{Direction, RuleSet};
use sluice::firewall::verdict::{Packet, verdict};
use sluice::model::World;

use super::support::random::{Random, for_many};
use super::{clusters, oracle};

/// The rules of a World, computed at once.
pub fn rules(world: &World) -> RuleSet {
    let mut plan = Plan::new();
    plan.update(&clusters::copied(world));
    plan.rules().clone()
}

/// The first of some packets that the rules judge otherwise than the oracle.
pub fn disagreement(
    rules: &RuleSet,
    world: &World,
    random: &mut Random,
    packets: usize,
) -> Option<(Packet, Direction)> {
    for _ in 0..packets {
        let packet = clusters::packet(random);
        let judged = verdict(rules, &packet);
        for direction in Direction::BOTH {
            if judged.of(direction).passes() != oracle::passes(world, &packet, direction) {
                return Some((packet, direction));
            }
        }
    }
    None
}

#[test]
fn the_compiled_rules_mean_what_the_policies_say() {
    for_many(400, |random| {
        let changes = 20 + random.below(60);
        let world = clusters::world(random, changes);
        let rules = rules(&world);
        let found = disagreement(&rules, &world, random, 1500);
        assert!(found.is_none(), "{found:?} {:#?} {:#?}", world.cluster, rules);
    });
}

#[test]
fn history_does_not_matter() {
    for_many(150, |random| {
        let mut world = clusters::empty_world();
        let mut plan = Plan::new();
        let mut told = Vec::new();
        for _ in 0..60 {
            // Several changes may arrive as one.
            for _ in 0..*random.pick(&[1, 1, 1, 2, 8]) {
                told.push(clusters::change(&mut world, random));
            }
            let older = plan.rules().clone();
            let changed = plan.update(&world);
            let expected = rules(&world);
            if *plan.rules() != expected {
                same_rows(&plan.rules().pods, &expected.pods, &told);
                same_rows(&plan.rules().policies, &expected.policies, &told);
                same_rows(&plan.rules().cluster_policies, &expected.cluster_policies, &told);
                same_rows(&plan.rules().sets, &expected.sets, &told);
            }
            names_what_changed(&older, plan.rules(), &changed);
            let found = disagreement(plan.rules(), &world, random, 40);
            assert!(found.is_none(), "{found:?} after {told:?}");
        }
    });
}

#[test]
fn an_update_without_a_change_changes_nothing() {
    for_many(50, |random| {
        let world = clusters::world(random, 60);
        let mut plan = Plan::new();
        plan.update(&world);
        assert_eq!(plan.update(&world), RuleSetChanges::default());
        let again = plan.update(&clusters::copied(&world));
        assert_eq!(again, RuleSetChanges::default(), "equal objects are no change, whoever holds them");
    });
}

fn same_rows<K: Ord + Debug, V: PartialEq + Debug>(found: &BTreeMap<K, V>, expected: &BTreeMap<K, V>, told: &[String]) {
    for key in found.keys().chain(expected.keys()) {
        assert_eq!(found.get(key), expected.get(key), "{key:?} after {told:#?}");
    }
}

/// Every difference is named, and nothing else is.
pub fn names_what_changed(older: &RuleSet, newer: &RuleSet, changed: &RuleSetChanges) {
    names_all(&older.pods, &newer.pods, &changed.pods);
    names_all(&older.policies, &newer.policies, &changed.policies);
    names_all(&older.cluster_policies, &newer.cluster_policies, &changed.cluster_policies);
    let mut elements = BTreeSet::new();
    for set in older.sets.keys().chain(newer.sets.keys()) {
        let (Some(before), Some(after)) = (older.sets.get(set), newer.sets.get(set)) else {
            assert!(changed.sets.contains(set), "{set:?} appeared or went and is not named");
            continue;
        };
        if changed.sets.contains(set) {
            continue;
        }
        for (family, before) in before.elements.iter() {
            let differ = before.symmetric_difference(after.elements.of(family));
            elements.extend(differ.map(|element| (set.clone(), *element)));
        }
    }
    let named: BTreeSet<_> = changed.elements.iter().cloned().collect();
    assert_eq!(named, elements);
    assert_eq!(named.len(), changed.elements.len(), "an element changes once");
}

fn names_all<K: Ord + Debug + Clone, V: PartialEq>(
    older: &BTreeMap<K, V>,
    newer: &BTreeMap<K, V>,
    named: &BTreeSet<K>,
) {
    for key in older.keys().chain(newer.keys()) {
        assert!(named.contains(key) || older.get(key) == newer.get(key), "{key:?} changed and is not named");
    }
}
