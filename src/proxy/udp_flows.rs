//! UDP flows to backends that are gone.
//!
//! UDP has no end of connection: a client goes on sending to a backend that was removed for as long as the kernel
//! tracks the flow. So the flows to removed destinations of a virtual service are forgotten, once the removal is certain;
//! those to the others are healthy and stay. What the kernel would not forget is asked for again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kernel::conntrack::Flows;
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::net::Protocol;

/// What is to be forgotten, and what is not certain yet.
#[derive(Default, Debug)]
pub struct UdpFlows {
    /// UDP virtual services that changed and are not yet as wanted, with the destinations they have had since.
    changed: BTreeMap<ServiceKey, BTreeSet<SocketAddr>>,
    due: Vec<Flows>,
    /// When to try again, after it failed.
    again_at: Option<Instant>,
}

/// How long after a failure the kernel is asked again.
const AGAIN: Duration = Duration::from_secs(5);

impl UdpFlows {
    /// Notes that a virtual service is wanted differently.
    pub fn mark(&mut self, key: ServiceKey) {
        if matches!(key, ServiceKey::Address { protocol: Protocol::Udp, .. }) {
            self.changed.entry(key).or_default();
        }
    }

    /// Notes the destinations that changed services have in the kernel before they are changed there.
    pub fn note_before(&mut self, seen: &BTreeMap<ServiceKey, Virtual>) {
        for (key, before) in &mut self.changed {
            let existing = seen.get(key).into_iter().flat_map(|existing| existing.destinations.iter());
            before.extend(existing.map(|destination| destination.address));
        }
    }

    /// Notes what a changed service has now; `existing` is `None` where the kernel certainly lacks it, and `Err` where
    /// nothing is certain.
    pub fn note_after<'a>(
        &mut self,
        wanted: &BTreeMap<ServiceKey, Virtual>,
        existing: impl Fn(&ServiceKey) -> Result<Option<&'a Virtual>, ()>,
    ) {
        let due = &mut self.due;
        self.changed.retain(|key, before| {
            let Ok(existing) = existing(key) else { return true };
            if existing != wanted.get(key) {
                return true;
            }
            let ServiceKey::Address { address, protocol, port } = *key else { return false };
            let original_destination = SocketAddr::new(address, port);
            let has = |backend| existing.is_some_and(|it| it.destinations.iter().any(|d| d.address == backend));
            // What failed to be forgotten before is healthy when its backend has come back.
            due.retain(|flow| flow.original_destination != original_destination || !has(flow.reply_source));
            let flow = |backend: &SocketAddr| Flows { protocol, original_destination, reply_source: *backend };
            due.extend(before.iter().filter(|backend| !has(**backend)).map(flow));
            false
        });
    }

    /// Has the kernel forget what is due; says how many flows it forgot, or why it could not.
    pub fn forget(
        &mut self,
        now: Instant,
        forget: impl FnOnce(&[Flows]) -> Result<usize, String>,
    ) -> Option<Result<usize, String>> {
        if self.due.is_empty() || self.again_at.is_some_and(|again_at| now < again_at) {
            return None;
        }
        let forgotten = forget(&self.due);
        self.again_at = forgotten.is_err().then(|| now + AGAIN);
        if forgotten.is_ok() {
            self.due.clear();
        }
        Some(forgotten)
    }

    /// Whether nothing is left to be forgotten.
    pub fn is_settled(&self) -> bool {
        self.due.is_empty()
    }

    pub fn retry_at(&self) -> Option<Instant> {
        self.again_at
    }
}
