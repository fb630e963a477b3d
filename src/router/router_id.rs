//! The BGP identifier of a node.
//!
//! `--router-id`: an identifier; by default the node's own IPv4 address; or `generate`: a hash of its address, for
//! nodes without an IPv4 address (and for those, also by default). RFC 6286: any number but 0 is valid, and it is
//! unique within an autonomous system. Two hashes may be equal, with a chance of one in four thousand million for each
//! pair; that is detected where all nodes are known (`plan`).

use std::net::{IpAddr, Ipv4Addr};

use crate::config::RouterId;

/// Returns the identifier of the node with this primary address, and with this IPv4 address, if any.
pub fn router_id(configured: RouterId, primary: IpAddr, v4: Option<IpAddr>) -> Ipv4Addr {
    match (configured, primary, v4) {
        (RouterId::Is(id), ..) => id,
        (RouterId::Address, IpAddr::V4(own), _) | (RouterId::Address, _, Some(IpAddr::V4(own))) => own,
        (RouterId::Address | RouterId::Generate, ..) => generated(primary),
    }
}

/// Returns FNV-1a of 32 bits over the 16 bytes of the address; an IPv4 address is hashed as `::ffff:192.0.2.1`.
fn generated(address: IpAddr) -> Ipv4Addr {
    let bytes = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    const BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let hash = bytes.iter().fold(BASIS, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(PRIME));
    // Only 0 is invalid.
    Ipv4Addr::from_bits(hash.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(configured: RouterId, primary: &str, v4: Option<&str>) -> String {
        let address = |text: &str| text.parse().expect("an address");
        router_id(configured, address(primary), v4.map(address)).to_string()
    }

    #[test]
    fn a_generated_identifier_is_the_one_that_running_nodes_have() {
        for (address, expected) in [
            ("10.0.0.1", "0.15.248.254"),
            ("192.168.1.10", "47.29.204.12"),
            ("2001:db8::10", "95.90.237.87"),
            ("2001:db8:42:1::1", "200.176.149.61"),
        ] {
            assert_eq!(id(RouterId::Generate, address, None), expected);
        }
    }

    #[test]
    fn without_a_word_it_is_the_ipv4_address_and_without_one_it_is_generated() {
        assert_eq!(id(RouterId::Address, "192.0.2.1", Some("192.0.2.1")), "192.0.2.1");
        assert_eq!(id(RouterId::Address, "2001:db8::10", Some("192.0.2.1")), "192.0.2.1");
        assert_eq!(id(RouterId::Address, "2001:db8::10", None), "95.90.237.87");
        assert_eq!(id(RouterId::Is(Ipv4Addr::new(192, 0, 2, 9)), "2001:db8::10", None), "192.0.2.9");
    }
}
