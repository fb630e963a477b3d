//! Chance that can be had again: the same seed gives the same numbers (SplitMix64).

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// A source of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, and without, `end`.
    pub fn below(&mut self, end: usize) -> usize {
        assert!(end > 0, "there must be something to choose from");
        (self.next() % end as u64) as usize
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.next() % 100 < u64::from(percent)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// One of many, or `None` of none.
    pub fn pick_from<T>(&mut self, from: impl Iterator<Item = T>) -> Option<T> {
        let mut all: Vec<T> = from.collect();
        if all.is_empty() { None } else { Some(all.swap_remove(self.below(all.len()))) }
    }
}

/// The number in an environment variable; a value that is no number fails the test, so that a typing error does not
/// quietly run something else.
pub fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number; it is {text:?}")))
}

/// The first seed of a run: the number in `FIRST_SEED`, which makes the run the same each time, or one of the clock.
pub fn first_seed() -> u64 {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_nanos() as u64;
    number("FIRST_SEED").unwrap_or_else(clock)
}

/// The seed in an environment variable, or so many from the first one on.
pub fn seeds(variable: &str, runs: u64) -> Vec<u64> {
    let (first, runs) = number(variable).map_or_else(|| (first_seed(), runs), |seed| (seed, 1));
    (0..runs).map(|run| first.wrapping_add(run)).collect()
}

/// Runs a check on many seeds, and names the one that failed. `runs`: how many, where `PROPERTY_RUNS` does not say so;
/// `PROPERTY_PERCENT` says how many of them, 100 unless it is set.
pub fn for_many(runs: u64, check: impl Fn(&mut Random) + std::panic::RefUnwindSafe) {
    let percent = number("PROPERTY_PERCENT").unwrap_or(100);
    for seed in seeds("PROPERTY_SEED", number("PROPERTY_RUNS").unwrap_or((runs * percent).div_ceil(100))) {
        let run = std::panic::catch_unwind(|| check(&mut Random::new(seed)));
        assert!(run.is_ok(), "failed; PROPERTY_SEED={seed} runs it again");
    }
}
