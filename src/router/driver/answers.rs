//! Nodes that do not answer over WireGuard, in the router's loop: what [`unanswered`](crate::router::unanswered) finds is logged, and stands in `/readyz`.

use std::collections::BTreeSet;
use std::time::Instant;

use compact_str::CompactString;
use tracing::{info, warn};

use super::Driver;
use crate::router::apply::Kernel;
use crate::router::unanswered::{LOOK, Unanswered, note};

/// State between two looks.
#[derive(Default, Debug)]
pub(super) struct Answers {
    unanswered: Unanswered,
    looked_at: Option<Instant>,
    /// The nodes that do not answer, of which the log has told.
    silent: BTreeSet<CompactString>,
    /// Note about them.
    pub note: Option<String>,
}

impl<K: Kernel> Driver<K> {
    /// Looks at what is sent to other nodes and whether they answer, where the time has come. Nobody expects an answer of a node that is not `Ready`.
    pub(super) fn look_at_answers(&mut self, now: Instant) {
        let Some(encryption) = self.config.overlay.and_then(|overlay| overlay.wireguard()) else { return };
        if self.answers.looked_at.is_some_and(|last| now < last + LOOK) {
            return;
        }
        self.answers.looked_at = Some(now);
        // That the kernel does not tell is told with what else is read of it.
        let Ok(contacts) = self.mirrors.contacts() else { return };
        let Answers { unanswered, silent, note: told, .. } = &mut self.answers;
        unanswered.look(&contacts, now);
        // What the API server says of a node while it is away is old: what was found before stays.
        if !*self.context.nodes_are_read.borrow() {
            return;
        }
        let found = self.plan.ready_nodes_sent_to_by(|peer| unanswered.is_silent(peer, now));
        let ports = (encryption.port, self.mirrors.has_second().then(|| encryption.second_port()));
        let new: Vec<&CompactString> = found.iter().copied().filter(|node| !silent.contains(*node)).collect();
        if let Some(reason) = note(&new, ports) {
            warn!(reason, "Nodes do not answer over WireGuard");
        } else if found.is_empty() && !silent.is_empty() {
            info!("All nodes answer over WireGuard again, or are not sent to");
        }
        *told = note(&found, ports);
        *silent = found.into_iter().cloned().collect();
    }
}
