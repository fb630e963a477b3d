//! Steps are performed in portions: a first sync has as many steps as there are objects.

use std::collections::BTreeMap;

use super::Planned;
use crate::reconcile::target::{Phase, Step, Target};

/// Performs the steps; why those that failed did, by their place.
pub fn apply<T: Target>(target: &mut T, phase: Phase, planned: &Planned<T>) -> BTreeMap<usize, String> {
    let mut failed = BTreeMap::new();
    let portion = target.portion();
    let mut first = 0;
    for planned in planned.chunks(portion) {
        let steps: Vec<Step<'_, T::Key, T::Value>> =
            planned.iter().map(|(key, have, want)| Step { key, have: have.as_ref(), want: want.as_ref() }).collect();
        let failures = target.apply(phase, &steps).into_iter();
        failed.extend(failures.map(|failure| (first + failure.step, failure.error.to_string())));
        first += planned.len();
    }
    failed
}
