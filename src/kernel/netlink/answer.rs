//! Messages that the kernel sends.

use super::attribute::Attributes;
use super::fault::Refusal;
use super::message::HEADER;

/// `nlmsg_type` of the messages that every netlink family shares; the others are the family's own.
pub(super) mod kind {
    pub const NOOP: u16 = 1;
    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    pub const OVERRUN: u16 = 4;
}

/// The dump saw a change while it ran.
pub(super) const INTERRUPTED: u16 = 0x10;
/// The error carries only the header of the request.
const CAPPED: u16 = 0x100;
/// The error is followed by attributes.
const ACK_ATTRIBUTES: u16 = 0x200;
const ACK_TEXT: u16 = 1;

/// One message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// The port of the socket whose request caused this message; 0 where the kernel acted by itself.
    pub port: u32,
    /// Everything behind the message header: the family's header, then attributes.
    pub payload: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The family's own header; `None` when the message is too short to hold it.
    pub fn header<const N: usize>(&self) -> Option<&'a [u8; N]> {
        self.payload.first_chunk()
    }

    /// The attributes behind a family header of this many bytes.
    pub fn attributes(&self, header: usize) -> Attributes<'a> {
        Attributes::new(self.payload.get(header.next_multiple_of(4)..).unwrap_or_default())
    }

    /// Returns the content of an error message; an acknowledgement is an error 0. `None` for other messages.
    /// The caller fills in `message`.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        if self.kind != kind::ERROR {
            return None;
        }
        let (error, request) = self.payload.split_first_chunk::<4>()?;
        let errno = i32::from_ne_bytes(*error).wrapping_neg();
        let length = request.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
        let echoed = if self.flags & CAPPED == 0 { length.max(HEADER) } else { HEADER };
        let text = (self.flags & ACK_ATTRIBUTES != 0)
            .then(|| Attributes::new(request.get(echoed.next_multiple_of(4)..).unwrap_or_default()))
            .and_then(|attributes| attributes.get(ACK_TEXT))
            .and_then(|attribute| attribute.text())
            .map(str::to_owned);
        let request = request.get(HEADER..echoed).unwrap_or_default().to_vec();
        Some(Refusal { message: 0, errno, text, request })
    }
}

/// The messages of one datagram. Ends where the bytes end or stop making sense.
pub fn answers(datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            port: u32::from_ne_bytes([p0, p1, p2, p3]),
            payload,
        })
    })
}
