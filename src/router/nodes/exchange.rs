//! The nodes with which routes are exchanged.

use std::net::IpAddr;

use super::Nodes;

impl Nodes {
    /// Returns whether routes are exchanged with a node that is spoken with by this address.
    pub fn exchanges_routes_at(&self, address: IpAddr) -> bool {
        self.spoken_with_by(&address).filter_map(|name| self.parts.get(name)).any(|part| part.exchanges)
    }
}
