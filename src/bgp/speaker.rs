//! The speaker: all neighbours and the table together, as one state machine without I/O.
//!
//! Events go in as an [`Input`] with the time, requested actions come out. The owner of the sockets waits in one place:
//! for the next input or [`Speaker::deadline`]. Neighbours are identified by address, connections by numbers that are
//! never reused.
//!
//! Backpressure: bytes handed over and not yet accepted by the socket are counted for each neighbour. A neighbour that
//! reads slowly is sent the newest state later (`rib::exports`); one that accepts nothing for eight minutes is
//! disconnected (RFC 9687).
//! Neighbours that do not answer share a pace of dials (`dialling`).
//!
//! After a local restart (RFC 4724 4.1) routes of others are not advertised until all connected neighbours have sent End-of-RIB.
//! Other neighbours are waited for as long as new ones connect, and a moment more, and so are those that are still being looked for; the whole wait has a bound. Our
//! own routes depend on nobody, and are sent at once: a neighbour may have lost them meanwhile (`rib::exports`).

mod again;
mod changed;
mod dialling;
mod excess;
mod fact;
mod inspection;
mod liveness;
mod neighbour;
mod rest;
mod restarting;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::message::{Attributes, Notification, Reason, Update};
use super::rib::{Changed, Joining, PeerId, Policies, Rib, Rules};
use super::session::{Agreement, Cause, Effect, Event, LinkId, Moment, Peer, SLACK};
use crate::bfd;
use crate::net::PerFamily;

pub use changed::Summary;
pub use fact::Fact;
pub use inspection::{FailureCause, Idle, NeighbourState, PathStatus, Portion, Position, PrefixQuery, SpeakerState};
pub use liveness::Liveness;
pub use neighbour::{Messages, Neighbour, WantedNeighbour};
use restarting::Restart;
pub use restarting::Restarting;

/// Time in Idle of a neighbour that has exceeded a limit on its routes.
const FLOODED: Duration = Duration::from_secs(300);
/// Send hold time (RFC 9687 5).
const SEND_HOLD: Duration = Duration::from_secs(480);
const ALL: PerFamily<bool> = PerFamily { v4: true, v6: true };

/// Order from the owner of the speaker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Adds a neighbour, or changes its settings.
    Want(Arc<WantedNeighbour>),
    /// Removes a neighbour, with the NOTIFICATION to send.
    Remove(IpAddr, Notification),
    /// Stops a neighbour until it is started again.
    Stop(IpAddr, Notification),
    Start(IpAddr),
    /// Resets its session.
    Restart(IpAddr, Notification),
    /// Requests its routes again (inbound soft reset).
    AskAgain(IpAddr),
    /// Sends it all routes again (outbound soft reset).
    TellAgain(IpAddr),
    /// Originates a route of our own.
    Originate(IpNet, Box<Attributes>),
    Retract(IpNet),
    /// The same for an operator, beside our own routes.
    Add(IpNet, Box<Attributes>),
    Delete(IpNet),
    Policies(Policies),
    /// Replaces the local addresses: routes with such a next hop are not used.
    OwnAddresses(BTreeSet<IpAddr>),
    /// Sets the unreachable next hops; all others are reachable, as far as is known.
    Unreachable(BTreeSet<IpAddr>),
    /// Whether neighbours that are not configured yet are being looked for: after a local restart they are waited for, too, for a while.
    ExpectMore(bool),
}

/// Event.
#[derive(Clone, Debug)]
pub enum Input {
    Order(Order),
    Dialled(IpAddr, LinkId),
    DialFailed(IpAddr),
    Accepted(IpAddr, LinkId),
    Closed(LinkId),
    /// Number of output bytes that the socket has accepted.
    Taken(LinkId, usize),
    /// BFD has told the state of the path to a neighbour.
    Path(IpAddr, bfd::Status),
    /// BFD has died: nothing is known of any path.
    PathsUnknown,
    /// The deadline is reached.
    Tick,
}

impl From<Order> for Input {
    fn from(order: Order) -> Input {
        Input::Order(order)
    }
}

/// Requested action, or a fact to report.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    Dial(IpAddr),
    AbandonDial(IpAddr),
    Send(LinkId, Arc<[u8]>),
    /// Close, after pending output has been sent.
    Close(LinkId),
    /// Prefixes with changed routes; see [`Flushed::routes`](super::rib::Flushed::routes).
    Routes(Vec<Changed>),
    Fact(IpAddr, Fact),
    /// The local restart is over: the table is as complete as it gets.
    Complete,
}

/// Speaker.
#[derive(Debug)]
pub struct Speaker {
    rib: Rib,
    /// Boxed: a map leaves its nodes half empty, and these are large.
    neighbours: BTreeMap<IpAddr, Box<Neighbour>>,
    addresses: BTreeMap<PeerId, IpAddr>,
    links: BTreeMap<LinkId, IpAddr>,
    /// Deadlines of the neighbours.
    timers: BTreeSet<(Instant, IpAddr)>,
    /// See [`Speaker::take_changed`]: at most the neighbours that there are, and those removed since.
    changed: BTreeSet<IpAddr>,
    next: u32,
    unanswering: dialling::Unanswering,
    /// Until the local restart is over.
    restart: Option<Restart>,
    /// See [`Speaker::begins_without_state`].
    is_new: bool,
    outputs: Vec<Output>,
}

impl Speaker {
    /// Builds a speaker without neighbours. `restarting`: an earlier run of ours has left routes in the kernel.
    pub fn new(mut rules: Rules, restarting: Option<Restarting>, now: Instant) -> Speaker {
        rules.held = if restarting.is_some() { ALL } else { PerFamily::default() };
        let restart = restarting.map(|restarting| Restart::begin(restarting, now));
        Speaker {
            rib: Rib::new(rules, now),
            neighbours: BTreeMap::new(),
            addresses: BTreeMap::new(),
            links: BTreeMap::new(),
            timers: BTreeSet::new(),
            changed: BTreeSet::new(),
            next: PeerId::FIRST.0,
            unanswering: dialling::Unanswering::default(),
            restart,
            is_new: false,
            outputs: Vec::new(),
        }
    }

    /// Records that nothing of an earlier run is in the kernel, as after a reboot: neighbours learn from the F bit that
    /// retained routes are not forwarded.
    pub fn begins_without_state(&mut self) {
        self.is_new = true;
    }

    pub fn rib(&self) -> &Rib {
        &self.rib
    }

    /// Packs the table, for which there is time when nothing is received.
    pub fn pack(&mut self) {
        self.rib.pack();
    }

    /// All neighbours, by address.
    pub fn neighbours(&self) -> impl Iterator<Item = (IpAddr, &Neighbour)> {
        self.neighbours.iter().map(|(address, neighbour)| (*address, &**neighbour))
    }

    pub fn neighbour(&self, address: IpAddr) -> Option<&Neighbour> {
        self.neighbours.get(&address).map(|neighbour| &**neighbour)
    }

    /// Neighbours with a session whose Adj-RIB-Out is not sent completely: they read slowly, or have just been added.
    pub fn behind(&self) -> impl Iterator<Item = IpAddr> {
        let is_behind = |neighbour: &Neighbour| neighbour.peer.session().is_some() && !self.rib.is_told(neighbour.id);
        self.neighbours().filter(move |(_, neighbour)| is_behind(neighbour)).map(|(address, _)| address)
    }

    /// Attributes advertised to a neighbour for a prefix; `None` when the prefix is not advertised.
    pub fn told(&mut self, address: IpAddr, prefix: IpNet) -> Option<Arc<Attributes>> {
        let id = self.neighbours.get(&address)?.id;
        self.rib.shown_to(id, prefix)
    }

    /// Returns whether the local restart is still in progress.
    pub fn is_restarting(&self) -> bool {
        self.restart.is_some()
    }

    /// Time of the next [`Input::Tick`], at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let first = self.timers.first().map(|(at, _)| *at);
        first.into_iter().chain(self.restart.map(|restart| restart.next)).min()
    }

    /// Processes an event.
    pub fn step(&mut self, at: Moment, input: impl Into<Input>) -> Vec<Output> {
        self.rib.set_time(at.now);
        match input.into() {
            Input::Order(order) => self.follow(at, order),
            Input::Dialled(address, link) => self.connected(at, address, link, Event::Dialled(link)),
            Input::DialFailed(address) => self.event(at, address, Event::DialFailed),
            Input::Accepted(address, link) => self.connected(at, address, link, Event::Accepted(link)),
            Input::Closed(link) => {
                if let Some(address) = self.links.get(&link).copied() {
                    self.event(at, address, Event::Closed(link));
                    self.links.remove(&link);
                }
            }
            Input::Taken(link, bytes) => self.taken(at, link, bytes),
            Input::Path(address, status) => self.path(at, address, status),
            Input::PathsUnknown => self.forget_paths(),
            Input::Tick => self.tick(at),
        }
        self.finish(at)
    }

    /// Processes several orders, and advertises their combined result.
    pub fn orders(&mut self, at: Moment, orders: impl IntoIterator<Item = Order>) -> Vec<Output> {
        self.rib.set_time(at.now);
        for order in orders {
            self.follow(at, order);
        }
        self.finish(at)
    }

    /// Processes bytes received over a connection.
    pub fn receive(&mut self, at: Moment, link: LinkId, bytes: &[u8]) -> Vec<Output> {
        self.rib.set_time(at.now);
        if let Some(address) = self.links.get(&link).copied()
            && let Some(neighbour) = self.neighbours.get_mut(&address)
        {
            let effects = neighbour.peer.receive(at, link, bytes);
            self.take(at, address, effects);
            self.settle(address);
        }
        self.finish(at)
    }

    fn follow(&mut self, at: Moment, order: Order) {
        match order {
            Order::Want(wanted) => self.want(at, wanted),
            Order::Remove(address, notification) => self.remove(at, address, notification),
            Order::Stop(address, notification) => self.event(at, address, Event::Stop(notification)),
            Order::Start(address) => self.event(at, address, Event::Start),
            Order::Restart(address, notification) => self.event(at, address, Event::Restart(notification)),
            Order::AskAgain(address) => self.ask_again(address),
            Order::TellAgain(address) => self.tell_again(address),
            Order::Originate(prefix, attributes) => self.rib.originate(PeerId::LOCAL, prefix, *attributes),
            Order::Retract(prefix) => self.rib.retract(PeerId::LOCAL, prefix),
            Order::Add(prefix, attributes) => self.rib.originate(PeerId::OPERATOR, prefix, *attributes),
            Order::Delete(prefix) => self.rib.retract(PeerId::OPERATOR, prefix),
            Order::Policies(policies) => self.rib.set_policies(policies),
            Order::OwnAddresses(addresses) => self.rib.set_addresses(addresses),
            Order::Unreachable(next_hops) => self.rib.set_unreachable(next_hops),
            Order::ExpectMore(expects) => self.restart.iter_mut().for_each(|restart| restart.expects_more = expects),
        }
    }

    fn want(&mut self, at: Moment, wanted: Arc<WantedNeighbour>) {
        let address = wanted.address;
        self.changed.insert(address);
        if let Some(neighbour) = self.neighbours.get_mut(&address) {
            let was_held = neighbour.path.is_holding;
            let (most, own) = (neighbour.wanted.most, neighbour.wanted.own);
            let anew = neighbour.change(wanted);
            if let Some(own) = neighbour.own_after(own).filter(|_| anew.is_none()) {
                self.rib.set_addresses_towards(neighbour.id, own);
            }
            let is_bound_otherwise = neighbour.wanted.most != most;
            // Nobody watches the path any more that kept it from having a session.
            let is_free = was_held && !neighbour.path.is_holding;
            match anew {
                Some(event) => self.event(at, address, event),
                None if is_free => self.start_if_idle(at, address),
                None if is_bound_otherwise => self.apply_prefix_limits(at, address),
                None => self.settle(address),
            }
            return;
        }
        let id = PeerId(self.next);
        self.next += 1;
        let mut peer = Peer::new(wanted.settings.clone(), self.restart.is_some());
        if self.is_new {
            peer.begins_without_state();
        }
        self.restart.iter_mut().filter(|_| wanted.expected).for_each(|restart| restart.note_new(at.now));
        self.neighbours.insert(address, Box::new(Neighbour::new(id, wanted, peer, at.now)));
        self.addresses.insert(id, address);
        self.event(at, address, Event::Start);
    }

    fn remove(&mut self, at: Moment, address: IpAddr, notification: Notification) {
        self.event(at, address, Event::Stop(notification));
        if let Some(neighbour) = self.neighbours.remove(&address) {
            self.timers.retain(|(_, one)| *one != address);
            self.addresses.remove(&neighbour.id);
            self.changed.insert(address);
            self.rib.forget(neighbour.id);
        }
    }

    fn connected(&mut self, at: Moment, address: IpAddr, link: LinkId, event: Event) {
        match self.neighbours.contains_key(&address) {
            true => {
                self.links.insert(link, address);
                self.event(at, address, event);
            }
            false => self.outputs.push(Output::Close(link)),
        }
    }

    fn taken(&mut self, at: Moment, link: LinkId, bytes: usize) {
        let Some(address) = self.links.get(&link).copied() else { return };
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        // Bytes of an earlier session do not count for this one.
        if neighbour.peer.session().is_some_and(|(session, _)| session == link) {
            self.rib.taken(neighbour.id, bytes);
            neighbour.has_taken(self.rib.on_the_way(neighbour.id), at.now);
            self.settle(address);
        }
    }

    fn tick(&mut self, at: Moment) {
        // One wake-up serves everybody for whom something is due, or may be done already.
        let soon = self.timers.iter().take_while(|(time, _)| *time <= at.now + SLACK);
        let is_ready = |address: &IpAddr| {
            self.neighbours.get(address).and_then(|neighbour| neighbour.ready()).is_some_and(|ready| ready <= at.now)
        };
        let due: Vec<IpAddr> = soon.map(|(_, address)| *address).filter(is_ready).collect();
        for address in due {
            self.event(at, address, Event::Tick);
            self.end_hold_if_over(address);
            self.fail_if_not_back(at, address);
            self.release_if_due(at, address);
            self.answer_if_due(at, address);
            let Some(neighbour) = self.neighbours.get(&address) else { continue };
            if let Some((link, _)) = neighbour.peer.session().filter(|_| neighbour.is_stuck(at.now)) {
                self.event(at, address, Event::Stuck(link));
            }
        }
    }

    /// Records what follows from a step of a neighbour: its deadline, and whether its summary has changed.
    fn settle(&mut self, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        if neighbour.has_another_summary() {
            self.changed.insert(address);
        }
        let deadline = neighbour.deadline();
        let before = std::mem::replace(&mut neighbour.timer, deadline);
        let silent_since = neighbour.peer.is_unanswering().then(|| neighbour.silent_since());
        self.unanswering.note(address, silent_since);
        if before != deadline {
            if let Some(before) = before {
                self.timers.remove(&(before, address));
            }
            self.timers.extend(deadline.map(|at| (at, address)));
        }
    }

    fn event(&mut self, at: Moment, address: IpAddr, event: Event) {
        if let Some(neighbour) = self.neighbours.get_mut(&address) {
            if neighbour.peer.session().is_none() {
                let spread = self.unanswering.spread(neighbour.silent_since(), at.now);
                neighbour.peer.spread_dials(spread);
            }
            let effects = neighbour.peer.step(at, event);
            self.take(at, address, effects);
            self.settle(address);
        }
    }

    /// Performs the effects requested by a neighbour's state machine.
    fn take(&mut self, at: Moment, address: IpAddr, effects: Vec<Effect>) {
        let mut refused = None;
        for effect in effects {
            match effect {
                Effect::Dial => self.outputs.push(Output::Dial(address)),
                Effect::AbandonDial => self.outputs.push(Output::AbandonDial(address)),
                Effect::Send(link, bytes) => {
                    if let Some(neighbour) = self.neighbours.get_mut(&address) {
                        neighbour.has_sent(&bytes);
                    }
                    self.outputs.push(Output::Send(link, bytes.into()));
                }
                Effect::Close(link) => {
                    self.links.remove(&link);
                    self.outputs.push(Output::Close(link));
                }
                Effect::Up(_, agreement) => self.up(at, address, agreement),
                Effect::Down { kept, cause } => self.down(at, address, kept, cause),
                Effect::Update(update) if refused.is_none() => refused = self.update(at, address, *update),
                Effect::Update(_) => {}
                Effect::Refresh(refresh) => self.refresh(at, address, refresh),
                Effect::LongLived { families, is_new } => self.keep_long(address, families, is_new),
                Effect::DropStale(families) => {
                    if let Some(neighbour) = self.neighbours.get(&address) {
                        self.rib.drop_stale(neighbour.id, families);
                    }
                }
                Effect::Failed(cause) => {
                    self.note_end(at, address, &cause);
                    self.outputs.push(Output::Fact(address, Fact::Failed(cause)));
                }
            }
        }
        // Last: the same bytes may have ended the session, and its retained routes have to be removed as well.
        if let Some(notification) = refused {
            self.refuse(at, address, notification);
        }
    }

    fn up(&mut self, at: Moment, address: IpAddr, agreement: Box<Agreement>) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        self.unanswering.answered(address, neighbour.ended(), at.now);
        neighbour.path.begin(at.now, neighbour.ended());
        // One that comes and goes says nothing about those that are away.
        let is_new = neighbour.wanted.expected && neighbour.began().is_none();
        neighbour.begin(at.now);
        self.restart.iter_mut().filter(|_| is_new).for_each(|restart| restart.note_up(at.now));
        let (source, view) = neighbour.looks(&agreement);
        self.rib.join(Joining { peer: neighbour.id, source, view });
        self.outputs.push(Output::Fact(address, Fact::Up(agreement)));
    }

    fn down(&mut self, at: Moment, address: IpAddr, kept: PerFamily<bool>, cause: Cause) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        neighbour.end(at.now);
        neighbour.path.end(&cause);
        self.bound_retained(address, kept);
        let Some(neighbour) = self.neighbours.get(&address) else { return };
        self.rib.leave(neighbour.id, kept);
        self.note_end(at, address, &cause);
        self.outputs.push(Output::Fact(address, Fact::Down { kept, cause }));
    }

    /// Processes an UPDATE. Returns the NOTIFICATION that refuses the neighbour, where a limit is exceeded.
    fn update(&mut self, at: Moment, address: IpAddr, update: Update) -> Option<Notification> {
        let neighbour = self.neighbours.get_mut(&address)?;
        let remarks = neighbour.news_of(&update.remarks, at.now);
        if !remarks.is_empty() {
            self.outputs.push(Output::Fact(address, Fact::Remarks(remarks)));
        }
        let ended = update.end_of_rib;
        self.rib.receive(neighbour.id, update);
        if let Some(family) = ended
            && neighbour.complete(family)
        {
            self.outputs.push(Output::Fact(address, Fact::Complete(family)));
        }
        let id = neighbour.id;
        if self.has_too_many_attributes(at, address, id) {
            // RFC 4486 4: the remedy is left to the neighbour's operator.
            return Some(Notification::new(Reason::OUT_OF_RESOURCES));
        }
        self.too_many_prefixes(address)
    }

    /// Advertises all changes, and returns the pending outputs.
    fn finish(&mut self, at: Moment) -> Vec<Output> {
        while let Some(address) = self.unanswering.next() {
            self.event(at, address, Event::DialNow);
        }
        self.end_restart(at);
        let flushed = self.rib.flush();
        for parcel in flushed.parcels {
            let Some(address) = self.addresses.get(&parcel.to).copied() else { continue };
            let Some(neighbour) = self.neighbours.get_mut(&address) else { continue };
            let Some((link, _)) = neighbour.peer.session() else { continue };
            if let Some(unfit) = neighbour.has_sent_updates(&parcel, at.now) {
                self.outputs.push(Output::Fact(address, Fact::Unfit(unfit)));
            }
            self.outputs.push(Output::Send(link, parcel.bytes));
            self.settle(address);
        }
        if !flushed.routes.is_empty() {
            self.outputs.push(Output::Routes(flushed.routes));
        }
        std::mem::take(&mut self.outputs)
    }
}
