//! State machine of one neighbour: from the first dial to the established session, and back.
//!
//! RFC 4271 8, without I/O: events and the time are inputs, effects are outputs.
//!
//! ```text
//!            Start                  dialled or accepted          OPEN
//!   Idle ───────────► Active/Connect ────────────────► OpenSent ─────► OpenConfirm
//!    ▲                     ▲                              │                 │ KEEPALIVE
//!    │ Stop                │ an end, a refusal, silence   │                 ▼
//!    └── from everywhere   └──────────────────────────────┴────────── Established
//! ```
//!
//! A neighbour has up to two connections, one that we dialled and one that it dialled. A collision is resolved as in
//! RFC 4271 6.8, but that the loser is closed with the KEEPALIVE that confirms the winner, and with one addition: a
//! connection made while a session is established is taken as far as its OPEN, and the session is probed with a
//! KEEPALIVE. When the neighbour has lost the session (its host was restarted) that ends
//! it at once, and the new connection takes over; when not, the new one is closed. Without this a restarted neighbour
//! is locked out until the hold timer expires, or two speakers that decide at the same moment lose both connections.
//!
//! Conversely, a connection confirmed by both sides waits for one that is still being made and would win the collision.
//! The peer may have decided for that one already, and a session would begin only to end.
//!
//! After a failure the machine goes on listening and dials again later (1 s, 2 s, 4 s …): this is the RFC's Idle with
//! an automatic, passive start. Where thousands do not answer, the speaker spreads their dials further. It refuses connections only while it is stopped, or for a while when the neighbour has
//! sent malformed messages, or too many prefixes.
//!
//! The complete table of states, events and effects is `transitions.txt`, which a test writes and compares.

mod agreement;
mod connection;
mod peer;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::message::{Notification, Refresh, Update};
use crate::net::PerFamily;

pub use agreement::{Agreement, Local, Restart, Settings};
pub use peer::Peer;

/// Time by which timers may be early, so that those of many neighbours share one wake-up.
pub const SLACK: Duration = Duration::from_secs(2);

/// A timer handled so much later was delayed by us.
const BUSY: Duration = Duration::from_secs(1);

/// Time of an event, with random jitter: no two neighbours should act in step.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    pub jitter: u8,
}

impl Moment {
    /// End of a timer, jittered down to three quarters at the least (RFC 4271 10).
    pub fn after(&self, time: Duration) -> Instant {
        self.now + time * (1024 - u32::from(self.jitter)) / 1024
    }

    /// Returns whether a timer that ended then was delayed by us, not by the neighbour.
    fn is_late(&self, then: Instant) -> bool {
        self.now.saturating_duration_since(then) >= BUSY
    }
}

/// Connection number, assigned by the owner of the sockets and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// Side that dialled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    Ours,
    Theirs,
}

/// States of RFC 4271 8.2.2, for display. With two connections it is the more advanced one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

/// Event of a neighbour. Received bytes go into [`Peer::receive`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Start (events 1, 3 to 7).
    Start,
    /// Stop, with the NOTIFICATION to send (events 2 and 8). Its routes are removed.
    Stop(Notification),
    /// Reset of the session, with the NOTIFICATION to send. Its routes are removed.
    Restart(Notification),
    /// Changed settings: all connections end and begin anew, with a session its routes go. Routes that are retained of an earlier session
    /// stay, as far as the new settings retain any.
    Renew(Notification),
    /// End of the session because of its routes, with the NOTIFICATION to send and the time in Idle.
    Refuse(Notification, Duration),
    /// Our dial has succeeded (event 16).
    Dialled(LinkId),
    /// Our dial has failed (event 18 in Connect).
    DialFailed,
    /// A connection of the neighbour was accepted (event 17).
    Accepted(LinkId),
    /// A connection has ended (event 18).
    Closed(LinkId),
    /// The send hold timer has expired (RFC 9687).
    Stuck(LinkId),
    /// [`Peer::deadline`] is reached, or [`Peer::ready`] (events 9 to 11 and 13).
    Tick,
    /// Others that did not answer are back: a scheduled dial is made now (event 9).
    DialNow,
}

/// Requested action.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Dial; answered by `Dialled` or `DialFailed`.
    Dial,
    /// Abandon the dial.
    AbandonDial,
    Send(LinkId, Vec<u8>),
    /// Close, after pending output has been sent.
    Close(LinkId),
    /// The session is established.
    Up(LinkId, Box<Agreement>),
    /// The session has ended; the routes of these address families are retained, all others are to be removed.
    Down {
        kept: PerFamily<bool>,
        cause: Cause,
    },
    Update(Box<Update>),
    Refresh(Refresh),
    /// All stale routes of these address families are long-lived (RFC 9494); `is_new`: from now on.
    LongLived {
        families: PerFamily<bool>,
        is_new: bool,
    },
    /// Stale routes of these address families are to be removed.
    DropStale(PerFamily<bool>),
    /// A connection ended before it was established; for the log.
    Failed(Cause),
}

/// Reason for the end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Closed by the peer, or broken.
    Closed,
    /// NOTIFICATION received.
    Received(Notification),
    /// NOTIFICATION sent.
    Sent(Notification),
    /// The neighbour has restarted and has opened a new connection.
    Replaced,
}

/// Rank in a collision: BGP identifiers are compared as numbers.
fn rank(identifier: Ipv4Addr, asn: u32) -> (u32, u32) {
    (identifier.to_bits(), asn)
}
