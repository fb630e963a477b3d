//! Capabilities of both OPENs (RFC 5492), as clients display them.
//!
//! A client drops all capabilities of a neighbour when one among them has no message, and aborts when a capability that
//! it supports arrives as unknown. So those that our speaker leaves unparsed are parsed here, as far as clients support
//! them.

use super::version::{Version, spoken};
use super::wire::messages::capability::Cap;
use super::wire::messages::{
    AddPathCapability, AddPathCapabilityTuple, CarryingLabelInfoCapability, EnhancedRouteRefreshCapability,
    ExtendedNexthopCapability, ExtendedNexthopCapabilityTuple, Family as Spoken, FourOctetAsnCapability,
    FqdnCapability, GracefulRestartCapability, GracefulRestartCapabilityTuple, LongLivedGracefulRestartCapability,
    LongLivedGracefulRestartCapabilityTuple, MultiProtocolCapability, RouteRefreshCapability,
    RouteRefreshCiscoCapability, SoftwareVersionCapability, UnknownCapability,
};
use crate::bgp::message::{Capabilities, GracefulRestart, LongLivedFamily, LongLivedRestart};
use crate::net::Family;

const CARRYING_LABELS: u8 = 4;
const EXTENDED_MESSAGE: u8 = 6;
const ADD_PATH: u8 = 69;
const FQDN: u8 = 73;
const SOFTWARE_VERSION: u8 = 75;
const REFRESH_OF_CISCO: u8 = 128;

/// Encodes all capabilities of one side.
pub fn capabilities(version: Version, all: &Capabilities) -> Vec<Vec<u8>> {
    let mut caps = Vec::new();
    for family in Family::BOTH.into_iter().filter(|family| *all.families.of(*family)) {
        caps.push(Cap::MultiProtocol(MultiProtocolCapability { family: Some(spoken(family)) }));
    }
    if all.refresh {
        caps.push(Cap::RouteRefresh(RouteRefreshCapability {}));
    }
    if all.extended_next_hop {
        let [nlri_family, nexthop_family] = Family::BOTH.map(|family| Some(spoken(family)));
        let tuples = vec![ExtendedNexthopCapabilityTuple { nlri_family, nexthop_family }];
        caps.push(Cap::ExtendedNexthop(ExtendedNexthopCapability { tuples }));
    }
    if all.extended_message {
        // Clients before 4.7 have no message for it.
        caps.push(Cap::Unknown(UnknownCapability { code: EXTENDED_MESSAGE.into(), value: Vec::new() }));
    }
    caps.extend(all.restart.as_ref().map(graceful_restart));
    caps.extend(all.long_lived.as_ref().map(long_lived));
    caps.extend(all.asn.map(|asn| Cap::FourOctetAsn(FourOctetAsnCapability { asn })));
    if all.enhanced_refresh {
        caps.push(Cap::EnhancedRouteRefresh(EnhancedRouteRefreshCapability {}));
    }
    caps.extend(all.unknown.iter().filter_map(|(code, value)| other(version, *code, value)));
    caps.into_iter().map(|cap| version.capability(cap)).collect()
}

fn graceful_restart(restart: &GracefulRestart) -> Cap {
    const RESTARTING: u32 = 8;
    const NOTIFICATIONS: u32 = 4;
    const FORWARDING: u32 = 0x80;
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    let kept = restart.families.iter().filter_map(|(family, kept)| Some((family, (*kept)?)));
    let tuple = |(family, forwarding)| GracefulRestartCapabilityTuple {
        family: Some(spoken(family)),
        flags: bit(forwarding, FORWARDING),
    };
    Cap::GracefulRestart(GracefulRestartCapability {
        flags: bit(restart.restarting, RESTARTING) | bit(restart.notifications, NOTIFICATIONS),
        time: restart.seconds.into(),
        tuples: kept.map(tuple).collect(),
    })
}

fn long_lived(long_lived: &LongLivedRestart) -> Cap {
    let kept = long_lived.families.iter().filter_map(|(family, kept)| Some((family, (*kept)?)));
    let tuple = |(family, kept): (Family, LongLivedFamily)| LongLivedGracefulRestartCapabilityTuple {
        family: Some(spoken(family)),
        flags: if kept.forwarding { 0x80 } else { 0 },
        time: kept.seconds,
    };
    Cap::LongLivedGracefulRestart(LongLivedGracefulRestartCapability { tuples: kept.map(tuple).collect() })
}

/// Parses a capability that our speaker leaves unparsed; `None` when it is malformed.
fn other(version: Version, code: u8, value: &[u8]) -> Option<Cap> {
    Some(match (code, version) {
        (CARRYING_LABELS, _) => Cap::CarryingLabelInfo(CarryingLabelInfoCapability {}),
        (ADD_PATH, _) => {
            let tuples = value.chunks_exact(4).filter_map(|chunk| {
                let [afi, afi_low, safi, mode] = *chunk else { return None };
                Some(AddPathCapabilityTuple { family: Some(numbers([afi, afi_low], safi)), mode: mode.into() })
            });
            Cap::AddPath(AddPathCapability { tuples: tuples.collect() })
        }
        (REFRESH_OF_CISCO, _) => Cap::RouteRefreshCisco(RouteRefreshCiscoCapability {}),
        (FQDN, _) => {
            let (host_name, rest) = text(value)?;
            // Some speakers omit the domain name.
            let domain_name = text(rest).map(|(text, _)| text).unwrap_or_default();
            Cap::Fqdn(FqdnCapability { host_name, domain_name })
        }
        (SOFTWARE_VERSION, Version::V4) => {
            Cap::SoftwareVersion(SoftwareVersionCapability { software_version: text(value)?.0 })
        }
        _ => Cap::Unknown(UnknownCapability { code: code.into(), value: value.to_vec() }),
    })
}

fn numbers(afi: [u8; 2], safi: u8) -> Spoken {
    Spoken { afi: u16::from_be_bytes(afi).into(), safi: safi.into() }
}

/// Reads a length-prefixed text, and returns the rest. Control characters are replaced: it is printed on a terminal.
fn text(value: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = value.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((super::printable(&String::from_utf8_lossy(text)), rest))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::gobgp::wire::messages::{Any, Capability};
    use crate::net::PerFamily;

    fn with_unknown(code: u8, value: &[u8]) -> Capabilities {
        Capabilities { unknown: vec![(code, value.into())], ..Capabilities::default() }
    }

    fn in_four(all: &Capabilities) -> Vec<Cap> {
        let caps = capabilities(Version::V4, all);
        caps.iter().map(|bytes| Capability::decode(bytes.as_slice()).unwrap().cap.unwrap()).collect()
    }

    #[test]
    fn what_our_speaker_does_not_read_is_read_for_clients() {
        let name = in_four(&with_unknown(73, b"\x04node\x07example"));
        assert_eq!(name, [Cap::Fqdn(FqdnCapability { host_name: "node".into(), domain_name: "example".into() })]);
        let Some(Cap::AddPath(add_path)) = in_four(&with_unknown(69, &[0, 2, 1, 3])).pop() else { panic!() };
        assert_eq!((add_path.tuples[0].family, add_path.tuples[0].mode), (Some(spoken(Family::V6)), 3));
    }

    #[test]
    fn what_is_malformed_or_unknown_does_no_harm() {
        assert_eq!(in_four(&with_unknown(73, &[9, b'x'])), []);
        assert_eq!(in_four(&with_unknown(73, &[])), []);
        let unknown = Cap::Unknown(UnknownCapability { code: 200, value: vec![1, 2] });
        assert_eq!(in_four(&with_unknown(200, &[1, 2])), [unknown]);
    }

    #[test]
    fn the_version_of_software_is_no_message_that_the_older_client_has() {
        let bytes = capabilities(Version::V3, &with_unknown(75, b"\x03one")).pop().unwrap();
        assert!(Any::decode(bytes.as_slice()).unwrap().type_url.ends_with(".UnknownCapability"));
        let Some(Cap::SoftwareVersion(it)) = in_four(&with_unknown(75, b"\x03one")).pop() else { panic!() };
        assert_eq!(it.software_version, "one");
    }

    #[test]
    fn graceful_restart_has_the_flags_of_the_wire() {
        let restart = GracefulRestart {
            restarting: true,
            notifications: true,
            seconds: 90,
            families: PerFamily { v4: Some(true), v6: None },
        };
        let all = Capabilities { restart: Some(restart), ..Capabilities::default() };
        let Some(Cap::GracefulRestart(it)) = in_four(&all).pop() else { panic!() };
        assert_eq!((it.flags, it.time, it.tuples.len(), it.tuples[0].flags), (12, 90, 1, 0x80));
        let v6 = Some(LongLivedFamily { forwarding: true, seconds: 258 });
        let long_lived = Some(LongLivedRestart { families: PerFamily { v4: None, v6 } });
        let all = Capabilities { long_lived, ..Capabilities::default() };
        let Some(Cap::LongLivedGracefulRestart(it)) = in_four(&all).pop() else { panic!() };
        let tuple = &it.tuples[0];
        assert_eq!((it.tuples.len(), tuple.flags, tuple.time), (1, 0x80, 258));
        assert_eq!(tuple.family, Some(spoken(Family::V6)));
    }
}
