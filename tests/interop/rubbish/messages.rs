//! Heads, OPEN, NOTIFICATION, KEEPALIVE, ROUTE-REFRESH, and messages that come when nobody expects them.

use sluice::bgp::message::Message;
use sluice::bgp::session::Cause;
use sluice::bgp::speaker::Fact;

use super::*;
use crate::raw::{IN, OUT, framed};

/// How far a connection is when something comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Nothing has been said (OpenSent).
    Fresh,
    /// An OPEN has been said (OpenConfirm).
    Opened,
    Up,
}
use At::*;

const MARKER: &str = "ffffffff ffffffff ffffffff ffffffff";

/// RFC and section, what is wrong, when it comes, what comes, what is answered.
type Said = (&'static str, &'static str, At, &'static str, &'static str);

/// `M` is the marker.
const HEADS: &[Said] = &[
    ("4271 6.1", "a marker of zeros", Fresh, "00000000000000000000000000000000 0013 04", "1/1"),
    ("4271 6.1", "one bit of a marker is missing", Up, "fffffffffffffffffffffffffffffffe 0013 04", "1/1"),
    ("4271 6.1", "a marker of something else", Up, "474554202f20485454502f312e310d0a 0d0a 48", "1/1"),
    ("4271 6.1", "a length of nothing", Fresh, "M 0000 04", "1/2 0000"),
    ("4271 6.1", "a length shorter than a head", Up, "M 0012 04", "1/2 0012"),
    ("4271 6.1", "a KEEPALIVE with a body", Up, "M 0014 04 00", "1/2 0014"),
    ("4271 6.1", "an OPEN without its fixed part", Fresh, "M 001c 01", "1/2 001c"),
    ("4271 6.1", "an UPDATE without its lengths", Up, "M 0016 02 000000", "1/2 0016"),
    ("4271 6.1", "a NOTIFICATION without its codes", Up, "M 0014 03 06", "1/2 0014"),
    ("4271 6.1", "a kind that does not exist, first of all", Fresh, "M 0013 00", "1/3 00"),
    ("4271 6.1", "a kind that does not exist", Opened, "M 0013 06", "1/3 06"),
    ("4271 6.1", "a kind that does not exist, with a body", Up, "M 0017 ff 01020304", "1/3 ff"),
    ("8654 4", "an OPEN is never longer", Fresh, "M 1001 01", "1/2 1001"),
    ("8654 4", "a KEEPALIVE is never longer", Up, "M ffff 04", "1/2 ffff"),
];

const UNEXPECTED: &[Said] = &[
    ("6608 3", "a KEEPALIVE first of all", Fresh, "M 0013 04", "5/1 04"),
    ("6608 3", "an UPDATE first of all", Fresh, "M 0017 02 00000000", "5/1 02"),
    ("6608 3", "a malformed UPDATE first of all", Fresh, "M 0017 02 ffffffff", "5/1 02"),
    ("6608 3", "a ROUTE-REFRESH first of all", Fresh, "M 0017 05 00010001", "5/1 05"),
    ("6608 3", "another OPEN", Opened, "M 001d 01 04fdea005ac000020200", "5/2 01"),
    ("6608 3", "an UPDATE too soon", Opened, "M 0017 02 00000000", "5/2 02"),
    ("6608 3", "a ROUTE-REFRESH too soon", Opened, "M 0017 05 00010001", "5/2 05"),
    ("6608 3", "an OPEN within a session", Up, "M 001d 01 04fdea005ac000020200", "5/3 01"),
];

const REFRESHES: &[Said] = &[
    ("2918 4", "a request", Up, "M 0017 05 0001 00 01", "stays"),
    ("2918 4", "a family that was not agreed on", Up, "M 0017 05 0019 00 41", "stays"),
    ("4271 6.1", "a request without a subtype", Up, "M 0015 05 0001", "1/2 0015"),
    ("4271 6.1", "a request that is too long", Up, "M 0018 05 0001 00 01 00", "1/2 0018"),
    (
        "7313 5",
        "a beginning that is too long",
        Up,
        "M 0018 05 0001 01 01 00",
        "7/1 ffffffffffffffffffffffffffffffff0018050001010100",
    ),
    (
        "7313 5",
        "an end that is too long",
        Up,
        "M 0018 05 0001 02 01 00",
        "7/1 ffffffffffffffffffffffffffffffff0018050001020100",
    ),
    (
        "7313 5",
        "a beginning that is too short",
        Up,
        "M 0016 05 0001 01",
        "7/1 ffffffffffffffffffffffffffffffff001605000101",
    ),
    ("7313 5", "a subtype that nobody knows", Up, "M 0017 05 0001 03 01", "stays"),
    ("7313 5", "a subtype that nobody knows, and a length", Up, "M 0018 05 0001 ff 01 00", "stays"),
    ("7313 4", "an end without a beginning", Up, "M 0017 05 0001 02 01", "stays"),
    ("7313 4", "a beginning of a family that was not agreed on", Up, "M 0017 05 0019 01 41", "stays"),
];

fn answers(rows: &[Said]) {
    play(rows, |stage, (rfc, what, at, sent, answer)| {
        stage.anew(None);
        let mut raw = match at {
            Up => stage.session(OUT),
            Fresh | Opened => stage.dial(OUT),
        };
        if *at == Opened {
            raw.say(&OUT.open("192.0.2.2".parse().expect("an address")));
            let heard = [raw.hear(), raw.hear()];
            assert!(matches!(heard, [Some(Message::Open(_)), Some(Message::Keepalive)]), "{heard:?}");
        }
        raw.say(&bytes(&sent.replace('M', MARKER)));
        let found = if *answer == "stays" { still_there(stage, &mut raw) } else { end(&mut raw) };
        (format!("RFC {rfc}: {what}, {at:?}"), (*answer).to_owned(), found)
    });
}

/// Last message before the connection ends, in the words of the tables.
fn end(raw: &mut Raw) -> String {
    raw.last_word().map_or_else(|| "an end without a word".to_owned(), |said| written(&said))
}

/// A route that comes after it is taken.
fn still_there(stage: &Stage, raw: &mut Raw) -> String {
    stage.announce(raw, OUT, Origin::Igp, &AFTER);
    eventually("that it is still heard, or not", &true, || stage.has().contains(AFTER[1]) || !stage.stands());
    if stage.stands() { "stays".to_owned() } else { end(raw) }
}

#[test]
fn a_head_that_is_wrong_is_answered_with_what_is_wrong() {
    answers(HEADS);
}

#[test]
fn a_message_that_nobody_expects_is_answered_with_its_kind() {
    answers(UNEXPECTED);
}

#[test]
fn a_refresh_that_is_wrong_ends_the_session_only_where_it_must() {
    answers(REFRESHES);
}

/// RFC and section, what is special, the number that is expected, the body, what is answered.
type Opening = (&'static str, &'static str, Option<u32>, &'static str, &'static str);

const OPENS: &[Opening] = &[
    ("4271 4.2", "nothing but what must be there", None, "04 fdea 005a c0000202 00", "stays"),
    ("4271 6.2", "version 3", None, "03 fdea 005a c0000202 00", "2/1 0004"),
    ("4271 6.2", "version 5", None, "05 fdea 005a c0000202 00", "2/1 0004"),
    ("4271 6.2", "version 0, and nonsense behind it", None, "00 0000 0001 00000000 ff", "2/1 0004"),
    ("4271 6.2", "another system than expected", Some(65002), "04 fdeb 005a c0000202 00", "2/2"),
    ("6793 4.1", "another system in the capability", Some(65002), "04 fdea 005a c0000202 08 0206 4104 0000fdeb", "2/2"),
    ("6793 4.1", "a system that has four octets", Some(70000), "04 5ba0 005a c0000202 08 0206 4104 00011170", "stays"),
    ("6793 9", "AS 23456, which stands for others", None, "04 5ba0 005a c0000202 00", "2/2"),
    ("6793 9", "AS 23456 in the capability", None, "04 5ba0 005a c0000202 08 0206 4104 00005ba0", "2/2"),
    ("7607 2", "AS 0", None, "04 0000 005a c0000202 00", "2/2"),
    ("7607 2", "AS 0 in the capability", None, "04 5ba0 005a c0000202 08 0206 4104 00000000", "2/2"),
    ("7607 2", "AS 0, and another in the capability", None, "04 0000 005a c0000202 08 0206 4104 0000fdea", "2/2"),
    ("4271 6.2", "a hold time of one second", None, "04 fdea 0001 c0000202 00", "2/6"),
    ("4271 6.2", "a hold time of two seconds", None, "04 fdea 0002 c0000202 00", "2/6"),
    ("4271 4.2", "a hold time of three seconds", None, "04 fdea 0003 c0000202 00", "stays"),
    ("4271 4.2", "no hold time", None, "04 fdea 0000 c0000202 00", "stays"),
    ("6286 2.2", "no identifier", None, "04 fdea 005a 00000000 00", "2/3"),
    ("6286 2.2", "our identifier, inside", None, "04 fde9 005a c0000201 00", "2/3"),
    ("6286 2.2", "our identifier, outside", None, "04 fdea 005a c0000201 00", "stays"),
    ("4271 6.2", "parameters shorter than they say", None, "04 fdea 005a c0000202 04 0200", "2/0"),
    ("4271 6.2", "parameters longer than they say", None, "04 fdea 005a c0000202 00 0200", "2/0"),
    ("4271 6.2", "a parameter that ends behind the end", None, "04 fdea 005a c0000202 04 02 08 4104", "2/0"),
    ("4271 6.2", "half a head of a parameter", None, "04 fdea 005a c0000202 01 02", "2/0"),
    ("4271 6.2", "a parameter that nobody knows", None, "04 fdea 005a c0000202 03 01 01 00", "2/4"),
    ("5492 4", "a capability that nobody knows", None, "04 fdea 005a c0000202 05 02 03 ee 01 00", "stays"),
    (
        "5492 4",
        "one capability in each parameter, some twice",
        None,
        "04 fdea 005a c0000202 0c 0202 0200 0202 0200 0202 0600",
        "stays",
    ),
    ("5492 4", "an empty parameter of capabilities", None, "04 fdea 005a c0000202 02 0200", "stays"),
    ("5492 4", "a capability that ends behind the end", None, "04 fdea 005a c0000202 04 02 02 41 04", "2/0"),
    (
        "5492 5",
        "no family in common",
        None,
        "04 fdea 005a c0000202 08 0206 0104 00190041",
        "2/7 010400010001010400020001",
    ),
    ("4760 8", "a family of three octets", None, "04 fdea 005a c0000202 07 0205 0103 000100", "2/0"),
    ("6793 3", "a number of two octets in the capability", None, "04 fdea 005a c0000202 06 0204 4102 fdea", "2/0"),
    ("4724 3", "a graceful restart of one octet", None, "04 fdea 005a c0000202 05 0203 4001 00", "2/0"),
    ("4724 3", "half a family of a graceful restart", None, "04 fdea 005a c0000202 08 0206 4004 00780001", "2/0"),
    ("8950 4", "half a next hop", None, "04 fdea 005a c0000202 07 0205 0503 000100", "2/0"),
    ("9072 2", "the extended form", None, "04 fdea 005a c0000202 ff ff 0005 02 0002 0200", "stays"),
    ("9072 2", "the extended form of nothing", None, "04 fdea 005a c0000202 ff ff 0000", "stays"),
    (
        "9072 2",
        "the extended form, with another first length",
        None,
        "04 fdea 005a c0000202 01 ff 0005 02 0002 0200",
        "stays",
    ),
    ("9072 2", "the extended form, shorter than it says", None, "04 fdea 005a c0000202 ff ff 0006 02 0002 0200", "2/0"),
    ("9072 2", "the extended form, longer than it says", None, "04 fdea 005a c0000202 ff ff 0004 02 0002 0200", "2/0"),
    ("9072 2", "the extended form without its length", None, "04 fdea 005a c0000202 ff ff 00", "2/0"),
    (
        "9072 2",
        "the number of the extended form as a later parameter",
        None,
        "04 fdea 005a c0000202 04 0200 ff00",
        "2/4",
    ),
];

#[test]
fn an_open_that_is_wrong_is_answered_with_what_is_wrong() {
    play(OPENS, |stage, (rfc, what, expected, sent, answer)| {
        stage.anew(*expected);
        let mut raw = stage.dial(OUT);
        raw.say(&framed(1, &bytes(sent)));
        let opened = raw.hear();
        assert!(matches!(opened, Some(Message::Open(_))), "{opened:?}");
        let found = match raw.hear() {
            Some(Message::Keepalive) => {
                raw.say(&sluice::bgp::message::keepalive());
                eventually("the session", &true, || stage.stands());
                "stays".to_owned()
            }
            Some(Message::Notification(said)) => written(&said),
            other => format!("{other:?}"),
        };
        (format!("RFC {rfc}: {what}"), (*answer).to_owned(), found)
    });
}

/// RFC and section, what is special, the body, and how it is shown.
type Farewell = (&'static str, &'static str, &'static str, &'static str);

const FAREWELLS: &[Farewell] = &[
    ("4271 6.7", "nothing but the codes", "06 04", "6/4 administrative reset"),
    ("9003 2", "a text", "06 02 05 68656c6c6f", "6/2 administrative shutdown: hello"),
    ("9003 2", "an empty text", "06 02 00", "6/2 administrative shutdown"),
    ("9003 4", "a text shorter than it says", "06 02 ff 68656c6c6f", "6/2 administrative shutdown"),
    ("9003 4", "a text longer than it says", "06 02 02 68656c6c6f", "6/2 administrative shutdown: he"),
    ("9003 4", "a text that is not UTF-8", "06 02 03 41c328", "6/2 administrative shutdown: A\u{fffd}("),
    ("9003 5", "a text with characters that command", "06 04 03 1b5b4a", "6/4 administrative reset: \u{fffd}[J"),
    ("4486 3", "a subcode that nobody knows", "06 63", "6/99 cease"),
    ("4271 6.4", "a code that does not exist", "00 00", "0/0"),
    ("4271 6.4", "a code that does not exist, with data", "ff ff 01020304", "255/255"),
    ("8538 3.1", "a hard reset of nothing", "06 09", "6/9 hard reset"),
    ("8538 3.1", "a hard reset of half a code", "06 09 06", "6/9 hard reset"),
    ("8538 3.1", "a hard reset in a hard reset", "06 09 06 09 06 02", "6/9 hard reset (6/9 hard reset)"),
    ("4271 6.1", "an error with too little data", "01 02", "1/2 bad message length"),
];

#[test]
fn whatever_a_notification_says_it_ends_the_session_and_is_not_answered() {
    play(FAREWELLS, |stage, (rfc, what, sent, shown)| {
        stage.anew(None);
        let mut raw = stage.session(if *rfc == "4486 3" { IN } else { OUT });
        raw.say(&framed(3, &bytes(sent)));
        assert_eq!(raw.last_word(), None, "{what}: it is not answered");
        let told = stage.ours.learns("why it ends", |fact| match fact {
            Fact::Down { cause: Cause::Received(said), .. } => Some(said.to_string()),
            _ => None,
        });
        (format!("RFC {rfc}: {what}"), (*shown).to_owned(), told)
    });
}

#[test]
fn a_text_of_the_greatest_length_is_shown_whole() {
    with_hosts(3, Topology::Link, |hosts| {
        let stage = Stage::new(hosts);
        stage.anew(None);
        let mut raw = stage.session(OUT);
        raw.say(&framed(3, &[&[6, 2, 255][..], "ä".repeat(127).as_bytes(), b"!"].concat()));
        assert_eq!(raw.last_word(), None);
        let text = stage.ours.learns("why it ends", |fact| match fact {
            Fact::Down { cause: Cause::Received(said), .. } => said.text(),
            _ => None,
        });
        assert_eq!(text, format!("{}!", "ä".repeat(127)));
        stage.others_are_untouched();
    });
}
