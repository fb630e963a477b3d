//! Cost of the BGP speaker's calculation: two neighbours send 100,000 prefixes each, a third one is told; 1,000 neighbours
//! inside; 100 clients of a reflector.
//!
//! `cargo bench --bench bgp [PREFIXES]`: native, without sockets. Bytes go in as they come from a socket, in pieces of 64 KiB, and
//! come out as they would go into one. `scripts/bench router` measures the whole.
#![expect(clippy::indexing_slicing, reason = "a measurement may end with a crash")]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use sluice::bgp::message::{self, AsPath, Attributes, Capabilities, Community, Dialect, Framing, Open, Packing};
use sluice::bgp::policy::{Decision, Policy};
use sluice::bgp::rib::{Bounds, Kind, NextHops, Own, Policies, Rules};
use sluice::bgp::session::{LinkId, Local, Moment, Settings};
use sluice::bgp::speaker::{Input, Order, Output, Speaker, WantedNeighbour};
use sluice::bgp::transport::Transport;
use sluice::net::{Family, PerFamily};

const OWN: u32 = 64512;
/// How many prefixes share their attributes.
const SHARED: usize = 5;
const PIECE: usize = 64 << 10;
const CHANGES: usize = 2000;

const DIALECT: Dialect = Dialect {
    internal: false,
    four_octets: true,
    families: PerFamily { v4: true, v6: true },
    extended_next_hop: true,
    extended_message: false,
};

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let prefixes = numbers.first().copied().unwrap_or(100_000);
    let cases =
        [("the same, in turn", 0, true), ("the same, at once", 0, false), ("different, at once", prefixes, false)];
    match numbers.get(1) {
        Some(case) if *case == cases.len() => {
            mesh(1000);
            return reflector(100, 10);
        }
        Some(case) => {
            let (name, offset, in_turn) = cases[*case];
            return table(name, prefixes, offset, in_turn);
        }
        None => {}
    }
    println!("{:<28} {:>9} {:>9} {:>11} {:>10}", "2 x prefixes, to a third", "CPU, ms", "MiB", "messages", "bytes");
    for case in 0..=cases.len() {
        // Each in a process of its own: what one has freed would be the memory of the next one.
        let program = std::env::current_exe().expect("the program is a file");
        let words = [prefixes, case].map(|number| number.to_string());
        let ended = std::process::Command::new(program).args(words).status().expect("the program can be started");
        assert!(ended.success());
    }
}

/// A table of one neighbour, as the bytes that it sends.
fn sent(neighbour: usize, first: usize, count: usize) -> Vec<u8> {
    let mut packing = Packing::new(DIALECT);
    let prefixes: Vec<IpNet> = (first..first + count).map(prefix).collect();
    for (number, prefixes) in prefixes.chunks(SHARED).enumerate() {
        assert!(packing.announce(Family::V4, &attributes(neighbour, first / SHARED + number), prefixes));
    }
    packing.finish().0
}

/// Prefixes that are spread as those of the Internet are.
fn prefix(number: usize) -> IpNet {
    let address = (1 << 28) | ((number as u32) << 9);
    Ipv4Net::new(Ipv4Addr::from(address), 24).expect("the length is one").trunc().into()
}

fn attributes(neighbour: usize, number: usize) -> Attributes {
    let mut attributes = Attributes::local(address(neighbour));
    let number = number as u32;
    let path = [asn(neighbour), 1000 + number % 40, 2000 + number % 900, 10_000 + number];
    attributes.as_path = AsPath::sequence(&path[..2 + number as usize % 3]);
    attributes.med = number.is_multiple_of(3).then_some(number % 100);
    attributes.add_communities(&[Community((asn(neighbour) << 16) | (number % 500))]);
    attributes
}

fn asn(neighbour: usize) -> u32 {
    64600 + neighbour as u32
}

fn address(neighbour: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0xcb00_7101 + neighbour as u32))
}

fn link(neighbour: usize) -> LinkId {
    LinkId(neighbour as u64 + 1)
}

fn speaker() -> Speaker {
    let identifier = Ipv4Addr::new(192, 0, 2, 1);
    let all = || Arc::new(Policy::all(Decision::Accept));
    let rules = Rules {
        own: Own { asn: OWN, identifier, cluster: identifier },
        policies: Policies { import: all(), export: all() },
        addresses: BTreeSet::from([IpAddr::V4(identifier)]),
        sharing: 1,
        held: PerFamily::default(),
        bounds: Bounds::default(),
        seed: 42,
    };
    Speaker::new(rules, None, Instant::now())
}

fn at() -> Moment {
    Moment { now: Instant::now(), jitter: 0 }
}

/// Brings up a session, and counts what comes of it.
fn join(speaker: &mut Speaker, neighbour: usize, counted: &mut Counted) {
    join_as(speaker, neighbour, Kind::External, counted);
}

fn join_as(speaker: &mut Speaker, neighbour: usize, kind: Kind, counted: &mut Counted) {
    let asn = if kind == Kind::External { asn(neighbour) } else { OWN };
    let settings = Settings {
        local: Local { asn: OWN, identifier: Ipv4Addr::new(192, 0, 2, 1) },
        asn: Some(asn),
        is_external: false,
        passive: true,
        hold_time: 90,
        connect_retry: Duration::from_secs(60),
        mutual: false,
        families: PerFamily { v4: true, v6: true },
        restart: None,
    };
    let wanted = WantedNeighbour {
        address: address(neighbour),
        settings,
        transport: Transport::default(),
        client: kind == Kind::Client,
        own: PerFamily { v4: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))), v6: None },
        next_hops: NextHops::Usual,
        liveness: None,
        expected: true,
        first_as: true,
        most: PerFamily::default(),
    };
    speaker.step(at(), Order::Want(Arc::new(wanted)));
    speaker.step(at(), Input::Accepted(address(neighbour), link(neighbour)));
    let IpAddr::V4(identifier) = address(neighbour) else { unreachable!("they are IPv4") };
    let capabilities = Capabilities {
        families: PerFamily { v4: true, v6: true },
        multiprotocol: true,
        asn: Some(asn),
        ..Capabilities::default()
    };
    let open = Open { asn, hold_time: 90, identifier, capabilities };
    receive(speaker, neighbour, &message::open(&open), counted);
    receive(speaker, neighbour, &message::keepalive(), counted);
    assert!(speaker.neighbour(address(neighbour)).is_some_and(|one| one.peer().session().is_some()));
}

/// Messages sent to the third neighbour.
#[derive(Default)]
struct Counted {
    messages: usize,
    bytes: usize,
    routes: usize,
}

/// Hands over bytes, and takes everything that is sent at once.
fn receive(speaker: &mut Speaker, neighbour: usize, bytes: &[u8], counted: &mut Counted) {
    let outputs = speaker.receive(at(), link(neighbour), bytes);
    take(speaker, outputs, counted);
}

fn take(speaker: &mut Speaker, outputs: Vec<Output>, counted: &mut Counted) {
    let mut waiting = outputs;
    while let Some(output) = waiting.pop() {
        match output {
            Output::Send(to, bytes) => {
                if to == link(2) {
                    counted.bytes += bytes.len();
                    let mut framing = Framing::default();
                    framing.push(&bytes);
                    while let Ok(Some(_)) = framing.next(true) {
                        counted.messages += 1;
                    }
                }
                waiting.extend(speaker.step(at(), Input::Taken(to, bytes.len())));
            }
            Output::Routes(routes) => counted.routes += routes.len(),
            _ => {}
        }
    }
}

fn table(name: &str, prefixes: usize, offset: usize, in_turn: bool) {
    let streams = [sent(0, 0, prefixes), sent(1, offset, prefixes)];
    let before = resident();
    let mut speaker = speaker();
    let mut counted = Counted::default();
    (0..3).for_each(|neighbour| join(&mut speaker, neighbour, &mut counted));
    let begun = on_cpu();
    let mut pieces: [Vec<&[u8]>; 2] = [0, 1].map(|one: usize| streams[one].chunks(PIECE).rev().collect());
    while pieces.iter().any(|pieces| !pieces.is_empty()) {
        for (neighbour, pieces) in pieces.iter_mut().enumerate() {
            while let Some(piece) = pieces.pop() {
                receive(&mut speaker, neighbour, piece, &mut counted);
                if !in_turn {
                    break;
                }
            }
        }
    }
    let took = on_cpu() - begun;
    let memory = resident().saturating_sub(before);
    assert_eq!(speaker.rib().table().len(), prefixes + offset);
    let Counted { messages, bytes, .. } = counted;
    let mebibytes = memory as f64 / f64::from(1 << 20);
    println!("{name:<28} {:>9.1} {mebibytes:>9.1} {messages:>11} {bytes:>10}", took.as_secs_f64() * 1e3);
    late(&mut speaker);
    changes(&mut speaker, prefixes);
    black_box(speaker);
}

/// A neighbour that comes when all is there.
fn late(speaker: &mut Speaker) {
    let mut counted = Counted::default();
    let begun = Instant::now();
    join(speaker, 3, &mut counted);
    println!("  a late neighbour: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
}

/// One change after the other, with everything loaded.
fn changes(speaker: &mut Speaker, prefixes: usize) {
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let mut packing = Packing::new(DIALECT);
        let mut changed = attributes(0, change);
        changed.as_path = AsPath::sequence(&[asn(0)]);
        changed.med = Some(change as u32 + 1000);
        assert!(packing.announce(Family::V4, &changed, &[prefix(change * 37 % prefixes)]));
        let mut counted = Counted::default();
        let begun = Instant::now();
        receive(speaker, 0, &packing.finish().0, &mut counted);
        took.push(begun.elapsed());
        assert!(counted.messages > 0);
    }
    took.sort_unstable();
    let percentile = |percent: usize| took[took.len() * percent / 100].as_secs_f64() * 1e6;
    println!("  one change: {:.1} us, 99 of 100 within {:.1} us", percentile(50), percentile(99));
}

/// Neighbours inside of our system that come all at once, each with a prefix of both families.
fn mesh(neighbours: usize) {
    let before = resident();
    let mut speaker = speaker();
    let mut counted = Counted::default();
    let begun = on_cpu();
    for neighbour in 0..neighbours {
        join_as(&mut speaker, neighbour, Kind::Internal, &mut counted);
        let v4 = Ipv4Net::new(Ipv4Addr::from(0x0af4_0000 + ((neighbour as u32) << 8)), 24).expect("a length").into();
        let bits = 0xfd00_0010_0244 << 80 | (neighbour as u128) << 64;
        let v6 = ipnet::Ipv6Net::new(bits.into(), 64).expect("a length").into();
        let next_hop = IpAddr::V6((0x2001_0db8_0002 << 80 | neighbour as u128).into());
        for (family, prefix, next_hop) in [(Family::V4, v4, address(neighbour)), (Family::V6, v6, next_hop)] {
            let mut packing = Packing::new(Dialect { internal: true, ..DIALECT });
            assert!(packing.announce(family, &Attributes::local(next_hop), &[prefix]));
            receive(&mut speaker, neighbour, &packing.finish().0, &mut counted);
        }
    }
    assert_eq!(speaker.rib().table().len(), 2 * neighbours);
    let took = (on_cpu() - begun).as_secs_f64() * 1e3;
    let memory = resident().saturating_sub(before) as f64 / f64::from(1 << 20);
    println!("{neighbours} neighbours inside with two prefixes each: {took:.1} ms, {memory:.1} MiB");
}

/// Clients of a reflector.
fn reflector(clients: usize, routes: usize) {
    let mut speaker = speaker();
    let mut counted = Counted::default();
    (0..clients).for_each(|client| join_as(&mut speaker, client, Kind::Client, &mut counted));
    let begun = Instant::now();
    for client in 0..clients {
        let mut packing = Packing::new(Dialect { internal: true, ..DIALECT });
        let prefixes: Vec<IpNet> = (0..routes).map(|route| prefix(client * routes + route)).collect();
        assert!(packing.announce(Family::V4, &Attributes::local(address(client)), &prefixes));
        receive(&mut speaker, client, &packing.finish().0, &mut counted);
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    println!("a reflector, {clients} clients with {routes} routes each: {took:.1} ms");
}

/// How long the process has been on a processor: others may be busy beside it.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").expect("the kernel tells of processes");
    let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
    Duration::from_nanos(nanoseconds)
}

/// The memory that the process occupies, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells of processes");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the memory is a line of it");
    let kibibytes: usize = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
    kibibytes << 10
}
