//! A node that was cut off, in the router's loop: what [`cut_off`](crate::router::cut_off) decides is announced, and logged.

use std::net::IpAddr;
use std::time::Instant;

use tracing::info;

use super::Driver;
use crate::bgp::speaker::Fact;
use crate::config::NodeRoutes;
use crate::router::apply::Kernel;
use crate::router::cut_off::{CutOff, Event, Look};

impl<K: Kernel> Driver<K> {
    /// Looks at who has a session, or whose routes are kept, as the speaker has just told it.
    pub(super) fn look_whether_cut_off(&mut self, now: Instant) {
        let awaits = self.plan.routers_elsewhere().next().is_some() && self.config.node_routes == NodeRoutes::Bgp;
        if !self.sessions.is_running() || !awaits && !self.cut_off.holds_back() {
            return;
        }
        let (kept, peers) = (self.sessions.kept(), &self.plan.desired().peers);
        let is_wanted = |node: &IpAddr| peers.get(node).is_some_and(|wanted| wanted.expected);
        let is_router = |peer: &IpAddr| self.plan.routers().contains(peer);
        let nodes: Vec<IpAddr> = kept.iter().filter(|peer| is_wanted(peer) && !is_router(peer)).copied().collect();
        let has_router = self.plan.routers_elsewhere().any(|router| kept.contains(router));
        self.cut_off.step(now, Event::Look(Look { nodes: &nodes, has_router, is_wanted: &is_wanted }));
    }

    /// Follows what the speaker tells of a neighbour's session.
    pub(super) fn follow_session(&mut self, peer: IpAddr, fact: &Fact, now: Instant) {
        match fact {
            Fact::Up(agreement) if self.plan.desired().peers.contains_key(&peer) => {
                let is_router = self.plan.routers_elsewhere().any(|router| *router == peer);
                // A router that is a part of this node is neither.
                if is_router || self.config.node_routes == NodeRoutes::Bgp && !self.plan.routers().contains(&peer) {
                    let families = agreement.dialect.families;
                    self.cut_off.step(now, Event::Up { peer, is_router, families });
                }
            }
            Fact::Complete(family) => self.cut_off.step(now, Event::Complete(peer, *family)),
            // It may have been the last one.
            Fact::Down { .. } if self.sessions.has_nobody() => self.next_look = now,
            _ => {}
        }
    }

    /// Carries out what follows: addresses of Services are held back, or announced again.
    pub(super) async fn follow_cut_off(&mut self, now: Instant) {
        if self.cut_off.holds_back() {
            let is_settled = self.mirrors.is_settled();
            self.cut_off.step(now, Event::Tick { is_settled });
        }
        let holds = self.cut_off.holds_back();
        if holds == self.plan.holds_for_nodes() {
            return;
        }
        match holds {
            true => info!(
                "This node is cut off from all neighbours; service addresses are held back until it has the routes of other nodes again"
            ),
            false => info!("Service addresses are announced to routers outside again"),
        }
        let changed = self.plan.hold_back(holds);
        self.carry_out(&changed).await;
    }

    /// Begins anew with a new speaker, which has no sessions yet.
    pub(super) fn forget_cut_off(&mut self) {
        self.cut_off = CutOff::default();
        if self.plan.holds_for_nodes() {
            // The new speaker is told of everything.
            let _ = self.plan.hold_back(false);
        }
    }
}
