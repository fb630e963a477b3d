//! The loop of the service proxy: newest World → plan → kernel.
//!
//! One task, on a thread of its own, owns the plan and the mirrors; kernel calls block it and nothing else.
//! It has one wait, for a newer World, a disturbance in the kernel, or the next deadline (a retry, a
//! draining destination, the next portion of an audit). Cancelling it between two turns loses nothing:
//! what is programmed stays, and the next start adopts it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::config::ProxyConfig;
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::monitor::Changes;
use crate::model::{Authority, EventClock, Table, World};
use crate::net::PerFamily;
use crate::observe::health::Pulse;
use crate::reconcile::Moments;

use super::apply::{Kernel, Mirrors, Round, Targets};
use super::desired::Changed;
use super::metrics::Metrics;
use super::owners::Owner;
use super::plan::Plan;
use super::udp_flows::Forgetting;

/// What the loop is fed with and whom it tells.
pub struct Surroundings {
    pub world: watch::Receiver<World>,
    pub clock: Arc<EventClock>,
    /// What others did to the kernel.
    pub disturbances: watch::Receiver<Changes>,
    /// Addresses that routers may still send traffic for (`closing`). Empty where nothing announces any.
    pub believed: watch::Receiver<Table<IpAddr, ()>>,
    /// Where it is said that what was known at the start is served.
    pub served: watch::Sender<bool>,
    /// Which Service every virtual service belongs to, for whoever reads counters.
    pub owners: watch::Sender<Table<ServiceKey, Owner>>,
    pub pulse: Pulse,
    pub metrics: Metrics,
}

/// How long the loop sleeps at most, so that its life can be seen.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The pause between two portions of an audit, in which changes go first.
const BETWEEN_PORTIONS: Duration = Duration::from_millis(5);
/// How long devices and routes that somebody changed are left alone before they are read.
const ROUTING_SETTLE: Duration = Duration::from_millis(20);
/// How long rules that somebody changed are left alone before they are read: others change them in bursts,
/// and reading them starts programs.
const RULES_SETTLE: Duration = Duration::from_millis(500);

/// The proxy's state between two turns.
pub struct Driver<K: Kernel> {
    config: Arc<ProxyConfig>,
    plan: Plan,
    mirrors: Mirrors<K>,
    around: Surroundings,
    authority: Authority,
    disturbed: Changes,
    routing_read_at: Option<Instant>,
    rules_read_at: Option<Instant>,
    next_audit: Instant,
    audit_found: usize,
    moments: Moments,
    /// Steps performed since the start.
    steps: u64,
    /// Time spent since the start on calculating, and on comparing and changing the kernel.
    computing: Duration,
    programming: Duration,
    /// When a World said something for the first time.
    first_world: Option<Instant>,
    adopted: bool,
    cleared: bool,
    synced: bool,
    flows_stay: FlowsStay,
    started: Instant,
}

/// What was said of flows that the kernel does not forget, since it last did.
#[derive(Default)]
struct FlowsStay {
    failing: bool,
    given_up: bool,
}

impl<K: Kernel> Driver<K> {
    pub fn new(
        config: Arc<ProxyConfig>,
        families: PerFamily<bool>,
        kernel: (u32, u32),
        targets: Targets<K>,
        around: Surroundings,
    ) -> Driver<K> {
        let now = Instant::now();
        let disturbed = *around.disturbances.borrow();
        Driver {
            plan: Plan::new(config.clone(), families, kernel),
            mirrors: Mirrors::new(targets, config.excluded_cidrs.clone()),
            authority: Authority::Nothing,
            disturbed,
            around,
            routing_read_at: None,
            rules_read_at: None,
            next_audit: now + config.sync_period,
            audit_found: 0,
            moments: Moments::since(now),
            steps: 0,
            computing: Duration::ZERO,
            programming: Duration::ZERO,
            first_world: None,
            adopted: false,
            cleared: false,
            synced: false,
            flows_stay: FlowsStay::default(),
            started: now,
            config,
        }
    }

    /// Runs until `stop` becomes true or the World's publisher is gone.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let deadline = tokio::time::Instant::from_std(self.deadline(Instant::now()));
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                changed = self.around.world.changed() => match changed {
                    // The wait itself has marked the World as seen; the turn must find it new.
                    Ok(()) => self.around.world.mark_changed(),
                    Err(_) => return,
                },
                Ok(()) = self.around.disturbances.changed() => self.note_disturbances(),
                Ok(()) = self.around.believed.changed(), if self.plan.is_closing() => self.around.believed.mark_changed(),
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.turn();
        }
    }

    fn deadline(&self, now: Instant) -> Instant {
        let read_at = [self.routing_read_at, self.rules_read_at];
        let due = [self.mirrors.retry_at(), self.plan.deadline(), Some(self.next_audit)].into_iter().chain(read_at);
        due.flatten().fold(now + HEARTBEAT, Instant::min)
    }

    /// One turn: takes in what is new and brings it into the kernel.
    fn turn(&mut self) {
        let begun = Instant::now();
        let withdrawn = self.take_believed();
        self.mirrors.mark(&withdrawn);
        let seen = self.take_world(begun);
        let expired = self.plan.expire(begun);
        self.mirrors.mark(&expired);
        self.release_idle(begun);
        self.look_at_disturbances(begun);
        let computed = Instant::now();
        let round = self.round(begun);
        let done = Instant::now();
        self.steps += round.steps;
        self.computing += computed - begun;
        self.programming += done - computed;
        if round.steps > 0 {
            self.around.metrics.observe_round(done - begun);
            if let Some(seen) = seen {
                self.around.metrics.programming.observe((done - seen).as_secs_f64());
            }
            debug!(
                virtual_services = round.virtuals,
                steps = round.steps,
                compute_us = (computed - begun).as_micros() as u64,
                kernel_us = (done - computed).as_micros() as u64,
                since_seen_us = seen.map(|seen| (done - seen).as_micros() as u64),
                "Changes are in the kernel"
            );
        }
        if done >= self.next_audit {
            self.audit(done);
        }
        self.tell(done);
    }

    /// Lets draining destinations go that have no connection left.
    fn release_idle(&mut self, now: Instant) {
        for key in self.plan.to_look_at(now) {
            let idle = self.mirrors.idle(&key);
            if !idle.is_empty() {
                let changed = self.plan.release(key, &idle);
                self.mirrors.mark(&changed);
            }
        }
    }

    /// Takes in what routers may still believe in.
    fn take_believed(&mut self) -> Changed {
        if !self.around.believed.has_changed().unwrap_or(false) {
            return Changed::default();
        }
        let believed = self.around.believed.borrow_and_update().clone();
        self.plan.set_believed(believed)
    }

    /// Takes in the newest World. Returns when the earliest event in it was seen.
    fn take_world(&mut self, now: Instant) -> Option<Instant> {
        if !self.around.world.has_changed().unwrap_or(false) && self.authority != Authority::Nothing {
            return None;
        }
        let (world, seen) = {
            let borrowed = self.around.world.borrow_and_update();
            (borrowed.clone(), self.around.clock.take())
        };
        self.authority = world.authority;
        if self.authority == Authority::Nothing {
            return None;
        }
        self.first_world.get_or_insert(now);
        let changed = self.plan.update(&world, now);
        self.around.metrics.parts.inc_by(changed.parts_computed as u64);
        for note in &changed.notes {
            warn!(reason = %note, "Two Services want the same address and port");
        }
        self.mirrors.mark(&changed);
        if !changed.virtuals.is_empty() {
            self.around.owners.send_replace(self.plan.owners().clone());
        }
        seen
    }

    fn round(&mut self, now: Instant) -> Round {
        if self.authority == Authority::Nothing || self.mirrors.is_settled() {
            return Round::default();
        }
        let at = self.moments.at(now);
        if self.authority == Authority::Complete && !self.adopted {
            // What an earlier run left in the kernel and nobody wants any more may still have connections.
            if let Some(existing) = self.mirrors.existing_virtuals(self.plan.desired(), at) {
                let adopted = self.plan.adopt(existing, now);
                self.mirrors.mark(&adopted);
                self.adopted = true;
            }
        }
        let round = self.mirrors.round(self.plan.desired(), self.authority, at);
        if self.adopted && !self.cleared && self.mirrors.is_as_wanted() {
            self.cleared = true;
            for error in self.mirrors.remove_abandoned() {
                warn!(%error, "What an earlier run left in the other tables could not be removed");
            }
        }
        if let Some(flows) = &round.flows {
            self.tell_flows(flows);
        }
        round
    }

    /// Says what became of flows that lead to nobody: a failure when it begins, and when nothing more is tried.
    fn tell_flows(&mut self, flows: &Forgetting) {
        if flows.forgotten > 0 {
            debug!(flows = flows.forgotten, "UDP flows without a destination are deleted from connection tracking");
        }
        let Some(error) = &flows.failure else {
            self.flows_stay = FlowsStay::default();
            return;
        };
        if !std::mem::replace(&mut self.flows_stay.failing, true) {
            warn!(%error, "UDP flows could not be deleted from connection tracking; retrying");
        }
        if let (Some(flow), false) = (flows.given_up.first(), self.flows_stay.given_up) {
            self.flows_stay.given_up = true;
            let (service, destination) = (flow.original_destination, flow.reply_source);
            warn!(
                %error, %service, %destination, services = flows.given_up.len(),
                "UDP flows could not be deleted from connection tracking; giving up"
            );
        }
    }

    /// Looks at the next portion of the kernel, and repairs at once what somebody changed.
    fn audit(&mut self, now: Instant) {
        if self.authority == Authority::Nothing {
            self.next_audit = now + self.config.sync_period;
            return;
        }
        let at = self.moments.at(now);
        let (found, finished) = self.mirrors.audit(self.plan.desired(), at);
        self.audit_found += found.len();
        self.around.metrics.families.found(&found);
        if !found.is_empty() {
            self.steps += self.round(now).steps;
        }
        self.next_audit = now + BETWEEN_PORTIONS;
        if finished {
            debug!(found = self.audit_found, "Everything of ours in the kernel has been compared");
            self.audit_found = 0;
            self.next_audit = now + self.config.sync_period;
        }
    }

    fn note_disturbances(&mut self) {
        let newest = *self.around.disturbances.borrow_and_update();
        let now = Instant::now();
        if newest.ours != self.disturbed.ours && self.routing_read_at.is_none() {
            self.routing_read_at = Some(now + ROUTING_SETTLE);
        }
        if newest.rules != self.disturbed.rules && self.rules_read_at.is_none() {
            self.rules_read_at = Some(now + RULES_SETTLE);
        }
        self.disturbed = newest;
    }

    /// Compares what others say they changed, when they have had a moment to finish.
    fn look_at_disturbances(&mut self, now: Instant) {
        let at = self.moments.at(now);
        if self.routing_read_at.is_some_and(|due| due <= now) {
            self.routing_read_at = None;
            let found = self.mirrors.audit_routing(at);
            self.around.metrics.families.found(&found);
        }
        if self.rules_read_at.is_some_and(|due| due <= now) {
            self.rules_read_at = None;
            let found = self.mirrors.audit_rules(at);
            self.around.metrics.families.found(&found);
        }
    }

    /// Logs troubles that began or ended, and publishes how the proxy stands.
    fn tell(&mut self, now: Instant) {
        let troubles = self.around.metrics.families.families(&self.mirrors.reflections());
        self.around.metrics.services.set(i64::try_from(self.plan.desired().virtuals.len()).unwrap_or(i64::MAX));
        self.around.metrics.draining.set(i64::try_from(self.plan.draining()).unwrap_or(i64::MAX));
        if !self.synced && self.authority != Authority::Nothing && troubles.is_empty() {
            self.synced = true;
            self.around.served.send_replace(true);
            let virtual_services = self.plan.desired().virtuals.len();
            info!(
                virtual_services,
                authority = ?self.authority,
                steps = self.steps,
                input_us = self.first_world.map(|at| (at - self.started).as_micros() as u64),
                compute_us = self.computing.as_micros() as u64,
                kernel_us = self.programming.as_micros() as u64,
                "First sync is done"
            );
        }
        self.around.pulse.beat(now);
        self.around.pulse.ready(self.synced);
        self.around.pulse.trouble((!troubles.is_empty()).then(|| troubles.join("; ")));
    }
}
