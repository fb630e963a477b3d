//! When to remove what earlier runs left with another packet filter: once everything that replaces it is in place, and again
//! while something remains, because what remains goes on judging packets.

use std::time::{Duration, Instant};

/// The pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Each try lists tables and sets, starts programs where something may be ours, and the subsystem waits for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The state of the removal, and of tries after failures.
#[derive(Debug)]
pub struct Abandoned {
    is_gone: bool,
    /// After a failure: when to try again.
    next: Option<Instant>,
    pause: Duration,
    /// Why something remains, after the last try.
    errors: Vec<String>,
}

impl Abandoned {
    pub fn new() -> Abandoned {
        Abandoned { is_gone: false, next: None, pause: FIRST_PAUSE, errors: Vec::new() }
    }

    /// Returns whether it is time to remove it, if everything that replaces it is in place.
    pub fn is_due(&self, now: Instant) -> bool {
        !self.is_gone && self.next.is_none_or(|next| now >= next)
    }

    /// Returns the time of the next try. `None` before the first one, which a change of the kernel brings about, and after the last.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Records that a try which was due has to wait for its replacement.
    pub fn postpone(&mut self, now: Instant) {
        if self.next.is_some() {
            self.next = Some(now + self.pause);
        }
    }

    /// Records a part of a try; the next part is due then.
    pub fn goes_on(&mut self, next: Instant) {
        self.next = Some(next);
    }

    /// Records a try, with the reasons why something remains. Returns whether they are others than before.
    pub fn tried(&mut self, errors: Vec<String>, now: Instant) -> bool {
        self.is_gone = errors.is_empty();
        self.next = (!self.is_gone).then_some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let is_news = self.errors != errors;
        self.errors = errors;
        is_news
    }

    /// Returns why something remains; empty before the first try.
    pub fn errors(&self) -> &[String] {
        &self.errors
    }

    /// Returns what remains as a trouble.
    pub fn trouble(&self) -> Option<String> {
        let reasons = self.errors.join("; ");
        (!self.errors.is_empty())
            .then(|| format!("rules of an earlier run with another packet filter remain: {reasons}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_tried_again_until_it_is_gone_and_told_meanwhile() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut abandoned = Abandoned::new();
        assert!(abandoned.is_due(start) && abandoned.deadline().is_none() && abandoned.trouble().is_none());
        assert!(abandoned.tried(vec!["set in use".to_owned()], start), "it is news");
        assert!(!abandoned.is_due(start) && abandoned.deadline() == Some(at(1)));
        assert!(abandoned.trouble().is_some_and(|trouble| trouble.ends_with("remain: set in use")));
        assert!(!abandoned.tried(vec!["set in use".to_owned()], at(1)), "it is said once");
        assert_eq!(abandoned.deadline(), Some(at(3)));
        abandoned.postpone(at(3));
        assert!(abandoned.deadline() > Some(at(3)), "no deadline that has passed");
        for _ in 0..30 {
            abandoned.tried(vec!["set in use".to_owned()], at(9));
        }
        assert_eq!(abandoned.deadline(), Some(at(9 + 3600)), "the longest pause");
        abandoned.goes_on(at(10));
        assert!(abandoned.deadline() == Some(at(10)) && abandoned.trouble().is_some(), "a part of the next try");
        abandoned.tried(Vec::new(), at(10));
        assert!(!abandoned.is_due(at(1000)) && abandoned.deadline().is_none() && abandoned.trouble().is_none());
    }
}
