//! Netlink families that a socket speaks to.

use rustix::net::netlink;

/// The netlink family that a socket speaks to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Bus {
    /// Links, addresses, routes.
    Route,
    /// ipset, conntrack, nf_tables.
    Netfilter,
    /// Families found by name, IPVS among them.
    Generic,
}

impl Bus {
    pub(super) fn protocol(self) -> Option<rustix::net::Protocol> {
        match self {
            // Number 0, which rustix writes as no protocol.
            Bus::Route => None,
            Bus::Netfilter => Some(netlink::NETFILTER),
            Bus::Generic => Some(netlink::GENERIC),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Bus::Route => "rtnetlink",
            Bus::Netfilter => "netfilter",
            Bus::Generic => "generic netlink",
        }
    }
}
