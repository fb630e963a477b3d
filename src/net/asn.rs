//! Autonomous system numbers, and which of them a neighbour may have.
//!
//! RFC 6793 (four octets), RFC 7607 (0 is nobody's), RFC 5398 (documentation), RFC 7300 (the last one of either width), and
//! 23456, which only stands for numbers that do not fit (RFC 6793 9).

use std::ops::RangeInclusive;

/// The numbers that a neighbour may have, for a sentence about one that it may not have.
pub const PEER_RANGES: &str = "1-23455, 23457-63999, 64512-65534 or 131072-4294967294";

const PEER: [RangeInclusive<u32>; 4] = [1..=23455, 23457..=63999, 64512..=65534, 131_072..=4_294_967_294];

/// Returns whether a neighbour may have this number.
pub fn is_peer(asn: u32) -> bool {
    PEER.iter().any(|range| range.contains(&asn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_nobodys_are_no_neighbours() {
        for (asn, may) in [
            (0, false),
            (1, true),
            (23455, true),
            (23456, false),
            (63999, true),
            (64000, false),
            (64511, false),
            (64512, true),
            (65534, true),
            (65535, false),
            (131_071, false),
            (131_072, true),
            (4_294_967_294, true),
            (u32::MAX, false),
        ] {
            assert_eq!(is_peer(asn), may, "{asn}");
        }
    }
}
