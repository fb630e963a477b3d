//! Events that are not delivered yet.
//!
//! The consumer may be slow: it takes a while to install a whole table in the kernel. Meanwhile only the prefixes with
//! changed routes are queued, and their routes are looked up at delivery: one portion at a time, so that the consumer
//! works on one portion while the speaker prepares the next. Facts are few. Without a consumer for long the oldest are folded: the state of
//! each neighbour's session is kept, and what is for the log alone is dropped (`folded`).
//!
//! The queue has two turns. What arrives while one turn is being delivered joins the next, so that a fact is delivered
//! after all routes that preceded it, and nothing is starved by routes that keep changing.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::super::rib::{Changed, RouteChange};
use super::super::speaker::Fact;
use super::folded::Folded;
use crate::bfd::sessions::Ignored;
use crate::kernel::Error;

/// Event for the owner of the speaker.
#[derive(Clone, Debug)]
pub enum Event {
    /// Changed best routes, each prefix once.
    Routes(Vec<RouteChange>),
    Fact(IpAddr, Fact),
    /// The local restart is over: the table is as complete as it gets.
    Complete,
    /// A subsystem fails, with the reason; `None` when it works again. Sent on changes, not on every retry.
    Trouble(Subject, Option<Error>),
    /// Packets of BFD that were ignored since the last such event, by reason.
    Ignored(BTreeMap<Ignored, u64>),
    /// Connections refused since the last such event, which is at least a minute ago.
    Refused(Vec<Refused>),
    /// Number of facts and troubles dropped because nobody consumed them: how the sessions of all neighbours stand, and what fails, is told all
    /// the same.
    Lost(u64),
}

/// Subject of a failure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// Listening on an address, or accepting connections on it.
    Listening(SocketAddr),
    Dialling(IpAddr),
    /// Receiving packets of BFD on an address.
    Bfd(SocketAddr),
    /// Sending packets of BFD to an address.
    BfdTo(SocketAddr),
    /// BFD as a whole: its thread does not start.
    BfdThread,
    /// The password of a neighbour cannot be set on the listening sockets; the neighbour is not admitted.
    Password(IpAddr),
}

/// Refused connections from one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    pub from: IpAddr,
    pub because: Refusal,
    pub times: u64,
}

/// Reason for closing a connection before any message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Refusal {
    /// The source is no configured neighbour.
    Stranger,
    /// The destination is another local address than the one configured for the neighbour.
    OtherAddress,
    /// The neighbour has a password that the kernel has not accepted.
    NoPassword,
    /// The neighbour has too many connections already, most of which are closing.
    TooMany,
    /// The connection was opened from farther away than the neighbour may be (RFC 5082), or nobody knows from how far.
    TooFar,
}

/// Queue of undelivered events.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Turn being delivered.
    turn: Turn,
    /// Following turn.
    next: Turn,
    /// The consumer may have routes that this speaker has never told.
    has_predecessor: bool,
    refused: BTreeMap<(IpAddr, Refusal), u64>,
    /// Earliest time for the next report of refusals.
    refused_at: Option<Instant>,
}

/// Prefixes with changed routes, and the events after them.
#[derive(Debug, Default)]
struct Turn {
    /// With whether the consumer knows of a route.
    routes: BTreeMap<IpNet, bool>,
    /// Of the oldest events, which the queue had no room for.
    folded: Folded,
    rest: VecDeque<Event>,
    complete: bool,
}

/// Number of events that are queued one by one.
const MOST: usize = 4096;
/// Number of routes delivered at a time.
const PORTION: usize = 4096;
/// Number of addresses counted separately.
const MOST_REFUSED: usize = 64;
const BETWEEN_REFUSALS: Duration = Duration::from_secs(60);

impl News {
    /// Makes the queue of a speaker whose predecessor, in this process or before, may have left routes with the consumer: until the restart is over
    /// those are unknown here, so each that goes is told.
    pub fn of_successor() -> News {
        News { has_predecessor: true, ..News::default() }
    }

    /// Queues prefixes whose routes have changed. What came and went before it was delivered is not: prefixes that are never twice the same would
    /// grow the queue without bound.
    pub fn routes(&mut self, changes: impl IntoIterator<Item = Changed>) {
        for Changed { prefix, had, has } in changes {
            let had = had || self.has_predecessor;
            let turn = if self.turn.routes.contains_key(&prefix) { &mut self.turn } else { &mut self.next };
            let is_known = *turn.routes.entry(prefix).or_insert(had);
            if !is_known && !has {
                turn.routes.remove(&prefix);
            }
        }
    }

    /// Queues that the local restart is over.
    pub fn complete(&mut self) {
        self.has_predecessor = false;
        self.next.complete = true;
    }

    pub fn push(&mut self, event: Event) {
        self.next.rest.push_back(event);
        if self.next.rest.len() > MOST
            && let Some(oldest) = self.next.rest.pop_front()
        {
            self.next.folded.add(oldest);
        }
    }

    /// Counts a refused connection.
    pub fn refused(&mut self, from: IpAddr, because: Refusal) {
        if self.refused.len() < MOST_REFUSED || self.refused.contains_key(&(from, because)) {
            *self.refused.entry((from, because)).or_default() += 1;
        }
    }

    /// Time at which refusals already counted are to be reported. Due events wait for their consumer, not for a time.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.refused_at.filter(|at| *at > now && !self.refused.is_empty())
    }

    /// Returns whether there are events to deliver.
    pub fn is_due(&self, now: Instant) -> bool {
        let refused = !self.refused.is_empty() && self.refused_at.is_none_or(|at| at <= now);
        refused || !self.turn.is_empty() || !self.next.is_empty()
    }

    /// Takes the next portion of events. `route` returns the current route to a prefix.
    pub fn take(&mut self, now: Instant, route: impl Fn(IpNet) -> RouteChange) -> Vec<Event> {
        if self.turn.is_empty() {
            self.turn = std::mem::take(&mut self.next);
        }
        let mut events = self.turn.take(route);
        if !self.refused.is_empty() && self.refused_at.is_none_or(|at| at <= now) {
            let refused = std::mem::take(&mut self.refused).into_iter();
            let refused = refused.map(|((from, because), times)| Refused { from, because, times });
            events.push(Event::Refused(refused.collect()));
            self.refused_at = Some(now + BETWEEN_REFUSALS);
        }
        events
    }
}

impl Turn {
    fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.folded.is_empty() && self.rest.is_empty() && !self.complete
    }

    /// Takes a portion of the routes; the last one is followed by all other events.
    fn take(&mut self, route: impl Fn(IpNet) -> RouteChange) -> Vec<Event> {
        let mut events = Vec::new();
        let portion: Vec<RouteChange> =
            std::iter::from_fn(|| self.routes.pop_first()).take(PORTION).map(|(prefix, _)| route(prefix)).collect();
        if !portion.is_empty() {
            events.push(Event::Routes(portion));
        }
        if !self.routes.is_empty() {
            return events;
        }
        let (folded, lost) = self.folded.take();
        if lost > 0 {
            events.push(Event::Lost(lost));
        }
        events.extend(folded);
        events.extend(self.rest.drain(..));
        if std::mem::take(&mut self.complete) {
            events.push(Event::Complete);
        }
        events
    }
}

#[cfg(test)]
mod tests;
