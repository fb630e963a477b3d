//! Tells of policies whose blocks are more than the kernel is given: in the log once when that begins and once when it ends, as problems of the policies for
//! Events and for who asks, and as a number.

use std::collections::BTreeSet;

use prometheus::IntGauge;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::model::{ObjectName, PolicyProblems};

use super::oversized::Bound;

/// The policies that were told of.
pub struct OversizedPolicies {
    told: BTreeSet<ObjectName>,
    problems: watch::Sender<PolicyProblems>,
}

impl OversizedPolicies {
    /// `problems`: receives the problem of each such policy.
    pub fn new(problems: watch::Sender<PolicyProblems>) -> OversizedPolicies {
        OversizedPolicies { told: BTreeSet::new(), problems }
    }

    /// Tells what has changed. The policies of the cluster have no namespace.
    pub fn tell(&mut self, (policies, bound): (&BTreeSet<ObjectName>, Bound), number: &IntGauge) {
        if self.told == *policies {
            return;
        }
        for policy in policies.difference(&self.told) {
            let (of, name) = described(policy);
            let problem = bound.problem(policy.namespace.is_empty());
            warn!(policy = %name, %problem, "{of} has more address ranges than the kernel is given");
        }
        for policy in self.told.difference(policies) {
            let (of, name) = described(policy);
            info!(policy = %name, "{of} no longer has more address ranges than the kernel is given");
        }
        self.told.clone_from(policies);
        number.set(i64::try_from(policies.len()).unwrap_or(i64::MAX));
        let mut problems = PolicyProblems::default();
        for policy in policies {
            problems.insert(policy.clone(), vec![bound.problem(policy.namespace.is_empty())]);
        }
        self.problems.send_replace(problems);
    }

    /// Returns the problems that were told.
    pub fn problems(&self) -> PolicyProblems {
        self.problems.borrow().clone()
    }
}

fn described(policy: &ObjectName) -> (&'static str, String) {
    match policy.namespace.is_empty() {
        true => ("ClusterNetworkPolicy", policy.name.to_string()),
        false => ("NetworkPolicy", policy.to_string()),
    }
}
