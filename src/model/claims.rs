//! Things that several may claim, and their owners: an address, a virtual service, a neighbour.
//!
//! The rule is the same for all: a thing is there while anybody claims it, and belongs to the first of its claimants in the
//! order that the claims themselves have ([`Claim::order`]). Who came first in time has no part in it, so the order of events
//! never shows. All claims to a thing can be asked for, where not only the first one counts.
//!
//! Nearly every thing has one claimant. So the first claim to each stands in a [`Store`] of the caller's choice, which weighs
//! what a map of claims weighs, and only what is contested has a list.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;

use super::Table;
use crate::packed::BlockMap;

/// A claim to a thing, with the consequences of having it.
pub trait Claim {
    /// Owner of a claim; one claimant has one claim to a thing.
    type Claimant: PartialEq;

    fn claimant(&self) -> &Self::Claimant;

    /// Order of two claims to one thing: the first wins. Claims of different claimants are never equal.
    fn order(&self, other: &Self) -> Ordering;
}

/// Storage of the first claim to each thing.
pub trait Store<K, C> {
    fn get(&self, key: &K) -> Option<&C>;

    /// Puts the first claim to a thing in place; `None`: nobody claims it any more.
    fn set(&mut self, key: &K, claim: Option<C>);
}

/// All claims, by the thing claimed.
#[derive(Clone, Debug)]
pub struct Claims<K, C, S = BTreeMap<K, C>> {
    first: S,
    /// All claims to things with more than one, in their order.
    contested: BTreeMap<K, Vec<C>>,
}

impl<K, C, S: Default> Default for Claims<K, C, S> {
    fn default() -> Self {
        Claims { first: S::default(), contested: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, C: Claim + Clone, S: Store<K, C>> Claims<K, C, S> {
    /// Sets the claim of one claimant to a thing, or withdraws it. Returns the claim that was the first before.
    pub fn put(&mut self, key: &K, claimant: &C::Claimant, claim: Option<C>) -> Option<C> {
        let before = self.first.get(key).cloned();
        let is_its = before.as_ref().is_none_or(|first| first.claimant() == claimant);
        if is_its && !self.contested.contains_key(key) {
            self.first.set(key, claim);
            return before;
        }
        let mut all = self.contested.remove(key).unwrap_or_else(|| before.iter().cloned().collect());
        all.retain(|other| other.claimant() != claimant);
        all.extend(claim);
        all.sort_by(C::order);
        self.first.set(key, all.first().cloned());
        if all.len() > 1 {
            self.contested.insert(key.clone(), all);
        }
        before
    }

    /// Returns the claim that wins a thing; `None` when nobody claims it.
    pub fn first(&self, key: &K) -> Option<&C> {
        self.first.get(key)
    }

    /// All claims to a thing, in their order.
    pub fn of(&self, key: &K) -> &[C] {
        match self.contested.get(key) {
            Some(all) => all,
            None => self.first.get(key).map_or(&[], slice::from_ref),
        }
    }

    /// Returns all claims to a thing with more than one, in their order; none of a thing with one.
    pub fn rivals(&self, key: &K) -> &[C] {
        self.contested.get(key).map_or(&[], Vec::as_slice)
    }

    /// Returns the things with more than one claim, and all claims to each, in their order.
    pub fn contested(&self) -> impl Iterator<Item = (&K, &[C])> {
        self.contested.iter().map(|(key, all)| (key, all.as_slice()))
    }

    /// The first claim to each thing.
    pub fn all(&self) -> &S {
        &self.first
    }

    /// The place of the first claims, to make room in it.
    pub fn store(&mut self) -> &mut S {
        &mut self.first
    }
}

impl<T: Claim> Claim for Arc<T> {
    type Claimant = T::Claimant;

    fn claimant(&self) -> &T::Claimant {
        T::claimant(self)
    }

    fn order(&self, other: &Arc<T>) -> Ordering {
        T::order(self, other)
    }
}

impl<K: Ord + Clone, C> Store<K, C> for BTreeMap<K, C> {
    fn get(&self, key: &K) -> Option<&C> {
        BTreeMap::get(self, key)
    }

    fn set(&mut self, key: &K, claim: Option<C>) {
        match claim {
            Some(claim) => drop(self.insert(key.clone(), claim)),
            None => drop(self.remove(key)),
        }
    }
}

impl<K: Ord + Clone, C: Clone> Store<K, C> for BlockMap<K, C> {
    fn get(&self, key: &K) -> Option<&C> {
        BlockMap::get(self, key)
    }

    fn set(&mut self, key: &K, claim: Option<C>) {
        match claim {
            Some(claim) => drop(self.insert(key.clone(), claim)),
            None => drop(self.remove(key)),
        }
    }
}

/// For first claims that others keep a version of.
impl<K: Ord + Clone, T: PartialEq> Store<K, Arc<T>> for Table<K, T> {
    fn get(&self, key: &K) -> Option<&Arc<T>> {
        Table::get(self, key)
    }

    fn set(&mut self, key: &K, claim: Option<Arc<T>>) {
        match claim {
            Some(claim) => drop(self.insert_shared(key.clone(), claim)),
            None => drop(self.remove(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A claim with a rank, which comes before the claimant's number.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    struct Bid {
        rank: u8,
        who: u8,
    }

    impl Claim for Bid {
        type Claimant = u8;

        fn claimant(&self) -> &u8 {
            &self.who
        }

        fn order(&self, other: &Bid) -> Ordering {
            self.cmp(other)
        }
    }

    proptest! {
        #[test]
        fn whatever_came_before_a_thing_is_its_first_claimants(
            events in proptest::collection::vec((0_u8..3, 0_u8..4, proptest::option::of(0_u8..3)), 0..40),
        ) {
            let mut claims: Claims<u8, Bid> = Claims::default();
            let mut shared: Claims<u8, Arc<Bid>, Table<u8, Bid>> = Claims::default();
            let mut told: BTreeMap<u8, BTreeMap<u8, Bid>> = BTreeMap::new();
            let sorted = |told: &BTreeMap<u8, BTreeMap<u8, Bid>>, thing: u8| {
                let mut all: Vec<Bid> = told.get(&thing).into_iter().flat_map(BTreeMap::values).copied().collect();
                all.sort();
                all
            };
            for (thing, who, rank) in events {
                let bid = rank.map(|rank| Bid { rank, who });
                let before = sorted(&told, thing).first().copied();
                prop_assert_eq!(claims.put(&thing, &who, bid), before);
                prop_assert_eq!(shared.put(&thing, &who, bid.map(Arc::new)).as_deref().copied(), before);
                let bids = told.entry(thing).or_default();
                match bid {
                    Some(bid) => drop(bids.insert(who, bid)),
                    None => drop(bids.remove(&who)),
                }
                for thing in 0..3 {
                    let all = sorted(&told, thing);
                    prop_assert_eq!(claims.of(&thing), &all[..]);
                    prop_assert_eq!(claims.rivals(&thing), if all.len() > 1 { &all[..] } else { &[] });
                    prop_assert_eq!(claims.first(&thing), all.first());
                    prop_assert_eq!(shared.of(&thing).iter().map(|bid| **bid).collect::<Vec<_>>(), all);
                }
                let contested: Vec<u8> = (0..3).filter(|thing| sorted(&told, *thing).len() > 1).collect();
                prop_assert_eq!(claims.contested().map(|(thing, _)| *thing).collect::<Vec<_>>(), contested);
                let claimed: Vec<u8> = (0..3).filter(|thing| !sorted(&told, *thing).is_empty()).collect();
                prop_assert_eq!(claims.all().keys().copied().collect::<Vec<_>>(), claimed, "what nobody claims is gone");
            }
        }
    }
}
