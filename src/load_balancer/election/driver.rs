//! The election at work: one candidate for the Lease, on a thread and with a client of its own, so that nothing holds up a renewal, neither
//! a decision about ten thousand Services nor a connection that is busy with their list.

use std::thread;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use serde_json::Value;
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, sleep_until};
use tracing::{info, warn};

use super::{Elector, Lease, Step, Timing, Unclaimed};
use crate::k8s::allocation::{Api, Failure, RULES};
use crate::k8s::client::{self, Access};
use crate::load_balancer::tenure::{Tenure, Tenures};
use crate::observe::health::Note;

/// Tries to give up the Lease at the end.
const RELEASES: usize = 2;

/// A candidate that has no client yet.
pub struct Candidacy {
    pub access: Access,
    /// The namespace of the Lease.
    pub namespace: String,
    pub identity: CompactString,
    /// Until when writes may be begun.
    pub usable: watch::Sender<Option<Tenure>>,
    /// Receives why the Lease cannot be read or written.
    pub note: Note,
    pub timing: Timing,
}

impl Candidacy {
    /// Contends on a thread of its own until `ended` is true; the receiver is closed when that has ended.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(self, ended: watch::Receiver<bool>) -> std::io::Result<oneshot::Receiver<()>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (out, end) = oneshot::channel();
        thread::Builder::new().name("election".to_owned()).spawn(move || {
            runtime.block_on(self.run(ended));
            drop(out);
        })?;
        Ok(end)
    }

    async fn run(self, mut ended: watch::Receiver<bool>) {
        let Candidacy { access, namespace, identity, usable, note, timing } = self;
        let mut has_failed = false;
        let client = loop {
            match client::client(&access).await {
                Ok(client) => break client,
                Err(error) if !std::mem::replace(&mut has_failed, true) => {
                    warn!(%error, "Election of the address allocator has no client of the API; retrying");
                    note.set(vec![format!("the election has no client of the API: {error:#}")]);
                }
                Err(_) => {}
            }
            tokio::select! {
                () = sleep(timing.retry) => {}
                _ = ended.changed() => return,
            }
        };
        if has_failed {
            note.set(Vec::new());
        }
        let api = Api::new(client, namespace);
        Candidate { api, identity, usable, note, timing }.run(ended).await;
    }
}

/// A candidate for the Lease.
struct Candidate {
    api: Api,
    identity: CompactString,
    /// Until when writes may be begun.
    usable: watch::Sender<Option<Tenure>>,
    note: Note,
    timing: Timing,
}

impl Candidate {
    /// Contends for the Lease until the end, and gives it up then.
    async fn run(self, mut ended: watch::Receiver<bool>) {
        let mut elector = Elector::new(self.identity.clone(), self.timing);
        let (mut lease, mut trouble, mut tenures) = (None, Trouble::default(), Tenures::default());
        while !*ended.borrow() {
            let step = elector.step(Instant::now());
            let is_claim = matches!(step, Step::Claim(_));
            let failure = match step {
                Step::Wait(at) => {
                    tokio::select! {
                        () = sleep_until(at.into()) => {}
                        changed = ended.changed() => if changed.is_err() { break },
                    }
                    continue;
                }
                Step::Read => self.read(&mut elector, &mut lease).await,
                Step::Claim(version) => self.claim(&mut elector, version.is_some(), &mut lease).await,
            };
            let tenure = tenures.follow(elector.usable_until(), Instant::now());
            self.usable.send_if_modified(|known| std::mem::replace(known, tenure) != tenure);
            // A look that leads to a claim proves nothing: the right to write it may be missing.
            let is_proof = is_claim || !matches!(elector.step(Instant::now()), Step::Claim(_));
            match trouble.note(failure.as_ref(), is_proof) {
                Some(Change::Begun(text)) => {
                    warn!(?failure, rules = RULES, "Lease of the address allocator failed; retrying");
                    self.note.set(vec![text]);
                }
                Some(Change::Reworded(text)) => self.note.set(vec![text]),
                Some(Change::Over) => {
                    info!("Lease of the address allocator recovered");
                    self.note.set(Vec::new());
                }
                None => {}
            }
        }
        for _ in 0..RELEASES {
            if elector.to_release().is_none() || self.api.put_lease(lease.as_ref(), "", self.timing.valid).await.is_ok()
            {
                return;
            }
        }
    }

    async fn read(&self, elector: &mut Elector, lease: &mut Option<Value>) -> Option<Failure> {
        match self.api.lease().await {
            Ok(read) => {
                elector.read(read.as_ref().map(read_lease), Instant::now());
                *lease = read;
                None
            }
            Err(failure) => {
                elector.unread(Instant::now());
                Some(failure)
            }
        }
    }

    async fn claim(&self, elector: &mut Elector, exists: bool, lease: &mut Option<Value>) -> Option<Failure> {
        let sent = Instant::now();
        let before = lease.as_ref().filter(|_| exists);
        match self.api.put_lease(before, &self.identity, self.timing.valid).await {
            Ok(written) => {
                elector.claimed(sent, Ok(read_lease(&written).version), Instant::now());
                *lease = Some(written);
                None
            }
            Err(failure) => {
                let is_conflict = failure == Failure::Conflict;
                let why = if is_conflict { Unclaimed::Conflict } else { Unclaimed::Failed };
                elector.claimed(sent, Err(why), Instant::now());
                Some(failure).filter(|_| !is_conflict)
            }
        }
    }
}

/// Why the Lease cannot be read or written at the moment, in the words of the note; empty where nothing is wrong.
#[derive(Default, Debug)]
struct Trouble(String);

/// Change of the trouble since it was told last.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Change {
    Begun(String),
    /// It goes on, for another reason.
    Reworded(String),
    Over,
}

impl Trouble {
    /// Notes the outcome of a step. `is_proof`: one without a failure shows that nothing is wrong any more.
    fn note(&mut self, failure: Option<&Failure>, is_proof: bool) -> Option<Change> {
        let now = match failure {
            Some(failure) => format!("the Lease kube-router-lballoc cannot be read or written: {failure}"),
            None if is_proof => String::new(),
            None => return None,
        };
        let before = std::mem::replace(&mut self.0, now.clone());
        match (before.is_empty(), now.is_empty()) {
            (true, false) => Some(Change::Begun(now)),
            (false, true) => Some(Change::Over),
            (false, false) if before != now => Some(Change::Reworded(now)),
            _ => None,
        }
    }
}

fn read_lease(lease: &Value) -> Lease {
    let text = |path: &str| lease.pointer(path).and_then(Value::as_str).unwrap_or_default().into();
    let seconds = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64).unwrap_or(0);
    Lease {
        version: text("/metadata/resourceVersion"),
        holder: text("/spec/holderIdentity"),
        valid: Duration::from_secs(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_has_the_reason_that_holds_now_and_the_log_one_line_for_all() {
        let mut trouble = Trouble::default();
        let silence = Failure::Unknown("no answer within 5 s".to_owned());
        let forbidden = Failure::Forbidden("leases is forbidden".to_owned());
        assert_eq!(trouble.note(None, true), None);
        let begun = trouble.note(Some(&silence), false);
        assert!(matches!(&begun, Some(Change::Begun(text)) if text.ends_with("no answer within 5 s")), "{begun:?}");
        assert_eq!(trouble.note(Some(&silence), false), None);
        let other = trouble.note(Some(&forbidden), false);
        assert!(matches!(&other, Some(Change::Reworded(text)) if text.ends_with("leases is forbidden")), "{other:?}");
        assert_eq!(trouble.note(None, false), None, "a look that leads to a claim proves nothing");
        assert_eq!(trouble.note(None, true), Some(Change::Over));
        assert_eq!(trouble.note(None, true), None);
    }
}
