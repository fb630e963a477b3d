//! Growing of some objects alone: of those that may come, and of those that may change.

use super::{Growth, Kept, Mirror, Reflection};
use crate::reconcile::moment::Moment;
use crate::reconcile::target::{Phase, Target};

/// Conditions on single objects for growing.
#[derive(Clone, Copy, Debug)]
pub struct MayGrow<C, D> {
    /// Holds for those that may be created.
    pub come: C,
    /// Holds for those that may be changed.
    pub change: D,
}

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    /// Like [`grow`](Mirror::grow), for objects that need others which the kernel itself does not check: creates
    /// only those whose needs `may_come` finds in place. The others stay dirty.
    pub fn grow_where(
        &mut self,
        want: &S::Form,
        growth: Growth,
        at: Moment,
        may_come: impl Fn(&T::Key) -> bool,
    ) -> Vec<T::Key> {
        self.grow_those(want, growth, at, MayGrow { come: may_come, change: |_: &T::Key| true })
    }

    /// Like [`grow`](Mirror::grow), but only where `among` holds. The others stay dirty, also where they exist.
    pub fn grow_among(
        &mut self,
        want: &S::Form,
        growth: Growth,
        at: Moment,
        among: impl Fn(&T::Key) -> bool,
    ) -> Vec<T::Key> {
        self.grow_those(want, growth, at, MayGrow { come: &among, change: &among })
    }

    /// Like [`grow`](Mirror::grow), but only those objects that may. The others stay dirty.
    pub fn grow_those<C, D>(&mut self, want: &S::Form, growth: Growth, at: Moment, may: MayGrow<C, D>) -> Vec<T::Key>
    where
        C: Fn(&T::Key) -> bool,
        D: Fn(&T::Key) -> bool,
    {
        if self.is_settled() || !self.learn(at) {
            return Vec::new();
        }
        let steps = self.planned(want, |key, have, wanted| match (have, wanted) {
            (None, Some(wanted)) => (growth != Growth::Nothing && (may.come)(key)).then(|| Some(wanted.clone())),
            (Some(have), Some(wanted)) if have != wanted && growth == Growth::Full && (may.change)(key) => {
                let grown = T::grown(have, wanted);
                (grown != *have).then_some(Some(grown))
            }
            (Some(have), Some(wanted)) if have != wanted && growth == Growth::OnlyMissing => {
                T::filled(have, wanted).filter(|_| (may.change)(key)).map(Some)
            }
            _ => None,
        });
        let done = self.perform(Phase::Grow, steps, at);
        self.clean(Phase::Grow, want);
        done
    }
}
