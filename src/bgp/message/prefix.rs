//! Prefix encoding in UPDATE: a length in bits, and as many bytes as that requires.
//!
//! RFC 4271 4.3 (*Withdrawn Routes*, *Network Layer Reachability Information*), RFC 4760 5 for the multiprotocol
//! attributes. Bits after the prefix length are irrelevant and cleared. Our order of prefixes, by address and then by
//! length, keeps all more specific prefixes directly behind a prefix.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reader::Reader;
use crate::net::Family;

/// Parses the prefixes of a field; `None` when a length is invalid for the address family, or the last prefix is
/// truncated.
pub(super) fn decode(family: Family, bytes: &[u8]) -> Option<Vec<IpNet>> {
    let mut reader = Reader::new(bytes);
    // A prefix of a usual length takes four bytes; longer fields make the list grow.
    let mut prefixes = Vec::with_capacity(bytes.len() / 4);
    while !reader.is_empty() {
        prefixes.push(one(family, &mut reader)?);
    }
    Some(prefixes)
}

fn one(family: Family, reader: &mut Reader) -> Option<IpNet> {
    let length = reader.u8()?;
    if length > family.host_bits() {
        return None;
    }
    let bytes = reader.bytes(usize::from(length).div_ceil(8))?;
    Some(match family {
        Family::V4 => {
            let address = Ipv4Addr::from(padded::<4>(bytes)?);
            IpNet::V4(Ipv4Net::new(address, length).ok()?.trunc())
        }
        Family::V6 => {
            let address = Ipv6Addr::from(padded::<16>(bytes)?);
            IpNet::V6(Ipv6Net::new(address, length).ok()?.trunc())
        }
    })
}

fn padded<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let mut padded = [0; N];
    padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(padded)
}

/// Encoded length of a prefix, in bytes.
pub(super) fn encoded_length(prefix: IpNet) -> usize {
    1 + usize::from(prefix.prefix_len()).div_ceil(8)
}

pub(super) fn encode(prefix: IpNet, out: &mut Vec<u8>) {
    let bytes = encoded_length(prefix) - 1;
    out.push(prefix.prefix_len());
    match prefix {
        IpNet::V4(prefix) => out.extend(prefix.network().octets().iter().take(bytes)),
        IpNet::V6(prefix) => out.extend(prefix.network().octets().iter().take(bytes)),
    }
}

/// Returns whether a unicast route can have this prefix.
pub(super) fn is_unicast(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => {
            let [first, second, ..] = prefix.network().octets();
            let local = prefix.prefix_len() >= 8 && (first == 0 || first == 127);
            let link = prefix.prefix_len() >= 16 && [first, second] == [169, 254];
            !(local || link || prefix.prefix_len() >= 4 && first >= 224)
        }
        IpNet::V6(prefix) => {
            let network = prefix.network();
            let local = prefix.prefix_len() == 128 && (network.is_loopback() || network.is_unspecified());
            let link = prefix.prefix_len() >= 10 && network.is_unicast_link_local();
            !(local || link || prefix.prefix_len() >= 8 && network.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_take_only_the_bytes_that_they_need() {
        let mut bytes = Vec::new();
        for text in ["0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/25", "192.0.2.1/32"] {
            encode(text.parse().unwrap(), &mut bytes);
        }
        assert_eq!(bytes, [0, 16, 10, 244, 25, 10, 244, 1, 0, 32, 192, 0, 2, 1]);
        let read: Vec<String> = decode(Family::V4, &bytes).unwrap().iter().map(IpNet::to_string).collect();
        assert_eq!(read, ["0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/25", "192.0.2.1/32"]);
    }

    #[test]
    fn bits_behind_the_length_are_cleared() {
        assert_eq!(decode(Family::V4, &[9, 10, 0xff]), Some(vec!["10.128.0.0/9".parse().unwrap()]));
        assert_eq!(decode(Family::V6, &[7, 0xfd]), Some(vec!["fc00::/7".parse().unwrap()]));
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        assert_eq!(decode(Family::V4, &[33, 1, 2, 3, 4, 5]), None);
        assert_eq!(decode(Family::V6, &[129]), None);
        assert_eq!(decode(Family::V4, &[24, 10, 0]), None);
        assert_eq!(decode(Family::V4, &[]), Some(vec![]));
    }

    #[test]
    fn prefixes_that_no_route_can_have_are_known() {
        let unicast = |text: &str| is_unicast(text.parse().unwrap());
        let of_ipv4 = ["127.0.0.0/8", "0.1.0.0/16", "169.254.169.254/32", "224.0.0.0/4", "239.1.1.1/32", "240.0.0.0/8"];
        for odd in of_ipv4.into_iter().chain(["fe80::/64", "ff02::1/128"]) {
            assert!(!unicast(odd), "{odd}");
        }
        assert!(!unicast("::1/128"));
        // Default routes are left to policy.
        assert!(["0.0.0.0/0", "::/0", "192.0.2.0/24", "169.0.0.0/8", "169.253.0.0/16"].into_iter().all(unicast));
    }

    #[test]
    fn what_is_inside_of_a_prefix_follows_it() {
        let mut prefixes: Vec<IpNet> = ["10.1.0.0/16", "10.0.0.0/8", "11.0.0.0/8", "10.1.2.0/24", "10.0.0.0/16"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        prefixes.sort();
        let sorted: Vec<String> = prefixes.iter().map(IpNet::to_string).collect();
        assert_eq!(sorted, ["10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "10.1.2.0/24", "11.0.0.0/8"]);
    }
}
