//! Joins the cluster as read from a source with this host's facts as read from the kernel into the World, and
//! publishes it.
//!
//! One task owns the tables. It takes in everything that is waiting, then publishes once: the newest World
//! wins and nothing queues. A World shares all that did not change with the one before, so publishing costs
//! the change and not the cluster.
//!
//! How far the World may be trusted (`model::Authority`) is decided here, for what the service proxy, the firewall and the
//! router need apart. It only ever grows: once every needed kind has been listed in full, an outage of the source
//! changes nothing.
//!
//! Cancelling the task loses nothing but what was not published yet; end it through its `stop` instead, so
//! that what is known is written to disk.

mod attachments;
mod attachments_file;
mod detection;
mod host;
mod joined;
mod last_known;
mod remembered;
mod service_warnings;
mod warned;

pub use self::attachments_file::AttachmentsFile;
pub use self::detection::Detection;
pub use self::host::{Reading, host, publish_host};
pub use self::last_known::{Known, LastKnown};

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

use self::joined::Joined;
use self::last_known::Keeper;
use self::service_warnings::ServiceWarnings;
use self::warned::{Verdict, Warned};
use crate::k8s::{Event, Kind, Message, Object, ObjectId, Wanted, Warning};
use crate::model::{
    AttachmentChange, Authorities, Authority, Cluster, EventClock, Host, Report, ServiceProblems, World,
};
use crate::net::NodeAnnotations;
use crate::observe::health::Note;

/// Inputs of the World.
pub struct Inputs {
    /// The messages of a source (`k8s::watch`, `k8s::manifests`).
    pub messages: mpsc::Receiver<Message>,
    /// The parts of the cluster to read; the World is complete when each of these has been listed.
    pub wanted: Vec<Wanted>,
    /// The annotations of Nodes that are believed.
    pub annotations: NodeAnnotations,
    /// The facts of this host. The value at the start must be real already: it is acted upon as soon as the
    /// cluster is known.
    pub host: watch::Receiver<Arc<Host>>,
    /// The last known state: read in the case that the source cannot be reached, written when all is known.
    pub last_known: Option<LastKnown>,
    /// One clock for each consumer of the World.
    pub clocks: Vec<Arc<EventClock>>,
    /// Receives the warnings about the Node of this host.
    pub report: watch::Sender<Report>,
    /// Receives the warnings about Services and their endpoint slices.
    pub service_warnings: watch::Sender<ServiceProblems>,
    /// Time limit for the first complete view, after which its absence is reported.
    pub sync_timeout: Duration,
    /// Receives the notes that there is no such Node, and of policies that cannot be read.
    pub note: Note,
    /// Receives the note that the last known state is used, and of when it is.
    pub age: Note,
    /// Announcements of the CNI plugin of this host; `None` without `--netpol-cni`.
    pub attaching: Option<Attaching>,
}

/// Pods' addresses that are announced before the cluster tells them.
pub struct Attaching {
    pub changes: mpsc::Receiver<AttachmentChange>,
    /// Keeps them over a restart.
    pub file: AttachmentsFile,
}

/// Time to wait for a sign of life from the source before the last known state is used.
const PATIENCE: Duration = Duration::from_secs(3);

/// Interval at which announced pods are written again that could not be.
const KEEP_AGAIN: Duration = Duration::from_secs(1);

/// Number of messages processed before a World is published all the same.
const BATCH: usize = 4096;

/// Publishes the World until `stop` is done or every sender of messages is gone.
pub async fn run(inputs: Inputs, out: watch::Sender<World>, stop: impl Future<Output = ()>) {
    let Inputs { mut messages, wanted, mut host, last_known, clocks, sync_timeout, note, age, mut attaching, .. } =
        inputs;
    let mut builder = Builder {
        joined: Joined::new(&wanted).believing(inputs.annotations),
        warned: Warned::default(),
        clocks,
        out,
        report: inputs.report,
        service_warnings: (ServiceWarnings::default(), inputs.service_warnings),
        listings_begun: BTreeMap::new(),
        own: host.borrow().node_name.clone(),
        lacks_own_node: false,
        note,
        age,
        node_note: None,
        unread: BTreeSet::new(),
        keeper: last_known.map(|file| Keeper::new(file, &wanted)),
        attachments: attaching.as_ref().map(|attaching| attaching.file.clone()),
        together: false,
        held_back: None,
        keep_again: None,
    };
    builder.restore_attachments();
    builder.joined.set_host(host.borrow_and_update().clone());
    let mut stop = pin!(stop);
    let patience_ends = tokio::time::Instant::now() + PATIENCE;
    // A timeout longer than the clock can count never comes.
    let sync_ends = tokio::time::Instant::now().checked_add(sync_timeout);
    let mut is_late = sync_ends.is_none();
    let (mut batch, mut calls) = (Vec::new(), Vec::new());
    loop {
        let waits = builder.keeper.is_some() && builder.joined.waits_for_a_sign_of_life();
        tokio::select! {
            () = &mut stop => break,
            count = messages.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    break;
                }
                builder.take_in(&mut batch).await;
            }
            () = called(attaching.as_mut(), &mut calls) => builder.attach(&mut calls),
            Ok(()) = host.changed() => {
                let changed = builder.joined.set_host(host.borrow_and_update().clone());
                builder.publish(changed.then(Instant::now));
                builder.look_for_own_node();
            }
            () = sleep_until(patience_ends), if waits => builder.remember().await,
            () = sleep_until(sync_ends.unwrap_or(patience_ends)), if !is_late => {
                is_late = true;
                builder.say_late(sync_timeout);
            }
            () = sleep_until(builder.keep_again.unwrap_or(patience_ends)), if builder.keep_again.is_some() => {
                builder.keep_attachments();
            }
            () = kept(&mut builder.keeper, &builder.out) => {}
        }
    }
    if let Some(mut keeper) = builder.keeper {
        let world = builder.out.borrow().clone();
        keeper.finish(&world.cluster).await;
    }
}

/// Runs the next step of the keeper of the last known state when it is due; never ready without a keeper.
async fn kept(keeper: &mut Option<Keeper>, out: &watch::Sender<World>) {
    match keeper {
        Some(keeper) => keeper.next(|| out.borrow().cluster.clone()).await,
        None => std::future::pending().await,
    }
}

/// Waits for calls of the container runtime; never ready without the plugin.
async fn called(attaching: Option<&mut Attaching>, calls: &mut Vec<AttachmentChange>) {
    let count = match attaching {
        Some(attaching) => attaching.changes.recv_many(calls, BATCH).await,
        None => 0,
    };
    if count == 0 {
        std::future::pending().await
    }
}

struct Builder {
    joined: Joined,
    warned: Warned,
    clocks: Vec<Arc<EventClock>>,
    out: watch::Sender<World>,
    report: watch::Sender<Report>,
    service_warnings: (ServiceWarnings, watch::Sender<ServiceProblems>),
    /// The listings of `service_warnings` that are not over.
    listings_begun: BTreeMap<Kind, u64>,
    /// The name of this host's Node.
    own: CompactString,
    lacks_own_node: bool,
    note: Note,
    age: Note,
    /// The note about that Node.
    node_note: Option<String>,
    /// The policies that cannot be read and of which no good version is known.
    unread: BTreeSet<String>,
    keeper: Option<Keeper>,
    attachments: Option<AttachmentsFile>,
    /// Objects that belong together are being told: nothing is published before the last one.
    together: bool,
    /// Time of the earliest event that is not published for that reason.
    held_back: Option<Instant>,
    /// The last writing of that file failed, and is tried again then.
    keep_again: Option<tokio::time::Instant>,
}

impl Builder {
    /// Takes over what an earlier run was told of pods.
    fn restore_attachments(&mut self) {
        let Some(file) = &self.attachments else { return };
        match file.read() {
            Ok(kept) => self.joined.restore_attachments(kept),
            Err(error) => {
                warn!(path = %file.path().display(), %error, "Announced pods of an earlier run are not readable; ignored")
            }
        }
    }

    fn attach(&mut self, calls: &mut Vec<AttachmentChange>) {
        let seen = Instant::now();
        let mut changed = false;
        for call in calls.drain(..) {
            changed |= self.joined.attach(call);
        }
        for pod in self.joined.take_displaced() {
            warn!(%pod, "Too many pods that are gone have not been detached by the container runtime; the oldest is judged no more");
        }
        self.keep_attachments();
        self.publish(changed.then_some(seen));
    }

    /// Writes the attachments down where they have changed, before anything follows from them.
    fn keep_attachments(&mut self) {
        let Some(file) = &self.attachments else { return };
        let Some(kept) = self.joined.take_attachments() else { return };
        let was_failing = self.keep_again.take().is_some();
        match file.write(&kept) {
            Ok(()) if was_failing => info!(path = %file.path().display(), "Writing announced pods recovered"),
            Ok(()) => {}
            Err(error) => {
                if !was_failing {
                    warn!(path = %file.path().display(), %error, "Writing announced pods failed; retrying; a restart now would forget their addresses until their status has them");
                }
                self.joined.attachments_not_kept();
                self.keep_again = Some(tokio::time::Instant::now() + KEEP_AGAIN);
            }
        }
    }

    async fn take_in(&mut self, batch: &mut Vec<Message>) {
        let mut earliest: Option<Instant> = None;
        let mut warned_of_services = false;
        for Message { seen, event } in batch.drain(..) {
            let changed = match event {
                Event::Listed(kind) => {
                    let begun = self.listings_begun.remove(&kind).unwrap_or_default();
                    warned_of_services |= self.service_warnings.0.end_listing(kind, begun);
                    let changed = self.joined.end_listing(kind);
                    self.recall().await || changed
                }
                Event::Unreachable => {
                    self.remember().await;
                    false
                }
                Event::Listing(kind) => {
                    self.service_warnings.0.begin_listing();
                    self.listings_begun.insert(kind, self.service_warnings.0.listing());
                    self.joined.begin_listing(kind);
                    false
                }
                Event::Withheld(kind) => {
                    self.joined.withhold(kind);
                    false
                }
                Event::Object(object, mut warnings) => {
                    warnings.extend(self.joined.unbelieved(&object));
                    self.report(&object, &warnings);
                    warned_of_services |= self.service_warnings.0.put(&object, &warnings);
                    self.joined.set_warnings(&object.id(), &warnings);
                    self.say_once(&object, warnings);
                    self.joined.put(object)
                }
                Event::Unreadable(unreadable) => {
                    self.joined.set_unreadable(unreadable);
                    false
                }
                Event::AskedAt(addresses) => self.joined.set_api_server(addresses),
                Event::Together(together) => {
                    self.together = together;
                    false
                }
            };
            if changed {
                earliest = Some(earliest.map_or(seen, |earlier| earlier.min(seen)));
            }
        }
        if warned_of_services {
            self.service_warnings.1.send_replace(self.service_warnings.0.all().clone());
        }
        self.keep_attachments();
        self.publish(earliest);
        self.look_for_own_node();
        self.look_for_unread_policies();
    }

    /// Reports that the cluster has no Node of this host's name when that becomes certain, and again when it has one.
    fn look_for_own_node(&mut self) {
        let is_missing = self.joined.lacks_own_node();
        if std::mem::replace(&mut self.lacks_own_node, is_missing) == is_missing {
            return;
        }
        let node = &self.own;
        if is_missing {
            warn!(%node, "Node of this host not found; --hostname-override or NODE_NAME must be the name of its Node");
            let text = format!(
                "the cluster has no Node {node:?}; --hostname-override or NODE_NAME must name this host's Node"
            );
            self.node_note = Some(text);
        } else {
            info!(%node, "Node of this host found");
            self.node_note = None;
        }
        self.set_note();
    }

    /// Notes the policies that are not in force because they cannot be read.
    fn look_for_unread_policies(&mut self) {
        let unread = self.joined.policies_not_in_force();
        if unread != self.unread {
            self.unread = unread;
            self.set_note();
        }
    }

    fn set_note(&self) {
        let of_policy =
            |id: &String| format!("{id} cannot be read and has no earlier good version; it is not in force");
        self.note.set(self.node_note.iter().cloned().chain(self.unread.iter().map(of_policy)).collect());
    }

    /// Reports the kinds not listed in time. It changes nothing: the kernel stays as it is, the source is still read.
    fn say_late(&self, timeout: Duration) {
        let missing: Vec<&str> = self.joined.unlisted().map(Kind::name).collect();
        if !missing.is_empty() {
            let (timeout, missing) = (timeout.as_secs_f64(), missing.join(" "));
            warn!(timeout_s = timeout, %missing, "Initial list not complete within --cache-sync-timeout; still waiting");
        }
    }

    /// Publishes the World if it differs from the one that is out. `seen` is the time of the earliest event
    /// that it contains and the one before did not.
    fn publish(&mut self, seen: Option<Instant>) {
        self.report.send_if_modified(|report| self.joined.tell_own_annotation(report));
        let seen = seen.into_iter().chain(self.held_back.take()).min();
        if self.together {
            self.held_back = seen;
            return;
        }
        let (before, now) = (self.out.borrow().authority, self.joined.authority());
        if seen.is_none() && before == now && !self.joined.take_unpublished() {
            return;
        }
        // While nothing may be done with it, a World of every hundred objects would only be copied. This host's Node
        // decides what is closed by default, so it is published before all else.
        let is_first_of_node = self.joined.has_own_node() && !has_own_node(&self.out.borrow());
        if now == Authorities::default() && !is_first_of_node {
            return;
        }
        self.joined.take_unpublished();
        let world = self.joined.world(now);
        if before != now {
            if ![now.proxy, now.firewall, now.router].contains(&Authority::Remembered) {
                self.age.set(Vec::new());
            }
            let Cluster { services, nodes, pods, policies, .. } = &world.cluster;
            let (services, nodes, pods, policies) = (services.len(), nodes.len(), pods.len(), policies.len());
            info!(
                proxy = ?now.proxy,
                firewall = ?now.firewall,
                router = ?now.router,
                services,
                nodes,
                pods,
                policies,
                "Authority changed"
            );
        }
        if self.joined.may_be_kept()
            && let Some(keeper) = &mut self.keeper
        {
            keeper.changed();
        }
        let clocks = &self.clocks;
        self.out.send_modify(|published| {
            let number = published.number + 1;
            *published = World { number, ..world };
            if let Some(seen) = seen {
                clocks.iter().for_each(|clock| clock.note(seen));
            }
        });
    }

    /// Reports the warnings about the Node of this host, and what needs a person's attention.
    fn report(&self, object: &Object, warnings: &[Warning]) {
        let Object::Node(name, node) = object else { return };
        if *name != self.own {
            return;
        }
        let is_denied = node.as_ref().is_some_and(|node| node.network_unavailable);
        let mistakes: BTreeSet<String> = warnings.iter().map(Warning::to_string).collect();
        self.report.send_if_modified(|report| {
            let differs = (report.is_denied, &report.mistakes) != (is_denied, &mistakes);
            (report.is_denied, report.mistakes) = (is_denied, mistakes);
            differs
        });
    }

    fn say_once(&mut self, object: &Object, warnings: Vec<Warning>) {
        if warnings.is_empty() && self.warned.is_empty() {
            return;
        }
        let id: ObjectId = object.id();
        match self.warned.news(&id, warnings) {
            Verdict::Say(warnings) => {
                // The agent of another Node reports it itself; a thousand others need not.
                let is_others = matches!(object, Object::Node(name, _) if *name != self.own);
                for Warning { field, text } in warnings {
                    match is_others {
                        true => debug!(object = %id, %field, reason = %text, "Invalid field in an object"),
                        false => warn!(object = %id, %field, reason = %text, "Invalid field in an object"),
                    }
                }
            }
            Verdict::TooMany => warn!("Too many invalid objects; further ones are not logged"),
        }
    }
}

fn has_own_node(world: &World) -> bool {
    world.cluster.nodes.get(&world.host.node_name).is_some()
}

#[cfg(test)]
mod tests;
