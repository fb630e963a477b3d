//! BGP messages: decoding and encoding.
//!
//! RFC 4271 4: every message has a header of 19 bytes (a marker of ones, the length, the type). [`Framing`] splits a
//! stream into messages, [`decode`] parses one of them. The encoding of UPDATE depends on the capabilities of both
//! OPENs: that is a [`Dialect`]. An error is the NOTIFICATION that answers it; where RFC 7606 requires less than a
//! session reset, it is part of the [`Update`].
//!
//! No input can cause a panic: bytes are read through [`reader::Reader`] alone.

mod as_path;
mod attributes;
mod capability;
mod framing;
mod notification;
mod open;
mod path_attribute;
mod prefix;
mod reader;
mod refresh;
mod update;
mod write;
#[cfg(test)]
mod tests;

use crate::net::{Family, PerFamily};

pub use as_path::{AS_TRANS, AsPath, Segment};
pub use attributes::{Aggregator, Attributes, Community, ExtendedCommunity, LargeCommunity, Origin, Rare, Unknown};
pub use capability::{Capabilities, GracefulRestart};
pub use framing::Framing;
pub use notification::{Notification, Reason};
pub use open::Open;
pub use refresh::{Refresh, RefreshKind};
pub use update::{Announced, Remark, Treatment, Update};
pub use write::{Packing, end_of_rib};

/// Length of the message header, in bytes.
const HEADER: usize = 19;
/// Length of a KEEPALIVE, in bytes. All other messages are longer.
pub const SHORTEST: usize = HEADER;
/// Maximum message length, and the maximum length of extended messages (RFC 8654).
const LONGEST: usize = 4096;
const LONGEST_EXTENDED: usize = 65535;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH: u8 = 5;

/// Negotiated encoding of a session, and the type of the peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dialect {
    /// The peer is internal (IBGP).
    pub internal: bool,
    /// AS numbers have four octets.
    pub four_octets: bool,
    /// Negotiated address families.
    pub families: PerFamily<bool>,
    /// IPv4 NLRI may have IPv6 next hops.
    pub extended_next_hop: bool,
    /// The peer accepts messages of 65,535 bytes.
    pub extended_message: bool,
}

impl Dialect {
    /// Maximum length of messages to the peer, in bytes.
    pub fn longest(&self) -> usize {
        if self.extended_message { LONGEST_EXTENDED } else { LONGEST }
    }
}

/// Received message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    Open(Open),
    Update(Update),
    Notification(Notification),
    Keepalive,
    Refresh(Refresh),
    /// A well-formed ROUTE-REFRESH for an unknown address family or of an unknown subtype.
    Ignored,
}

impl Message {
    /// Message type code.
    pub fn kind(&self) -> u8 {
        match self {
            Message::Open(_) => OPEN,
            Message::Update(_) => UPDATE,
            Message::Notification(_) => NOTIFICATION,
            Message::Keepalive => KEEPALIVE,
            Message::Refresh(_) | Message::Ignored => ROUTE_REFRESH,
        }
    }
}

/// Message as [`Framing`] returns it: its type, and the bytes after its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    kind: u8,
    body: &'a [u8],
}

/// Parses one message. UPDATE is parsed in the given dialect; without one (before both OPENs) it is returned empty: the
/// session ends in any case.
///
/// # Errors
/// The error resets the session: the NOTIFICATION to send.
pub fn decode(frame: Frame, dialect: Option<&Dialect>) -> Result<Message, Notification> {
    let Frame { kind, body } = frame;
    match kind {
        OPEN => Open::decode(body).map(Message::Open),
        UPDATE => dialect.map_or(Ok(Update::default()), |dialect| Update::decode(body, dialect)).map(Message::Update),
        NOTIFICATION => {
            // Framing guarantees the required two bytes.
            let notification = Notification::decode(body);
            Ok(Message::Notification(notification.unwrap_or_else(|| Notification::new(Reason::new(0, 0)))))
        }
        KEEPALIVE => Ok(Message::Keepalive),
        ROUTE_REFRESH => Refresh::decode(body).map(|refresh| refresh.map_or(Message::Ignored, Message::Refresh)),
        other => Err(Notification::with(Reason::BAD_MESSAGE_TYPE, [other])),
    }
}

/// Encodes an OPEN.
pub fn open(open: &Open) -> Vec<u8> {
    framed(OPEN, |out| open.encode(out))
}

/// Encodes a NOTIFICATION.
pub fn notification(notification: &Notification) -> Vec<u8> {
    framed(NOTIFICATION, |out| notification.encode(out))
}

/// Encodes a KEEPALIVE.
pub fn keepalive() -> Vec<u8> {
    framed(KEEPALIVE, |_| {})
}

/// Encodes a ROUTE-REFRESH.
pub fn refresh(refresh: &Refresh) -> Vec<u8> {
    framed(ROUTE_REFRESH, |out| refresh.encode(out))
}

/// Encodes a header and the body after it.
fn framed(kind: u8, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let at = begin(&mut out, kind);
    body(&mut out);
    finish(&mut out, at);
    out
}

/// Writes the header of a message and returns its position.
fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&[0, 0, kind]);
    at
}

/// Fills in the length of the message that begins at `at` and extends to the end.
fn finish(out: &mut [u8], at: usize) {
    let length = out.len() - at;
    debug_assert!(length <= LONGEST_EXTENDED, "a message has a length that can be written");
    if let Some(field) = out.get_mut(at + 16..at + 18) {
        field.copy_from_slice(&(length as u16).to_be_bytes());
    }
}

/// Supported address families, by AFI and SAFI (IANA, *Address Family Numbers*): unicast only.
fn family_of(afi: u16, safi: u8) -> Option<Family> {
    match (afi, safi) {
        (1, 1) => Some(Family::V4),
        (2, 1) => Some(Family::V6),
        _ => None,
    }
}

fn numbers_of(family: Family) -> (u16, u8) {
    match family {
        Family::V4 => (1, 1),
        Family::V6 => (2, 1),
    }
}
