//! The pace of writes in namespaces in which the right to write is missing: one a second finds out that it is there again. Without I/O.

use std::time::{Duration, Instant};

/// The pace of the slow lane (`queue.rs`).
#[derive(Debug, Default)]
pub struct Pace {
    /// When the next write may begin.
    next: Option<Instant>,
}

const PAUSE: Duration = Duration::from_secs(1);

impl Pace {
    /// Returns whether a write may begin now.
    pub fn may_begin(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    pub fn begun(&mut self, now: Instant) {
        self.next = Some(now + PAUSE);
    }

    /// When a write that is due at this time may begin.
    pub fn not_before(&self, due: Instant) -> Instant {
        self.next.map_or(due, |next| next.max(due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_the_right_is_missing_one_write_a_second_tries() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!((pace.may_begin(now), pace.not_before(now)), (true, now));
        for _ in 0..3 {
            pace.begun(now);
            assert_eq!((pace.may_begin(now), pace.not_before(now)), (false, now + PAUSE));
            now += PAUSE;
            assert!(pace.may_begin(now));
        }
    }
}
