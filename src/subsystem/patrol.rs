//! Looks for changes by others of kernel objects without notifications: virtual services, set elements.
//!
//! Two kinds of looks: a glance at everything, which sees most changes at little cost, and reading in portions, one
//! pass after the other, which sees all. Both come every [`PERIOD`] where they can; where there is much to look at they come
//! more rarely, so that each costs no more than one part in [`PART`] of a core: of the time that a thread spent on looking, not of
//! that for which it waited. A look that found something may have taken long for reading and repairing that; it delays
//! none. Whatever is left to find is found by the audit.

use std::time::{Duration, Instant};

/// Time between two glances, and between the beginnings of two passes.
const PERIOD: Duration = Duration::from_secs(10);
/// Least time without looks, as a multiple of the time a look took.
const PART: u32 = 2000;
/// Longest time between two looks, however much there is to look at.
const LONGEST: Duration = Duration::from_secs(60);

/// Times of the next looks.
#[derive(Debug)]
pub struct Patrol {
    glance_at: Instant,
    portion_at: Instant,
    pass_began: Instant,
}

/// One look: a glance, or the reading of a portion.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Processor time spent.
    pub took: Duration,
    pub found_drift: bool,
}

impl Look {
    /// The time without another look of the same kind.
    fn pause(self) -> Duration {
        if self.found_drift { Duration::ZERO } else { self.took.saturating_mul(PART).min(LONGEST) }
    }
}

impl Patrol {
    /// The first looks come after a period: what is known has just been read.
    pub fn new(now: Instant) -> Patrol {
        Patrol { glance_at: now + PERIOD, portion_at: now + PERIOD, pass_began: now + PERIOD }
    }

    /// Returns when there is something to do next.
    pub fn deadline(&self) -> Instant {
        self.glance_at.min(self.portion_at)
    }

    pub fn glance_is_due(&self, now: Instant) -> bool {
        now >= self.glance_at
    }

    pub fn portion_is_due(&self, now: Instant) -> bool {
        now >= self.portion_at
    }

    /// Records a glance.
    pub fn glanced(&mut self, now: Instant, look: Look) {
        self.glance_at = now + look.pause().max(PERIOD);
    }

    /// Records that a portion has been read, and whether it was the last of a pass.
    pub fn read_portion(&mut self, now: Instant, look: Look, finished: bool) {
        self.portion_at = now + look.pause();
        if finished {
            self.portion_at = self.portion_at.max(self.pass_began + PERIOD);
            self.pass_began = self.portion_at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(took: Duration) -> Look {
        Look { took, found_drift: false }
    }

    #[test]
    fn few_services_are_looked_at_once_in_a_period() {
        let now = Instant::now();
        let mut patrol = Patrol::new(now);
        let (mut portions, mut at) = (0, now);
        while at < now + 10 * PERIOD {
            at = patrol.deadline();
            if patrol.glance_is_due(at) {
                patrol.glanced(at, look(Duration::from_micros(100)));
            }
            if patrol.portion_is_due(at) {
                portions += 1;
                patrol.read_portion(at, look(Duration::from_micros(100)), portions % 3 == 0);
            }
        }
        assert!((28..=33).contains(&portions), "three portions in each of ten periods: {portions}");
    }

    #[test]
    fn a_long_look_is_not_the_last_for_long() {
        let now = Instant::now();
        let mut patrol = Patrol::new(now);
        patrol.glanced(now, look(Duration::from_secs(10)));
        patrol.read_portion(now, look(Duration::from_secs(10)), false);
        assert!(patrol.glance_is_due(now + LONGEST) && patrol.portion_is_due(now + LONGEST));
    }

    #[test]
    fn looks_that_take_long_come_rarely() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut patrol = Patrol::new(now);
        patrol.glanced(now, look(Duration::from_millis(20)));
        patrol.read_portion(now, look(Duration::from_millis(2)), true);
        assert!(!patrol.glance_is_due(after(39)) && patrol.glance_is_due(after(40)));
        assert!(!patrol.portion_is_due(now + 2 * PERIOD - Duration::from_secs(1)));
        patrol.read_portion(now, look(Duration::from_millis(20)), false);
        assert!(!patrol.portion_is_due(after(39)) && patrol.portion_is_due(after(40)));
    }

    #[test]
    fn what_was_found_delays_no_look() {
        let now = Instant::now();
        let mut patrol = Patrol::new(now);
        let found = Look { took: Duration::from_secs(10), found_drift: true };
        patrol.glanced(now, found);
        patrol.read_portion(now, found, false);
        assert!(patrol.portion_is_due(now), "the pass goes on");
        assert!(!patrol.glance_is_due(now) && patrol.glance_is_due(now + PERIOD));
    }
}
