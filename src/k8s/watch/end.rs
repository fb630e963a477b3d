//! Reasons for the end of a request or a stream.

use crate::k8s::outage::Cause;

/// Why a request or a stream ended.
pub enum End {
    /// As it should: the server closes every watch after a while.
    Orderly,
    /// Everything was listed; the watch follows.
    Listed,
    /// The resourceVersion to resume at has expired (410).
    Expired,
    /// The server cannot serve a list as new as the version seen.
    NotServed(String),
    /// The server has no streaming lists.
    NoStreaming,
    /// The list stalled.
    Silent,
    Failed(Cause, String),
    /// The receiver is gone.
    Closed,
}
