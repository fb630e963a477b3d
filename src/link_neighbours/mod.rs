//! Routers on links, found by what they advertise: a BGP neighbour that is configured by the name of an interface has its link-local address from here.
//!
//! RFC 4861: routers advertise themselves on their links, with a link-local source address. Two routers of which each does so know each other without any configured
//! address; that is how FRR finds a neighbour that is configured as `neighbor eth1 interface`, and it works with others that send Router Advertisements.
//!
//! On a wanted link this node advertises itself every ten seconds, with a router lifetime of 0 and nothing else: no host takes it for a default router, gets an address
//! or a limit of hops from it. It solicits advertisements when the link comes up, so that nobody waits for the next one, and answers solicitations.
//!
//! The first router that is heard is the neighbour, unless the last one answers, and it stays until the link goes: silence ends nothing, because the session itself says whether the neighbour is alive.
//! When the link comes back, or after a restart, the last neighbour comes first, if it answers: that of an earlier run is known by the routes in the kernel that lead over it.
//! Another router beside it is told to the administrator, and takes its place only when the first one does not answer three solicitations and has neither a session nor
//! routes that were retained of it: then it has gone, or has another address. One that restarts gracefully is silent, too.
//!
//! `packet` is the wire format, `link` the machine of one link, `links` all of them: pure, events and the time go in, packets and what is known come out. `driver` has the
//! socket and the clock. Nothing runs and no socket is open unless a link is wanted.

pub mod driver;
mod link;
mod links;
mod packet;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use compact_str::CompactString;

/// All wanted links by name.
pub type WantedLinks = BTreeMap<CompactString, Wanted>;

/// A wanted link, with the routers that have a claim to be the neighbour there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    /// The neighbour, where no other router takes its place: it has a session, or routes were retained of it.
    pub kept: Option<Ipv6Addr>,
    /// The last neighbour, or the router over which routes of an earlier run lead. Where another one is heard first, this one is asked for before that one gets the place.
    pub former: Option<Ipv6Addr>,
}

/// All wanted links as they are known, by name.
pub type Standings = BTreeMap<CompactString, Standing>;

/// A wanted link as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Standing {
    pub state: State,
    /// Another router that advertises itself there besides the neighbour.
    pub beside: Option<Ipv6Addr>,
}

/// State of a wanted link.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum State {
    /// The kernel has not been asked, or nobody can listen.
    #[default]
    Unknown,
    /// This host has no such link.
    Missing,
    /// It is down, or has no carrier.
    Down,
    /// It is up, and this host has no link-local address on it (yet).
    WithoutAddress,
    /// No router has advertised itself.
    Silent,
    Found(Found),
}

/// A link with a router on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Index of the link, another one when it is made again.
    pub link: u32,
    /// Our link-local address there.
    pub own: Ipv6Addr,
    pub neighbour: Ipv6Addr,
}

/// A link as the kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub link: u32,
    /// It is set up by the administrator.
    pub up: bool,
    pub carrier: bool,
    /// The link-local address by which this host sends there.
    pub own: Option<Ipv6Addr>,
}
