//! The sweep of all namespaces in which an earlier run may have left a tunnel: when it is due, what comes next, and why it is not over. No I/O.
//!
//! It begins once the cluster is known completely, and is over when everybody who knows of namespaces has answered and each was looked into. Until then it begins again every
//! [`SELDOM`], after [`OFTEN`] tries every [`RARELY`], and at once when the container runtime answers again: what is left in a pod that policies close is a way around them. After [`TOLD`] tries it is told what is lacking.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Interval of the first tries, and the shortest time between two sweeps.
pub const SELDOM: Duration = Duration::from_secs(30);
const RARELY: Duration = Duration::from_secs(600);
const OFTEN: u32 = 5;
const TOLD: u32 = 2;

/// A sweep, before, at work and after.
#[derive(Default)]
pub struct Sweep {
    state: State,
    /// The number of those since it was planned that were not complete.
    tries: u32,
    /// Why the last one was not, as a sentence without its end.
    lacking: Option<String>,
    /// When the last one began.
    began_at: Option<Instant>,
    /// Another one is wanted behind the one at work, whose answers may be older than what it is wanted for.
    is_wanted_again: bool,
}

#[derive(Default)]
enum State {
    /// Waits for the cluster to be known completely.
    #[default]
    Waiting,
    Due(Instant),
    Surveying,
    Clearing {
        places: Vec<PathBuf>,
        /// Why not everything was found, or could be cleared so far.
        lacking: Option<String>,
    },
    Done,
}

/// The next act of a sweep.
#[derive(PartialEq, Eq, Debug)]
pub enum NextOfSweep {
    Survey,
    Clear(PathBuf),
}

impl Sweep {
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// Has it begin at once.
    pub fn begin(&mut self, now: Instant) {
        (self.state, self.tries, self.is_wanted_again) = (State::Due(now), 0, false);
    }

    /// Has it begin at once, or some time after the last one: one for all that want it meanwhile. One at work goes on to its end, so that whoever wants one
    /// again and again keeps no place from being cleared, nor what is lacking from being told.
    pub fn plan(&mut self, now: Instant) {
        let at = self.earliest(now);
        match &mut self.state {
            State::Surveying | State::Clearing { .. } => self.is_wanted_again = true,
            State::Due(due) => *due = at.min(*due),
            State::Waiting | State::Done => (self.state, self.tries) = (State::Due(at), 0),
        }
    }

    fn earliest(&self, now: Instant) -> Instant {
        self.began_at.map_or(now, |began| now.max(began + SELDOM))
    }

    /// Notes that the container runtime answers again: one at work may have been told less.
    pub fn runtime_is_back(&mut self, now: Instant) {
        match &mut self.state {
            State::Due(at) => *at = now.min(*at),
            State::Surveying | State::Clearing { .. } => self.is_wanted_again = true,
            State::Waiting | State::Done => {}
        }
    }

    /// Returns what is to be done now. `is_asking`: a question to the runtime is on its way.
    pub fn next(&mut self, now: Instant, is_asking: bool) -> Option<NextOfSweep> {
        match &mut self.state {
            State::Due(at) if *at <= now && !is_asking => {
                (self.state, self.began_at) = (State::Surveying, Some(now));
                Some(NextOfSweep::Survey)
            }
            State::Clearing { places, lacking } => {
                if let Some(place) = places.pop() {
                    return Some(NextOfSweep::Clear(place));
                }
                self.lacking = lacking.take();
                self.end(now);
                None
            }
            State::Waiting | State::Due(_) | State::Surveying | State::Done => None,
        }
    }

    fn end(&mut self, now: Instant) {
        let again = std::mem::take(&mut self.is_wanted_again).then(|| self.earliest(now));
        if self.lacking.is_none() {
            (self.state, self.tries) = (again.map_or(State::Done, State::Due), 0);
            return;
        }
        self.tries = self.tries.saturating_add(1);
        let pause = if self.tries < OFTEN { SELDOM } else { RARELY };
        self.state = State::Due(again.unwrap_or(now + pause));
    }

    /// Notes all places, and why there may be others.
    pub fn surveyed(&mut self, places: BTreeSet<PathBuf>, lacking: Option<String>) {
        // What was asked of it may have become another question.
        if matches!(self.state, State::Surveying) {
            self.state = State::Clearing { places: places.into_iter().collect(), lacking };
        }
    }

    /// Notes why something in a namespace could not be cleared.
    pub fn not_cleared(&mut self, reason: String) {
        if let State::Clearing { lacking, .. } = &mut self.state {
            lacking.get_or_insert(reason);
        }
    }

    pub fn deadline(&self, is_asking: bool) -> Option<Instant> {
        match self.state {
            State::Due(at) if !is_asking => Some(at),
            _ => None,
        }
    }

    /// Returns why what an earlier run left may still be there, where that has been so for several tries.
    pub fn lacking(&self) -> Option<&String> {
        self.lacking.as_ref().filter(|_| self.tries >= TOLD)
    }

    /// One that is over.
    #[cfg(test)]
    pub fn over() -> Sweep {
        Sweep { state: State::Done, ..Sweep::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn survey(sweep: &mut Sweep, now: Instant, lacking: Option<&str>) {
        assert_eq!(sweep.next(now, false), Some(NextOfSweep::Survey));
        let places = ["/run/netns/a", "/run/netns/b", "/run/netns/c"].map(PathBuf::from);
        sweep.surveyed(places.into(), lacking.map(str::to_owned));
    }

    #[test]
    fn a_sweep_that_is_wanted_again_at_each_step_comes_to_its_end_and_then_again() {
        let start = Instant::now();
        let mut sweep = Sweep::default();
        sweep.plan(start);
        let began = start;
        assert_eq!(sweep.next(start, false), Some(NextOfSweep::Survey));
        sweep.plan(start + SECOND);
        sweep.surveyed(["/run/netns/a", "/run/netns/b"].map(PathBuf::from).into(), None);
        let mut cleared = Vec::new();
        for step in 2..5 {
            let now = start + step * SECOND;
            cleared.extend(sweep.next(now, false));
            sweep.plan(now);
        }
        let place = |path: &str| NextOfSweep::Clear(PathBuf::from(path));
        assert_eq!(cleared, [place("/run/netns/b"), place("/run/netns/a")]);
        assert_eq!(sweep.deadline(false), Some(began + SELDOM), "one for all that wanted it meanwhile");
    }

    #[test]
    fn what_is_lacking_stays_told_while_others_want_a_sweep_until_one_is_complete() {
        let (start, mut sweep) = (Instant::now(), Sweep::default());
        let mut now = start;
        sweep.begin(now);
        for told in [false, true, true, true, true, true] {
            survey(&mut sweep, now, Some("the container runtime does not answer"));
            while sweep.next(now, false).is_some() {}
            assert_eq!(sweep.lacking().is_some(), told);
            sweep.plan(now + SECOND);
            assert_eq!(sweep.lacking().is_some(), told, "a pod that goes changes nothing about it");
            now += SELDOM;
        }
        survey(&mut sweep, now, None);
        while sweep.next(now, false).is_some() {}
        assert_eq!((sweep.lacking(), sweep.deadline(false)), (None, None));
    }

    #[test]
    fn a_runtime_that_comes_back_while_a_sweep_is_at_work_is_asked_again_soon() {
        let (start, mut sweep) = (Instant::now(), Sweep::default());
        let mut now = start;
        sweep.begin(now);
        for _ in 0..OFTEN {
            survey(&mut sweep, now, Some("the container runtime does not answer"));
            while sweep.next(now, false).is_some() {}
            now = sweep.deadline(false).expect("it begins again");
        }
        survey(&mut sweep, now, Some("the container runtime does not answer"));
        sweep.runtime_is_back(now);
        while sweep.next(now, false).is_some() {}
        assert_eq!(sweep.deadline(false), Some(now + SELDOM), "and not after ten minutes");
    }
}
