//! Graceful termination: a removed destination keeps its connections for a while.
//!
//! Only TCP drains (`scheduler::can_drain`): UDP and SCTP destinations are deleted when their endpoints leave the slice, and
//! conntrack entries of UDP are deleted (`udp_flows`). Otherwise a client that keeps its source port would send to a deleted pod
//! for the whole period.
//!
//! Flags: `--ipvs-graceful-termination`, `--ipvs-graceful-period`. Kernel: weight 0 takes no new connections
//! and keeps the old ones. The period begins when the endpoint leaves its slice: a terminating pod stays in
//! the slice until it is gone, so its own grace period has passed by then without our counting it.
//!
//! A destination whose last connection has ended need not wait for the end of its period: connections are checked every
//! few seconds. Persistence templates do not count; they assign no new connections to a destination of weight 0
//! (`net.ipv4.vs.expire_quiescent_template`).
//!
//! A destination that comes back is desired again, and stops draining.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kernel::ipvs::ServiceKey;

/// Draining destinations, with their deadlines.
#[derive(Default, Debug)]
pub struct Draining {
    until: BTreeMap<(ServiceKey, SocketAddr), Instant>,
    /// Time of the next check for destinations without connections.
    look_at: Option<Instant>,
}

/// Interval of checking connections while something drains. Also the minimum time that a destination drains: before its
/// weight is 0 in the kernel, a count of 0 connections means nothing.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

impl Draining {
    /// Starts draining a destination. One that drains already keeps its deadline.
    pub fn begin(&mut self, service: ServiceKey, destination: SocketAddr, now: Instant, period: Duration) {
        self.until.entry((service, destination)).or_insert(now + period);
        self.look_at.get_or_insert(now + BETWEEN_LOOKS);
    }

    /// Returns the services with draining destinations if it is time to check connections, otherwise none.
    pub fn to_look_at(&mut self, now: Instant) -> Vec<ServiceKey> {
        if self.look_at.is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.look_at = (!self.is_empty()).then(|| now + BETWEEN_LOOKS);
        let mut services: Vec<ServiceKey> = self.until.keys().map(|(service, _)| *service).collect();
        services.dedup();
        services
    }

    /// Forgets a destination: it is desired again, or its service was deleted.
    pub fn end(&mut self, service: ServiceKey, destination: SocketAddr) {
        self.until.remove(&(service, destination));
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
        use std::net::{IpAddr, Ipv4Addr};
        let first = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        self.until
            .range((service, first)..)
            .take_while(move |((key, _), _)| *key == service)
            .map(|((_, destination), _)| *destination)
    }

    /// Returns when the next action is due: a destination's deadline, or a check of connections.
    pub fn deadline(&self) -> Option<Instant> {
        let over = self.until.values().min().copied()?;
        Some(self.look_at.map_or(over, |look_at| look_at.min(over)))
    }

    /// Removes all destinations whose deadline has passed, and returns their services.
    pub fn expire(&mut self, now: Instant) -> Vec<ServiceKey> {
        let over: Vec<(ServiceKey, SocketAddr)> =
            self.until.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect();
        for key in &over {
            self.until.remove(key);
        }
        let mut services: Vec<ServiceKey> = over.into_iter().map(|(service, _)| service).collect();
        services.dedup();
        services
    }

    pub fn len(&self) -> usize {
        self.until.len()
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
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
        draining.begin(service(80), destination("10.244.1.1:80"), now, PERIOD);
        draining.begin(service(80), destination("10.244.1.1:80"), now + PERIOD / 2, PERIOD);
        assert_eq!(draining.deadline(), Some(now + BETWEEN_LOOKS));
        assert_eq!(draining.expire(now + PERIOD / 2), []);
        assert_eq!(draining.expire(now + PERIOD), [service(80)]);
        assert!(draining.is_empty());
    }

    #[test]
    fn connections_are_looked_at_every_few_seconds_while_something_drains() {
        let now = Instant::now();
        let mut draining = Draining::default();
        draining.begin(service(80), destination("10.244.1.1:80"), now, PERIOD);
        draining.begin(service(80), destination("10.244.1.2:80"), now, PERIOD);
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
            draining.begin(service(port), destination(address), now, PERIOD);
        }
        assert_eq!(draining.of(service(80)).count(), 2);
        draining.end_service(service(80));
        assert_eq!(draining.of(service(80)).count(), 0);
        assert_eq!(draining.of(service(81)).count(), 1);
    }
}
