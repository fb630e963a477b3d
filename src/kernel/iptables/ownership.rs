//! The chains of one owner, by which a process without memory knows its rules.

use super::{Leftovers, Table};
use crate::kernel::Name;

/// The objects of one owner, in both families.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ownership {
    pub chains: Vec<(Table, Name)>,
    /// The leftovers of kube-router in the tables named above that this owner removes.
    pub leftovers: Leftovers,
}

impl Ownership {
    /// The tables that have to be read.
    pub(super) fn tables(&self) -> impl Iterator<Item = Table> {
        Table::ALL.into_iter().filter(|table| self.chains.iter().any(|(owned, _)| owned == table))
    }

    pub(super) fn owns(&self, table: Table, chain: &str) -> bool {
        self.chains.iter().any(|(owned, name)| *owned == table && name.matches(chain))
    }

    /// As `owns`, for a table by its name.
    pub(super) fn owns_in(&self, table: &str, chain: &str) -> bool {
        self.chains.iter().any(|(owned, name)| owned.name() == table && name.matches(chain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_owned_in_their_table_only() {
        let ours = Ownership {
            chains: vec![
                (Table::Filter, Name::Exact("KUBE-ROUTER-SERVICES".into())),
                (Table::Nat, Name::Prefix("KUBE-NWPLCY-".into())),
            ],
            leftovers: Leftovers::None,
        };
        assert!(ours.owns(Table::Filter, "KUBE-ROUTER-SERVICES"));
        assert!(!ours.owns(Table::Nat, "KUBE-ROUTER-SERVICES"));
        assert!(!ours.owns(Table::Filter, "KUBE-ROUTER-SERVICES-2"));
        assert!(ours.owns(Table::Nat, "KUBE-NWPLCY-A"));
        assert!(ours.owns_in("nat", "KUBE-NWPLCY-A") && !ours.owns_in("mangle", "KUBE-NWPLCY-A"));
        assert_eq!(ours.tables().collect::<Vec<_>>(), [Table::Filter, Table::Nat]);
    }
}
