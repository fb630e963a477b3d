//! Marks connections that are refused: lists them on a thread of its own, has them judged in portions by the firewall's thread, which
//! has the rule set, and changes their marks.
//!
//! One run at a time; what changes meanwhile is judged by the next, after a pause that grows with what the run took: a node may track a
//! million connections, and in a large cluster something changes all the time. What fails is tried again.

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::kernel::conntrack::{Connection, TrackedConnection, Transport};
use crate::model::Authority;
use crate::net::Family;

use super::super::flows::Flows;
use super::super::plan::{Plan, RuleSetChanges};
use super::{Concerned, ENDED};

/// Changes whose connections have not been judged, and the run that judges some.
pub struct Established {
    pending: Concerned,
    /// The cluster was known completely before, so a change of the rule set is one of the cluster.
    is_known: bool,
    /// There may be connections with the mark.
    has_marked: bool,
    is_running: bool,
    /// Number of runs that failed one after the other, and the earliest time of the next run.
    failures: u32,
    not_before: Option<Instant>,
    /// Since when rules that are not in place hold up a run, and whether the log says so.
    held_up: Option<(Instant, bool)>,
    out: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
}

/// A message of a run.
pub enum Report {
    /// Connections to be judged; true for each that is refused, in their order. An answer may stop early, after one at least.
    Judge { connections: Vec<Connection>, verdicts: SyncSender<Vec<bool>> },
    /// The end of a run: what it marked, or why it failed and what it was about; and how long it took.
    Done { result: Result<Marked, (String, Concerned)>, took: Duration },
}

/// The result of a run.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Marked {
    /// Number of connections that got the mark.
    pub ended: usize,
    /// Number of those that lost it.
    pub allowed: usize,
    /// Number of those that had it and keep it.
    pub kept: usize,
}

/// The most connections that are asked about at a time.
const PORTION: usize = 1000;
/// The most connections of a family that are listed at a time.
const MOST: usize = 100_000;
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(5);
/// A change is given up after so many runs that failed.
const TRIES: u32 = 5;
/// A run is followed by a pause of so many times what it took, and of this length at most.
const PAUSES: u32 = 9;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The time after which the log says that rules hold up a run.
const LONG: Duration = Duration::from_secs(60);

impl Default for Established {
    fn default() -> Established {
        let (out, reports) = mpsc::channel(1);
        Established {
            pending: Concerned::default(),
            is_known: false,
            has_marked: true,
            is_running: false,
            failures: 0,
            not_before: None,
            held_up: None,
            out,
            reports,
        }
    }
}

impl Established {
    /// Notes a change of the rule set. What a start learns, after what it remembered or knew in part, only concerns connections that have
    /// the mark: an earlier run of this program may have left some.
    pub fn note(&mut self, plan: &Plan, changed: &RuleSetChanges, authority: Authority) {
        if self.is_known {
            self.pending.add(plan, changed);
            self.pending.marked |= self.has_marked && !changed.is_empty();
        } else if authority == Authority::Complete {
            self.is_known = true;
            self.pending.marked = true;
        }
    }

    /// Waits for a message of the run.
    pub async fn report(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }

    /// Returns when the next run is to start; `None` where there is nothing to judge, or what a run waits for says so itself.
    pub fn deadline(&self) -> Option<Instant> {
        let waits = self.is_running || self.held_up.is_some() || self.pending.is_empty();
        self.not_before.filter(|_| !waits)
    }

    /// Starts a run if there is something to judge and the rules are in place.
    pub fn start_due(&mut self, flows: &Arc<dyn Flows>, are_in_place: bool, now: Instant) {
        if self.is_running || self.pending.is_empty() {
            return;
        }
        if !are_in_place {
            return self.hold_up(now);
        }
        self.held_up = None;
        if self.not_before.is_some_and(|at| now < at) {
            return;
        }
        self.not_before = None;
        let mut concerned = std::mem::take(&mut self.pending);
        concerned.marked |= self.has_marked;
        let kept = concerned.clone();
        let (flows, out) = (flows.clone(), self.out.clone());
        let run = move || {
            let begun = Instant::now();
            let marked = end_refused(&*flows, &concerned, |connections| judged(&out, connections));
            let result = marked.map_err(|error| (error, concerned));
            // The firewall may have stopped.
            let _ = out.blocking_send(Report::Done { result, took: begun.elapsed() });
        };
        match std::thread::Builder::new().name("established".to_owned()).spawn(run) {
            Ok(_) => self.is_running = true,
            Err(error) => {
                warn!(%error, "Starting the thread that ends denied connections failed; retrying");
                self.pending = kept;
                self.not_before = Some(now + AGAIN);
            }
        }
    }

    fn hold_up(&mut self, now: Instant) {
        let (since, is_told) = self.held_up.get_or_insert((now, false));
        if !*is_told && now.saturating_duration_since(*since) >= LONG {
            *is_told = true;
            warn!("Connections that policies now deny go on, because not all rules are in place");
        }
    }

    /// Records the end of a run. Returns the number of connections that it ended.
    pub fn done(&mut self, result: Result<Marked, (String, Concerned)>, took: Duration, now: Instant) -> usize {
        self.is_running = false;
        let (error, concerned) = match result {
            Ok(marked) => {
                self.failures = 0;
                self.not_before = Some(now + (took * PAUSES).min(LONGEST_PAUSE));
                return self.tell(marked);
            }
            Err(failed) => failed,
        };
        self.failures += 1;
        if self.failures < TRIES {
            warn!(%error, "Ending connections that policies now deny failed; retrying");
            self.pending.append(concerned);
        } else {
            warn!(%error, "Ending connections that policies now deny failed; they go on");
            self.failures = 0;
        }
        self.not_before = Some(now + AGAIN);
        0
    }

    fn tell(&mut self, Marked { ended, allowed, kept }: Marked) -> usize {
        // While there may be some, each run judges all connections with marks.
        self.has_marked = ended + kept > 0;
        if ended > 0 {
            info!(connections = ended, "Ended connections that policies now deny");
        }
        if allowed > 0 {
            info!(connections = allowed, "Connections that were ended are allowed again");
        }
        ended
    }
}

/// Marks the connections that are concerned and that `judge` refuses, and takes the mark from those that it does not.
///
/// # Errors
/// They cannot be listed, judged or marked; those that were judged before are marked.
pub fn end_refused(
    flows: &dyn Flows,
    concerned: &Concerned,
    mut judge: impl FnMut(Vec<Connection>) -> Result<Vec<bool>, String>,
) -> Result<Marked, String> {
    let mut marked = Marked::default();
    for family in Family::BOTH {
        let bits = match (concerned.is_about(family), concerned.marked) {
            (true, _) => None,
            (false, true) => Some(ENDED),
            (false, false) => continue,
        };
        let mut all = 0;
        let few = listed(flows, family, bits, |connection, mark| {
            let is_wanted = concerned.has(connection, mark);
            all += usize::from(is_wanted);
            is_wanted && all <= MOST
        })?;
        if all <= MOST {
            mark_refused(flows, few, &mut judge, &mut marked)?;
            continue;
        }
        drop(few);
        // Too many for the memory at a time. Shares of half the size, because they are not equal.
        let shares = all.div_ceil(MOST / 2) as u64;
        for share in 0..shares {
            let some = listed(flows, family, bits, |connection, mark| {
                concerned.has(connection, mark) && share_of(connection, shares) == share
            })?;
            mark_refused(flows, some, &mut judge, &mut marked)?;
        }
    }
    Ok(marked)
}

fn listed(
    flows: &dyn Flows,
    family: Family,
    marked: Option<u32>,
    mut wanted: impl FnMut(&Connection, u32) -> bool,
) -> Result<Vec<TrackedConnection>, String> {
    flows.connections(family, marked, &mut wanted).map_err(|error| error.to_string())
}

fn share_of(connection: &Connection, shares: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    connection.hash(&mut hasher);
    hasher.finish() % shares
}

/// Has connections judged, and marks them accordingly.
fn mark_refused(
    flows: &dyn Flows,
    tracked: Vec<TrackedConnection>,
    judge: &mut impl FnMut(Vec<Connection>) -> Result<Vec<bool>, String>,
    marked: &mut Marked,
) -> Result<(), String> {
    // Policies do not ask for the port of who began.
    let kinds: BTreeSet<Connection> = tracked.iter().map(|tracked| without_source_port(&tracked.connection)).collect();
    let kinds: Vec<Connection> = kinds.into_iter().collect();
    let mut refused = HashSet::new();
    let mut left = kinds.as_slice();
    while !left.is_empty() {
        let portion: Vec<Connection> = left.iter().take(PORTION).copied().collect();
        let verdicts = judge(portion)?;
        if verdicts.is_empty() {
            return Err("the firewall does not answer".to_owned());
        }
        let judged = left.iter().zip(&verdicts).filter(|(_, is_refused)| **is_refused);
        refused.extend(judged.map(|(connection, _)| *connection));
        left = left.get(verdicts.len()..).unwrap_or_default();
    }
    let is_refused = |one: &TrackedConnection| refused.contains(&without_source_port(&one.connection));
    let (has, has_not): (Vec<_>, Vec<_>) = tracked.into_iter().partition(|one| one.mark & ENDED != 0);
    let (keeps, loses): (Vec<_>, Vec<_>) = has.into_iter().partition(is_refused);
    let gets: Vec<_> = has_not.into_iter().filter(is_refused).collect();
    marked.kept += keeps.len();
    for (those, ended, count) in [(gets, true, &mut marked.ended), (loses, false, &mut marked.allowed)] {
        if !those.is_empty() {
            *count += flows.mark(&those, ended).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn without_source_port(connection: &Connection) -> Connection {
    match connection.transport {
        Transport::Ports { protocol, destination, replier, .. } => {
            let transport = Transport::Ports { protocol, source: 0, destination, replier };
            Connection { transport, ..*connection }
        }
        Transport::Icmp { .. } => *connection,
    }
}

/// Asks the firewall's thread.
fn judged(out: &mpsc::Sender<Report>, connections: Vec<Connection>) -> Result<Vec<bool>, String> {
    let (verdicts, answered) = sync_channel(1);
    let stopped = || "the firewall does not answer".to_owned();
    out.blocking_send(Report::Judge { connections, verdicts }).map_err(|_| stopped())?;
    answered.recv_timeout(PATIENCE).map_err(|_| stopped())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::super::flows::Log;
    use super::*;
    use crate::kernel::conntrack::ConnectionFilter;
    use crate::kernel::nflog::OpenError;
    use crate::net::Protocol;

    /// Connections of IPv4, and how often they were listed.
    #[derive(Default)]
    struct Tracking(Mutex<(Vec<TrackedConnection>, usize)>);

    impl Flows for Tracking {
        fn connections(
            &self,
            family: Family,
            _: Option<u32>,
            wanted: ConnectionFilter<'_>,
        ) -> Result<Vec<TrackedConnection>, crate::kernel::Error> {
            let mut state = self.0.lock().unwrap();
            state.1 += 1;
            let all = state.0.iter().filter(|one| family == Family::V4 && wanted(&one.connection, one.mark));
            Ok(all.cloned().collect())
        }

        fn mark(&self, those: &[TrackedConnection], _: bool) -> Result<usize, crate::kernel::Error> {
            Ok(those.len())
        }

        fn open_log(&self) -> Result<Box<dyn Log>, OpenError> {
            Err(OpenError::Taken(100))
        }
    }

    fn to_web(number: u32) -> TrackedConnection {
        let source = (0x0af4_0000 + number / 50_000).to_be_bytes().into();
        let replier = [10, 244, 1, 7].into();
        let own = u16::try_from(number % 50_000).unwrap();
        let transport = Transport::Ports { protocol: Protocol::Tcp, source: own, destination: 80, replier: 80 };
        TrackedConnection::new(Connection { source, destination: replier, replier, transport }, [].into())
    }

    fn web() -> Concerned {
        [[10, 244, 1, 7].into()].into_iter().collect()
    }

    #[test]
    fn more_connections_than_are_listed_at_a_time_all_end_and_are_asked_about_once_for_each_client() {
        let all = 2 * MOST as u32 + 7;
        let tracking = Tracking(Mutex::new(((0..all).map(to_web).collect(), 0)));
        let mut most = 0;
        let ended = end_refused(&tracking, &web(), |connections| {
            most = most.max(connections.len());
            // The firewall's thread may answer for some of them.
            Ok(vec![true; 1])
        });
        assert_eq!(ended, Ok(Marked { ended: all as usize, ..Marked::default() }));
        assert_eq!(most, 5, "five clients");
    }

    #[test]
    fn a_family_without_an_address_that_is_concerned_is_not_listed() {
        let tracking = Tracking::default();
        let nothing = |_| Ok(Vec::new());
        assert_eq!(end_refused(&tracking, &web(), nothing), Ok(Marked::default()));
        assert_eq!(tracking.0.lock().unwrap().1, 1);
        let marked = Concerned { marked: true, ..Concerned::default() };
        assert_eq!(end_refused(&tracking, &marked, nothing), Ok(Marked::default()));
        assert_eq!(tracking.0.lock().unwrap().1, 3);
    }

    #[test]
    fn a_run_that_failed_and_waits_for_rules_does_not_wake_the_firewall() {
        let (mut established, now) = (Established::default(), Instant::now());
        let flows: Arc<dyn Flows> = Arc::new(Tracking::default());
        established.done(Err(("refused".to_owned(), web())), Duration::ZERO, now);
        assert_eq!(established.deadline(), Some(now + AGAIN));
        established.start_due(&flows, false, now + AGAIN);
        assert_eq!(established.deadline(), None);
        established.start_due(&flows, true, now + AGAIN);
        assert!(established.is_running);
    }
}
