//! Neighbours that send too much, or too little, or take nothing: what it costs has a bound.

use std::process::Command;

use sluice::bgp::message::{Community, Refresh, RefreshKind, refresh};

use super::*;
use crate::raw::{OUT, framed};

/// Set in the process whose memory is looked at.
const ALONE: &str = "INTEROP_MEMORY";
/// By how much memory may grow whatever a neighbour sends, in bytes.
const GROWTH: usize = 32 << 20;

/// Flood of messages by one neighbour.
type Flood = fn(&Stage, &mut Raw);

const FLOODS: [(&str, Flood); 6] = [
    ("the same route with ever other attributes", ever_other_attributes),
    ("long attributes that nobody knows, ever others", long_attributes),
    ("updates that are malformed", malformed_updates),
    ("the same attribute thousands of times", repeated_attributes),
    ("requests for everything, and nothing is read", requests),
    ("connections that begin with nonsense", nonsense),
];

#[test]
fn what_a_neighbour_floods_us_with_takes_no_more_memory_than_its_bound() {
    if std::env::var_os(ALONE).is_some() {
        return alone();
    }
    // Other tests would be seen in the memory of this process.
    let this = std::env::current_exe().expect("the program is a file");
    let name = "rubbish::volume::what_a_neighbour_floods_us_with_takes_no_more_memory_than_its_bound";
    let output = Command::new(this).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("it starts");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn who_sends_a_message_byte_by_byte_without_an_end_is_silent() {
    with_hosts(3, Topology::Link, |hosts| {
        let stage = Stage::new(hosts);
        stage.anew(None);
        let mut raw = stage.dial(OUT);
        // A hold time of three seconds.
        raw.say(&framed(1, &bytes("04 fdea 0003 c0000202 00")));
        raw.say(&sluice::bgp::message::keepalive());
        eventually("the session", &true, || stage.stands());
        raw.say(&bytes("ffffffff ffffffff ffffffff ffffffff 1000 02"));
        eventually("that it does not stand any more", &false, || {
            raw.say(&[0]);
            stage.stands()
        });
        assert_eq!(raw.last_word().map(|said| written(&said)).as_deref(), Some("4/0"));
        stage.others_are_untouched();
    });
}

fn alone() {
    with_hosts(3, Topology::Link, |hosts| {
        // The kernel keeps little for those who read nothing.
        let little = || std::fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 8192 8192");
        hosts[0].inside(little).expect("a setting of the namespace");
        let stage = Stage::new(hosts);
        for (what, flood) in FLOODS {
            stage.anew(None);
            let mut raw = stage.session(OUT);
            let before = memory();
            flood(&stage, &mut raw);
            let grown = memory().saturating_sub(before);
            eprintln!("{what}: {} KiB", grown >> 10);
            assert!(grown < GROWTH, "{what}: {} KiB", grown >> 10);
            stage.anew(None);
            stage.others_are_untouched();
        }
    });
}

/// Resident memory of this process, in bytes.
fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("numbers of this process");
    let pages: usize = text.split(' ').nth(1).and_then(|number| number.parse().ok()).expect("a number of pages");
    pages * 4096
}

/// Waits until everything that came before is worked on; what was heard of it is forgotten.
fn settle(stage: &Stage, raw: &mut Raw, turn: u32) {
    let mut attributes = stage.attributes(OUT, Origin::Igp, Family::V4);
    attributes.med = Some(turn);
    let prefix: IpNet = AFTER[0].parse().expect("a prefix");
    raw.say(&OUT.update(&attributes, &[prefix]));
    let med = move |speaker: &mut sluice::bgp::speaker::Speaker| speaker.rib().table().best(prefix)?.attributes.med;
    eventually("that it is worked on", &Some(turn), || stage.ours.ask(med));
    stage.ours.heard().clear();
    stage.other.heard().clear();
}

fn ever_other_attributes(stage: &Stage, raw: &mut Raw) {
    let prefixes = BEFORE.map(|prefix| prefix.parse::<IpNet>().expect("a prefix"));
    let mut attributes = stage.attributes(OUT, Origin::Igp, Family::V4);
    for turn in 0..40 {
        let one = |number: u32| {
            attributes.communities = [Community(turn << 16 | number)].into();
            OUT.update(&attributes, &prefixes[..2])
        };
        raw.say(&(0..1000).flat_map(one).collect::<Vec<u8>>());
        settle(stage, raw, turn);
    }
}

/// An UPDATE for one route with these attributes besides the mandatory ones.
fn with(more: &[u8]) -> Vec<u8> {
    let attributes = [&bytes("40010100 40020602010000fdea 400304c0000202")[..], more].concat();
    let length = (attributes.len() as u16).to_be_bytes();
    framed(2, &[&[0, 0], &length[..], &attributes, &bytes("180af401")].concat())
}

fn long_attributes(stage: &Stage, raw: &mut Raw) {
    for turn in 0..30 {
        for number in 0..50_u32 {
            let mut value = vec![0; 60_000];
            value[..4].copy_from_slice(&(turn << 16 | number).to_be_bytes());
            raw.say(&with(&[&bytes("d063ea60")[..], &value].concat()));
        }
        settle(stage, raw, turn);
    }
}

fn malformed_updates(stage: &Stage, raw: &mut Raw) {
    for turn in 0..20 {
        raw.say(&with(&bytes("c0080101")).repeat(1000));
        settle(stage, raw, turn);
    }
}

fn repeated_attributes(stage: &Stage, raw: &mut Raw) {
    for turn in 0..20 {
        raw.say(&with(&bytes("c06300").repeat(20_000)).repeat(5));
        settle(stage, raw, turn);
    }
}

fn requests(stage: &Stage, raw: &mut Raw) {
    let own = |number: u32| {
        let prefix = format!("10.96.{}.{}/32", number / 250, number % 250).parse().expect("a prefix");
        let mut attributes = Attributes::local(stage.hosts[0].address(Family::V4));
        attributes.med = Some(number);
        Order::Originate(prefix, Box::new(attributes))
    };
    stage.ours.order((0..1000).map(own).collect());
    let request = refresh(&Refresh { family: Family::V4, kind: RefreshKind::Request });
    for turn in 0..100 {
        raw.say(&request.repeat(2000));
        settle(stage, raw, turn);
    }
    let neighbour = stage.neighbour();
    let on_the_way = stage.ours.ask(move |speaker| {
        let id = speaker.neighbour(neighbour).expect("it is wanted").id();
        speaker.rib().on_the_way(id)
    });
    // Its room, and a piece more.
    assert!(on_the_way < (1 << 20) + (256 << 10), "{on_the_way}");
    let retract =
        |number: u32| Order::Retract(format!("10.96.{}.{}/32", number / 250, number % 250).parse().expect("a prefix"));
    stage.ours.order((0..1000).map(retract).collect());
}

fn nonsense(stage: &Stage, raw: &mut Raw) {
    raw.say(&[0xff; 4]);
    for number in 0..400 {
        let mut raw = stage.dial(OUT);
        // Some say half a head, some a whole message that is none.
        raw.say(&vec![0xff; 10 + number]);
        if number % 3 != 0 {
            raw.say(&[0; 64]);
        }
    }
    stage.ours.heard().clear();
}
