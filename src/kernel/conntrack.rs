//! Connection tracking: deletion of entries, and the connections that there are and their marks ([`connections`]).
//!
//! A connectionless client that keeps its port keeps its entry, and with it a backend that is gone, for as long as
//! it sends. Forgetting the entry sends its next packet to a backend that is there.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_CTNETLINK` (include/uapi/linux/netfilter/nfnetlink_conntrack.h). The table
//! is listed once for each family and protocol that is asked for. Kernels since 5.8 leave out the other
//! protocols by themselves; older ones send everything, so every entry is compared here in any case.
//! Entries are deleted by the tuple of their original direction, as it was listed, and by their number, so that
//! a new flow with the same tuple is not hit.

mod connections;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::Error;
use super::netlink::{Answer, Attributes, Bus, Fault, Messages, Socket};
use crate::net::{Family, Protocol};

pub use connections::{Connection, ConnectionFilter, Tracked as TrackedConnection, Transport, connections, set_mark};

/// Flows that were sent to one address and translated to one backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flows {
    pub protocol: Protocol,
    /// The destination of the original direction: the service address and port.
    pub original_destination: SocketAddr,
    /// The source of the reply direction: the backend.
    pub reply_source: SocketAddr,
}

/// The header that every netfilter message has: family, version, resource.
const HEADER: usize = 4;
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;

/// Attributes of an entry.
mod entry {
    pub const ORIGINAL: u16 = 1;
    pub const REPLY: u16 = 2;
    pub const MARK: u16 = 8;
    pub const NUMBER: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const MARK_MASK: u16 = 21;
    pub const FILTER: u16 = 25;
}

/// Attributes of a direction.
mod tuple {
    pub const ADDRESSES: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    /// Inside `ADDRESSES`.
    pub const IPV4_SOURCE: u16 = 1;
    pub const IPV4_DESTINATION: u16 = 2;
    pub const IPV6_SOURCE: u16 = 3;
    pub const IPV6_DESTINATION: u16 = 4;
    /// Inside `PROTOCOL`.
    pub const NUMBER: u16 = 1;
    pub const SOURCE_PORT: u16 = 2;
    pub const DESTINATION_PORT: u16 = 3;
}

/// Inside `FILTER`: the fields of the original direction that are compared.
const ORIGINAL_FIELDS: u16 = 1;
const REPLY_FIELDS: u16 = 2;
const FIELD_PROTOCOL: u32 = 1 << 3;

const NESTED: u16 = 0x8000;

/// Flows whose entries may remain: listing them or deleting one was refused. Every other flow is forgotten.
#[derive(Debug)]
pub struct Remaining {
    /// Number of entries deleted.
    pub deleted: usize,
    /// Sorted, each once.
    pub flows: Vec<Flows>,
    /// The first reason.
    pub error: Error,
}

/// The parts of an entry that its deletion needs.
#[derive(Debug)]
struct Tracked {
    flow: Flows,
    family: Family,
    /// The original direction, as the kernel wrote it.
    original: Vec<u8>,
    number: Option<u32>,
    zone: Option<u16>,
}

/// Deletes entries in the network namespace of the thread that does so first. Its socket stays open: the kernel lets changes of
/// rules wait while it closes one of netfilter.
#[derive(Debug, Default)]
pub struct Forgetter(Option<Socket>);

impl Forgetter {
    /// Deletes the entries of these flows; returns their number. Flows that are not tracked are fine.
    ///
    /// # Errors
    /// The kernel refused to list flows or to delete an entry.
    pub fn forget(&mut self, flows: &[Flows]) -> Result<usize, Remaining> {
        if flows.is_empty() {
            return Ok(0);
        }
        let flows: BTreeSet<Flows> = flows.iter().copied().collect();
        let mut outcome = Outcome::default();
        match self.0.take().map_or_else(|| Socket::open(Bus::Netfilter), Ok) {
            Ok(mut socket) => {
                forget_through(&mut socket, &flows, &mut outcome);
                // After an error the next ones begin with a new socket.
                self.0 = outcome.error.is_none().then_some(socket);
            }
            Err(error) => outcome.fail(flows, error),
        }
        let Outcome { deleted, remaining, error } = outcome;
        match error {
            Some(error) => Err(Remaining { deleted, flows: remaining.into_iter().collect(), error }),
            None => Ok(deleted),
        }
    }
}

/// Result so far.
#[derive(Default)]
struct Outcome {
    deleted: usize,
    remaining: BTreeSet<Flows>,
    error: Option<Error>,
}

impl Outcome {
    fn fail(&mut self, flows: impl IntoIterator<Item = Flows>, error: Error) {
        self.remaining.extend(flows);
        self.error.get_or_insert(error);
    }
}

fn forget_through(socket: &mut Socket, flows: &BTreeSet<Flows>, outcome: &mut Outcome) {
    let found = list(flows, outcome, |family, protocol| {
        socket.dump(&mut listing(family, protocol), |answer| tracked(answer, family, flows))
    });
    let mut messages = Messages::new();
    found.iter().for_each(|tracked| delete(&mut messages, tracked));
    let owners: Vec<Flows> = found.iter().map(|tracked| tracked.flow).collect();
    match socket.batch(&mut messages) {
        Ok(refusals) => {
            outcome.deleted = owners.len() - refusals.len();
            for refusal in refusals.into_iter().filter(|refusal| refusal.errno != libc::ENOENT) {
                let flow = owners.get(refusal.message).copied();
                outcome.fail(flow, Error::new("forget tracked flows", "", refusal.into()));
            }
        }
        Err(fault) => outcome.fail(owners, Error::new("forget tracked flows", "", fault.into())),
    }
}

/// Lists the entries of each family and protocol by `dump`. A kernel that did not answer is not asked for the others: each time
/// would take as long.
fn list(
    flows: &BTreeSet<Flows>,
    outcome: &mut Outcome,
    mut dump: impl FnMut(Family, Protocol) -> Result<Vec<Tracked>, Fault>,
) -> Vec<Tracked> {
    let kind = |flow: &Flows| (Family::from(flow.original_destination.ip()), flow.protocol);
    let kinds: BTreeSet<(Family, Protocol)> = flows.iter().map(kind).collect();
    let (mut found, mut is_silent) = (Vec::new(), false);
    for (family, protocol) in kinds {
        match if is_silent { Err(Fault::Lost) } else { dump(family, protocol) } {
            Ok(listed) => found.extend(listed),
            Err(fault) => {
                is_silent |= matches!(fault, Fault::Lost);
                let of_kind = flows.iter().filter(|flow| kind(flow) == (family, protocol)).copied();
                outcome.fail(of_kind, Error::new("list tracked flows", format!("{family} {protocol}"), fault.into()));
            }
        }
    }
    found
}

impl fmt::Display for Remaining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

fn listing(family: Family, protocol: Protocol) -> Messages {
    let mut message = Messages::new();
    message.begin(GET, 0).header(&[family_number(family), 0, 0, 0]);
    message.nest(entry::ORIGINAL).nest(tuple::PROTOCOL).u8(tuple::NUMBER, protocol.number()).end().end();
    message.nest(entry::FILTER).u32(ORIGINAL_FIELDS, FIELD_PROTOCOL).u32(REPLY_FIELDS, 0).end();
    message
}

fn delete(messages: &mut Messages, tracked: &Tracked) {
    messages.begin(DELETE, 0).header(&[family_number(tracked.family), 0, 0, 0]);
    messages.attribute(entry::ORIGINAL | NESTED, &tracked.original);
    if let Some(number) = tracked.number {
        messages.u32_be(entry::NUMBER, number);
    }
    if let Some(zone) = tracked.zone {
        messages.u16_be(entry::ZONE, zone);
    }
}

/// Returns the entry if it belongs to one of the flows.
fn tracked(answer: &Answer<'_>, family: Family, flows: &BTreeSet<Flows>) -> Option<Tracked> {
    let attributes = answer.attributes(HEADER);
    let original = attributes.get(entry::ORIGINAL)?;
    let [_, (protocol, original_destination)] = ends(&original.attributes())?;
    let [(_, reply_source), _] = ends(&attributes.get(entry::REPLY)?.attributes())?;
    let flow = Flows { protocol, original_destination, reply_source };
    if !flows.contains(&flow) {
        return None;
    }
    Some(Tracked {
        flow,
        family,
        original: original.value.to_vec(),
        number: attributes.get(entry::NUMBER).and_then(|number| number.u32_be()),
        zone: attributes.get(entry::ZONE).and_then(|zone| zone.u16_be()),
    })
}

/// The source and the destination of a direction.
fn ends(direction: &Attributes<'_>) -> Option<[(Protocol, SocketAddr); 2]> {
    let addresses = direction.get(tuple::ADDRESSES)?.attributes();
    let ports = direction.get(tuple::PROTOCOL)?.attributes();
    let protocol = Protocol::from_number(ports.get(tuple::NUMBER)?.u8()?)?;
    let end = |v4: u16, v6: u16, port: u16| {
        let address: IpAddr = addresses.get(v4).or_else(|| addresses.get(v6))?.address()?;
        Some((protocol, SocketAddr::new(address, ports.get(port)?.u16_be()?)))
    };
    Some([
        end(tuple::IPV4_SOURCE, tuple::IPV6_SOURCE, tuple::SOURCE_PORT)?,
        end(tuple::IPV4_DESTINATION, tuple::IPV6_DESTINATION, tuple::DESTINATION_PORT)?,
    ])
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let answer = Answer { kind: GET, flags: 0, sequence: 1, port: 0, payload: &bytes };
            prop_assert!(tracked(&answer, Family::V4, &BTreeSet::new()).is_none());
            let _ = ends(&Attributes::new(&bytes));
        }
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_asked_once_and_one_that_refuses_for_each_family() {
        let flow = |address: &str| Flows {
            protocol: Protocol::Udp,
            original_destination: address.parse().expect("an address and a port"),
            reply_source: address.parse().expect("an address and a port"),
        };
        let flows = BTreeSet::from([flow("10.96.0.1:53"), flow("[2001:db8::1]:53")]);
        for (fault, times) in [(Fault::Lost, 1), (Fault::Malformed("test"), 2)] {
            let (mut outcome, mut asked) = (Outcome::default(), 0);
            let mut fault = Some(fault);
            list(&flows, &mut outcome, |_, _| {
                asked += 1;
                Err(fault.take().unwrap_or(Fault::Malformed("test")))
            });
            assert_eq!((outcome.remaining, asked), (flows.clone(), times));
        }
    }
}
