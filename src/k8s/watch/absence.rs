//! A kind that the API server may not have: a custom resource, which is there while somebody has installed it, or one that servers
//! have from a version on.
//!
//! It may be there in another version; all that are known are tried, the newest first.
//!
//! Not to have it is no failure. It counts as listed, without objects, so that nobody waits for it, and is asked for
//! again at long intervals. Two things are not taken for its absence:
//!
//! - *404 while it was there a moment ago*: servers that start may answer so before they know their custom resources, and
//!   what was in force must not go for that. It has to be answered for half a minute, without anything else in between: a
//!   server that is not reached says nothing. So it is at a start, where an earlier run
//!   may have put something in force; meanwhile nobody waits for the kind.
//! - *403*: a server refuses what its rules of RBAC do not allow, whether it is there or not. Discovery, which everybody may
//!   read, tells. Where it is there it is an outage like others, but nobody waits for it either: what needs the other
//!   kinds goes on, with what was known of this one, and it is asked for ever more rarely, in the end every ten minutes. Nobody waits either
//!   where its first list fails in another way for some time.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::info;

use super::pace::{Failures, Timing};
use super::{Follower, Gone};
use crate::k8s::Event;
use crate::k8s::answer::Refusal;
use crate::k8s::outage::Cause;
use crate::k8s::parse::ApiObject;
use crate::k8s::request::Failure;

/// Since when a kind is not there, and how often that was found.
#[derive(Default, Debug)]
pub struct Absence {
    since: Option<Instant>,
    /// Since when its list fails.
    failing: Option<Instant>,
    /// Presence of the resource as reported last.
    told: Option<bool>,
    found: Failures,
    /// How often it was refused although it is there.
    refused: Failures,
}

impl Absence {
    /// Notes an answer, or none, that does not say that the kind is not there: what was said before that proves nothing later.
    pub fn is_not_told(&mut self) {
        self.since = None;
    }
}

impl<K: ApiObject> Follower<K> {
    /// Finds out what a refusal means, tells it, and waits until the next request.
    pub(super) async fn look_for_kind(&mut self, refusal: &Refusal) -> Result<(), Gone> {
        let is_there = match refusal.code {
            404 => Ok(false),
            _ => self.asking.is_served().await,
        };
        if !matches!(is_there, Ok(false)) {
            self.absence.is_not_told();
        }
        match is_there {
            Ok(false) => {
                // A 404 is about one version; who has no right is told by discovery about all of them.
                if refusal.code == 404 && self.asking.try_other_version() {
                    self.version = None;
                    return Ok(());
                }
                self.note_absence().await
            }
            Ok(true) => {
                self.begin_outage(Cause::of_status(refusal.code), &refusal.to_string()).await?;
                self.withhold().await?;
                // Who has not the right may never get it, and each refusal is a line of the server's audit log.
                let delay = self.absence.refused.delay(&self.long_pace(self.common.timing.last_refused));
                self.wait_long(delay).await
            }
            Err(failure) => {
                let (cause, reason) = match failure {
                    Failure::Refused(refusal) => (Cause::of_status(refusal.code), refusal.to_string()),
                    Failure::Broken(reason) => (Cause::Unreachable, reason),
                };
                self.begin_outage(cause, &reason).await?;
                self.note_lasting_failure().await?;
                self.pause().await
            }
        }
    }

    async fn note_absence(&mut self) -> Result<(), Gone> {
        let since = *self.absence.since.get_or_insert_with(Instant::now);
        if self.absence.told != Some(false) && since.elapsed() < self.common.timing.gone {
            if self.seen.is_none() {
                self.withhold().await?;
            }
            return self.pause().await;
        }
        if self.absence.told.replace(false) != Some(false) {
            info!(kind = %self.kind, "API server does not have this kind; looking for it now and then");
            self.tell(Event::Listing(self.kind)).await?;
            self.tell(Event::Listed(self.kind)).await?;
        }
        (self.version, self.seen, self.wants_newest) = (None, None, false);
        let absence = std::mem::take(&mut self.absence);
        self.end_outage();
        self.absence = absence;
        self.absence.refused.end();
        let delay = self.absence.found.delay(&self.long_pace(self.common.timing.last_look));
        self.wait_long(delay).await
    }

    /// Tells that nobody is to wait for this kind, once.
    async fn withhold(&mut self) -> Result<(), Gone> {
        if self.absence.told.replace(true) == Some(true) {
            return Ok(());
        }
        self.tell(Event::Withheld(self.kind)).await
    }

    /// Tells the same of a kind that may not be there, whose first list has failed for some time.
    pub(super) async fn note_lasting_failure(&mut self) -> Result<(), Gone> {
        if !self.kind.may_be_absent() || self.seen.is_some() || self.absence.told.is_some() {
            return Ok(());
        }
        let since = *self.absence.failing.get_or_insert_with(Instant::now);
        if since.elapsed() < self.common.timing.gone {
            return Ok(());
        }
        self.withhold().await
    }

    fn long_pace(&self, last: Duration) -> Timing {
        Timing { first: self.common.timing.first_look, last, ..self.common.timing }
    }

    async fn wait_long(&mut self, delay: Duration) -> Result<(), Gone> {
        tokio::select! {
            () = sleep(delay) => Ok(()),
            () = self.common.out.closed() => Err(Gone),
        }
    }
}
