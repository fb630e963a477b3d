//! Ordered maps that can be packed.
//!
//! A `BTreeMap` whose keys come in order, one by one, leaves each node half empty behind it; one that is built at once has full
//! nodes. With 100,000 routes that is half of what they weigh. Building costs what the map holds, so it is for a quiet moment:
//! whoever owns the map calls [`PackedMap::pack`] then.

mod blocks;
mod prefixes;

use std::collections::BTreeMap;
use std::collections::btree_map::IntoIter;
use std::mem;
use std::ops::Deref;

pub use blocks::{BlockMap, Put};
pub use prefixes::PrefixMap;

/// A map that counts what was inserted since it was packed. It reads as the `BTreeMap` that it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackedMap<K, V> {
    map: BTreeMap<K, V>,
    /// Entries that came one by one since the map was built at once.
    loose: usize,
}

/// Loose entries that are worth packing: so many, and one in so many of all.
const FEW: usize = 1024;
const SHARE: usize = 8;

impl<K: Ord, V> PackedMap<K, V> {
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = self.map.insert(key, value);
        self.loose += usize::from(before.is_none());
        before
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.map.remove(key)
    }

    /// Builds the map anew if many of its entries came one by one.
    pub fn pack(&mut self) {
        if self.loose >= FEW && self.loose > self.map.len() / SHARE {
            self.map = mem::take(&mut self.map).into_iter().collect();
            self.loose = 0;
        }
    }
}

impl<K, V> Deref for PackedMap<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.map
    }
}

impl<K, V> Default for PackedMap<K, V> {
    fn default() -> Self {
        PackedMap { map: BTreeMap::new(), loose: 0 }
    }
}

impl<K, V> From<BTreeMap<K, V>> for PackedMap<K, V> {
    /// The map may have been filled in any way.
    fn from(map: BTreeMap<K, V>) -> Self {
        PackedMap { loose: map.len(), map }
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for PackedMap<K, V> {
    /// Built at once, which makes full nodes.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        PackedMap { map: entries.into_iter().collect(), loose: 0 }
    }
}

impl<K: Ord, V> Extend<(K, V)> for PackedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        let before = self.map.len();
        self.map.extend(entries);
        self.loose += self.map.len() - before;
    }
}

impl<K, V> IntoIterator for PackedMap<K, V> {
    type Item = (K, V);
    type IntoIter = IntoIter<K, V>;

    fn into_iter(self) -> IntoIter<K, V> {
        self.map.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_built_anew_only_when_many_of_its_entries_came_one_by_one() {
        let mut map = PackedMap::default();
        map.extend((0..10_000).map(|key| (key, key)));
        assert_eq!((map.insert(5, 6), map.loose), (Some(5), 10_000), "a replaced value is no further entry");
        map.pack();
        assert_eq!(map.loose, 0);
        map.extend((10_000..11_000).map(|key| (key, key)));
        map.pack();
        assert_eq!(map.loose, 1000, "so few are not worth it");
        map.extend((11_000..12_000).map(|key| (key, key)));
        map.pack();
        assert_eq!((map.loose, map.len(), map.get(&5)), (0, 12_000, Some(&6)));
        assert!(map.keys().copied().eq(0..12_000));
    }
}
