//! Path attributes of an UPDATE, and the treatment of errors in them.
//!
//! RFC 4271 4.3, 5 and 6.3; RFC 7606 3, 4 and 7 specifies for each attribute: attribute discard, treat-as-withdraw,
//! AFI/SAFI disable or session reset. RFC 7607 for AS 0, RFC 6793 for four-octet AS numbers, RFC 8092 6 for large
//! communities, RFC 4760 7 for the multiprotocol attributes, RFC 8950 4 for next hops of another address family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::address_family::family_of;
use super::as_path::{AS_TRANS, AsPath, Kind};
use super::attributes::{
    Aggregator, Attributes, Community, ExtendedCommunity, LargeCommunity, Origin, Rare, Unknown, sorted,
};
use super::dialect::Dialect;
use super::notification::Reason;
use super::prefix;
use super::reader::Reader;
use super::treatment::Treatment;
use crate::net::Family;

pub(super) const OPTIONAL: u8 = 0x80;
pub(super) const TRANSITIVE: u8 = 0x40;
pub(super) const PARTIAL: u8 = 0x20;
pub(super) const EXTENDED_LENGTH: u8 = 0x10;

pub(super) const ORIGIN: u8 = 1;
pub(super) const AS_PATH: u8 = 2;
pub(super) const NEXT_HOP: u8 = 3;
pub(super) const MED: u8 = 4;
pub(super) const LOCAL_PREF: u8 = 5;
pub(super) const ATOMIC_AGGREGATE: u8 = 6;
pub(super) const AGGREGATOR: u8 = 7;
pub(super) const COMMUNITIES: u8 = 8;
pub(super) const ORIGINATOR_ID: u8 = 9;
pub(super) const CLUSTER_LIST: u8 = 10;
pub(super) const MP_REACH: u8 = 14;
pub(super) const MP_UNREACH: u8 = 15;
pub(super) const EXTENDED_COMMUNITIES: u8 = 16;
pub(super) const AS4_PATH: u8 = 17;
pub(super) const AS4_AGGREGATOR: u8 = 18;
pub(super) const LARGE_COMMUNITIES: u8 = 32;

/// Parsed path attributes of one UPDATE.
#[derive(Default, Debug)]
pub(super) struct Block {
    origin: Option<Origin>,
    as_path: Option<AsPath>,
    pub next_hop: Option<Ipv4Addr>,
    med: Option<u32>,
    local_pref: Option<u32>,
    communities: Box<[Community]>,
    rare: Rare,
    unknown: Vec<Unknown>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
    pub reach: Option<Reach>,
    pub unreach: Option<Unreach>,
    /// Errors found.
    pub flaws: Vec<Flaw>,
    /// Attributes already present, one bit for each type code.
    seen: [u64; 4],
}

/// MP_REACH_NLRI.
#[derive(Debug)]
pub(super) struct Reach {
    pub next_hop: IpAddr,
    pub link_local: Option<Ipv6Addr>,
    pub prefixes: Vec<IpNet>,
}

/// MP_UNREACH_NLRI.
#[derive(Debug)]
pub(super) struct Unreach {
    pub family: Family,
    pub prefixes: Vec<IpNet>,
}

/// Error in an attribute.
#[derive(Debug)]
pub(super) struct Flaw {
    pub attribute: u8,
    pub fault: &'static str,
    pub treatment: Treatment,
    /// Reason for a NOTIFICATION.
    pub reason: Reason,
    pub data: Vec<u8>,
}

/// Unparsed attribute.
#[derive(Clone, Copy)]
struct Raw<'a> {
    flags: u8,
    number: u8,
    value: &'a [u8],
    /// Including its header.
    whole: &'a [u8],
}

/// Error in the value of an attribute.
struct Refused {
    fault: &'static str,
    treatment: Treatment,
    reason: Reason,
}

type Result<T> = std::result::Result<T, Refused>;

fn refused<T>(treatment: Treatment, reason: Reason, fault: &'static str) -> Result<T> {
    Err(Refused { fault, treatment, reason })
}

fn withdraw<T>(reason: Reason, fault: &'static str) -> Result<T> {
    refused(Treatment::Withdraw, reason, fault)
}

fn discard<T>(fault: &'static str) -> Result<T> {
    refused(Treatment::DiscardAttribute, Reason::OPTIONAL_ATTRIBUTE, fault)
}

impl Block {
    pub fn decode(bytes: &[u8], dialect: &Dialect) -> Block {
        let mut block = Block::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let rest = reader.rest();
            let Some(raw) = raw(&mut reader) else {
                // RFC 7606 4: the NLRI are found by the total attribute length all the same.
                let number = rest.get(1).copied().unwrap_or_default();
                let raw = Raw { flags: 0, number, value: &[], whole: rest };
                let fault = "an attribute ends behind the end of all of them";
                // RFC 7606 5.3: but not those in this attribute.
                let hides = [MP_REACH, MP_UNREACH].contains(&number);
                let treatment = if hides { Treatment::Reset } else { Treatment::Withdraw };
                block.add_flaw(raw, Refused { fault, treatment, reason: Reason::ATTRIBUTE_LENGTH });
                break;
            };
            if let Err(refused) = block.read(raw, dialect) {
                block.add_flaw(raw, refused);
            }
        }
        block
    }

    /// Returns whether the block has no attribute besides MP_UNREACH_NLRI.
    pub fn is_empty(&self) -> bool {
        let mut others = self.seen;
        let [first, ..] = &mut others;
        *first &= !(1 << MP_UNREACH);
        others == [0; 4] && self.flaws.is_empty()
    }

    /// Records missing mandatory attributes (RFC 7606 3 d). One that was present and discarded is not missing.
    pub fn require(&mut self, networks: bool) {
        let reachable = networks || self.reach.is_some();
        for (attribute, needed) in [(ORIGIN, reachable), (AS_PATH, reachable), (NEXT_HOP, networks)] {
            if needed && !self.has_seen(attribute) {
                self.flaws.push(Flaw {
                    attribute,
                    fault: "a mandatory attribute is missing",
                    treatment: Treatment::Withdraw,
                    reason: Reason::MISSING_WELL_KNOWN,
                    data: vec![attribute],
                });
            }
        }
    }

    /// Builds the set of attributes; the next hop is filled in later.
    pub fn attributes(mut self, dialect: &Dialect) -> Option<Attributes> {
        let mut as_path = self.as_path.take()?;
        if !dialect.four_octets {
            // RFC 6793 4.2.3: an aggregator with two octets did not know the AS4 attributes, so that they are stale.
            let aggregated = self.rare.aggregator.is_some_and(|aggregator| aggregator.asn != AS_TRANS);
            if !(aggregated && self.as4_aggregator.is_some()) {
                if self.as4_aggregator.is_some() && self.rare.aggregator.is_some() {
                    self.rare.aggregator = self.as4_aggregator;
                }
                if let Some(four) = &self.as4_path {
                    as_path = as_path.merged(four);
                }
            }
        }
        self.unknown.sort_unstable();
        self.rare.unknown = self.unknown.into();
        let mut attributes = Attributes::local(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        attributes.origin = self.origin?;
        attributes.as_path = as_path;
        attributes.med = self.med;
        attributes.local_pref = self.local_pref;
        attributes.communities = self.communities;
        let rare = self.rare;
        if rare != Rare::default() {
            attributes.change_rare(|empty| *empty = rare);
        }
        Some(attributes)
    }

    pub fn has_seen(&self, number: u8) -> bool {
        self.seen.get(usize::from(number / 64)).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// Keeps the worst error of each attribute: a message has room for thousands of repeated ones.
    fn add_flaw(&mut self, raw: Raw, refused: Refused) {
        let Refused { fault, treatment, reason } = refused;
        if self.flaws.iter().any(|known| known.attribute == raw.number && known.treatment >= treatment) {
            return;
        }
        self.flaws.retain(|known| known.attribute != raw.number);
        self.flaws.push(Flaw { attribute: raw.number, fault, treatment, reason, data: raw.whole.to_vec() });
    }

    fn read(&mut self, raw: Raw, dialect: &Dialect) -> Result<()> {
        if self.has_seen(raw.number) {
            // RFC 7606 3 g.
            return match raw.number {
                MP_REACH | MP_UNREACH => {
                    refused(Treatment::Reset, Reason::MALFORMED_ATTRIBUTES, "a multiprotocol attribute twice")
                }
                _ => discard("an attribute twice"),
            };
        }
        if let Some(word) = self.seen.get_mut(usize::from(raw.number / 64)) {
            *word |= 1 << (raw.number % 64);
        }
        // RFC 7606 7.5, 7.9, 7.10: discarded from external peers whatever their value.
        if !dialect.internal && [LOCAL_PREF, ORIGINATOR_ID, CLUSTER_LIST].contains(&raw.number) {
            return discard("an attribute that has no meaning from another autonomous system");
        }
        if let Some(flags) = expected_flags(raw.number)
            && raw.flags & (OPTIONAL | TRANSITIVE) != flags
        {
            if [MP_REACH, MP_UNREACH].contains(&raw.number) {
                // It contains the prefixes to treat as withdrawn.
                self.read_value(raw, dialect)?;
            }
            return withdraw(Reason::ATTRIBUTE_FLAGS, "the flags are not those of the attribute");
        }
        self.read_value(raw, dialect)
    }

    fn read_value(&mut self, raw: Raw, dialect: &Dialect) -> Result<()> {
        let value = raw.value;
        match raw.number {
            ORIGIN => self.origin = Some(origin(value)?),
            AS_PATH => self.as_path = Some(as_path(value, dialect)?),
            NEXT_HOP => self.next_hop = Some(Ipv4Addr::from(sized::<4>(value)?)),
            MED => self.med = Some(u32::from_be_bytes(sized(value)?)),
            LOCAL_PREF => self.local_pref = Some(u32::from_be_bytes(sized(value)?)),
            ATOMIC_AGGREGATE if value.is_empty() => self.rare.atomic_aggregate = true,
            ATOMIC_AGGREGATE => return discard("ATOMIC_AGGREGATE has a value"),
            AGGREGATOR => self.rare.aggregator = Some(aggregator(value, dialect.four_octets)?),
            COMMUNITIES => self.communities = list(value, |bytes| Community(u32::from_be_bytes(bytes)))?,
            ORIGINATOR_ID => self.rare.originator = Some(Ipv4Addr::from(sized::<4>(value)?)),
            CLUSTER_LIST => self.rare.clusters = in_order(value)?,
            EXTENDED_COMMUNITIES => {
                self.rare.extended = list(value, |bytes| ExtendedCommunity(u64::from_be_bytes(bytes)))?;
            }
            LARGE_COMMUNITIES => self.rare.large = list(value, large)?,
            AS4_PATH | AS4_AGGREGATOR if dialect.four_octets => {
                return discard("an attribute of two-octet speakers, from one that has four");
            }
            // RFC 6793 6: it has at least one AS number.
            AS4_PATH if value.len() < 6 => return discard("AS4_PATH is too short"),
            AS4_PATH => {
                let path = AsPath::decode(value, true, Kind::As4Path);
                self.as4_path = Some(path.map_or_else(|| discard("AS4_PATH is malformed"), Ok)?);
            }
            AS4_AGGREGATOR => self.as4_aggregator = Some(aggregator(value, true)?),
            MP_REACH => self.reach = reach(value, dialect)?,
            MP_UNREACH => self.unreach = unreach(value, dialect)?,
            _ => return self.read_unknown(raw),
        }
        Ok(())
    }

    /// RFC 4271 5 and 9: an unrecognized transitive attribute is passed on with the Partial bit set.
    fn read_unknown(&mut self, raw: Raw) -> Result<()> {
        if raw.flags & OPTIONAL == 0 {
            let fault = "a well-known attribute that we do not know";
            return refused(Treatment::Reset, Reason::UNRECOGNIZED_WELL_KNOWN, fault);
        }
        if raw.flags & TRANSITIVE != 0 {
            let flags = OPTIONAL | TRANSITIVE | PARTIAL;
            self.unknown.push(Unknown { number: raw.number, flags, value: raw.value.into() });
        }
        Ok(())
    }
}

fn raw<'a>(reader: &mut Reader<'a>) -> Option<Raw<'a>> {
    let start = reader.rest();
    let (flags, number) = (reader.u8()?, reader.u8()?);
    let length = if flags & EXTENDED_LENGTH != 0 { reader.u16()? } else { u16::from(reader.u8()?) };
    let value = reader.bytes(usize::from(length))?;
    let whole = start.get(..start.len() - reader.len())?;
    Some(Raw { flags, number, value, whole })
}

/// Expected Optional and Transitive bits; `None` for an unrecognized attribute.
fn expected_flags(number: u8) -> Option<u8> {
    Some(match number {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREF | ATOMIC_AGGREGATE => TRANSITIVE,
        MED | ORIGINATOR_ID | CLUSTER_LIST | MP_REACH | MP_UNREACH => OPTIONAL,
        AGGREGATOR | COMMUNITIES | EXTENDED_COMMUNITIES | AS4_PATH | AS4_AGGREGATOR | LARGE_COMMUNITIES => {
            OPTIONAL | TRANSITIVE
        }
        _ => return None,
    })
}

fn origin(value: &[u8]) -> Result<Origin> {
    match sized::<1>(value)? {
        [0] => Ok(Origin::Igp),
        [1] => Ok(Origin::Egp),
        [2] => Ok(Origin::Incomplete),
        _ => withdraw(Reason::INVALID_ORIGIN, "ORIGIN has a value that it cannot have"),
    }
}

fn as_path(value: &[u8], dialect: &Dialect) -> Result<AsPath> {
    let path = AsPath::decode(value, dialect.four_octets, Kind::AsPath);
    path.map_or_else(|| withdraw(Reason::MALFORMED_AS_PATH, "AS_PATH is malformed"), Ok)
}

/// RFC 7606 7.7, RFC 7607 2: a malformed AGGREGATOR is discarded.
fn aggregator(value: &[u8], four_octets: bool) -> Result<Aggregator> {
    let mut reader = Reader::new(value);
    let asn = if four_octets { reader.u32() } else { reader.u16().map(u32::from) };
    match (asn, reader.ipv4(), reader.is_empty()) {
        (Some(0), ..) => discard("an aggregator in AS 0"),
        (Some(asn), Some(router), true) => Ok(Aggregator { asn, router }),
        _ => discard("an aggregator of a wrong length"),
    }
}

fn sized<const N: usize>(value: &[u8]) -> Result<[u8; N]> {
    let fits = <[u8; N]>::try_from(value).ok();
    fits.map_or_else(|| withdraw(Reason::ATTRIBUTE_LENGTH, "the value has a wrong length"), Ok)
}

/// Elements of a non-empty list, each of `N` bytes.
fn chunks<const N: usize>(value: &[u8]) -> Result<&[[u8; N]]> {
    match value.as_chunks::<N>() {
        ([], _) | (_, [_, ..]) => withdraw(Reason::OPTIONAL_ATTRIBUTE, "the list has a wrong length"),
        (chunks, []) => Ok(chunks),
    }
}

fn list<const N: usize, T: Ord>(value: &[u8], one: impl Fn([u8; N]) -> T) -> Result<Box<[T]>> {
    Ok(sorted(chunks::<N>(value)?.iter().map(|bytes| one(*bytes))))
}

fn in_order(value: &[u8]) -> Result<Box<[Ipv4Addr]>> {
    Ok(chunks::<4>(value)?.iter().map(|bytes| Ipv4Addr::from(*bytes)).collect())
}

fn large(bytes: [u8; 12]) -> LargeCommunity {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    LargeCommunity([[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_be_bytes))
}

/// Parses AFI and SAFI of both multiprotocol attributes. An address family that was not negotiated is skipped: our
/// tables have none of its routes.
fn multiprotocol(reader: &mut Reader, dialect: &Dialect) -> Result<Option<Family>> {
    let (Some(afi), Some(safi)) = (reader.u16(), reader.u8()) else {
        return refused(Treatment::Reset, Reason::OPTIONAL_ATTRIBUTE, "a multiprotocol attribute without a family");
    };
    match family_of(afi, safi).filter(|family| *dialect.families.of(*family)) {
        Some(family) => Ok(Some(family)),
        None => discard("a family that this session does not speak"),
    }
}

/// RFC 7606 7.11 and RFC 4760 7: an error here hides the affected routes. The address family is disabled; where it is
/// the only one, the session is reset.
fn give_up<T>(family: Family, dialect: &Dialect, reason: Reason, fault: &'static str) -> Result<T> {
    let others = dialect.families.iter().any(|(other, spoken)| other != family && *spoken);
    refused(if others { Treatment::DisableFamily(family) } else { Treatment::Reset }, reason, fault)
}

fn reach(value: &[u8], dialect: &Dialect) -> Result<Option<Reach>> {
    let mut reader = Reader::new(value);
    let Some(family) = multiprotocol(&mut reader, dialect)? else { return Ok(None) };
    let next_hop = reader.u8().and_then(|length| reader.bytes(usize::from(length)));
    let Some((next_hop, link_local)) = next_hop.and_then(|bytes| next_hops(family, bytes, dialect)) else {
        return give_up(family, dialect, Reason::OPTIONAL_ATTRIBUTE, "a next hop of a wrong length");
    };
    // Reserved octet (RFC 4760 3).
    let networks = reader.u8().and_then(|_| prefix::decode(family, reader.rest()));
    match networks {
        Some(prefixes) => Ok(Some(Reach { next_hop, link_local, prefixes })),
        None => give_up(family, dialect, Reason::OPTIONAL_ATTRIBUTE, "a prefix that is none"),
    }
}

/// One or two next hops. For IPv4 they may be IPv6 addresses where that was negotiated (RFC 8950).
fn next_hops(family: Family, bytes: &[u8], dialect: &Dialect) -> Option<(IpAddr, Option<Ipv6Addr>)> {
    let mut reader = Reader::new(bytes);
    match (family, bytes.len()) {
        (Family::V4, 4) => Some((IpAddr::V4(reader.ipv4()?), None)),
        (Family::V4, 16 | 32) if !dialect.extended_next_hop => None,
        (_, 16) => Some((IpAddr::V6(reader.ipv6()?), None)),
        (_, 32) => Some((IpAddr::V6(reader.ipv6()?), reader.ipv6().filter(Ipv6Addr::is_unicast_link_local))),
        _ => None,
    }
}

fn unreach(value: &[u8], dialect: &Dialect) -> Result<Option<Unreach>> {
    let mut reader = Reader::new(value);
    let Some(family) = multiprotocol(&mut reader, dialect)? else { return Ok(None) };
    match prefix::decode(family, reader.rest()) {
        Some(prefixes) => Ok(Some(Unreach { family, prefixes })),
        None => give_up(family, dialect, Reason::OPTIONAL_ATTRIBUTE, "a prefix that is none"),
    }
}
