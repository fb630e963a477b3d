//! Output of one connection that its socket has not accepted yet.
//!
//! Its length is bounded elsewhere: the speaker hands over no more than was accepted before (`rib::exports`).

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Arc<[u8]>>,
    /// Number of bytes of the first piece already sent.
    gone: usize,
    /// Total number of bytes ever queued, and of those sent.
    put_in: u64,
    gone_ever: u64,
}

/// Number of pieces handed to a socket at a time.
const AT_ONCE: usize = 64;

impl Outbox {
    pub fn push(&mut self, piece: Arc<[u8]>) {
        if !piece.is_empty() {
            self.put_in += piece.len() as u64;
            self.pieces.push_back(piece);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Discards the rest.
    pub fn clear(&mut self) {
        *self = Outbox { put_in: self.put_in, gone_ever: self.put_in, ..Outbox::default() };
    }

    /// Current end of the output.
    pub fn end(&self) -> u64 {
        self.put_in
    }

    /// Returns whether everything up to an earlier end has been sent.
    pub fn is_past(&self, end: u64) -> bool {
        self.gone_ever >= end
    }

    /// Next pieces, in order.
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        let gone = std::iter::once(self.gone).chain(std::iter::repeat(0));
        let left = self.pieces.iter().zip(gone).take(AT_ONCE);
        left.map(|(piece, gone)| IoSlice::new(piece.get(gone..).unwrap_or_default())).collect()
    }

    /// Removes bytes that have been sent.
    pub fn advance(&mut self, bytes: usize) {
        self.gone += bytes;
        self.gone_ever += bytes as u64;
        while let Some(first) = self.pieces.front()
            && first.len() <= self.gone
        {
            self.gone -= first.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_their_order_whatever_the_pieces() {
        for step in 1..12 {
            let mut outbox = Outbox::default();
            let pieces = ["abc", "", "d", "efghi", "jk"];
            pieces.iter().for_each(|piece| outbox.push(piece.as_bytes().into()));
            let mut sent = Vec::new();
            let end = outbox.end();
            while !outbox.is_empty() {
                assert!(!outbox.is_past(end), "something is left");
                let bytes: Vec<u8> =
                    outbox.slices().iter().flat_map(|slice| slice.iter().copied()).take(step).collect();
                outbox.advance(bytes.len());
                sent.extend(bytes);
            }
            assert!(outbox.is_past(end));
            outbox.push(b"more"[..].into());
            assert!(outbox.is_past(end) && !outbox.is_past(outbox.end()));
            outbox.clear();
            assert!(outbox.is_past(outbox.end()), "what nobody wants is not waited for");
            assert_eq!(String::from_utf8(sent).unwrap(), "abcdefghijk", "in steps of {step}");
        }
    }
}
