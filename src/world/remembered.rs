//! The state of the cluster that an earlier run knew, where the source does not tell it.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::Builder;
use super::last_known::{Forgotten, Known};
use crate::model::Cluster;

impl Builder {
    /// Falls back on the last known state where nothing better is known.
    pub(super) async fn remember(&mut self) {
        if !self.joined.may_remember() {
            return;
        }
        let Some(file) = self.keeper.as_ref().map(|keeper| keeper.file().clone()) else { return };
        let Some(read) = self.read_last_known().await else { return };
        let path = file.path().to_string_lossy().into_owned();
        match read {
            Ok(Some(known)) => {
                let (services, policies) = (known.cluster.services.len(), known.cluster.policies.len());
                warn!(%path, services, policies, "Cluster not readable yet; using the last known state");
                self.joined.remember(known);
                self.age.set(vec![age(file.written_at())]);
                self.publish(None);
            }
            Ok(None) => {
                warn!(%path, "Cluster not readable yet, and there is no last known state");
                self.joined.remember_nothing();
            }
            Err(error) => {
                warn!(%path, %error, "Last known state is invalid; ignored");
                self.joined.remember_nothing();
            }
        }
    }

    /// Looks in the last known state for objects that cannot be parsed now; returns whether one was found.
    pub(super) async fn recall(&mut self) -> bool {
        if !self.joined.lacks_good_versions() {
            return false;
        }
        match self.read_last_known().await {
            Some(Ok(Some(known))) => self.joined.recall(&known.cluster),
            // Without a file, or with a bad one, there is no good version: that is reported of the object.
            _ => self.joined.recall(&Cluster::default()),
        }
    }

    /// Reads the last known state without blocking the task. `None` where none is kept.
    async fn read_last_known(&self) -> Option<Result<Option<Known>, Forgotten>> {
        let file = self.keeper.as_ref()?.file().clone();
        let read = spawn_blocking(move || file.read()).await;
        Some(read.unwrap_or_else(|error| Err(Forgotten::Unreadable(error.into()))))
    }
}

/// Says how old the last known state is.
fn age(written: Option<SystemTime>) -> String {
    let at = written.and_then(|at| Timestamp::try_from(at).ok());
    let at = at.map(|at| format!(", written at {at:.0},")).unwrap_or_default();
    format!("the cluster has not been read since the start; the state that an earlier run knew last{at} is used")
}
