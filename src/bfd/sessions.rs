//! All sessions as one machine without I/O: which packet is whose, and when something is due.
//!
//! RFC 5880 6.3, RFC 5881 3 and 5, RFC 5883 4: a packet belongs to the session between its two addresses, and the discriminator of ours that
//! it has, if any, must be that session's: a neighbour sends from the address that it was configured with. Single-hop sessions have their own port, and their packets have to
//! arrive with the TTL with which they were sent, and over the link over which the route to the neighbour goes: a pod of this node may write
//! any source address and any TTL, but its packets come over another link. Where it is known how many hops away a neighbour may be at most, what has come from farther is ignored. From several hops away anybody may send with the neighbour's address, so there a session that
//! is up hears only who knows its discriminator; a neighbour that has begun anew is lost by its silence, and found again.
//!
//! Each session has one timer. A packet that puts it off costs no change of the sorted timers: who is woken too early is put back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::discriminators::ByDiscriminator;
use super::packet::{Discarded, Packet, State};
use super::session::{Moment, Session, Status};
use super::{Key, Path, Request};

/// Requested action, or a change to report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send a packet of the session with this discriminator.
    Send(u32, Packet),
    /// The status of a session has changed.
    Changed(Key, Status),
    /// The session with this discriminator is gone.
    Ended(u32),
    /// The interval of a session is another one: [`Sessions::pause`] may be.
    OtherInterval,
    /// Packets of a neighbour on our link are missing: they may come over another link than the one that is known ([`Sessions::set_link`]).
    Overdue(Key),
}

/// Whose packets are expected on a local address.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Neighbours {
    pub remotes: BTreeSet<IpAddr>,
    /// Links over which routes to them go, so far as they are known and they are to be on our link.
    pub links: BTreeSet<u32>,
    /// The least TTL that a packet of any of them has left, where it is looked at.
    pub least_ttl: Option<u8>,
}

/// Datagram as it was received.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub from: IpAddr,
    /// Local address, and the kind of the port, on which it has arrived.
    pub to: IpAddr,
    pub path: Path,
    /// TTL (hop limit) that it had left, if the kernel has told.
    pub ttl: Option<u8>,
    /// Index of the link over which it has come, if the kernel has told.
    pub link: Option<u32>,
    pub datagram: &'a [u8],
}

/// Reason for ignoring a datagram.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ignored {
    Malformed(Discarded),
    /// It has passed a router (RFC 5881 5), or more of them than are between us and the neighbour.
    Distant,
    /// It has come over another link than that to the neighbour.
    OtherLink,
    /// It belongs to no session.
    Unknown,
    /// It has the discriminator of a session, and other addresses.
    Elsewhere,
    /// It names no discriminator of ours, may come from anywhere, and the session is up.
    Unproven,
    /// The kernel has dropped it before it was read: nobody who is expected has sent it, or too many waited.
    Dropped,
}

impl Ignored {
    /// The reason in a word, as metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            Ignored::Malformed(_) => "malformed",
            Ignored::Distant => "distant",
            Ignored::OtherLink => "other-link",
            Ignored::Unknown => "unknown",
            Ignored::Elsewhere => "elsewhere",
            Ignored::Unproven => "unproven",
            Ignored::Dropped => "dropped",
        }
    }
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    /// By our discriminator.
    sessions: ByDiscriminator<Entry>,
    keys: BTreeMap<Key, u32>,
    /// Earliest time at which each session may have something to do.
    timers: BTreeSet<(Instant, u32)>,
    chance: u64,
    outputs: Vec<Output>,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    port: u16,
    least_ttl: Option<u8>,
    /// Number of the last request for it.
    request: u64,
    /// Index of the link over which the route to the neighbour goes; `None` where it is not known, or there is none.
    link: Option<u32>,
    session: Session,
    /// As last reported.
    interval: Duration,
    timer: Option<Instant>,
    /// As last reported.
    status: Status,
}

/// Time between two wake-ups, as a part of the shortest interval: what the jitter leaves to a periodic packet that is late is more.
const PARTS: u32 = 16;
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// The answer to a poll waits no longer.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Sessions {
    /// Builds none. `seed` makes discriminators and jitter unpredictable.
    pub fn new(seed: u64) -> Sessions {
        Sessions {
            sessions: ByDiscriminator::default(),
            keys: BTreeMap::new(),
            timers: BTreeSet::new(),
            chance: seed,
            outputs: Vec::new(),
        }
    }

    /// Sets the desired sessions. Those that are not desired any more end administratively.
    pub fn want(&mut self, now: Instant, requests: &BTreeMap<Key, Request>) {
        let gone: Vec<u32> =
            self.keys.iter().filter(|(key, _)| !requests.contains_key(key)).map(|(_, id)| *id).collect();
        for id in gone {
            self.close(now, id);
        }
        self.forget_closing(requests);
        for (key, request) in requests {
            let at = self.moment(now);
            match self.keys.get(key).copied() {
                Some(id) => {
                    if let Some(entry) = self.sessions.get_mut(&id) {
                        entry.port = request.wanted.port;
                        entry.least_ttl = request.wanted.least_ttl();
                        entry.session.change(at, request.wanted.settings);
                        if std::mem::replace(&mut entry.request, request.number) != request.number {
                            entry.status = entry.session.status();
                            self.outputs.push(Output::Changed(*key, entry.status));
                        }
                    }
                    self.follow_up(now, id);
                }
                None => self.open(at, *key, *request),
            }
        }
    }

    /// Forgets sessions that are being closed and are desired again: the farewell of the old one would end the new one.
    fn forget_closing(&mut self, requests: &BTreeMap<Key, Request>) {
        if self.sessions.len() == self.keys.len() {
            return;
        }
        let is_closing = |id: &u32, entry: &Entry| self.keys.get(&entry.key) != Some(id);
        let all = self.sessions.iter().filter(|(id, entry)| is_closing(id, entry) && requests.contains_key(&entry.key));
        for id in all.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.forget(id);
        }
    }

    /// Sends to one session what is due, sets its timer, and reports its status.
    fn follow_up(&mut self, now: Instant, id: u32) {
        let at = self.moment(now);
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        if entry.session.is_over(now) {
            self.forget(id);
            return;
        }
        while let Some(packet) = entry.session.packet(at) {
            self.outputs.push(Output::Send(id, packet));
        }
        let status = entry.session.status();
        if status != std::mem::replace(&mut entry.status, status) && self.keys.get(&entry.key) == Some(&id) {
            self.outputs.push(Output::Changed(entry.key, status));
        }
        let interval = entry.session.interval();
        if interval != std::mem::replace(&mut entry.interval, interval) {
            self.outputs.push(Output::OtherInterval);
        }
        let deadline = entry.session.deadline();
        // A later deadline is looked up when the timer ends.
        if entry.timer.is_none_or(|timer| deadline.is_some_and(|deadline| deadline < timer)) {
            if let Some(timer) = entry.timer {
                self.timers.remove(&(timer, id));
            }
            entry.timer = deadline;
            self.timers.extend(deadline.map(|deadline| (deadline, id)));
        }
    }

    fn open(&mut self, at: Moment, key: Key, request: Request) {
        let mut id = 0;
        while id == 0 || self.sessions.contains_key(&id) {
            id = self.random() as u32;
        }
        let Request { wanted, number } = request;
        let session = Session::new(wanted.settings, id, at);
        let status = session.status();
        let (port, least_ttl, interval) = (wanted.port, wanted.least_ttl(), Duration::ZERO);
        let entry = Entry { key, port, least_ttl, request: number, link: None, session, interval, timer: None, status };
        self.sessions.insert(id, entry);
        self.keys.insert(key, id);
        // What was told of an earlier session holds no longer.
        self.outputs.push(Output::Changed(key, status));
        self.follow_up(at.now, id);
    }

    fn close(&mut self, now: Instant, id: u32) {
        let at = self.moment(now);
        if let Some(entry) = self.sessions.get_mut(&id) {
            self.keys.remove(&entry.key);
            entry.session.close(at);
        }
        self.follow_up(now, id);
    }

    fn forget(&mut self, id: u32) {
        if let Some(entry) = self.sessions.remove(&id) {
            entry.timer.map(|timer| self.timers.remove(&(timer, id)));
            self.outputs.push(Output::Ended(id));
        }
    }

    /// Processes a datagram.
    ///
    /// # Errors
    /// It is ignored.
    pub fn receive(&mut self, now: Instant, arrival: Arrival) -> Result<(), Ignored> {
        if arrival.path == Path::SingleHop && arrival.ttl != Some(u8::MAX) {
            return Err(Ignored::Distant);
        }
        let packet = Packet::decode(arrival.datagram).map_err(Ignored::Malformed)?;
        let key = Key { remote: arrival.from, local: arrival.to, path: arrival.path };
        let id = match packet.yours {
            0 => self.keys.get(&key).copied().ok_or(Ignored::Unknown)?,
            yours => yours,
        };
        let at = self.moment(now);
        let entry = self.sessions.get_mut(&id).ok_or(Ignored::Unknown)?;
        if entry.key != key {
            return Err(Ignored::Elsewhere);
        }
        if key.path == Path::SingleHop && (arrival.link.is_none() || arrival.link != entry.link) {
            return Err(Ignored::OtherLink);
        }
        if entry.least_ttl.is_some_and(|least| arrival.ttl.is_none_or(|ttl| ttl < least)) {
            return Err(Ignored::Distant);
        }
        if packet.yours == 0 && entry.key.path == Path::Multihop && entry.session.status().state == State::Up {
            return Err(Ignored::Unproven);
        }
        if entry.session.receive(at, &packet) {
            self.follow_up(now, id);
        }
        Ok(())
    }

    /// Sets the link over which the route to a neighbour goes. Packets of a session with a neighbour on our link are taken from there alone.
    /// Returns whether it is another one.
    pub fn set_link(&mut self, key: &Key, link: Option<u32>) -> bool {
        let entry = self.keys.get(key).and_then(|id| self.sessions.get_mut(id));
        entry.is_some_and(|entry| std::mem::replace(&mut entry.link, link) != link)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        while let Some((time, id)) = self.timers.first().copied()
            && time <= now
        {
            self.timers.pop_first();
            let at = self.moment(now);
            if let Some(entry) = self.sessions.get_mut(&id) {
                entry.timer = None;
                entry.session.tick(at);
                let is_open = self.keys.get(&entry.key) == Some(&id);
                if entry.key.path == Path::SingleHop && is_open && entry.session.is_overdue(now) {
                    self.outputs.push(Output::Overdue(entry.key));
                }
            }
            self.follow_up(now, id);
        }
    }

    /// Time of the next [`Sessions::tick`]; `None` when there is nothing to wait for.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(time, _)| *time)
    }

    /// Takes the pending outputs, in order.
    pub fn outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// As [`Sessions::outputs`], into an empty space, which is used again.
    pub fn take_outputs(&mut self, into: &mut Vec<Output>) {
        into.append(&mut self.outputs);
    }

    /// Time for which nobody needs to be woken again: many sessions share one wake-up.
    pub fn pause(&self) -> Duration {
        let shortest = self.sessions.values().map(|entry| entry.session.interval()).min();
        shortest.map_or(LONGEST_PAUSE, |interval| (interval / PARTS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE))
    }

    /// Number of sessions, including those that have been closed and tell so.
    pub fn count(&self) -> usize {
        self.sessions.len()
    }

    /// Local addresses and kinds of ports on which packets are expected, and from whom.
    pub fn listening(&self) -> BTreeMap<(IpAddr, Path), Neighbours> {
        let mut all: BTreeMap<_, Neighbours> = BTreeMap::new();
        for Entry { key, link, least_ttl, .. } in self.sessions.values() {
            let neighbours = all.entry((key.local, key.path)).or_default();
            // Of several the least one holds for all of the socket; 0 for those whose TTL is not looked at.
            let is_first = neighbours.remotes.is_empty();
            neighbours.least_ttl = match (least_ttl, neighbours.least_ttl) {
                (None, None) => None,
                (Some(least), _) if is_first => Some(*least),
                (least, known) => Some(least.unwrap_or_default().min(known.unwrap_or_default())),
            };
            neighbours.remotes.insert(key.remote);
            neighbours.links.extend(link);
        }
        all
    }

    /// Key and destination port of the session with this discriminator.
    pub fn destination(&self, id: u32) -> Option<(Key, u16)> {
        self.sessions.get(&id).map(|entry| (entry.key, entry.port))
    }

    /// Status of all sessions that are desired.
    pub fn all(&self) -> impl Iterator<Item = (Key, Status)> {
        self.keys.iter().filter_map(|(key, id)| Some((*key, self.sessions.get(id)?.session.status())))
    }

    fn moment(&mut self, now: Instant) -> Moment {
        Moment { now, jitter: (self.random() >> 56) as u8 }
    }

    /// Next number of splitmix64.
    fn random(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.chance ^ self.chance >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests;
