//! Packs the large maps of the plan, for which there is time when nothing is to be done.

use super::Plan;

impl Plan {
    /// Packs what nodes, Services and neighbours filled one by one.
    pub fn pack(&mut self) {
        self.routes.pack();
        self.nodes.pack();
        self.peers.pack();
        self.announced.pack();
    }
}
