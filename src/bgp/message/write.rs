//! Packs UPDATEs: as many prefixes as fit behind each set of attributes.
//!
//! RFC 4271 4.3: routes with the same attributes share a message. RFC 7606 5.1: the multiprotocol attribute comes first
//! and alone, the others follow by type code. IPv4 NLRI go into the body of the message when the next hop is IPv4, and
//! into MP_REACH_NLRI otherwise (RFC 8950); IPv6 NLRI always go there.
//!
//! A set that leaves no room for a prefix cannot be sent to this peer; the caller then withdraws the routes, as RFC
//! 8654 6 requires.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::address_family::numbers_of;
use super::as_path::{AS_TRANS, AsPath};
use super::attributes::{Aggregator, Attributes, Origin};
use super::dialect::Dialect;
use super::header::{HEADER, UPDATE, begin, finish};
use super::path_attribute::{
    AGGREGATOR, AS_PATH, AS4_AGGREGATOR, AS4_PATH, ATOMIC_AGGREGATE, CLUSTER_LIST, COMMUNITIES, EXTENDED_COMMUNITIES,
    EXTENDED_LENGTH, LARGE_COMMUNITIES, LOCAL_PREF, MED, MP_REACH, MP_UNREACH, NEXT_HOP, OPTIONAL, ORIGIN,
    ORIGINATOR_ID, TRANSITIVE,
};
use super::prefix;
use crate::net::{Family, LinkLocal};

/// Consecutive UPDATEs.
#[derive(Debug)]
pub struct Packing {
    dialect: Dialect,
    bytes: Vec<u8>,
    messages: u32,
    unfit: u32,
}

/// Length of the two length fields of an UPDATE.
const LENGTHS: usize = 4;
/// Length of an attribute header with a length field of two bytes.
const ATTRIBUTE: usize = 4;

/// Parts of a message around its prefixes.
struct Around {
    /// Attributes before the one with the prefixes, or all of them.
    attributes: Vec<u8>,
    /// Beginning of MP_REACH_NLRI or MP_UNREACH_NLRI, from its flags to the first prefix; empty when the prefixes are
    /// in the body.
    multiprotocol: Vec<u8>,
}

impl Packing {
    pub fn new(dialect: Dialect) -> Packing {
        Packing { dialect, bytes: Vec::new(), messages: 0, unfit: 0 }
    }

    /// Announces prefixes of one address family. Returns false, and writes nothing, when the attributes leave no room
    /// for a prefix.
    #[must_use]
    pub fn announce(&mut self, family: Family, attributes: &Attributes, prefixes: &[IpNet]) -> bool {
        let in_body = family == Family::V4 && attributes.next_hop.is_ipv4();
        let mut around = Around { attributes: Vec::with_capacity(128), multiprotocol: Vec::new() };
        write_attributes(&mut around.attributes, attributes, in_body, self.dialect.four_octets);
        if !in_body {
            around.multiprotocol = reach(family, attributes);
        }
        // All or nothing: if only the longest did not fit, the caller could not tell which prefixes were written.
        let longest = prefixes.iter().max_by_key(|prefix| prefix.prefix_len());
        if longest.is_some_and(|longest| self.fitting(&around, std::slice::from_ref(longest)).0.is_empty()) {
            return false;
        }
        let mut rest = prefixes;
        while !rest.is_empty() {
            let (now, later) = self.fitting(&around, rest);
            self.write(&around, now, !in_body);
            rest = later;
        }
        true
    }

    /// Withdraws prefixes of one address family.
    pub fn withdraw(&mut self, family: Family, prefixes: &[IpNet]) {
        let mut around = Around { attributes: Vec::new(), multiprotocol: Vec::new() };
        if family == Family::V6 {
            around.multiprotocol = unreach(family);
        }
        let mut rest = prefixes;
        while !rest.is_empty() {
            let (now, later) = self.fitting(&around, rest);
            match family {
                Family::V4 => self.write_withdrawn(now),
                Family::V6 => self.write(&around, now, true),
            }
            rest = later;
        }
    }

    /// Withdraws prefixes whose attributes leave no room for them (RFC 8654 6).
    pub fn give_up(&mut self, family: Family, prefixes: &[IpNet]) {
        self.withdraw(family, prefixes);
        self.unfit = self.unfit.saturating_add(prefixes.len() as u32);
    }

    /// Number of prefixes withdrawn because they do not fit.
    pub fn unfit(&self) -> u32 {
        self.unfit
    }

    /// Returns the bytes, and the number of messages.
    pub fn finish(self) -> (Vec<u8>, u32) {
        (self.bytes, self.messages)
    }

    /// Number of bytes written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Divides prefixes into those that fit into one message and the rest.
    fn fitting<'a>(&self, around: &Around, prefixes: &'a [IpNet]) -> (&'a [IpNet], &'a [IpNet]) {
        let fixed = HEADER + LENGTHS + around.attributes.len() + around.multiprotocol.len();
        let mut room = self.dialect.longest().saturating_sub(fixed);
        let fits = |prefix: &&IpNet| {
            let left = room.checked_sub(prefix::encoded_length(**prefix));
            room = left.unwrap_or(room);
            left.is_some()
        };
        let count = prefixes.iter().take_while(fits).count();
        prefixes.split_at_checked(count).unwrap_or((prefixes, &[]))
    }

    fn write(&mut self, around: &Around, prefixes: &[IpNet], multiprotocol: bool) {
        let at = begin(&mut self.bytes, UPDATE);
        self.bytes.extend_from_slice(&[0, 0, 0, 0]);
        let attributes = self.bytes.len();
        if multiprotocol {
            self.bytes.extend_from_slice(&around.multiprotocol);
            prefixes.iter().for_each(|prefix| prefix::encode(*prefix, &mut self.bytes));
            let length = self.bytes.len() - attributes - ATTRIBUTE;
            put_length(&mut self.bytes, attributes + ATTRIBUTE - 2, length);
        }
        self.bytes.extend_from_slice(&around.attributes);
        let length = self.bytes.len() - attributes;
        put_length(&mut self.bytes, attributes - 2, length);
        if !multiprotocol {
            prefixes.iter().for_each(|prefix| prefix::encode(*prefix, &mut self.bytes));
        }
        finish(&mut self.bytes, at);
        self.messages += 1;
    }

    fn write_withdrawn(&mut self, prefixes: &[IpNet]) {
        let at = begin(&mut self.bytes, UPDATE);
        self.bytes.extend_from_slice(&[0, 0]);
        let start = self.bytes.len();
        prefixes.iter().for_each(|prefix| prefix::encode(*prefix, &mut self.bytes));
        let length = self.bytes.len() - start;
        put_length(&mut self.bytes, start - 2, length);
        self.bytes.extend_from_slice(&[0, 0]);
        finish(&mut self.bytes, at);
        self.messages += 1;
    }
}

/// Encodes the End-of-RIB of one address family (RFC 4724 2).
pub fn end_of_rib(family: Family) -> Vec<u8> {
    super::framed(UPDATE, |out| match family {
        Family::V4 => out.extend_from_slice(&[0, 0, 0, 0]),
        Family::V6 => {
            let (afi, safi) = numbers_of(family);
            out.extend_from_slice(&[0, 0, 0, 6, OPTIONAL, MP_UNREACH, 3, 0, afi as u8, safi]);
        }
    })
}

fn put_length(bytes: &mut [u8], at: usize, length: usize) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&(length as u16).to_be_bytes());
    }
}

/// Builds the beginning of MP_REACH_NLRI.
fn reach(family: Family, attributes: &Attributes) -> Vec<u8> {
    let (afi, safi) = numbers_of(family);
    let mut out = vec![OPTIONAL | EXTENDED_LENGTH, MP_REACH, 0, 0, 0, afi as u8, safi];
    let addresses = match (attributes.next_hop, LinkLocal::within(attributes.next_hop)) {
        // Twice: RFC 2545 3 asks for a global address before it, which we may not have on the link.
        (_, Some(on_link)) => vec![on_link.address(), on_link.address()],
        (IpAddr::V4(next_hop), None) => vec![next_hop.to_ipv6_mapped()],
        (IpAddr::V6(next_hop), None) => std::iter::once(next_hop).chain(attributes.rare().link_local).collect(),
    };
    // The length of the next hops: 16 or 32.
    out.push(addresses.len() as u8 * 16);
    out.extend(addresses.iter().flat_map(Ipv6Addr::octets));
    out.push(0);
    out
}

/// Builds the beginning of MP_UNREACH_NLRI.
fn unreach(family: Family) -> Vec<u8> {
    let (afi, safi) = numbers_of(family);
    vec![OPTIONAL | EXTENDED_LENGTH, MP_UNREACH, 0, 0, 0, afi as u8, safi]
}

/// Writes all attributes but the multiprotocol one, by type code.
fn write_attributes(out: &mut Vec<u8>, attributes: &Attributes, in_body: bool, four_octets: bool) {
    let rare = attributes.rare();
    let origin = match attributes.origin {
        Origin::Igp => 0,
        Origin::Egp => 1,
        Origin::Incomplete => 2,
    };
    put(out, TRANSITIVE, ORIGIN, &[origin]);
    let path = &attributes.as_path;
    match four_octets {
        true => put(out, TRANSITIVE, AS_PATH, path.bytes()),
        false => put(out, TRANSITIVE, AS_PATH, &path.two_octets()),
    }
    if let IpAddr::V4(next_hop) = attributes.next_hop
        && in_body
    {
        put(out, TRANSITIVE, NEXT_HOP, &next_hop.octets());
    }
    if let Some(med) = attributes.med {
        put(out, OPTIONAL, MED, &med.to_be_bytes());
    }
    if let Some(local_pref) = attributes.local_pref {
        put(out, TRANSITIVE, LOCAL_PREF, &local_pref.to_be_bytes());
    }
    if rare.atomic_aggregate {
        put(out, TRANSITIVE, ATOMIC_AGGREGATE, &[]);
    }
    if let Some(aggregator) = rare.aggregator {
        put(out, OPTIONAL | TRANSITIVE, AGGREGATOR, &aggregator_value(aggregator, four_octets));
    }
    let both = OPTIONAL | TRANSITIVE;
    put_list(out, both, COMMUNITIES, attributes.communities.iter().map(|community| community.0.to_be_bytes()));
    if let Some(originator) = rare.originator {
        put(out, OPTIONAL, ORIGINATOR_ID, &originator.octets());
    }
    put_list(out, OPTIONAL, CLUSTER_LIST, rare.clusters.iter().map(Ipv4Addr::octets));
    put_list(out, both, EXTENDED_COMMUNITIES, rare.extended.iter().map(|community| community.0.to_be_bytes()));
    if !four_octets {
        write_for_two_octets(out, path, rare.aggregator);
    }
    put_list(out, both, LARGE_COMMUNITIES, rare.large.iter().flat_map(|community| community.0.map(u32::to_be_bytes)));
    for unknown in &rare.unknown {
        put(out, unknown.flags, unknown.number, &unknown.value);
    }
}

/// Writes AS4_PATH and AS4_AGGREGATOR for a peer with two-octet numbers, where these do not fit (RFC 6793 4.2.2).
fn write_for_two_octets(out: &mut Vec<u8>, path: &AsPath, aggregator: Option<Aggregator>) {
    if path.needs_four_octets() {
        put(out, OPTIONAL | TRANSITIVE, AS4_PATH, path.bytes());
    }
    if let Some(aggregator) = aggregator.filter(|aggregator| aggregator.asn > u32::from(u16::MAX)) {
        put(out, OPTIONAL | TRANSITIVE, AS4_AGGREGATOR, &aggregator_value(aggregator, true));
    }
}

fn aggregator_value(aggregator: Aggregator, four_octets: bool) -> Vec<u8> {
    let short = u16::try_from(aggregator.asn).unwrap_or(AS_TRANS as u16);
    let asn = if four_octets { aggregator.asn.to_be_bytes().to_vec() } else { short.to_be_bytes().to_vec() };
    [asn.as_slice(), &aggregator.router.octets()].concat()
}

fn put_list<const N: usize>(out: &mut Vec<u8>, flags: u8, number: u8, values: impl Iterator<Item = [u8; N]>) {
    let value: Vec<u8> = values.flatten().collect();
    if !value.is_empty() {
        put(out, flags, number, &value);
    }
}

fn put(out: &mut Vec<u8>, flags: u8, number: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, number, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | EXTENDED_LENGTH, number]);
            // A value longer than 65,535 bytes exceeds any message: it does not fit, and is never sent.
            out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}
