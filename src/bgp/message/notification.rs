//! NOTIFICATION: the reason for ending a session.
//!
//! RFC 4271 4.5 and 6; the subcodes of Cease are RFC 4486, the text of an administrative shutdown RFC 9003, the hard
//! reset RFC 8538, errors in ROUTE-REFRESH RFC 7313, the send hold timer RFC 9687. Codes are kept as numbers: a peer
//! may send unassigned ones, and they are displayed all the same.

use std::fmt;

use super::header::{HEADER, LONGEST};
use super::reader::Reader;

/// Error code and subcode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reason {
    pub code: u8,
    pub subcode: u8,
}

/// A NOTIFICATION, sent or received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notification {
    pub reason: Reason,
    /// Data field, whose meaning depends on the reason: usually the erroneous part of the message.
    pub data: Vec<u8>,
}

/// Maximum length of the text of RFC 9003, in bytes.
const LONGEST_TEXT: usize = 255;

impl Reason {
    pub const NOT_SYNCHRONIZED: Reason = Reason::new(1, 1);
    pub const BAD_MESSAGE_LENGTH: Reason = Reason::new(1, 2);
    pub const BAD_MESSAGE_TYPE: Reason = Reason::new(1, 3);
    pub const OPEN_UNSPECIFIC: Reason = Reason::new(2, 0);
    pub const UNSUPPORTED_VERSION: Reason = Reason::new(2, 1);
    pub const BAD_PEER_AS: Reason = Reason::new(2, 2);
    pub const BAD_IDENTIFIER: Reason = Reason::new(2, 3);
    pub const UNSUPPORTED_PARAMETER: Reason = Reason::new(2, 4);
    pub const UNACCEPTABLE_HOLD_TIME: Reason = Reason::new(2, 6);
    pub const UNSUPPORTED_CAPABILITY: Reason = Reason::new(2, 7);
    pub const MALFORMED_ATTRIBUTES: Reason = Reason::new(3, 1);
    pub const UNRECOGNIZED_WELL_KNOWN: Reason = Reason::new(3, 2);
    pub const MISSING_WELL_KNOWN: Reason = Reason::new(3, 3);
    pub const ATTRIBUTE_FLAGS: Reason = Reason::new(3, 4);
    pub const ATTRIBUTE_LENGTH: Reason = Reason::new(3, 5);
    pub const INVALID_ORIGIN: Reason = Reason::new(3, 6);
    pub const INVALID_NEXT_HOP: Reason = Reason::new(3, 8);
    pub const OPTIONAL_ATTRIBUTE: Reason = Reason::new(3, 9);
    pub const INVALID_NETWORK: Reason = Reason::new(3, 10);
    pub const MALFORMED_AS_PATH: Reason = Reason::new(3, 11);
    pub const HOLD_TIMER_EXPIRED: Reason = Reason::new(4, 0);
    pub const UNEXPECTED_IN_OPEN_SENT: Reason = Reason::new(5, 1);
    pub const UNEXPECTED_IN_OPEN_CONFIRM: Reason = Reason::new(5, 2);
    pub const UNEXPECTED_IN_ESTABLISHED: Reason = Reason::new(5, 3);
    pub const MAXIMUM_PREFIXES: Reason = Reason::new(6, 1);
    pub const SHUTDOWN: Reason = Reason::new(6, 2);
    pub const DECONFIGURED: Reason = Reason::new(6, 3);
    pub const RESET: Reason = Reason::new(6, 4);
    pub const REJECTED: Reason = Reason::new(6, 5);
    pub const CONFIGURATION_CHANGE: Reason = Reason::new(6, 6);
    pub const COLLISION: Reason = Reason::new(6, 7);
    pub const OUT_OF_RESOURCES: Reason = Reason::new(6, 8);
    pub const HARD_RESET: Reason = Reason::new(6, 9);
    /// RFC 9384.
    pub const BFD_DOWN: Reason = Reason::new(6, 10);
    pub const REFRESH_LENGTH: Reason = Reason::new(7, 1);
    pub const SEND_HOLD_TIMER_EXPIRED: Reason = Reason::new(8, 0);

    pub const fn new(code: u8, subcode: u8) -> Reason {
        Reason { code, subcode }
    }

    /// Name in the registry (IANA, *BGP Error Codes*), if it has one.
    fn words(self) -> Option<&'static str> {
        Some(match (self.code, self.subcode) {
            (1, 1) => "connection not synchronized",
            (1, 2) => "bad message length",
            (1, 3) => "bad message type",
            (1, _) => "message header error",
            (2, 1) => "unsupported version number",
            (2, 2) => "bad peer AS",
            (2, 3) => "bad BGP identifier",
            (2, 4) => "unsupported optional parameter",
            (2, 6) => "unacceptable hold time",
            (2, 7) => "unsupported capability",
            (2, 11) => "role mismatch",
            (2, _) => "open message error",
            (3, 1) => "malformed attribute list",
            (3, 2) => "unrecognized well-known attribute",
            (3, 3) => "missing well-known attribute",
            (3, 4) => "attribute flags error",
            (3, 5) => "attribute length error",
            (3, 6) => "invalid origin",
            (3, 8) => "invalid next hop",
            (3, 9) => "optional attribute error",
            (3, 10) => "invalid network field",
            (3, 11) => "malformed AS path",
            (3, _) => "update message error",
            (4, _) => "hold timer expired",
            (5, 1) => "unexpected message in OpenSent",
            (5, 2) => "unexpected message in OpenConfirm",
            (5, 3) => "unexpected message in Established",
            (5, _) => "finite state machine error",
            (6, 1) => "maximum number of prefixes reached",
            (6, 2) => "administrative shutdown",
            (6, 3) => "peer de-configured",
            (6, 4) => "administrative reset",
            (6, 5) => "connection rejected",
            (6, 6) => "other configuration change",
            (6, 7) => "connection collision resolution",
            (6, 8) => "out of resources",
            (6, 9) => "hard reset",
            (6, 10) => "BFD down",
            (6, _) => "cease",
            (7, _) => "route refresh message error",
            (8, _) => "send hold timer expired",
            _ => return None,
        })
    }
}

impl Notification {
    /// Builds a NOTIFICATION without data.
    pub fn new(reason: Reason) -> Notification {
        Notification { reason, data: Vec::new() }
    }

    pub fn with(reason: Reason, data: impl Into<Vec<u8>>) -> Notification {
        Notification { reason, data: data.into() }
    }

    /// Builds a shutdown or reset with a text for the peer's operators (RFC 9003); more than 255 bytes are truncated at
    /// a character boundary.
    pub fn with_text(reason: Reason, text: &str) -> Notification {
        let end = (0..=LONGEST_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let text = text.get(..end).unwrap_or_default().as_bytes();
        if text.is_empty() {
            return Notification::new(reason);
        }
        let mut data = vec![text.len() as u8];
        data.extend_from_slice(text);
        Notification::with(reason, data)
    }

    /// Wraps the NOTIFICATION in a hard reset, so that a peer with which graceful restart covers NOTIFICATIONs drops
    /// our routes all the same (RFC 8538 3.1).
    pub fn hardened(self) -> Notification {
        let mut data = vec![self.reason.code, self.reason.subcode];
        data.extend_from_slice(&self.data);
        Notification::with(Reason::HARD_RESET, data)
    }

    /// NOTIFICATION inside a hard reset.
    pub fn wrapped(&self) -> Option<Notification> {
        let [code, subcode, data @ ..] = self.data.as_slice() else { return None };
        let inner = || Notification::with(Reason::new(*code, *subcode), data);
        (self.reason == Reason::HARD_RESET).then(inner)
    }

    /// Text of a shutdown or reset, for logs: invalid UTF-8 and control characters are replaced.
    pub fn text(&self) -> Option<String> {
        if let Some(inner) = self.wrapped() {
            return inner.text();
        }
        if ![Reason::SHUTDOWN, Reason::RESET].contains(&self.reason) {
            return None;
        }
        let mut data = Reader::new(&self.data);
        let length = data.u8()?;
        let text = data.bytes(usize::from(length)).filter(|text| !text.is_empty())?;
        Some(String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
    }

    /// Parses the body. RFC 4271 6.4: an error in a NOTIFICATION is not answered; the caller closes the connection.
    pub(super) fn decode(body: &[u8]) -> Option<Notification> {
        let mut body = Reader::new(body);
        let reason = Reason::new(body.u8()?, body.u8()?);
        Some(Notification::with(reason, body.rest()))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.reason.code, self.reason.subcode]);
        // The message that it answers may have been longer than the peer accepts.
        out.extend(self.data.iter().take(LONGEST - HEADER - 2));
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.code, self.subcode)?;
        self.words().map_or(Ok(()), |words| write!(f, " {words}"))
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if let Some(inner) = self.wrapped() {
            write!(f, " ({})", inner.reason)?;
        }
        self.text().map_or(Ok(()), |text| write!(f, ": {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_shutdown_is_read_back() {
        let sent = Notification::with_text(Reason::SHUTDOWN, "maintenance until noon");
        assert_eq!(sent.data.first(), Some(&22));
        assert_eq!(sent.text().as_deref(), Some("maintenance until noon"));
        assert_eq!(sent.hardened().to_string(), "6/9 hard reset (6/2 administrative shutdown): maintenance until noon");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters() {
        let text = "ä".repeat(200);
        let sent = Notification::with_text(Reason::RESET, &text);
        assert_eq!(sent.data.len(), 255, "127 characters of two bytes, and the length");
        assert_eq!(sent.text().map(|text| text.chars().count()), Some(127));
    }

    #[test]
    fn odd_texts_are_shown_as_far_as_they_can_be() {
        let of = |data: &[u8]| Notification::with(Reason::SHUTDOWN, data).text();
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[0]), None);
        assert_eq!(of(&[3, b'a']), None, "shorter than it says");
        assert_eq!(of(&[2, 0xff, b'a']).as_deref(), Some("\u{fffd}a"));
        assert_eq!(of(&[2, b'\n', b'a', b'b']).as_deref(), Some("\u{fffd}a"), "what follows is not part of it");
        assert_eq!(Notification::with(Reason::MAXIMUM_PREFIXES, [1, b'a']).text(), None);
    }

    #[test]
    fn codes_that_nobody_knows_are_shown_as_numbers() {
        assert_eq!(Notification::new(Reason::new(42, 7)).to_string(), "42/7");
        assert_eq!(Notification::new(Reason::new(6, 99)).to_string(), "6/99 cease");
    }
}
