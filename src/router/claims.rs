//! Keys that several owners may claim: an address in a set, a neighbour, a service address.
//!
//! A key exists while anybody claims it, and its value is that of the first claimant, in the claimants' own order
//! ([`model::Claims`](crate::model::Claims)).

use std::cmp::Ordering;

use crate::model::{self, Claim};
use crate::packed::BlockMap;

/// All claims, by key and by claimant.
#[derive(Clone, Debug)]
pub struct Claims<K, O, V>(model::Claims<K, By<O, V>, First<K, O, V>>);

/// The first claim to each key.
type First<K, O, V> = BlockMap<K, By<O, V>>;

/// The value that one claimant gives a key.
#[derive(Clone, Debug)]
struct By<O, V> {
    owner: O,
    value: V,
}

impl<O: Ord, V> Claim for By<O, V> {
    type Claimant = O;

    fn claimant(&self) -> &O {
        &self.owner
    }

    fn order(&self, other: &By<O, V>) -> Ordering {
        self.owner.cmp(&other.owner)
    }
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Claims(model::Claims::default())
    }
}

impl<K: Ord + Clone, O: Ord + Clone, V: PartialEq + Clone> Claims<K, O, V> {
    /// Sets or removes one claim. Returns whether that changed the key's value or existence.
    pub fn put(&mut self, key: &K, owner: &O, value: Option<V>) -> bool {
        let before = self.0.put(key, owner, value.map(|value| By { owner: owner.clone(), value }));
        self.first(key) != before.as_ref().map(|before| &before.value)
    }

    /// Replaces the claim of an owner, whose place among the owners may be another one now. Returns whether that changed the key's value or
    /// existence.
    pub fn replace(&mut self, key: &K, old: Option<(O, V)>, new: Option<(O, V)>) -> bool {
        let before = self.first(key).cloned();
        if let Some((owner, _)) = old.filter(|(owner, _)| new.as_ref().is_none_or(|(new, _)| new != owner)) {
            self.put(key, &owner, None);
        }
        if let Some((owner, value)) = new {
            self.put(key, &owner, Some(value));
        }
        self.first(key) != before.as_ref()
    }

    /// Returns the keys with more than one claimant, with their claimants in order.
    pub fn contested(&self) -> impl Iterator<Item = (&K, Vec<&O>)> {
        self.0.contested().map(|(key, all)| (key, all.iter().map(|by| &by.owner).collect()))
    }

    /// Returns the value of a key; `None` if nobody claims it.
    pub fn first(&self, key: &K) -> Option<&V> {
        self.0.first(key).map(|by| &by.value)
    }

    /// Returns the claimants of a key, in order.
    pub fn owners(&self, key: &K) -> impl Iterator<Item = &O> {
        self.0.of(key).iter().map(|by| &by.owner)
    }

    /// Returns all claimed keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.all().keys()
    }

    /// Returns the keys between two, both included.
    pub fn within(&self, first: K, last: K) -> impl Iterator<Item = &K> {
        self.0.all().range(first..=last).map(|(key, _)| key)
    }

    /// Packs the claims, of which a World brings many in order.
    pub fn pack(&mut self) {
        self.0.store().pack();
    }

    pub fn len(&self) -> usize {
        self.0.all().len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.all().is_empty()
    }

    pub fn contains(&self, key: &K) -> bool {
        self.0.first(key).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_as_the_first_of_its_claimants_says_and_there_while_anybody_claims_it() {
        let mut claims: Claims<&str, u8, char> = Claims::default();
        assert!(claims.put(&"x", &2, Some('b')));
        assert!(claims.put(&"x", &1, Some('a')), "the first one decides");
        assert!(!claims.put(&"x", &3, Some('c')));
        assert_eq!((claims.first(&"x"), claims.owners(&"x").count()), (Some(&'a'), 3));
        assert_eq!(claims.contested().collect::<Vec<_>>(), [(&"x", vec![&1, &2, &3])]);
        assert!(claims.put(&"x", &1, None));
        assert!(!claims.put(&"x", &3, None));
        assert_eq!((claims.first(&"x"), claims.contested().count()), (Some(&'b'), 0));
        assert!(claims.put(&"x", &2, None));
        assert!(!claims.put(&"x", &2, None));
        assert!(claims.is_empty());
    }

    #[test]
    fn who_claims_a_thing_next_changes_nothing_where_both_say_the_same() {
        let mut claims: Claims<&str, u8, char> = Claims::default();
        assert!(claims.put(&"x", &1, Some('a')));
        assert!(!claims.put(&"x", &2, Some('a')));
        assert!(!claims.put(&"x", &1, None), "the other one says so too");
    }
}
