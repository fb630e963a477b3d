//! The nftables backend walks at random between worlds, on a table in memory.
//!
//! The table takes a transaction as a whole or not at all, and refuses what the kernel refuses. A walk changes the cluster, lets
//! transactions, each of those of one change, and readings fail, before the act and after it, ends the program at any moment and starts it anew, also with
//! what was remembered and with a part, and damages the table. After every single act what was refused before and shall be
//! refused afterwards is refused, and what may pass before and afterwards passes. When things have settled the table is exactly
//! what is desired, and a restart changes nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sluice::config::FirewallConfig;
use sluice::firewall::backend::Backend;
use sluice::firewall::nftables::Nftables;
use sluice::firewall::nftables::apply::{Kernel, Mirrors, Refusing, Targets};
use sluice::firewall::nftables::desired;
use sluice::firewall::nftables::lowering::Lowering;
use sluice::firewall::nftables::names::{self, ChainKind};
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::{Direction, RuleSet};
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::kernel::nftables::{Chain, Content, Hook, Key, Object, Verdict, transactions};
use sluice::model::{
    Action, Authority, ClusterNetworkPolicy, ClusterRule, Peer, PolicyRule, Selector, Subject, Tier, World,
};
use sluice::net::Protocol;
use sluice::reconcile::{Failure, Glance, Moment, Optional, Phase, Sorted, Step, Target};
use sluice::subsystem::Kinds;

use super::cases::{Case, HERE, pods_in, port, rule};
use super::lowered::{BOTH, config};
use super::support::chains::State;
use super::support::memory::frames::Frames;
use super::support::memory::{self, Memory, MemoryKernel};
use super::support::random::{Random, for_many};
use super::support::tables::{Table, refusal};
use super::{clusters, services};

const STEPS: usize = 50;

/// The contents of a table, as the backend keeps them.
pub type Contents = desired::Table;

/// Which objects are refused.
pub type Refuses = Rc<dyn Fn(&Object, &Content) -> bool>;

/// A table in memory, which outlives the programs that work on it.
#[derive(Clone)]
pub struct Machine(Rc<RefCell<Inside>>);

struct Inside {
    table: Contents,
    random: Random,
    /// How often a transaction or a reading fails, in percent.
    faults: u32,
    /// No transaction is done, whatever is tried.
    is_broken: bool,
    /// The objects that the kernel does not take in this form, and with them no transaction.
    refuses: Option<Refuses>,
    refused: BTreeMap<Object, String>,
    transactions: u64,
    /// Packets that never pass, and packets that always do.
    promise: Promise,
}

#[derive(Clone, Default)]
struct Promise {
    never: Vec<Packet>,
    always: Vec<Packet>,
    /// Packets to Services that never pass input.
    never_to_services: Vec<Packet>,
}

impl Inside {
    fn check(&self) {
        let Promise { never, always, never_to_services } = &self.promise;
        for packet in never {
            assert!(!passes(&self.table, Hook::Forward, packet), "{packet:?} passes");
        }
        for packet in always {
            assert!(passes(&self.table, Hook::Forward, packet), "{packet:?} is refused");
        }
        for packet in never_to_services {
            assert!(!passes(&self.table, Hook::Input, packet), "{packet:?} to a Service passes");
        }
    }
}

fn copied(table: &Contents) -> impl Iterator<Item = (Object, Content)> {
    table.iter().map(|(object, content)| (object.clone(), content.clone()))
}

fn passes(table: &Contents, hook: Hook, packet: &Packet) -> bool {
    let local: BTreeSet<_> = ["192.0.2.11", "2001:db8:2::11"].map(|text| text.parse().expect("an address")).into();
    // Forwarded packets are not of this host, whatever their source.
    let local = if hook == Hook::Forward { BTreeSet::new() } else { local };
    Table { table, local: &local }.passes(hook, packet, State::New)
}

impl Machine {
    /// Has the kernel refuse objects from now on.
    pub fn refuse(&self, refuses: Option<Refuses>) {
        self.0.borrow_mut().refuses = refuses;
    }

    /// Has no transaction be done from now on, or all of them again.
    pub fn breaks(&self, is_broken: bool) {
        self.0.borrow_mut().is_broken = is_broken;
    }

    pub fn contents(&self) -> Contents {
        self.0.borrow().table.clone()
    }

    /// Changes the table behind everybody's back.
    pub fn change<R>(&self, change: impl FnOnce(&mut Contents) -> R) -> R {
        change(&mut self.0.borrow_mut().table)
    }

    /// The number of transactions that were done.
    pub fn transactions(&self) -> u64 {
        self.0.borrow().transactions
    }

    /// Targets of the table, and of what else the firewall keeps on that kernel.
    pub fn targets(&self, others: &MemoryKernel) -> Targets<Tables> {
        let [frames, groups] = Frames::of(others).map(Optional::used);
        Targets { kernel: Tables(others.clone()), settings: Memory::new(others), frames, groups, table: self.clone() }
    }

    pub fn empty(seed: u64) -> Machine {
        let inside = Inside {
            table: Contents::default(),
            random: Random::new(seed),
            faults: 0,
            is_broken: false,
            refuses: None,
            refused: BTreeMap::new(),
            transactions: 0,
            promise: Promise::default(),
        };
        Machine(Rc::new(RefCell::new(inside)))
    }
}

impl Target for Machine {
    type Key = Object;
    type Value = Content;
    type Error = String;

    fn name(&self) -> &'static str {
        "rules"
    }

    fn read(&mut self) -> Result<BTreeMap<Object, Content>, String> {
        let mut inside = self.0.borrow_mut();
        let faults = inside.faults;
        if inside.random.chance(faults) {
            return Err("the table cannot be read".to_owned());
        }
        Ok(copied(&inside.table).collect())
    }

    /// The kernel tells of what others change.
    fn glance(&mut self, seen: &impl Sorted<Object, Content>) -> Glance<Object> {
        match self.0.borrow().table.iter().eq(seen.entries()) {
            true => Glance::Alike,
            false => Glance::Somewhere,
        }
    }

    fn apply(&mut self, _: Phase, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<String>> {
        let inside = &mut *self.0.borrow_mut();
        inside.refused.clear();
        let sets = copied(&inside.table).filter_map(|(object, content)| match (object, content) {
            (Object::Set(name), Content::Set(spec)) => Some((name, Some(spec))),
            _ => None,
        });
        // A change that failed is tried again without other names for chains.
        let turns = transactions(steps, &sets.collect(), inside.faults == 0).expect("elements are of sets");
        let turns: Vec<Vec<usize>> = turns.into_iter().map(|turn| turn.steps).collect();
        for (place, turn) in turns.iter().enumerate() {
            let Err(error) = inside.transact(turn.iter().map(|step| &steps[*step])) else { continue };
            let undone = turns[place..].iter().flatten();
            return undone.map(|step| Failure { step: *step, error: error.to_owned() }).collect();
        }
        Vec::new()
    }
}

impl Inside {
    /// One transaction of a change.
    fn transact<'s>(&mut self, steps: impl Iterator<Item = &'s Step<'s, Object, Content>>) -> Result<(), &'static str> {
        if self.is_broken {
            return Err("it failed");
        }
        let faults = self.faults;
        let (fails, after) = (self.random.chance(faults), self.random.chance(50));
        if fails && !after {
            return Err("it failed");
        }
        let steps: Vec<_> = steps.collect();
        let is_at_fault = |step: &&&Step<'_, Object, Content>| match (&self.refuses, step.want) {
            (Some(refuses), Some(want)) => refuses(step.key, want),
            _ => false,
        };
        let at_fault: Vec<Object> = steps.iter().filter(is_at_fault).map(|step| step.key.clone()).collect();
        if !at_fault.is_empty() {
            self.refused = at_fault.into_iter().map(|key| (key, "this kernel lacks something".to_owned())).collect();
            return Err("refused");
        }
        let mut table = self.table.clone();
        for step in steps {
            match step.want {
                Some(want) => drop(table.insert(step.key.clone(), want.clone())),
                None => drop(table.remove(step.key)),
            }
        }
        assert_eq!(refusal(&table), None, "the kernel takes what is asked of it");
        self.table = table;
        self.transactions += 1;
        self.check();
        if fails { Err("it was done, and nobody heard of it") } else { Ok(()) }
    }
}

impl Refusing for Machine {
    fn take_refused(&mut self) -> BTreeMap<Object, String> {
        std::mem::take(&mut self.0.borrow_mut().refused)
    }
}

/// A kernel with such a table; all else is on the one inside.
pub struct Tables(MemoryKernel);

impl Kernel for Tables {
    type Settings = Memory<memory::Settings>;
    type Frames = Optional<Frames>;
    type Table = Machine;

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.0.with(|machine| machine.abandoned_removed += 1);
        Some(Vec::new())
    }
}

/// One run of the program.
struct Agent {
    plan: Plan,
    lowering: Lowering,
    mirrors: Mirrors<Tables>,
}

struct Walk<'r> {
    random: &'r mut Random,
    machine: Machine,
    settings: MemoryKernel,
    config: Arc<FirewallConfig>,
    world: World,
    agent: Agent,
    now: Instant,
    story: Vec<String>,
}

impl Agent {
    fn start(machine: &Machine, settings: &MemoryKernel, config: &Arc<FirewallConfig>) -> Agent {
        let targets = machine.targets(settings);
        let lowering = Lowering::new(config.clone(), BOTH);
        Agent { plan: Plan::new(), lowering, mirrors: Mirrors::new(targets) }
    }

    fn take_in(&mut self, world: &World) {
        let changed = self.plan.update(world);
        let lowered = self.lowering.update(self.plan.rules(), world, &changed);
        self.mirrors.mark(&lowered);
    }
}

impl<'r> Walk<'r> {
    fn new(random: &'r mut Random) -> Walk<'r> {
        let machine = Machine::empty(random.next());
        let settings = MemoryKernel::new(memory::State::of_others());
        let (config, world) = (config(false), clusters::empty_world());
        let mut agent = Agent::start(&machine, &settings, &config);
        agent.take_in(&world);
        Walk { random, machine, settings, config, world, agent, now: Instant::now(), story: Vec::new() }
    }

    fn table(&self) -> Contents {
        self.machine.0.borrow().table.clone()
    }

    fn with<R>(&self, act: impl FnOnce(&mut Inside) -> R) -> R {
        act(&mut self.machine.0.borrow_mut())
    }

    fn restart(&mut self) {
        self.agent = Agent::start(&self.machine, &self.settings, &self.config);
    }

    fn rounds(&mut self, rounds: usize, authority: Authority) {
        for _ in 0..rounds {
            let at = Moment { now: self.now, jitter: 0 };
            self.agent.mirrors.round(self.agent.lowering.desired(), authority, at);
            let Some(due) = self.agent.mirrors.retry_at() else { continue };
            assert!(due > self.now, "nothing is left for the same moment, after {:#?}", self.story);
            self.now = due;
        }
    }

    fn settle(&mut self) {
        for _ in 0..30 {
            self.rounds(1, Authority::Complete);
            if self.agent.mirrors.is_settled() {
                break;
            }
        }
        assert!(self.agent.mirrors.is_settled(), "it settles, after {:#?}", self.story);
        assert_eq!(self.table(), self.agent.lowering.desired().table, "after {:#?}", self.story);
        let rules = self.agent.plan.rules().clone();
        for _ in 0..20 {
            let packet = self.packet();
            let passes = passes(&self.table(), Hook::Forward, &packet);
            assert_eq!(passes, verdict(&rules, &packet).passes(), "{packet:?}, after {:#?}", self.story);
        }
    }

    fn packet(&mut self) -> Packet {
        Packet { from_this_node: false, ..clusters::packet(self.random) }
    }

    fn change(&mut self, count: usize) -> String {
        let host = self.world.host.clone();
        let told: Vec<String> = (0..count).map(|_| clusters::change(&mut self.world, self.random)).collect();
        // The name of a running host does not change.
        self.world.host = host;
        told.join("; ")
    }

    /// Packets that both rule sets refuse, and packets that both accept.
    fn promise(&mut self, before: &RuleSet, after: &RuleSet) -> Promise {
        let mut promise = Promise::default();
        for _ in 0..60 {
            let packet = self.packet();
            match (verdict(before, &packet).passes(), verdict(after, &packet).passes()) {
                (false, false) => promise.never.push(packet),
                (true, true) => promise.always.push(packet),
                _ => {}
            }
        }
        promise
    }

    /// Anything changes at once, with failures, and the program may end at any moment.
    fn change_anything(&mut self) -> String {
        self.settle();
        let (before, older) = (self.agent.plan.rules().clone(), self.world.clone());
        let count = *self.random.pick(&[1, 1, 8]);
        let told = self.change(count);
        if self.random.chance(30) {
            self.restart();
        }
        self.agent.take_in(&self.world);
        let after = self.agent.plan.rules().clone();
        let promise = self.promise(&before, &after);
        let (addresses, world) = (clusters::addresses(), self.world.clone());
        let packets: Vec<Packet> = (0..100).map(|_| services::packet(self.random, &world, &addresses)).collect();
        let is_refused = |packet: &Packet| [&older, &world].iter().all(|world| services::is_refused(world, packet));
        let never_to_services = packets.into_iter().filter(is_refused).collect();
        let refuses = self.random.chance(20).then(|| {
            let objects = copied(&self.agent.lowering.desired().table);
            self.random.pick_from(objects)
        });
        let refuses = refuses.flatten();
        self.with(|inside| {
            // What the kernel refuses closes paths.
            let always = if refuses.is_some() { Vec::new() } else { promise.always };
            inside.promise = Promise { never_to_services, always, ..promise };
            inside.faults = 30;
            inside.refuses = refuses.map(only);
        });
        self.rounds(4, Authority::Complete);
        self.with(|inside| {
            inside.promise = Promise::default();
            inside.faults = 0;
            inside.refuses = None;
        });
        self.now += Duration::from_secs(60);
        told
    }

    /// A remembered cluster may be older than the kernel: nothing changes.
    fn restart_with_what_was_remembered(&mut self) -> String {
        let remembered = self.world.clone();
        self.change(5);
        self.restart();
        self.agent.take_in(&self.world);
        let before = self.table();
        let has_base = before.values().any(|content| matches!(content, Content::Chain(chain) if chain.base.is_some()));
        self.rounds(2, Authority::Remembered);
        assert!(!has_base || self.table() == before, "after {:#?}", self.story);
        self.world = remembered;
        self.agent.take_in(&self.world);
        "a restart with what was remembered".to_owned()
    }

    /// Absence proves nothing: what is refused stays refused where only a part is known.
    fn see_only_a_part(&mut self) -> String {
        self.settle();
        let before = self.agent.plan.rules().clone();
        let mut part = self.world.clone();
        let policies: Vec<_> = part.cluster.policies.iter().map(|(name, _)| name.clone()).collect();
        let tiers: Vec<_> = part.cluster.cluster_policies.iter().map(|(name, _)| name.clone()).collect();
        let pods: Vec<_> = part.cluster.pods.iter().map(|(name, _)| name.clone()).collect();
        for name in policies.iter().filter(|_| self.random.chance(50)) {
            part.cluster.policies.remove(name);
        }
        for name in tiers.iter().filter(|_| self.random.chance(50)) {
            part.cluster.cluster_policies.remove(name);
        }
        let never = (0..100).map(|_| self.packet()).filter(|packet| !verdict(&before, packet).passes()).collect();
        self.with(|inside| inside.promise.never = never);
        self.restart();
        self.agent.take_in(&part);
        self.rounds(3, Authority::Partial);
        self.with(|inside| inside.promise = Promise::default());
        for name in pods.iter().filter(|_| self.random.chance(30)) {
            part.cluster.pods.remove(name);
        }
        let judged = |table: &Contents| -> BTreeSet<Object> {
            let is_judged = |set: &str| {
                let maps = ["egress4", "egress6", "ingress4", "ingress6"];
                maps.contains(&set.strip_prefix("admin_").unwrap_or(set))
            };
            table
                .keys()
                .filter(|object| matches!(object, Object::Element(set, _) if is_judged(set.as_str())))
                .cloned()
                .collect()
        };
        let before = judged(&self.table());
        self.restart();
        self.agent.take_in(&part);
        self.rounds(3, Authority::Partial);
        let after = judged(&self.table());
        assert!(before.is_subset(&after), "who was judged is judged, after {:#?}", self.story);
        self.agent.take_in(&self.world);
        "only a part is seen".to_owned()
    }

    /// Somebody takes away, or changes, something of ours; an audit finds it.
    fn damage(&mut self) -> String {
        let mut table = self.table();
        let told = match self.random.below(3) {
            0 => {
                table = Contents::default();
                "the table is gone".to_owned()
            }
            1 => {
                let elements = table.keys().filter(|object| matches!(object, Object::Element(..))).cloned();
                let Some(element) = self.random.pick_from(elements) else { return "no damage".to_owned() };
                table.remove(&element);
                format!("{element} is gone")
            }
            _ => {
                let chains = table.keys().filter(|object| matches!(object, Object::Chain(_))).cloned();
                let Some(chain) = self.random.pick_from(chains) else { return "no damage".to_owned() };
                if let Some(Content::Chain(found)) = table.get(&chain) {
                    let empty = Chain { base: found.base, rules: Vec::new() };
                    table.insert(chain.clone(), Content::Chain(Arc::new(empty)));
                }
                format!("{chain} is flushed")
            }
        };
        self.with(|inside| inside.table = table);
        let at = Moment { now: self.now, jitter: 0 };
        while !self.agent.mirrors.audit_portion(at).1 {}
        told
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            let told = match self.random.below(10) {
                0..=5 => self.change_anything(),
                6 => {
                    self.restart();
                    self.agent.take_in(&self.world);
                    "a restart".to_owned()
                }
                7 => self.restart_with_what_was_remembered(),
                8 => self.see_only_a_part(),
                _ => self.damage(),
            };
            self.story.push(told);
        }
        self.settle();
        let transactions = self.with(|inside| inside.transactions);
        self.restart();
        self.agent.take_in(&self.world);
        self.settle();
        assert_eq!(self.with(|inside| inside.transactions), transactions, "a restart writes nothing");
    }
}

#[test]
fn whatever_happens_nothing_opens_and_in_the_end_the_table_is_as_desired() {
    for_many(12, |random| Walk::new(random).run());
}

#[test]
fn walks_that_failed_once_do_so_no_more() {
    // What a policy of the Admin tier that was not known had passed on was accepted by another one.
    Walk::new(&mut Random::new(1795387364085876108)).run();
}

/// Refuses this object in this form.
fn only((object, content): (Object, Content)) -> Refuses {
    Rc::new(move |key, want| *key == object && *want == content)
}

/// Whether all packets meet an object: nothing can take its place.
fn is_of_all(object: &Object, content: &Content) -> bool {
    let of_all = ["icmp4", "icmp6", "link_local", "to_many"];
    match (object, content) {
        (_, Content::Chain(chain)) if chain.base.is_some() => true,
        (Object::Chain(name) | Object::Counter(name), _) => of_all.contains(&name.as_str()),
        (Object::Set(name), _) => names::is_of_base(name),
        (Object::Element(..), _) => false,
    }
}

/// Pods whose policies need what the kernel refuses are closed, and all others are judged exactly.
#[test]
fn what_the_kernel_refuses_closes_what_reaches_it_and_nothing_else() {
    let (exact, closed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    for_many(60, |random| {
        let mut walk = Walk::new(random);
        walk.change(60);
        walk.agent.take_in(&walk.world);
        walk.settle();
        let before = walk.table();
        walk.change(20);
        walk.agent.take_in(&walk.world);
        let desired = walk.agent.lowering.desired().table.clone();
        let new = desired.iter().filter(|(object, content)| before.get(*object) != Some(*content));
        let new: Vec<_> = new.map(|(object, content)| (object.clone(), content.clone())).collect();
        let Some(refused) = walk.random.pick_from(new.into_iter()) else { return };
        walk.with(|inside| inside.refuses = Some(only(refused.clone())));
        walk.rounds(1, Authority::Complete);
        let (table, rules) = (walk.table(), walk.agent.plan.rules().clone());
        assert_ne!(walk.agent.mirrors.refused().objects().len(), 0);
        if is_of_all(&refused.0, &refused.1) {
            // What is new and nothing leads to may be there.
            let is_as_before = |(object, content): (&Object, &Content)| table.get(object) == Some(content);
            assert!(before.iter().all(is_as_before), "{refused:?}");
            for _ in 0..200 {
                let packet = walk.packet();
                let both = [&before, &table].map(|table| passes(table, Hook::Forward, &packet));
                assert_eq!(both[0], both[1], "{packet:?} without {refused:?}");
            }
        } else {
            for _ in 0..200 {
                let packet = walk.packet();
                let (passes, allowed) = (passes(&table, Hook::Forward, &packet), verdict(&rules, &packet).passes());
                assert!(allowed || !passes, "{packet:?} passes without {refused:?}");
                if is_judged_as(&desired, &table, &packet) {
                    assert_eq!(passes, allowed, "{packet:?} without {refused:?}");
                    exact.fetch_add(1, Ordering::Relaxed);
                } else {
                    closed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        walk.with(|inside| inside.refuses = None);
        walk.now += Duration::from_secs(60);
        walk.settle();
        assert_eq!(walk.agent.mirrors.refused().objects().len(), 0);
    });
    let (exact, closed) = (exact.into_inner(), closed.into_inner());
    assert!(exact + closed < 5000 || closed > 50 && exact > 3000, "{closed} of {exact} are closed");
}

/// Whether the chains that judge a packet are those that are desired.
fn is_judged_as(desired: &Contents, table: &Contents, packet: &Packet) -> bool {
    let led_to = |table: &Contents, map, address| {
        let verdict = table.get(&Object::Element(map, Key::Address(address))).cloned();
        let chain = match &verdict {
            Some(Content::Verdict(verdict)) => match &**verdict {
                Verdict::Jump(to) => table.get(&Object::Chain(to.clone())).cloned(),
                _ => None,
            },
            _ => None,
        };
        (verdict, chain)
    };
    let chain = |table: &Contents, (direction, address): (Direction, std::net::IpAddr)| {
        let family = sluice::net::Family::from(address);
        [names::admin(direction, family), names::isolated(direction, family)].map(|map| led_to(table, map, address))
    };
    let ends = [(Direction::Egress, packet.source), (Direction::Ingress, packet.destination)];
    // What a pod sends to itself passes by an element of its own.
    packet.source != packet.destination && ends.into_iter().all(|end| chain(desired, end) == chain(table, end))
}

/// A rule of a tier that is left out alone would open what it denies, or what it passes on to be refused.
#[test]
fn whatever_of_a_tier_the_kernel_refuses_closes_its_pods_and_no_others() {
    let object = |object: &Object| match object {
        Object::Chain(name) | Object::Counter(name) | Object::Set(name) | Object::Element(name, _) => name.clone(),
    };
    for (tier, head) in [(Tier::Admin, "admin_in_"), (Tier::Baseline, "baseline_in_")] {
        let case = Case::new().namespace("shop", "").pod("shop/a", HERE, ["10.244.0.1", "app=a", ""]);
        let case = case.pod("shop/free", HERE, ["10.244.0.2", "app=free", ""]);
        let mut world = case.pod("shop/other", HERE, ["10.244.0.3", "app=other", ""]).0;
        let rules = [
            (Action::Pass, "app=free", "tcp/81"),
            (Action::Deny, "app=other", "tcp/80"),
            (Action::Accept, "", "tcp/80"),
        ];
        let rules = rules.map(|(action, peers, ports)| ClusterRule {
            name: "".into(),
            action,
            matches: rule(&[pods_in("", peers)], &[port(ports)]),
        });
        let Peer::Pods { pods, .. } = pods_in("", "app=a") else { panic!("pods") };
        let subject = Subject { namespaces: Selector::everything(), pods };
        let policy = ClusterNetworkPolicy { tier, priority: 1, subject, ingress: rules.into(), egress: [].into() };
        world.cluster.cluster_policies.insert("guard".into(), policy);
        let of = |from: &str, to: &str| {
            let [source, destination] = [from, to].map(|text| text.parse().expect("an address"));
            let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
            Packet { source, destination, traffic, from_this_node: false }
        };
        let (denied, accepted) = (of("10.244.0.3", "10.244.0.1"), of("10.244.0.2", "10.244.0.1"));
        let other = of("10.244.0.1", "10.244.0.2");
        let start = || {
            let mut agent =
                Agent::start(&Machine::empty(1), &MemoryKernel::new(memory::State::of_others()), &config(false));
            agent.take_in(&world);
            agent.lowering.desired().table.clone()
        };
        let of_tier = |name: &str| {
            name.starts_with(head)
                || ["denied_", "pods_of_namespaces_", "from_"].iter().any(|one| name.starts_with(one))
        };
        let refused: Vec<_> = copied(&start()).filter(|(one, _)| of_tier(object(one).as_str())).collect();
        assert!(refused.len() > 8, "{refused:?}");
        for one in refused {
            let mut random = Random::new(1);
            let mut walk = Walk::new(&mut random);
            walk.settle();
            walk.world = world.clone();
            walk.agent.take_in(&walk.world);
            walk.with(|inside| inside.refuses = Some(only(one.clone())));
            walk.rounds(2, Authority::Complete);
            let table = walk.table();
            let passed = [denied, accepted, other].map(|packet| passes(&table, Hook::Forward, &packet));
            assert_eq!(passed, [false, false, true], "without {one:?}");
            walk.with(|inside| inside.refuses = None);
            walk.now += Duration::from_secs(60);
            walk.settle();
            let table = walk.table();
            let passed = [denied, accepted, other].map(|packet| passes(&table, Hook::Forward, &packet));
            assert_eq!(passed, [false, true, true]);
        }
    }
}

/// The substitute of a chain may need a feature that the kernel lacks too.
#[test]
fn a_kernel_that_cannot_reject_drops() {
    for_many(20, |random| {
        let mut walk = Walk::new(random);
        let rejects = |content: &Content| match content {
            Content::Chain(chain) => {
                chain.base.is_none() && chain.rules.iter().any(|rule| rule.verdict() == Some(&Verdict::Reject))
            }
            _ => false,
        };
        walk.with(|inside| inside.refuses = Some(Rc::new(move |_, content| rejects(content))));
        walk.change(60);
        walk.agent.take_in(&walk.world);
        walk.rounds(2, Authority::Complete);
        assert!(walk.agent.mirrors.is_settled(), "what takes its place is in force");
        let rules = walk.agent.plan.rules().clone();
        for _ in 0..200 {
            let packet = walk.packet();
            let passes = passes(&walk.table(), Hook::Forward, &packet);
            assert!(verdict(&rules, &packet).passes() || !passes, "{packet:?} passes");
        }
        walk.with(|inside| inside.refuses = None);
        walk.now += Duration::from_secs(60);
        walk.settle();
    });
}

fn is_kept_chain(object: &Object) -> bool {
    matches!(object, Object::Chain(name) if names::kind(name) == Some(ChainKind::Kept))
}

/// Objects kept for policies that cannot be read may need something that the kernel refuses, as desired ones may.
#[test]
fn what_the_kernel_refuses_of_kept_denials_closes_their_pods_until_it_is_taken() {
    for (tier, addresses) in [
        (Tier::Admin, ["10.244.0.1", "10.244.0.2", "10.244.0.3"]),
        (Tier::Baseline, ["fd00:10:244::1", "fd00:10:244::2", "fd00:10:244::3"]),
    ] {
        let mut case = Case::new().namespace("shop", "");
        for (name, address) in ["a", "web", "other"].into_iter().zip(addresses) {
            case = case.pod(&format!("shop/{name}"), HERE, [address, &format!("app={name}"), ""]);
        }
        let policy = |priority, from: &str| {
            let deny = rule(&[pods_in("", from)], &[]);
            let deny = ClusterRule { name: "".into(), action: Action::Deny, matches: deny };
            let Peer::Pods { pods, .. } = pods_in("", "app=a") else { panic!("pods") };
            let subject = Subject { namespaces: Selector::everything(), pods };
            ClusterNetworkPolicy { tier, priority, subject, ingress: [deny].into(), egress: [].into() }
        };
        let mut complete = case.0;
        complete.cluster.cluster_policies.insert("guard".into(), policy(1, "app=web"));
        let mut lost = complete.clone();
        lost.cluster.cluster_policies.remove(&"guard".into());
        lost.cluster.cluster_policies.insert("more".into(), policy(2, "app=other"));
        lost.unread = sluice::model::UnreadPolicies::Named(Arc::new(["guard".into()].into()));
        let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
        let of = |from: &str, to: &str| {
            let [source, destination] = [from, to].map(|text| text.parse().expect("an address"));
            Packet { source, destination, traffic, from_this_node: false }
        };
        let [a, web, other] = addresses;
        let (denied, more, free) = (of(web, a), of(other, a), of(other, web));
        let start = |random: &mut Random, refuses: Option<(Object, Content)>| {
            let mut walk = Walk::new(random);
            walk.world = complete.clone();
            walk.agent.take_in(&walk.world);
            walk.settle();
            walk.with(|inside| inside.promise.never = vec![denied]);
            walk.restart();
            walk.world = lost.clone();
            walk.agent.take_in(&walk.world);
            walk.with(|inside| inside.refuses = refuses.map(only));
            walk.rounds(3, Authority::Complete);
            let table = walk.table();
            // A start while it is refused knows nothing of what was closed.
            walk.restart();
            walk.agent.take_in(&walk.world);
            walk.rounds(1, Authority::Complete);
            walk.restart();
            walk.agent.take_in(&walk.world);
            walk.with(|inside| inside.refuses = None);
            walk.now += Duration::from_secs(60);
            walk.rounds(3, Authority::Complete);
            walk.with(|inside| inside.promise = Promise::default());
            walk.world.unread = sluice::model::UnreadPolicies::None;
            walk.agent.take_in(&walk.world);
            walk.settle();
            table
        };
        let before = start(&mut Random::new(1), None);
        assert!(before.keys().any(is_kept_chain));
        let passed = |table: &Contents| [denied, more, free].map(|packet| passes(table, Hook::Forward, &packet));
        assert_eq!(passed(&before), [false, false, true]);
        let of_policies = |object: &Object| {
            let (Object::Chain(name) | Object::Counter(name) | Object::Set(name) | Object::Element(name, _)) = object;
            let heads = ["kept_", "denied_", "from_", "admin_in_", "baseline_in_", "pods_of_namespaces_"];
            heads.iter().any(|head| name.as_str().starts_with(head))
        };
        let refused: Vec<_> = copied(&before).filter(|(object, _)| of_policies(object)).collect();
        assert!(refused.len() > 5, "{refused:?}");
        for one in refused {
            let table = start(&mut Random::new(1), Some(one.clone()));
            assert_eq!(passed(&table), [false, false, true], "without {one:?}");
        }
    }
}

/// A world in which a ClusterNetworkPolicy denies `shop/a` everything from `shop/web`, at the first two addresses of this family.
fn guarded(tier: Tier, addresses: [&str; 3]) -> World {
    let mut case = Case::new().namespace("shop", "");
    for (name, address) in ["a", "web"].into_iter().zip(addresses) {
        case = case.pod(&format!("shop/{name}"), HERE, [address, &format!("app={name}"), ""]);
    }
    let deny = ClusterRule { name: "".into(), action: Action::Deny, matches: rule(&[pods_in("", "app=web")], &[]) };
    let Peer::Pods { pods, .. } = pods_in("", "app=a") else { panic!("pods") };
    let subject = Subject { namespaces: Selector::everything(), pods };
    let policy = ClusterNetworkPolicy { tier, priority: 1, subject, ingress: [deny].into(), egress: [].into() };
    case.0.cluster.cluster_policies.insert("guard".into(), policy);
    case.0
}

const OF_EACH_FAMILY: [[&str; 3]; 2] =
    [["10.244.0.1", "10.244.0.2", "10.244.0.3"], ["fd00:10:244::1", "fd00:10:244::2", "fd00:10:244::3"]];

fn from_to(from: &str, to: &str) -> Packet {
    let [source, destination] = [from, to].map(|text| text.parse().expect("an address"));
    let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
    Packet { source, destination, traffic, from_this_node: false }
}

/// Brings about that `guard` cannot be read after a restart.
fn lose_guard(walk: &mut Walk<'_>, complete: &World) {
    walk.world = complete.clone();
    walk.agent.take_in(&walk.world);
    walk.settle();
    walk.restart();
    walk.world.cluster.cluster_policies.remove(&"guard".into());
    walk.world.unread = sluice::model::UnreadPolicies::Named(Arc::new(["guard".into()].into()));
    walk.agent.take_in(&walk.world);
    walk.rounds(2, Authority::Complete);
}

/// Runs rounds as long as something is known to be undone.
fn rounds_with_work(walk: &mut Walk<'_>) {
    for _ in 0..5 {
        if walk.agent.mirrors.has_work(walk.now) {
            walk.rounds(1, Authority::Complete);
        }
    }
}

#[test]
fn what_is_kept_for_a_policy_that_cannot_be_read_goes_when_the_policy_does() {
    for (tier, addresses) in [Tier::Admin, Tier::Baseline].into_iter().zip(OF_EACH_FAMILY) {
        let mut random = Random::new(1);
        let mut walk = Walk::new(&mut random);
        lose_guard(&mut walk, &guarded(tier, addresses));
        let denied = from_to(addresses[1], addresses[0]);
        assert!(!passes(&walk.table(), Hook::Forward, &denied));
        walk.world.unread = sluice::model::UnreadPolicies::None;
        walk.agent.take_in(&walk.world);
        rounds_with_work(&mut walk);
        assert!(passes(&walk.table(), Hook::Forward, &denied));
        assert_eq!(walk.table(), walk.agent.lowering.desired().table);
    }
}

#[test]
fn what_a_policy_that_cannot_be_read_denied_does_not_follow_the_address_to_another_pod() {
    for (tier, addresses) in [Tier::Admin, Tier::Baseline].into_iter().zip(OF_EACH_FAMILY) {
        for (at_once, fails) in [(true, false), (false, false), (false, true)] {
            let mut random = Random::new(1);
            let mut walk = Walk::new(&mut random);
            lose_guard(&mut walk, &guarded(tier, addresses));
            let denied = from_to(addresses[1], addresses[0]);
            assert!(!passes(&walk.table(), Hook::Forward, &denied));
            walk.world.cluster.pods.remove(&sluice::model::ObjectName::new("shop", "a"));
            if !at_once {
                walk.agent.take_in(&walk.world);
                walk.with(|inside| inside.faults = if fails { 100 } else { 0 });
                rounds_with_work(&mut walk);
                walk.with(|inside| inside.faults = 0);
            }
            walk.world = Case(walk.world.clone()).pod("shop/next", HERE, [addresses[0], "app=next", ""]).0;
            walk.agent.take_in(&walk.world);
            rounds_with_work(&mut walk);
            assert!(passes(&walk.table(), Hook::Forward, &denied), "{tier:?} at once: {at_once}");
        }
    }
}

#[test]
fn a_change_of_many_objects_is_one_transaction_and_two_beside_it_at_most() {
    let mut random = Random::new(1);
    let mut walk = Walk::new(&mut random);
    walk.settle();
    for _ in 0..10 {
        walk.change(8);
        walk.agent.take_in(&walk.world);
        let before = walk.with(|inside| inside.transactions);
        walk.rounds(1, Authority::Complete);
        // One more where addresses pass from one map to another.
        assert!(walk.with(|inside| inside.transactions) <= before + 4);
        walk.settle();
    }
}

/// Policies are often known before Services, and Services may stay unknown or known in part.
#[test]
fn a_start_before_services_are_known_opens_none_that_was_refused() {
    for authority in [Authority::Nothing, Authority::Remembered, Authority::Partial] {
        let mut random = Random::new(1);
        let mut walk = Walk::new(&mut random);
        let case = Case::new().namespace("shop", "").pod("shop/shut", HERE, ["10.244.0.1", "app=shut", ""]);
        let mut complete = case.policy("shop/out", "app=shut", [None, Some(&[])]).0;
        services::put(&mut complete, "shop/api", ("10.96.0.1", 443), &["192.0.2.11:6443", "192.0.2.12:6443"]);
        walk.world = complete.clone();
        walk.agent.take_in(&walk.world);
        walk.settle();
        let [source, destination] = ["10.244.0.1", "10.96.0.1"].map(|text| text.parse().expect("an address"));
        let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 443 };
        let shut = Packet { source, destination, traffic, from_this_node: false };
        walk.with(|inside| inside.promise.never_to_services = vec![shut]);
        walk.restart();
        let mut unknown = complete.clone();
        unknown.authority.proxy = authority;
        let name = sluice::model::ObjectName::new("shop", "api");
        unknown.cluster.services.remove(&name);
        unknown.cluster.endpoints.remove(&name);
        walk.agent.take_in(&unknown);
        walk.rounds(3, Authority::Complete);
        assert!(!passes(&walk.table(), Hook::Input, &shut));
        walk.agent.take_in(&complete);
        walk.settle();
        walk.with(|inside| inside.promise = Promise::default());
        // A pod that is isolated no longer keeps nothing, known or not.
        unknown.cluster.policies = Default::default();
        walk.agent.take_in(&unknown);
        walk.rounds(3, Authority::Complete);
        assert!(passes(&walk.table(), Hook::Input, &shut));
    }
}

/// All pods of an address have to allow a packet; the policies of one of them may only not be known.
#[test]
fn an_address_that_pods_share_stays_refused_by_the_one_whose_policy_is_not_known() {
    for address in ["10.244.0.1", "fd00:10:244::1"] {
        let mut random = Random::new(1);
        let mut walk = Walk::new(&mut random);
        let mut case = Case::new().namespace("shop", "");
        for (name, label) in [("shop/a", "app=a"), ("shop/b", "app=b"), ("shop/c", "app=c")] {
            case = case.pod(name, HERE, [address, label, ""]);
        }
        let (all, none) = ([rule(&[], &[])], []);
        let case = case.policy("shop/a", "app=a", [Some(&all), None]).policy("shop/b", "app=b", [Some(&all), None]);
        walk.world = case.policy("shop/c", "app=c", [Some(&none), None]).0;
        walk.agent.take_in(&walk.world);
        walk.settle();
        let destination = address.parse().expect("an address");
        let source = if address.contains(':') { "2001:db8::9" } else { "203.0.113.9" }.parse().expect("an address");
        let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
        walk.with(|inside| {
            inside.promise.never = vec![Packet { source, destination, traffic, from_this_node: false }];
            inside.check();
        });
        let mut part = walk.world.clone();
        part.cluster.policies.remove(&sluice::model::ObjectName::new("shop", "c"));
        for _ in 0..2 {
            walk.restart();
            walk.agent.take_in(&part);
            walk.rounds(2, Authority::Partial);
            walk.with(|inside| inside.check());
        }
        walk.with(|inside| inside.promise = Promise::default());
        walk.settle();
    }
}

/// Rules of NetworkPolicies for what a pod gets: none, everything, nothing, and from one pod alone.
fn permissions() -> [Option<Vec<PolicyRule>>; 4] {
    [None, Some(vec![rule(&[], &[])]), Some(Vec::new()), Some(vec![rule(&[pods_in("", "app=other")], &[])])]
}

/// `shop/a`, and where `shares` is set also `shop/b`, at one address of each family; `guard` decides about packets from `shop/web` to the pods with `subject`,
/// and behind it another policy accepts everything, if it is to.
fn shared_shop(shares: bool, subject: &str, action: Action, accepts: bool, allowed: [&[PolicyRule]; 2]) -> Case {
    let mut case = Case::new().namespace("shop", "");
    for (name, last) in [("web", 2), ("other", 3)] {
        case = case.pod(&format!("shop/{name}"), HERE, [&addresses(last), &format!("app={name}"), ""]);
    }
    case = case.pod("shop/a", HERE, [&addresses(1), "app=a", ""]);
    if shares {
        case = case.pod("shop/b", HERE, [&addresses(1), "app=b", ""]);
    }
    for (name, rules) in ["a", "b"].into_iter().zip(allowed) {
        case = case.policy(&format!("shop/{name}"), &format!("app={name}"), [Some(rules), None]);
    }
    let policy = |priority, of: &str, action, from: &str| {
        let one = ClusterRule { name: "".into(), action, matches: rule(&[pods_in("", from)], &[]) };
        let Peer::Pods { pods, .. } = pods_in("", of) else { panic!("pods") };
        let subject = Subject { namespaces: Selector::everything(), pods };
        ClusterNetworkPolicy { tier: Tier::Admin, priority, subject, ingress: [one].into(), egress: [].into() }
    };
    case.0.cluster.cluster_policies.insert("guard".into(), policy(1, subject, action, "app=web"));
    if accepts {
        case.0.cluster.cluster_policies.insert("more".into(), policy(2, "", Action::Accept, ""));
    }
    case
}

fn addresses(last: u8) -> String {
    format!("10.244.0.{last} fd00:10:244::{last}")
}

/// Each pod of an address has to allow a packet, also while a policy cannot be read, whether pods came to share the address before that or since.
#[test]
fn what_pods_of_one_address_are_refused_stays_refused_when_a_policy_cannot_be_read() {
    let mut refused = 0;
    for action in [Action::Pass, Action::Deny] {
        for (subject, accepts) in ["app=a", "app=b", ""].into_iter().flat_map(|of| [(of, false), (of, true)]) {
            for (of_a, of_b) in permissions().iter().flat_map(|of_a| permissions().map(|of_b| (of_a.clone(), of_b))) {
                for shares in [[false, true, false], [true, true, false], [true, false, true]] {
                    let worlds = shares.map(|shares| {
                        let none = Vec::new();
                        let allowed = [&of_a, &of_b].map(|rules| &**rules.as_ref().unwrap_or(&none));
                        let mut case = shared_shop(shares, subject, action, accepts, allowed);
                        for (name, rules) in [("a", &of_a), ("b", &of_b)] {
                            if rules.is_none() {
                                case.0.cluster.policies.remove(&sluice::model::ObjectName::new("shop", name));
                            }
                        }
                        case
                    });
                    let told = format!("{action:?} for {subject:?}, shared: {shares:?}, {accepts}, {of_a:?}, {of_b:?}");
                    refused += stays_refused(worlds, told);
                }
            }
        }
    }
    assert!(refused > 1000, "{refused} packets");
}

/// Runs through worlds, from the second one on without `guard`, which cannot be read. What each of them refuses by all policies never passes from there on. Returns
/// of how many packets that was asked.
fn stays_refused(worlds: [Case; 3], told: String) -> usize {
    let mut random = Random::new(1);
    let mut walk = Walk::new(&mut random);
    walk.story.push(told);
    let packets = [("10.244.0.2", "10.244.0.1"), ("fd00:10:244::2", "fd00:10:244::1"), ("10.244.0.3", "10.244.0.1")];
    let mut never = packets.map(|(from, to)| from_to(from, to)).to_vec();
    let mut asked = 0;
    for (place, case) in worlds.into_iter().enumerate() {
        let rules = case.rules();
        never.retain(|packet| !verdict(&rules, packet).passes());
        walk.world = case.0;
        if place == 0 {
            walk.agent.take_in(&walk.world);
            walk.settle();
            walk.restart();
            continue;
        }
        walk.world.cluster.cluster_policies.remove(&"guard".into());
        walk.world.unread = sluice::model::UnreadPolicies::Named(Arc::new(["guard".into()].into()));
        walk.agent.take_in(&walk.world);
        for _ in 0..2 {
            walk.rounds(3, Authority::Complete);
            let table = walk.table();
            for packet in &never {
                assert!(!passes(&table, Hook::Forward, packet), "{packet:?} passes in {place}: {:#?}", walk.story);
            }
            let transactions = walk.with(|inside| inside.transactions);
            walk.rounds(2, Authority::Complete);
            assert_eq!(walk.with(|inside| inside.transactions), transactions, "in {place}: {:#?}", walk.story);
            walk.restart();
            walk.agent.take_in(&walk.world);
        }
        asked += never.len();
    }
    asked
}

/// Packets that a tier denies stay denied while one of its policies may only not be known, and so does what NetworkPolicies refuse that a
/// Baseline tier would accept.
#[test]
fn what_a_tier_denies_stays_denied_where_its_policy_is_not_known() {
    for (tier, address) in [(Tier::Admin, "10.244.0.1"), (Tier::Baseline, "fd00:10:244::1")] {
        let mut random = Random::new(1);
        let mut walk = Walk::new(&mut random);
        let case = Case::new().namespace("shop", "").pod("shop/a", HERE, [address, "app=a", ""]);
        let case = case.pod(
            "shop/shut",
            HERE,
            [if tier == Tier::Admin { "10.244.0.2" } else { "fd00:10:244::2" }, "app=shut", ""],
        );
        let mut complete = case.policy("shop/shut", "app=shut", [Some(&[]), None]).0;
        let policy = |action, priority, pods: &str| {
            let all = ClusterRule { name: "".into(), action, matches: rule(&[pods_in("", "")], &[]) };
            let deny_all = ClusterRule { name: "".into(), action, matches: rule(&[], &[]) };
            let Peer::Pods { pods, .. } = pods_in("", pods) else { panic!("pods") };
            let rule = if action == Action::Deny { deny_all } else { all };
            let subject = Subject { namespaces: Selector::everything(), pods };
            ClusterNetworkPolicy { tier, priority, subject, ingress: [rule].into(), egress: [].into() }
        };
        complete.cluster.cluster_policies.insert("deny".into(), policy(Action::Deny, 1, "app=a"));
        complete.cluster.cluster_policies.insert("accept".into(), policy(Action::Accept, 2, "app=a"));
        if tier == Tier::Baseline {
            complete.cluster.cluster_policies.insert("also".into(), policy(Action::Accept, 3, "app=shut"));
        }
        walk.world = complete.clone();
        walk.agent.take_in(&walk.world);
        walk.settle();
        let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
        let of = |from: &str, to: &str| {
            let [source, destination] = [from, to].map(|text| text.parse().expect("an address"));
            Packet { source, destination, traffic, from_this_node: false }
        };
        let (a, shut) = match tier {
            Tier::Admin => (of("10.244.0.2", "10.244.0.1"), of("10.244.0.1", "10.244.0.2")),
            Tier::Baseline => (of("fd00:10:244::2", "fd00:10:244::1"), of("fd00:10:244::1", "fd00:10:244::2")),
        };
        walk.with(|inside| {
            inside.promise.never = vec![a, shut];
            inside.check();
        });
        let mut part = complete;
        part.cluster.cluster_policies.remove(&"deny".into());
        part.cluster.policies.remove(&sluice::model::ObjectName::new("shop", "shut"));
        for _ in 0..2 {
            walk.restart();
            walk.agent.take_in(&part);
            walk.rounds(2, Authority::Partial);
            walk.with(|inside| inside.check());
        }
        walk.with(|inside| inside.promise = Promise::default());
        walk.agent.take_in(&part);
        walk.settle();
        assert!(passes(&walk.table(), Hook::Forward, &a) && passes(&walk.table(), Hook::Forward, &shut));
    }
}

/// Counters are read by whom they belong to, which follows from the classes alone.
#[test]
fn a_pod_of_a_known_class_leaves_the_owners_of_counters_alone() {
    let (config, machine) = (config(false), Machine::empty(0));
    let settings = MemoryKernel::new(memory::State::of_others());
    let targets = machine.targets(&settings);
    let (sender, mut owners) = tokio::sync::watch::channel(Arc::default());
    let (mut plan, mut backend) = (Plan::new(), Nftables::new(config, BOTH, targets, sender));
    let mut update = |world: &World| {
        let changed = plan.update(world);
        backend.update(plan.rules(), world, &changed);
        let has_changed = owners.has_changed().expect("the backend lives");
        (has_changed, owners.borrow_and_update().keys().map(|name| name.as_str().to_owned()).collect::<Vec<_>>())
    };
    let db = |case: Case, number: u8| {
        case.pod(&format!("shop/db-{number}"), HERE, [&format!("10.244.0.{number}"), "app=db", ""])
    };
    let case = db(Case::new().namespace("shop", ""), 1).policy("shop/db", "app=db", [Some(&[]), None]);
    let (changed, first) = update(&case.0);
    assert!(changed && matches!(&*first, [one] if one.starts_with("in_shop_db_")), "{first:?}");
    let case = db(case, 2);
    assert_eq!(update(&case.0), (false, first));
    let case = case.policy("shop/more", "app=db", [Some(&[]), None]);
    let (changed, second) = update(&case.0);
    assert!(changed && matches!(&*second, [one] if one.starts_with("in_shop_2_policies_")), "{second:?}");
}
