//! A table of nf_tables of our own, as the firewall has it: what a change of one object costs, and what all of it does.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sluice::kernel::nftables::rule::Side;
use sluice::kernel::nftables::{
    Base, BaseKind, Chain, Content, Fields, Hook, Key, Kind, Lookup, Match, Name, Object, OwnTable, Rule, SetSpec,
    Verdict,
};
use sluice::net::{Family, PortRange, Protocol};
use sluice::reconcile::{Growth, Mirror, Moment, Reflection, Target};

use crate::namespace;
use crate::race::{Way, race, timed};

const ELEMENTS: u32 = 50_000;
/// Chains of ten rules, each behind an element of a map of verdicts.
const CHAINS: u32 = 1_000;
const ROUNDS: usize = 20;

type Contents = BTreeMap<Object, Content>;

pub fn measure() -> Result<(), String> {
    namespace::in_new(|| {
        one_of_many();
        all();
    });
    Ok(())
}

fn pod(number: u32) -> Key {
    Key::Address(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)))
}

/// A chain of ten rules, the first of which is for this port.
fn ten(port: u16) -> Content {
    let lookup = Lookup::Address(Family::V4, Side::Source);
    let rule = |port: u16| {
        let peers = Match::InSet { lookup, set: Name::from("peers_4"), negated: false };
        let range = PortRange { first: port, last: port };
        Rule::new([peers, Match::DestinationPort { protocol: Protocol::Tcp, range }], Verdict::Accept)
    };
    Content::Chain(Arc::new(Chain { base: None, rules: (port..port + 10).map(rule).collect() }))
}

fn contents() -> Contents {
    let of = |kind| Content::Set(SetSpec { fields: Fields::Address(Family::V4), kind, intervals: false });
    let lookup = Lookup::Address(Family::V4, Side::Destination);
    let base = Some(Base { kind: BaseKind::Filter, hook: Hook::Forward, priority: -9 });
    let rules = vec![Rule::new([], Verdict::Map { lookup, map: Name::from("pods_4") })];
    let mut contents = Contents::from([
        (Object::Set(Name::from("peers_4")), of(Kind::Set)),
        (Object::Set(Name::from("pods_4")), of(Kind::Verdicts)),
        (Object::Chain(Name::from("b_forward")), Content::Chain(Arc::new(Chain { base, rules }))),
    ]);
    let peers = Name::from("peers_4");
    contents.extend((0..ELEMENTS).map(|number| (Object::Element(peers.clone(), pod(number)), Content::Element)));
    for number in 0..CHAINS {
        let chain = Name::from(format!("in_{number}"));
        let element = Object::Element(Name::from("pods_4"), pod(0x10_0000 + number));
        contents.insert(element, Content::Verdict(Arc::new(Verdict::Jump(chain.clone()))));
        contents.insert(Object::Chain(chain), ten(1000));
    }
    contents
}

fn table() -> Mirror<OwnTable> {
    Mirror::new(OwnTable::open("sluice_bench").expect("a socket"))
}

/// Brings these objects about.
fn change(table: &mut Mirror<OwnTable>, want: &Contents, keys: &[Object]) -> std::time::Duration {
    keys.iter().for_each(|key| table.mark(key.clone()));
    let at = Moment { now: std::time::Instant::now(), jitter: 0 };
    let took = timed(|| drop(table.transact(want, Growth::Full, true, at)));
    assert!(table.is_settled(), "{:?}", table.trouble());
    took
}

fn one_of_many() {
    let mut want = contents();
    let mut table = table();
    change(&mut table, &want, &[]);
    let element = Object::Element(Name::from("peers_4"), pod(0x20_0000));
    let chain = Object::Chain(Name::from("in_7"));
    let (table, want) = (std::cell::RefCell::new(&mut table), std::cell::RefCell::new(&mut want));
    let port = std::cell::Cell::new(2000);
    let step = |key: &Object, content: Option<Content>| {
        let (mut table, mut want) = (table.borrow_mut(), want.borrow_mut());
        match content {
            Some(content) => drop(want.insert(key.clone(), content)),
            None => drop(want.remove(key)),
        }
        change(&mut table, &want, std::slice::from_ref(key))
    };
    race(
        &format!("nf_tables: one change beside {ELEMENTS} elements and {CHAINS} chains of ten rules"),
        ROUNDS,
        &mut [
            Way::new("one element in", || step(&element, Some(Content::Element))),
            Way::new("one element out", || step(&element, None)),
            Way::new("a chain of ten rules replaced", || {
                port.set(port.get() + 1);
                step(&chain, Some(ten(port.get())))
            }),
        ],
        || {},
    );
    let (mut table, want) = (table.borrow_mut(), want.borrow());
    change(&mut table, &Contents::new(), &want.keys().cloned().collect::<Vec<_>>());
}

fn all() {
    let want = contents();
    let keys: Vec<Object> = want.keys().cloned().collect();
    let table = std::cell::RefCell::new(table());
    race(
        &format!("nf_tables: {ELEMENTS} elements and {CHAINS} chains of ten rules"),
        5,
        &mut [
            Way::new("all made", || change(&mut table.borrow_mut(), &want, &keys)),
            Way::new("all read", || {
                let mut table = table.borrow_mut();
                timed(|| assert_eq!(table.target().read().expect("it can be read").len(), want.len()))
            }),
            Way::new("all removed", || change(&mut table.borrow_mut(), &Contents::new(), &keys)),
        ],
        || {},
    );
}
