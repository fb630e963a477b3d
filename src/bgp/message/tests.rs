//! Messages compared with bytes written by hand from the RFCs, and with random bytes.

mod chance;
mod errors;
mod open;
mod update;
mod wire;

use super::header::HEADER;
use super::*;
use crate::net::{Family, PerFamily};

/// IBGP session with every capability negotiated.
const INTERNAL: Dialect = Dialect {
    internal: true,
    four_octets: true,
    families: PerFamily { v4: true, v6: true },
    extended_next_hop: true,
    extended_message: false,
};
const EXTERNAL: Dialect = Dialect { internal: false, ..INTERNAL };
const TWO_OCTETS: Dialect = Dialect { four_octets: false, ..EXTERNAL };

/// Parses bytes from text: pairs of hex digits, with spaces and line ends for readability.
fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}

/// Builds a complete message from its type and body.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    framed(kind, |out| out.extend_from_slice(body))
}

/// Parses the first message of a stream.
fn read(stream: &[u8], dialect: Option<&Dialect>) -> Result<Message, Notification> {
    let mut framing = Framing::default();
    framing.push(stream);
    let frame = framing.next(true)?.expect("the message is whole");
    decode(frame, dialect)
}

/// Builds the body of an UPDATE from its attributes and prefixes.
fn update_body(withdrawn: &str, attributes: &str, networks: &str) -> Vec<u8> {
    let (withdrawn, attributes) = (bytes(withdrawn), bytes(attributes));
    let mut body = (withdrawn.len() as u16).to_be_bytes().to_vec();
    body.extend(withdrawn);
    body.extend((attributes.len() as u16).to_be_bytes());
    body.extend(attributes);
    body.extend(bytes(networks));
    body
}

/// Parses an UPDATE.
fn update(withdrawn: &str, attributes: &str, networks: &str, dialect: &Dialect) -> Result<Update, Notification> {
    match read(&message(UPDATE, &update_body(withdrawn, attributes, networks)), Some(dialect))? {
        Message::Update(update) => Ok(update),
        other => panic!("{other:?} is no UPDATE"),
    }
}

fn prefixes(all: &[ipnet::IpNet]) -> Vec<String> {
    all.iter().map(ipnet::IpNet::to_string).collect()
}

#[test]
fn a_stream_is_cut_wherever_it_is_broken() {
    let mut stream = keepalive();
    stream.extend(super::notification(&Notification::with_text(Reason::SHUTDOWN, "bye")));
    stream.extend(end_of_rib(Family::V6));
    for size in 1..stream.len() {
        let mut framing = Framing::default();
        let mut kinds = Vec::new();
        for piece in stream.chunks(size) {
            framing.push(piece);
            while let Some(frame) = framing.next(false).unwrap() {
                kinds.push(frame.kind);
            }
        }
        assert_eq!(kinds, [KEEPALIVE, NOTIFICATION, UPDATE], "in pieces of {size}");
        assert_eq!(framing.waiting(), 0);
    }
}

#[test]
fn what_is_wrong_with_a_head_is_said_before_the_message_is_whole() {
    let check = |head: &str, extended: bool| {
        let mut framing = Framing::default();
        framing.push(&bytes(head));
        framing.next(extended).map(|frame| frame.is_some())
    };
    let marker = "ff".repeat(16);
    let of = |rest: &str| format!("{marker}{rest}");
    let wrong = |reason: Reason, data: &str| Err(Notification::with(reason, bytes(data)));
    assert_eq!(check(&of("001304"), false), Ok(true));
    assert_eq!(check(&of("0013"), false), Ok(false));
    assert_eq!(check(&format!("00{}", of("001304")), false), wrong(Reason::NOT_SYNCHRONIZED, ""));
    for (rest, extended, data) in [
        ("001204", false, "0012"), // shorter than a head
        ("001404", false, "0014"), // a KEEPALIVE with a body
        ("001c01", false, "001c"), // an OPEN without its fixed part
        ("001602", false, "0016"), // an UPDATE without its lengths
        ("001403", false, "0014"), // a NOTIFICATION without its codes
        ("100102", false, "1001"), // longer than was agreed
        ("100101", true, "1001"),  // an OPEN is never longer
        ("100104", true, "1001"),
    ] {
        assert_eq!(check(&of(rest), extended), wrong(Reason::BAD_MESSAGE_LENGTH, data), "{rest}");
    }
    assert_eq!(check(&of("100102"), true), Ok(false), "an UPDATE may be");
    assert_eq!(check(&of("001306"), false), wrong(Reason::BAD_MESSAGE_TYPE, "06"));
    assert_eq!(check(&of("001300"), false), wrong(Reason::BAD_MESSAGE_TYPE, "00"));
}

#[test]
fn a_refresh_is_read_and_written() {
    let family = Family::V6;
    for (kind, body) in
        [(RefreshKind::Request, "00020001"), (RefreshKind::Begin, "00020101"), (RefreshKind::End, "00020201")]
    {
        let refresh = Refresh { family, kind };
        assert_eq!(super::refresh(&refresh), message(ROUTE_REFRESH, &bytes(body)));
        assert_eq!(read(&super::refresh(&refresh), None), Ok(Message::Refresh(refresh)));
    }
    let of = |body: &str| read(&message(ROUTE_REFRESH, &bytes(body)), None);
    assert_eq!(of("00010080"), Ok(Message::Ignored), "a family that we do not speak");
    assert_eq!(of("00010701"), Ok(Message::Ignored), "a kind that nobody knows: RFC 7313 5");
    assert_eq!(of("0001000100"), Err(Notification::with(Reason::BAD_MESSAGE_LENGTH, bytes("0018"))));
    let whole = message(ROUTE_REFRESH, &bytes("0001010100"));
    assert_eq!(of("0001010100"), Err(Notification::with(Reason::REFRESH_LENGTH, whole)), "RFC 7313 5");
}
