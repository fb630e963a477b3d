//! The running program's share of a report of a problem (`sluice bundle`), beside the answers that it has for users anyway.
//!
//! The program says how it was configured, what it logged last, its metrics, what preflight finds, and the cluster as it
//! knows it ([`serve`]). Who asks (`ask::bundle`) makes one archive of all that.
//!
//! The cluster is told in pages of [`PAGE`] bytes: who asks first gets the first page of the World of that moment, and its number; who asks on with the number gets
//! pages of the same World, which is kept for so long. So a cluster of 150,000 pods is of one piece and takes a page of memory.
//!
//! Secrets: configuration and World hold them in a type that shows nothing (`net::Secret`), and objects are written field by field
//! (`k8s::render`), so that nothing gets into an answer which is not named there.

pub mod serve;

use serde::{Deserialize, Serialize};

/// The paths of the questions.
pub const CONFIG: &str = "/bundle/config";
pub const HOST: &str = "/bundle/host";
pub const LOG: &str = "/bundle/log";
pub const METRICS: &str = "/bundle/metrics";
pub const PREFLIGHT: &str = "/bundle/preflight";
pub const CLUSTER: &str = "/bundle/cluster";

/// Bytes after which a page of the cluster ends.
pub const PAGE: usize = 1 << 20;

/// The first line of a page of the cluster; behind it objects as JSON, one a line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct PageHead {
    /// The World's number.
    pub world: u64,
    /// The name of this host's Node.
    pub node: String,
    /// The kinds of objects that the program reads.
    pub kinds: Vec<String>,
    /// Everything of these kinds is known.
    pub complete: bool,
    /// The place from which the next page of this kind begins; absent behind the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}
