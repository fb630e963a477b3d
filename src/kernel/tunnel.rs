//! Desired state of tunnels to other nodes.
//!
//! Kernel: `ipip` devices for IPv4 and `ip6tnl` devices for IPv6 (include/uapi/linux/if_tunnel.h). A plain tunnel over IPv6
//! carries packets of both families, all others those of their own; one inside UDP is GUE (include/uapi/linux/fou.h):
//!
//! ```text
//! ip link add tun-e443169117a type ipip local 192.0.2.1 remote 10.0.0.1 ttl inherit pmtudisc mode any
//! ip link add tun-e443169117a type ipip local 192.0.2.1 remote 10.0.0.1 ttl 225 encap gue encap-sport auto encap-dport 5555
//! ip fou add port 5555 gue
//! ```
//!
//! Ours: the devices whose names begin with `tun-` and eleven hexadecimal digits (`router::names`), of these two types; and the
//! receiving ports of the number that is configured, of those that these devices send to, and of those that our rules guard (`router::apply::filter`).
//!
//! Limits and surprises:
//! - Path MTU discovery is on, so that a packet that does not fit is answered and not cut. IPv6 tunnels are made without the
//!   option that limits encapsulation, which would take eight bytes of every packet. Devices of kube-router 2.11 have it the other way round (`nopmtudisc`,
//!   `encaplimit 0`), and those over IPv6 of its former versions carry no IPv4 (`mode ip6ip6`): they are changed in place, and their routes stay.
//! - The type cannot be changed in place; addresses, TTL, the MTU, the port, whether there is UDP and these options can. Over IPv4 the protocol inside cannot, and need not: IPv4 fits into all of ours.
//! - A device over IPv4 has an IPv4 address that nobody uses ([`address::STAND_IN`](super::address::STAND_IN)): `ip address add 127.0.0.8/32 dev tun-e443169117a scope host`.
//! - Whether a device sends inside UDP or not, it takes what comes by either from its other end.

mod receive;
mod target;

use std::fmt;
use std::net::IpAddr;

use crate::net::Family;

pub use receive::ReceivePorts;
pub use target::Tunnels;

/// A tunnel. Its name is its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// Both ends are of one family, which decides the device's type.
    pub local: IpAddr,
    pub remote: IpAddr,
    /// The UDP port that packets are sent to inside GUE; `None` for a plain tunnel.
    pub udp_port: Option<u16>,
    /// 0 takes it from the packet inside.
    pub ttl: u8,
    /// MTU inside the tunnel, in bytes; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    pub up: bool,
    /// It has the options that ours have: over IPv4 path MTU discovery, over IPv6 none that limits encapsulations, and as the protocol inside any, or IPv6 where there is UDP;
    /// no class of traffic and no flow label of its own or of the packet inside.
    /// Always true of what is wanted.
    pub has_options: bool,
    /// It has the address without which sources are filtered strictly ([`address::STAND_IN`](super::address::STAND_IN)), or it is one over IPv6, which needs none.
    pub is_numbered: bool,
}

/// A UDP port at which packets inside GUE arrive, and are unpacked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReceivePort {
    pub family: Family,
    pub port: u16,
}

impl fmt::Display for ReceivePort {
    /// The number and the family: `port 5555 IPv4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} {}", self.port, self.family)
    }
}
