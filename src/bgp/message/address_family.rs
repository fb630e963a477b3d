//! Address families as BGP numbers them (RFC 4760 6).

use crate::net::Family;

/// Supported address families, by AFI and SAFI (IANA, *Address Family Numbers*): unicast only.
pub(super) fn family_of(afi: u16, safi: u8) -> Option<Family> {
    match (afi, safi) {
        (1, 1) => Some(Family::V4),
        (2, 1) => Some(Family::V6),
        _ => None,
    }
}

/// AFI and SAFI of unicast routes of an address family.
pub(super) fn numbers_of(family: Family) -> (u16, u8) {
    match family {
        Family::V4 => (1, 1),
        Family::V6 => (2, 1),
    }
}
