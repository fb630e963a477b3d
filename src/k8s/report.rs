//! Reports about this node to the cluster: the condition `NetworkUnavailable`, and an Event for each problem.
//!
//! Kubernetes: where a cloud or another agent has set `NetworkUnavailable=True` in a Node's `status.conditions`, no pod
//! is scheduled there (taint `node.kubernetes.io/network-unavailable`) until whoever makes the routes sets `False`.
//! Events (core/v1) are what `kubectl describe node` shows.
//!
//! The condition is written once the routes to all known nodes exist, where the watch shows it on the Node as `True` or
//! `Unknown`; and never to `True`: a restart is no reason to keep pods away. Where somebody sets it again it is
//! corrected: at once the first time, and later and later if that repeats. A problem, and a mistake in the Node's
//! annotations, becomes one Event when it appears.
//!
//! Condition and Events are sent independently. If the server cannot be reached or does not answer, they are retried,
//! later and later; while the right is missing, which is logged once with the rule that would give it, every hour. Events go the way of
//! all Events of this program ([`events`](super::events)).
//!
//! Limits: of very many problems only the first ones become Events, all are in the log.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::core::params::{GetParams, Patch, PatchParams};
use kube::core::request::Request;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

use super::client::ApiClient;
use super::events::{About, Events, Name, NewEvent, Outcome};
use super::own_node::{Attempts, OwnNode, Refused, Sent, TIMING};
use crate::model::Report;

/// Who is reported to, and on which Node.
#[derive(Clone)]
struct Listener {
    node: OwnNode,
    events: Events,
}

/// Pacing of corrections of the condition, so that two who contradict each other do not do so all the time.
#[derive(Default, Debug)]
struct Corrections {
    last: Option<Instant>,
    pause: Duration,
}

/// Most problems that become Events while none of them goes.
const MOST_PROBLEMS: usize = 20;
/// Time for which a condition that somebody sets again stays so: at first, and at the longest.
const FIRST_CORRECTION: Duration = Duration::from_secs(5);
const LONGEST_CORRECTION: Duration = Duration::from_secs(300);
const CONDITION: &str = "NetworkUnavailable";
const CONDITION_RULE: &str =
    "apiGroups [\"\"], resources [nodes], verbs [get]; resources [nodes/status], verbs [patch]";

/// Sends the newest report about the Node of this name until its sender is gone.
pub async fn run(client: ApiClient, events: Events, node: String, reports: watch::Receiver<Report>) {
    let listener = Listener { node: OwnNode { client, name: node, timing: TIMING }, events };
    tokio::join!(tell_condition(listener.clone(), reports.clone()), tell_events(listener, reports));
}

async fn tell_condition(listener: Listener, mut reports: watch::Receiver<Report>) {
    let mut attempts = Attempts::new("the node's condition", CONDITION_RULE, listener.node.timing);
    let mut corrections = Corrections::default();
    loop {
        let report = reports.borrow_and_update().clone();
        let is_wrong = report.network_is_there && report.is_denied;
        let told = match corrections.due() {
            _ if !is_wrong => Ok(Sent::Nothing),
            Some(due) if due > Instant::now() => Ok(Sent::Nothing),
            due => listener.correct(due.is_some()).await.inspect(|_| corrections.note(Instant::now())),
        };
        attempts.note(&told);
        match told {
            Ok(_) => {
                let correction = corrections.due().filter(|_| is_wrong);
                tokio::select! {
                    changed = reports.changed() => if changed.is_err() { return },
                    () = until(correction) => {}
                }
            }
            Err(_) => tokio::time::sleep(attempts.pause).await,
        }
        if reports.has_changed().is_err() {
            return;
        }
    }
}

async fn tell_events(listener: Listener, mut reports: watch::Receiver<Report>) {
    let (mut known, mut told) = (BTreeSet::new(), None);
    let mut pause = listener.node.timing.first;
    loop {
        let report = reports.borrow_and_update().clone();
        let sent = match listener.tell_problems(&report, &mut known).await {
            Ok(()) => listener.tell_news(&report, &mut told).await,
            refused => refused,
        };
        match sent {
            Ok(()) => {
                pause = listener.node.timing.first;
                if reports.changed().await.is_err() {
                    return;
                }
            }
            Err(Some(asked_again)) => tokio::time::sleep_until(asked_again.into()).await,
            Err(None) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(listener.node.timing.last);
            }
        }
        if reports.has_changed().is_err() {
            return;
        }
    }
}

impl Listener {
    /// Sets the condition to `False` where the Node has it otherwise. `again`: it was set before.
    async fn correct(&self, again: bool) -> Result<Sent, Refused> {
        let nodes = Request::new("/api/v1/nodes");
        if !denies(&self.node.send(nodes.get(&self.node.name, &GetParams::default())).await?) {
            return Ok(Sent::Answered);
        }
        let patch = Patch::Strategic(condition(Timestamp::now()));
        self.node.send(nodes.patch_subresource("status", &self.node.name, &PatchParams::default(), &patch)).await?;
        if again {
            warn!(condition = CONDITION, "Node condition NetworkUnavailable was set by others; setting it to False");
        }
        Ok(Sent::Accepted)
    }

    /// Creates an Event for each problem that is not `known`, and forgets those that are gone.
    ///
    /// # Errors
    /// One could not be sent: when to try again, where that is known.
    async fn tell_problems(&self, report: &Report, known: &mut BTreeSet<String>) -> Result<(), Option<Instant>> {
        let problems: BTreeSet<&String> = report.problems.union(&report.mistakes).collect();
        known.retain(|problem| problems.contains(problem));
        for problem in problems {
            if known.len() < MOST_PROBLEMS && !known.contains(problem) {
                self.tell("RouterProblem", true, problem).await?;
                known.insert(problem.clone());
            }
        }
        Ok(())
    }

    /// Creates an Event for news that are not `told` yet, of which the latest counts.
    ///
    /// # Errors
    /// As [`tell_problems`](Listener::tell_problems).
    async fn tell_news(&self, report: &Report, told: &mut Option<u64>) -> Result<(), Option<Instant>> {
        let Some((number, news)) = &report.news else { return Ok(()) };
        if *told != Some(*number) {
            self.tell(news.word, false, &news.text).await?;
            *told = Some(*number);
        }
        Ok(())
    }

    async fn tell(&self, reason: &'static str, is_warning: bool, message: &str) -> Result<(), Option<Instant>> {
        let event = NewEvent {
            about: About::Node(self.node.name.as_str().into()),
            name: Name::Time,
            is_warning,
            reason,
            message: message.to_owned(),
            at: None,
        };
        match self.events.tell(event).await {
            Outcome::Told | Outcome::Gone => Ok(()),
            Outcome::Forbidden(until) => Err(Some(until)),
            Outcome::Failed => Err(None),
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Corrections {
    /// Records that the condition has been checked, and set where that was needed.
    fn note(&mut self, now: Instant) {
        // After so long a silence it is no contradiction.
        let insists = self.last.is_some_and(|last| now < last + self.pause + LONGEST_CORRECTION);
        self.pause = if insists { (self.pause * 2).min(LONGEST_CORRECTION) } else { FIRST_CORRECTION };
        self.last = Some(now);
    }

    /// Returns when the next correction is due; `None`: at once.
    fn due(&self) -> Option<Instant> {
        self.last.map(|last| last + self.pause)
    }
}

/// Returns whether a Node has the condition as `True` or `Unknown`.
fn denies(node: &Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let mut ours = conditions.into_iter().flatten().filter(|condition| condition["type"] == CONDITION);
    ours.any(|condition| condition["status"] == "True" || condition["status"] == "Unknown")
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

#[cfg(test)]
mod tests;
