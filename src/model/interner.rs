//! Values that many objects have in common, in memory once: equal ones share it.
//!
//! Fifty thousand pods have some hundred sets of labels, a hundred thousand learned routes a few lists of next hops.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use super::Labels;

/// Values of one type, each once: those in use, and some former ones. These are removed when the number of values has
/// doubled, so that finding them costs little for each value.
#[derive(Debug)]
pub struct Interner<T> {
    known: HashSet<T>,
    sweep_at: usize,
}

/// A value whose copies share memory.
pub trait Counted: Clone + Eq + Hash {
    /// Returns whether there is another copy.
    fn is_shared(&self) -> bool;
}

/// Number of values at the first sweep.
const FEW: usize = 64;

impl<T: Counted> Interner<T> {
    /// Returns the one copy of what equals this value.
    pub fn intern<Q: ?Sized + Eq + Hash>(&mut self, value: &Q) -> T
    where
        T: Borrow<Q> + for<'a> From<&'a Q>,
    {
        match self.known.get(value) {
            Some(known) => known.clone(),
            None => self.keep(value.into()),
        }
    }

    /// Returns the one copy of this value, which is this one where there is none yet.
    pub fn intern_owned(&mut self, value: T) -> T {
        match self.known.get(&value) {
            Some(known) => known.clone(),
            None => self.keep(value),
        }
    }

    fn keep(&mut self, value: T) -> T {
        if self.known.len() >= self.sweep_at {
            self.known.retain(T::is_shared);
            self.sweep_at = (self.known.len() * 2).max(FEW);
            self.known.shrink_to(self.sweep_at);
        }
        self.known.insert(value.clone());
        value
    }
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Interner { known: HashSet::new(), sweep_at: FEW }
    }
}

impl<T: ?Sized + Eq + Hash> Counted for Arc<T> {
    fn is_shared(&self) -> bool {
        Arc::strong_count(self) > 1
    }
}

impl Counted for Labels {
    fn is_shared(&self) -> bool {
        Labels::is_shared(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lists_are_one_and_those_that_nobody_uses_go() {
        let mut lists: Interner<Arc<[usize]>> = Interner::default();
        let kept = lists.intern([0, 1].as_slice());
        for number in 2..10_000 {
            lists.intern([number].as_slice());
        }
        assert!(lists.known.len() <= FEW, "{}", lists.known.len());
        assert!(Arc::ptr_eq(&kept, &lists.intern([0, 1].as_slice())));
    }

    #[test]
    fn what_is_in_use_stays_however_much_it_is() {
        let mut names: Interner<Arc<str>> = Interner::default();
        let held: Vec<Arc<str>> = (0..3 * FEW).map(|index| names.intern(format!("node-{index}").as_str())).collect();
        assert_eq!(names.known.len(), held.len());
        assert!(held.iter().all(|name| Arc::ptr_eq(name, &names.intern(&**name))));
    }

    #[test]
    fn a_value_given_away_is_the_copy_or_makes_room_for_the_one_there_is() {
        let mut pool: Interner<Labels> = Interner::default();
        let labels = |value: usize| -> Labels { [("app", value.to_string())].into_iter().collect() };
        let kept = pool.intern_owned(labels(7));
        assert!(kept.is_shared() && pool.intern_owned(labels(7)) == kept);
        for value in 0..10 * FEW {
            pool.intern_owned(labels(value));
        }
        assert!(pool.known.len() <= FEW && pool.known.contains(&kept), "{}", pool.known.len());
    }
}
