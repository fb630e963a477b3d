//! Splits a byte stream into messages.
//!
//! RFC 4271 4.1 and 6.1: marker, length and type are checked as soon as they are present, so that no peer makes us wait
//! for, or buffer, more than one message of the maximum length. RFC 8654: the maximum length of OPEN and KEEPALIVE
//! stays 4,096; other messages may be longer once our OPEN has advertised extended messages.

use super::header::{Frame, HEADER, KEEPALIVE, LONGEST, LONGEST_EXTENDED, NOTIFICATION, OPEN, ROUTE_REFRESH, UPDATE};
use super::notification::{Notification, Reason};
use super::reader::Reader;

/// Receive buffer: bytes that are not split into messages yet.
#[derive(Default, Debug)]
pub struct Framing {
    bytes: Vec<u8>,
    /// End of the messages already returned.
    done: usize,
}

impl Framing {
    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        // Returned messages are removed here, once for each received piece, and not for each message.
        self.bytes.drain(..self.done.min(self.bytes.len()));
        self.done = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next complete message, if any. `extended`: we have advertised extended messages. After an error the
    /// rest of the stream is meaningless.
    ///
    /// # Errors
    /// The header is invalid (RFC 4271 6.1): the NOTIFICATION to send.
    pub fn next(&mut self, extended: bool) -> Result<Option<Frame<'_>>, Notification> {
        let rest = self.bytes.get(self.done..).unwrap_or_default();
        let mut reader = Reader::new(rest);
        let Some(marker) = reader.array::<16>() else { return Ok(None) };
        if marker != [0xff; 16] {
            return Err(Notification::new(Reason::NOT_SYNCHRONIZED));
        }
        let (Some(length), Some(kind)) = (reader.u16(), reader.u8()) else { return Ok(None) };
        check(length, kind, extended)?;
        let Some(body) = reader.bytes(usize::from(length) - HEADER) else { return Ok(None) };
        self.done += usize::from(length);
        Ok(Some(Frame { kind, body }))
    }

    /// Number of buffered bytes of an incomplete message.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.done
    }
}

fn check(length: u16, kind: u8, extended: bool) -> Result<(), Notification> {
    // Both bounds include the header.
    let longest = if extended { LONGEST_EXTENDED } else { LONGEST };
    let (least, most) = match kind {
        OPEN => (HEADER + 10, LONGEST),
        UPDATE => (HEADER + 4, longest),
        NOTIFICATION => (HEADER + 2, longest),
        KEEPALIVE => (HEADER, HEADER),
        // Other invalid lengths are judged by the rules of the message type (RFC 7313 5).
        _ => (HEADER, longest),
    };
    if !(least..=most).contains(&usize::from(length)) {
        return Err(Notification::with(Reason::BAD_MESSAGE_LENGTH, length.to_be_bytes()));
    }
    if !(OPEN..=ROUTE_REFRESH).contains(&kind) {
        return Err(Notification::with(Reason::BAD_MESSAGE_TYPE, [kind]));
    }
    Ok(())
}
