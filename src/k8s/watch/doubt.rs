//! Doubts whether the server is still where it was: whether its store was set back while nobody watched.
//!
//! The request that settles them is small, but every node sends it for every kind at the same time when a server ends. So it
//! is jittered, and where watches merely end too early, as behind a proxy that cuts them each minute, it is sent rarely.

use std::time::{Duration, Instant};

use super::pace::random;

/// Least time between two requests because of watches that ended too early.
const SELDOM: Duration = Duration::from_secs(300);

/// The open doubt, if any, and when the last one was settled.
#[derive(Clone, Copy, Default, Debug)]
pub struct Doubt {
    reason: Option<Reason>,
    /// The last time that it was settled.
    settled_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reason {
    /// The last watch ended before its time.
    EndedEarly,
    /// A watch could not be begun: the server was away, or refused.
    Failed,
}

impl Doubt {
    /// Records the end of a watch; `due` is when the server was to end it.
    pub fn note_end(&mut self, due: Instant, now: Instant) {
        // Clocks need not run at the same speed.
        let is_early = now + Duration::from_secs(2) < due;
        self.reason = is_early.then_some(Reason::EndedEarly);
    }

    /// Records that a watch could not be begun.
    pub fn note_failure(&mut self) {
        self.reason = Some(Reason::Failed);
    }

    /// Records that everything was listed.
    pub fn note_list(&mut self) {
        self.reason = None;
    }

    /// Records that the server is where it was.
    pub fn settle(&mut self, now: Instant) {
        *self = Doubt { reason: None, settled_at: Some(now) };
    }

    /// Returns how long to wait before the server is asked, at most `spread`; `None`: it need not be asked.
    pub fn delay(&self, now: Instant, spread: Duration) -> Option<Duration> {
        let was_just_settled = self.settled_at.is_some_and(|at| now < at + SELDOM);
        match self.reason? {
            // The delay after the failure was jittered.
            Reason::Failed => Some(Duration::ZERO),
            Reason::EndedEarly if was_just_settled => None,
            Reason::EndedEarly => Some(spread.mul_f64((random() % 1024) as f64 / 1024.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Duration = Duration::from_secs(3);

    #[test]
    fn a_proxy_that_cuts_watches_each_minute_causes_few_requests() {
        let begun = Instant::now();
        let mut doubt = Doubt::default();
        let mut requests = 0;
        for minute in 1..=60 {
            let now = begun + Duration::from_secs(60 * minute);
            doubt.note_end(now + Duration::from_secs(230), now);
            if let Some(delay) = doubt.delay(now, SPREAD) {
                assert!(delay < SPREAD);
                requests += 1;
                doubt.settle(now);
            }
        }
        assert_eq!(requests, 12);
    }

    #[test]
    fn a_server_that_was_away_is_asked_however_short_ago_it_was_asked() {
        let now = Instant::now();
        let mut doubt = Doubt::default();
        doubt.settle(now);
        doubt.note_end(now + Duration::from_secs(230), now);
        assert_eq!(doubt.delay(now, SPREAD), None);
        doubt.note_failure();
        assert_eq!(doubt.delay(now, SPREAD), Some(Duration::ZERO));
    }

    #[test]
    fn a_watch_that_ended_in_time_is_no_reason_to_ask() {
        let now = Instant::now();
        let mut doubt = Doubt::default();
        doubt.note_end(now + Duration::from_secs(1), now);
        assert_eq!(doubt.delay(now, SPREAD), None);
    }
}
