//! Objects in doubt: their last step failed, so that the kernel may hold them as before it or as it was to leave them.

use super::{Kept, Mirror};
use crate::reconcile::sorted::Sorted;
use crate::reconcile::target::Target;

/// The states of an object in doubt that the kernel may hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Doubt<V> {
    /// Any: somebody else has changed it, or may have.
    Unknown,
    /// That before the step, or that after it; `None`: no such object.
    OneOf([Option<V>; 2]),
}

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    /// Returns each state of each object that the kernel may hold; `None` where that is not known. An object in doubt has two of them.
    pub fn possible(&self) -> Option<impl Iterator<Item = &T::Value>> {
        let is_unknown = |doubt: &Doubt<T::Value>| matches!(doubt, Doubt::Unknown);
        let seen = self.seen().filter(|_| !self.doubtful.values().any(is_unknown))?;
        let in_doubt = self.doubtful.values().flat_map(|doubt| match doubt {
            Doubt::Unknown => [].iter(),
            Doubt::OneOf(states) => states.iter(),
        });
        Some(seen.entries().map(|(_, value)| value).chain(in_doubt.flatten()))
    }
}
