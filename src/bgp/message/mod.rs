//! Messages of BGP: bytes to values and back.
//!
//! RFC 4271 4: every message has a head of 19 bytes (a marker of ones, its length, its kind). [`Framing`] cuts a stream
//! into messages, [`decode`] reads one of them. How UPDATE is written depends on what both sides said in OPEN:
//! that is a [`Dialect`]. An error is the NOTIFICATION that answers it; where RFC 7606 asks for less than the end of
//! the session, it is part of the [`Update`].
//!
//! Nothing here can panic whatever the bytes are: they are read through [`reader::Reader`] alone.

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

/// The head of a message, in bytes.
const HEADER: usize = 19;
/// The longest message, and the longest where both sides can do more (RFC 8654).
const LONGEST: usize = 4096;
const LONGEST_EXTENDED: usize = 65535;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH: u8 = 5;

/// How both sides of a session have agreed to write, and who the other one is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dialect {
    /// The other side is in our autonomous system.
    pub internal: bool,
    /// Numbers of autonomous systems have four octets.
    pub four_octets: bool,
    /// The families that both sides speak.
    pub families: PerFamily<bool>,
    /// IPv4 prefixes may have IPv6 next hops.
    pub extended_next_hop: bool,
    /// The other side takes messages of 65,535 bytes.
    pub extended_message: bool,
}

impl Dialect {
    /// The longest message that the other side takes, in bytes.
    pub fn longest(&self) -> usize {
        if self.extended_message { LONGEST_EXTENDED } else { LONGEST }
    }
}

/// A message from the other side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    Open(Open),
    Update(Update),
    Notification(Notification),
    Keepalive,
    Refresh(Refresh),
    /// A well-formed ROUTE-REFRESH for a family or of a kind that we do not know.
    Ignored,
}

impl Message {
    /// The number of its kind.
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

/// A message as [`Framing`] cuts it out: its kind, and what follows its head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    kind: u8,
    body: &'a [u8],
}

/// Reads one message. UPDATE is read in this dialect; before there is one it is not read at all, and empty: the session ends
/// then in any case.
///
/// # Errors
/// The message cannot be read in a way that leaves the session up: what the peer is to be told.
pub fn decode(frame: Frame, dialect: Option<&Dialect>) -> Result<Message, Notification> {
    let Frame { kind, body } = frame;
    match kind {
        OPEN => Open::decode(body).map(Message::Open),
        UPDATE => dialect.map_or(Ok(Update::default()), |dialect| Update::decode(body, dialect)).map(Message::Update),
        NOTIFICATION => {
            // Framing has made sure of the two bytes that it needs.
            let notification = Notification::decode(body);
            Ok(Message::Notification(notification.unwrap_or_else(|| Notification::new(Reason::new(0, 0)))))
        }
        KEEPALIVE => Ok(Message::Keepalive),
        ROUTE_REFRESH => Refresh::decode(body).map(|refresh| refresh.map_or(Message::Ignored, Message::Refresh)),
        other => Err(Notification::with(Reason::BAD_MESSAGE_TYPE, [other])),
    }
}

/// An OPEN, as bytes.
pub fn open(open: &Open) -> Vec<u8> {
    framed(OPEN, |out| open.encode(out))
}

/// A NOTIFICATION, as bytes.
pub fn notification(notification: &Notification) -> Vec<u8> {
    framed(NOTIFICATION, |out| notification.encode(out))
}

/// A KEEPALIVE, as bytes.
pub fn keepalive() -> Vec<u8> {
    framed(KEEPALIVE, |_| {})
}

/// A ROUTE-REFRESH, as bytes.
pub fn refresh(refresh: &Refresh) -> Vec<u8> {
    framed(ROUTE_REFRESH, |out| refresh.encode(out))
}

/// A head, and a body behind it.
fn framed(kind: u8, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let at = begin(&mut out, kind);
    body(&mut out);
    finish(&mut out, at);
    out
}

/// Writes the head of a message, and answers where it stands.
fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&[0, 0, kind]);
    at
}

/// Completes the length in the head of the message that stands here and reaches to the end.
fn finish(out: &mut [u8], at: usize) {
    let length = out.len() - at;
    debug_assert!(length <= LONGEST_EXTENDED, "a message has a length that can be written");
    if let Some(field) = out.get_mut(at + 16..at + 18) {
        field.copy_from_slice(&(length as u16).to_be_bytes());
    }
}

/// The families that we speak, by their numbers (IANA, *Address Family Numbers*): unicast only.
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
