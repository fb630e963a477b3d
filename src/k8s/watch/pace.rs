//! The pace of requests for one kind: delays after failures, and time limits.
//!
//! Delays grow and are jittered, so that the nodes of a cluster do not all come back at once. A list that was for nothing, because
//! the watch behind it expired soon (410), counts as a failure of its own: it is the dearest of all requests.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::k8s::request::Patience;

/// Delays and patience; shorter in tests.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first delay after a failure; it doubles up to `last`.
    pub first: Duration,
    pub last: Duration,
    /// A watch that ended sooner than this counts as failed, although the server reported no error.
    pub brief: Duration,
    /// Time limits for an answer, and for each next piece of a list.
    pub patience: Patience,
    /// Longest silence of a watch on which bookmarks come.
    pub silence: Duration,
    /// Time for which a server without streaming lists is listed in pages before they are tried again.
    pub in_pages: Duration,
    /// Longest delay before the server's newest resourceVersion is requested.
    pub spread: Duration,
    /// The first delay before a kind is looked for again that the server does not have; it doubles up to `last_look`.
    pub first_look: Duration,
    pub last_look: Duration,
    /// The longest delay before a kind is asked for again that may not be read and that nothing waits for.
    pub last_refused: Duration,
    /// For so long a kind that was there has to be missing.
    pub gone: Duration,
}

/// Failures in a row, from which the next delay follows.
#[derive(Clone, Copy, Default, Debug)]
pub struct Failures {
    count: u32,
    /// Lists whose watch expired soon after.
    wasted_lists: u32,
    /// The end of the last list, until a watch behind it has expired.
    listed_at: Option<Instant>,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            first: Duration::from_millis(200),
            last: Duration::from_secs(30),
            brief: Duration::from_secs(5),
            patience: Patience { beginning: Duration::from_secs(65), piece: Duration::from_secs(30) },
            silence: Duration::from_secs(150),
            in_pages: Duration::from_secs(3600),
            spread: Duration::from_secs(3),
            first_look: Duration::from_secs(10),
            last_look: Duration::from_secs(120),
            last_refused: Duration::from_secs(600),
            gone: Duration::from_secs(30),
        }
    }
}

impl Failures {
    /// Records progress.
    pub fn end(&mut self) {
        self.count = 0;
    }

    /// Records that everything was listed.
    pub fn note_list(&mut self, now: Instant) {
        (self.count, self.listed_at) = (0, Some(now));
    }

    /// Records that everything has to be listed again (410).
    pub fn note_expiry(&mut self, now: Instant, timing: &Timing) {
        if self.listed_at.take().is_some_and(|at| now.duration_since(at) >= timing.last) {
            self.wasted_lists = 0;
        }
        self.count = self.count.max(self.wasted_lists);
        self.wasted_lists += 1;
    }

    /// Returns the delay before the next request, and counts the failure.
    pub fn delay(&mut self, timing: &Timing) -> Duration {
        let longest = timing.first.saturating_mul(1 << self.count.min(16)).min(timing.last);
        self.count += 1;
        longest - longest.mul_f64((random() % 1024) as f64 / 2048.0)
    }
}

/// Any number; each call another one. Good for spreading, not for secrets.
pub fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(rounds: usize, mut round: impl FnMut(&mut Failures)) -> Vec<Duration> {
        let (mut failures, timing) = (Failures::default(), Timing::default());
        let mut delay = || {
            round(&mut failures);
            failures.delay(&timing)
        };
        (0..rounds).map(|_| delay()).collect()
    }

    #[test]
    fn delays_grow_up_to_a_bound_and_begin_anew_after_progress() {
        let timing = Timing::default();
        let grown = delays(12, |_| {});
        for (round, delay) in grown.iter().enumerate() {
            let longest = (timing.first * (1 << round)).min(timing.last);
            assert!(*delay <= longest && *delay >= longest / 2, "{grown:?}");
        }
        assert!(delays(12, Failures::end).iter().all(|delay| *delay <= timing.first));
    }

    #[test]
    fn lists_that_expire_soon_come_ever_more_seldom_and_one_whose_watch_lasted_is_no_failure() {
        let timing = Timing::default();
        let begun = Instant::now();
        let (mut soon, mut late) = (begun, begun);
        let wasted = delays(12, |failures| {
            failures.note_list(soon);
            soon += timing.last / 2;
            failures.note_expiry(soon, &timing);
        });
        assert!(wasted.last().is_some_and(|delay| *delay >= timing.last / 2), "{wasted:?}");
        let lasting = delays(12, |failures| {
            failures.note_list(late);
            late += timing.last;
            failures.note_expiry(late, &timing);
        });
        assert!(lasting.iter().all(|delay| *delay <= timing.first), "{lasting:?}");
    }
}
