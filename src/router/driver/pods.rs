//! Pods of other nodes that cannot be reached, as the log, `/readyz` and metrics tell it.

use std::time::Instant;

use tracing::{info, warn};

use super::Driver;
use crate::config::NodeRoutes;
use crate::router::apply::Kernel;
use crate::router::plan::{Circumstances, Unreached};
use crate::router::problem::{About, Problem};

impl<K: Kernel> Driver<K> {
    /// Checks for pod CIDRs of other nodes without a route in the kernel.
    pub(super) fn look_at_pods(&mut self, synced: bool, now: Instant) {
        let sessions = &self.sessions;
        // All that is without a route at the start has been so since the speaker started.
        let since = sessions.waits_since().filter(|_| !self.reached).unwrap_or(now);
        let around = Circumstances { now, since, nodes_are_read: *self.context.nodes_are_read.borrow() };
        let unlearned = self.plan.unreached(around, |peer, family| sessions.has_sent_all(peer, family));
        let count = unlearned.count + self.mirrors.missing_routes(self.plan.routes());
        let older = std::mem::replace(&mut self.unreached, Unreached { count, ..unlearned });
        self.log_trouble_with_pods(&older);
        // A node that is down for long must not keep all others from becoming ready.
        let waits = self.config.node_routes == NodeRoutes::Bgp && !self.sessions.patience_is_over(now);
        if !self.reached && synced && (count == 0 || !waits) {
            self.reached = true;
            let took_ms = (now - self.started).as_millis() as u64;
            let Unreached { missing, late, trouble, .. } = &self.unreached;
            match missing.as_ref().or(late.as_ref()).or(trouble.as_ref()) {
                None => info!(unreached = count, took_ms, "Routes to pods of other nodes programmed"),
                Some(missing) => {
                    warn!(unreached = count, took_ms, reason = missing, "Some pods of other nodes cannot be reached");
                }
            }
        }
        let noted = self.unreached.missing.clone().filter(|_| self.reached);
        let notes = noted.into_iter().chain(self.unreached.late.clone()).chain(self.outside().note());
        let notes = notes.chain(self.awaited_services.note_text());
        let notes = notes.chain(self.key_change.notes()).chain(self.answers.note.clone());
        let is_of_routers = |problem: &&Problem| matches!(problem.about, About::ExternalPeers | About::ExternalPeer(_));
        let of_routers = self.plan.desired().problems.iter().filter(is_of_routers);
        let notes = notes.chain(of_routers.map(ToString::to_string));
        self.context.notes.set(notes.collect());
    }

    /// Logs that pods of other nodes cannot be reached, or can be again. /readyz always names the present ones.
    fn log_trouble_with_pods(&self, older: &Unreached) {
        match (&older.trouble, &self.unreached.trouble) {
            (None, Some(reason)) => warn!(reason, "Pods of other nodes cannot be reached"),
            (Some(_), None) => {
                info!(
                    unreached = self.unreached.count,
                    "Unreachable pods of other nodes are no trouble any more; /readyz names the rest"
                );
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}
