//! Differences that wait for a later round, so that one round need not take as long as all of them.

use std::collections::BTreeSet;

use super::{Dirty, Kept, Mirror, Sorted};
use crate::reconcile::target::Target;

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    /// Has the difference of an object wait: no round compares it until it is [taken up](Mirror::take_up), or marked again. Returns whether it waits: only one
    /// that is known to exist, is desired and is marked can.
    pub fn postpone(&mut self, key: &T::Key, want: &S::Form) -> bool {
        let may_wait = self.has(key) && want.value(key).is_some() && !self.doubtful.contains_key(key);
        let Dirty::Keys(keys) = &mut self.dirty else { return false };
        let waits = may_wait && keys.remove(key);
        if waits {
            self.postponed.insert(key.clone());
        }
        waits
    }

    /// Has the next round compare an object that was postponed. Returns whether it was.
    pub fn take_up(&mut self, key: &T::Key) -> bool {
        let was_postponed = self.postponed.remove(key);
        if was_postponed {
            self.mark(key.clone());
        }
        was_postponed
    }

    /// Has the next round compare all that was postponed.
    pub fn take_up_all(&mut self) {
        for key in std::mem::take(&mut self.postponed) {
            self.mark(key);
        }
    }

    /// Returns the keys that are postponed, of which each may differ from what is desired.
    pub fn postponed(&self) -> &BTreeSet<T::Key> {
        &self.postponed
    }
}
