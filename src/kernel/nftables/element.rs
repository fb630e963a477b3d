//! Elements of sets and maps, and the types of their fields, as the kernel has them.
//!
//! The kernel knows only how long a key is. What its fields are, `nft` keeps in numbers of its own (`NFTA_SET_KEY_TYPE`: 6 bits for
//! each field, the last one lowest) and in userdata (the order of their bytes), and prints elements by them. Every field
//! begins at a multiple of 4 bytes.
//!
//! A range is two elements: its first value, and the value behind its last one, marked as an end. The last value of all has nothing
//! behind it, so there a range has no end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::decode;
use super::encode::{link, octets, plain};
use super::expression::{read_verdict, write_verdict};
use super::object::{Content, Fields, Key, Kind, Name, SetSpec};
use super::wire::{ITEM, data, element, set};
use crate::kernel::netlink::{Attributes, Messages};
use crate::net::{Family, PortRange, Protocol};

/// The numbers of `nft` for types of fields (enum datatypes).
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const ETHER: u32 = 9;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;
const MARK: u32 = 19;
const ADDRESS_TYPE: u32 = 38;
const LINK: u32 = 41;

/// In the userdata of a set: the order of bytes of keys and of values; whether values are ranges.
const KEY_ORDER: u8 = 0;
const DATA_ORDER: u8 = 1;
const DATA_RANGES: u8 = 6;
/// Orders of bytes: several fields have none of their own.
const MIXED: u32 = 0;
const MACHINE: u32 = 1;
const NETWORK: u32 = 2;

/// Properties of a set as the kernel has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Description {
    pub flags: u32,
    pub key_type: u32,
    pub key_length: u32,
    /// Type and length of values.
    pub data: Option<(u32, u32)>,
    /// The largest number of elements, where there is one.
    pub size: Option<u32>,
}

const ALL_FIELDS: [Fields; 15] = [
    Fields::Address(Family::V4),
    Fields::Address(Family::V6),
    Fields::Addresses(Family::V4),
    Fields::Addresses(Family::V6),
    Fields::Service(Family::V4),
    Fields::Service(Family::V6),
    Fields::ServiceSource(Family::V4),
    Fields::ServiceSource(Family::V6),
    Fields::ProtocolPort,
    Fields::Port,
    Fields::Mark,
    Fields::Link,
    Fields::LinkEther,
    Fields::LinkAddress(Family::V4),
    Fields::LinkAddress(Family::V6),
];

impl Description {
    pub fn of(spec: SetSpec) -> Description {
        let (key_type, key_length) = key_type(spec.fields);
        let data = match spec.kind {
            Kind::Set => None,
            Kind::Verdicts => Some((set::VERDICTS, 0)),
            Kind::Marks => Some((MARK, 4)),
        };
        let map = if data.is_some() { set::MAP } else { 0 };
        let interval = if spec.intervals { set::INTERVAL } else { 0 };
        Description { flags: map | interval, key_type, key_length, data, size: None }
    }

    /// The set of ours that looks like this; `None` for one that we never make.
    pub fn spec(&self) -> Option<SetSpec> {
        let fields = ALL_FIELDS.into_iter().find(|fields| key_type(*fields) == (self.key_type, self.key_length))?;
        let kind = match self.data {
            None => Kind::Set,
            Some((set::VERDICTS, _)) => Kind::Verdicts,
            Some((MARK, 4)) => Kind::Marks,
            Some(_) => return None,
        };
        let intervals = self.flags & set::INTERVAL != 0;
        let spec = SetSpec { fields, kind, intervals };
        (Description::of(spec).flags == self.flags && self.size.is_none()).then_some(spec)
    }

    /// The anonymous set that a rule for broadcasts and multicasts looks into.
    pub fn many() -> Description {
        let flags = set::ANONYMOUS | set::CONSTANT;
        Description { flags, key_type: ADDRESS_TYPE, key_length: 4, data: None, size: Some(2) }
    }

    /// The properties that `nft` has to know to print the elements.
    pub fn userdata(&self) -> Vec<u8> {
        let order = match self.key_type {
            LINK | ADDRESS_TYPE | MARK => MACHINE,
            IPV4 | IPV6 | PORT => NETWORK,
            _ => MIXED,
        };
        let mut userdata = Vec::with_capacity(18);
        let mut note = |kind: u8, value: u32| {
            userdata.extend_from_slice(&[kind, 4]);
            userdata.extend_from_slice(&value.to_ne_bytes());
        };
        note(KEY_ORDER, order);
        if let Some((kind, _)) = self.data {
            note(DATA_ORDER, if kind == MARK { MACHINE } else { MIXED });
            note(DATA_RANGES, 0);
        }
        userdata
    }
}

/// The number of a key's type, and its length.
fn key_type(fields: Fields) -> (u32, u32) {
    let address = |family| match family {
        Family::V4 => (IPV4, 4),
        Family::V6 => (IPV6, 16),
    };
    let join = |parts: &[(u32, u32)]| {
        parts.iter().fold((0, 0), |(kind, length), (one, bytes)| (kind << 6 | one, length + bytes))
    };
    match fields {
        Fields::Address(family) => address(family),
        Fields::Addresses(family) => join(&[address(family), address(family)]),
        Fields::Service(family) => join(&[address(family), (PROTOCOL, 4), (PORT, 4)]),
        Fields::ServiceSource(family) => join(&[address(family), (PROTOCOL, 4), (PORT, 4), address(family)]),
        Fields::ProtocolPort => join(&[(PROTOCOL, 4), (PORT, 4)]),
        Fields::Port => (PORT, 2),
        Fields::Mark => (MARK, 4),
        Fields::Link => (LINK, 16),
        Fields::LinkEther => join(&[(LINK, 16), (ETHER, 8)]),
        Fields::LinkAddress(family) => join(&[(LINK, 16), address(family)]),
    }
}

/// The largest element: two IPv6 addresses or the longest name of a chain, and what is around them.
pub(super) const LARGEST: usize = 352;

/// Appends an element to the list that is open, as one or two of the kernel's. Without `content` it is one that is to be deleted.
///
/// Returns `false` where the key is none of this set; nothing is appended then.
pub(super) fn write(messages: &mut Messages, spec: SetSpec, key: &Key, content: Option<&Content>) -> bool {
    if let Key::Foreign(bytes) = key {
        if content.is_none() {
            write_one(messages, bytes, 0, None);
        }
        return content.is_none();
    }
    if !spec.intervals {
        let Some(bytes) = bytes(spec.fields, key) else { return false };
        write_one(messages, bytes.get(), 0, content);
        return true;
    }
    let Some(range) = Range::of(spec.fields, key) else { return false };
    let (first, behind) = (range.first.to_be_bytes(), range.last.checked_add(1).filter(|end| *end <= range.most()));
    let cut = first.len() - range.length;
    write_one(messages, first.get(cut..).unwrap_or_default(), 0, content);
    if let Some(behind) = behind {
        write_one(messages, behind.to_be_bytes().get(cut..).unwrap_or_default(), element::INTERVAL_END, None);
    }
    true
}

fn write_one(messages: &mut Messages, key: &[u8], flags: u32, content: Option<&Content>) {
    messages.nest(ITEM).nest(element::KEY).attribute(data::VALUE, key).end();
    match content {
        Some(Content::Verdict(verdict)) => {
            if let Some((code, chain)) = plain(verdict) {
                write_verdict(messages, element::DATA, code, chain);
            }
        }
        Some(Content::Mark(mark)) => {
            messages.nest(element::DATA).attribute(data::VALUE, &mark.to_ne_bytes()).end();
        }
        _ => {}
    }
    if flags != 0 {
        messages.u32_be(element::FLAGS, flags);
    }
    messages.end();
}

/// Appends the elements of the anonymous set of [`Description::many`].
pub(super) fn write_many(messages: &mut Messages, types: &[u32]) {
    types.iter().for_each(|one| write_one(messages, &one.to_ne_bytes(), 0, None));
}

/// The bytes of a key.
struct Bytes {
    bytes: [u8; 40],
    length: usize,
}

impl Bytes {
    fn new() -> Bytes {
        Bytes { bytes: [0; 40], length: 0 }
    }

    /// Appends a field, which is filled up to the next register unless it is the only one.
    fn field(mut self, value: &[u8]) -> Bytes {
        let begin = self.length.next_multiple_of(4);
        for (place, byte) in self.bytes.iter_mut().skip(begin).zip(value) {
            *place = *byte;
        }
        self.length = begin + value.len();
        self
    }

    fn filled_up(mut self) -> Bytes {
        self.length = self.length.next_multiple_of(4);
        self
    }

    fn get(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The bytes of a key of a set without ranges; `None` for a key of another type.
fn bytes(fields: Fields, key: &Key) -> Option<Bytes> {
    let is_of = |family: Family, address: &IpAddr| Family::from(*address) == family;
    let empty = Bytes::new();
    Some(match (fields, key) {
        (Fields::Address(family), Key::Address(address)) if is_of(family, address) => {
            empty.field(octets(*address).bytes())
        }
        (Fields::Addresses(family), Key::Itself(address)) if is_of(family, address) => {
            let octets = octets(*address);
            empty.field(octets.bytes()).field(octets.bytes())
        }
        (Fields::Service(family), Key::Service(address, protocol, port)) if is_of(family, address) => {
            empty.field(octets(*address).bytes()).field(&[protocol.number()]).field(&port.to_be_bytes()).filled_up()
        }
        (Fields::ServiceSource(family), Key::ServiceSource(fields)) => {
            let (address, protocol, port, source) = &**fields;
            if !is_of(family, address) || !is_of(family, source) {
                return None;
            }
            let service = empty.field(octets(*address).bytes()).field(&[protocol.number()]).field(&port.to_be_bytes());
            service.field(octets(*source).bytes())
        }
        (Fields::ProtocolPort, Key::ProtocolPort(protocol, port)) => {
            empty.field(&[protocol.number()]).field(&port.to_be_bytes()).filled_up()
        }
        (Fields::Port, Key::Ports(PortRange { first, last })) if first == last => empty.field(&first.to_be_bytes()),
        (Fields::Mark, Key::Mark(mark)) => empty.field(&mark.to_ne_bytes()),
        (Fields::Link, Key::Link(name)) => empty.field(link(name.as_str()).bytes()),
        (Fields::LinkEther, Key::LinkEther(name, address)) => {
            empty.field(link(name.as_str()).bytes()).field(address).filled_up()
        }
        (Fields::LinkAddress(family), Key::LinkAddress(fields)) if is_of(family, &fields.1) => {
            empty.field(link(fields.0.as_str()).bytes()).field(octets(fields.1).bytes())
        }
        _ => return None,
    })
}

/// The first and the last value of a range, as numbers, and how many bytes they have.
#[derive(Clone, Copy)]
struct Range {
    first: u128,
    last: u128,
    length: usize,
}

impl Range {
    fn of(fields: Fields, key: &Key) -> Option<Range> {
        let (first, last, length) = match (fields, key) {
            (Fields::Address(family), Key::Prefix(prefix)) if Family::from(*prefix) == family => {
                (number(prefix.network()), number(prefix.broadcast()), address_length(family))
            }
            (Fields::Address(family), Key::Range(ends))
                if Family::from(ends.0) == family && Family::from(ends.1) == family =>
            {
                (number(ends.0), number(ends.1), address_length(family))
            }
            (Fields::Port, Key::Ports(PortRange { first, last })) => (u128::from(*first), u128::from(*last), 2),
            _ => return None,
        };
        (first <= last).then_some(Range { first, last, length })
    }

    /// The last value of all.
    fn most(&self) -> u128 {
        most(self.length)
    }
}

fn most(length: usize) -> u128 {
    if length >= 16 { u128::MAX } else { (1 << (8 * length)) - 1 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address_length(family: Family) -> usize {
    usize::from(family.host_bits()) / 8
}

/// One element of the kernel's, as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    key: Box<[u8]>,
    is_end: bool,
    content: Content,
}

/// Values of verdict maps that have been read, because many elements have the same.
#[derive(Default)]
pub(super) struct Verdicts(Vec<Arc<super::rule::Verdict>>);

impl Verdicts {
    fn keep(&mut self, verdict: super::rule::Verdict) -> Arc<super::rule::Verdict> {
        // Elements come in no order, so only the last few are looked at.
        if let Some(same) = self.0.iter().rev().take(8).find(|known| ***known == verdict) {
            return same.clone();
        }
        let kept = Arc::new(verdict);
        self.0.push(kept.clone());
        kept
    }
}

/// Reads one item of a list of elements.
pub(super) fn read(item: &Attributes<'_>, kind: Kind, verdicts: &mut Verdicts) -> Option<Found> {
    let key = item.get(element::KEY)?.attributes().get(data::VALUE)?.value.into();
    let flags = item.get(element::FLAGS).and_then(|flags| flags.u32_be()).unwrap_or_default();
    let value = item.get(element::DATA).map(|value| value.attributes());
    let odd = [element::EXPIRES, element::EXPRESSION, element::OBJECT, element::KEY_END, element::EXPRESSIONS];
    let is_odd = odd.iter().any(|kind| item.get(*kind).is_some()) || flags & !element::INTERVAL_END != 0;
    let content = || match (kind, value) {
        _ if is_odd => None,
        (Kind::Set, None) => Some(Content::Element),
        (Kind::Verdicts, Some(value)) => {
            let (code, chain) = read_verdict(&value)?;
            let verdict = decode::plain(code, chain.map(Name::from).as_ref())?;
            Some(Content::Verdict(verdicts.keep(verdict)))
        }
        (Kind::Marks, Some(value)) => Some(Content::Mark(value.get(data::VALUE)?.u32()?)),
        _ => None,
    };
    let content = content().unwrap_or(Content::Foreign);
    Some(Found { key, is_end: flags & element::INTERVAL_END != 0, content })
}

/// The elements of ours that these of the kernel's are.
pub(super) fn elements(spec: SetSpec, mut found: Vec<Found>) -> Vec<(Key, Content)> {
    if !spec.intervals {
        return found.into_iter().map(|one| (key(spec.fields, &one.key), one.content)).collect();
    }
    // An end comes before the beginning of what follows it at once.
    found.sort_by(|one, other| (&one.key, !one.is_end).cmp(&(&other.key, !other.is_end)));
    let mut elements = Vec::with_capacity(found.len() / 2 + 1);
    let mut open: Option<(u128, Content)> = None;
    let length = key_type(spec.fields).1 as usize;
    let mut close = |open: Option<(u128, Content)>, last: u128| {
        elements.extend(open.map(|(first, content)| (range_key(spec.fields, Range { first, last, length }), content)));
    };
    for one in found {
        let value = one.key.iter().fold(0_u128, |value, byte| value << 8 | u128::from(*byte));
        // A beginning within a range that has not ended ends it, as it does for a lookup.
        close(open.take(), value.wrapping_sub(1));
        if !one.is_end {
            open = Some((value, one.content));
        }
    }
    close(open, most(length));
    elements
}

/// The key of a set without ranges that has these bytes.
fn key(fields: Fields, bytes: &[u8]) -> Key {
    let read = || {
        let address = |family| read_address(family, bytes);
        let behind = |family| bytes.get(address_length(family)..);
        Some(match fields {
            Fields::Address(family) => Key::Address(address(family)?),
            Fields::Addresses(family) => {
                let one = address(family)?;
                let same = read_address(family, behind(family)?)? == one;
                return same.then_some(Key::Itself(one));
            }
            Fields::Service(family) => {
                let (protocol, port) = protocol_port(behind(family)?)?;
                Key::Service(address(family)?, protocol, port)
            }
            Fields::ServiceSource(family) => {
                let (protocol, port) = protocol_port(behind(family)?)?;
                let source = read_address(family, behind(family)?.get(8..)?)?;
                Key::ServiceSource(Box::new((address(family)?, protocol, port, source)))
            }
            Fields::ProtocolPort => {
                let (protocol, port) = protocol_port(bytes)?;
                Key::ProtocolPort(protocol, port)
            }
            Fields::Port => {
                let port = u16::from_be_bytes(bytes.try_into().ok()?);
                Key::Ports(PortRange { first: port, last: port })
            }
            Fields::Mark => Key::Mark(u32::from_ne_bytes(bytes.try_into().ok()?)),
            Fields::Link => Key::Link(link_name(bytes)?),
            Fields::LinkEther => {
                let (link, behind) = bytes.split_at_checked(LINK_LENGTH)?;
                Key::LinkEther(link_name(link)?, *behind.first_chunk()?)
            }
            Fields::LinkAddress(family) => {
                let (link, behind) = bytes.split_at_checked(LINK_LENGTH)?;
                Key::LinkAddress(Box::new((link_name(link)?, read_address(family, behind)?)))
            }
        })
    };
    read().unwrap_or_else(|| Key::Foreign(bytes.into()))
}

fn range_key(fields: Fields, Range { first, last, .. }: Range) -> Key {
    match fields {
        Fields::Address(Family::V4) => {
            let address = |value: u128| IpAddr::V4(Ipv4Addr::from_bits(value as u32));
            Key::range(address(first), address(last))
        }
        Fields::Address(Family::V6) => {
            let address = |value: u128| IpAddr::V6(Ipv6Addr::from_bits(value));
            Key::range(address(first), address(last))
        }
        _ => Key::Ports(PortRange { first: first as u16, last: last as u16 }),
    }
}

/// The length of a link's name in an element (`IFNAMSIZ`).
const LINK_LENGTH: usize = 16;

fn link_name(bytes: &[u8]) -> Option<Name> {
    let name = std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()?;
    Some(name.into())
}

fn read_address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(*bytes.first_chunk::<16>()?)),
    })
}

fn protocol_port(bytes: &[u8]) -> Option<(Protocol, u16)> {
    let [number, _, _, _, high, low, ..] = *bytes else { return None };
    Some((Protocol::from_number(number)?, u16::from_be_bytes([high, low])))
}
