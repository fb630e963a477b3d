//! A persistent map: cloning shares everything, and two versions compare in time proportional to what
//! differs between them.
//!
//! This is what lets the World be one immutable value and still cost only its changes: a subsystem keeps
//! the version it last saw and asks for the difference to the newest, however many versions it slept
//! through. Measured against copying a sorted map, and against a version number with a list of dirty keys,
//! in `docs/benchmarks.md`.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// A sorted, persistent map. Values are shared between versions.
pub struct Table<K, V> {
    rows: OrdMap<K, Arc<V>>,
}

/// How one row differs between an older and a newer version of a table.
#[derive(Debug)]
pub enum Change<'a, K, V> {
    Added(&'a K, &'a Arc<V>),
    Updated(&'a K, &'a Arc<V>, &'a Arc<V>),
    Removed(&'a K, &'a Arc<V>),
}

impl<'a, K, V> Change<'a, K, V> {
    /// The key of the row.
    pub fn key(&self) -> &'a K {
        match self {
            Change::Added(key, _) | Change::Updated(key, _, _) | Change::Removed(key, _) => key,
        }
    }
}

impl<K: Ord + Clone + Hash, V: PartialEq> Table<K, V> {
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        self.rows.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.rows.iter()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Puts a row in place. Returns false, and keeps the old row, where the new one is equal to it:
    /// an equal row must not look like a change to anybody.
    pub fn insert(&mut self, key: K, value: V) -> bool {
        self.insert_shared(key, Arc::new(value))
    }

    /// Like `insert`, for a value that others hold too.
    pub fn insert_shared(&mut self, key: K, value: Arc<V>) -> bool {
        if self.rows.get(&key).is_some_and(|old| Arc::ptr_eq(old, &value) || **old == *value) {
            return false;
        }
        self.rows.insert(key, value);
        true
    }

    pub fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        self.rows.remove(key)
    }

    /// What became of `older` on the way to this version. Shared parts are skipped unread.
    pub fn changes_since<'a>(&'a self, older: &'a Table<K, V>) -> impl Iterator<Item = Change<'a, K, V>> {
        older.rows.diff(&self.rows).map(|item| match item {
            DiffItem::Add(key, value) => Change::Added(key, value),
            DiffItem::Update { old: (key, old), new: (_, new) } => Change::Updated(key, old, new),
            DiffItem::Remove(key, value) => Change::Removed(key, value),
        })
    }
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Table { rows: self.rows.clone() }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { rows: OrdMap::new() }
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.rows.iter()).finish()
    }
}
