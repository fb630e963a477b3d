//! A ClusterNetworkPolicy, with nothing decided but what its unreadable parts mean.
//!
//! Kubernetes: `policy.networking.k8s.io/v1beta1` ClusterNetworkPolicy. It belongs to no namespace, selects pods of any of
//! them, and its rules are ordered: the first that matches decides. A rule that could not be read is one that
//! fails closed (`k8s::parse::cluster_network_policy`): Accept without any peer, or Deny for everybody.

use compact_str::CompactString;

use super::policy::PolicyRule;
use super::selector::Selector;

/// A policy of the whole cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterNetworkPolicy {
    pub tier: Tier,
    /// 0 to 1000. Within a tier the policy with the lowest is evaluated first.
    pub priority: u16,
    pub subject: Subject,
    /// Rules for traffic to the subject, in order; without rules the policy has no effect on it.
    pub ingress: Box<[ClusterRule]>,
    /// Rules for traffic from the subject; like `ingress`.
    pub egress: Box<[ClusterRule]>,
}

/// When a policy is evaluated, relative to NetworkPolicies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// Before them: they cannot override it.
    Admin,
    /// After them, for pods that none of them isolates.
    Baseline,
}

/// `spec.subject`: the pods that the policy is for. `namespaces` alone selects all pods of those.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    pub namespaces: Selector,
    pub pods: Selector,
}

/// One entry of `ingress[]` or `egress[]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterRule {
    /// Empty where the rule has none.
    pub name: CompactString,
    pub action: Action,
    /// The packets that it matches. Its peers never are of a policy's own namespace.
    pub matches: PolicyRule,
}

/// Action of a rule on the packets that it matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// They pass, and no further rule of this direction is evaluated.
    Accept,
    /// They are refused.
    Deny,
    /// The rest of the tier is skipped.
    Pass,
}

impl ClusterNetworkPolicy {
    /// The highest priority number.
    pub const LAST_PRIORITY: u16 = 1000;
}

impl Tier {
    /// The API's name.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Admin => "Admin",
            Tier::Baseline => "Baseline",
        }
    }
}

impl Action {
    /// The API's name.
    pub fn name(self) -> &'static str {
        match self {
            Action::Accept => "Accept",
            Action::Deny => "Deny",
            Action::Pass => "Pass",
        }
    }
}
