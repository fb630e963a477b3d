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
        let (mut lease, mut is_failing, mut tenures) = (None, false, Tenures::default());
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
            match failure {
                Some(failure) if !std::mem::replace(&mut is_failing, true) => {
                    warn!(?failure, rules = RULES, "Lease of the address allocator failed; retrying");
                    self.note.set(vec![format!("the Lease kube-router-lballoc cannot be read or written: {failure}")]);
                }
                // A look that leads to a claim proves nothing: the right to write it may be missing.
                None if is_failing && (is_claim || !matches!(elector.step(Instant::now()), Step::Claim(_))) => {
                    is_failing = false;
                    info!("Lease of the address allocator recovered");
                    self.note.set(Vec::new());
                }
                _ => {}
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

fn read_lease(lease: &Value) -> Lease {
    let text = |path: &str| lease.pointer(path).and_then(Value::as_str).unwrap_or_default().into();
    let seconds = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64).unwrap_or(0);
    Lease {
        version: text("/metadata/resourceVersion"),
        holder: text("/spec/holderIdentity"),
        valid: Duration::from_secs(seconds),
    }
}
