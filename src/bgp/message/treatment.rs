//! Error handling of UPDATE (RFC 7606): how far the consequences of an error reach.

use crate::net::Family;

/// Treatment of an error, the mildest first (RFC 7606 2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Treatment {
    /// Attribute discard.
    DiscardAttribute,
    /// Treat-as-withdraw.
    Withdraw,
    /// AFI/SAFI disable: all routes of the family are removed, and later ones of this session ignored.
    DisableFamily(Family),
    /// Session reset.
    Reset,
}
