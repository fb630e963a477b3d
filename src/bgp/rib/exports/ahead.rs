//! Our own routes, which neighbours are sent while all others are held back after a restart of ours.
//!
//! RFC 4724 4.1 holds back what the selection of routes decides, until the routes of all neighbours are known. That this node has its pods depends on no
//! neighbour. And whether a neighbour still has what we announced before, nobody tells us: it has not restarted, but it may have given up our routes because we were
//! away for longer than the restart time, or because we restarted again before we had said all. Pods of this node would be out of reach for the whole wait. So our own
//! routes go to everybody at once; who has retained them gets what it has. The end marker follows with the rest, so that nobody drops what was retained and is
//! still to come.
//!
//! What was once sent ahead is kept up to date for every member that has joined since the hold began, also where another one's route takes the place of ours: a walk would
//! not see what is gone when it begins. In turn the walk leaves out what is here, which each of these members has. The set is common to all of them: thousands of neighbours
//! with thousands of addresses of Services each would take much memory.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::super::table::Table;
use super::PerFamily;
use crate::net::Family;

/// Prefixes that are sent ahead, of each address family that is held back, or was when one of the members that are behind has joined.
#[derive(Debug, Default)]
pub(super) struct Ahead(PerFamily<Option<BTreeSet<IpNet>>>);

impl Ahead {
    /// Returns the prefixes that a new member is sent at once, none of which it has.
    pub fn first(&mut self, families: PerFamily<bool>, table: &Table) -> BTreeMap<IpNet, bool> {
        let families = Family::BOTH.into_iter().filter(|family| *families.of(*family));
        let mut first = BTreeMap::new();
        for family in families {
            let prefixes = self.0.of_mut(family).get_or_insert_with(|| table.own(family).collect());
            first.extend(prefixes.iter().map(|prefix| (*prefix, false)));
        }
        first
    }

    /// Takes down which of the changed prefixes of the families that are held back are our own now.
    pub fn note<'a>(&mut self, changed: impl Iterator<Item = &'a IpNet>, held: PerFamily<bool>, table: &Table) {
        if self.0.iter().all(|(family, prefixes)| prefixes.is_none() || !*held.of(family)) {
            return;
        }
        for prefix in changed {
            let family = Family::from(*prefix);
            if let Some(prefixes) = self.0.of_mut(family).as_mut().filter(|_| *held.of(family))
                && table.best(*prefix).is_some_and(|best| best.source.is_local())
            {
                prefixes.insert(*prefix);
            }
        }
    }

    /// Returns whether a prefix is sent ahead to members for which its family was held back when they joined.
    pub fn contains(&self, prefix: IpNet) -> bool {
        self.0.of(Family::from(prefix)).as_ref().is_some_and(|prefixes| prefixes.contains(&prefix))
    }

    /// Returns all of a family to send them once more: the member may have routes to them.
    pub fn again(&self, family: Family) -> impl Iterator<Item = (IpNet, bool)> {
        self.0.of(family).iter().flatten().map(|prefix| (*prefix, true))
    }

    /// Forgets everything, when no member is behind and nothing is held back.
    pub fn end(&mut self) {
        *self = Ahead::default();
    }
}
