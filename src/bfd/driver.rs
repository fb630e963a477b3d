//! BFD with sockets and a clock: the only part of `bfd` with side effects.
//!
//! One thread has all sessions. It waits in one place, for packets, for other desired sessions, or for the next deadline; where there are
//! many sessions packets do not wake it, and every few milliseconds it reads all that have come (`turns`). Before anybody is declared lost, all
//! packets that have arrived are read: a thread that was not scheduled for a while says nothing about a neighbour.
//!
//! Sockets exist while a session needs them: one that receives for each local address and kind of path (`receivers`), and one that sends for
//! each session (`senders`). A socket that cannot be had is tried for again; the session stays down meanwhile.
//! The kernel is asked over which link the route to a neighbour on our link goes, and again when packets of it are missing: those that come over another link are dropped.
//!
//! The thread ends with its [`Handle`], and tells all neighbours first that the sessions end administratively, which harms nobody
//! (RFC 5880 6.8.16). A process that is killed is found out as any failure is.

mod receivers;
mod senders;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::{mpsc, watch};

use self::receivers::Receiver;
use self::senders::Senders;
use self::turns::Turns;
use super::packet::Packet;
use super::session::Status;
use super::sessions::{Arrival, Ignored, Output, Sessions};
use super::{Key, Path, Request};
use crate::kernel::Error;
use crate::kernel::processor;
use crate::kernel::route::Lookup;
use crate::kernel::udp::Batch;
use crate::net::link_local::to_socket;

/// News of the sessions.
#[derive(Clone, Debug)]
pub enum Report {
    /// Newest status of a session. Changes between two reports are seen in the number of failures.
    Changed(Key, Status),
    /// Packets cannot be received on an address, with the reason; `None` when they can again.
    Trouble(SocketAddr, Option<Error>),
    /// The same of packets that are sent to an address.
    Unsent(SocketAddr, Option<Error>),
    /// Numbers of packets that were ignored since the last such report.
    Ignored(BTreeMap<Ignored, u64>),
}

/// Handle of the thread; dropping it ends the sessions, and waits until the neighbours have been told.
#[derive(Debug)]
pub struct Handle {
    /// `None` while it ends.
    wanted: Option<watch::Sender<BTreeMap<Key, Request>>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Number of times that a socket is read in one turn.
const READS: usize = 64;
/// Time between two tries to open a socket that receives.
const RETRY: Duration = Duration::from_secs(5);
/// Time between two tries to deliver a report.
const UNDELIVERED: Duration = Duration::from_millis(10);
/// Least time between two reports of ignored packets.
const BETWEEN_COUNTS: Duration = Duration::from_secs(1);
/// Least time between two questions for the link to one neighbour.
const SAME_LINK: Duration = Duration::from_millis(100);
/// Reports that may wait for their reader, beside the newest status of each session.
const REPORTS: usize = 256;
/// Longest wait.
const NEVER: Duration = Duration::from_secs(3600);
/// Number of times that the end is told when the program ends.
const GOODBYES: usize = 2;

/// Starts the thread, in the caller's network namespace.
///
/// # Errors
/// The system provides no thread, or no descriptor to wake it.
pub fn spawn() -> io::Result<(Handle, mpsc::Receiver<Report>)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (wanted, wanted_in) = watch::channel(BTreeMap::new());
    let (reports, reports_out) = mpsc::channel(REPORTS);
    let driver = Driver {
        sessions: Sessions::new(RandomState::new().hash_one(())),
        wanted: wanted_in,
        wake: wake.clone(),
        receivers: BTreeMap::new(),
        senders: Senders::new(RandomState::new().hash_one(())),
        links: BTreeMap::new(),
        lookup: None,
        batch: Batch::default(),
        outputs: Vec::new(),
        is_changed: false,
        is_called: true,
        is_busy: false,
        turns: Turns::new(Instant::now()),
        pending: BTreeMap::new(),
        ignored: BTreeMap::new(),
        counts_at: Instant::now(),
        reports,
    };
    let thread = std::thread::Builder::new().name("bfd".to_owned()).spawn(|| driver.run())?;
    Ok((Handle { wanted: Some(wanted), wake, thread: Some(thread) }, reports_out))
}

impl Handle {
    /// Sets the desired sessions in place of all others. The status of each is reported that is new, or has another number.
    pub fn want(&self, wanted: BTreeMap<Key, Request>) {
        if let Some(sender) = &self.wanted {
            sender.send_replace(wanted);
            self.wake();
        }
    }

    fn wake(&self) {
        // A counter at its limit wakes as well.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.wanted = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A thread that has died has no neighbours to tell.
            let _ = thread.join();
        }
    }
}

struct Driver {
    sessions: Sessions,
    wanted: watch::Receiver<BTreeMap<Key, Request>>,
    wake: Arc<OwnedFd>,
    receivers: BTreeMap<(IpAddr, Path), Receiver>,
    senders: Senders,
    /// When the kernel was asked for the link to each neighbour on our link.
    links: BTreeMap<Key, Instant>,
    /// `None` before the first question, and after one that failed.
    lookup: Option<Lookup>,
    batch: Batch,
    /// Space for what the sessions ask for in a turn.
    outputs: Vec<Output>,
    /// Other sockets may be needed than there are, or others may be heard.
    is_changed: bool,
    /// Somebody has called.
    is_called: bool,
    /// This turn has received or sent something.
    is_busy: bool,
    turns: Turns,
    /// Reports that are not delivered.
    pending: BTreeMap<Key, Status>,
    /// Packets that were ignored and are not told, and the next time at which that may be done.
    ignored: BTreeMap<Ignored, u64>,
    counts_at: Instant,
    reports: mpsc::Sender<Report>,
}

impl Driver {
    fn run(mut self) {
        processor::set_nice(processor::FIRST);
        loop {
            self.turns.begin(Instant::now());
            self.is_busy = false;
            if std::mem::take(&mut self.is_called) {
                match self.wanted.has_changed() {
                    Ok(false) => {}
                    Ok(true) => {
                        let wanted = self.wanted.borrow_and_update().clone();
                        self.follow(&wanted);
                    }
                    Err(_) => return self.say_goodbye(),
                }
            }
            self.open_receivers();
            // Who is lost is judged by the time up to which everything is read, also by a thread that had no processor behind that.
            let now = Instant::now();
            self.read(now);
            self.sessions.tick(now);
            self.act(now);
            self.open_receivers();
            self.deliver();
            self.wait();
        }
    }

    fn follow(&mut self, wanted: &BTreeMap<Key, Request>) {
        let now = Instant::now();
        self.sessions.want(now, wanted);
        let sessions = &self.sessions;
        let stays = |id, to| sessions.destination(id).is_some_and(|(key, port)| to == to_socket(key.remote, port));
        for to in self.senders.keep(stays) {
            self.tell(Report::Unsent(to, None));
        }
        self.is_changed = true;
        self.links.retain(|key, _| wanted.contains_key(key));
        for key in wanted.keys().filter(|key| key.path == Path::SingleHop) {
            self.look_for_link(now, *key);
        }
    }

    /// Asks the kernel over which link the route to a neighbour goes, unless it was asked a moment ago.
    fn look_for_link(&mut self, now: Instant, key: Key) {
        if self.links.get(&key).is_some_and(|asked| now.saturating_duration_since(*asked) < SAME_LINK) {
            return;
        }
        self.links.insert(key, now);
        let lookup = self.lookup.take().or_else(|| Lookup::open().ok());
        let Some(mut lookup) = lookup else { return };
        // A question that failed is asked again while packets are missing, over another socket.
        let Ok(link) = lookup.link_to(key.remote, key.local) else { return };
        self.lookup = Some(lookup);
        self.is_changed |= self.sessions.set_link(&key, link);
    }

    /// Tells of the end of a trouble that concerns no session. A reader that is far behind misses it.
    fn tell(&self, end: Report) {
        let _ = self.reports.try_send(end);
    }

    /// Waits for something to do.
    fn wait(&mut self) {
        let now = Instant::now();
        if let Some(until) = self.turns.rest(self.is_busy, || self.sessions.pause()) {
            return self.poll(false, until);
        }
        let retries = self.receivers.values().filter_map(Receiver::retry_at);
        let undelivered = (!self.pending.is_empty()).then(|| now + UNDELIVERED);
        let uncounted = (!self.ignored.is_empty()).then(|| self.counts_at.max(now + UNDELIVERED));
        let until = retries.chain(undelivered).chain(uncounted).chain(self.sessions.deadline()).min();
        self.poll(true, until.unwrap_or(now + NEVER));
    }

    /// Waits until an instant, for a call, and for packets if asked to. Errors are short: a signal, or no memory.
    fn poll(&mut self, packets: bool, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut call = [PollFd::new(&*self.wake, PollFlags::IN)];
        let mut all = Vec::new();
        let polled = if packets {
            let sockets = self.receivers.values().filter_map(Receiver::socket);
            all.push(PollFd::new(&*self.wake, PollFlags::IN));
            all.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::IN)));
            &mut all[..]
        } else {
            &mut call[..]
        };
        let _ = poll(polled, Some(&time));
        if polled.first().is_some_and(|call| !call.revents().is_empty()) {
            self.is_called = rustix::io::read(&*self.wake, &mut [0; 8]).is_ok();
        }
    }

    fn read(&mut self, now: Instant) {
        let mut strayed = BTreeSet::new();
        for ((to, path), receiver) in &self.receivers {
            let Some(socket) = receiver.socket() else { continue };
            for _ in 0..READS {
                let more = self.batch.read(socket);
                self.is_busy |= self.batch.count() > 0;
                for one in self.batch.datagrams() {
                    let (ttl, link, datagram) = (one.ttl, one.link, one.bytes);
                    let arrival = Arrival { from: one.from, to: *to, path: *path, ttl, link, datagram };
                    // Nobody answers what is nobody's (RFC 5880 6.8.6).
                    if let Err(ignored) = self.sessions.receive(now, arrival) {
                        *self.ignored.entry(ignored).or_default() += 1;
                        if ignored == Ignored::OtherLink {
                            strayed.insert(Key { remote: one.from, local: *to, path: *path });
                        }
                    }
                }
                if !more {
                    break;
                }
            }
        }
        // The route may have moved to a link that is another neighbour's; then the next packet is taken.
        for key in strayed {
            self.look_for_link(now, key);
        }
    }

    fn act(&mut self, now: Instant) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.sessions.take_outputs(&mut outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Send(id, packet) => self.send(id, &packet),
                Output::Changed(key, status) => drop(self.pending.insert(key, status)),
                Output::Ended(id) => {
                    if let Some(to) = self.senders.close(id) {
                        self.tell(Report::Unsent(to, None));
                    }
                    self.is_changed = true;
                }
                Output::OtherInterval => self.turns.forget(),
                Output::Overdue(key) => self.look_for_link(now, key),
            }
        }
        self.outputs = outputs;
    }

    fn send(&mut self, id: u32, packet: &Packet) {
        self.is_busy = true;
        let sessions = &self.sessions;
        let ends = || sessions.destination(id).map(|(key, port)| (key.local, to_socket(key.remote, port)));
        let told = self.senders.send(id, packet, ends);
        if let Some(news) = told
            && self.reports.try_send(Report::Unsent(news.to, news.error.clone())).is_ok()
        {
            news.delivered();
        }
    }

    /// Opens sockets that are needed, closes others, and has each hear its neighbours.
    fn open_receivers(&mut self) {
        let now = Instant::now();
        let is_due = |receiver: &Receiver| receiver.retry_at().is_some_and(|at| at <= now);
        if !std::mem::take(&mut self.is_changed) && !self.receivers.values().any(is_due) {
            return;
        }
        let needed = self.sessions.listening();
        let unneeded = self.receivers.extract_if(.., |at, _| !needed.contains_key(at));
        let troubled =
            unneeded.filter(|(_, receiver)| receiver.is_told()).map(|((on, path), _)| to_socket(on, path.port()));
        for on in troubled.collect::<Vec<_>>() {
            self.tell(Report::Trouble(on, None));
        }
        for ((address, path), neighbours) in needed {
            let receiver = self.receivers.entry((address, path)).or_insert_with(|| Receiver::new(now));
            let Some(done) = receiver.hear(now, address, path, neighbours) else { continue };
            let on = to_socket(address, path.port());
            receiver.tell(done, |trouble| self.reports.try_send(Report::Trouble(on, trouble)).is_ok());
        }
    }

    fn deliver(&mut self) {
        while let Some((key, status)) = self.pending.pop_first() {
            if self.reports.try_send(Report::Changed(key, status)).is_err() {
                // One that nobody reads any more waits for the end, which is near.
                self.pending.insert(key, status);
                return;
            }
        }
        let now = Instant::now();
        if self.counts_at <= now {
            self.counts_at = now + BETWEEN_COUNTS;
            let dropped: u64 = self.receivers.values_mut().map(|receiver| u64::from(receiver.newly_dropped())).sum();
            if dropped > 0 {
                *self.ignored.entry(Ignored::Dropped).or_default() += dropped;
            }
            if self.ignored.is_empty() {
                return;
            }
            if self.reports.try_send(Report::Ignored(self.ignored.clone())).is_ok() {
                self.ignored.clear();
            }
        }
    }

    fn say_goodbye(&mut self) {
        self.sessions.want(Instant::now(), &BTreeMap::new());
        let last: Vec<(u32, Packet)> = self
            .sessions
            .outputs()
            .into_iter()
            .filter_map(|output| match output {
                Output::Send(id, packet) => Some((id, packet)),
                Output::Changed(..) | Output::Ended(_) | Output::OtherInterval | Output::Overdue(_) => None,
            })
            .collect();
        for _ in 0..GOODBYES {
            last.iter().for_each(|(id, packet)| self.send(*id, packet));
        }
    }
}
