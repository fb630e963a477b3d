//! A kernel in memory.
//!
//! It refuses what Linux refuses (a rule that names a missing set, a set that is in use, what exists already, what
//! is not there), takes with a device what stands on it, and can be made to fail, before the act and after it.
//! All kinds share one [`Machine`], which outlives those who work on it: making new targets on the same machine is
//! a restart of the program. What belongs to others stands in the same tables; [`Machine::foreign`] remembers it.

mod kinds;
pub mod frames;
mod state;
mod table;
pub mod ways;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use rustix::io::Errno;
use sluice::config::Backend;
use sluice::firewall;
use sluice::kernel::Error;
use sluice::kernel::conntrack::{Flows, Remaining};
use sluice::kernel::ipset::SetName;
use sluice::kernel::iptables::{Piece, Refusal, Rules, Timing};
use sluice::kernel::ipvs::{
    Connections, Counted, Destination, Observed, ObservedDestination, Ownership, RefusedPart, ServiceKey, Stats,
};
use sluice::kernel::sysctl::{Ruled, Setting, WantedSetting};
use sluice::net::{Family, PerFamily};
use sluice::proxy::apply::{Connected, Kernel, Owned, Targets};
use sluice::proxy::dsr::rules::{marking_chain, marks_of};
use sluice::proxy::marks::{MarkedElsewhere, given_in_table};
use sluice::proxy::names::Set;
use sluice::reconcile::{Failure, Glance, Optional, Phase, Sorted, Step, Target};

use super::random::Random;
use ways::Passages;

pub use kinds::{
    Addresses, Elements, HairpinPorts, Links, PolicyRules, Routes, Rows, RuleRows, Sets, Settings, Virtuals,
};
pub use state::{HOST_V4, HOST_V6, Object, State};
pub use table::ProxyTable;

/// The machine that all targets work on.
pub struct Machine {
    pub state: State,
    /// Foreign objects that existed at the start.
    pub foreign: State,
    pub faults: Faults,
    /// The destinations that have connections.
    pub busy: BTreeSet<(ServiceKey, SocketAddr)>,
    /// Whether others have given commands to virtual services since somebody asked; `None` where this kernel does not count them.
    pub others_commands: Option<bool>,
    /// Connection tracking cannot be changed, whatever is tried.
    pub conntrack_fails: bool,
    /// Reading the service ports that the other backend marks as ours fails.
    pub marks_fail: bool,
    /// The backend that the service proxy uses; `None` for both, to clean up.
    pub backend: Option<Backend>,
    /// The same of the router.
    pub router_backend: Option<Backend>,
    /// How many neighbours on links the kernel finds out at most.
    pub neighbour_limits: PerFamily<Option<usize>>,
    /// How often that was read.
    pub neighbour_limits_read: u32,
    /// How often it was asked to remove what is ours from the tables that the host no longer uses.
    pub abandoned_removed: u32,
    /// How many acts were performed.
    pub acts: u64,
    /// How many objects were read, by the names of their kinds.
    pub read: BTreeMap<&'static str, usize>,
    /// Steps that the kernel refused by its own rules, not by an injected fault.
    pub refused: Vec<String>,
    /// The tables of frames, by the names of their kinds.
    pub frames: BTreeMap<&'static str, firewall::frames::Contents>,
    /// These tables cannot be changed, whatever is tried.
    pub frames_fail: bool,
    /// Schedulers that this kernel has not.
    pub lacking_schedulers: BTreeSet<CompactString>,
    /// Destinations that this kernel does not take.
    pub refused_destinations: BTreeSet<SocketAddr>,
    /// Virtual services that the kernel refuses to delete.
    pub undeletable: BTreeSet<ServiceKey>,
    /// The parts of virtual services that it did not take since somebody asked.
    pub refused_parts: Vec<RefusedPart>,
    /// Chains that this kernel does not take, because it lacks what their rules need.
    pub unloadable: BTreeSet<CompactString>,
    /// The address family whose rules cannot be changed, whatever is tried.
    pub broken: Option<Family>,
    /// The object that cannot be made or changed, whatever is tried.
    pub broken_object: Option<Object>,
    /// The kind of objects that cannot be read, whatever is tried.
    pub unreadable: Option<&'static str>,
    /// Those chains that were tried since somebody asked.
    pub tried_in_vain: Vec<Refusal>,
    /// The keys of WireGuard in files.
    pub key_files: KeyFiles,
    /// Called after every single act.
    pub observer: Option<Observer>,
}

/// The files of private keys, as far as they have to do with a change.
#[derive(Default, Debug)]
pub struct KeyFiles {
    /// Time since the first one was made.
    pub age: Option<Duration>,
    /// There is one that follows.
    pub has_next: bool,
    /// It cannot be made, which was tried so often.
    pub fail: bool,
    pub failed: u32,
}

/// Whom every act is told.
pub type Observer = Box<dyn FnMut(&State, &Object)>;

/// How often something fails, in percent.
#[derive(Clone, Debug)]
pub struct Faults {
    pub random: Random,
    pub steps: u32,
    pub reads: u32,
    /// After so many more steps the program is dead: nothing of what it still asks for is done.
    pub alive_for: Option<u32>,
}

/// A handle on a machine.
#[derive(Clone)]
pub struct MemoryKernel(Rc<RefCell<Machine>>);

/// One kind of objects on a machine.
pub struct Memory<F: Rows> {
    machine: MemoryKernel,
    ours: Box<Ours<F>>,
    kind: PhantomData<F>,
}

/// Says which rows of a kind are ours.
type Ours<F> = dyn Fn(&<F as Rows>::Key, &<F as Rows>::Value) -> bool;

/// Fault injected into one step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It fails and nothing is done.
    Before,
    /// It is done, and reported as failed.
    After,
    /// It fails, and so does everything behind it: the connection to the kernel broke.
    Lost,
}

impl Faults {
    pub fn none() -> Faults {
        Faults { random: Random::new(0), steps: 0, reads: 0, alive_for: None }
    }

    /// Few or many, as chance has it.
    pub fn by_chance(random: &mut Random) -> Faults {
        let own = Random::new(random.next());
        let steps = *random.pick(&[2, 10, 40]);
        let reads = *random.pick(&[0, 0, 10, 50]);
        Faults { random: own, steps, reads, alive_for: None }
    }

    fn of_step(&mut self) -> Fault {
        match &mut self.alive_for {
            Some(0) => return Fault::Lost,
            Some(steps) => *steps -= 1,
            None => {}
        }
        if self.steps == 0 || !self.random.chance(self.steps) {
            return Fault::None;
        }
        *self.random.pick(&[Fault::Before, Fault::Before, Fault::After, Fault::After, Fault::Lost])
    }

    fn of_read(&mut self) -> bool {
        self.reads > 0 && self.random.chance(self.reads)
    }
}

impl MemoryKernel {
    /// A machine that holds this and nothing of ours.
    pub fn new(foreign: State) -> MemoryKernel {
        let machine = Machine {
            state: foreign.clone(),
            foreign,
            faults: Faults::none(),
            busy: BTreeSet::new(),
            others_commands: None,
            conntrack_fails: false,
            marks_fail: false,
            backend: None,
            router_backend: None,
            neighbour_limits: PerFamily::default(),
            neighbour_limits_read: 0,
            abandoned_removed: 0,
            acts: 0,
            read: BTreeMap::new(),
            refused: Vec::new(),
            frames: BTreeMap::new(),
            frames_fail: false,
            lacking_schedulers: BTreeSet::new(),
            refused_destinations: BTreeSet::new(),
            undeletable: BTreeSet::new(),
            refused_parts: Vec::new(),
            unloadable: BTreeSet::new(),
            broken: None,
            broken_object: None,
            unreadable: None,
            tried_in_vain: Vec::new(),
            key_files: KeyFiles::default(),
            observer: None,
        };
        MemoryKernel(Rc::new(RefCell::new(machine)))
    }

    /// Looks at the machine, or changes it behind everybody's back.
    pub fn with<R>(&self, act: impl FnOnce(&mut Machine) -> R) -> R {
        act(&mut self.0.borrow_mut())
    }

    pub fn state(&self) -> State {
        self.with(|machine| machine.state.clone())
    }

    /// Targets of the kinds that the firewall keeps.
    pub fn firewall_targets(&self) -> firewall::iptables::apply::Targets<MemoryKernel> {
        let ours = firewall::iptables::linux::ownership();
        let owns = move |chain: &str| ours.chains.iter().any(|(_, name)| name.matches(chain));
        let is_ours = move |piece: &Piece| match piece {
            Piece::Chain { chain, .. } => owns(chain),
            Piece::Jump { to, .. } => owns(to),
            Piece::Leftover { .. } => false,
        };
        let is_our_set = |set: &SetName| firewall::iptables::linux::set_names().iter().any(|name| name.matches(&set.0));
        let [tags, groups] = frames::Frames::of(self).map(Optional::used);
        firewall::iptables::apply::Targets {
            kernel: self.clone(),
            settings: Memory::new(self),
            frames: tags,
            groups,
            sets: Memory { ours: Box::new(move |set, _| is_our_set(set)), ..Memory::new(self) },
            elements: Memory { ours: Box::new(move |element, _| is_our_set(&element.set)), ..Memory::new(self) },
            rules: Memory { ours: Box::new(move |piece, _| is_ours(piece)), ..Memory::new(self) },
        }
    }

    /// Targets of every kind that the service proxy keeps, of both backends.
    pub fn targets(&self) -> Targets<MemoryKernel> {
        self.with(|machine| machine.backend = None);
        Targets {
            kernel: self.clone(),
            links: Memory::new(self),
            settings: Memory::new(self),
            hairpin_ports: Memory::new(self),
            sets: Optional::used(Memory::new(self)),
            elements: Optional::used(Memory::new(self)),
            rules: Optional::used(Memory::new(self)),
            table: Optional::used(Memory::new(self)),
            passages: Optional::used(Memory::new(self)),
            virtuals: Memory::new(self),
            policy_rules: Memory::new(self),
            routes: Memory::new(self),
            addresses: Memory::new(self),
        }
    }

    /// The same of one backend.
    pub fn targets_of(&self, backend: Backend) -> Targets<MemoryKernel> {
        let targets = self.targets();
        self.with(|machine| machine.backend = Some(backend));
        match backend {
            Backend::Iptables => Targets {
                table: Optional::unused(ProxyTable::NAME),
                passages: Optional::unused(Passages::NAME),
                ..targets
            },
            Backend::Nftables => Targets {
                sets: Optional::unused(Sets::NAME),
                elements: Optional::unused(Elements::NAME),
                rules: Optional::unused(RuleRows::NAME),
                ..targets
            },
        }
    }
}

impl Kernel for MemoryKernel {
    type Links = Memory<Links>;
    type Settings = Memory<Settings>;
    type HairpinPorts = Memory<HairpinPorts>;
    type Sets = Optional<Memory<Sets>>;
    type Elements = Optional<Memory<Elements>>;
    type Rules = Optional<Memory<RuleRows>>;
    type Table = Optional<Memory<ProxyTable>>;
    type Passages = Optional<Memory<Passages>>;
    type Virtuals = Memory<Virtuals>;
    type PolicyRules = Memory<PolicyRules>;
    type Routes = Memory<Routes>;
    type Addresses = Memory<Addresses>;

    fn forget_flows(&mut self, flows: &[Flows]) -> Result<usize, Remaining> {
        self.with(|machine| {
            if machine.conntrack_fails || machine.faults.of_read() {
                let error = Error::errno("list tracked flows", "", Errno::INTR);
                return Err(Remaining { deleted: 0, flows: flows.to_vec(), error });
            }
            let before = machine.state.flows.len();
            flows.iter().for_each(|flow| {
                machine.state.flows.remove(flow);
            });
            Ok(before - machine.state.flows.len())
        })
    }

    fn marked_by_other_backend(&mut self) -> Result<MarkedElsewhere, Error> {
        self.with(|machine| {
            if machine.marks_fail || machine.faults.of_read() {
                return Err(Error::errno("list", "marks", Errno::NOBUFS));
            }
            let state = &machine.state;
            let places: Vec<_> = match machine.backend {
                Some(Backend::Nftables) => state.elements.keys().filter_map(Set::of_element).collect(),
                Some(Backend::Iptables) => state.proxy_table.keys().filter_map(Set::of_object).collect(),
                None => Vec::new(),
            };
            let given = match machine.backend {
                Some(Backend::Nftables) => {
                    let chains = Family::BOTH.map(marking_chain);
                    chains.iter().filter_map(|chain| state.rules.get(chain)).flat_map(marks_of).collect()
                }
                Some(Backend::Iptables) => given_in_table(&state.proxy_table),
                None => BTreeMap::new(),
            };
            Ok(MarkedElsewhere::by(places, given))
        })
    }

    /// Memory has one flavour of iptables, so only what the other backend left goes: first the rules.
    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.with(|machine| {
            machine.abandoned_removed += 1;
            match machine.backend {
                Some(Backend::Nftables) => {
                    let rules = Rules(Vec::new());
                    machine.lose_all::<RuleRows>(|piece| RuleRows::is_ours(piece, &rules));
                    machine.lose_all::<Elements>(|key| Elements::is_ours(key, &()));
                    machine.lose_all::<Sets>(kinds::is_our_set);
                }
                Some(Backend::Iptables) => {
                    machine.lose_all::<ProxyTable>(|_| true);
                    machine.lose_all::<Passages>(|_| true);
                }
                None => {}
            }
        });
        Some(Vec::new())
    }
}

impl firewall::iptables::apply::Kernel for MemoryKernel {
    type Settings = Memory<Settings>;
    type Frames = Optional<frames::Frames>;
    type Sets = Memory<Sets>;
    type Elements = Memory<Elements>;
    type Rules = Memory<RuleRows>;

    fn filters_ipv6(&self) -> bool {
        self.with(|machine| machine.broken != Some(Family::V6))
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        self.with(|machine| machine.abandoned_removed += 1);
        Vec::new()
    }
}

impl firewall::iptables::apply::Timed for Memory<Elements> {
    /// Nothing takes time in memory.
    fn take_took(&mut self) -> PerFamily<Duration> {
        PerFamily::default()
    }
}

impl firewall::iptables::apply::Refusing for Memory<RuleRows> {
    fn take_refused(&mut self) -> Vec<Refusal> {
        self.machine.with(|machine| std::mem::take(&mut machine.tried_in_vain))
    }

    /// Memory runs no programs.
    fn take_timings(&mut self) -> Vec<Timing> {
        Vec::new()
    }

    fn is_unreadable(&self, _: Family) -> bool {
        false
    }
}

impl Owned for Memory<Virtuals> {
    fn set_ownership(&mut self, whose: Ownership) {
        self.ours = Box::new(move |key, found| whose(key).is_ours(found));
    }
}

impl Connected for Memory<Virtuals> {
    fn connections(&mut self, key: &ServiceKey) -> Result<Vec<(Destination, u64)>, Error> {
        self.readable()?;
        self.machine.with(|machine| {
            let existing = machine.state.virtuals.get(key);
            let listed = existing.into_iter().flat_map(|existing| existing.destinations.iter());
            let count = |address| u64::from(machine.busy.contains(&(*key, address)));
            Ok(listed.map(|destination| (destination, count(destination.address))).collect())
        })
    }

    fn observe(&mut self, key: &ServiceKey) -> Result<Option<Observed>, Error> {
        let listed = self.connections(key)?;
        let service = self.machine.with(|machine| machine.state.virtuals.get(key).map(|it| it.service.clone()));
        let observed = |(destination, count): (Destination, u64)| ObservedDestination {
            destination,
            connections: Connections { active: u32::try_from(count).unwrap_or_default(), ..Connections::default() },
            stats: Stats::default(),
        };
        let destinations = listed.into_iter().map(observed).collect();
        Ok(service.map(|service| Observed { service, stats: Stats::default(), destinations }))
    }

    fn take_refused(&mut self) -> Vec<RefusedPart> {
        self.machine.with(|machine| std::mem::take(&mut machine.refused_parts))
    }

    fn others_commands(&mut self, _now: Instant) -> Counted {
        match self.machine.with(|machine| machine.others_commands.as_mut().map(std::mem::take)) {
            None => Counted::Not("a kernel in memory".to_owned()),
            Some(true) => Counted::Some,
            Some(false) => Counted::None,
        }
    }
}

impl Ruled for Memory<Settings> {
    /// Costs no reading: a setting that cannot be read is wanted all the same, and fails when it is read.
    fn wanted(&mut self, rules: &BTreeMap<Setting, WantedSetting>) -> BTreeMap<Setting, CompactString> {
        let ours = rules.clone();
        self.ours = Box::new(move |key, value| ours.get(key).is_some_and(|rule| rule.given(value).is_some()));
        let found = self.machine.with(|machine| Settings::rows(&mut machine.state).clone());
        let given =
            |(key, value): (Setting, CompactString)| Some((key.clone(), rules.get(&key)?.given(&value)?.clone()));
        // Those of a module have to be there.
        let of_module = rules.iter().filter_map(|(key, rule)| match rule {
            WantedSetting::OfModule { value, .. } => Some((key.clone(), value.clone())),
            WantedSetting::Always(_) | WantedSetting::InsteadOf { .. } | WantedSetting::InsteadOfAny { .. } => None,
        });
        found.into_iter().filter_map(given).chain(of_module).collect()
    }
}

impl<F: Rows> Memory<F> {
    pub fn new(machine: &MemoryKernel) -> Memory<F> {
        Memory { machine: machine.clone(), ours: Box::new(F::is_ours), kind: PhantomData }
    }

    /// The keys that are only seen or only there, and the number of those that are there.
    fn came_and_gone(&self, seen: &impl Sorted<F::Key, F::Value>) -> (Vec<F::Key>, usize) {
        self.machine.with(|machine| {
            let rows = F::rows(&mut machine.state).iter();
            let ours: BTreeSet<&F::Key> = rows.filter(|(key, value)| (self.ours)(key, value)).map(|(k, _)| k).collect();
            let gone = seen.entries().map(|(key, _)| key).filter(|key| !ours.contains(key)).cloned();
            let new = ours.iter().filter(|key| seen.value(key).is_none()).map(|key| (*key).clone());
            (gone.chain(new).collect(), ours.len())
        })
    }

    fn readable(&self) -> Result<(), Error> {
        let fails = self.machine.with(|machine| machine.faults.of_read() || machine.unreadable == Some(F::NAME));
        if fails { Err(Error::errno("list", F::NAME, Errno::NOBUFS)) } else { Ok(()) }
    }
}

impl<F: Rows> Target for Memory<F> {
    type Key = F::Key;
    type Value = F::Value;
    type Error = Error;

    fn name(&self) -> &'static str {
        F::NAME
    }

    fn read(&mut self) -> Result<BTreeMap<F::Key, F::Value>, Error> {
        self.readable()?;
        Ok(self.machine.with(|machine| {
            let rows = F::rows(&mut machine.state).iter().filter(|(key, value)| (self.ours)(key, value));
            let found: BTreeMap<F::Key, F::Value> = rows.map(|(k, v)| (k.clone(), v.clone())).collect();
            *machine.read.entry(F::NAME).or_default() += found.len();
            found
        }))
    }

    /// Sees that something came or went, and no more; of elements only their number.
    fn glance(&mut self, seen: &impl Sorted<F::Key, F::Value>) -> Glance<F::Key> {
        let (differing, count) = self.came_and_gone(seen);
        match differing.len() {
            _ if !F::GLANCED => Glance::Alike,
            0 => Glance::Alike,
            _ if F::COUNTED && count == seen.count() => Glance::Alike,
            1..=3 => Glance::These(differing),
            _ => Glance::Somewhere,
        }
    }

    fn scan(&mut self, seen: &impl Sorted<F::Key, F::Value>) -> Result<Glance<F::Key>, Error> {
        let (differing, _) = self.came_and_gone(seen);
        Ok(if F::COUNTED && !differing.is_empty() { Glance::These(differing) } else { Glance::Alike })
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, F::Key, F::Value>]) -> Vec<Failure<Error>> {
        for step in steps {
            let fits = match phase {
                Phase::Grow => step.want.is_some(),
                Phase::Shrink => step.have.is_some(),
                Phase::Whole => step.have.is_some() || step.want.is_some(),
            };
            assert!(fits, "{} {} is not a step of {phase:?}", F::NAME, step.key);
        }
        self.machine.with(|machine| F::perform(machine, steps))
    }

    fn grown(have: &F::Value, want: &F::Value) -> F::Value {
        F::grown(have, want)
    }

    fn filled(have: &F::Value, want: &F::Value) -> Option<F::Value> {
        F::filled(have, want)
    }
}

impl Machine {
    /// Performs steps one by one, as kinds over netlink do.
    fn perform_each<F: Rows>(&mut self, steps: &[Step<'_, F::Key, F::Value>]) -> Vec<Failure<Error>> {
        let mut failures = Vec::new();
        let mut lost = false;
        for (index, step) in steps.iter().enumerate() {
            let fault = if lost { Fault::Lost } else { self.faults.of_step() };
            lost |= fault == Fault::Lost;
            let done = match fault {
                Fault::None | Fault::After => self.act::<F>(step),
                Fault::Before | Fault::Lost => Ok(()),
            };
            let errno = match (done, fault) {
                (Ok(()), Fault::None) => continue,
                (Err(errno), _) => errno,
                (Ok(()), _) => Errno::INTR,
            };
            failures.push(Failure { step: index, error: Error::errno("change", step.key.to_string(), errno) });
        }
        failures
    }

    fn act<F: Rows>(&mut self, step: &Step<'_, F::Key, F::Value>) -> Result<(), Errno> {
        let exists = F::rows(&mut self.state).contains_key(step.key);
        let refusal = match (step.have, step.want) {
            (None, Some(_)) if exists => Some(Errno::EXIST),
            (Some(_), _) if !exists => Some(Errno::NOENT),
            (None, None) => panic!("a step from nothing to nothing"),
            (_, Some(_)) if self.broken_object.as_ref() == Some(&F::object(step.key)) => Some(Errno::BUSY),
            _ => F::refusal(&self.state, step.key, step.want),
        };
        if let Some(errno) = refusal {
            self.refused.push(format!("{} {}: {errno}", F::NAME, step.key));
            return Err(errno);
        }
        if let Some(have) = step.have {
            F::lose(&mut self.state, step.key, have, step.want);
        }
        let result = match (step.have, step.want) {
            (Some(have), Some(want)) => {
                let found = F::rows(&mut self.state).get_mut(step.key).expect("its existence was checked");
                F::change(found, have, want)
            }
            (_, Some(want)) => {
                F::rows(&mut self.state).insert(step.key.clone(), want.clone());
                Ok(())
            }
            (_, None) => {
                F::rows(&mut self.state).remove(step.key);
                Ok(())
            }
        };
        F::follow(&mut self.state, step.key, step.want);
        if let Err(errno) = result {
            self.refused.push(format!("{} {}: {errno}", F::NAME, step.key));
        }
        self.acted(&F::object(step.key));
        result
    }

    /// Those rows of one kind go, together.
    fn lose_all<F: Rows>(&mut self, which: impl Fn(&F::Key) -> bool) {
        let ours: Vec<F::Key> = F::rows(&mut self.state).keys().filter(|key| which(key)).cloned().collect();
        F::rows(&mut self.state).retain(|key, _| !which(key));
        ours.iter().for_each(|key| self.acted(&F::object(key)));
    }

    fn acted(&mut self, object: &Object) {
        self.acts += 1;
        if let Some(mut observer) = self.observer.take() {
            observer(&self.state, object);
            self.observer = Some(observer);
        }
    }

    /// Foreign objects that differ from the start.
    pub fn foreign_damage(&self) -> Vec<String> {
        fn differences<K: Ord + Display, V: PartialEq + Debug>(
            was: &BTreeMap<K, V>,
            is: &BTreeMap<K, V>,
            found: &mut Vec<String>,
        ) {
            let differs = was.iter().filter(|(key, value)| is.get(key) != Some(value));
            found.extend(differs.map(|(key, value)| format!("{key} was {value:?}, is {:?}", is.get(key))));
        }
        let (was, is) = (&self.foreign, &self.state);
        let mut found = Vec::new();
        differences(&was.links, &is.links, &mut found);
        differences(&was.sets, &is.sets, &mut found);
        differences(&was.elements, &is.elements, &mut found);
        differences(&was.rules, &is.rules, &mut found);
        differences(&was.proxy_table, &is.proxy_table, &mut found);
        differences(&was.passages, &is.passages, &mut found);
        differences(&was.router_table, &is.router_table, &mut found);
        differences(&was.virtuals, &is.virtuals, &mut found);
        differences(&was.policy_rules, &is.policy_rules, &mut found);
        differences(&was.routes, &is.routes, &mut found);
        differences(&was.addresses, &is.addresses, &mut found);
        differences(&was.hairpin_ports, &is.hairpin_ports, &mut found);
        differences(&was.bridges, &is.bridges, &mut found);
        differences(&was.tunnels, &is.tunnels, &mut found);
        differences(&was.overlay_devices, &is.overlay_devices, &mut found);
        differences(&was.overlay_entries, &is.overlay_entries, &mut found);
        differences(&was.wireguard_devices, &is.wireguard_devices, &mut found);
        differences(&was.wireguard_peers, &is.wireguard_peers, &mut found);
        differences(&was.receive_ports, &is.receive_ports, &mut found);
        differences(&was.source_rules, &is.source_rules, &mut found);
        found
    }
}
