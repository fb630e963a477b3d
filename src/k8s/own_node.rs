//! Requests to the API server about our own Node, and the pacing of attempts to write to it.
//!
//! Where the server cannot be reached or does not answer, a write is tried again, later and later; while the right is missing, which is
//! logged once with the rule that would give it, every hour, or as the writer's [`Timing`] says.

use std::time::Duration;

use kube::core::request;
use serde_json::Value;
use tokio::time::timeout;
use tracing::{info, warn};

use super::client::{ApiClient, chain};

/// The client, and the name of our own Node.
#[derive(Clone)]
pub(super) struct OwnNode {
    pub client: ApiClient,
    pub name: String,
    pub timing: Timing,
}

/// Delays and patience; shorter in tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Time limit for an answer.
    pub patience: Duration,
    /// The first delay after a failure; it doubles up to `last`.
    pub first: Duration,
    pub last: Duration,
    /// The delay while the right is missing.
    pub without_right: Duration,
}

pub(super) const TIMING: Timing = Timing {
    patience: Duration::from_secs(15),
    first: Duration::from_secs(1),
    last: Duration::from_secs(60),
    without_right: Duration::from_secs(3600),
};

/// State of the attempts to write one thing.
pub(super) struct Attempts {
    what: &'static str,
    /// The rule of RBAC that is needed.
    rule: &'static str,
    timing: Timing,
    pub pause: Duration,
    pub is_failing: bool,
    pub lacks_right: bool,
}

/// Outcome of an attempt that met no obstacle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    /// The server has taken what was written.
    Accepted,
    /// The server has answered, and there was nothing to write.
    Answered,
    /// There was nothing to write, and nothing was asked.
    Nothing,
}

/// Why a write was not accepted.
#[derive(Debug)]
pub(super) enum Refused {
    /// The right is missing (403).
    Forbidden(String),
    /// The server does not take what was written (400, 413, 422).
    Invalid(String),
    Failed(String),
}

pub(super) type Built = Result<http::Request<Vec<u8>>, request::Error>;

impl OwnNode {
    /// Sends a request, and returns the object that the server answers with.
    ///
    /// # Errors
    /// The right is missing, or the request failed.
    pub async fn send(&self, request: Built) -> Result<Value, Refused> {
        let request = request.map_err(|error| Refused::Failed(chain(&error)))?;
        let client = self.client.current().await;
        match timeout(self.timing.patience, client.request::<Value>(request)).await {
            Err(_) => Err(Refused::Failed("no answer in time".to_owned())),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(Refused::Forbidden(status.message.clone())),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 413 | 422) => {
                Err(Refused::Invalid(status.message.clone()))
            }
            Ok(Err(error)) => Err(Refused::Failed(chain(&error))),
        }
    }
}

impl Attempts {
    pub fn new(what: &'static str, rule: &'static str, timing: Timing) -> Attempts {
        Attempts { what, rule, timing, pause: timing.first, is_failing: false, lacks_right: false }
    }

    /// Records the outcome of an attempt, and logs what is new about it.
    pub fn note(&mut self, told: &Result<Sent, Refused>) {
        let (what, rule) = (self.what, self.rule);
        match told {
            // Whether it would work again is not known.
            Ok(Sent::Nothing) => {}
            // Whether the right to write is there is not known.
            Ok(Sent::Answered) => (self.is_failing, self.pause) = (false, self.timing.first),
            Ok(Sent::Accepted) => {
                if self.is_failing || self.lacks_right {
                    info!(what, "Write to this node recovered");
                }
                (self.is_failing, self.lacks_right, self.pause) = (false, false, self.timing.first);
            }
            Err(Refused::Forbidden(reason)) => {
                if !std::mem::replace(&mut self.lacks_right, true) {
                    let pause = self.timing.without_right;
                    warn!(what, reason, rule, ?pause, "No permission to write to this node; retrying");
                }
                self.pause = self.timing.without_right;
            }
            Err(Refused::Invalid(reason) | Refused::Failed(reason)) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(what, reason, "Write to this node failed; retrying");
                }
                let doubled = if self.pause > self.timing.last { self.timing.first } else { self.pause * 2 };
                self.pause = doubled.min(self.timing.last);
            }
        }
    }
}
