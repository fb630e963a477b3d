//! A Service that waits to change between NAT and tunnels, or to get another mark, is served as before, and follows its endpoints meanwhile.
//!
//! It may wait for long: while not everything is known, or as long as somebody else has the mark that it is to have. What the kernel refuses of its successor
//! it is not given either ([`refused`](super::refused)), and what it is refused first is noted as the successor's.

use std::collections::{BTreeMap, BTreeSet};

use super::packet_marks::Tunnels;
use super::refused::RefusedParts;
use super::unjudged::held_to;
use super::{Kernel, Mirrors};
use crate::kernel::ipvs::{Destination, Forwarding, ServiceKey, Virtual};
use crate::model::Authority;
use crate::packed::BlockMap;
use crate::proxy::desired::{Desired, keyed};
use crate::proxy::endpoints::DRAINING;
use crate::proxy::unjudged::Waiting;
use crate::reconcile::{Growth, MayGrow, Moment, Reflection};

/// Ports that shall be served as before: by the virtual service that serves each, its address, protocol and port, and what is wanted there.
type AsBefore = BTreeMap<ServiceKey, (ServiceKey, Virtual)>;

impl<K: Kernel> Mirrors<K> {
    /// Gives virtual services whose successors do not stand yet the destinations that these shall have. Returns those that were changed.
    pub(super) fn follow_as_before(&mut self, desired: &Desired, authority: Authority, at: Moment) -> Vec<ServiceKey> {
        let may_follow = matches!(authority, Authority::Partial | Authority::Complete) && !self.virtuals.is_settled();
        let waiting = if may_follow { self.as_before(desired) } else { AsBefore::new() };
        let mut changed = self.follow_those(desired, &waiting, authority, at);
        let successor = |key: &ServiceKey| waiting.get(key).map_or(*key, |(port, _)| desired.kernel_key(port));
        if self.note_refused(desired, at, successor) && self.learn_virtuals(desired, at) {
            let waiting = self.as_before(desired);
            changed.extend(self.follow_those(desired, &waiting, authority, at));
        }
        changed
    }

    fn follow_those(
        &mut self,
        desired: &Desired,
        waiting: &AsBefore,
        authority: Authority,
        at: Moment,
    ) -> Vec<ServiceKey> {
        if waiting.is_empty() {
            return Vec::new();
        }
        let mut want = self.virtuals_for_now(desired).into_owned();
        for (key, (_, wanted)) in waiting {
            want.insert(*key, wanted.clone());
            self.virtuals.mark(*key);
        }
        let closed: BTreeSet<ServiceKey> =
            waiting.iter().filter(|(_, (port, _))| self.is_closed(desired, port)).map(|(key, _)| *key).collect();
        let may = MayGrow { come: |_: &ServiceKey| false, change: |key: &ServiceKey| closed.contains(key) };
        let mut changed = self.virtuals.grow_those(&want, Growth::Full, at, may);
        if authority == Authority::Complete {
            changed.extend(self.virtuals.shrink_those(&want, at, |_, _| false, |key| waiting.contains_key(key)));
        }
        // They are not desired, and go when their successors stand.
        waiting.keys().for_each(|key| self.virtuals.mark(*key));
        self.mark_held_back(desired);
        changed
    }

    fn as_before(&self, desired: &Desired) -> AsBefore {
        let as_before = |seen| as_before(desired, seen, &self.tunnels(), &self.held_back, &self.refused);
        self.virtuals.seen().map(as_before).unwrap_or_default()
    }

    /// Returns the virtual service that serves a port as long as the one that it shall have does not stand, and what is wanted there: that for the mark which its packets are given, else that with NAT.
    pub(super) fn former_of(&self, desired: &Desired, port: &ServiceKey) -> Option<(ServiceKey, Virtual)> {
        let (after, seen) = (desired.kernel_key(port), self.virtuals.seen()?);
        let wanted = desired.virtuals.get(&after)?;
        let given = self.tunnels().given().get(port).map(|mark| keyed(port, Some(*mark)));
        let is_former = |before: &ServiceKey| {
            *before != after && !desired.virtuals.contains_key(before) && seen.contains_key(before)
        };
        let before = given.into_iter().chain([*port]).find(is_former)?;
        in_former_mode(port, &before, wanted).map(|wanted| (before, wanted))
    }
}

fn as_before(
    desired: &Desired,
    seen: &BlockMap<ServiceKey, Virtual>,
    tunnels: &Tunnels,
    held_back: &Waiting,
    refused: &RefusedParts,
) -> AsBefore {
    let by_address = desired.marks.keys().map(|port| (*port, *port));
    let by_mark = tunnels.given().iter().map(|(port, mark)| (*port, keyed(port, Some(*mark))));
    let serves = |(port, before): (ServiceKey, ServiceKey)| {
        let after = desired.kernel_key(&port);
        let wanted = desired.virtuals.get(&after)?;
        let is_former = before != after && !desired.virtuals.contains_key(&before);
        let waits = is_former && seen.contains_key(&before) && !seen.contains_key(&after);
        let as_before = in_former_mode(&port, &before, wanted).filter(|_| waits)?;
        let mut as_before = refused.left_of(&after, as_before, seen.get(&before));
        if let (ServiceKey::Mark { .. }, Some(held)) = (before, held_back.get(&port)) {
            as_before = held_to(&as_before, seen.get(&before), held);
        }
        Some((before, (port, as_before)))
    };
    by_address.chain(by_mark).filter_map(serves).collect()
}

/// Returns what is wanted, as the former virtual service of this port can have it; `None` if that would serve nobody: a tunnel changes no ports.
fn in_former_mode(port: &ServiceKey, former: &ServiceKey, wanted: &Virtual) -> Option<Virtual> {
    let ServiceKey::Address { port, .. } = *port else { return None };
    let forwarding = match former {
        ServiceKey::Address { .. } => Forwarding::Nat,
        ServiceKey::Mark { .. } => Forwarding::Tunnel,
    };
    let can_serve = |it: &Destination| forwarding == Forwarding::Nat || it.address.port() == port;
    let destinations = wanted.destinations.iter().filter(can_serve).map(|it| Destination { forwarding, ..it });
    let destinations: Vec<Destination> = destinations.collect();
    // Those that drain serve no new connection.
    let takes = |it: &Destination| it.weight != DRAINING;
    let serves = destinations.iter().any(takes) || !wanted.destinations.iter().any(|it| takes(&it));
    serves.then(|| Virtual { service: wanted.service.clone(), destinations: destinations.into() })
}
