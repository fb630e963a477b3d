//! UDP flows that lead to nobody.
//!
//! UDP has no end of connection: the kernel tracks a flow for as long as its client goes on sending, and with it what was
//! decided for its first packet. Two kinds of flows of a virtual service are forgotten, so that their next packet is new:
//! - flows to a destination that was removed, once the removal is certain; those to the others are healthy and stay;
//! - flows that are not translated at all, once the service has a destination: they began before it had any, or before the
//!   virtual service was there. IPVS leaves the translation of a tracked flow as it is, so they would never be masqueraded.
//!
//! What the kernel does not forget is asked for again, ever later, and given up in the end: by then a flow without
//! traffic has gone by itself, and whoever still sends will not be helped by one more try.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kernel::conntrack::Flows;
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::net::Protocol;

/// What is to be forgotten, and what is not certain yet.
#[derive(Default, Debug)]
pub struct UdpFlows {
    /// UDP virtual services that changed and are not yet as wanted.
    changed: BTreeMap<ServiceKey, Before>,
    /// What is to be forgotten, and since when that is tried in vain.
    due: BTreeMap<Flows, Option<Instant>>,
    /// How many tries in a row failed.
    failures: u32,
    /// When to try again, after a failure.
    again_at: Option<Instant>,
}

/// What a virtual service has had since it was marked.
#[derive(Default, Debug)]
struct Before {
    destinations: BTreeSet<SocketAddr>,
    /// There was a time without a destination, so clients may have flows that are not translated.
    was_unserved: bool,
}

/// The outcome of one try.
#[derive(Default, Debug)]
pub struct Forgetting {
    /// How many flows the kernel forgot.
    pub forgotten: usize,
    /// Why it could not.
    pub failure: Option<String>,
    /// What is not tried any more.
    pub given_up: Vec<Flows>,
}

/// The delay after the first failure; it doubles with each further one, up to [`LONGEST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_secs(5);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// How long forgetting a flow is tried. Kernels keep a UDP flow without traffic for 180 s at most, unless told otherwise
/// (`net.netfilter.nf_conntrack_udp_timeout_stream`).
const GIVE_UP: Duration = Duration::from_secs(180);

impl UdpFlows {
    /// Notes that a virtual service is wanted differently.
    pub fn mark(&mut self, key: ServiceKey) {
        if is_udp(&key) {
            self.changed.entry(key).or_default();
        }
    }

    /// Notes what an earlier run left: it may have been ended before it forgot anything.
    pub fn adopt(&mut self, seen: &BTreeMap<ServiceKey, Virtual>) {
        for key in seen.keys().filter(|key| is_udp(key)) {
            self.changed.entry(*key).or_default().was_unserved = true;
        }
        self.note_before(seen);
    }

    /// Notes the destinations that changed services have in the kernel before they are changed there.
    pub fn note_before(&mut self, seen: &BTreeMap<ServiceKey, Virtual>) {
        for (key, before) in &mut self.changed {
            let existing = seen.get(key);
            before.was_unserved |= !existing.is_some_and(serves);
            let destinations = existing.into_iter().flat_map(|existing| existing.destinations.iter());
            before.destinations.extend(destinations.map(|destination| destination.address));
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
            due.retain(|flow, _| flow.original_destination != original_destination || !has(flow.reply_source));
            let untranslated = before.was_unserved && existing.is_some_and(serves);
            let sources = before.destinations.iter().copied().chain(untranslated.then_some(original_destination));
            for reply_source in sources.filter(|source| !has(*source)) {
                due.entry(Flows { protocol, original_destination, reply_source }).or_default();
            }
            false
        });
    }

    /// Has the kernel forget what is due. `None` where nothing is, or the time of the next try has not come.
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

    /// Notes that a try failed. Returns what is given up.
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

    /// Whether nothing is left to be forgotten.
    pub fn is_settled(&self) -> bool {
        self.due.is_empty()
    }

    /// When the next try is due, after a failure.
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
