//! Warnings about policies, as problems of these, for those who ask why a policy does not do what it says.

use std::collections::HashSet;

use super::Joined;
use crate::k8s::{Kind, ObjectId, Warning};
use crate::model::{Cause, ObjectName, ServiceProblem, put_problems};

impl Joined {
    /// Replaces the warnings of an object, if it is a policy. One that is gone has none.
    pub fn set_warnings(&mut self, id: &ObjectId, warnings: &[Warning]) {
        if !matches!(id.kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy) {
            return;
        }
        let problem = |warning: &Warning| {
            let text = warning.to_string();
            ServiceProblem::new(Cause::Policy, &text.clone(), text)
        };
        let changed = put_problems(&mut self.policy_problems, &id.name, warnings.iter().map(problem).collect());
        self.unpublished |= changed && self.firewall.tells(id.kind);
    }

    /// Forgets the problems of policies of a kind that its listing has not named.
    pub(super) fn forget_problems(&mut self, kind: Kind, named: &HashSet<ObjectName>) {
        let is_its = |name: &ObjectName| match kind {
            Kind::NetworkPolicy => !name.namespace.is_empty(),
            Kind::ClusterNetworkPolicy => name.namespace.is_empty(),
            _ => false,
        };
        let is_gone = |name: &&ObjectName| is_its(name) && !named.contains(*name);
        let gone: Vec<ObjectName> =
            self.policy_problems.iter().map(|(name, _)| name).filter(is_gone).cloned().collect();
        for name in gone {
            self.unpublished |= self.policy_problems.remove(&name).is_some();
        }
    }
}
