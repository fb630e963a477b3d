//! Nodes that do not answer over WireGuard, in the router's loop: what [`unanswered`](crate::router::unanswered) finds is logged, and stands in `/readyz`.

use std::collections::BTreeSet;
use std::time::Instant;

use tracing::{info, warn};

use super::Driver;
use crate::router::apply::Kernel;
use crate::router::unanswered::{LOOK, Unanswered, note};

/// State between two looks.
#[derive(Default, Debug)]
pub(super) struct Answers {
    unanswered: Unanswered,
    looked_at: Option<Instant>,
    /// Note about the nodes that do not answer.
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
        self.answers.unanswered.look(&contacts, now);
        let silent: BTreeSet<_> = self.answers.unanswered.silent(now).collect();
        let found = match silent.is_empty() {
            true => Vec::new(),
            false => self.plan.ready_nodes_of(&silent),
        };
        let found = note(&found, encryption.port);
        match (&self.answers.note, &found) {
            (None, Some(reason)) => warn!(reason, "Nodes do not answer over WireGuard"),
            (Some(_), None) => info!("No node is sent to over WireGuard without an answer any more"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        self.answers.note = found;
    }
}
