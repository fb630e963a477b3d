//! The router walks at random between worlds, on a kernel in memory.
//!
//! A walk changes the cluster, the host and what was learned; lets steps and reads fail, before the act and after it; damages
//! what is ours behind its back; puts another speaker in the place of the one before; kills the program before any step, and
//! starts it anew, also with what was remembered and with a partial cluster. After every single act:
//!
//! - what is wanted and was there is still there: no route is taken away in between;
//! - nothing goes before the cluster and the learned routes are known completely, but routes that this run has heard of;
//! - no tunnel takes a route along;
//! - no device of `vxlan` is there without the rules that guard it, of its own family;
//! - nothing is written that was so already.
//!
//! When things have settled the kernel holds what is wanted and nothing else of ours, another round and a restart write
//! nothing, and what belongs to others is as it was.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use sluice::bgp::rib::RouteChange;
use sluice::config::{Overlay, Received, RouterConfig};
use sluice::kernel::bridge::Bridge;
use sluice::kernel::iptables::Piece;
use sluice::kernel::link::LinkName;
use sluice::kernel::monitor::Notice;
use sluice::kernel::nftables::{Content, Object as InTable};
use sluice::kernel::route::{Route, RouteKey, TABLE_MAIN};
use sluice::kernel::rule::RuleKey;
use sluice::kernel::wireguard::PeerKey;
use sluice::model::{Authority, World};
use sluice::net::Family;
use sluice::reconcile::Moment;
use sluice::router::apply::{Kernel, Leave, Mirrors};
use sluice::router::desired::RouterChanges;
use sluice::router::names::{BRIDGE, TUNNEL_TABLE, WIREGUARD, is_tunnel, is_vxlan, vxlan};
use sluice::router::overlay_guard;
use sluice::router::plan::Plan;
use sluice::subsystem::Kinds;

use super::router::{Inputs, Setup, learned, setup, start, step};
use super::support::memory::ways::{lose_routes, needed};
use super::support::memory::{Faults, MemoryKernel, Object, State};
use super::support::random::{Random, for_many};

const STEPS: usize = 80;
/// So many rounds are enough to settle when nothing fails any more.
const ROUNDS_TO_SETTLE: usize = 12;

#[test]
fn whatever_happens_no_route_is_taken_away_in_between_and_the_kernel_becomes_what_is_wanted() {
    let counts = RefCell::new(Counts::default());
    let counting = std::panic::AssertUnwindSafe(&counts);
    for_many(60, move |random| {
        let mut walk = Walk::new(random);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.run()));
        if let Err(panic) = run {
            println!("What happened:\n  {}", walk.story.join("\n  "));
            std::panic::resume_unwind(panic);
        }
        counting.borrow_mut().add(&walk.counts);
    });
    let counts = counts.into_inner();
    println!("{counts:?}");
    assert!(counts.all().iter().all(|count| *count > 0), "something never happened: {counts:?}");
}

/// One run of the program.
struct Agent {
    plan: Plan,
    mirrors: Mirrors<MemoryKernel>,
    authority: Authority,
    /// All neighbours have said all that they have.
    routes_are_complete: bool,
    /// Routes that this run has heard of.
    heard: BTreeSet<String>,
    cleared: bool,
}

struct Walk<'r> {
    random: &'r mut Random,
    kernel: MemoryKernel,
    setup: Setup,
    inputs: Inputs,
    remembered: World,
    agent: Agent,
    watch: Rc<RefCell<Watch>>,
    now: Instant,
    /// A failure was injected, or something was damaged, since all was last well: until then the kernel may refuse something.
    disturbed: bool,
    /// Others have changed objects of ours since the last audit.
    damaged: bool,
    story: Vec<String>,
    counts: Counts,
}

/// Looks at the kernel after every act.
#[derive(Default)]
struct Watch {
    last: State,
    /// Objects that are desired and existed at the start of the round: they must not go in between.
    stays: State,
    leave: Option<Leave>,
    /// Ranges to which nothing may be sent unencrypted.
    walled: Vec<IpNet>,
    /// Devices of plain tunnels by which packets are received: what led through them in front of a wall serves until all routes are known.
    received: BTreeSet<LinkName>,
    heard: BTreeSet<String>,
    /// Tunnels are of another kind from now on, or somebody has damaged something.
    excused: bool,
    acts: Vec<String>,
    seen: Vec<String>,
}

/// How often what happened, so that a walk that tests nothing is seen to.
#[derive(Default, Debug)]
struct Counts {
    acts: usize,
    settled: usize,
    failures: usize,
    damages: usize,
    kills: usize,
    speakers: usize,
    idle_restarts: usize,
    routes: usize,
    tunnels: usize,
    /// Changes of the kind of tunnels that is sent by.
    changes: usize,
}

impl Counts {
    fn all(&self) -> [usize; 10] {
        let Counts { acts, settled, failures, damages, kills, speakers, idle_restarts, routes, tunnels, changes } =
            *self;
        [acts, settled, failures, damages, kills, speakers, idle_restarts, routes, tunnels, changes]
    }

    fn add(&mut self, other: &Counts) {
        let Counts { acts, settled, failures, damages, kills, speakers, idle_restarts, routes, tunnels, changes } =
            self;
        let all = [acts, settled, failures, damages, kills, speakers, idle_restarts, routes, tunnels, changes];
        all.into_iter().zip(other.all()).for_each(|(sum, count)| *sum += count);
    }
}

impl Agent {
    fn start(kernel: &MemoryKernel, setup: &Setup) -> Agent {
        let tunnels = kernel.state().tunnels.into_iter().filter(|(name, _)| is_tunnel(&name.0));
        Agent {
            plan: Plan::new(setup.config.clone(), setup.families).with_tunnels(tunnels.collect()),
            mirrors: Mirrors::new(kernel.router_targets_of(setup.config.backend)),
            authority: Authority::Nothing,
            routes_are_complete: false,
            heard: BTreeSet::new(),
            cleared: false,
        }
    }

    fn mark(&mut self, changed: &RouterChanges) {
        self.heard.extend(changed.routes.iter().map(|key| format!("route {key}")));
        self.mirrors.mark(changed);
    }

    fn take_in(&mut self, world: &World, authority: Authority) {
        self.authority = authority;
        if authority > Authority::Nothing {
            let changed = self.plan.update(world);
            self.mark(&changed);
        }
    }

    fn learn(&mut self, changes: &[RouteChange]) {
        let changed = self.plan.learn(changes);
        self.mark(&changed);
    }

    fn leave(&self) -> Leave {
        Leave { authority: self.authority, routes_are_complete: self.routes_are_complete }
    }

    /// Desired kernel objects of the router.
    fn wanted(&self) -> State {
        let desired = self.plan.desired();
        State {
            bridges: desired.bridge.map(|bridge| (LinkName(BRIDGE.into()), bridge)).into_iter().collect(),
            sets: desired.sets.clone(),
            elements: desired.elements.clone(),
            rules: desired.rules.clone(),
            router_table: desired.table.clone(),
            passages: needed(&desired.passages),
            receive_ports: desired.receive_ports.clone(),
            tunnels: self.plan.routes().tunnels().clone(),
            overlay_devices: desired.overlay_devices.clone(),
            overlay_entries: self.plan.routes().entries().clone(),
            wireguard_devices: desired.wireguard_devices.clone(),
            wireguard_peers: desired.wireguard_peers.clone(),
            routes: self.plan.routes().routes().iter().map(|(key, route)| (key.clone(), route.clone())).collect(),
            source_rules: desired.source_rules.clone(),
            ..State::default()
        }
    }
}

impl Watch {
    fn acted(&mut self, state: &State, object: &Object) {
        self.acts.push(object.to_string());
        // Rules are written together, and so is a table, so that what each of them does cannot be told. A range that one peer is given goes
        // from the one that had it, which is written as well.
        let is_told = !matches!(object, Object::Rule(_) | Object::InTable(_) | Object::WireguardPeer(_));
        if *state == self.last && !self.excused && is_told {
            self.seen.push(format!("{object} was written as it was"));
        }
        let gone = |before: &State| missing(before, state);
        let lost = gone(&self.stays);
        if !self.excused && !lost.is_empty() {
            self.seen.push(format!("{object}: what is wanted and was there is gone: {lost:?}"));
        }
        let past_wall = if let Object::Route(key) = object { self.is_past_wall(key) } else { false };
        let gone = if past_wall { Vec::new() } else { gone(&self.last) };
        let leave = self.leave.expect("acts happen in rounds");
        let unheard = |what: &String| !self.heard.contains(what);
        // A peer is that of a Node, whatever was learned.
        let is_way = |what: &String| ["tunnel", "device", "entry"].iter().any(|kind| what.starts_with(kind));
        let is_route = |what: &String| what.starts_with("route") && unheard(what) || is_way(what);
        let is_device = matches!(object, Object::Tunnel(_) | Object::OverlayDevice(_) | Object::WireguardDevice(_));
        // One of another kind, or made anew, has lost its routes: they are put back in the same round.
        let is_excused = self.excused && is_device && gone.iter().all(|what| what.starts_with("route"));
        if leave.authority != Authority::Complete && !gone.is_empty() && !is_excused {
            self.seen.push(format!("{object}: {gone:?} went before the cluster was known"));
        }
        if !leave.routes_are_complete && !self.excused && gone.iter().any(is_route) {
            self.seen.push(format!("{object}: {gone:?} went before all routes were known"));
        }
        if !self.excused && is_device && gone.iter().any(|what| what.starts_with("route")) {
            self.seen.push(format!("{object} took routes along: {gone:?}"));
        }
        for name in state.overlay_devices.keys().filter(|name| is_vxlan(&name.0)) {
            let came = !self.last.overlay_devices.contains_key(name);
            let lost_guard = is_guarded(&self.last, name) && !is_guarded(state, name);
            if !self.excused && (came || lost_guard) && !is_guarded(state, name) {
                self.seen.push(format!("{object}: {name} is not guarded"));
            }
        }
        self.last = state.clone();
    }

    /// Returns whether a route was there by which packets would leave unencrypted that shall not: it goes, whatever is known, unless its tunnel is one of those by which
    /// packets are received still.
    fn is_past_wall(&self, key: &RouteKey) -> bool {
        let serves = |route: &Arc<Route>| route.next_hops.iter().all(|hop| self.received.contains(&hop.link));
        let is_complete = self.leave.is_some_and(|leave| leave.routes_are_complete);
        let is_plain = |route: &Arc<Route>| {
            route.next_hops.iter().any(|hop| hop.link.0 != WIREGUARD) && (is_complete || !serves(route))
        };
        key.table == TABLE_MAIN
            && self.last.routes.get(key).is_some_and(is_plain)
            && self.walled.iter().any(|range| range.contains(&key.destination))
    }
}

/// Returns whether the rules of a backend that keep others from sending into a device of `vxlan` are there.
fn is_guarded(state: &State, device: &LinkName) -> bool {
    let family = if vxlan(Family::V4) == *device { Family::V4 } else { Family::V6 };
    let guards = |piece: &Piece| overlay_guard::guards_vxlan(piece) && piece.family() == family;
    let chains = overlay_guard::guarding_vxlan(family);
    state.rules.keys().any(guards) || chains.iter().all(|chain| state.router_table.contains_key(chain))
}

/// Objects of the router's kinds that one state has and the other lacks.
fn missing(before: &State, after: &State) -> Vec<String> {
    fn keys<K: Ord + ToString, V>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>, kind: &str) -> Vec<String> {
        let gone = before.keys().filter(|key| !after.contains_key(key));
        gone.map(|key| format!("{kind} {}", key.to_string())).collect()
    }
    [
        keys(&before.bridges, &after.bridges, "bridge"),
        keys(&before.sets, &after.sets, "set"),
        keys(&before.elements, &after.elements, "element"),
        keys(&before.rules, &after.rules, "rules"),
        keys(&before.router_table, &after.router_table, "nf_tables"),
        keys(&before.passages, &after.passages, "passage"),
        keys(&before.receive_ports, &after.receive_ports, "port"),
        keys(&before.tunnels, &after.tunnels, "tunnel"),
        keys(&before.overlay_devices, &after.overlay_devices, "device"),
        keys(&before.overlay_entries, &after.overlay_entries, "entry"),
        keys(&before.wireguard_devices, &after.wireguard_devices, "device"),
        keys(&before.wireguard_peers, &after.wireguard_peers, "peer"),
        keys(&before.routes, &after.routes, "route"),
        keys(&before.source_rules, &after.source_rules, "source rule"),
    ]
    .concat()
}

impl<'r> Walk<'r> {
    fn new(random: &'r mut Random) -> Walk<'r> {
        let kernel = MemoryKernel::new(State::of_others());
        let watch = Rc::new(RefCell::new(Watch::default()));
        let observer = watch.clone();
        kernel.with(|machine| {
            machine.observer = Some(Box::new(move |state, object| observer.borrow_mut().acted(state, object)));
        });
        let setup = setup(random);
        let agent = Agent::start(&kernel, &setup);
        let inputs = start();
        Walk {
            remembered: inputs.world.clone(),
            random,
            kernel,
            setup,
            inputs,
            agent,
            watch,
            now: Instant::now(),
            disturbed: false,
            damaged: false,
            story: Vec::new(),
            counts: Counts::default(),
        }
    }

    fn run(&mut self) {
        self.restart();
        for _ in 0..STEPS {
            match self.random.below(100) {
                0..=49 => self.change(),
                50..=59 => self.work(),
                60..=66 => self.damage(),
                67..=73 => self.restart(),
                74..=79 => self.kill(),
                80..=84 => self.replace_speaker(),
                85..=88 => drop(self.audit()),
                _ => self.settle(),
            }
        }
        self.know_everything();
        self.settle();
        self.counts.acts = usize::try_from(self.kernel.with(|machine| machine.acts)).expect("few");
        self.clean_up();
    }

    fn tell(&mut self, what: impl Into<String>) {
        self.story.push(what.into());
    }

    fn change(&mut self) {
        for _ in 0..1 + self.random.below(3) {
            let (what, changed) = step(&mut self.inputs, &mut self.agent.plan, self.random);
            self.tell(what);
            self.agent.mark(&changed);
        }
        self.keep_complete();
        if self.random.chance(70) {
            self.work();
        }
    }

    /// A running program does not forget what it knows.
    fn keep_complete(&mut self) {
        self.inputs.world.authority.proxy = Authority::Complete;
        self.inputs.world.authority.router = Authority::Complete;
        let changed = self.agent.plan.update(&self.inputs.world);
        self.agent.mark(&changed);
    }

    /// One round or a few, in which steps and reads may fail.
    fn work(&mut self) {
        if self.random.chance(40) {
            let faults = Faults::by_chance(self.random);
            self.kernel.with(|machine| machine.faults = faults);
            self.disturbed = true;
        }
        for _ in 0..1 + self.random.below(3) {
            self.round();
            self.check_rest();
            if self.random.chance(50) {
                self.pass_until_retry();
            }
        }
        self.kernel.with(|machine| machine.faults = Faults::none());
    }

    fn pass_until_retry(&mut self) {
        self.now = self.agent.mirrors.retry_at().map_or(self.now, |at| at.max(self.now));
    }

    /// Whoever is settled has nothing to come back for, and nobody comes back at the same moment.
    fn check_rest(&self) {
        let (settled, due) = (self.agent.mirrors.is_settled(), self.agent.mirrors.retry_at());
        assert!(due.is_none_or(|due| !settled && due > self.now), "settled: {settled}, {due:?}");
    }

    fn moment(&mut self) -> Moment {
        Moment { now: self.now, jitter: self.random.next() as u32 }
    }

    fn round(&mut self) {
        let at = self.moment();
        let before = self.kernel.state();
        let wanted = self.agent.wanted();
        let there: Vec<LinkName> = before.tunnels.keys().cloned().collect();
        {
            let mut watch = self.watch.borrow_mut();
            watch.stays = both(&before, &wanted);
            watch.last = before;
            watch.leave = Some(self.agent.leave());
            watch.walled = self.agent.plan.routes().walled().collect();
            let has_tunnels = self.setup.config.overlay.is_some_and(|overlay| overlay.device_of_each_node().is_some());
            let tunnels = there.into_iter().filter(|name| has_tunnels && is_tunnel(&name.0));
            watch.received = tunnels.chain(wanted.overlay_devices.keys().cloned()).collect();
            watch.heard.clone_from(&self.agent.heard);
            watch.excused |= self.damaged;
        }
        let leave = self.agent.leave();
        let takes_over = self.kernel.clone().has_other_backend();
        let translating = |state: &State| -> BTreeSet<String> {
            let is_base = |content: &Content| matches!(content, Content::Chain(chain) if chain.base.is_some());
            let bases = state.router_table.iter().filter(|(_, content)| is_base(content));
            bases.map(|(object, _)| object.to_string()).chain(state.rules.keys().map(ToString::to_string)).collect()
        };
        let before = translating(&self.kernel.state());
        let Agent { plan, mirrors, cleared, .. } = &mut self.agent;
        let round = mirrors.round(plan.desired(), plan.routes(), leave, at);
        let after = translating(&self.kernel.state());
        assert!(
            leave.authority == Authority::Complete || !takes_over || after.is_subset(&before),
            "rules that know a part of the nodes come beside the other backend's: {:?}",
            after.difference(&before)
        );
        if leave.authority == Authority::Complete && !*cleared && mirrors.has_replaced_abandoned() {
            *cleared = true;
            mirrors.remove_abandoned();
        }
        if mirrors.reflections().iter().any(|family| family.trouble().is_some()) {
            self.counts.failures += 1;
        }
        let acts = std::mem::take(&mut self.watch.borrow_mut().acts).join(", ");
        self.tell(format!("a round of {} steps by {leave:?}: {acts}", round.steps));
        let seen = std::mem::take(&mut self.watch.borrow_mut().seen);
        assert!(seen.is_empty(), "{seen:#?}");
        let (refused, damage) =
            self.kernel.with(|machine| (std::mem::take(&mut machine.refused), machine.foreign_damage()));
        assert!(damage.is_empty(), "what belongs to others was touched: {damage:#?}");
        assert!(self.disturbed || refused.is_empty(), "the kernel refused, and nobody had disturbed: {refused:#?}");
    }

    /// Somebody changes one thing of ours.
    fn damage(&mut self) {
        let foreign = self.kernel.with(|machine| machine.foreign.clone());
        let random = &mut *self.random;
        let done = self.kernel.with(|machine| hurt(&mut machine.state, &foreign, random));
        let Some(done) = done else { return };
        self.tell(format!("somebody {done}"));
        self.counts.damages += 1;
        (self.disturbed, self.damaged) = (true, true);
        if self.random.chance(50) {
            self.tell("the monitor notices");
            let at = self.moment();
            for notice in [Notice::Routes, Notice::Rules, Notice::RoutingRules] {
                self.agent.mirrors.audit_after(notice, at);
            }
        }
    }

    /// The program is killed before one of its steps, and started again.
    fn kill(&mut self) {
        let (what, changed) = step(&mut self.inputs, &mut self.agent.plan, self.random);
        self.tell(what);
        self.agent.mark(&changed);
        self.keep_complete();
        let steps = self.random.below(8) as u32;
        self.kernel.with(|machine| machine.faults.alive_for = Some(steps));
        self.disturbed = true;
        self.round();
        self.kernel.with(|machine| machine.faults = Faults::none());
        self.tell(format!("it is killed after {steps} steps"));
        self.counts.kills += 1;
        self.start(false);
    }

    fn restart(&mut self) {
        let was_settled = self.random.chance(40);
        if was_settled {
            self.know_everything();
            self.say_again();
            self.settle();
        }
        self.start(was_settled);
    }

    /// The program starts, with more or less knowledge.
    fn start(&mut self, was_settled: bool) {
        let other = !was_settled && self.random.chance(15);
        if other {
            self.setup = setup(self.random);
            self.watch.borrow_mut().excused = true;
            self.tell(format!("flags are others: {:?}", self.setup.config.overlay));
        }
        if !was_settled && !other && self.random.chance(40) && self.send_by_another_kind() {
            self.counts.changes += 1;
        }
        self.agent = Agent::start(&self.kernel, &self.setup);
        self.tell("the program starts");
        let passwords = self.agent.plan.set_passwords(self.inputs.passwords.clone());
        self.agent.mark(&passwords);
        let stands = self.agent.plan.stand(self.inputs.stage);
        self.agent.mark(&stands);
        if was_settled {
            let acts = self.kernel.with(|machine| machine.acts);
            for authority in [Authority::Remembered, Authority::Partial, Authority::Complete] {
                self.agent.take_in(&self.inputs.world, authority);
                self.round();
            }
            self.hear_everything();
            self.round();
            // Where Node objects give all routes and there is no neighbour nothing is waited for, and what a walk says nevertheless is news.
            let plan = &self.agent.plan;
            let has_neighbours = !plan.desired().peers.is_empty() || plan.routes().given().next().is_none();
            let written = self.kernel.with(|machine| machine.acts) - acts;
            assert!(written == 0 || !has_neighbours, "a restart with everything in place wrote {written} times");
            self.counts.idle_restarts += 1;
            return;
        }
        if self.random.chance(40) {
            let remembered = self.remembered.clone();
            self.tell("it remembers");
            self.agent.take_in(&remembered, Authority::Remembered);
            self.work();
        }
        if self.random.chance(40) {
            self.tell("a part is known");
            self.agent.take_in(&self.inputs.world, Authority::Partial);
            self.work();
        }
        self.agent.take_in(&self.inputs.world, Authority::Complete);
        self.work();
        if self.random.chance(80) {
            self.hear_everything();
        }
    }

    /// Packets are sent by a kind of tunnels that was received by, and received by the former one: nothing that stays may be touched. Returns whether
    /// there was another kind.
    fn send_by_another_kind(&mut self) -> bool {
        let Some(overlay) = self.setup.config.overlay else { return false };
        let Some(encapsulation) = self.random.pick_from(overlay.received.kinds()) else { return false };
        let received = Received::besides(encapsulation, overlay.kinds());
        let overlay = Overlay { encapsulation, received, ..overlay };
        self.setup.config = Arc::new(RouterConfig { overlay: Some(overlay), ..(*self.setup.config).clone() });
        self.tell(format!("packets are sent by {}", encapsulation.name()));
        true
    }

    /// Neighbours tell what they have, in no order and not at once; then it is known that this was all.
    fn hear_everything(&mut self) {
        let mut all: Vec<(IpNet, Vec<IpAddr>)> = self.inputs.learned.clone().into_iter().collect();
        while !all.is_empty() {
            let (prefix, hops) = all.swap_remove(self.random.below(all.len()));
            self.agent.learn(&[learned(prefix, &hops)]);
            if self.random.chance(40) {
                self.round();
            }
        }
        let changed = self.agent.plan.drop_stale_routes();
        self.agent.mark(&changed);
        self.agent.routes_are_complete = true;
        // As the driver does when the last neighbour has spoken.
        self.tell("everything is heard");
    }

    /// Another speaker takes the place of the one before, and hears less than that one.
    fn replace_speaker(&mut self) {
        self.agent.plan.keep_routes_as_stale();
        self.agent.routes_are_complete = false;
        self.tell("another speaker begins");
        self.round();
        let all: Vec<IpNet> = self.inputs.learned.keys().copied().collect();
        for prefix in all {
            if self.random.chance(30) {
                self.inputs.learned.remove(&prefix);
            }
        }
        self.hear_everything();
        self.counts.speakers += 1;
        self.work();
    }

    fn audit(&mut self) -> Vec<String> {
        let at = self.moment();
        let mut found = Vec::new();
        // An audit may be in the middle of a pass: finish that one, then make a whole one.
        for _ in 0..2 {
            loop {
                let (portion, finished) = self.agent.mirrors.audit_portion(at);
                found.extend(portion.iter().map(|found| format!("{found:?}")));
                if finished {
                    break;
                }
            }
        }
        self.tell(format!("an audit finds {found:?}"));
        found
    }

    fn know_everything(&mut self) {
        self.agent.take_in(&self.inputs.world, Authority::Complete);
        if !self.agent.routes_are_complete {
            self.hear_everything();
        }
    }

    /// Neighbours withdraw what is held back because of a Node that is none any more, or several, and say it again: another run knows of no such Node.
    fn say_again(&mut self) {
        let routes = self.agent.plan.routes();
        let held = self.inputs.learned.iter().filter(|(prefix, _)| routes.has_lost(**prefix));
        let held: Vec<(IpNet, Vec<IpAddr>)> = held.map(|(prefix, hops)| (*prefix, hops.clone())).collect();
        for (prefix, hops) in held {
            self.agent.learn(&[learned(prefix, &[])]);
            self.agent.learn(&[learned(prefix, &hops)]);
        }
    }

    /// Nothing fails any more: the kernel becomes what is wanted.
    fn settle(&mut self) {
        self.kernel.with(|machine| machine.faults = Faults::none());
        if self.damaged {
            self.rounds_until_quiet();
            self.audit();
        }
        self.rounds_until_quiet();
        let reflections = self.agent.mirrors.reflections();
        let trouble: Vec<_> = reflections.iter().filter_map(|family| family.trouble().cloned()).collect();
        assert!(trouble.is_empty(), "nothing fails, and there is trouble: {trouble:#?}");
        if self.agent.leave() != (Leave { authority: Authority::Complete, routes_are_complete: true }) {
            return;
        }
        self.must_be_as_wanted();
        (self.damaged, self.disturbed) = (false, false);
        self.watch.borrow_mut().excused = false;
        let acts = self.kernel.with(|machine| machine.acts);
        self.round();
        assert!(self.audit().is_empty(), "all is well, and an audit finds something");
        self.round();
        assert_eq!(acts, self.kernel.with(|machine| machine.acts), "a round with nothing to do wrote");
        self.tell("settled");
        self.counts.settled += 1;
        self.counts.routes += self.agent.plan.routes().routes().len();
        self.counts.tunnels += self.agent.plan.routes().tunnels().len();
        if self.random.chance(30) {
            self.remembered = self.inputs.world.clone();
        }
    }

    fn rounds_until_quiet(&mut self) {
        for _ in 0..ROUNDS_TO_SETTLE {
            self.pass_until_retry();
            self.round();
            if self.agent.mirrors.is_settled() {
                break;
            }
        }
    }

    fn must_be_as_wanted(&mut self) {
        let (state, foreign) = self.kernel.with(|machine| (machine.state.clone(), machine.foreign.clone()));
        let mut wanted = self.agent.wanted();
        // Rules of ranges that our own Node has no more stay until it has others, where packets are encrypted.
        let keeps = self.agent.plan.desired().keeps_source_rules;
        let stays = |rule: &&RuleKey| rule.table == TUNNEL_TABLE && *keeps.of(Family::from(rule.source));
        wanted.source_rules.extend(state.source_rules.keys().filter(stays).map(|rule| (*rule, ())));
        same(&state.bridges, &foreign.bridges, &wanted.bridges);
        same(&state.sets, &foreign.sets, &wanted.sets);
        same(&state.elements, &foreign.elements, &wanted.elements);
        same(&state.rules, &foreign.rules, &wanted.rules);
        same(&state.router_table, &foreign.router_table, &wanted.router_table);
        same(&state.passages, &foreign.passages, &wanted.passages);
        same(&state.receive_ports, &foreign.receive_ports, &wanted.receive_ports);
        same(&state.tunnels, &foreign.tunnels, &wanted.tunnels);
        same(&state.overlay_devices, &foreign.overlay_devices, &wanted.overlay_devices);
        same(&state.overlay_entries, &foreign.overlay_entries, &wanted.overlay_entries);
        same(&state.wireguard_devices, &foreign.wireguard_devices, &wanted.wireguard_devices);
        same(&state.wireguard_peers, &foreign.wireguard_peers, &wanted.wireguard_peers);
        same(&state.routes, &foreign.routes, &wanted.routes);
        same(&state.source_rules, &foreign.source_rules, &wanted.source_rules);
        for (setting, rule) in &self.agent.plan.desired().settings {
            if let Some(value) = state.settings.get(setting) {
                assert!(rule.given(value).is_none_or(|wanted| wanted == value), "{setting} is {value}, not {rule:?}");
            }
        }
        assert!(self.agent.mirrors.is_settled(), "nothing fails, and it does not settle");
    }

    /// The program is asked to take everything away, at first with failures, and ended in the middle.
    fn clean_up(&mut self) {
        self.tell("cleaning up");
        self.disturbed = true;
        self.watch.borrow_mut().excused = true;
        let nothing = Plan::new(self.setup.config.clone(), self.setup.families);
        for attempt in 0..4 {
            let random = Random::new(self.random.next());
            let steps = if attempt < 3 { 15 } else { 0 };
            self.kernel.with(|machine| machine.faults = Faults { random, steps, reads: 0, alive_for: None });
            let mut mirrors = Mirrors::new(self.kernel.router_targets());
            mirrors.mark(&RouterChanges::default());
            let leave = Leave { authority: Authority::Complete, routes_are_complete: true };
            for _ in 0..ROUNDS_TO_SETTLE {
                self.now += Duration::from_secs(60);
                let at = self.moment();
                self.watch.borrow_mut().leave = Some(leave);
                mirrors.round(nothing.desired(), nothing.routes(), leave, at);
                if attempt < 3 && self.random.chance(40) {
                    break;
                }
            }
            mirrors.remove_bridge(self.moment());
        }
        let (mut state, foreign) = self.kernel.with(|machine| (machine.state.clone(), machine.foreign.clone()));
        state.settings.clone_from(&foreign.settings);
        assert_eq!(missing(&state, &foreign), Vec::<String>::new(), "something of ours is left");
        assert_eq!(self.kernel.with(|machine| machine.foreign_damage()), Vec::<String>::new());
    }
}

/// Existing objects that are desired.
fn both(there: &State, wanted: &State) -> State {
    fn of<K: Ord + Clone, V: Clone>(there: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> BTreeMap<K, V> {
        let both = there.iter().filter(|(key, _)| wanted.contains_key(key));
        both.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
    State {
        bridges: of(&there.bridges, &wanted.bridges),
        sets: of(&there.sets, &wanted.sets),
        elements: of(&there.elements, &wanted.elements),
        rules: of(&there.rules, &wanted.rules),
        router_table: of(&there.router_table, &wanted.router_table),
        passages: of(&there.passages, &wanted.passages),
        receive_ports: of(&there.receive_ports, &wanted.receive_ports),
        tunnels: of(&there.tunnels, &wanted.tunnels),
        overlay_devices: of(&there.overlay_devices, &wanted.overlay_devices),
        overlay_entries: of(&there.overlay_entries, &wanted.overlay_entries),
        wireguard_devices: of(&there.wireguard_devices, &wanted.wireguard_devices),
        wireguard_peers: of(&there.wireguard_peers, &wanted.wireguard_peers),
        routes: of(&there.routes, &wanted.routes),
        source_rules: of(&there.source_rules, &wanted.source_rules),
        ..State::default()
    }
}

/// One that is ours.
fn one<K: Ord + Clone, V>(of: &BTreeMap<K, V>, foreign: &BTreeMap<K, V>, random: &mut Random) -> Option<K> {
    random.pick_from(of.keys().filter(|key| !foreign.contains_key(key)).cloned())
}

/// Changes a tunnel, or sets it down, or takes its address.
fn change_tunnel(state: &mut State, foreign: &State, random: &mut Random) -> Option<String> {
    let key = one(&state.tunnels, &foreign.tunnels, random)?;
    let tunnel = state.tunnels.get_mut(&key)?;
    tunnel.ttl = 7;
    tunnel.up = random.chance(50);
    tunnel.is_numbered = random.chance(50);
    if !tunnel.up || !tunnel.is_numbered {
        lose_routes(state, &key);
    }
    Some(format!("changes the tunnel {key}"))
}

/// Deletes a device of `wireguard`, or takes its key or its address, or sets it down.
fn hurt_wireguard(state: &mut State, key: &LinkName, random: &mut Random) -> Option<String> {
    match random.below(4) {
        0 => {
            state.wireguard_devices.remove(key);
            state.wireguard_peers.retain(|peer, _| peer.link != *key);
            lose_routes(state, key);
            Some(format!("deletes the device {key}"))
        }
        1 => {
            state.wireguard_devices.get_mut(key)?.has_key = false;
            Some(format!("gives {key} another key"))
        }
        2 => {
            // With its last address a device loses its routes.
            state.wireguard_devices.get_mut(key)?.is_numbered = false;
            lose_routes(state, key);
            Some(format!("takes the address of {key}"))
        }
        _ => {
            state.wireguard_devices.get_mut(key)?.up = false;
            lose_routes(state, key);
            Some(format!("sets {key} down"))
        }
    }
}

/// Removes a peer, or takes what it may use.
fn hurt_peer(state: &mut State, key: &PeerKey, random: &mut Random) -> Option<String> {
    if random.chance(50) {
        state.wireguard_peers.remove(key);
        return Some(format!("removes the peer {key}"));
    }
    state.wireguard_peers.get_mut(key)?.allowed = [].into();
    Some(format!("takes all addresses of the peer {key}"))
}

/// Deletes a device of `vxlan` with all that goes with it, and says which.
fn delete_overlay_device(state: &mut State, key: &LinkName) -> String {
    state.overlay_devices.remove(key);
    state.overlay_entries.retain(|entry, _| entry.link != *key);
    lose_routes(state, key);
    format!("deletes the device {key}")
}

/// Changes one thing of ours, and says what.
#[expect(clippy::too_many_lines, reason = "each kind of damage is a few lines of its own")]
fn hurt(state: &mut State, foreign: &State, random: &mut Random) -> Option<String> {
    match random.below(9) {
        0 => {
            let key = one(&state.routes, &foreign.routes, random)?;
            state.routes.remove(&key);
            Some(format!("deletes the route {key}"))
        }
        1 => {
            let key = one(&state.routes, &foreign.routes, random)?;
            let route = std::sync::Arc::make_mut(state.routes.get_mut(&key)?);
            let hop = std::sync::Arc::make_mut(&mut route.next_hops).first_mut()?;
            hop.gateway = hop.gateway.xor(Some([192, 0, 2, 250].into()));
            Some(format!("turns the route {key} elsewhere"))
        }
        2 => {
            if let Some(key) = one(&state.overlay_devices, &foreign.overlay_devices, random) {
                if random.chance(50) {
                    return Some(delete_overlay_device(state, &key));
                }
                state.overlay_devices.get_mut(&key)?.is_numbered = false;
                lose_routes(state, &key);
                return Some(format!("takes the address of {key}"));
            }
            if let Some(key) = one(&state.wireguard_devices, &foreign.wireguard_devices, random) {
                return hurt_wireguard(state, &key, random);
            }
            let key = one(&state.tunnels, &foreign.tunnels, random)?;
            state.tunnels.remove(&key);
            lose_routes(state, &key);
            Some(format!("deletes the tunnel {key}"))
        }
        3 => {
            if let Some(key) = one(&state.overlay_entries, &foreign.overlay_entries, random) {
                state.overlay_entries.get_mut(&key)?.neighbour = None;
                return Some(format!("deletes the neighbour {key}"));
            }
            if let Some(key) = one(&state.wireguard_peers, &foreign.wireguard_peers, random) {
                return hurt_peer(state, &key, random);
            }
            change_tunnel(state, foreign, random)
        }
        4 => {
            if let Some(key) = one(&state.elements, &foreign.elements, random) {
                state.elements.remove(&key);
                return Some(format!("deletes the element {key}"));
            }
            let elements = state.router_table.keys().filter(|object| matches!(object, InTable::Element(..)));
            let object = random.pick_from(elements.cloned())?;
            state.router_table.remove(&object);
            Some(format!("deletes the {object}"))
        }
        5 if !state.router_table.is_empty() => change_chain(&mut state.router_table),
        5 => {
            let key = one(&state.rules, &foreign.rules, random)?;
            state.rules.get_mut(&key)?.0 = vec!["-j RETURN".into()];
            Some(format!("changes the rules {key}"))
        }
        6 => {
            let key = one(&state.source_rules, &foreign.source_rules, random)?;
            state.source_rules.remove(&key);
            Some(format!("deletes the rule {key}"))
        }
        7 => {
            let key = one(&state.receive_ports, &foreign.receive_ports, random)?;
            state.receive_ports.remove(&key);
            Some(format!("closes the {key}"))
        }
        _ => {
            let bridge = state.bridges.get_mut(&LinkName(BRIDGE.into()))?;
            *bridge = Bridge { mtu: Some(1280), up: false };
            Some("sets the bridge down".to_owned())
        }
    }
}

/// Takes a rule out of the first chain of a table.
fn change_chain(table: &mut BTreeMap<InTable, Content>) -> Option<String> {
    let (object, chain) = table.iter_mut().find_map(|(object, content)| match content {
        Content::Chain(chain) => Some((object, chain)),
        _ => None,
    })?;
    std::sync::Arc::make_mut(chain).rules.pop()?;
    Some(format!("changes the {object}"))
}

/// Asserts that the kernel holds exactly the foreign and the desired objects.
fn same<K: Ord + Clone + Debug, V: Clone + PartialEq + Debug>(
    found: &BTreeMap<K, V>,
    foreign: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) {
    let mut expected = foreign.clone();
    expected.extend(wanted.iter().map(|(key, value)| (key.clone(), value.clone())));
    let keys: BTreeSet<&K> = found.keys().chain(expected.keys()).collect();
    for key in keys {
        assert_eq!(found.get(key), expected.get(key), "{key:?}: found, and expected");
    }
}
