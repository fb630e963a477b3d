//! Desired and seen state side by side.

use std::cmp::Ordering;
use std::ops::RangeBounds;

use super::Sorted;
use super::kept::Kept;
use super::{Dirty, Mirror};
use crate::reconcile::target::Target;

/// Keys by which the existing objects differ from the desired ones, apart from objects that exist in another form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Differing<K> {
    pub missing: Vec<K>,
    pub surplus: Vec<K>,
}

/// Every key of two maps, in order, with its value in each.
pub(super) fn side_by_side<'a, K: Ord + 'a, V: 'a>(
    one: &'a impl Sorted<K, V>,
    other: &'a impl Sorted<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut one, mut other) = (one.entries().peekable(), other.entries().peekable());
    std::iter::from_fn(move || {
        let order = match (one.peek(), other.peek()) {
            (Some((key, _)), Some((others, _))) => key.cmp(others),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let here = if order.is_le() { one.next() } else { None };
        let there = if order.is_ge() { other.next() } else { None };
        let (key, _) = here.or(there)?;
        Some((key, here.map(|(_, value)| value), there.map(|(_, value)| value)))
    })
}

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    /// Returns the number of desired objects among `these` not known to exist in any form. Costs what is dirty.
    pub fn missing(&self, want: &S::Form, these: impl Fn(&T::Key) -> bool) -> usize {
        let lacks = |key: &&T::Key| these(key) && !self.has(key) && want.value(key).is_some();
        match &self.dirty {
            Dirty::Keys(keys) if self.seen.is_some() => keys.iter().filter(lacks).count(),
            Dirty::Keys(_) | Dirty::All => want.entries().map(|(key, _)| key).filter(lacks).count(),
        }
    }

    /// Returns whether the last step of this object failed and it was not read back since.
    pub fn is_doubtful(&self, key: &T::Key) -> bool {
        self.doubtful.contains_key(key)
    }

    /// Returns whether it is known that none of these keys exists: a key in doubt may.
    pub fn lacks(&self, keys: impl RangeBounds<T::Key> + Clone) -> bool {
        let Some(seen) = self.seen() else { return false };
        seen.between(keys.clone()).next().is_none() && self.doubtful.range(keys).next().is_none()
    }

    /// Returns what is desired and missing, and what exists and is not desired, as far as is known.
    pub fn differing(&self, want: &S::Form) -> Differing<T::Key> {
        let mut differing = Differing { missing: Vec::new(), surplus: Vec::new() };
        let Some(seen) = self.seen() else { return differing };
        let mut note = |key: &T::Key, is_there: bool, is_wanted: bool| match (is_there, is_wanted) {
            _ if self.doubtful.contains_key(key) => {}
            (false, true) => differing.missing.push(key.clone()),
            (true, false) => differing.surplus.push(key.clone()),
            (true, true) | (false, false) => {}
        };
        match &self.dirty {
            Dirty::Keys(keys) => {
                keys.iter().for_each(|key| note(key, seen.value(key).is_some(), want.value(key).is_some()));
            }
            Dirty::All => {
                side_by_side(seen, want).for_each(|(key, have, wanted)| note(key, have.is_some(), wanted.is_some()));
            }
        }
        differing
    }
}
