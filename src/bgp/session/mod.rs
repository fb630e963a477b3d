//! One neighbour: from the first dial to the established session, and back.
//!
//! RFC 4271 8, as a machine without I/O: an event and the time go in, effects come out.
//!
//! ```text
//!            Start                  dialled or accepted          OPEN
//!   Idle ───────────► Active/Connect ────────────────► OpenSent ─────► OpenConfirm
//!    ▲                     ▲                              │                 │ KEEPALIVE
//!    │ Stop                │ an end, a refusal, silence   │                 ▼
//!    └── from everywhere   └──────────────────────────────┴────────── Established
//! ```
//!
//! A neighbour has up to two connections, one that we dialled and one that it dialled. Which one stays is decided as in
//! RFC 4271 6.8, with one addition: a connection that comes while a session stands is heard out, and the session is tried
//! with a KEEPALIVE. When the neighbour has forgotten the session (its host was started again) that ends it at once, and
//! the new connection takes over; when not, the new one is closed. Without this a restarted neighbour is locked out
//! until the hold timer ends, or two speakers that decide at the same moment lose both connections.
//!
//! The reverse, too: a connection that both have confirmed, beside one that is being made and would win, waits for that one. The
//! other side may have decided for it already, and a session would begin only to end.
//!
//! After a failure the machine goes on listening and dials again later (1 s, 2 s, 4 s …): this is the RFC's Idle with an
//! automatic, passive start. It refuses connections only while it is stopped, or for a while when the neighbour has sent what
//! cannot be read, or too much.
//!
//! The whole table of states, events and effects is `transitions.txt`, which a test writes and compares.

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

/// When something happens, and a number by chance for it: no two neighbours should act in step.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    pub jitter: u8,
}

impl Moment {
    /// When a time is over, shortened to three quarters at the most (RFC 4271 10).
    pub fn after(&self, time: Duration) -> Instant {
        self.now + time * (1024 - u32::from(self.jitter)) / 1024
    }
}

/// A connection, by a number that whoever holds the sockets gives to it and never uses again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// Who dialled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    Ours,
    Theirs,
}

/// The states of RFC 4271 8.2.2, as they are shown. With two connections it is the one that is further.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

/// What happens to a neighbour from outside. What comes over a connection goes into [`Peer::receive`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It is wanted (events 1, 3 to 7).
    Start,
    /// It is not wanted any more, and this is what it is told (events 2 and 8). Its routes go.
    Stop(Notification),
    /// Its session begins anew, and this is what it is told. Its routes go.
    Restart(Notification),
    /// The session is ended because of its routes: this is said, and it is left alone for so long.
    Refuse(Notification, Duration),
    /// Our dialling has made a connection (event 16).
    Dialled(LinkId),
    /// Our dialling has failed (event 18 in Connect).
    DialFailed,
    /// It has made a connection (event 17).
    Accepted(LinkId),
    /// A connection has ended (event 18).
    Closed(LinkId),
    /// What we send has not gone anywhere for too long (RFC 9687).
    Stuck(LinkId),
    /// Time has passed: [`Peer::deadline`] is reached (events 9 to 11 and 13).
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Make a connection; the answer is `Dialled` or `DialFailed`.
    Dial,
    /// The connection that is being made is not wanted any more.
    AbandonDial,
    Send(LinkId, Vec<u8>),
    /// Close, after what is to be sent has been sent.
    Close(LinkId),
    /// The session is established.
    Up(LinkId, Box<Agreement>),
    /// The session has ended; the routes of these families are kept, and all others are to be dropped.
    Down {
        kept: PerFamily<bool>,
        cause: Cause,
    },
    Update(Box<Update>),
    Refresh(Refresh),
    /// The kept routes of these families that have not come again are to be dropped.
    DropStale(PerFamily<bool>),
    /// A connection that was no session has ended, for the log.
    Failed(Cause),
}

/// Why a connection has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// It was closed from the other side, or broke.
    Closed,
    /// This was said to us.
    Received(Notification),
    /// This was said by us.
    Sent(Notification),
    /// The neighbour has restarted and has come with a new connection.
    Replaced,
}

/// Our router identifier is compared with theirs as a number.
fn rank(identifier: Ipv4Addr, asn: u32) -> (u32, u32) {
    (identifier.to_bits(), asn)
}
