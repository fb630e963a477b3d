//! Router discovery with a socket and a clock: the only part of `link_neighbours` with side effects.
//!
//! One thread has all links, and a socket for each: what others send on one link is no load for another. It waits in one place: for packets, for a call, or for the next deadline. It looks at the links when it is called, which its
//! owner does whenever the kernel tells of a change of links, addresses or routes, and every few seconds besides. A socket that cannot be had is tried for again.
//!
//! The thread ends with its [`Handle`]. Nothing has to be told then: what was advertised has made nobody a router.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::OwnedFd;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::links::Links;
use super::packet::{ADVERTISEMENT, SOLICITATION, read};
use super::{Seen, Standings, WantedLinks};
use crate::kernel::Error;
use crate::kernel::router_discovery::{RouterDiscovery, link_state};
use crate::kernel::udp::Batch;

/// Handle of the thread; dropping it ends the thread.
#[derive(Debug)]
pub struct Handle {
    /// `None` while it ends.
    wanted: Option<watch::Sender<WantedLinks>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Time between two looks at links that are all ready, and at others: an address becomes usable without a notice to anybody who waits for it here.
const LOOK: Duration = Duration::from_secs(10);
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Number of times that a socket is read in one turn.
const READS: usize = 4;
/// Least time between two turns: a link full of advertisements costs little.
const PAUSE: Duration = Duration::from_millis(5);

struct Driver {
    links: Links,
    wanted: watch::Receiver<WantedLinks>,
    wake: Arc<OwnedFd>,
    standings: watch::Sender<Standings>,
    /// By indexes of links.
    sockets: BTreeMap<u32, Socket>,
    /// A socket cannot be had, which has been said.
    is_troubled: bool,
    batch: Batch,
    look_at: Instant,
}

/// The socket of a link.
struct Socket {
    discovery: RouterDiscovery,
    /// Solicitations are heard.
    has_joined: bool,
}

/// Starts the thread, in the caller's network namespace.
///
/// # Errors
/// The system provides no thread, or no descriptor to wake it.
pub fn spawn() -> io::Result<(Handle, watch::Receiver<Standings>)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (wanted, wanted_in) = watch::channel(WantedLinks::new());
    let (standings, standings_out) = watch::channel(Standings::new());
    let driver = Driver {
        links: Links::default(),
        wanted: wanted_in,
        wake: wake.clone(),
        standings,
        sockets: BTreeMap::new(),
        is_troubled: false,
        batch: Batch::default(),
        look_at: Instant::now(),
    };
    let thread = std::thread::Builder::new().name("discovery".to_owned()).spawn(|| driver.run())?;
    Ok((Handle { wanted: Some(wanted), wake, thread: Some(thread) }, standings_out))
}

impl Handle {
    /// Sets the wanted links in place of all others.
    pub fn want(&self, links: WantedLinks) {
        if let Some(wanted) = &self.wanted {
            wanted.send_replace(links);
        }
        self.look();
    }

    /// Lets the thread look at the links: something about them may have changed.
    pub fn look(&self) {
        // A counter at its limit wakes as well.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.wanted = None;
        self.look();
        if let Some(thread) = self.thread.take() {
            // One that has died has ended, too.
            let _ = thread.join();
        }
    }
}

impl Driver {
    fn run(mut self) {
        loop {
            match self.wanted.has_changed() {
                Ok(false) => {}
                Ok(true) => {
                    let wanted = self.wanted.borrow_and_update().clone();
                    self.links.want(&wanted);
                    self.look_at = Instant::now();
                }
                Err(_) => return,
            }
            self.look();
            self.read();
            self.send();
            let standings = self.links.standings();
            self.standings.send_if_modified(|told| {
                let differs = *told != standings;
                *told = standings;
                differs
            });
            self.wait();
        }
    }

    /// Looks at the links if that is due.
    fn look(&mut self) {
        let now = Instant::now();
        if self.look_at > now {
            return;
        }
        let mut is_troubled = false;
        for name in self.links.names() {
            match link_state(&name) {
                Ok(state) => {
                    // Without a socket nobody can be found, and nothing is known.
                    if let Some(state) = &state
                        && let Err(error) = self.listen(&name, state.index)
                    {
                        is_troubled = true;
                        if !self.is_troubled {
                            warn!(%error, "Routers behind interfaces cannot be found; retrying");
                        }
                        continue;
                    }
                    let seen = state.map(|state| Seen {
                        link: state.index,
                        up: state.up,
                        carrier: state.carrier,
                        own: state.own,
                    });
                    self.links.see(now, &name, seen);
                }
                // The next look may succeed; what is known stays.
                Err(error) => debug!(%error, "Reading a link failed"),
            }
        }
        self.is_troubled = is_troubled;
        let indexes = self.links.indexes();
        self.sockets.retain(|index, _| indexes.contains(index));
        let is_ready = self.links.are_ready() && !is_troubled;
        self.look_at = now + if is_ready { LOOK } else { LOOK_SOON };
    }

    /// Has a socket on a link, on which solicitations are heard as soon as the link lets them be.
    fn listen(&mut self, name: &str, index: u32) -> Result<(), Error> {
        let socket = match self.sockets.entry(index) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                let discovery = RouterDiscovery::open(name, &[SOLICITATION, ADVERTISEMENT])?;
                place.insert(Socket { discovery, has_joined: false })
            }
        };
        socket.has_joined = socket.has_joined || socket.discovery.join(index).is_ok();
        Ok(())
    }

    fn read(&mut self) {
        let now = Instant::now();
        for socket in self.sockets.values() {
            for _ in 0..READS {
                let more = socket.discovery.read(&mut self.batch);
                for one in self.batch.datagrams() {
                    if let (Some(link), Some(heard)) = (one.link, read(one.from, one.ttl, one.bytes)) {
                        self.links.hear(now, link, heard);
                    }
                }
                if !more {
                    break;
                }
            }
        }
    }

    fn send(&mut self) {
        for (link, packet) in self.links.tick(Instant::now()) {
            let Some(socket) = self.sockets.get(&link) else { continue };
            // A link that is going down loses it, and has a look soon.
            if let Err(error) = socket.discovery.send(packet.destination(), link, &packet.encode()) {
                debug!(%error, "Sending a packet of router discovery failed");
            }
        }
    }

    /// Waits for something to do. Errors are short: a signal, or no memory.
    fn wait(&mut self) {
        std::thread::sleep(PAUSE);
        let until = self.links.deadline().map_or(self.look_at, |deadline| deadline.min(self.look_at));
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut all: Vec<PollFd> = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        all.extend(self.sockets.values().map(|socket| PollFd::new(&socket.discovery, PollFlags::IN)));
        let _ = poll(&mut all, Some(&time));
        if rustix::io::read(&*self.wake, &mut [0; 8]).is_ok() {
            self.look_at = Instant::now();
        }
    }
}
