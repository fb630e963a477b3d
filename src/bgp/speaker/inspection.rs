//! Neighbours and routes for who asks, in portions: between two of them the speaker goes on with its work.
//!
//! An answer holds values alone and is formatted elsewhere. It is no consistent snapshot of the table, but each of its prefixes is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::super::message::Reason;
use super::super::rib::{Count, PeerId, PrefixState};
use super::super::session::{Cause, Moment, State};
use super::neighbour::Failure;
use super::{Neighbour, Speaker};
use crate::bfd;
use crate::net::{Family, LinkNames, PerFamily};

/// A neighbour and its session.
#[derive(Clone, PartialEq, Debug)]
pub struct NeighbourState {
    pub address: IpAddr,
    /// The address for texts.
    pub name: String,
    pub id: PeerId,
    /// AS number: the one of its OPEN while there is a session, else the configured one; `None` where any is accepted.
    pub asn: Option<u32>,
    pub is_internal: bool,
    /// Route reflector client.
    pub is_client: bool,
    /// Its connections are signed with a password (RFC 2385).
    pub has_password: bool,
    pub state: State,
    /// Since the session began, or ended, or the neighbour was added.
    pub since: Duration,
    /// It has had a session.
    pub has_been_up: bool,
    /// Number of ended sessions.
    pub flops: u32,
    /// Address families of the session, or the configured ones.
    pub families: PerFamily<bool>,
    pub counts: PerFamily<Count>,
    /// Address families whose routes are retained over its restart.
    pub stale: PerFamily<bool>,
    /// Those of them that are kept as the last resort (RFC 9494).
    pub long_lived: PerFamily<bool>,
    /// Everything has been sent to it.
    pub is_told: bool,
    pub idle: Option<Idle>,
    /// Time until the next dial; `None` where none is scheduled.
    pub next_dial: Option<Duration>,
    /// Only the neighbour dials.
    pub is_passive: bool,
    /// Last failure of a dial or a connection, and the time since.
    pub last_failure: Option<(FailureCause, Duration)>,
    pub path: Option<PathStatus>,
}

/// Reason for which a neighbour is neither dialled nor accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Stopped by an operator, or not started.
    Stopped,
    /// BFD has found that the path has failed; at the latest after this time a session may be made again.
    PathFailed(Duration),
    /// It sent something malformed, or too much; for this time.
    Refused(Duration),
}

/// Reason for which a dial, a connection or a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FailureCause {
    /// The connection could not be made: the system's answer.
    Dial(Box<str>),
    Ended(Cause),
}

/// The BFD session over the path to a neighbour.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PathStatus {
    /// `None` before its first change.
    pub status: Option<bfd::Status>,
    /// Time since the last failure.
    pub failed: Option<Duration>,
}

/// The speaker besides its neighbours and routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpeakerState {
    pub asn: u32,
    pub identifier: Ipv4Addr,
    /// Nothing is advertised before all routes are known (RFC 4724 4.1).
    pub is_restarting: bool,
    pub prefixes: usize,
    pub groups: usize,
}

/// Selection of prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrefixQuery {
    All,
    /// Those that contain an address, the longest first.
    Around(IpAddr),
    /// A prefix, and those inside of it.
    Inside(IpNet),
}

/// Some of the selected prefixes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Portion {
    pub prefixes: Vec<IpNet>,
    /// Where the next portion begins; `None` at the end.
    pub next: Option<Position>,
}

/// A place in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    family: Family,
    after: Option<IpNet>,
}

impl Speaker {
    /// The speaker itself.
    pub fn state(&self) -> SpeakerState {
        let own = self.rib.own();
        SpeakerState {
            asn: own.asn,
            identifier: own.identifier,
            is_restarting: self.is_restarting(),
            prefixes: self.rib.table().len(),
            groups: self.rib.groups(),
        }
    }

    /// The next neighbours by address, `most` of them.
    pub fn neighbour_states(&self, after: Option<IpAddr>, most: usize, now: Instant) -> Vec<NeighbourState> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.neighbours.range((from, Bound::Unbounded)).filter(|(_, one)| one.is_shown()).take(most);
        next.map(|(_, neighbour)| self.neighbour_state(neighbour, now)).collect()
    }

    /// Names of the links of neighbours behind interfaces.
    pub fn link_names(&self) -> LinkNames {
        let on_links = self.neighbours.values().filter(|neighbour| neighbour.wanted.transport.link.is_some());
        LinkNames(on_links.flat_map(|neighbour| neighbour.wanted.link_names().0).collect())
    }

    fn neighbour_state(&self, neighbour: &Neighbour, now: Instant) -> NeighbourState {
        let (wanted, peer) = (&neighbour.wanted, &neighbour.peer);
        let settings = &wanted.settings;
        let agreement = peer.agreement();
        let ago = |at: Instant| now.saturating_duration_since(at);
        let until = |at: Instant| at.saturating_duration_since(now);
        let asn = agreement.map(|agreement| agreement.open.asn).or(settings.asn);
        let began = neighbour.began().filter(|_| peer.session().is_some());
        let idle = peer.idle().map(|until_then| match until_then {
            None => Idle::Stopped,
            Some(at) if neighbour.path.is_holding => Idle::PathFailed(until(at)),
            Some(at) => Idle::Refused(until(at)),
        });
        NeighbourState {
            address: wanted.address,
            name: wanted.name(),
            id: neighbour.id,
            asn,
            is_internal: asn == Some(settings.local.asn),
            is_client: wanted.client,
            has_password: wanted.transport.password.is_some(),
            state: peer.state(),
            since: ago(began.unwrap_or_else(|| neighbour.silent_since())),
            has_been_up: neighbour.began().is_some(),
            flops: neighbour.flops(),
            families: agreement.map_or(settings.families, |agreement| agreement.dialect.families),
            counts: self.rib.table().count(neighbour.id),
            stale: peer.stale(),
            long_lived: peer.long_lived(),
            is_told: self.rib.is_told(neighbour.id),
            idle,
            next_dial: peer.next_dial().map(until),
            is_passive: settings.passive,
            last_failure: neighbour.failure.as_ref().map(|Failure { cause, at }| (cause.clone(), ago(*at))),
            path: wanted
                .liveness
                .map(|_| PathStatus { status: neighbour.path(), failed: neighbour.path.failed_at.map(ago) }),
        }
    }

    /// Records why the neighbour could not be dialled, in the words of the system.
    pub fn note_failed_dial(&mut self, address: IpAddr, error: &str, now: Instant) {
        if let Some(neighbour) = self.neighbours.get_mut(&address) {
            neighbour.failure = Some(Failure { cause: FailureCause::Dial(error.into()), at: now });
        }
    }

    /// Records why a connection or a session of the neighbour ended. A collision is how most sessions begin.
    pub(super) fn note_end(&mut self, at: Moment, address: IpAddr, cause: &Cause) {
        let is_collision =
            matches!(cause, Cause::Sent(said) | Cause::Received(said) if said.reason == Reason::COLLISION);
        if let Some(neighbour) = self.neighbours.get_mut(&address).filter(|_| !is_collision) {
            neighbour.failure = Some(Failure { cause: FailureCause::Ended(cause.clone()), at: at.now });
        }
    }

    /// The next selected prefixes, `most` of them, from the beginning where there is no `from`.
    pub fn portion(&self, selected: PrefixQuery, from: Option<Position>, most: usize) -> Portion {
        let table = self.rib.table();
        match selected {
            PrefixQuery::All => {
                let Position { family, after } = from.unwrap_or(Position { family: Family::V4, after: None });
                let prefixes: Vec<IpNet> = table.walk(family, after).take(most).map(|(prefix, _)| prefix).collect();
                let next = match (prefixes.len() < most, family) {
                    (false, _) => Some(Position { family, after: prefixes.last().copied() }),
                    (true, Family::V4) => Some(Position { family: Family::V6, after: None }),
                    (true, Family::V6) => None,
                };
                Portion { prefixes, next }
            }
            PrefixQuery::Around(address) => {
                let lengths = (0..=Family::from(address).host_bits()).rev();
                let around = lengths.filter_map(|length| Some(IpNet::new(address, length).ok()?.trunc()));
                let is_known = |prefix: &IpNet| !table.paths(*prefix).is_empty();
                Portion { prefixes: around.filter(is_known).take(most).collect(), next: None }
            }
            PrefixQuery::Inside(outer) => {
                let (family, after) = (Family::from(outer), from.and_then(|from| from.after));
                let itself = (after.is_none() && !table.paths(outer).is_empty()).then_some(outer);
                let behind = table.walk(family, Some(after.unwrap_or(outer))).map(|(prefix, _)| prefix);
                let inside = behind.take_while(|prefix| outer.contains(prefix));
                let prefixes: Vec<IpNet> = itself.into_iter().chain(inside).take(most).collect();
                let is_over = prefixes.len() < most;
                let next = (!is_over).then(|| Position { family, after: prefixes.last().copied() });
                Portion { prefixes, next }
            }
        }
    }

    /// The routes to some prefixes, `most` to each, and where `told` to whom they are advertised.
    pub fn prefix_states(&mut self, prefixes: &[IpNet], most: usize, told: bool) -> Vec<PrefixState> {
        prefixes.iter().map(|prefix| self.rib.state(*prefix, most, told)).collect()
    }

    /// Number of routes to some prefixes that are advertised to each neighbour with a session.
    pub fn announced(&mut self, prefixes: &[IpNet]) -> BTreeMap<PeerId, PerFamily<u32>> {
        self.rib.announced(prefixes)
    }

    /// Addresses of the neighbours by the identifiers of their routes.
    pub fn addresses(&self, ids: impl IntoIterator<Item = PeerId>) -> BTreeMap<PeerId, IpAddr> {
        ids.into_iter().filter_map(|id| Some((id, *self.addresses.get(&id)?))).collect()
    }
}
