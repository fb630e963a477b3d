//! Sums of refused packets by policy and direction, from counters of the kernel that begin anew.
//!
//! A packet counts for each policy that owns the counter. Counters are the kernel's: one that is made anew, with its chain or its
//! class, begins at zero, and what it counted before stays in the sum. What a counter counts between its last reading and its end
//! is lost.
//!
//! What is dropped on bridges, for addresses that no policy can name, belongs to no policy and counts by its reason.

use std::collections::{BTreeMap, BTreeSet};

use super::backend::Owner;

/// Sums of refused packets. `C` names a counter.
pub struct DropSums<C> {
    /// Last reading of each counter.
    last: BTreeMap<C, u64>,
    sums: BTreeMap<Owner, u64>,
    on_bridges: BTreeMap<&'static str, u64>,
}

/// Beneficiaries of a counter.
pub enum CountsFor<'a> {
    Owners(&'a [Owner]),
    /// Packets dropped on bridges, by this reason.
    Reason(&'static str),
}

impl<C: Ord> DropSums<C> {
    /// Starts without any packet dropped on bridges for these reasons.
    pub fn new(reasons: impl IntoIterator<Item = &'static str>) -> DropSums<C> {
        let on_bridges = reasons.into_iter().map(|reason| (reason, 0)).collect();
        DropSums { last: BTreeMap::new(), sums: BTreeMap::new(), on_bridges }
    }

    /// Gives these policies a sum, even if it is zero.
    pub fn begin<'a>(&mut self, owners: impl IntoIterator<Item = &'a Owner>) {
        for owner in owners {
            self.sums.entry(owner.clone()).or_default();
        }
    }

    /// Adds a reading of the kernel's counters. `is_read`: which counters it is about; the others go on where they were.
    pub fn add<'a>(
        &mut self,
        counted: BTreeMap<C, u64>,
        is_read: impl Fn(&C) -> bool,
        counts_for: impl Fn(&C) -> CountsFor<'a>,
    ) {
        for (counter, packets) in &counted {
            // A counter that decreased was made anew.
            let before = self.last.get(counter).copied().filter(|before| before <= packets).unwrap_or_default();
            match counts_for(counter) {
                CountsFor::Owners(owners) => {
                    for owner in owners {
                        *self.sums.entry(owner.clone()).or_default() += packets - before;
                    }
                }
                CountsFor::Reason(reason) => *self.on_bridges.entry(reason).or_default() += packets - before,
            }
        }
        self.last.retain(|counter, _| !is_read(counter));
        self.last.extend(counted);
    }

    /// Sets the sum of packets dropped on bridges for this reason, where another counter tells it.
    pub fn set_on_bridges(&mut self, reason: &'static str, packets: u64) {
        self.on_bridges.insert(reason, packets);
    }

    /// Returns the packets dropped on bridges, by the reason.
    pub fn on_bridges(&self) -> &BTreeMap<&'static str, u64> {
        &self.on_bridges
    }

    /// Returns the refused packets of each policy and direction.
    pub fn sums(&self) -> &BTreeMap<Owner, u64> {
        &self.sums
    }

    /// Removes the sums of all other policies, which own no counter any more.
    pub fn forget_others<'a>(&mut self, owners: impl IntoIterator<Item = &'a Owner>) {
        let named: BTreeSet<&Owner> = owners.into_iter().collect();
        self.sums.retain(|owner, _| named.contains(owner));
    }
}
