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
        (self.state, self.tries) = (State::Due(now), 0);
    }

    /// Has it begin at once, or some time after the last one: one for all that want it meanwhile.
    pub fn plan(&mut self, now: Instant) {
        self.begin(self.began_at.map_or(now, |began| now.max(began + SELDOM)));
    }

    /// Notes that the container runtime answers again.
    pub fn runtime_is_back(&mut self, now: Instant) {
        if let State::Due(at) = &mut self.state {
            *at = now.min(*at);
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
        if self.lacking.is_none() {
            (self.state, self.tries) = (State::Done, 0);
            return;
        }
        self.tries = self.tries.saturating_add(1);
        let pause = if self.tries < OFTEN { SELDOM } else { RARELY };
        self.state = State::Due(now + pause);
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
