//! Desired and seen state side by side.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Keys by which the existing objects differ from the desired ones, apart from objects that exist in another form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Differing<K> {
    pub missing: Vec<K>,
    pub surplus: Vec<K>,
}

/// Every key of two maps, in order, with its value in each.
pub(super) fn side_by_side<'a, K: Ord, V>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
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
