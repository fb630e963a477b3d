//! Isolating the changes that the kernel refuses among many.
//!
//! A transaction fails as a whole, and only some programs say which line was at fault. So the changes are made in
//! parts: chains that others jump to first, jumps after the chains, deletions last; a part that fails is cut in half
//! until single changes remain. What is refused stays as it was, what needs it does so too, and the rest is done.
//!
//! Where the owner has something to put in the place of what is refused, nothing is done before it has: packets would meet
//! some chains of the old and some of the new. There the chains are tried in others that nobody enters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use compact_str::CompactString;

use super::plan::Change;
use super::rule::Rule;
use super::{Piece, Rules, Table};

/// Outcome of the changes, by their steps.
#[derive(Debug)]
pub(super) struct Parted<E> {
    pub failed: Vec<(usize, E)>,
    /// The failed steps that were refused themselves, not for what they need.
    pub refused: Vec<usize>,
}

/// Makes the changes in parts. `existing` are the chains that are there already. `attempt` makes some of the changes
/// together, or none of them.
pub(super) fn in_parts<'a, E: Clone>(
    changes: &[Change<'a>],
    existing: &BTreeSet<CompactString>,
    dependent: &E,
    attempt: &mut dyn FnMut(&[Change<'a>]) -> Result<(), E>,
) -> Parted<E> {
    let mut ordered: Vec<Change<'a>> = changes.to_vec();
    let depths = depths(changes);
    ordered.sort_by_key(|change| match (change.piece, change.want) {
        (Piece::Chain { chain, .. }, Some(_)) => (0, depths.get(chain.as_str()).copied().unwrap_or_default()),
        (Piece::Jump { .. }, Some(_)) => (1, 0),
        _ => (2, 0),
    });
    let parted = Parted { failed: Vec::new(), refused: Vec::new() };
    let mut parts = Parts { existing, dependent, missing: BTreeSet::new(), parted };
    parts.make(&ordered, attempt);
    parts.parted
}

/// Returns the steps of the chains that the kernel refuses, without touching them: their rules are put into chains
/// with other names, and removed again. `is_ours` returns whether a target is a chain, which may not be there.
/// `attempt` runs a script.
pub(super) fn on_trial<E>(
    table: Table,
    changes: &[Change<'_>],
    is_ours: &dyn Fn(&str) -> bool,
    attempt: &mut dyn FnMut(&str) -> Result<(), E>,
) -> Vec<(usize, E)> {
    let Err(error) = attempt(&trial(table, changes, is_ours)) else { return Vec::new() };
    match changes {
        [] => Vec::new(),
        [only] => vec![(only.step, error)],
        _ => {
            let (first, second) = changes.split_at(changes.len() / 2);
            let mut refused = on_trial(table, first, is_ours, attempt);
            refused.extend(on_trial(table, second, is_ours, attempt));
            refused
        }
    }
}

/// Returns a script that creates chains with these rules, and one behind it that removes them. The targets of the
/// rules are left out: those chains may have to come first.
fn trial(table: Table, changes: &[Change<'_>], is_ours: &dyn Fn(&str) -> bool) -> String {
    let (mut names, mut rules, mut removals) = (String::new(), String::new(), String::new());
    for change in changes {
        let (Piece::Chain { chain, .. }, Some(wanted)) = (change.piece, change.want) else { continue };
        let name = trial_name(chain);
        writeln!(names, ":{name} - [0:0]").expect(WRITES);
        writeln!(removals, "-X {name}").expect(WRITES);
        for rule in &wanted.0 {
            let goes_to_ours = rule.chain().is_some_and(|to| is_ours(to));
            let tried = if goes_to_ours { rule.without_verdict() } else { rule.clone() };
            writeln!(rules, "-A {name} {tried}").expect(WRITES);
        }
    }
    let table = table.name();
    format!("*{table}\n{names}{rules}COMMIT\n*{table}\n{names}{removals}COMMIT\n")
}

const WRITES: &str = "writing to a string does not fail";

/// A name that belongs to the same owner, by its beginning, and is no longer.
fn trial_name(chain: &str) -> String {
    let kept = chain.len().saturating_sub(6);
    format!("{}-TRIAL", chain.get(..kept).unwrap_or(chain))
}

struct Parts<'p, E> {
    existing: &'p BTreeSet<CompactString>,
    dependent: &'p E,
    /// Chains that were refused and are not there.
    missing: BTreeSet<CompactString>,
    parted: Parted<E>,
}

impl<E: Clone> Parts<'_, E> {
    fn make<'a>(&mut self, changes: &[Change<'a>], attempt: &mut dyn FnMut(&[Change<'a>]) -> Result<(), E>) {
        let (possible, impossible): (Vec<Change<'a>>, Vec<Change<'a>>) =
            changes.iter().partition(|change| !self.needs_what_is_missing(change));
        for change in impossible {
            self.fail(&change, self.dependent.clone());
        }
        if possible.is_empty() {
            return;
        }
        let Err(error) = attempt(&possible) else { return };
        if let [only] = possible.as_slice() {
            self.parted.refused.push(only.step);
            return self.fail(only, error);
        }
        let (first, second) = possible.split_at(possible.len() / 2);
        self.make(first, attempt);
        self.make(second, attempt);
    }

    fn needs_what_is_missing(&self, change: &Change<'_>) -> bool {
        let rules = change.want.into_iter().flat_map(|rules| &rules.0);
        !self.missing.is_empty() && rules.filter_map(Rule::chain).any(|chain| self.missing.contains(chain))
    }

    fn fail(&mut self, change: &Change<'_>, error: E) {
        if let (Piece::Chain { chain, .. }, Some(_)) = (change.piece, change.want)
            && !self.existing.contains(chain)
        {
            self.missing.insert(chain.clone());
        }
        self.parted.failed.push((change.step, error));
    }
}

/// Returns the number of chains of the same changes behind each chain, one jumping to the next.
fn depths<'a>(changes: &[Change<'a>]) -> BTreeMap<&'a str, usize> {
    let filled: BTreeMap<&'a str, &'a Rules> = changes
        .iter()
        .filter_map(|change| match (change.piece, change.want) {
            (Piece::Chain { chain, .. }, Some(rules)) => Some((chain.as_str(), rules)),
            _ => None,
        })
        .collect();
    let mut depths: BTreeMap<&'a str, usize> = filled.keys().map(|chain| (*chain, 0)).collect();
    // Each pass lifts the chains above those that it lifted before; chains in a circle end with the passes.
    for _ in 0..filled.len() {
        let mut lifted = false;
        for (chain, rules) in &filled {
            let behind = rules.0.iter().filter_map(|rule| depths.get(rule.chain()?.as_str())).max();
            let depth = behind.map_or(0, |behind| behind + 1);
            let known = depths.entry(*chain).or_default();
            if depth > *known {
                *known = depth;
                lifted = true;
            }
        }
        if !lifted {
            break;
        }
    }
    depths
}

#[cfg(test)]
mod tests {
    use super::super::Table;
    use super::*;
    use crate::net::Family;

    fn chain(name: &str) -> Piece {
        Piece::Chain { family: Family::V4, table: Table::Filter, chain: name.into() }
    }

    fn rules(texts: &[&str]) -> Rules {
        Rules(texts.iter().map(|text| Rule::from(*text)).collect())
    }

    /// Makes changes in a kernel that refuses rules with the word `bad` and jumps to chains that are not there.
    fn made(chains: &[(&str, &[&str])], existing: &[&str]) -> (Vec<String>, Vec<usize>, Vec<usize>, usize) {
        let pieces: Vec<(Piece, Rules)> = chains.iter().map(|(name, texts)| (chain(name), rules(texts))).collect();
        let changes: Vec<Change<'_>> =
            pieces.iter().enumerate().map(|(step, (piece, rules))| Change { step, piece, want: Some(rules) }).collect();
        let existing: BTreeSet<CompactString> = existing.iter().map(|name| CompactString::from(*name)).collect();
        let mut there = existing.clone();
        let mut tries = 0;
        let parted = in_parts(&changes, &existing, &"needs another", &mut |part| {
            tries += 1;
            let mut after = there.clone();
            after.extend(part.iter().filter_map(|change| match change.piece {
                Piece::Chain { chain, .. } => Some(chain.clone()),
                _ => None,
            }));
            for rule in part.iter().flat_map(|change| &change.want.expect("all are wanted").0) {
                if rule.to_string().contains("bad") {
                    return Err("refused");
                }
                if rule.chain().is_some_and(|to| !after.contains(to)) {
                    return Err("no such chain");
                }
            }
            there = after;
            Ok(())
        });
        let mut failed: Vec<usize> = parted.failed.iter().map(|(step, _)| *step).collect();
        failed.sort_unstable();
        (there.iter().map(|chain| chain.to_string()).collect(), failed, parted.refused, tries)
    }

    #[test]
    fn one_refused_chain_holds_up_only_what_jumps_to_it() {
        let (there, failed, refused, _) = made(
            &[
                ("KUBE-DISPATCH", &["-j KUBE-POD-1", "-j KUBE-POD-2"]),
                ("KUBE-POD-1", &["-j KUBE-A"]),
                ("KUBE-POD-2", &["-j KUBE-B"]),
                ("KUBE-A", &["-j ACCEPT"]),
                ("KUBE-B", &["bad -j ACCEPT"]),
            ],
            &[],
        );
        assert_eq!(there, ["KUBE-A", "KUBE-POD-1"]);
        assert_eq!((failed, refused), (vec![0, 2, 4], vec![4]));
    }

    #[test]
    fn what_exists_in_an_older_form_may_still_be_jumped_to() {
        let (there, failed, refused, _) =
            made(&[("KUBE-POD", &["-j KUBE-A"]), ("KUBE-A", &["bad -j ACCEPT"])], &["KUBE-A"]);
        assert_eq!(there, ["KUBE-A", "KUBE-POD"]);
        assert_eq!((failed, refused), (vec![1], vec![1]));
    }

    #[test]
    fn a_trial_finds_all_that_are_refused_and_names_only_chains_of_its_own() {
        let names: Vec<String> = (0..40).map(|number| format!("KUBE-NWPLCY-ABCDEFGHIJ{number:06}")).collect();
        let rules_of = |number: usize| match number {
            7 | 31 => rules(&["-m comment --comment \"a -j b\" -m bad -g KUBE-NWPLCY-DEFAULT"]),
            _ => rules(&["-p tcp -j REJECT --reject-with tcp-reset", "-j KUBE-NWPLCY-DEFAULT"]),
        };
        let pieces: Vec<(Piece, Rules)> =
            names.iter().enumerate().map(|(number, name)| (chain(name), rules_of(number))).collect();
        let changes: Vec<Change<'_>> =
            pieces.iter().enumerate().map(|(step, (piece, rules))| Change { step, piece, want: Some(rules) }).collect();
        let found = on_trial(Table::Filter, &changes, &|to| to.starts_with("KUBE-"), &mut |script| {
            assert!(!script.contains("KUBE-NWPLCY-DEFAULT") && script.matches("COMMIT").count() == 2, "{script}");
            assert!(!names.iter().any(|name| script.contains(name.as_str())), "{script}");
            if script.contains("-m bad\n") { Err("refused") } else { Ok(()) }
        });
        assert_eq!(found, [(7, "refused"), (31, "refused")]);
    }

    #[test]
    fn finding_one_among_many_takes_few_tries() {
        let names: Vec<String> = (0..300).map(|number| format!("KUBE-{number}")).collect();
        let chains: Vec<(&str, &[&str])> = names
            .iter()
            .map(|name| (name.as_str(), if name == "KUBE-77" { &["bad -j ACCEPT"][..] } else { &["-j ACCEPT"][..] }))
            .collect();
        let (there, failed, refused, tries) = made(&chains, &[]);
        assert_eq!((there.len(), failed, refused), (299, vec![77], vec![77]));
        assert!(tries < 25, "{tries}");
    }
}
