//! A neighbour as the speaker knows it: its settings, its machine, and how its session goes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::message::{Remark, Treatment};
use super::super::policy::Applicable;
use super::super::rib::{Kind, Parcel, PeerId, Source, View};
use super::super::session::{Agreement, Peer, Settings};
use super::super::transport::Transport;
use super::SEND_HOLD;
use crate::net::{Family, PerFamily};

/// A neighbour that is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub address: IpAddr,
    pub settings: Settings,
    /// The connections under its session.
    pub transport: Transport,
    /// We reflect routes to it and from it (RFC 4456).
    pub client: bool,
    /// Our addresses towards it.
    pub own: PerFamily<Option<IpAddr>>,
    /// Routes from outside get our next hop when it is inside.
    pub next_hop_self: bool,
    /// The paths of its routes have to begin with its own number when it is outside. Servers of routes do not put it there.
    pub first_as: bool,
    /// How many prefixes it may send; `None` for as many as it likes.
    pub most: PerFamily<Option<u32>>,
}

/// Messages of each kind, by the numbers of the kinds (RFC 4271 4.1).
pub type Messages = [u64; 6];

/// A neighbour.
#[derive(Debug)]
pub struct Neighbour {
    pub(super) id: PeerId,
    pub(super) wanted: Wanted,
    pub(super) peer: Peer,
    /// When it wants to be asked again, as it is noted by the speaker.
    pub(super) timer: Option<Instant>,
    /// When something of what we send was taken.
    progress: Instant,
    /// How many bytes have still to be taken.
    on_the_way: usize,
    /// The families of which it has said all it has.
    complete: PerFamily<bool>,
    sent: Messages,
    /// How often its session has ended.
    flops: u32,
    /// When its last session began, and when it ended.
    began: Option<Instant>,
    ended: Option<Instant>,
    /// What was wrong with its updates, and when that was last told. There are few: attributes and treatments have numbers.
    remarked: BTreeMap<(u8, Treatment), Instant>,
    /// Routes that did not fit since that was last told, and when that was.
    unfit: (u32, Option<Instant>),
}

/// How long the same is not told again.
const AGAIN: Duration = Duration::from_secs(60);

const UPDATE: usize = 2;

impl Neighbour {
    pub(super) fn new(id: PeerId, wanted: Wanted, peer: Peer, now: Instant) -> Neighbour {
        Neighbour {
            id,
            wanted,
            peer,
            timer: None,
            progress: now,
            on_the_way: 0,
            complete: PerFamily::default(),
            sent: [0; 6],
            flops: 0,
            began: None,
            ended: None,
            remarked: BTreeMap::new(),
            unfit: (0, None),
        }
    }

    /// The number under which its routes stand in the table.
    pub fn id(&self) -> PeerId {
        self.id
    }

    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Messages that were sent to it.
    pub fn sent(&self) -> Messages {
        self.sent
    }

    /// When its last session began; `None` when there was none yet.
    pub fn began(&self) -> Option<Instant> {
        self.began
    }

    /// When its last session ended; `None` while it stands, or when there was none yet.
    pub fn ended(&self) -> Option<Instant> {
        self.ended
    }

    /// How often its session has ended.
    pub fn flops(&self) -> u32 {
        self.flops
    }

    /// Takes other settings; true when they need a new session.
    pub(super) fn change(&mut self, wanted: Wanted) -> bool {
        let settings = &wanted.settings;
        let before = &self.wanted.settings;
        // What only says when we dial, or how much we take, needs none.
        let same = Settings { passive: before.passive, connect_retry: before.connect_retry, ..settings.clone() };
        let plain = Wanted { settings: same, most: self.wanted.most, ..wanted.clone() };
        let anew = plain != self.wanted;
        self.peer.change(wanted.settings.clone());
        self.wanted = wanted;
        anew
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
    }

    /// It has said all it has of a family; true the first time.
    pub(super) fn complete(&mut self, family: Family) -> bool {
        !std::mem::replace(self.complete.of_mut(family), true)
    }

    pub(super) fn most(&self, family: Family) -> Option<u32> {
        *self.wanted.most.of(family)
    }

    /// Counts a message that is sent: its kind stands at the end of its head.
    pub(super) fn has_sent(&mut self, message: &[u8]) {
        let kind = message.get(18).map_or(0, |kind| usize::from(*kind));
        if let Some(count) = self.sent.get_mut(kind) {
            *count += 1;
        }
    }

    /// Of what was wrong with an update that which was not told just now.
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

    /// UPDATEs go to it; how many routes did not fit into them, when that is to be told.
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

    /// It has taken something, and so much is left.
    pub(super) fn has_taken(&mut self, left: usize, now: Instant) {
        self.progress = now;
        self.on_the_way = left;
    }

    /// Whether the session carries a family.
    pub fn speaks(&self, family: Family) -> bool {
        self.peer.agreement().is_some_and(|agreement| *agreement.dialect.families.of(family))
    }

    /// What counts of it for the choice of routes, and what decides how routes look to it.
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
            next_hop_self: self.wanted.next_hop_self,
            statements: Applicable::default(),
        };
        (source, view)
    }

    /// It is wanted and has no session yet, nor has had one since we began.
    pub(super) fn is_missing(&self) -> bool {
        self.peer.session().is_none() && !self.peer.is_stopped() && self.ended.is_none()
    }

    /// It has a session and has still to say all it has of a family. Who does not take part in graceful restarts says no
    /// end, and who restarts itself waits for ours.
    pub(super) fn is_awaited(&self, family: Family) -> bool {
        let restart = self.peer.agreement().and_then(|agreement| agreement.restart);
        let ends = restart.is_some_and(|restart| !restart.restarting);
        ends && self.speaks(family) && !*self.complete.of(family)
    }

    /// Nothing of what we send is taken any more.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        self.stuck_at().is_some_and(|at| at <= now)
    }

    fn stuck_at(&self) -> Option<Instant> {
        let hold = self.peer.agreement().map_or(0, |agreement| u64::from(agreement.hold_time));
        let time = SEND_HOLD.max(Duration::from_secs(2 * hold));
        (self.on_the_way > 0 && self.peer.session().is_some()).then(|| self.progress + time)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.peer.deadline().into_iter().chain(self.stuck_at()).min()
    }
}
