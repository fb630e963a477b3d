//! No input breaks the parser; everything written is read back.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;

fn dialects() -> impl Strategy<Value = Dialect> {
    any::<[bool; 6]>().prop_map(|[internal, four_octets, v4, v6, extended_next_hop, extended_message]| Dialect {
        internal,
        four_octets,
        families: PerFamily { v4, v6 },
        extended_next_hop,
        extended_message,
    })
}

fn paths() -> impl Strategy<Value = AsPath> {
    let number = prop_oneof![1..=u32::from(u16::MAX), 1..=u32::MAX];
    let segment = (prop_oneof![Just(1_u8), Just(2)], prop::collection::vec(number, 1..6));
    prop::collection::vec(segment, 0..4).prop_map(|segments| {
        let mut bytes = Vec::new();
        for (kind, numbers) in segments {
            bytes.extend([kind, numbers.len() as u8]);
            numbers.iter().for_each(|number| bytes.extend(number.to_be_bytes()));
        }
        let attribute = [vec![0x50, 2], (bytes.len() as u16).to_be_bytes().to_vec(), bytes].concat();
        let body = [
            vec![0, 0],
            (attribute.len() as u16 + 11).to_be_bytes().to_vec(),
            bytes_of("40010100 400304cb007101"),
            attribute,
            vec![0],
        ];
        match read(&message(UPDATE, &body.concat()), Some(&EXTERNAL)) {
            Ok(Message::Update(update)) => update.announced[0].attributes.as_path.clone(),
            other => panic!("{other:?}"),
        }
    })
}

fn bytes_of(text: &str) -> Vec<u8> {
    super::bytes(text)
}

prop_compose! {
    fn rare()(
        atomic_aggregate in any::<bool>(),
        aggregator in any::<Option<(u32, u32)>>(),
        originator in any::<Option<u32>>(),
        clusters in prop::collection::vec(any::<u32>(), 0..4),
        extended in prop::collection::btree_set(any::<u64>(), 0..4),
        large in prop::collection::btree_set(any::<[u32; 3]>(), 0..4),
        unknown in prop::collection::btree_map(33_u8..=255, prop::collection::vec(any::<u8>(), 0..300), 0..3),
    ) -> Rare {
        Rare {
            atomic_aggregate,
            aggregator: aggregator.map(|(asn, router)| Aggregator { asn: asn.max(1), router: router.into() }),
            originator: originator.map(Into::into),
            clusters: clusters.into_iter().map(Into::into).collect(),
            extended: extended.into_iter().map(ExtendedCommunity).collect(),
            large: large.into_iter().map(LargeCommunity).collect(),
            link_local: None,
            unknown: unknown
                .into_iter()
                .map(|(number, value)| Unknown { number, flags: 0xe0, value: value.into() })
                .collect(),
        }
    }
}

prop_compose! {
    fn attributes()(
        origin in prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)],
        as_path in paths(),
        next_hop in any::<u32>(),
        med in any::<Option<u32>>(),
        local_pref in any::<Option<u32>>(),
        communities in prop::collection::btree_set(any::<u32>(), 0..80),
        rare in rare(),
    ) -> Attributes {
        let mut attributes = Attributes::local(std::net::Ipv4Addr::from(next_hop).into());
        attributes.origin = origin;
        attributes.as_path = as_path;
        attributes.med = med;
        attributes.local_pref = local_pref;
        attributes.communities = communities.into_iter().map(Community).collect();
        attributes.change_rare(|empty| *empty = rare);
        attributes
    }
}

/// Other prefixes are parsed, and ignored.
fn unicast(mut prefixes: Vec<IpNet>) -> Vec<IpNet> {
    prefixes.retain(|prefix| prefix::is_unicast(*prefix));
    prefixes
}

fn prefixes_v4() -> impl Strategy<Value = Vec<IpNet>> {
    let one = (any::<u32>(), 0_u8..=32).prop_map(|(address, length)| {
        IpNet::V4(Ipv4Net::new(address.into(), length).expect("the length is one of IPv4").trunc())
    });
    prop::collection::vec(one, 1..3000).prop_map(unicast)
}

fn prefixes_v6() -> impl Strategy<Value = Vec<IpNet>> {
    let one = (any::<u128>(), 0_u8..=128).prop_map(|(address, length)| {
        IpNet::V6(Ipv6Net::new(address.into(), length).expect("the length is one of IPv6").trunc())
    });
    prop::collection::vec(one, 1..600).prop_map(unicast)
}

/// Parses all messages of a stream and collects the routes that they announce.
fn announced(stream: &[u8], dialect: &Dialect) -> Vec<(Attributes, IpNet)> {
    let mut framing = Framing::default();
    framing.push(stream);
    let mut all = Vec::new();
    while let Some(frame) = framing.next(dialect.extended_message).expect("what is written has a head") {
        assert!(frame.body.len() + HEADER <= dialect.longest());
        let Ok(Message::Update(update)) = decode(frame, Some(dialect)) else { panic!("what is written is read") };
        assert_eq!(update.remarks, []);
        for Announced { attributes, prefixes } in update.announced {
            all.extend(prefixes.into_iter().map(|prefix| (attributes.clone(), prefix)));
        }
    }
    all
}

/// Number of cases, or `BGP_CASES` times as many for a longer search.
pub(super) fn cases(usual: u32) -> ProptestConfig {
    let times = std::env::var("BGP_CASES").map_or(1, |text| text.parse().expect("BGP_CASES is a number"));
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(usual * times) }
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn what_is_written_is_read_back(
        attributes in attributes(),
        v4 in prefixes_v4(),
        v6 in prefixes_v6(),
        extended_message in any::<bool>(),
        four_octets in any::<bool>(),
    ) {
        let dialect = Dialect { four_octets, extended_message, ..INTERNAL };
        let next_hop = "2001:db8:113::1".parse().expect("an address");
        for (family, prefixes, next_hop) in
            [(Family::V4, &v4, attributes.next_hop), (Family::V4, &v4, next_hop), (Family::V6, &v6, next_hop)]
        {
            let attributes = attributes.with_next_hop(next_hop);
            let mut packing = Packing::new(dialect);
            prop_assert!(packing.announce(family, &attributes, prefixes));
            let (stream, _) = packing.finish();
            let expected: Vec<(Attributes, IpNet)> =
                prefixes.iter().map(|prefix| (attributes.clone(), *prefix)).collect();
            prop_assert_eq!(announced(&stream, &dialect), expected);
        }
    }
}

proptest! {
    #![proptest_config(cases(4096))]

    #[test]
    fn arbitrary_bodies_break_nothing(
        kind in 0_u8..8,
        body in prop::collection::vec(any::<u8>(), 0..200),
        dialect in dialects(),
    ) {
        let _ = decode(Frame { kind, body: &body }, Some(&dialect));
        let _ = decode(Frame { kind, body: &body }, None);
    }

    #[test]
    fn arbitrary_streams_break_nothing(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8)) {
        let mut framing = Framing::default();
        framing.push(&[0xff; 16]);
        for piece in pieces {
            framing.push(&piece);
            while let Ok(Some(_)) = framing.next(true) {}
        }
    }

    #[test]
    fn what_is_right_but_for_some_bytes_breaks_nothing(
        attributes in attributes(),
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        dialect in dialects(),
    ) {
        let mut packing = Packing::new(dialect);
        let _ = packing.announce(Family::V4, &attributes, &["10.244.1.0/24".parse().expect("a prefix")]);
        let next_hop = "2001:db8:113::1".parse().expect("an address");
        let attributes = attributes.with_next_hop(next_hop);
        let _ = packing.announce(Family::V6, &attributes, &["fd00:10:244::/56".parse().expect("a prefix")]);
        let (stream, _) = packing.finish();
        let mut framing = Framing::default();
        framing.push(&stream);
        while let Ok(Some(frame)) = framing.next(true) {
            let mut body = frame.body.to_vec();
            for (at, byte) in &wrong {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            let _ = decode(Frame { kind: UPDATE, body: &body }, Some(&dialect));
            body.truncate(cut.index(body.len()));
            let _ = decode(Frame { kind: UPDATE, body: &body }, Some(&dialect));
        }
    }

    #[test]
    fn an_open_that_is_right_but_for_some_bytes_breaks_nothing(
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut body = bytes_of(
            "04 5ba0 005a c0000201 2e 02 2c 01 04 00010001 01 04 00020001 02 00 06 00 46 00 41 04 00011170
             40 0a c078 00010180 00020100",
        );
        for (at, byte) in &wrong {
            let at = at.index(body.len());
            body[at] = *byte;
        }
        if let Ok(Message::Open(open)) = decode(Frame { kind: OPEN, body: &body }, None) {
            prop_assert_eq!(read(&super::super::open(&open), None), Ok(Message::Open(open)));
        }
    }
}
