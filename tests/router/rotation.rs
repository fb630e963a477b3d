//! Keys of WireGuard that change in a cluster in memory: agents that lag and are killed between any two changes of the kernel, and packets between all nodes every second.
//!
//! Of the kernel there is what matters: devices with keys, peers with ranges of which each belongs to one, and sessions. The plans, the steps and what is told are the program's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::bgp::message::Attributes;
use sluice::bgp::rib::{Best, PeerId, RouteChange};
use sluice::kernel::link::LinkName;
use sluice::kernel::route::{RouteKey, TABLE_MAIN};
use sluice::kernel::sysctl::Setting;
use sluice::kernel::wireguard::{Peer, PeerKey, Peers, Session};
use sluice::model::World;
use sluice::net::{Family, PublicKey};
use sluice::reconcile::Target;
use sluice::router::names::{WIREGUARD, WIREGUARD_SECOND};
use sluice::router::plan::{OwnKeys, Plan};
use sluice::router::rotation::{Rotation, Standing, Step, Told, next_to_tell};

use crate::cluster::{Cluster, prefix};
use crate::support::random::Random;

const WORDS: [&str; 3] = ["--enable-ipv6", "--overlay-type=full", "--overlay-encap=wireguard"];
/// Where routes to pods of other nodes come from, seed by seed.
const SOURCES: [&str; 2] = ["--node-routes=api", "--node-routes=bgp"];
const NODES: usize = 3;
const DEVICES: [&str; 2] = [WIREGUARD, WIREGUARD_SECOND];

fn link(name: &str) -> LinkName {
    LinkName(name.into())
}

/// The end of a session: the device, the key that it had, and the peer's.
type End = (&'static str, PublicKey, PublicKey);

/// What outlives an agent.
struct Machine {
    file: PublicKey,
    next_file: Option<PublicKey>,
    /// The key of each device.
    devices: BTreeMap<&'static str, PublicKey>,
    peers: BTreeMap<PeerKey, Peer>,
    /// The device that leads to each of the other nodes.
    routes: BTreeMap<usize, LinkName>,
    /// When sessions were agreed upon.
    sessions: BTreeMap<End, u64>,
    /// When that was last done with a peer, since it was added.
    handshakes: BTreeMap<PeerKey, u64>,
    /// The World that its agents have seen last.
    seen: usize,
}

/// A process.
struct Agent {
    plan: Plan,
    rotation: Rotation,
    next_key: Option<PublicKey>,
    /// The World that it has seen last.
    seen: usize,
}

struct Simulation {
    random: Random,
    cluster: Cluster,
    now: u64,
    start: Instant,
    machines: BTreeMap<usize, Machine>,
    agents: BTreeMap<usize, Agent>,
    /// What Nodes have told, as it was after each change.
    told: Vec<BTreeMap<usize, Told>>,
    /// Nodes whose keys are to change.
    due: BTreeSet<usize>,
    made: u8,
    /// The API server does not answer: nobody hears, and nothing is told.
    is_out: bool,
}

impl Machine {
    fn own_keys(&self) -> OwnKeys {
        let may_have = |key: &PublicKey| Some(*key) == self.next_file || *key == self.file;
        let second = self.devices.get(WIREGUARD_SECOND).copied().filter(may_have);
        OwnKeys {
            first: self.devices.get(WIREGUARD).copied().filter(|key| *key == self.file),
            second,
            has_next: self.next_file.is_some(),
            is_changing: self.next_file.is_some() && second == self.next_file,
        }
    }

    fn sessions(&self, now: u64) -> BTreeMap<PeerKey, Session> {
        let at = |key: &PeerKey| self.handshakes.get(key).map_or(Duration::ZERO, |at| Duration::from_secs(1000 + at));
        self.peers.keys().map(|key| (key.clone(), Session::at(at(key), Duration::from_secs(1000 + now)))).collect()
    }

    fn set_peer(&mut self, key: &PeerKey, peer: &Peer) {
        for (_, other) in self.peers.iter_mut().filter(|(other, _)| other.link == key.link && *other != key) {
            other.allowed = other.allowed.iter().filter(|range| !peer.allowed.contains(range)).copied().collect();
        }
        self.peers.insert(key.clone(), peer.clone());
    }

    fn remove_peer(&mut self, key: &PeerKey) {
        self.peers.remove(key);
        self.handshakes.remove(key);
        self.sessions.retain(|(device, _, peer), _| **device != *key.link.0 || *peer != key.key);
    }

    fn remove_device(&mut self, device: &'static str) {
        self.devices.remove(device);
        let peers: Vec<PeerKey> = self.peers.keys().filter(|key| key.link.0 == device).cloned().collect();
        peers.iter().for_each(|key| self.remove_peer(key));
    }

    /// The peer of a device that may use the pods of a node.
    fn peer_for(&self, device: &str, node: usize) -> Option<&PeerKey> {
        let range = prefix(&format!("10.244.{node}.0/24"));
        let mut peers = self.peers.iter();
        peers.find(|(key, peer)| key.link.0 == device && peer.allowed.contains(&range)).map(|(key, _)| key)
    }
}

/// The routes of all other nodes, as their sessions have told them. Node objects come before them, where they count.
fn told_by_sessions(world: &World, number: usize) -> Vec<RouteChange> {
    let others = (1..=NODES).filter(|other| *other != number).map(|other| format!("node-{other}").into());
    let nodes: Vec<_> = others.filter_map(|name| world.cluster.nodes.get(&name)).collect();
    let routes = nodes.iter().flat_map(|node| node.pod_cidrs.iter().map(move |range| (node, *range)));
    let change = routes.filter_map(|(node, range)| {
        let next_hop = node.routing_address(Family::from(range))?;
        let best = Best { source: PeerId::FIRST, attributes: Arc::new(Attributes::local(next_hop)) };
        Some(RouteChange { prefix: range, best: Some(best), next_hops: vec![next_hop] })
    });
    change.collect()
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let source = SOURCES[seed as usize % SOURCES.len()];
        let mut cluster = Cluster::new(&[&WORDS[..], &[source]].concat());
        for number in 1..=NODES {
            let ranges = format!("10.244.{number}.0/24 fd00:10:244:{number}::/64");
            cluster.add_node(number, "192.0.2", "both", &ranges);
        }
        let mut simulation = Simulation {
            random: Random::new(seed),
            cluster,
            now: 0,
            start: Instant::now(),
            machines: BTreeMap::new(),
            agents: BTreeMap::new(),
            told: vec![BTreeMap::new()],
            due: BTreeSet::new(),
            made: 0,
            is_out: false,
        };
        for number in 1..=NODES {
            let file = simulation.make_key();
            let machine = Machine {
                file,
                next_file: None,
                devices: BTreeMap::new(),
                peers: BTreeMap::new(),
                routes: BTreeMap::new(),
                sessions: BTreeMap::new(),
                handshakes: BTreeMap::new(),
                seen: 0,
            };
            simulation.machines.insert(number, machine);
        }
        simulation
    }

    fn make_key(&mut self) -> PublicKey {
        self.made += 1;
        PublicKey::new(&[self.made; 32]).expect("a key")
    }

    fn world(&self, number: usize, at: usize) -> World {
        let mut world = self.cluster.world(number);
        for (other, told) in &self.told[at] {
            let name = format!("node-{other}").into();
            let mut node = (**world.cluster.nodes.get(&name).expect("it is there")).clone();
            (node.wireguard_key, node.wireguard_next_key) = (told.first, told.next);
            world.cluster.nodes.insert(name, node);
        }
        world
    }

    fn start_agent(&mut self, number: usize) {
        let (config, families) = self.cluster.config();
        let mut agent = Agent {
            plan: Plan::new(config, families),
            rotation: Rotation::default(),
            next_key: None,
            seen: self.machines[&number].seen,
        };
        let machine = &self.machines[&number];
        agent.plan.set_own_keys(machine.own_keys());
        agent.plan.set_sessions(machine.sessions(self.now));
        self.agents.insert(number, agent);
    }

    /// One turn of an agent, which is killed with some chance between any two of its changes. Returns whether it goes on.
    fn turn(&mut self, number: usize, kills: u32) -> bool {
        let Some(mut agent) = self.agents.remove(&number) else { return false };
        let mut machine = self.machines.remove(&number).expect("it is there");
        let latest = if self.is_out { agent.seen } else { self.told.len() - 1 };
        agent.seen += self.random.below(latest - agent.seen + 1);
        machine.seen = agent.seen;
        let world = self.world(number, agent.seen);
        agent.plan.update(&world);
        agent.plan.learn(&told_by_sessions(&world, number));
        agent.plan.set_sessions(machine.sessions(self.now));
        let lives = self.change(number, &mut agent, &mut machine, kills).is_some();
        self.tell(number, &agent, &machine);
        self.machines.insert(number, machine);
        self.agents.insert(number, agent);
        lives
    }

    /// `None` when the process was killed.
    fn change(&mut self, number: usize, agent: &mut Agent, machine: &mut Machine, kills: u32) -> Option<()> {
        self.step(number, agent, machine);
        let random = &mut self.random;
        let mut survives = || (!random.chance(kills)).then_some(());
        survives()?;
        let desired = agent.plan.desired();
        let has_two = desired.wireguard_devices.len() == 2;
        for device in DEVICES {
            let loose = Setting(format!("net/ipv4/conf/{device}/rp_filter").into());
            assert_eq!(
                desired.settings.contains_key(&loose),
                has_two,
                "packets come by both, and it is as it was otherwise"
            );
        }
        for device in DEVICES.into_iter().filter(|device| desired.wireguard_devices.contains_key(&link(device))) {
            let next = machine.next_file.filter(|_| device == WIREGUARD_SECOND);
            let may_have = [next, Some(machine.file)];
            let has = machine.devices.get(device).copied();
            if has.is_none() || !may_have.contains(&has) {
                machine.devices.insert(device, may_have.into_iter().flatten().next().expect("one of them"));
            }
            survives()?;
        }
        if machine.own_keys().is_changing {
            agent.next_key = machine.next_file;
        }
        for (key, peer) in &desired.wireguard_peers {
            let grown = machine.peers.get(key).map_or_else(|| peer.clone(), |have| Peers::grown(have, peer));
            if machine.peers.get(key) != Some(&grown) {
                machine.set_peer(key, &grown);
                survives()?;
            }
        }
        for other in (1..=NODES).filter(|other| *other != number) {
            let key = RouteKey::new(TABLE_MAIN, prefix(&format!("10.244.{other}.0/24")));
            if let Some(hop) = agent.plan.routes().routes().get(&key).and_then(|route| route.next_hops.first().cloned())
            {
                machine.routes.insert(other, hop.link);
                survives()?;
            }
        }
        for (key, peer) in &desired.wireguard_peers {
            if machine.peers.get(key) != Some(peer) {
                machine.set_peer(key, peer);
                survives()?;
            }
        }
        let gone: Vec<PeerKey> =
            machine.peers.keys().filter(|key| !desired.wireguard_peers.contains_key(key)).cloned().collect();
        for key in gone {
            machine.remove_peer(&key);
            survives()?;
        }
        if !desired.wireguard_devices.contains_key(&link(WIREGUARD_SECOND)) {
            machine.remove_device(WIREGUARD_SECOND);
        }
        agent.plan.set_own_keys(machine.own_keys());
        survives()
    }

    fn step(&mut self, number: usize, agent: &mut Agent, machine: &mut Machine) {
        let keys = machine.own_keys();
        agent.plan.set_own_keys(keys);
        let own = self.told[agent.seen].get(&number).copied().unwrap_or_default();
        let others: Vec<_> = agent.plan.others_change().cloned().collect();
        let standing = Standing {
            is_due: self.due.contains(&number) && !keys.has_next,
            is_changing: keys.is_changing,
            is_held_up: keys.has_next && !keys.is_changing,
            is_told: agent.next_key.is_some() && own == Told { first: keys.first, next: agent.next_key },
            untold: agent.next_key.filter(|next| own.next != Some(*next)),
            is_seen: true,
            has_second: machine.devices.contains_key(WIREGUARD_SECOND),
            namesakes: agent.plan.namesakes().cloned().collect(),
            by_first_key: agent.plan.by_first_key().map(|(node, has_next)| (node.clone(), has_next)).collect(),
            disputed: agent.plan.disputed().cloned().collect(),
            others,
        };
        match agent.rotation.step(&standing, self.start + Duration::from_secs(self.now)) {
            Some(Step::Make) => {
                machine.next_file = Some(self.make_key());
                self.due.remove(&number);
            }
            Some(Step::Take) => machine.file = machine.next_file.take().expect("there is one"),
            None => {}
        }
        agent.plan.set_own_keys(machine.own_keys());
    }

    /// The agent writes its annotations, one after the other with some chance.
    fn tell(&mut self, number: usize, agent: &Agent, machine: &Machine) {
        let keys = machine.own_keys();
        let seen = self.told[agent.seen].get(&number).copied().unwrap_or_default();
        let Some(first) = keys.first.filter(|_| !self.is_out) else { return };
        let next = next_to_tell(keys, agent.next_key, seen);
        let mut now = self.told.last().expect("there is one").clone();
        let own = now.entry(number).or_default();
        let before = *own;
        if self.random.chance(70) {
            own.next = next;
        }
        if self.random.chance(70) {
            own.first = Some(first);
        }
        if *own != before {
            self.told.push(now);
        }
    }

    /// Sends something from one node to a peer by its device; returns whether it is taken in. An empty packet keeps a session alive, and has no source.
    fn send(&mut self, from: usize, to: usize, peer: &PeerKey, is_empty: bool) -> Result<(), String> {
        let now = self.now;
        let Some(device) = DEVICES.into_iter().find(|one| **one == *peer.link.0) else {
            return Err("no device".to_owned());
        };
        let sender = &self.machines[&from];
        let own = *sender.devices.get(device).ok_or("the device is gone")?;
        let age = sender.sessions.get(&(device, own, peer.key)).map(|at| now - at);
        if age.is_none_or(|age| age >= 120) {
            let receiver = &self.machines[&to];
            let answers = receiver.devices.get(device) == Some(&peer.key)
                && receiver.peers.contains_key(&PeerKey { link: link(device), key: own });
            match answers {
                true => self.agree([from, to], device, [own, peer.key]),
                false if age.is_none_or(|age| age >= 180) => return Err(format!("no session on {device}")),
                false => {}
            }
        }
        let receiver = &self.machines[&to];
        let end = (device, peer.key, own);
        let is_heard = receiver.sessions.get(&end).is_some_and(|at| now - at < 180);
        let source = receiver.peer_for(device, from).map(|key| key.key);
        match is_heard && (is_empty || source == Some(own)) {
            true => Ok(()),
            false => Err(format!("not taken in by {device}: heard {is_heard}, source {source:?}")),
        }
    }

    fn agree(&mut self, [from, to]: [usize; 2], device: &'static str, [own, others]: [PublicKey; 2]) {
        for (number, own, peer) in [(from, own, others), (to, others, own)] {
            let machine = self.machines.get_mut(&number).expect("it is there");
            machine.sessions.insert((device, own, peer), self.now);
            machine.handshakes.insert(PeerKey { link: link(device), key: peer }, self.now);
        }
    }

    /// A second: packets of all to all, and those that keep sessions alive. Returns what was lost.
    fn second(&mut self) -> Vec<String> {
        self.now += 1;
        let mut lost = Vec::new();
        for from in 1..=NODES {
            let peers: Vec<(PeerKey, u16)> =
                self.machines[&from].peers.iter().map(|(key, peer)| (key.clone(), peer.keepalive)).collect();
            for (key, _) in peers.into_iter().filter(|(_, keepalive)| *keepalive > 0) {
                let has_it = |number: &usize| {
                    self.machines[number].devices.get(&*key.link.0) == Some(&key.key) && *number != from
                };
                let others: Vec<usize> = (1..=NODES).filter(has_it).collect();
                for to in others {
                    let _ = self.send(from, to, &key, true);
                }
            }
            for to in (1..=NODES).filter(|to| *to != from) {
                let machine = &self.machines[&from];
                let Some(device) = machine.routes.get(&to).map(|device| device.0.to_string()) else {
                    lost.push(format!("{from} to {to}: no route"));
                    continue;
                };
                let peer = machine.peer_for(&device, to).cloned();
                let sent = peer.ok_or("no peer".to_owned()).and_then(|peer| self.send(from, to, &peer, false));
                lost.extend(sent.err().map(|why| format!("{from} to {to} by {device}: {why}")));
            }
        }
        lost
    }

    fn turns(&mut self, kills: u32) {
        for number in 1..=NODES {
            if !self.agents.contains_key(&number) {
                continue;
            }
            if self.random.chance(70) && !self.turn(number, kills) {
                self.start_agent(number);
            }
        }
    }

    fn say(&self) -> String {
        let line = |(number, machine): (&usize, &Machine)| {
            let sessions = machine.sessions(self.now);
            let note = self.agents.get(number).and_then(|agent| agent.rotation.note());
            format!(
                "{number}: file {:?} next {:?}\n  devices {:?}\n  routes {:?}\n  sessions {sessions:?}\n  told {:?} {note:?}\n",
                machine.file,
                machine.next_file,
                machine.devices,
                machine.routes,
                self.told.last().and_then(|told| told.get(number)),
            )
        };
        self.machines.iter().map(line).collect()
    }

    /// Seconds until all agents have connected all nodes.
    fn settle(&mut self) {
        for number in 1..=NODES {
            self.start_agent(number);
        }
        for _ in 0..30 {
            self.turns(0);
            let _ = self.second();
        }
        for _ in 0..250 {
            self.turns(0);
            assert_eq!(self.second(), Vec::<String>::new(), "{}", self.say());
        }
    }

    fn is_at_rest(&self) -> bool {
        let rests = |machine: &Machine| {
            machine.next_file.is_none()
                && machine.devices.len() == 1
                && machine.devices.get(WIREGUARD) == Some(&machine.file)
                && machine.routes.values().all(|device| device.0 == WIREGUARD)
                && machine.peers.values().all(|peer| peer.keepalive == 0)
        };
        self.machines.values().all(rests) && self.due.is_empty()
    }
}

#[test]
fn keys_change_one_after_the_other_and_together_and_no_packet_is_lost_wherever_agents_are_killed() {
    for seed in 1..=12 {
        let kills = if seed % 3 == 0 { 0 } else { 2 };
        let mut simulation = Simulation::new(seed);
        simulation.settle();
        let before: Vec<PublicKey> = simulation.machines.values().map(|machine| machine.file).collect();
        // All at once, one after the other, or in the middle of another one's change.
        let at: Vec<u64> =
            (0..NODES as u64).map(|number| simulation.random.below(1 + 200 * number as usize) as u64).collect();
        let start = simulation.now;
        loop {
            for (index, at) in at.iter().enumerate() {
                if simulation.now == start + at {
                    simulation.due.insert(index + 1);
                }
            }
            simulation.turns(kills);
            let lost = simulation.second();
            assert!(lost.is_empty(), "seed {seed} at {}: {lost:?}\n{}", simulation.now - start, simulation.say());
            let passed = simulation.now - start;
            if passed > 450 && simulation.is_at_rest() {
                break;
            }
            assert!(passed < 6000, "seed {seed} does not end:\n{}", simulation.say());
        }
        let after: Vec<PublicKey> = simulation.machines.values().map(|machine| machine.file).collect();
        assert!(before.iter().zip(&after).all(|(before, after)| before != after), "seed {seed}: {before:?} {after:?}");
        for machine in simulation.machines.values() {
            let keys: Vec<PublicKey> = machine.peers.keys().map(|key| key.key).collect();
            assert!(keys.iter().all(|key| after.contains(key)) && keys.len() == NODES - 1, "{}", simulation.say());
        }
    }
}

#[test]
fn while_an_agent_is_away_the_change_waits_and_names_its_node_and_no_packet_is_lost() {
    for (seed, away_at) in [(1, 0), (2, 3), (3, 8), (4, 20), (5, 60), (6, 230)] {
        let mut simulation = Simulation::new(seed);
        simulation.settle();
        let before = simulation.machines[&1].file;
        simulation.due.insert(1);
        let mut was_named = false;
        for second in 0..2000 {
            if second == away_at {
                simulation.agents.remove(&2);
            }
            simulation.turns(0);
            let lost = simulation.second();
            assert!(lost.is_empty(), "away at {away_at}, at {second}: {lost:?}\n{}", simulation.say());
            let note = simulation.agents[&1].rotation.note().unwrap_or_default();
            was_named |= note.contains("node-2");
        }
        let has_changed = simulation.machines[&1].file != before;
        assert!(has_changed != was_named, "away at {away_at}: {was_named}\n{}", simulation.say());
        simulation.start_agent(2);
        for _ in 0..600 {
            simulation.turns(0);
            assert_eq!(simulation.second(), Vec::<String>::new(), "away at {away_at}\n{}", simulation.say());
        }
        assert!(simulation.is_at_rest() && simulation.machines[&1].file != before, "{}", simulation.say());
    }
}

#[test]
fn while_the_api_server_does_not_answer_a_change_goes_as_far_as_it_may_and_no_packet_is_lost() {
    for (seed, out_at) in [(1, 0), (2, 2), (3, 5), (4, 10), (5, 40), (6, 150), (7, 205), (8, 215), (9, 230), (10, 260)]
    {
        let mut simulation = Simulation::new(seed);
        simulation.settle();
        let before = simulation.machines[&1].file;
        simulation.due.insert(1);
        for second in 0..3000 {
            simulation.is_out = (out_at..out_at + 1000).contains(&second);
            simulation.turns(2);
            let lost = simulation.second();
            assert!(lost.is_empty(), "out at {out_at}, at {second}: {lost:?}\n{}", simulation.say());
        }
        assert!(simulation.is_at_rest() && simulation.machines[&1].file != before, "{}", simulation.say());
    }
}

#[test]
fn a_node_that_boots_before_others_know_its_new_key_as_the_first_is_reached_by_it() {
    let mut simulation = Simulation::new(7);
    simulation.settle();
    let before = simulation.machines[&1].file;
    simulation.due.insert(1);
    let run_until = |simulation: &mut Simulation, is_so: &dyn Fn(&Simulation) -> bool| {
        for _ in 0..2000 {
            simulation.turns(0);
            assert_eq!(simulation.second(), Vec::<String>::new(), "{}", simulation.say());
            if is_so(simulation) {
                return;
            }
        }
        panic!("it does not come to it\n{}", simulation.say());
    };
    let sends_by_second = |machine: &Machine| machine.routes.get(&1).is_none_or(|link| link.0 == WIREGUARD_SECOND);
    let knows_it = |simulation: &Simulation| {
        let seen = &simulation.told[simulation.agents[&1].seen];
        seen.get(&1).is_some_and(|told| told.next == simulation.machines[&1].next_file)
    };
    run_until(&mut simulation, &|simulation| simulation.machines.values().all(sends_by_second) && knows_it(simulation));
    simulation.is_out = true;
    run_until(&mut simulation, &|simulation| simulation.machines[&1].file != before);
    let machine = simulation.machines.get_mut(&1).expect("it is there");
    (machine.devices, machine.peers, machine.routes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    (machine.sessions, machine.handshakes) = (BTreeMap::new(), BTreeMap::new());
    simulation.start_agent(1);
    for _ in 0..30 {
        simulation.turns(0);
        let _ = simulation.second();
    }
    for second in 0..1000 {
        simulation.is_out = second < 400;
        simulation.turns(0);
        assert_eq!(simulation.second(), Vec::<String>::new(), "at {second}\n{}", simulation.say());
    }
    assert!(simulation.is_at_rest(), "{}", simulation.say());
}
