//! The forms in which desired and seen objects are kept, to read.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

use crate::packed::BlockMap;

/// A sorted map to read.
pub trait Sorted<K, V> {
    fn value(&self, key: &K) -> Option<&V>;
    fn entries<'a>(&'a self) -> impl Iterator<Item = (&'a K, &'a V)>
    where
        K: 'a,
        V: 'a;
    fn between<'a>(&'a self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&'a K, &'a V)>
    where
        K: 'a,
        V: 'a;
    fn count(&self) -> usize;
}

impl<K: Ord, V> Sorted<K, V> for BTreeMap<K, V> {
    fn value(&self, key: &K) -> Option<&V> {
        self.get(key)
    }

    fn entries<'a>(&'a self) -> impl Iterator<Item = (&'a K, &'a V)>
    where
        K: 'a,
        V: 'a,
    {
        self.iter()
    }

    fn between<'a>(&'a self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&'a K, &'a V)>
    where
        K: 'a,
        V: 'a,
    {
        self.range(range)
    }

    fn count(&self) -> usize {
        self.len()
    }
}

impl<K: Ord, V> Sorted<K, V> for BlockMap<K, V> {
    fn value(&self, key: &K) -> Option<&V> {
        self.get(key)
    }

    fn entries<'a>(&'a self) -> impl Iterator<Item = (&'a K, &'a V)>
    where
        K: 'a,
        V: 'a,
    {
        self.iter()
    }

    fn between<'a>(&'a self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&'a K, &'a V)>
    where
        K: 'a,
        V: 'a,
    {
        self.range(range)
    }

    fn count(&self) -> usize {
        self.len()
    }
}
