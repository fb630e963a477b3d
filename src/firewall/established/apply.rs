//! Ends connections that are refused: lists them on a thread of its own, has them judged in portions by the firewall's thread, which
//! has the rule set, and deletes their entries.
//!
//! One run at a time; what changes meanwhile is judged by the next. What fails is tried again.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::kernel::conntrack::{Connection, TrackedConnection};
use crate::net::Family;

use super::super::flows::Flows;
use super::Concerned;

/// Changes whose connections have not been judged, and the run that judges some.
pub struct Established {
    pending: Concerned,
    is_running: bool,
    /// Number of runs that failed one after the other, and the time of the next.
    failures: u32,
    again_at: Option<Instant>,
    out: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
}

/// A message of a run.
pub enum Report {
    /// Connections to be judged; true for each that is refused.
    Judge { connections: Vec<Connection>, verdicts: SyncSender<Vec<bool>> },
    /// The end of a run: how many connections it ended, or why it failed and what it was about.
    Done(Result<usize, (String, Concerned)>),
}

/// Connections that are judged at a time, between two turns of the firewall's loop.
const PORTION: usize = 1000;
/// The most connections of a family that one run judges. What is beyond goes on, and that is said.
const MOST: usize = 100_000;
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(5);
/// A change is given up after so many runs that failed.
const TRIES: u32 = 5;

impl Default for Established {
    fn default() -> Established {
        let (out, reports) = mpsc::channel(1);
        Established { pending: Concerned::default(), is_running: false, failures: 0, again_at: None, out, reports }
    }
}

impl Established {
    /// Returns what has changed and is not judged.
    pub fn pending(&mut self) -> &mut Concerned {
        &mut self.pending
    }

    /// Waits for a message of the run.
    pub async fn report(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }

    /// Returns when a run that failed is to be tried again.
    pub fn deadline(&self) -> Option<Instant> {
        self.again_at
    }

    /// Starts a run if there is something to judge. The rules have to be in place.
    pub fn start_due(&mut self, flows: &Arc<dyn Flows>, now: Instant) {
        if self.is_running || self.pending.is_empty() || self.again_at.is_some_and(|at| now < at) {
            return;
        }
        self.again_at = None;
        let concerned = std::mem::take(&mut self.pending);
        let (flows, out) = (flows.clone(), self.out.clone());
        let run = move || {
            let ended = end_refused(&*flows, &concerned, |connections| judged(&out, connections));
            // The firewall may have stopped.
            let _ = out.blocking_send(Report::Done(ended.map_err(|error| (error, concerned))));
        };
        match std::thread::Builder::new().name("established".to_owned()).spawn(run) {
            Ok(_) => self.is_running = true,
            Err(error) => warn!(%error, "Starting the thread that ends denied connections failed"),
        }
    }

    /// Records the end of a run. Returns the number of connections that it ended.
    pub fn done(&mut self, result: Result<usize, (String, Concerned)>, now: Instant) -> usize {
        self.is_running = false;
        match result {
            Ok(ended) => {
                self.failures = 0;
                if ended > 0 {
                    info!(connections = ended, "Ended connections that policies now deny");
                }
                ended
            }
            Err((error, concerned)) => {
                self.failures += 1;
                if self.failures < TRIES {
                    warn!(%error, "Ending connections that policies now deny failed; retrying");
                    self.pending.append(concerned);
                    self.again_at = Some(now + AGAIN);
                } else {
                    warn!(%error, "Ending connections that policies now deny failed; they go on");
                    self.failures = 0;
                }
                0
            }
        }
    }
}

/// Ends the connections of these addresses that `judge` refuses; returns their number.
///
/// # Errors
/// They cannot be listed, judged or ended; those that were judged before are ended.
pub fn end_refused(
    flows: &dyn Flows,
    concerned: &Concerned,
    mut judge: impl FnMut(Vec<Connection>) -> Result<Vec<bool>, String>,
) -> Result<usize, String> {
    let mut ended = 0;
    for family in Family::BOTH {
        let mut left = MOST;
        let mut wanted = |connection: &Connection| {
            let is_wanted = concerned.has(connection) && left > 0;
            left -= usize::from(is_wanted);
            is_wanted
        };
        let tracked = flows.connections(family, &mut wanted).map_err(|error| error.to_string())?;
        if tracked.len() == MOST {
            warn!(%family, judged = MOST, "More connections than are judged after a change of policies; the others go on");
        }
        for portion in tracked.chunks(PORTION) {
            let verdicts = judge(portion.iter().map(|tracked| tracked.connection).collect())?;
            let refused =
                portion.iter().zip(verdicts).filter(|(_, refused)| *refused).map(|(tracked, _)| tracked.clone());
            let refused: Vec<TrackedConnection> = refused.collect();
            if !refused.is_empty() {
                ended += flows.end(&refused).map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(ended)
}

/// Asks the firewall's thread.
fn judged(out: &mpsc::Sender<Report>, connections: Vec<Connection>) -> Result<Vec<bool>, String> {
    let (verdicts, answered) = sync_channel(1);
    let stopped = || "the firewall does not answer".to_owned();
    out.blocking_send(Report::Judge { connections, verdicts }).map_err(|_| stopped())?;
    answered.recv_timeout(PATIENCE).map_err(|_| stopped())
}
