//! The router in the loop of all subsystems: newest World and learned routes → desired state → speaker and kernel.
//!
//! The speaker runs in another thread (`bgp::driver`): it takes orders and reports what it learns, which is what the
//! router waits for besides the World, disturbances and retries.
//!
//! After a start, routes of an earlier run serve until the speaker has received End-of-RIB from every desired
//! neighbour, or until the restart time for which neighbours keep ours is over (RFC 4724). So neither a restart of
//! ours, nor one of all nodes together, takes a route from a packet.

mod answers;
mod cut_off;
mod draining;
mod keys;
mod links;
mod passwords;
mod pods;
mod rotation;
mod services;
mod speaker;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::bgp::driver::Access;
use crate::config::{NodeRoutes, RouterConfig};
use crate::kernel::monitor::Notice;
use crate::link_neighbours::Standings;
use crate::model::{Authority, News, Report, Table, World};
use crate::net::PerFamily;
use crate::observe::health::{Note, Pulse};
use crate::reconcile::{Account, Moment, Moments, Target};
use crate::subsystem::{self, Context, FirstSync, Inputs, Standing, Subsystem, Times};

use self::answers::Answers;
use self::keys::Untold;
use self::links::LinkWatch;
use self::rotation::KeyChange;
use super::apply::{Kernel, Leave, Mirrors, RouterRound, Targets};
use super::awaited_services::AwaitedServices;
use super::cut_off::CutOff;
use super::desired::RouterChanges;
use super::drain::{self, Drain};
use super::explain::serve::Inquiry;
use super::host_files::HostFiles;
use super::metrics::Metrics;
use super::password_files::read::PasswordFiles;
use super::plan::{Plan, Unreached};
use super::problem::Problem;
use super::reachable::Reachable;
use super::sessions::{self, Sessions};
use super::told::ReportedState;
use super::withdrawals::Withdrawals;

/// Inputs and outputs of the router besides those of every subsystem.
pub struct RouterContext {
    /// Pulse of the current speaker.
    pub speaker_pulse: Pulse,
    /// Report to the cluster.
    pub report: watch::Sender<Report>,
    pub metrics: Metrics,
    /// Messages for the administrator although nothing is wrong here.
    pub notes: Note,
    /// Access to the speaker for others.
    pub access: watch::Sender<Option<Access>>,
    /// The service proxy has applied the state known at the start, or does not run: addresses may be announced.
    pub served: watch::Receiver<bool>,
    /// Nodes can be read of the cluster: their conditions are the present ones.
    pub nodes_are_read: watch::Receiver<bool>,
    /// When the server has refused Services or their endpoints last for want of a right, while it does.
    pub services_refused_at: watch::Receiver<Option<Instant>>,
    /// Service addresses that neighbours may still send traffic for.
    pub believed: watch::Sender<Table<IpAddr, ()>>,
    /// Looks for clients outside of the cluster; `None` where the service proxy does not run here.
    pub clients: Option<drain::ClientLook>,
    /// Users' questions about neighbours and routes.
    pub inquiries: mpsc::Receiver<Inquiry>,
}

/// Number of times that the tunnels of an earlier run are read, if that fails.
const READINGS: usize = 3;
/// Interval of checking sessions and files.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// State of the router between two turns.
pub struct Driver<K: Kernel> {
    config: Arc<RouterConfig>,
    plan: Plan,
    mirrors: Mirrors<K>,
    sessions: Sessions,
    drain: Drain,
    cut_off: CutOff,
    /// News that are told when neighbours have been sent what they are about.
    news: Option<News>,
    withdrawals: Withdrawals,
    files: HostFiles,
    passwords: PasswordFiles,
    links: LinkWatch,
    told: ReportedState,
    context: RouterContext,
    reachable: Reachable,
    next_look: Instant,
    /// Time when the routes were learned that are not in the kernel yet.
    learned_at: Option<Instant>,
    /// Pod CIDRs of other nodes without a route when last looked at, together with routes that the kernel lacks.
    unreached: Unreached,
    answers: Answers,
    /// Routes that take packets to pods away and are not ours to delete.
    rivals: Vec<Problem>,
    /// Devices of tunnels without their guard.
    unguarded: Vec<Problem>,
    /// As many nodes on links as the kernel finds out neighbours, or more.
    crowded: Vec<Problem>,
    untold: Untold,
    key_change: KeyChange,
    moments: Moments,
    reached: bool,
    started: Instant,
    awaited_services: AwaitedServices,
}

impl<K: Kernel> Driver<K> {
    pub fn new(
        config: Arc<RouterConfig>,
        families: PerFamily<bool>,
        mut targets: Targets<K>,
        context: RouterContext,
    ) -> Driver<K> {
        let now = Instant::now();
        // A list that changes while it is read is read again. If it cannot be had at all, names follow the order of the nodes.
        let found = (0..READINGS).find_map(|_| targets.tunnels.read().ok()).unwrap_or_default();
        let mut plan =
            Plan::new(config.clone(), families).with_answers_by(targets.kernel.answers_by()).with_tunnels(found);
        let mut passwords = PasswordFiles::new(&config);
        // Before the first World: a speaker that starts without its neighbours would not wait for them.
        if let Some(read) = passwords.look(&BTreeSet::new()) {
            plan.set_file_passwords(read);
        }
        Driver {
            plan,
            passwords,
            links: LinkWatch::default(),
            mirrors: Mirrors::new(targets),
            drain: Drain::new(config.drain.delay).looking(context.clients.is_some()),
            cut_off: CutOff::default(),
            news: None,
            withdrawals: Withdrawals::default(),
            sessions: Sessions::new(&config, context.speaker_pulse.clone(), context.access.clone()),
            files: HostFiles::new(&config),
            told: ReportedState::default(),
            context,
            reachable: Reachable::default(),
            next_look: now,
            learned_at: None,
            unreached: Unreached::default(),
            answers: Answers::default(),
            rivals: Vec::new(),
            unguarded: Vec::new(),
            crowded: Vec::new(),
            untold: Untold::default(),
            key_change: KeyChange::default(),
            moments: Moments::since(now),
            reached: false,
            started: now,
            awaited_services: AwaitedServices::default(),
            config,
        }
    }

    /// Runs until `stop` becomes true or the World's publisher is gone.
    pub async fn run(self, inputs: Inputs, stop: watch::Receiver<bool>) {
        let ended = subsystem::run(self, inputs, stop).await;
        ended.sessions.end(ended.plan.desired()).await;
    }

    /// Applies a change of the desired state to the speaker, the kernel and files.
    async fn carry_out(&mut self, changed: &RouterChanges) {
        self.mirrors.note_own_ranges(&self.plan.own().all_pod_cidrs().collect::<Vec<_>>());
        self.mirrors.mark(changed);
        self.files.mark(changed.cni);
        let begun = Instant::now();
        if changed.speaker {
            self.start_speaker().await;
        } else {
            let orders = self.plan.desired().orders(changed);
            self.context.metrics.count(&orders, self.plan.own());
            self.believe_announced(changed);
            self.sessions.order(orders).await;
            self.follow_withdrawn(changed).await;
            if changed.listen {
                self.sessions.listen(self.plan.desired()).await;
            }
        }
        let lacks_peers = self.plan.lacks_password() || self.plan.awaits_routers();
        self.sessions.note_lack_of_peers(lacks_peers, self.plan.routers_without_password()).await;
        if !changed.peers.is_empty() {
            self.told.forget(&changed.peers);
            self.context.metrics.peers_sync.observe(begun.elapsed().as_secs_f64());
        }
    }
}

/// Events that wake the router besides the World, the kernel and time.
pub enum Wake {
    Speaker(sessions::News),
    /// A user asks.
    Asked(Inquiry),
    /// Routers behind interfaces, as far as they are known now.
    Links(Standings),
    /// The service proxy has applied the state known at the start.
    Served,
    /// The server has begun to refuse Services, or no longer does.
    Refused,
}

impl<K: Kernel> Subsystem for Driver<K> {
    type Mirrors = Mirrors<K>;
    type News = Wake;
    type Round = RouterRound;

    const NOTICES: &'static [Notice] = &[Notice::Ways];

    fn mirrors(&mut self) -> &mut Mirrors<K> {
        &mut self.mirrors
    }

    fn audit_period(&self) -> Duration {
        self.config.sync_period.min(self.config.routes_sync_period)
    }

    async fn next(&mut self) -> Wake {
        let is_running = self.sessions.is_running();
        let awaits_proxy = !is_running || self.awaited_services.awaits_proxy();
        tokio::select! {
            biased;
            news = self.sessions.next() => Wake::Speaker(news),
            standings = self.links.next() => Wake::Links(standings),
            Ok(()) = self.context.served.changed(), if awaits_proxy => Wake::Served,
            Ok(()) = self.context.services_refused_at.changed(), if !is_running => Wake::Refused,
            Some(inquiry) = self.context.inquiries.recv() => Wake::Asked(inquiry),
        }
    }

    async fn hear(&mut self, wake: Wake, at: Moment, context: &Context<'_>) {
        match wake {
            Wake::Asked(inquiry) => {
                let outside = self.outside();
                inquiry.answer(&self.plan, &mut self.mirrors, context.authority, outside);
            }
            Wake::Links(standings) => self.take_links(standings).await,
            Wake::Served => self.sessions.try_at(at.now),
            Wake::Refused => self.step_awaited_services(at.now).await,
            Wake::Speaker(sessions::News::Events(events)) => {
                self.learned_at.get_or_insert(at.now);
                // Before it is known that this is over, so that the delay of a drain begins here.
                self.note_announcing(at.now).await;
                self.take_events(events, at.now);
            }
            Wake::Speaker(sessions::News::Written(number)) => {
                self.withdrawals.written(number);
                self.publish_believed();
            }
            Wake::Speaker(sessions::News::Ended) => {
                warn!("BGP speaker ended; starting a new one");
                self.withdrawals.end();
                self.publish_believed();
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let due = [
            self.mirrors.retry_at(),
            self.sessions.deadline(self.plan.desired()),
            self.reachable.deadline(),
            self.drain.deadline(),
            self.cut_off.deadline(),
            self.awaited_services.deadline(),
            self.next_session_look(),
            Some(self.next_look),
        ];
        due.into_iter().flatten().min()
    }

    /// Polls what sends no events: files, and the state of sessions.
    async fn look_around(&mut self, now: Instant) {
        self.look_at_sessions_if_due(now);
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_AROUND;
        if let Some(passwords) = self.files.passwords(&self.config.peers) {
            let changed = self.plan.set_passwords(passwords);
            self.carry_out(&changed).await;
        }
        self.look_at_passwords().await;
        let at = self.moments.at(now);
        self.step_rotation(at);
        self.sessions.show(&self.context.metrics.peers).await;
        self.look_whether_cut_off(now);
        self.look_at_answers(now);
        self.want_links(at).await;
        self.crowded = self.plan.crowded(self.mirrors.neighbour_limits(), &self.crowded);
    }

    async fn take_world(&mut self, world: &World, at: Moment) -> Authority {
        if world.authority.router != Authority::Nothing {
            self.look_at_own_node(world, at.now).await;
            self.look_at_passwords_of(world).await;
            self.look_for_services(world, at);
            self.look_at_sessions_first(at);
            let changed = self.plan.update(world);
            self.carry_out(&changed).await;
            self.want_links(at).await;
            self.step_rotation_in(world.authority.router, at);
        }
        world.authority.router
    }

    async fn calculate(&mut self, at: Moment) {
        self.step_awaited_services(at.now).await;
        if self.sessions.is_missing(self.plan.desired()) {
            self.start_speaker().await;
        }
        self.look_at_next_hops(at.now).await;
        self.drop_stale_routes(at.now);
        self.note_announcing(at.now).await;
        self.step_drain(drain::Event::Tick, at.now).await;
        self.follow_cut_off(at.now).await;
        self.release_withdrawals(at.now).await;
        self.tell_news();
    }

    fn disturbed(&mut self, notice: Notice) {
        if notice == Notice::Ways {
            self.reachable.look_at_all(self.plan.routes().next_hops().collect());
            self.links.look();
        }
        if notice == Notice::Rules {
            self.mirrors.look_for_host_chains();
        }
    }

    fn round(&mut self, authority: Authority, at: Moment) -> RouterRound {
        let have_said_all = self.sessions.have_said_all(at.now, self.plan.desired());
        let routes_are_complete = have_said_all || self.plan.needs_no_speaker();
        if authority == Authority::Nothing || self.mirrors.is_settled() {
            return RouterRound::default();
        }
        let leave = Leave { authority, routes_are_complete };
        self.mirrors.round(self.plan.desired(), self.plan.routes(), leave, at)
    }

    fn replaces_abandoned(&mut self) -> bool {
        self.mirrors.has_replaced_abandoned()
    }

    fn has_abandoned(&mut self) -> bool {
        self.mirrors.has_abandoned()
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.mirrors.remove_abandoned()
    }

    fn count(&mut self, round: RouterRound, steps: u64, times: &Times) {
        let learned_at = self.learned_at.take();
        if steps == 0 {
            return;
        }
        let took = times.done - times.computed;
        self.context.metrics.count_round(round, learned_at, times.computed, times.done);
        debug!(
            steps,
            routes_grown = round.routes_grown,
            routes_gone = round.routes_gone,
            kernel_us = took.as_micros() as u64,
            "Router changes programmed"
        );
    }

    fn audited(&mut self, _at: Moment) {
        self.files.mark(true);
        self.mirrors.look_for_host_chains();
    }

    async fn pack(&mut self) {
        self.plan.pack();
        self.mirrors.share_routes(self.plan.routes());
        self.sessions.pack().await;
    }

    fn troubles(&mut self, account: &mut Account, standing: &Standing) -> Vec<String> {
        let trouble = self.files.write(self.plan.desired().cni.as_ref(), standing.authority, standing.now);
        let mut troubles: Vec<String> =
            account.trouble("CNI file", trouble.as_deref().map(|text| (1, text))).into_iter().collect();
        self.rivals = self.mirrors.rivals(self.plan.routes());
        self.unguarded = self.mirrors.unguarded(self.plan.desired());
        // The first sync is about what is known; unreachable pods delay nothing else.
        if standing.synced {
            self.look_at_pods(true, standing.now);
            troubles.extend(self.files.problem().map(|problem| problem.to_string()));
            troubles.extend(self.rivals.iter().map(ToString::to_string));
            troubles.extend(self.unreached.trouble.clone());
            troubles.extend(self.troubles_of_own_node(standing.now));
            troubles.extend(self.unreached.missing.clone().filter(|_| !self.reached));
        } else {
            troubles.extend(self.plan.unreached_without_speaker().trouble);
            troubles.extend(self.awaited_services.trouble().filter(|_| !self.is_equipped()));
        }
        troubles
    }

    fn is_equipped(&self) -> bool {
        // Without BGP between nodes a missing speaker keeps no pods from each other.
        let needs_speaker = self.config.node_routes == NodeRoutes::Bgp || self.plan.desired().speaker.is_some();
        self.sessions.is_running() || !needs_speaker
    }

    fn log_first_sync(&mut self, sync: &FirstSync) {
        info!(
            neighbours = self.plan.desired().expected().count(),
            announcements = self.plan.desired().announcements.len(),
            authority = ?sync.authority,
            steps = sync.steps,
            took_ms = sync.took.as_millis() as u64,
            "First sync of the router finished"
        );
    }

    fn publish(&mut self, standing: &Standing) -> bool {
        let mut problems = self.files.problems(&self.plan.desired().problems);
        let found = || self.rivals.iter().chain(&self.unguarded).chain(&self.crowded);
        if found().next().is_some() {
            problems.to_mut().extend(found().cloned());
        }
        self.context.metrics.problems.set(i64::try_from(problems.len()).unwrap_or(i64::MAX));
        if self.told.problems(&problems) {
            let problems = problems.iter().map(ToString::to_string).collect();
            self.context.report.send_modify(|report| report.problems = problems);
        }
        let now = standing.now;
        self.tell_key(now);
        self.told.neighbours(now);
        if !self.reached {
            self.look_at_pods(standing.synced, now);
        }
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let metrics = &self.context.metrics;
        metrics.drain.set(self.outside().number());
        metrics.routes.set(count(self.plan.routes().routes().len()));
        metrics.routes_present.set(count(self.mirrors.present_routes(self.plan.routes())));
        metrics.unreached.set(count(self.unreached.count));
        self.sessions.beat_for_nobody(now);
        // Reported once true, and then for good. If another program sets up the pod network it is not ours to report.
        let is_ours = self.plan.desired().bridge.is_some() && self.plan.own().all_pod_cidrs().next().is_some();
        let connects = self.config.internal_peers || self.config.node_routes == NodeRoutes::Api;
        let is_ours = is_ours && (connects || self.config.cni_file.is_some());
        let is_there = is_ours && self.reached && standing.authority == Authority::Complete;
        self.context
            .report
            .send_if_modified(|report| is_there && !std::mem::replace(&mut report.network_is_there, true));
        self.reached
    }
}
