//! Services and pools as the holder of the Lease follows them: listed from the API server's newest state, in pages, then watched, and listed
//! again after every audit's period and whenever the watch breaks.
//!
//! Unlike the sources of every node (`k8s::watch`), of which each agent of the cluster has one, this is one agent's, so its lists may be
//! of the newest state: that is what a new holder has to see before it decides anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::core::params::{ListParams, WatchParams};
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::Shared;
use crate::k8s::Kind;
use crate::k8s::answer::Change;
use crate::k8s::client::ApiClient;
use crate::k8s::parse::ApiObject;
use crate::k8s::parse::address_pools::{ConfigMapObject, POOLS, address_pools};
use crate::k8s::parse::balanced_service::{BalancedServiceObject, balanced_service};
use crate::k8s::request::{Asking, Failure, Patience, Stumble};
use crate::model::{AddressPools, BalancedService, ObjectName};

/// News of Services and pools.
#[derive(Debug)]
pub enum News {
    /// All Services, at this resourceVersion.
    Services(Vec<Shared>, String),
    Service(ObjectName, Arc<BalancedService>),
    /// A Service was gone at this resourceVersion.
    Gone(ObjectName, String),
    Pools(PoolsSeen),
    /// Objects of this kind cannot be listed, and why; `None`: they can again.
    Unlisted(&'static str, Option<String>),
}

/// Outcome of reading the ConfigMap of the pools.
#[derive(Clone, PartialEq, Debug)]
pub enum PoolsSeen {
    Is(AddressPools),
    /// There is no such ConfigMap.
    Absent,
    /// The right to list it is missing (403).
    Forbidden,
}

const PATIENCE: Patience = Patience { beginning: Duration::from_secs(65), piece: Duration::from_secs(30) };
const PAGE: u32 = 500;
/// A watch that ends sooner is begun again only after a pause.
const BRIEF: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// The API server ends a watch after five minutes at the latest that it can be asked for.
const LONGEST_WATCH: Duration = Duration::from_secs(290);

/// Follows all Services until the receiver is gone. `period`: between two lists.
pub async fn services(client: ApiClient, period: Duration, out: Sender<News>) {
    let asking: Asking<BalancedServiceObject> = Asking::new(client, Kind::Service, PATIENCE);
    let read = |object: &BalancedServiceObject| {
        let (name, service) = balanced_service(object);
        (name, Arc::new(service))
    };
    let news = |seen: Seen<BalancedServiceObject>| match seen {
        Seen::All(objects, version) => Some(News::Services(objects.iter().map(read).collect(), version)),
        Seen::Is(object) => Some(read(&object)).map(|(name, service)| News::Service(name, service)),
        Seen::Gone(object) => {
            let (name, service) = read(&object);
            Some(News::Gone(name, service.version.to_string()))
        }
        Seen::Forbidden => None,
    };
    Follower { asking, fields: None, what: "services", period, out, unlisted: None }.run(news).await;
}

/// Follows the pools of a namespace until the receiver is gone.
pub async fn pools(client: ApiClient, namespace: &str, period: Duration, out: Sender<News>) {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let asking: Asking<ConfigMapObject> = Asking::at(client, path, PATIENCE);
    let news = |seen: Seen<ConfigMapObject>| Some(News::Pools(pools_seen(&seen)));
    let fields = Some(format!("metadata.name={POOLS}"));
    Follower { asking, fields, what: "configmaps", period, out, unlisted: None }.run(news).await;
}

fn pools_seen(seen: &Seen<ConfigMapObject>) -> PoolsSeen {
    match seen {
        Seen::All(objects, _) => {
            objects.first().map_or(PoolsSeen::Absent, |object| PoolsSeen::Is(address_pools(object)))
        }
        Seen::Is(object) => PoolsSeen::Is(address_pools(object)),
        Seen::Gone(_) => PoolsSeen::Absent,
        Seen::Forbidden => PoolsSeen::Forbidden,
    }
}

/// An observation of objects of one kind.
enum Seen<K> {
    All(Vec<K>, String),
    Is(K),
    Gone(K),
    /// The right to list it is missing.
    Forbidden,
}

struct Follower<K> {
    asking: Asking<K>,
    fields: Option<String>,
    what: &'static str,
    period: Duration,
    out: Sender<News>,
    /// Why the last list failed, as told.
    unlisted: Option<String>,
}

/// Why a kind is listed again.
enum Again {
    /// It is time for it.
    Audit,
    /// The watch has ended or its place in history is forgotten, or the last list failed.
    Failed(String),
    /// The right to list it is missing (403). Without the right to watch, what was listed is known.
    Forbidden(String),
    /// Nobody listens any more.
    Closed,
}

impl<K: ApiObject> Follower<K> {
    async fn run(mut self, news: impl Fn(Seen<K>) -> Option<News>) {
        let (mut pause, mut is_failing) = (FIRST_PAUSE, false);
        loop {
            let begun = Instant::now();
            let mut is_listed = false;
            match self.list_and_watch(&news, &mut is_listed).await {
                Again::Closed => return,
                Again::Forbidden(reason) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        let what = self.what;
                        warn!(what, reason, "The right to read objects for the address allocator is missing; retrying");
                    }
                    let told = match news(Seen::Forbidden) {
                        // Who receives it knows what follows.
                        Some(forbidden) => self.tell(Some(forbidden)).await,
                        None => self.unlisted(Some(reason)).await,
                    };
                    if told.is_err() {
                        return;
                    }
                    pause = (pause * 2).min(LAST_PAUSE);
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = self.out.closed() => return,
                    }
                }
                Again::Audit => {
                    pause = FIRST_PAUSE;
                    if std::mem::take(&mut is_failing) {
                        info!(what = self.what, "Following objects for the address allocator recovered");
                    }
                }
                Again::Failed(reason) => {
                    // A watch that lasted is no failure.
                    let is_late = is_listed && begun.elapsed() > Duration::from_secs(5);
                    if !is_late && !std::mem::replace(&mut is_failing, true) {
                        warn!(what = self.what, reason, "Following objects for the address allocator failed; retrying");
                    }
                    if !is_listed && self.unlisted(Some(reason)).await.is_err() {
                        return;
                    }
                    pause = if is_late { FIRST_PAUSE } else { (pause * 2).min(LAST_PAUSE) };
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = self.out.closed() => return,
                    }
                }
            }
        }
    }

    /// Tells why the last list failed, or that it did not, where that is new.
    async fn unlisted(&mut self, reason: Option<String>) -> Result<(), Again> {
        if self.unlisted == reason {
            return Ok(());
        }
        self.unlisted.clone_from(&reason);
        self.tell(Some(News::Unlisted(self.what, reason))).await
    }

    async fn list_and_watch(&mut self, news: &impl Fn(Seen<K>) -> Option<News>, is_listed: &mut bool) -> Again {
        let audit = Instant::now() + self.period;
        let (objects, mut version) = match self.list().await {
            Ok(listed) => listed,
            Err(again) => return again,
        };
        *is_listed = true;
        if let Err(again) = self.unlisted(None).await {
            return again;
        }
        if let Err(again) = self.tell(news(Seen::All(objects, version.clone()))).await {
            return again;
        }
        while Instant::now() < audit {
            let begun = Instant::now();
            match self.watch(&mut version, audit, news).await {
                Ok(()) if begun.elapsed() < BRIEF => sleep(BRIEF).await,
                Ok(()) => {}
                Err(again) => return again,
            }
        }
        Again::Audit
    }

    /// All objects, and the resourceVersion of the list.
    async fn list(&self) -> Result<(Vec<K>, String), Again> {
        let mut params = ListParams { field_selector: self.fields.clone(), ..ListParams::default() }.limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = self.asking.list(&params).await.map_err(unlisted)?;
            for item in page.items {
                // A list with a gap proves nothing about what is not in it.
                objects.push(item.map_err(|unread| Again::Failed(unread.reason))?);
            }
            params.continue_token = page.next;
            if params.continue_token.is_none() {
                let version =
                    page.version.ok_or_else(|| Again::Failed("the list has no resource version".to_owned()))?;
                return Ok((objects, version));
            }
        }
    }

    /// Follows one watch until its end, or until the audit is due.
    async fn watch(
        &self,
        version: &mut String,
        audit: Instant,
        news: &impl Fn(Seen<K>) -> Option<News>,
    ) -> Result<(), Again> {
        let left = audit.saturating_duration_since(Instant::now()).min(LONGEST_WATCH);
        let params = WatchParams {
            label_selector: None,
            field_selector: self.fields.clone(),
            timeout: Some(u32::try_from(left.as_secs() + 1).unwrap_or(u32::MAX)),
            bookmarks: true,
            send_initial_events: false,
        };
        let mut watch = self.asking.watch(&params, version).await.map_err(|failure| Again::Failed(reason(failure)))?;
        loop {
            let left = audit.saturating_duration_since(Instant::now()).min(LONGEST_WATCH + PATIENCE.piece);
            let change = match timeout(left, watch.next()).await {
                Err(_) | Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(change))) => change,
                Ok(Err(Stumble::Broken(reason))) => return Err(Again::Failed(reason)),
                Ok(Err(Stumble::Unreadable(unread))) => return Err(Again::Failed(unread.reason)),
            };
            let (seen, reached) = match change {
                Change::Refused(refusal) => return Err(Again::Failed(refusal.message)),
                Change::Bookmark { version, .. } => (None, version),
                Change::Is(object) => {
                    let reached = object.metadata().resource_version.clone();
                    (Some(Seen::Is(object)), reached)
                }
                Change::Gone(object) => {
                    let reached = object.metadata().resource_version.clone();
                    (Some(Seen::Gone(object)), reached)
                }
            };
            if let Some(reached) = reached {
                *version = reached;
            }
            if let Some(seen) = seen {
                self.tell(news(seen)).await?;
            }
        }
    }

    async fn tell(&self, news: Option<News>) -> Result<(), Again> {
        match news {
            Some(news) => self.out.send(news).await.map_err(|_| Again::Closed),
            None => Ok(()),
        }
    }
}

fn unlisted(failure: Failure) -> Again {
    match failure {
        Failure::Refused(refusal) if refusal.code == 403 => Again::Forbidden(refusal.message),
        failure => Again::Failed(reason(failure)),
    }
}

fn reason(failure: Failure) -> String {
    match failure {
        Failure::Refused(refusal) => format!("{} ({})", refusal.message, refusal.code),
        Failure::Broken(reason) => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configmap_that_is_gone_or_forbidden_is_not_taken_for_one_without_pools() {
        let empty: ConfigMapObject =
            serde_json::from_value(serde_json::json!({"metadata": {"name": POOLS}})).expect("a ConfigMap");
        let gone = empty.clone();
        for (seen, wanted) in [
            (Seen::All(vec![empty.clone()], "1".to_owned()), PoolsSeen::Is(AddressPools::default())),
            (Seen::Is(empty), PoolsSeen::Is(AddressPools::default())),
            (Seen::All(Vec::new(), "1".to_owned()), PoolsSeen::Absent),
            (Seen::Gone(gone), PoolsSeen::Absent),
            (Seen::Forbidden, PoolsSeen::Forbidden),
        ] {
            assert_eq!(pools_seen(&seen), wanted);
        }
    }
}
