//! Destinations of tunnels that wait for the firewall ([`proxy::unjudged`](crate::proxy::unjudged)), in the kernel: one that IPVS has stays as it is, one that it has not does not come, and one that
//! takes no new connections goes on so.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Kernel, Mirrors};
use crate::kernel::ipvs::{Destination, ServiceKey, Virtual};
use crate::packed::BlockMap;
use crate::proxy::desired::Desired;
use crate::proxy::endpoints::DRAINING;
use crate::proxy::unjudged::Waiting;

impl<K: Kernel> Mirrors<K> {
    /// Sets the destinations that have to wait, in place of those before.
    pub fn hold_back(&mut self, waiting: Waiting) {
        self.held_back = waiting;
    }

    /// Returns the desired virtual services without what has to wait, as far as the kernel does not have it. Virtual services have to be known.
    pub(super) fn virtuals_for_now<'a>(&self, desired: &'a Desired) -> Cow<'a, BlockMap<ServiceKey, Virtual>> {
        let mut virtuals = Cow::Borrowed(&desired.virtuals);
        for (port, held) in &self.held_back {
            let key = desired.kernel_key(port);
            let Some(wanted) = desired.virtuals.get(&key) else { continue };
            let seen = self.virtuals.seen().and_then(|seen| seen.get(&key));
            let destinations = held_to(wanted, seen, held);
            match seen.is_none() && destinations.is_empty() && !wanted.destinations.is_empty() {
                // What served the port before goes on with that.
                true => drop(virtuals.to_mut().remove(&key)),
                false => {
                    let for_now = Virtual { service: wanted.service.clone(), destinations: destinations.into() };
                    virtuals.to_mut().insert(key, for_now);
                }
            }
        }
        virtuals
    }

    /// Marks the virtual services as changed of which something waits: compared with what they shall be for now they count as settled.
    pub(super) fn mark_held_back(&mut self, desired: &Desired) {
        let Mirrors { held_back, virtuals, .. } = self;
        let keys = held_back.keys().map(|port| desired.kernel_key(port));
        keys.filter(|key| desired.virtuals.contains_key(key)).for_each(|key| virtuals.mark(key));
    }
}

/// Returns the destinations of a virtual service without those that are held back, but for those that it has.
pub(super) fn held_to(wanted: &Virtual, seen: Option<&Virtual>, held: &BTreeSet<SocketAddr>) -> Vec<Destination> {
    let of_now = |address| seen.into_iter().flat_map(|seen| seen.destinations.iter()).find(|it| it.address == address);
    let for_now = |wanted: Destination| match held.contains(&wanted.address) {
        true => {
            of_now(wanted.address).map(|it| Destination { weight: weight_of_held(it.weight, wanted.weight), ..wanted })
        }
        false => Some(wanted),
    };
    wanted.destinations.iter().filter_map(for_now).collect()
}

fn weight_of_held(now: u32, wanted: u32) -> u32 {
    if now == DRAINING { DRAINING } else { wanted }
}
