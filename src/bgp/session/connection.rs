//! One connection: from our OPEN to the session.
//!
//! RFC 4271 8.2.2 from OpenSent on; unexpected messages RFC 6608. The connection judges what comes over it and keeps its own
//! time; what follows for the neighbour is decided in `peer`.

use std::time::{Duration, Instant};

use super::super::message::{self, Dialect, Framing, Message, Notification, Open, Reason};
use super::{Agreement, LinkId, Moment, Settings, Side, State};

/// How long a connection may take to bring its OPEN (RFC 4271 8.2.2 suggests four minutes).
const OPEN_HOLD: Duration = Duration::from_secs(240);
/// A look at the clock that is late by so much was late because of us, not because of the neighbour.
const BUSY: Duration = Duration::from_secs(1);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub link: LinkId,
    pub side: Side,
    pub framing: Framing,
    pub stage: Stage,
}

/// How far it is.
#[derive(Debug)]
pub(super) enum Stage {
    /// We have sent our OPEN and wait for theirs.
    OpenSent {
        until: Instant,
    },
    /// We have agreed, have said so with a KEEPALIVE, and wait for theirs.
    OpenConfirm(Talk),
    /// Theirs has come. It becomes the session, unless the connection wins that is being made beside it; until then at the latest.
    Confirmed {
        talk: Talk,
        until: Instant,
    },
    Established(Talk),
}

/// What there is after both OPENs.
#[derive(Debug)]
pub(super) struct Talk {
    pub agreement: Box<Agreement>,
    /// When silence has lasted too long; `None` with a hold time of 0.
    hold: Option<Instant>,
    /// When we say something; `None` with a hold time of 0.
    keepalive: Option<Instant>,
    /// We were late once since we have heard of it.
    forgiven: bool,
}

/// What a message means.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It goes on as it is.
    Nothing,
    /// An OPEN, and it is acceptable.
    Agreed(Box<Agreement>),
    /// The session stands.
    Confirmed,
    Update(Box<message::Update>),
    Refresh(message::Refresh),
    /// It says that this is the end.
    Ended(Notification),
    /// It is wrong, and this is to be said.
    Wrong(Notification),
}

impl Connection {
    pub fn new(link: LinkId, side: Side, now: Instant) -> Connection {
        let stage = Stage::OpenSent { until: now + OPEN_HOLD };
        Connection { link, side, framing: Framing::default(), stage }
    }

    pub fn state(&self) -> State {
        match self.stage {
            Stage::OpenSent { .. } => State::OpenSent,
            Stage::OpenConfirm(_) | Stage::Confirmed { .. } => State::OpenConfirm,
            Stage::Established(_) => State::Established,
        }
    }

    pub fn talk(&self) -> Option<&Talk> {
        match &self.stage {
            Stage::OpenSent { .. } => None,
            Stage::OpenConfirm(talk) | Stage::Confirmed { talk, .. } | Stage::Established(talk) => Some(talk),
        }
    }

    /// When it began, as long as it has not brought an OPEN.
    pub fn unopened_since(&self) -> Option<Instant> {
        match &self.stage {
            Stage::OpenSent { until } => until.checked_sub(OPEN_HOLD),
            Stage::OpenConfirm(_) | Stage::Confirmed { .. } | Stage::Established(_) => None,
        }
    }

    /// Both sides have confirmed, and it waits for another connection.
    pub fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Confirmed { .. })
    }

    fn dialect(&self) -> Option<&Dialect> {
        match &self.stage {
            Stage::Confirmed { talk, .. } | Stage::Established(talk) => Some(&talk.agreement.dialect),
            Stage::OpenSent { .. } | Stage::OpenConfirm(_) => None,
        }
    }

    /// The next message that has come, whole; an error is what it is answered with.
    pub fn next(&mut self) -> Option<Result<Message, Notification>> {
        let dialect = self.dialect().copied();
        // We have said in our OPEN that we take long messages (RFC 8654 4).
        match self.framing.next(true) {
            Ok(None) => None,
            Ok(Some(frame)) => Some(message::decode(frame, dialect.as_ref())),
            Err(error) => Some(Err(error)),
        }
    }

    /// Judges a message. One that waits is established first: whoever goes on with it means it.
    pub fn judge(&mut self, message: Message, settings: &Settings, at: Moment) -> Verdict {
        match (&mut self.stage, message) {
            (_, Message::Notification(notification)) => Verdict::Ended(notification),
            (Stage::OpenSent { .. }, Message::Open(open)) => agreed(settings, open),
            (Stage::OpenSent { .. }, other) => unexpected(Reason::UNEXPECTED_IN_OPEN_SENT, &other),
            (Stage::OpenConfirm(_), Message::Keepalive) => Verdict::Confirmed,
            (Stage::OpenConfirm(_) | Stage::Confirmed { .. }, other) => {
                unexpected(Reason::UNEXPECTED_IN_OPEN_CONFIRM, &other)
            }
            (Stage::Established(_), other @ Message::Open(_)) => unexpected(Reason::UNEXPECTED_IN_ESTABLISHED, &other),
            (Stage::Established(talk), Message::Keepalive | Message::Ignored) => {
                talk.heard(at);
                Verdict::Nothing
            }
            (Stage::Established(talk), Message::Update(update)) => {
                talk.heard(at);
                Verdict::Update(Box::new(update))
            }
            (Stage::Established(talk), Message::Refresh(refresh)) => {
                talk.heard(at);
                Verdict::Refresh(refresh)
            }
        }
    }

    /// The other side's OPEN is good: its KEEPALIVE is awaited.
    pub fn confirm(&mut self, agreement: Box<Agreement>, at: Moment) {
        let mut talk = Talk { agreement, hold: None, keepalive: None, forgiven: false };
        talk.heard(at);
        talk.said(at);
        self.stage = Stage::OpenConfirm(talk);
    }

    /// The other side has confirmed too, and it waits until then.
    pub fn wait(&mut self, until: Instant) {
        let sent = Stage::OpenSent { until };
        self.stage = match std::mem::replace(&mut self.stage, sent) {
            Stage::OpenConfirm(talk) => Stage::Confirmed { talk, until },
            other => other,
        };
    }

    /// The other side has confirmed too.
    pub fn establish(&mut self, at: Moment) {
        let waiting = Stage::OpenSent { until: at.now };
        self.stage = match std::mem::replace(&mut self.stage, waiting) {
            Stage::OpenConfirm(mut talk) | Stage::Confirmed { mut talk, .. } | Stage::Established(mut talk) => {
                talk.heard(at);
                Stage::Established(talk)
            }
            unopened @ Stage::OpenSent { .. } => unopened,
        };
    }

    /// What the time has brought.
    pub fn due(&mut self, at: Moment) -> Due {
        match &mut self.stage {
            Stage::OpenSent { until } if *until <= at.now => Due::Silent,
            Stage::OpenSent { .. } => Due::Nothing,
            Stage::Confirmed { until, .. } if *until <= at.now => Due::Session,
            Stage::Confirmed { talk, .. } => talk.due(at),
            Stage::OpenConfirm(talk) | Stage::Established(talk) => talk.due(at),
        }
    }

    /// It has waited for the end of a session, and begins to keep its own time.
    pub fn go_on(&mut self, at: Moment) {
        match &mut self.stage {
            Stage::OpenSent { until } => *until = at.now + OPEN_HOLD,
            Stage::OpenConfirm(talk) | Stage::Confirmed { talk, .. } | Stage::Established(talk) => {
                talk.heard(at);
                talk.said(at);
            }
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::OpenSent { until } => Some(*until),
            Stage::Confirmed { talk, until } => talk.deadline().into_iter().chain([*until]).min(),
            Stage::OpenConfirm(talk) | Stage::Established(talk) => talk.deadline(),
        }
    }
}

/// What the time has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Nothing,
    /// A KEEPALIVE of ours.
    Keepalive,
    /// It has been silent for too long.
    Silent,
    /// It has waited long enough, and is the session.
    Session,
}

impl Talk {
    /// Something has come.
    fn heard(&mut self, at: Moment) {
        let seconds = self.agreement.hold_time;
        self.hold = (seconds > 0).then(|| at.now + Duration::from_secs(u64::from(seconds)));
        self.forgiven = false;
    }

    /// Something has been sent; the next KEEPALIVE comes after a third of the hold time.
    fn said(&mut self, at: Moment) {
        let seconds = self.agreement.hold_time;
        self.keepalive = (seconds > 0).then(|| at.after(Duration::from_secs(u64::from(seconds)) / 3));
    }

    fn deadline(&self) -> Option<Instant> {
        self.hold.into_iter().chain(self.keepalive).min()
    }

    fn due(&mut self, at: Moment) -> Due {
        if let Some(hold) = self.hold.filter(|hold| *hold <= at.now) {
            // Who looks so late may not have read what has come in time. It gets a little longer, once.
            if at.now - hold < BUSY || self.forgiven {
                return Due::Silent;
            }
            self.forgiven = true;
            self.hold = Some(at.now + 2 * BUSY);
        }
        if self.keepalive.is_some_and(|keepalive| keepalive <= at.now) {
            self.said(at);
            return Due::Keepalive;
        }
        Due::Nothing
    }
}

fn agreed(settings: &Settings, open: Open) -> Verdict {
    match settings.agree(open) {
        Ok(agreement) => Verdict::Agreed(Box::new(agreement)),
        Err(notification) => Verdict::Wrong(notification),
    }
}

/// RFC 6608 3: the kind of the message goes with it.
fn unexpected(reason: Reason, message: &Message) -> Verdict {
    Verdict::Wrong(Notification::with(reason, [message.kind()]))
}
