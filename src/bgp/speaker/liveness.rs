//! Sessions of BFD beside those of BGP: when a path fails, the session over it ends at once.
//!
//! RFC 5882. A path has failed when BFD was up and is down, and neither end has shut it down (3.2): a neighbour without BFD, or whose BFD
//! has never come up, is not harmed. The session ends with *Cease, BFD Down* (RFC 9384), and nobody keeps routes of it: not we, as packets
//! do not arrive, and not the neighbour, for which the NOTIFICATION is a hard reset where it would keep them (RFC 8538).
//!
//! No session is made for a while then, because TCP may still come through where much is lost; it comes back with the path (4.1), and the
//! more often a path has failed within a minute, the longer BFD has to be up before.
//!
//! With graceful restart (4.3): a neighbour that restarts has lost its session already, and its BFD with it, unless it says that its BFD is
//! independent (C bit). So the path of a neighbour without a session that fails changes nothing, except with that bit, or where the
//! neighbour has ended the session for the same reason: then packets are not forwarded, and its stale routes go. Its *Cease, BFD Down* takes none by itself where it is
//! no hard reset (RFC 8538 4): a neighbour that wants that says so (RFC 9384 4).
//!
//! The neighbour's BFD is often found gone only when its next process has a session already: our end was up on the last packets of the
//! process before. Such a failure says nothing about the new session, which goes on. What tells it: the session before ended as with a process, BFD came up
//! before that and not since, and the session is not older than the detection time and a moment, within which the silence of the old process ends.
//! Should the neighbour have died, or the path have failed, in that moment, BFD has nothing to lose any more that would tell it. So the successor has to come up
//! within a while, as the process before had been up: a path over which it does not, and that neither end has shut down, has failed.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::message::{Notification, Reason};
use super::super::session::{Cause, Event, Moment, State};
use super::{Fact, Neighbour, Output, Speaker};
use crate::bfd::{self, Status};
use crate::net::PerFamily;

/// Longest time without a session after its path has failed.
const HELD: Duration = Duration::from_secs(30);
/// Time after which a failure has nothing to do with the one before.
const CALM: Duration = Duration::from_secs(60);
/// Time beyond the detection time within which a process that is gone has been noticed: it may have sent shortly before its successor, which
/// sends its first packet within a second.
const NOTICED: Duration = Duration::from_secs(2);
/// Time beyond the detection time within which BFD comes up with the process that follows one that had it. The first packet comes within a second, or within
/// an interval that is longer (RFC 5880 6.8.3); but some routers begin with BFD when they have a session of BGP, and a process may have much to do at its start.
const BACK: Duration = Duration::from_secs(10);

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
    /// Number of failures, and the last one.
    pub failures: u64,
    pub failed_at: Option<Instant>,
    /// Number of failures before the last one, each less than [`CALM`] after the one before.
    flaps: u32,
    /// It has ended the session, and keeps another one from being made.
    pub is_holding: bool,
    /// End of the time for which BFD has to be up until a session is made again.
    release_at: Option<Instant>,
    /// Last time that BFD came up.
    up_at: Option<Instant>,
    /// BFD came up before the session before this one ended, and not since: it may be with a process that is gone.
    is_older: bool,
    /// The last session ended as it does when the neighbour's process ends.
    may_be_gone: bool,
    /// The neighbour has ended the last session because BFD was down there.
    was_down_there: bool,
    /// BFD went with a process of the neighbour, and has to come up with the next one.
    is_awaited: bool,
    /// End of the time for that; `None` while there is no session.
    back_by: Option<Instant>,
    /// The next process has been heard since, and that time was prolonged.
    is_prolonged: bool,
}

impl PathState {
    /// Records that a session is established. `ended`: the end of the one before.
    pub fn begin(&mut self, now: Instant, ended: Option<Instant>) {
        self.is_older = self.may_be_gone && self.up_at.zip(ended).is_some_and(|(up, ended)| up < ended);
        self.let_go();
        if let Some(status) = self.status.filter(|_| self.is_awaited) {
            self.expect_by(now + status.detection + BACK);
        }
    }

    /// Records the end of a session. What we have ended for a reason of our own, and what the neighbour resets, refuses or corrects, ends no process.
    pub fn end(&mut self, cause: &Cause) {
        self.back_by = None;
        self.was_down_there = matches!(cause, Cause::Received(said) if said.reason == Reason::BFD_DOWN);
        self.may_be_gone = match cause {
            Cause::Closed | Cause::Replaced => true,
            Cause::Sent(said) => said.reason == Reason::HOLD_TIMER_EXPIRED,
            Cause::Received(said) => {
                let reason = said.wrapped().map_or(said.reason, |inner| inner.reason);
                [Reason::HOLD_TIMER_EXPIRED, Reason::SHUTDOWN, Reason::DECONFIGURED].contains(&reason)
            }
        };
    }

    /// Records that another session is not kept from being made by the path any more.
    pub fn let_go(&mut self) {
        (self.is_holding, self.release_at) = (false, None);
    }

    /// The ends of the time for which BFD has to be up, and of that within which it has to come up, so far as somebody waits for that.
    pub fn deadlines(&self) -> impl Iterator<Item = Instant> + use<> {
        self.release_at.into_iter().chain(self.back_by)
    }

    /// Records until when BFD has to come up.
    fn expect_by(&mut self, end: Instant) {
        (self.back_by, self.is_prolonged) = (Some(end), false);
    }

    /// Records that BFD does not have to come up any more: it has, or nobody expects it.
    fn expect_nothing(&mut self) {
        (self.is_awaited, self.back_by) = (false, None);
    }

    fn failed(&mut self, now: Instant) {
        let is_flap = self.failed_at.is_some_and(|before| now.saturating_duration_since(before) < CALM);
        self.flaps = if is_flap { self.flaps.saturating_add(1) } else { 0 };
        self.failed_at = Some(now);
        self.failures += 1;
        self.release_at = None;
        self.expect_nothing();
    }

    /// Time for which BFD has to be up until a session is made: none after a failure by itself, then 1 s, 2 s, 4 s, ….
    fn proof(&self) -> Duration {
        let doublings = self.flaps.checked_sub(1);
        doublings.map_or(Duration::ZERO, |doublings| Duration::from_secs(1 << doublings.min(6)).min(HELD))
    }
}

impl Speaker {
    /// Processes the newest status of the BFD session with a neighbour.
    pub(super) fn path(&mut self, at: Moment, address: IpAddr, status: Status) {
        let Some(neighbour) = self.neighbours.get_mut(&address).filter(|one| one.wanted.liveness.is_some()) else {
            return;
        };
        let told = neighbour.path.status.replace(status);
        let before = told.filter(|told| told.mine == status.mine);
        let was = before.map_or(bfd::State::Down, |before| before.state);
        // What failed before this neighbour was known says nothing about its session. Another session of BFD began without failures.
        let has_failed = told.is_some() && status.failures > before.map_or(0, |before| before.failures);
        let is_up = status.state == bfd::State::Up;
        let comes_up = is_up && (has_failed || was != bfd::State::Up);
        let is_outlived = neighbour.has_outlived(at.now, &status) || neighbour.is_away(&status);
        if comes_up {
            (neighbour.path.up_at, neighbour.path.is_older) = (Some(at.now), false);
        }
        if comes_up || status.remote_state == bfd::State::AdminDown {
            neighbour.path.expect_nothing();
        } else if has_failed && is_outlived {
            neighbour.path.is_awaited = true;
            if neighbour.peer.session().is_some() {
                neighbour.path.expect_by(at.now + status.detection + BACK);
            }
        } else if status.state == bfd::State::Init && neighbour.path.back_by.is_some() && !neighbour.path.is_prolonged {
            // The next process has begun, at the pace that it has until BFD is up: 30 s between packets in some routers. Each session has that once.
            (neighbour.path.back_by, neighbour.path.is_prolonged) = (Some(at.now + status.detection + BACK), true);
        }
        if has_failed && is_outlived {
            self.outputs.push(Output::Fact(address, Fact::PathOutlived(status)));
        } else if has_failed {
            neighbour.path.failed(at.now);
            self.outputs.push(Output::Fact(address, Fact::PathFailed(status)));
            self.path_failed(at, address, status.independent);
        } else if was == bfd::State::Up && !is_up {
            self.outputs.push(Output::Fact(address, Fact::PathShut));
        }
        if comes_up {
            self.outputs.push(Output::Fact(address, Fact::PathUp));
        }
        self.release_by(at, address, &status);
        self.settle(address);
    }

    /// Forgets the status of all paths: BFD has died.
    pub(super) fn forget_paths(&mut self) {
        for address in self.neighbours.keys().copied().collect::<Vec<_>>() {
            if let Some(neighbour) = self.neighbours.get_mut(&address) {
                neighbour.path.status = None;
                neighbour.path.expect_nothing();
            }
            self.settle(address);
        }
    }

    fn path_failed(&mut self, at: Moment, address: IpAddr, is_independent: bool) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        let notification = Notification::new(Reason::BFD_DOWN);
        let has_stale = neighbour.peer.stale() != PerFamily::default();
        if neighbour.peer.session().is_some() {
            neighbour.path.is_holding = true;
            self.event(at, address, Event::Refuse(notification, HELD));
        } else if has_stale && (is_independent || neighbour.path.was_down_there) {
            self.event(at, address, Event::Restart(notification));
        }
    }

    /// Lets a neighbour have a session again, at once or later, where BFD is up, or shut down by either end (RFC 5882 4.1).
    fn release_by(&mut self, at: Moment, address: IpAddr, status: &Status) {
        let Some(neighbour) = self.neighbours.get_mut(&address).filter(|one| one.path.is_holding) else { return };
        let path = &mut neighbour.path;
        path.release_at = match (status.state, status.remote_state) {
            (bfd::State::Up, _) => path.release_at.or(Some(at.now + path.proof())),
            (_, bfd::State::AdminDown) => Some(at.now),
            (bfd::State::AdminDown | bfd::State::Down | bfd::State::Init, _) => None,
        };
        self.release_if_due(at, address);
        self.settle(address);
    }

    /// Forgets that a path keeps its neighbour from having a session, where the time for that is over: what keeps it later is another matter.
    pub(super) fn end_hold_if_over(&mut self, address: IpAddr) {
        let held = self.neighbours.get_mut(&address).filter(|one| one.path.is_holding);
        if let Some(neighbour) = held.filter(|one| one.peer.state() != State::Idle) {
            neighbour.path.let_go();
            self.settle(address);
        }
    }

    /// Ends the session of a neighbour whose BFD has not come up since its process before was gone: nothing else would tell that this path has failed.
    pub(super) fn fail_if_not_back(&mut self, at: Moment, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        let path = &mut neighbour.path;
        if path.back_by.is_none_or(|end| end > at.now) {
            return;
        }
        path.expect_nothing();
        if let Some(status) = path.status {
            path.failed(at.now);
            self.outputs.push(Output::Fact(address, Fact::PathFailed(status)));
            self.path_failed(at, address, status.independent);
        }
        self.settle(address);
    }

    /// Lets a neighbour have a session again whose path had failed, and has been up for long enough.
    pub(super) fn release_if_due(&mut self, at: Moment, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        if neighbour.path.release_at.is_none_or(|release| release > at.now) {
            return;
        }
        neighbour.path.let_go();
        self.start_if_idle(at, address);
    }

    /// Starts a neighbour whose path does not keep it from having a session any more, unless an operator has stopped it.
    pub(super) fn start_if_idle(&mut self, at: Moment, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get(&address) else { return };
        let is_idle = neighbour.peer.state() == State::Idle && !neighbour.peer.is_stopped();
        self.settle(address);
        if is_idle {
            self.event(at, address, Event::Start);
        }
    }
}

impl Neighbour {
    /// Returns whether the neighbour's process has ended and is expected back: its BFD ends with it, which is no failure of the path.
    fn is_away(&self, status: &Status) -> bool {
        let is_expected = self.peer.session().is_none() && self.peer.stale() != PerFamily::default();
        is_expected && self.path.may_be_gone && !status.independent
    }

    /// Returns whether BFD that goes down now was with an earlier process of the neighbour than the session.
    fn has_outlived(&self, now: Instant, status: &Status) -> bool {
        let age = self.began().map(|began| now.saturating_duration_since(began));
        let is_young = self.peer.session().is_some() && age.is_some_and(|age| age < status.detection + NOTICED);
        self.path.is_older && is_young && !status.independent
    }
}
