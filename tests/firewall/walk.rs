//! The firewall walks at random between worlds, on a kernel in memory.
//!
//! A walk changes the cluster, lets time pass, starts the program anew (also with the last known state, or with a partial
//! one), damages what is ours behind its back, takes modules away, and lets steps and reads fail, before the act and
//! after it. After every single act no rule leads nowhere; while only policies change and no module is missing, what was
//! refused before and shall be refused afterwards is refused all the time, and what may pass passes all the time, also
//! when steps fail. While unknown addresses are closed, an address that opens has its rules. When things have settled
//! the kernel does what the rules mean.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice::config::FirewallConfig;
use sluice::firewall::apply::Mirrors;
use sluice::firewall::lowering::Lowering;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::RuleSet;
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::firewall::{dispatch, icmp, names};
use sluice::kernel::ipset::{ElementKey, Entry};
use sluice::kernel::iptables::{Piece, Rules};
use sluice::model::{Authority, Node, World};
use sluice::net::{Family, PerFamily};
use sluice::reconcile::Moment;

use super::clusters;
use super::histories::for_many;
use super::support::chains::{Chains, State as Tracked, Traced};
use super::support::memory::{Faults, MemoryKernel, Object, State};
use super::support::random::Random;

const STEPS: usize = 60;
/// The ranges of this node's pods, which hold all pods of the clusters.
const RANGES: [&str; 2] = ["10.244.0.0/24", "fd00:10:244::/64"];

/// One run of the program.
struct Agent {
    plan: Plan,
    lowering: Lowering,
    mirrors: Mirrors<MemoryKernel>,
}

struct Walk<'r> {
    random: &'r mut Random,
    kernel: MemoryKernel,
    config: Arc<FirewallConfig>,
    world: World,
    agent: Agent,
    now: Instant,
    story: Vec<String>,
}

/// What must hold after every act: packets that must not pass, and packets that must.
#[derive(Clone, Default)]
struct Promise {
    never: Vec<Packet>,
    always: Vec<Packet>,
}

#[test]
fn whatever_happens_nothing_opens_and_in_the_end_the_kernel_does_what_the_rules_mean() {
    for_many(12, |random| Walk::new(random).run());
}

impl Agent {
    fn start(kernel: &MemoryKernel, config: &Arc<FirewallConfig>) -> Agent {
        Agent {
            plan: Plan::new(),
            lowering: Lowering::new(config.clone(), PerFamily { v4: true, v6: true }),
            mirrors: Mirrors::new(kernel.firewall_targets()),
        }
    }

    fn take_in(&mut self, world: &World) {
        let changed = self.plan.update(world);
        let lowered = self.lowering.update(self.plan.rules(), world, &changed);
        self.mirrors.mark(&lowered);
    }
}

impl<'r> Walk<'r> {
    fn new(random: &'r mut Random) -> Walk<'r> {
        let default_deny = random.chance(50);
        let config = Arc::new(FirewallConfig {
            sync_period: Duration::from_secs(300),
            default_deny,
            service_cluster_ip_ranges: Vec::new(),
            external_ip_ranges: Vec::new(),
            load_balancer_ip_ranges: Vec::new(),
            service_node_port_range: 30000..=32767,
        });
        let kernel = MemoryKernel::new(State::of_others());
        let mut world = clusters::empty_world();
        let pod_cidrs = RANGES.iter().map(|range| range.parse().expect("a range")).collect();
        world.cluster.nodes.insert("node1".into(), Node { addresses: Vec::new(), pod_cidrs });
        let mut agent = Agent::start(&kernel, &config);
        agent.take_in(&world);
        Walk { random, kernel, config, world, agent, now: Instant::now(), story: Vec::new() }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            let told = match self.random.below(20) {
                0..=9 => self.change_anything(),
                10..=13 => self.change_policies_only(),
                14 => self.restart(),
                15 => self.restart_with_what_was_remembered(),
                16 => self.see_only_a_part(),
                17 => self.damage(),
                18 => self.lose_modules(),
                _ => {
                    self.now += Duration::from_secs(40);
                    "time passes".to_owned()
                }
            };
            self.story.push(told);
            if self.random.chance(40) {
                self.settle();
            }
        }
        self.kernel.with(|machine| machine.unloadable.clear());
        self.now += Duration::from_secs(60);
        self.settle();
        self.check_rest();
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&self.world);
        let acts = self.kernel.with(|machine| machine.acts);
        self.settle();
        assert_eq!(self.kernel.with(|machine| machine.acts), acts, "a restart writes nothing");
        let foreign = self.kernel.with(|machine| machine.foreign_damage());
        assert!(foreign.is_empty(), "{foreign:?}");
    }

    fn change_anything(&mut self) -> String {
        let node = self.world.host.clone();
        let told = clusters::change(&mut self.world, self.random);
        // The name of a running host does not change.
        self.world.host = node;
        self.agent.take_in(&self.world);
        watch_entering(&self.kernel, self.agent.plan.rules().clone());
        self.rounds(3);
        watch(&self.kernel, None);
        told
    }

    /// Only here a packet's fate is known at every moment: sets and rules change together.
    fn change_policies_only(&mut self) -> String {
        self.settle();
        let before = self.agent.plan.rules().clone();
        let older = self.world.cluster.clone();
        for _ in 0..20 {
            let node = self.world.host.clone();
            clusters::change(&mut self.world, self.random);
            self.world.host = node;
        }
        self.world.cluster = sluice::model::Cluster { policies: self.world.cluster.policies.clone(), ..older };
        self.agent.take_in(&self.world);
        let lacks_nothing = self.kernel.with(|machine| machine.unloadable.is_empty());
        let well = lacks_nothing && self.agent.mirrors.refusals().all().is_empty();
        let promise = self.promise(&before, well);
        watch(&self.kernel, Some(promise));
        let faults = self.random.chance(50);
        if faults {
            let random = Random::new(self.random.next());
            self.kernel.with(|machine| machine.faults = Faults { random, steps: 20, reads: 10 });
        }
        // Before rules have waited too long for sets that fail again and again.
        self.rounds(5);
        self.kernel.with(|machine| machine.faults = Faults::none());
        watch(&self.kernel, None);
        format!("policies change, with faults: {faults}")
    }

    fn promise(&mut self, before: &RuleSet, well: bool) -> Promise {
        let after = self.agent.plan.rules().clone();
        let mut promise = Promise::default();
        for _ in 0..60 {
            let packet = Packet { from_this_node: false, ..clusters::packet(self.random) };
            match (self.expected(before, &packet), self.expected(&after, &packet)) {
                // What the kernel refuses is put in force in another form a moment after the rest.
                (false, false) if well => promise.never.push(packet),
                (true, true) if well => promise.always.push(packet),
                _ => {}
            }
        }
        promise
    }

    fn restart(&mut self) -> String {
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&self.world);
        self.rounds(2);
        "a restart".to_owned()
    }

    /// What is remembered may be older than the kernel: nothing that exists changes.
    fn restart_with_what_was_remembered(&mut self) -> String {
        let mut remembered = self.world.clone();
        for _ in 0..5 {
            clusters::change(&mut remembered, self.random);
        }
        remembered.host = self.world.host.clone();
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&remembered);
        let before = self.kernel.state();
        self.agent.mirrors.round(self.agent.lowering.desired(), Authority::Remembered, self.moment());
        let after = self.kernel.state();
        let kept = before.rules.iter().all(|(piece, rules)| after.rules.get(piece) == Some(rules))
            && before.sets.iter().all(|(set, spec)| after.sets.get(set) == Some(spec))
            && before.elements.keys().all(|element| after.elements.contains_key(element));
        assert!(kept, "nothing that existed has changed, after {:#?}", self.story);
        self.agent.take_in(&self.world);
        self.rounds(1);
        "a restart with what was remembered".to_owned()
    }

    /// Absence proves nothing: whoever was judged is judged still.
    fn see_only_a_part(&mut self) -> String {
        self.settle();
        let mut part = self.world.clone();
        let gone: Vec<_> = part.cluster.pods.iter().map(|(name, _)| name.clone()).collect();
        for name in gone.iter().filter(|_| self.random.chance(50)) {
            part.cluster.pods.remove(name);
        }
        let gone: Vec<_> = part.cluster.policies.iter().map(|(name, _)| name.clone()).collect();
        for name in gone.iter().filter(|_| self.random.chance(50)) {
            part.cluster.policies.remove(name);
        }
        let before = self.kernel.state();
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&part);
        self.agent.mirrors.round(self.agent.lowering.desired(), Authority::Partial, self.moment());
        let after = self.kernel.state();
        for (piece, rules) in &before.rules {
            let is_dispatch = matches!(piece, Piece::Chain { chain, .. } if chain.starts_with("KUBE-ROUTER-"));
            let jumps = rules.0.iter().filter(|rule| rule.contains(names::POD_CHAINS));
            for jump in jumps.filter(|_| is_dispatch) {
                let now = after.rules.get(piece).expect("a dispatch chain never goes");
                assert!(now.0.contains(jump), "{jump} is gone from {piece}, after {:#?}", self.story);
            }
        }
        self.agent.take_in(&self.world);
        self.rounds(1);
        "only a part is seen".to_owned()
    }

    /// Somebody takes away, or changes, something of ours; an audit finds it.
    fn damage(&mut self) -> String {
        let chance = self.random.next();
        let kernel = self.kernel.clone();
        let told = kernel.with(|machine| {
            let mut random = Random::new(chance);
            let ours = |piece: &Piece| piece.to_string().contains("KUBE-");
            match random.below(3) {
                0 => {
                    let chains = machine.state.rules.keys().filter(|piece| ours(piece));
                    let Some(piece) = random.pick_from(chains.cloned()) else { return "no damage".to_owned() };
                    machine.state.rules.insert(piece.clone(), Rules(Vec::new()));
                    format!("{piece} is flushed")
                }
                1 => {
                    let elements = machine.state.elements.keys().filter(|key| key.set.0.contains("KUBE-"));
                    let Some(key) = random.pick_from(elements.cloned()) else { return "no damage".to_owned() };
                    machine.state.elements.remove(&key);
                    format!("{key} is gone")
                }
                _ => {
                    machine.state.rules.retain(|piece, _| !ours(piece));
                    "all rules are gone".to_owned()
                }
            }
        });
        while !self.agent.mirrors.audit(self.moment()).1 {}
        self.rounds(2);
        told
    }

    /// Some chains can no longer be written, or all can again.
    fn lose_modules(&mut self) -> String {
        let lost: BTreeSet<_> = match self.random.chance(50) {
            true => BTreeSet::new(),
            false => {
                let rules = self.agent.lowering.desired().rules.keys();
                let chains = rules.filter_map(|piece| match piece {
                    Piece::Chain { chain, .. } => Some(chain.clone()),
                    _ => None,
                });
                let fixed = [names::CHAIN_DEFAULT, names::CHAIN_COMMON, names::CHAIN_TAIL];
                let of_one = |chain: &compact_str::CompactString| {
                    !fixed.contains(&chain.as_str()) && !chain.starts_with("KUBE-ROUTER-")
                };
                chains.filter(of_one).filter(|_| self.random.chance(20)).collect()
            }
        };
        let told = format!("lost: {lost:?}");
        self.kernel.with(|machine| machine.unloadable = lost);
        told
    }

    fn rounds(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let at = self.moment();
            self.agent.mirrors.round(self.agent.lowering.desired(), Authority::Complete, at);
            self.now = self.agent.mirrors.retry_at().map_or(self.now, |at| at.max(self.now));
        }
    }

    fn settle(&mut self) {
        for _ in 0..30 {
            self.rounds(1);
            if self.agent.mirrors.is_settled() {
                break;
            }
        }
        let families = self.agent.mirrors.reflections();
        let open = families.map(|family| (family.name(), family.is_settled(), family.trouble().cloned()));
        assert!(self.agent.mirrors.is_settled(), "it settles: {open:?}, after {:#?}", self.story);
        self.check_packets();
    }

    /// The kernel does what the rules mean; where it lacks modules it refuses more.
    fn check_packets(&mut self) {
        let state = self.kernel.state();
        let lacks = !self.agent.mirrors.refusals().all().is_empty();
        for _ in 0..40 {
            let packet = Packet { from_this_node: false, ..clusters::packet(self.random) };
            let expected = self.expected(self.agent.plan.rules(), &packet);
            let found = passes(&state, packet);
            assert!(found == expected || (lacks && expected), "{packet:?}: {found}, after {:#?}", self.story);
        }
    }

    /// What shall become of a packet when all is settled.
    fn expected(&self, rules: &RuleSet, packet: &Packet) -> bool {
        let is_known = |address| rules.local_pods_at(address).next().is_some();
        let is_closed = |address: IpAddr| {
            let in_range = RANGES.iter().any(|range| range.parse::<IpNet>().expect("a range").contains(&address));
            self.config.default_deny && in_range && !is_known(address)
        };
        if let Traffic::Icmp { kind } = packet.traffic
            && icmp::always_pass(Family::from(packet.source)).iter().any(|passing| passing.number == kind)
            && (is_known(packet.source) || is_known(packet.destination))
        {
            return true;
        }
        verdict(rules, packet).passes() && !is_closed(packet.source) && !is_closed(packet.destination)
    }

    fn check_rest(&mut self) {
        let desired = self.agent.lowering.desired().clone();
        let state = self.kernel.state();
        assert_eq!(ours(&state), desired.rules, "after {:#?}", self.story);
        let is_ours = |set: &sluice::kernel::ipset::SetName| set.0.contains("KUBE-") || set.0.contains("kube-");
        let sets: BTreeMap<_, _> = state.sets.into_iter().filter(|(set, _)| is_ours(set)).collect();
        let elements: BTreeMap<_, _> = state.elements.into_iter().filter(|(key, ())| is_ours(&key.set)).collect();
        assert_eq!(sets, desired.sets, "after {:#?}", self.story);
        assert_eq!(elements, desired.elements, "after {:#?}", self.story);
        assert!(self.agent.mirrors.refusals().all().is_empty());
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now, jitter: 0 }
    }
}

/// Looks at every act.
fn watch(kernel: &MemoryKernel, promise: Option<Promise>) {
    let Some(promise) = promise else {
        kernel.with(|machine| machine.observer = None);
        return;
    };
    let last: Rc<RefCell<Option<String>>> = Rc::default();
    let observer = move |state: &State, object: &Object| {
        let told = object.to_string();
        for packet in &promise.never {
            assert!(!passes(state, *packet), "{packet:?} passes after {told}, and {:?} before", last.borrow());
        }
        for packet in &promise.always {
            assert!(passes(state, *packet), "{packet:?} is refused after {told}, and {:?} before", last.borrow());
        }
        *last.borrow_mut() = Some(told);
    };
    kernel.with(|machine| machine.observer = Some(Box::new(observer)));
}

/// Looks at every address that enters the set of local pods while unknown ones are closed: its rules are there.
fn watch_entering(kernel: &MemoryKernel, rules: RuleSet) {
    let mut random = Random::new(1);
    let observer = move |state: &State, object: &Object| {
        let Object::Element(ElementKey { set, entry: Entry::Ip(address) }) = object else { return };
        let family = Family::from(*address);
        let tail = state.rules.get(&dispatch::chain(family, names::CHAIN_TAIL));
        let entered = state.elements.keys().any(|key| key.set == *set && key.entry == Entry::Ip(*address));
        if set != names::local_pods(family) || !entered || !tail.is_some_and(dispatch::closes) {
            return;
        }
        for _ in 0..30 {
            let packet = Packet { from_this_node: false, ..clusters::packet(&mut random) };
            if Family::from(packet.source) != family {
                continue;
            }
            for packet in [Packet { source: *address, ..packet }, Packet { destination: *address, ..packet }] {
                let allowed = verdict(&rules, &packet).passes();
                assert!(allowed || !passes(state, packet), "{packet:?} passes when {address} enters");
            }
        }
    };
    kernel.with(|machine| machine.observer = Some(Box::new(observer)));
}

fn passes(state: &State, packet: Packet) -> bool {
    let rules = ours(state);
    let local = BTreeSet::new();
    let chains = Chains { rules: &rules, elements: &state.elements, local: &local };
    chains.fate("FORWARD", Traced { packet, state: Tracked::New, mark: 0 }).0.passes()
}

fn ours(state: &State) -> BTreeMap<Piece, Rules> {
    let ours = state.rules.iter().filter(|(piece, _)| piece.to_string().contains("KUBE-"));
    ours.map(|(piece, rules)| (piece.clone(), rules.clone())).collect()
}
