//! The messages of the family `IPVS`, as bytes.
//!
//! A service is named by family, protocol, address and port, or by family and mark; a destination by its service,
//! address and port. Addresses are always 16 bytes, ports in network order, everything else native.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Connections, Destination, Forwarding, Service, ServiceKey, Stats, Timeouts, flags};
use crate::kernel::netlink::{Answer, Attributes, Messages};
use crate::net::{Family, Protocol};

/// The family's name.
pub const FAMILY: &str = "IPVS";
const VERSION: u8 = 1;
/// Length of the generic header before the attributes.
const HEADER: usize = 4;

/// Command of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Command {
    NewService = 1,
    SetService = 2,
    DeleteService = 3,
    ListServices = 4,
    NewDestination = 5,
    SetDestination = 6,
    DeleteDestination = 7,
    ListDestinations = 8,
    SetTimeouts = 12,
    ReadTimeouts = 13,
}

mod attribute {
    pub const SERVICE: u16 = 1;
    pub const DESTINATION: u16 = 2;
    pub const TIMEOUT_TCP: u16 = 4;
    pub const TIMEOUT_TCP_FIN: u16 = 5;
    pub const TIMEOUT_UDP: u16 = 6;
}

mod service_attribute {
    pub const FAMILY: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDRESS: u16 = 3;
    pub const PORT: u16 = 4;
    pub const MARK: u16 = 5;
    pub const SCHEDULER: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
    pub const NETMASK: u16 = 9;
    pub const STATS64: u16 = 12;
}

mod destination_attribute {
    pub const ADDRESS: u16 = 1;
    pub const PORT: u16 = 2;
    pub const METHOD: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const UPPER_THRESHOLD: u16 = 5;
    pub const LOWER_THRESHOLD: u16 = 6;
    pub const ACTIVE: u16 = 7;
    pub const INACTIVE: u16 = 8;
    pub const PERSISTENT: u16 = 9;
    pub const FAMILY: u16 = 11;
    pub const STATS64: u16 = 12;
    pub const TUNNEL_TYPE: u16 = 13;
}

const METHOD_MASK: u32 = 0x7;
const METHOD_NAT: u32 = 0;
const METHOD_TUNNEL: u32 = 2;
const TUNNEL_IPIP: u8 = 0;

/// Appends a message that only names a service; none at all where all are meant.
pub fn name_service(messages: &mut Messages, command: Command, key: Option<&ServiceKey>) {
    messages.begin_generic(command as u8, VERSION, 0);
    if let Some(key) = key {
        messages.nest(attribute::SERVICE);
        identify(messages, key);
        messages.end();
    }
}

/// Appends a message that describes a whole service.
pub fn describe_service(messages: &mut Messages, command: Command, key: &ServiceKey, service: &Service) {
    use service_attribute as a;
    messages.begin_generic(command as u8, VERSION, 0).nest(attribute::SERVICE);
    identify(messages, key);
    let mut value_and_mask = [0_u8; 8];
    let (value, mask) = value_and_mask.split_at_mut(4);
    value.copy_from_slice(&service.flags.to_ne_bytes());
    mask.copy_from_slice(&u32::MAX.to_ne_bytes());
    let netmask = match key.family() {
        Family::V4 => u32::MAX,
        Family::V6 => 128,
    };
    messages
        .text(a::SCHEDULER, &service.scheduler)
        .attribute(a::FLAGS, &value_and_mask)
        .u32(a::TIMEOUT, service.persistence_seconds)
        .u32(a::NETMASK, netmask)
        .end();
}

/// Appends a message that describes a whole destination, or for `DeleteDestination` names it.
pub fn describe_destination(messages: &mut Messages, command: Command, key: &ServiceKey, destination: &Destination) {
    use destination_attribute as a;
    messages.begin_generic(command as u8, VERSION, 0).nest(attribute::SERVICE);
    identify(messages, key);
    messages.end().nest(attribute::DESTINATION);
    let ip = destination.address.ip();
    messages.attribute(a::ADDRESS, &sixteen_bytes(ip)).u16_be(a::PORT, destination.address.port());
    messages.u16(a::FAMILY, Family::from(ip).number().into());
    if command != Command::DeleteDestination {
        let method = match destination.forwarding {
            Forwarding::Nat => METHOD_NAT,
            Forwarding::Tunnel => METHOD_TUNNEL,
            Forwarding::Other(number) => number.into(),
        };
        messages.u32(a::METHOD, method).u32(a::WEIGHT, destination.weight);
        messages.u32(a::UPPER_THRESHOLD, 0).u32(a::LOWER_THRESHOLD, 0);
        if destination.forwarding == Forwarding::Tunnel {
            messages.u8(a::TUNNEL_TYPE, TUNNEL_IPIP);
        }
    }
    messages.end();
}

/// Appends a message that sets those timeouts that are not 0.
pub fn set_timeouts(messages: &mut Messages, timeouts: &Timeouts) {
    messages
        .begin_generic(Command::SetTimeouts as u8, VERSION, 0)
        .u32(attribute::TIMEOUT_TCP, timeouts.tcp)
        .u32(attribute::TIMEOUT_TCP_FIN, timeouts.tcp_fin)
        .u32(attribute::TIMEOUT_UDP, timeouts.udp);
}

/// Appends a message that asks for the timeouts.
pub fn ask_for_timeouts(messages: &mut Messages) {
    messages.begin_generic(Command::ReadTimeouts as u8, VERSION, 0);
}

fn identify(messages: &mut Messages, key: &ServiceKey) {
    use service_attribute as a;
    messages.u16(a::FAMILY, key.family().number().into());
    match key {
        ServiceKey::Address { address, protocol, port } => messages
            .u16(a::PROTOCOL, protocol.number().into())
            .attribute(a::ADDRESS, &sixteen_bytes(*address))
            .u16_be(a::PORT, *port),
        ServiceKey::Mark { mark, .. } => messages.u32(a::MARK, *mark),
    };
}

fn sixteen_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// Returns the key of the service in a message; `None` for a kind of service that we never make.
pub fn service_key(answer: &Answer<'_>) -> Option<ServiceKey> {
    key_of(&answer.attributes(HEADER).get(attribute::SERVICE)?.attributes())
}

/// The service that a message describes.
pub fn service(answer: &Answer<'_>) -> Option<(ServiceKey, Service)> {
    use service_attribute as a;
    let described = answer.attributes(HEADER).get(attribute::SERVICE)?.attributes();
    let service = Service {
        scheduler: described.get(a::SCHEDULER)?.text()?.into(),
        flags: described.get(a::FLAGS)?.u32()? & !flags::HASHED,
        persistence_seconds: described.get(a::TIMEOUT)?.u32()?,
    };
    Some((key_of(&described)?, service))
}

/// The counters of the service that a message describes.
pub fn stats(answer: &Answer<'_>) -> Option<(ServiceKey, Stats)> {
    let described = answer.attributes(HEADER).get(attribute::SERVICE)?.attributes();
    let stats = counters(&described.get(service_attribute::STATS64)?.attributes());
    Some((key_of(&described)?, stats))
}

/// The counters of the destination that a message describes; zero for a kernel that does not tell them.
pub fn destination_stats(answer: &Answer<'_>) -> Stats {
    let described = answer.attributes(HEADER).get(attribute::DESTINATION).map(|described| described.attributes());
    let told = described.and_then(|described| described.get(destination_attribute::STATS64));
    told.map(|told| counters(&told.attributes())).unwrap_or_default()
}

fn counters(told: &Attributes<'_>) -> Stats {
    let counter = |kind| told.get(kind).and_then(|counter| counter.u64()).unwrap_or_default();
    Stats {
        connections: counter(1),
        packets_in: counter(2),
        packets_out: counter(3),
        bytes_in: counter(4),
        bytes_out: counter(5),
        connections_rate: counter(6),
        packets_in_rate: counter(7),
        packets_out_rate: counter(8),
        bytes_in_rate: counter(9),
        bytes_out_rate: counter(10),
    }
}

fn key_of(described: &Attributes<'_>) -> Option<ServiceKey> {
    use service_attribute as a;
    let family = Family::from_number(u8::try_from(described.get(a::FAMILY)?.u16()?).ok()?)?;
    if let Some(mark) = described.get(a::MARK) {
        return Some(ServiceKey::Mark { mark: mark.u32()?, family });
    }
    Some(ServiceKey::Address {
        address: address(family, described.get(a::ADDRESS)?.value)?,
        protocol: Protocol::from_number(u8::try_from(described.get(a::PROTOCOL)?.u16()?).ok()?)?,
        port: described.get(a::PORT)?.u16_be()?,
    })
}

/// The destination that a message describes. `family` is that of its service, which old kernels imply.
pub fn destination(answer: &Answer<'_>, family: Family) -> Option<(Destination, Connections)> {
    use destination_attribute as a;
    let described = answer.attributes(HEADER).get(attribute::DESTINATION)?.attributes();
    let family = match described.get(a::FAMILY) {
        Some(number) => Family::from_number(u8::try_from(number.u16()?).ok()?)?,
        None => family,
    };
    let method = described.get(a::METHOD)?.u32()? & METHOD_MASK;
    let tunnel = described.get(a::TUNNEL_TYPE).and_then(|kind| kind.u8()).unwrap_or(TUNNEL_IPIP);
    let forwarding = match (method, tunnel) {
        (METHOD_NAT, _) => Forwarding::Nat,
        (METHOD_TUNNEL, TUNNEL_IPIP) => Forwarding::Tunnel,
        _ => Forwarding::Other(u8::try_from(method).ok()?),
    };
    let count = |kind| described.get(kind).and_then(|count| count.u32()).unwrap_or_default();
    let destination = Destination {
        address: SocketAddr::new(address(family, described.get(a::ADDRESS)?.value)?, described.get(a::PORT)?.u16_be()?),
        weight: described.get(a::WEIGHT)?.u32()?,
        forwarding,
    };
    let connections =
        Connections { active: count(a::ACTIVE), inactive: count(a::INACTIVE), persistent: count(a::PERSISTENT) };
    Some((destination, connections))
}

/// The timeouts in a message.
pub fn timeouts(answer: &Answer<'_>) -> Option<Timeouts> {
    let told = answer.attributes(HEADER);
    Some(Timeouts {
        tcp: told.get(attribute::TIMEOUT_TCP)?.u32()?,
        tcp_fin: told.get(attribute::TIMEOUT_TCP_FIN)?.u32()?,
        udp: told.get(attribute::TIMEOUT_UDP)?.u32()?,
    })
}

fn address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => bytes.first_chunk::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
        Family::V6 => bytes.first_chunk::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::answers;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let answer = Answer { kind: 0, flags: 0, sequence: 0, port: 0, payload: &bytes };
            let _ = (service_key(&answer), service(&answer), stats(&answer), timeouts(&answer));
            let _ = (destination(&answer, Family::V4), destination(&answer, Family::V6), destination_stats(&answer));
        }

        #[test]
        fn a_damaged_description_is_read_as_something_or_nothing(at in 0_usize..120, byte in any::<u8>()) {
            let mut messages = Messages::new();
            let key = ServiceKey::Mark { mark: 7, family: Family::V6 };
            let described = Service { scheduler: "rr".into(), flags: 1, persistence_seconds: 60 };
            describe_service(&mut messages, Command::NewService, &key, &described);
            let mut bytes = messages.bytes().to_vec();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            for answer in answers(&bytes) {
                let _ = (service_key(&answer), service(&answer), stats(&answer), destination(&answer, Family::V4));
            }
        }
    }

    #[test]
    fn a_service_reads_back_as_it_was_described() {
        let address: IpAddr = "10.96.0.1".parse().expect("an address");
        for key in [
            ServiceKey::Address { address, protocol: Protocol::Sctp, port: 9000 },
            ServiceKey::Mark { mark: 7, family: Family::V6 },
        ] {
            let described = Service { scheduler: "mh".into(), flags: flags::SCHEDULER_1, persistence_seconds: 60 };
            let mut messages = Messages::new();
            describe_service(&mut messages, Command::NewService, &key, &described);
            let answer = answers(messages.bytes()).next().expect("one message");
            assert_eq!(service(&answer), Some((key, described)));
            assert_eq!(service_key(&answer), Some(key));
        }
    }

    #[test]
    fn counters_do_not_wrap_at_32_bits() {
        let key = ServiceKey::Mark { mark: 7, family: Family::V4 };
        let mut messages = Messages::new();
        messages.begin_generic(Command::NewService as u8, VERSION, 0).nest(attribute::SERVICE);
        identify(&mut messages, &key);
        let large = |number: u16| (1 << 40) + u64::from(number);
        // The old counters, of which packets have 32 bits, stand beside.
        messages.nest(10).u32(1, 1).u32(2, 2).u32(3, 3).end().nest(service_attribute::STATS64);
        for number in 1..=10 {
            messages.attribute(number, &large(number).to_ne_bytes());
        }
        messages.end().end();
        let answer = answers(messages.bytes()).next().expect("one message");
        let (found, told) = stats(&answer).expect("a service with counters");
        let packets = (told.connections, told.packets_in, told.packets_out, told.packets_in_rate);
        assert_eq!((found, packets), (key, (large(1), large(2), large(3), large(7))));
    }

    #[test]
    fn a_destination_reads_back_as_it_was_described() {
        let key = ServiceKey::Mark { mark: 7, family: Family::V4 };
        for (address, forwarding) in [("10.244.1.1:80", Forwarding::Nat), ("[fd00:10:244::1]:0", Forwarding::Tunnel)] {
            let described =
                Destination { address: address.parse().expect("an address and a port"), weight: 3, forwarding };
            let mut messages = Messages::new();
            describe_destination(&mut messages, Command::NewDestination, &key, &described);
            let answer = answers(messages.bytes()).next().expect("one message");
            assert_eq!(destination(&answer, Family::V4), Some((described, Connections::default())));
        }
    }
}
