//! Changes of the kernel by others, and when to look at them.
//!
//! Others change things in bursts, so their changes are left alone for a moment after the first notice; everything
//! notified meanwhile is looked at together.

use std::time::{Duration, Instant};

use crate::kernel::monitor::{Changes, Notice};

/// The notices that a subsystem waits for, and their deadlines.
pub struct Disturbances {
    noted: Changes,
    waiting: Vec<Waiting>,
}

struct Waiting {
    notice: Notice,
    due: Option<Instant>,
}

/// Time for which the objects of a notice are left alone.
fn settle(notice: Notice) -> Duration {
    match notice {
        Notice::Ours | Notice::LocalRoutes | Notice::Routes | Notice::RoutingRules => Duration::from_millis(20),
        // All links are listed; a pod that starts changes its own several times.
        Notice::Ports => Duration::from_millis(100),
        // Reading them starts programs.
        Notice::Rules => Duration::from_millis(500),
        Notice::Ways => Duration::from_millis(200),
    }
}

impl Disturbances {
    /// Waits for these notices; `noted` is the baseline from which changes count.
    pub fn new(notices: impl IntoIterator<Item = Notice>, noted: Changes) -> Disturbances {
        let mut waiting: Vec<Waiting> = Vec::new();
        for notice in notices {
            if waiting.iter().all(|other| other.notice != notice) {
                waiting.push(Waiting { notice, due: None });
            }
        }
        Disturbances { noted, waiting }
    }

    /// Compares with the newest counters.
    pub fn note(&mut self, newest: Changes, now: Instant) {
        for Waiting { notice, due } in &mut self.waiting {
            if newest.count(*notice) != self.noted.count(*notice) && due.is_none() {
                *due = Some(now + settle(*notice));
            }
        }
        self.noted = newest;
    }

    /// Returns when something has to be looked at; `None` without a notice.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|waiting| waiting.due).min()
    }

    /// Returns the notices that are due. Each comes again only after another change.
    pub fn take_due(&mut self, now: Instant) -> Vec<Notice> {
        let is_due = |waiting: &&mut Waiting| waiting.due.is_some_and(|due| due <= now);
        let due = self.waiting.iter_mut().filter(is_due).map(|waiting| {
            waiting.due = None;
            waiting.notice
        });
        due.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ours: u64, rules: u64, routes: u64) -> Changes {
        Changes { ours, rules, routes, ..Changes::default() }
    }

    #[test]
    fn a_burst_is_looked_at_once_and_as_soon_as_its_first_notice_has_settled() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut disturbances = Disturbances::new([Notice::Ours, Notice::Rules, Notice::Ours], told(4, 4, 4));
        disturbances.note(told(4, 4, 4), start);
        assert_eq!(disturbances.deadline(), None, "what was told before the start means nothing");
        disturbances.note(told(5, 4, 4), start);
        disturbances.note(told(9, 5, 4), after(10));
        assert_eq!(disturbances.deadline(), Some(after(20)));
        assert_eq!(disturbances.take_due(after(19)), []);
        assert_eq!(disturbances.take_due(after(20)), [Notice::Ours]);
        assert_eq!(disturbances.deadline(), Some(after(510)));
        assert_eq!(disturbances.take_due(after(600)), [Notice::Rules]);
        assert_eq!(disturbances.deadline(), None, "who has looked sleeps");
    }

    #[test]
    fn a_pod_that_starts_has_the_links_listed_once() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let told = |ports| Changes { ports, ..Changes::default() };
        let mut disturbances = Disturbances::new([Notice::Ports], told(0));
        for (changes, milliseconds) in (1..).zip([0, 30, 60, 90]) {
            disturbances.note(told(changes), after(milliseconds));
            assert_eq!(disturbances.take_due(after(milliseconds)), []);
        }
        assert_eq!(disturbances.take_due(after(100)), [Notice::Ports]);
        assert_eq!(disturbances.deadline(), None);
    }

    #[test]
    fn what_nobody_waits_for_wakes_nobody() {
        let start = Instant::now();
        let mut disturbances = Disturbances::new([Notice::Rules], Changes::default());
        disturbances.note(told(1, 0, 1), start);
        assert_eq!(disturbances.deadline(), None);
    }
}
