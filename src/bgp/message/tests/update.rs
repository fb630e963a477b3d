//! UPDATE: well-formed messages, and their packing.

use super::*;

const ORIGIN: &str = "40 01 01 00";
const PATH: &str = "40 02 0a 02 02 0000fde9 00011170";
const NEXT_HOP: &str = "40 03 04 cb007101";

fn one(attributes: &str, dialect: &Dialect) -> Attributes {
    let attributes = format!("{ORIGIN} {PATH} {NEXT_HOP} {attributes}");
    let update = update("", &attributes, "18 0af401", dialect).unwrap();
    assert_eq!(update.remarks, [], "{attributes}");
    assert_eq!(prefixes(&update.announced[0].prefixes), ["10.244.1.0/24"]);
    update.announced[0].attributes.clone()
}

fn packed(dialect: Dialect, family: Family, attributes: &Attributes, prefixes: &[&str]) -> (Vec<u8>, u32) {
    let prefixes: Vec<ipnet::IpNet> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
    let mut packing = Packing::new(dialect);
    assert!(packing.announce(family, attributes, &prefixes));
    packing.finish()
}

#[test]
fn an_ipv4_route_is_read_and_written() {
    let attributes = one("", &EXTERNAL);
    assert_eq!(attributes.origin, Origin::Igp);
    assert_eq!(attributes.as_path.to_string(), "65001 70000");
    assert_eq!(attributes.next_hop.to_string(), "203.0.113.1");
    let body = update_body("", &format!("{ORIGIN} {PATH} {NEXT_HOP}"), "18 0af401");
    let (written, messages) = packed(EXTERNAL, Family::V4, &attributes, &["10.244.1.0/24"]);
    assert_eq!((written, messages), (message(UPDATE, &body), 1));
}

#[test]
fn where_the_longest_prefix_has_no_room_none_is_written() {
    let packed = |communities: u32| {
        let mut attributes = one("", &EXTERNAL);
        attributes.communities = (0..communities).map(Community).collect();
        let mut packing = Packing::new(EXTERNAL);
        let prefixes: Vec<ipnet::IpNet> =
            ["0.0.0.0/0", "10.0.0.0/8", "10.244.1.1/32"].map(|text| text.parse().unwrap()).into();
        (packing.announce(Family::V4, &attributes, &prefixes), packing.finish().1)
    };
    // Finds the greatest number of communities for which the shortest prefix still fits.
    let full = (900..1100).find(|count| !packed(*count).0).unwrap();
    assert!(packed(full - 1).1 > 0);
    (full..full + 5).for_each(|count| assert_eq!(packed(count), (false, 0), "{count} communities"));
}

#[test]
fn every_attribute_is_read_and_written() {
    let all = "
        80 04 04 0000000a
        40 05 04 00000064
        40 06 00
        c0 07 08 0000fde9 c0000201
        c0 08 08 fde90064 ffffff01
        80 09 04 c0000202
        80 0a 08 00000001 00000002
        c0 10 08 0002fde900000064
        c0 20 0c 0000fde9 00000001 00000002
        e0 63 03 010203";
    let attributes = one(all, &INTERNAL);
    assert_eq!((attributes.med, attributes.local_pref), (Some(10), Some(100)));
    assert_eq!(
        attributes.communities.iter().map(Community::to_string).collect::<Vec<_>>(),
        ["65001:100", "65535:65281"]
    );
    let rare = attributes.rare();
    assert!(rare.atomic_aggregate);
    assert_eq!(rare.aggregator, Some(Aggregator { asn: 65001, router: "192.0.2.1".parse().unwrap() }));
    assert_eq!(rare.originator, Some("192.0.2.2".parse().unwrap()));
    assert_eq!(rare.clusters.iter().map(|id| id.to_string()).collect::<Vec<_>>(), ["0.0.0.1", "0.0.0.2"]);
    assert_eq!(rare.extended, Box::from([ExtendedCommunity(0x0002_fde9_0000_0064)]));
    assert_eq!(rare.large.iter().map(LargeCommunity::to_string).collect::<Vec<_>>(), ["65001:1:2"]);
    assert_eq!(rare.unknown, Box::from([Unknown { number: 99, flags: 0xe0, value: Box::from([1, 2, 3]) }]));
    let body = update_body("", &format!("{ORIGIN} {PATH} {NEXT_HOP} {all}"), "18 0af401");
    assert_eq!(packed(INTERNAL, Family::V4, &attributes, &["10.244.1.0/24"]).0, message(UPDATE, &body));
}

#[test]
fn an_ipv6_route_goes_with_one_next_hop_or_two() {
    for (length, hops) in [
        ("10", "20010db8011300000000000000000001"),
        ("20", "20010db8011300000000000000000001 fe800000000000000000000000000001"),
    ] {
        let size = if length == "10" { "1e" } else { "2e" };
        let text = format!("90 0e 00{size} 0002 01 {length} {hops} 00 40 fd00001002440100 {ORIGIN} {PATH}");
        let update = update("", &text, "", &EXTERNAL).unwrap();
        assert_eq!(update.remarks, []);
        let announced = &update.announced[0];
        assert_eq!(prefixes(&announced.prefixes), ["fd00:10:244:100::/64"]);
        assert_eq!(announced.attributes.next_hop.to_string(), "2001:db8:113::1");
        assert_eq!(announced.attributes.rare().link_local.is_some(), length == "20");
        let (written, _) = packed(EXTERNAL, Family::V6, &announced.attributes, &["fd00:10:244:100::/64"]);
        assert_eq!(written, message(UPDATE, &update_body("", &text, "")));
    }
}

#[test]
fn an_ipv4_route_may_have_an_ipv6_next_hop_where_that_was_agreed() {
    let text = format!("90 0e 0019 0001 01 10 20010db8011300000000000000000001 00 18 0af401 {ORIGIN} {PATH}");
    let read = update("", &text, "", &EXTERNAL).unwrap();
    assert_eq!(prefixes(&read.announced[0].prefixes), ["10.244.1.0/24"]);
    assert_eq!(read.announced[0].attributes.next_hop.to_string(), "2001:db8:113::1");
    let (written, _) = packed(EXTERNAL, Family::V4, &read.announced[0].attributes, &["10.244.1.0/24"]);
    assert_eq!(written, message(UPDATE, &update_body("", &text, "")));
    let not_agreed = Dialect { extended_next_hop: false, ..EXTERNAL };
    let refused = update("", &text, "", &not_agreed).unwrap();
    assert_eq!(refused.disabled().collect::<Vec<_>>(), [Family::V4]);
}

#[test]
fn one_message_may_carry_both_families() {
    let text = format!(
        "90 0e 001e 0002 01 10 20010db8011300000000000000000001 00 40 fd00001002440100 {ORIGIN} {PATH} {NEXT_HOP}"
    );
    let update = update("10 0af5", &text, "18 0af401", &EXTERNAL).unwrap();
    assert_eq!(prefixes(&update.withdrawn), ["10.245.0.0/16"]);
    let hops: Vec<String> = update.announced.iter().map(|one| one.attributes.next_hop.to_string()).collect();
    assert_eq!(hops, ["203.0.113.1", "2001:db8:113::1"]);
}

#[test]
fn withdrawals_need_no_attributes() {
    let four = update("10 0af5 20 c0000201", "", "", &EXTERNAL).unwrap();
    assert_eq!(prefixes(&four.withdrawn), ["10.245.0.0/16", "192.0.2.1/32"]);
    let six = update("", "80 0f 0c 0002 01 40 fd00001002440100", "", &EXTERNAL).unwrap();
    assert_eq!(prefixes(&six.withdrawn), ["fd00:10:244:100::/64"]);
    assert_eq!((four.remarks, six.remarks), (vec![], vec![]));
    let mut packing = Packing::new(EXTERNAL);
    packing.withdraw(Family::V4, &four.withdrawn);
    packing.withdraw(Family::V6, &six.withdrawn);
    let mut expected = message(UPDATE, &update_body("10 0af5 20 c0000201", "", ""));
    expected.extend(message(UPDATE, &update_body("", "90 0f 000c 0002 01 40 fd00001002440100", "")));
    assert_eq!(packing.finish(), (expected, 2));
}

#[test]
fn the_end_of_a_table_is_read_and_written() {
    for family in Family::BOTH {
        let read = read(&end_of_rib(family), Some(&EXTERNAL)).unwrap();
        let expected = Update { end_of_rib: Some(family), ..Update::default() };
        assert_eq!(read, Message::Update(expected));
    }
    assert_eq!(end_of_rib(Family::V6), message(UPDATE, &bytes("0000 0006 80 0f 03 0002 01")));
    // An empty list beside another attribute is no End-of-RIB.
    let update = update("", &format!("80 0f 03 0002 01 {ORIGIN}"), "", &EXTERNAL).unwrap();
    assert_eq!(update.end_of_rib, None);
}

#[test]
fn two_octets_are_enough_where_nothing_is_longer() {
    let mut attributes = Attributes::local("203.0.113.1".parse().unwrap());
    attributes.as_path = AsPath::sequence(&[65001, 70000]);
    attributes.change_rare(|rare| {
        rare.aggregator = Some(Aggregator { asn: 70000, router: "192.0.2.1".parse().unwrap() });
    });
    let (written, _) = packed(TWO_OCTETS, Family::V4, &attributes, &["10.244.1.0/24"]);
    let text = format!(
        "{ORIGIN} 40 02 06 02 02 fde9 5ba0 {NEXT_HOP} c0 07 06 5ba0 c0000201
         c0 11 0a 02 02 0000fde9 00011170 c0 12 08 00011170 c0000201"
    );
    assert_eq!(written, message(UPDATE, &update_body("", &text, "18 0af401")));
    let read = update("", &text, "18 0af401", &TWO_OCTETS).unwrap();
    assert_eq!(read.announced[0].attributes, attributes);
    // An aggregator with two octets did not know the AS4 attributes: RFC 6793 4.2.3.
    let text = text.replace("c0 07 06 5ba0", "c0 07 06 fde9");
    let read = update("", &text, "18 0af401", &TWO_OCTETS).unwrap();
    assert_eq!(read.announced[0].attributes.as_path.to_string(), "65001 23456");
    assert_eq!(read.announced[0].attributes.rare().aggregator.map(|one| one.asn), Some(65001));
    attributes.as_path = AsPath::sequence(&[65001]);
    attributes.change_rare(|rare| *rare = Rare::default());
    let (written, _) = packed(TWO_OCTETS, Family::V4, &attributes, &["10.244.1.0/24"]);
    let text = format!("{ORIGIN} 40 02 04 02 01 fde9 {NEXT_HOP}");
    assert_eq!(written, message(UPDATE, &update_body("", &text, "18 0af401")), "nothing beside");
}

#[test]
fn messages_are_filled_up_to_what_the_other_side_takes() {
    let attributes = Attributes::local("203.0.113.1".parse().unwrap());
    for (family, base) in [(Family::V4, "10.0.0.0/8"), (Family::V6, "fd00::/8")] {
        let base: ipnet::IpNet = base.parse().unwrap();
        let all: Vec<ipnet::IpNet> = base.subnets(24).unwrap().take(30_000).collect();
        for extended_message in [false, true] {
            let dialect = Dialect { extended_message, ..EXTERNAL };
            for announce in [true, false] {
                let mut packing = Packing::new(dialect);
                match announce {
                    true => assert!(packing.announce(family, &attributes, &all)),
                    false => packing.withdraw(family, &all),
                }
                let (stream, messages) = packing.finish();
                let least = (all.len() * 4).div_ceil(dialect.longest());
                assert!((least..=least + 2).contains(&(messages as usize)), "{messages} messages, {least} at least");
                let mut framing = Framing::default();
                framing.push(&stream);
                let mut back = Vec::new();
                while let Some(frame) = framing.next(extended_message).unwrap() {
                    let Ok(Message::Update(update)) = decode(frame, Some(&dialect)) else { panic!("no UPDATE") };
                    back.extend(update.withdrawn);
                    back.extend(update.announced.into_iter().flat_map(|one| one.prefixes));
                }
                assert_eq!(back, all);
            }
        }
    }
}

#[test]
fn attributes_that_leave_no_room_are_not_sent() {
    let mut attributes = Attributes::local("203.0.113.1".parse().unwrap());
    attributes.add_communities(&(0..1100).map(Community).collect::<Vec<_>>());
    let prefixes = ["10.244.1.0/24".parse().unwrap()];
    let mut packing = Packing::new(EXTERNAL);
    assert!(!packing.announce(Family::V4, &attributes, &prefixes));
    assert!(packing.is_empty());
    let mut packing = Packing::new(Dialect { extended_message: true, ..EXTERNAL });
    assert!(packing.announce(Family::V4, &attributes, &prefixes));
    attributes.add_communities(&(0..20_000).map(Community).collect::<Vec<_>>());
    assert!(!packing.announce(Family::V4, &attributes, &prefixes), "longer than any message");
}
