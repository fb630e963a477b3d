//! Lookup of the route that the kernel would use for a packet.
//!
//! `ip route get fibmatch ADDRESS`. The answer is the matching route, and not a copy of it, so that its origin is known
//! and whether its link carries anything.
//!
//! For users who ask, `ip route get ADDRESS [from POD iif LINK]`: the way that a packet of this host, or of a pod that it forwards, takes
//! now.
//!
//! Kernel: `RTM_GETROUTE` without `NLM_F_DUMP`, `RTM_F_FIB_MATCH` (4.13); `RTNH_F_LINKDOWN` (4.1). A host without a
//! route answers `ENETUNREACH`; routes that refuse do so with an error of their own (IPv4) or with their type (IPv6).

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;

use super::wire::{self, Filter, GET_ROUTE, NEW_ROUTE};
use super::{RouteKey, RouteKind, TABLE_MAIN};
use crate::kernel::Error;
use crate::kernel::link::{self, LinkName};
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Refusal, Socket};
use crate::net::link_local::without_link;
use crate::net::{Family, LinkLocal, PerFamily};

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

/// The way that the kernel gives to a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    pub fate: Fate,
    /// The route that decided, and its protocol (`rtm_protocol`); `None` of one that the kernel puts on every device by itself, and where
    /// there is none.
    pub decided_by: Option<(RouteKey, u8)>,
    /// The link over which the packet leaves; `lo` where it is delivered here.
    pub link: Option<LinkName>,
    /// MTU of that link, in bytes.
    pub link_mtu: Option<u32>,
    pub gateway: Option<IpAddr>,
    /// Source address of packets of this host that have none yet.
    pub source: Option<IpAddr>,
    /// `RTAX_MTU`: the MTU of the route, or of the path where the kernel has been told of one, in bytes.
    pub path_mtu: Option<u32>,
}

/// Outcome of a lookup: `rtm_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It leaves over a link.
    Forwarded,
    /// It is delivered on this host.
    Local,
    /// A route refuses it, or none leads to its destination.
    Refused,
    /// A route refuses it, or the check of its source does (`rp_filter`): of packets from others the kernel does not say which.
    RefusedOrMartian,
    /// Broadcast, multicast or anycast, by its number.
    Other(u8),
}

/// Origin of a packet that is looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// This host, with a source address of its own or one that the kernel chooses.
    Host(Option<IpAddr>),
    /// Somebody behind the link of this index, from whom the host forwards.
    Behind(IpAddr, u32),
}

/// Length of `struct rtmsg`.
const HEADER: usize = 12;
const DESTINATION: u16 = 1;
const SOURCE: u16 = 2;
const INPUT_LINK: u16 = 3;
const OUTPUT_LINK: u16 = 4;
const GATEWAY: u16 = 5;
const PREFERRED_SOURCE: u16 = 7;
const METRICS: u16 = 8;
const MULTIPATH: u16 = 9;
const VIA: u16 = 18;
/// `RTAX_MTU`, inside of the metrics.
const METRIC_MTU: u16 = 2;
/// `RTM_F_FIB_MATCH`.
const MATCHED: u32 = 0x2000;
/// `RTM_F_LOOKUP_TABLE`: the answer names the table that was looked up, where it else says main (IPv4).
const WITH_TABLE: u32 = 0x1000;
/// `RTNH_F_DEAD | RTNH_F_LINKDOWN`.
const DOWN: u32 = 1 | 16;
/// `RTN_BLACKHOLE` to `RTN_THROW`.
const REFUSING: std::ops::RangeInclusive<u8> = 6..=9;

/// Source addresses that the kernel gives to packets of this host to these destinations; `None` where it has no route to one, or no address for it.
/// `learned`: the protocol of routes of the main table that this program has made of learned ones, which do not count.
///
/// # Errors
/// The socket cannot be opened, or a request failed.
pub fn sources_to(targets: PerFamily<Option<IpAddr>>, learned: u8) -> Result<PerFamily<Option<IpAddr>>, Error> {
    if targets == PerFamily::default() {
        return Ok(targets);
    }
    let mut lookup = Lookup::open()?;
    let mut source = |target: Option<IpAddr>| target.map_or(Ok(None), |target| lookup.source_to(target, learned));
    Ok(PerFamily { v4: source(targets.v4)?, v6: source(targets.v6)? })
}

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
        self.ask_for(to, Origin::Host(Some(from)), 0);
        match self.socket.request(&mut self.message, link) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(Fault::Refused(refusal)) if is_no(&refusal) => Ok(None),
            Err(fault) => Err(Error::new("look up a route", to.to_string(), fault.into())),
        }
    }

    /// Source address that the kernel gives to packets of this host to an address; `None` where it has no route of others, or no address for it.
    fn source_to(&mut self, to: IpAddr, learned: u8) -> Result<Option<IpAddr>, Error> {
        let source = self.source_over(to, None)?;
        // Asked behind the answer, so that a learned route that came between is seen. One that went is corrected by the next look.
        let is_learned = |decided: Option<(RouteKey, u8)>| decided.is_some_and(|(_, protocol)| protocol == learned);
        if !is_learned(self.deciding(to)?) {
            return Ok(source);
        }
        match self.link_of_others(to, learned)? {
            Some(link) => self.source_over(to, Some(link)),
            None => Ok(None),
        }
    }

    fn source_over(&mut self, to: IpAddr, link: Option<u32>) -> Result<Option<IpAddr>, Error> {
        self.ask_for(to, Origin::Host(None), 0);
        if let Some(link) = link.filter(|_| LinkLocal::within(to).is_none()) {
            self.message.u32(OUTPUT_LINK, link);
        }
        match self.socket.request(&mut self.message, taken) {
            Ok(found) => Ok(found
                .into_iter()
                .next()
                .filter(|(taken, _)| taken.fate != Fate::Refused)
                .and_then(|(taken, _)| taken.source)),
            Err(Fault::Refused(refusal)) if is_no(&refusal) => Ok(None),
            Err(fault) => Err(Error::new("look up a route", to.to_string(), fault.into())),
        }
    }

    /// Index of the link of the route of the main table that would decide about an address if there were none of this protocol.
    fn link_of_others(&mut self, to: IpAddr, learned: u8) -> Result<Option<u32>, Error> {
        let filter = Filter { table: TABLE_MAIN, device: None, protocol: None };
        self.message.clear();
        wire::list(&mut self.message, Family::from(to), filter);
        let leads_there = |answer: &Answer<'_>| {
            let route = wire::route(answer)?;
            let fits = route.key.table == TABLE_MAIN && route.key.destination.contains(&without_link(to));
            let is_others = route.protocol != learned && route.kind == RouteKind::Unicast;
            let link = route.hops.first()?.device;
            let order = (Reverse(route.key.destination.prefix_len()), route.key.metric);
            (fits && is_others && wire::is_for_all(answer)).then_some((order, link))
        };
        match self.socket.dump(&mut self.message, leads_there) {
            // Of several with one key the kernel takes the one that it lists first.
            Ok(found) => Ok(found.into_iter().min_by_key(|(order, _)| *order).map(|(_, link)| link)),
            Err(fault) => Err(Error::new("list routes", format!("table {TABLE_MAIN}"), fault.into())),
        }
    }

    /// The way of a packet of this host to an address.
    ///
    /// # Errors
    /// A request failed.
    pub fn taken(&mut self, to: IpAddr) -> Result<Taken, Error> {
        self.taken_from(to, Origin::Host(None))
    }

    /// The way of a packet to an address that comes from somebody in this network, by the link that leads there; `None` where no route to
    /// that network alone does, which then is not behind a link of this host.
    ///
    /// # Errors
    /// A request failed.
    pub fn taken_from_network(&mut self, to: IpAddr, from: (IpAddr, IpNet)) -> Result<Option<Taken>, Error> {
        let (from, network) = from;
        let behind = self.taken(from)?;
        let is_there = behind.decided_by.as_ref().is_some_and(|(key, _)| network.contains(&key.destination));
        let link = behind.link.filter(|_| is_there && behind.fate == Fate::Forwarded);
        let Some(link) = link.and_then(|link| link::Names::default().number(&self.socket, &link)) else {
            return Ok(None);
        };
        self.taken_from(to, Origin::Behind(from, link)).map(Some)
    }

    fn taken_from(&mut self, to: IpAddr, origin: Origin) -> Result<Taken, Error> {
        let failed = |fault: Fault| Error::new("look up a route", to.to_string(), fault.into());
        let nowhere = Taken {
            fate: Fate::Refused,
            decided_by: None,
            link: None,
            link_mtu: None,
            gateway: None,
            source: None,
            path_mtu: None,
        };
        // IPv6 always names the table, and refuses to be asked for it.
        let with_table = if to.is_ipv4() { WITH_TABLE } else { 0 };
        self.ask_for(to, origin, MATCHED | with_table);
        let decided_by = match self.socket.request(&mut self.message, wire::route) {
            Ok(found) => found.into_iter().next().map(|route| (route.key, route.protocol)),
            Err(Fault::Refused(refusal)) if is_no(&refusal) || is_martian(origin, &refusal) => None,
            Err(fault) => return Err(failed(fault)),
        };
        self.ask_for(to, origin, 0);
        let taken = match self.socket.request(&mut self.message, taken) {
            Ok(found) => found.into_iter().next(),
            Err(Fault::Refused(refusal)) if is_martian(origin, &refusal) => {
                return Ok(Taken { fate: Fate::RefusedOrMartian, decided_by, ..nowhere });
            }
            Err(Fault::Refused(refusal)) if is_no(&refusal) => None,
            Err(fault) => return Err(failed(fault)),
        };
        let Some((taken, index)) = taken else { return Ok(Taken { decided_by, ..nowhere }) };
        let devices = link::devices(&mut self.socket)?;
        let device = devices.into_iter().find(|device| Some(device.index) == index);
        let (link, link_mtu) = device.map(|device| (device.name, device.mtu)).unzip();
        Ok(Taken { decided_by, link, link_mtu, ..taken })
    }

    fn ask(&mut self, to: IpAddr) {
        self.ask_for(to, Origin::Host(None), MATCHED);
    }

    fn ask_for(&mut self, to: IpAddr, origin: Origin, flags: u32) {
        let family = Family::from(to);
        let (from, link) = match origin {
            Origin::Host(from) => (from, None),
            Origin::Behind(from, link) => (Some(from), Some(link)),
        };
        let [f0, f1, f2, f3] = flags.to_ne_bytes();
        let from_bits = if from.is_some() { family.host_bits() } else { 0 };
        let header = [family.number(), family.host_bits(), from_bits, 0, 0, 0, 0, 0, f0, f1, f2, f3];
        self.message.clear();
        self.message.begin(GET_ROUTE, 0).header(&header).address(DESTINATION, without_link(to));
        if let Some(on_link) = LinkLocal::within(to) {
            self.message.u32(OUTPUT_LINK, on_link.link());
        }
        if let Some(from) = from {
            self.message.address(SOURCE, without_link(from));
        }
        if let Some(link) = link {
            self.message.u32(INPUT_LINK, link);
        }
    }
}

/// Returns whether there is no route, or one that is unreachable, prohibited or a blackhole. The last has the error of
/// a request that the kernel does not understand, which it explains in a text. A host without IPv6 (`ipv6.disable=1`) has nobody who answers for it.
fn is_no(refusal: &Refusal) -> bool {
    match refusal.errno {
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT => true,
        errno => errno == libc::EINVAL && refusal.text.is_none(),
    }
}

/// Returns whether the source of a packet from somebody else may be why it is refused. A blackhole has the same error.
fn is_martian(origin: Origin, refusal: &Refusal) -> bool {
    let is_behind = matches!(origin, Origin::Behind(..));
    is_behind && matches!(refusal.errno, libc::EXDEV | libc::EINVAL) && refusal.text.is_none()
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

/// `ip route get ADDRESS`, with the index of its `dev`.
fn taken(answer: &Answer<'_>) -> Option<(Taken, Option<u32>)> {
    if answer.kind != NEW_ROUTE {
        return None;
    }
    let [_, _, _, _, _, _, _, kind, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let address = |kind: u16| attributes.get(kind).and_then(|value| value.address());
    // Of an IPv4 route by an IPv6 gateway (RFC 8950): the family, and the address.
    let via = || match attributes.get(VIA)?.value {
        [_, _, address @ ..] => <[u8; 16]>::try_from(address).ok().map(IpAddr::from),
        _ => None,
    };
    let mtu = attributes.get(METRICS).and_then(|metrics| metrics.attributes().get(METRIC_MTU)?.u32());
    let taken = Taken {
        fate: match kind {
            1 => Fate::Forwarded,
            2 => Fate::Local,
            kind if REFUSING.contains(&kind) => Fate::Refused,
            kind => Fate::Other(kind),
        },
        decided_by: None,
        link: None,
        link_mtu: None,
        gateway: address(GATEWAY).or_else(via),
        source: address(PREFERRED_SOURCE),
        path_mtu: mtu.filter(|mtu| *mtu > 0),
    };
    Some((taken, attributes.get(OUTPUT_LINK).and_then(|link| link.u32())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_invalid_packet_of_this_host_is_refused_and_one_of_others_may_have_an_odd_source() {
        let refusal = |errno, text: Option<&str>| Refusal {
            message: 0,
            errno,
            text: text.map(str::to_owned),
            request: Vec::new(),
        };
        let of_pod = Origin::Behind(IpAddr::from([10, 244, 1, 7]), 7);
        for errno in [libc::EINVAL, libc::EXDEV] {
            assert!(is_martian(of_pod, &refusal(errno, None)), "{errno}");
            assert!(!is_martian(Origin::Host(None), &refusal(errno, None)), "{errno}");
            assert!(!is_martian(of_pod, &refusal(errno, Some("it is not understood"))), "{errno}");
        }
        assert!(!is_martian(of_pod, &refusal(libc::ENETUNREACH, None)) && is_no(&refusal(libc::ENETUNREACH, None)));
        assert!(is_no(&refusal(libc::EINVAL, None)), "a blackhole");
        assert!(is_no(&refusal(libc::EOPNOTSUPP, None)) && is_no(&refusal(libc::EAFNOSUPPORT, None)), "no IPv6");
        assert!(!is_no(&refusal(libc::EPERM, None)) && !is_no(&refusal(libc::ENOBUFS, None)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let answer = Answer { kind: NEW_ROUTE, flags: 0, sequence: 0, port: 0, payload: &bytes };
            let _ = (leading(&answer), link(&answer), taken(&answer));
        }
    }
}
