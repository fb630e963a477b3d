//! Requests, one behind the other in one buffer.
//!
//! Kernel: `struct nlmsghdr` and `struct nlattr`: native byte order, everything aligned to 4 bytes, an
//! attribute's length without its padding. Numbers inside attributes are native too, unless their name
//! says otherwise (`_be`): netfilter and ports want network order.

use std::net::IpAddr;

/// Request flags (`NLM_F_*`). `REQUEST` and `ACK` are set where they belong by the socket.
pub mod flag {
    /// Change what exists.
    pub const REPLACE: u16 = 0x100;
    /// Fail where it exists.
    pub const EXCLUSIVE: u16 = 0x200;
    /// Make what does not exist.
    pub const CREATE: u16 = 0x400;
    /// Add behind what exists.
    pub const APPEND: u16 = 0x800;
    pub(in crate::kernel::netlink) const REQUEST: u16 = 0x1;
    pub(in crate::kernel::netlink) const ACK: u16 = 0x4;
    /// All objects that match; set by `Socket::dump`.
    pub(in crate::kernel::netlink) const DUMP: u16 = 0x300;
}

pub(super) const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NESTED: u16 = 0x8000;
const BIG_ENDIAN: u16 = 0x4000;
/// An attribute's length is 16 bits wide.
const LONGEST_ATTRIBUTE: usize = u16::MAX as usize;

/// A buffer of requests. Build each with [`begin`](Messages::begin), the family's header, and attributes:
///
/// ```
/// use sluice::kernel::netlink::{Messages, flag};
/// let mut messages = Messages::new();
/// messages.begin(24, flag::CREATE | flag::REPLACE).header(&[0; 12]);
/// messages.u32(6, 100).nest(8).u16(1, 2).end();
/// assert_eq!(messages.len(), 1);
/// ```
#[derive(Clone, Default, Debug)]
pub struct Messages {
    bytes: Vec<u8>,
    /// Start of each message.
    starts: Vec<usize>,
    /// Start of each attribute that is still open.
    open: Vec<usize>,
}

/// The header of an attribute.
fn head(length: u16, kind: u16) -> [u8; ATTRIBUTE_HEADER] {
    let ([l0, l1], [k0, k1]) = (length.to_ne_bytes(), kind.to_ne_bytes());
    [l0, l1, k0, k1]
}

impl Messages {
    pub fn new() -> Messages {
        Messages::default()
    }

    /// Starts the next message. `kind` is `nlmsg_type`; generic families leave it 0 and have it filled in.
    pub fn begin(&mut self, kind: u16, flags: u16) -> &mut Messages {
        assert!(self.open.is_empty(), "every attribute is ended before the next message begins");
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        // The sequence number, which the socket assigns, and the port, which the kernel knows.
        self.bytes.extend_from_slice(&[0; 8]);
        self.measure()
    }

    /// Starts the next message of a generic family: its command and the version of its interface.
    pub fn begin_generic(&mut self, command: u8, version: u8, flags: u16) -> &mut Messages {
        self.begin(0, flags).header(&[command, version, 0, 0])
    }

    /// Appends the family's own header, which follows the message header.
    pub fn header(&mut self, bytes: &[u8]) -> &mut Messages {
        self.bytes.extend_from_slice(bytes);
        self.seal()
    }

    /// Appends an attribute.
    ///
    /// # Panics
    /// The value is longer than an attribute can be, 65,531 bytes.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Messages {
        let length = ATTRIBUTE_HEADER + value.len();
        let length = u16::try_from(length).expect("an attribute's value fits its 16-bit length");
        self.bytes.extend_from_slice(&head(length, kind));
        self.bytes.extend_from_slice(value);
        self.seal()
    }

    /// An attribute of at most 4 bytes, which with its padding is written at once.
    fn small<const N: usize>(&mut self, kind: u16, value: [u8; N]) -> &mut Messages {
        const { assert!(N <= 4) };
        let mut whole = [0; ATTRIBUTE_HEADER + 4];
        let (front, back) = whole.split_at_mut(ATTRIBUTE_HEADER);
        front.copy_from_slice(&head((ATTRIBUTE_HEADER + N) as u16, kind));
        for (place, byte) in back.iter_mut().zip(value) {
            *place = byte;
        }
        self.bytes.extend_from_slice(&whole);
        self.measure()
    }

    /// An attribute without a value, whose presence is the message.
    pub fn mark(&mut self, kind: u16) -> &mut Messages {
        self.attribute(kind, &[])
    }

    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Messages {
        self.small(kind, [value])
    }

    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Messages {
        self.small(kind, value.to_ne_bytes())
    }

    /// In network byte order, without the flag that says so: for ports.
    pub fn u16_be(&mut self, kind: u16, value: u16) -> &mut Messages {
        self.small(kind, value.to_be_bytes())
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Messages {
        self.small(kind, value.to_ne_bytes())
    }

    /// In network byte order, without the flag that says so.
    pub fn u32_be(&mut self, kind: u16, value: u32) -> &mut Messages {
        self.small(kind, value.to_be_bytes())
    }

    pub fn u64_be(&mut self, kind: u16, value: u64) -> &mut Messages {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Returns the kind with the flag by which some families (ipset) require values in network byte order to be
    /// marked.
    pub fn network_order(kind: u16) -> u16 {
        kind | BIG_ENDIAN
    }

    /// Text with the closing zero byte that the kernel wants.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Messages {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// An address of 4 or 16 bytes.
    pub fn address(&mut self, kind: u16, value: IpAddr) -> &mut Messages {
        match value {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    /// Opens an attribute that contains attributes; closed by [`end`](Messages::end).
    pub fn nest(&mut self, kind: u16) -> &mut Messages {
        self.nest_plain(kind | NESTED)
    }

    /// Like [`nest`](Messages::nest), without the flag that marks nesting: rtnetlink's own old attributes
    /// are sent without it.
    pub fn nest_plain(&mut self, kind: u16) -> &mut Messages {
        self.open.push(self.bytes.len());
        self.bytes.extend_from_slice(&head(0, kind));
        self.measure()
    }

    /// Closes the attribute that was opened last.
    ///
    /// # Panics
    /// When none is open, or when it has grown longer than an attribute can be: ask
    /// [`room`](Messages::room) while filling one.
    pub fn end(&mut self) -> &mut Messages {
        let start = self.open.pop().expect("an attribute is open");
        let length = u16::try_from(self.bytes.len() - start).expect("a nest fits its 16-bit length");
        self.patch(start, &length.to_ne_bytes());
        self
    }

    /// Returns the bytes that the outermost open attribute can still hold; unlimited where none is open.
    pub fn room(&self) -> usize {
        self.open.first().map_or(usize::MAX, |start| LONGEST_ATTRIBUTE.saturating_sub(self.bytes.len() - start))
    }

    /// The number of messages.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Removes all messages and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
        self.open.clear();
    }

    /// The messages as they are sent, but for their numbers.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of messages `first` to `last` (exclusive).
    pub(in crate::kernel) fn range(&self, first: usize, last: usize) -> &[u8] {
        let start = self.starts.get(first).copied().unwrap_or(self.bytes.len());
        let end = self.starts.get(last).copied().unwrap_or(self.bytes.len());
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// Returns the index behind the last message, of those from `first` on, that still fits into `most` bytes; at
    /// least one always does.
    pub(super) fn portion(&self, first: usize, most: usize) -> usize {
        let start = self.starts.get(first).copied().unwrap_or(self.bytes.len());
        let ends = (first + 1..=self.len()).map(|next| self.starts.get(next).copied().unwrap_or(self.bytes.len()));
        let fitting = ends.take_while(|end| end - start <= most).count();
        first + fitting.max(1)
    }

    /// Gives message `index` its sequence number.
    pub(super) fn number(&mut self, index: usize, sequence: u32) {
        self.patch_header(index, 8, &sequence.to_ne_bytes());
    }

    /// Sets the type of every message: a generic family's number is known only when it is sent.
    pub(super) fn retype(&mut self, kind: u16) {
        for index in 0..self.len() {
            self.patch_header(index, 4, &kind.to_ne_bytes());
        }
    }

    /// Adds and removes flags of message `index`.
    pub(super) fn reflag(&mut self, index: usize, add: u16, remove: u16) {
        let Some(at) = self.starts.get(index).map(|start| start + 6) else { return };
        let Some(flags) = self.bytes.get(at..).and_then(<[u8]>::first_chunk::<2>) else { return };
        let flags = u16::from_ne_bytes(*flags) & !remove | add;
        self.patch(at, &flags.to_ne_bytes());
    }

    fn patch_header(&mut self, index: usize, offset: usize, value: &[u8]) {
        if let Some(start) = self.starts.get(index).copied() {
            self.patch(start + offset, value);
        }
    }

    /// Pads to the alignment what was appended, and [measures](Self::measure) the message.
    fn seal(&mut self) -> &mut Messages {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        self.measure()
    }

    /// Writes the length of the message so far into its header, so that the buffer holds whole messages at any time.
    fn measure(&mut self) -> &mut Messages {
        let start = *self.starts.last().expect("a message was begun");
        let length = u32::try_from(self.bytes.len() - start).expect("a message is shorter than 4 GiB");
        self.patch(start, &length.to_ne_bytes());
        self
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        let place = self.bytes.get_mut(at..at + value.len()).expect("what is patched was written before");
        place.copy_from_slice(value);
    }
}
