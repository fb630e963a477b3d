//! One connection: from our OPEN to the established session.
//!
//! RFC 4271 8.2.2 from OpenSent on; unexpected messages RFC 6608. The connection judges its messages and keeps its own
//! timers; the consequences for the neighbour are decided in `peer`.

use std::time::{Duration, Instant};

use super::super::message::{self, Dialect, Framing, Message, Notification, Open, Reason};
use super::{Agreement, LinkId, Moment, SLACK, Settings, Side, State};

/// Hold timer before the OPEN of the peer (RFC 4271 8.2.2 suggests four minutes), and in OpenConfirm where a hold time of 0 was agreed on.
const OPEN_HOLD: Duration = Duration::from_secs(240);
/// Time that a new connection waits for the end of the session that it would replace, and that a confirmed one waits for another that would win the collision.
pub(super) const CHALLENGE: Duration = Duration::from_secs(3);
/// Time given once to a peer whose timer was handled late: what it has sent may not have been read yet.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub link: LinkId,
    pub side: Side,
    pub framing: Framing,
    pub stage: Stage,
}

/// State of a connection.
#[derive(Debug)]
pub(super) enum Stage {
    /// Our OPEN is sent; awaiting the peer's.
    OpenSent {
        until: Instant,
    },
    /// Both OPENs are acceptable and our KEEPALIVE is sent; awaiting the peer's.
    OpenConfirm(Talk),
    /// The peer's KEEPALIVE is received. The connection becomes the session, at `until` at the latest, unless the
    /// connection being made beside it wins the collision.
    Confirmed {
        talk: Talk,
        until: Instant,
    },
    Established(Talk),
}

/// State after both OPENs.
#[derive(Debug)]
pub(super) struct Talk {
    pub agreement: Box<Agreement>,
    /// Hold timer; `None` with a hold time of 0 in an established session.
    hold: Option<Instant>,
    /// Keepalive timer; `None` with a hold time of 0.
    keepalive: Option<Instant>,
    /// The hold timer was extended since the last message, because we were late.
    forgiven: bool,
}

/// Meaning of a message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// No change.
    Nothing,
    /// Acceptable OPEN.
    Agreed(Box<Agreement>),
    /// The session is established.
    Confirmed,
    Update(Box<message::Update>),
    Refresh(message::Refresh),
    /// The peer ends the session.
    Ended(Notification),
    /// Error, with the NOTIFICATION to send.
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

    /// Time until which it may still become the session in place of another connection. One that is silent for long is no rival.
    pub fn rival_until(&self, now: Instant) -> Option<Instant> {
        match &self.stage {
            Stage::OpenSent { until } => until.checked_sub(OPEN_HOLD).map(|since| since + CHALLENGE),
            Stage::OpenConfirm(_) | Stage::Confirmed { .. } => Some(now + CHALLENGE),
            Stage::Established(_) => None,
        }
    }

    /// Returns whether both sides have confirmed and it waits for another connection.
    pub fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Confirmed { .. })
    }

    fn dialect(&self) -> Option<&Dialect> {
        match &self.stage {
            Stage::Confirmed { talk, .. } | Stage::Established(talk) => Some(&talk.agreement.dialect),
            Stage::OpenSent { .. } | Stage::OpenConfirm(_) => None,
        }
    }

    /// Returns the next complete message; the error is the NOTIFICATION that answers it.
    pub fn next(&mut self) -> Option<Result<Message, Notification>> {
        let dialect = self.dialect().copied();
        // Our OPEN has advertised extended messages (RFC 8654 4).
        match self.framing.next(true) {
            Ok(None) => None,
            Ok(Some(frame)) => Some(message::decode(frame, dialect.as_ref())),
            Err(error) => Some(Err(error)),
        }
    }

    /// Judges a message. A waiting connection is established first: a peer that continues on it has chosen it.
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

    /// Enters OpenConfirm after an acceptable OPEN.
    pub fn confirm(&mut self, agreement: Box<Agreement>, at: Moment) {
        let mut talk = Talk { agreement, hold: None, keepalive: None, forgiven: false };
        talk.begin(at);
        self.stage = Stage::OpenConfirm(talk);
    }

    /// Waits until then, after both sides have confirmed.
    pub fn wait(&mut self, until: Instant, at: Moment) {
        let sent = Stage::OpenSent { until };
        self.stage = match std::mem::replace(&mut self.stage, sent) {
            Stage::OpenConfirm(mut talk) => {
                talk.heard(at);
                Stage::Confirmed { talk, until }
            }
            other => other,
        };
    }

    /// Waits until then at least, if it waits.
    pub fn wait_on(&mut self, then: Instant) {
        if let Stage::Confirmed { until, .. } = &mut self.stage {
            *until = then.max(*until);
        }
    }

    /// Enters Established, after both sides have confirmed.
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

    /// Returns which timer has expired.
    pub fn due(&mut self, at: Moment) -> Due {
        match &mut self.stage {
            Stage::OpenSent { until } if *until <= at.now => Due::Silent,
            Stage::OpenSent { .. } => Due::Nothing,
            Stage::Confirmed { talk, until } if *until <= at.now => match talk.forgiven || !at.is_late(*until) {
                true => Due::Session,
                false => {
                    *until = at.now + PATIENCE;
                    talk.forgiven = true;
                    talk.hold = talk.hold.map(|hold| hold.max(*until));
                    talk.due(at)
                }
            },
            Stage::Confirmed { talk, .. } => talk.due(at),
            Stage::OpenConfirm(talk) | Stage::Established(talk) => talk.due(at),
        }
    }

    /// Restarts its timers after the end of the session that it waited for.
    pub fn go_on(&mut self, at: Moment) {
        match &mut self.stage {
            Stage::OpenSent { until } => *until = at.now + OPEN_HOLD,
            Stage::OpenConfirm(talk) | Stage::Confirmed { talk, .. } | Stage::Established(talk) => talk.begin(at),
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::OpenSent { until } => Some(*until),
            Stage::Confirmed { talk, until } => talk.deadline().into_iter().chain([*until]).min(),
            Stage::OpenConfirm(talk) | Stage::Established(talk) => talk.deadline(),
        }
    }

    /// Time from which on a timer may be handled: KEEPALIVEs may be sent a little early.
    pub fn ready(&self) -> Option<Instant> {
        match &self.stage {
            Stage::OpenSent { until } => Some(*until),
            Stage::Confirmed { talk, until } => talk.ready().into_iter().chain([*until]).min(),
            Stage::OpenConfirm(talk) | Stage::Established(talk) => talk.ready(),
        }
    }
}

/// Expired timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Nothing,
    /// Keepalive timer.
    Keepalive,
    /// Hold timer.
    Silent,
    /// End of the wait: the connection becomes the session.
    Session,
}

impl Talk {
    /// Starts the timers before the session is established. RFC 4271 8.2.2 has no hold timer with a hold time of 0; a peer that never sends
    /// its KEEPALIVE would hold the connection for ever, and its neighbour would stay without a session. So the wait for it has a bound,
    /// which ends with the first KEEPALIVE.
    fn begin(&mut self, at: Moment) {
        self.heard(at);
        self.hold = self.hold.or(Some(at.now + OPEN_HOLD));
        self.said(at);
    }

    /// Restarts the hold timer.
    fn heard(&mut self, at: Moment) {
        let seconds = self.agreement.hold_time;
        self.hold = (seconds > 0).then(|| at.now + Duration::from_secs(u64::from(seconds)));
        self.forgiven = false;
    }

    /// Sets the hold timer back: what was received last came at this time, before it was read. A timer that was extended stays.
    pub fn heard_last(&mut self, then: Instant) {
        let at = then + Duration::from_secs(u64::from(self.agreement.hold_time));
        self.hold = self.hold.map(|hold| if self.forgiven { hold } else { hold.min(at) });
    }

    /// Restarts the keepalive timer at a third of the hold time, or up to a quarter before it. As it may be early, it is so much later where
    /// that is no more than the third.
    fn said(&mut self, at: Moment) {
        let third = Duration::from_secs(u64::from(self.agreement.hold_time)) / 3;
        self.keepalive = (!third.is_zero()).then(|| (at.after(third) + self.slack()).min(at.now + third));
    }

    /// Returns whether the hold timer expires after half of the hold time at the earliest: a KEEPALIVE of ours comes first.
    pub fn lasts_beyond_keepalive(&self, now: Instant) -> bool {
        let half = Duration::from_secs(u64::from(self.agreement.hold_time)) / 2;
        self.hold.is_some_and(|hold| hold.saturating_duration_since(now) >= half)
    }

    /// Returns whether the hold timer has expired.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.hold.is_some_and(|hold| hold <= now)
    }

    fn deadline(&self) -> Option<Instant> {
        self.hold.into_iter().chain(self.keepalive).min()
    }

    fn ready(&self) -> Option<Instant> {
        let keepalive = self.keepalive.and_then(|keepalive| keepalive.checked_sub(self.slack()));
        self.hold.into_iter().chain(keepalive).min()
    }

    /// Time by which a KEEPALIVE may be early, so that those to many neighbours leave together.
    fn slack(&self) -> Duration {
        SLACK.min(Duration::from_secs(u64::from(self.agreement.hold_time)) / 45)
    }

    fn due(&mut self, at: Moment) -> Due {
        if let Some(hold) = self.hold.filter(|hold| *hold <= at.now) {
            // So late, received messages may not have been read yet. The hold timer is extended a little, once.
            if self.forgiven || !at.is_late(hold) {
                return Due::Silent;
            }
            self.forgiven = true;
            self.hold = Some(at.now + PATIENCE);
        }
        if self.keepalive.is_some_and(|keepalive| keepalive <= at.now + self.slack()) {
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

/// RFC 6608 3: the data is the message type.
fn unexpected(reason: Reason, message: &Message) -> Verdict {
    Verdict::Wrong(Notification::with(reason, [message.kind()]))
}
