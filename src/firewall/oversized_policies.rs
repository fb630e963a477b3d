//! Tells of policies of which more would come than the kernel is given: in the log once when that begins and once when it ends, as problems of the policies for
//! Events and for who asks, and as a number.

use std::collections::BTreeMap;

use prometheus::IntGauge;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::model::{ObjectName, PolicyProblems};

use super::oversized::{Bound, Excess};
use super::policy_name::PolicyName;

/// The policies that were told of.
pub struct OversizedPolicies {
    told: BTreeMap<ObjectName, Excess>,
    problems: watch::Sender<PolicyProblems>,
}

impl OversizedPolicies {
    /// `problems`: receives the problem of each such policy.
    pub fn new(problems: watch::Sender<PolicyProblems>) -> OversizedPolicies {
        OversizedPolicies { told: BTreeMap::new(), problems }
    }

    /// Tells what has changed. The policies of the cluster have no namespace.
    pub fn tell(&mut self, (policies, bound): (&BTreeMap<ObjectName, Excess>, Bound), number: &IntGauge) {
        if self.told == *policies {
            return;
        }
        for (policy, excess) in policies.iter().filter(|(policy, excess)| self.told.get(*policy) != Some(*excess)) {
            let (name, words) = (PolicyName::from(policy), excess.words());
            let problem = bound.problem(*excess, policy.namespace.is_empty());
            warn!(policy = %name, %problem, "{} has more {words} than the kernel is given", name.kind());
        }
        for (policy, excess) in self.told.iter().filter(|(policy, excess)| policies.get(*policy) != Some(*excess)) {
            let (name, words) = (PolicyName::from(policy), excess.words());
            info!(policy = %name, "{} no longer has more {words} than the kernel is given", name.kind());
        }
        self.told.clone_from(policies);
        number.set(i64::try_from(policies.len()).unwrap_or(i64::MAX));
        let mut problems = PolicyProblems::default();
        for (policy, excess) in policies {
            problems.insert(policy.clone(), vec![bound.problem(*excess, policy.namespace.is_empty())]);
        }
        self.problems.send_replace(problems);
    }

    /// Returns the problems that were told.
    pub fn problems(&self) -> PolicyProblems {
        self.problems.borrow().clone()
    }
}
