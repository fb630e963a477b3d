//! One walk: a cluster, a kernel, a program, and chance.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sluice::config::ProxyConfig;
use sluice::kernel::conntrack::Flows;
use sluice::kernel::ipset::{ElementKey, Entry, SetKind, SetSpec};
use sluice::kernel::iptables::{Piece, Rules};
use sluice::kernel::ipvs::{Service, ServiceKey, Virtual};
use sluice::kernel::monitor::Notice;
use sluice::kernel::nftables::{Content, Object};
use sluice::kernel::route::RouteKey;
use sluice::model::{Authority, World};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::proxy::apply::{Kernel, Mirrors};
use sluice::proxy::desired::{Desired, ProxyChanges};
use sluice::proxy::marks::marks_of;
use sluice::proxy::names::{NFT_GUARD, Set};
use sluice::proxy::scheduler::draining_flags;
use sluice::proxy::udp_flows::Forgetting;
use sluice::proxy::unallocated;
use sluice::reconcile::{Moment, Sorted};
use sluice::subsystem::Kinds;

use crate::agent::{Agent, Clock, known};
use crate::damage::{self, Kind};
use crate::support::memory::ways::needed;
use crate::support::memory::{Faults, MemoryKernel, State};
use crate::support::random::Random;
use crate::support::{flags, generate, packet};
use crate::watch::Watch;

/// A walk and everything in it.
pub struct Walk {
    pub random: Random,
    pub kernel: MemoryKernel,
    watch: Watch,
    pub config: Arc<ProxyConfig>,
    pub families: PerFamily<bool>,
    pub agent: Agent,
    pub clock: Clock,
    /// The newest cluster.
    pub world: World,
    /// Last known state that an earlier run wrote.
    remembered: World,
    /// Decides how far the firewall comes, where it has to be waited for.
    firewall: Option<Random>,
    /// Commands about destinations that a round gives at most, as in [`Agent::portion`].
    portion: Option<usize>,
    /// Whether a failure was injected, or something was damaged, since all was last well: until then the kernel may
    /// refuse something.
    disturbed: bool,
    pub story: Vec<String>,
    pub counts: Counts,
}

/// How often what happened, so that a walk that tests nothing is seen to.
#[derive(Default, Debug)]
pub struct Counts {
    pub settled: u64,
    pub acts_checked: u64,
    pub restarts: u64,
    pub restarts_without_a_write: u64,
    pub damages: u64,
    pub failures: u64,
    pub cleanups: u64,
    pub flows_forgotten: u64,
    pub released_when_idle: u64,
    /// Rounds in which endpoints waited for the firewall.
    pub held_back: u64,
    /// Rounds that left something to the next one.
    pub gone_on: u64,
    pub by_authority: BTreeMap<String, u64>,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.settled += other.settled;
        self.acts_checked += other.acts_checked;
        self.restarts += other.restarts;
        self.restarts_without_a_write += other.restarts_without_a_write;
        self.damages += other.damages;
        self.failures += other.failures;
        self.cleanups += other.cleanups;
        self.flows_forgotten += other.flows_forgotten;
        self.released_when_idle += other.released_when_idle;
        self.held_back += other.held_back;
        self.gone_on += other.gone_on;
        for (authority, rounds) in &other.by_authority {
            *self.by_authority.entry(authority.clone()).or_default() += rounds;
        }
    }

    pub fn must_have_seen_everything(&self, steps: u64) {
        if steps < 100 {
            return;
        }
        let all = [
            self.settled,
            self.acts_checked,
            self.restarts,
            self.restarts_without_a_write,
            self.damages,
            self.failures,
            self.cleanups,
            self.flows_forgotten,
            self.released_when_idle,
            self.gone_on,
        ];
        assert!(
            all.iter().all(|count| *count > 0) && self.by_authority.len() == 4,
            "something never happened: {self:?}"
        );
    }
}

/// So many rounds are enough to settle when nothing fails any more.
const ROUNDS_TO_SETTLE: usize = 12;

impl Walk {
    pub fn new(seed: u64) -> Walk {
        let mut random = Random::new(seed);
        let kernel = MemoryKernel::new(State::of_others());
        let watch = Watch::default();
        let observer = watch.clone();
        kernel.with(|machine| {
            machine.observer = Some(Box::new(move |state, object| observer.acted(state, object)));
        });
        let (config, families) = configuration(&mut random);
        // Of its own, so that a seed's history stays what it was.
        let mut of_portions = Random::new(!seed);
        let portion = of_portions.chance(50).then(|| 1 + of_portions.below(4));
        let mut agent = Agent::start(&kernel, &config, families);
        agent.portion = portion;
        Walk {
            world: generate::empty_world(),
            remembered: generate::empty_world(),
            firewall: None,
            portion,
            random,
            kernel,
            watch,
            config,
            families,
            agent,
            clock: Clock::new(),
            disturbed: false,
            story: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Has new endpoints behind tunnels wait for a firewall that is late, or does not come.
    pub fn with_a_late_firewall(mut self, seed: u64) -> Walk {
        self.firewall = Some(Random::new(seed));
        self
    }

    pub fn run(&mut self, steps: u64) {
        self.restart();
        for _ in 0..steps {
            self.step();
        }
        if self.watch.is_damaged() {
            self.start_from(known(Authority::Complete, &self.world));
        }
        self.settle();
        self.clean_up();
        self.counts.acts_checked = self.watch.checked();
    }

    pub fn tell(&mut self, what: impl Into<String>) {
        self.story.push(what.into());
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=44 => self.change_world(),
            45..=54 => self.let_time_pass(),
            55..=69 => self.work(),
            70..=77 => self.damage(),
            78..=84 => self.restart(),
            85 => self.audit(),
            86 => self.glance(),
            87 => self.connections_come_and_go(),
            88..=89 => self.somebody_sends_datagrams(),
            _ => self.settle(),
        }
    }

    fn change_world(&mut self) {
        for _ in 0..1 + self.random.below(3) {
            let what = generate::change(&mut self.world, &mut self.random);
            self.tell(what);
        }
        self.publish();
        if self.random.chance(70) {
            self.work();
        }
    }

    /// Hands the newest World to the program, unless it lives on memory only.
    fn publish(&mut self) {
        if matches!(self.agent.authority, Authority::Partial | Authority::Complete) {
            self.world.authority.proxy = self.agent.authority;
            self.agent.take_world(&self.world.clone(), self.clock.now);
        }
    }

    fn let_time_pass(&mut self) {
        let seconds = self.random.below(25) as u64;
        self.clock.pass(Duration::from_secs(seconds));
        self.agent.expire(self.clock.now);
        self.tell(format!("{seconds} s pass"));
        self.release_idle();
        self.work();
    }

    /// Only what has no connection goes before its time, and only what the kernel gives no new ones.
    fn release_idle(&mut self) {
        let released = self.agent.release_idle(self.clock.now);
        self.counts.released_when_idle += released.len() as u64;
        self.kernel.with(|machine| {
            for (key, destination) in &released {
                assert!(!machine.busy.contains(&(*key, *destination)), "{destination} of {key} has connections");
                let existing = machine.state.virtuals.get(key).expect("it was listed");
                let its = existing.destinations.iter().find(|other| other.address == *destination);
                assert_eq!(its.map(|its| its.weight), Some(0), "{destination} of {key} takes connections");
            }
        });
    }

    /// Some destinations have connections from now on, the others have none.
    fn connections_come_and_go(&mut self) {
        let random = &mut self.random;
        self.kernel.with(|machine| {
            let of_service = |(key, existing): (&ServiceKey, &Virtual)| {
                let key = *key;
                existing.destinations.iter().map(move |d| (key, d.address)).collect::<Vec<_>>()
            };
            let all = machine.state.virtuals.iter().flat_map(of_service);
            machine.busy = all.filter(|_| random.chance(50)).collect();
        });
        self.tell("connections come and go");
    }

    /// The kernel refuses an object from now on, whatever is tried; `None`: it takes everything again.
    pub fn refuse(&mut self, object: Option<crate::support::memory::Object>) {
        self.tell(format!("the kernel refuses {object:?}"));
        self.disturbed = true;
        self.kernel.with(|machine| machine.broken_object = object);
    }

    /// One round or a few, in which steps and reads may fail.
    pub fn work(&mut self) {
        if self.random.chance(40) {
            let faults = Faults::by_chance(&mut self.random);
            self.kernel.with(|machine| machine.faults = faults);
            self.disturbed = true;
        }
        for _ in 0..1 + self.random.below(3) {
            self.firewall_goes_on();
            self.round();
            self.check_rest();
            if self.random.chance(50) {
                self.clock.pass_until(self.agent.mirrors.retry_at());
            }
        }
        self.kernel.with(|machine| machine.faults = Faults::none());
    }

    fn firewall_goes_on(&mut self) {
        let Some(random) = &mut self.firewall else { return };
        if random.chance(30) {
            self.agent.judge(random.below(3) as u64);
        }
    }

    /// Whoever is settled has nothing to come back for, and nobody comes back at the same moment.
    fn check_rest(&self) {
        let (settled, due) = (self.agent.mirrors.is_settled(), self.agent.mirrors.retry_at());
        assert!(due.is_none_or(|due| !settled && due > self.clock.now), "settled: {settled}, {due:?}");
    }

    pub fn moment(&mut self) -> Moment {
        Moment { now: self.clock.now, jitter: self.random.next() as u32 }
    }

    pub fn round(&mut self) -> Option<Forgetting> {
        let at = self.moment();
        self.agent.adopt(at);
        let (state, foreign) = self.kernel.with(|machine| (machine.state.clone(), machine.foreign.clone()));
        let held = self.agent.held_back(at.now);
        self.counts.held_back += u64::from(!held.is_empty());
        self.watch.begin(&state, &foreign, self.agent.desired(), self.agent.authority);
        self.watch.hold_back(held, &self.agent.desired().marked);
        let round = self.agent.round(at);
        self.counts.gone_on += u64::from(self.agent.mirrors.goes_on());
        if let Some(flows) = &round.flows {
            self.counts.flows_forgotten += flows.forgotten as u64;
        }
        *self.counts.by_authority.entry(format!("{:?}", self.agent.authority)).or_default() += 1;
        if self.agent.mirrors.reflections().iter().any(|family| family.trouble().is_some()) {
            self.counts.failures += 1;
        }
        let acts = self.watch.take_acts().join(", ");
        let waits = self.unsettled().join(", ");
        let authority = self.agent.authority;
        self.tell(format!("a round of {} steps as {authority:?}: {acts}; unsettled: {waits}", round.steps));
        self.look();
        round.flows
    }

    /// Asserts the invariants of every round.
    fn look(&mut self) {
        let seen = self.watch.take_seen();
        assert!(seen.is_empty(), "{seen:#?}");
        let (refused, damage) =
            self.kernel.with(|machine| (std::mem::take(&mut machine.refused), machine.foreign_damage()));
        assert!(damage.is_empty(), "what belongs to others was touched: {damage:#?}");
        assert!(self.disturbed || refused.is_empty(), "the kernel refused, and nobody had disturbed: {refused:#?}");
    }

    /// Notes that something was damaged in every family.
    pub fn damaged(&mut self) {
        self.watch.excuse(&damage::Hurt::Everything);
        self.disturbed = true;
    }

    fn damage(&mut self) {
        let kind = *self.random.pick(&Kind::ALL);
        if kind == Kind::DeleteElement {
            // A virtual service whose element went before this program had seen it is nobody's for ever.
            if self.agent.authority != Authority::Complete {
                return;
            }
            self.settle();
        }
        let foreign = self.kernel.with(|machine| machine.foreign.clone());
        let random = &mut self.random;
        let hurt = self.kernel.with(|machine| damage::hurt(&mut machine.state, &foreign, kind, random));
        let Some((hurt, what)) = hurt else { return };
        self.watch.excuse(&hurt);
        self.disturbed = true;
        self.counts.damages += 1;
        if self.agent.authority == Authority::Nothing {
            // Flows to a backend that somebody took away before the program had seen it are nobody's knowledge.
            self.kernel.with(|machine| machine.state.flows.clear());
        }
        self.tell(what);
        if self.random.chance(30) {
            self.tell("the monitors notice");
            let at = self.moment();
            for notice in [Notice::Ours, Notice::Rules, Notice::RoutingRules] {
                self.agent.mirrors.audit_after(notice, at);
            }
        }
        if self.random.chance(50) {
            self.work();
        }
    }

    pub fn audit(&mut self) {
        let at = self.moment();
        let found = self.agent.audit(at);
        self.tell(format!("an audit finds {found:?}"));
    }

    fn glance(&mut self) {
        let at = self.moment();
        let found = self.agent.mirrors.glance(self.agent.plan.desired(), false, at);
        self.tell(format!("a glance finds {found:?}"));
    }

    /// Clients of UDP services leave flows behind.
    fn somebody_sends_datagrams(&mut self) {
        if self.watch.is_damaged() || self.agent.authority != Authority::Complete {
            return;
        }
        self.settle();
        let mut flows = Vec::new();
        for (key, found) in self.agent.desired().virtuals.iter() {
            let ServiceKey::Address { address, protocol: Protocol::Udp, port } = *key else { continue };
            let original_destination = SocketAddr::new(address, port);
            flows.extend(found.destinations.iter().map(|destination| Flows {
                protocol: Protocol::Udp,
                original_destination,
                reply_source: destination.address,
            }));
        }
        self.kernel.with(|machine| machine.state.flows.extend(flows));
    }

    /// Ends the program, at any moment, and starts it again with more or less knowledge.
    fn restart(&mut self) {
        if self.watch.is_damaged() {
            // Which virtual services are ours is told by their elements: somebody who takes those away may make us
            // forget a service for good. So damage is repaired before the memory goes.
            self.start_from(known(Authority::Complete, &self.world));
            self.settle();
        }
        let settled = self.random.chance(30);
        if settled {
            self.settle();
        }
        self.counts.restarts += 1;
        let complete = settled && self.agent.authority == Authority::Complete;
        if !complete && self.random.chance(20) {
            (self.config, self.families) = configuration(&mut self.random);
        }
        if !settled {
            // Flows to a backend that was removed just before the end are nobody's knowledge any more.
            self.kernel.with(|machine| machine.state.flows.clear());
        }
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.agent.waits_for_firewall = self.firewall.is_some();
        self.agent.portion = self.portion;
        self.tell("the program starts again");
        if complete && self.random.chance(70) {
            self.world.authority.proxy = Authority::Complete;
            self.start_from(self.world.clone());
            let before = self.kernel.with(|machine| machine.acts);
            self.round();
            assert_eq!(before, self.kernel.with(|machine| machine.acts), "a restart with everything in place wrote");
            self.counts.restarts_without_a_write += 1;
            return;
        }
        if self.random.chance(30) {
            self.start_from(known(Authority::Nothing, &self.remembered));
            self.work();
        }
        if self.random.chance(60) {
            let mut remembered = known(Authority::Remembered, &self.remembered);
            if self.random.chance(30) {
                // The last run watched no Node but its own.
                remembered.authority.router = Authority::Nothing;
            }
            self.start_from(remembered);
            self.work();
        }
        if self.random.chance(40) {
            self.start_from(known(Authority::Partial, &self.world));
            self.work();
        }
        if self.random.chance(90) {
            self.start_from(known(Authority::Complete, &self.world));
            self.work();
        }
    }

    pub fn start_from(&mut self, world: World) {
        self.tell(format!("{:?} is known", world.authority.proxy));
        self.agent.take_world(&world, self.clock.now);
    }

    /// Nothing fails any more: the kernel becomes what is wanted.
    pub fn settle(&mut self) {
        self.kernel.with(|machine| machine.faults = Faults::none());
        self.agent.judge(0);
        if self.watch.is_damaged() {
            // Damage by others is unknown until an audit, and may make steps fail.
            self.rounds_until_quiet();
            self.audit();
        }
        self.become_settled();
        if self.agent.authority == Authority::Complete {
            self.watch.all_repaired();
            self.disturbed = false;
        }
        self.tell("settled");
        match self.agent.authority {
            Authority::Complete => self.must_be_as_wanted(),
            Authority::Partial => self.must_hold_at_least_what_is_wanted(),
            Authority::Remembered | Authority::Nothing => {}
        }
        let before = self.kernel.with(|machine| machine.acts);
        self.round();
        assert_eq!(before, self.kernel.with(|machine| machine.acts), "settled, and a round wrote something");
        self.counts.settled += 1;
        if self.agent.authority == Authority::Complete && self.random.chance(50) {
            self.remembered = self.world.clone();
        }
    }

    fn rounds_until_quiet(&mut self) {
        for _ in 0..ROUNDS_TO_SETTLE {
            self.clock.pass_until(self.agent.mirrors.retry_at());
            self.agent.expire(self.clock.now);
            self.round();
            self.go_on();
            if self.agent.mirrors.is_settled() {
                break;
            }
        }
    }

    /// Makes the rounds that follow each other at once.
    fn go_on(&mut self) {
        let mut rounds = 0;
        while self.agent.mirrors.goes_on() {
            rounds += 1;
            assert!(rounds < 1000, "it never comes to an end");
            self.round();
        }
    }

    fn become_settled(&mut self) {
        self.rounds_until_quiet();
        let trouble: Vec<_> = self.agent.mirrors.reflections().iter().filter_map(|f| f.trouble().cloned()).collect();
        assert!(trouble.is_empty(), "nothing fails, and there is trouble: {trouble:#?}");
        if self.agent.authority == Authority::Complete {
            assert!(
                self.agent.mirrors.is_settled(),
                "nothing fails, and it does not settle: {:#?}; in the table differ {:#?}",
                self.unsettled(),
                self.differing_in_table()
            );
        }
    }

    /// The objects in which our table in the kernel is not as desired.
    fn differing_in_table(&self) -> Vec<String> {
        let state = self.kernel.state();
        let wanted = &self.agent.desired().table;
        let keys = state.proxy_table.keys().chain(wanted.keys());
        keys.filter(|key| state.proxy_table.get(key) != wanted.get(key)).map(ToString::to_string).collect()
    }

    fn unsettled(&self) -> Vec<&'static str> {
        self.agent.mirrors.reflections().iter().filter(|family| !family.is_settled()).map(|f| f.name()).collect()
    }

    /// Everything wanted is there, and nothing else of ours.
    fn must_be_as_wanted(&mut self) {
        let (state, foreign) = self.kernel.with(|machine| (machine.state.clone(), machine.foreign.clone()));
        let desired = self.agent.desired();
        let Desired { links, addresses, sets, elements, rules, table, virtuals, routes, .. } = desired;
        same(&state.passages, &foreign.passages, &needed(&desired.passages));
        same(&state.links, &foreign.links, links);
        same(&state.hairpin_ports, &foreign.hairpin_ports, &desired.hairpin_ports);
        same(&state.sets, &foreign.sets, sets);
        same(&state.elements, &foreign.elements, elements);
        same(&state.rules, &foreign.rules, rules);
        same(&state.proxy_table, &foreign.proxy_table, table);
        same(&state.virtuals, &foreign.virtuals, virtuals);
        same(&state.routes, &foreign.routes, routes);
        same(&state.policy_rules, &foreign.policy_rules, &desired.policy_rules);
        same(&state.addresses, &foreign.addresses, addresses);
        for (setting, rule) in &desired.settings {
            if let Some(value) = state.settings.get(setting) {
                assert!(rule.given(value).is_none_or(|wanted| wanted == value), "{setting} is {value}, not {rule:?}");
            }
        }
        for flow in &state.flows {
            let address = flow.original_destination;
            let key = ServiceKey::Address { address: address.ip(), protocol: flow.protocol, port: address.port() };
            let backends = desired.virtual_of(&key).map(|found| &found.destinations);
            let remains = backends.is_some_and(|list| list.iter().any(|d| d.address == flow.reply_source));
            assert!(remains, "{flow:?} is still tracked, and its backend is gone");
        }
    }

    fn must_hold_at_least_what_is_wanted(&mut self) {
        let state = self.kernel.state();
        let desired = self.agent.desired();
        // A mark is not taken from a Service that may be known tomorrow, and who would get it waits.
        let is_anothers = |key: &ServiceKey, its: &ServiceKey| {
            let mut others = packet::ports(&state).into_iter().filter(|port| port != its);
            others.any(|port| packet::mark(&state, port) == Some(*key))
        };
        if desired.marked.iter().any(|(key, its)| is_anothers(key, its)) {
            return;
        }
        assert!(desired.elements.keys().all(|key| state.elements.contains_key(key)));
        // The other backend's guard knows ports that this one may lack.
        let takes_over = self.kernel.clone().marked_by_other_backend().is_ok_and(|marked| !marked.services.is_empty());
        let guards = |object: &Object| takes_over && *object == Object::Chain(NFT_GUARD.into());
        // So do rules that would refuse Services that are not known.
        let waits = |object: &Object| guards(object) || unallocated::is_chain(object);
        // A chain may know more lengths of source ranges.
        let has = |object: &Object, content: &Content| {
            state.proxy_table.get(object).is_some_and(|found| found.grown(content) == *found)
        };
        assert!(desired.table.iter().all(|(object, content)| waits(object) || has(object, content)));
        // And so do the rules that mark packets: before them a tunnel would be for nobody.
        let is_unmarked =
            |port: &ServiceKey| takes_over && packet::mark(&state, *port) != Some(desired.kernel_key(port));
        let on = |port: &ServiceKey, address: IpAddr| matches!(port, ServiceKey::Address { address: its, .. } if *its == address);
        let waits_for_marks = |address: IpAddr| desired.marks.keys().any(|port| on(port, address) && is_unmarked(port));
        let stays = |address: IpAddr| self.stays_in_its_mode(&state, address) || waits_for_marks(address);
        let has_route = |key: &RouteKey, route| state.routes.get(key) == Some(route) || stays(key.destination.addr());
        assert!(desired.routes.iter().all(|(key, route)| has_route(key, route)));
        let has_rules = |key: &Piece, wanted: &Rules| state.rules.get(key).is_some_and(|it| it.grown(wanted) == *it);
        let must_have = |(key, rules): (&Piece, &Rules)| unallocated::is_rule(key) || has_rules(key, rules);
        assert!(takes_over || desired.rules.iter().all(must_have));
        for (key, wanted) in desired.virtuals.iter() {
            let is_waiting = |port: &ServiceKey| state.virtuals.contains_key(port) || is_unmarked(port);
            let waits = desired.marked.get(key).is_some_and(is_waiting);
            if waits && !state.virtuals.contains_key(key) {
                continue;
            }
            let found = state.virtuals.get(key).unwrap_or_else(|| panic!("{key} is wanted and not there"));
            assert_eq!(found.service, beside_what_drains(&wanted.service, found), "{key}");
            assert!(wanted.destinations.iter().all(|d| found.destinations.to_vec().contains(&d)), "{key}");
        }
    }

    /// Whether an address is on its way from NAT to a tunnel or back, which waits until everything is known.
    fn stays_in_its_mode(&self, state: &State, address: IpAddr) -> bool {
        let on_it = |port: &ServiceKey| matches!(port, ServiceKey::Address { address: its, .. } if *its == address);
        let marked = |port: &ServiceKey| marks_of(port).any(|key| state.virtuals.contains_key(&key));
        packet::ports(state).iter().any(|port| on_it(port) && marked(port))
            || self.agent.desired().marks.keys().any(|port| on_it(port) && state.virtuals.contains_key(port))
    }

    /// The end: the program is asked to take everything away, at first with failures, and ended in the middle.
    pub fn clean_up(&mut self) {
        self.tell("cleaning up");
        let nothing = Desired::default();
        for attempt in 0..4 {
            let random = Random::new(self.random.next());
            let steps = if attempt < 3 { 15 } else { 0 };
            self.disturbed = true;
            self.kernel.with(|machine| machine.faults = Faults { random, steps, reads: 0, alive_for: None });
            let mut mirrors = Mirrors::new(self.kernel.targets(), self.config.excluded_cidrs.clone());
            for _ in 0..ROUNDS_TO_SETTLE {
                self.clock.pass_until(mirrors.retry_at());
                let at = self.moment();
                let (state, foreign) = self.kernel.with(|machine| (machine.state.clone(), machine.foreign.clone()));
                self.watch.begin(&state, &foreign, &nothing, Authority::Complete);
                mirrors.round(&nothing, Authority::Complete, at);
                self.look();
                if attempt < 3 && self.random.chance(40) {
                    break;
                }
            }
        }
        let (state, foreign) = self.kernel.with(|machine| (machine.state.clone(), machine.foreign.clone()));
        same(&state.links, &foreign.links, &BTreeMap::new());
        same(&state.sets, &foreign.sets, &BTreeMap::new());
        same(&state.elements, &foreign.elements, &BTreeMap::new());
        same(&state.rules, &foreign.rules, &BTreeMap::new());
        same(&state.proxy_table, &foreign.proxy_table, &BTreeMap::new());
        same(&state.passages, &foreign.passages, &BTreeMap::new());
        same(&state.virtuals, &foreign.virtuals, &BTreeMap::new());
        same(&state.routes, &foreign.routes, &BTreeMap::new());
        same(&state.policy_rules, &foreign.policy_rules, &BTreeMap::new());
        same(&state.addresses, &foreign.addresses, &BTreeMap::new());
        self.counts.cleanups += 1;
    }

    /// A set that holds many elements shall hold few, and be no larger than that.
    pub fn a_set_is_made_smaller(&mut self) {
        let name = Set::ServiceAddresses.name(Family::V4);
        let desired = |count: u8, max_elements| {
            let spec = SetSpec { kind: SetKind::HashIp, family: Family::V4, max_elements, timeout: true };
            let element = |n: u8| (ElementKey { set: name.clone(), entry: Entry::Ip([10, 96, 0, n].into()) }, ());
            let elements = (0..count).map(element).collect();
            Desired { sets: [(name.clone(), spec)].into(), elements, ..Desired::default() }
        };
        let mut mirrors = Mirrors::new(self.kernel.targets(), Vec::new());
        for (count, max_elements) in [(4, 4), (2, 2), (4, 8)] {
            let desired = desired(count, max_elements);
            let mut changed = ProxyChanges::default();
            changed.sets.push(name.clone());
            changed
                .elements
                .extend((0..8).map(|n: u8| ElementKey { set: name.clone(), entry: Entry::Ip([10, 96, 0, n].into()) }));
            mirrors.mark(&changed);
            for authority in [Authority::Partial, Authority::Complete] {
                let at = self.moment();
                let (state, foreign) = self.kernel.with(|machine| (machine.state.clone(), machine.foreign.clone()));
                self.watch.begin(&state, &foreign, &desired, authority);
                mirrors.round(&desired, authority, at);
                self.look();
            }
            assert!(mirrors.is_settled());
            assert_eq!(self.kernel.state().sets.get(&name), desired.sets.get(&name));
        }
    }

    /// Somebody deletes the elements by which virtual services are known to be ours, and what was known of both is lost,
    /// before it is seen that their Services are gone: the virtual services go all the same.
    pub fn goes_without_its_elements(&mut self, backend: &str) {
        (self.config, self.families) = flags::proxy(&["--enable-ipv6=true", backend]);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.agent.authority = Authority::Complete;
        for _ in 0..200 {
            generate::change(&mut self.world, &mut self.random);
        }
        self.publish();
        self.settle();
        let is_ours = |key: &&ServiceKey| matches!(key, ServiceKey::Address { .. });
        assert!(self.agent.desired().virtuals.keys().any(|key| is_ours(&key)));
        self.kernel.with(|machine| {
            let marks = |place: Option<(Set, Entry)>| place.is_some_and(|(set, _)| set == Set::ServicePorts);
            machine.state.elements.retain(|key, ()| !marks(Set::of_element(key)));
            machine.state.proxy_table.retain(|object, _| !marks(Set::of_object(object)));
        });
        self.damaged();
        self.world.cluster.services = Default::default();
        self.publish();
        let random = Random::new(self.random.next());
        self.kernel.with(|machine| machine.faults = Faults { random, steps: 0, reads: 100, alive_for: None });
        self.audit();
        self.settle();
    }

    /// One damage of one kind, found and repaired.
    pub fn damage_is_found_and_repaired(&mut self, kind: Kind, backend: &str) {
        (self.config, self.families) =
            flags::proxy(&["--strict-external-ip-validation=false", "--enable-ipv6=true", backend]);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.agent.authority = Authority::Complete;
        for _ in 0..200 {
            generate::change(&mut self.world, &mut self.random);
        }
        self.publish();
        self.settle();
        let foreign = self.kernel.with(|machine| machine.foreign.clone());
        let random = &mut self.random;
        let hurt = self.kernel.with(|machine| damage::hurt(&mut machine.state, &foreign, kind, random));
        let (hurt, what) = hurt.unwrap_or_else(|| panic!("there is nothing to damage by {kind:?}"));
        self.watch.excuse(&hurt);
        self.disturbed = true;
        let at = self.moment();
        let found = self.agent.audit(at);
        assert!(!found.is_empty(), "an audit does not see {what}");
        self.settle();
        let at = self.moment();
        let found = self.agent.audit(at);
        assert!(found.is_empty(), "{what} is repaired, and an audit still sees {found:?}");
    }
}

/// Some of the flags that decide what is wanted and how it goes.
fn configuration(random: &mut Random) -> (Arc<ProxyConfig>, PerFamily<bool>) {
    let mut words = Vec::new();
    for (word, percent) in [
        ("--strict-external-ip-validation=false", 70),
        ("--ipvs-graceful-termination=true", 50),
        ("--nodeport-bindon-all-ip=true", 30),
        ("--masquerade-all=true", 30),
        ("--ipvs-permit-all=false", 20),
        ("--enable-ipv6=true", 80),
        ("--netfilter=nftables", 50),
        ("--service-cluster-ip-range=10.96.0.0/12", 60),
    ] {
        if random.chance(percent) {
            words.push(word);
        }
    }
    let (config, families) = flags::proxy(&words);
    (Arc::new(ProxyConfig { tunnel_mode: random.chance(70), ..(*config).clone() }), families)
}

/// Returns a desired virtual service as it may be while destinations that are not known to be over drain in it: with `sh` and `mh` their clients go on to others.
fn beside_what_drains(wanted: &Service, found: &Virtual) -> Service {
    let falls_back = draining_flags(&found.service.scheduler, found.destinations.iter());
    Service { flags: wanted.flags | (found.service.flags & falls_back), ..wanted.clone() }
}

/// Asserts that the kernel holds exactly the foreign and the desired objects.
fn same<K: Ord + Clone + Debug, V: Clone + PartialEq + Debug>(
    found: &BTreeMap<K, V>,
    foreign: &BTreeMap<K, V>,
    wanted: &impl Sorted<K, V>,
) {
    let mut expected = foreign.clone();
    expected.extend(wanted.entries().map(|(key, value)| (key.clone(), value.clone())));
    for key in found.keys().chain(expected.keys()) {
        assert_eq!(found.get(key), expected.get(key), "{key:?}: found, and expected");
    }
}
