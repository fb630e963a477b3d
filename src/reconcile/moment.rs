//! When a round happens, and the chance in it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Instant;

/// When a round happens, and the randomness it may use; both come from outside so that tests decide them.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    /// Any number; spreads retries.
    pub jitter: u32,
}

/// Where the loop of a subsystem gets its moments from.
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
