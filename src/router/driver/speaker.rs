//! The speaker in the router's loop: when it starts, what it says, and what neighbours may still believe.

use std::time::Instant;

use tracing::info;

use super::super::apply::Kernel;
use super::super::desired::RouterChanges;
use super::super::sessions::Left;
use super::{Driver, services};
use crate::bgp::driver::Event;

impl<K: Kernel> Driver<K> {
    /// Starts or replaces the speaker. Routes in the kernel serve until learned routes are complete. Peers take its
    /// first announcements for complete: so it starts once the addresses are served.
    pub(super) async fn start_speaker(&mut self) {
        let now = Instant::now();
        self.forget_cut_off();
        let is_served = *self.context.served.borrow();
        if let (false, Some(until)) = (self.sessions.is_running(), services::waits(is_served, self.started, now)) {
            self.sessions.try_at(until);
            return;
        }
        let at = self.moments.at(Instant::now());
        let routes = self.plan.keep_routes_as_stale() || self.mirrors.has_routes(at);
        let left = Left { routes, anything: routes || self.mirrors.had_sets(at) || self.sessions.have_run() };
        self.reachable.forget();
        self.withdrawals.end();
        let _ = self.withdrawals.update(self.plan.desired().announcements.keys().map(|prefix| (*prefix, true)));
        self.publish_believed();
        self.sessions.replace(self.plan.desired(), left, &self.config).await;
        self.plan.look_at_all_peers();
        // Also on a host that was booted since: routers keep what it announced before until they have a session with it.
        if self.sessions.is_running() {
            self.withdrawals.hold();
        } else {
            self.withdrawals.end();
            self.publish_believed();
        }
    }

    /// Asks for the notice that neighbours have been sent that the speaker has said all, when it says so and all routers that may keep routes of an earlier one
    /// have a session: they have lost the rest then. One that is no neighbour yet may be such a router.
    pub(super) async fn release_withdrawals(&mut self, now: Instant) {
        let lacks_routers = self.plan.awaits_routers() || !self.plan.routers_without_password().is_empty();
        let keeps = self.config.graceful_restart.is_some() && !self.sessions.patience_is_over(now);
        let waits = self.holds_back()
            || lacks_routers && keeps
            || self.sessions.lack_router(self.plan.routers(), self.plan.desired(), now);
        if !waits && let Some(number) = self.withdrawals.release() {
            self.ask_written(number).await;
        }
    }

    /// Publishes that neighbours may have routes for what is about to be announced. It comes before the order to the speaker: a
    /// neighbour may have the route before this thread goes on, and the proxy would close the address at once otherwise.
    pub(super) fn believe_announced(&mut self, changed: &RouterChanges) {
        let announced = &self.plan.desired().announcements;
        let mut new = changed.announcements.iter().filter(|prefix| announced.contains_key(*prefix)).peekable();
        if self.sessions.is_running() && new.peek().is_some() {
            let _ = self.withdrawals.update(new.map(|prefix| (*prefix, true)));
            self.publish_believed();
        }
    }

    /// Follows what the speaker has been ordered to withdraw, until it is written to all neighbours.
    pub(super) async fn follow_withdrawn(&mut self, changed: &RouterChanges) {
        let announced = &self.plan.desired().announcements;
        let gone = changed.announcements.iter().filter(|prefix| !announced.contains_key(*prefix));
        if let Some(number) = self.withdrawals.update(gone.map(|prefix| (*prefix, false))) {
            self.ask_written(number).await;
        }
    }

    /// Asks for the notice that everything ordered until now is written to all neighbours.
    async fn ask_written(&mut self, number: u64) {
        if !self.sessions.ask_written(number).await {
            self.withdrawals.written(number);
            self.publish_believed();
        }
    }

    pub(super) fn publish_believed(&self) {
        self.context.believed.send_replace(self.withdrawals.believed().clone());
    }

    /// Handles the speaker's events.
    pub(super) fn take_events(&mut self, events: Vec<Event>, now: Instant) {
        for event in events {
            if let Some(peer) = self.sessions.note(&event) {
                self.plan.look_at_peer(peer);
            }
            if let Event::Fact(peer, fact) = &event {
                self.follow_session(*peer, fact, now);
            }
            match &event {
                Event::Routes(changes) => {
                    self.context.metrics.received.inc_by(changes.len() as u64);
                    self.reachable.look_at(changes);
                    let changed = self.plan.learn(changes);
                    if self.reachable.is_crowded() {
                        self.reachable.forget_unused(&self.plan.routes().next_hops().collect());
                    }
                    self.mirrors.mark(&changed);
                }
                // Of those that are connected: what others had said before counts until `drop_stale_routes`.
                Event::Complete => info!("End-of-RIB received from the connected peers"),
                Event::Ignored(counts) => self.context.metrics.count_ignored(counts),
                _ => self.told.event(&event),
            }
        }
    }

    /// Drops the routes that an earlier speaker of this process has learned and this one has not, when those of an earlier process
    /// may go as well: neighbours that are not back yet have not said that theirs are gone.
    pub(super) fn drop_stale_routes(&mut self, now: Instant) {
        if self.plan.has_stale_routes() && self.sessions.have_said_all(now, self.plan.desired()) {
            let changed = self.plan.drop_stale_routes();
            self.mirrors.mark(&changed);
        }
    }
}
