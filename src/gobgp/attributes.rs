//! Path attributes as clients read and write them.
//!
//! RFC 4271 5 and 4760. An IPv4 next hop of an IPv4 prefix is NEXT_HOP, every other one is in MP_REACH_NLRI, as on the
//! wire. Clients display no route that has two attributes of a type.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::version::{Version, spoken};
use super::wire::messages::attribute::Attr;
use super::wire::messages::extended_community::Extcom;
use super::wire::messages::{
    AggregatorAttribute, AsPathAttribute, AsSegment, AtomicAggregateAttribute, ClusterListAttribute,
    CommunitiesAttribute, ExtendedCommunitiesAttribute, FourOctetAsSpecificExtended, IPv4AddressSpecificExtended,
    LargeCommunitiesAttribute, LargeCommunity as Large, LocalPrefAttribute, MpReachNlriAttribute,
    MultiExitDiscAttribute, NextHopAttribute, OriginAttribute, OriginatorIdAttribute, TwoOctetAsSpecificExtended,
    UnknownAttribute, UnknownExtended,
};
use crate::bgp::message::{Aggregator, AsPath, Attributes, Community, ExtendedCommunity, LargeCommunity, Origin};
use crate::net::{Family, LinkNames};

const SET: i32 = 1;
const SEQUENCE: i32 = 2;

/// Encodes the attributes of a route to a prefix, in the order of their type codes.
pub fn attributes(version: Version, prefix: IpNet, of: &Attributes) -> Vec<Vec<u8>> {
    all(version, prefix, of).into_iter().map(|attr| version.attribute(attr)).collect()
}

fn all(version: Version, prefix: IpNet, of: &Attributes) -> Vec<Attr> {
    let rare = of.rare();
    let mut attrs = vec![Attr::Origin(OriginAttribute { origin: of.origin as u32 })];
    let segments = of.as_path.segments().map(|segment| AsSegment {
        r#type: if segment.is_set { SET } else { SEQUENCE },
        numbers: segment.numbers().collect(),
    });
    attrs.push(Attr::AsPath(AsPathAttribute { segments: segments.collect() }));
    let plain = Family::from(prefix) == Family::V4 && of.next_hop.is_ipv4();
    if plain {
        attrs.push(Attr::NextHop(NextHopAttribute { next_hop: of.next_hop.to_string() }));
    }
    attrs.extend(of.med.map(|med| Attr::MultiExitDisc(MultiExitDiscAttribute { med })));
    attrs.extend(of.local_pref.map(|local_pref| Attr::LocalPref(LocalPrefAttribute { local_pref })));
    if rare.atomic_aggregate {
        attrs.push(Attr::AtomicAggregate(AtomicAggregateAttribute {}));
    }
    attrs.extend(
        rare.aggregator.map(|Aggregator { asn, router }| {
            Attr::Aggregator(AggregatorAttribute { asn, address: router.to_string() })
        }),
    );
    if !of.communities.is_empty() {
        let communities = of.communities.iter().map(|one| one.0).collect();
        attrs.push(Attr::Communities(CommunitiesAttribute { communities }));
    }
    attrs.extend(rare.originator.map(|id| Attr::OriginatorId(OriginatorIdAttribute { id: id.to_string() })));
    if !rare.clusters.is_empty() {
        let ids = rare.clusters.iter().map(Ipv4Addr::to_string).collect();
        attrs.push(Attr::ClusterList(ClusterListAttribute { ids }));
    }
    if !plain {
        let link_local = rare.link_local.map(|link_local| link_local.to_string());
        attrs.push(Attr::MpReach(MpReachNlriAttribute {
            family: Some(spoken(Family::from(prefix))),
            next_hops: std::iter::once(LinkNames::default().text(of.next_hop)).chain(link_local).collect(),
            nlris: vec![version.nlri(prefix)],
        }));
    }
    if !rare.extended.is_empty() {
        let communities = rare.extended.iter().map(|one| version.extended_community(extended(*one)));
        attrs.push(Attr::ExtendedCommunities(ExtendedCommunitiesAttribute { communities: communities.collect() }));
    }
    if !rare.large.is_empty() {
        let communities = rare.large.iter().map(|LargeCommunity([global_admin, local_data1, local_data2])| Large {
            global_admin: *global_admin,
            local_data1: *local_data1,
            local_data2: *local_data2,
        });
        attrs.push(Attr::LargeCommunities(LargeCommunitiesAttribute { communities: communities.collect() }));
    }
    attrs.extend(rare.unknown.iter().map(|one| {
        let (flags, number, value) = (one.flags.into(), one.number.into(), one.value.to_vec());
        Attr::Unknown(UnknownAttribute { flags, r#type: number, value })
    }));
    attrs
}

/// Non-transitive bit of an extended community (RFC 4360 2).
const STAYS: u8 = 0x40;

fn extended(one: ExtendedCommunity) -> Extcom {
    let [kind, sub_type, value @ ..] = one.0.to_be_bytes();
    let [a, b, c, d, e, f] = value;
    let (is_transitive, sub_type_number) = (kind & STAYS == 0, u32::from(sub_type));
    match kind & !STAYS {
        0 => Extcom::TwoOctetAsSpecific(TwoOctetAsSpecificExtended {
            is_transitive,
            sub_type: sub_type_number,
            asn: u16::from_be_bytes([a, b]).into(),
            local_admin: u32::from_be_bytes([c, d, e, f]),
        }),
        1 => Extcom::Ipv4AddressSpecific(IPv4AddressSpecificExtended {
            is_transitive,
            sub_type: sub_type_number,
            address: Ipv4Addr::new(a, b, c, d).to_string(),
            local_admin: u16::from_be_bytes([e, f]).into(),
        }),
        2 => Extcom::FourOctetAsSpecific(FourOctetAsSpecificExtended {
            is_transitive,
            sub_type: sub_type_number,
            asn: u32::from_be_bytes([a, b, c, d]),
            local_admin: u16::from_be_bytes([e, f]).into(),
        }),
        _ => Extcom::Unknown(UnknownExtended { r#type: kind.into(), value: [&[sub_type][..], &value].concat() }),
    }
}

fn read_extended(extcom: &Extcom) -> Option<ExtendedCommunity> {
    let stays = |is_transitive: bool| if is_transitive { 0 } else { STAYS };
    let bytes = match extcom {
        Extcom::TwoOctetAsSpecific(it) => {
            let [a, b] = u16::try_from(it.asn).ok()?.to_be_bytes();
            let [c, d, e, f] = it.local_admin.to_be_bytes();
            [stays(it.is_transitive), u8::try_from(it.sub_type).ok()?, a, b, c, d, e, f]
        }
        Extcom::Ipv4AddressSpecific(it) => {
            let [a, b, c, d] = it.address.parse::<Ipv4Addr>().ok()?.octets();
            let [e, f] = u16::try_from(it.local_admin).ok()?.to_be_bytes();
            [1 | stays(it.is_transitive), u8::try_from(it.sub_type).ok()?, a, b, c, d, e, f]
        }
        Extcom::FourOctetAsSpecific(it) => {
            let [a, b, c, d] = it.asn.to_be_bytes();
            let [e, f] = u16::try_from(it.local_admin).ok()?.to_be_bytes();
            [2 | stays(it.is_transitive), u8::try_from(it.sub_type).ok()?, a, b, c, d, e, f]
        }
        Extcom::Unknown(it) => {
            let [sub, a, b, c, d, e, f] = *it.value.as_slice() else { return None };
            [u8::try_from(it.r#type).ok()?, sub, a, b, c, d, e, f]
        }
    };
    Some(ExtendedCommunity(u64::from_be_bytes(bytes)))
}

/// Reads the attributes of a route that a client adds. Unknown optional attributes are rejected: the client set them on
/// purpose.
///
/// # Errors
/// An attribute is malformed, or is none that can be added here, as a sentence for the client.
pub fn read(version: Version, family: Family, pattrs: &[Vec<u8>]) -> Result<Attributes, String> {
    let unspecified = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    let mut made = Attributes::local(unspecified);
    for (place, bytes) in pattrs.iter().enumerate() {
        let attr = version.read_attribute(bytes);
        let attr =
            attr.ok_or_else(|| format!("attribute {} of the route is none that can be added here", place + 1))?;
        take(version, &mut made, attr).ok_or_else(|| format!("attribute {} of the route is malformed", place + 1))?;
    }
    Ok(made)
}

/// Adds one attribute; `None` when it is malformed.
fn take(version: Version, made: &mut Attributes, attr: Attr) -> Option<()> {
    match attr {
        Attr::Origin(it) => {
            made.origin = *[Origin::Igp, Origin::Egp, Origin::Incomplete].get(usize::try_from(it.origin).ok()?)?;
        }
        Attr::AsPath(it) => {
            let is_plain =
                it.segments.iter().all(|segment| segment.r#type == SEQUENCE && !segment.numbers.contains(&0));
            let numbers: Vec<u32> = it.segments.into_iter().flat_map(|segment| segment.numbers).collect();
            made.as_path = is_plain.then(|| AsPath::sequence(&numbers))?;
        }
        Attr::NextHop(it) => made.next_hop = it.next_hop.parse().ok()?,
        Attr::MpReach(it) => made.next_hop = it.next_hops.first()?.parse().ok()?,
        Attr::MultiExitDisc(it) => made.med = Some(it.med),
        Attr::LocalPref(it) => made.local_pref = Some(it.local_pref),
        Attr::AtomicAggregate(_) => made.change_rare(|rare| rare.atomic_aggregate = true),
        Attr::Aggregator(it) => {
            let router = it.address.parse().ok()?;
            made.change_rare(|rare| rare.aggregator = Some(Aggregator { asn: it.asn, router }));
        }
        Attr::Communities(it) => {
            let communities: Vec<Community> = it.communities.into_iter().map(Community).collect();
            made.add_communities(&communities);
        }
        Attr::ExtendedCommunities(it) => {
            let read = |bytes: &Vec<u8>| read_extended(&version.read_extended_community(bytes)?);
            let all: Option<BTreeSet<ExtendedCommunity>> = it.communities.iter().map(read).collect();
            let all = all?;
            made.change_rare(|rare| rare.extended = all.into_iter().collect());
        }
        Attr::LargeCommunities(it) => {
            let read = |one: &Large| LargeCommunity([one.global_admin, one.local_data1, one.local_data2]);
            let all: BTreeSet<LargeCommunity> = it.communities.iter().map(read).collect();
            made.change_rare(|rare| rare.large = all.into_iter().collect());
        }
        Attr::Unknown(_) | Attr::OriginatorId(_) | Attr::ClusterList(_) => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rich(next_hop: &str) -> Attributes {
        let mut attributes = Attributes::local(next_hop.parse().unwrap());
        attributes.origin = Origin::Incomplete;
        attributes.as_path = AsPath::sequence(&[65001, 4_200_000_001]);
        (attributes.med, attributes.local_pref) = (Some(5), Some(200));
        attributes.add_communities(&[Community(65001 << 16 | 100), Community::NO_EXPORT]);
        attributes.change_rare(|rare| {
            rare.aggregator = Some(Aggregator { asn: 65001, router: [192, 0, 2, 9].into() });
            rare.atomic_aggregate = true;
            let all = [0x0002_fde9_0000_012c, 0x0102_c000_0201_0007, 0x4204_0001_0002_0003, 0x8006_0000_4974_2400];
            rare.extended = all.map(ExtendedCommunity).into();
            rare.large = [LargeCommunity([65001, 1, 2])].into();
        });
        attributes
    }

    #[test]
    fn a_route_reads_as_it_was_written_in_both_versions() {
        for (prefix, next_hop) in
            [("10.244.1.0/24", "192.0.2.1"), ("10.244.1.0/24", "2001:db8::1"), ("fd00:10:244:1::/64", "2001:db8::1")]
        {
            let prefix: IpNet = prefix.parse().unwrap();
            for version in [Version::V3, Version::V4] {
                let written = attributes(version, prefix, &rich(next_hop));
                assert_eq!(read(version, Family::from(prefix), &written), Ok(rich(next_hop)), "{prefix} {version:?}");
            }
        }
    }

    #[test]
    fn no_attribute_is_there_twice() {
        for (prefix, next_hop) in [("10.244.1.0/24", "192.0.2.1"), ("fd00:10:244:1::/64", "2001:db8::1")] {
            let all = all(Version::V4, prefix.parse().unwrap(), &rich(next_hop));
            let kinds: BTreeSet<String> =
                all.iter().map(|attr| format!("{attr:?}").split('(').next().unwrap().to_owned()).collect();
            assert_eq!(kinds.len(), all.len(), "{all:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_sentence() {
        let refused = |attr| read(Version::V4, Family::V4, &[Version::V4.attribute(attr)]).unwrap_err();
        let origin = refused(Attr::Origin(OriginAttribute { origin: 3 }));
        assert_eq!(origin, "attribute 1 of the route is malformed");
        refused(Attr::NextHop(NextHopAttribute { next_hop: "here".into() }));
        let segments = vec![AsSegment { r#type: SEQUENCE, numbers: vec![0] }];
        refused(Attr::AsPath(AsPathAttribute { segments }));
        assert!(read(Version::V3, Family::V4, &[vec![0xff; 4]]).is_err(), "no message at all");
        assert!(read(Version::V3, Family::V4, &[]).unwrap().next_hop.is_unspecified());
    }
}
