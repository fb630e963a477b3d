//! The header of BGP messages (RFC 4271 4.1): a marker of ones, the length, the type.

/// Length of the message header, in bytes.
pub(super) const HEADER: usize = 19;
/// Length of a KEEPALIVE, in bytes. All other messages are longer.
pub const SHORTEST: usize = HEADER;
/// Maximum message length, and the maximum length of extended messages (RFC 8654).
pub(super) const LONGEST: usize = 4096;
pub(super) const LONGEST_EXTENDED: usize = 65535;

pub(super) const OPEN: u8 = 1;
pub(super) const UPDATE: u8 = 2;
pub(super) const NOTIFICATION: u8 = 3;
pub(super) const KEEPALIVE: u8 = 4;
pub(super) const ROUTE_REFRESH: u8 = 5;

/// Message as [`super::Framing`] returns it: its type, and the bytes after its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    pub(super) kind: u8,
    pub(super) body: &'a [u8],
}

/// Encodes a header and the body after it.
pub(super) fn framed(kind: u8, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let at = begin(&mut out, kind);
    body(&mut out);
    finish(&mut out, at);
    out
}

/// Writes the header of a message and returns its position.
pub(super) fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&[0, 0, kind]);
    at
}

/// Fills in the length of the message that begins at `at` and extends to the end.
pub(super) fn finish(out: &mut [u8], at: usize) {
    let length = out.len() - at;
    debug_assert!(length <= LONGEST_EXTENDED, "a message has a length that can be written");
    if let Some(field) = out.get_mut(at + 16..at + 18) {
        field.copy_from_slice(&(length as u16).to_be_bytes());
    }
}
