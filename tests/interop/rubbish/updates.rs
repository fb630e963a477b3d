//! UPDATEs: every field and every attribute, with what RFC 7606 wants done about it.

use sluice::bgp::message::{Remark, Treatment};

use super::*;
use crate::raw::{FOUR, IN, OLD, OUT, SIX, framed};

/// RFC and section, what is special, who sends it, what is sent, what becomes of it.
///
/// Message: withdrawn routes / attributes / routes. Words stand for what is right: `ORIGIN`, `PATH` and `HOP` for the
/// mandatory attributes, `REACH` for MP_REACH_NLRI with the IPv6 route, `HERE` for its next hop and `NET6`
/// for itself, `NET` for the IPv4 route. With `raw` it is the body.
///
/// Outcome: `taken`, `gone`, `kept` (as it was), of IPv4 or IPv6 (`six`) or `both`; `without` an attribute, or
/// withdrawn `for` one, or the family `off` for one; or what we say at the end of the session.
type Case = (&'static str, &'static str, Who, &'static str, &'static str);

const WORDS: [(&str, &str); 6] = [
    ("ORIGIN", "40010100"),
    ("HOP", "400304c0000202"),
    ("REACH", "800e1e00020110HERE00NET6"),
    ("HERE", "20010db8000000000000000000000002"),
    ("NET6", "40fd00001002440001"),
    ("NET", "180af401"),
];

const FORM: &[Case] = &[
    ("4271 4.3", "a route", OUT, "/ORIGIN PATH HOP/NET", "taken"),
    ("4760 3", "a route in an attribute", OUT, "/REACH ORIGIN PATH/", "six taken"),
    ("7606 5.1", "that attribute behind the others", OUT, "/ORIGIN PATH REACH/", "six taken"),
    ("4760 3", "both families in one", OUT, "/REACH ORIGIN PATH HOP/NET", "both taken"),
    ("4760 3", "a NEXT_HOP that counts for nothing", OUT, "/REACH ORIGIN PATH 400304c0000209/", "six taken"),
    ("4271 5", "attributes in another order", OUT, "/HOP PATH ORIGIN/NET", "taken"),
    ("4271 4.3", "a length of two octets where one would do", OUT, "/5001000100 PATH HOP/NET", "taken"),
    ("4271 4.3", "bits of the flags that mean nothing", OUT, "/4f010100 PATH HOP/NET", "taken"),
    ("4271 4.3", "a withdrawal", OUT, "NET//", "gone"),
    ("4760 4", "a withdrawal in an attribute", OUT, "/800f0c000201 NET6/", "six gone"),
    ("4271 4.3", "a withdrawal of what was never there", OUT, "180af4c8//", "kept"),
    ("4271 4.3", "withdrawn and announced at once", OUT, "NET/ORIGIN PATH HOP/NET", "taken"),
    ("4271 4.3", "bits behind the end of a prefix", OUT, "/ORIGIN PATH HOP/170af401", "kept"),
    ("4724 2", "the end of IPv4", OUT, "//", "kept"),
    ("4724 2", "the end of IPv6", OUT, "/800f03000201/", "kept"),
    ("4271 6.3", "withdrawn routes that end behind the end", OUT, "raw 0005 0000", "says 3/1"),
    ("4271 6.3", "attributes that end behind the end", OUT, "raw 0000 0001", "says 3/1"),
    ("4271 6.3", "attributes that end behind the end, by far", OUT, "raw 0000 ffff 40010100", "says 3/1"),
    ("7606 3 i", "a withdrawn prefix of 33 bits", OUT, "210102030405//", "says 3/10"),
    ("7606 3 i", "half a withdrawn prefix", OUT, "180af4//", "says 3/10"),
    ("7606 3 j", "a prefix of 33 bits", OUT, "/ORIGIN PATH HOP/210af40102 80", "says 3/10"),
    ("7606 3 j", "half a prefix", OUT, "/ORIGIN PATH HOP/180af4", "says 3/10"),
    ("7606 3 j", "a prefix and half of another", OUT, "/ORIGIN PATH HOP/NET 20", "says 3/10"),
    ("4271 6.3", "a prefix that is multicast", OUT, "/ORIGIN PATH HOP/NET 08e0", "taken without 0"),
    ("4271 6.3", "a prefix of this host", OUT, "/ORIGIN PATH HOP/NET 187f0000", "taken without 0"),
    ("4271 6.3", "a prefix of links", OUT, "/800e18000201 10HERE00 0afe80 ORIGIN PATH/", "kept without 0"),
    ("7606 4", "a value that ends behind the end", OUT, "/ORIGIN PATH HOP 80040500000001/NET", "gone for 4"),
    ("7606 4", "half a head of an attribute", OUT, "/ORIGIN PATH HOP 80/NET", "gone for 0"),
    ("7606 4", "half a length of an attribute", OUT, "/ORIGIN PATH HOP 900400/NET", "gone for 4"),
    ("7606 4", "a first attribute that swallows the others", OUT, "/400120 00 PATH HOP/NET", "gone for 1 for 2 for 3"),
    ("7606 5.3", "MP_REACH_NLRI ends behind the end", OUT, "/ORIGIN PATH HOP 800e400002/NET", "says 3/5 800e400002"),
    ("7606 5.3", "MP_UNREACH_NLRI ends behind the end", OUT, "/800f0c000201/", "says 3/5 800f0c000201"),
    ("7606 3 h", "several errors: the worst counts", OUT, "/40010103 PATH HOP 406300/NET", "says 3/2 406300"),
    (
        "7606 3 h",
        "several errors: one attribute less and one route less",
        OUT,
        "/40010103 PATH HOP 40060100/NET",
        "gone for 1 without 6",
    ),
    ("7606 5.2", "an error and nothing to withdraw", OUT, "/80040300 0000/", "says 3/5 800403000000"),
    ("7606 5.2", "an error beside withdrawn routes", OUT, "NET/40010103/", "says 3/6 40010103"),
    ("7606 5.2", "an attribute less beside withdrawn routes", OUT, "NET/40060100/", "gone without 6"),
    ("8654 4", "a long message from one that takes none itself", OLD, "/ORIGIN PATH HOP d0631068 {4200}/NET", "taken"),
    ("4760 5", "IPv4 where it was not agreed on", SIX, "/ORIGIN PATH HOP/NET", "six kept without 0"),
    ("4760 5", "IPv6 where it was not agreed on", FOUR, "/REACH ORIGIN PATH/", "four kept without 14"),
    ("4760 5", "a family that nobody speaks", OUT, "/800e0500190100 00 ORIGIN PATH/", "kept without 14"),
];

const MANDATORY: &[Case] = &[
    ("7606 3 d", "no ORIGIN", OUT, "/PATH HOP/NET", "gone for 1"),
    ("7606 3 d", "no AS_PATH", OUT, "/ORIGIN HOP/NET", "gone for 2"),
    ("7606 3 d", "no NEXT_HOP", OUT, "/ORIGIN PATH/NET", "gone for 3"),
    ("7606 3 d", "no attribute at all", OUT, "//NET", "gone for 1 for 2 for 3"),
    ("7606 3 d", "no ORIGIN beside MP_REACH_NLRI", OUT, "/REACH PATH/", "six gone for 1"),
    ("7606 3 d", "no AS_PATH beside MP_REACH_NLRI", OUT, "/REACH ORIGIN/", "six gone for 2"),
    ("7606 7.1", "ORIGIN with a value that does not exist", OUT, "/40010103 PATH HOP/NET", "gone for 1"),
    ("7606 7.1", "ORIGIN of two octets", OUT, "/4001020000 PATH HOP/NET", "gone for 1"),
    ("7606 7.1", "ORIGIN of nothing", OUT, "/400100 PATH HOP/NET", "gone for 1"),
    ("7606 3 c", "ORIGIN is optional", OUT, "/c0010100 PATH HOP/NET", "gone for 1"),
    ("7606 3 c", "ORIGIN is not transitive", OUT, "/00010100 PATH HOP/NET", "gone for 1"),
    ("7606 3 g", "ORIGIN twice: the first counts", OUT, "/ORIGIN PATH HOP 40010102/NET", "taken without 1"),
    ("7606 7.2", "a segment of a kind that does not exist", OUT, "/ORIGIN 40020607010000fdea HOP/NET", "gone for 2"),
    ("7606 7.2", "a segment of kind 0", OUT, "/ORIGIN 40020600010000fdea HOP/NET", "gone for 2"),
    ("7606 7.2", "a segment of nothing", OUT, "/ORIGIN 4002020200 HOP/NET", "gone for 2"),
    ("7606 7.2", "a segment longer than the path", OUT, "/ORIGIN 40020602020000fdea HOP/NET", "gone for 2"),
    ("7606 7.2", "half a head of a segment", OUT, "/ORIGIN 40020702010000fdea02 HOP/NET", "gone for 2"),
    ("7606 3 c", "AS_PATH is optional", OUT, "/ORIGIN c00206 02010000fdea HOP/NET", "gone for 2"),
    ("5065 5", "a confederation's sequence", OUT, "/ORIGIN 40020603010000fdea HOP/NET", "gone for 2"),
    ("5065 5", "a confederation's set", OUT, "/ORIGIN 40020c02010000fdea 04010000fdeb HOP/NET", "gone for 2"),
    ("7607 2", "AS 0 in AS_PATH", OUT, "/ORIGIN 40020a02020000fdea00000000 HOP/NET", "gone for 2"),
    (
        "6793 4.1",
        "numbers of two octets where four were agreed on",
        OUT,
        "/ORIGIN 4002040201fdea HOP/NET",
        "gone for 2",
    ),
    (
        "6793 4.1",
        "numbers of four octets where two were agreed on",
        OLD,
        "/ORIGIN 40020602010000fdea HOP/NET",
        "gone for 2",
    ),
    ("4271 6.3", "a path that begins with somebody else", OUT, "/ORIGIN 40020602010000fdeb HOP/NET", "gone"),
    ("4271 5.1.2", "an empty path from outside", OUT, "/ORIGIN 400200 HOP/NET", "gone"),
    ("4271 9.1.2", "our own number in the path", OUT, "/ORIGIN 40020a02020000fdea0000fde9 HOP/NET", "gone"),
    (
        "4271 9.1.2",
        "our own number in a set of the path",
        OUT,
        "/ORIGIN 40020c02010000fdea01010000fde9 HOP/NET",
        "gone",
    ),
    ("4271 9.1.2", "our own number in a path from inside", IN, "/ORIGIN 40020602010000fde9 HOP/NET", "gone"),
    ("7606 7.3", "NEXT_HOP of three octets", OUT, "/ORIGIN PATH 400303c00002/NET", "gone for 3"),
    ("7606 7.3", "NEXT_HOP of five octets", OUT, "/ORIGIN PATH 400305c000020200/NET", "gone for 3"),
    ("7606 7.3", "NEXT_HOP of nothing", OUT, "/ORIGIN PATH 400300/NET", "gone for 3"),
    ("7606 3 c", "NEXT_HOP is optional", OUT, "/ORIGIN PATH c00304c0000202/NET", "gone for 3"),
    ("4271 6.3", "a next hop that is none", OUT, "/ORIGIN PATH 40030400000000/NET", "gone"),
    ("4271 6.3", "a next hop that is multicast", OUT, "/ORIGIN PATH 400304e0000001/NET", "gone"),
    ("4271 6.3", "a next hop that is everybody", OUT, "/ORIGIN PATH 400304ffffffff/NET", "gone"),
    ("4271 6.3", "a next hop that is any host itself", OUT, "/ORIGIN PATH 4003047f000001/NET", "gone"),
    ("4271 6.3", "a next hop that is ourselves", OUT, "/ORIGIN PATH 400304c0000201/NET", "gone"),
];

const OPTIONAL: &[Case] = &[
    ("7606 7.4", "MULTI_EXIT_DISC of three octets", OUT, "/ORIGIN PATH HOP 800403000001/NET", "gone for 4"),
    ("7606 7.4", "MULTI_EXIT_DISC of five octets", OUT, "/ORIGIN PATH HOP 8004050000000001/NET", "gone for 4"),
    ("7606 7.4", "MULTI_EXIT_DISC of nothing", OUT, "/ORIGIN PATH HOP 800400/NET", "gone for 4"),
    ("7606 3 c", "MULTI_EXIT_DISC is transitive", OUT, "/ORIGIN PATH HOP c0040400000001/NET", "gone for 4"),
    ("7606 7.5", "LOCAL_PREF from outside", OUT, "/ORIGIN PATH HOP 40050400000064/NET", "taken without 5"),
    ("7606 7.5", "LOCAL_PREF from outside, malformed", OUT, "/ORIGIN PATH HOP c00500/NET", "taken without 5"),
    ("7606 7.5", "LOCAL_PREF of three octets", IN, "/ORIGIN PATH HOP 400503000064/NET", "gone for 5"),
    ("7606 3 c", "LOCAL_PREF is optional", IN, "/ORIGIN PATH HOP c0050400000064/NET", "gone for 5"),
    ("7606 7.6", "ATOMIC_AGGREGATE with a value", OUT, "/ORIGIN PATH HOP 40060100/NET", "taken without 6"),
    ("7606 3 c", "ATOMIC_AGGREGATE is optional", OUT, "/ORIGIN PATH HOP c00600/NET", "gone for 6"),
    (
        "7606 7.7",
        "AGGREGATOR of two octets and an address",
        OUT,
        "/ORIGIN PATH HOP c00706fdeac0000202/NET",
        "taken without 7",
    ),
    (
        "7606 7.7",
        "AGGREGATOR of four octets for one that has two",
        OLD,
        "/ORIGIN PATH HOP c007080000fdeac0000202/NET",
        "taken without 7",
    ),
    ("7606 7.7", "AGGREGATOR of nothing", OUT, "/ORIGIN PATH HOP c00700/NET", "taken without 7"),
    ("7607 2", "AGGREGATOR in AS 0", OUT, "/ORIGIN PATH HOP c0070800000000c0000202/NET", "taken without 7"),
    ("7606 3 c", "AGGREGATOR is well-known", OUT, "/ORIGIN PATH HOP 4007080000fdeac0000202/NET", "gone for 7"),
    ("7606 7.8", "COMMUNITIES of nothing", OUT, "/ORIGIN PATH HOP c00800/NET", "gone for 8"),
    ("7606 7.8", "COMMUNITIES of five octets", OUT, "/ORIGIN PATH HOP c008050000000000/NET", "gone for 8"),
    ("7606 3 c", "COMMUNITIES are not transitive", OUT, "/ORIGIN PATH HOP 80080400000001/NET", "gone for 8"),
    ("7606 3 g", "COMMUNITIES twice", OUT, "/ORIGIN PATH HOP c00804fdea0001 c00804fdea0002/NET", "taken without 8"),
    ("7606 7.9", "ORIGINATOR_ID from outside", OUT, "/ORIGIN PATH HOP 800904c0000209/NET", "taken without 9"),
    ("7606 7.9", "ORIGINATOR_ID from outside, malformed", OUT, "/ORIGIN PATH HOP c00900/NET", "taken without 9"),
    ("7606 7.9", "ORIGINATOR_ID of three octets", IN, "/ORIGIN PATH HOP 800903c00002/NET", "gone for 9"),
    ("7606 3 c", "ORIGINATOR_ID is transitive", IN, "/ORIGIN PATH HOP c00904c0000209/NET", "gone for 9"),
    ("4456 8", "ORIGINATOR_ID is ours", IN, "/ORIGIN PATH HOP 800904c0000201/NET", "gone"),
    ("7606 7.10", "CLUSTER_LIST from outside", OUT, "/ORIGIN PATH HOP 800a04c0000209/NET", "taken without 10"),
    ("7606 7.10", "CLUSTER_LIST of nothing", IN, "/ORIGIN PATH HOP 800a00/NET", "gone for 10"),
    ("7606 7.10", "CLUSTER_LIST of six octets", IN, "/ORIGIN PATH HOP 800a06c00002090000/NET", "gone for 10"),
    ("4456 8", "our cluster in the CLUSTER_LIST", IN, "/ORIGIN PATH HOP 800a08c0000209c0000201/NET", "gone"),
    ("7606 7.14", "EXTENDED COMMUNITIES of nothing", OUT, "/ORIGIN PATH HOP c01000/NET", "gone for 16"),
    (
        "7606 7.14",
        "EXTENDED COMMUNITIES of seven octets",
        OUT,
        "/ORIGIN PATH HOP c010070002fdea000000/NET",
        "gone for 16",
    ),
    (
        "7606 3 c",
        "EXTENDED COMMUNITIES are well-known",
        OUT,
        "/ORIGIN PATH HOP 4010080002fdea00000001/NET",
        "gone for 16",
    ),
    ("8092 6", "LARGE_COMMUNITY of nothing", OUT, "/ORIGIN PATH HOP c02000/NET", "gone for 32"),
    (
        "8092 6",
        "LARGE_COMMUNITY of thirteen octets",
        OUT,
        "/ORIGIN PATH HOP c0200d00000000000000000000000000/NET",
        "gone for 32",
    ),
    (
        "8092 6",
        "LARGE_COMMUNITY is not transitive",
        OUT,
        "/ORIGIN PATH HOP 80200c000000000000000000000000/NET",
        "gone for 32",
    ),
    ("7606 7.15", "communities of IPv6, which we pass on unread", OUT, "/ORIGIN PATH HOP c0190100/NET", "taken"),
    (
        "6793 6",
        "AS4_PATH from one that has four octets",
        OUT,
        "/ORIGIN PATH HOP c01106020100011170/NET",
        "taken without 17",
    ),
    (
        "6793 6",
        "AS4_AGGREGATOR from one that has four octets",
        OUT,
        "/ORIGIN PATH HOP c0120800011170c0000202/NET",
        "taken without 18",
    ),
    (
        "6793 4.2.3",
        "AS4_PATH of one that has two octets",
        OLD,
        "/ORIGIN 4002060202fdea5ba0 HOP c01106020100011170/NET",
        "taken",
    ),
    ("6793 4.2.3", "AS4_PATH longer than the path", OLD, "/ORIGIN PATH HOP c0110a02020001117000011170/NET", "taken"),
    ("6793 6", "AS4_PATH of half a number", OLD, "/ORIGIN PATH HOP c011050201000111/NET", "taken without 17"),
    ("6793 6", "AS4_PATH of nothing", OLD, "/ORIGIN PATH HOP c01100/NET", "taken without 17"),
    (
        "6793 6",
        "AS4_PATH with a segment of nothing",
        OLD,
        "/ORIGIN PATH HOP c01108020002010001 1170/NET",
        "taken without 17",
    ),
    (
        "6793 6",
        "AS4_PATH with a segment of a kind that does not exist",
        OLD,
        "/ORIGIN PATH HOP c01106050100011170/NET",
        "taken without 17",
    ),
    (
        "6793 6",
        "AS4_PATH through a confederation",
        OLD,
        "/ORIGIN 4002060202fdea5ba0 HOP c0110c030100000009020100011170/NET",
        "taken",
    ),
    ("7607 2", "AS4_PATH through AS 0", OLD, "/ORIGIN PATH HOP c01106020100000000/NET", "taken without 17"),
    ("6793 6", "AS4_AGGREGATOR of six octets", OLD, "/ORIGIN PATH HOP c012065ba0c0000202/NET", "taken without 18"),
    ("7607 2", "AS4_AGGREGATOR in AS 0", OLD, "/ORIGIN PATH HOP c0120800000000c0000202/NET", "taken without 18"),
    ("4271 5", "an optional attribute that nobody knows", OUT, "/ORIGIN PATH HOP 80630100/NET", "taken"),
    ("4271 5", "a transitive one that nobody knows", OUT, "/ORIGIN PATH HOP c0630100/NET", "taken"),
    ("4271 5", "attribute 0", OUT, "/ORIGIN PATH HOP c00000/NET", "taken"),
    ("7606 3 g", "an unknown attribute twice", OUT, "/ORIGIN PATH HOP c0630101 c0630102/NET", "taken without 99"),
    ("4271 6.3", "a well-known attribute that nobody knows", OUT, "/ORIGIN PATH HOP 40630101/NET", "says 3/2 40630101"),
    ("4271 6.3", "one that is not even transitive", OUT, "/ORIGIN PATH HOP 00630101/NET", "says 3/2 00630101"),
    (
        "4271 6.3",
        "one that is longer than an answer",
        OUT,
        "/ORIGIN PATH HOP 50631388 {5000}/NET",
        "says 3/2 50631388{4071}",
    ),
];

const MULTIPROTOCOL: &[Case] = &[
    ("7606 3 g", "MP_REACH_NLRI twice", OUT, "/REACH REACH ORIGIN PATH/", "says 3/1"),
    ("7606 3 g", "MP_UNREACH_NLRI twice", OUT, "/800f03000201 800f03000201/", "says 3/1"),
    ("7606 3 c", "MP_REACH_NLRI is transitive", OUT, "/c00e1e00020110HERE00 NET6 ORIGIN PATH/", "six gone for 14"),
    ("7606 3 c", "MP_UNREACH_NLRI is well-known", OUT, "/400f0c000201 NET6/", "six gone for 15"),
    (
        "7606 7.11",
        "a next hop of 15 octets",
        OUT,
        "/800e1d0002010f20010db8000000000000000000000200 NET6 ORIGIN PATH/",
        "six off for 14",
    ),
    ("7606 7.11", "a next hop of nothing", OUT, "/800e0e0002010000 NET6 ORIGIN PATH/", "six off for 14"),
    ("7606 7.11", "a next hop of IPv4", OUT, "/800e12000201 04c000020200 NET6 ORIGIN PATH/", "six off for 14"),
    ("7606 7.11", "a next hop that ends behind the end", OUT, "/800e0600020110 2001 ORIGIN PATH/", "six off for 14"),
    ("7606 7.11", "nothing behind the next hop", OUT, "/800e14000201 10HERE ORIGIN PATH/", "six off for 14"),
    ("7606 7.11", "half a prefix", OUT, "/800e1d00020110HERE00 40fd000010024400 ORIGIN PATH/", "six off for 14"),
    ("7606 7.11", "a prefix of 129 bits", OUT, "/800e1600020110HERE00 81 ORIGIN PATH/", "six off for 14"),
    ("7606 7.12", "a withdrawn prefix of 129 bits", OUT, "/800f0400020181/", "six off for 15"),
    (
        "7606 7.11",
        "a next hop of 15 octets in the only family",
        SIX,
        "/800e140002010f20010db800000000000000000000 0200 ORIGIN PATH/",
        "says 3/9 800e140002010f20010db8000000000000000000000200",
    ),
    (
        "7606 7.12",
        "a withdrawn prefix of 129 bits in the only family",
        SIX,
        "/800f0400020181/",
        "says 3/9 800f0400020181",
    ),
    ("7606 7.11", "MP_REACH_NLRI without a family", OUT, "/800e020002 ORIGIN PATH/", "says 3/9 800e020002"),
    ("7606 7.12", "MP_UNREACH_NLRI of nothing", OUT, "/800f00/", "says 3/9 800f00"),
    (
        "2545 3",
        "two next hops",
        OUT,
        "/800e2e00020120HEREfe80000000000000000000000000000200 NET6 ORIGIN PATH/",
        "six taken",
    ),
    (
        "2545 3",
        "a next hop on some link alone",
        OUT,
        "/800e1e00020110fe80000000000000000000000000000200 NET6 ORIGIN PATH/",
        "six gone",
    ),
    (
        "4271 6.3",
        "a next hop that is multicast",
        OUT,
        "/800e1e00020110ff02000000000000000000000000000100 NET6 ORIGIN PATH/",
        "six gone",
    ),
    (
        "4271 6.3",
        "a next hop that is none",
        OUT,
        "/800e1e000201100000000000000000000000000000000000 NET6 ORIGIN PATH/",
        "six gone",
    ),
    (
        "4271 6.3",
        "a next hop that is ourselves",
        OUT,
        "/800e1e0002011020010db800000000000000000000000100 NET6 ORIGIN PATH/",
        "six gone",
    ),
    (
        "8950 4",
        "an IPv6 next hop of IPv4 that was agreed on",
        OUT,
        "/800e1900010110HERE00 180af401 ORIGIN PATH/",
        "taken",
    ),
    (
        "8950 4",
        "an IPv6 next hop of IPv4 that was not",
        OLD,
        "/800e1900010110HERE00 180af401 ORIGIN PATH/",
        "off for 14",
    ),
    ("4760 3", "IPv4 in the attribute", OUT, "/800e0d00010104c000020200 180af401 ORIGIN PATH/", "taken"),
];

fn becomes(rows: &[Case]) {
    play(rows, |stage, (rfc, what, who, sent, expected)| {
        stage.anew(None);
        let mut raw = stage.session(*who);
        let known = BEFORE.iter().filter(|prefix| *who.families.of(family(prefix)));
        stage.announce(&mut raw, *who, Origin::Incomplete, &BEFORE);
        eventually("what it announces first", &true, || known.clone().all(|prefix| stage.has().contains(*prefix)));
        raw.say(&framed(2, &body(*who, sent)));
        stage.announce(&mut raw, *who, Origin::Igp, &AFTER);
        let found = became(stage, &mut raw, *who);
        stage.others_are_untouched();
        (format!("RFC {rfc}: {what}"), words(expected), found)
    });
}

fn family(prefix: &str) -> Family {
    if prefix.contains(':') { Family::V6 } else { Family::V4 }
}

/// With what words stand for; `{4200}` is so many octets of zero.
fn words(text: &str) -> String {
    let mut parts = text.split(['{', '}']);
    let mut out = parts.next().unwrap_or_default().to_owned();
    while let (Some(count), Some(rest)) = (parts.next(), parts.next()) {
        out.push_str(&"00".repeat(count.parse().expect("a number")));
        out.push_str(rest);
    }
    WORDS.iter().fold(out, |text, (word, meaning)| text.replace(word, meaning))
}

fn body(who: Who, sent: &str) -> Vec<u8> {
    if let Some(all) = sent.strip_prefix("raw") {
        return bytes(all);
    }
    let path = match (who.asn, who.four_octets) {
        (65001, _) => "400200",
        (_, true) => "40020602010000fdea",
        (_, false) => "4002040201fdea",
    };
    let text = words(&sent.replace("PATH", path));
    let parts: Vec<Vec<u8>> = text.split('/').map(bytes).collect();
    let [withdrawn, attributes, networks] = parts.as_slice() else { panic!("{sent} has three parts") };
    let length = |part: &[u8]| (part.len() as u16).to_be_bytes();
    [&length(withdrawn)[..], withdrawn, &length(attributes), attributes, networks].concat()
}

/// Outcome for the routes after the message, in the words of the tables.
fn became(stage: &Stage, raw: &mut Raw, who: Who) -> String {
    let after: Vec<IpNet> = AFTER.iter().map(|prefix| prefix.parse().expect("a prefix")).collect();
    let is_over = || !stage.stands() || after.iter().any(|prefix| stage.ours.programmed().contains_key(prefix));
    eventually("that it is still heard, or not", &true, is_over);
    if !stage.stands() {
        eventually("that nothing of it is left", &BTreeSet::from([OTHERS.to_owned()]), || stage.has());
        return raw.last_word().map_or_else(|| "ends".to_owned(), |said| format!("says {}", written(&said)));
    }
    let table = stage.ours.table();
    let fate = |prefix: &str| match table.iter().find(|line| line.starts_with(&format!("{prefix} "))) {
        None => "gone",
        Some(line) if line.contains("origin incomplete") => "kept",
        Some(_) => "taken",
    };
    assert!(!who.families.v4 || fate(BEFORE[1]) != "taken", "the route that it is not about");
    let remarks: Vec<Remark> = facts(&stage.ours, |fact| match fact {
        Fact::Remarks(remarks) => Some(remarks.clone()),
        _ => None,
    })
    .concat();
    let off = remarks.iter().any(|remark| matches!(remark.treatment, Treatment::DisableFamily(_)));
    let [four, six] = [fate(BEFORE[0]), fate(BEFORE[2])];
    let gone = if off { "off" } else { "gone" };
    let mut said = match (who.families.v4, who.families.v6) {
        (true, false) => format!("four {four}"),
        (false, _) => format!("six {six}"),
        _ if four == six && four != "kept" => format!("both {four}"),
        _ if six == "kept" => four.replace("gone", gone),
        _ => format!("six {}", six.replace("gone", gone)),
    };
    for remark in remarks {
        let how = if remark.treatment == Treatment::DiscardAttribute { "without" } else { "for" };
        said.push_str(&format!(" {how} {}", remark.attribute));
    }
    said
}

#[test]
fn the_form_of_an_update_decides_how_much_of_it_is_lost() {
    becomes(FORM);
}

#[test]
fn a_mandatory_attribute_that_is_wrong_costs_its_routes_and_no_more() {
    becomes(MANDATORY);
}

#[test]
fn every_other_attribute_is_treated_as_its_rules_say() {
    becomes(OPTIONAL);
}

#[test]
fn an_attribute_that_hides_its_routes_costs_the_family_and_not_the_session() {
    becomes(MULTIPROTOCOL);
}
