//! A round of a kind whose change is one transaction: what grows and what shrinks together.

use super::{Growth, Kept, Mirror, Reflection};
use crate::reconcile::moment::Moment;
use crate::reconcile::target::{Phase, Target};

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    /// Creates, changes and deletes what is dirty and differs from `want`, all of it in one call of the target
    /// ([`Phase::Whole`]). Returns the keys whose objects were created, changed or deleted in the kernel.
    ///
    /// Nothing is deleted unless `may_shrink`. While an object is in doubt nothing is done at all: what would be left of the round
    /// might make no sense without it. Who knows what was at fault leaves that out and calls
    /// [`try_at_once`](Mirror::try_at_once).
    pub fn transact(&mut self, want: &S::Form, growth: Growth, may_shrink: bool, at: Moment) -> Vec<T::Key> {
        self.transact_those(want, growth, may_shrink.then_some(|_: &T::Key| true), at)
    }

    /// Like [`transact`](Mirror::transact), but deletes only those objects that `may_go`. The others stay dirty.
    pub fn transact_where(
        &mut self,
        want: &S::Form,
        growth: Growth,
        at: Moment,
        may_go: impl Fn(&T::Key) -> bool,
    ) -> Vec<T::Key> {
        self.transact_those(want, growth, Some(may_go), at)
    }

    /// `may_go`: `None` where nothing shrinks.
    fn transact_those(
        &mut self,
        want: &S::Form,
        growth: Growth,
        may_go: Option<impl Fn(&T::Key) -> bool>,
        at: Moment,
    ) -> Vec<T::Key> {
        if self.is_settled() || !self.learn(at) || self.is_in_doubt() {
            return Vec::new();
        }
        let steps = self.planned(want, |key, have, wanted| match (have, wanted) {
            (None, Some(wanted)) => (growth != Growth::Nothing).then(|| Some(wanted.clone())),
            (Some(have), Some(wanted)) if have != wanted => match growth {
                Growth::Full if may_go.is_some() => Some(Some(wanted.clone())),
                Growth::Full => Some(T::grown(have, wanted)).filter(|grown| grown != have).map(Some),
                Growth::OnlyMissing => T::filled(have, wanted).map(Some),
                Growth::Nothing => None,
            },
            (Some(_), None) => may_go.as_ref().is_some_and(|may_go| may_go(key)).then_some(None),
            _ => None,
        });
        let done = self.perform(Phase::Whole, steps, at);
        self.clean(Phase::Grow, want);
        if may_go.is_some() {
            self.clean(Phase::Shrink, want);
        }
        done
    }
}
