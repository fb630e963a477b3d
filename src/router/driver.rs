//! The loop of the router: newest World and learned routes → what is wanted → the speaker and the kernel.
//!
//! One task, on a thread of its own, owns the plan and the mirrors; kernel calls block it and nothing else. The speaker has
//! another thread (`bgp::driver`): it gets orders and tells what it learns. Cancelling the task between two turns loses
//! nothing: what is programmed stays, and the next start adopts it.
//!
//! After a start, routes that an earlier run left serve until the speaker has heard everything, of every neighbour that is
//! wanted, or until the time is over for which neighbours keep ours (RFC 4724). So neither a restart of ours, nor one of all
//! nodes together, takes a way from a packet.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::bgp::driver::{Access, Event};
use crate::bgp::speaker::Order;
use crate::config::RouterConfig;
use crate::kernel::monitor::Changes;
use crate::model::{Authority, EventClock, Report, Table, World};
use crate::net::PerFamily;
use crate::observe::health::Pulse;
use crate::reconcile::Moments;

use super::apply::{Kernel, Leave, Mirrors, Round, Targets};
use super::desired::Changed;
use super::host_files::HostFiles;
use super::metrics::Metrics;
use super::plan::Plan;
use super::problem::Problem;
use super::reachable::Reachable;
use super::sessions::{News, Sessions};
use super::told::Told;
use super::withdrawals::Withdrawals;

/// What the loop is fed with and whom it tells.
pub struct Surroundings {
    pub world: watch::Receiver<World>,
    pub clock: Arc<EventClock>,
    /// What others did to the kernel.
    pub disturbances: watch::Receiver<Changes>,
    pub pulse: Pulse,
    /// Of the speaker, whichever it is at the moment.
    pub speaker_pulse: Pulse,
    /// What the cluster is told.
    pub report: watch::Sender<Report>,
    pub metrics: Metrics,
    /// Where others find the speaker.
    pub access: watch::Sender<Option<Access>>,
    /// The service proxy has brought about what it knows, or does not run: addresses may be announced.
    pub served: watch::Receiver<bool>,
    /// Addresses of Services that neighbours may still send traffic for.
    pub believed: watch::Sender<Table<IpAddr, ()>>,
}

/// How long the loop sleeps at most, so that its life can be seen.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The pause between two portions of an audit, in which changes go first.
const BETWEEN_PORTIONS: Duration = Duration::from_millis(5);
/// How long what somebody changed is left alone before it is read: changes come in bursts.
const ROUTES_SETTLE: Duration = Duration::from_millis(20);
const RULES_SETTLE: Duration = Duration::from_millis(500);
const WAYS_SETTLE: Duration = Duration::from_millis(200);
/// How long the speaker waits for the service proxy at the start. One that cannot work keeps no pods from others.
const UNSERVED: Duration = Duration::from_secs(2);
/// How often it is looked how sessions stand, and whether files have changed.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// How many of them a line of the log names.
const NAMED: usize = 5;

/// The router's state between two turns.
pub struct Driver<K: Kernel> {
    config: Arc<RouterConfig>,
    plan: Plan,
    mirrors: Mirrors<K>,
    sessions: Sessions,
    withdrawals: Withdrawals,
    files: HostFiles,
    told: Told,
    around: Surroundings,
    authority: Authority,
    disturbed: Changes,
    routes_read_at: Option<Instant>,
    rules_read_at: Option<Instant>,
    reachable: Reachable,
    ways_asked_at: Option<Instant>,
    next_audit: Instant,
    next_look: Instant,
    audit_found: usize,
    /// How many pod ranges of other nodes have not been learned; `None` when they are to be counted again.
    unlearned: Option<usize>,
    moments: Moments,
    steps: u64,
    cleared: bool,
    synced: bool,
    reached: bool,
    started: Instant,
}

impl<K: Kernel> Driver<K> {
    pub fn new(
        config: Arc<RouterConfig>,
        families: PerFamily<bool>,
        targets: Targets<K>,
        around: Surroundings,
    ) -> Driver<K> {
        let now = Instant::now();
        let disturbed = *around.disturbances.borrow();
        Driver {
            plan: Plan::new(config.clone(), families),
            mirrors: Mirrors::new(targets),
            withdrawals: Withdrawals::default(),
            sessions: Sessions::new(&config, around.speaker_pulse.clone(), around.access.clone()),
            files: HostFiles::new(&config),
            told: Told::default(),
            authority: Authority::Nothing,
            disturbed,
            around,
            routes_read_at: None,
            rules_read_at: None,
            reachable: Reachable::default(),
            ways_asked_at: None,
            next_audit: now + config.sync_period.min(config.routes_sync_period),
            next_look: now,
            audit_found: 0,
            unlearned: None,
            moments: Moments::since(now),
            steps: 0,
            cleared: false,
            synced: false,
            reached: false,
            started: now,
            config,
        }
    }

    /// Runs until `stop` becomes true or the World's publisher is gone.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let deadline = tokio::time::Instant::from_std(self.deadline(Instant::now()));
            let mut events = Vec::new();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                changed = self.around.world.changed() => match changed {
                    // The wait itself has marked the World as seen; the turn must find it new.
                    Ok(()) => self.around.world.mark_changed(),
                    Err(_) => break,
                },
                news = self.sessions.next() => match news {
                    News::Events(told) => events = told,
                    News::Written(number) => {
                        self.withdrawals.written(number);
                        self.publish_believed();
                    }
                    News::Ended => {
                        warn!("The BGP speaker has ended; another one takes its place");
                        self.withdrawals.end();
                        self.publish_believed();
                    }
                },
                Ok(()) = self.around.disturbances.changed() => self.note_disturbances(),
                Ok(()) = self.around.served.changed(), if !self.sessions.is_running() => self.sessions.try_at(Instant::now()),
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.turn(events).await;
        }
        self.sessions.end(self.plan.desired()).await;
    }

    fn deadline(&self, now: Instant) -> Instant {
        let due = [
            self.mirrors.retry_at(),
            self.sessions.deadline(self.plan.desired()),
            self.routes_read_at,
            self.rules_read_at,
            self.ways_asked_at,
            self.reachable.deadline(),
            Some(self.next_audit),
            Some(self.next_look),
        ];
        due.into_iter().flatten().fold(now + HEARTBEAT, Instant::min)
    }

    /// One turn: takes in what is new and brings it to the speaker and into the kernel.
    async fn turn(&mut self, events: Vec<Event>) {
        let begun = Instant::now();
        let learned = !events.is_empty();
        let speaker = self.sessions.generation();
        if begun >= self.next_look {
            self.look_around().await;
        }
        self.take_world().await;
        if self.sessions.is_missing(self.plan.desired()) {
            self.start_speaker().await;
        }
        // What another speaker than the one that runs now has told is nothing that this one will take back.
        if self.sessions.generation() == speaker {
            self.take_events(events);
        }
        self.look_at_disturbances(begun);
        self.look_at_next_hops(begun).await;
        let computed = Instant::now();
        let round = self.round(begun);
        let done = Instant::now();
        self.steps += round.steps;
        self.account(round, learned.then_some(begun), computed, done);
        if done >= self.next_audit {
            self.audit(done);
        }
        self.tell(done);
    }

    /// Takes in the newest World.
    async fn take_world(&mut self) {
        if !self.around.world.has_changed().unwrap_or(false) && self.authority != Authority::Nothing {
            return;
        }
        let world = self.around.world.borrow_and_update().clone();
        let _ = self.around.clock.take();
        self.authority = world.node_authority;
        if self.authority == Authority::Nothing {
            return;
        }
        self.unlearned = None;
        let changed = self.plan.update(&world);
        self.carry_out(&changed).await;
    }

    /// What a change of what is wanted means for the speaker, for the kernel and for files.
    async fn carry_out(&mut self, changed: &Changed) {
        self.mirrors.mark(changed);
        self.files.mark(changed.cni);
        let begun = Instant::now();
        if changed.speaker {
            self.start_speaker().await;
        } else {
            let orders = self.plan.desired().orders(changed);
            self.around.metrics.count(&orders, self.plan.own());
            self.sessions.order(orders).await;
            self.follow_announcements(changed).await;
            if changed.listen {
                self.sessions.listen(self.plan.desired()).await;
            }
        }
        if !changed.peers.is_empty() {
            self.told.forget(&changed.peers);
            self.around.metrics.peers_sync.observe(begun.elapsed().as_secs_f64());
        }
    }

    /// Starts a speaker, or another one in its place. Routes in the kernel serve until it has heard everything.
    /// What it announces first is taken for all: so it begins when the addresses are served.
    async fn start_speaker(&mut self) {
        let now = Instant::now();
        if !self.sessions.is_running() && !*self.around.served.borrow() && now < self.started + UNSERVED {
            self.sessions.try_at(self.started + UNSERVED);
            return;
        }
        let at = self.moments.at(Instant::now());
        let was_there = self.plan.keep_routes_as_stale() || self.mirrors.has_routes(at);
        self.reachable.forget();
        self.sessions.replace(self.plan.desired(), was_there, &self.config).await;
        self.withdrawals.end();
        if self.sessions.is_running() {
            let _ = self.withdrawals.update(self.plan.desired().announcements.keys().map(|prefix| (*prefix, true)));
        }
        self.publish_believed();
    }

    /// Notes which addresses neighbours may still believe in, and says so.
    async fn follow_announcements(&mut self, changed: &Changed) {
        if !self.sessions.is_running() || changed.announcements.is_empty() {
            return;
        }
        let announced = &self.plan.desired().announcements;
        let now = changed.announcements.iter().map(|prefix| (*prefix, announced.contains_key(prefix)));
        if let Some(number) = self.withdrawals.update(now)
            && !self.sessions.ask_written(number).await
        {
            self.withdrawals.written(number);
        }
        self.publish_believed();
    }

    fn publish_believed(&self) {
        self.around.believed.send_replace(self.withdrawals.believed().clone());
    }

    /// Takes in what the speaker tells.
    fn take_events(&mut self, events: Vec<Event>) {
        for event in events {
            self.sessions.note(&event);
            match &event {
                Event::Routes(changes) => {
                    self.around.metrics.received.inc_by(changes.len() as u64);
                    self.reachable.look_at(changes);
                    self.unlearned = None;
                    let changed = self.plan.learn(changes);
                    self.mirrors.mark(&changed);
                }
                Event::Complete => {
                    info!("BGP has heard everything there is to hear");
                    self.unlearned = None;
                    let changed = self.plan.drop_stale_routes();
                    self.mirrors.mark(&changed);
                }
                _ => self.told.event(&event),
            }
        }
    }

    fn round(&mut self, now: Instant) -> Round {
        let routes_are_complete = self.sessions.have_said_all(now, self.plan.desired());
        if self.authority == Authority::Nothing || self.mirrors.is_settled() {
            return Round::default();
        }
        let leave = Leave { authority: self.authority, routes_are_complete };
        let round = self.mirrors.round(self.plan.desired(), self.plan.routes(), leave, self.moments.at(now));
        if self.authority == Authority::Complete && !self.cleared && self.mirrors.is_settled() {
            self.cleared = true;
            for error in self.mirrors.remove_abandoned() {
                warn!(%error, "What an earlier run left in the other tables could not be removed");
            }
        }
        round
    }

    fn account(&self, round: Round, learned: Option<Instant>, computed: Instant, done: Instant) {
        if round.steps == 0 {
            return;
        }
        let metrics = &self.around.metrics;
        metrics.round.observe((done - computed).as_secs_f64());
        metrics.routes_added.inc_by(round.routes_grown as u64);
        metrics.routes_removed.inc_by(round.routes_gone as u64);
        if round.routes_grown + round.routes_gone > 0 {
            metrics.routes_sync.observe((done - computed).as_secs_f64());
            if let Some(learned) = learned {
                metrics.programming.observe((done - learned).as_secs_f64());
            }
        }
        debug!(
            steps = round.steps,
            routes_grown = round.routes_grown,
            routes_gone = round.routes_gone,
            kernel_us = (done - computed).as_micros() as u64,
            "Changes of the router are in the kernel"
        );
    }

    /// Looks at the next portion of the kernel, and repairs at once what somebody changed.
    fn audit(&mut self, now: Instant) {
        let period = self.config.sync_period.min(self.config.routes_sync_period);
        if self.authority == Authority::Nothing {
            self.next_audit = now + period;
            return;
        }
        let (found, finished) = self.mirrors.audit(self.moments.at(now));
        self.audit_found += found.len();
        self.around.metrics.families.found(&found);
        if !found.is_empty() {
            self.steps += self.round(now).steps;
        }
        self.next_audit = now + BETWEEN_PORTIONS;
        if finished {
            debug!(found = self.audit_found, "Everything of the router in the kernel has been compared");
            self.audit_found = 0;
            self.next_audit = now + period;
            self.files.mark(true);
        }
    }

    /// Looks at what tells nothing by itself: files, and how sessions stand.
    async fn look_around(&mut self) {
        self.next_look = Instant::now() + LOOK_AROUND;
        if let Some(passwords) = self.files.passwords(self.config.peers.len()) {
            let changed = self.plan.set_passwords(passwords);
            self.carry_out(&changed).await;
        }
        self.sessions.show(&self.around.metrics.peers).await;
    }

    fn note_disturbances(&mut self) {
        let newest = *self.around.disturbances.borrow_and_update();
        let now = Instant::now();
        if newest.routes != self.disturbed.routes && self.routes_read_at.is_none() {
            self.routes_read_at = Some(now + ROUTES_SETTLE);
        }
        if newest.rules != self.disturbed.rules && self.rules_read_at.is_none() {
            self.rules_read_at = Some(now + RULES_SETTLE);
        }
        if newest.ways != self.disturbed.ways && self.ways_asked_at.is_none() {
            self.ways_asked_at = Some(now + WAYS_SETTLE);
        }
        self.disturbed = newest;
    }

    /// Compares what others say they changed, when they have had a moment to finish.
    fn look_at_disturbances(&mut self, now: Instant) {
        let at = self.moments.at(now);
        if self.routes_read_at.is_some_and(|due| due <= now) {
            self.routes_read_at = None;
            let found = self.mirrors.audit_routing(at);
            self.around.metrics.families.found(&found);
        }
        if self.rules_read_at.is_some_and(|due| due <= now) {
            self.rules_read_at = None;
            let found = self.mirrors.audit_rules(at);
            self.around.metrics.families.found(&found);
        }
    }

    /// Asks the kernel for the next hops that are new, or for all when something has changed, and tells the speaker which are
    /// lost.
    async fn look_at_next_hops(&mut self, now: Instant) {
        if self.ways_asked_at.is_some_and(|due| due <= now) {
            self.ways_asked_at = None;
            self.reachable.look_at_all(self.plan.routes().next_hops().collect());
        }
        for next_hop in self.reachable.take_due() {
            let lead = self.mirrors.leads_to(next_hop);
            self.reachable.note(next_hop, lead, self.plan.is_node(next_hop), now);
        }
        if let Some(lost) = self.reachable.settle(now) {
            let first: Vec<String> = lost.iter().take(NAMED).map(ToString::to_string).collect();
            warn!(count = lost.len(), lost = first.join(" "), "Other next hops than before cannot be reached");
            self.sessions.order(vec![Order::Unreachable(lost)]).await;
        }
    }

    /// How many pod ranges of other nodes no route in the kernel leads to. The plan is asked only when it has changed: it looks at
    /// every node.
    fn unreached(&mut self) -> usize {
        let unlearned = *self.unlearned.get_or_insert_with(|| self.plan.unreached().count());
        unlearned + self.mirrors.missing_routes(self.plan.routes())
    }

    /// Logs troubles that began or ended, and publishes how the router stands.
    fn tell(&mut self, now: Instant) {
        let file_trouble = self.files.write(self.plan.desired().cni.as_ref(), self.authority, now);
        let account = &mut self.around.metrics.families;
        let mut troubles: Vec<String> =
            account.trouble("CNI file", file_trouble.as_deref().map(|text| (1, text))).into_iter().collect();
        troubles.extend(account.families(&self.mirrors.reflections()));
        if self.told.problems(&self.plan.desired().problems) {
            let sentence = |Problem { about, text }: &Problem| format!("{about}: {text}");
            let problems = self.plan.desired().problems.iter().map(sentence).collect();
            self.around.report.send_modify(|report| report.problems = problems);
        }
        let unreached = self.unreached();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let metrics = &self.around.metrics;
        metrics.problems.set(count(self.plan.desired().problems.len()));
        metrics.routes.set(count(self.plan.routes().routes().len()));
        metrics.unreached.set(count(unreached));
        let is_well = self.authority != Authority::Nothing && troubles.is_empty() && self.sessions.is_running();
        if !self.synced && is_well {
            self.synced = true;
            info!(
                neighbours = self.plan.desired().peers.len(),
                announcements = self.plan.desired().announcements.len(),
                authority = ?self.authority,
                steps = self.steps,
                took_ms = (now - self.started).as_millis() as u64,
                "The router is in force"
            );
        }
        // A node that is down for long must not keep all the others from being ready.
        if !self.reached && self.synced && (unreached == 0 || self.sessions.patience_is_over(now)) {
            self.reached = true;
            info!(unreached, took_ms = (now - self.started).as_millis() as u64, "Pods of other nodes can be reached");
        }
        self.sessions.beat_for_nobody(now);
        // As soon as it is true, and then for good. Where another program makes the pods' network it is not ours to say.
        let is_ours = self.plan.desired().bridge.is_some() && self.plan.own().all_pod_cidrs().next().is_some();
        let is_ours = is_ours && (self.config.internal_peers || self.config.cni_file.is_some());
        let is_there = is_ours && self.reached && self.authority == Authority::Complete;
        self.around
            .report
            .send_if_modified(|report| is_there && !std::mem::replace(&mut report.network_is_there, true));
        self.around.pulse.beat(now);
        self.around.pulse.ready(self.reached);
        self.around.pulse.trouble((!troubles.is_empty()).then(|| troubles.join("; ")));
    }
}
