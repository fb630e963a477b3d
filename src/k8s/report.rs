//! What the cluster is told about this node: the condition `NetworkUnavailable`, and an Event for each problem.
//!
//! Kubernetes: where a cloud or another agent has said `NetworkUnavailable=True` in a Node's `status.conditions`, no pod comes to
//! it (taint `node.kubernetes.io/network-unavailable`) until whoever makes the routes says `False`. Events (core/v1) are what
//! `kubectl describe node` shows.
//!
//! The condition is set when the routes to all known nodes are there, and never to `True`: a restart is no reason to keep pods
//! away. Where somebody else sets it to `True` afterwards, which the watch of the Node tells, it is corrected: at once the first
//! time, and later and later where somebody insists. A problem, and what is odd in the Node's annotations, becomes one Event when it
//! appears. A server that cannot be reached, or refuses, keeps nothing else from working: it is told again, later and later.
//!
//! Limits: of very many problems the first ones are told, all are in the log.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::core::params::{GetParams, Patch, PatchParams, PostParams};
use kube::core::request::Request;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use super::client::chain;
use crate::model::Report;

/// What has been told.
#[derive(Default)]
struct Told {
    network_is_there: bool,
    corrections: Corrections,
    problems: BTreeSet<String>,
}

/// When the condition may be corrected, so that two who contradict each other do not do so all the time.
#[derive(Default, Debug)]
struct Corrections {
    last: Option<Instant>,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How many problems become Events at most while none of them goes.
const MOST_PROBLEMS: usize = 20;
/// How long a condition that somebody sets again stays so: at first, and at the longest.
const FIRST_CORRECTION: Duration = Duration::from_secs(5);
const LONGEST_CORRECTION: Duration = Duration::from_secs(300);
const CONDITION: &str = "NetworkUnavailable";

/// Tells the newest report about the Node of this name until its sender is gone.
pub async fn run(client: Client, node: String, mut reports: watch::Receiver<Report>) {
    let mut told = Told::default();
    let mut is_failing = false;
    let mut pause = FIRST_PAUSE;
    loop {
        let report = reports.borrow_and_update().clone();
        let changed = match tell(&client, &node, &report, &mut told).await {
            Ok(()) => {
                if is_failing {
                    info!("The cluster can be told about this node again");
                }
                (is_failing, pause) = (false, FIRST_PAUSE);
                let correction = told.corrections.due().filter(|_| report.network_is_there && report.is_denied);
                tokio::select! {
                    changed = reports.changed() => changed,
                    () = until(correction) => Ok(()),
                }
            }
            Err(error) => {
                if !is_failing {
                    warn!(reason = chain(&error), "The cluster cannot be told about this node; trying again");
                }
                is_failing = true;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                reports.has_changed().map(drop)
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn tell(client: &Client, node: &str, report: &Report, told: &mut Told) -> Result<(), kube::Error> {
    let now = Instant::now();
    let is_wrong = told.network_is_there && report.is_denied && told.corrections.due().is_none_or(|due| due <= now);
    if report.network_is_there && (!told.network_is_there || is_wrong) {
        if say_that_the_network_is_there(client, node).await? && told.network_is_there {
            warn!(condition = CONDITION, "Somebody has said that this node's network is not there; it is");
        }
        told.network_is_there = true;
        told.corrections.note(now);
    }
    let problems: BTreeSet<&String> = report.problems.union(&report.odd).collect();
    told.problems.retain(|problem| problems.contains(problem));
    for problem in problems {
        if told.problems.len() < MOST_PROBLEMS && !told.problems.contains(problem) {
            let body = event(node, problem, SystemTime::now());
            send(
                client,
                Request::new("/api/v1/namespaces/default/events").create(&PostParams::default(), bytes(&body)),
            )
            .await?;
            told.problems.insert(problem.clone());
        }
    }
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Corrections {
    /// The condition has just been looked at, and set where that was needed.
    fn note(&mut self, now: Instant) {
        // Who has been silent for so long is not contradicting.
        let insists = self.last.is_some_and(|last| now < last + self.pause + LONGEST_CORRECTION);
        self.pause = if insists { (self.pause * 2).min(LONGEST_CORRECTION) } else { FIRST_CORRECTION };
        self.last = Some(now);
    }

    /// When the next one is due; `None`: at once.
    fn due(&self) -> Option<Instant> {
        self.last.map(|last| last + self.pause)
    }
}

/// True where the Node had not said so.
async fn say_that_the_network_is_there(client: &Client, node: &str) -> Result<bool, kube::Error> {
    let nodes = Request::new("/api/v1/nodes");
    if says_so(&send(client, nodes.get(node, &GetParams::default())).await?) {
        return Ok(false);
    }
    let patch = Patch::Strategic(condition(Timestamp::now()));
    send(client, nodes.patch_subresource("status", node, &PatchParams::default(), &patch)).await.map(|_| true)
}

type Built = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

async fn send(client: &Client, request: Built) -> Result<Value, kube::Error> {
    client.request::<Value>(request.map_err(kube::Error::BuildRequest)?).await
}

/// Whether a Node has the condition already.
fn says_so(node: &Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let mut ours = conditions.into_iter().flatten().filter(|condition| condition["type"] == CONDITION);
    ours.any(|condition| condition["status"] == "False")
}

/// The change of a Node's status. Conditions are merged by their type.
fn condition(now: Timestamp) -> Value {
    let now = format!("{now:.0}");
    json!({"status": {"conditions": [{
        "type": CONDITION, "status": "False", "reason": "RoutesReady",
        "message": "the routes to the pods of all known nodes are there",
        "lastTransitionTime": now, "lastHeartbeatTime": now,
    }]}})
}

/// An Event about a Node. What is about no namespace lies in `default`; its name is the Node's with the time, as everybody does it.
fn event(node: &str, problem: &str, at: SystemTime) -> Value {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = format!("{:.0}", Timestamp::try_from(at).unwrap_or_default());
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{node}.{:x}", since.as_nanos()), "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "type": "Warning", "reason": "RouterProblem", "message": message(problem),
        "source": {"component": "kube-router", "host": node},
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}

/// The API takes 1024 bytes.
fn message(problem: &str) -> &str {
    problem.get(..problem.floor_char_boundary(1024)).unwrap_or(problem)
}

fn bytes(body: &Value) -> Vec<u8> {
    body.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::watch::tests::api_server::{ApiServer, NODES};

    #[test]
    fn a_node_that_says_so_already_is_not_told_again() {
        let node = |conditions: Value| json!({"status": {"conditions": conditions}});
        assert!(says_so(&node(json!([{"type": "Ready", "status": "True"}, {"type": CONDITION, "status": "False"}]))));
        for other in
            [json!([{"type": CONDITION, "status": "True"}]), json!([{"type": "Ready", "status": "False"}]), json!(null)]
        {
            assert!(!says_so(&node(other)));
        }
        assert!(!says_so(&json!({})) && !says_so(&json!({"status": {"conditions": {}}})));
        assert!(says_so(&condition(Timestamp::UNIX_EPOCH)), "what we write is what we look for");
    }

    #[test]
    fn who_contradicts_is_answered_later_and_later_and_at_first_again_after_a_long_silence() {
        let begun = Instant::now();
        let mut corrections = Corrections::default();
        assert_eq!(corrections.due(), None, "the first time at once");
        let mut now = begun;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            corrections.note(now);
            let due = corrections.due().expect("a pause");
            pauses.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        now += LONGEST_CORRECTION + Duration::from_secs(1);
        corrections.note(now);
        assert_eq!(corrections.due(), Some(now + FIRST_CORRECTION));
    }

    #[tokio::test]
    async fn a_node_is_told_what_is_odd_and_a_condition_that_somebody_sets_is_corrected() {
        let server = ApiServer::start().await;
        let put = |status: &str| {
            let conditions = json!([{"type": CONDITION, "status": status}]);
            server.put(NODES, json!({"metadata": {"name": "node-1"}, "status": {"conditions": conditions}}));
        };
        let config = kube::Config::new(format!("http://{}", server.address).parse().expect("a URL"));
        let client = Client::try_from(config).expect("a client");
        let mut told = Told::default();
        let mut report = Report { odd: ["annotation: it makes no sense".to_owned()].into(), ..Report::default() };
        let events = "/api/v1/namespaces/default/events?";
        let (looks, corrects) = ("/api/v1/nodes/node-1", "/api/v1/nodes/node-1/status?");
        put("True");
        report.is_denied = true;
        for (why, asked) in [("what is odd is told", vec![events]), ("once", vec![])] {
            tell(&client, "node-1", &report, &mut told).await.expect("the server answers");
            assert_eq!(server.take_requests(), asked, "{why}");
        }
        report.network_is_there = true;
        for (why, asked) in [("it is there", vec![looks, corrects]), ("who contradicts has to wait", vec![])] {
            tell(&client, "node-1", &report, &mut told).await.expect("the server answers");
            assert_eq!(server.take_requests(), asked, "{why}");
        }
        let its_time_comes = |told: &mut Told| {
            told.corrections.last = told.corrections.last.and_then(|last| last.checked_sub(told.corrections.pause));
        };
        its_time_comes(&mut told);
        tell(&client, "node-1", &report, &mut told).await.expect("the server answers");
        assert_eq!(server.take_requests(), [looks, corrects], "it is corrected");
        put("False");
        its_time_comes(&mut told);
        tell(&client, "node-1", &report, &mut told).await.expect("the server answers");
        assert_eq!(server.take_requests(), [looks], "it is right already, and the watch has not said so yet");
    }

    #[test]
    fn times_are_written_as_the_api_wants_them() {
        assert_eq!(
            condition(Timestamp::UNIX_EPOCH)["status"]["conditions"][0]["lastTransitionTime"],
            "1970-01-01T00:00:00Z"
        );
        let event = event("node1", "it does not work", UNIX_EPOCH + Duration::new(255, 255));
        assert_eq!(event["firstTimestamp"], "1970-01-01T00:04:15Z");
        assert_eq!(event["metadata"]["name"], format!("node1.{:x}", 255_000_000_255_u64));
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        assert_eq!(message("short"), "short");
        let long = format!("a{}", "ä".repeat(600));
        assert_eq!(message(&long).len(), 1023);
    }
}
