//! BGP messages: decoding and encoding.
//!
//! RFC 4271 4: every message has a header of 19 bytes (a marker of ones, the length, the type). [`Framing`] splits a
//! stream into messages, [`decode`] parses one of them. The encoding of UPDATE depends on the capabilities of both
//! OPENs: that is a [`Dialect`]. An error is the NOTIFICATION that answers it; where RFC 7606 requires less than a
//! session reset, it is part of the [`Update`].
//!
//! No input can cause a panic: bytes are read through [`reader::Reader`] alone.

mod address_family;
mod as_path;
mod attributes;
mod capability;
mod dialect;
mod framing;
mod header;
mod notification;
mod open;
mod path_attribute;
mod prefix;
mod reader;
mod refresh;
mod treatment;
mod update;
mod write;
#[cfg(test)]
mod tests;

use self::header::{KEEPALIVE, NOTIFICATION, OPEN, ROUTE_REFRESH, UPDATE, framed};

pub use as_path::{AS_TRANS, AsPath, Segment};
pub use attributes::{Aggregator, Attributes, Community, ExtendedCommunity, LargeCommunity, Origin, Rare, Unknown};
pub use capability::{Capabilities, GracefulRestart, LongLivedFamily, LongLivedRestart};
pub use dialect::Dialect;
pub use framing::Framing;
pub use header::{Frame, SHORTEST};
pub use notification::{Notification, Reason};
pub use open::Open;
pub use refresh::{Refresh, RefreshKind};
pub use treatment::Treatment;
pub use update::{Announced, Remark, Update};
pub use write::{Packing, end_of_rib};

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
