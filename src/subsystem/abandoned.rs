//! When to remove what earlier runs left with another packet filter: once everything that replaces it is in place, and again
//! while something remains, because what remains goes on judging packets.
//!
//! Where there was something it is looked for again, until nothing is found: an agent that is being replaced and still runs repairs what is removed, and
//! then it ends. Without such a sign nothing is removed later: by then it may be what the next agent needs, after the way back to the former packet filter.

use std::time::{Duration, Instant};

/// The pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Each try lists tables and sets, starts programs where something may be ours, and the subsystem waits for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// The pauses before the first later looks, and before all others. An agent repairs at once what it is told of, and a pod ends within 30 s if nothing
/// else is said (`terminationGracePeriodSeconds`).
const LATER_LOOKS: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(60)];
const LATER_LOOKS_END: Duration = Duration::from_secs(600);
/// The pause before a look that had to wait for its replacement.
const POSTPONED: Duration = Duration::from_secs(10);

/// The trouble while the removal waits for its replacement.
const WAITS: &str = "rules of an earlier run with another packet filter stay, and judge packets, until the whole cluster is known and all that replaces them is in the kernel";

/// The state of the removal, and of tries after failures.
#[derive(Debug)]
pub struct Abandoned {
    next: Next,
    pause: Duration,
    /// There is or was something; `None` until that was looked for.
    found: Option<bool>,
    /// It has to wait for its replacement.
    waits: bool,
    /// Later looks that were taken or are to come.
    looks: usize,
    /// Why something remains, after the last try.
    errors: Vec<String>,
}

/// The next step, and its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// The first try, which a change of the kernel brings about.
    First,
    Try(Instant),
    /// It is looked whether somebody has put something back, and if so that is the next try.
    Look(Instant),
    /// All is gone and stayed away.
    Never,
}

impl Abandoned {
    pub fn new() -> Abandoned {
        Abandoned { next: Next::First, pause: FIRST_PAUSE, found: None, waits: false, looks: 0, errors: Vec::new() }
    }

    /// Returns whether it is time to remove it, if everything that replaces it is in place.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next == Next::First || self.deadline().is_some_and(|next| now >= next)
    }

    /// Returns the time of the next try or look. `None` before the first one, and after the last.
    pub fn deadline(&self) -> Option<Instant> {
        match self.next {
            Next::Try(next) | Next::Look(next) => Some(next),
            Next::First | Next::Never => None,
        }
    }

    /// Looks whether there is anything, before the first try and where somebody may have put something back. A later look that finds nothing is the last one.
    pub fn look(&mut self, is_there: impl FnOnce() -> bool) {
        match self.next {
            Next::First if self.found.is_none() => self.found = Some(is_there()),
            Next::Look(_) if !is_there() => self.next = Next::Never,
            Next::Look(due) => {
                self.next = Next::Try(due);
                self.found = Some(true);
            }
            Next::First | Next::Try(_) | Next::Never => {}
        }
    }

    /// Looks again while a try waits: others may have removed it.
    pub fn look_again(&mut self, is_there: impl FnOnce() -> bool) {
        if !self.waits || is_there() {
            return;
        }
        (self.found, self.waits) = (Some(false), false);
        if let Next::Try(_) = self.next {
            self.next = Next::Never;
            self.errors.clear();
        }
    }

    /// Returns whether something is known to be there.
    pub fn is_there(&self) -> bool {
        self.found == Some(true)
    }

    /// Records that what was due has to wait for the replacement.
    pub fn postpone(&mut self, now: Instant) {
        let next = now + self.pause.max(POSTPONED);
        self.next = match self.next {
            Next::First | Next::Never => self.next,
            Next::Try(_) => Next::Try(next),
            Next::Look(_) => Next::Look(next),
        };
        self.waits = self.is_there();
    }

    /// Records a part of a try; the next part is due then.
    pub fn goes_on(&mut self, next: Instant) {
        self.next = Next::Try(next);
    }

    /// Records a try, with the reasons why something remains. Returns whether they are others than before.
    pub fn tried(&mut self, errors: Vec<String>, now: Instant) -> bool {
        self.waits = false;
        if !errors.is_empty() {
            self.found = Some(true);
            self.next = Next::Try(now + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else if self.is_there() {
            let pause = *LATER_LOOKS.get(self.looks).unwrap_or(&LATER_LOOKS_END);
            self.next = Next::Look(now + pause);
            (self.found, self.pause) = (None, FIRST_PAUSE);
            self.looks += 1;
        } else {
            self.next = Next::Never;
        }
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
        if self.waits {
            return Some(WAITS.to_owned());
        }
        let reasons = self.errors.join("; ");
        (!self.errors.is_empty())
            .then(|| format!("rules of an earlier run with another packet filter remain: {reasons}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(start: Instant) -> impl Fn(u64) -> Instant {
        move |seconds| start + Duration::from_secs(seconds)
    }

    #[test]
    fn what_remains_is_tried_again_until_it_is_gone_and_told_meanwhile() {
        let start = Instant::now();
        let at = seconds(start);
        let mut abandoned = Abandoned::new();
        abandoned.look(|| false);
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
        assert!(!abandoned.is_due(at(29)) && abandoned.trouble().is_none());
    }

    #[test]
    fn what_an_agent_that_ends_puts_back_is_looked_for_until_it_stays_away() {
        let start = Instant::now();
        let at = seconds(start);
        let mut abandoned = Abandoned::new();
        abandoned.look(|| true);
        abandoned.tried(Vec::new(), start);
        assert_eq!(abandoned.deadline(), Some(at(20)));
        abandoned.look(|| true);
        abandoned.tried(vec!["set in use".to_owned()], at(20));
        assert_eq!(abandoned.deadline(), Some(at(21)), "it fails as at the first time");
        abandoned.look(|| unreachable!("it is known to be there"));
        abandoned.tried(Vec::new(), at(21));
        assert_eq!(abandoned.deadline(), Some(at(81)));
        for looks in 0..3 {
            abandoned.look(|| true);
            abandoned.tried(Vec::new(), at(81));
            assert_eq!(abandoned.deadline(), Some(at(681)), "look {looks}");
        }
        abandoned.look(|| false);
        assert!(!abandoned.is_due(at(100_000)) && abandoned.deadline().is_none(), "it stayed away");
    }

    #[test]
    fn where_nothing_was_left_nothing_is_looked_for_again() {
        let mut abandoned = Abandoned::new();
        abandoned.look(|| false);
        abandoned.tried(Vec::new(), Instant::now());
        assert!(abandoned.deadline().is_none());
    }

    #[test]
    fn what_was_put_back_waits_for_its_replacement_as_well_and_is_told() {
        let start = Instant::now();
        let at = seconds(start);
        let mut abandoned = Abandoned::new();
        abandoned.look(|| true);
        abandoned.tried(Vec::new(), start);
        assert_eq!(abandoned.trouble(), None);
        abandoned.postpone(at(20));
        assert!(abandoned.trouble().is_none() && abandoned.deadline() == Some(at(30)), "nothing was found yet");
        abandoned.look(|| true);
        abandoned.postpone(at(30));
        assert_eq!((abandoned.trouble().as_deref(), abandoned.deadline()), (Some(WAITS), Some(at(40))));
        abandoned.look(|| unreachable!("it is known"));
        abandoned.tried(Vec::new(), at(40));
        assert_eq!((abandoned.trouble(), abandoned.deadline()), (None, Some(at(100))));
    }

    #[test]
    fn what_is_left_is_told_while_its_replacement_is_awaited() {
        let now = Instant::now();
        for found in [true, false] {
            let mut abandoned = Abandoned::new();
            abandoned.postpone(now);
            assert_eq!(abandoned.trouble(), None, "nothing is known yet");
            abandoned.look(|| found);
            abandoned.postpone(now);
            assert_eq!(abandoned.trouble().as_deref(), found.then_some(WAITS));
            abandoned.look(|| unreachable!("it is known"));
            abandoned.look_again(|| false);
            assert_eq!(abandoned.trouble(), None, "others have removed it");
        }
    }
}
