//! IPVS: virtual services and their destinations.
//!
//! Kernel: generic netlink family `IPVS` (include/uapi/linux/ip_vs.h).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use compact_str::CompactString;

use crate::net::{Family, Protocol};

/// What identifies a virtual service in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ServiceKey {
    /// An address, a protocol and a port (host byte order).
    Address { address: IpAddr, protocol: Protocol, port: u16 },
    /// Packets that carry a firewall mark, of one family. Never 0.
    Mark { mark: u32, family: Family },
}

/// A virtual service with its destinations: the unit that is compared and changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Virtual {
    pub service: Service,
    /// Sorted by address, each address and port once.
    pub destinations: Arc<[Destination]>,
}

/// The properties of a virtual service beside its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// The scheduler's kernel name, at most 15 bytes.
    pub scheduler: CompactString,
    /// The flags that we decide, see [`flags`]; never `HASHED`, which the kernel sets by itself.
    pub flags: u32,
    /// Seconds that a persistence template lives; 0 without persistence.
    pub persistence_seconds: u32,
}

/// Bits of the service flags.
pub mod flags {
    /// Connections of one client stay at one destination.
    pub const PERSISTENT: u32 = 0x1;
    /// Set by the kernel on every service in its table.
    pub const HASHED: u32 = 0x2;
    /// UDP: every packet is scheduled alone.
    pub const ONE_PACKET: u32 = 0x4;
    /// Scheduler flags 1 to 3: `sh` and `mh` read the first as "fall back to another destination when the
    /// chosen one is unavailable" and the second as "hash the port too".
    pub const SCHEDULER_1: u32 = 0x8;
    pub const SCHEDULER_2: u32 = 0x10;
    pub const SCHEDULER_3: u32 = 0x20;
}

/// Where a virtual service sends connections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Destination {
    pub address: SocketAddr,
    /// 0 takes no new connections and keeps the old ones.
    pub weight: u32,
    pub forwarding: Forwarding,
}

/// How packets reach a destination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Forwarding {
    /// Destination NAT, which the kernel calls masquerading.
    Nat,
    /// Encapsulation in IP-in-IP.
    Tunnel,
}

impl ServiceKey {
    pub fn family(&self) -> Family {
        match self {
            ServiceKey::Address { address, .. } => Family::from(*address),
            ServiceKey::Mark { family, .. } => *family,
        }
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
