//! When a neighbour is dialled: at once, later after each failure, and seldom where many do not answer.
//!
//! RFC 4271 8.2.1 and 10 (ConnectRetryTimer, jitter).

use std::time::{Duration, Instant};

use super::super::{Effect, LinkId, Moment, Side};
use super::{Connection, Dial, Peer, Phase};

/// Initial time between two dials; every failure doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Time limit for a dial.
pub(super) const DIAL: Duration = Duration::from_secs(10);
/// Time by which a scheduled dial of many may be early; less than [`SLACK`](super::super::SLACK).
const EARLY: Duration = Duration::from_secs(1);
/// Number of consecutive failures, half a minute of dials, after which a neighbour counts as unanswering.
const SEVERAL: u32 = 5;

impl Peer {
    /// Sets the minimum time between two dials while the neighbour does not answer.
    pub fn spread_dials(&mut self, least: Duration) {
        self.spread = least;
    }

    /// Returns whether the neighbour dials us as well, has no session, and several dials have failed in succession.
    pub fn is_unanswering(&self) -> bool {
        let searched = matches!(self.phase, Phase::Open { .. });
        searched && self.settings.mutual && !self.settings.passive && self.failures >= SEVERAL
    }

    /// Time of the next dial; `None` where none is scheduled.
    pub fn next_dial(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { dial: Dial::At(at), .. } => Some(at),
            Phase::Idle { .. } | Phase::Open { .. } | Phase::Established { .. } => None,
        }
    }

    /// In Idle, the time at which it ends; `Some(None)` where it lasts until the neighbour is started.
    pub fn idle(&self) -> Option<Option<Instant>> {
        match self.phase {
            Phase::Idle { until } => Some(until),
            Phase::Open { .. } | Phase::Established { .. } => None,
        }
    }

    pub(super) fn dial(&mut self, at: Moment) {
        if let Phase::Open { dial, .. } = &mut self.phase {
            *dial = Dial::Now(at.now + DIAL);
            self.effects.push(Effect::Dial);
        }
    }

    /// Time between two dials: it doubles with every consecutive failure.
    pub(super) fn retry(&self) -> Duration {
        let doubled = FIRST_RETRY * 2_u32.pow(self.failures.saturating_sub(1).min(16));
        doubled.min(self.settings.connect_retry)
    }

    /// Time by which a scheduled dial may be early: it has to wait for long, and shares its wake-up.
    pub(super) fn dial_slack(&self) -> Duration {
        if self.failures >= SEVERAL { EARLY } else { Duration::ZERO }
    }

    pub(super) fn dial_now(&mut self, at: Moment) {
        if let Phase::Open { dial: Dial::At(_), connections } = &self.phase
            && connections.is_empty()
        {
            self.dial(at);
        }
    }

    /// Postpones the next dial.
    pub(super) fn dial_later(&mut self, at: Moment) {
        let spread = if self.is_unanswering() { self.spread } else { Duration::ZERO };
        let next = if self.settings.passive { Dial::Never } else { Dial::At(at.after(self.retry().max(spread))) };
        if let Phase::Open { dial, .. } = &mut self.phase {
            *dial = next;
        }
    }

    /// Schedules the next dial, unless we have a connection of our own, or one is being dialled or scheduled.
    pub(super) fn resume_dialling(&mut self, at: Moment) {
        if let Phase::Open { dial: Dial::Done | Dial::Never, connections } = &self.phase
            && connections.iter().all(|one| one.side == Side::Theirs)
        {
            self.dial_later(at);
        }
    }

    pub(super) fn dialled(&mut self, at: Moment, link: LinkId) {
        match &mut self.phase {
            Phase::Open { dial: dial @ Dial::Now(_), connections } => {
                *dial = Dial::Done;
                connections.push(Connection::new(link, Side::Ours, at.now));
                self.send_open(link);
            }
            // The dial was abandoned, but its answer was on its way already.
            Phase::Idle { .. } | Phase::Open { .. } | Phase::Established { .. } => {
                self.effects.push(Effect::Close(link));
            }
        }
    }

    pub(super) fn dial_failed(&mut self, at: Moment) {
        if let Phase::Open { dial: Dial::Now(_), .. } = self.phase {
            self.failures = self.failures.saturating_add(1);
            self.dial_later(at);
        }
    }
}
