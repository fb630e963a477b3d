//! Events for which the queue has no room any more, folded into what of them still matters.
//!
//! A consumer that was slow for long has to know two things of each neighbour: how its session stands now, and what has ended meanwhile. So
//! of any number of events of one neighbour these are kept, and delivered in this order:
//!
//! 1. The ends of its routes (End-of-RIB) in sessions that are over, and of the families that one of these did not speak, of which the neighbour has none: who waits
//!    for them after a restart waits no longer, although the session went. Without this, stale routes would stay until the restart time is over.
//! 2. The last end of a session. It is kept where another session has begun since: the consumer may know of the session before, and whoever
//!    heard of the new one alone would take what was sent in the former one for what was sent in this one.
//! 3. The beginning of the present session, if it was folded: not that of one that is over, of which its end says enough.
//! 4. The ends of its routes in the present session.
//!
//! Everything here is older than all that is in the queue. So an end of a session in the queue comes behind a beginning here, and the
//! consumer has heard both; nothing is merged across the two.
//!
//! Of what fails, the newest state of each subject is kept, and packets of BFD that were ignored are counted together. All else is for the
//! log alone, and is dropped. So the size is bounded by the number of neighbours that there were since the consumer was here last, and that
//! changes by its own orders.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::speaker::Fact;
use super::news::{Event, Subject};
use crate::bfd::sessions::Ignored;
use crate::kernel::Error;
use crate::net::{Family, PerFamily};

/// Folded events.
#[derive(Debug, Default)]
pub(super) struct Folded {
    sessions: BTreeMap<IpAddr, Session>,
    troubles: BTreeMap<Subject, Option<Error>>,
    ignored: BTreeMap<Ignored, u64>,
    /// Number of events that were folded, without those whose counts were added.
    count: u64,
}

/// State of a neighbour's session. The facts are as they came.
#[derive(Debug, Default)]
struct Session {
    complete_before: PerFamily<bool>,
    down: Option<Fact>,
    up: Option<Fact>,
    complete: PerFamily<bool>,
}

impl Folded {
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.ignored.is_empty()
    }

    /// Folds the event that follows all events folded before.
    pub fn add(&mut self, event: Event) {
        if let Event::Ignored(counts) = event {
            for (reason, count) in counts {
                *self.ignored.entry(reason).or_default() += count;
            }
            return;
        }
        self.count += 1;
        match event {
            Event::Fact(peer, fact @ Fact::Up(_)) => {
                let session = self.sessions.entry(peer).or_default();
                session.end();
                session.up = Some(fact);
            }
            Event::Fact(peer, fact @ Fact::Down { .. }) => {
                let session = self.sessions.entry(peer).or_default();
                session.end();
                session.down = Some(fact);
            }
            Event::Fact(peer, Fact::Complete(family)) => {
                *self.sessions.entry(peer).or_default().complete.of_mut(family) = true;
            }
            Event::Trouble(subject, error) => drop(self.troubles.insert(subject, error)),
            _ => {}
        }
    }

    /// Takes what is left of the events, and the number of those of which nothing is.
    pub fn take(&mut self) -> (Vec<Event>, u64) {
        let Folded { sessions, troubles, ignored, count } = std::mem::take(self);
        let mut events: Vec<Event> = sessions.into_iter().flat_map(|(peer, session)| session.events(peer)).collect();
        events.extend(troubles.into_iter().map(|(subject, error)| Event::Trouble(subject, error)));
        let lost = count.saturating_sub(events.len() as u64);
        if !ignored.is_empty() {
            events.push(Event::Ignored(ignored));
        }
        (events, lost)
    }
}

impl Session {
    /// Ends the present session.
    fn end(&mut self) {
        let complete = std::mem::take(&mut self.complete);
        let spoken = match self.up.take() {
            Some(Fact::Up(agreement)) => agreement.dialect.families,
            _ => PerFamily { v4: true, v6: true },
        };
        let has_ended = |family| *complete.of(family) || !*spoken.of(family);
        self.complete_before = PerFamily::from_fn(|family| *self.complete_before.of(family) || has_ended(family));
    }

    fn events(self, peer: IpAddr) -> impl Iterator<Item = Event> {
        let ends = |sent: PerFamily<bool>| {
            Family::BOTH.into_iter().filter(move |family| *sent.of(*family)).map(Fact::Complete)
        };
        let facts = ends(self.complete_before).chain(self.down).chain(self.up).chain(ends(self.complete));
        facts.map(move |fact| Event::Fact(peer, fact))
    }
}
