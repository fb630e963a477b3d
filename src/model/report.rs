//! What this node says of itself to the cluster.

use std::collections::BTreeSet;

/// How pod networking stands on this node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// The routes to the pods of all known nodes have been in the kernel.
    pub network_is_there: bool,
    /// The Node says that it is not there.
    pub is_denied: bool,
    /// What of the Node object makes no sense, each a whole sentence without secrets.
    pub odd: BTreeSet<String>,
    /// What keeps a part of it from working, each a whole sentence without secrets.
    pub problems: BTreeSet<String>,
}
