//! Equal lists, each once in memory.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Lists that are in use, and some that were: those go when the number of lists has doubled, so that looking for them costs
/// little for each list.
#[derive(Debug)]
pub struct SharedLists<T> {
    lists: BTreeSet<Arc<[T]>>,
    sweep_at: usize,
}

/// When the first sweep is made, at so many lists.
const FEW: usize = 64;

impl<T: Ord + Clone> SharedLists<T> {
    /// The one list that equals this one.
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
