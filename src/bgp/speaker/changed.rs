//! Neighbours that have changed, for an owner that shows all of them: what it asks for follows from the changes, not from their number.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::session::State;
use super::{Neighbour, Speaker};
use crate::bfd;

/// State of a neighbour that is shown beside its settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    pub state: State,
    /// Whether it has a session, or routes of it are retained.
    pub is_kept: bool,
    /// Whether BFD is up; `None` where the path is not watched.
    pub path_is_up: Option<bool>,
    /// Number of failures of the path that BFD has found; `None` where it is not watched.
    pub path_failures: Option<u64>,
}

impl Speaker {
    /// Takes the neighbours that were added or removed, or whose settings or [`Summary`] have changed, since this was last called.
    pub fn take_changed(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.changed)
    }
}

impl Neighbour {
    pub fn summary(&self) -> Summary {
        let watched = self.wanted.liveness;
        Summary {
            state: self.peer.state(),
            is_kept: self.peer.is_kept(),
            path_is_up: watched.map(|_| self.path.status.is_some_and(|status| status.state == bfd::State::Up)),
            path_failures: watched.map(|_| self.path.failures),
        }
    }

    /// Records its summary; returns whether it is another one than before.
    pub(super) fn has_another_summary(&mut self) -> bool {
        let summary = self.summary();
        self.noted.replace(summary) != Some(summary)
    }
}
