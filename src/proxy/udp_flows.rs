//! Stale conntrack entries of UDP flows.
//!
//! UDP has no end of connection: the kernel keeps a conntrack entry for as long as its client goes on sending, with the
//! decision taken for its first packet. Two kinds of conntrack entries of a virtual service are deleted, so that the
//! next packet counts as new:
//! - flows to a destination that was removed, once the removal is certain; those to the others are healthy and stay;
//! - flows that are not translated at all, once the service has a destination: they began before it had any, or before the
//!   virtual service was there. IPVS leaves the translation of a tracked flow as it is, so they would never be masqueraded.
//!
//! A failed deletion is retried, with growing delays, and given up in the end: by then an entry without traffic has
//! expired, and one more try will not help a client that still sends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kernel::conntrack::Flows;
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::net::Protocol;

/// Conntrack entries to be deleted, and candidates that are not certain yet.
#[derive(Default, Debug)]
pub struct UdpFlows {
    /// UDP virtual services that changed and are not yet as desired.
    changed: BTreeMap<ServiceKey, Before>,
    /// Flows to be deleted, with the time of the first failure.
    due: BTreeMap<Flows, Option<Instant>>,
    /// Number of consecutive failures.
    failures: u32,
    /// Time of the next try, after a failure.
    again_at: Option<Instant>,
}

/// State of a virtual service since it was marked.
#[derive(Default, Debug)]
struct Before {
    destinations: BTreeSet<SocketAddr>,
    /// It was without a destination at some time, so clients may have flows that are not translated.
    was_unserved: bool,
}

/// Outcome of one try.
#[derive(Default, Debug)]
pub struct Forgetting {
    /// Number of conntrack entries deleted.
    pub forgotten: usize,
    /// Reason of the failure.
    pub failure: Option<String>,
    /// Flows that are no longer retried.
    pub given_up: Vec<Flows>,
}

/// The delay after the first failure; it doubles with each further one, up to [`LONGEST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_secs(5);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Maximum time of retrying a flow. Kernels keep a UDP conntrack entry without traffic for 180 s at most by default
/// (`net.netfilter.nf_conntrack_udp_timeout_stream`).
const GIVE_UP: Duration = Duration::from_secs(180);

impl UdpFlows {
    /// Marks a virtual service whose desired state has changed.
    pub fn mark(&mut self, key: ServiceKey) {
        if is_udp(&key) {
            self.changed.entry(key).or_default();
        }
    }

    /// Records virtual services of an earlier run: it may have been ended before it deleted any entries.
    pub fn adopt(&mut self, seen: &BTreeMap<ServiceKey, Virtual>) {
        for key in seen.keys().filter(|key| is_udp(key)) {
            self.changed.entry(*key).or_default().was_unserved = true;
        }
        self.note_before(seen);
    }

    /// Records the destinations of changed services in the kernel before they are changed there.
    pub fn note_before(&mut self, seen: &BTreeMap<ServiceKey, Virtual>) {
        for (key, before) in &mut self.changed {
            let existing = seen.get(key);
            before.was_unserved |= !existing.is_some_and(serves);
            let destinations = existing.into_iter().flat_map(|existing| existing.destinations.iter());
            before.destinations.extend(destinations.map(|destination| destination.address));
        }
    }

    /// Records the state of a changed service after the change; `existing` is `None` if the kernel certainly lacks it,
    /// and `Err` if its state is not known.
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
            // An entry whose deletion failed before is healthy once its backend has come back.
            due.retain(|flow, _| flow.original_destination != original_destination || !has(flow.reply_source));
            let untranslated = before.was_unserved && existing.is_some_and(serves);
            let sources = before.destinations.iter().copied().chain(untranslated.then_some(original_destination));
            for reply_source in sources.filter(|source| !has(*source)) {
                due.entry(Flows { protocol, original_destination, reply_source }).or_default();
            }
            false
        });
    }

    /// Deletes the conntrack entries that are due. `None` if there are none, or the next try is not due yet.
    pub fn forget(
        &mut self,
        now: Instant,
        forget: impl FnOnce(&[Flows]) -> Result<usize, String>,
    ) -> Option<Forgetting> {
        if self.due.is_empty() || self.again_at.is_some_and(|again_at| now < again_at) {
            return None;
        }
        let flows: Vec<Flows> = self.due.keys().copied().collect();
        match forget(&flows) {
            Ok(forgotten) => {
                *self = UdpFlows { changed: std::mem::take(&mut self.changed), ..UdpFlows::default() };
                Some(Forgetting { forgotten, ..Forgetting::default() })
            }
            Err(error) => Some(Forgetting { failure: Some(error), given_up: self.failed(now), forgotten: 0 }),
        }
    }

    /// Records a failed try. Returns the flows that are given up.
    fn failed(&mut self, now: Instant) -> Vec<Flows> {
        let mut given_up = Vec::new();
        self.due.retain(|flow, since| {
            let is_over = now >= *since.get_or_insert(now) + GIVE_UP;
            given_up.extend(is_over.then_some(*flow));
            !is_over
        });
        let delay = FIRST_DELAY.saturating_mul(1 << self.failures.min(16)).min(LONGEST_DELAY);
        self.failures = if self.due.is_empty() { 0 } else { self.failures.saturating_add(1) };
        self.again_at = Some(now + delay);
        given_up
    }

    /// Returns whether no entries are left to be deleted.
    pub fn is_settled(&self) -> bool {
        self.due.is_empty()
    }

    /// Returns when the next try is due, after a failure.
    pub fn retry_at(&self) -> Option<Instant> {
        self.again_at.filter(|_| !self.is_settled())
    }
}

fn is_udp(key: &ServiceKey) -> bool {
    matches!(key, ServiceKey::Address { protocol: Protocol::Udp, .. })
}

fn serves(existing: &Virtual) -> bool {
    !existing.destinations.is_empty()
}
