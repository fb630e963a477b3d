//! When to give freed memory back: after much work, when it is over, or once a minute while it goes on.
//!
//! A first sync, an audit or a whole table of learned routes takes many times what is left in the end, and an allocator keeps
//! what is free between what is used: a tenth of what a large node occupies.

use std::time::{Duration, Instant};

/// Steps after which there is something to give back.
const MUCH: u64 = 1000;
/// Work is over when there was none for so long.
const QUIET: Duration = Duration::from_secs(5);
/// Work that goes on for so long after there was much is not waited for.
const LONG: Duration = Duration::from_secs(60);

/// Work since memory was last given back.
#[derive(Debug)]
pub struct Leftovers {
    steps: u64,
    last: Instant,
    /// Since when there is something to give back.
    much_since: Option<Instant>,
}

impl Leftovers {
    pub fn new(now: Instant) -> Leftovers {
        Leftovers { steps: 0, last: now, much_since: None }
    }

    /// Records steps, or other work that took as much memory.
    pub fn worked(&mut self, steps: u64, now: Instant) {
        if steps > 0 {
            self.steps = self.steps.saturating_add(steps);
            self.last = now;
            if self.steps >= MUCH {
                self.much_since.get_or_insert(now);
            }
        }
    }

    /// Records work on everything that is known: a first sync, an audit.
    pub fn worked_on_all(&mut self, now: Instant) {
        self.worked(MUCH, now);
    }

    /// Returns when memory is to be given back; `None` if there was too little work.
    pub fn deadline(&self) -> Option<Instant> {
        self.much_since.map(|since| (self.last + QUIET).min(since + LONG))
    }

    /// Returns whether memory is to be given back now: once after much work.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.deadline().is_some_and(|due| now >= due);
        if is_due {
            (self.steps, self.much_since) = (0, None);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_when_much_work_is_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leftovers = Leftovers::new(start);
        assert!(!leftovers.take_due(at(60)), "nothing was done");
        leftovers.worked(MUCH - 1, at(60));
        assert!(!leftovers.take_due(at(120)), "a few changes leave little");
        leftovers.worked(1, at(120));
        assert!(!leftovers.take_due(at(124)), "work may go on");
        leftovers.worked(1, at(124));
        leftovers.worked(0, at(128));
        assert!(!leftovers.take_due(at(128)) && leftovers.take_due(at(129)));
        assert!(!leftovers.take_due(at(200)), "it was given back");
        leftovers.worked_on_all(at(200));
        assert!(leftovers.take_due(at(205)));
    }

    #[test]
    fn memory_is_given_back_once_a_minute_while_work_never_ends() {
        let start = Instant::now();
        let mut leftovers = Leftovers::new(start);
        let due = (0..600).filter(|second| {
            let now = start + Duration::from_secs(*second);
            leftovers.worked(MUCH / 10, now);
            leftovers.take_due(now)
        });
        let due: Vec<u64> = due.collect();
        assert!((8..=10).contains(&due.len()), "{due:?}");
    }
}
