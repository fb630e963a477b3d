//! Services that an earlier run served with NAT although they ask for tunnels, and the tunnels that end on this node.
//!
//! A Service whose endpoints cannot be set up is served with NAT. That it cannot a start finds out only after a while, and until then its endpoints count as any other, so it
//! would be served through tunnels meanwhile: its connections would end, and those that come meanwhile again. So what stands with NAT stays so until it is known that tunnels
//! end in its endpoints. The same holds where the socket of the container runtime comes later than the agent.
//!
//! Nor does a start use an endpoint on this node that the tunnels of an earlier run were not used for, as long as they were used for others: it may be one that cannot be set up, and
//! what were sent there would be lost. Where nobody else is left it is used as any other, because NAT would end the connections of the tunnels.
//!
//! A port to which packets are given a mark counts as one in tunnel mode, also while the virtual service with NAT stands: packets with the mark come to the tunnel, so the other one has no
//! connection that began since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use super::Driver;
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::model::ObjectName;
use crate::proxy::apply::Kernel;
use crate::proxy::dsr::{TunnelEnds, Untunnelled};
use crate::proxy::endpoints::DRAINING;
use crate::reconcile::Moment;

/// The Services that were found to be served with NAT.
#[derive(Default)]
pub(super) struct Caution {
    /// The ports to which packets were given marks at the start.
    given: BTreeSet<ServiceKey>,
    /// It has been looked which there are.
    is_found: bool,
    services: BTreeSet<ObjectName>,
    /// There were such Services when news of them were asked for.
    is_told: bool,
    /// The endpoints that new connections were sent to through tunnels at the start, by the virtual service for a mark; until it has been looked for Services. `None` before
    /// that could be read.
    standing: Option<BTreeMap<ServiceKey, BTreeSet<IpAddr>>>,
    /// The endpoints on this node that an earlier run sent nothing through tunnels, although it sent others some, and that are not known as ends of tunnels since.
    left_out: Untunnelled,
    /// The endpoints that the plan sends nothing through tunnels.
    told: Untunnelled,
}

impl Caution {
    /// Returns the endpoints that get nothing through tunnels. `all`: the endpoints of a Service; `ready`: those that are ready.
    fn untunnelled(
        &mut self,
        ends: &TunnelEnds,
        all: impl Fn(&ObjectName) -> BTreeSet<IpAddr>,
        ready: impl Fn(&ObjectName) -> BTreeSet<IpAddr>,
    ) -> Untunnelled {
        let mut found = ends.lacking.clone();
        let none = BTreeSet::new();
        if let Some(unproven) = &ends.unproven {
            self.services.retain(|service| unproven.contains_key(service));
        }
        for service in &self.services {
            let of_service = match &ends.unproven {
                None => all(service),
                Some(unproven) => unproven.get(service).unwrap_or(&none).clone(),
            };
            found.entry(service.clone()).or_default().extend(of_service);
        }
        if let Some(unproven) = &ends.unproven {
            for (service, pods) in &mut self.left_out {
                pods.retain(|pod| unproven.get(service).is_some_and(|its| its.contains(pod)));
            }
            self.left_out.retain(|_, pods| !pods.is_empty());
        }
        for (service, pods) in &self.left_out {
            let of_service = found.get(service).unwrap_or(&none);
            if ready(service).iter().any(|other| !pods.contains(other) && !of_service.contains(other)) {
                found.entry(service.clone()).or_default().extend(pods);
            }
        }
        found.retain(|_, pods| !pods.is_empty());
        found
    }

    /// Returns the first of the Services that are kept with NAT and their number, or that there is none, where there were none before, or some.
    pub(super) fn news(&mut self) -> Option<Option<(ObjectName, usize)>> {
        let first = self.services.first().cloned();
        let was_any = std::mem::replace(&mut self.is_told, first.is_some());
        (was_any != first.is_some()).then(|| first.map(|first| (first, self.services.len())))
    }
}

impl<K: Kernel> Driver<K> {
    /// Has the plan go on with the marks that packets are given since an earlier run, before it chooses any.
    pub(super) fn adopt_marks(&mut self, at: Moment) {
        if !self.config.tunnel_mode || self.marks_adopted {
            return;
        }
        if let Some(given) = self.mirrors.given_marks(at) {
            let changed = self.plan.adopt_marks(&given);
            self.mark(&changed, at.now);
            self.plan.keep_marks(self.mirrors.marks_elsewhere());
            self.caution.given = given.into_keys().collect();
            self.marks_adopted = true;
        }
    }

    /// Notes to which endpoints an earlier run sends packets through tunnels, before anything is changed.
    pub(super) fn note_standing(&mut self, at: Moment) {
        if self.caution.is_found || self.caution.standing.is_some() || !self.marks_adopted {
            return;
        }
        let Some(existing) = self.mirrors.existing_virtuals(self.plan.desired(), at) else { return };
        let taking = |found: &Virtual| {
            let taking = found.destinations.iter().filter(|destination| destination.weight != DRAINING);
            taking.map(|destination| destination.address.ip()).collect()
        };
        let of_marks = existing.iter().filter(|(key, _)| matches!(key, ServiceKey::Mark { .. }));
        self.caution.standing = Some(of_marks.map(|(key, found)| (*key, taking(found))).collect());
    }

    /// Finds the Services that an earlier run served with NAT and that ask for tunnels now. Everything is known.
    pub(super) fn be_cautious(&mut self, at: Moment) {
        if self.caution.is_found || !self.marks_adopted {
            return;
        }
        if self.plan.node().runtime_awaited {
            // Tunnels of an earlier run are served with NAT too.
            self.caution.given.clear();
            self.caution.standing = Some(BTreeMap::new());
            return;
        }
        let Some(ports) = self.mirrors.marked_with_nat(self.plan.desired(), at) else { return };
        self.caution.is_found = true;
        let with_nat = ports.iter().filter(|port| !self.caution.given.contains(*port));
        self.caution.services = with_nat.filter_map(|port| self.plan.owner(port).cloned()).collect();
        self.caution.left_out = self.left_out();
        self.take_untunnelled(at.now);
    }

    /// Returns the endpoints on this node that are ready and that tunnels were not used for at the start, of Services that had others.
    fn left_out(&mut self) -> Untunnelled {
        let standing = self.caution.standing.take().unwrap_or_default();
        let mut used = Untunnelled::new();
        for (key, endpoints) in standing.into_iter().filter(|(_, endpoints)| !endpoints.is_empty()) {
            let owner = self.plan.desired().marked.get(&key).and_then(|port| self.plan.owner(port));
            if let Some(owner) = owner {
                used.entry(owner.clone()).or_default().extend(endpoints);
            }
        }
        let left_out = |(service, used): (ObjectName, BTreeSet<IpAddr>)| {
            let own = self.plan.ready_endpoints_of(&service, true);
            let left_out: BTreeSet<IpAddr> = own.difference(&used).copied().collect();
            (!left_out.is_empty()).then_some((service, left_out))
        };
        used.into_iter().filter_map(left_out).collect()
    }

    /// Has the endpoints that a World brought get nothing through tunnels either, while it is not known in which of them tunnels end.
    pub(super) fn stay_cautious(&mut self, now: Instant) {
        if !self.caution.services.is_empty() || !self.caution.left_out.is_empty() {
            self.take_untunnelled(now);
        }
    }

    /// Takes the endpoints on this node in which no tunnel ends.
    pub(super) fn take_untunnelled(&mut self, now: Instant) {
        let ends = self.context.tunnel_ends.borrow_and_update().clone();
        let count = ends.lacking.values().map(BTreeSet::len).sum::<usize>();
        self.context.metrics.untunnelled.set(i64::try_from(count).unwrap_or(i64::MAX));
        let plan = &self.plan;
        let ready = |service: &ObjectName| plan.ready_endpoints_of(service, false);
        let untunnelled = self.caution.untunnelled(&ends, |service| plan.endpoints_of(service), ready);
        self.tell_caution();
        if untunnelled == self.caution.told {
            return;
        }
        self.caution.told.clone_from(&untunnelled);
        let changed = self.plan.set_untunnelled(untunnelled, now);
        self.context.metrics.parts.inc_by(changed.parts_computed as u64);
        self.tell_parts(&changed, now);
    }
}
