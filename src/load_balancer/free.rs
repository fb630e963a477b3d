//! Free addresses of one pool and family, as runs of numbers: a pool is never enumerated, and taking and giving back an address costs
//! the logarithm of the number of runs.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Runs of free numbers within bounds. Runs neither overlap nor touch.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FreeNumbers {
    /// The last number of each bound by its first.
    bounds: BTreeMap<u128, u128>,
    /// The last number of each free run by its first.
    runs: BTreeMap<u128, u128>,
}

impl FreeNumbers {
    /// Adds numbers, all of them free, that were not within bounds before. An empty range adds nothing.
    pub fn add(&mut self, numbers: &RangeInclusive<u128>) {
        if !numbers.is_empty() {
            insert(&mut self.bounds, *numbers.start(), *numbers.end());
            insert(&mut self.runs, *numbers.start(), *numbers.end());
        }
    }

    /// The least free number.
    pub fn first(&self) -> Option<u128> {
        self.runs.keys().next().copied()
    }

    /// Returns whether the number may be given at all.
    pub fn is_within_bounds(&self, number: u128) -> bool {
        run_of(&self.bounds, number).is_some()
    }

    /// Takes a number, whether or not it is free.
    pub fn take(&mut self, number: u128) {
        let Some((first, last)) = run_of(&self.runs, number) else { return };
        self.runs.remove(&first);
        if first < number {
            self.runs.insert(first, number - 1);
        }
        if number < last {
            self.runs.insert(number + 1, last);
        }
    }

    /// Gives a number back; one out of bounds was never free.
    pub fn put_back(&mut self, number: u128) {
        if self.is_within_bounds(number) && run_of(&self.runs, number).is_none() {
            insert(&mut self.runs, number, number);
        }
    }
}

/// The run that a number is in.
fn run_of(runs: &BTreeMap<u128, u128>, number: u128) -> Option<(u128, u128)> {
    let (first, last) = runs.range(..=number).next_back()?;
    (*last >= number).then_some((*first, *last))
}

/// Adds a run, which grows together with those that it touches.
fn insert(runs: &mut BTreeMap<u128, u128>, mut first: u128, mut last: u128) {
    if let Some((before, _)) = first.checked_sub(1).and_then(|before| run_of(runs, before)) {
        runs.remove(&before);
        first = before;
    }
    if let Some((behind, end)) = last.checked_add(1).and_then(|behind| run_of(runs, behind)) {
        runs.remove(&behind);
        last = end;
    }
    runs.insert(first, last);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(free: &FreeNumbers) -> Vec<(u128, u128)> {
        free.runs.iter().map(|(first, last)| (*first, *last)).collect()
    }

    #[test]
    fn numbers_are_taken_from_the_beginning_and_come_back_as_one_run() {
        let mut free = FreeNumbers::default();
        free.add(&(10..=13));
        free.add(&(14..=15));
        free.add(&(20..=u128::MAX));
        assert_eq!(all(&free), [(10, 15), (20, u128::MAX)]);
        for number in [12, 10, 12, u128::MAX, 5] {
            free.take(number);
        }
        assert_eq!((all(&free), free.first()), (vec![(11, 11), (13, 15), (20, u128::MAX - 1)], Some(11)));
        for number in [12, 10, 10, u128::MAX, 5, 16] {
            free.put_back(number);
        }
        assert_eq!(all(&free), [(10, 15), (20, u128::MAX)]);
        assert!(free.is_within_bounds(15) && !free.is_within_bounds(16));
    }
}
