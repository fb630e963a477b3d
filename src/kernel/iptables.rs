//! iptables: our chains, and the jumps to them from the built-in chains.
//!
//! Kernel: the tables `filter`, `nat` and `mangle` of either flavour (legacy xtables or nf_tables), through the
//! flavour's own `iptables-save` and `iptables-restore --noflush --wait`, one transaction for a family.

use std::fmt;

use compact_str::CompactString;

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
    /// among other jumps of ours is fixed by one list in this file; foreign rules keep their places.
    Jump { family: Family, table: Table, from: CompactString, to: CompactString },
}

/// The rules of a chain, or the one rule that is a jump; each in the canonical form in which `iptables-save`
/// prints it, without the leading `-A CHAIN`: `-p icmp -m icmp --icmp-type 8 -j ACCEPT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules(pub Vec<CompactString>);

/// Which of the two implementations the host uses. Rules written into the other one would stand beside the
/// host's own, and the order between the two is nobody's decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    Legacy,
    NfTables,
}

impl Table {
    pub fn name(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
            Table::Mangle => "mangle",
        }
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Piece::Chain { family, table, chain } => write!(f, "{family} {} {chain}", table.name()),
            Piece::Jump { family, table, from, to } => write!(f, "{family} {} {from} to {to}", table.name()),
        }
    }
}
