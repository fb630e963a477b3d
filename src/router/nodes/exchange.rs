//! The nodes with which routes are exchanged, and where tunnels to nodes end.

use std::net::IpAddr;

use super::{Nodes, Part};

impl Nodes {
    /// Returns whether routes are exchanged with a node that is spoken with by this address.
    pub fn exchanges_routes_at(&self, address: IpAddr) -> bool {
        self.spoken_with_by(&address).filter_map(|name| self.parts.get(name)).any(|part| part.exchanges)
    }
}

impl Part {
    /// Returns whether tunnels to it end, and are made, as before.
    pub(super) fn has_same_ends(&self, other: &Part) -> bool {
        let ends = |part: &Part| (part.created, part.internal, part.both, part.exchanges);
        ends(self) == ends(other)
    }
}
