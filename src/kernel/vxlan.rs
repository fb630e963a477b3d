//! Overlay devices of the type `vxlan`, and what they know of other nodes.
//!
//! Kernel: one `vxlan` device for each address family that carries the packets (RFC 7348; include/uapi/linux/if_link.h, `IFLA_VXLAN_*`). It learns
//! nothing and asks nobody: of each other node it has one neighbour and one forwarding entry (include/uapi/linux/neighbour.h):
//!
//! ```text
//! ip link add sluice-vxlan4 address 02:53:c0:00:02:01 type vxlan id 1 dstport 4789 local 192.0.2.1 nolearning
//! ip address add 127.0.0.8/32 dev sluice-vxlan4 scope host
//! ip neigh replace 192.0.2.2 lladdr 02:53:c0:00:02:02 dev sluice-vxlan4 nud permanent
//! bridge fdb replace 02:53:c0:00:02:02 dev sluice-vxlan4 dst 192.0.2.2 self permanent
//! ```
//!
//! Ours: the devices whose names their owner lists, and all neighbours and forwarding entries on them that are permanent.
//!
//! Limits and surprises:
//! - A device has one outer family. Devices of both families have the same number and UDP port.
//! - Number, port and outer family of a device cannot be changed: another one is made in its place, and its routes and entries go with it.
//!   Our address can, but not in every kernel.
//! - The kernel refuses an IPv6 gateway that it reaches through another device, also with `onlink`. So a node's gateway is its IPv4 address
//!   on the device for IPv4, and a link-local address made of its link address on that for IPv6 ([`gateway`]).

mod device;
mod entries;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ring::digest::{SHA256, digest};

use super::link::LinkName;
use crate::net::LinkAddress;

pub use device::{Devices, all, is_same_device};
pub use entries::Entries;

/// A device. Its name is its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vxlan {
    /// Our address, of the family that carries the packets.
    pub local: IpAddr,
    /// The number of the network (VNI), 24 bits.
    pub id: u32,
    /// The UDP port of all nodes.
    pub port: u16,
    pub address: LinkAddress,
    /// MTU inside, in bytes; `None` leaves it to the kernel, which counts nothing off.
    pub mtu: Option<u32>,
    pub up: bool,
    /// It learns nothing and sends nothing to a group. Always true of what is wanted.
    pub is_fixed: bool,
    /// It has the address without which sources are filtered strictly ([`address::STAND_IN`](super::address::STAND_IN)), or it is the one over IPv6, which needs none. Always true of
    /// what is wanted.
    pub is_numbered: bool,
}

/// Another node on a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EntryKey {
    pub link: LinkName,
    /// Its address, of the family that carries the packets.
    pub remote: IpAddr,
}

/// Knowledge of the kernel about another node; `None` of what it lacks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Entry {
    /// The link address of its gateway.
    pub neighbour: Option<LinkAddress>,
    /// The link address whose frames are sent to it.
    pub forwarded: Option<LinkAddress>,
}

impl Entry {
    /// The entry of a node with its usual link address.
    pub fn of(remote: IpAddr) -> Entry {
        let address = Some(link_address(remote));
        Entry { neighbour: address, forwarded: address }
    }
}

impl fmt::Display for EntryKey {
    /// The node's address and the device: `192.0.2.2 dev sluice-vxlan4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.remote, self.link)
    }
}

/// Returns the link address of the node with this address, locally administered, so that nodes need not tell each other: `02:53` and
/// the four octets of an IPv4 address, `06` and the first five octets of the SHA-256 of the sixteen of an IPv6 address.
pub fn link_address(of: IpAddr) -> LinkAddress {
    match of {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            LinkAddress([0x02, 0x53, a, b, c, d])
        }
        IpAddr::V6(address) => {
            let mut octets = [0x06; 6];
            let hash = digest(&SHA256, &address.octets());
            octets.iter_mut().skip(1).zip(hash.as_ref()).for_each(|(octet, hashed)| *octet = *hashed);
            LinkAddress(octets)
        }
    }
}

/// Returns the gateway of routes to the node with this address: an IPv4 address itself, and of an IPv6 address the link-local one that
/// RFC 4291 (appendix A) makes of its link address.
pub fn gateway(remote: IpAddr) -> IpAddr {
    if remote.is_ipv4() {
        return remote;
    }
    let LinkAddress([a, b, c, d, e, f]) = link_address(remote);
    let half = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, half(a ^ 2, b), half(c, 0xff), half(0xfe, d), half(e, f)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_link_address_and_the_gateway_of_a_node_follow_from_its_address_alone() {
        for (remote, link, of_routes) in
            [("192.0.2.1", "02:53:c0:00:02:01", "192.0.2.1"), ("10.0.0.3", "02:53:0a:00:00:03", "10.0.0.3")]
        {
            assert_eq!(link_address(address(remote)).to_string(), link);
            assert_eq!(gateway(address(remote)), address(of_routes));
        }
        let LinkAddress(octets) = link_address(address("2001:db8::1"));
        assert_eq!(octets[0], 0x06, "locally administered, of one device");
        let IpAddr::V6(gateway) = gateway(address("2001:db8::1")) else { panic!("it is of IPv6") };
        assert!(gateway.is_unicast_link_local());
        assert_eq!(gateway.octets()[8..11], [octets[0] ^ 2, octets[1], octets[2]]);
        assert_eq!(gateway.octets()[11..], [0xff, 0xfe, octets[3], octets[4], octets[5]]);
        assert_ne!(link_address(address("2001:db8::1")), link_address(address("2001:db8::2")));
    }
}
