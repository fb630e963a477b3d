//! Many neighbours inside, each with some routes.
//!
//! Words: `listen` (they are dialled, else they dial), `pods` (each has a prefix of both families, a node's), `reflected` (each is to hear
//! the routes of all others), `graceful` (they keep routes, RFC 4724), `hold` (they wait with their routes for the command `send`).
//! Commands: `dial`, `mark`, `send`, `again AWAY` (what is heard counts anew, without so many neighbours that do not come back), `check`,
//! `watch` (BFD with the daemon), `paths`.

use std::rc::Rc;
use std::time::Instant;

use sluice::net::{Family, PerFamily};

use crate::paths::Paths;
use crate::routes::{self, Heard};
use crate::sessions::{Event, Network};
use crate::wire::{self, Attributes, Hello, Update};
use crate::{Measured, command, ms, number, say};

struct Group {
    measured: Measured,
    network: Network,
    hellos: Vec<Hello>,
    tables: Vec<Rc<[u8]>>,
    heard: Vec<Heard>,
    ended: Vec<PerFamily<bool>>,
    routes: usize,
    reflected: bool,
    hold: bool,
    /// How many of them are there, or may come.
    present: usize,
    counts: Counts,
    since: Instant,
    sent_at: Option<Instant>,
    paths: Option<Paths>,
}

/// How many neighbours have come how far.
#[derive(Default)]
struct Counts {
    up: usize,
    sent: usize,
    ended: usize,
    /// How many had heard everything when they were told that it was all.
    whole: usize,
    first: bool,
    right: bool,
}

pub fn run(measured: Measured, words: &[&str]) {
    let [count, routes, words @ ..] = words else { panic!("group ADDRESS ASN COUNT ROUTES [WORD...]") };
    sluice::kernel::tcp::raise_open_files().expect("root may");
    let mut group = Group::new(measured, number(count), number(routes), words);
    if words.contains(&"listen") {
        group.network.listen();
    }
    say("ready", group.since);
    loop {
        let turn = group.network.turn();
        for (number, event) in turn.events {
            group.happened(number, event);
        }
        if turn.commanded {
            match command() {
                Some(command) => group.obey(&command),
                None => return,
            }
        }
    }
}

impl Group {
    fn new(measured: Measured, count: usize, routes: usize, words: &[&str]) -> Group {
        let graceful = words.contains(&"graceful");
        let hello = |neighbour| Hello { asn: measured.asn, identifier: routes::address(neighbour), graceful };
        let hellos: Vec<Hello> = (0..count).map(hello).collect();
        let pods = words.contains(&"pods");
        let table = |neighbour: usize| {
            let said = if pods { own_pods(hellos[neighbour], neighbour) } else { Rc::default() };
            let numbers = neighbour * routes..(neighbour + 1) * routes;
            let told = routes::table(numbers.map(|number| (number, local(hellos[neighbour], neighbour))));
            [&said[..], &told, &wire::end_of_rib(Family::V4), &wire::end_of_rib(Family::V6)].concat().into()
        };
        let mut group = Group {
            measured,
            network: Network::new(measured.address, hellos.iter().copied()),
            tables: (0..count).map(table).collect(),
            hellos,
            heard: Vec::new(),
            ended: Vec::new(),
            routes,
            reflected: words.contains(&"reflected"),
            hold: words.contains(&"hold"),
            present: count,
            counts: Counts::default(),
            since: Instant::now(),
            sent_at: None,
            paths: None,
        };
        group.begin();
        group
    }

    /// Nothing has been heard. Each is to hear the routes of all others that are there.
    fn begin(&mut self) {
        let count = self.hellos.len();
        let prefixes = if self.reflected { count * self.routes } else { 0 };
        let fresh = || Heard::new(self.measured.asn, self.measured.address, prefixes);
        self.heard = (0..count).map(|_| fresh()).collect();
        self.ended = vec![PerFamily::default(); count];
        (self.counts, self.sent_at) = (Counts::default(), None);
        if self.reflected {
            for other in 0..self.present {
                let said = local(self.hellos[other], other);
                let own = other * self.routes..(other + 1) * self.routes;
                let hearing = self.heard[..self.present].iter_mut().enumerate().filter(|(number, _)| *number != other);
                for (_, heard) in hearing {
                    own.clone().for_each(|prefix| heard.want(prefix, &said));
                }
            }
        }
    }

    fn obey(&mut self, command: &str) {
        match command.split(' ').collect::<Vec<_>>()[..] {
            ["mark"] => self.since = Instant::now(),
            ["dial"] => {
                self.since = Instant::now();
                self.network.dial(0..self.hellos.len());
            }
            ["send"] => {
                self.since = Instant::now();
                self.hold = false;
                (0..self.present).for_each(|number| self.network.send(number, self.tables[number].clone()));
            }
            ["again", away] => {
                self.present = self.hellos.len() - number(away);
                (self.present..self.hellos.len()).for_each(|number| self.network.leave(number));
                self.begin();
                say("begun", self.since);
            }
            ["watch"] => {
                let locals = self.hellos.iter().map(|hello| hello.identifier.into());
                self.paths = Some(Paths::start(self.measured.address.into(), locals, Instant::now()));
            }
            ["paths"] => {
                let failures = self.paths.as_ref().map_or(0, Paths::failures);
                println!("{{\"event\": \"paths\", \"failures\": {failures}}}");
            }
            ["check"] => println!("{{\"event\": \"check\", \"wrong\": {}}}", self.wrong()),
            _ => panic!("{command} is no command"),
        }
    }

    fn wrong(&self) -> usize {
        self.heard[..self.present].iter().map(Heard::wrong).sum()
    }

    fn happened(&mut self, number: usize, event: Event) {
        let present = self.present;
        match event {
            Event::Up => {
                self.counts.up += 1;
                if self.counts.up == present {
                    say("up", self.since);
                }
                if !self.hold {
                    self.network.send(number, self.tables[number].clone());
                }
            }
            Event::Sent => {
                self.counts.sent += 1;
                if self.counts.sent == present {
                    self.sent_at = Some(Instant::now());
                    say("sent", self.since);
                }
            }
            Event::Update(update) => self.update(number, &update),
            Event::Down => {
                self.heard[number].forget();
                self.ended[number] = PerFamily::default();
                self.counts.up = self.counts.up.saturating_sub(1);
                self.counts.right = false;
                say("down", self.since);
            }
        }
    }

    fn update(&mut self, number: usize, update: &Update) {
        if !update.announced.is_empty() && !std::mem::replace(&mut self.counts.first, true) {
            say("first", self.since);
        }
        // RFC 4456 8: a route of its own that comes back is no route to it.
        if update.originator != Some(self.hellos[number].identifier) {
            self.heard[number].take(update);
        }
        if self.reflected && !self.counts.right && self.heard[number].wrong() == 0 && self.wrong() == 0 {
            self.counts.right = true;
            say("right", self.since);
        }
        if let Some(family) = update.end {
            self.complete(number, family);
        }
    }

    /// The daemon has said that a neighbour knows everything.
    fn complete(&mut self, number: usize, family: Family) {
        let before = std::mem::replace(self.ended[number].of_mut(family), true);
        let both = PerFamily { v4: true, v6: true };
        if before || self.ended[number] != both {
            return;
        }
        self.counts.ended += 1;
        self.counts.whole += usize::from(self.heard[number].wrong() == 0);
        if self.counts.ended == self.present {
            let after = self.sent_at.map_or(-1.0, |sent| ms(sent.elapsed()));
            println!(
                "{{\"event\": \"ended\", \"ms\": {:.3}, \"after_sent\": {after:.3}, \"whole\": {}}}",
                ms(self.since.elapsed()),
                self.counts.whole
            );
        }
    }
}

/// All routes of a neighbour inside look alike.
fn local(hello: Hello, neighbour: usize) -> Attributes {
    let communities = vec![64600 << 16 | neighbour as u32];
    Attributes { path: Vec::new(), communities, next_hop: hello.identifier.into(), internal: true }
}

/// The ranges of a node's pods.
fn own_pods(hello: Hello, neighbour: usize) -> Rc<[u8]> {
    let four = local(hello, neighbour);
    let next_hop = (0x2001_0db8 << 96 | 0x1_0000 | neighbour as u128).to_be_bytes();
    let six = Attributes { next_hop: std::net::Ipv6Addr::from(next_hop).into(), ..four.clone() };
    let told = [(Family::V4, four), (Family::V6, six)];
    told.iter().flat_map(|(family, said)| wire::update(said, &[routes::pods(neighbour, *family)])).collect()
}
