//! Deduplicated lists: equal ones share memory.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Lists in use, and some former ones: those are removed when the number of lists has doubled, so that finding them
/// costs little for each list.
#[derive(Debug)]
pub struct SharedLists<T> {
    lists: BTreeSet<Arc<[T]>>,
    sweep_at: usize,
}

/// Number of lists at the first sweep.
const FEW: usize = 64;

impl<T: Ord + Clone> SharedLists<T> {
    /// Returns the shared list that equals this one.
    pub fn share(&mut self, list: &[T]) -> Arc<[T]> {
        if let Some(known) = self.lists.get(list) {
            return known.clone();
        }
        if self.lists.len() >= self.sweep_at {
            self.lists.retain(|list| Arc::strong_count(list) > 1);
            self.sweep_at = (self.lists.len() * 2).max(FEW);
        }
        let list: Arc<[T]> = list.into();
        self.lists.insert(list.clone());
        list
    }
}

impl<T> Default for SharedLists<T> {
    fn default() -> Self {
        SharedLists { lists: BTreeSet::new(), sweep_at: FEW }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lists_are_one_and_those_that_nobody_uses_go() {
        let mut lists = SharedLists::default();
        let kept = lists.share(&[0, 1]);
        for number in 2..10_000 {
            lists.share(&[number]);
        }
        assert!(lists.lists.len() <= FEW, "{}", lists.lists.len());
        assert!(Arc::ptr_eq(&kept, &lists.share(&[0, 1])));
    }
}
