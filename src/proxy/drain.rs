//! Draining: a destination that gets no new connections keeps those that it has.
//!
//! Only TCP drains (`scheduler::can_drain`): UDP and SCTP destinations are deleted when their endpoints are no longer chosen, and
//! conntrack entries of UDP are deleted (`udp_flows`). Otherwise a client that keeps its source port would send to a deleted pod
//! for the whole time.
//!
//! An endpoint that stays in its slices (unready, kept away by hints or a policy) drains for as long as it is there. One that
//! leaves them drains for `--ipvs-graceful-period` with `--ipvs-graceful-termination`, and is deleted at once without. The period begins then: a
//! terminating pod stays in the slice until it is gone, so its own grace period has passed by then without our counting it.
//!
//! Kernel: weight 0 takes no new connections and keeps the old ones. A destination whose last connection has ended need not wait:
//! connections are checked every few seconds, and less often where nothing but destinations without a deadline is left. Persistence
//! templates do not count; they assign no new connections to a destination of weight 0 (`net.ipv4.vs.expire_quiescent_template`).
//!
//! A destination that comes back is desired again, and stops draining.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kernel::ipvs::ServiceKey;

/// Draining destinations, and how long each may.
#[derive(Default, Debug)]
pub struct Draining {
    stays: BTreeMap<(ServiceKey, SocketAddr), Stay>,
    /// Time of the next check for destinations without connections.
    look_at: Option<Instant>,
    /// The time between the last check and that one.
    interval: Duration,
}

/// How long a destination may drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stay {
    /// While its endpoint is in a slice.
    WhileListed,
    Until(Instant),
}

impl Stay {
    fn deadline(self) -> Option<Instant> {
        if let Stay::Until(deadline) = self { Some(deadline) } else { None }
    }
}

/// Interval of checking connections while something drains. Also the minimum time that a destination drains: before its
/// weight is 0 in the kernel, a count of 0 connections means nothing.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

/// The longest interval, which long connections to unready endpoints come to.
const LONGEST: Duration = Duration::from_secs(60);

impl Draining {
    /// Starts draining a destination. One that drains already keeps its deadline, where it has one and is to have one.
    pub fn begin(&mut self, service: ServiceKey, destination: SocketAddr, now: Instant, stay: Stay) {
        let kept = self.stays.entry((service, destination)).or_insert(stay);
        if *kept == Stay::WhileListed || stay == Stay::WhileListed {
            *kept = stay;
        }
        let due = now + BETWEEN_LOOKS;
        self.interval = BETWEEN_LOOKS;
        self.look_at = Some(self.look_at.map_or(due, |earlier| earlier.min(due)));
    }

    /// Returns the services with draining destinations if it is time to check connections, otherwise none.
    pub fn to_look_at(&mut self, now: Instant) -> Vec<ServiceKey> {
        if self.look_at.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let has_deadline = self.stays.values().any(|stay| stay.deadline().is_some());
        self.interval = if has_deadline { BETWEEN_LOOKS } else { (2 * self.interval).min(LONGEST) };
        self.look_at = (!self.is_empty()).then(|| now + self.interval);
        let mut services: Vec<ServiceKey> = self.stays.keys().map(|(service, _)| *service).collect();
        services.dedup();
        services
    }

    /// Forgets a destination: it is desired again, or its service was deleted.
    pub fn end(&mut self, service: ServiceKey, destination: SocketAddr) {
        self.stays.remove(&(service, destination));
    }

    /// Forgets all destinations of a service.
    pub fn end_service(&mut self, service: ServiceKey) {
        let gone: Vec<SocketAddr> = self.of(service).collect();
        for destination in gone {
            self.end(service, destination);
        }
    }

    /// Returns the draining destinations of one service, sorted.
    pub fn of(&self, service: ServiceKey) -> impl Iterator<Item = SocketAddr> + '_ {
        self.stays_of(service).map(|(destination, _)| destination)
    }

    /// Returns those of one service that drain for as long as their endpoints are in slices, sorted.
    pub fn while_listed(&self, service: ServiceKey) -> impl Iterator<Item = SocketAddr> + '_ {
        let listed = self.stays_of(service).filter(|(_, stay)| *stay == Stay::WhileListed);
        listed.map(|(destination, _)| destination)
    }

    fn stays_of(&self, service: ServiceKey) -> impl Iterator<Item = (SocketAddr, Stay)> + '_ {
        use std::net::{IpAddr, Ipv4Addr};
        let first = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        self.stays
            .range((service, first)..)
            .take_while(move |((key, _), _)| *key == service)
            .map(|((_, destination), stay)| (*destination, *stay))
    }

    /// Returns when the next action is due: a destination's deadline, or a check of connections.
    pub fn deadline(&self) -> Option<Instant> {
        let over = self.stays.values().filter_map(|stay| stay.deadline()).min();
        over.into_iter().chain(self.look_at.filter(|_| !self.is_empty())).min()
    }

    /// Removes all destinations whose deadline has passed, and returns their services.
    pub fn expire(&mut self, now: Instant) -> Vec<ServiceKey> {
        let is_over = |stay: &Stay| stay.deadline().is_some_and(|deadline| deadline <= now);
        let over: Vec<(ServiceKey, SocketAddr)> =
            self.stays.iter().filter(|(_, stay)| is_over(stay)).map(|(key, _)| *key).collect();
        for key in &over {
            self.stays.remove(key);
        }
        let mut services: Vec<ServiceKey> = over.into_iter().map(|(service, _)| service).collect();
        services.dedup();
        services
    }

    pub fn len(&self) -> usize {
        self.stays.len()
    }

    pub fn is_empty(&self) -> bool {
        self.stays.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    const PERIOD: Duration = Duration::from_secs(30);

    fn service(port: u16) -> ServiceKey {
        ServiceKey::Address { address: [10, 96, 0, 1].into(), protocol: Protocol::Tcp, port }
    }

    fn destination(text: &str) -> SocketAddr {
        text.parse().expect("a socket address")
    }

    #[test]
    fn a_destination_drains_for_its_period_and_is_then_over() {
        let now = Instant::now();
        let mut draining = Draining::default();
        draining.begin(service(80), destination("10.244.1.1:80"), now, Stay::Until(now + PERIOD));
        draining.begin(service(80), destination("10.244.1.1:80"), now + PERIOD / 2, Stay::Until(now + PERIOD * 3 / 2));
        assert_eq!(draining.deadline(), Some(now + BETWEEN_LOOKS));
        assert_eq!(draining.expire(now + PERIOD / 2), []);
        assert_eq!(draining.expire(now + PERIOD), [service(80)]);
        assert!(draining.is_empty());
    }

    #[test]
    fn connections_are_looked_at_every_few_seconds_while_something_drains() {
        let now = Instant::now();
        let mut draining = Draining::default();
        draining.begin(service(80), destination("10.244.1.1:80"), now, Stay::Until(now + PERIOD));
        draining.begin(service(80), destination("10.244.1.2:80"), now, Stay::Until(now + PERIOD));
        assert_eq!(draining.to_look_at(now), []);
        assert_eq!(draining.to_look_at(now + BETWEEN_LOOKS), [service(80)]);
        assert_eq!(draining.deadline(), Some(now + 2 * BETWEEN_LOOKS));
        draining.end_service(service(80));
        assert_eq!(draining.to_look_at(now + 2 * BETWEEN_LOOKS), []);
        assert_eq!(draining.deadline(), None);
    }

    #[test]
    fn services_drain_apart() {
        let now = Instant::now();
        let mut draining = Draining::default();
        for (port, address) in [(80, "10.244.1.1:80"), (80, "[fd00:10:244::1]:80"), (81, "10.244.1.9:80")] {
            draining.begin(service(port), destination(address), now, Stay::Until(now + PERIOD));
        }
        assert_eq!(draining.of(service(80)).count(), 2);
        draining.end_service(service(80));
        assert_eq!(draining.of(service(80)).count(), 0);
        assert_eq!(draining.of(service(81)).count(), 1);
    }

    #[test]
    fn an_endpoint_in_its_slice_drains_without_an_end_and_is_looked_at_less_often() {
        let mut now = Instant::now();
        let mut draining = Draining::default();
        let unready = destination("10.244.1.1:80");
        draining.begin(service(80), unready, now, Stay::WhileListed);
        let mut intervals = Vec::new();
        for _ in 0..6 {
            let due = draining.deadline().expect("a time to look");
            intervals.push((due - now).as_secs());
            now = due;
            assert_eq!(draining.to_look_at(now), [service(80)]);
            assert_eq!(draining.expire(now), []);
        }
        assert_eq!(intervals, [5, 10, 20, 40, 60, 60]);
        // It leaves its slice, and another one becomes unready.
        draining.begin(service(80), unready, now, Stay::Until(now + PERIOD));
        draining.begin(service(81), unready, now, Stay::WhileListed);
        assert_eq!(draining.deadline(), Some(now + BETWEEN_LOOKS));
        assert_eq!(draining.expire(now + PERIOD), [service(80)]);
        assert_eq!(draining.while_listed(service(81)).collect::<Vec<_>>(), [unready]);
    }

    #[test]
    fn an_endpoint_that_comes_back_into_its_slice_has_no_deadline_any_more() {
        let now = Instant::now();
        let mut draining = Draining::default();
        draining.begin(service(80), destination("10.244.1.1:80"), now, Stay::Until(now + PERIOD));
        draining.begin(service(80), destination("10.244.1.1:80"), now, Stay::WhileListed);
        assert_eq!(draining.expire(now + 2 * PERIOD), []);
        draining.end(service(80), destination("10.244.1.1:80"));
        assert_eq!(draining.deadline(), None);
    }
}
