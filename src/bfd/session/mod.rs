//! State machine of one session: RFC 5880 6.8, without I/O.
//!
//! ```text
//!                    receives Down               receives Init or Up
//!        ┌──────┐ ────────────────► ┌──────┐ ─────────────────────► ┌────┐
//!        │ Down │                   │ Init │                        │ Up │
//!        └──────┘ ◄──────────────── └──────┘                        └────┘
//!           │ ▲     silence                                          ▲  │
//!           │ └──────────────────────────────────────────────────────┼──┘ silence, receives Down or AdminDown
//!           └────────────────────────────────────────────────────────┘ receives Init
//! ```
//!
//! Packets and the time go in; packets are asked for ([`Session::packet`]), and so is the time of the next one
//! ([`Session::deadline`]), so that the owner waits in one place. Nothing is late by waking seldom: periodic packets are scheduled at
//! 86 % to 93 % of their interval, which leaves the owner the rest.
//!
//! Two values are advertised and not in use at once (6.8.3): a longer interval of ours, and a shorter one of the neighbour, wait for
//! the end of a poll, by which the neighbour says that it knows. Below Up nobody sends faster than once a second.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use super::Settings;
use super::packet::{Diagnostic, Packet, State};

/// Least interval while the session is not up (RFC 5880 6.8.3).
const SLOW: Duration = Duration::from_secs(1);
/// Longest time for which the end of a session is repeated to the neighbour.
const LONGEST_FAREWELL: Duration = Duration::from_secs(10);

/// Time of an event, with chance for the jitter of what follows from it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    pub jitter: u8,
}

/// State of a session as its client sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    pub state: State,
    /// Reason for the last change of the state.
    pub diagnostic: Diagnostic,
    /// State of the neighbour's session, as far as is known.
    pub remote_state: State,
    pub remote_diagnostic: Diagnostic,
    /// C bit of the neighbour: its BFD survives the restart of its control plane.
    pub independent: bool,
    /// Number of times that the path has failed: the session was up and is down, and nobody has shut it down.
    pub failures: u64,
    /// Detection time as of the neighbour's last packet; zero before the first one.
    pub detection: Duration,
    /// Discriminators; the neighbour's is 0 while it is not known.
    pub mine: u32,
    pub yours: u32,
}

/// Session.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    mine: u32,
    state: State,
    diagnostic: Diagnostic,
    failures: u64,
    /// See [`Status::detection`].
    detection: Duration,
    remote: Remote,
    /// Desired Min TX and Required Min RX Interval in use.
    send: Duration,
    receive: Duration,
    poll: Poll,
    /// Last packet of the neighbour.
    heard: Option<Instant>,
    /// Last packet of ours, and the next periodic one.
    sent: Option<Instant>,
    next: Instant,
    /// A poll of the neighbour is unanswered.
    answer: bool,
    /// Our packets have changed since the last one.
    changed: bool,
    /// End of the time for which the neighbour is told that the session has ended.
    closing: Option<Instant>,
}

/// The neighbour, as its last packet describes it.
#[derive(PartialEq, Eq, Debug)]
struct Remote {
    discriminator: u32,
    state: State,
    diagnostic: Diagnostic,
    demand: bool,
    independent: bool,
    multiplier: u8,
    send: Duration,
    receive: Duration,
}

/// Poll of ours (RFC 5880 6.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Poll {
    None,
    Running,
    /// The intervals have changed again; the next answer is that to an earlier poll.
    Outdated,
}

impl Remote {
    /// RFC 5880 6.8.1: nothing is known of it, but that it may be sent to.
    fn unknown() -> Remote {
        Remote {
            discriminator: 0,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            demand: false,
            independent: false,
            multiplier: 1,
            send: Duration::ZERO,
            receive: Duration::from_micros(1),
        }
    }

    fn of(packet: &Packet) -> Remote {
        Remote {
            discriminator: packet.mine,
            state: packet.state,
            diagnostic: packet.diagnostic,
            demand: packet.demand,
            independent: packet.independent,
            multiplier: packet.multiplier,
            send: Duration::from_micros(packet.send.into()),
            receive: Duration::from_micros(packet.receive.into()),
        }
    }
}

impl Session {
    /// Builds a session that is down; its first packet is due within a second. `mine` is not zero.
    pub fn new(settings: Settings, mine: u32, at: Moment) -> Session {
        let mut session = Session {
            settings,
            mine,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            failures: 0,
            detection: Duration::ZERO,
            remote: Remote::unknown(),
            send: SLOW,
            receive: settings.receive,
            poll: Poll::None,
            heard: None,
            sent: None,
            next: at.now,
            answer: false,
            changed: false,
            closing: None,
        };
        session.send = session.desired_send();
        // Many sessions that begin at once do not send at once.
        session.next = at.now + SLOW * u32::from(at.jitter) / 256;
        session
    }

    pub fn status(&self) -> Status {
        Status {
            state: self.state,
            diagnostic: self.diagnostic,
            remote_state: self.remote.state,
            remote_diagnostic: self.remote.diagnostic,
            independent: self.remote.independent,
            failures: self.failures,
            detection: self.detection,
            mine: self.mine,
            yours: self.remote.discriminator,
        }
    }

    /// Changes the settings (RFC 5880 6.8.3).
    pub fn change(&mut self, at: Moment, settings: Settings) {
        if settings == self.settings {
            return;
        }
        let before = (self.desired_send(), self.settings.receive);
        self.settings = settings;
        let (send, receive) = (self.desired_send(), self.settings.receive);
        self.changed = true;
        if self.state == State::Up && before != (send, receive) {
            self.send = self.send.min(send);
            self.receive = self.receive.max(receive);
            self.begin_poll();
        } else if self.state != State::Up {
            (self.send, self.receive) = (send, receive);
        }
        self.hasten(at);
    }

    /// Ends the session administratively. The neighbour is told for as long as it takes to notice; nobody is told who was never
    /// heard.
    pub fn close(&mut self, at: Moment) {
        if self.closing.is_some() {
            return;
        }
        self.enter(at, State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN);
        let time = self.interval() * u32::from(self.settings.multiplier);
        let is_known = self.remote.discriminator != 0;
        self.closing = Some(if is_known { at.now + time.min(LONGEST_FAREWELL) } else { at.now });
    }

    /// Returns whether it was closed and the neighbour has been told.
    pub fn is_over(&self, now: Instant) -> bool {
        self.closing.is_some_and(|until| until <= now)
    }

    /// Processes a packet that is for this session. Returns whether something may follow from it: a packet, another status or an earlier
    /// deadline. What a neighbour says again and again while the path is up only proves that it is.
    pub fn receive(&mut self, at: Moment, packet: &Packet) -> bool {
        if self.state == State::AdminDown {
            return false;
        }
        let remote = Remote::of(packet);
        let is_repeated = !packet.poll && !packet.is_final && remote == self.remote;
        if is_repeated && self.state == State::Up && packet.state == State::Up {
            self.heard = Some(at.now);
            let detection = self.detection_time().unwrap_or_default();
            return std::mem::replace(&mut self.detection, detection) != detection;
        }
        let interval = self.interval();
        self.remote = remote;
        if packet.is_final {
            self.poll_answered();
        }
        self.follow(at, packet.state);
        self.answer |= packet.poll;
        self.heard = Some(at.now);
        self.detection = self.detection_time().unwrap_or_default();
        if self.interval() < interval {
            self.hasten(at);
        }
        true
    }

    /// State transitions by the neighbour's state (RFC 5880 6.8.6).
    fn follow(&mut self, at: Moment, theirs: State) {
        match (self.state, theirs) {
            (State::AdminDown, State::AdminDown | State::Down | State::Init | State::Up)
            | (State::Down, State::AdminDown | State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up) => {}
            (State::Down, State::Down) => self.enter(at, State::Init, self.diagnostic),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(at, State::Up, Diagnostic::NONE);
            }
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.enter(at, State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN);
            }
        }
    }

    /// Declares the path down when nothing was received for the detection time (RFC 5880 6.8.4).
    pub fn tick(&mut self, at: Moment) {
        if self.closing.is_some() || self.silent_at().is_none_or(|end| end > at.now) {
            return;
        }
        self.heard = None;
        // Whether its control plane may have restarted is asked behind its silence.
        self.remote = Remote { independent: self.remote.independent, ..Remote::unknown() };
        match self.state {
            State::Init | State::Up => self.enter(at, State::Down, Diagnostic::TIME_EXPIRED),
            State::AdminDown | State::Down => {}
        }
    }

    /// Returns the next packet that is due; to be asked until there is none.
    pub fn packet(&mut self, at: Moment) -> Option<Packet> {
        if std::mem::take(&mut self.answer) && self.state != State::AdminDown {
            self.changed = false;
            return Some(self.built(false, true));
        }
        let is_periodic = self.sends_periodically() && self.next <= at.now;
        if !is_periodic && !self.changed {
            return None;
        }
        self.changed = false;
        self.sent = Some(at.now);
        self.next = at.now + self.jittered(at);
        Some(self.built(self.poll != Poll::None, false))
    }

    /// Time at which [`Session::tick`] or [`Session::packet`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let next = self.sends_periodically().then_some(self.next);
        let silent = self.silent_at().filter(|_| self.closing.is_none());
        next.into_iter().chain(silent).chain(self.closing).min()
    }

    /// Interval of our periodic packets, without jitter (RFC 5880 6.8.2).
    pub fn interval(&self) -> Duration {
        self.send.max(self.remote.receive)
    }

    /// Time after which a silent neighbour is lost; `None` while none is heard.
    pub fn detection_time(&self) -> Option<Duration> {
        let interval = self.receive.max(self.remote.send);
        self.heard.map(|_| interval * u32::from(self.remote.multiplier))
    }

    /// Returns whether a packet of the neighbour is missing: none was received for the time between two of them, or ever.
    pub fn is_overdue(&self, now: Instant) -> bool {
        let interval = self.receive.max(self.remote.send);
        self.heard.is_none_or(|heard| now.saturating_duration_since(heard) > interval)
    }

    fn silent_at(&self) -> Option<Instant> {
        Some(self.heard? + self.detection_time()?)
    }

    fn sends_periodically(&self) -> bool {
        let is_up = self.state == State::Up && self.remote.state == State::Up;
        let is_asked_not_to = self.remote.demand && is_up && self.poll == Poll::None;
        !self.remote.receive.is_zero() && !is_asked_not_to
    }

    /// Desired Min TX Interval, as advertised in this state.
    fn desired_send(&self) -> Duration {
        match self.state {
            State::Up => self.settings.send,
            State::AdminDown | State::Down | State::Init => self.settings.send.max(SLOW),
        }
    }

    fn enter(&mut self, at: Moment, state: State, diagnostic: Diagnostic) {
        let before = std::mem::replace(&mut self.state, state);
        self.diagnostic = diagnostic;
        self.changed = true;
        self.poll = Poll::None;
        self.send = self.desired_send();
        self.receive = self.settings.receive;
        match (before, state) {
            (State::Up, State::Down) if self.remote.state != State::AdminDown => self.failures += 1,
            // The interval has changed without having been advertised.
            (_, State::Up) if self.settings.send < SLOW => {
                self.begin_poll();
                self.hasten(at);
            }
            _ => {}
        }
    }

    fn begin_poll(&mut self) {
        self.poll = if self.poll == Poll::None { Poll::Running } else { Poll::Outdated };
    }

    fn poll_answered(&mut self) {
        self.poll = match self.poll {
            Poll::Outdated => Poll::Running,
            Poll::Running | Poll::None => Poll::None,
        };
        if self.poll == Poll::None {
            (self.send, self.receive) = (self.desired_send(), self.settings.receive);
        }
    }

    /// RFC 5880 6.8.3: a shorter interval counts from the last packet on.
    fn hasten(&mut self, at: Moment) {
        let since = self.sent.unwrap_or(at.now);
        self.next = self.next.min(since + self.jittered(at)).max(at.now);
    }

    /// RFC 5880 6.8.7: 75 % to 100 % of the interval, and 90 % at most if the neighbour may miss no packet. The last 7 % are for the owner,
    /// who may be late by 6 %. Of the rest 7 % are enough to keep sessions apart, and each packet less is time for both ends.
    fn jittered(&self, at: Moment) -> Duration {
        let (least, range) = if self.settings.multiplier == 1 { (768, 82) } else { (880, 72) };
        self.interval() * (least + u32::from(at.jitter) * range / 255) / 1024
    }

    fn built(&self, poll: bool, is_final: bool) -> Packet {
        let microseconds = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll,
            is_final,
            independent: false,
            demand: false,
            multiplier: self.settings.multiplier,
            mine: self.mine,
            yours: self.remote.discriminator,
            send: microseconds(self.desired_send()),
            receive: microseconds(self.settings.receive),
            echo: 0,
        }
    }
}
