//! Which annotations of Nodes count, as an administrator says it by flags.

use std::collections::BTreeSet;

use compact_str::CompactString;

/// The annotations of Nodes that are believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeAnnotations {
    /// `--node-pod-cidr-annotations`: those with pod ranges (`kube-router.io/pod-cidrs`, `kube-router.io/pod-cidr`). Without them
    /// `spec.podCIDRs` alone counts.
    pub pod_cidrs: bool,
    /// `--rr-server-nodes`: the names of the Nodes whose `kube-router.io/rr.server` counts; `None` for all.
    pub reflectors: Option<BTreeSet<CompactString>>,
}

impl Default for NodeAnnotations {
    /// All of them are believed, as by kube-router.
    fn default() -> NodeAnnotations {
        NodeAnnotations { pod_cidrs: true, reflectors: None }
    }
}
