//! Bidirectional Forwarding Detection: whether packets reach a neighbour and come back, known within a second.
//!
//! RFC 5880 (asynchronous mode), RFC 5881 (a neighbour on our link), RFC 5883 (one that is several hops away). Both systems send
//! a packet in every interval; who receives none for several intervals declares the path down, and says so in its own packets.
//!
//! `packet` is the wire format, `session` the machine of one session, `sessions` all of them with their timers: pure, events and the
//! time go in, packets and changes come out. `driver` has the sockets and the clock.
//!
//! Not supported: authentication, the echo function, and demand mode of ours. A neighbour's demand mode is honoured: nothing is sent
//! while the session is up, and its polls are answered.

pub mod discriminators;
pub mod driver;
pub mod packet;
pub mod session;
pub mod sessions;

use std::net::IpAddr;
use std::time::Duration;

use crate::net::Bfd;
use crate::net::ttl_security::least_ttl;

pub use packet::{Diagnostic, State};
pub use session::Status;

/// UDP ports of BFD: RFC 5881 4, RFC 5883 5.
pub const SINGLE_HOP: u16 = Bfd::PORT;
pub const MULTIHOP: u16 = Bfd::MULTIHOP_PORT;

/// Session, as both of its ends find it before they know each other's discriminators.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    pub remote: IpAddr,
    /// Our address towards it, of the same family.
    pub local: IpAddr,
    pub path: Path,
}

/// Distance to a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Path {
    /// The neighbour is on our link: packets that passed a router are discarded (RFC 5881 5).
    SingleHop,
    Multihop,
}

impl Path {
    /// Port on which packets are received.
    pub fn port(self) -> u16 {
        match self {
            Path::SingleHop => SINGLE_HOP,
            Path::Multihop => MULTIHOP,
        }
    }
}

/// Configuration of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Number of our packets that the neighbour may miss (Detect Mult); at least 1.
    pub multiplier: u8,
    /// Time between two packets of ours that we wish (Desired Min TX Interval); at least 1 µs.
    pub send: Duration,
    /// Least time between two packets of the neighbour that we can bear (Required Min RX Interval); at least 1 µs.
    pub receive: Duration,
}

/// Desired session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub settings: Settings,
    /// Destination port; usually that of the path.
    pub port: u16,
    /// How many hops away the neighbour may be, at least 1: packets with less TTL (hop limit) left than of such a one are ignored (RFC 5082), because both send with the highest. `None`: any
    /// distance, but on our link for [`Path::SingleHop`].
    pub hops: Option<u8>,
}

impl Wanted {
    /// The least TTL that a packet of the neighbour has left.
    fn least_ttl(self) -> Option<u8> {
        self.hops.map(least_ttl)
    }
}

/// Request for a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub wanted: Wanted,
    /// Another number is answered with the session's status, also where the session is there already: somebody else asks.
    pub number: u64,
}
