//! The order in which objects of direct server return come and go.

use super::{Kernel, Mirrors};
use crate::proxy::desired::Desired;
use crate::proxy::marks::left_by_kube_router;
use crate::reconcile::Moment;

impl<K: Kernel> Mirrors<K> {
    /// Deletes a rule of kube-router after the virtual service that it says is ours.
    pub(super) fn shrink_policy_rules(&mut self, desired: &Desired, at: Moment) {
        let virtuals = &self.virtuals;
        self.policy_rules.shrink_where(&desired.policy_rules, at, |rule, _| {
            let marked = left_by_kube_router(rule);
            marked.is_none_or(|key| virtuals.lacks(key..=key) || desired.virtuals.contains_key(&key))
        });
    }
}
