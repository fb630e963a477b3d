//! Things that several may claim: an address in a set, a neighbour, a service's address.
//!
//! A thing is there while anybody claims it, and it is as the first of its claimants says, in their order. Who came first in
//! time has no part in it.

use std::collections::{BTreeMap, BTreeSet};

/// All claims, by what is claimed and by who claims it.
#[derive(Clone, Debug)]
pub struct Claims<K, O, V> {
    claims: BTreeMap<K, BTreeMap<O, V>>,
    /// What more than one claims.
    contested: BTreeSet<K>,
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Claims { claims: BTreeMap::new(), contested: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, O: Ord + Clone, V: PartialEq + Clone> Claims<K, O, V> {
    /// Sets or takes back one claim. True if that changed what the thing is, or whether it is there.
    pub fn put(&mut self, key: &K, owner: &O, value: Option<V>) -> bool {
        let before = self.first(key).cloned();
        match value {
            Some(value) => {
                self.claims.entry(key.clone()).or_default().insert(owner.clone(), value);
            }
            None => {
                let Some(claims) = self.claims.get_mut(key) else { return false };
                claims.remove(owner);
                if claims.is_empty() {
                    self.claims.remove(key);
                }
            }
        }
        if self.owners(key).nth(1).is_some() {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(key);
        }
        self.first(key) != before.as_ref()
    }

    /// What more than one claims, and who does, in their order.
    pub fn contested(&self) -> impl Iterator<Item = (&K, Vec<&O>)> {
        self.contested.iter().map(|key| (key, self.owners(key).collect()))
    }

    /// What a thing is; `None` when nobody claims it.
    pub fn first(&self, key: &K) -> Option<&V> {
        self.claims.get(key)?.values().next()
    }

    /// Who claims a thing, in their order.
    pub fn owners(&self, key: &K) -> impl Iterator<Item = &O> {
        self.claims.get(key).into_iter().flat_map(BTreeMap::keys)
    }

    /// All things that are claimed.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.claims.keys()
    }

    pub fn len(&self) -> usize {
        self.claims.len()
    }

    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    pub fn contains(&self, key: &K) -> bool {
        self.claims.contains_key(key)
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
}
