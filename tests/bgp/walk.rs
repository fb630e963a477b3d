//! A walk: what happens to the network, and what must be true in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use sluice::bfd::State;
use sluice::bgp::message::{Notification, Reason};
use sluice::bgp::rib::NextHops;
use sluice::bgp::speaker::Order;

use crate::expected;
use crate::network::{Network, Plan, address};
use crate::random::Random;

pub struct Walk {
    pub network: Network,
    prefixes: Vec<IpNet>,
}

/// Longer than every timer: restart, stale routes, hold, dials.
const LONG: Duration = Duration::from_secs(400);

impl Walk {
    pub fn new(seed: u64) -> Walk {
        let mut random = Random::new(seed);
        let prefixes = (0..12_u8).flat_map(|number| {
            let v4 = format!("10.244.{number}.0/24");
            let v6 = format!("fd00:10:244:{number:x}::/64");
            [v4, v6].map(|text| text.parse().expect("a prefix"))
        });
        let prefixes: Vec<IpNet> = prefixes.collect();
        let plans = plans(&mut random, &prefixes);
        let mut network = Network::new(plans, random);
        for host in 0..network.hosts.len() {
            let plan = &network.hosts[host].plan;
            let text =
                format!("{host}: AS {}, peers {:?}, graceful {}", plan.asn, plan.peers, plan.restarts_gracefully);
            network.tell(text);
        }
        Walk { network, prefixes }
    }

    pub fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
            let time = match self.network.random.below(4) {
                0 => 0,
                1 => 30,
                2 => 1000,
                _ => 20_000,
            };
            let time = self.network.random.below(time + 1) as u64;
            self.network.pass(Duration::from_millis(time));
        }
        self.heal();
        self.network.pass(LONG);
        self.check();
    }

    fn step(&mut self) {
        let network = &mut self.network;
        let host = network.random.below(network.hosts.len());
        let prefix = *network.random.pick(&self.prefixes);
        let peers: Vec<usize> = network.hosts[host].plan.peers.keys().copied().collect();
        let peer = *network.random.pick(&peers);
        let alive = network.hosts[host].speaker.is_some();
        match network.random.below(20) {
            0..4 if alive => match network.hosts[host].plan.origins.contains(&prefix) {
                true => network.retract(host, prefix),
                false => network.originate(host, prefix),
            },
            4 => drop(network.cut(false)),
            5 => drop(network.cut(true)),
            6 | 7 if alive => {
                let silently = network.random.chance(30);
                network.tell(format!("{host} dies, silently: {silently}"));
                network.kill(host, silently);
            }
            6..9 if !alive => {
                network.tell(format!("{host} comes back"));
                network.start(host, true);
            }
            9 => {
                network.tell(format!("{host} and {peer} are parted"));
                network.part(host, peer);
            }
            10 => network.cuts.heal(),
            11 if alive => {
                let stopped = !network.hosts[host].plan.stopped.contains(&peer);
                network.tell(format!("{host} stops {peer}: {stopped}"));
                network.set_stopped(host, peer, stopped);
            }
            12 if alive => {
                let mut blocked: BTreeSet<IpNet> = network.hosts[host].plan.blocked.clone();
                if !blocked.remove(&prefix) {
                    blocked.insert(prefix);
                }
                network.block(host, blocked);
            }
            13 if !network.slow.remove(&host) => {
                network.slow.insert(host);
            }
            14 => network.step(host, Order::AskAgain(address(peer))),
            15 => network.step(host, Order::TellAgain(address(peer))),
            16 => {
                network.tell(format!("{host} begins anew with {peer}"));
                network.step(host, Order::Restart(address(peer), Notification::new(Reason::RESET)));
            }
            17 if !network.cuts.deaf.remove(&(host, peer)) => {
                network.tell(format!("{peer} does not hear the BFD of {host} any more"));
                network.cuts.deaf.insert((host, peer));
            }
            18 => network.cuts.deaf.clear(),
            19 if alive => {
                let watched = !network.hosts[host].plan.watched.contains(&peer);
                network.tell(format!("{host} watches the path to {peer}: {watched}"));
                network.set_watched(host, peer, watched);
            }
            _ => {}
        }
    }

    fn heal(&mut self) {
        self.network.tell("all heals".into());
        self.network.cuts.heal();
        self.network.cuts.deaf.clear();
        self.network.slow.clear();
        for host in 0..self.network.hosts.len() {
            if self.network.hosts[host].speaker.is_none() {
                self.network.start(host, true);
            }
        }
    }

    fn check(&mut self) {
        let expected = expected::tables(&self.network.hosts);
        for (host, expected) in expected.iter().enumerate() {
            let plan = self.network.hosts[host].plan.clone();
            let speaker = self.network.hosts[host].speaker.as_ref().expect("all are alive");
            assert!(!speaker.is_restarting(), "{host} restarts no more");
            for peer in plan.peers.keys() {
                let stopped = plan.stopped.contains(peer) || self.network.hosts[*peer].plan.stopped.contains(&host);
                let neighbour = speaker.neighbour(address(*peer)).expect("it is wanted");
                assert_eq!(neighbour.peer().session().is_none(), stopped, "{host} with {peer}");
                assert!(stopped || speaker.rib().is_told(neighbour.id()), "{host} has told {peer}");
                let both = plan.watched.contains(peer) && self.network.hosts[*peer].plan.watched.contains(&host);
                let path = neighbour.path().map(|status| status.state == State::Up);
                assert_eq!(path, plan.watched.contains(peer).then_some(both), "the path of {host} to {peer}");
            }
            for prefix in &self.prefixes {
                let best = speaker.rib().table().best(*prefix);
                let has = best
                    .as_ref()
                    .map(|best| (best.attributes.as_path.numbers().collect::<Vec<u32>>(), best.attributes.next_hop));
                let should = expected.get(prefix).map(|route| (route.path.clone(), route.next_hop));
                assert_eq!(has, should, "the route of {host} to {prefix}");
                let kernel = self.network.hosts[host].kernel.get(prefix).copied();
                assert_eq!(
                    kernel,
                    best.map(|best| best.attributes.next_hop),
                    "what the kernel of {host} was told of {prefix}"
                );
            }
        }
        self.check_what_was_told();
    }

    /// Asserts that the Adj-RIB-Out of each speaker equals the Adj-RIB-In of its neighbour.
    fn check_what_was_told(&mut self) {
        let prefixes = self.prefixes.clone();
        for host in 0..self.network.hosts.len() {
            for peer in self.network.hosts[host].plan.peers.clone().into_keys() {
                for prefix in &prefixes {
                    let speaker = self.network.hosts[host].speaker.as_mut().expect("all are alive");
                    let told = speaker.told(address(peer), *prefix);
                    let other = self.network.hosts[peer].speaker.as_ref().expect("all are alive");
                    let id = other.neighbour(address(host)).expect("it is wanted").id();
                    let path = other.rib().table().path(*prefix, id);
                    assert!(path.is_none_or(|path| !path.is_stale()), "{peer} has a stale route from {host}");
                    let heard = path.map(|path| path.received.clone());
                    assert_eq!(told, heard, "what {host} told {peer} of {prefix}");
                }
            }
        }
    }
}

/// A network by chance.
fn plans(random: &mut Random, prefixes: &[IpNet]) -> Vec<Plan> {
    let count = 3 + random.below(4);
    let mut peers: Vec<BTreeMap<usize, bool>> = vec![BTreeMap::new(); count];
    let mut systems = vec![0; count];
    let mut join = |one: usize, other: usize, clients: (bool, bool)| {
        peers[one].insert(other, clients.0);
        peers[other].insert(one, clients.1);
    };
    match random.below(3) {
        // Each in its own system, at least in a row.
        0 => {
            systems = (0..count).map(|host| 64512 + host as u32 * 1000 * (host as u32 % 2 * 70)).collect();
            systems.iter_mut().enumerate().for_each(|(host, asn)| *asn += host as u32);
            (1..count).for_each(|host| join(host - 1, host, (false, false)));
            for one in 0..count {
                for other in one + 1..count {
                    if random.chance(40) {
                        join(one, other, (false, false));
                    }
                }
            }
        }
        // A full mesh in one system, and somebody outside with two of them.
        1 => {
            systems = (0..count).map(|host| if host + 1 == count { 4_200_000_000 } else { 64512 }).collect();
            for one in 0..count - 1 {
                for other in one + 1..count - 1 {
                    join(one, other, (false, false));
                }
            }
            join(0, count - 1, (false, false));
            join(count - 2, count - 1, (false, false));
        }
        // Two reflectors, their clients, and somebody outside with a client.
        _ => {
            systems = (0..count).map(|host| if host + 1 == count { 65001 } else { 64512 }).collect();
            let reflectors = 2.min(count - 1);
            if reflectors == 2 {
                join(0, 1, (false, false));
            }
            for client in reflectors..count - 1 {
                for reflector in 0..reflectors {
                    join(reflector, client, (true, false));
                }
            }
            join(count - 2, count - 1, (false, false));
        }
    }
    let (graceful, watched) = (random.below(3), random.below(3));
    let mut plan = |(asn, peers): (u32, BTreeMap<usize, bool>)| Plan {
        asn,
        // With nobody, with all, or at one end or both of some.
        watched: peers.keys().copied().filter(|_| watched == 1 || watched == 2 && random.chance(70)).collect(),
        peers,
        next_hops: *random.pick(&[NextHops::Usual, NextHops::Ours, NextHops::Kept]),
        restarts_gracefully: graceful == 0 || graceful == 1 && random.chance(50),
        origins: (0..random.below(5)).map(|_| *random.pick(prefixes)).collect(),
        blocked: BTreeSet::new(),
        stopped: BTreeSet::new(),
    };
    systems.into_iter().zip(peers).map(&mut plan).collect()
}
