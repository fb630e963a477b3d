//! Ordered maps in blocks, which two maps may share.
//!
//! A whole table of learned routes stands in several maps. Nodes of a `BTreeMap` hold eleven entries, half as many when these
//! came in order, and lie between each other in the heap. Here a block has room for [`BLOCK`] entries, is left full by keys that
//! come in order, and is shared by the copies of a map until one of them changes it: what the kernel shall hold and what it was
//! seen to hold are in memory once.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Memory};

/// An ordered map in blocks. Copying it shares all of them.
#[derive(Clone)]
pub struct BlockMap<K, V> {
    /// None is empty.
    blocks: Vec<Arc<Block<K, V>>>,
    /// For each block a key that is not behind its first one, and is behind all keys of the block before.
    bounds: Vec<K>,
    len: usize,
    /// Entries that came since the map was packed.
    loose: usize,
    last: Last,
}

/// Place that was found last. Keys are asked for in order, and each of them several times: it is tried first, whatever has become of it since.
#[derive(Default)]
struct Last(AtomicUsize);

/// As many values as keys.
#[derive(Clone)]
struct Block<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

/// Entries in a block at most. Each change moves half of them, or copies all if the block is shared.
const BLOCK: usize = 64;

/// A block with fewer entries than this is joined with its neighbour where both fit into one.
const SPARSE: usize = BLOCK / 4;

/// Loose entries that are worth packing: so many, and one in so many of all.
const FEW: usize = 1024;
const SHARE: usize = 8;

/// How a map differs after an entry was put in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// Not at all: the same entry was there.
    Same,
    /// The entry has another value.
    Changed,
    /// There was no entry with this key.
    New,
}

/// Place of an entry, or where it belongs: block and index in it.
type Place = (usize, usize);

impl<K: Ord + Clone, V: Clone> BlockMap<K, V> {
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(place) => self.at_mut(place).map(|known| mem::replace(known, value)),
            Err(place) => {
                self.put(place, key, value);
                None
            }
        }
    }

    /// Puts an entry in place, if there is none or another one.
    pub fn set(&mut self, key: K, value: V) -> Put
    where
        V: PartialEq,
    {
        let place = match self.find(&key) {
            Ok(place) => place,
            Err(place) => {
                self.put(place, key, value);
                return Put::New;
            }
        };
        let (at, index) = place;
        if self.blocks.get(at).and_then(|block| block.values.get(index)) == Some(&value) {
            return Put::Same;
        }
        if let Some(known) = self.at_mut(place) {
            *known = value;
        }
        Put::Changed
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (at, index) = self.find(key).ok()?;
        let block = Arc::make_mut(self.blocks.get_mut(at)?);
        block.keys.remove(index);
        let value = block.values.remove(index);
        self.len -= 1;
        if block.keys.len() < SPARSE {
            self.join(at);
        }
        Some(value)
    }

    /// Returns the value of a key, which may be changed.
    pub fn value_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = self.find(key).ok()?;
        self.at_mut(place)
    }

    /// Returns the value of a key, which is put in place if there is none; it is always there.
    pub fn or_default(&mut self, key: K) -> Option<&mut V>
    where
        V: Default,
    {
        let place = match self.find(&key) {
            Ok(place) => place,
            Err(place) => self.put(place, key, V::default()),
        };
        self.at_mut(place)
    }

    /// Changes the values between two keys, those for which `change` returns something else.
    pub fn update(&mut self, range: impl RangeBounds<K>, mut change: impl FnMut(&V) -> Option<V>) {
        let (first, end) = self.ends(&range);
        for (at, block) in self.blocks.iter_mut().enumerate().take(end.0 + 1).skip(first.0) {
            let from = if at == first.0 { first.1 } else { 0 };
            let to = if at == end.0 { end.1 } else { block.keys.len() };
            for index in from..to {
                if let Some(value) = block.values.get(index).and_then(&mut change)
                    && let Some(place) = Arc::make_mut(block).values.get_mut(index)
                {
                    *place = value;
                }
            }
        }
    }

    /// Removes the entries that `keep` does not hold for.
    pub fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        let gone = self.iter().filter(|(key, value)| !keep(key, value)).map(|(key, _)| key.clone());
        gone.collect::<Vec<K>>().iter().for_each(|key| drop(self.remove(key)));
    }

    /// Fills the blocks again if many entries came one by one.
    pub fn pack(&mut self) {
        if self.loose < FEW || self.loose <= self.len / SHARE {
            return;
        }
        self.loose = 0;
        let mut packed = BlockMap { len: self.len, ..BlockMap::default() };
        let mut filling: Block<K, V> = Block { keys: Vec::new(), values: Vec::new() };
        for block in mem::take(&mut self.blocks) {
            if filling.keys.is_empty() && block.keys.len() > BLOCK - SPARSE {
                packed.append(block);
                continue;
            }
            let Block { keys, values } = Arc::unwrap_or_clone(block);
            for (key, value) in keys.into_iter().zip(values) {
                filling.push(key, value);
                if filling.keys.len() == BLOCK {
                    packed.append(Arc::new(mem::replace(&mut filling, Block::with_room(BLOCK))));
                }
            }
        }
        if !filling.keys.is_empty() {
            filling.keys.shrink_to_fit();
            filling.values.shrink_to_fit();
            packed.append(Arc::new(filling));
        }
        packed.bounds.shrink_to_fit();
        packed.blocks.shrink_to_fit();
        *self = packed;
    }

    /// Shares the memory of another map, if it is equal.
    pub fn share(&mut self, other: &BlockMap<K, V>)
    where
        V: PartialEq,
    {
        if self == other {
            self.clone_from(other);
        }
    }

    /// Returns whether this map and another one are the same piece of memory.
    pub fn is_one_with(&self, other: &BlockMap<K, V>) -> bool {
        let both = self.blocks.iter().zip(&other.blocks);
        self.blocks.len() == other.blocks.len() && both.into_iter().all(|(one, other)| Arc::ptr_eq(one, other))
    }

    fn at_mut(&mut self, (at, index): Place) -> Option<&mut V> {
        Arc::make_mut(self.blocks.get_mut(at)?).values.get_mut(index)
    }

    /// Appends a block behind all others.
    fn append(&mut self, block: Arc<Block<K, V>>) {
        self.bounds.extend(block.keys.first().cloned());
        self.blocks.push(block);
    }

    /// Puts an entry where it belongs; returns where that is now.
    fn put(&mut self, (at, index): Place, key: K, value: V) -> Place {
        self.len += 1;
        self.loose += 1;
        let Some(block) = self.blocks.get_mut(at) else {
            self.bounds.insert(at, key.clone());
            let mut block = Block::with_room(if at == 0 { 1 } else { BLOCK });
            block.push(key, value);
            self.blocks.insert(at, Arc::new(block));
            return (at, 0);
        };
        if block.keys.len() < BLOCK {
            if let Some(bound) = self.bounds.get_mut(at).filter(|bound| key < **bound) {
                *bound = key.clone();
            }
            Arc::make_mut(block).insert(index, key, value);
            return (at, index);
        }
        if index == BLOCK {
            // Keys that come in order leave full blocks behind.
            let has_room = self.blocks.get(at + 1).is_some_and(|next| next.keys.len() < BLOCK);
            if !has_room {
                self.bounds.insert(at + 1, key.clone());
                let mut block = Block::with_room(BLOCK);
                block.push(key, value);
                self.blocks.insert(at + 1, Arc::new(block));
                return (at + 1, 0);
            }
            self.len -= 1;
            self.loose -= 1;
            return self.put((at + 1, 0), key, value);
        }
        let rest = Arc::make_mut(block).split_off(BLOCK / 2);
        self.bounds.splice(at + 1..at + 1, rest.keys.first().cloned());
        self.blocks.insert(at + 1, Arc::new(rest));
        self.len -= 1;
        self.loose -= 1;
        let place = if index <= BLOCK / 2 { (at, index) } else { (at + 1, index - BLOCK / 2) };
        self.put(place, key, value)
    }

    /// Joins a sparse block with a neighbour, or drops it if it is empty.
    fn join(&mut self, at: usize) {
        let len = |at: usize| self.blocks.get(at).map(|block| block.keys.len());
        let fits = |first: usize| matches!((len(first), len(first + 1)), (Some(a), Some(b)) if a + b <= BLOCK / 2);
        let first = match at.checked_sub(1).filter(|before| fits(*before)) {
            Some(before) => before,
            None if fits(at) => at,
            None if len(at) == Some(0) => {
                self.blocks.remove(at);
                self.bounds.remove(at);
                return;
            }
            None => return,
        };
        let second = Arc::unwrap_or_clone(self.blocks.remove(first + 1));
        self.bounds.remove(first + 1);
        if let Some(block) = self.blocks.get_mut(first).map(Arc::make_mut) {
            block.keys.extend(second.keys);
            block.values.extend(second.values);
            if block.keys.is_empty() {
                self.blocks.remove(first);
                self.bounds.remove(first);
            }
        }
    }
}

impl<K: Ord, V> BlockMap<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        let (at, index) = self.find(key).ok()?;
        self.blocks.get(at)?.values.get(index)
    }

    /// Returns an entry, with the key that stands in it.
    pub fn entry_at(&self, key: &K) -> Option<(&K, &V)> {
        let (at, index) = self.find(key).ok()?;
        let block = self.blocks.get(at)?;
        Some((block.keys.get(index)?, block.values.get(index)?))
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Returns the entries between two keys, in order.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        let (first, end) = self.ends(&range);
        let blocks = self.blocks.iter().enumerate().take(end.0 + 1).skip(first.0);
        blocks.flat_map(move |(at, block)| {
            let from = if at == first.0 { first.1 } else { 0 };
            let to = if at == end.0 { end.1.max(from) } else { block.keys.len() };
            let keys = block.keys.get(from..to).unwrap_or_default();
            keys.iter().zip(block.values.get(from..to).unwrap_or_default())
        })
    }

    /// Places of the first entry of a range, and behind its last one.
    fn ends(&self, range: &impl RangeBounds<K>) -> (Place, Place) {
        let behind = |key: &K| self.find(key).map_or_else(|place| place, |(at, index)| (at, index + 1));
        let before = |key: &K| self.find(key).unwrap_or_else(|place| place);
        let first = match range.start_bound() {
            Bound::Included(key) => before(key),
            Bound::Excluded(key) => behind(key),
            Bound::Unbounded => (0, 0),
        };
        let end = match range.end_bound() {
            Bound::Included(key) => behind(key),
            Bound::Excluded(key) => before(key),
            Bound::Unbounded => (self.blocks.len(), 0),
        };
        (first, end)
    }

    /// The place behind all entries, if this key belongs there.
    fn behind_all(&self, key: &K) -> Option<Place> {
        let last = self.blocks.last()?;
        (last.keys.last()? < key).then(|| (self.blocks.len() - 1, last.keys.len()))
    }

    /// Place of a key; as an error, where it belongs.
    fn find(&self, key: &K) -> Result<Place, Place> {
        let found = self.find_near(self.last.get(), key).unwrap_or_else(|| self.search(key));
        self.last.set(found.unwrap_or_else(|place| place));
        found
    }

    /// As `find`, where the key is at this place, or belongs right behind it.
    fn find_near(&self, (at, index): Place, key: &K) -> Option<Result<Place, Place>> {
        let block = self.blocks.get(at)?;
        match block.keys.get(index)?.cmp(key) {
            Ordering::Equal => return Some(Ok((at, index))),
            Ordering::Greater => return None,
            Ordering::Less => {}
        }
        let behind = (at, index + 1);
        match block.keys.get(index + 1).map(|next| next.cmp(key)) {
            Some(Ordering::Equal) => Some(Ok(behind)),
            Some(Ordering::Greater) => Some(Err(behind)),
            Some(Ordering::Less) => None,
            None => self.bounds.get(at + 1).is_none_or(|bound| key < bound).then_some(Err(behind)),
        }
    }

    fn search(&self, key: &K) -> Result<Place, Place> {
        let at = self.bounds.partition_point(|bound| bound.cmp(key).is_le()).saturating_sub(1);
        let Some(block) = self.blocks.get(at) else { return Err((at, 0)) };
        block.keys.binary_search(key).map(|index| (at, index)).map_err(|index| (at, index))
    }
}

impl Last {
    fn get(&self) -> Place {
        let packed = self.0.load(Memory::Relaxed);
        (packed / (BLOCK + 1), packed % (BLOCK + 1))
    }

    fn set(&self, (at, index): Place) {
        self.0.store(at * (BLOCK + 1) + index, Memory::Relaxed);
    }
}

impl Clone for Last {
    fn clone(&self) -> Last {
        Last(AtomicUsize::new(self.0.load(Memory::Relaxed)))
    }
}

impl<K, V> BlockMap<K, V> {
    /// Returns all entries, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.blocks.iter().flat_map(|block| block.keys.iter().zip(&block.values))
    }

    /// Returns all keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.blocks.iter().flat_map(|block| &block.keys)
    }

    /// Returns all values, in the order of keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.blocks.iter().flat_map(|block| &block.values)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<K, V> Block<K, V> {
    fn with_room(room: usize) -> Block<K, V> {
        Block { keys: Vec::with_capacity(room), values: Vec::with_capacity(room) }
    }

    fn push(&mut self, key: K, value: V) {
        self.keys.push(key);
        self.values.push(value);
    }

    /// Room grows by half: most maps are small, and blocks are rarely full.
    fn insert(&mut self, index: usize, key: K, value: V) {
        if self.keys.len() == self.keys.capacity() {
            let more = (self.keys.len() / 2).clamp(1, BLOCK);
            self.keys.reserve_exact(more);
            self.values.reserve_exact(more);
        }
        self.keys.insert(index, key);
        self.values.insert(index, value);
    }

    fn split_off(&mut self, index: usize) -> Block<K, V> {
        let rest = Block { keys: self.keys.split_off(index), values: self.values.split_off(index) };
        self.keys.shrink_to_fit();
        self.values.shrink_to_fit();
        rest
    }
}

impl<K, V> Default for BlockMap<K, V> {
    fn default() -> Self {
        BlockMap { blocks: Vec::new(), bounds: Vec::new(), len: 0, loose: 0, last: Last::default() }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for BlockMap<K, V> {
    /// Shared blocks at the same place are skipped unread.
    fn eq(&self, other: &Self) -> bool {
        let shared = self.blocks.iter().zip(&other.blocks).take_while(|(one, other)| Arc::ptr_eq(one, other)).count();
        let left = self.blocks.iter().skip(shared).flat_map(|block| block.keys.iter().zip(&block.values));
        let right = other.blocks.iter().skip(shared).flat_map(|block| block.keys.iter().zip(&block.values));
        self.len == other.len && left.eq(right)
    }
}

impl<K: Eq, V: Eq> Eq for BlockMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for BlockMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for BlockMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            match self.behind_all(&key) {
                Some(behind) => drop(self.put(behind, key, value)),
                None => drop(self.insert(key, value)),
            }
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for BlockMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = BlockMap::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone> From<BTreeMap<K, V>> for BlockMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        map.into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
