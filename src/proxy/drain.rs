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
//! the connections of its virtual service are counted every few seconds, and ever less often where no destination has a deadline; of
//! some services at a time, because each costs a few system calls. Persistence templates do not count; they assign no new connections
//! to a destination of weight 0 (`net.ipv4.vs.expire_quiescent_template`).
//!
//! A destination that comes back is desired again, and stops draining.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kernel::ipvs::ServiceKey;

/// Draining destinations, and how long each may.
#[derive(Default, Debug)]
pub struct Draining {
    stays: BTreeMap<(ServiceKey, SocketAddr), Stay>,
    /// Those with a deadline, the first one first.
    deadlines: BTreeSet<(Instant, ServiceKey, SocketAddr)>,
    /// When the connections of each virtual service with draining destinations are counted next.
    looks: BTreeMap<ServiceKey, Look>,
    /// The same by time.
    due: BTreeSet<(Instant, ServiceKey)>,
    /// Some had to wait at the last look: the earliest time of the next one.
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    due: Instant,
    /// From the last one on.
    interval: Duration,
}

/// How long a destination may drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stay {
    /// While its endpoint is in a slice.
    WhileListed,
    Until(Instant),
}

/// Interval of counting connections while something drains. Also the minimum time that a destination drains: before its
/// weight is 0 in the kernel, a count of 0 connections means nothing.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

/// The longest interval, which long connections to unready endpoints come to.
const LONGEST: Duration = Duration::from_secs(60);

/// The most virtual services whose connections are counted at a time, and the pause until the next ones.
const AT_A_TIME: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);

impl Draining {
    /// Starts draining a destination. One that drains already keeps its deadline, where it has one and is to have one.
    pub fn begin(&mut self, service: ServiceKey, destination: SocketAddr, now: Instant, stay: Stay) {
        let kept = self.stays.get(&(service, destination)).copied();
        if kept.is_none_or(|kept| kept == Stay::WhileListed || stay == Stay::WhileListed) {
            self.forget(service, destination);
            self.stays.insert((service, destination), stay);
            if let Stay::Until(deadline) = stay {
                self.deadlines.insert((deadline, service, destination));
            }
        }
        let due = now + BETWEEN_LOOKS;
        let due = self.looks.get(&service).map_or(due, |look| look.due.min(due));
        self.look_at(service, Some(Look { due, interval: BETWEEN_LOOKS }));
    }

    /// Returns services with draining destinations for which it is time to count connections, some of them where there are many.
    pub fn to_look_at(&mut self, now: Instant) -> Vec<ServiceKey> {
        if self.not_before.is_some_and(|earliest| now < earliest) {
            return Vec::new();
        }
        let due = self.due.iter().take_while(|(due, _)| *due <= now).map(|(_, service)| *service);
        let services: Vec<ServiceKey> = due.take(AT_A_TIME).collect();
        for service in &services {
            let has_deadline = self.stays_of(*service).any(|(_, stay)| stay != Stay::WhileListed);
            let last = self.looks.get(service).map_or(BETWEEN_LOOKS, |look| look.interval);
            let interval = if has_deadline { BETWEEN_LOOKS } else { (2 * last).min(LONGEST) };
            self.look_at(*service, Some(Look { due: now + interval, interval }));
        }
        let waits = self.due.first().is_some_and(|(due, _)| *due <= now);
        self.not_before = waits.then(|| now + PAUSE);
        services
    }

    /// Forgets a destination: it is desired again, or its service was deleted.
    pub fn end(&mut self, service: ServiceKey, destination: SocketAddr) {
        self.forget(service, destination);
        if self.stays_of(service).next().is_none() {
            self.look_at(service, None);
        }
    }

    fn forget(&mut self, service: ServiceKey, destination: SocketAddr) {
        if let Some(Stay::Until(deadline)) = self.stays.remove(&(service, destination)) {
            self.deadlines.remove(&(deadline, service, destination));
        }
    }

    fn look_at(&mut self, service: ServiceKey, look: Option<Look>) {
        let before = match look {
            Some(look) => self.looks.insert(service, look),
            None => self.looks.remove(&service),
        };
        self.due.extend(look.map(|look| (look.due, service)));
        if let Some(before) = before.filter(|before| look.is_none_or(|look| look.due != before.due)) {
            self.due.remove(&(before.due, service));
        }
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

    /// Returns the draining destinations of one service with the time of each, sorted.
    pub fn stays_of(&self, service: ServiceKey) -> impl Iterator<Item = (SocketAddr, Stay)> + '_ {
        use std::net::{IpAddr, Ipv4Addr};
        let first = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        self.stays
            .range((service, first)..)
            .take_while(move |((key, _), _)| *key == service)
            .map(|((_, destination), stay)| (*destination, *stay))
    }

    /// Returns when the next action is due: a destination's deadline, or a count of connections.
    pub fn deadline(&self) -> Option<Instant> {
        let over = self.deadlines.first().map(|(deadline, _, _)| *deadline);
        let look = self.due.first().map(|(due, _)| self.not_before.map_or(*due, |earliest| earliest.max(*due)));
        over.into_iter().chain(look).min()
    }

    /// Removes all destinations whose deadline has passed, and returns their services.
    pub fn expire(&mut self, now: Instant) -> Vec<ServiceKey> {
        let mut services = Vec::new();
        while let Some((_, service, destination)) = self.deadlines.first().filter(|(at, _, _)| *at <= now).copied() {
            self.end(service, destination);
            services.push(service);
        }
        services.sort_unstable();
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
        assert_eq!(draining.stays_of(service(81)).collect::<Vec<_>>(), [(unready, Stay::WhileListed)]);
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

    #[test]
    fn of_very_many_services_some_are_looked_at_at_a_time_and_none_is_left_out() {
        let begun = Instant::now();
        let mut draining = Draining::default();
        (1..=200)
            .for_each(|port| draining.begin(service(port), destination("10.244.1.1:80"), begun, Stay::WhileListed));
        let mut now = begun + BETWEEN_LOOKS;
        let (mut seen, mut turns) = (Vec::new(), Vec::new());
        while seen.len() < 200 {
            let found = draining.to_look_at(now);
            turns.push(found.len());
            seen.extend(found);
            let next = draining.deadline().expect("something drains");
            assert!(next > now, "the loop would not sleep");
            now = next;
        }
        assert_eq!(turns, [64, 64, 64, 8]);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((seen.len(), now), (200, begun + 3 * BETWEEN_LOOKS), "each once");
        draining.end_service(service(1));
        (2..=200).for_each(|port| draining.end(service(port), destination("10.244.1.1:80")));
        assert_eq!((draining.len(), draining.deadline()), (0, None));
    }

    #[test]
    fn a_service_with_a_deadline_is_looked_at_often_and_the_others_are_not() {
        let mut now = Instant::now();
        let mut draining = Draining::default();
        draining.begin(service(80), destination("10.244.1.1:80"), now, Stay::WhileListed);
        draining.begin(service(81), destination("10.244.1.1:80"), now, Stay::Until(now + 10 * PERIOD));
        let mut looks = [0, 0];
        for _ in 0..24 {
            now += BETWEEN_LOOKS;
            let found = draining.to_look_at(now);
            [80, 81]
                .into_iter()
                .zip(&mut looks)
                .for_each(|(port, looks)| *looks += usize::from(found.contains(&service(port))));
        }
        assert_eq!(looks, [4, 24], "of two minutes");
    }
}
