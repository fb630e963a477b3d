//! Routes.
//!
//! Kernel: rtnetlink `RTM_*ROUTE` (include/uapi/linux/rtnetlink.h). Which routes are ours is one of the rules
//! of [`Ownership`], each of which a process without memory can apply.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::link::LinkName;

/// Number of the table that holds the host's own addresses.
pub const TABLE_LOCAL: u32 = 255;
/// Number of the main table.
pub const TABLE_MAIN: u32 = 254;

/// What identifies a route in its table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RouteKey {
    pub table: u32,
    /// Host bits are zero.
    pub destination: IpNet,
    /// `RTA_PRIORITY`: 0 where absent. IPv6 routes made without one get 1024 from the kernel.
    pub metric: u32,
}

/// Everything else about a route that we decide.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    pub kind: RouteKind,
    /// `rtm_protocol`: who made it.
    pub protocol: u8,
    /// The source address that locally made packets get.
    pub source: Option<IpAddr>,
    pub next_hops: Vec<NextHop>,
}

/// `rtm_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteKind {
    /// Forwarded; `scope` follows from whether the next hops have gateways.
    Unicast,
    /// Delivered to this host (scope host).
    Local,
    /// Any type that we never make, by its number. Read so that it can be replaced.
    Other(u8),
}

/// One way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextHop {
    pub link: LinkName,
    pub gateway: Option<IpAddr>,
}

/// Which routes a [`Routes`] target calls its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// Every route of one table that leaves through one device, which is ours.
    Device { table: u32, link: LinkName },
    /// Every route of one table with one protocol number.
    Protocol { table: u32, protocol: u8 },
}

impl fmt::Display for RouteKey {
    /// As `ip route` prints it: `10.96.0.1/32 table 255 metric 0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} table {} metric {}", self.destination, self.table, self.metric)
    }
}
