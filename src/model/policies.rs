//! Policies by name, apart from a cluster: those of a file.

use std::collections::BTreeMap;
use std::sync::Arc;

use compact_str::CompactString;

use super::{ClusterNetworkPolicy, NetworkPolicy, ObjectName};

/// Policies of both kinds, sorted; each name once for each kind.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Policies {
    pub policies: BTreeMap<ObjectName, Arc<NetworkPolicy>>,
    pub cluster_policies: BTreeMap<CompactString, Arc<ClusterNetworkPolicy>>,
}
