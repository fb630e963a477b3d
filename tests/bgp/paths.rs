//! BFD beside the sessions: the machine of each host, whose packets come late, and are lost where a path is cut.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sluice::bfd::sessions::{Arrival, Output, Sessions};
use sluice::bfd::{Key, MULTIHOP, Path, Request, Settings, State, Wanted};
use sluice::bgp::speaker::{Input, Liveness};

use crate::network::{Event, Network, address, host_of};

/// So slow that walks are quick, and still much faster than the hold time.
const TIME: Duration = Duration::from_secs(2);
/// Time after which both ends of a cut have noticed it: that of detection, and of the last packets that were on their way.
pub const NOTICED: Duration = Duration::from_millis(6100);
const WANTED: Wanted =
    Wanted { settings: Settings { multiplier: 3, send: TIME, receive: TIME }, port: MULTIHOP, hops: None };

pub fn liveness() -> Liveness {
    Liveness { path: Path::Multihop, wanted: WANTED }
}

fn key(host: usize, peer: usize) -> Key {
    Key { remote: address(peer), local: address(host), path: Path::Multihop }
}

/// What is wrong with the paths between hosts, and what was noticed of that.
#[derive(Default)]
pub struct Cuts {
    /// Pairs that cannot reach each other.
    pub parted: BTreeSet<(usize, usize)>,
    /// Packets of BFD from one host to another that are lost, where all others arrive.
    pub deaf: BTreeSet<(usize, usize)>,
    /// Pairs that were parted while both ends had a session whose path was up, with the time.
    watched: BTreeMap<(usize, usize), Instant>,
    /// How many of these have been found without a session in time.
    pub noticed: usize,
}

impl Cuts {
    /// Forgets what is expected of the cut of a pair: one of them knows less than it did.
    pub fn excuse(&mut self, is_one: impl Fn(usize, usize) -> bool) {
        self.watched.retain(|(one, other), _| !is_one(*one, *other) && !is_one(*other, *one));
    }

    pub fn heal(&mut self) {
        self.parted.clear();
        self.watched.clear();
    }

    pub fn are_parted(&self, one: usize, other: usize) -> bool {
        self.parted.contains(&(one.min(other), one.max(other)))
    }
}

impl Network {
    /// Lets a host have the sessions of BFD that its plan wants.
    pub fn watch(&mut self, host: usize) {
        let request = Request { wanted: WANTED, number: 1 };
        let requests = self.hosts[host].plan.watched.iter().map(|peer| (key(host, *peer), request)).collect();
        if let Some(paths) = &mut self.hosts[host].paths {
            paths.want(self.now, &requests);
        }
        self.follow_paths(host);
    }

    /// Sends what BFD of a host sends, and tells its speaker what BFD tells.
    fn follow_paths(&mut self, host: usize) {
        let Some(paths) = &mut self.hosts[host].paths else { return };
        for output in paths.outputs() {
            match output {
                Output::Send(id, packet) => {
                    let found = self.hosts[host].paths.as_ref().and_then(|paths| paths.destination(id));
                    let Some((key, _)) = found else { continue };
                    let to = host_of(key.remote);
                    if !self.cuts.are_parted(host, to) && !self.cuts.deaf.contains(&(host, to)) {
                        self.later(10, Event::Packet { from: host, to, datagram: packet.encode().to_vec() });
                    }
                }
                Output::Changed(key, status) => self.step(host, Input::Path(key.remote, status)),
                Output::Ended(_) | Output::OtherInterval | Output::Overdue(_) => {}
            }
        }
    }

    /// Time of the next thing that BFD has to do, and the host.
    pub fn next_of_paths(&self) -> Option<(Instant, usize)> {
        let deadline = |host: usize| Some((self.hosts[host].paths.as_ref().and_then(Sessions::deadline)?, host));
        (0..self.hosts.len()).filter_map(deadline).min()
    }

    pub fn tick_paths(&mut self, host: usize) {
        if let Some(paths) = &mut self.hosts[host].paths {
            paths.tick(self.now);
        }
        self.follow_paths(host);
    }

    pub fn packet(&mut self, from: usize, to: usize, datagram: &[u8]) {
        let arrival = Arrival {
            from: address(from),
            to: address(to),
            path: Path::Multihop,
            ttl: Some(u8::MAX),
            link: None,
            datagram,
        };
        if let Some(paths) = &mut self.hosts[to].paths {
            // What is of no session any more is ignored.
            let _ = paths.receive(self.now, arrival);
        }
        self.follow_paths(to);
    }

    /// Records that a pair is parted, where both ends have to notice.
    pub fn expect_notice(&mut self, one: usize, other: usize) {
        let is_watched = |host: usize, peer: usize| {
            let neighbour = self.hosts[host].speaker.as_ref().and_then(|speaker| speaker.neighbour(address(peer)));
            neighbour.is_some_and(|it| {
                it.peer().session().is_some() && it.path().is_some_and(|status| status.state == State::Up)
            })
        };
        if is_watched(one, other) && is_watched(other, one) && !self.cuts.are_parted(one, other) {
            self.cuts.watched.insert((one.min(other), one.max(other)), self.now);
        }
    }

    /// Asserts that nobody has a session over a path that was cut long enough ago.
    pub fn check_cuts(&mut self) {
        let long = self.cuts.watched.extract_if(.., |_, since| self.now > *since + NOTICED);
        let long: Vec<(usize, usize)> = long.map(|(pair, _)| pair).collect();
        for (one, other) in long {
            for (host, peer) in [(one, other), (other, one)] {
                let speaker = self.hosts[host].speaker.as_ref().expect("it lives, or would be excused");
                let neighbour = speaker.neighbour(address(peer)).expect("it is wanted");
                assert!(neighbour.peer().session().is_none(), "{host} has noticed that it does not reach {peer}");
            }
            self.cuts.noticed += 1;
        }
    }
}
