//! The order of our jumps in the built-in chains.
//!
//! All our jumps stand before all foreign rules of their chain: a foreign rule that accepts everything would
//! otherwise switch off what stands behind it. Among themselves they have the order of [`ORDER`], whoever owns
//! them, so that no part of the program needs to know when another one starts. A jump that somebody has pushed
//! down is taken out and put back; the foreign rules keep their order, their places among themselves and
//! their counters.

use std::collections::BTreeMap;

use super::rule::Rule;
use super::{Rules, Table};

/// For each built-in chain the chains that we jump to, in the order of the jumps.
///
/// `INPUT`: what hides its port from all others is dropped first, and what policy forbids is forbidden before a service answers. `FORWARD`: and before pods are let through. What is for no Service is refused before
/// both of them, because each accepts what it lets through, and nobody behind it is asked; a new connection that policies forbid gets the same answer there.
/// `OUTPUT`: policies accept nothing there that may be for no Service.
/// `POSTROUTING`: the source address for masquerading wins over the one for hairpin connections, as with kube-router, and
/// both over the one for what pods send to the outside.
const ORDER: [(Table, &str, &[&str]); 8] = [
    (Table::Filter, "INPUT", &["KUBE-ROUTER-HIDDEN", "KUBE-ROUTER-INPUT", "KUBE-ROUTER-SERVICES"]),
    (Table::Filter, "FORWARD", &["KUBE-ROUTER-UNALLOCATED", "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-PODS"]),
    (Table::Filter, "OUTPUT", &["KUBE-ROUTER-OUTPUT", "KUBE-ROUTER-UNALLOCATED"]),
    (
        Table::Mangle,
        "PREROUTING",
        &["KUBE-ROUTER-OVERLAY-PODS", "KUBE-ROUTER-FOU-PODS", "KUBE-ROUTER-DSR", "KUBE-ROUTER-DSR-MSS"],
    ),
    (Table::Mangle, "POSTROUTING", &["KUBE-ROUTER-OVERLAY-OUT", "KUBE-ROUTER-FOU-OUT"]),
    (
        Table::Mangle,
        "INPUT",
        &["KUBE-ROUTER-OVERLAY-IN", "KUBE-ROUTER-FOU-IN", "KUBE-ROUTER-SOURCES", "KUBE-ROUTER-INSIDE"],
    ),
    (Table::Mangle, "OUTPUT", &["KUBE-ROUTER-SOURCES", "KUBE-ROUTER-DSR", "KUBE-ROUTER-DSR-SENT"]),
    (Table::Nat, "POSTROUTING", &["KUBE-ROUTER-SNAT", "KUBE-ROUTER-HAIRPIN", "KUBE-ROUTER-EGRESS"]),
];

/// One change of a built-in chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Edit {
    /// Delete the first rule with this text.
    Delete(Rule),
    /// Insert a rule so that this many stand before it.
    Insert(usize, Rule),
}

/// A built-in chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub table: Table,
    pub chain: &'a str,
}

impl Place<'_> {
    /// Returns the position of a jump to this chain among ours; `None` for a chain that has no slot here. Such a jump
    /// has no place that could be kept, and must not be desired.
    pub fn slot(self, to: &str) -> Option<usize> {
        let (_, _, slots) = ORDER.iter().find(|(table, chain, _)| (*table, *chain) == (self.table, self.chain))?;
        slots.iter().position(|slot| *slot == to)
    }

    /// Returns the number of rules at the top of the chain that are jumps allowed before one to `to`.
    fn head(self, rules: &[Rule], to: &str) -> usize {
        let own = self.slot(to).unwrap_or(usize::MAX);
        rules
            .iter()
            .take_while(|rule| {
                rule.chain().is_some_and(|other| other == to || self.slot(other).is_some_and(|slot| slot < own))
            })
            .count()
    }

    /// Returns whether all jumps to `to` stand where they should.
    pub fn holds(self, rules: &[Rule], to: &str) -> bool {
        rules.iter().skip(self.head(rules, to)).all(|rule| !rule.jumps_to(to))
    }

    /// The edits after which the chain jumps to each of these chains by exactly these rules, each in its place.
    /// `rules` becomes what the chain holds then.
    pub fn arrange(self, rules: &mut Vec<Rule>, jumps: &BTreeMap<&str, Option<&Rules>>) -> Vec<Edit> {
        let mut edits = Vec::new();
        let mut missing: Vec<(&str, &Rules)> = Vec::new();
        for (to, wanted) in jumps {
            let existing: Vec<Rule> = rules.iter().filter(|rule| rule.jumps_to(to)).cloned().collect();
            let wanted_rules: &[Rule] = wanted.map_or(&[], |rules| &rules.0);
            if existing == wanted_rules && self.holds(rules, to) {
                continue;
            }
            for rule in existing {
                delete_first(rules, &rule);
                edits.push(Edit::Delete(rule));
            }
            missing.extend(wanted.map(|wanted| (*to, wanted)));
        }
        missing.sort_by_key(|(to, _)| self.slot(to).unwrap_or(usize::MAX));
        for (to, wanted) in missing {
            for rule in &wanted.0 {
                let before = self.head(rules, to);
                rules.insert(before, rule.clone());
                edits.push(Edit::Insert(before, rule.clone()));
            }
        }
        edits
    }
}

/// Takes away the first rule with this text, as `-D` does.
pub(super) fn delete_first(rules: &mut Vec<Rule>, rule: &Rule) -> bool {
    let at = rules.iter().position(|found| found == rule);
    at.map(|at| rules.remove(at)).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INPUT: Place<'_> = Place { table: Table::Filter, chain: "INPUT" };
    const POLICY: &str = "-j KUBE-ROUTER-INPUT";
    const SERVICES: &str = "-m set --match-set kube-router-svip dst -j KUBE-ROUTER-SERVICES";

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| Rule::from(*text)).collect()
    }

    /// The chain after it was brought to jump to `to` by `wanted`, and how many edits that took.
    fn arranged(texts: &[&str], to: &str, wanted: Option<&str>) -> (Vec<Rule>, usize) {
        let mut rules = rules(texts);
        let wanted = wanted.map(|text| Rules(vec![text.into()]));
        let edits = INPUT.arrange(&mut rules, &BTreeMap::from([(to, wanted.as_ref())]));
        (rules, edits.len())
    }

    #[test]
    fn a_jump_comes_before_foreign_rules_and_behind_ours_of_an_earlier_slot() {
        let services = |texts: &[&str]| arranged(texts, "KUBE-ROUTER-SERVICES", Some(SERVICES));
        assert_eq!(services(&[]), (rules(&[SERVICES]), 1));
        assert_eq!(services(&["-j ACCEPT"]), (rules(&[SERVICES, "-j ACCEPT"]), 1));
        assert_eq!(services(&[POLICY, "-j ACCEPT"]), (rules(&[POLICY, SERVICES, "-j ACCEPT"]), 1));
        assert_eq!(services(&[POLICY, SERVICES]), (rules(&[POLICY, SERVICES]), 0));
    }

    #[test]
    fn a_jump_that_was_pushed_down_or_doubled_or_edited_is_put_right() {
        let right = rules(&[SERVICES, "-s 203.0.113.1/32 -j DROP", "-j ACCEPT"]);
        let services = |texts: &[&str]| arranged(texts, "KUBE-ROUTER-SERVICES", Some(SERVICES)).0;
        assert_eq!(services(&["-s 203.0.113.1/32 -j DROP", SERVICES, "-j ACCEPT"]), right);
        assert_eq!(services(&[SERVICES, "-s 203.0.113.1/32 -j DROP", SERVICES, "-j ACCEPT"]), right);
        assert_eq!(services(&["-j KUBE-ROUTER-SERVICES", "-s 203.0.113.1/32 -j DROP", "-j ACCEPT"]), right);
        // Of two in the wrong order the one that may not stand first is not in its place.
        assert!(INPUT.holds(&rules(&[SERVICES, POLICY]), "KUBE-ROUTER-SERVICES"));
        assert!(!INPUT.holds(&rules(&[SERVICES, POLICY]), "KUBE-ROUTER-INPUT"));
    }

    #[test]
    fn a_jump_that_is_not_wanted_goes_wherever_it_stands() {
        let texts = [POLICY, "-j ACCEPT", SERVICES, SERVICES];
        assert_eq!(arranged(&texts, "KUBE-ROUTER-SERVICES", None), (rules(&[POLICY, "-j ACCEPT"]), 2));
    }

    fn replay(mut rules: Vec<Rule>, edits: &[Edit]) -> Vec<Rule> {
        for edit in edits {
            match edit {
                Edit::Delete(rule) => assert!(delete_first(&mut rules, rule), "no rule {rule}"),
                Edit::Insert(before, rule) => rules.insert(*before, rule.clone()),
            }
        }
        rules
    }

    proptest! {
        #[test]
        fn any_chain_is_brought_into_order_and_foreign_rules_keep_theirs(
            before in proptest::collection::vec(
                prop_oneof![Just(POLICY), Just(SERVICES), Just("-j X"), Just("-j KUBE-ROUTER-SERVICES"), "-s 203[.]0[.]113[.][1-5] -j DROP".prop_map(|text| &*text.leak())],
                0..8,
            ),
            policy in any::<bool>(),
            services in any::<bool>(),
        ) {
            let before = rules(&before);
            let (one, two) = (Rules(vec![POLICY.into()]), Rules(vec![SERVICES.into()]));
            let jumps = BTreeMap::from([
                ("KUBE-ROUTER-INPUT", policy.then_some(&one)),
                ("KUBE-ROUTER-SERVICES", services.then_some(&two)),
            ]);
            let mut after = before.clone();
            let edits = INPUT.arrange(&mut after, &jumps);
            prop_assert_eq!(replay(before.clone(), &edits), after.clone());
            let is_ours = |rule: &Rule| rule.to_string().contains("KUBE-ROUTER");
            let foreign: Vec<_> = before.iter().filter(|rule| !is_ours(rule)).cloned().collect();
            let wanted: Vec<_> = policy.then_some(&one).into_iter().chain(services.then_some(&two)).flat_map(|rules| rules.0.clone()).collect();
            prop_assert_eq!(&after, &[wanted, foreign].concat());
            prop_assert_eq!(INPUT.arrange(&mut after, &jumps), []);
        }
    }
}
