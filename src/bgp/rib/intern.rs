//! Interning: equal sets of attributes are stored once.
//!
//! A table of 100,000 routes has far fewer sets of attributes than routes. Unused sets are dropped when the number of
//! sets, or their size, has doubled, so that the sweep costs little for each set.
//!
//! The hash is seeded from outside: a neighbour that could predict it could choose attributes that all collide.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::super::message::Attributes;

/// Thresholds of the first sweep: number of sets, or their size in bytes. A few sets may be long.
const FEW: usize = 1024;
const LIGHT: usize = 4 << 20;

/// All sets in use, and some that were.
#[derive(Debug)]
pub struct Interned {
    sets: HashSet<Arc<Attributes>, Seed>,
    sweep_at: usize,
    /// Size of all sets, at the last sweep and now.
    swept: usize,
    weight: usize,
    sweep_at_weight: usize,
}

/// Seed of the hashers.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Seed(pub u64);

/// Hasher that multiplies and folds, eight bytes at a time.
pub(super) struct Folding {
    state: u64,
}

impl Interned {
    pub fn new(seed: u64) -> Interned {
        Interned { sets: HashSet::with_hasher(Seed(seed)), sweep_at: FEW, swept: 0, weight: 0, sweep_at_weight: LIGHT }
    }

    /// Returns the shared set equal to this one.
    pub fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        if let Some(known) = self.sets.get(&attributes) {
            return known.clone();
        }
        if self.sets.len() >= self.sweep_at || self.weight >= self.sweep_at_weight {
            self.sweep();
        }
        self.weight += attributes.weight();
        let new = Arc::new(attributes);
        self.sets.insert(new.clone());
        new
    }

    /// Returns whether the sets in use are larger than this, in bytes. They are counted again when they may have grown by
    /// an eighth of it, so that the bound costs little and is exceeded by no more than that.
    pub fn exceed(&mut self, most: usize) -> bool {
        if self.weight <= most.max(self.swept + most / 8) {
            return false;
        }
        self.sweep();
        self.weight > most
    }

    /// Drops unused sets.
    fn sweep(&mut self) {
        self.sets.retain(|set| Arc::strong_count(set) > 1);
        self.weight = self.sets.iter().map(|set| set.weight()).sum();
        self.swept = self.weight;
        self.sweep_at_weight = (self.weight * 2).max(LIGHT);
        self.sweep_at = (self.sets.len() * 2).max(FEW);
        if self.sets.capacity() > self.sweep_at * 2 {
            self.sets.shrink_to(self.sweep_at);
        }
    }
}

impl BuildHasher for Seed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding { state: self.0 }
    }
}

impl Folding {
    fn add(&mut self, word: u64) {
        const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
        let product = u128::from(self.state ^ word) * u128::from(FACTOR | 1);
        self.state = (product as u64) ^ ((product >> 64) as u64).rotate_left(23) ^ FACTOR;
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        if !rest.is_empty() {
            self.add(u64::from_le_bytes(last));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.add(value as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_med(med: u32) -> Attributes {
        Attributes { med: Some(med), ..Attributes::local("192.0.2.1".parse().unwrap()) }
    }

    #[test]
    fn equal_sets_are_one() {
        let mut interned = Interned::new(1);
        let (one, same) = (interned.intern(with_med(1)), interned.intern(with_med(1)));
        assert!(Arc::ptr_eq(&one, &same));
        assert!(!Arc::ptr_eq(&one, &interned.intern(with_med(2))));
    }

    #[test]
    fn sets_that_nobody_uses_go() {
        let mut interned = Interned::new(1);
        let kept = interned.intern(with_med(0));
        for med in 1..100_000 {
            interned.intern(with_med(med));
        }
        assert!(interned.sets.len() <= 2 * FEW, "{}", interned.sets.len());
        assert!(Arc::ptr_eq(&kept, &interned.intern(with_med(0))));
    }

    #[test]
    fn hashes_are_spread_and_depend_on_the_seed() {
        let low = |seed: u64| {
            let places: HashSet<u64> = (0..4096).map(|med| Seed(seed).hash_one(with_med(med)) % 4096).collect();
            places.len()
        };
        assert!(low(1) > 2300 && low(2) > 2300, "{} and {} of 4096 places", low(1), low(2));
        assert_ne!(Seed(1).hash_one(with_med(1)), Seed(2).hash_one(with_med(1)));
    }
}
