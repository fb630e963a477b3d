//! Keys of virtual services, and their order.
//!
//! Kernel: a service is an address, a protocol and a port, or a firewall mark and a family (`struct ip_vs_service_user`,
//! include/uapi/linux/ip_vs.h).

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::net::{Family, Protocol};

/// Key of a virtual service in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ServiceKey {
    /// An address, a protocol and a port (host byte order).
    Address { address: IpAddr, protocol: Protocol, port: u16 },
    /// Packets that carry a firewall mark, of one family. Never 0.
    Mark { mark: u32, family: Family },
}

impl ServiceKey {
    /// Returns the first of all keys of IPv6 addresses: those of IPv4 addresses are before it. Marks are behind all addresses.
    pub fn first_of_ipv6() -> ServiceKey {
        ServiceKey::Address { address: Ipv6Addr::UNSPECIFIED.into(), protocol: Protocol::Tcp, port: 0 }
    }

    /// Returns the first of all keys of marks, which stand behind all addresses.
    pub fn first_of_marks() -> ServiceKey {
        ServiceKey::Mark { mark: 0, family: Family::V4 }
    }

    pub fn family(&self) -> Family {
        match self {
            ServiceKey::Address { address, .. } => Family::from(*address),
            ServiceKey::Mark { family, .. } => *family,
        }
    }
}

impl ServiceKey {
    /// The place among all keys, as numbers: maps compare keys all the time, and these are compared in a few instructions.
    fn place(&self) -> (u8, u128, u32) {
        match *self {
            ServiceKey::Address { address: IpAddr::V4(address), protocol, port } => {
                (0, u128::from(address.to_bits()), rest(protocol, port))
            }
            ServiceKey::Address { address: IpAddr::V6(address), protocol, port } => {
                (1, address.to_bits(), rest(protocol, port))
            }
            ServiceKey::Mark { mark, family } => (2, u128::from(mark), family as u32),
        }
    }

    /// The place among all keys of IPv4 addresses, as one number: most keys are of these.
    #[inline]
    fn place_of_ipv4(&self) -> Option<u64> {
        match *self {
            ServiceKey::Address { address: IpAddr::V4(address), protocol, port } => {
                Some(u64::from(address.to_bits()) << 32 | u64::from(rest(protocol, port)))
            }
            ServiceKey::Address { .. } | ServiceKey::Mark { .. } => None,
        }
    }
}

/// The place among all keys of an address.
#[inline]
fn rest(protocol: Protocol, port: u16) -> u32 {
    (protocol as u32) << 16 | u32::from(port)
}

impl Ord for ServiceKey {
    /// Addresses before marks, IPv4 before IPv6; by address, protocol and port, or by mark and family.
    #[inline]
    fn cmp(&self, other: &ServiceKey) -> Ordering {
        match (self.place_of_ipv4(), other.place_of_ipv4()) {
            (Some(one), Some(other)) => one.cmp(&other),
            _ => self.place().cmp(&other.place()),
        }
    }
}

impl PartialOrd for ServiceKey {
    #[inline]
    fn partial_cmp(&self, other: &ServiceKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ServiceKey {
    /// As `ipvsadm` names it: `tcp 10.96.0.1:80`, `udp [fd00::1]:53`, `fwmark 7 IPv4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceKey::Address { address, protocol, port } => {
                write!(f, "{protocol} {}", SocketAddr::new(*address, *port))
            }
            ServiceKey::Mark { mark, family } => write!(f, "fwmark {mark} {family}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = ServiceKey> {
        let protocol = proptest::sample::select(&Protocol::ALL[..]);
        let address = (any::<IpAddr>(), protocol, any::<u16>());
        let address = address.prop_map(|(address, protocol, port)| ServiceKey::Address { address, protocol, port });
        let mark = (any::<u32>(), proptest::sample::select(&Family::BOTH[..]));
        prop_oneof![3 => address, 1 => mark.prop_map(|(mark, family)| ServiceKey::Mark { mark, family })]
    }

    /// The kinds of keys in their order, and what keys of one kind are sorted by.
    type Sorted = (Option<(IpAddr, Protocol, u16)>, Option<(u32, Family)>);

    fn by_parts(key: ServiceKey) -> (bool, Sorted) {
        match key {
            ServiceKey::Address { address, protocol, port } => (false, (Some((address, protocol, port)), None)),
            ServiceKey::Mark { mark, family } => (true, (None, Some((mark, family)))),
        }
    }

    proptest! {
        #[test]
        fn keys_are_sorted_by_kind_family_address_protocol_and_port(one in key(), other in key(), port in 0_u16..3) {
            let near = match one {
                ServiceKey::Address { address, .. } => ServiceKey::Address { address, protocol: Protocol::Udp, port },
                ServiceKey::Mark { mark, .. } => ServiceKey::Mark { mark, family: Family::V6 },
            };
            for other in [other, near] {
                prop_assert_eq!(one.cmp(&other), by_parts(one).cmp(&by_parts(other)));
                prop_assert_eq!(one == other, one.cmp(&other).is_eq());
            }
        }

        #[test]
        fn keys_of_ipv6_addresses_stand_between_those_of_ipv4_addresses_and_marks(key in key()) {
            let is_before = matches!(key, ServiceKey::Address { address, .. } if address.is_ipv4());
            prop_assert_eq!(key < ServiceKey::first_of_ipv6(), is_before);
        }
    }
}
