//! The pieces of a rule set: chains, the jumps to them, and kube-router's leftovers, each with its rules.

use std::fmt;

use compact_str::CompactString;

use super::rule::Rule;
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
    /// A rule of ours in a built-in chain (`INPUT`, `POSTROUTING`, …) that jumps to a chain of ours. Its place
    /// among other jumps of ours is fixed by one list in `slots`; foreign rules keep their places. A jump
    /// that is not in its place reads as no rules at all.
    Jump { family: Family, table: Table, from: CompactString, to: CompactString },
    /// A rule that kube-router left in a built-in chain. It is never desired, so taking over removes it.
    Leftover { family: Family, table: Table, from: CompactString, rule: Rule },
}

/// The rules of a chain, or the one rule that is a jump.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules(pub Vec<Rule>);

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
