//! The waits of the first speaker in the router's loop: for Services ([`awaited_services`](crate::router::awaited_services)), and for the service proxy, which is to serve
//! addresses before they are announced.

use std::time::{Duration, Instant};

use tracing::info;

use super::Driver;
use crate::model::{Authority, World};
use crate::reconcile::Moment;
use crate::router::apply::Kernel;
use crate::router::awaited_services::{UNSERVED, patience};

impl<K: Kernel> Driver<K> {
    /// Records whether this World, which knows nodes, knows Services. Called before it is acted upon.
    pub(super) fn look_for_services(&mut self, world: &World, at: Moment) {
        let are_known = world.authority.proxy != Authority::Nothing;
        let own = world.cluster.nodes.get(&world.host.node_name);
        let routing = own.and_then(|node| node.routing.as_deref());
        // Nodes are never announced addresses of Services. Before our own Node is known there may be any routers.
        let is_named = own.is_none() || routing.is_some_and(|routing| !routing.peers.is_empty());
        let has_routers = !self.config.peers.is_empty() || is_named;
        let restart = self.config.graceful_restart.filter(|_| has_routers);
        let mirrors = &mut self.mirrors;
        let kept = || {
            // Nobody keeps routes of who says that it forwards nothing any more, as after a boot (RFC 4724 4.2).
            let restart = restart.filter(|_| !mirrors.begins_anew(at));
            patience(restart.map(|restart| Duration::from_secs(restart.seconds.into())))
        };
        let is_sure = own.is_some() || !self.config.peers.is_empty();
        self.awaited_services.note(are_known, kept, is_sure, at.now);
    }

    /// Begins BGP without Services when the wait for them is over, and announces those that became known later when they are served.
    pub(super) async fn step_awaited_services(&mut self, now: Instant) {
        let refused = *self.context.services_refused_at.borrow();
        self.awaited_services.note_refusal(refused);
        if self.awaited_services.gives_up(now) {
            info!(
                is_forbidden = refused.is_some(),
                "Services or their endpoints are not known yet; BGP begins without announcing any"
            );
            let changed = self.plan.go_without_services();
            self.carry_out(&changed).await;
        }
        let is_served = *self.context.served.borrow();
        if self.awaited_services.are_served(is_served, now) {
            let changed = self.plan.announce_services();
            self.carry_out(&changed).await;
        }
    }
}

/// Returns until when the first speaker waits for the service proxy; `None` if it starts now.
pub(super) fn waits(is_served: bool, started: Instant, now: Instant) -> Option<Instant> {
    Some(started + UNSERVED).filter(|until| !is_served && now < *until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speaker_waits_for_the_service_proxy_neither_for_ever_nor_after_it_was_told() {
        let (started, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(waits(false, started, started + second), Some(started + UNSERVED));
        assert_eq!(waits(false, started, started + UNSERVED), None, "a proxy that never says so");
        assert_eq!(waits(true, started, started), None, "a proxy that had said so before");
    }
}
