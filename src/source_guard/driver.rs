//! The source guard in the loop of all subsystems: calls of the container runtime → guarded ports → kernel.
//!
//! A pod's ADD is answered at the end of the turn after which the kernel is known to guard its port. Of the World it needs nothing but the
//! number of pods that are not guarded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::kernel::bridge::NoGroupLearning;
use crate::kernel::link::LinkName;
use crate::kernel::monitor::Notice;
use crate::model::{AttachmentId, Authority, LinkAddress, ObjectName, Pod, Table, World};
use crate::observe::health::Note;
use crate::reconcile::{Account, Moment};
use crate::subsystem::{self, Context, FirstSync, Inputs, Standing, Subsystem, Times};

use super::apply::{Kernel, Mirrors, PodLink, Targets};
use super::metrics::Metrics;
use super::ports::{GuardedPort, Ports};
use super::ports_file::{PortsFile, Restored};
use super::table::{self, Desired};

/// A call of the container runtime.
#[derive(Debug)]
pub enum Call {
    Add(StartingPort),
    Delete(AttachmentId),
    /// These attachments of a network exist and no others of it.
    Retain {
        network: CompactString,
        ids: BTreeSet<AttachmentId>,
    },
}

/// A pod that starts, with what the CNI plugins made for it.
#[derive(Debug)]
pub struct StartingPort {
    pub id: AttachmentId,
    pub network: CompactString,
    /// The links on this host that the plugins named; one of them is the port.
    pub links: Box<[CompactString]>,
    /// Of the pod's own end.
    pub link_address: LinkAddress,
    pub addresses: Box<[IpAddr]>,
    /// Receives whether it may start: until then what is missing.
    pub outcome: watch::Sender<Result<(), String>>,
}

/// Inputs and outputs of the source guard besides those of every subsystem.
pub struct GuardContext {
    pub calls: mpsc::Receiver<Call>,
    pub file: PortsFile,
    pub metrics: Metrics,
    pub note: Note,
}

/// The time from the end of an audit to the next.
const AUDIT_PERIOD: Duration = Duration::from_secs(300);

/// Interval at which the file is written again that could not be, and at which is read again what the kernel guards.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// State of the source guard between two turns.
pub struct Driver<K: Kernel> {
    context: GuardContext,
    mirrors: Mirrors<K>,
    ports: Ports,
    /// The bridges of the links that were ports when the links were listed last; `None` where they never were.
    bridges: Option<BTreeMap<CompactString, CompactString>>,
    desired: Desired,
    /// Pods that wait until their port is guarded.
    waiting: Vec<watch::Sender<Result<(), String>>>,
    /// The ports in the file, as far as is known.
    written: Option<Ports>,
    /// The last writing of the file failed with this, and is tried again then.
    unwritten: Option<(String, Instant)>,
    /// Reading what an earlier run guards failed with this, and is tried again then. Until it succeeds nothing is written, neither the file nor
    /// the kernel: ports that only the kernel knows would be opened.
    unread: Option<(String, Instant)>,
    /// The links whose ports this run has ended, until the kernel was seen not to guard them any more. What else it guards besides ours, another agent was
    /// told that runs beside this one, or ran until a moment ago.
    ended: BTreeSet<CompactString>,
    /// When to list the links again; `None` where nothing of them has changed.
    relist: Option<Instant>,
    /// The pods of the last World, and of them those of this node with their addresses.
    pods: Table<ObjectName, Pod>,
    local: BTreeMap<ObjectName, Box<[IpAddr]>>,
    unguarded: usize,
}

impl<K: Kernel> Driver<K> {
    /// Takes over the ports that an earlier run guarded.
    pub fn new(targets: Targets<K>, context: GuardContext) -> Driver<K> {
        let (restored, unreadable) = match context.file.read() {
            Ok(Restored { ports, unreadable }) => (ports, unreadable.join("; ")),
            Err(error) => (Vec::new(), error.to_string()),
        };
        if !unreadable.is_empty() {
            warn!(error = unreadable, "Guarded ports of an earlier run are not readable");
        }
        let mut driver = Driver {
            context,
            mirrors: Mirrors::new(targets),
            written: None,
            ports: Ports::restored(restored),
            bridges: None,
            desired: Desired::default(),
            waiting: Vec::new(),
            unwritten: None,
            unread: None,
            ended: BTreeSet::new(),
            relist: None,
            pods: Table::default(),
            local: BTreeMap::new(),
            unguarded: 0,
        };
        driver.take_up(Instant::now());
        driver
    }

    /// Runs until `stop` becomes true or the World's publisher is gone.
    pub async fn run(self, inputs: Inputs, stop: watch::Receiver<bool>) {
        subsystem::run(self, inputs, stop).await;
    }

    /// Adds to the ports of the file those that the kernel guards besides: the file may be gone, damaged, or elsewhere than in the run before. A run without
    /// the flag removes the tables, so what they guard is what the last run with it was told.
    fn take_up(&mut self, now: Instant) {
        let found = match self.mirrors.found() {
            Ok(found) => found,
            Err(error) => {
                if self.unread.is_none() {
                    warn!(%error, "Reading the source guard of an earlier run failed; retrying; nothing is changed until then");
                }
                self.unread =
                    Some((format!("the source guard of an earlier run cannot be read: {error}"), now + TRY_AGAIN));
                return;
            }
        };
        if self.unread.take().is_some() {
            info!("Reading the source guard of an earlier run recovered");
        }
        let links = self.forget_missing_links();
        let known = self.ports.len();
        let is_there = |port: &GuardedPort| links.as_ref().is_none_or(|links| links.contains(&port.link));
        table::guarded(&found).into_iter().filter(is_there).for_each(|port| self.ports.adopt(port));
        let kept = self.ports.len() - known;
        if kept > 0 {
            let path = self.context.file.path().display();
            warn!(kept, %path, "The kernel guards ports that the file does not name; they stay guarded until their links are gone");
        }
        self.take_over(now);
    }

    fn take(&mut self, call: Call) {
        match call {
            Call::Add(port) => self.add(port),
            Call::Delete(id) => self.ports.remove(&id),
            Call::Retain { network, ids } => self.ports.retain(&network, &ids),
        }
    }

    fn add(&mut self, starting: StartingPort) {
        let StartingPort { id, network, links, link_address, addresses, outcome } = starting;
        if let Err(error) = self.list_links() {
            return drop(outcome.send_replace(Err(format!("the links of this host are not known: {error}"))));
        }
        let bridge_of = |link: &CompactString| Some((link.clone(), self.bridges.as_ref()?.get(link)?.clone()));
        let Some((link, bridge)) = links.iter().find_map(bridge_of) else {
            // It is on no bridge, and counted with those that are not guarded.
            debug!(?links, "Pod is not guarded: none of its links is a port of a bridge");
            self.ports.remove(&id);
            self.ports.vacate(&links);
            self.ended.extend(links);
            return drop(outcome.send_replace(Ok(())));
        };
        // The bridge may have been made anew since another pod came to it.
        self.mirrors.doubt(LinkName(bridge));
        if !self.ports.put(GuardedPort { id, network, link, link_address, addresses }) {
            return drop(outcome.send_replace(Err("too many ports are guarded".to_owned())));
        }
        drop(outcome.send_replace(Err("the source guard of its port is not in force".to_owned())));
        self.waiting.push(outcome);
    }

    /// Writes the ports down and makes desired what follows from them, once all of them are known.
    fn take_over(&mut self, now: Instant) {
        if self.unread.is_some() {
            return;
        }
        if self.written.as_ref() != Some(&self.ports) {
            self.write(now);
        }
        let desired = self.wanted();
        if desired == self.desired {
            return;
        }
        self.ended.extend(table::guarded(&self.desired.frames).into_iter().map(|port| port.link));
        self.ended.retain(|link| !self.ports.has(link));
        self.mirrors.mark(&self.desired, &desired);
        self.desired = desired;
        self.count_unguarded();
    }

    /// Takes over what the kernel guards besides: two agents overlap while one replaces the other, and each is told of some pods alone.
    /// Returns whether all of that is known: what is not may be another agent's, and stays.
    fn adopt_of_others(&mut self, at: Moment) -> bool {
        let Some(surplus) = self.mirrors.surplus(&self.desired, at) else { return false };
        let of_others = |port: &GuardedPort| !self.ended.contains(&port.link) && !self.ports.has(&port.link);
        let found: Vec<GuardedPort> = table::guarded(&surplus).into_iter().filter(of_others).collect();
        if found.is_empty() {
            return true;
        }
        let Some(links) = self.listed() else {
            self.relist = Some(at.now + TRY_AGAIN);
            return false;
        };
        for port in found.into_iter().filter(|port| links.contains(&port.link)) {
            info!(link = %port.link, "Port guarded by another agent taken over");
            self.ports.adopt(port);
        }
        self.take_over(at.now);
        true
    }

    fn wanted(&self) -> Desired {
        let bridges = self.ports.iter().filter_map(|port| self.bridges.as_ref()?.get(&port.link));
        let bridges = bridges.map(|bridge| (LinkName(bridge.clone()), NoGroupLearning)).collect();
        let is_on_bridge =
            |port: &GuardedPort| self.bridges.as_ref().is_none_or(|bridges| bridges.contains_key(&port.link));
        Desired { bridges, ..table::contents(&self.ports, is_on_bridge) }
    }

    /// Lists the links of this host, and notes which are ports of bridges. Returns the names of all.
    fn list_links(&mut self) -> Result<BTreeSet<CompactString>, String> {
        let links = self.mirrors.kernel().pod_links()?;
        let names = links.iter().map(|link| link.name.clone()).collect();
        let port = |PodLink { name, bridge }: PodLink| Some((name, bridge?));
        self.bridges = Some(links.into_iter().filter_map(port).collect());
        Ok(names)
    }

    fn write(&mut self, now: Instant) {
        let path = self.context.file.path().display();
        match self.context.file.write(&self.ports) {
            Ok(()) => {
                self.written = Some(self.ports.clone());
                if self.unwritten.take().is_some() {
                    info!(%path, "Writing guarded ports recovered");
                }
            }
            Err(error) => {
                let text = format!("guarded ports cannot be written to {path}: {error}");
                if self.unwritten.is_none() {
                    warn!(%path, %error, "Writing guarded ports failed; retrying; a restart now would open ports");
                }
                self.written = None;
                self.unwritten = Some((text, now + TRY_AGAIN));
            }
        }
    }

    /// Forgets the ports whose links are gone: their ends were not told. Returns the links of this host, where they are known.
    fn forget_missing_links(&mut self) -> Option<BTreeSet<CompactString>> {
        let links = self.listed()?;
        self.ports.retain_links(&links);
        Some(links)
    }

    /// Lists the links; `None` where the kernel does not tell, which is logged.
    fn listed(&mut self) -> Option<BTreeSet<CompactString>> {
        match self.list_links() {
            Ok(links) => Some(links),
            Err(error) => {
                warn!(%error, "Links of this host are not known; guarded ports of missing links stay");
                None
            }
        }
    }

    fn count_unguarded(&mut self) {
        let guarded = self.ports.addresses();
        let is_open = |addresses: &[IpAddr]| addresses.iter().any(|address| !guarded.contains(address));
        // One that is gone cannot be made anew, and may have ended: the container runtime's word of that may have been lost.
        let there = self.local.iter().filter(|(name, _)| !name.is_of_gone_pod());
        let unguarded = there.filter(|(_, addresses)| is_open(addresses)).count();
        if unguarded == self.unguarded {
            return;
        }
        self.unguarded = unguarded;
        let text = format!(
            "{unguarded} pods of this node are not guarded: they were started before --netpol-source-guard, or are on no bridge; \
             to have them guarded, make them anew"
        );
        self.context.note.set((unguarded > 0).then_some(text).into_iter().collect());
    }
}

impl<K: Kernel> Subsystem for Driver<K> {
    type Mirrors = Mirrors<K>;
    type News = Call;
    type Round = ();

    const NOTICES: &'static [Notice] = &[Notice::Ports];

    fn mirrors(&mut self) -> &mut Mirrors<K> {
        &mut self.mirrors
    }

    fn audit_period(&self) -> Duration {
        AUDIT_PERIOD
    }

    async fn next(&mut self) -> Call {
        match self.context.calls.recv().await {
            Some(call) => call,
            None => std::future::pending().await,
        }
    }

    async fn hear(&mut self, call: Call, at: Moment, _context: &Context<'_>) {
        self.take(call);
        // Those that come together are looked at together.
        while let Ok(more) = self.context.calls.try_recv() {
            self.take(more);
        }
        self.take_over(at.now);
    }

    fn deadline(&self) -> Option<Instant> {
        let unwritten = self.unwritten.as_ref().map(|(_, at)| *at);
        let unread = self.unread.as_ref().map(|(_, at)| *at);
        [self.mirrors.retry_at(), unwritten, unread, self.relist].into_iter().flatten().min()
    }

    async fn take_world(&mut self, world: &World, _at: Moment) -> Authority {
        let node = &world.host.node_name;
        for change in world.cluster.pods.changes_since(&self.pods) {
            let name = change.key();
            let is_here = |pod: &Pod| pod.node.as_deref() == Some(node.as_str()) && !pod.host_network && !pod.finished;
            match world.cluster.pods.get(name).filter(|pod| is_here(pod)) {
                Some(pod) => drop(self.local.insert(name.clone(), pod.addresses.iter().copied().collect())),
                None => drop(self.local.remove(name)),
            }
        }
        self.pods = world.cluster.pods.clone();
        self.count_unguarded();
        // What is desired is this host's own.
        Authority::Complete
    }

    async fn calculate(&mut self, at: Moment) {
        if self.unread.as_ref().is_some_and(|(_, due)| *due <= at.now) {
            self.take_up(at.now);
        }
        if self.unwritten.as_ref().is_some_and(|(_, due)| *due <= at.now) {
            self.write(at.now);
        }
        if self.relist.is_some_and(|due| due <= at.now) {
            self.relist = self.forget_missing_links().is_none().then(|| at.now + TRY_AGAIN);
            self.take_over(at.now);
        }
    }

    fn disturbed(&mut self, notice: Notice) {
        // The other notices are of the tables, and a dump of all links is dear.
        if notice == Notice::Ports {
            self.relist = Some(Instant::now());
        }
    }

    fn round(&mut self, _authority: Authority, at: Moment) {
        if self.unread.is_some() {
            return;
        }
        let others_are_known = self.adopt_of_others(at);
        self.mirrors.round(&self.desired, others_are_known, at);
        if self.mirrors.is_settled() {
            self.ended.clear();
        }
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        Some(Vec::new())
    }

    fn count(&mut self, (): (), _steps: u64, _times: &Times) {}

    fn audited(&mut self, at: Moment) {
        drop(self.forget_missing_links());
        self.take_over(at.now);
    }

    fn troubles(&mut self, _account: &mut Account, _standing: &Standing) -> Vec<String> {
        self.unread.iter().chain(&self.unwritten).map(|(text, _)| text.clone()).collect()
    }

    fn log_first_sync(&mut self, sync: &FirstSync) {
        info!(
            ports = self.ports.len(),
            unguarded_pods = self.unguarded,
            steps = sync.steps,
            took_ms = sync.took.as_millis() as u64,
            "First sync of the source guard finished"
        );
    }

    fn publish(&mut self, standing: &Standing) -> bool {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.context.metrics.ports.set(count(self.ports.len()));
        self.context.metrics.unguarded.set(count(self.unguarded));
        self.waiting.retain(|outcome| !outcome.is_closed());
        let tell = |waiting: &[watch::Sender<_>], text: &str| {
            waiting.iter().for_each(|outcome| drop(outcome.send_replace(Err(text.to_owned()))));
        };
        if let Some((text, _)) = self.unread.as_ref().or(self.unwritten.as_ref()) {
            // Its port is not guarded yet, or a restart would open it.
            tell(&self.waiting, text);
        } else if self.mirrors.is_settled() {
            self.waiting.drain(..).for_each(|outcome| drop(outcome.send_replace(Ok(()))));
        } else if let Some(error) = self.mirrors.trouble() {
            tell(&self.waiting, &format!("the source guard of its port is not in force: {error}"));
        }
        standing.synced
    }
}

#[cfg(test)]
mod tests;
