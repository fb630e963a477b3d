//! Encoding that both OPENs of a session have agreed on.

use super::header::{LONGEST, LONGEST_EXTENDED};
use crate::net::PerFamily;

/// Negotiated encoding of a session, and the type of the peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dialect {
    /// The peer is internal (IBGP).
    pub internal: bool,
    /// AS numbers have four octets.
    pub four_octets: bool,
    /// Negotiated address families.
    pub families: PerFamily<bool>,
    /// IPv4 NLRI may have IPv6 next hops.
    pub extended_next_hop: bool,
    /// The peer accepts messages of 65,535 bytes.
    pub extended_message: bool,
}

impl Dialect {
    /// Maximum length of messages to the peer, in bytes.
    pub fn longest(&self) -> usize {
        if self.extended_message { LONGEST_EXTENDED } else { LONGEST }
    }
}
