//! State machine of a neighbour: dials, messages, and the end of its connections.
//!
//! RFC 4271 8. When to dial is in `dials`; collisions, and the routes retained at the end of a session, in `succession`.

mod dials;
mod retention;
mod succession;

use std::time::{Duration, Instant};

use self::retention::Retention;
use self::succession::Challenger;
use super::super::message::{self, Message, Notification, Open, Reason};
use super::connection::{Connection, Due, Stage, Verdict};
use super::{Agreement, Cause, Effect, Event, LinkId, Moment, Settings, Side, State};
use crate::net::PerFamily;

/// Session duration from which on the count of failures starts again.
const GOOD: Duration = Duration::from_secs(60);
/// Session duration from which on a session may be at rest.
const SETTLED: Duration = Duration::from_secs(5);

/// Neighbour.
#[derive(Debug)]
pub struct Peer {
    settings: Settings,
    /// We have restarted; sent in OPEN.
    restarting: bool,
    /// Forwarding state for it was preserved; sent in OPEN (RFC 4724 3, the F bit): the kernel keeps its state over a
    /// restart of ours and over the end of a session, but not over a reboot.
    forwarding: bool,
    phase: Phase,
    /// Consecutive failures.
    failures: u32,
    /// Minimum time between two dials of an unanswering neighbour.
    spread: Duration,
    /// Routes retained of the last session.
    retention: Retention,
    /// Messages received, by type.
    received: [u64; 6],
    effects: Vec<Effect>,
}

#[derive(Debug)]
enum Phase {
    /// Neither dials nor accepts connections: up to `until`, or else until it is started.
    Idle { until: Option<Instant> },
    /// Up to one connection dialled by each side.
    Open { dial: Dial, connections: Vec<Connection> },
    /// An established session, and a connection that may replace it.
    Established { since: Instant, session: Connection, challenger: Option<Box<Challenger>> },
}

/// State of dialling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dial {
    /// The neighbour is to dial (passive).
    Never,
    /// Next dial.
    At(Instant),
    /// Dial in progress, with its time limit.
    Now(Instant),
    /// Our connection is made.
    Done,
}

impl Peer {
    /// Builds a neighbour that has not been started.
    pub fn new(settings: Settings, restarting: bool) -> Peer {
        let phase = Phase::Idle { until: None };
        Peer {
            settings,
            restarting,
            forwarding: true,
            phase,
            failures: 0,
            spread: Duration::ZERO,
            retention: Retention::default(),
            received: [0; 6],
            effects: Vec::new(),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes the settings of the next session; an established one keeps what was negotiated.
    pub fn change(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Records that this host has just booted: before the first session nothing is forwarded.
    pub fn begins_without_state(&mut self) {
        self.forwarding = false;
    }

    /// Records the end of our restart: OPEN does not mention it any more.
    pub fn has_restarted(&mut self) {
        self.restarting = false;
    }

    pub fn state(&self) -> State {
        match &self.phase {
            Phase::Idle { .. } => State::Idle,
            Phase::Established { .. } => State::Established,
            Phase::Open { dial, connections } => {
                let own = if matches!(dial, Dial::Now(_)) { State::Connect } else { State::Active };
                connections.iter().map(Connection::state).max().unwrap_or(own)
            }
        }
    }

    /// Returns whether it has not been started, or has been stopped.
    pub fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Idle { until: None })
    }

    /// Our OPEN to it.
    pub fn own_open(&self) -> Open {
        self.settings.open(self.restarting, self.forwarding)
    }

    /// Result of the negotiation, while the session is established.
    pub fn agreement(&self) -> Option<&Agreement> {
        match &self.phase {
            Phase::Established { session, .. } => session.talk().map(|talk| talk.agreement.as_ref()),
            Phase::Idle { .. } | Phase::Open { .. } => None,
        }
    }

    /// Connection of the session, and the time of its establishment.
    pub fn session(&self) -> Option<(LinkId, Instant)> {
        match &self.phase {
            Phase::Established { session, since, .. } => Some((session.link, *since)),
            Phase::Idle { .. } | Phase::Open { .. } => None,
        }
    }

    /// Returns whether a connection carries a session that has lasted for a while, alone, no part of a message has been
    /// received on it, and a KEEPALIVE of ours is sent before its hold timer expires.
    pub fn is_at_rest(&self, link: LinkId, now: Instant) -> bool {
        match &self.phase {
            Phase::Established { since, session, challenger: None } => {
                let lasts = now.saturating_duration_since(*since) >= SETTLED;
                let heard = session.talk().is_some_and(|talk| talk.lasts_beyond_keepalive(now));
                lasts && heard && session.link == link && session.framing.waiting() == 0
            }
            Phase::Idle { .. } | Phase::Open { .. } | Phase::Established { .. } => false,
        }
    }

    /// Takes the time at which the last bytes of a session came, of which all have been received.
    pub fn heard_last(&mut self, link: LinkId, then: Instant) {
        if let Phase::Established { session, .. } = &mut self.phase
            && session.link == link
            && let Stage::Established(talk) = &mut session.stage
        {
            talk.heard_last(then);
        }
    }

    /// Connection of a session whose hold timer has expired.
    pub fn silent_session(&self, now: Instant) -> Option<LinkId> {
        match &self.phase {
            Phase::Established { session, .. } => {
                session.talk().is_some_and(|talk| talk.is_silent(now)).then_some(session.link)
            }
            Phase::Idle { .. } | Phase::Open { .. } => None,
        }
    }

    /// Number of messages received, by type code (RFC 4271 4.1).
    pub fn received(&self) -> [u64; 6] {
        self.received
    }

    /// Returns whether it has a session, or stale routes of an earlier one.
    pub fn is_kept(&self) -> bool {
        matches!(self.phase, Phase::Established { .. }) || self.stale() != PerFamily::default()
    }

    /// Address families with stale routes.
    pub fn stale(&self) -> PerFamily<bool> {
        self.retention.families()
    }

    /// Address families with stale routes that are long-lived.
    pub fn long_lived(&self) -> PerFamily<bool> {
        self.retention.long_lived()
    }

    /// Time of the next [`Event::Tick`], at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.first(Duration::ZERO, Connection::deadline)
    }

    /// Time from which on [`Event::Tick`] does something: up to [`SLACK`](super::SLACK) before the deadline, where that
    /// may be done early.
    pub fn ready(&self) -> Option<Instant> {
        self.first(self.dial_slack(), Connection::ready)
    }

    /// The first of all timers: a scheduled dial counts as due so much earlier, connections say it themselves.
    fn first(&self, early: Duration, of_connection: fn(&Connection) -> Option<Instant>) -> Option<Instant> {
        let own = match &self.phase {
            Phase::Idle { until } => *until,
            Phase::Open { dial: Dial::At(at), .. } => at.checked_sub(early),
            Phase::Open { dial: Dial::Now(at), .. } => Some(*at),
            Phase::Open { .. } => None,
            Phase::Established { challenger, .. } => challenger.as_ref().map(|challenger| challenger.until),
        };
        let connections = self.settled().filter_map(of_connection);
        connections.chain(own).chain(self.retention.deadline()).min()
    }

    /// Processes an event.
    pub fn step(&mut self, at: Moment, event: Event) -> Vec<Effect> {
        match event {
            Event::Start => self.start(at),
            Event::Stop(notification) => self.stop(&notification, None),
            Event::Restart(notification) => {
                if !self.is_stopped() {
                    self.stop(&notification, None);
                    self.start(at);
                }
            }
            Event::Renew(notification) => {
                if !self.is_stopped() {
                    let is_up = matches!(self.phase, Phase::Established { .. });
                    self.close_all(&notification, None);
                    let families = if is_up { PerFamily::default() } else { self.settings.families };
                    let dropped = self.retention.bound(at.now, families, self.settings.restart.as_ref());
                    self.push_families(Effect::DropStale, dropped);
                    self.start(at);
                }
            }
            Event::Refuse(notification, time) => {
                if !self.is_stopped() {
                    self.stop(&notification, Some(at.now + time));
                }
            }
            Event::Dialled(link) => self.dialled(at, link),
            Event::DialFailed => self.dial_failed(at),
            Event::Accepted(link) => self.accepted(at, link),
            Event::Closed(link) => self.ended(at, link, Cause::Closed),
            Event::Stuck(link) => {
                let notification = Notification::new(Reason::SEND_HOLD_TIMER_EXPIRED);
                self.ended(at, link, Cause::Sent(notification));
            }
            Event::Tick => self.tick(at),
            Event::DialNow => self.dial_now(at),
        }
        std::mem::take(&mut self.effects)
    }

    /// Processes bytes received over a connection.
    pub fn receive(&mut self, at: Moment, link: LinkId, bytes: &[u8]) -> Vec<Effect> {
        if let Some(connection) = self.connection(link) {
            connection.framing.push(bytes);
        }
        while let Some(message) = self.connection(link).and_then(Connection::next) {
            match message {
                Ok(message) => {
                    if let Some(count) = self.received.get_mut(usize::from(message.kind())) {
                        *count += 1;
                    }
                    self.message(at, link, message);
                }
                Err(notification) => self.wrong(at, link, notification),
            }
        }
        std::mem::take(&mut self.effects)
    }

    fn start(&mut self, at: Moment) {
        if let Phase::Idle { .. } = self.phase {
            self.phase = Phase::Open { dial: Dial::Never, connections: Vec::new() };
            self.failures = 0;
            if !self.settings.passive {
                self.dial(at);
            }
        }
    }

    /// Ends all connections, and removes its routes.
    fn stop(&mut self, notification: &Notification, until: Option<Instant>) {
        self.close_all(notification, until);
        self.drop_stale(PerFamily { v4: true, v6: true });
    }

    /// Ends all connections; routes of an earlier session stay.
    fn close_all(&mut self, notification: &Notification, until: Option<Instant>) {
        if let Phase::Open { dial: Dial::Now(_), .. } = self.phase {
            self.effects.push(Effect::AbandonDial);
        }
        let was = std::mem::replace(&mut self.phase, Phase::Idle { until });
        let down = matches!(was, Phase::Established { .. });
        let (connections, session) = match was {
            Phase::Idle { .. } => (Vec::new(), None),
            Phase::Open { connections, .. } => (connections, None),
            Phase::Established { session, challenger, .. } => {
                (challenger.into_iter().map(|challenger| challenger.connection).collect(), Some(session))
            }
        };
        if let Some(session) = session {
            // RFC 8538 3.1: a peer that retains routes after a NOTIFICATION needs a hard reset to remove them.
            let hard = session.talk().is_some_and(|talk| talk.agreement.keeps_after_notifications());
            let said = if hard { notification.clone().hardened() } else { notification.clone() };
            self.say_and_close(session.link, &said);
        }
        for connection in &connections {
            self.say_and_close(connection.link, notification);
        }
        let cause = Cause::Sent(notification.clone());
        match down {
            true => self.effects.push(Effect::Down { kept: PerFamily::default(), cause }),
            false if !connections.is_empty() => self.effects.push(Effect::Failed(cause)),
            false => {}
        }
    }

    fn accepted(&mut self, at: Moment, link: LinkId) {
        let connection = Connection::new(link, Side::Theirs, at.now);
        match &mut self.phase {
            Phase::Idle { .. } => return self.say_and_close(link, &Notification::new(Reason::REJECTED)),
            Phase::Open { connections, .. } => {
                // A neighbour dials one connection at a time, so that an older one is dead.
                if let Some(old) = connections.iter().position(|one| one.side == Side::Theirs) {
                    self.effects.push(Effect::Close(connections.swap_remove(old).link));
                }
                connections.push(connection);
            }
            Phase::Established { challenger: Some(_), .. } => return self.effects.push(Effect::Close(link)),
            Phase::Established { challenger, .. } => *challenger = Some(Box::new(Challenger::new(connection, at))),
        }
        self.send_open(link);
    }

    fn send_open(&mut self, link: LinkId) {
        let open = message::open(&self.own_open());
        self.effects.push(Effect::Send(link, open));
    }

    fn message(&mut self, at: Moment, link: LinkId, message: Message) {
        let waiting = self.connection(link).is_some_and(|connection| connection.is_waiting());
        if waiting && !matches!(message, Message::Notification(_)) {
            self.establish(at, link);
        }
        let settings = &self.settings;
        let connection = connections_of(&mut self.phase).find(|one| one.link == link);
        let verdict = connection.map_or(Verdict::Nothing, |connection| connection.judge(message, settings, at));
        match verdict {
            Verdict::Nothing => {}
            Verdict::Agreed(agreement) => self.agreed(at, link, agreement),
            Verdict::Confirmed => self.confirmed(at, link),
            Verdict::Update(update) => {
                let ended = update.end_of_rib;
                self.effects.push(Effect::Update(update));
                if let Some(family) = ended {
                    self.drop_stale(PerFamily::from_fn(|one| one == family));
                }
            }
            Verdict::Refresh(refresh) => self.effects.push(Effect::Refresh(refresh)),
            Verdict::Ended(notification) => self.ended(at, link, Cause::Received(notification)),
            Verdict::Wrong(notification) => self.wrong(at, link, notification),
        }
    }

    /// Handles a malformed or forbidden message: sends the NOTIFICATION, ends the connection, and refuses the neighbour
    /// for a while, so that it does not keep us busy.
    fn wrong(&mut self, at: Moment, link: LinkId, notification: Notification) {
        if self.connection(link).is_none() {
            return;
        }
        self.ended(at, link, Cause::Sent(notification));
        if let Phase::Open { connections, dial: Dial::At(_) | Dial::Never } = &self.phase
            && connections.is_empty()
        {
            self.phase = Phase::Idle { until: Some(at.after(self.retry())) };
        }
    }

    /// Handles the end of a connection.
    fn ended(&mut self, at: Moment, link: LinkId, cause: Cause) {
        if self.connection(link).is_none() {
            return;
        }
        match &cause {
            Cause::Sent(notification) => self.say_and_close(link, notification),
            Cause::Closed | Cause::Received(_) | Cause::Replaced => self.effects.push(Effect::Close(link)),
        }
        match &mut self.phase {
            Phase::Idle { .. } => {}
            Phase::Open { connections, .. } => {
                connections.retain(|one| one.link != link);
                // If another connection remains, this one has lost the collision: that is no failure.
                self.failures = self.failures.saturating_add(u32::from(connections.is_empty()));
                let waiting = connections.iter().find(|one| one.is_waiting()).map(|one| one.link);
                self.effects.push(Effect::Failed(cause));
                match waiting {
                    Some(link) => self.establish(at, link),
                    None => self.resume_dialling(at),
                }
            }
            Phase::Established { session, .. } if session.link == link => self.session_ended(at, cause),
            Phase::Established { challenger, .. } => {
                *challenger = None;
                self.effects.push(Effect::Failed(cause));
            }
        }
    }

    fn tick(&mut self, at: Moment) {
        let retention::Turn { dropped, long_lived } = self.retention.expire(at.now);
        self.push_families(|families| Effect::LongLived { families, is_new: true }, long_lived);
        self.push_families(Effect::DropStale, dropped);
        match &self.phase {
            Phase::Idle { until: Some(until) } if *until <= at.now => {
                self.phase = Phase::Open { dial: Dial::Never, connections: Vec::new() };
                if !self.settings.passive {
                    self.dial(at);
                }
            }
            Phase::Open { dial: Dial::At(time), connections } if *time <= at.now + self.dial_slack() => {
                // Connections in OpenConfirm may still become the session; silent ones must not keep us from dialling.
                match connections.iter().any(|one| one.state() == State::OpenConfirm) {
                    true => self.dial_later(at),
                    false => self.dial(at),
                }
            }
            Phase::Open { dial: Dial::Now(time), .. } if *time <= at.now => {
                self.effects.push(Effect::AbandonDial);
                self.dial_failed(at);
            }
            Phase::Idle { .. } | Phase::Open { .. } | Phase::Established { .. } => {}
        }
        self.tick_challenger(at);
        let links: Vec<LinkId> = self.settled().map(|connection| connection.link).collect();
        for link in links {
            match self.connection(link).map_or(Due::Nothing, |connection| connection.due(at)) {
                Due::Nothing => {}
                Due::Session => self.establish(at, link),
                Due::Keepalive => self.effects.push(Effect::Send(link, message::keepalive())),
                Due::Silent => self.ended(at, link, Cause::Sent(Notification::new(Reason::HOLD_TIMER_EXPIRED))),
            }
        }
    }

    fn say_and_close(&mut self, link: LinkId, notification: &Notification) {
        self.effects.push(Effect::Send(link, message::notification(notification)));
        self.effects.push(Effect::Close(link));
    }

    fn connection(&mut self, link: LinkId) -> Option<&mut Connection> {
        connections_of(&mut self.phase).find(|one| one.link == link)
    }

    /// Connections that keep their own timers: all but the one beside a session.
    fn settled(&self) -> impl Iterator<Item = &Connection> {
        let (many, session) = match &self.phase {
            Phase::Idle { .. } => (&[][..], None),
            Phase::Open { connections, .. } => (connections.as_slice(), None),
            Phase::Established { session, .. } => (&[][..], Some(session)),
        };
        many.iter().chain(session)
    }
}

fn connections_of(phase: &mut Phase) -> impl Iterator<Item = &mut Connection> {
    let (many, session, challenger) = match phase {
        Phase::Idle { .. } => (&mut [][..], None, None),
        Phase::Open { connections, .. } => (connections.as_mut_slice(), None, None),
        Phase::Established { session, challenger, .. } => (&mut [][..], Some(session), challenger.as_mut()),
    };
    many.iter_mut().chain(session).chain(challenger.map(|challenger| &mut challenger.connection))
}
