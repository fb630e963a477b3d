//! The service proxy in the loop of all subsystems: newest World → plan → kernel.
//!
//! Besides the World, disturbances and retries it waits for addresses that neighbours no longer have routes for,
//! for destinations that have drained, and for questions of users on this host.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::config::ProxyConfig;
use crate::kernel::ipvs::{Counted, ServiceKey};
use crate::kernel::monitor::Notice;
use crate::model::{Authority, ServiceProblems, Table, World};
use crate::net::{Family, PerFamily};
use crate::observe::health::Health;
use crate::observe::local::Question;
use crate::reconcile::{Account, Found, Moment};
use crate::subsystem::{
    self, Context, FirstSync, Inputs, Kinds as _, LeftOut, LookedAt, OthersCommands, Standing, Subsystem, Times,
};

use self::behind::{Behind, Left};
use self::caution::Caution;
use super::apply::{Kernel, Mirrors, PORTION, ProxyRound, Targets};
use super::desired::ProxyChanges;
use super::dsr::TunnelEnds;
use super::explain::serve::{Formatting, Sources};
use super::health_check::HealthChecks;
use super::health_check::pending::Pending;
use super::metrics::Metrics;
use super::owners::Owned;
use super::plan::Plan;
use super::problems;
use super::source_ranges::serve::OutsideSources;
use super::udp_flows::Forgetting;
use super::unjudged::driver::FirewallWaits;

mod behind;
mod caution;
mod told;

/// Inputs and outputs of the service proxy besides those of every subsystem.
pub struct ProxyContext {
    /// Addresses that routers may still send traffic for (`closing`). Empty if nothing is announced.
    pub believed: watch::Receiver<Table<IpAddr, ()>>,
    /// Set once the state known at the start is in the kernel.
    pub served: watch::Sender<bool>,
    /// The Service that owns each virtual service, for the reader of counters.
    pub owners: watch::Sender<Owned>,
    /// The health checks of Services (`health_check`), as soon as the kernel has been told of their endpoints.
    pub health_checks: watch::Sender<HealthChecks>,
    /// The problems of Services (`problems`).
    pub problems: watch::Sender<ServiceProblems>,
    /// Problems of Services that others have found, for who asks.
    pub problems_of_others: Vec<watch::Receiver<ServiceProblems>>,
    pub metrics: Metrics,
    /// Questions of users on this host (`explain`).
    pub questions: mpsc::Receiver<Question>,
    /// Says why what is known of the cluster may be old.
    pub health: Health,
    /// Endpoints that wait for the firewall of this process (`unjudged`).
    pub firewall: FirewallWaits,
    /// Endpoints on this node in which no tunnel ends. Empty where nobody looks after tunnels.
    pub tunnel_ends: watch::Receiver<Arc<TunnelEnds>>,
    /// The families in which any Service has source ranges.
    pub ranged: watch::Sender<PerFamily<bool>>,
    /// The packets that source ranges have dropped, for who asks.
    pub outside: OutsideSources,
}

/// Events of the service proxy besides changes of the World and of the kernel.
pub enum News {
    /// The addresses that routers may still send traffic for have changed.
    Believed,
    /// The firewall has judged a newer World.
    Judged,
    /// Tunnels end in other endpoints on this node than before.
    Untunnelled,
    Asked(Question),
}

/// State of the service proxy between two turns.
pub struct Driver<K: Kernel> {
    config: Arc<ProxyConfig>,
    plan: Plan,
    mirrors: Mirrors<K>,
    context: ProxyContext,
    adopted: bool,
    /// The marks that packets are given at the start are the plan's.
    marks_adopted: bool,
    caution: Caution,
    flows_stay: FlowsStay,
    /// Whether others' IPVS commands are counted, or why not, as last logged.
    commands_counted: Option<Result<(), String>>,
    health_checks_changed: bool,
    behind: Behind,
    pending: Pending,
    formatting: Formatting,
}

/// Messages logged about conntrack entries that could not be deleted, since the last success.
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
        context: ProxyContext,
    ) -> Driver<K> {
        Driver {
            plan: Plan::new(config.clone(), families, kernel),
            mirrors: Mirrors::new(targets, config.excluded_cidrs.clone()),
            context,
            adopted: false,
            marks_adopted: false,
            caution: Caution::default(),
            flows_stay: FlowsStay::default(),
            commands_counted: None,
            health_checks_changed: false,
            behind: Behind::default(),
            pending: Pending::default(),
            formatting: Formatting::default(),
            config,
        }
    }

    /// Runs until `stop` becomes true or the World's publisher is gone.
    pub async fn run(self, inputs: Inputs, stop: watch::Receiver<bool>) {
        subsystem::run(self, inputs, stop).await;
    }

    /// Returns the kinds that are in memory as desired and once more as seen, by their names.
    pub fn standing_twice(&self) -> Vec<&'static str> {
        self.mirrors.standing_twice(self.plan.desired())
    }

    /// Marks what is desired differently, and has new endpoints behind tunnels wait for the firewall.
    fn mark(&mut self, changed: &ProxyChanges, now: Instant) {
        self.mirrors.mark(changed);
        self.context.firewall.follow(&self.plan, &changed.virtuals, now);
    }

    /// Marks and publishes what follows from Services that were computed anew.
    fn tell_parts(&mut self, changed: &ProxyChanges, now: Instant) {
        self.mark(changed, now);
        self.health_checks_changed |= changed.health_checks;
        if changed.problems {
            self.context.problems.send_replace(self.plan.problems().clone());
        }
        if changed.owners {
            self.context.owners.send_replace(self.plan.owned());
        }
    }

    /// Removes draining destinations without connections.
    fn release_idle(&mut self, now: Instant) {
        for key in self.plan.to_look_at(now) {
            let idle = self.mirrors.idle(self.plan.desired(), &key);
            if !idle.is_empty() {
                let changed = self.plan.release(key, &idle);
                self.mark(&changed, now);
            }
        }
    }

    /// Logs whether others' IPVS commands are counted, when that changes.
    fn tell_counted(&mut self, counted: &Counted) {
        let now = match counted {
            Counted::Some | Counted::None => Ok(()),
            Counted::Not(reason) => Err(reason.clone()),
            Counted::NotYet => {
                self.context.metrics.commands_counted.set(0);
                return;
            }
        };
        self.context.metrics.commands_counted.set(i64::from(now.is_ok()));
        if self.commands_counted.as_ref() == Some(&now) {
            return;
        }
        match &now {
            Ok(()) => info!("IPVS commands of other programs are counted by a kprobe; drift is looked for after these"),
            Err(reason) => {
                info!(%reason, "IPVS commands of other programs are not counted; drift is looked for at intervals")
            }
        }
        self.commands_counted = Some(now);
    }

    /// Logs that Services are kept with NAT because an earlier run served them so, and that none is any more.
    fn tell_caution(&mut self) {
        match self.caution.news() {
            Some(Some((first, services))) => info!(
                services, %first,
                "Services with kube-router.io/service.dsr go on with NAT, as before this start, until tunnels are known to end in their pods on this node"
            ),
            Some(None) => info!(
                "No Service with kube-router.io/service.dsr is kept with NAT because of how it was served before this start"
            ),
            None => {}
        }
    }

    /// Logs the result of deleting stale conntrack entries: a failure when it begins, and when retrying is given up.
    fn tell_flows(&mut self, flows: &Forgetting) {
        if flows.forgotten > 0 {
            debug!(flows = flows.forgotten, "UDP flows without a destination are deleted from connection tracking");
        }
        let Some(error) = &flows.failure else {
            if flows.failing == 0 {
                self.flows_stay = FlowsStay::default();
            }
            return;
        };
        if !std::mem::replace(&mut self.flows_stay.failing, true) {
            warn!(%error, "UDP flows could not be deleted from connection tracking; retrying");
        }
        if let (Some(flow), false) = (flows.given_up.first(), self.flows_stay.given_up) {
            self.flows_stay.given_up = true;
            let (service, destination) = (flow.original_destination, flow.reply_source);
            warn!(
                %error, %service, %destination, flows = flows.given_up.len(),
                "Deleting conntrack entries of UDP flows failed; giving up"
            );
        }
    }
}

impl<K: Kernel> Subsystem for Driver<K> {
    type Mirrors = Mirrors<K>;
    type News = News;
    type Round = ProxyRound;

    const NOTICES: &'static [Notice] = &[Notice::Ports];

    const CLOSE_LOOKS: usize = 3;

    const COUNTED_LOOKS: usize = 2;

    fn mirrors(&mut self) -> &mut Mirrors<K> {
        &mut self.mirrors
    }

    fn audit_period(&self) -> Duration {
        self.config.sync_period
    }

    async fn next(&mut self) -> News {
        let is_closing = self.plan.is_closing();
        let ProxyContext { believed, questions, firewall, tunnel_ends, .. } = &mut self.context;
        tokio::select! {
            Ok(()) = believed.changed(), if is_closing => News::Believed,
            Some(question) = questions.recv() => News::Asked(question),
            () = firewall.changed() => News::Judged,
            Ok(()) = tunnel_ends.changed() => News::Untunnelled,
        }
    }

    async fn hear(&mut self, news: News, _at: Moment, _context: &Context<'_>) {
        match news {
            // The wait itself has marked the value as seen; the turn must find it changed.
            News::Believed => self.context.believed.mark_changed(),
            News::Untunnelled => self.context.tunnel_ends.mark_changed(),
            // The turn reads it.
            News::Judged => {}
            News::Asked(question) => {
                let pending = self.pending.services();
                let others = self.context.problems_of_others.iter().map(|found| found.borrow().clone());
                let sources = Sources {
                    plan: &self.plan,
                    health: &self.context.health,
                    problems: [self.plan.problems().clone()].into_iter().chain(others).collect(),
                    pending: &pending,
                    outside: &self.context.outside,
                };
                self.formatting.answer(question, &sources, &mut self.mirrors);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let due =
            [self.mirrors.retry_at(), self.plan.deadline(), self.pending.deadline(), self.context.firewall.deadline()];
        let at_once = self.behind.last_round.filter(|_| self.mirrors.goes_on());
        due.into_iter().chain([at_once]).flatten().min()
    }

    /// Reads the addresses that routers may still send traffic for, and how far the firewall has come.
    async fn look_around(&mut self, now: Instant) {
        self.context.firewall.look();
        if self.context.believed.has_changed().unwrap_or(false) {
            let believed = self.context.believed.borrow_and_update().clone();
            let withdrawn = self.plan.set_believed(believed);
            self.mark(&withdrawn, now);
        }
        if self.context.tunnel_ends.has_changed().unwrap_or(false) {
            self.take_untunnelled(now);
        }
    }

    async fn take_world(&mut self, world: &World, at: Moment) -> Authority {
        if world.authority.proxy == Authority::Nothing {
            return Authority::Nothing;
        }
        self.context.firewall.take_world(world.number);
        self.adopt_marks(at);
        let changed = self.plan.update(world, at.now);
        self.context.metrics.parts.inc_by(changed.parts_computed as u64);
        told::tell(&changed);
        self.tell_parts(&changed, at.now);
        self.stay_cautious(at.now);
        world.authority.proxy
    }

    async fn calculate(&mut self, at: Moment) {
        let expired = self.plan.expire(at.now);
        self.mark(&expired, at.now);
        self.release_idle(at.now);
        let Driver { plan, mirrors, context, .. } = self;
        let use_of = |port: &ServiceKey, destination| mirrors.use_of(plan.desired(), port, destination);
        context.firewall.expire(at.now, use_of, &context.metrics.unjudged);
    }

    fn round(&mut self, authority: Authority, at: Moment) -> ProxyRound {
        if authority == Authority::Nothing || self.mirrors.is_settled() && !self.mirrors.is_refused_due(at) {
            return ProxyRound::default();
        }
        self.adopt_marks(at);
        self.note_standing(at);
        if authority == Authority::Complete {
            self.be_cautious(at);
        }
        if authority == Authority::Complete && !self.adopted {
            // Destinations of an earlier run that are no longer desired may still have connections.
            if let Some(existing) = self.mirrors.existing_virtuals(self.plan.desired(), at) {
                let adopted = self.plan.adopt(existing, at.now);
                self.mark(&adopted, at.now);
                self.adopted = true;
            }
        }
        self.mirrors.hold_back(self.context.firewall.waiting());
        let round = self.mirrors.round(self.plan.desired(), authority, at);
        self.behind.last_round = Some(at.now);
        if let Some(flows) = &round.flows {
            self.tell_flows(flows);
        }
        round
    }

    async fn pack(&mut self) {
        self.plan.pack();
        self.mirrors.share(self.plan.desired());
    }

    fn disturbed(&mut self, notice: Notice) {
        match notice {
            Notice::Rules => self.mirrors.look_for_host_chains(),
            Notice::Ports => self.mirrors.look_at_ports(),
            Notice::Ours | Notice::LocalRoutes | Notice::Routes | Notice::RoutingRules | Notice::Ways => {}
        }
    }

    fn replaces_abandoned(&mut self) -> bool {
        self.mirrors.has_replaced_abandoned(self.plan.desired())
    }

    fn has_abandoned(&mut self) -> bool {
        self.mirrors.has_abandoned()
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        let errors = self.mirrors.remove_abandoned();
        if errors.as_ref().is_some_and(Vec::is_empty) {
            self.plan.keep_marks(false);
        }
        errors
    }

    fn count(&mut self, round: ProxyRound, steps: u64, times: &Times) {
        let Times { seen, begun, computed, done } = *times;
        let left = Left { changed: steps > 0, puts_off: round.puts_off, goes_on: self.mirrors.goes_on() };
        let seen = self.behind.done_since(seen, left);
        if let Some(seen) = seen {
            // A look that found drift may have made the last round.
            let done = self.behind.last_round.filter(|_| steps == 0).unwrap_or(done);
            self.context.metrics.programming.observe((done - seen).as_secs_f64());
        }
        if steps == 0 {
            return;
        }
        self.context.metrics.observe_round(done - begun);
        debug!(
            virtual_services = round.virtuals,
            steps,
            compute_us = (computed - begun).as_micros() as u64,
            kernel_us = (done - computed).as_micros() as u64,
            since_seen_us = seen.map(|seen| (done - seen).as_micros() as u64),
            "Service changes programmed"
        );
    }

    fn audit(&mut self, at: Moment) -> (Vec<Found>, bool) {
        self.mirrors.audit(self.plan.desired(), at)
    }

    fn retry_now(&mut self, now: Instant) {
        self.mirrors.retry_refused(now);
    }

    fn prepare_to_read(&mut self) {
        self.mirrors.prepare_to_read(self.plan.desired());
    }

    fn left_out(&mut self) -> Vec<LeftOut> {
        problems::driver::left_out(&self.plan, &self.mirrors)
    }

    fn glance(&mut self, counted_rest: bool, at: Moment) -> Vec<Found> {
        self.mirrors.glance(self.plan.desired(), counted_rest, at)
    }

    fn audited(&mut self, _at: Moment) {
        self.mirrors.look_for_host_chains();
    }

    /// Looks at the destinations of IPv4 services, of IPv6 ones, and at the elements.
    fn look_closely(&mut self, course: usize, at: Moment) -> (Vec<Found>, bool) {
        match Family::BOTH.get(course) {
            Some(family) => self.mirrors.look_at_virtuals(self.plan.desired(), *family, at),
            None => (self.mirrors.scan_all(at), true),
        }
    }

    fn others_commands(&mut self, now: Instant) -> OthersCommands {
        let counted = self.mirrors.others_commands(now);
        self.tell_counted(&counted);
        match counted {
            Counted::Some => OthersCommands::Given,
            Counted::None => OthersCommands::None,
            Counted::NotYet | Counted::Not(_) => OthersCommands::NotCounted,
        }
    }

    fn look_after_commands(&mut self, begins: bool, at: Moment) -> LookedAt {
        self.mirrors.look_at_all_virtuals(self.plan.desired(), begins, at)
    }

    fn troubles(&mut self, _account: &mut Account, _standing: &Standing) -> Vec<String> {
        Vec::new()
    }

    fn log_first_sync(&mut self, sync: &FirstSync) {
        info!(
            virtual_services = self.plan.desired().virtuals.len(),
            authority = ?sync.authority,
            steps = sync.steps,
            input_us = sync.input.map(|input| input.as_micros() as u64),
            compute_us = sync.computing.as_micros() as u64,
            kernel_us = sync.programming.as_micros() as u64,
            "First sync of services finished"
        );
    }

    fn publish(&mut self, standing: &Standing) -> bool {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.context.metrics.services.set(count(self.plan.desired().virtuals.len()));
        self.context.metrics.draining.set(count(self.plan.draining()));
        self.context.metrics.refused.set(count(self.plan.refused()));
        problems::driver::tell_refused(&mut self.plan, &self.mirrors, &self.context);
        let ranged = self.plan.ranged();
        self.context.ranged.send_if_modified(|told| std::mem::replace(told, ranged) != ranged);
        let pending = self.pending.follow(&self.plan, &mut self.mirrors, standing.now);
        if std::mem::take(&mut self.health_checks_changed) || pending {
            let pending = self.pending.services();
            self.context.health_checks.send_replace(HealthChecks { pending, ..self.plan.health_checks() });
        }
        self.mirrors.bound_rounds(standing.synced.then_some(PORTION));
        let serves = standing.synced && !self.mirrors.lacks_held_back(self.plan.desired());
        self.context.served.send_if_modified(|served| serves && !std::mem::replace(served, true));
        standing.synced
    }
}
