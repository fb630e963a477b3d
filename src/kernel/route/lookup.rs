//! Lookup of the route that the kernel would use for a packet.
//!
//! `ip route get fibmatch ADDRESS`. The answer is the matching route, and not a copy of it, so that its origin is known
//! and whether its link carries anything.
//!
//! Kernel: `RTM_GETROUTE` without `NLM_F_DUMP`, `RTM_F_FIB_MATCH` (4.13); `RTNH_F_LINKDOWN` (4.1). A host without a
//! route answers `ENETUNREACH`; routes that refuse do so with an error of their own (IPv4) or with their type (IPv6).

use std::net::IpAddr;

use super::RouteKey;
use super::wire::{self, GET_ROUTE, NEW_ROUTE};
use crate::kernel::Error;
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Refusal, Socket};
use crate::net::Family;

/// Looks up routes in the network namespace of the thread that opened it.
pub struct Lookup {
    socket: Socket,
    message: Messages,
}

/// The route that decides about an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leading {
    /// There is none, or one that refuses, or its link is down.
    Nowhere,
    Somewhere {
        /// The address is on the link itself, and not behind a gateway.
        direct: bool,
        /// `rtm_protocol`: who made the route.
        protocol: u8,
    },
}

/// Length of `struct rtmsg`.
const HEADER: usize = 12;
const DESTINATION: u16 = 1;
const SOURCE: u16 = 2;
const OUTPUT_LINK: u16 = 4;
const GATEWAY: u16 = 5;
const MULTIPATH: u16 = 9;
const VIA: u16 = 18;
/// `RTM_F_FIB_MATCH`.
const MATCHED: u32 = 0x2000;
/// `RTNH_F_DEAD | RTNH_F_LINKDOWN`.
const DOWN: u32 = 1 | 16;
/// `RTN_BLACKHOLE` to `RTN_THROW`.
const REFUSING: std::ops::RangeInclusive<u8> = 6..=9;

impl Lookup {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open() -> Result<Lookup, Error> {
        Ok(Lookup { socket: Socket::open(Bus::Route)?, message: Messages::new() })
    }

    /// The route that decides about packets to an address; `None` where the kernel's answer says neither.
    ///
    /// # Errors
    /// The request failed.
    pub fn leading(&mut self, to: IpAddr) -> Result<Option<Leading>, Error> {
        self.ask(to);
        match self.socket.request(&mut self.message, leading) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(Fault::Refused(refusal)) if is_no(&refusal) => Ok(Some(Leading::Nowhere)),
            Err(fault) => Err(Error::new("look up a route", to.to_string(), fault.into())),
        }
    }

    /// The route that decides about packets to an address, and its protocol (`rtm_protocol`); `None` where there is none, or one that
    /// refuses.
    ///
    /// # Errors
    /// The request failed.
    pub fn deciding(&mut self, to: IpAddr) -> Result<Option<(RouteKey, u8)>, Error> {
        self.ask(to);
        match self.socket.request(&mut self.message, wire::route) {
            Ok(found) => Ok(found.into_iter().next().map(|route| (route.key, route.protocol))),
            Err(Fault::Refused(refusal)) if is_no(&refusal) => Ok(None),
            Err(fault) => Err(Error::new("look up a route", to.to_string(), fault.into())),
        }
    }

    /// Index of the link over which a packet from an address of this host to another address would leave; `None` where there is no route, or
    /// the address is not this host's.
    ///
    /// # Errors
    /// The request failed.
    pub fn link_to(&mut self, to: IpAddr, from: IpAddr) -> Result<Option<u32>, Error> {
        // The route as it is used: of several ways, one that is taken. Rules may choose a table by the source.
        self.ask_for(to, Some(from), 0);
        match self.socket.request(&mut self.message, link) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(Fault::Refused(refusal)) if is_no(&refusal) => Ok(None),
            Err(fault) => Err(Error::new("look up a route", to.to_string(), fault.into())),
        }
    }

    fn ask(&mut self, to: IpAddr) {
        self.ask_for(to, None, MATCHED);
    }

    fn ask_for(&mut self, to: IpAddr, from: Option<IpAddr>, flags: u32) {
        let family = Family::from(to);
        let [f0, f1, f2, f3] = flags.to_ne_bytes();
        let from_bits = if from.is_some() { family.host_bits() } else { 0 };
        let header = [family.number(), family.host_bits(), from_bits, 0, 0, 0, 0, 0, f0, f1, f2, f3];
        self.message.clear();
        self.message.begin(GET_ROUTE, 0).header(&header).address(DESTINATION, to);
        if let Some(from) = from {
            self.message.address(SOURCE, from);
        }
    }
}

/// Returns whether there is no route, or one that is unreachable, prohibited or a blackhole. The last has the error of
/// a request that the kernel does not understand, which it explains in a text.
fn is_no(refusal: &Refusal) -> bool {
    match refusal.errno {
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES => true,
        errno => errno == libc::EINVAL && refusal.text.is_none(),
    }
}

fn leading(answer: &Answer<'_>) -> Option<Leading> {
    if answer.kind != NEW_ROUTE {
        return None;
    }
    let [_, _, _, _, _, protocol, _, kind, f0, f1, f2, f3] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    if REFUSING.contains(&kind) || u32::from_ne_bytes([f0, f1, f2, f3]) & DOWN != 0 {
        return Some(Leading::Nowhere);
    }
    // Of several ways the kernel says each by itself; some of them leads somewhere.
    let direct = [GATEWAY, VIA, MULTIPATH].into_iter().all(|kind| attributes.get(kind).is_none());
    Some(Leading::Somewhere { direct, protocol })
}

/// `ip route get ADDRESS`: its `dev`.
fn link(answer: &Answer<'_>) -> Option<u32> {
    if answer.kind != NEW_ROUTE {
        return None;
    }
    let [_, _, _, _, _, _, _, kind, ..] = *answer.header::<HEADER>()?;
    answer.attributes(HEADER).get(OUTPUT_LINK).filter(|_| !REFUSING.contains(&kind))?.u32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let answer = Answer { kind: NEW_ROUTE, flags: 0, sequence: 0, port: 0, payload: &bytes };
            let _ = (leading(&answer), link(&answer));
        }
    }
}
