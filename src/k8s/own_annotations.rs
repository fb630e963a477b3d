//! Writes annotations of our own Node, by which nodes tell each other about themselves.
//!
//! Kubernetes: `metadata.annotations` of a Node, changed by a merge patch (RFC 7396) that names nothing but the keys that differ: other
//! annotations, and what others write meanwhile, stay. It needs the right to patch Nodes, which RBAC cannot give for one's own Node alone:
//! the manifests grant it only where it is asked for.
//!
//! A feature says in the report what an annotation shall be and what it was last seen to be ([`OwnAnnotation`]). What differs is written at
//! once, then again while it is not seen: later and later if that repeats, because somebody else may want another value. Nothing is read: the
//! watch shows what became of it. A Node that was deleted and made anew gets its annotations back this way.
//!
//! Limits: with a directory of manifests there is nobody to tell; whoever writes the manifests sets the annotations.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::core::params::{Patch, PatchParams};
use kube::core::request::Request;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::client::ApiClient;
use super::own_node::{self, Attempts, OwnNode, Refused, Sent, Timing};
use crate::model::{OwnAnnotation, Report};

/// Shortest time between two writes of one annotation.
const SPACING: Duration = Duration::from_secs(1);
/// Time that a value has to be seen after it was written: at first, and at the longest.
const FIRST_AGAIN: Duration = Duration::from_secs(5);
const LONGEST_AGAIN: Duration = Duration::from_secs(300);
/// As for all writes to our own Node, but for a shorter delay while the right is missing: other nodes cannot reach this one until they see what it tells,
/// and whoever gives the right waits for that.
const TIMING: Timing = Timing { without_right: Duration::from_secs(300), ..own_node::TIMING };
const RULE: &str = "apiGroups [\"\"], resources [nodes], verbs [patch]";

type Annotations = BTreeMap<&'static str, OwnAnnotation>;

/// Writes of each annotation so far.
#[derive(Default, Debug)]
struct Writes(BTreeMap<&'static str, Written>);

/// The last write of one annotation.
#[derive(Debug)]
struct Written {
    value: Option<String>,
    /// When the server took it.
    at: Instant,
    /// How long it is waited for that this value is seen.
    pause: Duration,
    /// It was seen since.
    was_seen: bool,
}

/// Kind of a write, by what became of the value since the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Write {
    Changing,
    /// The value was written shortly before, and has not been seen.
    Unseen,
    /// The value was written shortly before and seen, and another one is seen now.
    Insisting,
}

/// Keeps the annotations of the report on the Node of this name until the report's sender is gone.
pub async fn run(client: ApiClient, node: String, reports: watch::Receiver<Report>) {
    keep(OwnNode { client, name: node, timing: TIMING }, reports).await;
}

async fn keep(node: OwnNode, mut reports: watch::Receiver<Report>) {
    let mut attempts = Attempts::new("the node's annotations", RULE, node.timing);
    let mut writes = Writes::default();
    loop {
        let annotations = reports.borrow_and_update().annotations.clone();
        let told = write(&node, &annotations, &mut writes).await;
        attempts.note(&told);
        let next = match told {
            Ok(_) => writes.next(&annotations),
            Err(_) => {
                tokio::time::sleep(attempts.pause).await;
                if reports.has_changed().is_err() {
                    return;
                }
                continue;
            }
        };
        tokio::select! {
            changed = different(&mut reports, &annotations) => if !changed { return },
            () = until(next) => {}
        }
    }
}

/// Annotations to write.
type Due<'a> = [(&'static str, &'a OwnAnnotation)];

/// Writes the annotations whose time has come, all in one request; one by one where the server does not take them all.
async fn write(node: &OwnNode, annotations: &Annotations, writes: &mut Writes) -> Result<Sent, Refused> {
    writes.see(annotations);
    let now = Instant::now();
    let due: Vec<(&'static str, &OwnAnnotation)> =
        annotations.iter().map(|(key, one)| (*key, one)).filter(|(key, one)| writes.is_due(key, one, now)).collect();
    if due.is_empty() {
        return Ok(Sent::Nothing);
    }
    match send(node, &due, writes).await {
        Err(Refused::Invalid(_)) if due.len() > 1 => {}
        sent => return sent,
    }
    // One of them is at fault, and keeps no other from being written.
    let mut told = Ok(Sent::Accepted);
    for one in due.chunks(1) {
        let sent = send(node, one, writes).await;
        told = told.and(sent);
    }
    told
}

async fn send(node: &OwnNode, due: &Due<'_>, writes: &mut Writes) -> Result<Sent, Refused> {
    let patch = Patch::Merge(patch(due));
    let nodes = Request::new("/api/v1/nodes");
    node.send(nodes.patch(&node.name, &PatchParams::default(), &patch)).await?;
    let now = Instant::now();
    for (key, one) in due {
        debug!(annotation = key, value = one.wanted.as_deref().unwrap_or("none"), "Annotation of this node written");
        match writes.note(key, one, now) {
            Write::Changing => {}
            Write::Unseen => warn!(annotation = key, "Annotation of this node has not been seen; set again"),
            Write::Insisting => warn!(annotation = key, "Annotation of this node was changed by others; set again"),
        }
    }
    Ok(Sent::Accepted)
}

/// The change of a Node's metadata. A key with `null` goes (RFC 7396).
fn patch(due: &Due<'_>) -> Value {
    let values = due.iter().map(|(key, one)| ((*key).to_owned(), json!(one.wanted)));
    json!({"metadata": {"annotations": values.collect::<Map<String, Value>>()}})
}

/// Waits until the annotations of the report differ from these; returns false when its sender is gone.
async fn different(reports: &mut watch::Receiver<Report>, from: &Annotations) -> bool {
    loop {
        if reports.changed().await.is_err() {
            return false;
        }
        if reports.borrow_and_update().annotations != *from {
            return true;
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Writes {
    /// Returns when an annotation may be written; `None` where it is as wanted. A time that has passed is now.
    fn due(&self, key: &str, one: &OwnAnnotation, now: Instant) -> Option<Instant> {
        if one.wanted == one.seen {
            return None;
        }
        Some(match self.0.get(key) {
            None => now,
            Some(written) if written.value == one.wanted => written.at + written.pause,
            Some(written) => written.at + SPACING,
        })
    }

    fn is_due(&self, key: &str, one: &OwnAnnotation, now: Instant) -> bool {
        self.due(key, one, now).is_some_and(|due| due <= now)
    }

    /// Returns when the next of all is due.
    fn next(&self, annotations: &Annotations) -> Option<Instant> {
        let now = Instant::now();
        annotations.iter().filter_map(|(key, one)| self.due(key, one, now)).min()
    }

    /// Records which of the written values are seen.
    fn see(&mut self, annotations: &Annotations) {
        for (key, written) in &mut self.0 {
            let one = annotations.get(key).filter(|one| one.wanted == one.seen);
            written.was_seen |= one.is_some_and(|one| one.seen == written.value);
        }
    }

    /// Records that the server has taken an annotation.
    fn note(&mut self, key: &'static str, one: &OwnAnnotation, now: Instant) -> Write {
        // After so long a silence it is no contradiction.
        let before = self.0.get(key).filter(|written| written.value == one.wanted);
        let insisting = before.filter(|written| now < written.at + written.pause + LONGEST_AGAIN);
        let pause = insisting.map_or(FIRST_AGAIN, |written| (written.pause * 2).min(LONGEST_AGAIN));
        let write = match insisting {
            None => Write::Changing,
            Some(Written { was_seen: false, .. }) => Write::Unseen,
            Some(_) => Write::Insisting,
        };
        self.0.insert(key, Written { value: one.wanted.clone(), at: now, pause, was_seen: false });
        write
    }
}

#[cfg(test)]
mod tests;
