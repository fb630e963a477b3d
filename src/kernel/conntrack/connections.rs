//! Connections as they are tracked: read for questions, and marked where policies deny them.
//!
//! What is left out: entries that another one expects (an FTP data connection: rules accept it as related, whatever the
//! policies say), TCP connections that are over (`TIME_WAIT`, `CLOSE`), protocols without ports other than ICMP, and entries of
//! another zone than the default one: those are of other programs (Open vSwitch, say), which may have entries for the same packets.

use std::net::IpAddr;

use super::super::Error;
use super::super::netlink::{Answer, Attributes, Messages, Socket};
use super::{GET, HEADER, NESTED, NEW, entry, family_number, tuple};
use crate::net::{Family, Protocol};

/// One tracked connection, by the addresses of its first packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Connection {
    pub source: IpAddr,
    /// Before translation: the address of a Service, say.
    pub destination: IpAddr,
    /// After translation: who answers.
    pub replier: IpAddr,
    pub transport: Transport,
}

/// Protocol and ports of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    Ports {
        protocol: Protocol,
        source: u16,
        /// Before translation.
        destination: u16,
        /// After translation.
        replier: u16,
    },
    /// ICMP or ICMPv6; the type of the first packet.
    Icmp { kind: u8 },
}

/// A connection, with what a change of its mark needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tracked {
    pub connection: Connection,
    /// `ct mark`, which rules can ask for.
    pub mark: u32,
    /// The original direction, as the kernel wrote it.
    original: Box<[u8]>,
}

/// Decides by a connection and its mark whether it is listed.
pub type ConnectionFilter<'a> = &'a mut dyn FnMut(&Connection, u32) -> bool;

impl Tracked {
    /// Returns an entry as the kernel lists it, by the bytes of its original direction.
    pub fn new(connection: Connection, original: Box<[u8]>) -> Tracked {
        Tracked { connection, mark: 0, original }
    }
}

/// Protocol numbers of ICMP (IANA).
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// TCP states from this one on are those of connections that are over (`TCP_CONNTRACK_TIME_WAIT`).
const TCP_TIME_WAIT: u8 = 7;

/// Attributes of an entry and of a direction that only this file reads.
const PROTOCOL_STATE: u16 = 4;
const MASTER: u16 = 14;
/// The zone of an entry for one direction only, inside that direction.
const DIRECTION_ZONE: u16 = 3;
const TCP_STATE: u16 = 1;
const ICMP_KIND: u16 = 5;
const ICMP_V6_KIND: u16 = 8;

/// Lists the connections of a family in the socket's network namespace that are wanted; with `marked` the
/// kernel passes on only those with these bits in their mark.
///
/// # Errors
/// The kernel refused to list them, or there is no connection tracking.
pub fn connections(
    socket: &mut Socket,
    family: Family,
    marked: Option<u32>,
    wanted: ConnectionFilter<'_>,
) -> Result<Vec<Tracked>, Error> {
    let mut message = Messages::new();
    message.begin(GET, 0).header(&[family_number(family), 0, 0, 0]);
    if let Some(bits) = marked {
        message.u32_be(entry::MARK, bits).u32_be(entry::MARK_MASK, bits);
    }
    let listed = socket.dump(&mut message, |answer| read(answer, wanted));
    listed.map_err(|fault| Error::new("list tracked connections", family.to_string(), fault.into()))
}

/// Sets bits of the mark of these connections, or clears them; returns the number of connections that still exist. A connection
/// that began meanwhile with the same addresses and ports is taken for the one that was listed.
///
/// # Errors
/// The kernel refused to change an entry; the others are changed.
pub fn set_mark(socket: &mut Socket, connections: &[Tracked], bits: u32, set: bool) -> Result<usize, Error> {
    let mut messages = Messages::new();
    for tracked in connections {
        let family = family_number(Family::from(tracked.connection.source));
        // Without NLM_F_CREATE only an entry that exists is changed.
        messages.begin(NEW, 0).header(&[family, 0, 0, 0]).attribute(entry::ORIGINAL | NESTED, &tracked.original);
        messages.u32_be(entry::MARK, if set { bits } else { 0 }).u32_be(entry::MARK_MASK, bits);
    }
    let error = |cause| Error::new("mark tracked connections", "", cause);
    let refusals = socket.batch(&mut messages).map_err(|fault| error(fault.into()))?;
    let gone = refusals.iter().filter(|refusal| refusal.errno == libc::ENOENT).count();
    match refusals.into_iter().find(|refusal| refusal.errno != libc::ENOENT) {
        Some(refusal) => Err(error(refusal.into())),
        None => Ok(connections.len() - gone),
    }
}

fn read(answer: &Answer<'_>, wanted: ConnectionFilter<'_>) -> Option<Tracked> {
    let attributes = answer.attributes(HEADER);
    if attributes.get(MASTER).is_some() || attributes.get(entry::ZONE).is_some() || is_over(&attributes) {
        return None;
    }
    let (original, reply) = (attributes.get(entry::ORIGINAL)?, attributes.get(entry::REPLY)?);
    if [&original, &reply].iter().any(|direction| direction.attributes().get(DIRECTION_ZONE).is_some()) {
        return None;
    }
    let connection = connection(&original.attributes(), &reply.attributes())?;
    let mark = attributes.get(entry::MARK).and_then(|mark| mark.u32_be()).unwrap_or(0);
    wanted(&connection, mark).then(|| Tracked { connection, mark, original: original.value.into() })
}

fn is_over(attributes: &Attributes<'_>) -> bool {
    let of_tcp = attributes.get(PROTOCOL_STATE).and_then(|state| state.attributes().get(TCP_STATE));
    let state = of_tcp.and_then(|state| state.attributes().get(TCP_STATE)).and_then(|state| state.u8());
    state.is_some_and(|state| state >= TCP_TIME_WAIT)
}

fn connection(original: &Attributes<'_>, reply: &Attributes<'_>) -> Option<Connection> {
    let address = |direction: &Attributes<'_>, v4, v6| {
        let addresses = direction.get(tuple::ADDRESSES)?.attributes();
        addresses.get(v4).or_else(|| addresses.get(v6))?.address()
    };
    let protocol = original.get(tuple::PROTOCOL)?.attributes();
    let transport = match protocol.get(tuple::NUMBER)?.u8()? {
        ICMP => Transport::Icmp { kind: protocol.get(ICMP_KIND)?.u8()? },
        ICMP_V6 => Transport::Icmp { kind: protocol.get(ICMP_V6_KIND)?.u8()? },
        number => Transport::Ports {
            protocol: Protocol::from_number(number)?,
            source: protocol.get(tuple::SOURCE_PORT)?.u16_be()?,
            destination: protocol.get(tuple::DESTINATION_PORT)?.u16_be()?,
            replier: reply.get(tuple::PROTOCOL)?.attributes().get(tuple::SOURCE_PORT)?.u16_be()?,
        },
    };
    Some(Connection {
        source: address(original, tuple::IPV4_SOURCE, tuple::IPV6_SOURCE)?,
        destination: address(original, tuple::IPV4_DESTINATION, tuple::IPV6_DESTINATION)?,
        replier: address(reply, tuple::IPV4_SOURCE, tuple::IPV6_SOURCE)?,
        transport,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&Answer { kind: GET, flags: 0, sequence: 1, port: 0, payload: &bytes }, &mut |_, _| true);
            let _ = connection(&Attributes::new(&bytes), &Attributes::new(&bytes));
        }
    }

    /// The attributes of an entry, as the kernel writes them.
    fn entry_of(state: Option<u8>, has_master: bool) -> Messages {
        let mut message = Messages::new();
        message.begin(0, 0).header(&[2, 0, 0, 0]);
        for (direction, [source, destination], ports) in [
            (entry::ORIGINAL, [[10, 244, 1, 7], [10, 96, 0, 1]], [40000, 443]),
            (entry::REPLY, [[10, 244, 2, 9], [10, 244, 1, 7]], [6443, 40000_u16]),
        ] {
            message.nest(direction).nest(tuple::ADDRESSES);
            message
                .address(tuple::IPV4_SOURCE, source.into())
                .address(tuple::IPV4_DESTINATION, destination.into())
                .end();
            message.nest(tuple::PROTOCOL).u8(tuple::NUMBER, 6);
            message.u16_be(tuple::SOURCE_PORT, ports[0]).u16_be(tuple::DESTINATION_PORT, ports[1]).end().end();
        }
        if let Some(state) = state {
            message.nest(PROTOCOL_STATE).nest(TCP_STATE).u8(TCP_STATE, state).end().end();
        }
        if has_master {
            message.nest(MASTER).end();
        }
        message
    }

    fn found(message: &Messages) -> Option<Connection> {
        let payload = &message.bytes()[16..];
        let answer = Answer { kind: GET, flags: 0, sequence: 1, port: 0, payload };
        read(&answer, &mut |_, _| true).map(|tracked| tracked.connection)
    }

    #[test]
    fn a_connection_is_known_by_who_began_it_and_who_answers() {
        let transport = Transport::Ports { protocol: Protocol::Tcp, source: 40000, destination: 443, replier: 6443 };
        let expected = Connection {
            source: [10, 244, 1, 7].into(),
            destination: [10, 96, 0, 1].into(),
            replier: [10, 244, 2, 9].into(),
            transport,
        };
        assert_eq!(found(&entry_of(Some(3), false)), Some(expected));
        assert_eq!(found(&entry_of(None, false)), Some(expected));
    }

    #[test]
    fn connections_that_are_over_or_belong_to_another_are_left_out() {
        assert_eq!(found(&entry_of(Some(TCP_TIME_WAIT), false)), None);
        assert_eq!(found(&entry_of(Some(3), true)), None);
        let mut in_a_zone = entry_of(Some(3), false);
        in_a_zone.u16_be(entry::ZONE, 7);
        assert_eq!(found(&in_a_zone), None);
    }
}
