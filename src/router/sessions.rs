//! The running speaker, and the state of its sessions.
//!
//! A speaker's own parameters cannot change: it is replaced when they do. Learned routes count as complete after
//! End-of-RIB from all neighbours, or after the time for which they keep our routes (RFC 4724 4.2).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use crate::bgp::driver::{self, Access, Event, Events, Handle, Setup};
use crate::bgp::message::{Notification, Reason};
use crate::bgp::rib::{Bounds, Rules};
use crate::bgp::speaker::{Fact, Order, Restarting, Speaker};
use crate::config::RouterConfig;
use crate::net::{Family, PerFamily};
use crate::observe::health::Pulse;

use super::desired::{Desired, SHARING};
use super::serve::{Row, Shown};

/// Results of a wait.
pub enum News {
    Events(Vec<Event>),
    /// Everything ordered before this number was given to [`Sessions::ask_written`] has been sent to neighbours.
    Written(u64),
    /// The speaker has ended by itself.
    Ended,
}

/// Kernel state when a speaker starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left {
    /// Learned routes.
    pub routes: bool,
    /// Anything of ours, so that this host was not booted since.
    pub anything: bool,
}

/// All sessions of this node.
pub struct Sessions {
    running: Option<Running>,
    /// Number of speakers so far.
    generation: u64,
    have_run: bool,
    /// Access to the running speaker for others.
    access: watch::Sender<Option<Access>>,
    pulse: Pulse,
    /// Maximum wait for neighbours.
    patience: Duration,
    awaited: BTreeMap<IpAddr, Awaited>,
    /// Nodes or routers are no neighbours yet for want of a password: what they have is awaited, too.
    lacks_peers: bool,
    /// Those of the routers, by their addresses. They are awaited however late they come: their routes of an earlier run are kept as long.
    without_password: BTreeSet<IpAddr>,
    /// Neighbours with a session, and by family whether all routes were sent. A family that it does not speak has none.
    up: BTreeMap<IpAddr, PerFamily<bool>>,
    /// Neighbours that had a session, or of which routes were retained, when last looked at.
    kept: BTreeSet<IpAddr>,
    /// The speaker whose neighbours are shown, by its generation: later changes of these are all there is to show.
    shown: Option<u64>,
    complete: bool,
    /// End of the wait for neighbours.
    until: Option<Instant>,
    /// Time of the next try to start a speaker.
    retry_at: Option<Instant>,
}

/// A neighbour that has not sent everything since the speaker started.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    /// Families in which its End-of-RIB is missing.
    families: PerFamily<bool>,
    /// End of the wait for it.
    until: Instant,
}

struct Running {
    handle: Handle,
    events: Events,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
    /// Pending questions about written orders, in order.
    writing: VecDeque<(u64, oneshot::Receiver<()>)>,
}

/// Default for the time that neighbours keep our routes, and that route selection may wait.
const USUAL_RESTART: Duration = Duration::from_secs(90);
const USUAL_DEFERRAL: Duration = Duration::from_secs(360);
/// Maximum time for telling neighbours that we stop.
const FAREWELL: Duration = Duration::from_millis(300);
const RETRY: Duration = Duration::from_secs(5);

impl Sessions {
    pub fn new(config: &RouterConfig, pulse: Pulse, access: watch::Sender<Option<Access>>) -> Sessions {
        let seconds = config.graceful_restart.map(|restart| Duration::from_secs(restart.seconds.into()));
        Sessions {
            running: None,
            generation: 0,
            have_run: false,
            access,
            pulse,
            patience: seconds.unwrap_or(USUAL_RESTART),
            awaited: BTreeMap::new(),
            lacks_peers: false,
            without_password: BTreeSet::new(),
            up: BTreeMap::new(),
            kept: BTreeSet::new(),
            shown: None,
            complete: false,
            until: None,
            retry_at: None,
        }
    }

    /// Waits for the next news of the speaker; never returns without one. Cancel-safe: nothing is lost.
    pub async fn next(&mut self) -> News {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let Running { events, writing, .. } = running;
        let news = tokio::select! {
            events = events.next() => events,
            number = first_written(writing) => return News::Written(number),
        };
        match news {
            Some(events) => News::Events(events),
            None => {
                self.running = None;
                self.access.send_replace(None);
                self.retry_at = Some(Instant::now());
                News::Ended
            }
        }
    }

    /// Packs the table of the running speaker.
    pub async fn pack(&self) {
        if let Some(running) = &self.running {
            // One that has just ended has no table.
            let _ = running.handle.ask(Speaker::pack).await;
        }
    }

    /// Returns the number of this speaker among all so far.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns whether there has been a speaker since the program began.
    pub fn have_run(&self) -> bool {
        self.have_run
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Returns whether a speaker is desired and missing, and a try to start it is due.
    pub fn is_missing(&self, desired: &Desired) -> bool {
        let is_due = self.retry_at.is_some_and(|at| at <= Instant::now());
        desired.speaker.is_some() && self.running.is_none() && is_due
    }

    /// Schedules the next try to start a missing speaker.
    pub fn try_at(&mut self, at: Instant) {
        self.retry_at = Some(at);
    }

    /// Returns when something is due: a try to start a desired speaker, or the end of waiting for neighbours.
    pub fn deadline(&self, desired: &Desired) -> Option<Instant> {
        let retry = self.retry_at.filter(|_| desired.speaker.is_some() && self.running.is_none());
        let end = self.until.filter(|_| self.lacks_peers);
        retry.into_iter().chain(end).chain(self.awaited.values().map(|awaited| awaited.until)).min()
    }

    /// Replaces the speaker.
    pub async fn replace(&mut self, desired: &Desired, left: Left, config: &RouterConfig) {
        self.stop();
        self.generation += 1;
        self.retry_at = None;
        self.complete = false;
        self.up.clear();
        let (Some(wanted), Some(policies)) = (&desired.speaker, &desired.policies) else { return };
        let deferral = config.graceful_restart.map_or(USUAL_DEFERRAL, |restart| restart.deferral);
        let rules = Rules {
            own: wanted.own,
            policies: policies.clone(),
            addresses: wanted.addresses.clone(),
            sharing: SHARING,
            held: PerFamily::default(),
            bounds: Bounds::default(),
            seed: RandomState::new().hash_one(()),
        };
        let restarting = left.routes.then_some(Restarting { patience: Restarting::PATIENCE, deferral });
        let (stop, stopped) = watch::channel(false);
        let setup = Setup { rules, restarting, forwarding: left.anything, pulse: self.pulse.clone() };
        match driver::spawn(setup, stopped) {
            Ok((handle, events, thread)) => {
                info!(asn = wanted.own.asn, identifier = %wanted.own.identifier, restarting = restarting.is_some(), "BGP speaker starting");
                let until = Instant::now() + self.patience;
                self.awaited = desired.expected().map(|peer| (peer, Awaited::everything(until))).collect();
                self.until = Some(until);
                self.have_run = true;
                // Without graceful restart nothing is held back, and routes are never reported to be complete.
                self.complete = restarting.is_none();
                self.running = Some(Running { handle, events, stop, thread, writing: VecDeque::new() });
                let expected = self.lacks_peers.then_some(Order::ExpectMore(true));
                self.order(expected.into_iter().chain(desired.all_orders()).collect()).await;
                // Behind the neighbours: a socket has their passwords before anybody connects to it.
                self.listen(desired).await;
            }
            Err(reason) => {
                error!(%reason, "Starting the BGP speaker failed; retrying");
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Records whether neighbours are missing for want of a password, or because they are not found on their link yet; those that the orders before have added are awaited.
    /// The speaker is told as well: what it says to others first counts as all that it has. `routers` are those outside without a password.
    pub async fn note_lack_of_peers(&mut self, lacks_peers: bool, routers: &BTreeSet<IpAddr>) {
        if self.without_password != *routers {
            self.without_password.clone_from(routers);
        }
        if std::mem::replace(&mut self.lacks_peers, lacks_peers) != lacks_peers && !self.complete {
            self.order(vec![Order::ExpectMore(lacks_peers)]).await;
        }
    }

    /// Passes orders to the speaker. If it has ended, its successor gets all of them.
    pub async fn order(&mut self, orders: Vec<Order>) {
        self.follow(&orders, Instant::now());
        if let (Some(running), false) = (&self.running, orders.is_empty()) {
            // An ended speaker is reported by its events.
            let _ = running.handle.order(orders).await;
        }
    }

    fn follow(&mut self, orders: &[Order], now: Instant) {
        for order in orders {
            match order {
                Order::Remove(peer, _) => drop(self.awaited.remove(peer)),
                Order::Want(wanted) if wanted.expected && !self.up.contains_key(&wanted.address) => {
                    // One whose password was not known has as long as others, from now on: the cluster, or its file, may have been away for
                    // longer than neighbours are waited for.
                    let is_late = self.without_password.contains(&wanted.address);
                    let end = if is_late { Some(now + self.patience) } else { self.until.filter(|_| self.lacks_peers) };
                    if let Some(until) = end {
                        self.awaited.insert(wanted.address, Awaited::everything(until));
                    }
                }
                _ => {}
            }
        }
    }

    /// Requests a notification with this number when everything ordered until now is written. Returns false if no
    /// neighbour can be told anything.
    pub async fn ask_written(&mut self, number: u64) -> bool {
        let Some(running) = &mut self.running else { return false };
        let Ok(answer) = running.handle.written().await else { return false };
        running.writing.push_back((number, answer));
        true
    }

    /// Listens on the desired addresses.
    pub async fn listen(&self, desired: &Desired) {
        if let (Some(running), Some(wanted)) = (&self.running, &desired.speaker) {
            let _ = running.handle.listen(wanted.listen.clone()).await;
            let access = Access { handle: running.handle.clone(), listen: wanted.listen.clone() };
            self.access.send_replace(Some(access));
        }
    }

    /// Returns whether a neighbour has a session and has sent all its routes of a family (End-of-RIB, RFC 4724 2).
    pub fn has_sent_all(&self, peer: IpAddr, family: Family) -> bool {
        self.up.get(&peer).is_some_and(|sent| *sent.of(family))
    }

    /// Records an event of the speaker. Returns the neighbour for which that changed what it has sent.
    pub fn note(&mut self, event: &Event) -> Option<IpAddr> {
        self.note_awaited(event);
        match event {
            // A family that the peer does not speak stays unsent: while a cluster is switched to two families, its nodes speak the
            // second one after the other.
            Event::Fact(peer, Fact::Up(_)) => {
                self.up.insert(*peer, PerFamily::default());
                Some(*peer)
            }
            Event::Fact(peer, Fact::Down { .. }) => self.up.remove(peer).map(|_| *peer),
            Event::Fact(peer, Fact::Complete(family)) => {
                *self.up.get_mut(peer)?.of_mut(*family) = true;
                Some(*peer)
            }
            _ => None,
        }
    }

    fn note_awaited(&mut self, event: &Event) {
        match event {
            Event::Complete => self.complete = true,
            Event::Fact(peer, Fact::Up(agreement)) => {
                let spoken = agreement.dialect.families;
                self.awaits(*peer, |awaited| PerFamily { v4: awaited.v4 && spoken.v4, v6: awaited.v6 && spoken.v6 });
            }
            Event::Fact(peer, Fact::Complete(family)) => self.awaits(*peer, |mut awaited| {
                *awaited.of_mut(*family) = false;
                awaited
            }),
            _ => {}
        }
    }

    fn awaits(&mut self, peer: IpAddr, change: impl FnOnce(PerFamily<bool>) -> PerFamily<bool>) {
        let Some(awaited) = self.awaited.get_mut(&peer) else { return };
        awaited.families = change(awaited.families);
        if awaited.families == PerFamily::default() {
            self.awaited.remove(&peer);
        }
    }

    /// Returns whether learned routes are complete, so that others may be deleted. False without a speaker.
    pub fn have_said_all(&mut self, now: Instant, desired: &Desired) -> bool {
        self.awaited.retain(|peer, _| desired.peers.contains_key(peer));
        self.nobody_is_awaited(now) && self.is_running() && self.complete
    }

    /// Returns whether a speaker has to run and has not said all that it announces: neighbours go on with what they have kept of the run before, beside our own routes.
    pub fn hold_back(&self, desired: &Desired) -> bool {
        desired.speaker.is_some() && !(self.is_running() && self.complete)
    }

    /// Returns whether one of these routers has no session, and may keep what an earlier speaker has announced (RFC 4724 4.2). Nobody keeps that for longer
    /// than neighbours are waited for after the start of a speaker.
    pub fn lack_router(&self, routers: &[IpAddr], desired: &Desired, now: Instant) -> bool {
        let keeps = |router: &IpAddr| desired.peers.get(router).is_some_and(|wanted| wanted.settings.restart.is_some());
        !self.patience_is_over(now) && routers.iter().any(|router| keeps(router) && !self.up.contains_key(router))
    }

    fn nobody_is_awaited(&mut self, now: Instant) -> bool {
        self.awaited.retain(|_, awaited| awaited.until > now);
        if self.patience_is_over(now) {
            self.lacks_peers = false;
        }
        self.awaited.is_empty() && !self.lacks_peers
    }

    /// Returns whether the wait for neighbours is over.
    pub fn patience_is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Returns when the wait for neighbours began; `None` before the first speaker.
    pub fn waits_since(&self) -> Option<Instant> {
        self.until?.checked_sub(self.patience)
    }

    /// Keeps the pulse alive while no speaker is desired or can be started: there is none that could be stuck.
    pub fn beat_for_nobody(&self, now: Instant) {
        if self.running.is_none() {
            self.pulse.beat(now);
        }
    }

    /// Returns whether no neighbour has a session, as far as events have told.
    pub fn has_nobody(&self) -> bool {
        self.up.is_empty()
    }

    /// Neighbours that had a session, or of which routes were retained, at the last [`Sessions::show`].
    pub fn kept(&self) -> &BTreeSet<IpAddr> {
        &self.kept
    }

    /// Exports the neighbours that have changed since the last time, or all where that was another speaker. Without a speaker, or without an answer of it, there are none.
    pub async fn show(&mut self, shown: &Shown) {
        let is_followed = self.shown == Some(self.generation);
        let question = move |speaker: &mut Speaker| {
            let changed = speaker.take_changed();
            let row = |address| (address, speaker.neighbour(address).filter(|one| one.is_shown()).map(Row::of));
            match is_followed {
                true => changed.into_iter().map(row).collect::<Vec<_>>(),
                false => speaker.neighbours().map(|(address, _)| row(address)).collect(),
            }
        };
        let answer = match &self.running {
            Some(running) => running.handle.ask(question).await.ok(),
            None => None,
        };
        self.shown = answer.is_some().then_some(self.generation);
        let is_followed = is_followed && answer.is_some();
        if !is_followed {
            self.kept.clear();
        }
        let changes = answer.unwrap_or_default();
        for (address, row) in &changes {
            match row.as_ref().is_some_and(|row| row.summary.is_kept) {
                true => self.kept.insert(*address),
                false => self.kept.remove(address),
            };
        }
        match is_followed {
            true => shown.change(changes),
            false => shown.replace(changes.into_iter().filter_map(|(address, row)| Some((address, row?)))),
        }
    }

    /// Stops the speaker with the program. Only neighbours that do not keep our routes are told so (RFC 4724 4).
    pub async fn end(mut self, desired: &Desired) {
        let told = desired.peers.iter().filter(|(_, wanted)| wanted.settings.restart.is_none());
        let goodbye = |peer: &IpAddr| Order::Remove(*peer, Notification::new(Reason::DECONFIGURED));
        let orders: Vec<Order> = told.map(|(peer, _)| goodbye(peer)).collect();
        if !orders.is_empty() {
            self.order(orders).await;
            if let Some(running) = &self.running
                && let Ok(written) = running.handle.written().await
            {
                // Peers that do not read it in time see the connection end.
                let _ = tokio::time::timeout(FAREWELL, written).await;
            }
        }
        self.stop();
    }

    fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.access.send_replace(None);
        running.stop.send_replace(true);
        if running.thread.join().is_err() {
            error!("BGP speaker thread ended unexpectedly");
        }
    }
}

impl Awaited {
    fn everything(until: Instant) -> Awaited {
        Awaited { families: PerFamily { v4: true, v6: true }, until }
    }
}

/// Returns the number of the first question once it is answered, or cannot be: then no neighbour is left to tell.
async fn first_written(writing: &mut VecDeque<(u64, oneshot::Receiver<()>)>) -> u64 {
    let Some((number, answer)) = writing.front_mut() else { return std::future::pending().await };
    let _ = answer.await;
    let number = *number;
    writing.pop_front();
    number
}
