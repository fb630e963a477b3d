//! Connection collisions, and the retention of routes after a session.
//!
//! RFC 4271 6.8 and RFC 6286 2.3 for two connections at once; RFC 4724 4.2, RFC 8538 and RFC 9494 for the routes of a restarting
//! neighbour.

use std::time::Instant;

use super::super::super::message::{self, Notification, Reason};
use super::super::connection::{CHALLENGE, Connection, PATIENCE};
use super::super::{Agreement, Cause, Effect, LinkId, Local, Moment, Side, State, rank};
use super::dials::DIAL;
use super::{Dial, GOOD, Peer, Phase};
use crate::net::PerFamily;

/// Connection beside a session. It is answered when the session has ended, and closed when that takes too long.
#[derive(Debug)]
pub(super) struct Challenger {
    pub connection: Connection,
    /// Time of its beginning, or of the session's.
    since: Instant,
    pub until: Instant,
    /// Our KEEPALIVE was sent before the session was established.
    answered: bool,
    /// The KEEPALIVE of the peer is received.
    confirmed: bool,
    /// More time was given, because we were late.
    forgiven: bool,
}

impl Challenger {
    pub fn new(connection: Connection, at: Moment) -> Challenger {
        let answered = connection.state() == State::OpenConfirm;
        Challenger { connection, since: at.now, until: at.now + CHALLENGE, answered, confirmed: false, forgiven: false }
    }
}

impl Peer {
    /// Handles an acceptable OPEN. The consequences depend on the other connection, if there is one.
    pub(super) fn agreed(&mut self, at: Moment, link: LinkId, agreement: Box<Agreement>) {
        if let Phase::Established { since, session, challenger: Some(challenger) } = &mut self.phase {
            // RFC 4724 5: a peer with the R bit set has lost the session. Not where the session has just begun with that bit, too: a peer that comes back dials and
            // is dialled at once, and the second connection may be of the same start. To replace the session by it would count as a second restart, which ends
            // what is retained of the first one. A peer that has a session does not dial, so one of the same start came within the time of a dial.
            let restarting = |agreement: &Agreement| agreement.restart.is_some_and(|restart| restart.restarting);
            let began_with_it = session.talk().is_some_and(|talk| restarting(&talk.agreement));
            let is_of_one_start = began_with_it && challenger.since <= *since + DIAL;
            let restarted = restarting(&agreement) && !is_of_one_start;
            challenger.connection.confirm(agreement, at);
            let session = session.link;
            match restarted {
                true => self.ended(at, session, Cause::Replaced),
                // A KEEPALIVE on the session finds out whether the peer has lost it without the R bit.
                false => self.effects.push(Effect::Send(session, message::keepalive())),
            }
            return;
        }
        self.confirm(at, link, agreement);
    }

    /// Confirms an OPEN with a KEEPALIVE. One that waits for this connection waits for the peer's answer, too.
    fn confirm(&mut self, at: Moment, link: LinkId, agreement: Box<Agreement>) {
        if let Some(connection) = self.connection(link) {
            connection.confirm(agreement, at);
            self.effects.push(Effect::Send(link, message::keepalive()));
        }
        if let Phase::Open { connections, .. } = &mut self.phase {
            for one in connections.iter_mut().filter(|one| one.link != link) {
                one.wait_on(at.now + CHALLENGE);
            }
        }
    }

    /// Handles the confirmation by both sides. Where another connection is being made that would win the collision, the
    /// peer may just be deciding for it: this one waits, so that no session begins only to end. The loser is closed as soon as the winner is confirmed,
    /// not with its OPEN (RFC 4271 6.8): our KEEPALIVE may have established the loser at the peer meanwhile, which then closes the winner, and both would be gone.
    pub(super) fn confirmed(&mut self, at: Moment, link: LinkId) {
        let local = self.settings.local;
        match &mut self.phase {
            Phase::Idle { .. } => {}
            Phase::Open { connections, .. } => {
                let others = connections.iter().filter(|one| one.link != link);
                let until = others.filter_map(|other| other.rival_until(at.now)).max();
                let Some(one) = connections.iter_mut().find(|one| one.link == link) else { return };
                let wins = one.talk().is_none_or(|talk| winner(local, &talk.agreement) == one.side);
                match until.filter(|until| !wins && *until > at.now) {
                    Some(until) => one.wait(until, at),
                    None => self.establish_alone(at, link),
                }
            }
            Phase::Established { session, challenger, .. } => {
                let Some(challenger) = challenger.as_mut().filter(|challenger| challenger.connection.link == link)
                else {
                    return;
                };
                challenger.confirmed = true;
                // It has our KEEPALIVE, so that the peer may have a session on it already: it has decided.
                if challenger.answered {
                    let session = session.link;
                    self.ended(at, session, Cause::Sent(Notification::new(Reason::COLLISION)));
                }
            }
        }
    }

    /// Establishes the session on the winner of a collision, whose loser is closed where both are agreed on.
    fn establish_alone(&mut self, at: Moment, link: LinkId) {
        let Phase::Open { connections, .. } = &self.phase else { return };
        let loser = connections.iter().find(|one| one.link != link && one.state() == State::OpenConfirm);
        if let Some(loser) = loser.map(|loser| loser.link) {
            self.ended(at, loser, Cause::Sent(Notification::new(Reason::COLLISION)));
        }
        self.establish(at, link);
    }

    /// Establishes the session. Another connection stays for a while: if the peer has decided for it, it ends this one.
    pub(super) fn establish(&mut self, at: Moment, link: LinkId) {
        let Phase::Open { dial, connections } = &mut self.phase else { return };
        let Some(index) = connections.iter().position(|one| one.link == link) else { return };
        let mut session = connections.swap_remove(index);
        let challenger = connections.pop().map(|other| Box::new(Challenger::new(other, at)));
        if let Dial::Now(_) = dial {
            self.effects.push(Effect::AbandonDial);
        }
        session.establish(at);
        self.forwarding = true;
        let agreement = session.talk().map(|talk| talk.agreement.clone());
        self.phase = Phase::Established { since: at.now, session, challenger };
        if let Some(agreement) = agreement {
            self.judge_stale(at, &agreement);
            self.effects.push(Effect::Up(link, agreement));
        }
    }

    /// RFC 4724 4.2: routes stay stale only where forwarding state was preserved over the restart, and for a limited
    /// time.
    fn judge_stale(&mut self, at: Moment, agreement: &Agreement) {
        let time = self.settings.restart.map(|restart| restart.stale);
        let dropped = self.retention.come_back(at.now, agreement, time);
        self.push_families(Effect::DropStale, dropped);
    }

    /// Requests what is to be done in some families, if there are any.
    pub(super) fn push_families(&mut self, effect: fn(PerFamily<bool>) -> Effect, families: PerFamily<bool>) {
        if families != PerFamily::default() {
            self.effects.push(effect(families));
        }
    }

    pub(super) fn drop_stale(&mut self, families: PerFamily<bool>) {
        let dropped = self.retention.end(families);
        self.push_families(Effect::DropStale, dropped);
    }

    pub(super) fn session_ended(&mut self, at: Moment, cause: Cause) {
        let idle = Phase::Idle { until: None };
        let Phase::Established { since, session, challenger } = std::mem::replace(&mut self.phase, idle) else {
            return;
        };
        let before = self.retention.long_lived();
        if let Some(talk) = session.talk()
            && survives(&talk.agreement, &cause)
        {
            // Routes still stale from an earlier end are removed now (RFC 4724 4.2), unless they may become long-lived, or are (RFC 9494 4.2).
            if !is_collision(&cause) {
                let (retained, goes_on) = (self.retention.families(), self.retention.goes_on(&talk.agreement));
                self.drop_stale(PerFamily::from_fn(|family| *retained.of(family) && !*goes_on.of(family)));
            }
            self.retention.begin(at.now, &talk.agreement);
        } else {
            self.retention.end_all();
        }
        self.effects.push(Effect::Down { kept: self.retention.families(), cause });
        let long_lived = self.retention.long_lived();
        let new = PerFamily::from_fn(|family| *long_lived.of(family) && !*before.of(family));
        let old = PerFamily::from_fn(|family| *long_lived.of(family) && *before.of(family));
        self.push_families(|families| Effect::LongLived { families, is_new: true }, new);
        // What the ended session had sent is kept as the rest is.
        self.push_families(|families| Effect::LongLived { families, is_new: false }, old);
        self.failures = if at.now - since < GOOD { self.failures.saturating_add(1) } else { 1 };
        self.phase = Phase::Open { dial: Dial::Done, connections: Vec::new() };
        match challenger {
            Some(challenger) => self.promote(at, *challenger),
            None => self.resume_dialling(at),
        }
    }

    /// Closes the challenger of a session that has not ended in time.
    pub(super) fn tick_challenger(&mut self, at: Moment) {
        if let Phase::Established { challenger: Some(challenger), .. } = &mut self.phase
            && challenger.until <= at.now
        {
            match at.is_late(challenger.until) && !challenger.forgiven {
                true => (challenger.forgiven, challenger.until) = (true, at.now + PATIENCE),
                false => {
                    let link = challenger.connection.link;
                    self.ended(at, link, Cause::Sent(Notification::new(Reason::COLLISION)));
                }
            }
        }
    }

    /// Continues the connection that waited for the end of the session.
    fn promote(&mut self, at: Moment, challenger: Challenger) {
        let Challenger { mut connection, confirmed, answered, .. } = challenger;
        let link = connection.link;
        let is_unanswered = connection.state() == State::OpenConfirm && !answered;
        connection.go_on(at);
        if let Phase::Open { connections, .. } = &mut self.phase {
            connections.push(connection);
        }
        self.resume_dialling(at);
        if is_unanswered {
            self.effects.push(Effect::Send(link, message::keepalive()));
        }
        if confirmed {
            self.confirmed(at, link);
        }
    }
}

/// RFC 4271 6.8, RFC 6286 2.3: the connection dialled by the speaker with the higher BGP identifier wins.
fn winner(local: Local, agreement: &Agreement) -> Side {
    let theirs = rank(agreement.open.identifier, agreement.open.asn);
    let ours = rank(local.identifier, local.asn);
    if ours > theirs { Side::Ours } else { Side::Theirs }
}

/// Returns whether one side has decided for the other connection. The session goes on there, so that its routes stay.
fn is_collision(cause: &Cause) -> bool {
    matches!(cause, Cause::Received(notification) | Cause::Sent(notification) if notification.reason == Reason::COLLISION)
}

/// Returns whether routes are retained: always when the connection ended without a NOTIFICATION, or lost a collision;
/// with RFC 8538 also after a NOTIFICATION, unless it is a hard reset.
fn survives(agreement: &Agreement, cause: &Cause) -> bool {
    match cause {
        Cause::Closed | Cause::Replaced => true,
        cause if is_collision(cause) => true,
        Cause::Received(notification) | Cause::Sent(notification) => {
            agreement.keeps_after_notifications() && notification.reason != Reason::HARD_RESET
        }
    }
}
