//! Hosts with speakers, connections between them, and their time.
//!
//! A connection keeps the order of what is sent, and hands it over late and in other pieces. It can break, so that both
//! sides notice, or go dead, so that nobody does. Beside it there may be BFD (`paths`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice::bfd::sessions::Sessions;
use sluice::bgp::message::Attributes;
use sluice::bgp::policy::{Condition, Decision, Matching, Policy, PrefixSet, Statement};
use sluice::bgp::rib::{Bounds, NextHops, Own, Policies, Rules};
use sluice::bgp::session::{LinkId, Local, Moment, Restart, Settings};
use sluice::bgp::speaker::{Fact, Input, Order, Output, Restarting, Speaker, Summary, WantedNeighbour};
use sluice::bgp::transport::Transport;
use sluice::net::PerFamily;

use crate::paths::{self, Cuts};
use crate::random::Random;

/// A host, as it is configured.
#[derive(Clone)]
pub struct Plan {
    pub asn: u32,
    /// The numbers of the hosts that it speaks with, and whether each is a client that it reflects for.
    pub peers: BTreeMap<usize, bool>,
    pub next_hops: NextHops,
    pub restarts_gracefully: bool,
    /// Its own routes.
    pub origins: BTreeSet<IpNet>,
    /// Prefixes that it tells nobody of.
    pub blocked: BTreeSet<IpNet>,
    /// Neighbours that are stopped.
    pub stopped: BTreeSet<usize>,
    /// Neighbours to which BFD watches the path.
    pub watched: BTreeSet<usize>,
}

pub struct Host {
    pub plan: Plan,
    pub speaker: Option<Speaker>,
    /// Its neighbours as somebody knows them who follows the changes alone.
    shown: BTreeMap<IpAddr, Summary>,
    /// BFD of its process.
    pub paths: Option<Sessions>,
    /// Routes given to the kernel, with their next hops.
    pub kernel: BTreeMap<IpNet, IpAddr>,
    /// How often it was told to take a route away.
    pub removed: usize,
    dials: BTreeMap<usize, u64>,
}

impl Host {
    /// Checks that the changes tell everything that is shown of the neighbours.
    fn check_shown(&mut self) {
        let Some(speaker) = &mut self.speaker else { return };
        for address in speaker.take_changed() {
            self.shown.remove(&address);
            self.shown.extend(speaker.neighbour(address).map(|one| (address, one.summary())));
        }
        assert_eq!(self.shown, speaker.neighbours().map(|(address, one)| (address, one.summary())).collect());
    }
}

struct Wire {
    ends: [End; 2],
    /// Nothing comes through, and nobody notices.
    dead: bool,
}

struct End {
    host: usize,
    link: LinkId,
    /// The other side's host, as this one sees it.
    open: bool,
    inbox: VecDeque<Item>,
}

enum Item {
    Accepted,
    Bytes(Arc<[u8]>),
    End,
}

pub enum Event {
    Dial { from: usize, to: usize, number: u64 },
    Deliver { wire: usize, end: usize },
    Taken { wire: usize, end: usize, bytes: usize },
    Packet { from: usize, to: usize, datagram: Vec<u8> },
}

pub struct Network {
    pub now: Instant,
    begun: Instant,
    pub hosts: Vec<Host>,
    wires: Vec<Wire>,
    events: BTreeMap<(Instant, u64), Event>,
    pub cuts: Cuts,
    /// Hosts that take what is sent to them slowly.
    pub slow: BTreeSet<usize>,
    pub random: Random,
    next: u64,
    pub story: Vec<String>,
    /// How many sessions there have been.
    pub sessions: usize,
    /// How many paths have failed by BFD.
    pub failures: usize,
}

pub fn address(host: usize) -> IpAddr {
    IpAddr::V4(identifier(host))
}

pub fn address_v6(host: usize) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, host as u16 + 1))
}

pub fn identifier(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, host as u8 + 1)
}

pub fn host_of(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(address) => usize::from(address.octets()[3]) - 1,
        IpAddr::V6(address) => usize::from(address.segments()[7]) - 1,
    }
}

fn export(blocked: &BTreeSet<IpNet>) -> Policies {
    let mut set = PrefixSet::new("blocked");
    blocked.iter().for_each(|prefix| set.insert_exactly(*prefix));
    let statement = Statement {
        name: "blocked".into(),
        prefixes: Some(Condition { set: Arc::new(set), matching: Matching::Any }),
        decision: Some(Decision::Reject),
        ..Statement::default()
    };
    let export = Policy { name: "export".into(), statements: vec![statement], otherwise: Decision::Accept };
    Policies { import: Arc::new(Policy::all(Decision::Accept)), export: Arc::new(export) }
}

impl Network {
    pub fn new(plans: Vec<Plan>, random: Random) -> Network {
        let now = Instant::now();
        let host = |plan| Host {
            plan,
            speaker: None,
            shown: BTreeMap::new(),
            paths: None,
            kernel: BTreeMap::new(),
            removed: 0,
            dials: BTreeMap::new(),
        };
        let hosts: Vec<Host> = plans.into_iter().map(host).collect();
        let mut network = Network {
            now,
            begun: now,
            hosts,
            wires: Vec::new(),
            events: BTreeMap::new(),
            cuts: Cuts::default(),
            slow: BTreeSet::new(),
            random,
            next: 0,
            story: Vec::new(),
            sessions: 0,
            failures: 0,
        };
        (0..network.hosts.len()).for_each(|host| network.start(host, false));
        network
    }

    pub fn tell(&mut self, text: String) {
        let time = self.now - self.begun;
        self.story.push(format!("{:9.3} {text}", time.as_secs_f64()));
    }

    /// Starts a host; `again`: it knows that it ran before.
    pub fn start(&mut self, host: usize, again: bool) {
        let plan = self.hosts[host].plan.clone();
        let own = Own { asn: plan.asn, identifier: identifier(host), cluster: identifier(host) };
        let rules = Rules {
            own,
            policies: export(&plan.blocked),
            addresses: BTreeSet::from([address(host), address_v6(host)]),
            sharing: 1,
            held: PerFamily::default(),
            // So small that everything has to be told in parts.
            bounds: Bounds {
                room: 1 + self.random.below(3000),
                portion: 1 + self.random.below(8),
                ..Bounds::default()
            },
            seed: self.random.next(),
        };
        let restarting = Restarting { patience: Duration::from_millis(800), deferral: Duration::from_secs(60) };
        let restarting = (again && plan.restarts_gracefully).then_some(restarting);
        self.hosts[host].speaker = Some(Speaker::new(rules, restarting, self.now));
        self.hosts[host].shown.clear();
        self.hosts[host].kernel.clear();
        self.hosts[host].dials.clear();
        self.hosts[host].paths = Some(Sessions::new(self.random.next()));
        for prefix in &plan.origins {
            self.originate(host, *prefix);
        }
        for peer in plan.peers.keys() {
            let wanted = self.wanted(host, *peer);
            self.step(host, Order::Want(Arc::new(wanted)));
            if plan.stopped.contains(peer) {
                self.set_stopped(host, *peer, true);
            }
        }
        self.watch(host);
    }

    fn wanted(&self, host: usize, peer: usize) -> WantedNeighbour {
        let plan = &self.hosts[host].plan;
        let restart = Restart { seconds: 40, stale: Duration::from_secs(90), long_lived: 100, notifications: true };
        WantedNeighbour {
            address: address(peer),
            settings: Settings {
                local: Local { asn: plan.asn, identifier: identifier(host) },
                asn: Some(self.hosts[peer].plan.asn),
                is_external: false,
                passive: false,
                hold_time: 30,
                connect_retry: Duration::from_secs(20),
                mutual: true,
                families: PerFamily { v4: true, v6: true },
                restart: plan.restarts_gracefully.then_some(restart),
            },
            transport: Transport::default(),
            client: plan.peers[&peer],
            own: PerFamily { v4: Some(address(host)), v6: Some(address_v6(host)) },
            next_hops: plan.next_hops,
            liveness: plan.watched.contains(&peer).then(paths::liveness),
            expected: true,
            first_as: true,
            most: PerFamily::default(),
        }
    }

    /// Ends a host as by a signal that cannot be caught. `silently`: the others do not notice.
    pub fn kill(&mut self, host: usize, silently: bool) {
        self.hosts[host].speaker = None;
        self.hosts[host].paths = None;
        self.cuts.excuse(|one, _| one == host);
        for wire in 0..self.wires.len() {
            for end in 0..2 {
                if self.wires[wire].ends[end].host == host && self.wires[wire].ends[end].open {
                    self.close(wire, end, silently);
                }
            }
        }
    }

    pub fn originate(&mut self, host: usize, prefix: IpNet) {
        self.hosts[host].plan.origins.insert(prefix);
        let next_hop = if matches!(prefix, IpNet::V4(_)) { address(host) } else { address_v6(host) };
        self.step(host, Order::Originate(prefix, Box::new(Attributes::local(next_hop))));
    }

    pub fn retract(&mut self, host: usize, prefix: IpNet) {
        self.hosts[host].plan.origins.remove(&prefix);
        self.step(host, Order::Retract(prefix));
    }

    pub fn block(&mut self, host: usize, blocked: BTreeSet<IpNet>) {
        self.hosts[host].plan.blocked = blocked;
        let policies = export(&self.hosts[host].plan.blocked);
        self.step(host, Order::Policies(policies));
    }

    pub fn set_stopped(&mut self, host: usize, peer: usize, stopped: bool) {
        use sluice::bgp::message::{Notification, Reason};
        if stopped {
            self.hosts[host].plan.stopped.insert(peer);
            self.step(host, Order::Stop(address(peer), Notification::with_text(Reason::SHUTDOWN, "for a test")));
        } else {
            self.hosts[host].plan.stopped.remove(&peer);
            self.step(host, Order::Start(address(peer)));
        }
    }

    /// Has a host watch the path to a neighbour, or not any more, which it tells it.
    pub fn set_watched(&mut self, host: usize, peer: usize, watched: bool) {
        let plan = &mut self.hosts[host].plan;
        _ = if watched { plan.watched.insert(peer) } else { plan.watched.remove(&peer) };
        self.cuts.excuse(|one, other| (one, other) == (host, peer));
        let wanted = self.wanted(host, peer);
        self.step(host, Order::Want(Arc::new(wanted)));
        self.watch(host);
    }

    /// Breaks a connection between two hosts, or lets it go dead.
    pub fn cut(&mut self, silently: bool) -> bool {
        let open: Vec<usize> = (0..self.wires.len())
            .filter(|wire| self.wires[*wire].ends.iter().all(|end| end.open) && !self.wires[*wire].dead)
            .collect();
        if open.is_empty() {
            return false;
        }
        let wire = *self.random.pick(&open);
        let hosts = [0, 1].map(|end: usize| self.wires[wire].ends[end].host);
        self.tell(format!("the connection of {hosts:?} {}", if silently { "goes dead" } else { "breaks" }));
        if silently {
            self.wires[wire].dead = true;
        } else {
            for end in 0..2 {
                self.wires[wire].ends[end].inbox.clear();
                self.put(wire, end, Item::End);
            }
        }
        true
    }

    /// Parts two hosts: messages between them are lost from now on.
    pub fn part(&mut self, one: usize, other: usize) {
        self.expect_notice(one, other);
        self.cuts.parted.insert((one.min(other), one.max(other)));
        for wire in &mut self.wires {
            let hosts = [wire.ends[0].host, wire.ends[1].host];
            wire.dead |= hosts.contains(&one) && hosts.contains(&other);
        }
    }

    pub fn step(&mut self, host: usize, input: impl Into<Input>) {
        let at = Moment { now: self.now, jitter: self.random.next() as u8 };
        let Some(speaker) = &mut self.hosts[host].speaker else { return };
        let outputs = speaker.step(at, input);
        self.hosts[host].check_shown();
        self.take(host, outputs);
    }

    fn take(&mut self, host: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Dial(to) => {
                    let number = self.number();
                    let to = host_of(to);
                    self.hosts[host].dials.insert(to, number);
                    self.later(20, Event::Dial { from: host, to, number });
                }
                Output::AbandonDial(to) => drop(self.hosts[host].dials.remove(&host_of(to))),
                Output::Send(link, bytes) => self.send(host, link, &bytes),
                Output::Close(link) => {
                    if let Some((wire, end)) = self.end_of(host, link) {
                        self.close(wire, end, false);
                    }
                }
                Output::Routes(changed) => {
                    let host = &mut self.hosts[host];
                    let rib = host.speaker.as_ref().expect("it has just spoken").rib();
                    for prefix in changed.into_iter().map(|one| one.prefix) {
                        match rib.route(prefix).next_hops.first() {
                            Some(next_hop) => host.kernel.insert(prefix, *next_hop),
                            None => {
                                host.removed += 1;
                                host.kernel.remove(&prefix)
                            }
                        };
                    }
                }
                Output::Fact(peer, fact) => {
                    if let Fact::Remarks(remarks) = &fact {
                        panic!("{host} says of {peer}: {remarks:?}");
                    }
                    self.sessions += usize::from(matches!(fact, Fact::Up(_)));
                    self.heard_of_path(host, peer, &fact);
                    let words = match fact {
                        Fact::Up(_) => "up".to_owned(),
                        other => format!("{other:?}"),
                    };
                    self.tell(format!("{host} with {}: {words}", host_of(peer)));
                }
                Output::Complete => self.tell(format!("{host} has restarted")),
            }
        }
    }

    fn heard_of_path(&mut self, host: usize, peer: IpAddr, fact: &Fact) {
        match fact {
            Fact::PathFailed(_) => {
                self.failures += 1;
                let speaker = self.hosts[host].speaker.as_ref().expect("it has just spoken");
                let neighbour = speaker.neighbour(peer).expect("its path is watched");
                assert!(neighbour.peer().session().is_none(), "{host} has no session over the path to {peer}");
            }
            Fact::PathOutlived(_) => self.cuts.excuse(|one, other| (one, other) == (host, host_of(peer))),
            _ => {}
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn later(&mut self, most: u64, event: Event) {
        let time = self.now + Duration::from_micros(1 + self.random.next() % (most * 1000));
        let number = self.number();
        self.events.insert((time, number), event);
    }

    fn end_of(&self, host: usize, link: LinkId) -> Option<(usize, usize)> {
        let found = self.wires.iter().enumerate().rev().find_map(|(wire, it)| {
            let end = it.ends.iter().position(|end| end.host == host && end.link == link)?;
            Some((wire, end))
        });
        found.filter(|(wire, end)| self.wires[*wire].ends[*end].open)
    }

    fn send(&mut self, host: usize, link: LinkId, bytes: &Arc<[u8]>) {
        let Some((wire, end)) = self.end_of(host, link) else { return };
        let to = self.wires[wire].ends[1 - end].host;
        // Who is slow takes in a second what others take in some milliseconds.
        let slow = if self.slow.contains(&to) { 1000 } else { 5 };
        self.later(slow, Event::Taken { wire, end, bytes: bytes.len() });
        if self.wires[wire].dead {
            return;
        }
        let cut = self.random.below(bytes.len() + 1);
        let (head, tail) = bytes.split_at(cut);
        for piece in [head, tail].into_iter().filter(|piece| !piece.is_empty()) {
            self.put(wire, 1 - end, Item::Bytes(piece.into()));
        }
    }

    fn put(&mut self, wire: usize, end: usize, item: Item) {
        self.wires[wire].ends[end].inbox.push_back(item);
        let slow = self.slow.contains(&self.wires[wire].ends[end].host);
        self.later(if slow { 300 } else { 10 }, Event::Deliver { wire, end });
    }

    fn close(&mut self, wire: usize, end: usize, silently: bool) {
        self.wires[wire].ends[end].open = false;
        self.wires[wire].ends[end].inbox.clear();
        if !silently && !self.wires[wire].dead {
            self.put(wire, 1 - end, Item::End);
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let event = self.events.keys().next().map(|(time, _)| *time);
            let timer = (0..self.hosts.len()).filter_map(|host| {
                let deadline = self.hosts[host].speaker.as_ref().and_then(Speaker::deadline)?;
                Some((deadline, host))
            });
            let timer = timer.min();
            let paths = self.next_of_paths();
            let next = event.into_iter().chain(timer.map(|(time, _)| time)).chain(paths.map(|(time, _)| time)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if event == Some(next) {
                let ((_, _), event) = self.events.pop_first().expect("there is one");
                self.happen(event);
            } else if let Some((_, host)) = paths.filter(|(time, _)| *time <= next) {
                self.tick_paths(host);
            } else if let Some((_, host)) = timer {
                self.step(host, Input::Tick);
                let deadline = self.hosts[host].speaker.as_ref().and_then(Speaker::deadline);
                assert!(deadline.is_none_or(|deadline| deadline > self.now), "{host} has done what was due");
            }
        }
        self.now = end;
        self.check_cuts();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dial { from, to, number } => self.dial(from, to, number),
            Event::Packet { from, to, datagram } => self.packet(from, to, &datagram),
            Event::Taken { wire, end, bytes } => {
                let End { host, link, open, .. } = self.wires[wire].ends[end];
                if open {
                    self.step(host, Input::Taken(link, bytes));
                }
            }
            Event::Deliver { wire, end } => {
                let at = Moment { now: self.now, jitter: self.random.next() as u8 };
                let receiver = &mut self.wires[wire].ends[end];
                let (host, link) = (receiver.host, receiver.link);
                let Some(item) = receiver.inbox.pop_front() else { return };
                if !receiver.open {
                    return;
                }
                match item {
                    Item::Accepted => {
                        let from = address(self.wires[wire].ends[1 - end].host);
                        self.step(host, Input::Accepted(from, link));
                    }
                    Item::Bytes(bytes) => {
                        let Some(speaker) = &mut self.hosts[host].speaker else { return };
                        let outputs = speaker.receive(at, link, &bytes);
                        self.hosts[host].check_shown();
                        self.take(host, outputs);
                    }
                    Item::End => {
                        self.step(host, Input::Closed(link));
                        self.wires[wire].ends[end].open = false;
                    }
                }
            }
        }
    }

    fn dial(&mut self, from: usize, to: usize, number: u64) {
        if self.hosts[from].dials.get(&to) != Some(&number) {
            return;
        }
        self.hosts[from].dials.remove(&to);
        if self.cuts.are_parted(from, to) || self.hosts[to].speaker.is_none() {
            return self.step(from, Input::DialFailed(address(to)));
        }
        let links = [LinkId(self.number()), LinkId(self.number())];
        let end = |host, link| End { host, link, open: true, inbox: VecDeque::new() };
        self.wires.push(Wire { ends: [end(from, links[0]), end(to, links[1])], dead: false });
        let wire = self.wires.len() - 1;
        self.put(wire, 1, Item::Accepted);
        self.step(from, Input::Dialled(address(to), links[0]));
    }
}
