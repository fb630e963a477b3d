//! What `iptables-restore` is told, for one table.
//!
//! A chain that is wanted is named, which empties it or makes it, and filled; all in one transaction, so no packet
//! meets it half full. Rules in built-in chains are deleted by their text, which stays true when somebody else
//! inserts a rule meanwhile, and inserted by number. A chain that goes is emptied first, so that chains that
//! jump to each other can go together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use compact_str::CompactString;

use super::save::{SavedTable, target};
use super::slots::{Edit, Place, delete_first};
use super::{Piece, Rules, Table};

/// A step, without what was seen: that is read anew where it matters.
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

/// Whether this change depends on what else the table holds.
pub(super) fn depends_on_table(change: &Change<'_>) -> bool {
    !matches!((change.piece, change.want), (Piece::Chain { .. }, Some(_)))
}

/// The lines that perform these changes, all of this table, on a table that holds `current`.
pub(super) fn plan(table: Table, current: &SavedTable, changes: &[Change<'_>]) -> Plan {
    let mut plan = Plan::default();
    let mut lines = String::new();
    let mut filled: Vec<(&str, &Rules)> = Vec::new();
    let mut dropped: Vec<(usize, &str)> = Vec::new();
    let mut builtin: BTreeMap<&str, BuiltinChanges<'_>> = BTreeMap::new();
    for change in changes {
        if change.want.is_some_and(|rules| rules.0.iter().any(|rule| rule.contains(['\n', '\0']))) {
            plan.refused.push((change.step, "a rule with a line break"));
            continue;
        }
        match (change.piece, change.want) {
            (Piece::Chain { chain, .. }, Some(rules)) => filled.push((chain, rules)),
            (Piece::Chain { chain, .. }, None) => dropped.push((change.step, chain)),
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

/// What changes in one built-in chain.
#[derive(Default)]
struct BuiltinChanges<'a> {
    jumps: BTreeMap<&'a str, Option<&'a Rules>>,
    leftovers: Vec<&'a CompactString>,
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

fn edit(lines: &mut String, place: Place<'_>, rules: &mut Vec<CompactString>, changes: &BuiltinChanges<'_>) {
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

/// `:CHAIN - [0:0]`, which empties it, and `-X CHAIN`. Returns the steps whose chains must stay because
/// somebody else jumps to them: the deletion would fail, and everything else with it.
fn drop_chains(lines: &mut String, current: &SavedTable, dropped: &[(usize, &str)]) -> Vec<(usize, &'static str)> {
    if dropped.is_empty() {
        return Vec::new();
    }
    let mut leaving: BTreeSet<&str> = dropped.iter().map(|(_, chain)| *chain).collect();
    let held: BTreeSet<CompactString> = current
        .chains
        .iter()
        .filter(|(name, _)| !leaving.contains(name.as_str()))
        .flat_map(|(_, chain)| &chain.rules)
        .filter_map(|rule| target(rule))
        .collect();
    leaving.retain(|chain| current.chains.contains_key(*chain) && !held.contains(*chain));
    for chain in &leaving {
        say(lines, format_args!(":{chain} - [0:0]"));
    }
    for chain in &leaving {
        say(lines, format_args!("-X {chain}"));
    }
    dropped
        .iter()
        .filter(|(_, chain)| held.contains(*chain))
        .map(|(step, _)| (*step, "a rule that is not ours still jumps to this chain"))
        .collect()
}

fn say(lines: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(lines, "{line}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::iptables::save;
    use crate::net::Family;

    fn chain(name: &str) -> Piece {
        Piece::Chain { family: Family::V4, table: Table::Filter, chain: name.into() }
    }

    fn jump(to: &str) -> Piece {
        Piece::Jump { family: Family::V4, table: Table::Filter, from: "INPUT".into(), to: to.into() }
    }

    fn rules(texts: &[&str]) -> Rules {
        Rules(texts.iter().map(|text| CompactString::from(*text)).collect())
    }

    fn planned(current: &str, changes: &[(Piece, Option<Rules>)]) -> Plan {
        let saved = save::parse(current).expect("it is well formed");
        let nothing = SavedTable::default();
        let changes: Vec<Change<'_>> = changes
            .iter()
            .enumerate()
            .map(|(step, (piece, want))| Change { step, piece, want: want.as_ref() })
            .collect();
        plan(Table::Filter, saved.get("filter").unwrap_or(&nothing), &changes)
    }

    #[test]
    fn chains_are_named_before_any_rule_and_jumps_come_last() {
        let changes = [
            (chain("KUBE-ROUTER-SERVICES"), Some(rules(&["-j A"]))),
            (chain("A"), Some(rules(&["-j ACCEPT", "-j DROP"]))),
            (jump("KUBE-ROUTER-SERVICES"), Some(rules(&["-j KUBE-ROUTER-SERVICES"]))),
        ];
        let plan = planned("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j KUBE-ROUTER-INPUT\nCOMMIT\n", &changes);
        let script = "*filter
:KUBE-ROUTER-SERVICES - [0:0]
:A - [0:0]
-A KUBE-ROUTER-SERVICES -j A
-A A -j ACCEPT
-A A -j DROP
-I INPUT 2 -j KUBE-ROUTER-SERVICES
COMMIT
";
        assert_eq!(plan.script, script);
        assert!(plan.refused.is_empty());
    }

    #[test]
    fn a_chain_that_is_still_jumped_to_stays_and_the_others_go() {
        let current = "*filter\n:INPUT ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n:FOREIGN - [0:0]\n\
            -A INPUT -j B\n-A INPUT -j A\n-A B -j A\n-A FOREIGN -j B\nCOMMIT\n";
        let all = [(chain("A"), None), (chain("B"), None), (jump("A"), None), (jump("B"), None)];
        let plan = planned(current, &all);
        assert_eq!(plan.script, "*filter\n-D INPUT -j A\n-D INPUT -j B\n:A - [0:0]\n-X A\nCOMMIT\n");
        assert_eq!(plan.refused.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn what_is_gone_already_needs_no_lines() {
        let plan = planned("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", &[(chain("A"), None), (jump("A"), None)]);
        assert!(plan.script.is_empty() && plan.refused.is_empty(), "{plan:?}");
    }

    #[test]
    fn a_rule_cannot_smuggle_in_another_line() {
        let changes = [(chain("A"), Some(rules(&["-j DROP\n-I INPUT -j ACCEPT"]))), (chain("B"), Some(rules(&[])))];
        let plan = planned("", &changes);
        assert_eq!(plan.script, "*filter\n:B - [0:0]\nCOMMIT\n");
        assert_eq!(plan.refused.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn every_copy_of_a_leftover_goes() {
        let rule = "-m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment \"\" -j MASQUERADE";
        let current =
            format!("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT {rule}\n-A INPUT -j ACCEPT\n-A INPUT {rule}\nCOMMIT\n");
        let piece =
            Piece::Leftover { family: Family::V4, table: Table::Filter, from: "INPUT".into(), rule: rule.into() };
        let plan = planned(&current, &[(piece, None)]);
        assert_eq!(plan.script, format!("*filter\n-D INPUT {rule}\n-D INPUT {rule}\nCOMMIT\n"));
    }
}
