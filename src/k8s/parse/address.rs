//! Addresses that Services and endpoints may have.

use std::net::IpAddr;

use crate::k8s::warning::Warnings;

/// Returns an address that a Service or an endpoint may have. The API refuses the same ones:
/// traffic to them never leaves the host, or reaches more than one receiver.
///
/// # Errors
/// It is no address, or none of a single receiver on the network. The sentence quotes the text.
pub fn unicast_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.trim().parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    let unusable = match address {
        IpAddr::V4(v4) => {
            v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_link_local() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some()
        }
    };
    if unusable { Err(format!("{text} is not a unicast address of a cluster")) } else { Ok(address) }
}

/// The addresses of a list, without duplicates, in its order.
pub fn unicast_addresses<'a>(
    field: &'static str,
    texts: impl Iterator<Item = &'a str>,
    warnings: &mut Warnings,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        match unicast_address(text) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(why) => warnings.odd(field, format_args!("{why}; it is left out")),
        }
    }
    addresses.shrink_to_fit();
    addresses
}
