//! Cuts a stream of bytes into messages.
//!
//! RFC 4271 4.1 and 6.1: the marker, the length and the kind are checked as soon as they are there, so that nobody makes
//! us wait for, or keep, more than one message of the greatest length. RFC 8654: the greatest length of OPEN and KEEPALIVE
//! stays 4,096; the others may be longer once we have said in our OPEN that we take them.

use super::notification::{Notification, Reason};
use super::reader::Reader;
use super::{Frame, HEADER, KEEPALIVE, LONGEST, LONGEST_EXTENDED, NOTIFICATION, OPEN, ROUTE_REFRESH, UPDATE};

/// The bytes that have come and have not been cut yet.
#[derive(Default, Debug)]
pub struct Framing {
    bytes: Vec<u8>,
    /// Up to here they have been handed out.
    done: usize,
}

impl Framing {
    /// Adds what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        // What was handed out goes away here, once for each piece that comes, and not for each message.
        self.bytes.drain(..self.done.min(self.bytes.len()));
        self.done = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one. `extended`: we have said that we take long ones.
    /// After an error nothing that follows makes sense.
    ///
    /// # Errors
    /// The header is wrong (RFC 4271 section 6.1): what the peer is to be told.
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

    /// How many bytes wait for the rest of their message.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.done
    }
}

fn check(length: u16, kind: u8, extended: bool) -> Result<(), Notification> {
    // Both bounds hold the head too.
    let longest = if extended { LONGEST_EXTENDED } else { LONGEST };
    let (least, most) = match kind {
        OPEN => (HEADER + 10, LONGEST),
        UPDATE => (HEADER + 4, longest),
        NOTIFICATION => (HEADER + 2, longest),
        KEEPALIVE => (HEADER, HEADER),
        // What is wrong with another length is said by the rules of its kind (RFC 7313 5).
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
