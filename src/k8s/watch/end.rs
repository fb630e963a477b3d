//! Reasons for the end of a request or a stream.

use super::Follower;
use crate::k8s::answer::Refusal;
use crate::k8s::outage::Cause;
use crate::k8s::parse::ApiObject;
use crate::k8s::request::Failure;

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
    /// The server refuses as it does for a kind that it does not have.
    NotThere(Refusal),
    Failed(Cause, String),
    /// The receiver is gone.
    Closed,
}

impl<K: ApiObject> Follower<K> {
    /// Maps a failed request to its consequence.
    pub(super) fn end_of(&self, failure: Failure) -> End {
        match failure {
            Failure::Broken(reason) => End::Failed(Cause::Unreachable, reason),
            Failure::Refused(refusal) => self.end_by(&refusal),
        }
    }

    /// Maps a refusal to its consequence.
    pub(super) fn end_by(&self, refusal: &Refusal) -> End {
        match (refusal.code, self.pages, &self.version) {
            (410, ..) => End::Expired,
            (403 | 404, ..) if self.kind.may_be_absent() => End::NotThere(refusal.clone()),
            (400 | 422, None, None) => End::NoStreaming,
            (_, _, None) if refusal.is_too_new() => End::NotServed(refusal.to_string()),
            _ => End::Failed(Cause::of_status(refusal.code), refusal.to_string()),
        }
    }

    /// Returns whether this version is older than the newest seen. Versions are numbers (KEP-5504); any other never is.
    pub(super) fn is_older_than_seen(&self, version: Option<&str>) -> bool {
        let number = |version: Option<&str>| version.and_then(|version| version.parse::<u64>().ok());
        match (number(version), number(self.seen.as_deref())) {
            (Some(version), Some(seen)) => version < seen && !self.wants_newest,
            _ => false,
        }
    }
}
