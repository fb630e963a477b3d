//! State machine of one neighbour: its complete table, and the rules that the table does not show.

mod collision;
mod restart;
mod time;
mod transitions;

use super::super::message::{
    self, Dialect, GracefulRestart, LongLivedFamily, LongLivedRestart, Message, Notification, Open, Reason, Refresh,
    RefreshKind,
};
use super::*;
use crate::net::Family;

const OURS: LinkId = LinkId(1);
const THEIRS: LinkId = LinkId(2);
/// One connection too many.
const THIRD: LinkId = LinkId(3);

const LOCAL: Local = Local { asn: 65001, identifier: Ipv4Addr::new(192, 0, 2, 10) };

fn settings() -> Settings {
    Settings {
        local: LOCAL,
        asn: Some(65001),
        is_external: false,
        passive: false,
        hold_time: 90,
        connect_retry: Duration::from_secs(60),
        mutual: false,
        families: PerFamily { v4: true, v6: true },
        restart: Some(Restart { seconds: 120, stale: Duration::from_secs(300), long_lived: 0, notifications: true }),
    }
}

/// Settings of the neighbour: the same, from the other side.
fn theirs() -> Settings {
    Settings { local: Local { identifier: Ipv4Addr::new(192, 0, 2, 20), ..LOCAL }, ..settings() }
}

fn their_open() -> Open {
    theirs().open(false, true)
}

/// Neighbour under test and its clock.
struct Bench {
    peer: Peer,
    now: Instant,
}

impl Bench {
    fn new(settings: Settings) -> Bench {
        Bench { peer: Peer::new(settings, false), now: Instant::now() }
    }

    fn at(&self) -> Moment {
        Moment { now: self.now, jitter: 0 }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.peer.step(self.at(), event)
    }

    fn receive(&mut self, link: LinkId, bytes: &[u8]) -> Vec<Effect> {
        self.peer.receive(self.at(), link, bytes)
    }

    fn open(&mut self, link: LinkId) -> Vec<Effect> {
        self.receive(link, &message::open(&their_open()))
    }

    fn keepalive(&mut self, link: LinkId) -> Vec<Effect> {
        self.receive(link, &message::keepalive())
    }

    /// Advances the clock, and handles expired timers.
    fn pass(&mut self, seconds: f32) -> Vec<Effect> {
        let end = self.now + Duration::from_secs_f32(seconds);
        let mut effects = Vec::new();
        while let Some(next) = self.peer.deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            effects.extend(self.step(Event::Tick));
            assert!(self.peer.deadline().is_none_or(|later| later > self.now), "what is due is done");
        }
        self.now = end;
        effects
    }

    /// Establishes a session over a connection that we dialled.
    fn established(settings: Settings) -> Bench {
        let mut bench = Bench::new(settings);
        bench.step(Event::Start);
        bench.step(Event::Dialled(OURS));
        bench.open(OURS);
        bench.keepalive(OURS);
        assert_eq!(bench.peer.state(), State::Established);
        bench
    }
}

/// Formats effects as text.
fn words(effects: &[Effect]) -> String {
    let all: Vec<String> = effects.iter().map(word).collect();
    all.join(", ")
}

fn word(effect: &Effect) -> String {
    let side = |link: &LinkId| match *link {
        OURS => "ours",
        THEIRS => "theirs",
        _ => "third",
    };
    let families = |families: &PerFamily<bool>| match (families.v4, families.v6) {
        (true, true) => "all",
        (true, false) => "IPv4",
        (false, true) => "IPv6",
        (false, false) => "nothing",
    };
    match effect {
        Effect::Dial => "dial".into(),
        Effect::AbandonDial => "abandon the dial".into(),
        Effect::Send(link, bytes) => format!("{} on {}", said(bytes), side(link)),
        Effect::Close(link) => format!("close {}", side(link)),
        Effect::Up(link, _) => format!("UP on {}", side(link)),
        Effect::Down { kept, cause } => format!("DOWN keeping {} ({})", families(kept), cause_word(cause)),
        Effect::Update(_) => "take the update".into(),
        Effect::Refresh(_) => "refresh".into(),
        Effect::LongLived { families: kept, .. } => format!("keep {} as the last resort", families(kept)),
        Effect::DropStale(dropped) => format!("drop what is stale of {}", families(dropped)),
        Effect::Failed(cause) => format!("failed ({})", cause_word(cause)),
    }
}

fn cause_word(cause: &Cause) -> String {
    match cause {
        Cause::Closed => "closed".into(),
        Cause::Received(notification) => format!("received {}", notification.reason),
        Cause::Sent(notification) => format!("sent {}", notification.reason),
        Cause::Replaced => "replaced".into(),
    }
}

fn said(bytes: &[u8]) -> String {
    let mut framing = message::Framing::default();
    framing.push(bytes);
    let frame = framing.next(true).unwrap().expect("what is sent is whole");
    match message::decode(frame, None).unwrap() {
        Message::Open(_) => "OPEN".into(),
        Message::Keepalive => "KEEPALIVE".into(),
        Message::Notification(notification) => format!("NOTIFICATION {}", notification.reason),
        other => panic!("the machine does not send {other:?}"),
    }
}
