//! Wire differences between the two versions of the API.
//!
//! GoBGP 3.x has `google.protobuf.Any` where 4.x has messages with a `oneof`. Most enumerations of 4.x begin with an
//! unspecified value, so that all others are shifted by one; here a value of 3.x is a *place*. A client of 4.x that
//! omits such a field means unspecified, one of 3.x the first value.

use ipnet::IpNet;
use prost::Message;

use super::wire::messages::attribute::Attr;
use super::wire::messages::capability::Cap;
use super::wire::messages::extended_community::Extcom;
use super::wire::messages::{
    Any, Attribute, Capability, ExtendedCommunity, Family as Spoken, IpAddressPrefix, Nlri, nlri,
};
use crate::net::Family;

/// Version of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V3,
    V4,
}

/// Prefix of type names in 3.x.
const TYPE: &str = "type.googleapis.com/apipb.";

impl Version {
    /// Value of an enumeration.
    pub fn number(self, place: i32) -> i32 {
        place.saturating_add(i32::from(self == Version::V4))
    }

    /// Place of a value that a client sent; `None` where it is unspecified.
    pub fn place(self, number: i32) -> Option<i32> {
        let place = number.saturating_sub(i32::from(self == Version::V4));
        (place >= 0).then_some(place)
    }

    pub fn nlri(self, prefix: IpNet) -> Vec<u8> {
        let message =
            IpAddressPrefix { prefix_len: u32::from(prefix.prefix_len()), prefix: prefix.network().to_string() };
        match self {
            Version::V3 => any("IPAddressPrefix", &message),
            Version::V4 => Nlri { nlri: Some(nlri::Nlri::Prefix(message)) }.encode_to_vec(),
        }
    }

    /// Reads a prefix that a client sent; `None` when it is invalid.
    pub fn read_nlri(self, bytes: &[u8]) -> Option<IpNet> {
        let message = match self {
            Version::V3 => {
                let any = Any::decode(bytes).ok()?;
                (name(&any) == "IPAddressPrefix").then(|| IpAddressPrefix::decode(any.value.as_slice()).ok())??
            }
            Version::V4 => match Nlri::decode(bytes).ok()?.nlri? {
                nlri::Nlri::Prefix(message) => message,
            },
        };
        let length = u8::try_from(message.prefix_len).ok()?;
        IpNet::new(message.prefix.parse().ok()?, length).ok().map(|prefix| prefix.trunc())
    }

    pub fn attribute(self, attr: Attr) -> Vec<u8> {
        if self == Version::V4 {
            return Attribute { attr: Some(attr) }.encode_to_vec();
        }
        match &attr {
            Attr::Unknown(it) => any("UnknownAttribute", it),
            Attr::Origin(it) => any("OriginAttribute", it),
            Attr::AsPath(it) => any("AsPathAttribute", it),
            Attr::NextHop(it) => any("NextHopAttribute", it),
            Attr::MultiExitDisc(it) => any("MultiExitDiscAttribute", it),
            Attr::LocalPref(it) => any("LocalPrefAttribute", it),
            Attr::AtomicAggregate(it) => any("AtomicAggregateAttribute", it),
            Attr::Aggregator(it) => any("AggregatorAttribute", it),
            Attr::Communities(it) => any("CommunitiesAttribute", it),
            Attr::OriginatorId(it) => any("OriginatorIdAttribute", it),
            Attr::ClusterList(it) => any("ClusterListAttribute", it),
            Attr::MpReach(it) => any("MpReachNLRIAttribute", it),
            Attr::ExtendedCommunities(it) => any("ExtendedCommunitiesAttribute", it),
            Attr::LargeCommunities(it) => any("LargeCommunitiesAttribute", it),
        }
    }

    /// Reads an attribute that a client sent; `None` for an unsupported one.
    pub fn read_attribute(self, bytes: &[u8]) -> Option<Attr> {
        if self == Version::V4 {
            return Attribute::decode(bytes).ok()?.attr;
        }
        let any = Any::decode(bytes).ok()?;
        let value = any.value.as_slice();
        match name(&any) {
            "OriginAttribute" => Message::decode(value).ok().map(Attr::Origin),
            "AsPathAttribute" => Message::decode(value).ok().map(Attr::AsPath),
            "NextHopAttribute" => Message::decode(value).ok().map(Attr::NextHop),
            "MultiExitDiscAttribute" => Message::decode(value).ok().map(Attr::MultiExitDisc),
            "LocalPrefAttribute" => Message::decode(value).ok().map(Attr::LocalPref),
            "AtomicAggregateAttribute" => Message::decode(value).ok().map(Attr::AtomicAggregate),
            "AggregatorAttribute" => Message::decode(value).ok().map(Attr::Aggregator),
            "CommunitiesAttribute" => Message::decode(value).ok().map(Attr::Communities),
            "MpReachNLRIAttribute" => Message::decode(value).ok().map(Attr::MpReach),
            "ExtendedCommunitiesAttribute" => Message::decode(value).ok().map(Attr::ExtendedCommunities),
            "LargeCommunitiesAttribute" => Message::decode(value).ok().map(Attr::LargeCommunities),
            _ => None,
        }
    }

    pub fn extended_community(self, extcom: Extcom) -> Vec<u8> {
        if self == Version::V4 {
            return ExtendedCommunity { extcom: Some(extcom) }.encode_to_vec();
        }
        match &extcom {
            Extcom::Unknown(it) => any("UnknownExtended", it),
            Extcom::TwoOctetAsSpecific(it) => any("TwoOctetAsSpecificExtended", it),
            Extcom::Ipv4AddressSpecific(it) => any("IPv4AddressSpecificExtended", it),
            Extcom::FourOctetAsSpecific(it) => any("FourOctetAsSpecificExtended", it),
        }
    }

    pub fn read_extended_community(self, bytes: &[u8]) -> Option<Extcom> {
        if self == Version::V4 {
            return ExtendedCommunity::decode(bytes).ok()?.extcom;
        }
        let any = Any::decode(bytes).ok()?;
        let value = any.value.as_slice();
        match name(&any) {
            "UnknownExtended" => Message::decode(value).ok().map(Extcom::Unknown),
            "TwoOctetAsSpecificExtended" => Message::decode(value).ok().map(Extcom::TwoOctetAsSpecific),
            "IPv4AddressSpecificExtended" => Message::decode(value).ok().map(Extcom::Ipv4AddressSpecific),
            "FourOctetAsSpecificExtended" => Message::decode(value).ok().map(Extcom::FourOctetAsSpecific),
            _ => None,
        }
    }

    pub fn capability(self, cap: Cap) -> Vec<u8> {
        if self == Version::V4 {
            return Capability { cap: Some(cap) }.encode_to_vec();
        }
        match &cap {
            Cap::Unknown(it) => any("UnknownCapability", it),
            Cap::MultiProtocol(it) => any("MultiProtocolCapability", it),
            Cap::RouteRefresh(it) => any("RouteRefreshCapability", it),
            Cap::CarryingLabelInfo(it) => any("CarryingLabelInfoCapability", it),
            Cap::ExtendedNexthop(it) => any("ExtendedNexthopCapability", it),
            Cap::GracefulRestart(it) => any("GracefulRestartCapability", it),
            Cap::FourOctetAsn(it) => any("FourOctetASNCapability", it),
            Cap::AddPath(it) => any("AddPathCapability", it),
            Cap::EnhancedRouteRefresh(it) => any("EnhancedRouteRefreshCapability", it),
            Cap::LongLivedGracefulRestart(it) => any("LongLivedGracefulRestartCapability", it),
            Cap::RouteRefreshCisco(it) => any("RouteRefreshCiscoCapability", it),
            Cap::Fqdn(it) => any("FqdnCapability", it),
            // 3.10 has no message for it, and would then display none at all.
            Cap::SoftwareVersion(it) => any("SoftwareVersionCapability", it),
        }
    }
}

fn any(name: &str, message: &impl Message) -> Vec<u8> {
    Any { type_url: format!("{TYPE}{name}"), value: message.encode_to_vec() }.encode_to_vec()
}

/// Name of the message inside. Encoders may choose another host in front of it.
fn name(any: &Any) -> &str {
    any.type_url.rsplit(['.', '/']).next().unwrap_or_default()
}

/// AFI and SAFI of an address family; only unicast is supported.
pub fn spoken(family: Family) -> Spoken {
    let afi = match family {
        Family::V4 => 1,
        Family::V6 => 2,
    };
    Spoken { afi, safi: 1 }
}

/// Address family that a client requests, by default IPv4; `None` for an unsupported one.
pub fn meant(family: Option<&Spoken>) -> Option<Family> {
    match family.map_or((0, 0), |family| (family.afi, family.safi)) {
        (0, 0) | (1, 1) => Some(Family::V4),
        (2, 1) => Some(Family::V6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gobgp::wire::messages::OriginAttribute;

    #[test]
    fn a_prefix_reads_as_it_was_written_in_both_versions() {
        for text in ["10.244.1.0/24", "fd00:10:244::/56", "0.0.0.0/0"] {
            let prefix: IpNet = text.parse().unwrap();
            for version in [Version::V3, Version::V4] {
                assert_eq!(version.read_nlri(&version.nlri(prefix)), Some(prefix), "{version:?}");
            }
        }
        assert_eq!(Version::V3.read_nlri(&Version::V4.nlri("10.0.0.0/8".parse().unwrap())), None);
    }

    #[test]
    fn the_bytes_are_those_that_the_clients_expect() {
        // Field 1 with a message: its fields 1 (length 24) and 2 (text).
        let expected = [&[0x0a, 14, 0x08, 24, 0x12, 10][..], b"10.244.1.0"].concat();
        assert_eq!(Version::V4.nlri("10.244.1.0/24".parse().unwrap()), expected);
        let url = b"type.googleapis.com/apipb.OriginAttribute";
        let origin = Version::V3.attribute(Attr::Origin(OriginAttribute { origin: 0 }));
        assert_eq!(origin, [&[0x0a, url.len() as u8][..], url].concat(), "the first origin has no bytes, and is there");
        assert_eq!(Version::V4.attribute(Attr::Origin(OriginAttribute { origin: 0 })), [0x12, 0]);
    }

    #[test]
    fn a_number_that_means_nothing_is_in_one_version_only() {
        assert_eq!((Version::V3.place(0), Version::V4.place(0), Version::V4.place(1)), (Some(0), None, Some(0)));
        assert_eq!((Version::V3.number(2), Version::V4.number(2)), (2, 3));
        assert_eq!(Version::V4.place(i32::MIN), None);
    }
}
