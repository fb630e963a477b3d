//! The speaker with sockets and a clock: the only part of `bgp` with side effects.
//!
//! One task, on a thread of its own, owns the speaker and all sockets. It waits in one place: for orders, for a socket,
//! for the consumer of events, or for the next deadline. A turn processes a bounded number of inputs, at most one
//! buffer of each connection, so that no neighbour starves the others; then all resulting output is written.
//!
//! The task never waits for the consumer of events (`news`), and nobody can make it send more than a neighbour accepts
//! (`speaker`, backpressure). When it ends, or dies, its sockets close without a NOTIFICATION, which is how a graceful
//! restart begins (RFC 4724 4.1); to end sessions for good, order the removal of the neighbours first.
//!
//! Connections are accepted from configured neighbours, to the local address configured for them, with their password.
//! Others are closed at once, and counted. A neighbour that stays silent is closed by its session machine (`session`).

mod admission;
mod apply;
mod keys;
mod facts;
mod folded;
mod liveness;
mod news;
mod outbox;
mod passwords;
mod rest;
mod serve;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use super::message::SHORTEST;
use super::rib::Rules;
use super::session::{LinkId, Moment};
use super::speaker::{Input, Order, Output, Restarting, Speaker};
use crate::kernel::{Error, processor, tcp};
use crate::net::link_local::of_socket;
use crate::observe::health::Pulse;
use crate::reconcile::{self, Moments};
use apply::{Happened, Links, Reading, Waits};
use liveness::Watching;
use news::News;
use serve::Listeners;

pub use news::{Event, Refusal, Refused, Subject};

/// Initial state of a speaker.
#[derive(Debug)]
pub struct Setup {
    pub rules: Rules,
    /// Set when an earlier run has left routes in the kernel.
    pub restarting: Option<Restarting>,
    /// Forwarding state of an earlier run, with or without routes, is in the kernel: routes that neighbours retain from
    /// us are still forwarded.
    pub forwarding: bool,
    /// Liveness signal.
    pub pulse: Pulse,
}

/// Handle for ordering and querying the speaker. Clones refer to the same speaker.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

/// A speaker and its listening addresses, for outside observers.
#[derive(Clone, Debug)]
pub struct Access {
    pub handle: Handle,
    pub listen: BTreeSet<SocketAddr>,
}

/// Events of the speaker, in the order of their occurrence. For each prefix only the newest route is reported.
#[derive(Debug)]
pub struct Events {
    batches: mpsc::Receiver<Vec<Event>>,
}

/// The speaker has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the BGP speaker has ended")]
pub struct Ended;

enum Command {
    Orders(Vec<Order>),
    Listen(BTreeSet<SocketAddr>),
    Ask(Box<dyn FnOnce(&mut Speaker) + Send>),
    Write(oneshot::Sender<()>),
}

/// A pending request for notice that all earlier output is written.
struct Writing {
    /// Neighbours whose Adj-RIB-Out is not sent completely: they read slowly, or have just been added.
    behind: Vec<IpAddr>,
    /// Ends of the unsent output of all connections, once no neighbour is behind.
    ends: Option<Vec<(LinkId, u64)>>,
    tell: oneshot::Sender<()>,
}

/// Capacity of the command queue; faster senders wait.
const COMMANDS: usize = 64;
/// Number of inputs processed before output is written.
const AT_ONCE: usize = 256;
/// Number of bytes read from a connection before the next one's turn.
const BUFFER: usize = 16 << 10;
/// Connection limit per neighbour: two by the protocol, and some that are closing.
const CONNECTIONS: usize = 8;
/// Longest sleep, so that the liveness signal stays current.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Starts a speaker on a thread of its own. It ends when `stop` becomes true or all handles are dropped.
///
/// # Errors
/// The system provides no thread, or no I/O event source.
pub fn spawn(setup: Setup, stop: watch::Receiver<bool>) -> io::Result<(Handle, Events, JoinHandle<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (commands, commands_in) = mpsc::channel(COMMANDS);
    let (batches_out, batches) = mpsc::channel(1);
    let run = move || {
        processor::set_nice(processor::PROMPT);
        // Sockets are created here and not earlier, so that they belong to this thread's network namespace.
        let driver = Driver::new(setup);
        runtime.block_on(driver.run(commands_in, batches_out, stop));
    };
    let thread = std::thread::Builder::new().name("bgp".to_owned()).spawn(run)?;
    Ok((Handle { commands }, Events { batches }, thread))
}

impl Handle {
    /// Returns whether both handles refer to the same speaker.
    pub fn is_same(&self, other: &Handle) -> bool {
        self.commands.same_channel(&other.commands)
    }

    /// Sends orders; the neighbours receive the combined result of all of them.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn order(&self, orders: impl Into<Vec<Order>>) -> Result<(), Ended> {
        self.send(Command::Orders(orders.into())).await
    }

    /// Sets the listening addresses.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn listen(&self, on: BTreeSet<SocketAddr>) -> Result<(), Ended> {
        self.send(Command::Listen(on)).await
    }

    /// Runs a query on the speaker. Outputs of steps made by the query are lost; use orders for those.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Speaker) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (answer_out, answer) = oneshot::channel();
        let ask = move |speaker: &mut Speaker| {
            // The requester may be gone.
            let _ = answer_out.send(question(speaker));
        };
        self.send(Command::Ask(Box::new(ask))).await?;
        answer.await.map_err(|_| Ended)
    }

    /// Completes when the sockets of all neighbours have accepted the results of all earlier orders. A neighbour that
    /// reads slowly delays this; one that disconnects is not waited for.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn written(&self) -> Result<oneshot::Receiver<()>, Ended> {
        let (tell, told) = oneshot::channel();
        self.send(Command::Write(tell)).await?;
        Ok(told)
    }

    async fn send(&self, command: Command) -> Result<(), Ended> {
        self.commands.send(command).await.map_err(|_| Ended)
    }
}

impl Events {
    /// Returns the events since the last call; `None` when the speaker has ended. Cancel-safe: no event is lost.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        self.batches.recv().await
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Orders(orders) => f.debug_tuple("Orders").field(orders).finish(),
            Command::Listen(on) => f.debug_tuple("Listen").field(on).finish(),
            Command::Ask(_) => f.write_str("Ask"),
            Command::Write(_) => f.write_str("Write"),
        }
    }
}

struct Driver {
    speaker: Speaker,
    links: Links,
    listeners: Listeners,
    waits: Waits,
    news: News,
    /// Neighbours that could not be dialled since their last session.
    undialled: BTreeSet<IpAddr>,
    /// Pending requests for notice of written output.
    writings: Vec<Writing>,
    /// Connections on which a KEEPALIVE was sent in this turn.
    kept_alive: Vec<LinkId>,
    moments: Moments,
    buffer: Vec<u8>,
    pulse: Pulse,
    /// Dropped last, after all connections are closed: some neighbours take the end of BFD, which is told here, for a reason to end the
    /// session and to forget its routes, where a closed connection begins a graceful restart.
    liveness: Watching,
}

impl Driver {
    fn new(setup: Setup) -> Driver {
        let now = Instant::now();
        if let Err(error) = tcp::raise_open_files() {
            error!(%error, "Raising the limit of open files failed");
        }
        // Only after a restart it is told that it is over.
        let news = if setup.restarting.is_some() { News::of_successor() } else { News::default() };
        let mut speaker = Speaker::new(setup.rules, setup.restarting, now);
        if !setup.forwarding {
            speaker.begins_without_state();
        }
        Driver {
            speaker,
            links: Links::default(),
            listeners: Listeners::default(),
            waits: Waits::new(),
            news,
            undialled: BTreeSet::new(),
            writings: Vec::new(),
            kept_alive: Vec::new(),
            moments: Moments::since(now),
            buffer: vec![0; BUFFER],
            pulse: setup.pulse,
            liveness: Watching::default(),
        }
    }

    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        batches: mpsc::Sender<Vec<Event>>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let now = Instant::now();
            let deadline = tokio::time::Instant::from_std(self.deadline(now));
            tokio::select! {
                // Orders apply to everything that arrives over the sockets after them.
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Ok(permit) = batches.reserve(), if self.news.is_due(now) => {
                    let rib = self.speaker.rib();
                    permit.send(self.news.take(now, |prefix| rib.route(prefix)));
                    continue;
                }
                report = self.liveness.next() => self.reported(report),
                Some(happened) = self.waits.next(), if !self.waits.is_empty() => self.take(happened.ok()),
                () = tokio::task::yield_now(), if self.links.is_busy() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
            // Paths that have failed wait for nobody who asks, however often.
            while let Some(report) = self.liveness.next().now_or_never() {
                self.reported(report);
            }
            for _ in 0..COMMANDS {
                let Ok(command) = commands.try_recv() else { break };
                self.obey(command);
            }
            for _ in 0..AT_ONCE {
                let Some(Some(happened)) = self.waits.next().now_or_never() else { break };
                self.take(happened.ok());
            }
            self.finish_turn();
        }
    }

    fn deadline(&self, now: Instant) -> Instant {
        let due = [self.speaker.deadline(), self.links.deadline(), self.listeners.deadline(), self.news.deadline(now)];
        let due = due.into_iter().chain([self.liveness.unexpected_due]);
        due.flatten().fold(now + HEARTBEAT, Instant::min)
    }

    /// Performs what is due at the end of every turn.
    fn finish_turn(&mut self) {
        let now = Instant::now();
        if self.speaker.deadline().is_some_and(|deadline| deadline <= now) {
            self.read_silent(now);
            self.step(Input::Tick);
        }
        for link in std::mem::take(&mut self.kept_alive) {
            self.look_at_rest(link);
        }
        self.links.expire(now);
        let at = self.moments.at(now);
        self.listeners.open(&self.waits, at, &mut self.news);
        for (on, stream, from) in self.listeners.take_accepted() {
            self.accept(on, stream, of_socket(from));
        }
        for (link, bytes) in self.links.write(&self.waits) {
            self.step(Input::Taken(link, bytes));
        }
        self.tell_what_is_written();
        self.look_at_unexpected(now);
        self.keep_watching(now);
        self.pulse.beat(now);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Orders(orders) => {
                let may_change = orders.iter().any(|order| matches!(order, Order::Want(_) | Order::Remove(..)));
                // A Service that changes concerns no path, however many neighbours there are.
                let moves_paths =
                    orders.iter().any(|order| matches!(order, Order::Stop(..) | Order::Start(_) | Order::Restart(..)));
                let outputs = self.speaker.orders(self.moment(), orders);
                self.carry_out(outputs);
                if may_change {
                    self.set_passwords();
                }
                if may_change || moves_paths {
                    self.set_liveness();
                }
            }
            Command::Listen(on) => {
                self.listeners.set(on);
                let at = self.moments.at(Instant::now());
                self.listeners.open(&self.waits, at, &mut self.news);
            }
            Command::Ask(ask) => ask(&mut self.speaker),
            Command::Write(tell) => {
                let behind = self.speaker.behind().collect();
                self.writings.push(Writing { behind, ends: None, tell });
            }
        }
    }

    /// Completes requests for notice whose output is written.
    fn tell_what_is_written(&mut self) {
        for mut writing in std::mem::take(&mut self.writings) {
            if !writing.behind.is_empty() {
                let behind: BTreeSet<IpAddr> = self.speaker.behind().collect();
                writing.behind.retain(|address| behind.contains(address));
            }
            if writing.behind.is_empty() {
                let ends = writing.ends.get_or_insert_with(|| self.links.ends());
                ends.retain(|(link, end)| !self.links.is_past(*link, *end));
                if ends.is_empty() {
                    // The requester may be gone.
                    let _ = writing.tell.send(());
                    continue;
                }
            }
            if !writing.tell.is_closed() {
                self.writings.push(writing);
            }
        }
    }

    /// Processes the completion of a socket operation; ignores `None`, a cancelled one.
    fn take(&mut self, happened: Option<Happened>) {
        match happened {
            None => {}
            Some(Happened::Readable(link)) => match self.links.read(&self.waits, link, &mut self.buffer) {
                Reading::Bytes(bytes) => {
                    let at = self.moment();
                    self.receive(at, link, bytes);
                }
                Reading::End => self.step(Input::Closed(link)),
                Reading::Nothing => {}
            },
            Some(Happened::Writable(link)) => self.links.writable(link),
            Some(Happened::Dialled(address, result)) => self.dialled(address, result),
            Some(Happened::Accepted(on, accepted)) if self.listeners.contains(on) => match accepted {
                Ok((stream, from)) => {
                    self.listeners.accepted(on, &self.waits, &mut self.news);
                    self.accept(on, stream, of_socket(from));
                }
                // The connection was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    self.listeners.accepted(on, &self.waits, &mut self.news);
                }
                Err(error) => {
                    let at = self.moments.at(Instant::now());
                    self.listeners.failed(on, &error, at, &mut self.news);
                }
            },
            Some(Happened::Accepted(..)) => {}
        }
    }

    /// Processes the bytes at the beginning of the buffer.
    fn receive(&mut self, at: Moment, link: LinkId, bytes: usize) {
        let outputs = self.speaker.receive(at, link, self.buffer.get(..bytes).unwrap_or_default());
        self.carry_out(outputs);
        // The rest of a message may be as short as a KEEPALIVE.
        if self.links.is_resting(link) && !self.speaker.is_at_rest(link, Instant::now()) {
            self.links.set_resting(link, false);
        }
    }

    fn dialled(&mut self, address: IpAddr, result: Result<TcpStream, Error>) {
        self.links.end_dial(address);
        let result = result.and_then(|stream| self.with_present_key(address, stream));
        match result {
            Ok(stream) => {
                let link = self.links.add(&self.waits, address, stream);
                self.step(Input::Dialled(address, link));
            }
            Err(error) => {
                self.speaker.note_failed_dial(address, &error.to_string(), Instant::now());
                if self.speaker.neighbour(address).is_some() && self.undialled.insert(address) {
                    self.news.push(Event::Trouble(Subject::Dialling(address), Some(error)));
                }
                self.step(Input::DialFailed(address));
            }
        }
    }

    fn moment(&self) -> Moment {
        let reconcile::Moment { now, jitter } = self.moments.at(Instant::now());
        Moment { now, jitter: jitter as u8 }
    }

    fn step(&mut self, input: Input) {
        let outputs = self.speaker.step(self.moment(), input);
        self.carry_out(outputs);
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Dial(address) => {
                    if let Some(neighbour) = self.speaker.neighbour(address) {
                        self.links.dial(&self.waits, address, &neighbour.wanted().transport);
                    }
                }
                Output::AbandonDial(address) => self.links.end_dial(address),
                Output::Send(link, bytes) => {
                    if bytes.len() == SHORTEST {
                        self.kept_alive.push(link);
                    }
                    self.links.send(link, bytes);
                }
                Output::Close(link) => self.links.close(link, Instant::now()),
                Output::Routes(changes) => self.news.routes(changes),
                Output::Fact(address, fact) => self.tell(address, fact),
                Output::Complete => self.news.complete(),
            }
        }
    }
}
