//! The wait of the first BGP speaker for Services.
//!
//! What a speaker announces first is taken for all it has. Routers outside that keep its routes over a restart (RFC 4724) would withdraw the addresses of
//! Services for it, so it waits for Services and their endpoints. They may never come: a role without the right to EndpointSlices, as some of
//! kube-router's integrators have it, refuses them for ever, and pods would be cut off from those of other nodes. So the wait has an end, before
//! neighbours would forget the ranges of pods too; where nobody keeps addresses of Services, or the server refuses, there is less to wait for.
//! Services are announced when they are known.

use std::time::{Duration, Instant};

/// Maximum time from when nodes are known, where routers outside keep routes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Maximum time where nobody keeps any addresses of Services. It only saves usual starts from announcing in two parts.
const BRIEFLY: Duration = Duration::from_secs(2);
/// Maximum time from when the server has refused them for want of a right, which one that has just started may do for a moment.
const FORBIDDEN: Duration = Duration::from_secs(10);

/// State of the wait.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AwaitedServices {
    /// Nodes are not known either, or Services are.
    #[default]
    Nothing,
    Until {
        end: Instant,
        /// Since when they are refused.
        forbidden: Option<Instant>,
    },
    /// It was in vain.
    GivenUp,
}

/// Returns how long Services are awaited. `kept`: for how long routers outside keep our routes over a restart, where an earlier run can have announced any.
pub fn patience(kept: Option<Duration>) -> Duration {
    // When the earlier run ended is not known: a third of that time is left for it.
    kept.map_or(BRIEFLY, |kept| (kept * 2 / 3).clamp(BRIEFLY, PATIENCE))
}

impl AwaitedServices {
    /// Records whether Services are known, beside nodes that are. `patience` counts at the beginning.
    pub fn note(&mut self, are_known: bool, patience: impl FnOnce() -> Duration, now: Instant) {
        *self = match (*self, are_known) {
            (_, true) => AwaitedServices::Nothing,
            (AwaitedServices::Nothing, false) => AwaitedServices::Until { end: now + patience(), forbidden: None },
            (waiting, false) => waiting,
        };
    }

    /// Records whether the server refuses them for want of a right.
    pub fn note_refusal(&mut self, is_forbidden: bool, now: Instant) {
        if let AwaitedServices::Until { forbidden, .. } = self {
            *forbidden = is_forbidden.then(|| forbidden.unwrap_or(now));
        }
    }

    /// Returns whether the wait is over in vain; true once.
    pub fn gives_up(&mut self, now: Instant) -> bool {
        let is_over = self.deadline().is_some_and(|end| end <= now);
        if is_over {
            *self = AwaitedServices::GivenUp;
        }
        is_over
    }

    /// Returns the end of the wait, while it lasts.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            AwaitedServices::Until { end, forbidden } => {
                Some(forbidden.map_or(end, |since| end.min(since + FORBIDDEN)))
            }
            AwaitedServices::Nothing | AwaitedServices::GivenUp => None,
        }
    }

    /// Returns what `/readyz` says of it while BGP has not begun.
    pub fn trouble(self) -> Option<String> {
        let waits = matches!(self, AwaitedServices::Until { .. });
        waits.then(|| "BGP has not begun: it waits, for a limited time, for Services and their endpoints".to_owned())
    }

    /// Returns what `/readyz` notes where BGP has begun without them.
    pub fn note_text(self) -> Option<String> {
        (self == AwaitedServices::GivenUp).then(|| {
            "no addresses of Services are announced, because Services or their endpoints are not known; pods are"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn awaited(kept: Option<Duration>, start: Instant) -> AwaitedServices {
        let mut awaited = AwaitedServices::default();
        assert!(!awaited.gives_up(start + 2 * PATIENCE), "nodes are not known either");
        awaited.note(false, || patience(kept), start);
        awaited
    }

    #[test]
    fn services_are_awaited_from_when_nodes_are_known_and_given_up_once() {
        let start = Instant::now();
        let mut awaited = awaited(Some(90 * SECOND), start);
        awaited.note(false, || patience(None), start + SECOND);
        assert_eq!(awaited.deadline(), Some(start + PATIENCE), "another World is no reason to wait for another time");
        assert!(!awaited.gives_up(start + PATIENCE - SECOND) && awaited.trouble().is_some());
        assert!(awaited.gives_up(start + PATIENCE) && !awaited.gives_up(start + PATIENCE));
        awaited.note(false, || patience(None), start + 2 * PATIENCE);
        assert_eq!((awaited.deadline(), awaited.trouble()), (None, None));
        assert!(awaited.note_text().is_some());
        awaited.note(true, || patience(None), start + 3 * PATIENCE);
        assert_eq!(awaited.note_text(), None, "they are known at last");
    }

    #[test]
    fn services_that_come_in_time_end_the_wait() {
        let start = Instant::now();
        let mut awaited = awaited(Some(90 * SECOND), start);
        awaited.note(true, || patience(None), start + SECOND);
        assert!(!awaited.gives_up(start + 2 * PATIENCE));
    }

    #[test]
    fn the_wait_ends_before_neighbours_forget_and_is_short_where_nobody_keeps_anything() {
        assert_eq!(patience(Some(90 * SECOND)), 60 * SECOND);
        assert_eq!(patience(Some(4095 * SECOND)), 60 * SECOND);
        assert_eq!(patience(Some(30 * SECOND)), 20 * SECOND);
        assert_eq!((patience(Some(SECOND)), patience(None)), (BRIEFLY, BRIEFLY));
    }

    #[test]
    fn services_that_are_refused_are_awaited_only_as_long_as_a_server_that_starts_may_refuse_them() {
        let start = Instant::now();
        let mut refused = awaited(Some(90 * SECOND), start);
        refused.note_refusal(true, start + SECOND);
        refused.note_refusal(true, start + 2 * SECOND);
        assert_eq!(refused.deadline(), Some(start + SECOND + FORBIDDEN));
        refused.note_refusal(false, start + 3 * SECOND);
        assert_eq!(refused.deadline(), Some(start + PATIENCE), "it was for a moment");
        let mut briefly = awaited(None, start);
        briefly.note_refusal(true, start + SECOND);
        assert_eq!(briefly.deadline(), Some(start + BRIEFLY), "a refusal is no reason to wait longer");
    }
}
