//! Values that several annotations have.

use std::net::IpAddr;

use crate::net::go;

/// A number of 32 bits in Go's notation, but not 0, which is no autonomous system (RFC 7607).
pub fn system(text: &str) -> Option<u32> {
    go::number(text.trim()).and_then(|number| u32::try_from(number).ok()).filter(|number| *number != 0)
}

/// An address, without an IPv4 one hidden in IPv6.
pub fn address(text: &str) -> Option<IpAddr> {
    let address = text.trim().parse::<IpAddr>().ok()?.to_canonical();
    (!address.is_unspecified() && !address.is_multicast()).then_some(address)
}
