//! Routes of a neighbour retained over the end of its session: in which address families, and until when.
//!
//! RFC 4724 4.2 (graceful restart): for the restart time of the neighbour, and once it is back for the time that we give it to send its
//! routes again. RFC 9494 4.2 (long-lived): after the restart time for the long-lived stale time. Where both sides agree on that, what was
//! retained stays, and its time goes on, also where sessions come and go without an End-of-RIB; when that time is over, nothing is retained until
//! a session has reached End-of-RIB.

use std::time::{Duration, Instant};

use super::super::{Agreement, Restart};
use crate::net::{Family, PerFamily};

/// Retention of the routes of both families.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Retention(PerFamily<Option<Phase>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Graceful restart, and the end of the long-lived one behind it.
    Graceful {
        until: Instant,
        end: Option<Instant>,
    },
    /// The neighbour is back, and has until then to send its routes again. `end` as before.
    Returned {
        until: Instant,
        end: Option<Instant>,
    },
    LongLived {
        until: Instant,
    },
    /// The long-lived one has ended without End-of-RIB: nothing is retained, nor at the end of a session before that.
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
        PerFamily::from_fn(|family| self.0.of(family).is_some_and(|phase| phase != Phase::Over))
    }

    /// Families with long-lived retained routes.
    pub fn long_lived(&self) -> PerFamily<bool> {
        PerFamily::from_fn(|family| matches!(self.0.of(family), Some(Phase::LongLived { .. })))
    }

    pub fn deadline(&self) -> Option<Instant> {
        let until = |family| match *self.0.of(family) {
            Some(Phase::Graceful { until, .. } | Phase::Returned { until, .. } | Phase::LongLived { until }) => {
                Some(until)
            }
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

    /// Ends the retention in all families where a session has ended whose routes do not survive it.
    pub fn end_all(&mut self) {
        self.0 = PerFamily::from_fn(|family| self.0.of(family).filter(|phase| *phase == Phase::Over));
    }

    /// Families whose retained routes stay when a session ends that had not reached End-of-RIB: RFC 4724 4.2 removes them, RFC 9494 4.2 does not.
    pub fn goes_on(&self, agreement: &Agreement) -> PerFamily<bool> {
        PerFamily::from_fn(|family| match self.0.of(family) {
            Some(Phase::LongLived { .. }) => true,
            Some(Phase::Graceful { end, .. } | Phase::Returned { end, .. }) => {
                end.is_some() && agreement.kept_long(family).is_some()
            }
            Some(Phase::Over) | None => false,
        })
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
        let earlier =
            |until: Instant, end: Option<Instant>| end.map(|end| end.min(until + most)).filter(|end| *end > until);
        let shorter = |phase| match phase {
            Phase::Graceful { until, end } => Phase::Graceful { until, end: earlier(until, end) },
            Phase::Returned { until, end } => Phase::Returned { until, end: earlier(until, end) },
            Phase::LongLived { until } => Phase::LongLived { until: until.min(now + most) },
            Phase::Over => Phase::Over,
        };
        self.0 = PerFamily::from_fn(|family| self.0.of(family).map(shorter));
        dropped
    }

    /// Begins, or goes on, when a session ends whose routes survive it. Time that is running does not begin again, but for the restart time within
    /// it.
    pub fn begin(&mut self, now: Instant, agreement: &Agreement) {
        let goes_on = self.goes_on(agreement);
        self.0 = PerFamily::from_fn(|family| {
            let then = agreement.kept_long(family);
            let running = self.0.of(family).filter(|phase| *goes_on.of(family) || *phase == Phase::Over);
            let last = match running {
                Some(Phase::Graceful { end, .. } | Phase::Returned { end, .. }) => end,
                Some(Phase::LongLived { .. } | Phase::Over) => return running,
                None => None,
            };
            let bounded = |end: Instant| last.map_or(end, |last| last.min(end));
            match (agreement.kept(family), then) {
                (Some(time), then) => {
                    let end = then.map(|then| bounded(now + time + then));
                    let until = now + time;
                    Some(Phase::Graceful { until: end.map_or(until, |end| end.min(until)), end })
                }
                // RFC 9494 4.2: a family without graceful restart has a restart time of zero.
                (None, Some(time)) => Some(Phase::LongLived { until: bounded(now + time) }),
                (None, None) => None,
            }
        });
    }

    /// Returns the families whose routes must not be retained in the new session, and gives the neighbour `time` to send the others again.
    pub fn come_back(&mut self, now: Instant, agreement: &Agreement, time: Option<Duration>) -> PerFamily<bool> {
        let is_lost = |family| match self.0.of(family) {
            Some(Phase::Graceful { .. } | Phase::Returned { .. }) => !agreement.forwards(family),
            Some(Phase::LongLived { .. }) => !agreement.forwards_long(family),
            Some(Phase::Over) | None => false,
        };
        let dropped = self.end(PerFamily::from_fn(is_lost));
        let waited = |phase| match (phase, time) {
            (Phase::Graceful { end, .. }, Some(time)) => {
                let until = now + time;
                Phase::Returned { until: end.map_or(until, |end| end.min(until)), end }
            }
            (phase, _) => phase,
        };
        self.0 = PerFamily::from_fn(|family| self.0.of(family).map(waited));
        dropped
    }

    /// Handles timers that have expired.
    pub fn expire(&mut self, now: Instant) -> Turn {
        let mut turn = Turn::default();
        self.0 = PerFamily::from_fn(|family| match *self.0.of(family) {
            Some(Phase::Graceful { until, end: Some(end) }) if until <= now && now < end => {
                *turn.long_lived.of_mut(family) = true;
                Some(Phase::LongLived { until: end })
            }
            Some(Phase::Graceful { until, end } | Phase::Returned { until, end }) if until <= now => {
                *turn.dropped.of_mut(family) = true;
                end.map(|_| Phase::Over)
            }
            Some(Phase::LongLived { until }) if until <= now => {
                *turn.dropped.of_mut(family) = true;
                Some(Phase::Over)
            }
            running => running,
        });
        turn
    }
}
