//! The allocator at work: the election, the objects that the holder of the Lease follows, its writes and Events.
//!
//! The election (`election/driver.rs`) says until when writes may be begun.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use compact_str::{CompactString, format_compact};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{error, info, warn};

use super::allocator::Allocator;
use super::election::Timing;
use super::election::driver::Candidacy;
use super::failures::Failures;
use super::known_pools::KnownPools;
use super::metrics::Metrics;
use super::notice::{Matter, Notice};
use super::outbox::{Lines, Outbox};
use super::pace::Pace;
use super::pools::Pools;
use super::tenure::Tenure;
use super::writes::{Outcome, Write};
use crate::config::LoadBalancerConfig;
use crate::k8s::allocation::follow::{self, News};
use crate::k8s::allocation::{Addresses, Api, Failure, RULES, Status, WRITE_SECONDS};
use crate::k8s::client::{Access, ApiClient};
use crate::k8s::events::{About, Events, Name, NewEvent};
use crate::k8s::parse::address_pools::POOLS;
use crate::model::{ObjectName, ReservedAddresses, World};
use crate::observe::health::{Note, Pulse};

/// The allocator, and what it works with.
pub struct Driver {
    pub config: LoadBalancerConfig,
    /// The way to the API server, for the election's own client.
    pub access: Access,
    pub client: ApiClient,
    pub api: Api,
    pub events: Events,
    pub pulse: Pulse,
    /// Receives the pools that are not in force as written, and why addresses cannot be written.
    pub note: Note,
    /// Receives why the Lease cannot be read or written.
    pub lease_note: Note,
    pub metrics: Metrics,
    /// Says which addresses the cluster uses itself.
    pub world: watch::Receiver<World>,
    /// Delays of the election.
    pub timing: Timing,
}

/// An admission webhook or a policy engine may put back what a write has asked for.
const UNCHANGED: &str = "the API server took the write and changed nothing";
/// Writes at a time.
const WRITES: usize = 8;
/// How much news may wait; a source that is faster waits itself.
const NEWS: usize = 1024;
/// The longest silence of the loop.
const BEAT: Duration = Duration::from_secs(30);

impl Driver {
    /// Runs until `stop` is true.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let (usable_out, usable) = watch::channel(None);
        let (end, ended) = watch::channel(false);
        let outbox = watch::Sender::new(Outbox::default());
        let candidacy = Candidacy {
            access: self.access.clone(),
            namespace: self.config.namespace.clone(),
            identity: identity(&self.config.identity),
            usable: usable_out,
            note: self.lease_note.clone(),
            timing: self.timing,
        };
        let election = match candidacy.start(ended) {
            Ok(election) => election,
            Err(error) => return error!(%error, "Address allocator has no thread for its election"),
        };
        let telling = tokio::spawn(tell(self.events.clone(), outbox.clone()));
        let mut work = Work {
            driver: self,
            usable,
            stop,
            outbox,
            lines: Lines::default(),
            pools: KnownPools::default(),
            reserved: None,
            seen: World::empty(),
            unknown: None,
            pool_notes: Vec::new(),
            unlisted: BTreeMap::new(),
            pace: Pace::default(),
            failures: Failures::default(),
        };
        work.run().await;
        drop(work);
        telling.abort();
        // No write is on its way any more.
        end.send_replace(true);
        // The thread says nothing; its end closes the channel.
        let _ = election.await;
    }
}

/// The identity of this process among all that ever were.
fn identity(name: &str) -> CompactString {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format_compact!("{name}_{:x}", since.as_nanos())
}

/// Sends Events, one after the other. One that fails is not repeated: the log has it.
async fn tell(events: Events, outbox: watch::Sender<Outbox>) {
    let mut changes = outbox.subscribe();
    loop {
        let mut next = None;
        outbox.send_if_modified(|outbox| {
            next = outbox.take();
            false
        });
        let Some(notice) = next else {
            // Whoever adds to it is aborted together with this task.
            let _ = changes.changed().await;
            continue;
        };
        let event = NewEvent {
            about: About::Service(notice.service, Some(notice.uid)),
            name: Name::Time,
            is_warning: notice.matter.is_warning(),
            reason: notice.matter.reason(),
            message: notice.matter.to_string(),
            at: SystemTime::now().checked_sub(notice.at.elapsed()),
        };
        // A failure is in the log.
        let _ = events.tell(event).await;
    }
}

/// The part that gives addresses while the Lease is held.
struct Work {
    driver: Driver,
    /// Until when writes may be begun.
    usable: watch::Receiver<Option<Tenure>>,
    stop: watch::Receiver<bool>,
    outbox: watch::Sender<Outbox>,
    lines: Lines,
    pools: KnownPools,
    /// Addresses that the cluster uses itself; `None` while they are not known.
    reserved: Option<ReservedAddresses>,
    /// The World from which they are.
    seen: World,
    /// When the outcome of a write was last not known.
    unknown: Option<Instant>,
    pool_notes: Vec<String>,
    /// Why kinds of objects cannot be listed.
    unlisted: BTreeMap<&'static str, String>,
    pace: Pace,
    failures: Failures,
}

impl Work {
    async fn run(&mut self) {
        self.driver.pulse.ready(true);
        while !*self.stop.borrow() {
            self.driver.pulse.beat(Instant::now());
            if let Some(tenure) = self.tenure() {
                info!("Lease acquired; this agent gives load balancer addresses");
                self.driver.metrics.leads.set(1);
                self.lead(tenure.number).await;
                self.driver.metrics.leads.set(0);
                self.driver.metrics.set_pools(&[]);
                self.driver.metrics.wanting.set(0);
                (self.pool_notes, self.failures, self.pace) = (Vec::new(), Failures::default(), Pace::default());
                self.unlisted.clear();
                self.outbox.send_modify(Outbox::end);
                self.lines = Lines::default();
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

    fn tenure(&self) -> Option<Tenure> {
        self.usable.borrow().filter(|tenure| tenure.until > Instant::now())
    }

    /// Until when writes of a tenure may be begun; `None` where it is over, also where another one has begun.
    fn usable_until(&self, number: u64) -> Option<Instant> {
        self.tenure().filter(|tenure| tenure.number == number).map(|tenure| tenure.until)
    }

    /// Gives addresses until the Lease is lost or the program ends.
    async fn lead(&mut self, number: u64) {
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
        self.look_at_world();
        while let Some(until) = self.usable_until(number).filter(|_| !*self.stop.borrow()) {
            let now = Instant::now();
            self.driver.pulse.beat(now);
            allocator.tick(now);
            if self.pools.tick(now) {
                self.set_pools(&mut allocator, now);
            }
            for write in self.due(&mut allocator, now, WRITES.saturating_sub(writes.len())) {
                writes.spawn(written(self.driver.api.clone(), write, until));
            }
            self.report(&mut allocator);
            let slow = allocator.next_slow_time().map(|due| self.pace.not_before(due));
            let next = allocator.next_time().into_iter().chain(slow).min();
            let next = next.filter(|_| writes.len() < WRITES).unwrap_or(until);
            tokio::select! {
                Some(first) = news.recv() => {
                    self.take_in(first, &mut allocator);
                    while let Ok(next) = news.try_recv() {
                        self.take_in(next, &mut allocator);
                    }
                }
                Some(done) = writes.join_next() => self.finish(done.ok(), &mut allocator),
                Ok(()) = self.driver.world.changed() => if self.look_at_world() {
                    self.set_pools(&mut allocator, Instant::now());
                    self.look_at_failures(&allocator);
                },
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

    /// The writes to begin now, at most so many.
    fn due(&mut self, allocator: &mut Allocator, now: Instant, places: usize) -> Vec<Write> {
        let mut all = allocator.next_writes(now, places);
        if all.len() < places && self.pace.may_begin(now) {
            let slow = allocator.next_slow_write(now);
            slow.iter().for_each(|_| self.pace.begun(now));
            all.extend(slow);
        }
        all
    }

    fn take_in(&mut self, news: News, allocator: &mut Allocator) {
        let now = Instant::now();
        match news {
            News::Services(all, version) => {
                allocator.list(all, &version, now);
                self.look_at_failures(allocator);
            }
            News::Service(name, service) => {
                allocator.observe(name.clone(), service, now);
                self.look_at_failure(&name, allocator);
            }
            News::Gone(name, version) => {
                allocator.gone(&name, &version, now);
                self.look_at_failure(&name, allocator);
            }
            News::Unlisted(what, reason) => {
                match reason {
                    Some(reason) => self
                        .unlisted
                        .insert(what, format!("{what} cannot be listed for load balancer addresses: {reason}")),
                    None => self.unlisted.remove(what),
                };
                self.note();
            }
            News::Pools(seen) => {
                if self.pools.see(seen, now) {
                    self.set_pools(allocator, now);
                    self.look_at_failures(allocator);
                }
            }
        }
    }

    /// Follows which addresses the cluster uses itself. Returns whether they are others than before. Those that were known count while they
    /// cannot be read.
    fn look_at_world(&mut self) -> bool {
        let world = self.driver.world.borrow_and_update().clone();
        if !ReservedAddresses::may_differ(&self.seen, &world) {
            // An old World would keep all its tables.
            self.seen = world;
            return false;
        }
        let reserved = ReservedAddresses::of(&world).or_else(|| self.reserved.clone());
        self.seen = world;
        let differs = self.reserved != reserved;
        self.reserved = reserved;
        differs
    }

    /// Puts the pools in force as they are known now.
    fn set_pools(&mut self, allocator: &mut Allocator, now: Instant) {
        let mut notes: Vec<String> = self.pools.note().into_iter().collect();
        // Nodes and ranges change as well, which is no reason to say again what is known.
        let is_new = |note: &&String| !self.pool_notes.contains(note);
        for note in notes.iter().filter(is_new) {
            warn!(configmap = POOLS, reason = note, "Address pools are kept");
        }
        if self.reserved.is_none() {
            notes.push(
                "no address is given or taken away: the Nodes, whose addresses no Service may have, are not known yet"
                    .to_owned(),
            );
        }
        if let (Some(pools), Some(reserved)) = (self.pools.last(), &self.reserved) {
            let (in_force, mistakes) = Pools::new(&self.driver.config.ranges, pools, reserved);
            let unreadable = pools.unreadable.iter().map(|(name, why)| format!("pool {name}: {why}"));
            let wrong: Vec<String> = unreadable.chain(mistakes).collect();
            let new: Vec<&String> = wrong.iter().filter(is_new).collect();
            for note in &new {
                warn!(configmap = POOLS, reason = note, "Address pool is not in force as written");
            }
            let is_unknown = self.pools.is_unknown();
            if is_unknown && !new.is_empty() {
                warn!(configmap = POOLS, "Address pool has no earlier good version; no address is given or taken away");
            }
            notes.extend(wrong);
            allocator.set_pools((!is_unknown).then_some(in_force), now);
        }
        self.pool_notes = notes;
        self.note();
    }

    fn finish(&mut self, done: Option<(Write, Result<Status, Failure>)>, allocator: &mut Allocator) {
        let Some((write, status)) = done else { return };
        let failed = |failure: &Failure| Some(failure.to_string());
        let (label, outcome, failure) = match &status {
            Ok(Status::Written(service)) if service.version == write.version => {
                ("unchanged", Outcome::Refused, Some(UNCHANGED.to_owned()))
            }
            Ok(Status::Written(service)) => ("written", Outcome::Written(Arc::new(service.clone())), None),
            Ok(Status::Newer(service)) => ("newer", Outcome::Newer(Arc::new(service.clone())), None),
            // The watch says so, too.
            Err(Failure::NotFound) => ("gone", Outcome::Refused, None),
            Err(Failure::Conflict) => ("conflict", Outcome::Refused, None),
            Err(failure @ Failure::Forbidden(_)) => ("refused", Outcome::Forbidden, failed(failure)),
            Err(failure @ Failure::Refused(_)) => ("refused", Outcome::Refused, failed(failure)),
            Err(failure @ Failure::Unknown(_)) => ("unknown", Outcome::Unknown, failed(failure)),
        };
        self.driver.metrics.writes.with_label_values(&[label]).inc();
        let now = Instant::now();
        if outcome == Outcome::Unknown {
            self.unknown = Some(now);
        }
        let service = &write.service;
        match failure {
            None => self.mended(service),
            Some(reason) => {
                if self.failures.failed(service, reason.clone(), now) {
                    warn!(%service, failure = reason, rules = RULES, "Writing a load balancer address failed; retrying");
                }
                self.note();
            }
        }
        allocator.finish(&write, outcome, now);
        self.look_at_failure(service, allocator);
    }

    /// Forgets the failures of Services that are not to be written any more.
    fn look_at_failures(&mut self, allocator: &Allocator) {
        let failed: Vec<ObjectName> = self.failures.services().cloned().collect();
        failed.iter().for_each(|name| self.look_at_failure(name, allocator));
    }

    /// Forgets the failure of a Service that is not to be written any more.
    fn look_at_failure(&mut self, service: &ObjectName, allocator: &Allocator) {
        if self.failures.has(service) && !allocator.is_to_be_written(service) {
            self.mended(service);
        }
    }

    /// Notes that the last write of a Service did not fail.
    fn mended(&mut self, service: &ObjectName) {
        if !self.failures.has(service) {
            return;
        }
        if self.failures.over(service) {
            info!("Writing load balancer addresses recovered");
        }
        self.note();
    }

    fn note(&self) {
        let notes = self.pool_notes.iter().chain(self.unlisted.values()).cloned();
        self.driver.note.set(notes.chain(self.failures.note()).collect());
    }

    /// Tells what is new, in log, Events and metrics.
    fn report(&mut self, allocator: &mut Allocator) {
        let now = Instant::now();
        let (notices, over) = (allocator.take_notices(), allocator.take_over());
        let is_so = |notice: &Notice| match &notice.matter {
            Matter::Wanting(problem) => allocator.has_problem(&notice.service, problem),
            _ => true,
        };
        let notices: Vec<Notice> = notices.into_iter().filter(is_so).collect();
        over.iter().for_each(|(service, problem)| self.lines.is_over(service, problem));
        let lines: Vec<&Notice> = notices.iter().filter(|notice| self.lines.is_due(notice, now)).collect();
        lines.into_iter().for_each(log);
        self.lines.due(now).iter().for_each(log);
        if !notices.is_empty() || !over.is_empty() {
            self.outbox.send_modify(|outbox| {
                over.iter().for_each(|(service, problem)| outbox.is_over(service, problem));
                notices.into_iter().for_each(|notice| outbox.push(notice));
            });
        }
        self.driver.metrics.set_pools(&allocator.pool_uses());
        self.driver.metrics.wanting.set(i64::try_from(allocator.wanting()).unwrap_or(i64::MAX));
    }
}

fn log(Notice { service, matter, .. }: &Notice) {
    let line = matter.headline();
    if matter.is_warning() {
        warn!(%service, reason = %matter, "{line}");
    } else {
        info!(%service, address = %matter, "{line}");
    }
}

async fn written(api: Api, write: Write, until: Instant) -> (Write, Result<Status, Failure>) {
    let addresses = Addresses { all: &write.addresses, given: &write.given };
    let status = api.put_status(&write.service, &write.version, addresses, until).await;
    (write, status)
}

#[cfg(test)]
mod tests;
