//! Retry times after failures: soon, then ever later, never all nodes at once.

use std::time::{Duration, Instant};

/// Delays double from `FIRST` to `LAST`; each is shortened by up to a half, by the jitter that the caller
/// brings, so that a fault that hits every node at once is not retried by every node at once.
#[derive(Clone, Default, Debug)]
pub struct Backoff {
    failures: u32,
    retry_at: Option<Instant>,
}

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(30);

impl Backoff {
    /// Records a failure. `jitter` is any number; only its spread matters.
    pub fn failed(&mut self, now: Instant, jitter: u32) {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(16)).min(LAST);
        let shorter = doubled.mul_f64(f64::from(jitter % 1024) / 2048.0);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + doubled - shorter);
    }

    /// Makes the next try due at this time, where one is to come later.
    pub fn hasten(&mut self, now: Instant) {
        self.retry_at = self.retry_at.map(|at| at.min(now));
    }

    /// Records that the next try is being made: there is nothing to wait for until its result is known.
    pub fn tried(&mut self) {
        self.retry_at = None;
    }

    /// Records a success.
    pub fn succeeded(&mut self) {
        *self = Backoff::default();
    }

    /// Returns when the next try is due; `None` while nothing failed.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Returns false while a failed step still waits for its time.
    pub fn is_due(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }

    /// Returns the number of tries that failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_last_and_start_over_after_a_success() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert!(backoff.is_due(now));
        let mut delays = Vec::new();
        for _ in 0..12 {
            backoff.failed(now, 0);
            delays.push((backoff.retry_at().expect("a failure sets a time") - now).as_millis());
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000]);
        backoff.succeeded();
        assert!(backoff.is_due(now));
        assert_eq!(backoff.failures(), 0);
    }

    #[test]
    fn a_try_that_is_to_come_may_be_made_due_and_none_comes_of_it_where_nothing_failed() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.hasten(now);
        assert_eq!(backoff.retry_at(), None);
        backoff.failed(now, 0);
        backoff.hasten(now);
        assert_eq!((backoff.retry_at(), backoff.failures()), (Some(now), 1));
        // One that is due for longer stays so.
        backoff.hasten(now + LAST);
        assert_eq!(backoff.retry_at(), Some(now));
    }

    #[test]
    fn jitter_shortens_by_less_than_half() {
        let now = Instant::now();
        for jitter in [0, 1, 511, 1023, u32::MAX] {
            let mut backoff = Backoff::default();
            backoff.failed(now, jitter);
            let delay = backoff.retry_at().expect("a failure sets a time") - now;
            assert!(delay > FIRST / 2 && delay <= FIRST, "{delay:?}");
        }
    }
}
