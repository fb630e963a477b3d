//! Route refresh (RFC 2918, RFC 7313), asked for and answered, and inbound and outbound soft resets.
//!
//! A request, and the beginning and the end of a refresh, are 23 bytes each and cost a walk through the table of all neighbours. So of one neighbour
//! they count at a pace that leaves time for the others. Requests that come sooner are answered together when it is time. The beginning (BoRR) of a
//! refresh that comes sooner is ignored: where another one is in progress, that one goes on to the next end (EoRR), and has the routes that came since; else
//! routes are replaced and withdrawn as they come, and only what the neighbour has forgotten to withdraw stays until its next refresh.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::message::{self, Refresh, RefreshKind};
use super::super::session::Moment;
use super::{Neighbour, Output, Speaker};
use crate::net::Family;

/// Time between two refreshes: this, and so much for each prefix of the table, which is ten times what a walk takes, or more.
const PACE: Duration = Duration::from_secs(1);
const PACE_PER_PREFIX: Duration = Duration::from_micros(10);

/// Refreshes of an address family between a neighbour and us.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Refreshes {
    /// Time from which on the neighbour may begin the next one.
    may_begin: Option<Instant>,
    /// Time from which on the next request is answered.
    may_answer: Option<Instant>,
    /// A request has come sooner.
    is_owed: bool,
}

impl Speaker {
    pub(super) fn ask_again(&mut self, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        let Some((link, _)) = neighbour.peer.session() else { return };
        let Some(agreement) = neighbour.peer.agreement().filter(|agreement| agreement.refresh) else { return };
        let spoken = agreement.dialect.families;
        for family in Family::BOTH.into_iter().filter(|family| *spoken.of(*family)) {
            let request = message::refresh(&Refresh { family, kind: RefreshKind::Request });
            neighbour.has_sent(&request);
            self.outputs.push(Output::Send(link, request.into()));
        }
    }

    /// Handles a ROUTE-REFRESH of a neighbour.
    pub(super) fn refresh(&mut self, at: Moment, address: IpAddr, refresh: Refresh) {
        let prefixes = u32::try_from(self.rib.table().len()).unwrap_or(u32::MAX);
        let next = Some(at.now + PACE + PACE_PER_PREFIX * prefixes);
        let Some(neighbour) = self.neighbours.get_mut(&address).filter(|one| one.speaks(refresh.family)) else {
            return;
        };
        let is_restarting = neighbour.is_not_complete_yet(refresh.family);
        let marks = neighbour.peer.agreement().is_some_and(|agreement| agreement.enhanced_refresh);
        let refreshes = neighbour.refreshes.of_mut(refresh.family);
        let is_too_soon = |may: Option<Instant>| may.is_some_and(|may| may > at.now);
        match refresh.kind {
            RefreshKind::Begin if is_restarting || is_too_soon(refreshes.may_begin) => return,
            RefreshKind::Begin => refreshes.may_begin = next,
            RefreshKind::Request if is_too_soon(refreshes.may_answer) => {
                refreshes.is_owed = true;
                return;
            }
            RefreshKind::Request => (refreshes.may_answer, refreshes.is_owed) = (next, false),
            RefreshKind::End => {}
        }
        self.rib.refresh(neighbour.id, refresh, marks);
    }

    /// Answers the requests of a neighbour that had come too soon, where it is time now.
    pub(super) fn answer_if_due(&mut self, at: Moment, address: IpAddr) {
        for family in Family::BOTH {
            let owed = self.neighbours.get(&address).and_then(|neighbour| neighbour.refreshes.of(family).owed_at());
            if owed.is_some_and(|owed| owed <= at.now) {
                self.refresh(at, address, Refresh { family, kind: RefreshKind::Request });
                self.settle(address);
            }
        }
    }

    pub(super) fn tell_again(&mut self, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get(&address) else { return };
        for family in Family::BOTH {
            if neighbour.speaks(family) {
                self.rib.resend(neighbour.id, family);
            }
        }
    }
}

impl Refreshes {
    /// Time at which a request is to be answered that had come too soon.
    fn owed_at(self) -> Option<Instant> {
        self.may_answer.filter(|_| self.is_owed)
    }
}

impl Neighbour {
    /// Time at which a request of an address family is to be answered that had come too soon.
    pub(super) fn owed_at(&self) -> Option<Instant> {
        Family::BOTH.into_iter().filter_map(|family| self.refreshes.of(family).owed_at()).min()
    }

    /// Forgets the requests that are not answered yet, with the session that they came in. The pace goes on.
    pub(super) fn forget_requests(&mut self) {
        Family::BOTH.into_iter().for_each(|family| self.refreshes.of_mut(family).is_owed = false);
    }

    /// Returns whether its refreshes are to be ignored (RFC 7313 4.2): its routes of an address family are retained over restarts, and its
    /// End-of-RIB has not come yet.
    fn is_not_complete_yet(&self, family: Family) -> bool {
        self.peer.agreement().is_some_and(|agreement| agreement.retains(family)) && !self.is_complete(family)
    }
}
