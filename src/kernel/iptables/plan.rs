//! Input of `iptables-restore`, for one table.
//!
//! A desired chain is named, which empties or creates it, and filled; all in one transaction, so no packet
//! meets it half full. Rules in built-in chains are deleted by their text, which stays true when somebody else
//! inserts a rule meanwhile, and inserted by number. A chain to delete is emptied first, so that chains that
//! jump to each other can go together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use compact_str::CompactString;

use super::rule::Rule;
use super::save::{SavedChain, SavedTable};
use super::slots::{Edit, Place, delete_first};
use super::{Piece, Rules, Table};

/// A step without its last seen state, which is read again where it matters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    /// Index into the steps of the round.
    pub step: usize,
    pub piece: &'a Piece,
    pub want: Option<&'a Rules>,
}

/// The lines for one table, and the steps that cannot be part of them.
#[derive(Default, Debug)]
pub(super) struct Plan {
    /// Empty where nothing is to be done; else from `*TABLE` to `COMMIT`.
    pub script: String,
    pub refused: Vec<(usize, &'static str)>,
}

/// Returns whether this change depends on what else the table holds. A chain to delete is presumed to exist, and may
/// go unless a foreign rule jumps to it, which the kernel reports.
pub(super) fn depends_on_table(change: &Change<'_>) -> bool {
    !matches!(change.piece, Piece::Chain { .. })
}

/// Returns a table of which nothing is known but the chains to delete.
pub(super) fn presumed(changes: &[Change<'_>]) -> SavedTable {
    let mut table = SavedTable::default();
    for change in changes.iter().filter(|change| change.want.is_none()) {
        if let Piece::Chain { chain, .. } = change.piece {
            table.chains.insert(chain.clone(), SavedChain::default());
        }
    }
    table
}

/// The lines that perform these changes, all of this table, on a table that holds `current`.
pub(super) fn plan(table: Table, current: &SavedTable, changes: &[Change<'_>]) -> Plan {
    let mut plan = Plan::default();
    let mut lines = String::new();
    let mut filled: Vec<(&str, &Rules)> = Vec::new();
    let mut dropped: Vec<(usize, &str)> = Vec::new();
    let mut builtin: BTreeMap<&str, BuiltinChanges<'_>> = BTreeMap::new();
    for change in changes {
        if change.want.is_some_and(|rules| !rules.0.iter().all(Rule::is_one_line)) {
            plan.refused.push((change.step, "a rule with a line break"));
            continue;
        }
        match (change.piece, change.want) {
            (Piece::Chain { chain, .. }, Some(rules)) => filled.push((chain, rules)),
            (Piece::Chain { chain, .. }, None) => dropped.push((change.step, chain)),
            (Piece::Jump { from, to, .. }, Some(_)) if (Place { table, chain: from }).slot(to).is_none() => {
                plan.refused.push((change.step, "this jump has no slot in the list of ours"));
            }
            (Piece::Jump { from, to, .. }, want) => {
                builtin.entry(from).or_default().jumps.insert(to, want);
            }
            (Piece::Leftover { from, rule, .. }, None) => builtin.entry(from).or_default().leftovers.push(rule),
            (Piece::Leftover { .. }, Some(_)) => plan.refused.push((change.step, "leftovers are only ever removed")),
        }
    }
    fill(&mut lines, &filled);
    let mut after = current.clone();
    for (from, changes) in &builtin {
        let rules = &mut after.chains.entry((*from).into()).or_default().rules;
        edit(&mut lines, Place { table, chain: from }, rules, changes);
    }
    plan.refused.extend(drop_chains(&mut lines, &after, &dropped));
    if !lines.is_empty() {
        plan.script = format!("*{}\n{lines}COMMIT\n", table.name());
    }
    plan
}

/// Changes of one built-in chain.
#[derive(Default)]
struct BuiltinChanges<'a> {
    jumps: BTreeMap<&'a str, Option<&'a Rules>>,
    leftovers: Vec<&'a Rule>,
}

/// `:CHAIN - [0:0]` and `-A CHAIN RULE`; the names first, because rules may jump to any of them.
fn fill(lines: &mut String, chains: &[(&str, &Rules)]) {
    for (chain, _) in chains {
        say(lines, format_args!(":{chain} - [0:0]"));
    }
    for (chain, rules) in chains {
        for rule in &rules.0 {
            say(lines, format_args!("-A {chain} {rule}"));
        }
    }
}

fn edit(lines: &mut String, place: Place<'_>, rules: &mut Vec<Rule>, changes: &BuiltinChanges<'_>) {
    let from = place.chain;
    for rule in &changes.leftovers {
        while delete_first(rules, rule) {
            say(lines, format_args!("-D {from} {rule}"));
        }
    }
    for edit in place.arrange(rules, &changes.jumps) {
        match edit {
            Edit::Delete(rule) => say(lines, format_args!("-D {from} {rule}")),
            Edit::Insert(before, rule) => say(lines, format_args!("-I {from} {} {rule}", before + 1)),
        }
    }
}

/// Reason for which a chain stays.
pub(super) const HELD: &str = "a rule that is not ours still jumps to this chain, or to one that does";

/// `:CHAIN - [0:0]`, which empties it, and `-X CHAIN`. Returns the steps whose chains must stay because
/// somebody else jumps to them: the deletion would fail, and everything else with it.
fn drop_chains(lines: &mut String, current: &SavedTable, dropped: &[(usize, &str)]) -> Vec<(usize, &'static str)> {
    if dropped.is_empty() {
        return Vec::new();
    }
    let mut leaving: BTreeSet<&str> = dropped.iter().map(|(_, chain)| *chain).collect();
    // What a chain that stays jumps to stays, too.
    let mut held: BTreeSet<&str> = BTreeSet::new();
    let mut staying: Vec<&str> =
        current.chains.keys().map(CompactString::as_str).filter(|name| !leaving.contains(name)).collect();
    while let Some(chain) = staying.pop() {
        let rules = current.chains.get(chain).into_iter().flat_map(|chain| &chain.rules);
        let targets = rules.filter_map(Rule::chain).map(CompactString::as_str);
        staying.extend(targets.filter(|target| leaving.contains(target) && held.insert(target)));
    }
    leaving.retain(|chain| current.chains.contains_key(*chain) && !held.contains(chain));
    for chain in &leaving {
        say(lines, format_args!(":{chain} - [0:0]"));
    }
    for chain in &leaving {
        say(lines, format_args!("-X {chain}"));
    }
    dropped.iter().filter(|(_, chain)| held.contains(chain)).map(|(step, _)| (*step, HELD)).collect()
}

fn say(lines: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(lines, "{line}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests;
