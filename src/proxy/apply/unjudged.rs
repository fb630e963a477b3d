//! Destinations of tunnels that wait for the firewall ([`proxy::unjudged`](crate::proxy::unjudged)), in the kernel: one that IPVS has stays as it is, one that it has not does not come, and one that
//! takes no new connections goes on so.

use std::borrow::Cow;
use std::net::SocketAddr;

use super::{Kernel, Mirrors};
use crate::kernel::ipvs::{Destination, ServiceKey, Virtual};
use crate::packed::BlockMap;
use crate::proxy::desired::Desired;
use crate::proxy::endpoints::DRAINING;
use crate::proxy::scheduler;
use crate::proxy::unjudged::{HeldDestinations, Use, Waiting};

impl<K: Kernel> Mirrors<K> {
    /// Sets the destinations that have to wait, in place of those before.
    pub fn hold_back(&mut self, waiting: Waiting) {
        self.held_back = waiting;
    }

    /// Returns the desired virtual services without what the kernel refuses and what has to wait, as far as the kernel does not have it. Virtual services have to be known.
    pub(super) fn virtuals_for_now<'a>(&self, desired: &'a Desired) -> Cow<'a, BlockMap<ServiceKey, Virtual>> {
        let mut virtuals = self.virtuals_it_takes(desired);
        for (port, held) in &self.held_back {
            let key = desired.kernel_key(port);
            let Some(wanted) = virtuals.get(&key) else { continue };
            let seen = self.virtuals.seen().and_then(|seen| seen.get(&key));
            let for_now = held_to(wanted, seen, held);
            match seen.is_none() && waits(wanted, &for_now) {
                // What served the port before goes on with that.
                true => drop(virtuals.to_mut().remove(&key)),
                false => drop(virtuals.to_mut().insert(key, for_now)),
            }
        }
        virtuals
    }

    /// Returns what IPVS is to do with a destination of a port in tunnel mode, beside what it does, as far as it was read.
    pub fn use_of(&self, desired: &Desired, port: &ServiceKey, destination: SocketAddr) -> Use {
        let takes = |its: Option<&Virtual>| {
            let mut takers = its.into_iter().flat_map(|its| its.destinations.iter()).filter(|it| it.weight != DRAINING);
            takers.any(|it| it.address == destination)
        };
        let key = desired.kernel_key(port);
        match takes(self.virtuals.seen().and_then(|seen| seen.get(&key))) {
            true => Use::GoesOn,
            false if takes(desired.virtuals.get(&key)) => Use::Begins,
            false => Use::None,
        }
    }

    /// Returns whether anything waits that IPVS shall use and does not use yet.
    pub fn lacks_held_back(&self, desired: &Desired) -> bool {
        let mut all = self.held_back.iter().flat_map(|(port, held)| held.waiting.iter().map(move |one| (port, *one)));
        all.any(|(port, destination)| self.use_of(desired, port, destination) == Use::Begins)
    }

    /// Marks the virtual services as changed of which something waits: compared with what they shall be for now they count as settled.
    pub(super) fn mark_held_back(&mut self, desired: &Desired) {
        let Mirrors { held_back, virtuals, .. } = self;
        let keys = held_back.keys().map(|port| desired.kernel_key(port));
        keys.filter(|key| desired.virtuals.contains_key(key)).for_each(|key| virtuals.mark(key));
    }
}

/// Returns a virtual service without the destinations that are held back, but for those that it has. Where nobody would take new connections then, those go on that
/// do so now and are to drain, as far as the firewall judges them: endpoints that terminate and still serve.
pub(super) fn held_to(wanted: &Virtual, seen: Option<&Virtual>, held: &HeldDestinations) -> Virtual {
    let weight_now = |address: SocketAddr| {
        let found = seen.into_iter().flat_map(|seen| seen.destinations.iter()).find(|it| it.address == address);
        found.map(|it| it.weight)
    };
    let for_now = |wanted: Destination| match held.waiting.contains(&wanted.address) {
        true => weight_now(wanted.address)
            .map(|weight| Destination { weight: weight_of_held(weight, wanted.weight), ..wanted }),
        false => Some(wanted),
    };
    let mut destinations: Vec<Destination> = wanted.destinations.iter().filter_map(for_now).collect();
    if destinations.iter().all(|it| it.weight == DRAINING) {
        for it in destinations.iter_mut().filter(|it| held.judged.contains(&it.address)) {
            it.weight = weight_now(it.address).unwrap_or(it.weight);
        }
    }
    let mut service = wanted.service.clone();
    service.flags |= scheduler::draining_flags(&service.scheduler, destinations.iter().copied());
    Virtual { service, destinations: destinations.into() }
}

/// Returns whether a virtual service that the kernel does not have would refuse all new connections, as long as some destinations wait: one that has nothing but what drains does, as an empty
/// one does.
fn waits(wanted: &Virtual, for_now: &Virtual) -> bool {
    let takes_any = |its: &Virtual| its.destinations.iter().any(|it| it.weight != DRAINING);
    takes_any(wanted) && !takes_any(for_now)
}

fn weight_of_held(now: u32, wanted: u32) -> u32 {
    if now == DRAINING { DRAINING } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::ipvs::{Forwarding, Service, flags};

    fn endpoint(last: &str) -> SocketAddr {
        format!("10.244.1.{last}:80").parse().expect("an address and a port")
    }

    /// A virtual service with this scheduler and these destinations: `5 6=0`.
    fn tunnels(scheduler: &str, endpoints: &str) -> Virtual {
        let destination = |word: &str| {
            let (last, weight) = word.split_once('=').unwrap_or((word, "1"));
            let weight = weight.parse().expect("a weight");
            Destination { address: endpoint(last), weight, forwarding: Forwarding::Tunnel }
        };
        let destinations: Vec<Destination> = endpoints.split_whitespace().map(destination).collect();
        let flags = scheduler::draining_flags(scheduler, destinations.iter().copied());
        Virtual {
            service: Service { scheduler: scheduler.into(), flags, persistence_seconds: 0 },
            destinations: destinations.into(),
        }
    }

    /// With endpoints that wait, and others that the firewall judges: `6 | 5`.
    fn held(waiting: &str) -> HeldDestinations {
        let (waiting, judged) = waiting.split_once('|').unwrap_or((waiting, ""));
        let [waiting, judged] = [waiting, judged].map(|words| words.split_whitespace().map(endpoint).collect());
        HeldDestinations { waiting, judged }
    }

    #[track_caller]
    fn is_for_now(scheduler: &str, [seen, wanted, waiting, for_now]: [&str; 4]) {
        let held = held(waiting);
        let found = held_to(&tunnels(scheduler, wanted), Some(&tunnels(scheduler, seen)), &held);
        assert_eq!(found, tunnels(scheduler, for_now), "{scheduler}: {seen} -> {wanted}");
    }

    #[test]
    fn the_old_endpoints_serve_as_long_as_all_new_ones_wait() {
        is_for_now("rr", ["5", "5=0 6", "6 | 5", "5"]);
        is_for_now("rr", ["5 6", "5=0 6=0 7", "7 | 5 6", "5 6"]);
        // The firewall does not judge one that is not ready.
        is_for_now("rr", ["5", "5=0 6", "6", "5=0"]);
        is_for_now("rr", ["5 6", "5=0 6=0 7", "7 | 6", "5=0 6"]);
        // One that serves already, or was judged, is enough.
        is_for_now("rr", ["5 6", "5=0 6 7", "7 | 5 6", "5=0 6"]);
        is_for_now("rr", ["5", "5=0 6 7", "7 | 5 6", "5=0 6"]);
        // Nobody served before either, or whoever did has left.
        is_for_now("rr", ["5=0", "5=0 6", "6 | 5", "5=0"]);
        is_for_now("rr", ["5", "6", "6", ""]);
    }

    #[test]
    fn a_virtual_service_of_which_nothing_takes_connections_yet_does_not_take_the_place_of_what_serves() {
        let is_made = |wanted: &str, waiting: &str| {
            let wanted = tunnels("rr", wanted);
            !waits(&wanted, &held_to(&wanted, None, &held(waiting)))
        };
        assert!(!is_made("6", "6"));
        assert!(!is_made("5=0 6", "6 | 5"), "what drains takes no new connections");
        assert!(!is_made("5=0 6 7", "6 7"));
        assert!(is_made("5=0 6 7", "6 | 5 7"), "one that was judged takes them");
        assert!(is_made("5=0", "5") && is_made("", ""), "nobody shall take any");
    }

    #[test]
    fn what_waits_at_weight_0_refuses_no_client_of_a_scheduler_that_asks_for_the_fallback_flag() {
        is_for_now("sh", ["5 6=0", "5 6", "6", "5 6=0"]);
        let found = held_to(&tunnels("sh", "5 6"), Some(&tunnels("sh", "5 6=0")), &held("6 | 5"));
        assert_eq!(found.service.flags & flags::SCHEDULER_1, flags::SCHEDULER_1);
    }
}
