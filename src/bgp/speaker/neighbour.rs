//! A neighbour in the speaker: its settings, its state machine, and the progress of its session.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::message::{Notification, Reason, Remark, Treatment};
use super::super::policy::Applicable;
use super::super::rib::{Kind, NextHops, Parcel, PeerId, Source, View};
use super::super::session::{Agreement, Event, Peer, Settings};
use super::super::transport::Transport;
use super::SEND_HOLD;
use super::again::Refreshes;
use super::changed::Summary;
use super::inspection::FailureCause;
use super::liveness::{Liveness, PathState};
use crate::bfd;
use crate::net::{Family, LinkLocal, LinkNames, PerFamily};

/// Configured neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedNeighbour {
    pub address: IpAddr,
    pub settings: Settings,
    /// A session with it is expected as long as both ends run. One that is not expected dials by itself if at all: after a start nobody waits for it, and
    /// BFD watches the path to it only where there is something to watch ([`Neighbour::is_watched`]).
    pub expected: bool,
    /// TCP connection under its session.
    pub transport: Transport,
    /// Route reflector client (RFC 4456).
    pub client: bool,
    /// Local addresses towards the neighbour.
    pub own: PerFamily<Option<IpAddr>>,
    pub next_hops: NextHops,
    /// Enforce-first-AS: AS paths of an EBGP neighbour have to begin with its own AS number. Route servers do not
    /// prepend it.
    pub first_as: bool,
    /// Prefix limits; `None` for no limit.
    pub most: PerFamily<Option<u32>>,
    /// BFD session; it needs the transport's local address.
    pub liveness: Option<Liveness>,
}

/// Message counters by type code (RFC 4271 4.1).
pub type Messages = [u64; 6];

/// Neighbour.
#[derive(Debug)]
pub struct Neighbour {
    pub(super) id: PeerId,
    /// Shared with the plan of its owner: there may be thousands of neighbours.
    pub(super) wanted: Arc<WantedNeighbour>,
    pub(super) peer: Peer,
    /// Its deadline, as the speaker has recorded it.
    pub(super) timer: Option<Instant>,
    /// Its summary, as the speaker has recorded it.
    pub(super) noted: Option<Summary>,
    /// Last time that its socket accepted output.
    progress: Instant,
    /// Number of bytes that its socket has still to accept.
    on_the_way: usize,
    /// Address families whose End-of-RIB is received.
    complete: PerFamily<bool>,
    sent: Messages,
    /// Number of ended sessions.
    flops: u32,
    /// Beginning and end of the last session.
    began: Option<Instant>,
    ended: Option<Instant>,
    /// Errors in its UPDATEs, with the time of the last report. There are few: type codes and treatments are
    /// enumerable.
    remarked: BTreeMap<(u8, Treatment), Instant>,
    /// Routes that did not fit since the last report, and the time of that report.
    unfit: (u32, Option<Instant>),
    pub(super) path: PathState,
    pub(super) refreshes: PerFamily<Refreshes>,
    /// Last end of a connection or a session, or failure to dial.
    pub(super) failure: Option<Failure>,
}

/// End of a connection or a session, or a failure to dial.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub cause: FailureCause,
    pub at: Instant,
}

/// Minimum time between reports of the same fact.
const AGAIN: Duration = Duration::from_secs(60);

const UPDATE: usize = 2;

impl WantedNeighbour {
    /// Its address for texts: `192.0.2.1`, or `fe80::1%eth1` of one behind an interface.
    pub fn name(&self) -> String {
        self.link_names().text(self.address)
    }

    /// The name of its link.
    pub fn link_names(&self) -> LinkNames {
        let link = LinkLocal::within(self.address).map(LinkLocal::link);
        LinkNames(link.zip(self.transport.link.clone()).into_iter().collect())
    }
}

impl Neighbour {
    pub(super) fn new(id: PeerId, wanted: Arc<WantedNeighbour>, peer: Peer, now: Instant) -> Neighbour {
        Neighbour {
            id,
            wanted,
            peer,
            timer: None,
            noted: None,
            progress: now,
            on_the_way: 0,
            complete: PerFamily::default(),
            sent: [0; 6],
            flops: 0,
            began: None,
            ended: None,
            remarked: BTreeMap::new(),
            unfit: (0, None),
            path: PathState::default(),
            refreshes: PerFamily::default(),
            failure: None,
        }
    }

    /// Identifier of its routes in the table.
    pub fn id(&self) -> PeerId {
        self.id
    }

    pub fn wanted(&self) -> &WantedNeighbour {
        &self.wanted
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Messages sent to it.
    pub fn sent(&self) -> Messages {
        self.sent
    }

    /// Beginning of its last session; `None` when there was none yet.
    pub fn began(&self) -> Option<Instant> {
        self.began
    }

    /// End of its last session; `None` while a session is established, or when there was none yet.
    pub fn ended(&self) -> Option<Instant> {
        self.ended
    }

    /// End of its last session, or the time at which it was added, while it has none.
    pub(super) fn silent_since(&self) -> Instant {
        self.ended.unwrap_or(self.progress)
    }

    /// Status of the BFD session; `None` without one, or before its first change.
    pub fn path(&self) -> Option<bfd::Status> {
        self.path.status
    }

    /// Number of ended sessions.
    pub fn flops(&self) -> u32 {
        self.flops
    }

    /// Changes its settings; returns what they require to begin anew: a session, or all that is known of the neighbour, where it is another one.
    pub(super) fn change(&mut self, wanted: Arc<WantedNeighbour>) -> Option<Event> {
        let settings = &wanted.settings;
        let before = &self.wanted.settings;
        // Settings of dials and limits require none, and neither does a password: the key of a connection can change.
        let same = Settings {
            passive: before.passive,
            connect_retry: before.connect_retry,
            mutual: before.mutual,
            ..settings.clone()
        };
        let before = &self.wanted;
        let transport = Transport { password: before.transport.password.clone(), ..wanted.transport.clone() };
        // Where the session has its own address still, it is told of other ones as next hops ([`Neighbour::own_after`]).
        let (most, liveness, own) = (before.most, before.liveness, before.own);
        let (expected, settings) = (before.expected, same);
        let plain =
            WantedNeighbour { settings, expected, transport, most, liveness, own, ..WantedNeighbour::clone(&wanted) };
        let (ours, theirs) = (before.settings.local.asn, before.settings.asn);
        let is_same_peer = (wanted.settings.local.asn, wanted.settings.asn) == (ours, theirs);
        let notification = Notification::new(Reason::CONFIGURATION_CHANGE);
        let begin = if is_same_peer { Event::Renew } else { Event::Restart };
        let anew = (plain != *self.wanted).then_some(begin(notification));
        // What is known of one session of BFD says nothing about another one.
        let watched = |wanted: &WantedNeighbour| Some((wanted.liveness?.path, wanted.transport.local));
        if wanted.liveness.is_none() || watched(&wanted) != watched(&self.wanted) {
            self.path = PathState::default();
        }
        self.peer.change(wanted.settings.clone());
        self.wanted = wanted;
        anew
    }

    /// Returns our addresses towards the neighbour with a session, as it is sent them, where they are others than before.
    pub(super) fn own_after(&self, before: PerFamily<Option<IpAddr>>) -> Option<PerFamily<Option<IpAddr>>> {
        let (_, view) = self.looks(self.peer.agreement().filter(|_| self.wanted.own != before)?);
        Some(view.own)
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.complete = PerFamily::default();
        self.progress = now;
        self.on_the_way = 0;
        self.began = Some(now);
        self.ended = None;
    }

    pub(super) fn end(&mut self, now: Instant) {
        self.flops = self.flops.saturating_add(1);
        self.ended = Some(now);
        self.on_the_way = 0;
        self.forget_requests();
    }

    /// Records the End-of-RIB of an address family; returns whether it is the first.
    pub(super) fn complete(&mut self, family: Family) -> bool {
        !std::mem::replace(self.complete.of_mut(family), true)
    }

    /// Returns whether the End-of-RIB of an address family has come in its session.
    pub(super) fn is_complete(&self, family: Family) -> bool {
        *self.complete.of(family)
    }

    pub(super) fn most(&self, family: Family) -> Option<u32> {
        *self.wanted.most.of(family)
    }

    /// Counts a sent message: its type is the last octet of the header.
    pub(super) fn has_sent(&mut self, message: &[u8]) {
        let kind = message.get(18).map_or(0, |kind| usize::from(*kind));
        if let Some(count) = self.sent.get_mut(kind) {
            *count += 1;
        }
    }

    /// Returns the errors in an UPDATE that were not reported recently.
    pub(super) fn news_of(&mut self, remarks: &[Remark], now: Instant) -> Vec<Remark> {
        let mut news = Vec::new();
        for remark in remarks {
            let told = self.remarked.get(&(remark.attribute, remark.treatment));
            if told.is_none_or(|told| now.saturating_duration_since(*told) >= AGAIN) {
                self.remarked.insert((remark.attribute, remark.treatment), now);
                news.push(*remark);
            }
        }
        news
    }

    /// Counts sent UPDATEs; returns the number of routes that did not fit, when that is due to be reported.
    pub(super) fn has_sent_updates(&mut self, parcel: &Parcel, now: Instant) -> Option<u32> {
        if let Some(count) = self.sent.get_mut(UPDATE) {
            *count += u64::from(parcel.messages);
        }
        if self.on_the_way == 0 {
            self.progress = now;
        }
        self.on_the_way += parcel.bytes.len();
        let (count, told) = &mut self.unfit;
        *count = count.saturating_add(parcel.unfit);
        let due = *count > 0 && told.is_none_or(|told| now.saturating_duration_since(told) >= AGAIN);
        due.then(|| {
            *told = Some(now);
            std::mem::take(count)
        })
    }

    /// Records that its socket has accepted output, and how much is left.
    pub(super) fn has_taken(&mut self, left: usize, now: Instant) {
        self.progress = now;
        self.on_the_way = left;
    }

    /// Returns whether the session carries an address family.
    pub fn speaks(&self, family: Family) -> bool {
        self.peer.agreement().is_some_and(|agreement| *agreement.dialect.families.of(family))
    }

    /// Its properties as a source of routes, and its view for export.
    pub(super) fn looks(&self, agreement: &Agreement) -> (Source, View) {
        let kind = match (agreement.dialect.internal, self.wanted.client) {
            (false, _) => Kind::External,
            (true, false) => Kind::Internal,
            (true, true) => Kind::Client,
        };
        let mut own = self.wanted.own;
        if agreement.dialect.extended_next_hop {
            own.v4 = own.v4.or(own.v6);
        }
        let open = &agreement.open;
        let first = (kind == Kind::External && self.wanted.first_as).then_some(open.asn);
        let source = Source { kind, identifier: open.identifier, address: self.wanted.address, first };
        let view = View {
            kind,
            dialect: agreement.dialect,
            own,
            next_hops: self.wanted.next_hops,
            // Without graceful restart it counts for nothing (RFC 9494 4.5).
            knows_long_lived: open.capabilities.restart.and(open.capabilities.long_lived).is_some(),
            statements: Applicable::default(),
        };
        (source, view)
    }

    /// Returns whether it is expected and has had no session since our start.
    pub(super) fn is_missing(&self) -> bool {
        self.wanted.expected && self.peer.session().is_none() && !self.peer.is_stopped() && self.ended.is_none()
    }

    /// Returns whether it is shown among the neighbours: it is expected to have a session, or has one.
    pub fn is_shown(&self) -> bool {
        self.wanted.expected || self.peer.session().is_some()
    }

    /// Returns whether BFD watches the path to it, where that is wanted: it is expected to have a session, has one, its routes are retained, or the path
    /// keeps it from having one.
    pub fn is_watched(&self) -> bool {
        self.wanted.expected || self.peer.is_kept() || self.path.is_holding
    }

    /// Returns whether it is told to clients of the GoBGP API: it is expected to have a session, has had one, or was stopped.
    pub fn is_known(&self) -> bool {
        self.wanted.expected || self.began.is_some() || self.peer.is_stopped()
    }

    /// Returns whether it is expected, has a session and its End-of-RIB of an address family is awaited. A neighbour without
    /// graceful restart sends none, and one that restarts itself waits for ours.
    pub(super) fn is_awaited(&self, family: Family) -> bool {
        let restart = self.peer.agreement().and_then(|agreement| agreement.restart);
        let ends = restart.is_some_and(|restart| !restart.restarting);
        self.wanted.expected && ends && self.speaks(family) && !*self.complete.of(family)
    }

    /// Returns whether the send hold timer has expired.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        self.stuck_at().is_some_and(|at| at <= now)
    }

    fn stuck_at(&self) -> Option<Instant> {
        let hold = self.peer.agreement().map_or(0, |agreement| u64::from(agreement.hold_time));
        let time = SEND_HOLD.max(Duration::from_secs(2 * hold));
        (self.on_the_way > 0 && self.peer.session().is_some()).then(|| self.progress + time)
    }

    /// Time from which on a tick does something.
    pub(super) fn ready(&self) -> Option<Instant> {
        self.peer.ready().into_iter().chain(self.other_deadlines()).min()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.peer.deadline().into_iter().chain(self.other_deadlines()).min()
    }

    fn other_deadlines(&self) -> impl Iterator<Item = Instant> {
        self.stuck_at().into_iter().chain(self.path.deadlines()).chain(self.owed_at())
    }
}
