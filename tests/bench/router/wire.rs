//! The little of BGP that a neighbour in a measurement speaks: RFC 4271, 4760, 6793 and 4724.
//!
//! Apart from the codec that is measured, so that a mistake of that one cannot hide here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice::net::Family;

/// Path attributes of a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    pub path: Vec<u32>,
    pub communities: Vec<u32>,
    pub next_hop: IpAddr,
    /// LOCAL_PREF is said, as neighbours inside do.
    pub internal: bool,
}

/// Fields of a neighbour's OPEN.
#[derive(Clone, Copy, Debug)]
pub struct Hello {
    pub asn: u32,
    pub identifier: Ipv4Addr,
    /// It keeps routes through a restart of the other side.
    pub graceful: bool,
}

/// A message that has come.
#[derive(Debug)]
pub enum Message {
    Open,
    Keepalive,
    Update(Update),
    Notification(Vec<u8>),
    Other,
}

/// Routes that have come.
#[derive(Default, Debug)]
pub struct Update {
    pub announced: Vec<IpNet>,
    pub withdrawn: Vec<IpNet>,
    pub path: Vec<u32>,
    pub communities: Vec<u32>,
    pub next_hop: Option<IpAddr>,
    /// Whose route a reflector has passed on.
    pub originator: Option<Ipv4Addr>,
    /// It says nothing but that this family is complete.
    pub end: Option<Family>,
}

pub const HOLD_TIME: u16 = 90;
pub const HEADER: usize = 19;
const LARGEST: usize = 4096;
const AS_TRANS: u16 = 23456;
const EXTENDED_LENGTH: u8 = 0x10;

pub fn open(hello: Hello) -> Vec<u8> {
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4];
    capabilities.extend(hello.asn.to_be_bytes());
    if hello.graceful {
        capabilities.extend([64, 10, 0, 120, 0, 1, 1, 0x80, 0, 2, 1, 0x80]);
    }
    let mut body = vec![4];
    body.extend(u16::try_from(hello.asn).unwrap_or(AS_TRANS).to_be_bytes());
    body.extend(HOLD_TIME.to_be_bytes());
    body.extend(hello.identifier.octets());
    body.extend([capabilities.len() as u8 + 2, 2, capabilities.len() as u8]);
    body.extend(capabilities);
    message(1, &body)
}

pub fn keepalive() -> Vec<u8> {
    message(4, &[])
}

pub fn end_of_rib(family: Family) -> Vec<u8> {
    match family {
        Family::V4 => message(2, &[0, 0, 0, 0]),
        Family::V6 => message(2, &[0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1]),
    }
}

/// Announces prefixes of one family, which have to fit into one message.
pub fn update(attributes: &Attributes, prefixes: &[IpNet]) -> Vec<u8> {
    let mut said = vec![0x40, 1, 1, 0];
    let path: Vec<u8> = attributes.path.iter().flat_map(|asn| asn.to_be_bytes()).collect();
    said.extend([0x40, 2]);
    match attributes.path.len() {
        0 => said.push(0),
        hops => said.extend([path.len() as u8 + 2, 2, hops as u8]),
    }
    said.extend(path);
    let nlri: Vec<u8> = prefixes.iter().flat_map(|prefix| written(*prefix)).collect();
    if let IpAddr::V4(next_hop) = attributes.next_hop {
        said.extend([0x40, 3, 4]);
        said.extend(next_hop.octets());
    }
    if attributes.internal {
        said.extend([0x40, 5, 4, 0, 0, 0, 100]);
    }
    if !attributes.communities.is_empty() {
        said.extend([0xc0, 8, attributes.communities.len() as u8 * 4]);
        said.extend(attributes.communities.iter().flat_map(|community| community.to_be_bytes()));
    }
    let mut four = nlri.as_slice();
    if let IpAddr::V6(next_hop) = attributes.next_hop {
        said.extend([0x80 | EXTENDED_LENGTH, 14]);
        said.extend((21 + nlri.len() as u16).to_be_bytes());
        said.extend([0, 2, 1, 16]);
        said.extend(next_hop.octets());
        said.push(0);
        said.extend(&nlri);
        four = &[];
    }
    let mut body = vec![0, 0];
    body.extend((said.len() as u16).to_be_bytes());
    body.extend(said);
    body.extend(four);
    message(2, &body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    assert!(HEADER + body.len() <= LARGEST, "a message of {} bytes", HEADER + body.len());
    let mut message = vec![0xff; 16];
    message.extend(((HEADER + body.len()) as u16).to_be_bytes());
    message.push(kind);
    message.extend(body);
    message
}

fn written(prefix: IpNet) -> Vec<u8> {
    let octets = match prefix.network() {
        IpAddr::V4(network) => network.octets().to_vec(),
        IpAddr::V6(network) => network.octets().to_vec(),
    };
    let used = usize::from(prefix.prefix_len()).div_ceil(8);
    [&[prefix.prefix_len()], &octets[..used]].concat()
}

/// The length of the message at the beginning of these bytes, where all of it is there.
pub fn whole(bytes: &[u8]) -> Option<usize> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(16)?, *bytes.get(17)?]));
    assert!((HEADER..=LARGEST).contains(&length), "a message of {length} bytes");
    (bytes.len() >= length).then_some(length)
}

/// Reads one whole message.
pub fn read(bytes: &[u8]) -> Message {
    let body = &bytes[HEADER..];
    match bytes[18] {
        1 => Message::Open,
        2 => Message::Update(read_update(body)),
        3 => Message::Notification(body.to_vec()),
        4 => Message::Keepalive,
        _ => Message::Other,
    }
}

fn read_update(body: &[u8]) -> Update {
    let mut update = Update::default();
    let (withdrawn, rest) = counted(body);
    let (attributes, announced) = counted(rest);
    update.withdrawn = prefixes(withdrawn, Family::V4);
    update.announced = prefixes(announced, Family::V4);
    let mut left = attributes;
    while let [flags, kind, rest @ ..] = left {
        let (value, after) = match flags & EXTENDED_LENGTH {
            0 => rest[1..].split_at(usize::from(rest[0])),
            _ => counted(rest),
        };
        read_attribute(&mut update, *kind, value);
        left = after;
    }
    if body.len() == 4 {
        update.end = Some(Family::V4);
    }
    update
}

fn read_attribute(update: &mut Update, kind: u8, value: &[u8]) {
    match kind {
        // Segments: a kind, how many, and so many numbers.
        2 => {
            let mut left = value;
            while let [_, count, rest @ ..] = left {
                let (numbers, after) = rest.split_at(usize::from(*count) * 4);
                update.path.extend(words(numbers));
                left = after;
            }
        }
        3 => update.next_hop = Some(Ipv4Addr::from(words(value)[0]).into()),
        8 => update.communities = words(value),
        9 => update.originator = Some(words(value)[0].into()),
        14 if value[..3] == [0, 2, 1] => {
            let length = usize::from(value[3]);
            let global: [u8; 16] = value[4..20].try_into().expect("16 bytes");
            update.next_hop = Some(Ipv6Addr::from(global).into());
            update.announced.extend(prefixes(&value[5 + length..], Family::V6));
        }
        15 if value[..3] == [0, 2, 1] => {
            update.withdrawn.extend(prefixes(&value[3..], Family::V6));
            if value.len() == 3 {
                update.end = Some(Family::V6);
            }
        }
        _ => {}
    }
}

/// Splits off a field with a length of two bytes in front of it; returns the field and the rest.
fn counted(bytes: &[u8]) -> (&[u8], &[u8]) {
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    bytes[2..].split_at(length)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| u32::from_be_bytes([four[0], four[1], four[2], four[3]]);
    bytes.chunks_exact(4).map(word).collect()
}

fn prefixes(bytes: &[u8], family: Family) -> Vec<IpNet> {
    let (mut found, mut left) = (Vec::new(), bytes);
    while let [length, rest @ ..] = left {
        let (used, after) = rest.split_at(usize::from(*length).div_ceil(8));
        let mut octets = [0; 16];
        octets[..used.len()].copy_from_slice(used);
        let four = [octets[0], octets[1], octets[2], octets[3]];
        found.push(match family {
            Family::V4 => Ipv4Net::new(four.into(), *length).expect("a length").into(),
            Family::V6 => Ipv6Net::new(octets.into(), *length).expect("a length").into(),
        });
        left = after;
    }
    found
}
