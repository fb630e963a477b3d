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
//! expired, and one more try will not help a client that still sends. Other flows do not wait for it.
//!
//! Listing the flows of a host with many takes long, and all other changes wait meanwhile: after such a listing the next one rests, and what is due collects.
//!
//! Each start lists all UDP flows once: an earlier run may have been killed before it deleted any. Flows to a destination that it had already deleted are known to
//! nobody then; they are the kernel's to end, which drops the entry together with IPVS' connection at the next packet (`net.ipv4.vs.expire_nodest_conn`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::kernel::conntrack::{Flows, Remaining};
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::net::Protocol;
use crate::packed::BlockMap;

/// Conntrack entries to be deleted, and candidates that are not certain yet.
#[derive(Default, Debug)]
pub struct UdpFlows {
    /// UDP virtual services that changed and are not yet as desired.
    changed: BTreeMap<ServiceKey, Before>,
    /// Flows to be deleted at once.
    due: BTreeSet<Flows>,
    /// Flows whose deletion failed, with the time of the first failure.
    failing: BTreeMap<Flows, Instant>,
    /// Number of tries of the failing ones.
    failures: u32,
    /// Time of their next try; `None` while none fails.
    again_at: Option<Instant>,
    /// Until then what is due collects, because the last listing took long.
    rests_until: Option<Instant>,
}

/// State of a virtual service since it was marked.
#[derive(Default, Debug)]
struct Before {
    destinations: BTreeSet<SocketAddr>,
    /// It was without a destination at some time, so clients may have flows that are not translated.
    was_unserved: bool,
    /// It has been looked at.
    is_known: bool,
}

/// Outcome of one try.
#[derive(Default, Debug)]
pub struct Forgetting {
    /// Number of conntrack entries deleted.
    pub forgotten: usize,
    /// Reason of the failure.
    pub failure: Option<String>,
    /// Number of flows that are going to be retried.
    pub failing: usize,
    /// Flows that are no longer retried.
    pub given_up: Vec<Flows>,
}

/// The delay after the first failure; it doubles with each further one, up to [`LONGEST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_secs(5);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Maximum time of retrying a flow. Kernels keep a UDP conntrack entry without traffic for 180 s at most by default
/// (`net.netfilter.nf_conntrack_udp_timeout_stream`).
const GIVE_UP: Duration = Duration::from_secs(180);
/// The longest listing that is followed by no rest. Other ones rest [`REST`] times as long, so that they take a tenth of the thread's time at most, up to [`LONGEST_REST`]: clients whose
/// endpoint has gone wait no longer.
const QUICK: Duration = Duration::from_millis(5);
const REST: u32 = 10;
const LONGEST_REST: Duration = Duration::from_secs(1);

impl UdpFlows {
    /// Marks a virtual service whose desired state has changed.
    pub fn mark(&mut self, key: ServiceKey) {
        if is_udp(&key) {
            self.changed.entry(key).or_default();
        }
    }

    /// Marks the virtual services that are not as desired, as the whole of the kernel's was read: others may have changed them, and what was marked before may be forgotten.
    pub fn mark_differing(&mut self, seen: &BlockMap<ServiceKey, Virtual>, desired: &BlockMap<ServiceKey, Virtual>) {
        let wanted = desired.iter().filter(|(key, wanted)| is_udp(key) && seen.get(key) != Some(*wanted));
        let differing = wanted.map(|(key, _)| key).chain(seen.keys().filter(|key| !desired.contains_key(key)));
        differing.for_each(|key| self.mark(*key));
    }

    /// Records virtual services of an earlier run: it may have been ended before it deleted any entries.
    pub fn adopt(&mut self, seen: &BlockMap<ServiceKey, Virtual>) {
        for key in seen.keys().filter(|key| is_udp(key)) {
            self.changed.entry(*key).or_default().was_unserved = true;
        }
        self.note_before(seen, &BTreeSet::new());
    }

    /// Records the destinations of changed services in the kernel before they are changed there. Those of services that wait for a later round stay as they are, and
    /// are looked at once.
    pub fn note_before(&mut self, seen: &BlockMap<ServiceKey, Virtual>, waiting: &BTreeSet<ServiceKey>) {
        for (key, before) in &mut self.changed {
            if before.is_known && waiting.contains(key) {
                continue;
            }
            before.is_known = true;
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
        wanted: &BlockMap<ServiceKey, Virtual>,
        existing: impl Fn(&ServiceKey) -> Result<Option<&'a Virtual>, ()>,
    ) {
        let (due, failing) = (&mut self.due, &mut self.failing);
        self.changed.retain(|key, before| {
            let Ok(existing) = existing(key) else { return true };
            if existing != wanted.get(key) {
                return true;
            }
            let ServiceKey::Address { address, protocol, port } = *key else { return false };
            let original_destination = SocketAddr::new(address, port);
            let has = |backend| existing.is_some_and(|it| it.destinations.iter().any(|d| d.address == backend));
            // An entry whose deletion failed before is healthy once its backend has come back.
            let healthy = |flow: &&Flows| has(flow.reply_source);
            let again: Vec<Flows> = failing.range(to(protocol, original_destination)).map(|(flow, _)| *flow).collect();
            for flow in again.iter().filter(healthy) {
                failing.remove(flow);
            }
            let again: Vec<Flows> = due.range(to(protocol, original_destination)).copied().collect();
            for flow in again.iter().filter(healthy) {
                due.remove(flow);
            }
            let untranslated = before.was_unserved && existing.is_some_and(serves);
            let sources = before.destinations.iter().copied().chain(untranslated.then_some(original_destination));
            for reply_source in sources.filter(|source| !has(*source)) {
                due.insert(Flows { protocol, original_destination, reply_source });
            }
            false
        });
        if self.failing.is_empty() {
            (self.failures, self.again_at) = (0, None);
        }
    }

    /// Deletes the conntrack entries that are due. `None` if there are none, or the next try is not due yet.
    pub fn forget(
        &mut self,
        now: Instant,
        forget: impl FnOnce(&[Flows]) -> Result<usize, Remaining>,
    ) -> Option<Forgetting> {
        let retries = self.again_at.is_some_and(|again_at| again_at <= now);
        if !retries && self.rests_until.is_some_and(|until| until > now) {
            return None;
        }
        let mut flows = std::mem::take(&mut self.due);
        if retries {
            flows.extend(self.failing.keys());
        }
        if flows.is_empty() {
            return None;
        }
        let flows: Vec<Flows> = flows.into_iter().collect();
        let mut outcome = Forgetting::default();
        let remaining: BTreeSet<Flows> = match forget(&flows) {
            Ok(forgotten) => {
                outcome.forgotten = forgotten;
                BTreeSet::new()
            }
            Err(Remaining { deleted, flows, error }) => {
                outcome.forgotten = deleted;
                outcome.failure = Some(error.to_string());
                flows.into_iter().collect()
            }
        };
        for flow in flows {
            if remaining.contains(&flow) {
                self.failing.entry(flow).or_insert(now);
            } else {
                self.failing.remove(&flow);
            }
        }
        if retries {
            outcome.given_up = self.give_up(now);
        }
        self.schedule(now, retries);
        outcome.failing = self.failing.len();
        Some(outcome)
    }

    /// Notes how much time of the processor a try took that was made at `now`.
    pub fn took(&mut self, took: Duration, now: Instant) {
        self.rests_until = (took > QUICK).then(|| now + took + took.saturating_mul(REST).min(LONGEST_REST));
    }

    /// Removes the flows that have failed for too long, and returns them.
    fn give_up(&mut self, now: Instant) -> Vec<Flows> {
        let mut given_up = Vec::new();
        self.failing.retain(|flow, since| {
            let is_over = now >= *since + GIVE_UP;
            given_up.extend(is_over.then_some(*flow));
            !is_over
        });
        given_up
    }

    /// Sets the time of the next try; it stays where the failing flows were not tried.
    fn schedule(&mut self, now: Instant, tried: bool) {
        if self.failing.is_empty() {
            self.failures = 0;
            self.again_at = None;
        } else if tried || self.again_at.is_none() {
            let delay = FIRST_DELAY.saturating_mul(1 << self.failures.min(16)).min(LONGEST_DELAY);
            self.failures = self.failures.saturating_add(1);
            self.again_at = Some(now + delay);
        }
    }

    /// Returns whether no entries are left to be deleted.
    pub fn is_settled(&self) -> bool {
        self.due.is_empty() && self.failing.is_empty()
    }

    /// Returns when the next try is due, after a failure or a rest.
    pub fn retry_at(&self) -> Option<Instant> {
        let rested = self.rests_until.filter(|_| !self.due.is_empty());
        rested.into_iter().chain(self.again_at.filter(|_| !self.failing.is_empty())).min()
    }
}

/// Returns the range of all flows that were sent to one address.
fn to(protocol: Protocol, original_destination: SocketAddr) -> RangeInclusive<Flows> {
    let least = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let greatest = SocketAddrV6::new(Ipv6Addr::from(u128::MAX), u16::MAX, u32::MAX, u32::MAX).into();
    let flow = |reply_source| Flows { protocol, original_destination, reply_source };
    flow(least)..=flow(greatest)
}

fn is_udp(key: &ServiceKey) -> bool {
    matches!(key, ServiceKey::Address { protocol: Protocol::Udp, .. })
}

fn serves(existing: &Virtual) -> bool {
    !existing.destinations.is_empty()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::kernel::Error;
    use crate::kernel::ipvs::{Destination, Forwarding, Service};

    const START: Duration = Duration::ZERO;

    fn parsed(text: &str) -> SocketAddr {
        text.parse().expect("an address and a port")
    }

    fn flow(service: &str, backend: &str) -> Flows {
        Flows { protocol: Protocol::Udp, original_destination: parsed(service), reply_source: parsed(backend) }
    }

    /// The flows of the host, and those whose entries the kernel does not delete.
    struct Scene {
        udp: UdpFlows,
        begun: Instant,
        stubborn: BTreeSet<Flows>,
    }

    impl Scene {
        fn new(stubborn: &[Flows]) -> Scene {
            Scene { udp: UdpFlows::default(), begun: Instant::now(), stubborn: stubborn.iter().copied().collect() }
        }

        /// A virtual service has these destinations after it had those.
        fn changes(&mut self, service: &str, [before, after]: [&[&str]; 2]) {
            let address = parsed(service);
            let key = ServiceKey::Address { address: address.ip(), protocol: Protocol::Udp, port: address.port() };
            let destination =
                |text: &&str| Destination { address: parsed(text), weight: 1, forwarding: Forwarding::Nat };
            let served = |backends: &[&str]| -> BlockMap<ServiceKey, Virtual> {
                let service = Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
                let destinations = backends.iter().map(destination).collect();
                [(key, Virtual { service, destinations })].into_iter().collect()
            };
            self.udp.mark(key);
            self.udp.note_before(&served(before), &BTreeSet::new());
            let after = served(after);
            self.udp.note_after(&after, |key| Ok(after.get(key)));
        }

        /// Returns the flows that were tried, and what came of it.
        fn forget(&mut self, after: Duration) -> (Vec<Flows>, Forgetting) {
            let (mut tried, stubborn) = (Vec::new(), &self.stubborn);
            let outcome = self.udp.forget(self.begun + after, |flows| {
                tried = flows.to_vec();
                let remain: Vec<Flows> = flows.iter().filter(|flow| stubborn.contains(flow)).copied().collect();
                let deleted = flows.len() - remain.len();
                if remain.is_empty() {
                    return Ok(deleted);
                }
                Err(Remaining { deleted, flows: remain, error: Error::errno("forget tracked flows", "", Errno::PERM) })
            });
            (tried, outcome.unwrap_or_default())
        }
    }

    #[test]
    fn what_a_reading_of_all_shows_to_differ_is_marked_on_both_sides_where_it_is_udp() {
        let key =
            |number: u8, protocol| ServiceKey::Address { address: [10, 96, 0, number].into(), protocol, port: 53 };
        let virtuals = |all: &[(ServiceKey, &str)]| -> BlockMap<ServiceKey, Virtual> {
            let service = |scheduler: &str| Service { scheduler: scheduler.into(), flags: 0, persistence_seconds: 0 };
            let one = |(key, scheduler): &(ServiceKey, &str)| {
                (*key, Virtual { service: service(scheduler), destinations: [].into() })
            };
            all.iter().map(one).collect()
        };
        let udp = |number| key(number, Protocol::Udp);
        let tcp = |number| key(number, Protocol::Tcp);
        let seen = virtuals(&[(udp(1), "rr"), (tcp(1), "rr"), (udp(2), "lc"), (udp(4), "rr"), (tcp(4), "rr")]);
        let desired = virtuals(&[(udp(1), "rr"), (tcp(1), "lc"), (udp(2), "rr"), (udp(3), "rr"), (tcp(3), "rr")]);
        let mut flows = UdpFlows::default();
        flows.mark_differing(&seen, &desired);
        assert_eq!(flows.changed.into_keys().collect::<Vec<_>>(), [udp(2), udp(3), udp(4)]);
    }

    #[test]
    fn a_service_that_waits_is_looked_at_once_and_again_when_its_turn_has_come() {
        let key = ServiceKey::Address { address: parsed("10.96.0.1:53").ip(), protocol: Protocol::Udp, port: 53 };
        let with = |backend: &str| -> BlockMap<ServiceKey, Virtual> {
            let destination = Destination { address: parsed(backend), weight: 1, forwarding: Forwarding::Nat };
            let service = Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
            [(key, Virtual { service, destinations: [destination].into() })].into_iter().collect()
        };
        let (first, second, third) = (with("10.244.0.1:53"), with("10.244.0.2:53"), with("10.244.0.3:53"));
        let (waiting, none) = (BTreeSet::from([key]), BTreeSet::new());
        let mut udp = UdpFlows::default();
        udp.mark(key);
        udp.note_before(&first, &waiting);
        udp.note_before(&second, &waiting);
        let known = |udp: &UdpFlows| udp.changed.get(&key).map(|before| before.destinations.len());
        assert_eq!(known(&udp), Some(1), "nobody changes what waits");
        udp.note_before(&third, &none);
        udp.note_after(&third, |_| Err(()));
        assert_eq!(known(&udp), Some(2));
    }

    #[test]
    fn a_flow_that_cannot_be_deleted_delays_no_other() {
        let stubborn = flow("10.96.0.1:53", "10.244.0.1:53");
        let mut scene = Scene::new(&[stubborn]);
        scene.changes("10.96.0.1:53", [&["10.244.0.1:53"], &["10.244.0.2:53"]]);
        assert_eq!(scene.forget(START).0, [stubborn]);
        scene.changes("10.96.0.2:53", [&["10.244.0.1:53"], &["10.244.0.2:53"]]);
        let (tried, outcome) = scene.forget(START + Duration::from_secs(1));
        assert_eq!(tried, [flow("10.96.0.2:53", "10.244.0.1:53")], "it is tried at once, and alone");
        assert_eq!((outcome.forgotten, outcome.failing), (1, 1));
        assert_eq!(scene.udp.retry_at(), Some(scene.begun + FIRST_DELAY), "the other one is retried when it was to be");
    }

    #[test]
    fn flows_to_destinations_that_stay_are_not_forgotten_with_those_of_one_that_goes() {
        let mut scene = Scene::new(&[]);
        scene.changes("10.96.0.1:53", [&["10.244.0.1:53", "10.244.0.2:53"], &["10.244.0.2:53"]]);
        let (tried, outcome) = scene.forget(START);
        assert_eq!(tried, [flow("10.96.0.1:53", "10.244.0.1:53")]);
        assert_eq!(outcome.forgotten, 1);
        assert!(scene.udp.is_settled());
    }

    #[test]
    fn after_a_listing_that_took_long_what_is_due_collects_for_a_second_at_most() {
        let mut scene = Scene::new(&[]);
        let services = ["10.96.0.1:53", "10.96.0.2:53", "10.96.0.3:53"];
        let change = |scene: &mut Scene, number: usize| {
            scene.changes(services[number], [&["10.244.0.1:53"], &["10.244.0.2:53"]]);
        };
        change(&mut scene, 0);
        assert_eq!(scene.forget(START).1.forgotten, 1, "the first one at once");
        let (took, begun) = (Duration::from_millis(200), scene.begun);
        scene.udp.took(took, begun);
        for number in [1, 2] {
            change(&mut scene, number);
            assert_eq!(scene.forget(START + took).0, []);
        }
        let rested = took + LONGEST_REST;
        assert_eq!(scene.udp.retry_at(), Some(scene.begun + rested));
        assert_eq!(scene.forget(rested).1.forgotten, 2, "by one listing");
        scene.udp.took(Duration::from_millis(1), begun + rested);
        change(&mut scene, 0);
        assert_eq!(scene.forget(rested).1.forgotten, 1, "one that was quick has none wait");
    }

    #[test]
    fn only_flows_that_remain_are_retried_and_given_up() {
        let stubborn = flow("10.96.0.1:53", "10.244.0.1:53");
        let mut scene = Scene::new(&[stubborn]);
        for service in ["10.96.0.1:53", "10.96.0.2:53"] {
            scene.changes(service, [&["10.244.0.1:53"], &["10.244.0.2:53"]]);
        }
        assert_eq!(scene.forget(START).1.forgotten, 1);
        let mut given_up = Vec::new();
        while let Some(at) = scene.udp.retry_at() {
            let (tried, outcome) = scene.forget(at - scene.begun);
            assert_eq!(tried, [stubborn]);
            given_up.extend(outcome.given_up);
        }
        assert_eq!(given_up, [stubborn]);
        assert!(scene.udp.is_settled());
    }

    #[test]
    fn a_flow_to_a_destination_that_came_back_is_healthy() {
        let stubborn = flow("10.96.0.1:53", "10.244.0.1:53");
        let mut scene = Scene::new(&[stubborn]);
        scene.changes("10.96.0.1:53", [&["10.244.0.1:53"], &["10.244.0.2:53"]]);
        scene.forget(START);
        scene.changes("10.96.0.2:53", [&["10.244.0.1:53"], &["10.244.0.2:53"]]);
        scene.changes("10.96.0.1:53", [&["10.244.0.2:53"], &["10.244.0.1:53"]]);
        let (tried, _) = scene.forget(START + LONGEST_DELAY);
        let stale = [flow("10.96.0.1:53", "10.244.0.2:53"), flow("10.96.0.2:53", "10.244.0.1:53")];
        assert_eq!(tried, stale);
        assert!(scene.udp.is_settled());
    }

    #[test]
    fn a_failure_after_all_others_became_healthy_is_retried_like_a_first_one() {
        let stubborn = flow("10.96.0.1:53", "10.244.0.1:53");
        let mut scene = Scene::new(&[stubborn, flow("10.96.0.2:53", "10.244.0.1:53")]);
        scene.changes("10.96.0.1:53", [&["10.244.0.1:53"], &["10.244.0.2:53"]]);
        scene.forget(START);
        scene.forget(FIRST_DELAY);
        scene.changes("10.96.0.1:53", [&["10.244.0.1:53"], &["10.244.0.1:53"]]);
        assert!(scene.udp.is_settled(), "the backend came back");
        scene.changes("10.96.0.2:53", [&["10.244.0.1:53"], &["10.244.0.2:53"]]);
        scene.forget(LONGEST_DELAY);
        assert_eq!(scene.udp.retry_at(), Some(scene.begun + LONGEST_DELAY + FIRST_DELAY));
    }
}
