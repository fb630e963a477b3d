//! Neighbours and forwarding entries of other nodes on `vxlan` devices, over netlink.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::{Entry, EntryKey, gateway};
use crate::kernel::Error;
use crate::kernel::link::{LinkName, Names, no_device};
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Socket, failed_steps, flag};
use crate::net::{Family, LinkAddress};
use crate::reconcile::{Failure, Phase, Step, Target};

/// Neighbours and forwarding entries on some devices of one network namespace.
pub struct Entries {
    socket: Socket,
    links: Vec<LinkName>,
}

const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;
/// Length of `struct ndmsg`.
const HEADER: usize = 12;
const DESTINATION: u16 = 1;
const LINK_ADDRESS: u16 = 2;
/// `NUD_PERMANENT`.
const PERMANENT: u16 = 0x80;
/// `NTF_SELF`: an entry of the device itself and not of its bridge.
const SELF: u8 = 0x02;
/// The family of forwarding entries.
const AF_BRIDGE: u8 = 7;

/// A neighbour or a forwarding entry, as a message has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Record {
    is_forwarding: bool,
    device: u32,
    destination: IpAddr,
    address: LinkAddress,
}

impl Entries {
    /// Opens a socket in the network namespace of the calling thread, for these devices.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(links: impl IntoIterator<Item = LinkName>) -> Result<Entries, Error> {
        Ok(Entries { socket: Socket::open(Bus::Route)?, links: links.into_iter().collect() })
    }

    /// Lists the permanent records of one address family on all devices.
    fn list(&mut self, family: u8) -> Result<Vec<Record>, Error> {
        let mut message = Messages::new();
        message.begin(GET_NEIGHBOUR, 0).header(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        match self.socket.dump(&mut message, record) {
            Ok(found) => Ok(found),
            // A kernel without IPv6.
            Err(Fault::Refused(refusal)) if matches!(refusal.errno, libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {
                Ok(Vec::new())
            }
            Err(fault) => Err(Error::new("list neighbours", "", fault.into())),
        }
    }
}

impl Target for Entries {
    type Key = EntryKey;
    type Value = Entry;
    type Error = Error;

    fn name(&self) -> &'static str {
        "overlay entries"
    }

    fn read(&mut self) -> Result<BTreeMap<EntryKey, Entry>, Error> {
        let mut names = Names::default();
        let links: Vec<(LinkName, u32)> = self
            .links
            .iter()
            .cloned()
            .filter_map(|link| {
                let number = names.number(&self.socket, &link)?;
                Some((link, number))
            })
            .collect();
        let mut found: BTreeMap<EntryKey, Entry> = BTreeMap::new();
        if links.is_empty() {
            return Ok(found);
        }
        let on =
            |record: &Record| links.iter().find(|(_, number)| *number == record.device).map(|(link, _)| link.clone());
        let forwarding = self.list(AF_BRIDGE)?;
        for record in forwarding {
            let Some(link) = on(&record) else { continue };
            let key = EntryKey { link, remote: record.destination };
            found.entry(key).or_default().forwarded = Some(record.address);
        }
        // A gateway of IPv6 says whose it is by the node that has it. Each takes a hash, so it is made once.
        let owners: HashMap<(LinkName, IpAddr), IpAddr> =
            found.keys().map(|key| ((key.link.clone(), gateway(key.remote)), key.remote)).collect();
        for family in Family::BOTH {
            for record in self.list(family.number())? {
                let Some(link) = on(&record) else { continue };
                let owner = owners.get(&(link.clone(), record.destination)).copied();
                // One without a forwarding entry is written anew with it.
                let Some(remote) = owner.or(Some(record.destination).filter(IpAddr::is_ipv4)) else { continue };
                found.entry(EntryKey { link, remote }).or_default().neighbour = Some(record.address);
            }
        }
        Ok(found)
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, EntryKey, Entry>]) -> Vec<Failure<Error>> {
        let (mut messages, mut owners, mut failures) = (Messages::new(), Vec::new(), Vec::new());
        let mut names = Names::default();
        for (index, step) in steps.iter().enumerate() {
            let operation = operation(step);
            let Some(device) = names.number(&self.socket, &step.key.link) else {
                // Entries go with their device.
                if step.want.is_some() {
                    let error = no_device(operation, step.key.to_string(), &step.key.link);
                    failures.push(Failure { step: index, error });
                }
                continue;
            };
            let (have, want) = (step.have.copied().unwrap_or_default(), step.want.copied().unwrap_or_default());
            let records = |entry: Entry| records(device, step.key.remote, entry);
            for (have, want) in records(have).into_iter().zip(records(want)) {
                // A neighbour's link address is replaced; a forwarding entry is one for each link address.
                let goes =
                    have.filter(|have| want.is_none_or(|want| have.is_forwarding && have.address != want.address));
                if let Some(record) = want.filter(|_| have != want) {
                    write(&mut messages, NEW_NEIGHBOUR, record);
                    owners.push(index);
                }
                if let Some(record) = goes {
                    write(&mut messages, DELETE_NEIGHBOUR, record);
                    owners.push(index);
                }
            }
        }
        let refused = self.socket.batch(&mut messages);
        failures.extend(failed_steps(refused, &owners, |index, cause| {
            let step = steps.get(index).expect("a failure belongs to a step");
            Error::new(operation(step), step.key.to_string(), cause)
        }));
        failures
    }
}

/// The forwarding entry and the neighbour of a node.
fn records(device: u32, remote: IpAddr, entry: Entry) -> [Option<Record>; 2] {
    let forwarding =
        entry.forwarded.map(|address| Record { is_forwarding: true, device, destination: remote, address });
    let destination = gateway(remote);
    let neighbour = entry.neighbour.map(|address| Record { is_forwarding: false, device, destination, address });
    [forwarding, neighbour]
}

fn operation(step: &Step<'_, EntryKey, Entry>) -> &'static str {
    match (step.have, step.want) {
        (None, _) => "add overlay entry",
        (_, None) => "delete overlay entry",
        _ => "replace overlay entry",
    }
}

// ip neigh replace|del ADDRESS lladdr LINK_ADDRESS dev DEVICE nud permanent
// bridge fdb replace|del LINK_ADDRESS dev DEVICE dst ADDRESS self permanent
fn write(messages: &mut Messages, command: u16, record: Record) {
    let Record { is_forwarding, device, destination, address: LinkAddress(octets) } = record;
    let flags = if command == NEW_NEIGHBOUR { flag::CREATE | flag::REPLACE } else { 0 };
    let [d0, d1, d2, d3] = device.to_ne_bytes();
    let [s0, s1] = PERMANENT.to_ne_bytes();
    let (family, of_device) = if is_forwarding { (AF_BRIDGE, SELF) } else { (Family::from(destination).number(), 0) };
    messages.begin(command, flags).header(&[family, 0, 0, 0, d0, d1, d2, d3, s0, s1, of_device, 0]);
    messages.address(DESTINATION, destination).attribute(LINK_ADDRESS, &octets);
}

/// The record that an answer describes; `None` for one that is not permanent, and for a forwarding entry to everybody.
fn record(answer: &Answer<'_>) -> Option<Record> {
    if answer.kind != NEW_NEIGHBOUR {
        return None;
    }
    let [family, _, _, _, d0, d1, d2, d3, s0, s1, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let address = <[u8; 6]>::try_from(attributes.get(LINK_ADDRESS)?.value).ok()?;
    let is_permanent = u16::from_ne_bytes([s0, s1]) & PERMANENT != 0;
    (is_permanent && address != [0; 6]).then_some(Record {
        is_forwarding: family == AF_BRIDGE,
        device: u32::from_ne_bytes([d0, d1, d2, d3]),
        destination: attributes.get(DESTINATION)?.address()?,
        address: LinkAddress(address),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::answers;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = record(&Answer { kind: NEW_NEIGHBOUR, flags: 0, sequence: 0, port: 0, payload: &bytes });
        }
    }

    #[test]
    fn records_read_back_as_they_were_written() {
        for remote in ["192.0.2.2", "2001:db8::2"] {
            let remote: IpAddr = remote.parse().expect("an address");
            for record in records(9, remote, Entry::of(remote)).into_iter().flatten() {
                let mut messages = Messages::new();
                write(&mut messages, NEW_NEIGHBOUR, record);
                let bytes = messages.bytes().to_vec();
                let read: Vec<_> = answers(&bytes).filter_map(|answer| super::record(&answer)).collect();
                assert_eq!(read, [record]);
            }
        }
    }
}
