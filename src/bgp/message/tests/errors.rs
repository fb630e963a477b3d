//! Error handling of RFC 7606, attribute by attribute.

use super::*;

const ORIGIN: &str = "40 01 01 00";
const PATH: &str = "40 02 06 02 01 0000fde9";
const NEXT_HOP: &str = "40 03 04 cb007101";
const REACH: &str = "80 0e 1d 0002 01 10 20010db8011300000000000000000001 00 38 fd000010024401";
const NETWORK: &str = "18 0af401";

/// Result of parsing a message.
#[derive(PartialEq, Debug)]
enum Became {
    /// Accepted without an error.
    Taken,
    /// Accepted without this attribute.
    Without(u8),
    /// Treated as withdrawn because of this attribute.
    Withdrawn(u8),
    Disabled(Family),
    Reset(Reason),
}

use Became::*;

fn became(update: Result<Update, Notification>) -> Became {
    let update = match update {
        Ok(update) => update,
        Err(notification) => return Reset(notification.reason),
    };
    let worst = update.remarks.iter().max_by_key(|remark| remark.treatment);
    let announced = !update.announced.is_empty();
    match worst.map(|worst| (worst.treatment, worst.attribute)) {
        None => Taken,
        Some((Treatment::DiscardAttribute, attribute)) => {
            assert!(announced && update.withdrawn.is_empty(), "{update:?}");
            Without(attribute)
        }
        Some((Treatment::Withdraw, attribute)) => {
            assert!(!announced && !update.withdrawn.is_empty(), "{update:?}");
            Withdrawn(attribute)
        }
        Some((Treatment::DisableFamily(family), _)) => {
            assert!(!announced, "{update:?}");
            Disabled(family)
        }
        Some((Treatment::Reset, _)) => unreachable!("a reset is an error"),
    }
}

/// Parses an IPv4 route with these attributes besides the mandatory ones.
fn with(more: &str, dialect: &Dialect) -> Became {
    let attributes = format!("{ORIGIN} {PATH} {NEXT_HOP} {more}");
    became(update("", &attributes, NETWORK, dialect))
}

/// Parses an IPv4 route with exactly these attributes.
fn only(attributes: &str) -> Became {
    became(update("", attributes, NETWORK, &EXTERNAL))
}

#[test]
fn a_mandatory_attribute_that_is_missing_withdraws() {
    assert_eq!(only(&format!("{ORIGIN} {PATH} {NEXT_HOP}")), Taken);
    assert_eq!(only(&format!("{PATH} {NEXT_HOP}")), Withdrawn(1));
    assert_eq!(only(&format!("{ORIGIN} {NEXT_HOP}")), Withdrawn(2));
    assert_eq!(only(&format!("{ORIGIN} {PATH}")), Withdrawn(3));
    assert_eq!(became(update("", &format!("{REACH} {ORIGIN}"), "", &EXTERNAL)), Withdrawn(2));
    assert_eq!(became(update("", &format!("{REACH} {ORIGIN} {PATH}"), "", &EXTERNAL)), Taken, "it has its next hop");
}

#[test]
fn mandatory_attributes_that_are_malformed_withdraw() {
    let origin = |text: &str| only(&format!("{text} {PATH} {NEXT_HOP}"));
    assert_eq!(origin("40 01 01 03"), Withdrawn(1), "a value that does not exist");
    assert_eq!(origin("40 01 02 0000"), Withdrawn(1));
    assert_eq!(origin("40 01 00"), Withdrawn(1));
    let path = |text: &str| only(&format!("{ORIGIN} {text} {NEXT_HOP}"));
    assert_eq!(path("40 02 00"), Taken, "an empty path is one");
    assert_eq!(path("40 02 01 02"), Withdrawn(2), "half a head");
    assert_eq!(path("40 02 02 02 00"), Withdrawn(2), "a segment of nothing");
    assert_eq!(path("40 02 06 02 02 0000fde9"), Withdrawn(2), "shorter than it says");
    assert_eq!(path("40 02 06 07 01 0000fde9"), Withdrawn(2), "a kind that does not exist");
    assert_eq!(path("40 02 06 03 01 0000fde9"), Withdrawn(2), "a confederation, RFC 5065");
    assert_eq!(path("40 02 06 02 01 00000000"), Withdrawn(2), "AS 0, RFC 7607");
    let next_hop = |text: &str| only(&format!("{ORIGIN} {PATH} {text}"));
    assert_eq!(next_hop("40 03 03 cb0071"), Withdrawn(3));
    assert_eq!(next_hop("40 03 00"), Withdrawn(3));
}

#[test]
fn numbers_of_a_wrong_length_withdraw() {
    assert_eq!(with("80 04 03 000001", &EXTERNAL), Withdrawn(4));
    assert_eq!(with("80 04 00", &EXTERNAL), Withdrawn(4));
    assert_eq!(with("40 05 05 0000000164", &INTERNAL), Withdrawn(5));
    assert_eq!(with("80 09 03 c00002", &INTERNAL), Withdrawn(9));
}

#[test]
fn lists_of_a_wrong_length_withdraw() {
    for (text, number) in [
        ("c0 08 00", 8),
        ("c0 08 05 0000000000", 8),
        ("80 0a 00", 10),
        ("80 0a 03 000000", 10),
        ("c0 10 00", 16),
        ("c0 10 09 000000000000000000", 16),
        ("c0 20 00", 32),
        ("c0 20 08 0000000000000000", 32),
    ] {
        assert_eq!(with(text, &INTERNAL), Withdrawn(number), "{text}");
    }
}

#[test]
fn what_an_aggregator_says_is_left_out_when_it_is_wrong() {
    assert_eq!(with("40 06 01 00", &EXTERNAL), Without(6));
    assert_eq!(with("c0 07 06 fde9c0000201", &EXTERNAL), Without(7), "two octets where four were agreed");
    assert_eq!(with("c0 07 08 0000fde9c0000201", &TWO_OCTETS.clone()), Withdrawn(2), "the path has four octets there");
    assert_eq!(with("c0 07 00", &EXTERNAL), Without(7));
    assert_eq!(with("c0 07 08 00000000c0000201", &EXTERNAL), Without(7), "AS 0, RFC 7607");
}

#[test]
fn what_belongs_inside_is_left_out_when_it_comes_from_outside() {
    for (text, number) in [("40 05 04 00000064", 5), ("80 09 04 c0000201", 9), ("80 0a 04 c0000201", 10)] {
        assert_eq!(with(text, &EXTERNAL), Without(number), "{text}");
        assert_eq!(with(text, &INTERNAL), Taken, "{text}");
    }
    assert_eq!(with("40 05 01 64", &EXTERNAL), Without(5), "whatever it is");
    assert_eq!(with("c0 09 00", &EXTERNAL), Without(9), "whatever it is");
}

#[test]
fn wrong_flags_withdraw() {
    for (text, number) in
        [("c0 01 01 00", 1), ("00 01 01 00", 1), ("80 02 06 02 01 0000fde9", 2), ("c0 03 04 cb007101", 3)]
    {
        let attributes: String =
            [ORIGIN, PATH, NEXT_HOP].map(|good| if good[3..5] == text[3..5] { text } else { good }).join(" ");
        assert_eq!(only(&attributes), Withdrawn(number), "{text}");
    }
    for (text, number) in [
        ("40 04 04 00000001", 4),
        ("c0 05 04 00000001", 5),
        ("c0 06 00", 6),
        ("40 07 08 0000fde9c0000201", 7),
        ("80 08 04 00000001", 8),
        ("40 10 08 0002fde900000064", 16),
        ("80 20 0c 000000010000000100000001", 32),
    ] {
        assert_eq!(with(text, &INTERNAL), Withdrawn(number), "{text}");
    }
    let reach = format!("c0{} {ORIGIN} {PATH}", &REACH[2..]);
    assert_eq!(became(update("", &reach, "", &EXTERNAL)), Withdrawn(14), "its prefixes are read all the same");
    let unreach = update("", "40 0f 0b 0002 01 38 fd000010024401", "", &EXTERNAL).unwrap();
    assert_eq!(prefixes(&unreach.withdrawn), ["fd00:10:244:100::/56"]);
    // The Partial bit and the unused bits do not matter.
    assert_eq!(with("ef 08 04 00000001", &INTERNAL), Taken);
    assert_eq!(with("ff 08 0004 00000001", &INTERNAL), Taken, "but the one that says how wide the length is");
}

#[test]
fn an_attribute_that_comes_twice_counts_once() {
    assert_eq!(with("40 01 01 02", &EXTERNAL), Without(1));
    let update = update("", &format!("{ORIGIN} {PATH} {NEXT_HOP} 40 01 01 02"), NETWORK, &EXTERNAL).unwrap();
    assert_eq!(update.announced[0].attributes.origin, Origin::Igp, "the first one");
    assert_eq!(with("e0 63 01 00 e0 63 01 01", &EXTERNAL), Without(99));
    let twice = format!("{REACH} {REACH} {ORIGIN} {PATH}");
    assert_eq!(became(super::update("", &twice, "", &EXTERNAL)), Reset(Reason::MALFORMED_ATTRIBUTES));
    let twice = "80 0f 03 000201 80 0f 03 000201";
    assert_eq!(became(super::update("", twice, "", &EXTERNAL)), Reset(Reason::MALFORMED_ATTRIBUTES));
}

#[test]
fn an_attribute_that_reaches_too_far_withdraws() {
    assert_eq!(with("80 04 05 00000001", &EXTERNAL), Withdrawn(4));
    assert_eq!(with("80", &EXTERNAL), Withdrawn(0), "a single byte");
    assert_eq!(with("90 04 00", &EXTERNAL), Withdrawn(4), "half a length");
}

#[test]
fn unknown_attributes_are_passed_on_or_dropped_or_end_the_session() {
    assert_eq!(with("c0 63 02 0102", &EXTERNAL), Taken);
    assert_eq!(with("80 63 02 0102", &EXTERNAL), Taken);
    let read = |text: &str| {
        let attributes = format!("{ORIGIN} {PATH} {NEXT_HOP} {text}");
        update("", &attributes, NETWORK, &EXTERNAL).unwrap().announced[0].attributes.rare().unknown.clone()
    };
    let marked = Unknown { number: 99, flags: 0xe0, value: Box::from([1, 2]) };
    assert_eq!(read("c0 63 02 0102"), Box::from([marked.clone()]), "with the partial bit");
    assert_eq!(read("d0 63 0002 0102"), Box::from([marked]), "however its length was written");
    assert_eq!(read("80 63 02 0102"), Box::from([]), "it goes no further");
    assert_eq!(with("40 63 02 0102", &EXTERNAL), Reset(Reason::UNRECOGNIZED_WELL_KNOWN));
    let error = update("", &format!("{ORIGIN} {PATH} {NEXT_HOP} 40 63 02 0102"), NETWORK, &EXTERNAL).unwrap_err();
    assert_eq!(error.data, bytes("40 63 02 0102"));
}

#[test]
fn lengths_and_prefixes_that_make_no_sense_end_the_session() {
    let raw = |body: &str| {
        became(match read(&message(UPDATE, &bytes(body)), Some(&EXTERNAL)) {
            Ok(Message::Update(update)) => Ok(update),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        })
    };
    assert_eq!(raw("0005 0000"), Reset(Reason::MALFORMED_ATTRIBUTES));
    assert_eq!(raw("0000 0001"), Reset(Reason::MALFORMED_ATTRIBUTES));
    assert_eq!(raw("0001 21 0000"), Reset(Reason::INVALID_NETWORK));
    let attributes = format!("{ORIGIN} {PATH} {NEXT_HOP}");
    assert_eq!(became(update("", &attributes, "21 0102030405", &EXTERNAL)), Reset(Reason::INVALID_NETWORK));
    assert_eq!(became(update("", &attributes, "18 0af4", &EXTERNAL)), Reset(Reason::INVALID_NETWORK));
    assert_eq!(became(update("18 0af4", "", "", &EXTERNAL)), Reset(Reason::INVALID_NETWORK));
}

#[test]
fn what_hides_the_prefixes_gives_up_the_family_or_the_session() {
    let alone = Dialect { families: PerFamily { v4: false, v6: true }, ..EXTERNAL };
    for (attribute, why) in [
        ("80 0e 1c 0002 01 0f 20010db80113000000000000000000 00 38 fd000010024401", "a next hop of 15 bytes"),
        ("80 0e 09 0002 01 04 cb007101 00", "an IPv4 next hop"),
        ("80 0e 04 0002 01 10", "no next hop"),
        ("80 0e 14 0002 01 10 20010db8011300000000000000000001", "an end before the reserved byte"),
        ("80 0e 1c 0002 01 10 20010db8011300000000000000000001 00 38 fd0000100244", "half a prefix"),
        ("80 0e 16 0002 01 10 20010db8011300000000000000000001 00 81", "a prefix of 129 bits"),
        ("80 0f 04 0002 01 81", "a withdrawn prefix of 129 bits"),
    ] {
        let attributes = format!("{attribute} {ORIGIN} {PATH}");
        assert_eq!(became(update("", &attributes, "", &EXTERNAL)), Disabled(Family::V6), "{why}");
        let alone = became(update("", &attributes, "", &alone));
        assert_eq!(alone, Reset(Reason::OPTIONAL_ATTRIBUTE), "{why}, and no other family");
    }
    assert_eq!(became(update("", "80 0e 02 0002", "", &EXTERNAL)), Reset(Reason::OPTIONAL_ATTRIBUTE));
    assert_eq!(became(update("", "80 0f 00", "", &EXTERNAL)), Reset(Reason::OPTIONAL_ATTRIBUTE));
}

#[test]
fn without_reachable_prefixes_a_flaw_ends_the_session() {
    let of = |withdrawn: &str, attributes: &str| became(update(withdrawn, attributes, "", &EXTERNAL));
    assert_eq!(of("18 0af401", "40 01 01 03"), Reset(Reason::INVALID_ORIGIN), "RFC 7606 5.2");
    assert_eq!(of("", "80 04 03 000000"), Reset(Reason::ATTRIBUTE_LENGTH));
    let update = update("18 0af401", "40 06 01 00", "", &EXTERNAL).unwrap();
    assert_eq!(prefixes(&update.withdrawn), ["10.244.1.0/24"], "what is only left out does no harm");
}

#[test]
fn families_that_were_not_agreed_on_are_ignored() {
    let four = Dialect { families: PerFamily { v4: true, v6: false }, ..EXTERNAL };
    let both = format!("{REACH} {ORIGIN} {PATH} {NEXT_HOP}");
    let read = update("", &both, NETWORK, &four).unwrap();
    assert_eq!(prefixes(&read.announced[0].prefixes), ["10.244.1.0/24"]);
    assert_eq!(read.announced.len(), 1);
    let six = Dialect { families: PerFamily { v4: false, v6: true }, ..EXTERNAL };
    let read = update("18 0af501", &both, NETWORK, &six).unwrap();
    assert_eq!(prefixes(&read.announced[0].prefixes), ["fd00:10:244:100::/56"]);
    assert_eq!((read.announced.len(), read.withdrawn.len()), (1, 0));
    let vpn = format!("80 0e 05 0001 80 00 00 {ORIGIN} {PATH}");
    let read = update("", &vpn, "", &EXTERNAL).unwrap();
    assert_eq!((read.announced.len(), read.withdrawn.len()), (0, 0));
}

#[test]
fn the_attributes_of_two_octet_speakers_are_left_out_where_they_do_not_belong_or_are_wrong() {
    assert_eq!(with("c0 11 06 02 01 00011170", &EXTERNAL), Without(17));
    assert_eq!(with("c0 12 08 00011170c0000201", &EXTERNAL), Without(18));
    let two = |more: &str| {
        let attributes = format!("{ORIGIN} 40 02 04 02 01 5ba0 {NEXT_HOP} {more}");
        became(update("", &attributes, NETWORK, &TWO_OCTETS))
    };
    assert_eq!(two("c0 11 06 02 01 00011170"), Taken);
    assert_eq!(two("c0 11 05 02 01 000111"), Without(17));
    assert_eq!(two("c0 11 06 02 01 00000000"), Without(17), "AS 0");
    assert_eq!(two("c0 12 06 5ba0c0000201"), Without(18));
    assert_eq!(two("80 11 06 02 01 00011170"), Withdrawn(17), "wrong flags");
}

#[test]
fn before_anything_is_agreed_an_update_is_not_read() {
    let body = message(UPDATE, &update_body("21", "", ""));
    assert_eq!(read(&body, None), Ok(Message::Update(Update::default())));
}
