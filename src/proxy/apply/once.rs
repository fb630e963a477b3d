//! Memory of what is as desired: once, and not once more as seen.

use super::{Kernel, Mirrors};
use crate::proxy::desired::Desired;
use crate::reconcile::Reflection;

impl<K: Kernel> Mirrors<K> {
    /// Keeps in memory once what is as desired.
    pub fn share(&mut self, desired: &Desired) {
        self.elements.share(&desired.elements);
        self.table.share(&desired.table);
        self.virtuals.share(&desired.virtuals);
        self.routes.share(&desired.routes);
        // Else the maps that were passed on would keep what nothing else holds any longer.
        if self.told_for.is_some() && self.marks().are_known() {
            self.tell_ownership(desired);
        }
    }

    /// Returns the large kinds of which what is desired and what was last seen are two pieces of memory, by their names.
    pub fn standing_twice(&self, desired: &Desired) -> Vec<&'static str> {
        let once = [
            (self.elements.name(), self.elements.seen().is_none_or(|seen| seen.is_one_with(&desired.elements))),
            (self.table.name(), self.table.seen().is_none_or(|seen| seen.is_one_with(&desired.table))),
            (self.virtuals.name(), self.virtuals.seen().is_none_or(|seen| seen.is_one_with(&desired.virtuals))),
            (self.routes.name(), self.routes.seen().is_none_or(|seen| seen.is_one_with(&desired.routes))),
        ];
        once.into_iter().filter(|(_, is_once)| !is_once).map(|(name, _)| name).collect()
    }
}
