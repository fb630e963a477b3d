use super::super::routes::tests::speaker;
use super::super::version::spoken;
use super::super::wire::messages::{
    AfiSafi, AfiSafiConfig, EbgpMultihop, GracefulRestart, PeerConf, RouteReflector, Transport as Said, TtlSecurity,
};
use super::*;
use crate::bgp::message::{Aggregator, AsPath, Community, ExtendedCommunity, LargeCommunity};
use proptest::prelude::*;
use prost::Message;

fn peer(address: &str, asn: u32) -> Peer {
    let conf = PeerConf { neighbor_address: address.to_owned(), peer_asn: asn, ..PeerConf::default() };
    Peer { conf: Some(conf), ..Peer::default() }
}

fn wanted(peer: &Peer) -> Result<WantedNeighbour, String> {
    neighbour(peer, &speaker(&[]))
}

#[test]
fn a_neighbour_of_which_little_is_said_has_what_is_usual() {
    let one = wanted(&peer("192.0.2.7", 65007)).unwrap();
    assert_eq!(one.address, IpAddr::from([192, 0, 2, 7]));
    assert_eq!(one.settings.families, PerFamily { v4: true, v6: false }, "its own family");
    assert_eq!((one.settings.asn, one.settings.hold_time, one.settings.passive), (Some(65007), 90, false));
    assert_eq!((one.transport.port, one.transport.time_to_live), (PORT, TimeToLive::Hops(1)));
    assert_eq!((one.transport.password, one.client, one.settings.restart), (None, false, None));
    let inside = wanted(&peer("2001:db8::7", 65001)).unwrap();
    assert_eq!(inside.transport.time_to_live, TimeToLive::System);
    assert_eq!(inside.settings.families, PerFamily { v4: false, v6: true });
}

#[test]
fn everything_that_is_said_of_a_neighbour_counts() {
    let family = |family| AfiSafi {
        config: Some(AfiSafiConfig { family: Some(spoken(family)), enabled: true }),
        ..AfiSafi::default()
    };
    let mut said = peer("192.0.2.7", 65007);
    said.afi_safis = Family::BOTH.map(family).to_vec();
    said.conf.as_mut().unwrap().auth_password = "open sesame".to_owned();
    said.ebgp_multihop = Some(EbgpMultihop { enabled: true, multihop_ttl: 5 });
    said.transport =
        Some(Said { local_address: "192.0.2.1".into(), passive_mode: true, remote_port: 1179, ..Said::default() });
    said.route_reflector = Some(RouteReflector { route_reflector_client: true, ..RouteReflector::default() });
    said.graceful_restart = Some(GracefulRestart { enabled: true, restart_time: 60, ..GracefulRestart::default() });
    let one = wanted(&said).unwrap();
    assert_eq!(one.settings.families, PerFamily { v4: true, v6: true });
    assert_eq!(one.transport.time_to_live, TimeToLive::Hops(5));
    assert_eq!((one.transport.port, one.transport.local), (1179, Some(IpAddr::from([192, 0, 2, 1]))));
    assert_eq!(one.transport.password, Some(Password::new("open sesame").unwrap()));
    assert_eq!(one.own.v4, Some(IpAddr::from([192, 0, 2, 1])));
    assert!(one.client && one.settings.passive);
    assert_eq!(one.settings.restart.unwrap().seconds, 60);
    said.ttl_security = Some(TtlSecurity { enabled: true, ttl_min: 254 });
    assert_eq!(wanted(&said).unwrap().transport.time_to_live, TimeToLive::Secured { hops: 2 });
}

#[test]
fn what_cannot_be_wanted_is_refused_with_a_sentence() {
    let refused = |change: &dyn Fn(&mut Peer)| {
        let mut said = peer("192.0.2.7", 65007);
        change(&mut said);
        wanted(&said).unwrap_err()
    };
    assert_eq!(refused(&|peer| peer.conf = None), "the neighbour has no settings");
    assert!(
        refused(&|peer| peer.conf.as_mut().unwrap().neighbor_address = "here".into())
            .contains("\"here\" is no address")
    );
    assert!(refused(&|peer| peer.conf.as_mut().unwrap().vrf = "red".into()).contains("no VRFs"));
    assert!(refused(&|peer| peer.conf.as_mut().unwrap().local_asn = 65009).contains("our number is 65001"));
    let long = refused(&|peer| peer.conf.as_mut().unwrap().auth_password = "x".repeat(81));
    assert!(long.contains("from 1 to 80 bytes"), "{long}");
    let evpn =
        AfiSafiConfig { family: Some(super::super::wire::messages::Family { afi: 25, safi: 70 }), enabled: true };
    let evpn = AfiSafi { config: Some(evpn), ..AfiSafi::default() };
    assert_eq!(refused(&|peer| peer.afi_safis = vec![evpn]), ONLY_UNICAST);
}

#[test]
fn a_route_has_a_prefix_of_its_family() {
    let prefix: IpNet = "10.244.1.0/24".parse().unwrap();
    for version in [Version::V3, Version::V4] {
        let path = Path { nlri: version.nlri(prefix), family: Some(spoken(Family::V4)), ..Path::default() };
        let (read, attributes) = route(version, &path).unwrap();
        assert_eq!(read, prefix);
        assert!(attributes.next_hop.is_unspecified(), "ours is meant");
        let other = Path { family: Some(spoken(Family::V6)), ..path.clone() };
        assert_eq!(route(version, &other).unwrap_err(), "10.244.1.0/24 is no IPv6 prefix");
        assert!(route(version, &Path { nlri: vec![1, 2, 3], ..path }).is_err());
    }
}

proptest! {
    #[test]
    fn whatever_a_client_says_breaks_nothing(
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        version in prop_oneof![Just(Version::V3), Just(Version::V4)],
    ) {
        let mut of = Attributes::local("192.0.2.1".parse().expect("an address"));
        of.as_path = AsPath::sequence(&[65001, 4_200_000_001]);
        (of.med, of.local_pref) = (Some(5), Some(200));
        of.add_communities(&[Community::NO_EXPORT]);
        of.change_rare(|rare| {
            rare.aggregator = Some(Aggregator { asn: 65001, router: [192, 0, 2, 9].into() });
            rare.extended = [ExtendedCommunity(0x0002_fde9_0000_012c)].into();
            rare.large = [LargeCommunity([65001, 1, 2])].into();
        });
        let prefix: IpNet = "10.244.1.0/24".parse().expect("a prefix");
        // Parts of a message are plain bytes: they are damaged separately, so that the surrounding message stays
        // readable.
        let mut parts = attributes::attributes(version, prefix, &of);
        parts.push(version.nlri(prefix));
        for (part, at, byte) in &wrong {
            let part = part.index(parts.len());
            if let Some(part) = parts.get_mut(part).filter(|part| !part.is_empty()) {
                let at = at.index(part.len());
                part[at] = *byte;
            }
        }
        let nlri = parts.pop().expect("it was put there");
        let _ = version.read_nlri(&nlri);
        let _ = attributes::read(version, Family::V4, &parts);
        let mut path = Path { nlri, pattrs: parts, family: Some(spoken(Family::V4)), ..Path::default() };
        let _ = route(version, &path);
        let mut whole = path.encode_to_vec();
        whole.truncate(cut.index(whole.len() + 1));
        if let Ok(read) = Path::decode(whole.as_slice()) {
            path = read;
            let _ = route(version, &path);
        }
    }
}
