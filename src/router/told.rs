//! State of logged neighbours and problems: each is logged once when it begins and once when it ends.

mod dialling;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::bgp::driver::{Event, Subject};
use crate::bgp::message::{Reason, Remark};
use crate::bgp::session::Cause;
use crate::bgp::speaker::{Fact, Liveness};
use crate::net::LinkNames;

use self::dialling::{Dialling, Line};
use super::problem::Problem;

/// Neighbours and problems that have been logged.
#[derive(Default)]
pub struct ReportedState {
    problems: BTreeSet<Problem>,
    /// Reasons why connections with a neighbour fail to become a session: each is logged once, until there is one. Both
    /// ends dial, so two reasons may alternate.
    failing: BTreeMap<IpAddr, BTreeSet<String>>,
    malformed: BTreeMap<IpAddr, MalformedUpdates>,
    dialling: Dialling,
    /// Names of the links of neighbours.
    pub links: LinkNames,
}

/// Malformed updates of a neighbour.
struct MalformedUpdates {
    said_at: Instant,
    /// Number of unlogged ones since.
    unsaid: u64,
}

/// Minimum interval of messages about one neighbour's malformed updates, and maximum number of errors of one update.
const MALFORMED_PAUSE: Duration = Duration::from_secs(60);
const MALFORMED_SHOWN: usize = 3;
/// Maximum number of remembered, and so logged, reasons of one neighbour.
const REASONS: usize = 8;

impl ReportedState {
    /// Logs new and resolved problems. Returns whether there were any.
    pub fn problems(&mut self, now: &BTreeSet<Problem>) -> bool {
        if self.problems == *now {
            return false;
        }
        for Problem { about, text } in now.difference(&self.problems) {
            warn!(%about, reason = text, "Router problem");
        }
        for Problem { about, text } in self.problems.difference(now) {
            info!(%about, reason = text, "Router problem resolved");
        }
        self.problems.clone_from(now);
        true
    }

    /// Forgets neighbours that were changed or removed: their messages are logged anew.
    pub fn forget<'a>(&mut self, peers: impl IntoIterator<Item = &'a IpAddr>) {
        for peer in peers {
            self.failing.remove(peer);
            self.malformed.remove(peer);
            self.dialling.ended(*peer);
        }
    }

    /// Logs an event of a neighbour.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Fact(peer, Fact::Failed(cause)) => self.failed(*peer, cause),
            Event::Fact(peer, Fact::Remarks(remarks)) => self.note_malformed(*peer, remarks),
            Event::Fact(peer, fact) => {
                if matches!(fact, Fact::Up(_)) {
                    self.failing.remove(peer);
                }
                say(&self.links.text(*peer), fact);
            }
            Event::Trouble(Subject::Dialling(peer), Some(error))
                if !self.dialling.failed(*peer, &error.to_string()) => {}
            Event::Trouble(Subject::Dialling(peer), None) if !self.dialling.ended(*peer) => {}
            Event::Trouble(subject, Some(error)) => {
                warn!(subject = self.subject(subject), %error, "BGP operation failed; retrying");
            }
            Event::Trouble(subject, None) => info!(subject = self.subject(subject), "BGP operation recovered"),
            Event::Refused(refused) => {
                for one in refused {
                    info!(from = self.links.text(one.from), because = ?one.because, times = one.times, "BGP connections refused");
                }
            }
            Event::Lost(events) => warn!(events, "BGP peer events dropped"),
            Event::Routes(_) | Event::Complete | Event::Ignored(_) => {}
        }
    }

    fn subject(&self, subject: &Subject) -> String {
        match subject {
            Subject::Dialling(peer) => format!("Dialling({})", self.links.text(*peer)),
            Subject::Password(peer) => format!("Password({})", self.links.text(*peer)),
            other => format!("{other:?}"),
        }
    }

    /// Logs how many unnamed neighbours cannot be connected to, when that has changed much.
    pub fn neighbours(&mut self, now: Instant) {
        match self.dialling.line(now) {
            Some(Line::Many { neighbours, example, error }) => {
                warn!(neighbours, %example, error, "BGP connections to more peers failed; retrying");
            }
            Some(Line::Over) => info!("BGP connections to peers recovered"),
            None => {}
        }
    }

    fn failed(&mut self, peer: IpAddr, cause: &Cause) {
        let reason = because(cause);
        // Both ends dial, and one of the two connections is closed: most sessions begin like that.
        if is_collision(cause) {
            debug!(%peer, reason, "BGP connection collision resolved");
            return;
        }
        let said = self.failing.entry(peer).or_default();
        if said.len() < REASONS && said.insert(reason.clone()) {
            let peer = self.links.text(peer);
            warn!(peer, reason, "BGP connection failed before the session was established; retrying");
        }
    }

    fn note_malformed(&mut self, peer: IpAddr, remarks: &[Remark]) {
        let now = Instant::now();
        let known = self.malformed.get_mut(&peer).filter(|known| now < known.said_at + MALFORMED_PAUSE);
        if let Some(known) = known {
            known.unsaid += 1;
            return;
        }
        let unsaid =
            self.malformed.insert(peer, MalformedUpdates { said_at: now, unsaid: 0 }).map_or(0, |before| before.unsaid);
        let shown = remarks.get(..MALFORMED_SHOWN).unwrap_or(remarks);
        let peer = self.links.text(peer);
        warn!(peer, remarks = ?shown, more_since_the_last = unsaid, "Malformed UPDATE from a BGP peer");
    }
}

/// Logs facts that need no memory.
fn say(peer: &str, fact: &Fact) {
    match fact {
        Fact::Up(agreement) => info!(
            peer,
            asn = agreement.open.asn,
            ipv4 = agreement.dialect.families.v4,
            ipv6 = agreement.dialect.families.v6,
            hold_time = agreement.hold_time,
            graceful_restart = agreement.restart.is_some(),
            "BGP session is up"
        ),
        Fact::Down { kept, cause } => {
            warn!(peer, reason = because(cause), kept_ipv4 = kept.v4, kept_ipv6 = kept.v6, "BGP session is down");
        }
        Fact::LongLived(kept) => {
            warn!(
                peer,
                kept_ipv4 = kept.v4,
                kept_ipv6 = kept.v6,
                "BGP peer has not come back within its restart time; its routes are kept as the last resort"
            );
        }
        Fact::Failed(_) | Fact::Remarks(_) => {}
        Fact::TooMany { family, most } => {
            warn!(peer, %family, most, "BGP prefix limit exceeded; session closed");
        }
        Fact::TooLong { most } => {
            warn!(peer, bytes = most, "BGP path attribute memory limit exceeded; session closed");
        }
        Fact::Unfit(routes) => {
            warn!(peer, routes, "Routes not advertised to a BGP peer: attributes exceed the message size");
        }
        Fact::PathUp => info!(peer, "BFD session is up"),
        Fact::PathFailed(status) => {
            warn!(peer, reason = %status.diagnostic, said = %status.remote_diagnostic, "BFD session is down: the path has failed");
        }
        Fact::PathShut => info!(peer, "BFD session is down: the peer has shut it down; the BGP session goes on"),
        Fact::PathMissing(Liveness { path, wanted }) => {
            warn!(
                peer,
                ?path,
                port = wanted.port,
                "BFD session has not come up for a minute: the peer must have BFD of the same kind"
            );
        }
        Fact::PathOutlived(status) => {
            info!(peer, reason = %status.diagnostic, "BFD session is down: it was with an earlier process of the peer; what BGP keeps of it stays");
        }
        Fact::Complete(family) => debug!(peer, %family, "End-of-RIB received"),
    }
}

fn is_collision(cause: &Cause) -> bool {
    matches!(cause, Cause::Sent(said) | Cause::Received(said) if said.reason == Reason::COLLISION)
}

/// Returns why a connection ended, as the end of a sentence.
pub(super) fn because(cause: &Cause) -> String {
    match cause {
        Cause::Closed => "the connection was closed".to_owned(),
        Cause::Received(said) => {
            let meant = match said.reason {
                Reason::BAD_PEER_AS => " (it expects another AS number of us)",
                Reason::BAD_IDENTIFIER => " (it does not take our BGP identifier: its own may be the same)",
                _ => "",
            };
            format!("it said {said}{meant}")
        }
        Cause::Sent(said) => {
            let meant = match said.reason {
                Reason::BAD_PEER_AS => " (it has another AS number than is configured for it)",
                Reason::BAD_IDENTIFIER => " (its BGP identifier is ours: give one of us another one by --router-id)",
                _ => "",
            };
            format!("we said {said}{meant}")
        }
        Cause::Replaced => "it has restarted".to_owned(),
    }
}
