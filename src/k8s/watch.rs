//! The Kubernetes API as a source: each wanted kind is listed once and then watched.
//!
//! Kubernetes: "API concepts", sections *Efficient detection of changes* and *Streaming lists*.
//!
//! - Streaming lists (`sendInitialEvents`) where the server has them: objects come one by one, and neither
//!   side holds the whole list in memory. A server that refuses them, or does not know them, is listed in
//!   pages. Both are answered from the server's cache (`resourceVersion=0`): every node of the cluster asks.
//! - A watch that ends, as it does every few minutes by design, is resumed where it was, with what bookmarks
//!   said. When the server no longer knows that place (410) everything is listed anew; what is missing from
//!   the new list is removed only at its end.
//! - A connection that is dead without a word is noticed when bookmarks, which come every minute, stay away.
//! - Failures are retried with growing, jittered delays up to half a minute. An outage is said once when it
//!   begins and once when it ends, however many kinds it concerns.
//!
//! Why not the watcher of the client library: where a server ends a stream at once it asks again at once,
//! without end, and where the place to resume at is refused by the status of the response it asks for that
//! place for ever.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kube::Client;
use kube::core::params::{ListParams, VersionMatch, WatchParams};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::answer::Change;
use super::parse::{
    ApiObject, Pool, Warning, endpoint_slice_object, namespace_object, network_policy_object, node_object, pod_object,
    service_object,
};
use super::request::{Asking, Failure, Stumble, Watch};
use super::{Event, Kind, Message, Object, Wanted};

/// Tells what is wanted of the cluster until the receiver is gone. Cancelling it ends all watches.
pub async fn run(client: Client, wanted: Vec<Wanted>, out: Sender<Message>) {
    let outage = Arc::new(Outage::default());
    let mut followers = JoinSet::new();
    for wanted in wanted {
        let common = Common { out: out.clone(), outage: outage.clone(), timing: Timing::default() };
        followers.spawn(follow(client.clone(), wanted, common));
    }
    followers.join_all().await;
}

/// Follows one kind.
async fn follow(client: Client, wanted: Wanted, common: Common) {
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
    }
}

/// Delays and patience; shorter in tests.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// The first delay after a failure; it doubles up to `last`.
    first: Duration,
    last: Duration,
    /// A watch that ended sooner than this counts as failed, although the server said nothing wrong.
    brief: Duration,
    /// How long a request for a list may take, and how long a stream of initial events may be silent.
    patience: Duration,
    /// How long a watch on which bookmarks come may be silent.
    silence: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            first: Duration::from_millis(200),
            last: Duration::from_secs(30),
            brief: Duration::from_secs(5),
            patience: Duration::from_secs(30),
            silence: Duration::from_secs(150),
        }
    }
}

/// What the followers of all kinds share.
struct Common {
    out: Sender<Message>,
    outage: Arc<Outage>,
    timing: Timing,
}

/// The number of kinds that cannot be read at the moment.
#[derive(Default)]
struct Outage(AtomicUsize);

/// One kind, and where in its history we are.
struct Follower<K> {
    kind: Kind,
    asking: Asking<K>,
    fields: Option<String>,
    object: fn(&K, &mut Pool) -> (Object, Vec<Warning>),
    common: Common,
    pool: Pool,
    strategy: Strategy,
    /// The resource version to resume at; `None`: everything is to be listed.
    version: Option<String>,
    failures: u32,
    is_out: bool,
}

/// How everything is listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Strategy {
    Stream,
    Pages,
}

/// Why a request or a stream came to its end.
enum End {
    /// As it should: the server closes every watch after a while.
    Orderly,
    /// Everything was listed and is to be watched now.
    Listed,
    /// The place to resume at is no longer known.
    Expired,
    /// The server has no streaming lists.
    NoStreaming,
    Failed(String),
    /// The receiver is gone.
    Closed,
}

/// Objects in a page of a list, as other clients have it.
const PAGE: u32 = 500;

impl<K: ApiObject> Follower<K> {
    fn new(
        kind: Kind,
        client: Client,
        object: fn(&K, &mut Pool) -> (Object, Vec<Warning>),
        common: Common,
    ) -> Follower<K> {
        Follower {
            kind,
            asking: Asking::new(client, kind),
            fields: None,
            object,
            common,
            pool: Pool::default(),
            strategy: Strategy::Stream,
            version: None,
            failures: 0,
            is_out: false,
        }
    }

    async fn run(mut self) {
        loop {
            let began = Instant::now();
            let end = match (self.version.clone(), self.strategy) {
                (Some(version), _) => self.watch(&version).await,
                (None, Strategy::Stream) => self.stream_all().await,
                (None, Strategy::Pages) => self.list_all().await,
            };
            let was_brief = began.elapsed() < self.common.timing.brief;
            if !was_brief {
                self.failures = 0;
            }
            match end {
                End::Closed => return,
                End::Listed => continue,
                End::Orderly if !was_brief => continue,
                End::Orderly => {}
                End::NoStreaming => {
                    info!(kind = %self.kind, "The API server has no streaming lists; listing in pages");
                    self.strategy = Strategy::Pages;
                    continue;
                }
                End::Expired => self.version = None,
                End::Failed(reason) => {
                    if self.begin_outage(&reason).await.is_err() {
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
        let mut stream = match self.patiently(self.asking.watch(&params, "0")).await {
            Ok(stream) => stream,
            Err(end) => return end,
        };
        if self.tell(Event::Listing(self.kind)).await.is_err() {
            return End::Closed;
        }
        loop {
            // A server that does not know the parameter begins an ordinary watch, which is silent when it
            // has named everything and never says that this was all.
            let Ok(next) = timeout(self.common.timing.patience, stream.next()).await else {
                return End::NoStreaming;
            };
            let change = match next {
                Ok(Some(change)) => change,
                Ok(None) => return End::Failed("the list ended before it was complete".to_owned()),
                Err(Stumble::Unreadable(reason)) => {
                    self.left_out(&reason);
                    continue;
                }
                Err(Stumble::Broken(reason)) => return End::Failed(reason),
            };
            let is_last = matches!(change, Change::Bookmark { ends_list: true, .. });
            if let Some(end) = self.take_in(change, false).await {
                return end;
            }
            if is_last {
                self.failures = 0;
                return match self.tell(Event::Listed(self.kind)).await {
                    Ok(()) => self.go_on(stream).await,
                    Err(Gone) => End::Closed,
                };
            }
        }
    }

    /// Lists everything in pages.
    async fn list_all(&mut self) -> End {
        let mut params = ListParams { field_selector: self.fields.clone(), ..ListParams::default() }
            .limit(PAGE)
            .at("0")
            .matching(VersionMatch::NotOlderThan);
        if self.tell(Event::Listing(self.kind)).await.is_err() {
            return End::Closed;
        }
        loop {
            let page = match self.patiently(self.asking.list(&params)).await {
                Ok(page) => page,
                Err(end) => return end,
            };
            self.end_outage();
            for item in page.items {
                let told = match item {
                    Ok(object) => self.tell_object(&object).await,
                    Err(reason) => {
                        self.left_out(&reason);
                        Ok(())
                    }
                };
                if told.is_err() {
                    return End::Closed;
                }
            }
            // A place in a list already says what it is a list of.
            (params.resource_version, params.version_match) = (None, None);
            params.continue_token = page.next;
            if params.continue_token.is_none() {
                self.version = page.version;
                self.failures = 0;
                return match (self.tell(Event::Listed(self.kind)).await, &self.version) {
                    (Err(Gone), _) => End::Closed,
                    (Ok(()), Some(_)) => End::Listed,
                    (Ok(()), None) => End::Failed("the list has no resource version".to_owned()),
                };
            }
        }
    }

    /// Resumes watching at a version.
    async fn watch(&mut self, version: &str) -> End {
        let params = self.watch_params(false);
        match self.patiently(self.asking.watch(&params, version)).await {
            Ok(stream) => {
                self.end_outage();
                self.go_on(stream).await
            }
            Err(end) => end,
        }
    }

    /// Follows a watch until it ends.
    async fn go_on(&mut self, mut stream: Watch<K>) -> End {
        let Timing { patience, mut silence, .. } = self.common.timing;
        let ends_after = Duration::from_secs(u64::from(WATCH_SECONDS)) + patience;
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
                Err(Stumble::Unreadable(reason)) => {
                    self.left_out(&reason);
                    continue;
                }
            };
            if matches!(change, Change::Bookmark { .. }) {
                silence = bookmarked;
            }
            if let Some(end) = self.take_in(change, true).await {
                return end;
            }
        }
    }

    /// Takes in one event. `resumable`: its version is a place at which the watch can be resumed, which it is
    /// not before the list is complete.
    async fn take_in(&mut self, change: Change<K>, resumable: bool) -> Option<End> {
        if !matches!(change, Change::Refused(_)) {
            self.end_outage();
            // Progress; but a list that never comes to its end is none, however many objects it names.
            self.failures = if resumable { 0 } else { self.failures };
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
                    self.version = version;
                }
                (None, Ok(()))
            }
            Change::Refused(refusal) if refusal.code == 410 => return Some(End::Expired),
            Change::Refused(refusal) => return Some(End::Failed(refusal.to_string())),
        };
        if resumable && version.is_some() {
            self.version = version;
        }
        told.is_err().then_some(End::Closed)
    }

    /// An object stays as it is known; its next version may be sound.
    fn left_out(&self, reason: &str) {
        warn!(kind = %self.kind, error = reason, "An object from the API server makes no sense and is left out");
    }

    /// The answer to a request, if it comes in time and is none of the known refusals.
    async fn patiently<T>(&self, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, End> {
        match timeout(self.common.timing.patience, answer).await {
            Err(_) => Err(End::Failed("no answer in time".to_owned())),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failure::Refused(refusal))) => Err(match (refusal.code, self.strategy, &self.version) {
                (410, ..) => End::Expired,
                (400 | 422, Strategy::Stream, None) => End::NoStreaming,
                _ => End::Failed(refusal.to_string()),
            }),
            Ok(Err(Failure::Broken(reason))) => Err(End::Failed(reason)),
        }
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
        let Timing { first, last, .. } = self.common.timing;
        let longest = first.saturating_mul(1 << self.failures.min(16)).min(last);
        self.failures += 1;
        let shorter = longest.mul_f64((random() % 1024) as f64 / 2048.0);
        tokio::select! {
            () = sleep(longest - shorter) => Ok(()),
            () = self.common.out.closed() => Err(Gone),
        }
    }

    async fn begin_outage(&mut self, reason: &str) -> Result<(), Gone> {
        if std::mem::replace(&mut self.is_out, true) || self.common.outage.0.fetch_add(1, Ordering::Relaxed) > 0 {
            return Ok(());
        }
        warn!(kind = %self.kind, error = reason, "The Kubernetes API cannot be read; what is known stays in force");
        self.tell(Event::Unreachable).await
    }

    fn end_outage(&mut self) {
        if std::mem::replace(&mut self.is_out, false) && self.common.outage.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            info!("The Kubernetes API can be read again");
        }
    }
}

/// The receiver is gone: there is nobody to work for.
struct Gone;

/// How long a watch is asked for.
const WATCH_SECONDS: u32 = 290;

/// Any number; each call another one. Good for spreading, not for secrets.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
pub(crate) mod tests;
