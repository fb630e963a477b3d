//! A persistent map: cloning shares everything, and two versions compare in time proportional to what
//! differs between them.
//!
//! This is what lets the World be one immutable value and still cost only its changes: a subsystem keeps
//! the version it last saw and asks for the difference to the newest, however many versions it slept
//! through. Measured against other structures by `cargo bench --bench world`; figures in
//! `docs/benchmarks.md`.
//!
//! Shape: rows sorted by key, cut into blocks of at most [`BLOCK`] rows, each block shared between versions
//! until it changes. A change copies one block and the list of blocks (one pointer for some fifty rows), and
//! only the first change after a clone does: later ones find both unshared. Comparing walks both lists of
//! blocks and steps over what is the same block in both.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A sorted, persistent map. Values are shared between versions.
pub struct Table<K, V> {
    /// None is empty, and each ends before the next begins.
    blocks: Arc<Vec<Block<K, V>>>,
    len: usize,
}

/// The difference of one row between an older and a newer version of a table.
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

type Row<K, V> = (K, Arc<V>);
type Block<K, V> = Arc<Vec<Row<K, V>>>;

/// Rows in a block at most. Fewer make the list of blocks longer, which every first change copies; more make
/// the block that it copies larger.
const BLOCK: usize = 64;

/// A block with fewer rows than this is joined with its neighbour where both fit into one.
const SPARSE: usize = BLOCK / 4;

impl<K: Ord + Clone, V: PartialEq> Table<K, V> {
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        let block = self.blocks.get(self.block_of(key)?)?;
        let row = block.binary_search_by(|row| row.0.cmp(key)).ok()?;
        block.get(row).map(|row| &row.1)
    }

    /// Returns the key of a row as it stands in the table, with which a copy shares memory.
    pub fn key(&self, key: &K) -> Option<&K> {
        let block = self.blocks.get(self.block_of(key)?)?;
        let row = block.binary_search_by(|row| row.0.cmp(key)).ok()?;
        block.get(row).map(|row| &row.0)
    }

    /// All rows, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.blocks.iter().flat_map(|block| block.iter()).map(|row| (&row.0, &row.1))
    }

    /// The rows from this key on, sorted by key.
    pub fn iter_from<'a>(&'a self, first: &K) -> impl Iterator<Item = (&'a K, &'a Arc<V>)> + use<'a, K, V> {
        let at = self.block_of(first).unwrap_or(0);
        let blocks = self.blocks.get(at..).unwrap_or_default();
        let row = blocks.first().map_or(0, |block| block.partition_point(|row| row.0 < *first));
        blocks.iter().flat_map(|block| block.iter()).skip(row).map(|row| (&row.0, &row.1))
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a row in place. Returns false, and keeps the old row, where the new one is equal to it:
    /// an equal row must not look like a change to anybody.
    pub fn insert(&mut self, key: K, value: V) -> bool {
        self.insert_shared(key, Arc::new(value))
    }

    /// Like `insert`, for a value that others hold too.
    pub fn insert_shared(&mut self, key: K, value: Arc<V>) -> bool {
        let at = self.block_of(&key).unwrap_or(0);
        let place = self.blocks.get(at).map_or(Err(0), |block| block.binary_search_by(|row| row.0.cmp(&key)));
        let old = place.ok().and_then(|row| self.blocks.get(at)?.get(row)).map(|row| &row.1);
        if old.is_some_and(|old| Arc::ptr_eq(old, &value) || **old == *value) {
            return false;
        }
        let blocks = Arc::make_mut(&mut self.blocks);
        let Some(block) = blocks.get_mut(at) else {
            blocks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return true;
        };
        let rows = Arc::make_mut(block);
        match place {
            Ok(row) => rows.splice(row..=row, [(key, value)]).for_each(drop),
            Err(row) => {
                rows.insert(row, (key, value));
                self.len += 1;
            }
        }
        if rows.len() > BLOCK {
            // A block that grows at its end is being filled in order, and is left full behind.
            let half = if at + 1 == blocks.len() { BLOCK } else { BLOCK / 2 };
            split(blocks, at, half);
        }
        true
    }

    pub fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        let at = self.block_of(key)?;
        let row = self.blocks.get(at)?.binary_search_by(|row| row.0.cmp(key)).ok()?;
        let blocks = Arc::make_mut(&mut self.blocks);
        let rows = Arc::make_mut(blocks.get_mut(at)?);
        let (_, value) = rows.remove(row);
        self.len -= 1;
        if rows.len() < SPARSE {
            join(blocks, at);
        }
        Some(value)
    }

    /// Returns the changes from `older` to this version, sorted by key. Shared parts are skipped unread.
    pub fn changes_since<'a>(&'a self, older: &'a Table<K, V>) -> impl Iterator<Item = Change<'a, K, V>> {
        let is_same = Arc::ptr_eq(&self.blocks, &older.blocks);
        let blocks = |table: &'a Table<K, V>| if is_same { &[][..] } else { &table.blocks[..] };
        Changes { older: Place { blocks: blocks(older), row: 0 }, newer: Place { blocks: blocks(self), row: 0 } }
    }

    /// The block in which this key is, or belongs: the last that does not begin behind it, else the first.
    fn block_of(&self, key: &K) -> Option<usize> {
        let behind = self.blocks.partition_point(|block| block.first().is_some_and(|row| row.0 <= *key));
        (!self.blocks.is_empty()).then(|| behind.saturating_sub(1))
    }
}

fn split<K: Clone, V>(blocks: &mut Vec<Block<K, V>>, at: usize, keep: usize) {
    let Some(rows) = blocks.get_mut(at).map(Arc::make_mut) else { return };
    let rest = rows.split_off(keep);
    rows.shrink_to_fit();
    blocks.insert(at + 1, Arc::new(rest));
}

/// Joins a sparse block with a neighbour, or drops it where it is empty.
fn join<K: Clone, V>(blocks: &mut Vec<Block<K, V>>, at: usize) {
    let len = |at: usize| blocks.get(at).map(|block| block.len());
    let fits = |first: usize| matches!((len(first), len(first + 1)), (Some(a), Some(b)) if a + b <= BLOCK);
    let first = match at.checked_sub(1).filter(|before| fits(*before)) {
        Some(before) => before,
        None if fits(at) => at,
        None => {
            if len(at) == Some(0) {
                blocks.remove(at);
            }
            return;
        }
    };
    let second = blocks.remove(first + 1);
    if let Some(rows) = blocks.get_mut(first).map(Arc::make_mut) {
        rows.extend(second.iter().cloned());
        if rows.is_empty() {
            blocks.remove(first);
        }
    }
}

/// The rows in which two versions differ.
struct Changes<'a, K, V> {
    older: Place<'a, K, V>,
    newer: Place<'a, K, V>,
}

/// A row in what is left of a list of blocks.
struct Place<'a, K, V> {
    blocks: &'a [Block<K, V>],
    row: usize,
}

impl<'a, K, V> Place<'a, K, V> {
    fn row(&self) -> Option<&'a Row<K, V>> {
        self.blocks.first()?.get(self.row)
    }

    fn advance(&mut self) {
        self.row += 1;
        if let Some((block, rest)) = self.blocks.split_first()
            && self.row >= block.len()
        {
            (self.blocks, self.row) = (rest, 0);
        }
    }
}

impl<'a, K: Ord, V: PartialEq> Iterator for Changes<'a, K, V> {
    type Item = Change<'a, K, V>;

    fn next(&mut self) -> Option<Change<'a, K, V>> {
        loop {
            if self.older.row == 0 && self.newer.row == 0 {
                // Nearly all blocks of two versions are the same ones: they are passed over together.
                let both = self.older.blocks.iter().zip(self.newer.blocks);
                let same = both.take_while(|(old, new)| Arc::ptr_eq(old, new)).count();
                self.older.blocks = self.older.blocks.get(same..).unwrap_or_default();
                self.newer.blocks = self.newer.blocks.get(same..).unwrap_or_default();
            }
            let (old, new) = (self.older.row(), self.newer.row());
            let order = match (old, new) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.0.cmp(&new.0),
            };
            if order.is_le() {
                self.older.advance();
            }
            if order.is_ge() {
                self.newer.advance();
            }
            return match (order, old, new) {
                (Ordering::Less, Some((key, value)), _) => Some(Change::Removed(key, value)),
                (Ordering::Greater, _, Some((key, value))) => Some(Change::Added(key, value)),
                (_, Some((_, old)), Some((_, new))) if Arc::ptr_eq(old, new) || old == new => continue,
                (_, Some((_, old)), Some((key, new))) => Some(Change::Updated(key, old, new)),
                _ => None,
            };
        }
    }
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Table { blocks: self.blocks.clone(), len: self.len }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { blocks: Arc::default(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.blocks.iter().flat_map(|block| block.iter()).map(|row| (&row.0, &row.1))).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn check(table: &Table<u16, u8>, model: &BTreeMap<u16, u8>) {
        assert!(table.iter().map(|(key, value)| (*key, **value)).eq(model.iter().map(|(key, value)| (*key, *value))));
        assert_eq!((table.len(), table.is_empty()), (model.len(), model.is_empty()));
        for first in [0, 700, 1999, 3000] {
            let from = table.iter_from(&first).map(|(key, value)| (*key, **value));
            assert!(from.eq(model.range(first..).map(|(key, value)| (*key, *value))), "from {first}");
        }
        assert!(table.blocks.iter().all(|block| !block.is_empty() && block.len() <= BLOCK));
    }

    /// The changes between two models, as a table tells them.
    fn expected(older: &BTreeMap<u16, u8>, newer: &BTreeMap<u16, u8>) -> Vec<(u16, Option<u8>, Option<u8>)> {
        let keys: std::collections::BTreeSet<u16> = older.keys().chain(newer.keys()).copied().collect();
        let rows = keys.into_iter().map(|key| (key, older.get(&key).copied(), newer.get(&key).copied()));
        rows.filter(|(_, old, new)| old != new).collect()
    }

    fn told(older: &Table<u16, u8>, newer: &Table<u16, u8>) -> Vec<(u16, Option<u8>, Option<u8>)> {
        let row = |change| match change {
            Change::Added(key, new) => (*key, None, Some(**new)),
            Change::Updated(key, old, new) => (*key, Some(**old), Some(**new)),
            Change::Removed(key, old) => (*key, Some(**old), None),
        };
        newer.changes_since(older).map(row).collect()
    }

    proptest! {
        #[test]
        fn any_two_versions_differ_as_two_sorted_maps_do(
            start in vec((0..2000u16, 0..3u8), 0..1500),
            rounds in vec(vec((0..2000u16, proptest::option::weighted(0.4, 0..3u8)), 0..300), 1..5),
        ) {
            let mut model = BTreeMap::new();
            let mut table = Table::default();
            for (key, value) in start {
                model.insert(key, value);
                table.insert(key, value);
            }
            let mut versions = vec![(model.clone(), table.clone())];
            for round in rounds {
                for (key, value) in round {
                    match value {
                        Some(value) => {
                            let is_new = model.insert(key, value) != Some(value);
                            prop_assert_eq!(table.insert(key, value), is_new);
                        }
                        None => prop_assert_eq!(table.remove(&key).map(|value| *value), model.remove(&key)),
                    }
                    prop_assert_eq!(table.get(&key).map(|value| **value), model.get(&key).copied());
                }
                check(&table, &model);
                versions.push((model.clone(), table.clone()));
            }
            for (older, old_table) in &versions {
                check(old_table, older);
                for (newer, new_table) in &versions {
                    prop_assert_eq!(told(old_table, new_table), expected(older, newer));
                }
            }
        }
    }

    #[test]
    fn a_change_leaves_all_other_blocks_shared() {
        let mut table = Table::default();
        for key in 0..10_000u16 {
            table.insert(key, 0u8);
        }
        assert_eq!(table.blocks.len(), 10_000usize.div_ceil(BLOCK), "rows that come in order fill their blocks");
        let before = table.clone();
        table.insert(5_000, 1);
        let shared = table.blocks.iter().zip(before.blocks.iter()).filter(|(new, old)| Arc::ptr_eq(new, old)).count();
        assert_eq!(shared, table.blocks.len() - 1);
        assert_eq!(told(&before, &table), [(5_000, Some(0), Some(1))]);
        let before = table.clone();
        assert!(!table.insert(5_000, 1));
        assert!(Arc::ptr_eq(&table.blocks, &before.blocks), "an equal row is no change");
    }

    #[test]
    fn rows_that_go_leave_no_hollow_blocks() {
        let mut table = Table::default();
        for key in 0..10_000u16 {
            table.insert(key, 0u8);
        }
        for key in (0..10_000).filter(|key| key % 100 != 0) {
            table.remove(&key);
        }
        assert!(table.blocks.len() <= 100 / SPARSE + 1, "{}", table.blocks.len());
    }
}
