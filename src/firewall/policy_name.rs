//! The name of a policy of either kind, with that of its kind.

use std::fmt;

use compact_str::CompactString;

use crate::model::ObjectName;

/// A policy of either kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PolicyName {
    Namespaced(ObjectName),
    Cluster(CompactString),
}

impl PolicyName {
    /// Returns the name of the policy's kind.
    pub fn kind(&self) -> &'static str {
        match self {
            PolicyName::Namespaced(_) => "NetworkPolicy",
            PolicyName::Cluster(_) => "ClusterNetworkPolicy",
        }
    }
}

impl From<&ObjectName> for PolicyName {
    /// A policy of the cluster has no namespace.
    fn from(name: &ObjectName) -> PolicyName {
        match name.namespace.is_empty() {
            true => PolicyName::Cluster(CompactString::from(name.name.as_str())),
            false => PolicyName::Namespaced(name.clone()),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyName::Namespaced(name) => write!(f, "{name}"),
            PolicyName::Cluster(name) => write!(f, "{name}"),
        }
    }
}
