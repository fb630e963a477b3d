//! The Kubernetes API as a source: each wanted kind is listed once and then watched.
//!
//! Kubernetes: "API concepts", sections *Efficient detection of changes* and *Streaming lists*.
//!
//! - Streaming lists (`sendInitialEvents`) where the server has them: objects come one by one, and neither side holds
//!   the whole list in memory. The first one is answered from the server's cache (`resourceVersion=0`), because every
//!   node of the cluster sends one. A server that refuses them, or whose ordinary bookmarks show that it does not know
//!   them, is listed in pages, from its newest state, and tried again after an hour; one that falls silent on the way
//!   is listed in pages this once.
//! - A watch that ends, as it does every few minutes by design, is resumed at the last resourceVersion, that of
//!   bookmarks included. When the server no longer knows it (410) everything is listed again; what is missing from the
//!   new list is removed only at its end. The new list is never older than the version seen, which is requested
//!   (`NotOlderThan`), or the newest where the server cannot serve it.
//! - A watch that is resumed at a version newer than the server's is answered with silence until the server has overtaken it,
//!   and what was in between is lost. So where a store was restored from a backup without a new revision everything has to be
//!   listed: before a watch is resumed that ended before its time, or could not be begun, a list of one key tells how far the
//!   server is ([`doubt`]). Limit: a server that has overtaken us by then looks like any other (`etcdutl snapshot restore
//!   --bump-revision` is for that), as does one that was set back within minutes of that list and refused nothing meanwhile.
//! - An object that cannot be read keeps its last good version, and is named in a warning.
//! - A dead connection is noticed when bookmarks, which come every minute, stay away. A list has
//!   no time limit but for each piece of it.
//! - Failures are retried with growing, jittered delays up to half a minute; [`super::outage`] reports them.
//!
//! Why not the watcher of the client library: where a server ends a stream at once it retries at once,
//! without end, and where the status of the response refuses the resourceVersion to resume at it requests that
//! version for ever.

mod absence;
mod doubt;
mod end;
mod pace;

use std::time::{Duration, Instant};

use kube::core::params::{ListParams, WatchParams};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use self::absence::Absence;
use self::doubt::Doubt;
use self::end::End;
use self::pace::{Failures, Timing, random};
use super::answer::{Change, Unread};
use super::client::ApiClient;
use super::outage::{Cause, Outages};
use super::parse::{
    ApiObject, Pool, cluster_network_policy_object, endpoint_slice_object, namespace_object, network_policy_object,
    node_object, pod_object, service_cidr_object, service_object,
};
use super::request::{Asking, Failure, Stumble, Watch};
use super::{Event, Kind, Message, Object, ObjectId, Wanted, Warning};
use crate::model::ObjectName;

/// Sends the wanted objects of the cluster until the receiver is gone. Cancelling it ends all watches.
pub async fn run(client: ApiClient, wanted: Vec<Wanted>, outages: Outages, out: Sender<Message>) {
    let mut followers = JoinSet::new();
    for wanted in wanted {
        let common = Common { out: out.clone(), outages: outages.clone(), timing: Timing::default() };
        followers.spawn(follow(client.clone(), wanted, common));
    }
    followers.spawn(async move { client.asked_at().tell(out).await });
    followers.join_all().await;
}

/// Lists and watches one kind.
async fn follow(client: ApiClient, wanted: Wanted, common: Common) {
    let kind = wanted.kind();
    match wanted {
        Wanted::Services => Follower::new(kind, client, service_object, common).run().await,
        Wanted::EndpointSlices => Follower::new(kind, client, endpoint_slice_object, common).run().await,
        Wanted::Node(name) => {
            let mut follower = Follower::new(kind, client, node_object, common);
            follower.fields = Some(format!("metadata.name={name}"));
            follower.run().await;
        }
        Wanted::Nodes => Follower::new(kind, client, node_object, common).run().await,
        Wanted::Pods => Follower::new(kind, client, pod_object, common).run().await,
        Wanted::Namespaces => Follower::new(kind, client, namespace_object, common).run().await,
        Wanted::NetworkPolicies => Follower::new(kind, client, network_policy_object, common).run().await,
        Wanted::ClusterNetworkPolicies => {
            Follower::new(kind, client, cluster_network_policy_object, common).run().await;
        }
        Wanted::ServiceCidrs => Follower::new(kind, client, service_cidr_object, common).run().await,
    }
}

/// State shared by the followers of all kinds.
struct Common {
    out: Sender<Message>,
    outages: Outages,
    timing: Timing,
}

/// One kind, and its place in the history of the API.
struct Follower<K> {
    kind: Kind,
    asking: Asking<K>,
    fields: Option<String>,
    object: fn(&K, &mut Pool) -> (Object, Vec<Warning>),
    common: Common,
    pool: Pool,
    pages: Option<Pages>,
    /// The resourceVersion to resume at; `None`: everything has to be listed.
    version: Option<String>,
    /// The newest resourceVersion seen. No list may be older.
    seen: Option<String>,
    /// The server cannot serve that version: the newest is requested.
    wants_newest: bool,
    /// Whether the server may be another than before, or its store.
    doubt: Doubt,
    absence: Absence,
    failures: Failures,
    is_out: bool,
}

/// Why everything is listed in pages and not by a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pages {
    /// The last stream fell silent.
    Once,
    /// The server has no streaming lists.
    Until(Instant),
}

/// Objects in a page of a list, as other clients have it.
const PAGE: u32 = 500;

impl<K: ApiObject> Follower<K> {
    fn new(
        kind: Kind,
        client: ApiClient,
        object: fn(&K, &mut Pool) -> (Object, Vec<Warning>),
        common: Common,
    ) -> Follower<K> {
        Follower {
            kind,
            asking: Asking::new(client, kind, common.timing.patience),
            fields: None,
            object,
            common,
            pool: Pool::default(),
            pages: None,
            version: None,
            seen: None,
            wants_newest: false,
            doubt: Doubt::default(),
            absence: Absence::default(),
            failures: Failures::default(),
            is_out: false,
        }
    }

    async fn run(mut self) {
        loop {
            let began = Instant::now();
            if self.pages.is_some_and(|pages| matches!(pages, Pages::Until(again) if again <= began)) {
                self.pages = None;
            }
            let end = match (self.version.clone(), self.pages) {
                (Some(version), _) => self.watch(&version).await,
                (None, None) => self.stream_all().await,
                (None, Some(_)) => self.list_all().await,
            };
            if !matches!(end, End::NotThere(_)) {
                self.absence.is_not_told();
            }
            match end {
                End::Closed => return,
                End::Listed => continue,
                // A request that failed late has failed all the same: an overloaded server takes long to say so.
                End::Orderly if began.elapsed() < self.common.timing.brief => {}
                End::Orderly => {
                    self.failures.end();
                    continue;
                }
                End::NoStreaming => {
                    info!(kind = %self.kind, "API server does not support streaming lists; using paginated lists");
                    self.pages = Some(Pages::Until(Instant::now() + self.common.timing.in_pages));
                    continue;
                }
                End::Silent => {
                    info!(kind = %self.kind, "The API server's streaming list came to a halt; listing in pages");
                    self.pages = Some(Pages::Once);
                    continue;
                }
                End::Expired => {
                    self.failures.note_expiry(Instant::now(), &self.common.timing);
                    // If not even a list of this version is served, only the newest one is left.
                    self.wants_newest = self.version.is_none();
                    self.version = None;
                }
                End::NotServed(reason) => {
                    warn!(
                        kind = %self.kind,
                        version = self.seen.as_deref().unwrap_or_default(),
                        reason,
                        "API server has no list as new as the last one seen; requesting its newest"
                    );
                    (self.version, self.wants_newest) = (None, true);
                }
                End::NotThere(refusal) => match self.look_for_kind(&refusal).await {
                    Ok(()) => continue,
                    Err(Gone) => return,
                },
                End::Failed(cause, reason) => {
                    let told = self.begin_outage(cause, &reason).await;
                    if told.is_err() || self.note_lasting_failure().await.is_err() {
                        return;
                    }
                }
            }
            if self.pause().await.is_err() {
                return;
            }
        }
    }

    /// Lists everything as the beginning of a watch, and goes on with the watch.
    async fn stream_all(&mut self) -> End {
        let params = self.watch_params(true);
        let version = match (self.wants_newest, &self.seen) {
            (true, _) => "",
            (false, Some(seen)) => seen,
            (false, None) => "0",
        };
        let due = due(&params);
        let mut stream = match self.asking.watch(&params, version).await {
            Ok(stream) => stream,
            Err(failure) => return self.end_of(failure),
        };
        if self.tell(Event::Listing(self.kind)).await.is_err() {
            return End::Closed;
        }
        loop {
            let Ok(next) = timeout(self.common.timing.patience.piece, stream.next()).await else {
                return End::Silent;
            };
            let change = match next {
                Ok(Some(change)) => change,
                Ok(None) => return End::Failed(Cause::Unreachable, "the list ended too early".to_owned()),
                Err(Stumble::Unreadable(unread)) => match self.tell_unread(unread, true).await {
                    Ok(()) => continue,
                    Err(Gone) => return End::Closed,
                },
                Err(Stumble::Broken(reason)) => return End::Failed(Cause::Unreachable, reason),
            };
            match &change {
                // A server that does not know the parameter begins an ordinary watch. Its bookmarks do not say that
                // this was all, and a server that does know it sends none before the one that says so.
                Change::Bookmark { ends_list: false, .. } => return End::NoStreaming,
                Change::Bookmark { ends_list: true, version } if self.is_older_than_seen(version.as_deref()) => {
                    return End::NotServed("its list is older".to_owned());
                }
                _ => {}
            }
            let is_last = matches!(change, Change::Bookmark { .. });
            if let Some(end) = self.take_in(change, false).await {
                return end;
            }
            if is_last {
                self.note_list();
                return match self.tell(Event::Listed(self.kind)).await {
                    Ok(()) => self.go_on(stream, due).await,
                    Err(Gone) => End::Closed,
                };
            }
        }
    }

    /// Lists everything in pages, from the newest state.
    async fn list_all(&mut self) -> End {
        let mut params = ListParams { field_selector: self.fields.clone(), ..ListParams::default() }.limit(PAGE);
        if self.tell(Event::Listing(self.kind)).await.is_err() {
            return End::Closed;
        }
        loop {
            let page = match self.asking.list(&params).await {
                Ok(page) => page,
                Err(failure) => return self.end_of(failure),
            };
            for item in page.items {
                let told = match item {
                    Ok(object) => self.tell_object(&object).await,
                    Err(unread) => self.tell_unread(unread, true).await,
                };
                if told.is_err() {
                    return End::Closed;
                }
            }
            params.continue_token = page.next;
            if params.continue_token.is_none() {
                self.reach(page.version);
                self.note_list();
                if self.pages == Some(Pages::Once) {
                    self.pages = None;
                }
                return match (self.tell(Event::Listed(self.kind)).await, &self.version) {
                    (Err(Gone), _) => End::Closed,
                    (Ok(()), Some(_)) => End::Listed,
                    (Ok(()), None) => End::Failed(Cause::Refused, "the list has no resource version".to_owned()),
                };
            }
        }
    }

    /// Resumes the watch at a resourceVersion.
    async fn watch(&mut self, version: &str) -> End {
        if let Some(delay) = self.doubt.delay(Instant::now(), self.common.timing.spread) {
            sleep(delay).await;
            match self.asking.newest(self.fields.as_deref()).await {
                Ok(newest) if self.is_older_than_seen(newest.as_deref()) => {
                    return End::NotServed(format!("its newest is {}", newest.unwrap_or_default()));
                }
                Ok(_) => self.doubt.settle(Instant::now()),
                // A server that refuses the request itself, for want of rights, say, does not keep a watch from being resumed.
                Err(Failure::Refused(it)) if matches!(it.code, 400 | 403..=405) => self.doubt.settle(Instant::now()),
                Err(failure) => return self.end_of(failure),
            }
        }
        let params = self.watch_params(false);
        let due = due(&params);
        match self.asking.watch(&params, version).await {
            Ok(stream) => {
                self.end_outage();
                self.go_on(stream, due).await
            }
            Err(failure) => {
                self.doubt.note_failure();
                self.end_of(failure)
            }
        }
    }

    /// Follows a watch until it ends, which it is to do at `due`.
    async fn go_on(&mut self, stream: Watch<K>, due: Instant) -> End {
        let end = self.follow(stream).await;
        self.doubt.note_end(due, Instant::now());
        end
    }

    async fn follow(&mut self, mut stream: Watch<K>) -> End {
        let Timing { patience, mut silence, .. } = self.common.timing;
        let ends_after = Duration::from_secs(u64::from(WATCH_SECONDS)) + patience.piece;
        let bookmarked = std::mem::replace(&mut silence, ends_after);
        loop {
            let next = match timeout(silence, stream.next()).await {
                Ok(next) => next,
                Err(_) => return End::Orderly,
            };
            let change = match next {
                Ok(Some(change)) => change,
                // A connection that breaks is no outage; one that cannot be made again is.
                Ok(None) | Err(Stumble::Broken(_)) => return End::Orderly,
                Err(Stumble::Unreadable(unread)) => match self.tell_unread(unread, false).await {
                    Ok(()) => continue,
                    Err(Gone) => return End::Closed,
                },
            };
            if matches!(change, Change::Bookmark { .. }) {
                silence = bookmarked;
            }
            if let Some(end) = self.take_in(change, true).await {
                return end;
            }
        }
    }

    /// Processes one event. `resumable`: the watch can be resumed at its version, which it cannot
    /// before the list is complete.
    async fn take_in(&mut self, change: Change<K>, resumable: bool) -> Option<End> {
        // A list that never comes to its end is no progress, however many objects it names.
        if resumable && !matches!(change, Change::Refused(_)) {
            self.end_outage();
            self.failures.end();
        }
        let (version, told) = match change {
            Change::Is(object) => (object.metadata().resource_version.clone(), self.tell_object(&object).await),
            Change::Gone(object) => {
                let (last, _) = (self.object)(&object, &mut self.pool);
                let told = self.tell(Event::Object(Object::gone(last.id()), Vec::new())).await;
                (object.metadata().resource_version.clone(), told)
            }
            Change::Bookmark { version, ends_list } => {
                if resumable || ends_list {
                    self.reach(version);
                }
                (None, Ok(()))
            }
            Change::Refused(refusal) => return Some(self.end_by(&refusal)),
        };
        if resumable {
            self.reach(version);
        }
        told.is_err().then_some(End::Closed)
    }

    /// Records the place in history that was reached. Without a version it is still the one before.
    fn reach(&mut self, version: Option<String>) {
        if version.is_some() {
            (self.version, self.seen) = (version.clone(), version);
        }
    }

    /// Records that everything was listed.
    fn note_list(&mut self) {
        self.failures.note_list(Instant::now());
        self.wants_newest = false;
        self.doubt.note_list();
        self.end_outage();
    }

    /// Reports an object that cannot be read: its last good version stays, and its next one may be sound. In a list
    /// it has to be named, so that it does not count as gone.
    async fn tell_unread(&self, unread: Unread, is_listing: bool) -> Result<(), Gone> {
        let Unread { name, is_gone, reason } = unread;
        let is_named = name.is_some();
        if !is_named {
            warn!(kind = %self.kind, error = reason, "Invalid object without a name ignored");
        }
        if !is_named && !is_listing {
            return Ok(());
        }
        let id = ObjectId { kind: self.kind, name: name.unwrap_or_else(|| ObjectName::new("", "")) };
        if is_gone && is_named {
            return self.tell(Event::Object(Object::gone(id), Vec::new())).await;
        }
        let text = format!("it cannot be read, its last good version stays in force: {reason}");
        let warnings = is_named.then(|| Warning { field: "object".into(), text });
        self.tell(Event::Object(Object::Unreadable(id), warnings.into_iter().collect())).await
    }

    fn watch_params(&self, send_initial_events: bool) -> WatchParams {
        // Spread over a tenth, so that nodes that started together do not come back together for ever.
        let spread = u32::try_from(random() % u64::from(WATCH_SECONDS / 10)).unwrap_or(0);
        WatchParams {
            label_selector: None,
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_SECONDS - spread),
            bookmarks: true,
            send_initial_events,
        }
    }

    async fn tell_object(&mut self, object: &K) -> Result<(), Gone> {
        let (object, warnings) = (self.object)(object, &mut self.pool);
        self.tell(Event::Object(object, warnings)).await
    }

    async fn tell(&self, event: Event) -> Result<(), Gone> {
        self.common.out.send(Message { seen: Instant::now(), event }).await.map_err(|_| Gone)
    }

    /// Waits before the next try.
    async fn pause(&mut self) -> Result<(), Gone> {
        tokio::select! {
            () = sleep(self.failures.delay(&self.common.timing)) => Ok(()),
            () = self.common.out.closed() => Err(Gone),
        }
    }

    async fn begin_outage(&mut self, cause: Cause, reason: &str) -> Result<(), Gone> {
        let is_first = self.common.outages.fails(self.kind, cause, reason);
        if std::mem::replace(&mut self.is_out, true) || !is_first {
            return Ok(());
        }
        self.tell(Event::Unreachable).await
    }

    fn end_outage(&mut self) {
        self.absence = Absence::default();
        self.asking.note_version();
        if std::mem::replace(&mut self.is_out, false) {
            self.common.outages.works(self.kind);
        }
    }
}

/// When the server is to end a watch that is requested now: it counts from the request, which it gets a moment later.
fn due(params: &WatchParams) -> Instant {
    Instant::now() + Duration::from_secs(u64::from(params.timeout.unwrap_or(0)))
}

/// The receiver is gone: there is nobody to work for.
struct Gone;

/// Requested duration of a watch, in seconds.
const WATCH_SECONDS: u32 = 290;

#[cfg(test)]
pub(crate) mod tests;
