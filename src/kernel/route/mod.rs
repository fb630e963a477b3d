//! Routes.
//!
//! Ours: the routes by one of the rules of [`Ownership`], each of which a process without memory can apply.
//! Never ours: what the kernel puts on every device by itself (link-local and multicast prefixes, broadcast and
//! anycast addresses, IPv6 routes of metric 0, which it makes for addresses and nobody else can), and entries of
//! its cache.
//!
//! Limits and surprises:
//! - A changed route is replaced in one request: at no moment is there none.
//! - IPv6 routes made without a metric get 1024 from the kernel; [`RouteKey::new`] sets it beforehand.
//! - An IPv6 route added beside one of the same metric would silently become another next hop of that one; adding is
//!   therefore exclusive, and fails where somebody else has the place.
//! - When the last IPv4 address of a device goes, the kernel drops all IPv4 routes through the device without a
//!   notification (`fib_disable_ip`). The same happens, in both families, when the device is set down. A device whose
//!   routes matter keeps [`KEEPER`](super::address::KEEPER).
//! - Single routes cannot be read; reading some costs as much as reading all of ours.
//!
//! Kernel: rtnetlink `RTM_*ROUTE` (include/uapi/linux/rtnetlink.h).

mod lookup;
mod target;
mod wire;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::link::LinkName;
use super::netlink::Answer;
use crate::net::Family;

pub use lookup::{Fate, Leading, Lookup, Taken, sources_to};
pub use target::Routes;

/// Number of the table that holds the host's own addresses.
pub const TABLE_LOCAL: u32 = 255;
/// Number of the main table.
pub const TABLE_MAIN: u32 = 254;

/// Key of a route in its table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RouteKey {
    pub table: u32,
    /// Host bits are zero.
    pub destination: IpNet,
    /// `RTA_PRIORITY`: 0 where absent. IPv6 routes made without one get 1024 from the kernel.
    pub metric: u32,
}

/// Everything else about a route that we decide. Many routes have the same, which is in memory once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Route {
    pub kind: RouteKind,
    /// `rtm_protocol`: the origin of the route.
    pub protocol: u8,
    /// Preferred source address of locally generated packets.
    pub source: Option<IpAddr>,
    /// Shared, because many routes have the same next hops.
    pub next_hops: Arc<[NextHop]>,
}

/// `rtm_type`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RouteKind {
    /// Forwarded; `scope` follows from whether the next hops have gateways.
    Unicast,
    /// Delivered to this host (scope host).
    Local,
    /// Refused: the sender is told that there is no way.
    Unreachable,
    /// Any type that we never make, by its number. Read so that it can be replaced.
    Other(u8),
}

/// One next hop.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NextHop {
    pub link: LinkName,
    pub gateway: Option<IpAddr>,
    /// The gateway is on the link although no network of the link has it (`onlink`).
    pub on_link: bool,
}

/// A table and the protocol number of the routes in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Protocol {
    pub table: u32,
    pub protocol: u8,
}

/// A table and a device of routes in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Through {
    pub table: u32,
    pub link: LinkName,
    /// Only the local default route of each family; all others of the table are somebody else's.
    pub local_default: bool,
}

/// Rule by which a [`Routes`] target recognises its routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// Every route of one table that leaves through one device, which is ours.
    Device { table: u32, link: LinkName },
    /// The same of several tables and devices.
    Devices(Vec<Through>),
    /// Every route that has, in one of these tables, the protocol number that goes with it.
    Protocols(Vec<Protocol>),
}

/// Another program's route, or one of the kernel's own, in a table that holds routes of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    pub key: RouteKey,
    pub kind: RouteKind,
    /// `rtm_protocol`: the origin of the route.
    pub protocol: u8,
    pub next_hops: Arc<[NextHop]>,
    /// The kernel lists it before any of ours with the same key: of such IPv4 routes it uses the first.
    pub is_first: bool,
}

/// The content of a route notification.
pub(super) struct RouteNotification {
    pub of: Protocol,
    pub destination: IpNet,
    /// Its destination is one host alone.
    pub to_host: bool,
    pub devices: Vec<u32>,
}

/// The route that a notification is about; `None` when it is never ours.
pub(super) fn told(answer: &Answer<'_>) -> Option<RouteNotification> {
    let route = wire::route(answer)?;
    let of = Protocol { table: route.key.table, protocol: route.protocol };
    let destination = route.key.destination;
    let to_host = destination.prefix_len() == destination.max_prefix_len();
    let devices = route.hops.into_iter().map(|hop| hop.device).collect();
    Some(RouteNotification { of, destination, to_host, devices })
}

/// The metric that the kernel gives to IPv6 routes made without one.
const DEFAULT_METRIC_V6: u32 = 1024;

impl RouteKey {
    /// A route with the metric that its family has where nobody chose one: 0 for IPv4, 1024 for IPv6.
    pub fn new(table: u32, destination: IpNet) -> RouteKey {
        let metric = match Family::from(destination) {
            Family::V4 => 0,
            Family::V6 => DEFAULT_METRIC_V6,
        };
        RouteKey { table, destination: destination.trunc(), metric }
    }
}

impl fmt::Display for Foreign {
    /// As `ip route` takes it, for the main table: `10.244.2.0/24 proto 4 metric 0 via 192.0.2.77 dev eth0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Foreign { key, kind, protocol, next_hops, .. } = self;
        match kind {
            RouteKind::Unicast => {}
            RouteKind::Local => f.write_str("local ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            // `RTN_*`
            RouteKind::Other(6) => f.write_str("blackhole ")?,
            RouteKind::Other(8) => f.write_str("prohibit ")?,
            RouteKind::Other(9) => f.write_str("throw ")?,
            RouteKind::Other(number) => write!(f, "type {number} ")?,
        }
        write!(f, "{} proto {protocol} metric {}", key.destination, key.metric)?;
        for NextHop { link, gateway, on_link } in &**next_hops {
            f.write_str(if next_hops.len() > 1 { " nexthop" } else { "" })?;
            if let Some(gateway) = gateway {
                let family = if gateway.is_ipv6() && key.destination.addr().is_ipv4() { "inet6 " } else { "" };
                write!(f, " via {family}{gateway}")?;
            }
            write!(f, " dev {link}{}", if *on_link { " onlink" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for RouteKey {
    /// As `ip route` prints it: `10.96.0.1/32 table 255 metric 0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} table {} metric {}", self.destination, self.table, self.metric)
    }
}
