//! Deleting stale conntrack entries at the end of a round, at a bounded price.

use super::{Kernel, Mirrors};
use crate::kernel::processor::thread_time;
use crate::proxy::desired::Desired;
use crate::proxy::udp_flows::Forgetting;
use crate::reconcile::Moment;

impl<K: Kernel> Mirrors<K> {
    /// Deletes the entries of UDP flows whose destinations have gone.
    pub(super) fn forget_flows(&mut self, desired: &Desired, at: Moment) -> Option<Forgetting> {
        let (wanted, virtuals) = (self.virtuals_it_takes(desired), &self.virtuals);
        self.udp.note_after(&wanted, |key| {
            if virtuals.postponed().contains(key) {
                // It is not as desired yet.
                return Err(());
            }
            match virtuals.seen().and_then(|seen| seen.get(key)) {
                Some(existing) => Ok(Some(existing)),
                None if virtuals.lacks(*key..=*key) => Ok(None),
                None => Err(()),
            }
        });
        let begun = thread_time();
        let forgotten = self.udp.forget(at.now, |flows| self.kernel.forget_flows(flows))?;
        self.udp.took(thread_time().saturating_sub(begun), at.now);
        Some(forgotten)
    }
}
