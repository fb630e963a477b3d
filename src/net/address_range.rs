//! A range of addresses of one family, written as a prefix or as its first and last address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::Family;

/// A range of addresses of one family, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AddressRange {
    /// A prefix. Host bits, where it has some, are as they were written, and say nothing.
    Network(IpNet),
    /// Two addresses of one family, the first not behind the last.
    Between(IpAddr, IpAddr),
}

impl AddressRange {
    /// Reads `203.0.113.0/24`, `203.0.113.10-203.0.113.20` or one address.
    ///
    /// # Errors
    /// Continues a sentence behind the text.
    pub fn parse(text: &str) -> Result<AddressRange, &'static str> {
        let text = text.trim();
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(AddressRange::Network(network));
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (Ok(first), Ok(last)) = (first.trim().parse::<IpAddr>(), last.trim().parse::<IpAddr>()) else {
            return Err("is neither a prefix like 203.0.113.0/24 nor a range like 203.0.113.10-203.0.113.20");
        };
        match () {
            () if Family::from(first) != Family::from(last) => Err("has ends of two address families"),
            () if first > last => Err("ends before it begins"),
            () => Ok(AddressRange::Between(first, last)),
        }
    }

    /// The prefix that is meant by one with host bits.
    pub fn without_host_bits(self) -> AddressRange {
        match self {
            AddressRange::Network(network) => AddressRange::Network(network.trunc()),
            AddressRange::Between(..) => self,
        }
    }

    pub fn family(self) -> Family {
        match self {
            AddressRange::Network(network) => Family::from(network),
            AddressRange::Between(first, _) => Family::from(first),
        }
    }

    /// All addresses, as numbers.
    pub fn numbers(self) -> RangeInclusive<u128> {
        let (first, last) = match self {
            AddressRange::Network(network) => (network.network(), network.broadcast()),
            AddressRange::Between(first, last) => (first, last),
        };
        number_of(first)..=number_of(last)
    }

    /// The addresses that hosts may have: of an IPv4 prefix larger than /31 neither the first (network) nor the last (broadcast) one,
    /// of an IPv6 prefix larger than /127 not the first one, which is the anycast address of its routers (RFC 4291 section 2.6.1).
    pub fn host_numbers(self) -> RangeInclusive<u128> {
        let (first, last) = self.numbers().into_inner();
        match self {
            AddressRange::Network(IpNet::V4(network)) if network.prefix_len() < 31 => first + 1..=last - 1,
            AddressRange::Network(IpNet::V6(network)) if network.prefix_len() < 127 => first + 1..=last,
            AddressRange::Network(_) | AddressRange::Between(..) => first..=last,
        }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressRange::Network(network) => write!(f, "{network}"),
            AddressRange::Between(first, last) if first == last => write!(f, "{first}"),
            AddressRange::Between(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// Addresses that no host of a network is reached at by others (RFC 6890): unspecified, loopback, link-local, multicast, broadcast, and IPv6 addresses that
/// have an IPv4 one within them.
pub const NOT_OF_HOSTS: [AddressRange; 9] = [
    v4([0, 0, 0, 0], [0, 255, 255, 255]),
    v4([127, 0, 0, 0], [127, 255, 255, 255]),
    v4([169, 254, 0, 0], [169, 254, 255, 255]),
    v4([224, 0, 0, 0], [239, 255, 255, 255]),
    v4([255, 255, 255, 255], [255, 255, 255, 255]),
    v6(0, 0xffff_ffff),
    v6(0xffff << 32, 0xffff_ffff_ffff),
    v6(0xfe80 << 112, (0xfec0 << 112) - 1),
    v6(0xff << 120, u128::MAX),
];

const fn v4([a, b, c, d]: [u8; 4], [e, f, g, h]: [u8; 4]) -> AddressRange {
    AddressRange::Between(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), IpAddr::V4(Ipv4Addr::new(e, f, g, h)))
}

const fn v6(first: u128, last: u128) -> AddressRange {
    AddressRange::Between(IpAddr::V6(Ipv6Addr::from_bits(first)), IpAddr::V6(Ipv6Addr::from_bits(last)))
}

/// The number of an address within its family.
pub fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of this number; a number beyond the family's last address is cut off.
pub fn address_of(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_do_not_reach_are_of_no_host() {
        let is_of_hosts = |text: &str| {
            let address: IpAddr = text.parse().expect("an address");
            let is_within = |range: &AddressRange| {
                range.family() == Family::from(address) && range.numbers().contains(&number_of(address))
            };
            !NOT_OF_HOSTS.iter().any(is_within)
        };
        for text in ["0.0.0.1", "127.0.0.1", "169.254.169.254", "224.0.0.1", "239.255.255.255", "255.255.255.255"] {
            assert!(!is_of_hosts(text), "{text}");
        }
        for text in ["::", "::1", "::203.0.113.1", "::ffff:203.0.113.1", "fe80::1", "febf::1", "ff02::1", "ffff::"] {
            assert!(!is_of_hosts(text), "{text}");
        }
        for text in
            ["1.0.0.0", "10.0.0.1", "203.0.113.1", "240.0.0.1", "64:ff9b::1", "2001:db8::1", "fd00::1", "fec0::1"]
        {
            assert!(is_of_hosts(text), "{text}");
        }
    }

    #[test]
    fn prefixes_ranges_and_single_addresses_are_read_and_everything_else_is_named() {
        for (text, hosts) in [
            ("203.0.113.0/30", "203.0.113.1-203.0.113.2"),
            ("203.0.113.0/31", "203.0.113.0-203.0.113.1"),
            (" 203.0.113.7/32 ", "203.0.113.7"),
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.0-203.0.113.255", "203.0.113.0-203.0.113.255"),
            ("2001:db8::/126", "2001:db8::1-2001:db8::3"),
            ("2001:db8::/127", "2001:db8::-2001:db8::1"),
            ("2001:db8::5 - 2001:db8::9", "2001:db8::5-2001:db8::9"),
            ("0.0.0.0/0", "0.0.0.1-255.255.255.254"),
            ("::/0", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let range = AddressRange::parse(text).expect(text);
            let (first, last) = range.host_numbers().into_inner();
            let address = |number| address_of(range.family(), number);
            assert_eq!(AddressRange::Between(address(first), address(last)).to_string(), hosts, "{text}");
        }
        for (text, meant) in [("203.0.113.5/24", "203.0.113.0/24"), ("2001:db8::5/64", "2001:db8::/64")] {
            let range = AddressRange::parse(text).expect(text);
            assert_eq!((range.to_string().as_str(), range.without_host_bits().to_string().as_str()), (text, meant));
            assert_eq!(range.numbers(), range.without_host_bits().numbers());
            assert_eq!(range.host_numbers(), range.without_host_bits().host_numbers());
        }
        for text in ["", "-", "203.0.113.9-203.0.113.1", "203.0.113.1-2001:db8::1", "203.0.113.0/33", "shop"] {
            assert!(AddressRange::parse(text).is_err(), "{text}");
        }
    }
}
