//! Two neighbours tell a whole table each, with the same prefixes and different attributes; a third one hears the best of both, and
//! later a fourth one. Then the first one changes one route after the other.
//!
//! Commands: `send` (both tables), `late`, `change COUNT SECONDS`, `check`.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::routes::{self, Heard};
use crate::sessions::{Event, Network};
use crate::wire::{self, Attributes, Hello};
use crate::{Measured, command, ms, number, say};

const TELLING: [usize; 2] = [0, 1];
const HEARING: usize = 2;
const LATE: usize = 3;

struct Tables {
    network: Network,
    hellos: Vec<Hello>,
    tables: [Rc<[u8]>; 2],
    heard: [Heard; 2],
    prefixes: usize,
    in_turn: bool,
    internal: bool,
    /// How many of those who are to hear are there.
    hearing: usize,
    up: usize,
    since: Instant,
    changes: Option<Changes>,
}

/// Changes of one route after the other.
struct Changes {
    left: usize,
    until: Instant,
    /// The prefix that is being changed, and since when.
    now: Option<(usize, Instant)>,
    took: Vec<Duration>,
}

pub fn run(measured: Measured, words: &[&str]) {
    let [prefixes, order, rest @ ..] = words else { panic!("tables ADDRESS ASN PREFIXES (turn|once) [internal]") };
    let mut tables = Tables::new(measured, number(prefixes), *order == "turn", rest.contains(&"internal"));
    tables.network.dial([TELLING[0], TELLING[1], HEARING].into_iter());
    loop {
        let turn = tables.network.turn();
        for (number, event) in turn.events {
            tables.happened(number, event);
        }
        if turn.commanded {
            match command() {
                Some(command) => tables.obey(&command),
                None => return,
            }
        }
        tables.change();
    }
}

impl Tables {
    fn new(measured: Measured, prefixes: usize, in_turn: bool, internal: bool) -> Tables {
        let hello = |neighbour| Hello {
            asn: if internal { measured.asn } else { 64601 + neighbour as u32 },
            identifier: routes::address(neighbour),
            graceful: false,
        };
        let hellos: Vec<Hello> = (0..=LATE).map(hello).collect();
        let said = |teller: usize, number| routes::attributes(hellos[teller], teller, number, internal);
        let best = |number| {
            let [one, other] = TELLING.map(|teller| said(teller, number));
            if one.path.len() < other.path.len() { one } else { other }
        };
        let heard = || {
            let mut heard = Heard::new(measured.asn, measured.address, prefixes);
            (0..prefixes).for_each(|number| heard.want(number, &best(number)));
            heard
        };
        let table = |teller| routes::table((0..prefixes).map(|number| (number, said(teller, number))));
        Tables {
            network: Network::new(measured.address, hellos.iter().copied()),
            tables: TELLING.map(table),
            heard: [heard(), heard()],
            hellos,
            prefixes,
            in_turn,
            internal,
            hearing: 1,
            up: 0,
            since: Instant::now(),
            changes: None,
        }
    }

    fn obey(&mut self, command: &str) {
        self.since = Instant::now();
        match command.split(' ').collect::<Vec<_>>()[..] {
            ["send"] => {
                let last = if self.in_turn { 1 } else { 2 };
                TELLING[..last].iter().for_each(|teller| self.network.send(*teller, self.tables[*teller].clone()));
            }
            ["late"] => {
                self.hearing = 2;
                self.network.dial([LATE].into_iter());
            }
            ["change", count, seconds] => {
                let until = self.since + Duration::from_secs(number(seconds) as u64);
                self.changes = Some(Changes { left: number(count), until, now: None, took: Vec::new() });
            }
            ["check"] => {
                let wrong: usize = self.heard[..self.hearing].iter().map(Heard::wrong).sum();
                println!("{{\"event\": \"check\", \"wrong\": {wrong}}}");
            }
            _ => panic!("{command} is no command"),
        }
    }

    fn happened(&mut self, number: usize, event: Event) {
        match event {
            Event::Up => {
                self.up += 1;
                if self.up >= 3 {
                    say("up", self.since);
                }
            }
            Event::Sent if number == TELLING[0] && self.in_turn => {
                self.in_turn = false;
                self.network.send(TELLING[1], self.tables[1].clone());
            }
            Event::Sent => {}
            Event::Update(update) if number >= HEARING => {
                let heard = &mut self.heard[number - HEARING];
                let before = heard.wrong();
                heard.take(&update);
                if before > 0 && heard.wrong() == 0 && self.changes.is_none() {
                    say("right", self.since);
                }
            }
            Event::Update(_) => {}
            Event::Down => say("down", self.since),
        }
    }

    /// Makes the next change when the last one has been heard.
    fn change(&mut self) {
        let Some(changes) = &mut self.changes else { return };
        let now = Instant::now();
        if let Some((prefix, since)) = changes.now {
            if !self.heard[0].is_right(prefix) && now < changes.until {
                return;
            }
            changes.took.push(now - since);
            changes.now = None;
        }
        if changes.left == 0 || now >= changes.until {
            return self.tell_changes();
        }
        let prefix = changes.left * 37 % self.prefixes;
        changes.left -= 1;
        changes.now = Some((prefix, now));
        let path = if self.internal { Vec::new() } else { vec![self.hellos[0].asn] };
        let next_hop = self.hellos[0].identifier.into();
        let changed = Attributes { path, communities: vec![changes.left as u32], next_hop, internal: self.internal };
        self.heard.iter_mut().for_each(|heard| heard.want(prefix, &changed));
        self.network.send(0, wire::update(&changed, &[routes::prefix(prefix)]).into());
    }

    fn tell_changes(&mut self) {
        let Some(mut changes) = self.changes.take() else { return };
        changes.took.sort_unstable();
        let took = |percent: usize| ms(changes.took[changes.took.len() * percent / 100]);
        let count = changes.took.len();
        println!("{{\"event\": \"changed\", \"count\": {count}, \"p50\": {:.4}, \"p99\": {:.4}}}", took(50), took(99));
    }
}
