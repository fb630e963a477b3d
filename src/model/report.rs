//! Reports about this node to the cluster.

use std::collections::{BTreeMap, BTreeSet};

/// State of pod networking on this node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// The routes to the pods of all known nodes have been in the kernel.
    pub network_is_there: bool,
    /// The Node has the condition against it.
    pub is_denied: bool,
    /// Mistakes in the Node object, each a whole sentence without secrets.
    pub mistakes: BTreeSet<String>,
    /// Problems that keep a part of it from working, each a whole sentence without secrets.
    pub problems: BTreeSet<String>,
    /// The latest news, and its number among all of this run.
    pub news: Option<(u64, News)>,
    /// Annotations that this program keeps on our own Node, by key. One that is not here is not touched.
    pub annotations: BTreeMap<&'static str, OwnAnnotation>,
}

/// An annotation of our own Node that this program writes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct OwnAnnotation {
    /// The value that it shall have; `None`: it shall be absent.
    pub wanted: Option<String>,
    /// The value that the Node was last seen to have; `None`: it is absent.
    pub seen: Option<String>,
}

/// Something that has happened on this node, and is no fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// One word for programs.
    pub word: &'static str,
    /// A whole sentence without secrets.
    pub text: String,
}
