//! Which problems of Services are to be told, when, and which were told.
//!
//! A problem that lasts for a moment only is not worth an Event ([`SETTLE`]). One that all nodes find is told by one node ([`Rank`]); where that
//! one does not, two others follow, whom the API server tells that it has the Event. One that ends and comes back soon is not told again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::model::{ObjectName, ServiceProblem, ServiceProblems};

/// A problem must last for so long.
pub const SETTLE: Duration = Duration::from_secs(10);
/// So much later than the one before, a node that stands in for another tells.
pub const STAND_IN: Duration = Duration::from_secs(300);
/// When a node that is not to tell a problem looks again whether it is now.
pub const RECONSIDER: Duration = Duration::from_secs(600);
/// For so long from its Event on a problem that ends and comes back is not told again.
pub const QUIET: Duration = Duration::from_secs(600);
/// The delay after an Event that could not be sent, which doubles, and the longest one.
const AGAIN: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Most problems that are known here, and most that were told and are remembered.
const MOST: usize = 4096;

/// The place of this node among those that tell a problem: 0 tells first. `None`: it does not tell.
pub type Rank = Option<u32>;

/// A problem of a Service.
pub type Key = (ObjectName, ServiceProblem);

/// The problems that are there now.
pub struct Ledger {
    /// [`SETTLE`]; shorter in tests.
    settle: Duration,
    /// The problems that each source has published last.
    sources: BTreeMap<usize, ServiceProblems>,
    open: BTreeMap<Key, Open>,
    /// Those of them that are to be looked at, by time.
    agenda: BTreeSet<(Instant, Key)>,
    /// Those that were told and are gone, until they may be told again.
    quiet: BTreeMap<Key, Instant>,
}

/// A problem that is there.
struct Open {
    since: Instant,
    state: State,
    /// It was told, and is not told again before then.
    quiet: Option<Instant>,
    /// So often it could not be sent.
    failures: u32,
}

#[derive(Clone, Copy)]
enum State {
    /// It is to be looked at then.
    Due(Instant),
    Told,
}

/// Decision about a problem that was due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Tell,
    Later(Instant),
}

impl Ledger {
    pub fn new(settle: Duration) -> Ledger {
        let (sources, open, agenda, quiet) = Default::default();
        Ledger { settle, sources, open, agenda, quiet }
    }

    /// Notes a source's newest problems, at the cost of what has changed.
    pub fn follow(&mut self, source: usize, newest: &ServiceProblems, now: Instant) {
        let older = self.sources.insert(source, newest.clone()).unwrap_or_default();
        for change in newest.changes_since(&older) {
            let service = change.key();
            let none = Vec::new();
            let [before, after] = [&older, newest].map(|table| table.get(service).map_or(&none, |found| &**found));
            for gone in before.iter().filter(|problem| !after.contains(problem)) {
                self.close((service.clone(), gone.clone()), now);
            }
            for new in after.iter().filter(|problem| !before.contains(problem)) {
                self.open((service.clone(), new.clone()), now);
            }
        }
    }

    fn open(&mut self, key: Key, now: Instant) {
        if self.open.len() >= MOST {
            return;
        }
        let quiet = self.quiet.remove(&key).filter(|until| *until > now);
        let settled = now + self.settle;
        // The Service may be another one of this name, which has no Event yet.
        let due = quiet.map_or(settled, |until| until.max(settled));
        self.agenda.insert((due, key.clone()));
        self.open.insert(key, Open { since: now, state: State::Due(due), quiet, failures: 0 });
    }

    fn close(&mut self, key: Key, now: Instant) {
        let Some(open) = self.open.remove(&key) else { return };
        if let State::Due(due) = open.state {
            self.agenda.remove(&(due, key.clone()));
        }
        if let Some(until) = open.quiet.filter(|until| *until > now) {
            self.keep_quiet(key, until, now);
        }
    }

    fn keep_quiet(&mut self, key: Key, until: Instant, now: Instant) {
        if self.quiet.len() >= MOST {
            self.quiet.retain(|_, until| *until > now);
        }
        if self.quiet.len() < MOST {
            self.quiet.insert(key, until);
        }
    }

    /// Returns when the next problem is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.agenda.first().map(|(due, _)| *due)
    }

    /// Returns a problem that is due.
    pub fn due(&self, now: Instant) -> Option<&Key> {
        self.agenda.first().filter(|(due, _)| *due <= now).map(|(_, key)| key)
    }

    /// Decides about a problem, by this node's place among those that tell it. `later` spreads what many nodes find at once.
    pub fn judge(&self, key: &Key, rank: Rank, later: Duration, now: Instant) -> Verdict {
        let Some((open, rank)) = self.open.get(key).zip(rank) else { return Verdict::Later(now + RECONSIDER) };
        let at = open.since + self.settle + STAND_IN * rank + later;
        if at <= now { Verdict::Tell } else { Verdict::Later(at) }
    }

    /// Puts a problem off.
    pub fn postpone(&mut self, key: &Key, until: Instant) {
        self.set(key, State::Due(until));
    }

    /// Puts a problem off that could not be sent, later and later.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        let Some(open) = self.open.get_mut(key) else { return };
        open.failures = (open.failures + 1).min(10);
        let pause = (AGAIN * 2_u32.pow(open.failures - 1)).min(LONGEST_PAUSE);
        self.set(key, State::Due(now + pause));
    }

    /// Notes that a problem was told.
    pub fn told(&mut self, key: &Key, now: Instant) {
        self.set(key, State::Told);
        if let Some(open) = self.open.get_mut(key) {
            open.quiet = Some(now + QUIET);
        }
    }

    fn set(&mut self, key: &Key, state: State) {
        let Some(open) = self.open.get_mut(key) else { return };
        if let State::Due(before) = std::mem::replace(&mut open.state, state) {
            self.agenda.remove(&(before, key.clone()));
        }
        if let State::Due(due) = state {
            self.agenda.insert((due, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Cause;

    const SECOND: Duration = Duration::from_secs(1);

    fn table(services: usize, subjects: &[&str]) -> ServiceProblems {
        let mut table = ServiceProblems::default();
        for number in 0..services {
            let problem = |subject: &&str| ServiceProblem::new(Cause::Refused, subject, (*subject).to_owned());
            table.insert(ObjectName::new("shop", &number.to_string()), subjects.iter().map(problem).collect());
        }
        table
    }

    /// Tells all that is due to a node of this rank; returns the number.
    fn tell(ledger: &mut Ledger, rank: Rank, now: Instant) -> usize {
        let mut told = 0;
        while let Some(key) = ledger.due(now).cloned() {
            match ledger.judge(&key, rank, Duration::ZERO, now) {
                Verdict::Tell => {
                    told += 1;
                    ledger.told(&key, now);
                }
                Verdict::Later(until) => {
                    assert!(until > now, "it would be asked for ever");
                    ledger.postpone(&key, until);
                }
            }
        }
        told
    }

    #[test]
    fn a_problem_is_told_once_when_it_has_lasted() {
        let (mut ledger, now) = (Ledger::new(SETTLE), Instant::now());
        ledger.follow(0, &table(1, &["a"]), now);
        assert_eq!(tell(&mut ledger, Some(0), now + SETTLE - SECOND), 0);
        assert_eq!(tell(&mut ledger, Some(0), now + SETTLE), 1);
        ledger.follow(0, &table(1, &["a", "b"]), now + SETTLE);
        assert_eq!(tell(&mut ledger, Some(0), now + SETTLE * 2), 1, "the new one alone");
        assert_eq!(ledger.deadline(), None, "who has nothing to tell sleeps");
        assert_eq!(tell(&mut ledger, Some(0), now + QUIET * 100), 0, "it is not repeated");
    }

    #[test]
    fn a_problem_that_lasts_for_a_moment_is_not_told() {
        let (mut ledger, mut now) = (Ledger::new(SETTLE), Instant::now());
        for _ in 0..100 {
            ledger.follow(0, &table(1, &["a"]), now);
            now += SECOND;
            ledger.follow(0, &table(0, &[]), now);
            assert_eq!(tell(&mut ledger, Some(0), now), 0);
        }
        assert!(ledger.open.is_empty() && ledger.quiet.is_empty() && ledger.agenda.is_empty());
    }

    #[test]
    fn what_comes_back_is_told_again_and_what_flaps_is_told_every_ten_minutes() {
        let (mut ledger, begun) = (Ledger::new(SETTLE), Instant::now());
        let mut told = 0;
        for minute in 0..120 {
            let now = begun + SECOND * 60 * minute;
            ledger.follow(0, &table(1, &["a"]), now);
            told += tell(&mut ledger, Some(0), now + SETTLE);
            ledger.follow(0, &table(0, &[]), now + SETTLE);
        }
        assert!((10..=14).contains(&told), "{told}");
        let later = begun + SECOND * 7200 + QUIET * 2;
        ledger.follow(0, &table(1, &["a"]), later);
        assert_eq!(tell(&mut ledger, Some(0), later + SETTLE), 1);
    }

    #[test]
    fn what_is_refused_for_ever_is_sent_ever_more_seldom() {
        let (mut ledger, mut now) = (Ledger::new(SETTLE), Instant::now());
        ledger.follow(0, &table(1, &["a"]), now);
        let begun = now;
        let mut sent = 0;
        while let Some(due) = ledger.deadline().filter(|due| *due < begun + SECOND * 86_400) {
            now = due;
            let key = ledger.due(now).expect("it is due").clone();
            ledger.failed(&key, now);
            sent += 1;
        }
        assert!((25..40).contains(&sent), "{sent} in a day");
    }

    #[test]
    fn a_service_of_the_same_name_that_was_created_later_has_an_event_of_its_own() {
        let (mut ledger, now) = (Ledger::new(SETTLE), Instant::now());
        let created = |created: i64| {
            let mut table = ServiceProblems::default();
            let problem = ServiceProblem::new(Cause::Refused, "a", "a".to_owned()).of(created);
            table.insert(ObjectName::new("shop", "web"), vec![problem]);
            table
        };
        ledger.follow(0, &created(1), now);
        assert_eq!(tell(&mut ledger, Some(0), now + SETTLE), 1);
        ledger.follow(0, &created(2), now + SETTLE);
        assert_eq!(tell(&mut ledger, Some(0), now + SETTLE * 2), 1);
    }

    #[test]
    fn a_service_that_is_made_anew_with_the_same_mistake_is_told_again() {
        let (mut ledger, now) = (Ledger::new(SETTLE), Instant::now());
        ledger.follow(0, &table(1, &["a"]), now);
        assert_eq!(tell(&mut ledger, Some(0), now + SETTLE), 1);
        let anew = now + SECOND * 60;
        ledger.follow(0, &table(0, &[]), anew);
        ledger.follow(0, &table(1, &["a"]), anew);
        assert_eq!(tell(&mut ledger, Some(0), anew + SETTLE), 0);
        assert_eq!(tell(&mut ledger, Some(0), now + SETTLE + QUIET), 1, "it stays, so it is told in the end");
    }

    #[test]
    fn a_node_that_stands_in_tells_later_and_one_without_a_place_never() {
        let (mut ledger, now) = (Ledger::new(SETTLE), Instant::now());
        ledger.follow(0, &table(1, &["a"]), now);
        assert_eq!(tell(&mut ledger, None, now + RECONSIDER * 10), 0);
        let mut ledger = Ledger::new(SETTLE);
        ledger.follow(0, &table(1, &["a"]), now);
        assert_eq!(tell(&mut ledger, Some(2), now + SETTLE + STAND_IN), 0);
        assert_eq!(tell(&mut ledger, Some(2), now + SETTLE + STAND_IN * 2), 1);
    }

    #[test]
    fn what_is_known_is_bounded_also_where_everything_comes_and_goes() {
        let (mut ledger, mut now) = (Ledger::new(SETTLE), Instant::now());
        for round in 0..4 {
            let subjects: Vec<String> = (0..4).map(|number| format!("{round}-{number}")).collect();
            let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
            ledger.follow(0, &table(2000, &subjects), now);
            now += SETTLE;
            assert_eq!(tell(&mut ledger, Some(0), now), MOST, "{round}");
            assert!(ledger.open.len() <= MOST && ledger.quiet.len() <= MOST);
            ledger.follow(0, &table(0, &[]), now);
        }
        assert!(ledger.open.is_empty() && ledger.agenda.is_empty());
    }

    #[test]
    fn two_sources_know_nothing_of_each_other() {
        let (mut ledger, now) = (Ledger::new(SETTLE), Instant::now());
        ledger.follow(0, &table(1, &["a"]), now);
        ledger.follow(1, &table(1, &["b"]), now);
        ledger.follow(0, &table(0, &[]), now);
        assert_eq!(tell(&mut ledger, Some(0), now + SETTLE), 1);
    }
}
