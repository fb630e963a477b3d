//! Events (core/v1): what `kubectl describe` shows below an object. One task sends all of this process, one after the other.
//!
//! Bounds: a few at once, then one a second, whoever has something to tell ([`Budget`]). Where an Event is refused (403), which is logged
//! once with the rule that would give the right, the API server is asked every hour: about that namespace, or, where the right is missing in another one too and none
//! accepts any, about all, which is logged too. What cannot be sent is not kept here: whoever told it hears so, and decides whether to tell it again.
//!
//! The name of an Event decides whether it is told twice. One about an occurrence is named by the time. One about a state is named by what it
//! is about ([`Name::Once`]): where the API server still has it, from another node or from before a restart, it refuses the second (409),
//! which counts as told. API servers forget Events after an hour by default.

mod closed;

use std::time::{Duration, Instant, SystemTime};

use compact_str::CompactString;
use k8s_openapi::jiff::Timestamp;
use kube::core::Status;
use kube::core::params::{GetParams, PostParams};
use kube::core::request::Request;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use self::closed::{Closed, Worth};
use super::client::{ApiClient, chain};
use crate::model::{ObjectName, digest};

/// An Event to be created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewEvent {
    pub about: About,
    pub name: Name,
    pub is_warning: bool,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence without secrets. The API takes 1024 bytes; the rest is left off.
    pub message: String,
    /// When it happened; `None`: now.
    pub at: Option<SystemTime>,
}

/// The object that an Event is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum About {
    /// The Node of this name.
    Node(CompactString),
    /// A Service. Without its `metadata.uid` the API server is asked for it.
    Service(ObjectName, Option<CompactString>),
    /// A NetworkPolicy, or a ClusterNetworkPolicy, which has no namespace. The API server is asked for its `metadata.uid`.
    Policy(ObjectName),
}

/// The part of an Event's name behind the name of its object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    /// By the time, so that each is another.
    Time,
    /// By the object and these words, so that it is told once.
    Once(String),
}

/// Outcome of sending an Event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The API server has it, from now on or already.
    Told,
    /// Its object does not exist any more, or nothing can be created beside it.
    Gone,
    /// The right is missing. The API server is not asked before then.
    Forbidden(Instant),
    /// No answer, or an error that was logged when it began.
    Failed,
}

/// The way to the task that sends. Clones lead to the same.
#[derive(Clone)]
pub struct Events(mpsc::Sender<(NewEvent, oneshot::Sender<Outcome>)>);

/// Delays and patience; shorter in tests.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Time limit for an answer.
    pub patience: Duration,
    /// The delay while the right is missing.
    pub without_right: Duration,
    /// Events that may be sent at once, and the time after which there is room for one more.
    pub burst: u32,
    pub refill: Duration,
}

pub const TIMING: Timing = Timing {
    patience: Duration::from_secs(15),
    without_right: Duration::from_secs(3600),
    burst: 25,
    refill: Duration::from_secs(1),
};

/// The rule of RBAC that is needed.
pub const RULE: &str = "apiGroups [\"\"], resources [events], verbs [create]; resources [services], verbs [get]";
/// In the API server's message about a right that is missing, before the resource; messages of quotas and webhooks have neither.
const RIGHT_WORDS: [&str; 2] = ["cannot create resource", "cannot get resource"];
/// The versions of ClusterNetworkPolicy in which one is asked for: a server has one of them at least.
const CLUSTER_POLICIES: [&str; 2] = ["v1beta1", "v1alpha2"];
/// How many may wait to be sent; each teller waits for its own.
const WAITING: usize = 8;

impl Events {
    /// Starts the task that sends. `node`: the name of this Node, which Events name as their source.
    pub fn spawn(client: ApiClient, node: String, timing: Timing) -> Events {
        let (out, mut waiting) = mpsc::channel::<(NewEvent, oneshot::Sender<Outcome>)>(WAITING);
        let mut sender = Sender {
            client,
            node,
            timing,
            budget: Budget::new(timing, Instant::now()),
            closed: Closed::default(),
            is_failing: false,
        };
        tokio::spawn(async move {
            while let Some((event, told)) = waiting.recv().await {
                // Who asked may be gone by now; then there is nobody to tell.
                let _ = told.send(sender.tell(event).await);
            }
        });
        Events(out)
    }

    /// Sends an Event as soon as its turn comes, and returns what became of it.
    pub async fn tell(&self, event: NewEvent) -> Outcome {
        let (out, told) = oneshot::channel();
        // The task ends with the runtime alone.
        if self.0.send((event, out)).await.is_err() {
            return Outcome::Failed;
        }
        told.await.unwrap_or(Outcome::Failed)
    }
}

/// The only sender of Events.
struct Sender {
    client: ApiClient,
    node: String,
    timing: Timing,
    budget: Budget,
    closed: Closed,
    is_failing: bool,
}

/// Why the API server has not done what it was asked for.
enum Refused {
    /// With the reason, and whether that is a missing right, rather than a quota or a webhook.
    Forbidden(String, bool),
    Exists,
    Gone,
    Failed(String),
}

impl Sender {
    async fn tell(&mut self, event: NewEvent) -> Outcome {
        if let Some(until) = self.closed.until(event.about.namespace(), Instant::now()) {
            return Outcome::Forbidden(until);
        }
        sleep(self.budget.take(Instant::now())).await;
        match self.create(&event).await {
            Ok(()) | Err(Refused::Exists) => {
                let were_closed = self.closed.accepted(event.about.namespace(), Instant::now());
                if std::mem::take(&mut self.is_failing) || were_closed {
                    info!("Sending Events recovered");
                }
                Outcome::Told
            }
            Err(Refused::Gone) => Outcome::Gone,
            Err(Refused::Forbidden(reason, is_for_want_of_right)) => {
                let now = Instant::now();
                let until = now + self.timing.without_right;
                let namespace = event.about.namespace();
                match self.closed.note(&event.about, is_for_want_of_right, now, until) {
                    Worth::Nothing => {}
                    Worth::Namespace => warn!(
                        reason,
                        namespace,
                        rule = RULE,
                        "An Event was refused, perhaps for want of the right to create it; trying every hour"
                    ),
                    Worth::All => warn!(
                        reason,
                        namespace,
                        rule = RULE,
                        "The right to create Events is missing; none is sent, and one is tried every hour"
                    ),
                }
                Outcome::Forbidden(until)
            }
            Err(Refused::Failed(reason)) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(reason, "Sending an Event failed");
                }
                Outcome::Failed
            }
        }
    }

    async fn create(&self, event: &NewEvent) -> Result<(), Refused> {
        let uid = match &event.about {
            About::Node(name) => name.clone(),
            About::Service(_, Some(uid)) => uid.clone(),
            About::Service(name, None) => {
                self.uid_of(&format!("/api/v1/namespaces/{}/services", name.namespace), &name.name).await?
            }
            About::Policy(name) => self.uid_of_policy(name).await?,
        };
        let body = event_object(event, &uid, &self.node, SystemTime::now());
        let path = format!("/api/v1/namespaces/{}/events", event.about.namespace());
        let request = Request::new(path).create(&PostParams::default(), body.to_string().into_bytes());
        self.send(request).await.map(drop)
    }

    async fn uid_of_policy(&self, name: &ObjectName) -> Result<CompactString, Refused> {
        if !name.namespace.is_empty() {
            let path = format!("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies", name.namespace);
            return self.uid_of(&path, &name.name).await;
        }
        for version in CLUSTER_POLICIES {
            let path = format!("/apis/policy.networking.k8s.io/{version}/clusternetworkpolicies");
            match self.uid_of(&path, &name.name).await {
                Err(Refused::Gone) => {}
                found => return found,
            }
        }
        Err(Refused::Gone)
    }

    /// Asks for the UID of an object of the collection at a path.
    async fn uid_of(&self, path: &str, name: &str) -> Result<CompactString, Refused> {
        let object = self.send(Request::new(path).get(name, &GetParams::default())).await?;
        let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
        uid.map(CompactString::from).ok_or_else(|| Refused::Failed(format!("{path}/{name} has no UID")))
    }

    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Value, Refused> {
        let request = request.map_err(|error| Refused::Failed(chain(&error)))?;
        let client = self.client.current().await;
        match timeout(self.timing.patience, client.request::<Value>(request)).await {
            Err(_) => Err(Refused::Failed("no answer in time".to_owned())),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(refused(&status)),
            Ok(Err(error)) => Err(Refused::Failed(chain(&error))),
        }
    }
}

fn refused(status: &Status) -> Refused {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    match status.code {
        // A namespace that is about to go takes nothing new; that says nothing of rights.
        403 if causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating") => Refused::Gone,
        // The API server's words about an authorizer that said no.
        403 => {
            Refused::Forbidden(status.message.clone(), RIGHT_WORDS.iter().any(|words| status.message.contains(words)))
        }
        404 => Refused::Gone,
        409 => Refused::Exists,
        _ => Refused::Failed(status.message.clone()),
    }
}

impl About {
    /// Events of cluster-wide objects lie in `default`.
    fn namespace(&self) -> &str {
        match self {
            About::Node(_) => "default",
            About::Policy(name) if name.namespace.is_empty() => "default",
            About::Service(name, _) | About::Policy(name) => &name.namespace,
        }
    }
}

fn event_object(event: &NewEvent, uid: &str, node: &str, now: SystemTime) -> Value {
    let (version, kind, namespace, name) = match &event.about {
        About::Node(name) => ("v1", "Node", None, name.as_str()),
        About::Service(name, _) => ("v1", "Service", Some(&name.namespace), name.name.as_str()),
        About::Policy(name) if name.namespace.is_empty() => {
            ("policy.networking.k8s.io/v1beta1", "ClusterNetworkPolicy", None, name.name.as_str())
        }
        About::Policy(name) => ("networking.k8s.io/v1", "NetworkPolicy", Some(&name.namespace), name.name.as_str()),
    };
    let [now, time] = [now, event.at.unwrap_or(now)].map(|time| Timestamp::try_from(time).unwrap_or_default());
    let behind = match &event.name {
        // Of the sending: two may have happened at once.
        Name::Time => format!("{:x}", now.as_nanosecond()),
        Name::Once(words) => format!("{:016x}", digest(&[uid, event.reason, words])),
    };
    let mut object = json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid});
    if let (Some(namespace), Some(object)) = (namespace, object.as_object_mut()) {
        object.insert("namespace".to_owned(), json!(namespace.as_str()));
    }
    let (seconds, message) = (format!("{time:.0}"), &event.message);
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{name}.{behind}"), "namespace": event.about.namespace()},
        "involvedObject": object,
        "type": if event.is_warning { "Warning" } else { "Normal" }, "reason": event.reason,
        "message": message.get(..message.floor_char_boundary(1024)).unwrap_or(message),
        "source": {"component": "kube-router", "host": node},
        "firstTimestamp": seconds, "lastTimestamp": seconds, "count": 1,
    })
}

/// How many Events may be sent now.
#[derive(Debug)]
struct Budget {
    timing: Timing,
    /// When there would be room for a full burst, if nothing were sent any more.
    full_at: Instant,
}

impl Budget {
    fn new(timing: Timing, now: Instant) -> Budget {
        Budget { timing, full_at: now }
    }

    /// Takes room for one Event; returns how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let room = self.timing.refill * self.timing.burst;
        self.full_at = self.full_at.max(now) + self.timing.refill;
        self.full_at.saturating_duration_since(now).saturating_sub(room)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::k8s::client::{Access, client};
    use crate::k8s::watch::tests::api_server::{ApiServer, Faults};

    /// Without a limit of the rate.
    pub const QUICK: Timing = Timing {
        patience: Duration::from_secs(2),
        without_right: Duration::from_secs(3600),
        burst: u32::MAX,
        refill: Duration::from_nanos(1),
    };

    pub async fn events(server: &ApiServer, timing: Timing) -> Events {
        let master = Some(format!("http://{}", server.address).parse().expect("a URL"));
        let client = client(&Access { kubeconfig: None, master }).await.expect("nothing is needed");
        Events::spawn(client, "node-1".to_owned(), timing)
    }

    /// The path of the Services that are asked for one by one.
    pub const IN_SHOP: &str = "/api/v1/namespaces/shop/services";

    fn about_service(text: &str) -> NewEvent {
        NewEvent {
            about: About::Service(ObjectName::new("shop", "web"), None),
            name: Name::Once(text.to_owned()),
            is_warning: true,
            reason: "ExternalAddressRefused",
            message: text.to_owned(),
            at: None,
        }
    }

    #[test]
    fn an_event_about_a_state_has_the_same_name_on_all_nodes_and_after_a_restart() {
        let name = |event: &NewEvent, uid: &str, node: &str, seconds: u64| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            event_object(event, uid, node, at).pointer("/metadata/name").cloned()
        };
        let event = about_service("203.0.113.1");
        let first = name(&event, "uid-1", "node-1", 1);
        assert_eq!(first, name(&event, "uid-1", "node-2", 2));
        assert!(first.as_ref().and_then(Value::as_str).is_some_and(|name| name.starts_with("web.")));
        assert_ne!(first, name(&event, "uid-2", "node-1", 1), "another Service of the same name");
        assert_ne!(first, name(&about_service("203.0.113.2"), "uid-1", "node-1", 1));
        let occurrence = NewEvent { name: Name::Time, ..event };
        assert_ne!(name(&occurrence, "uid-1", "node-1", 1), name(&occurrence, "uid-1", "node-1", 2));
    }

    #[test]
    fn an_event_names_its_object_so_that_kubectl_describe_finds_it() {
        let object = event_object(&about_service("x"), "uid-1", "node-1", SystemTime::UNIX_EPOCH);
        assert_eq!(
            object["involvedObject"],
            json!({"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "uid-1"})
        );
        assert_eq!((&object["metadata"]["namespace"], &object["type"]), (&json!("shop"), &json!("Warning")));
        let node = NewEvent { about: About::Node("node-1".into()), name: Name::Time, ..about_service("x") };
        let object = event_object(&node, "node-1", "node-1", SystemTime::UNIX_EPOCH);
        assert_eq!(object["metadata"]["namespace"], "default");
        let at = SystemTime::UNIX_EPOCH + Duration::new(255, 255);
        let long = NewEvent { message: format!("a{}", "ä".repeat(600)), ..node.clone() };
        let object = event_object(&long, "node-1", "node-1", at);
        assert_eq!(object["message"].as_str().map(str::len), Some(1023), "cut between characters");
        assert_eq!(object["firstTimestamp"], "1970-01-01T00:04:15Z");
        assert_eq!(object["metadata"]["name"], format!("node-1.{:x}", 255_000_000_255_u64));
        let earlier = NewEvent { at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60)), ..node };
        let object = event_object(&earlier, "node-1", "node-1", at);
        assert_eq!(object["lastTimestamp"], "1970-01-01T00:01:00Z", "when it happened");
        assert_eq!(object["metadata"]["name"], format!("node-1.{:x}", 255_000_000_255_u64), "and when it is sent");
    }

    #[test]
    fn a_few_events_go_at_once_and_then_one_a_second() {
        let now = Instant::now();
        let mut budget = Budget::new(TIMING, now);
        let waits: Vec<u64> = (0..28).map(|_| budget.take(now).as_secs()).collect();
        assert_eq!(waits, [[0; 25].as_slice(), &[1, 2, 3]].concat());
        assert_eq!(budget.take(now + Duration::from_secs(3600)), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_service_is_asked_for_its_uid_and_one_that_is_gone_is_no_failure() {
        let server = ApiServer::start().await;
        let events = events(&server, QUICK).await;
        let answered = |code: u16, part: &'static str| {
            server.set_faults(Faults { forbid: Some(part), forbid_as: Some(code), ..Faults::default() });
        };
        answered(404, "/services/");
        assert_eq!(events.tell(about_service("x")).await, Outcome::Gone);
        assert_eq!(server.take_requests(), ["/api/v1/namespaces/shop/services/web"]);
        server.put(IN_SHOP, json!({"metadata": {"name": "web", "uid": "uid-1"}}));
        for code in [201, 409] {
            answered(code, "/events");
            assert_eq!(events.tell(about_service("x")).await, Outcome::Told, "{code}");
            let asked = ["/api/v1/namespaces/shop/services/web", "/api/v1/namespaces/shop/events?"];
            assert_eq!(server.take_requests(), asked);
        }
        answered(500, "/events");
        assert_eq!(events.tell(about_service("x")).await, Outcome::Failed);
    }

    #[tokio::test]
    async fn without_the_right_the_server_is_asked_every_hour_whoever_tells() {
        let server = ApiServer::start().await;
        let hour = Duration::from_millis(500);
        let events = events(&server, Timing { without_right: hour, ..QUICK }).await;
        server.put(IN_SHOP, json!({"metadata": {"name": "web", "uid": "uid-1"}}));
        server.set_faults(Faults { forbid: Some("/events"), ..Faults::default() });
        let node = NewEvent { about: About::Node("node-1".into()), name: Name::Time, ..about_service("y") };
        for _ in 0..3 {
            assert!(matches!(events.tell(about_service("x")).await, Outcome::Forbidden(_)));
            assert!(matches!(events.tell(node.clone()).await, Outcome::Forbidden(_)));
        }
        assert_eq!(server.take_requests().len(), 3, "the Service, and one Event in each namespace");
        server.set_faults(Faults::default());
        sleep(hour).await;
        assert_eq!(events.tell(node).await, Outcome::Told);
    }

    #[test]
    fn a_missing_right_is_told_from_a_quota_and_a_webhook_by_the_api_servers_words() {
        for (message, is_right) in [
            (
                r#"events is forbidden: User "system:serviceaccount:kube-system:kube-router" cannot create resource "events" in API group "" in the namespace "shop""#,
                true,
            ),
            (
                r#"services "web" is forbidden: User "x" cannot get resource "services" in API group "" in the namespace "shop""#,
                true,
            ),
            (
                r#"events "web.1" is forbidden: exceeded quota: few, requested: count/events=1, used: count/events=5, limited: count/events=5"#,
                false,
            ),
            (r#"admission webhook "deny.example.net" denied the request: no Events here"#, false),
        ] {
            let status =
                json!({"kind": "Status", "code": 403, "message": message, "reason": "Forbidden", "status": "Failure"});
            let refused = refused(&serde_json::from_value(status).expect("a Status"));
            assert!(matches!(refused, Refused::Forbidden(_, is) if is == is_right), "{message}");
        }
    }

    #[test]
    fn a_namespace_that_is_about_to_go_says_nothing_of_rights() {
        let status = |code: u16, causes: Value| {
            let status = json!({"kind": "Status", "code": code, "message": "no", "reason": "x", "status": "Failure", "details": {"causes": causes}});
            refused(&serde_json::from_value(status).expect("a Status"))
        };
        let terminating = json!([{"reason": "NamespaceTerminating", "message": "m", "field": "f"}]);
        assert!(matches!(status(403, terminating), Refused::Gone));
        assert!(matches!(status(403, json!([])), Refused::Forbidden(..)));
        assert!(matches!(status(409, json!([])), Refused::Exists));
        assert!(matches!(status(500, json!([])), Refused::Failed(_)));
    }
}
