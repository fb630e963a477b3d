//! ipset's messages.
//!
//! Kernel: include/uapi/linux/netfilter/ipset/ip_set.h. Every request carries the protocol version; numbers
//! are in network order and say so, but for the line number of an element, which the kernel gives back as it
//! came. A set's own properties and its elements are in nests of the same attribute numbers.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Entry, IpPortNet, SetKind, SetName, SetSpec};
use crate::kernel::netlink::{Answer, Attributes, Messages};
use crate::net::{Family, Protocol};

/// The header that every netfilter message has: family, version, resource.
pub(super) const HEADER: usize = 4;

/// Commands, as netlink message types.
pub(super) mod command {
    const SUBSYSTEM: u16 = 6 << 8;
    pub const CREATE: u16 = SUBSYSTEM | 2;
    pub const DESTROY: u16 = SUBSYSTEM | 3;
    pub const SWAP: u16 = SUBSYSTEM | 6;
    pub const LIST: u16 = SUBSYSTEM | 7;
    pub const ADD: u16 = SUBSYSTEM | 9;
    pub const DELETE: u16 = SUBSYSTEM | 10;
    pub const TEST: u16 = SUBSYSTEM | 11;
    pub const TYPE: u16 = SUBSYSTEM | 13;
    /// Asks for the name of a set by its number.
    pub const BY_NUMBER: u16 = SUBSYSTEM | 15;
}

/// Attributes of a request or an answer.
pub(super) mod outer {
    pub const PROTOCOL: u16 = 1;
    pub const SET: u16 = 2;
    pub const TYPE: u16 = 3;
    /// The same number, where two sets are swapped.
    pub const OTHER_SET: u16 = 3;
    pub const REVISION: u16 = 4;
    pub const FAMILY: u16 = 5;
    pub const FLAGS: u16 = 6;
    pub const DATA: u16 = 7;
    pub const ELEMENTS: u16 = 8;
    pub const LINE: u16 = 9;
    pub const NUMBER: u16 = 11;
}

/// Attributes inside `DATA`.
mod inner {
    pub const ADDRESS: u16 = 1;
    pub const PREFIX_LENGTH: u16 = 3;
    pub const PORT: u16 = 4;
    pub const TIMEOUT: u16 = 6;
    pub const PROTOCOL: u16 = 7;
    pub const FLAGS: u16 = 8;
    pub const LINE: u16 = 9;
    pub const MAX_ELEMENTS: u16 = 19;
    /// The same numbers, of a set and of an element.
    pub const NETMASK: u16 = 20;
    pub const SECOND_ADDRESS: u16 = 20;
    pub const SECOND_PREFIX_LENGTH: u16 = 21;
    pub const COUNT: u16 = 24;
    /// Inside `ADDRESS`.
    pub const IPV4: u16 = 1;
    pub const IPV6: u16 = 2;
}

/// Flags of a listing: the parts of each set to return.
pub(super) const ONLY_NAMES: u32 = 1 << 1;
pub(super) const ONLY_HEADERS: u32 = 1 << 2;

/// On an element: it excludes what it matches.
const NO_MATCH: u32 = 1 << 2;
/// On a set: counters, comments, eviction, packet information.
const EXTENSIONS: u32 = 0b111_1000;

/// The version of the interface. Kernels speak it since 4.20.
const PROTOCOL: u8 = 7;

/// Room for one more element in a nest: the largest has two IPv6 addresses, port, protocol, prefix length and line.
pub(super) const LARGEST_ELEMENT: usize = 96;

/// Starts a request about a set; the empty name stands for all.
pub(super) fn begin<'m>(messages: &'m mut Messages, command: u16, set: &str) -> &'m mut Messages {
    messages.begin(command, 0).header(&[0; HEADER]).u8(outer::PROTOCOL, PROTOCOL);
    if !set.is_empty() {
        messages.text(outer::SET, set);
    }
    messages
}

/// Appends a request to create a set.
pub(super) fn create(messages: &mut Messages, name: &SetName, spec: SetSpec, revision: u8) {
    begin(messages, command::CREATE, &name.0)
        .text(outer::TYPE, type_name(spec.kind))
        .u8(outer::REVISION, revision)
        .u8(outer::FAMILY, family_number(spec.family))
        .nest(outer::DATA)
        .u32_be(Messages::network_order(inner::MAX_ELEMENTS), spec.max_elements);
    if spec.timeout {
        // By default its elements do not expire.
        messages.u32_be(Messages::network_order(inner::TIMEOUT), 0);
    }
    messages.end();
}

/// Appends a request for the revisions of a type that the kernel supports.
pub(super) fn ask_type(messages: &mut Messages, kind: SetKind, family: Family) {
    begin(messages, command::TYPE, "").text(outer::TYPE, type_name(kind)).u8(outer::FAMILY, family_number(family));
}

/// Appends an element; `line` comes back in an error.
pub(super) fn element(messages: &mut Messages, entry: &Entry, line: u32) {
    messages.nest(outer::DATA);
    match entry {
        Entry::Ip(one) => address(messages, inner::ADDRESS, *one),
        Entry::IpPort(one, protocol, number) => {
            address(messages, inner::ADDRESS, *one);
            port(messages, *protocol, *number);
        }
        Entry::Net(prefix) => {
            address(messages, inner::ADDRESS, prefix.addr());
            messages.u8(inner::PREFIX_LENGTH, prefix.prefix_len());
        }
        Entry::IpPortNet(entry) => {
            address(messages, inner::ADDRESS, entry.address);
            port(messages, entry.protocol, entry.port);
            address(messages, inner::SECOND_ADDRESS, entry.range.addr());
            messages.u8(inner::SECOND_PREFIX_LENGTH, entry.range.prefix_len());
        }
    }
    messages.u32(inner::LINE, line).end();
}

fn address(messages: &mut Messages, place: u16, address: IpAddr) {
    let kind = if address.is_ipv6() { inner::IPV6 } else { inner::IPV4 };
    messages.nest(place).address(Messages::network_order(kind), address).end();
}

fn port(messages: &mut Messages, protocol: Protocol, port: u16) {
    messages.u16_be(Messages::network_order(inner::PORT), port).u8(inner::PROTOCOL, protocol.number());
}

/// Returns the set name of an answer.
pub(super) fn set_name(answer: &Answer<'_>) -> Option<SetName> {
    Some(SetName(answer.attributes(HEADER).get(outer::SET)?.text()?.into()))
}

/// Returns the properties of the set in an answer; `None` where it only carries elements.
pub(super) fn set_spec(answer: &Answer<'_>) -> Option<SetSpec> {
    let attributes = answer.attributes(HEADER);
    let kind = kind_of(attributes.get(outer::TYPE)?.text()?);
    let family = family_of(attributes.get(outer::FAMILY)?.u8()?);
    let properties = attributes.get(outer::DATA)?.attributes();
    let number = |kind| properties.get(kind).and_then(|attribute| attribute.u32_be());
    let timeout = number(inner::TIMEOUT);
    let is_plain = properties.get(inner::NETMASK).is_none()
        && number(inner::FLAGS).unwrap_or(0) & EXTENSIONS == 0
        && timeout.unwrap_or(0) == 0;
    Some(SetSpec {
        kind: if is_plain && family.is_some() { kind } else { SetKind::Other },
        family: family.unwrap_or(Family::V4),
        max_elements: number(inner::MAX_ELEMENTS).unwrap_or(0),
        timeout: timeout.is_some(),
    })
}

/// Returns the number of elements in the set of an answer; `None` where the kernel does not report it.
pub(super) fn count(answer: &Answer<'_>) -> Option<usize> {
    let properties = answer.attributes(HEADER).get(outer::DATA)?.attributes();
    usize::try_from(properties.get(inner::COUNT)?.u32_be()?).ok()
}

/// Returns the elements of an answer. Those with a timeout, with `nomatch`, or of a form that we never write are
/// skipped.
pub(super) fn entries(answer: &Answer<'_>) -> Vec<Entry> {
    let elements = answer.attributes(HEADER).get(outer::ELEMENTS).map(|elements| elements.attributes());
    elements.into_iter().flatten().filter_map(|element| entry(&element.attributes())).collect()
}

fn entry(attributes: &Attributes<'_>) -> Option<Entry> {
    let number = |kind| attributes.get(kind).and_then(|attribute| attribute.u32_be()).unwrap_or(0);
    if number(inner::TIMEOUT) != 0 || number(inner::FLAGS) & NO_MATCH != 0 {
        return None;
    }
    let address: IpAddr = attributes.get(inner::ADDRESS)?.attributes().next()?.address()?;
    if let Some(port) = attributes.get(inner::PORT) {
        let protocol = Protocol::from_number(attributes.get(inner::PROTOCOL)?.u8()?)?;
        let port = port.u16_be()?;
        let Some(second) = attributes.get(inner::SECOND_ADDRESS) else {
            return Some(Entry::IpPort(address, protocol, port));
        };
        let range =
            IpNet::new(second.attributes().next()?.address()?, attributes.get(inner::SECOND_PREFIX_LENGTH)?.u8()?);
        return Some(Entry::IpPortNet(Box::new(IpPortNet { address, protocol, port, range: range.ok()? })));
    }
    match attributes.get(inner::PREFIX_LENGTH) {
        Some(length) => Some(Entry::Net(IpNet::new(address, length.u8()?).ok()?)),
        None => Some(Entry::Ip(address)),
    }
}

/// The highest revision of a type that the kernel has.
pub(super) fn highest_revision(answer: &Answer<'_>) -> Option<u8> {
    answer.attributes(HEADER).get(outer::REVISION)?.u8()
}

/// The line number that comes back with a refused packet of elements: that of the element at fault.
pub(super) fn line_at_fault(request: &[u8]) -> Option<u32> {
    Attributes::new(request.get(HEADER..)?).get(outer::LINE)?.u32()
}

fn type_name(kind: SetKind) -> &'static str {
    match kind {
        SetKind::HashIp => "hash:ip",
        SetKind::HashIpPort => "hash:ip,port",
        SetKind::HashNet => "hash:net",
        SetKind::HashIpPortNet => "hash:ip,port,net",
        // No kernel has it, so asking for it is refused.
        SetKind::Other => "other",
    }
}

fn kind_of(name: &str) -> SetKind {
    let known = [SetKind::HashIp, SetKind::HashIpPort, SetKind::HashNet, SetKind::HashIpPortNet];
    known.into_iter().find(|kind| type_name(*kind) == name).unwrap_or(SetKind::Other)
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn family_of(number: u8) -> Option<Family> {
    Family::BOTH.into_iter().find(|family| family_number(*family) == number)
}
