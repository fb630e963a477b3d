//! The pieces of a rule set: chains, the jumps to them, and kube-router's leftovers, each with its rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use compact_str::CompactString;

use super::rule::{Mark, Match, Rule, Verdict};
use crate::net::Family;

/// The tables in use, in the order in which a restore file names them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    Filter,
    Nat,
    Mangle,
}

/// Something of ours in the tables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Piece {
    /// A chain of ours. Sorted before the jumps, which need it.
    Chain { family: Family, table: Table, chain: CompactString },
    /// A rule of ours in a built-in chain (`INPUT`, `POSTROUTING`, …) that jumps to a chain of ours, or several that do. Its place
    /// among other jumps of ours is fixed by one list in `slots`; foreign rules keep their places. A jump
    /// that is not in its place reads as no rules at all.
    Jump { family: Family, table: Table, from: CompactString, to: CompactString },
    /// A rule that kube-router left in a built-in chain. It is never desired, so taking over removes it.
    Leftover { family: Family, table: Table, from: CompactString, rule: Rule },
}

/// The rules of a chain, or those that jump from one place to another chain: one for each port, say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// Returns the growing half of a change to `want`. A chain whose rules mark packets by their destinations, after one mark for all, keeps the marks of
    /// packets that the new one does not name, unless it gives these marks to others: they may be those of a Service that is not known yet. A chain that takes single
    /// marks away goes on to take all of them.
    pub fn grown(&self, want: &Rules) -> Rules {
        let takes_away = |rule: &Rule| {
            let of_one = matches!(rule.matches(), [Match::Mark { negated: false, .. }]);
            of_one && matches!(rule.verdict(), Some(Verdict::SetMark(Mark { value: 0, .. })))
        };
        if !want.0.is_empty() && self.0.iter().chain(&want.0).all(takes_away) {
            let all: BTreeSet<&Rule> = self.0.iter().chain(&want.0).collect();
            return Rules(all.into_iter().cloned().collect());
        }
        let marks = |rule: &Rule| matches!(rule.verdict(), Some(Verdict::SetMark(_)));
        let is_to = |rule: &Rule| rule.matches().iter().any(|one| matches!(one, Match::Destination { .. }));
        let is_marking = |rules: &Rules| match rules.0.split_first() {
            Some((of_all, of_some)) => {
                marks(of_all) && of_all.matches().is_empty() && of_some.iter().all(|rule| marks(rule) && is_to(rule))
            }
            None => false,
        };
        let wanted: BTreeMap<&[Match], &Rule> = want.0.iter().map(|rule| (rule.matches(), rule)).collect();
        let is_named = |rule: &&Rule| wanted.contains_key(rule.matches());
        if !is_marking(self) || !is_marking(want) || self.0.iter().all(|rule| is_named(&rule)) {
            return want.clone();
        }
        let held: BTreeSet<&[Match]> = self.0.iter().map(Rule::matches).collect();
        let taken: BTreeSet<Option<&Verdict>> = want.0.iter().map(Rule::verdict).collect();
        let kept = self.0.iter().filter(|rule| is_named(rule) || !taken.contains(&rule.verdict()));
        let kept = kept.map(|rule| wanted.get(rule.matches()).copied().unwrap_or(rule));
        let new = want.0.iter().filter(|rule| !held.contains(rule.matches()));
        let mut all: Vec<Rule> = kept.chain(new).cloned().collect();
        // The mark of all packets comes before those of some.
        all.sort_by_key(|rule| !rule.matches().is_empty());
        Rules(all)
    }
}

impl Table {
    pub const ALL: [Table; 3] = [Table::Filter, Table::Nat, Table::Mangle];

    pub fn name(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
            Table::Mangle => "mangle",
        }
    }
}

impl Piece {
    pub fn family(&self) -> Family {
        match self {
            Piece::Chain { family, .. } | Piece::Jump { family, .. } | Piece::Leftover { family, .. } => *family,
        }
    }

    pub fn table(&self) -> Table {
        match self {
            Piece::Chain { table, .. } | Piece::Jump { table, .. } | Piece::Leftover { table, .. } => *table,
        }
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Piece::Chain { family, table, chain } => write!(f, "{family} {} {chain}", table.name()),
            Piece::Jump { family, table, from, to } => write!(f, "{family} {} {from} to {to}", table.name()),
            Piece::Leftover { family, table, from, rule } => write!(f, "{family} {} {from} {rule}", table.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_takes_marks_away_takes_those_of_unknown_services_too_while_it_grows() {
        let taking = |marks: &[u32]| {
            let rule = |mark: &u32| Rule::from(format!("-m mark --mark {mark:#x} -j MARK --set-xmark 0x0/0xffffffff"));
            Rules(marks.iter().map(rule).collect())
        };
        assert_eq!(taking(&[3, 9]).grown(&taking(&[5])), taking(&[3, 5, 9]));
        assert_eq!(taking(&[]).grown(&taking(&[5])), taking(&[5]));
        let other = Rules(vec!["-j RETURN".into()]);
        assert_eq!((taking(&[3]).grown(&other), other.grown(&taking(&[3]))), (other.clone(), taking(&[3])));
    }

    /// Rules that give these marks to packets to these addresses, and first of all one to all packets.
    fn marking(given: &[(u8, u32)]) -> Rules {
        let mark = |value| Verdict::SetMark(Mark { value, mask: u32::MAX });
        let to =
            |host: u8| Match::Destination { range: Family::host_prefix([203, 0, 113, host].into()), negated: false };
        let of_some = given.iter().map(|(host, value)| Rule::new([to(*host)], mark(*value)));
        Rules([Rule::new([], mark(9))].into_iter().chain(of_some).collect())
    }

    #[test]
    fn a_chain_of_marks_keeps_those_of_others_until_it_shrinks_and_gives_no_mark_twice() {
        for (have, want, expected) in [
            (&[(1, 11)][..], &[(1, 11), (2, 12)][..], &[(1, 11), (2, 12)][..]),
            (&[(1, 11), (2, 12), (3, 13)], &[(1, 11), (3, 13)], &[(1, 11), (2, 12), (3, 13)]),
            (&[(1, 11), (2, 12)], &[(3, 13), (2, 22)], &[(1, 11), (2, 22), (3, 13)]),
            (&[(1, 11)], &[(2, 11)], &[(2, 11)]),
            (&[(1, 11), (2, 12)], &[(1, 12), (2, 13)], &[(1, 12), (2, 13)]),
        ] {
            let (have, want, expected) = (marking(have), marking(want), marking(expected));
            assert_eq!(have.grown(&want), expected);
            assert_eq!(expected.grown(&want), expected, "it has grown");
        }
        let others = Rules(vec![Rule::new([], Verdict::Accept)]);
        assert_eq!((marking(&[]).grown(&others), others.grown(&marking(&[]))), (others.clone(), marking(&[])));
        // Chains of others, whose rules mark too.
        let from = |host: u8| Match::Source { range: Family::host_prefix([203, 0, 113, host].into()), negated: false };
        let mark = |host, value| Rule::new([from(host)], Verdict::SetMark(Mark { value, mask: u32::MAX }));
        for have in [vec![mark(1, 1), mark(2, 2)], vec![mark(1, 1)], Vec::new()] {
            let want = Rules(vec![mark(3, 3)]);
            assert_eq!(Rules(have).grown(&want), want);
        }
        assert_eq!(marking(&[(1, 11)]).grown(&Rules(Vec::new())), Rules(Vec::new()));
    }
}
