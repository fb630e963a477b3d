//! Sessions of BFD beside those of BGP: when a path fails, the session over it ends at once.
//!
//! RFC 5882. A path has failed when BFD was up and is down, and neither end has shut it down (3.2): a neighbour without BFD, or whose BFD
//! has never come up, is not harmed. The session ends with *Cease, BFD Down* (RFC 9384), and nobody keeps routes of it: not we, as packets
//! do not arrive, and not the neighbour, for which the NOTIFICATION is a hard reset where it would keep them (RFC 8538).
//!
//! No session is made for a while then, because TCP may still come through where much is lost; it comes back with the path (4.1).
//!
//! With graceful restart (4.3): a neighbour that restarts has lost its session already, and its BFD with it, unless it says that its BFD is
//! independent (C bit). So the path of a neighbour without a session that fails changes nothing, except with that bit: then packets are not
//! forwarded, and its stale routes go.
//!
//! The neighbour's BFD is often found gone only when its next process has a session already: our end was up on the last packets of the
//! process before. Such a failure says nothing about the new session, which goes on. What tells it: BFD came up before the session before ended,
//! and not since, and the session is not older than the detection time and a moment, within which the silence of the old process ends.
//! Should the path itself have failed in that moment, the hold timer ends the session.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::message::{Notification, Reason};
use super::super::session::{Event, Moment, State};
use super::{Fact, Neighbour, Output, Speaker};
use crate::bfd::{self, Status};
use crate::net::PerFamily;

/// Longest time without a session after its path has failed.
const HELD: Duration = Duration::from_secs(30);
/// Time beyond the detection time within which a process that is gone has been noticed: it may have sent shortly before its successor, which
/// sends its first packet within a second.
const NOTICED: Duration = Duration::from_secs(2);

/// Desired BFD session with a neighbour, from the transport's local address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Liveness {
    pub path: bfd::Path,
    pub wanted: bfd::Wanted,
}

/// Path to a neighbour, as BFD has told.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct PathState {
    pub status: Option<Status>,
    /// Last failure.
    pub failed_at: Option<Instant>,
    /// It has ended the session, and keeps another one from being made.
    pub is_holding: bool,
    /// Last time that BFD came up.
    up_at: Option<Instant>,
    /// BFD came up before the session before this one ended, and not since: it may be with a process that is gone.
    is_older: bool,
}

impl PathState {
    /// Records that a session is established. `ended`: the end of the one before.
    pub fn begin(&mut self, ended: Option<Instant>) {
        self.is_older = self.up_at.zip(ended).is_some_and(|(up, ended)| up < ended);
        self.let_go();
    }

    /// Records that another session is not kept from being made by the path any more.
    pub fn let_go(&mut self) {
        self.is_holding = false;
    }
}

impl Speaker {
    /// Processes the newest status of the BFD session with a neighbour.
    pub(super) fn path(&mut self, at: Moment, address: IpAddr, status: Status) {
        let Some(neighbour) = self.neighbours.get_mut(&address).filter(|one| one.wanted.liveness.is_some()) else {
            return;
        };
        let before = neighbour.path.status.replace(status).filter(|before| before.mine == status.mine);
        let was = before.map_or(bfd::State::Down, |before| before.state);
        let has_failed = status.failures > before.map_or(0, |before| before.failures);
        let is_up = status.state == bfd::State::Up;
        let comes_up = is_up && (has_failed || was != bfd::State::Up);
        let is_outlived = neighbour.has_outlived(at.now, &status);
        if comes_up {
            (neighbour.path.up_at, neighbour.path.is_older) = (Some(at.now), false);
        }
        if has_failed && is_outlived {
            self.outputs.push(Output::Fact(address, Fact::PathOutlived(status)));
        } else if has_failed {
            neighbour.path.failed_at = Some(at.now);
            self.outputs.push(Output::Fact(address, Fact::PathFailed(status)));
            self.path_failed(at, address, status.independent);
        }
        if comes_up {
            self.outputs.push(Output::Fact(address, Fact::PathUp));
        }
        // RFC 5882 4.1: a session must be possible where BFD is shut down by either end.
        if is_up || status.remote_state == bfd::State::AdminDown {
            self.release(at, address);
        }
    }

    fn path_failed(&mut self, at: Moment, address: IpAddr, is_independent: bool) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        let notification = Notification::new(Reason::BFD_DOWN);
        let has_stale = neighbour.peer.stale() != PerFamily::default();
        if neighbour.peer.session().is_some() {
            neighbour.path.is_holding = true;
            self.event(at, address, Event::Refuse(notification, HELD));
        } else if has_stale && is_independent {
            self.event(at, address, Event::Restart(notification));
        }
    }

    /// Lets a neighbour have a session again whose path had failed.
    fn release(&mut self, at: Moment, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        let was_holding = std::mem::take(&mut neighbour.path.is_holding);
        if was_holding && neighbour.peer.state() == State::Idle && !neighbour.peer.is_stopped() {
            self.event(at, address, Event::Start);
        }
    }
}

impl Neighbour {
    /// Returns whether BFD that goes down now was with an earlier process of the neighbour than the session.
    fn has_outlived(&self, now: Instant, status: &Status) -> bool {
        let age = self.began().map(|began| now.saturating_duration_since(began));
        let is_young = self.peer.session().is_some() && age.is_some_and(|age| age < status.detection + NOTICED);
        self.path.is_older && is_young && !status.independent
    }
}
