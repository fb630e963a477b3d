//! The allocator at work: the election, the objects that the holder of the Lease follows, its writes and Events.
//!
//! The election is a task of its own, so that nothing holds up a renewal; what it says to the rest is until when writes may be begun.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use compact_str::{CompactString, format_compact};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{info, warn};

use super::allocator::Allocator;
use super::election::{Elector, Lease, Step, TIMING, Unclaimed};
use super::known_pools::KnownPools;
use super::metrics::Metrics;
use super::notice::Notice;
use super::pools::Pools;
use super::writes::{Outcome, Write};
use crate::config::LoadBalancerConfig;
use crate::k8s::allocation::follow::{self, News};
use crate::k8s::allocation::{Api, Failure, RULES, Status, WRITE_SECONDS};
use crate::k8s::client::ApiClient;
use crate::k8s::events::{About, Events, Name, NewEvent};
use crate::observe::health::{Note, Pulse};

/// The allocator, and what it works with.
pub struct Driver {
    pub config: LoadBalancerConfig,
    pub client: ApiClient,
    pub api: Api,
    pub events: Events,
    pub pulse: Pulse,
    /// Receives the pools that are not in force as written, and why addresses cannot be written.
    pub note: Note,
    /// Receives why the Lease cannot be read or written.
    pub lease_note: Note,
    pub metrics: Metrics,
}

/// Writes at a time.
const WRITES: usize = 8;
/// How much news may wait; a source that is faster waits itself.
const NEWS: usize = 1024;
/// How many Events may wait; of more than that only the log tells.
const EVENTS: usize = 4096;
/// The longest silence of the loop.
const BEAT: Duration = Duration::from_secs(30);
/// Tries to give up the Lease at the end.
const RELEASES: usize = 2;

impl Driver {
    /// Runs until `stop` is true.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let (usable_out, usable) = watch::channel(None);
        let (end, ended) = watch::channel(false);
        let (events, events_in) = mpsc::channel(EVENTS);
        let candidate = Candidate {
            api: self.api.clone(),
            identity: identity(&self.config.identity),
            usable: usable_out,
            note: self.lease_note.clone(),
        };
        let election = tokio::spawn(candidate.run(ended));
        let telling = tokio::spawn(tell(self.events.clone(), events_in));
        let mut work = Work {
            driver: self,
            usable,
            stop,
            events,
            pools: KnownPools::default(),
            unknown: None,
            pool_notes: Vec::new(),
            failure: None,
        };
        work.run().await;
        drop(work);
        telling.abort();
        // No write is on its way any more.
        end.send_replace(true);
        if election.await.is_err() {
            warn!("The election of the address allocator broke off");
        }
    }
}

/// The identity of this process among all that ever were.
fn identity(name: &str) -> CompactString {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format_compact!("{name}_{:x}", since.as_nanos())
}

/// A candidate for the Lease.
struct Candidate {
    api: Api,
    identity: CompactString,
    /// Until when writes may be begun.
    usable: watch::Sender<Option<Instant>>,
    note: Note,
}

impl Candidate {
    /// Contends for the Lease until the end, and gives it up then.
    async fn run(self, mut ended: watch::Receiver<bool>) {
        let mut elector = Elector::new(self.identity.clone(), TIMING);
        let (mut lease, mut is_failing) = (None, false);
        while !*ended.borrow() {
            let step = elector.step(Instant::now());
            let is_claim = matches!(step, Step::Claim(_));
            let failure = match step {
                Step::Wait(at) => {
                    tokio::select! {
                        () = sleep_until(at.into()) => {}
                        _ = ended.changed() => {}
                    }
                    continue;
                }
                Step::Read => self.read(&mut elector, &mut lease).await,
                Step::Claim(version) => self.claim(&mut elector, version.is_some(), &mut lease).await,
            };
            let until = elector.usable_until();
            self.usable.send_if_modified(|known| std::mem::replace(known, until) != until);
            match failure {
                Some(failure) if !std::mem::replace(&mut is_failing, true) => {
                    warn!(?failure, rules = RULES, "Lease of the address allocator failed; retrying");
                    self.note.set(vec![format!("the Lease kube-router-lballoc cannot be read or written: {failure}")]);
                }
                // A look that leads to a claim proves nothing: the right to write it may be missing.
                None if is_failing && (is_claim || !matches!(elector.step(Instant::now()), Step::Claim(_))) => {
                    is_failing = false;
                    info!("Lease of the address allocator recovered");
                    self.note.set(Vec::new());
                }
                _ => {}
            }
        }
        for _ in 0..RELEASES {
            if elector.to_release().is_none() || self.api.put_lease(lease.as_ref(), "", TIMING.valid).await.is_ok() {
                return;
            }
        }
    }

    async fn read(&self, elector: &mut Elector, lease: &mut Option<Value>) -> Option<Failure> {
        match self.api.lease().await {
            Ok(read) => {
                elector.read(read.as_ref().map(read_lease), Instant::now());
                *lease = read;
                None
            }
            Err(failure) => {
                elector.unread(Instant::now());
                Some(failure)
            }
        }
    }

    async fn claim(&self, elector: &mut Elector, exists: bool, lease: &mut Option<Value>) -> Option<Failure> {
        let sent = Instant::now();
        let before = lease.as_ref().filter(|_| exists);
        match self.api.put_lease(before, &self.identity, TIMING.valid).await {
            Ok(written) => {
                elector.claimed(sent, Ok(read_lease(&written).version), Instant::now());
                *lease = Some(written);
                None
            }
            Err(failure) => {
                let is_conflict = failure == Failure::Conflict;
                let why = if is_conflict { Unclaimed::Conflict } else { Unclaimed::Failed };
                elector.claimed(sent, Err(why), Instant::now());
                Some(failure).filter(|_| !is_conflict)
            }
        }
    }
}

fn read_lease(lease: &Value) -> Lease {
    let text = |path: &str| lease.pointer(path).and_then(Value::as_str).unwrap_or_default().into();
    let seconds = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64).unwrap_or(0);
    Lease {
        version: text("/metadata/resourceVersion"),
        holder: text("/spec/holderIdentity"),
        valid: Duration::from_secs(seconds),
    }
}

/// Sends Events, one after the other. One that fails is not repeated: the log has it.
async fn tell(events: Events, mut notices: mpsc::Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        let event = NewEvent {
            about: About::Service(notice.service, Some(notice.uid)),
            name: Name::Time,
            is_warning: notice.matter.is_warning(),
            reason: notice.matter.reason(),
            message: notice.matter.to_string(),
        };
        // A failure is in the log.
        let _ = events.tell(event).await;
    }
}

/// The part that gives addresses while the Lease is held.
struct Work {
    driver: Driver,
    /// Until when writes may be begun.
    usable: watch::Receiver<Option<Instant>>,
    stop: watch::Receiver<bool>,
    events: mpsc::Sender<Notice>,
    pools: KnownPools,
    /// When the outcome of a write was last not known.
    unknown: Option<Instant>,
    pool_notes: Vec<String>,
    /// Why the last write failed.
    failure: Option<String>,
}

impl Work {
    async fn run(&mut self) {
        self.driver.pulse.ready(true);
        while !*self.stop.borrow() {
            self.driver.pulse.beat(Instant::now());
            if self.usable_until().is_some() {
                info!("Lease acquired; this agent gives load balancer addresses");
                self.driver.metrics.leads.set(1);
                self.lead().await;
                self.driver.metrics.leads.set(0);
                self.driver.metrics.set_pools(&[]);
                self.driver.metrics.wanting.set(0);
                (self.pool_notes, self.failure) = (Vec::new(), None);
                self.note();
                continue;
            }
            tokio::select! {
                changed = self.usable.changed() => if changed.is_err() { return },
                _ = self.stop.changed() => {}
                () = sleep(BEAT) => {}
            }
        }
    }

    fn usable_until(&self) -> Option<Instant> {
        self.usable.borrow().filter(|until| *until > Instant::now())
    }

    /// Gives addresses until the Lease is lost or the program ends.
    async fn lead(&mut self) {
        let (out, mut news) = mpsc::channel(NEWS);
        let mut followers = JoinSet::new();
        let (client, period) = (self.driver.client.clone(), self.driver.config.sync_period);
        followers.spawn(follow::services(client.clone(), period, out.clone()));
        let namespace = self.driver.config.namespace.clone();
        followers.spawn(async move { follow::pools(client, &namespace, period, out).await });
        let config = &self.driver.config;
        let mut allocator = Allocator::new(config.takes_default_class, config.served_external_ips.clone());
        let mut writes: JoinSet<(Write, Result<Status, Failure>)> = JoinSet::new();
        self.pools.begin();
        while let Some(until) = self.usable_until().filter(|_| !*self.stop.borrow()) {
            let now = Instant::now();
            self.driver.pulse.beat(now);
            allocator.tick(now);
            if self.pools.tick(now) {
                self.set_pools(&mut allocator, now);
            }
            for write in allocator.next_writes(now, WRITES.saturating_sub(writes.len())) {
                writes.spawn(written(self.driver.api.clone(), write, until));
            }
            self.report(&mut allocator);
            let next = allocator.next_time().filter(|_| writes.len() < WRITES).unwrap_or(until);
            tokio::select! {
                Some(first) = news.recv() => {
                    self.take_in(first, &mut allocator);
                    while let Ok(next) = news.try_recv() {
                        self.take_in(next, &mut allocator);
                    }
                }
                Some(done) = writes.join_next() => self.finish(done.ok(), &mut allocator),
                changed = self.usable.changed() => if changed.is_err() { break },
                _ = self.stop.changed() => {}
                () = sleep_until(next.min(until).min(now + BEAT).into()) => {}
            }
        }
        info!("Lease given up or lost; another agent gives load balancer addresses");
        // The next list, and the list of the next holder, have to have those that are on their way, and those without an answer, which the
        // API server gives up in time.
        while let Some(done) = writes.join_next().await {
            if done.is_ok_and(|(_, status)| matches!(status, Err(Failure::Unknown(_)))) {
                self.unknown = Some(Instant::now());
            }
        }
        if let Some(at) = self.unknown.take() {
            sleep_until((at + Duration::from_secs(WRITE_SECONDS)).into()).await;
        }
    }

    fn take_in(&mut self, news: News, allocator: &mut Allocator) {
        let now = Instant::now();
        match news {
            News::Services(all, version) => allocator.list(all, &version, now),
            News::Service(name, service) => allocator.observe(name, service, now),
            News::Gone(name, version) => allocator.gone(&name, &version, now),
            News::Pools(seen) => {
                if self.pools.see(seen, now) {
                    self.set_pools(allocator, now);
                }
            }
        }
    }

    /// Puts the pools in force as they are known now.
    fn set_pools(&mut self, allocator: &mut Allocator, now: Instant) {
        let mut notes: Vec<String> = self.pools.note().into_iter().collect();
        for note in &notes {
            warn!(configmap = follow::POOLS, reason = note, "Address pools are kept");
        }
        if let Some(pools) = self.pools.last() {
            let (in_force, mistakes) = Pools::new(&self.driver.config.ranges, pools);
            let unreadable = pools.unreadable.iter().map(|(name, why)| format!("pool {name}: {why}"));
            let wrong: Vec<String> = unreadable.chain(mistakes).collect();
            for note in &wrong {
                warn!(configmap = follow::POOLS, reason = note, "Address pool is not in force as written");
            }
            notes.extend(wrong);
            let is_unknown = self.pools.is_unknown();
            if is_unknown {
                warn!(
                    configmap = follow::POOLS,
                    "Address pool has no earlier good version; no address is given or taken away"
                );
            }
            allocator.set_pools((!is_unknown).then_some(in_force), now);
        }
        self.pool_notes = notes;
        self.note();
    }

    fn finish(&mut self, done: Option<(Write, Result<Status, Failure>)>, allocator: &mut Allocator) {
        let Some((write, status)) = done else { return };
        let (label, outcome) = match &status {
            Ok(Status::Written(service)) => ("written", Outcome::Written(Arc::new(service.clone()))),
            Ok(Status::Newer(service)) => ("newer", Outcome::Newer(Arc::new(service.clone()))),
            Err(Failure::NotFound) => ("gone", Outcome::Gone),
            Err(Failure::Conflict) => ("conflict", Outcome::Refused),
            Err(Failure::Forbidden(_) | Failure::Refused(_)) => ("refused", Outcome::Refused),
            Err(Failure::Unknown(_)) => ("unknown", Outcome::Unknown),
        };
        self.driver.metrics.writes.with_label_values(&[label]).inc();
        if outcome == Outcome::Unknown {
            self.unknown = Some(Instant::now());
        }
        match &status {
            Ok(_) => {
                if self.failure.take().is_some() {
                    info!("Writing load balancer addresses recovered");
                    self.note();
                }
            }
            Err(Failure::NotFound | Failure::Conflict) => {}
            Err(failure) => {
                let service = &write.service;
                let reason = format!("the address of Service {service} cannot be written: {failure}");
                if self.failure.replace(reason).is_none() {
                    warn!(%service, ?failure, rules = RULES, "Writing a load balancer address failed; retrying");
                    self.note();
                }
            }
        }
        allocator.finish(&write, outcome, Instant::now());
    }

    fn note(&self) {
        self.driver.note.set(self.pool_notes.iter().chain(&self.failure).cloned().collect());
    }

    /// Tells what is new, in log, Events and metrics.
    fn report(&self, allocator: &mut Allocator) {
        for notice in allocator.take_notices() {
            let Notice { service, matter, .. } = &notice;
            if matter.is_warning() {
                warn!(%service, reason = %matter, "Service lacks a load balancer address");
            } else {
                info!(%service, address = %matter, "Load balancer address given");
            }
            // Of very many at a time the log tells.
            let _ = self.events.try_send(notice);
        }
        self.driver.metrics.set_pools(&allocator.pool_uses());
        self.driver.metrics.wanting.set(i64::try_from(allocator.wanting()).unwrap_or(i64::MAX));
    }
}

async fn written(api: Api, write: Write, until: Instant) -> (Write, Result<Status, Failure>) {
    let status = api.put_status(&write.service, &write.version, &write.addresses, until).await;
    (write, status)
}
