//! Routes of a neighbour retained over the end of its session: in which address families, and until when.
//!
//! RFC 4724 4.2 (graceful restart): for the restart time of the neighbour, and once it is back for the time that we give it to send its
//! routes again. RFC 9494 4.2 (long-lived): after the restart time for the long-lived stale time. That one goes on until End-of-RIB,
//! also where sessions come and go in between; where it ends in a session, nothing is retained until a session has reached End-of-RIB.

use std::time::{Duration, Instant};

use super::super::{Agreement, Restart};
use crate::net::{Family, PerFamily};

/// Retention of the routes of both families.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Retention(PerFamily<Option<Phase>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Graceful restart, and the time of the long-lived one behind it.
    Graceful {
        until: Instant,
        then: Option<Duration>,
    },
    LongLived {
        until: Instant,
    },
    /// The long-lived one has ended in a session, before End-of-RIB: nothing is retained, nor at the end of that session.
    Over,
}

/// Result of expired timers: families whose retained routes are to be removed, and those whose routes are long-lived from now on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Turn {
    pub dropped: PerFamily<bool>,
    pub long_lived: PerFamily<bool>,
}

impl Retention {
    /// Families with retained routes.
    pub fn families(&self) -> PerFamily<bool> {
        PerFamily::from_fn(|family| matches!(self.0.of(family), Some(Phase::Graceful { .. } | Phase::LongLived { .. })))
    }

    /// Families with long-lived retained routes.
    pub fn long_lived(&self) -> PerFamily<bool> {
        PerFamily::from_fn(|family| matches!(self.0.of(family), Some(Phase::LongLived { .. })))
    }

    pub fn deadline(&self) -> Option<Instant> {
        let until = |family| match *self.0.of(family) {
            Some(Phase::Graceful { until, .. } | Phase::LongLived { until }) => Some(until),
            Some(Phase::Over) | None => None,
        };
        Family::BOTH.into_iter().filter_map(until).min()
    }

    /// Ends the retention in these families; returns those where there was one.
    pub fn end(&mut self, families: PerFamily<bool>) -> PerFamily<bool> {
        let retained = self.families();
        let dropped = PerFamily::from_fn(|family| *families.of(family) && *retained.of(family));
        self.0 = PerFamily::from_fn(|family| self.0.of(family).filter(|_| !*families.of(family)));
        dropped
    }

    /// Ends what changed settings do not retain any more, and shortens what they retain for less time; returns the families where it has ended.
    pub fn bound(&mut self, now: Instant, families: PerFamily<bool>, restart: Option<&Restart>) -> PerFamily<bool> {
        let is_lost = |family| match self.0.of(family) {
            _ if !*families.of(family) => true,
            Some(Phase::LongLived { .. }) => restart.is_none_or(|restart| restart.long_lived == 0),
            _ => restart.is_none(),
        };
        let dropped = self.end(PerFamily::from_fn(is_lost));
        let most = Duration::from_secs(restart.map_or(0, |restart| restart.long_lived).into());
        let shorter = |phase| match phase {
            Phase::Graceful { until, then } => {
                Phase::Graceful { until, then: then.map(|time| time.min(most)).filter(|time| !time.is_zero()) }
            }
            Phase::LongLived { until } => Phase::LongLived { until: until.min(now + most) },
            Phase::Over => Phase::Over,
        };
        self.0 = PerFamily::from_fn(|family| self.0.of(family).map(shorter));
        dropped
    }

    /// Begins, or goes on, when a session ends whose routes survive it. Long-lived stale time that is running does not begin again.
    pub fn begin(&mut self, now: Instant, agreement: &Agreement) {
        self.0 = PerFamily::from_fn(|family| {
            let then = agreement.kept_long(family);
            match (*self.0.of(family), agreement.kept(family), then) {
                (Some(running @ Phase::LongLived { .. }), _, _) => Some(running),
                (Some(Phase::Over), _, _) => None,
                (_, Some(time), _) => Some(Phase::Graceful { until: now + time, then }),
                // RFC 9494 4.2: a family without graceful restart has a restart time of zero.
                (_, None, Some(time)) => Some(Phase::LongLived { until: now + time }),
                (_, None, None) => None,
            }
        });
    }

    /// Returns the families whose routes must not be retained in the new session, and gives the neighbour `time` to send the others again.
    pub fn come_back(&mut self, now: Instant, agreement: &Agreement, time: Option<Duration>) -> PerFamily<bool> {
        let is_lost = |family| match self.0.of(family) {
            Some(Phase::Graceful { .. }) => !agreement.forwards(family),
            Some(Phase::LongLived { .. }) => !agreement.forwards_long(family),
            Some(Phase::Over) | None => false,
        };
        let dropped = self.end(PerFamily::from_fn(is_lost));
        let waited = |phase| match (phase, time) {
            (Phase::Graceful { .. }, Some(time)) => Phase::Graceful { until: now + time, then: None },
            (phase, _) => phase,
        };
        self.0 = PerFamily::from_fn(|family| self.0.of(family).map(waited));
        dropped
    }

    /// Handles timers that have expired, within a session or without one.
    pub fn expire(&mut self, now: Instant, in_session: bool) -> Turn {
        let mut turn = Turn::default();
        self.0 = PerFamily::from_fn(|family| match *self.0.of(family) {
            Some(Phase::Graceful { until, then: Some(time) }) if until <= now => {
                *turn.long_lived.of_mut(family) = true;
                Some(Phase::LongLived { until: until + time })
            }
            Some(Phase::Graceful { until, then: None }) if until <= now => {
                *turn.dropped.of_mut(family) = true;
                None
            }
            Some(Phase::LongLived { until }) if until <= now => {
                *turn.dropped.of_mut(family) = true;
                in_session.then_some(Phase::Over)
            }
            running => running,
        });
        turn
    }
}
