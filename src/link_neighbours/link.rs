//! The machine of one link: what it sends when, and who is the neighbour.
//!
//! ```text
//!            up, carrier, own address           advertised
//!  not ready ───────────────────────► silent ─────────────► found
//!      ▲            solicits, advertises │                    │ another one, and no answer and no session of this one: the other one
//!      └─────────────────────────────────┴────────────────────┘
//!        gone, set down, made again, or no carrier or no address for three seconds
//! ```
//!
//! Where another router than the last neighbour is heard first, the last one is asked for twice before the other one is found.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::packet::Packet;
use super::{Found, Seen, Standing, State, Wanted};

/// Time between two advertisements: what FRR has where it needs them for BGP.
const PERIOD: Duration = Duration::from_secs(10);
/// Least time between two of them (RFC 4861 10, MIN_DELAY_BETWEEN_RAS), and between the first ones.
const LEAST: Duration = Duration::from_secs(3);
/// Number of the first ones (MAX_INITIAL_RTR_ADVERTISEMENTS), and of solicitations (MAX_RTR_SOLICITATIONS).
const FIRST: u32 = 3;
/// Number of times that the neighbour of before is asked for where another router is heard first. A router answers within three seconds (RFC 4861 6.2.6); who speaks BGP waits twelve
/// seconds for routers after a start (`bgp::speaker`).
const ASKED_BEFORE: u32 = 2;
/// Time between two solicitations (RTR_SOLICITATION_INTERVAL).
const ASK: Duration = Duration::from_secs(4);
/// Time for which a carrier may be lost.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time after which a neighbour that is beside another router is asked whether it is there; it has missed three advertisements.
const SILENCE: Duration = Duration::from_secs(35);
/// Time for which another router counts as there.
const BESIDE: Duration = Duration::from_secs(60);

/// A wanted link.
#[derive(Clone, Default, Debug)]
pub(super) struct Link {
    seen: Option<Seen>,
    is_known: bool,
    /// Our address when it was last there.
    own: Option<Ipv6Addr>,
    /// Since when the carrier is lost, or our address: when a carrier comes back the kernel looks for duplicates of it again.
    cut_at: Option<Instant>,
    sending: Option<Sending>,
    neighbour: Option<Neighbour>,
    /// A neighbour whose place no other router takes, if it is the neighbour.
    kept: Option<Ipv6Addr>,
    /// The last neighbour, of an earlier run too, which has a claim to be it again.
    former: Option<Ipv6Addr>,
    beside: Option<Beside>,
}

/// Timers of a link that is ready.
#[derive(Clone, Copy, Debug)]
struct Sending {
    advertise_at: Instant,
    advertised_at: Option<Instant>,
    /// Number of advertisements so far that follow closely on each other.
    first: u32,
    solicit_at: Option<Instant>,
    solicited: u32,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    address: Ipv6Addr,
    heard_at: Instant,
}

/// Another router than the neighbour.
#[derive(Clone, Copy, Debug)]
struct Beside {
    address: Ipv6Addr,
    heard_at: Instant,
    /// The neighbour has been asked whether it is there so many times, and the next time to do so.
    asked: Option<(u32, Instant)>,
}

impl Link {
    /// The link as it is known.
    pub fn standing(&self) -> Standing {
        let state = match (self.seen, self.neighbour.zip(self.own)) {
            (None, _) if !self.is_known => State::Unknown,
            (None, _) => State::Missing,
            (Some(Seen { up: false, .. }), _) => State::Down,
            (Some(Seen { link, .. }), Some((neighbour, own))) => {
                State::Found(Found { link, own, neighbour: neighbour.address })
            }
            (Some(Seen { carrier: false, .. }), None) => State::Down,
            (Some(Seen { own: None, .. }), None) => State::WithoutAddress,
            (Some(_), None) => State::Silent,
        };
        let beside = self.beside.filter(|_| self.neighbour.is_some());
        Standing { state, beside: beside.map(|beside| beside.address) }
    }

    /// Index of the link, if there is one.
    pub fn index(&self) -> Option<u32> {
        self.seen.map(|seen| seen.link)
    }

    /// Returns whether packets are sent and received.
    pub fn is_ready(&self) -> bool {
        self.sending.is_some()
    }

    /// Sets the routers that have a claim to be the neighbour.
    pub fn heed(&mut self, claims: Wanted) {
        self.kept = claims.kept;
        self.former = claims.former.or(self.former);
    }

    /// Takes the state of the link as the kernel has it; `None` where there is no such link.
    pub fn see(&mut self, now: Instant, seen: Option<Seen>) {
        self.is_known = true;
        let before = std::mem::replace(&mut self.seen, seen);
        let index = |seen: Option<Seen>| seen.filter(|seen| seen.up).map(|seen| seen.link);
        if index(before) != index(seen) || index(seen).is_none() {
            *self = Link { seen, is_known: true, kept: self.kept, former: self.former, ..Link::default() };
        }
        let Some(seen) = seen.filter(|seen| seen.up) else { return };
        let last = seen.own.or(self.own);
        let own = std::mem::replace(&mut self.own, last);
        if before.is_some_and(|before| before.carrier != seen.carrier) {
            self.cut_at = None;
        }
        if !seen.carrier || seen.own.is_none() {
            self.cut_at.get_or_insert(now);
            self.sending = None;
            return;
        }
        self.cut_at = None;
        if self.sending.is_none() {
            let begin =
                Sending { advertise_at: now, advertised_at: None, first: 0, solicit_at: Some(now), solicited: 0 };
            self.sending = Some(begin);
        } else if own != seen.own {
            // The neighbour learns the new address at once.
            self.advertise_soon(now);
        }
    }

    /// Takes the advertisement of a router.
    pub fn advertised(&mut self, now: Instant, router: Ipv6Addr) {
        // What we send ourselves may come back.
        if self.sending.is_none() || self.own == Some(router) {
            return;
        }
        let heard = Neighbour { address: router, heard_at: now };
        match self.neighbour {
            None => {
                let is_former_awaited = self.former.is_some_and(|former| former != router && Some(former) != self.own);
                match &mut self.beside {
                    // It is asked for before anybody is told of a neighbour: a session with the other one would replace its routes.
                    None if is_former_awaited => {
                        let asked = Some((FIRST - ASKED_BEFORE, now));
                        self.beside = Some(Beside { address: router, heard_at: now, asked });
                    }
                    Some(beside) if is_former_awaited => {
                        if beside.address == router {
                            beside.heard_at = now;
                        }
                    }
                    beside => {
                        beside.iter_mut().for_each(|beside| beside.asked = None);
                        self.set_neighbour(heard);
                    }
                }
                self.advertise_soon(now);
            }
            Some(neighbour) if neighbour.address == router => {
                self.neighbour = Some(heard);
                if let Some(beside) = &mut self.beside {
                    beside.asked = None;
                }
            }
            Some(neighbour) => self.note_beside(now, router, neighbour.heard_at),
        }
        if let Some(sending) = &mut self.sending {
            sending.solicit_at = None;
        }
    }

    /// Takes a solicitation.
    pub fn solicited(&mut self, now: Instant) {
        self.advertise_soon(now);
    }

    /// Returns the packets that are due.
    pub fn tick(&mut self, now: Instant) -> Vec<Packet> {
        if self.cut_at.is_some_and(|cut| now >= cut + PATIENCE) {
            self.neighbour = None;
            self.beside = None;
        }
        self.beside.take_if(|beside| beside.asked.is_none() && now >= beside.heard_at + BESIDE);
        let mut packets = Vec::new();
        if self.sending.is_some() && self.ask_neighbour(now) {
            packets.push(Packet::Solicitation);
        }
        let Some(sending) = &mut self.sending else { return packets };
        if sending.solicit_at.is_some_and(|at| at <= now) {
            packets.push(Packet::Solicitation);
            sending.solicited += 1;
            sending.solicit_at = (sending.solicited < FIRST).then(|| now + ASK);
        }
        if sending.advertise_at <= now {
            packets.push(Packet::Advertisement);
            sending.first += 1;
            sending.advertised_at = Some(now);
            sending.advertise_at = now + if sending.first < FIRST { LEAST } else { PERIOD };
        }
        packets
    }

    /// Time of the next [`Link::tick`]; `None` while nothing is due.
    pub fn deadline(&self) -> Option<Instant> {
        let cut = self.cut_at.filter(|_| self.neighbour.is_some() || self.beside.is_some()).map(|cut| cut + PATIENCE);
        let sending =
            self.sending.iter().flat_map(|sending| std::iter::once(sending.advertise_at).chain(sending.solicit_at));
        let beside = self.beside.filter(|_| self.sending.is_some());
        let beside = beside.map(|beside| beside.asked.map_or(beside.heard_at + BESIDE, |(_, at)| at));
        sending.chain(cut).chain(beside).min()
    }

    /// Notes a router beside the neighbour. The neighbour is asked for when the other one is new, and when it has been silent for long itself.
    fn note_beside(&mut self, now: Instant, router: Ipv6Addr, neighbour_heard_at: Instant) {
        let known = self.beside.filter(|beside| beside.address == router);
        // A third one waits until the second one has gone.
        if known.is_none() && self.beside.is_some() {
            return;
        }
        let is_doubtful = known.is_none() || now >= neighbour_heard_at + SILENCE;
        let asked = known.and_then(|known| known.asked).or(is_doubtful.then_some((0, now)));
        self.beside = Some(Beside { address: router, heard_at: now, asked });
    }

    /// Returns whether the neighbour has to be asked now. When it has not answered, the router beside it takes its place, unless the neighbour is to be kept: then that
    /// one waits, for as long as it is there itself.
    fn ask_neighbour(&mut self, now: Instant) -> bool {
        let is_kept = self.kept.is_some() && self.neighbour.map(|neighbour| neighbour.address) == self.kept;
        let Some(beside) = &mut self.beside else { return false };
        let Some((asked, at)) = beside.asked else { return false };
        if at > now {
            return false;
        }
        if asked < FIRST {
            beside.asked = Some((asked + 1, now + ASK));
            return true;
        }
        if is_kept && now < beside.heard_at + BESIDE {
            beside.asked = Some((asked, now + ASK));
            return false;
        }
        if !is_kept {
            let heard = Neighbour { address: beside.address, heard_at: beside.heard_at };
            self.set_neighbour(heard);
        }
        self.beside = None;
        false
    }

    fn set_neighbour(&mut self, neighbour: Neighbour) {
        self.neighbour = Some(neighbour);
        self.former = Some(neighbour.address);
    }

    fn advertise_soon(&mut self, now: Instant) {
        if let Some(sending) = &mut self.sending {
            let soonest = sending.advertised_at.map_or(now, |at| at + LEAST).max(now);
            sending.advertise_at = sending.advertise_at.min(soonest);
        }
    }
}

#[cfg(test)]
mod tests;
