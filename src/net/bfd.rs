//! BFD with a neighbour, as an administrator configures it: by flags, or in an annotation of a node.

use std::ops::RangeInclusive;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bfd {
    /// UDP port of the neighbour. The default stands for the one that belongs to its distance.
    pub port: u16,
    /// Number of packets that may be missing; at least 1.
    pub multiplier: u8,
    /// Shortest time between two packets that we send, in milliseconds.
    pub send: u32,
    /// Shortest time between two packets that we accept, in milliseconds.
    pub receive: u32,
}

impl Bfd {
    /// UDP port of a neighbour on our link (RFC 5881 4).
    pub const PORT: u16 = 3784;
    /// UDP port of a neighbour that may be several hops away (RFC 5883 5).
    pub const MULTIHOP_PORT: u16 = 4784;
    pub const PORTS: RangeInclusive<u64> = 1..=u16::MAX as u64;
    pub const MULTIPLIERS: RangeInclusive<u64> = 1..=u8::MAX as u64;
    /// Milliseconds whose microseconds have 32 bits.
    pub const MILLISECONDS: RangeInclusive<u64> = 1..=(u32::MAX / 1000) as u64;
}

impl Default for Bfd {
    fn default() -> Bfd {
        Bfd { port: Bfd::PORT, multiplier: 3, send: 1000, receive: 1000 }
    }
}
