//! Result of the selection for each route to a prefix, calculated again for who asks.

use ipnet::IpNet;

use super::super::best_path::{self, Step};
use super::{Path, PeerId, Table, candidates};

/// Result of the selection for one route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Selection {
    Best,
    /// Lost at this step, against the route of this source.
    Lost {
        step: Step,
        by: PeerId,
    },
    /// No candidate: its next hop is unreachable.
    Unreachable,
    /// No candidate: it was refused on import.
    Unused,
}

impl Table {
    /// Result of the selection for each route to a prefix, in their order.
    pub fn selection(&self, prefix: IpNet) -> Vec<Selection> {
        let paths = self.paths(prefix);
        let candidates = candidates(paths, &self.sources, &self.unreachable);
        let none = |path: &Path| if path.used.is_some() { Selection::Unreachable } else { Selection::Unused };
        let mut selection: Vec<Selection> = paths.iter().map(none).collect();
        for (place, defeat) in candidates.places.iter().zip(best_path::defeats(&candidates.all)) {
            let by = |by: usize| candidates.places.get(by).and_then(|by| paths.get(*by)).map(|path| path.source);
            let lost = defeat.and_then(|defeat| Some(Selection::Lost { step: defeat.step, by: by(defeat.by)? }));
            selection.get_mut(*place).into_iter().for_each(|one| *one = lost.unwrap_or(Selection::Best));
        }
        selection
    }
}
