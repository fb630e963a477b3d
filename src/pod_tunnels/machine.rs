//! Which pod is looked for, set up, looked at and taken down, and when: everything in, the next act out. No I/O.
//!
//! ```text
//!            wanted                   found                       as wanted
//!  (nothing) ──────► Unknown ─search─────────► Unknown with places ─bring──► Settled ──┐ looked at every second,
//!                     ▲  ▲                            │ fails                 │  ▲     │ compared every minute
//!                     │  └────── later, searched ◄────┘                       │  └─────┘ and checked every minute
//!                     └────────── the namespace is gone, or is another ───────┘
//! ```
//!
//! A pod that policies close to tunnels is followed as the others are, and is wanted without any service. A pod of which nothing is wanted any more is taken down where it was set up, and forgotten: with its namespace everything of
//! ours is gone too. What an earlier run left is found by a sweep of all namespaces, once the cluster is known completely: of those in the usual
//! directories, and once something is wanted also of those that the container runtime tells ([`sweep`](super::sweep)). One namespace is looked at a time, between other acts.
//!
//! Times: what is wanted anew, announced or found is acted on at once. A sandbox that is made anew takes the namespace of the
//! former one away, which is seen within [`LOOK`]. Where that namespace stays, the runtime says within [`CHECK`] that the pod is elsewhere. What fails is tried again after 0.1 s and ever later up to [`SEARCH`], and less
//! often after [`TRIES`] tries; where the pod's own namespace refuses, other services of the pod change nothing of that, because who may write Services could have one pod tried all the time. When the runtime answers again, or has a new socket, all that were searched for in vain are searched for at once. One pod that fails holds up no other. One that policies close and that cannot be looked into may go on answering, which is
//! told as the pod that cannot be set up is; one without a sandbox has nothing that could answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::WantedTunnels;
use super::apply::Done;
use super::compare::WantedTunnel;
use super::sweep::{NextOfSweep, SELDOM, Sweep};
use crate::kernel::namespace::NamespaceId;

/// Interval at which it is looked whether the namespaces of pods are still there.
const LOOK: Duration = Duration::from_secs(1);
/// Interval at which a pod that is as wanted is compared again.
const COMPARE: Duration = Duration::from_secs(60);
/// Interval at which the runtime is asked whether pods that are as wanted are in other namespaces: one may outlive its sandbox, where its network's plugin could not remove it, while
/// another sandbox has the pod's address.
const CHECK: Duration = Duration::from_secs(60);
/// The longest time between two tries, as long as there were few.
const SEARCH: Duration = Duration::from_millis(1600);
const FIRST: Duration = Duration::from_millis(100);
/// The number of tries after which a pod is tried every [`SELDOM`] only.
const TRIES: u32 = 60;
/// The number of failures, within eight seconds or so, after which a pod counts as not closed: those since it was last told that it has no sandbox.
const TRIES_TO_CLOSE: u32 = 8;

/// An effect for the driver to perform.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// Make this pod as wanted, at one of these places.
    Bring { want: WantedTunnel, places: Vec<PathBuf> },
    /// Ask the runtime for the places of these pods.
    Search(BTreeSet<IpAddr>),
    /// Ask the runtime in which namespaces these pods are.
    Check(BTreeSet<IpAddr>),
    /// Look whether these namespaces are still at their places.
    Look(Vec<(IpAddr, PathBuf, NamespaceId)>),
    /// Look whether the runtime, which does not answer, has another socket than at the last search.
    LookAtSockets,
    /// Find all namespaces in which an earlier run may have left something.
    Survey {
        /// The container runtime is asked too.
        asks: bool,
    },
    /// Remove what an earlier run left in this namespace.
    Clear(PathBuf),
}

/// The next effect, or the time to wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    Act(Act),
    /// Nothing is to be done until then; `None` where only news can change that.
    Wait(Option<Instant>),
}

/// A pod that differs from the desired state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    pub pod: IpAddr,
    pub services: BTreeSet<IpAddr>,
    /// A sentence without its end.
    pub reason: String,
}

/// Why there is no place of a pod, as a sentence without its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoPlace {
    /// The container runtime told of all its sandboxes, and none has the pod's address: there is no network in which anything could answer.
    NoSandbox(String),
    Unknown(String),
}

/// Kind of failure of an act on one pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// No place has the pod.
    NotFound,
    /// Another address of the pod has the tunnel.
    Taken,
    /// Something else in its namespace, or the kernel.
    Other,
}

/// How the pods of this node stand.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Standing {
    /// Pods that answer for service addresses.
    pub set_up: WantedTunnels,
    /// Pods that should and do not.
    pub left_out: Vec<LeftOut>,
    /// Pods that are to have no tunnel, because policies close them to what is inside one, and may have that of an earlier run: nobody could look.
    pub not_closed: Vec<LeftOut>,
    /// Pods that are to answer no more, and whose tunnel cannot be taken down.
    pub not_taken_down: Vec<LeftOut>,
    /// Why tunnels that an earlier run left may still be there, as a sentence without its end.
    pub unswept: Option<String>,
}

/// All pods of this node for which something is wanted, or was.
#[derive(Default)]
pub struct Machine {
    pods: BTreeMap<IpAddr, Pod>,
    complete: bool,
    /// All policies are known, and so which pods are closed to tunnels.
    policies_known: bool,
    /// A search or a survey is on its way.
    searching: bool,
    look_at: Option<Instant>,
    /// When the runtime is asked where settled pods are; `None` without any.
    check_at: Option<Instant>,
    /// When it is looked at the sockets of the runtime; `None` where the last search was answered.
    sockets_at: Option<Instant>,
    sweep: Sweep,
    /// Something was wanted: a sweep asks the container runtime.
    has_wanted: bool,
}

#[derive(Default)]
struct Pod {
    /// None for a pod that has to have no tunnel.
    services: BTreeSet<IpAddr>,
    /// It is no longer among those that are followed: once it is taken down it is forgotten.
    is_over: bool,
    /// Where it may be, the likeliest first.
    places: Vec<PathBuf>,
    state: State,
    /// When it is to be acted on; `None` waits for a search.
    due: Option<Instant>,
    /// Since the last success.
    failures: u32,
    /// Since the last success and since it was last told to have no sandbox.
    unexplained: u32,
    /// At the last try another address of it had the tunnel.
    is_taken: bool,
    /// It is to be searched for.
    is_lost: bool,
    /// At the last search it had no sandbox.
    has_no_sandbox: bool,
}

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    Failing(String),
    Settled {
        place: PathBuf,
        namespace: NamespaceId,
        services: BTreeSet<IpAddr>,
    },
}

impl Pod {
    fn fail(&mut self, reason: String, now: Instant) {
        self.unexplained = if self.has_no_sandbox { 0 } else { self.unexplained.saturating_add(1) };
        // One failure says little about a pod that had no sandbox: the next soon says more.
        let is_doubtful = (1..TRIES_TO_CLOSE).contains(&self.unexplained);
        let is_often = self.failures < TRIES || is_doubtful;
        let delay = if is_often { (FIRST * (1 << self.failures.min(6))).min(SEARCH) } else { SELDOM };
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + delay);
        self.state = State::Failing(reason);
    }

    /// Has it searched for, at once.
    fn lose(&mut self, now: Instant) {
        *self = Pod { services: std::mem::take(&mut self.services), is_lost: true, due: Some(now), ..Pod::default() };
    }
}

impl Machine {
    /// Notes whether all policies are known. A pod that they close loses its tunnel from then on, also where not all Services are known.
    pub fn set_policies_known(&mut self, known: bool, now: Instant) {
        if known && !self.policies_known {
            self.policies_known = true;
            let closed = self.pods.values_mut().filter(|pod| pod.services.is_empty() && !pod.is_lost);
            closed.filter(|pod| matches!(pod.state, State::Settled { .. })).for_each(|pod| pod.due = Some(now));
        }
    }

    /// Replaces the desired tunnels. Before the cluster is known completely nothing is taken away but what policies close. A pod without any services is to have no tunnel: it is looked
    /// for too, because an earlier run may have made one, and its place stays known.
    pub fn want(&mut self, wanted: &WantedTunnels, complete: bool, now: Instant) {
        let becomes_complete = complete && !self.complete;
        self.complete |= complete;
        let is_first = !wanted.is_empty() && !self.has_wanted;
        self.has_wanted |= is_first;
        if self.complete && (is_first || self.sweep.is_waiting()) {
            self.sweep.begin(now);
        }
        for (address, services) in wanted {
            let is_new = !self.pods.contains_key(address);
            let pod = self.pods.entry(*address).or_default();
            let mut services = services.clone();
            if !(complete || services.is_empty() && self.policies_known) {
                services.extend(pod.services.iter());
            }
            if is_new {
                pod.lose(now);
            }
            pod.is_over = false;
            if pod.services != services {
                pod.services = services;
                let is_refused = matches!(pod.state, State::Failing(_)) && !pod.is_lost;
                // One that is to be closed is looked at at once all the same.
                if !is_refused || pod.services.is_empty() {
                    (pod.due, pod.failures, pod.unexplained) = (Some(now), 0, 0);
                }
            }
        }
        if !complete {
            return;
        }
        if becomes_complete {
            // What an earlier run left in them beside what is wanted may go from now on.
            let settled = self.pods.values_mut().filter(|pod| matches!(pod.state, State::Settled { .. }));
            settled.for_each(|pod| pod.due = Some(now));
        }
        let before = self.pods.len();
        self.pods.retain(|address, pod| {
            if wanted.contains_key(address) || pod.is_over {
                return true;
            }
            pod.services.clear();
            pod.is_over = true;
            if matches!(pod.state, State::Failing(_)) {
                // Nobody has tried to take it down yet.
                pod.state = State::Unknown;
            }
            (pod.due, pod.is_lost) = (Some(now), false);
            (pod.failures, pod.unexplained) = (0, 0);
            !pod.places.is_empty()
        });
        if self.pods.len() < before {
            // Nobody takes down at its place the tunnel of a pod that was never found.
            self.sweep.plan(now);
        }
    }

    /// Returns the pods that are to be searched for.
    pub fn lost(&self) -> BTreeSet<IpAddr> {
        self.pods.iter().filter(|(_, pod)| pod.is_lost).map(|(address, _)| *address).collect()
    }

    /// Notes where a pod is, as it was announced.
    pub fn announced(&mut self, address: IpAddr, place: PathBuf, now: Instant) {
        let Some(pod) = self.pods.get_mut(&address).filter(|pod| !pod.is_over) else { return };
        pod.lose(now);
        pod.is_lost = false;
        pod.places = vec![place];
    }

    /// Notes whether the container runtime answered a search. One that does again, or for whose socket another one came, is asked at once for everybody who was
    /// searched for in vain: without it they are tried seldom.
    pub fn runtime_answered(&mut self, answered: bool, now: Instant) {
        if !answered {
            self.sockets_at = Some(now + LOOK);
        } else if self.sockets_at.take().is_some() {
            self.search_anew(now);
            self.sweep.runtime_is_back(now);
        }
    }

    /// Notes whether the runtime has another socket than at the last search.
    pub fn looked_at_sockets(&mut self, is_another: bool, now: Instant) {
        self.sockets_at = self.sockets_at.map(|_| now + LOOK);
        if is_another {
            self.search_anew(now);
            // It may take a while until it answers.
            self.pods.values_mut().filter(|pod| pod.is_lost).for_each(|pod| pod.failures = 0);
        }
    }

    fn search_anew(&mut self, now: Instant) {
        self.pods.values_mut().filter(|pod| pod.is_lost).for_each(|pod| pod.due = Some(now));
    }

    /// Notes the answer to a search: the places of each pod, or why it has none.
    pub fn found(
        &mut self,
        searched: &BTreeSet<IpAddr>,
        found: &BTreeMap<IpAddr, Result<Vec<PathBuf>, NoPlace>>,
        now: Instant,
    ) {
        self.searching = false;
        for address in searched {
            let Some(pod) = self.pods.get_mut(address).filter(|pod| pod.is_lost) else { continue };
            pod.has_no_sandbox = matches!(found.get(address), Some(Err(NoPlace::NoSandbox(_))));
            match found.get(address) {
                Some(Ok(places)) => {
                    pod.places.clone_from(places);
                    (pod.is_lost, pod.due) = (false, Some(now));
                }
                Some(Err(NoPlace::NoSandbox(reason) | NoPlace::Unknown(reason))) => pod.fail(reason.clone(), now),
                None => pod.fail("it was not looked for".to_owned(), now),
            }
        }
    }

    /// Notes the outcome of an act on one pod.
    pub fn brought(&mut self, want: &WantedTunnel, outcome: Result<Done, (String, Hindrance)>, now: Instant) {
        let Some(pod) = self.pods.get_mut(&want.pod) else { return };
        let is_over = pod.is_over;
        pod.is_taken = matches!(outcome, Err((_, Hindrance::Taken)));
        if outcome.is_ok() && want.services.is_empty() {
            // It may be one of these that waited for the tunnel.
            let waiting = self.pods.values_mut().filter(|pod| pod.is_taken);
            waiting.for_each(|pod| (pod.due, pod.failures) = (Some(now), 0));
        }
        let Some(pod) = self.pods.get_mut(&want.pod) else { return };
        match outcome {
            Ok(_) if is_over && want.services.is_empty() => drop(self.pods.remove(&want.pod)),
            Ok(Done { place, namespace, .. }) => {
                pod.places.retain(|one| *one != place);
                pod.places.insert(0, place.clone());
                let is_current = pod.services == want.services;
                (pod.failures, pod.unexplained) = (0, 0);
                pod.due = Some(if is_current { now + COMPARE } else { now });
                pod.state = State::Settled { place, namespace, services: want.services.clone() };
                self.look_at.get_or_insert(now + LOOK);
                self.check_at.get_or_insert(now + CHECK);
            }
            // With its namespace all that was in it has gone; a sweep looks whether it has: a place that is gone says nothing of a namespace that a container still has.
            Err((_, Hindrance::NotFound)) if is_over => {
                self.pods.remove(&want.pod);
                self.sweep.plan(now);
            }
            Err((reason, hindrance)) => {
                // There was a place to look at.
                pod.has_no_sandbox = false;
                pod.fail(reason, now);
                pod.is_lost = hindrance == Hindrance::NotFound;
            }
        }
    }

    /// Notes whose namespaces are not at their places any more.
    pub fn looked(&mut self, gone: &BTreeSet<IpAddr>, now: Instant) {
        for address in gone {
            match self.pods.get_mut(address) {
                Some(pod) if pod.is_over => {
                    self.pods.remove(address);
                    self.sweep.plan(now);
                }
                Some(pod) => pod.lose(now),
                None => {}
            }
        }
    }

    /// Notes in which namespaces the runtime's sandboxes with these addresses are, and has pods searched for that were set up in none of them. Returns these.
    pub fn checked(&mut self, told: &BTreeMap<IpAddr, BTreeSet<NamespaceId>>, now: Instant) -> BTreeSet<IpAddr> {
        self.searching = false;
        let mut moved = BTreeSet::new();
        for (address, pod) in self.pods.iter_mut().filter(|(_, pod)| !pod.is_over) {
            let State::Settled { namespace, .. } = &pod.state else { continue };
            if told.get(address).is_some_and(|all| !all.is_empty() && !all.contains(namespace)) {
                pod.lose(now);
                moved.insert(*address);
            }
        }
        moved
    }

    /// Notes the answer to a survey: all places, and why there may be others.
    pub fn surveyed(&mut self, places: BTreeSet<PathBuf>, lacking: Option<String>) {
        self.searching = false;
        self.sweep.surveyed(places, lacking);
    }

    /// Notes why something in a namespace could not be cleared.
    pub fn not_cleared(&mut self, reason: String) {
        self.sweep.not_cleared(reason);
    }

    /// Returns the next act of a sweep.
    fn next_of_sweep(&mut self, now: Instant) -> Option<Act> {
        Some(match self.sweep.next(now, self.searching)? {
            NextOfSweep::Survey => {
                self.searching = true;
                Act::Survey { asks: self.has_wanted }
            }
            NextOfSweep::Clear(place) => Act::Clear(place),
        })
    }

    /// Returns what is to be done now. The outcome of an act is taken in before this is asked again, but for that of a search.
    pub fn next(&mut self, now: Instant) -> Next {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some((address, pod)) = self.pods.iter().find(|(_, pod)| !pod.is_lost && is_due(pod.due)) {
            let shrinks = self.complete || pod.services.is_empty() && self.policies_known;
            let want = WantedTunnel { pod: *address, services: pod.services.clone(), shrinks };
            return Next::Act(Act::Bring { want, places: pod.places.clone() });
        }
        if is_due(self.look_at) {
            let settled = self.settled();
            self.look_at = (!settled.is_empty()).then(|| now + LOOK);
            if !settled.is_empty() {
                return Next::Act(Act::Look(settled));
            }
            self.check_at = None;
        }
        let is_any_lost = self.pods.values().any(|pod| pod.is_lost);
        if !self.searching && is_any_lost && is_due(self.sockets_at) {
            return Next::Act(Act::LookAtSockets);
        }
        if !self.searching {
            let lost = self.pods.iter().filter(|(_, pod)| pod.is_lost && is_due(pod.due));
            let lost: BTreeSet<IpAddr> = lost.map(|(address, _)| *address).collect();
            if !lost.is_empty() {
                self.searching = true;
                return Next::Act(Act::Search(lost));
            }
        }
        if !self.searching && is_due(self.check_at) {
            let settled: BTreeSet<IpAddr> = self.settled().into_iter().map(|(address, ..)| address).collect();
            self.check_at = (!settled.is_empty()).then(|| now + CHECK);
            if !settled.is_empty() {
                self.searching = true;
                return Next::Act(Act::Check(settled));
            }
        }
        match self.next_of_sweep(now) {
            Some(act) => Next::Act(act),
            None => Next::Wait(self.deadline()),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let due = self.pods.values().filter(|pod| !(pod.is_lost && self.searching)).filter_map(|pod| pod.due);
        let sweep = self.sweep.deadline(self.searching);
        let is_any_lost = self.pods.values().any(|pod| pod.is_lost);
        let sockets = self.sockets_at.filter(|_| is_any_lost && !self.searching);
        let check = self.check_at.filter(|_| !self.searching);
        due.chain(self.look_at).chain(check).chain(sockets).chain(sweep).min()
    }

    fn settled(&self) -> Vec<(IpAddr, PathBuf, NamespaceId)> {
        let settled = |(address, pod): (&IpAddr, &Pod)| match &pod.state {
            State::Settled { place, namespace, .. } => Some((*address, place.clone(), *namespace)),
            _ => None,
        };
        self.pods.iter().filter_map(settled).collect()
    }

    /// Returns whether any pod is lost, or differs from what is wanted.
    pub fn lacks_any(&self) -> bool {
        self.pods.values().any(|pod| pod.is_lost || matches!(pod.state, State::Failing(_)))
    }

    /// Returns whether a tunnel is wanted for this address of a pod.
    pub fn is_wanted(&self, address: IpAddr) -> bool {
        self.pods.get(&address).is_some_and(|pod| !pod.services.is_empty())
    }

    /// Returns how the pods stand.
    pub fn standing(&self) -> Standing {
        let mut standing = Standing { unswept: self.sweep.lacking().cloned(), ..Standing::default() };
        for (address, pod) in &self.pods {
            let left_out =
                |reason: &String| LeftOut { pod: *address, services: pod.services.clone(), reason: reason.clone() };
            match &pod.state {
                State::Failing(reason) if pod.is_over => standing.not_taken_down.push(left_out(reason)),
                _ if pod.is_over => {}
                State::Settled { services, .. } if !services.is_empty() => {
                    standing.set_up.insert(*address, services.clone());
                }
                State::Failing(reason) if !pod.services.is_empty() => standing.left_out.push(left_out(reason)),
                State::Failing(reason) if pod.unexplained >= TRIES_TO_CLOSE => {
                    standing.not_closed.push(left_out(reason));
                }
                State::Unknown | State::Settled { .. } | State::Failing(_) => {}
            }
        }
        standing
    }
}

#[cfg(test)]
mod tests;
