//! IPv6 link-local addresses with the link that they are on, in the form of one address.
//!
//! Such an address means something on one link alone (RFC 4007). RFC 4291 2.5.6 leaves 54 bits of it zero, so there is room for the index of the link: whoever has
//! addresses as keys and as next hops keeps one value for both, as kernels of the BSD family do. The address of `fe80::1` on link 5 is `fe80:0:5::1` in here.
//!
//! This form never leaves the program and never comes into it: sockets, messages and requests to the kernel have [`without_link`] and a number beside it, and what comes
//! from others counts as a link-local address without a link ([`is_unplaced`]) until somebody who knows the link says so ([`LinkLocal::new`]).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use compact_str::CompactString;

/// A link-local address and its link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkLocal {
    address: Ipv6Addr,
    link: u32,
}

/// Names of links by their indexes, for texts.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LinkNames(pub BTreeMap<u32, CompactString>);

impl LinkLocal {
    /// Puts an address on the link of an index; `None` where it is no link-local one, has other bits in the place of zeros, or the index is 0, which no link has.
    pub fn new(address: Ipv6Addr, link: u32) -> Option<LinkLocal> {
        (is_plain(address) && link != 0).then_some(LinkLocal { address, link })
    }

    /// Returns what is in an address of the combined form; `None` of any other address.
    pub fn within(address: IpAddr) -> Option<LinkLocal> {
        let IpAddr::V6(address) = address else { return None };
        let [first, high, low, rest @ ..] = address.segments();
        let [fourth, e, f, g, h] = rest;
        let plain = Ipv6Addr::new(first, 0, 0, fourth, e, f, g, h);
        LinkLocal::new(plain, u32::from(high) << 16 | u32::from(low))
    }

    /// The combined form.
    pub fn combined(self) -> IpAddr {
        let [first, _, _, rest @ ..] = self.address.segments();
        let [fourth, e, f, g, h] = rest;
        let (high, low) = ((self.link >> 16) as u16, self.link as u16);
        IpAddr::V6(Ipv6Addr::new(first, high, low, fourth, e, f, g, h))
    }

    /// The address as it is on the wire.
    pub fn address(self) -> Ipv6Addr {
        self.address
    }

    /// Index of the link.
    pub fn link(self) -> u32 {
        self.link
    }
}

/// Returns whether an address is within `fe80::/64`.
fn is_plain(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0xfe80, 0, 0, 0, ..])
}

/// Returns an address as it is on the wire.
pub fn without_link(address: IpAddr) -> IpAddr {
    LinkLocal::within(address).map_or(address, |on_link| IpAddr::V6(on_link.address))
}

/// Returns whether an address is a link-local one of IPv6 of which the link is not known.
pub fn is_unplaced(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) && LinkLocal::within(address).is_none()
}

/// Returns the address of a socket, with its link where it has one (`sin6_scope_id`).
pub fn to_socket(address: IpAddr, port: u16) -> SocketAddr {
    match LinkLocal::within(address) {
        Some(LinkLocal { address, link }) => SocketAddrV6::new(address, port, 0, link).into(),
        None => SocketAddr::new(address, port),
    }
}

/// Returns the address that a socket has: an IPv4 address as such, a link-local one in the combined form. An address that has other bits in the place of zeros on the
/// wire is nobody's, `::`: as it is it would be the address of somebody else on the link that those bits name, without having that one's password or place.
pub fn of_socket(socket: SocketAddr) -> IpAddr {
    match socket {
        SocketAddr::V6(socket) => match LinkLocal::new(*socket.ip(), socket.scope_id()) {
            Some(on_link) => on_link.combined(),
            None if LinkLocal::within(IpAddr::V6(*socket.ip())).is_some() => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            None => IpAddr::V6(*socket.ip()).to_canonical(),
        },
        SocketAddr::V4(socket) => IpAddr::V4(*socket.ip()),
    }
}

impl fmt::Display for LinkLocal {
    /// As RFC 4007 11 has it where nobody knows the name: `fe80::1%5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%{}", self.address, self.link)
    }
}

impl LinkNames {
    /// Writes an address for a reader: `fe80::1%eth1`, or with the index where the link has no name any more.
    pub fn text(&self, address: IpAddr) -> String {
        match LinkLocal::within(address) {
            None => address.to_string(),
            Some(on_link) => match self.0.get(&on_link.link) {
                Some(name) => format!("{}%{name}", on_link.address),
                None => on_link.to_string(),
            },
        }
    }

    /// Reads what [`LinkNames::text`] writes, and plain addresses; `None` of anything else, of an unknown link, and of the combined form.
    pub fn address(&self, text: &str) -> Option<IpAddr> {
        let Some((address, link)) = text.split_once('%') else {
            return text.parse().ok().filter(|address| LinkLocal::within(*address).is_none());
        };
        let named = self.0.iter().find(|(_, name)| name.as_str() == link).map(|(index, _)| *index);
        let index = named.or_else(|| link.parse().ok())?;
        LinkLocal::new(address.parse().ok()?, index).map(LinkLocal::combined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn on_link(text: &str, link: u32) -> Option<LinkLocal> {
        LinkLocal::new(text.parse().unwrap(), link)
    }

    #[test]
    fn an_address_and_its_link_are_one_address_and_two_again() {
        for link in [1, 5, 0xffff, 0x1_0000, u32::MAX] {
            let one = on_link("fe80::5054:ff:fe12:3456", link).unwrap();
            assert_eq!(LinkLocal::within(one.combined()), Some(one));
            assert_eq!(without_link(one.combined()), address("fe80::5054:ff:fe12:3456"));
            assert_eq!(of_socket(to_socket(one.combined(), 179)), one.combined());
        }
        assert_eq!(on_link("fe80::1", 5).unwrap().combined(), address("fe80:0:5::1"));
    }

    #[test]
    fn no_other_address_is_taken_for_one_with_a_link() {
        for other in ["192.0.2.1", "2001:db8::1", "fe80::1", "fe80:0:0:1::1", "fe90:0:5::1", "ff02::1", "::"] {
            assert_eq!(LinkLocal::within(address(other)), None, "{other}");
            assert_eq!(without_link(address(other)), address(other));
            assert_eq!(of_socket(to_socket(address(other), 179)), address(other));
        }
        assert_eq!(on_link("fe80::1", 0), None);
        assert_eq!(on_link("fe80:0:5::1", 5), None, "it has a link already");
        let unplaced = ["fe80::1", "fe80:0:0:1::1", "febf::1"].map(|text| is_unplaced(address(text)));
        assert_eq!(unplaced, [true; 3]);
        assert!(!is_unplaced(address("fe80:0:5::1")) && !is_unplaced(address("2001:db8::1")));
    }

    #[test]
    fn an_address_of_a_socket_with_a_link_in_its_bits_is_no_neighbour_on_that_link() {
        let neighbour = on_link("fe80::2", 9).unwrap().combined();
        for scope in [0, 9, 5] {
            let socket = SocketAddrV6::new("fe80:0:9::2".parse().unwrap(), 179, 0, scope);
            assert_eq!(
                of_socket(socket.into()),
                address("::"),
                "it is {neighbour} in here, and no {neighbour} on the wire"
            );
        }
    }

    #[test]
    fn texts_have_the_name_of_the_link() {
        let names = LinkNames([(5, "eth1".into())].into());
        let known = on_link("fe80::1", 5).unwrap().combined();
        let gone = on_link("fe80::1", 6).unwrap().combined();
        assert_eq!((names.text(known), names.text(gone)), ("fe80::1%eth1".to_owned(), "fe80::1%6".to_owned()));
        for (text, meant) in [
            ("fe80::1%eth1", Some(known)),
            ("fe80::1%6", Some(gone)),
            ("192.0.2.1", Some(address("192.0.2.1"))),
            ("fe80::1%eth2", None),
            ("192.0.2.1%eth1", None),
            ("fe80:0:5::1", None),
        ] {
            assert_eq!(names.address(text), meant, "{text}");
        }
    }
}
