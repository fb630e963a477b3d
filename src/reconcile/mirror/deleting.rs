//! Deleting some of what is surplus, and nothing else.

use super::{Kept, Mirror, Reflection};
use crate::reconcile::moment::Moment;
use crate::reconcile::target::{Phase, Target};

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    /// Deletes what is dirty and not in `want` where `among` holds; objects that differ stay as they are. Returns the keys of
    /// the deleted objects.
    pub fn delete_among(&mut self, want: &S::Form, at: Moment, among: impl Fn(&T::Key) -> bool) -> Vec<T::Key> {
        if self.is_settled() || !self.learn(at) {
            return Vec::new();
        }
        let steps =
            self.planned(want, |key, have, wanted| (have.is_some() && wanted.is_none() && among(key)).then_some(None));
        let done = self.perform(Phase::Shrink, steps, at);
        self.clean(Phase::Shrink, want);
        done
    }
}
