//! The machine at work, on a thread of its own: pods are set up one after the other, while the container runtime is asked beside it.
//!
//! It is a thread because setting a pod up waits for the kernel, and neither the loop of the service proxy nor anybody else may
//! wait for that. When it ends, what is set up stays; the next start takes it over.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task;
use tokio::time::sleep_until;
use tracing::{debug, error, info, warn};

use super::WantedTunnels;
use super::apply::{self, Failure};
use super::compare::{Obstacle, device_of};
use super::machine::{Act, Hindrance, LeftOut, Machine, Next, Standing};
use super::metrics::Metrics;
use super::places::{Announced, AnnouncedPlaces, KnownPods, may_have, of_sandboxes, sought};
use super::search::{Found, directories, distinct, search, sees_directories};
use crate::container_runtime::Sought;
use crate::container_runtime::hosts::{Runtimes, SocketFile, socket_files};
use crate::kernel::namespace::NamespaceId;
use crate::observe::health::{Note, Pulse};

/// Desired tunnels of this node's pods.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    pub tunnels: WantedTunnels,
    /// Which pods have these addresses, where that is known.
    pub pods: KnownPods,
    /// Whether the cluster is known completely: before that nothing is taken away.
    pub complete: bool,
    /// Whether all policies are: what they close goes at once.
    pub policies_known: bool,
}

/// Inputs and outputs of the driver.
pub struct Inputs {
    /// Sockets of the container runtime, tried in this order.
    pub sockets: Vec<PathBuf>,
    pub wanted: watch::Receiver<Arc<Wanted>>,
    /// Pods that start; nobody need send anything.
    pub announced: mpsc::Receiver<Announced>,
    /// Told how the pods stand.
    pub standing: watch::Sender<Arc<Standing>>,
    /// Beats while the thread works. A pod that cannot be set up is none of its troubles.
    pub pulse: Pulse,
    /// Receives the pods that cannot be set up.
    pub note: Note,
    pub metrics: Metrics,
}

/// Sentences in the note.
const MOST_NOTES: usize = 20;
/// The mend, where network namespaces are not seen.
const MOUNT: &str = "mount the host's /run/netns into the agent's container with mountPropagation: HostToContainer, or give its pod hostPID: true";
/// A thread that has nothing to do beats so often.
const BEAT: Duration = Duration::from_secs(30);

/// Starts the thread. It ends when `stop` is true.
///
/// # Errors
/// There can be no thread.
pub fn spawn(inputs: Inputs, stop: watch::Receiver<bool>) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("pod-tunnels".to_owned())
        .spawn(move || task::LocalSet::new().block_on(&runtime, Driver::new(inputs).run(stop)))
}

/// Result of work that went on beside the driver.
enum Answer {
    /// Also whether the container runtime answered.
    Search(BTreeSet<IpAddr>, Found, bool),
    /// The namespaces in which these addresses are, and whether the container runtime answered.
    Check(BTreeMap<IpAddr, BTreeSet<NamespaceId>>, bool),
    /// The places, why there may be others, and whether the container runtime did not answer.
    Survey(BTreeSet<PathBuf>, Option<String>, bool),
}

struct Driver {
    machine: Machine,
    inputs: Inputs,
    places: AnnouncedPlaces,
    /// With whoever asks it at the moment.
    runtimes: Option<Runtimes>,
    question: Option<task::JoinHandle<(Runtimes, Answer)>>,
    has_modules: bool,
    /// Why this process does not see the network namespaces that the runtime tells of.
    unseen: Option<String>,
    /// The reason that one pod gave once: one that goes looks like that for a moment.
    suspected: Option<(IpAddr, String)>,
    /// The sockets at the beginning of the last search.
    sockets: Vec<Option<SocketFile>>,
    reported: Standing,
}

impl Driver {
    fn new(inputs: Inputs) -> Driver {
        let runtimes = Some(Runtimes::new(inputs.sockets.clone()));
        Driver {
            machine: Machine::default(),
            inputs,
            places: AnnouncedPlaces::default(),
            runtimes,
            question: None,
            has_modules: false,
            unseen: None,
            suspected: None,
            sockets: Vec::new(),
            reported: Standing::default(),
        }
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let (mut has_wanted, mut has_announced) = (true, true);
        self.take_wanted();
        self.inputs.pulse.ready(true);
        while !*stop.borrow() {
            let now = Instant::now();
            self.inputs.pulse.beat(now);
            let wait = match self.machine.next(now) {
                Next::Act(act) => {
                    self.act(act);
                    self.report();
                    // The connection to the runtime goes on between two pods.
                    task::yield_now().await;
                    now
                }
                Next::Wait(until) => until.map_or(now + BEAT, |until| until.min(now + BEAT)),
            };
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                changed = self.inputs.wanted.changed(), if has_wanted => {
                    has_wanted = changed.is_ok();
                    self.take_wanted();
                }
                announced = self.inputs.announced.recv(), if has_announced => match announced {
                    Some(announced) => self.take_announced(&announced),
                    None => has_announced = false,
                },
                ended = outcome(&mut self.question) => self.take_answer(ended),
                () = sleep_until(wait.into()) => {}
            }
            self.report();
        }
    }

    fn take_wanted(&mut self) {
        let wanted = self.inputs.wanted.borrow_and_update().clone();
        let now = Instant::now();
        self.machine.set_policies_known(wanted.policies_known, now);
        self.machine.want(&wanted.tunnels, wanted.complete, now);
        // No search has to end before.
        let lost = self.machine.lost();
        self.use_announced(lost);
    }

    /// Hands on where those are of which it was announced. Returns the others.
    fn use_announced(&mut self, mut lost: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let known = self.inputs.wanted.borrow().clone();
        lost.retain(|address| {
            let place = self.places.place(*address, &known.pods).cloned();
            let is_known = place.is_some();
            place.into_iter().for_each(|place| self.machine.announced(*address, place, Instant::now()));
            !is_known
        });
        lost
    }

    fn take_announced(&mut self, announced: &Announced) {
        self.places.add(announced, |place| place.exists());
        // An address may have been another pod's until now, whose tunnels this one is not to get.
        let known = self.inputs.wanted.borrow().clone();
        let its = announced.addresses.iter().filter(|address| may_have(&known.pods, **address, &announced.pod));
        for address in its {
            self.machine.announced(*address, announced.place.clone(), Instant::now());
        }
    }

    fn take_answer(&mut self, ended: Option<(Runtimes, Answer)>) {
        self.question = None;
        let Some((runtimes, answer)) = ended else {
            // It broke off, and whoever was looked for is looked for again.
            self.runtimes = Some(Runtimes::new(self.inputs.sockets.clone()));
            self.machine.found(&BTreeSet::new(), &Found::new(), Instant::now());
            return self.machine.surveyed(BTreeSet::new(), Some("looking for them broke off".to_owned()));
        };
        self.runtimes = Some(runtimes);
        match answer {
            Answer::Search(searched, found, answered) => {
                self.machine.runtime_answered(answered, Instant::now());
                self.machine.found(&searched, &found, Instant::now());
            }
            Answer::Check(told, answered) => {
                self.machine.runtime_answered(answered, Instant::now());
                for address in self.machine.checked(&told, Instant::now()) {
                    info!(pod = %address, "Pod has another network namespace than the one that was set up for direct server return, which is still there");
                    self.places.forget(address);
                }
            }
            Answer::Survey(places, lacking, is_silent) => {
                if is_silent {
                    self.machine.runtime_answered(false, Instant::now());
                }
                self.machine.surveyed(places, lacking);
            }
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Bring { want, places } => {
                if !self.has_modules && !want.services.is_empty() {
                    self.has_modules = true;
                    for error in apply::load_modules() {
                        debug!(%error, "Kernel module of tunnels in pods not loaded; the kernel is asked without it");
                    }
                }
                let machine = &self.machine;
                let outcome = apply::bring_about(&places, &want, |address| machine.is_wanted(address));
                if let Ok(done) = &outcome {
                    self.inputs.metrics.changes.inc_by(done.changes as u64);
                }
                match &outcome {
                    Ok(_) => self.note_unseen(None),
                    Err(Failure::NotFound) => self.note_unseen(Some((want.pod, &places))),
                    Err(Failure::Obstacle(_) | Failure::Kernel(_)) => {}
                }
                let outcome = outcome.map_err(|failure| (failure.to_string(), hindrance(&failure)));
                if matches!(outcome, Err((_, Hindrance::NotFound))) {
                    self.places.forget(want.pod);
                }
                self.machine.brought(&want, outcome, Instant::now());
            }
            Act::Search(lost) => self.start_search(lost),
            Act::Check(settled) => self.start_check(settled),
            Act::Look(pods) => {
                let is_gone = |(_, place, id): &(IpAddr, PathBuf, NamespaceId)| NamespaceId::at(place) != Some(*id);
                let gone: BTreeSet<IpAddr> =
                    pods.iter().filter(|one| is_gone(one)).map(|(address, ..)| *address).collect();
                self.machine.looked(&gone, Instant::now());
            }
            Act::LookAtSockets => {
                let newest = socket_files(&self.inputs.sockets);
                let is_another = std::mem::replace(&mut self.sockets, newest) != self.sockets;
                self.machine.looked_at_sockets(is_another, Instant::now());
            }
            Act::Survey { asks } => self.start_survey(asks),
            Act::Clear(place) => {
                let machine = &self.machine;
                match apply::remove_abandoned(&place, |address| machine.is_wanted(address)) {
                    Ok(0) => {}
                    Ok(removed) => {
                        info!(removed, place = %place.display(), "Tunnels in a pod that an earlier run left removed");
                    }
                    Err(error) => {
                        warn!(%error, "Removing a tunnel that an earlier run left in a pod failed");
                        self.machine.not_cleared(error.to_string());
                    }
                }
            }
        }
    }

    /// Those that were announced need no runtime.
    fn start_search(&mut self, lost: BTreeSet<IpAddr>) {
        let lost = self.use_announced(lost);
        if lost.is_empty() {
            return self.machine.found(&BTreeSet::new(), &Found::new(), Instant::now());
        }
        let known = self.inputs.wanted.borrow().clone();
        self.sockets = socket_files(&self.inputs.sockets);
        self.ask(async move |runtimes| {
            let (found, answered) = search(runtimes, &lost, &known.pods).await;
            Answer::Search(lost, found, answered)
        });
    }

    /// Asks the runtime alone: of several namespaces with an address nobody else knows which is the pod's.
    fn start_check(&mut self, settled: BTreeSet<IpAddr>) {
        let known = self.inputs.wanted.borrow().clone();
        self.ask(async move |runtimes| {
            let told = runtimes.sandboxes(&sought(&settled, &known.pods)).await;
            let answered = told.is_ok();
            // Where a sandbox tells nothing it may be that of any of them.
            let told = told.ok().filter(|told| told.lacking.is_none()).unwrap_or_default();
            let places = of_sandboxes(&told.sandboxes, &settled, &known.pods).into_iter();
            let ids = |places: Vec<PathBuf>| places.iter().filter_map(|place| NamespaceId::at(place)).collect();
            Answer::Check(places.map(|(address, places)| (address, ids(places))).collect(), answered)
        });
    }

    fn start_survey(&mut self, asks: bool) {
        let announced = self.places.all();
        // Where there is no need for tunnels, and no module of them, nobody has left one.
        if !asks && !apply::may_have_tunnels() {
            return self.machine.surveyed(BTreeSet::new(), None);
        }
        // Without a view of the directories the runtime alone knows where pods are.
        let asks = asks || !sees_directories();
        self.ask(async move |runtimes| {
            let (mut places, mut lacking, mut is_silent) = (announced, None, false);
            if asks {
                let told = runtimes.sandboxes(&Sought::All).await.unwrap_or_else(|reason| {
                    (lacking, is_silent) = (Some(reason), true);
                    Default::default()
                });
                lacking = lacking.or(told.lacking);
                places.extend(told.sandboxes.into_iter().flat_map(|sandbox| sandbox.places));
            }
            let all = task::spawn_blocking(move || {
                places.extend(directories());
                distinct(places).into_iter().collect()
            });
            Answer::Survey(all.await.unwrap_or_default(), lacking, is_silent)
        });
    }

    /// Has something found out beside the driver's own work.
    fn ask(&mut self, question: impl AsyncFnOnce(&mut Runtimes) -> Answer + 'static) {
        let sockets = &self.inputs.sockets;
        let mut runtimes = self.runtimes.take().unwrap_or_else(|| Runtimes::new(sockets.clone()));
        self.question = Some(task::spawn_local(async move {
            let answer = question(&mut runtimes).await;
            (runtimes, answer)
        }));
    }

    /// Tells of what has changed.
    fn report(&mut self) {
        if self.unseen.is_some() && !self.machine.lacks_any() {
            self.note_unseen(None);
        }
        let standing = self.machine.standing();
        if standing == self.reported {
            return;
        }
        let former: BTreeMap<IpAddr, &String> =
            self.reported.left_out.iter().map(|one| (one.pod, &one.reason)).collect();
        for one in standing.left_out.iter().filter(|one| former.get(&one.pod) != Some(&&one.reason)) {
            warn!(pod = %one.pod, reason = %one.reason, "Pod cannot be set up for direct server return; retrying");
        }
        for (pod, services) in &standing.set_up {
            if self.reported.set_up.get(pod) != Some(services) {
                let device = device_of(*pod);
                info!(%pod, device, services = ?services, "Pod set up for direct server return");
            }
        }
        self.tell_not_closed(&standing);
        if let Some(reason) = standing.unswept.as_ref().filter(|_| self.reported.unswept.is_none()) {
            warn!(reason, "Tunnels that an earlier run left in pods may still be there; retrying");
        }
        let former = &self.reported.not_taken_down;
        for one in standing.not_taken_down.iter().filter(|one| !former.contains(one)) {
            warn!(pod = %one.pod, reason = %one.reason, "Tunnel in a pod that is to answer no more cannot be taken down; retrying");
        }
        self.inputs.metrics.set(&standing);
        self.inputs.standing.send_replace(Arc::new(standing.clone()));
        self.reported = standing;
        self.note();
    }

    /// Tells of pods that may answer although policies close them: that is trouble, because nobody judges what is inside their tunnels.
    fn tell_not_closed(&self, standing: &Standing) {
        let pods = |of: &Standing| of.not_closed.iter().map(|one| one.pod).collect::<BTreeSet<IpAddr>>();
        let (former, newest) = (pods(&self.reported), pods(standing));
        for one in standing.not_closed.iter().filter(|one| !former.contains(&one.pod)) {
            warn!(pod = %one.pod, reason = %one.reason, "Pod that network policies close to tunnels cannot be looked into, and may keep the tunnel of an earlier run; retrying");
        }
        for pod in former.difference(&newest) {
            info!(%pod, "Pod that network policies close to tunnels has none, or is gone");
        }
        let trouble = |one: &LeftOut| {
            let more = match newest.len() {
                1 => String::new(),
                count => format!(" (and {} others)", count - 1),
            };
            format!(
                "pod {}{more} is closed to tunnels by network policies, cannot be looked into, and may keep the tunnel of an earlier run: {}",
                one.pod, one.reason
            )
        };
        self.inputs.pulse.trouble(standing.not_closed.first().map(trouble));
    }

    /// Notes what keeps pods from being set up.
    fn note(&self) {
        let unseen =
            self.unseen.iter().map(|unseen| format!("network namespaces of pods cannot be entered: {unseen}; {MOUNT}"));
        let left_out = self.reported.left_out.iter().take(MOST_NOTES).map(|one| {
            format!("pod {} does not answer for its Services with direct server return: {}", one.pod, one.reason)
        });
        let not_taken_down = self.reported.not_taken_down.iter().take(MOST_NOTES).map(|one| {
            format!(
                "the tunnel in pod {} is to go (direct server return) and cannot be taken down: {}",
                one.pod, one.reason
            )
        });
        let unswept = self.reported.unswept.iter().map(|reason| {
            format!("tunnels that an earlier run left in pods of this node (direct server return) may still be there: {reason}")
        });
        self.inputs.note.set(unseen.chain(left_out).chain(not_taken_down).chain(unswept).collect());
    }

    /// Notes whether this process sees the files that stand for network namespaces. `tried`: a pod, and the places of it that the runtime tells and none of which could be entered.
    fn note_unseen(&mut self, tried: Option<(IpAddr, &[PathBuf])>) {
        let found = tried.and_then(|(pod, places)| Some((pod, apply::unseen(places)?)));
        let suspected = std::mem::replace(&mut self.suspected, found.clone());
        let is_again = suspected.is_some() && suspected == found;
        let unseen = found.map(|(_, reason)| reason);
        if tried.is_some() && !is_again || unseen == self.unseen {
            return;
        }
        match &unseen {
            Some(reason) => error!(%reason, "Network namespaces of pods cannot be entered; {MOUNT}"),
            None => info!("Network namespaces of pods can be entered"),
        }
        self.unseen = unseen;
        self.note();
    }
}

fn hindrance(failure: &Failure) -> Hindrance {
    match failure {
        Failure::NotFound | Failure::Obstacle(Obstacle::NotThePods) => Hindrance::NotFound,
        Failure::Obstacle(Obstacle::Taken(_)) => Hindrance::Taken,
        Failure::Obstacle(Obstacle::ForeignDevice(_)) | Failure::Kernel(_) => Hindrance::Other,
    }
}

/// Waits for a question that is on its way; for ever where there is none. `None` where it broke off.
async fn outcome<T>(question: &mut Option<task::JoinHandle<T>>) -> Option<T> {
    match question {
        Some(question) => question.await.ok(),
        None => pending().await,
    }
}

/// Removes our devices from all pods that can be found. Returns how many there were, and why others could not be removed.
pub fn remove_all(sockets: Vec<PathBuf>) -> (usize, Vec<String>) {
    // Who has no module of tunnels has none, and no reason to ask anybody or to enter a pod's namespace.
    if !apply::may_have_tunnels() {
        return (0, Vec::new());
    }
    let mut places = directories();
    // A host without a runtime has no pods.
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        let told = runtime.block_on(async { Runtimes::new(sockets).sandboxes(&Sought::All).await });
        let reason = match told {
            Ok(told) => {
                places.extend(told.sandboxes.into_iter().flat_map(|sandbox| sandbox.places));
                told.lacking
            }
            Err(reason) => Some(reason),
        };
        if let Some(reason) = reason {
            warn!(
                reason,
                "Container runtime not asked; if pods of this host have tunnels of direct server return, mount its socket and run --cleanup-config again, or restart them"
            );
        }
    }
    let (mut removed, mut errors) = (0, Vec::new());
    for place in distinct(places) {
        match apply::remove_abandoned(&place, |_| false) {
            Ok(count) => removed += count,
            Err(error) => errors.push(error.to_string()),
        }
    }
    (removed, errors)
}

#[cfg(test)]
mod tests;
