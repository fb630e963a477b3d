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

    /// Like [`shrink_where`](Mirror::shrink_where), and takes its old parts only from what `may_lessen`.
    pub fn shrink_those(
        &mut self,
        want: &S::Form,
        at: Moment,
        may_go: impl Fn(&T::Key, &S::Form) -> bool,
        may_lessen: impl Fn(&T::Key) -> bool,
    ) -> Vec<T::Key> {
        if self.is_settled() || !self.learn(at) {
            return Vec::new();
        }
        let Some(seen) = self.seen() else { return Vec::new() };
        let steps = self.planned(want, |key, have, wanted| match (have, wanted) {
            (Some(_), None) => may_go(key, seen).then_some(None),
            // A key that could not grow (its step failed, so `have` is not known) is not in `seen`; one that differs
            // here has grown already and only has something left to lose.
            (Some(have), Some(wanted)) if have != wanted && may_lessen(key) && T::grown(have, wanted) == *have => {
                Some(Some(wanted.clone()))
            }
            _ => None,
        });
        let done = self.perform(Phase::Shrink, steps, at);
        self.clean(Phase::Shrink, want);
        done
    }
}
