//! Tells of policies whose blocks are more than the kernel is given: in the log once when that begins and once when it ends, as problems of the policies for
//! Events and for who asks, and as a number.

use std::collections::BTreeSet;

use prometheus::IntGauge;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::model::{ObjectName, PolicyProblems};

use super::oversized::Bound;
use super::policy_name::PolicyName;

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
            let name = PolicyName::from(policy);
            let problem = bound.problem(policy.namespace.is_empty());
            warn!(policy = %name, %problem, "{} has more address ranges than the kernel is given", name.kind());
        }
        for policy in self.told.difference(policies) {
            let name = PolicyName::from(policy);
            info!(policy = %name, "{} no longer has more address ranges than the kernel is given", name.kind());
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
