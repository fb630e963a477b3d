//! The neighbours of a routing daemon that is measured: they cost little, and are the same for every daemon.
//!
//! `scripts/bench router` runs it, with the program that `cargo bench --no-run --bench router` names:
//!
//! ```text
//! router tables ADDRESS ASN PREFIXES (turn|once) [internal]       two tell whole tables, others hear them
//! router group ADDRESS ASN COUNT ROUTES [WORD...]                 many neighbours inside with some routes each
//! router speaker ADDRESS ASN PEER=ASN...                          our speaker and its driver, without the agent
//! router floor ADDRESS ASN (routes COUNT [each]|packets COUNT SIDE)   the least that routes in the kernel, and packets of BFD, cost
//! ```
//!
//! The first two dial from addresses of their own, which this host must have, speak from buffers that were made before, and say what they
//! see in one JSON object a line, times in ms since the last command. Commands come on standard input, whose end is theirs.
#![expect(clippy::indexing_slicing, reason = "a measurement may end with a crash")]

#[path = "router/floor.rs"]
mod floor;
#[path = "router/group.rs"]
mod group;
#[path = "router/paths.rs"]
mod paths;
#[path = "router/routes.rs"]
mod routes;
#[path = "router/sessions.rs"]
mod sessions;
#[path = "router/speaker.rs"]
mod speaker;
#[path = "router/tables.rs"]
mod tables;
#[path = "router/wire.rs"]
mod wire;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The daemon that is measured.
#[derive(Clone, Copy, Debug)]
struct Measured {
    address: Ipv4Addr,
    asn: u32,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [what, address, asn, rest @ ..] = &words[..] else {
        panic!("router tables|group|speaker|floor ADDRESS ASN ...")
    };
    let measured = Measured { address: address.parse().expect("an address"), asn: number(asn) as u32 };
    match *what {
        "tables" => tables::run(measured, rest),
        "group" => group::run(measured, rest),
        "speaker" => speaker::run(measured, rest),
        "floor" => floor::run(measured, rest),
        _ => panic!("{what} is none of tables, group, speaker and floor"),
    }
}

fn number(word: &str) -> usize {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

/// Says that something has happened.
fn say(event: &str, since: Instant) {
    println!("{{\"event\": \"{event}\", \"ms\": {:.3}}}", ms(since.elapsed()));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The next command; nothing when there are no more.
fn command() -> Option<String> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).expect("it can be read");
    (read > 0).then(|| line.trim().to_owned())
}
