//! Which chains get another name in a change.

use super::OwnTable;
use crate::kernel::nftables::plan::Plan;

impl OwnTable {
    /// Lets chains that go have the names of those that take their place. One of which the kernel does not tell the handle goes as any other.
    pub(super) fn rename_chains(&mut self, plan: &mut Plan<'_>) {
        if !self.may_rename {
            return;
        }
        for (from, to) in plan.successors(&self.unreached) {
            if let Ok(Some(handle)) = self.reader().chain_handle(from) {
                plan.rename(from, to, handle);
            }
        }
    }
}
