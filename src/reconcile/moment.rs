//! The time of a round, and its randomness.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Instant;

/// The time of a round, and the randomness it may use; both come from outside so that tests decide them.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    /// Any number; spreads retries.
    pub jitter: u32,
}

/// The source of a subsystem loop's moments.
pub struct Moments {
    randomness: RandomState,
    started: Instant,
}

impl Moments {
    pub fn since(started: Instant) -> Moments {
        Moments { randomness: RandomState::new(), started }
    }

    /// The moment `now`, with another number each time.
    pub fn at(&self, now: Instant) -> Moment {
        let mut hasher = self.randomness.build_hasher();
        hasher.write_u128((now - self.started).as_nanos());
        Moment { now, jitter: hasher.finish() as u32 }
    }
}
