//! The form in which a mirror keeps the last seen state.
//!
//! Most kinds keep a map of their own. A kind of which there may be hundreds of thousands shares the memory of what is desired
//! ([`BlockMap`]).

use std::collections::BTreeMap;

use crate::packed::{BlockMap, PackedMap};
use crate::reconcile::sorted::Sorted;

/// The last seen state of a kind.
pub trait Kept<K, V>: From<BTreeMap<K, V>> + FromIterator<(K, V)> + Extend<(K, V)> {
    /// The form of what is desired and of what was seen.
    type Form: Sorted<K, V>;

    fn form(&self) -> &Self::Form;
    fn set(&mut self, key: K, value: V);
    fn drop_key(&mut self, key: &K);
    fn into_keys(self) -> impl Iterator<Item = K>;
    fn pack(&mut self);

    /// Shares the memory of an equal map, if this form can.
    fn share(&mut self, _want: &Self::Form) {}
}

impl<K: Ord, V> Kept<K, V> for PackedMap<K, V> {
    type Form = BTreeMap<K, V>;

    fn form(&self) -> &BTreeMap<K, V> {
        self
    }

    fn set(&mut self, key: K, value: V) {
        self.insert(key, value);
    }

    fn drop_key(&mut self, key: &K) {
        self.remove(key);
    }

    fn into_keys(self) -> impl Iterator<Item = K> {
        self.into_iter().map(|(key, _)| key)
    }

    fn pack(&mut self) {
        PackedMap::pack(self);
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Kept<K, V> for BlockMap<K, V> {
    type Form = BlockMap<K, V>;

    fn form(&self) -> &BlockMap<K, V> {
        self
    }

    fn set(&mut self, key: K, value: V) {
        self.insert(key, value);
    }

    fn drop_key(&mut self, key: &K) {
        self.remove(key);
    }

    fn into_keys(self) -> impl Iterator<Item = K> {
        let keys: Vec<K> = self.keys().cloned().collect();
        keys.into_iter()
    }

    fn pack(&mut self) {
        BlockMap::pack(self);
    }

    fn share(&mut self, want: &BlockMap<K, V>) {
        BlockMap::share(self, want);
    }
}
