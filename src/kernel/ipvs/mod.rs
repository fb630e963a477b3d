//! IPVS: virtual services and their destinations.
//!
//! Ours: what the owner of a [`Services`] target selects, service by service, some of them only where their destinations are in
//! tunnel mode; the kernel keeps no mark of who made a virtual service. Services of protocols other than TCP, UDP and SCTP are always somebody else's.
//!
//! Limits and surprises:
//! - The kernel has no operation for several objects: a service and each of its destinations is a message.
//! - Destinations are listed service by service, so a full reading takes one dump per service.
//! - There are no notifications for services. Where the kernel counts the commands that others give (`commands`), all is compared when
//!   there were some. Elsewhere `glance` looks every few seconds: at all that the older interface
//!   reports of IPv4 services, and at the number of services of the host for those of IPv6. `unlike` compares destinations:
//!   of IPv4 services by the older interface, of IPv6 ones by a file that lists all services, or by listing each.
//! - Flags are a value *and* a mask; without the mask the kernel ignores them silently.
//! - A scheduler that the kernel does not have is answered `ENOENT`, like a missing object.
//! - A service's netmask is always written as that of a single host, and not read back.
//!
//! Kernel: generic netlink family `IPVS` (include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c).

mod commands;
mod connections;
mod destinations;
mod glance;
mod listing;
mod old_interface;
mod order;
mod ownership;
mod replacement;
mod scheduler_name;
mod service_key;
mod target;
mod wire;

use std::fmt;
use std::net::SocketAddr;

pub use commands::Counted;
pub use connections::ClientConnections;
pub use destinations::Destinations;
pub use ownership::{Ours, Ownership, Whose};
pub use scheduler_name::SchedulerName;
pub use service_key::ServiceKey;
pub use target::{Part, RefusedPart, Services, VIRTUAL_SERVICES};

/// A virtual service with its destinations: the unit that is compared and changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Virtual {
    pub service: Service,
    /// Sorted by address, each address and port once.
    pub destinations: Destinations,
}

/// The properties of a virtual service beside its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub scheduler: SchedulerName,
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

/// A real server of a virtual service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Destination {
    pub address: SocketAddr,
    /// 0 takes no new connections and keeps the old ones.
    pub weight: u32,
    pub forwarding: Forwarding,
}

/// Forwarding method of a destination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Forwarding {
    /// Destination NAT, which the kernel calls masquerading.
    Nat,
    /// Encapsulation in IP-in-IP.
    Tunnel,
    /// A method, or a kind of tunnel, that we never use, by the method's number. Read so that it is put right.
    Other(u8),
}

/// Counters of a virtual service or a destination since it was created, and its present rates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Stats {
    pub connections: u64,
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Per second, as the kernel estimates it every two seconds.
    pub connections_rate: u64,
    pub packets_in_rate: u64,
    pub packets_out_rate: u64,
    pub bytes_in_rate: u64,
    pub bytes_out_rate: u64,
}

/// The connections that a destination has now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Connections {
    /// Established.
    pub active: u32,
    /// In any other state: opening, closing, or without states (UDP).
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
}

/// A virtual service as it is in the kernel at a moment, with its counters and those of its destinations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observed {
    pub service: Service,
    pub stats: Stats,
    /// Sorted by address.
    pub destinations: Vec<ObservedDestination>,
}

/// A destination as it is in the kernel at a moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ObservedDestination {
    pub destination: Destination,
    pub connections: Connections,
    pub stats: Stats,
}

/// Lifetimes of connection entries without traffic, in seconds, for the whole network namespace. When written,
/// 0 keeps the present value.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Timeouts {
    pub tcp: u32,
    /// After a FIN was seen.
    pub tcp_fin: u32,
    pub udp: u32,
}

impl Virtual {
    /// Returns whether all destinations are in tunnel mode; true where there are none.
    pub fn is_in_tunnel_mode(&self) -> bool {
        self.destinations.iter().all(|destination| destination.forwarding == Forwarding::Tunnel)
    }
}

impl Observed {
    /// Returns the virtual service without counters, as it is compared.
    pub fn without_counters(&self) -> Virtual {
        let destinations = self.destinations.iter().map(|observed| observed.destination);
        Virtual { service: self.service.clone(), destinations: destinations.collect() }
    }
}

impl fmt::Display for Virtual {
    /// Scheduler, what else is set, and the destinations with their weights: `rr, persistent 10800 s: 10.244.1.7:8080 weight 1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Service { scheduler, flags, persistence_seconds } = &self.service;
        f.write_str(scheduler)?;
        if *persistence_seconds > 0 {
            write!(f, ", persistent {persistence_seconds} s")?;
        }
        let others = flags & !flags::PERSISTENT;
        if others != 0 {
            write!(f, ", flags {others:#x}")?;
        }
        for (index, Destination { address, weight, forwarding }) in self.destinations.iter().enumerate() {
            write!(f, "{} {address} weight {weight}", if index == 0 { ":" } else { "," })?;
            if forwarding != Forwarding::Nat {
                write!(f, " {forwarding:?}")?;
            }
        }
        Ok(())
    }
}
