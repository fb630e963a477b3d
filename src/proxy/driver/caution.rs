//! Services that an earlier run served with NAT although they ask for tunnels, and the tunnels that end on this node.
//!
//! A Service whose endpoints cannot be set up is served with NAT. That it cannot a start finds out only after a while, and until then its endpoints count as any other, so it
//! would be served through tunnels meanwhile: its connections would end, and those that come meanwhile again. So what stands with NAT stays so until it is known that tunnels
//! end in its endpoints. The same holds where the socket of the container runtime comes later than the agent.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use super::Driver;
use crate::kernel::ipvs::ServiceKey;
use crate::model::ObjectName;
use crate::proxy::apply::Kernel;
use crate::proxy::dsr::{TunnelEnds, Untunnelled};
use crate::reconcile::Moment;

/// The Services that were found to be served with NAT.
#[derive(Default)]
pub(super) struct Caution {
    /// The ports to which packets were given marks at the start.
    given: BTreeSet<ServiceKey>,
    /// It has been looked which there are.
    is_found: bool,
    services: BTreeSet<ObjectName>,
    /// The endpoints that the plan sends nothing through tunnels.
    told: Untunnelled,
}

impl Caution {
    /// Returns the endpoints that get nothing through tunnels. `all`: the endpoints of a Service.
    fn untunnelled(&mut self, ends: &TunnelEnds, all: impl Fn(&ObjectName) -> BTreeSet<IpAddr>) -> Untunnelled {
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
        found.retain(|_, pods| !pods.is_empty());
        found
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

    /// Finds the Services that an earlier run served with NAT and that ask for tunnels now. Everything is known.
    pub(super) fn be_cautious(&mut self, at: Moment) {
        if self.caution.is_found || !self.marks_adopted {
            return;
        }
        if self.plan.node().runtime_awaited {
            // Tunnels of an earlier run are served with NAT too.
            self.caution.given.clear();
            return;
        }
        let Some(ports) = self.mirrors.marked_with_nat(self.plan.desired(), at) else { return };
        self.caution.is_found = true;
        let with_nat = ports.iter().filter(|port| !self.caution.given.contains(*port));
        self.caution.services = with_nat.filter_map(|port| self.plan.owner(port).cloned()).collect();
        self.take_untunnelled(at.now);
    }

    /// Has the endpoints that a World brought get nothing through tunnels either, while it is not known in which of them tunnels end.
    pub(super) fn stay_cautious(&mut self, now: Instant) {
        if !self.caution.services.is_empty() {
            self.take_untunnelled(now);
        }
    }

    /// Takes the endpoints on this node in which no tunnel ends.
    pub(super) fn take_untunnelled(&mut self, now: Instant) {
        let ends = self.context.tunnel_ends.borrow_and_update().clone();
        let count = ends.lacking.values().map(BTreeSet::len).sum::<usize>();
        self.context.metrics.untunnelled.set(i64::try_from(count).unwrap_or(i64::MAX));
        let plan = &self.plan;
        let untunnelled = self.caution.untunnelled(&ends, |service| plan.endpoints_of(service));
        if untunnelled == self.caution.told {
            return;
        }
        self.caution.told.clone_from(&untunnelled);
        let changed = self.plan.set_untunnelled(untunnelled, now);
        self.context.metrics.parts.inc_by(changed.parts_computed as u64);
        self.tell_parts(&changed, now);
    }
}
