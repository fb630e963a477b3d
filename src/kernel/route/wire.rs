//! Route messages, as bytes. Devices are numbers here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{RouteKey, RouteKind};
use crate::kernel::netlink::{Answer, Attributes, Messages};
use crate::net::Family;

/// `ip route add`, `replace` and `delete`, by the flags; `ip route show`.
pub const NEW_ROUTE: u16 = 24;
pub const DELETE_ROUTE: u16 = 25;
pub const GET_ROUTE: u16 = 26;

/// Length of `struct rtmsg`.
const HEADER: usize = 12;
/// Length of `struct rtnexthop`.
const HOP_HEADER: usize = 8;

mod attribute {
    pub const DESTINATION: u16 = 1;
    pub const DEVICE: u16 = 4;
    pub const GATEWAY: u16 = 5;
    pub const METRIC: u16 = 6;
    pub const SOURCE: u16 = 7;
    pub const MULTIPATH: u16 = 9;
    pub const TABLE: u16 = 15;
    pub const VIA: u16 = 18;
}

const TYPE_UNICAST: u8 = 1;
const TYPE_LOCAL: u8 = 2;
const TYPE_UNREACHABLE: u8 = 7;
const TYPE_BROADCAST: u8 = 3;
const TYPE_ANYCAST: u8 = 4;
const TYPE_MULTICAST: u8 = 5;

const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const SCOPE_NOWHERE: u8 = 255;

/// A copy in the kernel's cache, not a route.
const CLONED: u32 = 0x200;
/// `RTNH_F_ONLINK`, in the flags of a route with one next hop, and of each one of several.
const ON_LINK: u8 = 0x4;

/// A route whose devices are numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Numbered {
    pub key: RouteKey,
    pub kind: RouteKind,
    pub protocol: u8,
    pub source: Option<IpAddr>,
    pub hops: Vec<Hop>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    pub device: u32,
    pub gateway: Option<IpAddr>,
    pub on_link: bool,
}

/// Filter of a listing of routes.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    pub table: u32,
    pub device: Option<u32>,
    pub protocol: Option<u8>,
}

/// Appends a message that asks for the routes of one family; the kernel may answer with more than those.
pub fn list(messages: &mut Messages, family: Family, filter: Filter) {
    let protocol = filter.protocol.unwrap_or_default();
    messages.begin(GET_ROUTE, 0).header(&header(family, 0, filter.table, [protocol, 0, 0]));
    messages.u32(attribute::TABLE, filter.table);
    if let Some(device) = filter.device {
        messages.u32(attribute::DEVICE, device);
    }
}

/// Appends a message that describes a route: to add, to replace or to delete it.
pub fn describe(messages: &mut Messages, command: u16, flags: u16, route: &Numbered) {
    let Numbered { key, .. } = route;
    let family = Family::from(key.destination);
    let scope = match (command, family) {
        // Whatever its scope is: nothing else of this kind has the same key.
        (DELETE_ROUTE, _) => SCOPE_NOWHERE,
        (_, Family::V6) => SCOPE_UNIVERSE,
        (_, Family::V4) => scope(route),
    };
    let length = key.destination.prefix_len();
    let mut header = header(family, length, key.table, [route.protocol, scope, number(route.kind)]);
    if let [hop] = route.hops.as_slice() {
        let [.., f0, f1, f2, f3] = &mut header;
        [*f0, *f1, *f2, *f3] = u32::from(hop_flags(hop)).to_ne_bytes();
    }
    messages.begin(command, flags).header(&header);
    messages.address(attribute::DESTINATION, key.destination.addr()).u32(attribute::TABLE, key.table);
    if key.metric != 0 {
        messages.u32(attribute::METRIC, key.metric);
    }
    if let Some(source) = route.source {
        messages.address(attribute::SOURCE, source);
    }
    match route.hops.as_slice() {
        [] => {}
        [hop] => {
            messages.u32(attribute::DEVICE, hop.device);
            if let Some((kind, bytes)) = gateway(hop, family) {
                messages.attribute(kind, &bytes);
            }
        }
        hops => {
            messages.attribute(attribute::MULTIPATH, &multipath(hops, family));
        }
    }
}

/// The route that a message describes, be it an answer or a notification; `None` for cache entries and for
/// what the kernel puts on every device by itself.
pub fn route(answer: &Answer<'_>) -> Option<Numbered> {
    if answer.kind != NEW_ROUTE && answer.kind != DELETE_ROUTE {
        return None;
    }
    let [family, length, _, _, table, protocol, _, kind, f0, f1, f2, f3] = *answer.header::<HEADER>()?;
    let family = Family::from_number(family)?;
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    if flags & CLONED != 0 {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let destination = match attributes.get(attribute::DESTINATION) {
        Some(address) => address.address()?,
        None => any,
    };
    if matches!(kind, TYPE_BROADCAST | TYPE_ANYCAST | TYPE_MULTICAST) || is_of_every_device(destination) {
        return None;
    }
    let number = |kind| attributes.get(kind).and_then(|value| value.u32());
    let metric = number(attribute::METRIC).unwrap_or_default();
    // Asked to delete metric 0, the kernel would take a route of any metric.
    if family == Family::V6 && metric == 0 {
        return None;
    }
    Some(Numbered {
        key: RouteKey {
            table: number(attribute::TABLE).unwrap_or(table.into()),
            destination: IpNet::new(destination, length).ok()?.trunc(),
            metric,
        },
        kind: match kind {
            TYPE_UNICAST => RouteKind::Unicast,
            TYPE_LOCAL => RouteKind::Local,
            TYPE_UNREACHABLE => RouteKind::Unreachable,
            other => RouteKind::Other(other),
        },
        protocol,
        source: attributes.get(attribute::SOURCE).and_then(|source| source.address()),
        hops: match kind {
            // IPv6 names the loopback there.
            TYPE_UNREACHABLE => Vec::new(),
            _ => hops(&attributes, flags & u32::from(ON_LINK) != 0),
        },
    })
}

/// Returns whether a route is for packets of every source and every TOS.
pub fn is_for_all(answer: &Answer<'_>) -> bool {
    matches!(answer.header::<HEADER>(), Some([_, _, 0, 0, ..]))
}

fn header(family: Family, length: u8, table: u32, [protocol, scope, kind]: [u8; 3]) -> [u8; HEADER] {
    // A table number that does not fit here is in the attribute alone.
    let table = u8::try_from(table).unwrap_or_default();
    [family.number(), length, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0]
}

fn scope(route: &Numbered) -> u8 {
    match route.kind {
        RouteKind::Local => SCOPE_HOST,
        RouteKind::Unicast if route.hops.iter().all(|hop| hop.gateway.is_none()) => SCOPE_LINK,
        RouteKind::Unicast | RouteKind::Unreachable | RouteKind::Other(_) => SCOPE_UNIVERSE,
    }
}

fn number(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Unicast => TYPE_UNICAST,
        RouteKind::Local => TYPE_LOCAL,
        RouteKind::Unreachable => TYPE_UNREACHABLE,
        RouteKind::Other(number) => number,
    }
}

fn hop_flags(hop: &Hop) -> u8 {
    if hop.on_link { ON_LINK } else { 0 }
}

/// The attribute that names the gateway; one of the other family has a kind of its own.
fn gateway(hop: &Hop, family: Family) -> Option<(u16, Vec<u8>)> {
    let gateway = hop.gateway?;
    let octets = match gateway {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    if Family::from(gateway) == family {
        return Some((attribute::GATEWAY, octets));
    }
    let mut via = u16::from(Family::from(gateway).number()).to_ne_bytes().to_vec();
    via.extend(octets);
    Some((attribute::VIA, via))
}

/// `struct rtnexthop` for each hop, with its attributes.
fn multipath(hops: &[Hop], family: Family) -> Vec<u8> {
    let mut bytes = Vec::new();
    for hop in hops {
        let gateway = gateway(hop, family);
        let value = gateway.as_ref().map_or(0, |(_, value)| 4 + value.len().next_multiple_of(4));
        let length = u16::try_from(HOP_HEADER + value).expect("a hop is short");
        bytes.extend(length.to_ne_bytes());
        bytes.extend([hop_flags(hop), 0]);
        bytes.extend(hop.device.to_ne_bytes());
        if let Some((kind, value)) = gateway {
            let length = u16::try_from(4 + value.len()).expect("an address is short");
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// `on_link`: of the only one.
fn hops(attributes: &Attributes<'_>, on_link: bool) -> Vec<Hop> {
    if let Some(paths) = attributes.get(attribute::MULTIPATH) {
        return multipath_hops(paths.value);
    }
    let device = attributes.get(attribute::DEVICE).and_then(|device| device.u32());
    device.map(|device| Hop { device, gateway: gateway_of(attributes), on_link }).into_iter().collect()
}

fn multipath_hops(mut rest: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let Some([l0, l1, flags, _, i0, i1, i2, i3]) = rest.first_chunk::<HOP_HEADER>() {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let Some(inside) = rest.get(HOP_HEADER..length) else { break };
        let device = u32::from_ne_bytes([*i0, *i1, *i2, *i3]);
        hops.push(Hop { device, gateway: gateway_of(&Attributes::new(inside)), on_link: flags & ON_LINK != 0 });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

fn gateway_of(attributes: &Attributes<'_>) -> Option<IpAddr> {
    if let Some(gateway) = attributes.get(attribute::GATEWAY) {
        return gateway.address();
    }
    let (_, octets) = attributes.get(attribute::VIA)?.value.split_first_chunk::<2>()?;
    crate::kernel::netlink::Attribute { kind: attribute::VIA, value: octets }.address()
}

fn is_of_every_device(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::answers;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = route(&Answer { kind: NEW_ROUTE, flags: 0, sequence: 0, port: 0, payload: &bytes });
            let _ = multipath_hops(&bytes);
        }
    }

    #[test]
    fn several_ways_read_back_as_they_were_written() {
        for (destination, gateways) in [
            ("10.244.0.0/16", ["192.0.2.1", "2001:db8::1", "192.0.2.3"]),
            ("fd00:10:244::/56", ["2001:db8::1", "2001:db8::2", "2001:db8::3"]),
        ] {
            let hop =
                |(device, gateway): (u32, &str)| Hop { device, gateway: gateway.parse().ok(), on_link: device == 2 };
            let mut hops: Vec<Hop> = (1..).zip(gateways).map(hop).collect();
            hops.push(Hop { device: 9, gateway: None, on_link: false });
            let route = Numbered {
                key: RouteKey::new(1000, destination.parse().expect("a prefix")),
                kind: RouteKind::Unicast,
                protocol: 17,
                source: None,
                hops,
            };
            let alone = |place: usize| Numbered { hops: vec![route.hops[place]], ..route.clone() };
            for route in [route.clone(), alone(0), alone(1)] {
                let mut messages = Messages::new();
                describe(&mut messages, NEW_ROUTE, 0, &route);
                let bytes = messages.bytes().to_vec();
                assert_eq!(answers(&bytes).filter_map(|answer| super::route(&answer)).collect::<Vec<_>>(), [route]);
            }
        }
    }
}
