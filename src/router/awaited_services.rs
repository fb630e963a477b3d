//! The wait of the first BGP speaker for Services.
//!
//! What a speaker announces first is taken for all it has. Routers outside that keep its routes over a restart (RFC 4724) would withdraw the addresses of
//! Services for it, so it waits for Services and their endpoints. They may never come: a role without the right to EndpointSlices, as some of
//! kube-router's integrators have it, refuses them for ever, and pods would be cut off from those of other nodes. So the wait has an end, before
//! neighbours would forget the ranges of pods too; where nobody keeps addresses of Services, or the server refuses, there is less to wait for.
//! Services are announced when they are known, and the service proxy serves them, for which there is a short wait as well.

use std::time::{Duration, Instant};

/// Maximum time from when nodes are known, where routers outside keep routes. Meanwhile this node learns of no pods of nodes that are new, and whoever keeps
/// routes for an hour does not mean that.
const PATIENCE: Duration = Duration::from_secs(600);
/// Maximum time where nobody keeps any addresses of Services. It only saves usual starts from announcing in two parts.
const BRIEFLY: Duration = Duration::from_secs(2);
/// Maximum wait for the service proxy. A broken proxy must not cut pods off from each other.
pub const UNSERVED: Duration = Duration::from_secs(2);
/// Time between two refusals for want of a right that makes the later one count: a server that has just started may refuse for a moment.
const FORBIDDEN: Duration = Duration::from_secs(10);

/// State of the wait.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AwaitedServices {
    /// Nodes are not known either, or Services are.
    #[default]
    Nothing,
    Until {
        began: Instant,
        end: Instant,
        /// It is known how long neighbours keep what this node announced.
        is_sure: bool,
        /// The first of the refusals.
        forbidden: Option<Instant>,
    },
    /// It was in vain.
    GivenUp,
    /// They are known at last, and until then the service proxy may need to serve them.
    Unserved { until: Instant },
}

/// Returns how long Services are awaited. `kept`: the restart time that routers outside know, where an earlier run can have announced any routes. They may keep
/// addresses for longer (RFC 9494), but other nodes do not keep ranges of pods, which come first.
pub fn patience(kept: Option<Duration>) -> Duration {
    // When the earlier run ended is not known: a third of that time is left for it.
    kept.map_or(BRIEFLY, |kept| (kept * 2 / 3).clamp(BRIEFLY, PATIENCE))
}

impl AwaitedServices {
    /// Records whether Services are known, beside nodes that are. `patience` counts at the beginning, and once more where it is sure only later: our own
    /// Node, which names routers outside, may come after others.
    pub fn note(&mut self, are_known: bool, patience: impl FnOnce() -> Duration, is_sure: bool, now: Instant) {
        *self = match (*self, are_known) {
            (AwaitedServices::GivenUp, true) => AwaitedServices::Unserved { until: now + UNSERVED },
            (unserved @ AwaitedServices::Unserved { .. }, true) => unserved,
            (_, true) => AwaitedServices::Nothing,
            (AwaitedServices::Nothing, false) => {
                AwaitedServices::Until { began: now, end: now + patience(), is_sure, forbidden: None }
            }
            (AwaitedServices::Until { began, is_sure: false, forbidden, .. }, false) if is_sure => {
                AwaitedServices::Until { began, end: began + patience(), is_sure, forbidden }
            }
            (AwaitedServices::Unserved { .. }, false) => AwaitedServices::GivenUp,
            (waiting, false) => waiting,
        };
    }

    /// Returns whether Services that became known late may be announced from now on; true once.
    pub fn are_served(&mut self, is_served: bool, now: Instant) -> bool {
        let AwaitedServices::Unserved { until } = *self else { return false };
        let is_over = is_served || until <= now;
        if is_over {
            *self = AwaitedServices::Nothing;
        }
        is_over
    }

    /// Returns whether it matters when the service proxy serves what it knows, although BGP has begun.
    pub fn awaits_proxy(self) -> bool {
        matches!(self, AwaitedServices::Unserved { .. })
    }

    /// Records when the server has refused them last for want of a right; `None` where it does not.
    pub fn note_refusal(&mut self, last: Option<Instant>) {
        let AwaitedServices::Until { end, forbidden, .. } = self else { return };
        match (last, *forbidden) {
            // One refusal says little, however long ago it was: requests come ever more rarely.
            (Some(last), Some(first)) if last >= first + FORBIDDEN => *end = (*end).min(last),
            (Some(_), Some(_)) => {}
            (first, _) => *forbidden = first,
        }
    }

    /// Returns whether the wait is over in vain; true once.
    pub fn gives_up(&mut self, now: Instant) -> bool {
        let is_over = matches!(*self, AwaitedServices::Until { end, .. } if end <= now);
        if is_over {
            *self = AwaitedServices::GivenUp;
        }
        is_over
    }

    /// Returns the end of the wait, while it lasts.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            AwaitedServices::Until { end, .. } => Some(end),
            AwaitedServices::Unserved { until } => Some(until),
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
        awaited.note(false, || patience(kept), true, start);
        awaited
    }

    #[test]
    fn services_are_awaited_from_when_nodes_are_known_and_given_up_once() {
        let start = Instant::now();
        let mut awaited = awaited(Some(4095 * SECOND), start);
        awaited.note(false, || patience(None), true, start + SECOND);
        assert_eq!(awaited.deadline(), Some(start + PATIENCE), "another World is no reason to wait for another time");
        assert!(!awaited.gives_up(start + PATIENCE - SECOND) && awaited.trouble().is_some());
        assert!(awaited.gives_up(start + PATIENCE) && !awaited.gives_up(start + PATIENCE));
        awaited.note(false, || patience(None), true, start + 2 * PATIENCE);
        assert_eq!((awaited.deadline(), awaited.trouble()), (None, None));
        assert!(awaited.note_text().is_some());
        awaited.note(true, || patience(None), true, start + 3 * PATIENCE);
        assert_eq!(awaited.note_text(), None, "they are known at last");
    }

    #[test]
    fn services_that_come_late_are_announced_when_they_are_served_or_a_moment_later() {
        let start = Instant::now();
        let late = || {
            let mut awaited = awaited(None, start);
            assert!(awaited.gives_up(start + BRIEFLY) && !awaited.are_served(true, start + 60 * SECOND));
            awaited.note(true, || patience(None), true, start + 60 * SECOND);
            awaited
        };
        let mut served = late();
        assert!(served.awaits_proxy() && !served.are_served(false, start + 60 * SECOND));
        served.note(true, || patience(None), true, start + 61 * SECOND);
        assert_eq!(served.deadline(), Some(start + 62 * SECOND), "another World begins no other wait");
        assert!(served.are_served(true, start + 61 * SECOND) && !served.are_served(true, start + 61 * SECOND));
        assert!(late().are_served(false, start + 62 * SECOND), "a proxy that never says so");
        let mut gone = late();
        gone.note(false, || patience(None), true, start + 61 * SECOND);
        assert!(!gone.are_served(true, start + 61 * SECOND), "there is nothing to announce again");
    }

    #[test]
    fn while_our_own_node_is_not_known_routers_are_taken_to_keep_what_this_node_announced() {
        let start = Instant::now();
        for (kept, end) in [(Some(90 * SECOND), 60 * SECOND), (None, BRIEFLY)] {
            let mut awaited = AwaitedServices::default();
            awaited.note(false, || patience(Some(90 * SECOND)), false, start);
            assert_eq!(awaited.deadline(), Some(start + 60 * SECOND));
            awaited.note(false, || patience(kept), true, start + SECOND);
            assert_eq!(awaited.deadline(), Some(start + end), "our own Node says it");
            awaited.note(false, || patience(None), false, start + SECOND);
            assert_eq!(awaited.deadline(), Some(start + end), "and may go again");
        }
    }

    #[test]
    fn services_that_come_in_time_end_the_wait() {
        let start = Instant::now();
        let mut awaited = awaited(Some(90 * SECOND), start);
        awaited.note(true, || patience(None), true, start + SECOND);
        assert!(!awaited.gives_up(start + 2 * PATIENCE));
    }

    #[test]
    fn the_wait_ends_before_neighbours_forget_and_is_short_where_nobody_keeps_anything() {
        assert_eq!(patience(Some(90 * SECOND)), 60 * SECOND);
        assert_eq!(patience(Some(600 * SECOND)), 400 * SECOND, "a server that is busy for minutes costs no address");
        assert_eq!(patience(Some(4095 * SECOND)), PATIENCE);
        assert_eq!(patience(Some(30 * SECOND)), 20 * SECOND);
        assert_eq!((patience(Some(SECOND)), patience(None)), (BRIEFLY, BRIEFLY));
    }

    #[test]
    fn services_that_are_refused_are_awaited_only_as_long_as_a_server_that_starts_may_refuse_them() {
        let start = Instant::now();
        let mut refused = awaited(Some(90 * SECOND), start);
        refused.note_refusal(Some(start + SECOND));
        refused.note_refusal(Some(start + SECOND));
        assert!(!refused.gives_up(start + 30 * SECOND), "nobody has asked again since");
        refused.note_refusal(Some(start + 30 * SECOND));
        assert!(refused.gives_up(start + 30 * SECOND));
        let mut for_a_moment = awaited(Some(4095 * SECOND), start);
        for_a_moment.note_refusal(Some(start + SECOND));
        for_a_moment.note_refusal(None);
        for_a_moment.note_refusal(Some(start + 30 * SECOND));
        assert_eq!(for_a_moment.deadline(), Some(start + PATIENCE));
        let mut briefly = awaited(None, start);
        briefly.note_refusal(Some(start + SECOND));
        assert_eq!(briefly.deadline(), Some(start + BRIEFLY), "a refusal is no reason to wait longer");
    }
}
