//! When the thread takes its turns: where there is always something to do, one turn serves all that came since the last one.
//!
//! A wake-up costs as much as some packets do, and a packet that is read together with others costs less than one alone. So while
//! turns would follow each other faster than the pause, packets do not wake the thread: it rests for the pause, and then reads what
//! has come. A turn that finds nothing to do ends that, so few sessions are woken by their packets and timers alone.

use std::time::{Duration, Instant};

/// Time for which the pause between two turns is not calculated again.
const SAME_PAUSE: Duration = Duration::from_secs(1);

/// The last two turns, and how much time is to be between two of them.
pub(super) struct Turns {
    last: Instant,
    this: Instant,
    /// This turn was preceded by a rest, or followed the last one within the pause.
    is_close: bool,
    rests: bool,
    pause: Duration,
    calculated_at: Instant,
}

impl Turns {
    pub(super) fn new(now: Instant) -> Turns {
        Turns { last: now, this: now, is_close: false, rests: false, pause: Duration::ZERO, calculated_at: now }
    }

    /// Begins a turn.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.last, self.this) = (self.this, now);
        self.is_close = self.rests || now.saturating_duration_since(self.last) < self.pause;
    }

    /// Has the pause calculated anew with this turn: sessions with shorter intervals cannot wait as long.
    pub(super) fn forget(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// Ends the turn. Returns the time until which packets can wait; `None` where the next one wakes the thread. `is_busy`: the turn
    /// has received or sent something. `pause`: the time for which nobody needs to be woken again.
    pub(super) fn rest(&mut self, is_busy: bool, pause: impl FnOnce() -> Duration) -> Option<Instant> {
        if self.pause.is_zero() || self.this.saturating_duration_since(self.calculated_at) >= SAME_PAUSE {
            (self.pause, self.calculated_at) = (pause(), self.this);
        }
        self.rests = is_busy && self.is_close;
        self.rests.then(|| self.this + self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(18);

    fn millis(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// Takes a turn at each of these times, in milliseconds, that is busy or not; returns for how long it is followed by a rest.
    fn rests(turns: &[(u64, bool)]) -> Vec<Option<u64>> {
        let begin = Instant::now();
        let mut all = Turns::new(begin);
        let rest = |(at, is_busy): &(u64, bool)| {
            let now = begin + millis(*at);
            all.begin(now);
            all.rest(*is_busy, || PAUSE).map(|until| (until - now).as_millis() as u64)
        };
        turns.iter().map(rest).collect()
    }

    #[test]
    fn turns_that_follow_each_other_closely_are_followed_by_rests_until_one_has_nothing_to_do() {
        let turns = [(0, true), (30, true), (40, true), (58, true), (76, true), (94, false), (95, true), (96, true)];
        assert_eq!(rests(&turns), [None, None, Some(18), Some(18), Some(18), None, Some(18), Some(18)]);
    }

    #[test]
    fn few_sessions_are_woken_by_their_packets() {
        let turns: Vec<(u64, bool)> = (0..100).map(|number| (number * 40, true)).collect();
        assert!(rests(&turns).iter().all(Option::is_none));
    }

    #[test]
    fn a_rest_that_somebody_has_cut_short_is_taken_up_again() {
        let turns = [(0, true), (5, true), (10, false), (15, true)];
        assert_eq!(rests(&turns), [None, Some(18), None, Some(18)]);
    }

    #[test]
    fn the_pause_follows_the_sessions_within_a_second() {
        let begin = Instant::now();
        let mut turns = Turns::new(begin);
        let mut rest = |at, pause| {
            turns.begin(begin + millis(at));
            turns.rest(true, || pause)
        };
        assert_eq!(rest(0, PAUSE), None, "nobody knows yet how close to each other turns are");
        assert_eq!(rest(1, PAUSE), Some(begin + millis(19)));
        assert_eq!(rest(20, millis(3)), Some(begin + millis(38)), "it is not calculated in every turn");
        assert_eq!(rest(1020, millis(3)), Some(begin + millis(1023)));
    }

    #[test]
    fn the_pause_follows_another_interval_in_the_same_turn() {
        let begin = Instant::now();
        let mut turns = Turns::new(begin);
        turns.begin(begin);
        assert_eq!(turns.rest(true, || PAUSE), None);
        turns.begin(begin + millis(1));
        turns.forget();
        assert_eq!(turns.rest(true, || millis(1)), Some(begin + millis(2)), "packets come every 5 ms from now on");
    }
}
