//! Advertisement to the neighbours: Adj-RIB-Out, without storing it.
//!
//! RFC 4271 9.2. Neighbours with the same [`View`] form an update group. A change is rendered and encoded once for a
//! group, and the same bytes go to all its members; only the source of a route is left out. The earlier Adj-RIB-Out
//! follows from the previous best route, so that nothing is stored for each prefix and neighbour.
//!
//! A member that is new, or that reads more slowly than routes change, is *behind*: it has its own position in a walk
//! over the table and its own list of prefixes changed since. It is sent the newest state of each when there is room,
//! and rejoins the others when the list is empty. So its backlog is never longer than the table, however slow it is.
//! After a restart of ours the walks begin when all neighbours have sent their routes (RFC 4724 4.1). Our own routes are sent at once, ahead of them (`ahead`).

mod advertisement;
mod ahead;
mod portion;
mod stretch;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ipnet::IpNet;

use super::super::message::{self, Dialect, Packing, Refresh, RefreshKind};
use super::super::policy::{ChangedPolicy, Difference, Policy};
use super::bounds::Bounds;
use super::export::{Own, Renderer, Shown, View};
use super::intern::{Interned, Seed};
use super::table::{Best, PeerId, Table};
use crate::net::{Family, PerFamily};

pub use advertisement::Advertisement;
use ahead::Ahead;
use portion::Portion;
use stretch::{Stretches, Whole};

/// Target size of the pieces in which messages are handed over.
const PIECE: usize = 64 << 10;

/// Complete messages for one neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parcel {
    pub to: PeerId,
    pub bytes: Arc<[u8]>,
    pub messages: u32,
    /// Number of routes not advertised, because their attributes do not fit into a message to the neighbour.
    pub unfit: u32,
}

/// All update groups.
#[derive(Debug)]
pub(super) struct Exports {
    own: Own,
    bounds: Bounds,
    policy: Arc<Policy>,
    groups: BTreeMap<View, Members>,
    /// Address families that are not advertised yet: we have restarted and do not know all routes.
    held: PerFamily<bool>,
    ahead: Ahead,
    parcels: Vec<Parcel>,
    /// Some member may be behind.
    behind: bool,
}

type Members = BTreeMap<PeerId, Member>;

/// Member of a group.
#[derive(Debug, Default)]
struct Member {
    /// Bytes that its socket has not accepted yet.
    on_the_way: usize,
    behind: Option<Behind>,
}

/// Backlog of a member.
#[derive(Debug, Default)]
struct Behind {
    /// Changed prefixes, and whether the member may have a route to them: without those that it has none to, and that are gone again.
    changed: BTreeMap<IpNet, bool>,
    walk: PerFamily<Option<Walk>>,
    /// Address families that were held back when it joined: it is sent our own routes ahead of the walk.
    ahead: PerFamily<bool>,
}

/// Position in the table.
#[derive(Clone, Copy, Debug)]
struct Walk {
    after: Option<IpNet>,
    /// Answer to a route refresh: the member may already have the routes that follow.
    again: bool,
    /// Beginning and end are marked with BoRR and EoRR (RFC 7313), in place of End-of-RIB.
    marked: bool,
}

/// Change of a route as members of a group see it.
struct Change {
    prefix: IpNet,
    old: Option<Shown>,
    new: Option<Shown>,
}

/// Members with the same dialect.
struct Receivers<'a> {
    dialect: Dialect,
    room: usize,
    members: &'a mut Members,
    ahead: &'a Ahead,
}

/// Bytes for all members but one.
struct Piece {
    except: PeerId,
    bytes: Arc<[u8]>,
    messages: u32,
    unfit: u32,
}

impl Exports {
    pub fn new(own: Own, bounds: Bounds, policy: Arc<Policy>, held: PerFamily<bool>) -> Exports {
        let (groups, ahead, parcels) = (BTreeMap::new(), Ahead::default(), Vec::new());
        Exports { own, bounds, policy, groups, held, ahead, parcels, behind: false }
    }

    /// Adds a neighbour with an established session, which is sent all routes: our own ones at once, and those that are held back later.
    pub fn add(&mut self, peer: PeerId, view: View, table: &Table) {
        let walk = Walk { after: None, again: false, marked: false };
        let walk = PerFamily::from_fn(|family| view.dialect.families.of(family).then_some(walk));
        let ahead = PerFamily::from_fn(|family| walk.of(family).is_some() && *self.held.of(family));
        let behind = Behind { changed: self.ahead.first(ahead, table), walk, ahead };
        self.behind = true;
        let member = Member { on_the_way: 0, behind: Some(behind) };
        self.groups.entry(view).or_default().insert(peer, member);
    }

    pub fn remove(&mut self, peer: PeerId) {
        self.take(peer);
    }

    /// Sends all routes to a neighbour again. `marked`: it supports BoRR and EoRR.
    ///
    /// A walk in progress starts over, and ends as it was to end: the initial one with End-of-RIB, which every peer is
    /// owed; a neighbour that requests more often than it reads is sent one BoRR only.
    pub fn refresh(&mut self, peer: PeerId, family: Family, marked: bool) {
        let Some(member) = self.groups.values_mut().find_map(|members| members.get_mut(&peer)) else { return };
        self.behind = true;
        let behind = member.behind.get_or_insert_default();
        match behind.walk.of_mut(family) {
            // Nothing of the walk has been sent yet.
            Some(Walk { after: None, again, .. }) => {
                if *behind.ahead.of(family) && !*again {
                    behind.changed.extend(self.ahead.again(family));
                }
            }
            Some(walk) => (walk.after, walk.again) = (None, true),
            none => {
                *none = Some(Walk { after: None, again: true, marked });
                if marked {
                    let bytes = message::refresh(&Refresh { family, kind: RefreshKind::Begin }).into();
                    let begin = Piece { except: PeerId::LOCAL, bytes, messages: 1, unfit: 0 };
                    send(peer, member, &begin, &mut self.parcels);
                }
            }
        }
    }

    /// Counts bytes that a neighbour's socket has accepted.
    pub fn taken(&mut self, peer: PeerId, bytes: usize) {
        if let Some(member) = self.groups.values_mut().find_map(|members| members.get_mut(&peer)) {
            member.on_the_way = member.on_the_way.saturating_sub(bytes);
        }
    }

    /// Number of bytes that a neighbour's socket has still to accept.
    pub fn on_the_way(&self, peer: PeerId) -> usize {
        self.groups.values().find_map(|members| members.get(&peer)).map_or(0, |member| member.on_the_way)
    }

    /// Begins to advertise address families that were held back.
    pub fn release(&mut self, families: PerFamily<bool>) {
        self.held = PerFamily::from_fn(|family| *self.held.of(family) && !*families.of(family));
    }

    /// Advertises changes of the best routes to these prefixes.
    pub fn changed(&mut self, table: &Table, dirty: &BTreeMap<IpNet, Option<Best>>, interned: &mut Interned) {
        self.ahead.note(dirty.keys(), self.held, table);
        for (view, members) in &mut self.groups {
            let mut renderer = Renderer::new(self.own, view, &self.policy, table);
            let mut changes = Vec::new();
            for (prefix, before) in dirty {
                let old = renderer.shown(*prefix, before.as_ref(), interned);
                let new = renderer.shown(*prefix, table.best(*prefix).as_ref(), interned);
                if old != new {
                    changes.push(Change { prefix: *prefix, old, new });
                }
            }
            let to = Receivers { dialect: view.dialect, room: self.bounds.room, members, ahead: &self.ahead };
            self.behind |= deliver(to, changes, &mut self.parcels);
        }
    }

    /// Sends to members that are behind as much as there is room for, and hands over all pending output.
    pub fn finish(&mut self, table: &Table, interned: &mut Interned) -> Vec<Parcel> {
        if !std::mem::take(&mut self.behind) {
            return std::mem::take(&mut self.parcels);
        }
        for (view, members) in &mut self.groups {
            let mut renderer = Renderer::new(self.own, view, &self.policy, table);
            let mut stretches = Stretches::new(view, table, &self.ahead, self.bounds.portion);
            for (peer, member) in members.iter_mut().filter(|(_, member)| member.behind.is_some()) {
                while member.on_the_way < self.bounds.room
                    && let Some(behind) = &mut member.behind
                {
                    let portion = behind.portion(&mut stretches, self.held, self.bounds.portion);
                    let Some(portion) = portion else {
                        // All that was queued went again.
                        member.behind.take_if(|behind| behind.is_over());
                        break;
                    };
                    let piece = portion.written(*peer, &mut renderer, interned);
                    if piece.messages > 0 {
                        send(*peer, member, &piece, &mut self.parcels);
                    }
                    if member.behind.as_ref().is_some_and(Behind::is_over) {
                        member.behind = None;
                    }
                }
                self.behind |= member.behind.is_some();
            }
        }
        if !self.behind && self.held == PerFamily::default() {
            self.ahead.end();
        }
        std::mem::take(&mut self.parcels)
    }

    /// Applies changed views or a changed policy: all neighbours are sent the difference. No prefix of the table may be
    /// dirty. Views that stay the same are sent the difference of the policies alone.
    pub fn change_views(
        &mut self,
        ChangedPolicy { policy, difference }: ChangedPolicy,
        view_of: impl Fn(PeerId, &View) -> View,
        table: &Table,
        interned: &mut Interned,
    ) {
        let mut moved: BTreeMap<(View, View), Members> = BTreeMap::new();
        for (old, members) in std::mem::take(&mut self.groups) {
            for (peer, member) in members {
                moved.entry((old.clone(), view_of(peer, &old))).or_default().insert(peer, member);
            }
        }
        for ((old_view, new_view), mut members) in moved {
            let (dialect, room) = (new_view.dialect, self.bounds.room);
            let mut before = Renderer::new(self.own, &old_view, &self.policy, table);
            let mut after = Renderer::new(self.own, &new_view, &policy, table);
            let mut changes = Vec::new();
            let all = || Family::BOTH.into_iter().flat_map(|family| table.walk(family, None).map(|(prefix, _)| prefix));
            let prefixes: Box<dyn Iterator<Item = IpNet>> = match &difference {
                Difference::Inside(outer) if old_view == new_view => Box::new(table.inside(outer).into_iter()),
                _ => Box::new(all()),
            };
            for prefix in prefixes {
                let best = table.best(prefix);
                let old = before.shown(prefix, best.as_ref(), interned);
                let new = after.shown(prefix, best.as_ref(), interned);
                if old != new {
                    changes.push(Change { prefix, old, new });
                }
                if changes.len() >= self.bounds.portion {
                    let changes = std::mem::take(&mut changes);
                    let to = Receivers { dialect, room, members: &mut members, ahead: &self.ahead };
                    self.behind |= deliver(to, changes, &mut self.parcels);
                }
            }
            let to = Receivers { dialect, room, members: &mut members, ahead: &self.ahead };
            self.behind |= deliver(to, changes, &mut self.parcels);
            self.groups.entry(new_view.clone()).or_default().append(&mut members);
        }
        self.policy = policy;
    }

    /// Returns whether a neighbour has been sent everything.
    pub fn is_told(&self, peer: PeerId) -> bool {
        let member = self.groups.values().find_map(|members| members.get(&peer));
        member.is_some_and(|member| member.behind.is_none())
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    fn take(&mut self, peer: PeerId) {
        self.groups.retain(|_, members| {
            members.remove(&peer);
            !members.is_empty()
        });
    }
}

fn send(peer: PeerId, member: &mut Member, piece: &Piece, parcels: &mut Vec<Parcel>) {
    let Piece { bytes, messages, unfit, .. } = piece;
    member.on_the_way += bytes.len();
    parcels.push(Parcel { to: peer, bytes: bytes.clone(), messages: *messages, unfit: *unfit });
}

/// Sends changes to members with room, and queues them for the others; returns whether there are others.
fn deliver(to: Receivers, changes: Vec<Change>, parcels: &mut Vec<Parcel>) -> bool {
    if changes.is_empty() {
        return false;
    }
    let mut later = false;
    let (mut pieces, mut ahead) = (None, None);
    for (peer, member) in to.members {
        if member.behind.is_none() && member.on_the_way < to.room {
            // Encoded when the first member takes it: all may be behind.
            let (common, own) = pieces.get_or_insert_with(|| written(to.dialect, &changes));
            for piece in common.iter().chain(own.get(peer)).filter(|piece| piece.except != *peer) {
                send(*peer, member, piece, parcels);
            }
        } else {
            let behind = member.behind.get_or_insert_default();
            // Asked for once: after a restart all members are behind.
            let is_ahead = |change: &Change| to.ahead.contains(change.prefix);
            let ahead = ahead.get_or_insert_with(|| changes.iter().map(is_ahead).collect::<Vec<bool>>());
            changes.iter().zip(ahead).for_each(|(change, is_ahead)| behind.note(*peer, change, *is_ahead));
            later = true;
        }
    }
    later
}

/// Encodes changes: common pieces, and one more piece each for some members.
fn written(dialect: Dialect, changes: &[Change]) -> (Vec<Piece>, BTreeMap<PeerId, Piece>) {
    let mut gone: BTreeMap<(PeerId, Family), Vec<IpNet>> = BTreeMap::new();
    let mut alone: BTreeMap<PeerId, BTreeMap<Family, Vec<IpNet>>> = BTreeMap::new();
    let mut sets = Sets::default();
    for Change { prefix, old, new } in changes {
        let family = Family::from(*prefix);
        match (old, new) {
            (Some(old), None) => gone.entry((old.source, family)).or_default().push(*prefix),
            (Some(old), Some(new)) if old.source != new.source => {
                // The source of the new best route has been sent the old one.
                alone.entry(new.source).or_default().entry(family).or_default().push(*prefix);
                sets.add(family, new, *prefix);
            }
            (_, Some(new)) => sets.add(family, new, *prefix),
            (None, None) => {}
        }
    }
    let mut pieces = Pieces { dialect, done: Vec::new(), current: None };
    let mut announced = Pieces { dialect, done: Vec::new(), current: None };
    for (shown, family, prefixes) in sets.all {
        let packing = announced.packing(shown.source);
        if !packing.announce(family, &shown.attributes, &prefixes) {
            pieces.packing(shown.source).give_up(family, &prefixes);
        }
    }
    for ((source, family), prefixes) in gone {
        pieces.packing(source).withdraw(family, &prefixes);
    }
    let mut common = pieces.finish();
    common.extend(announced.finish());
    let mut own = BTreeMap::new();
    for (peer, prefixes) in alone {
        let mut packing = Packing::new(dialect);
        prefixes.into_iter().for_each(|(family, prefixes)| packing.withdraw(family, &prefixes));
        own.insert(peer, Piece::of(PeerId::LOCAL, packing));
    }
    (common, own)
}

impl Piece {
    fn of(except: PeerId, packing: Packing) -> Piece {
        let unfit = packing.unfit();
        let (bytes, messages) = packing.finish();
        Piece { except, bytes: bytes.into(), messages, unfit }
    }
}

/// Prefixes by shared attributes, in order of first occurrence.
#[derive(Default)]
struct Sets {
    all: Vec<(Shown, Family, Vec<IpNet>)>,
    places: HashMap<(usize, PeerId, Family), usize, Seed>,
}

impl Sets {
    fn add(&mut self, family: Family, shown: &Shown, prefix: IpNet) {
        let key = (Arc::as_ptr(&shown.attributes) as usize, shown.source, family);
        let place = *self.places.entry(key).or_insert_with(|| {
            self.all.push((shown.clone(), family, Vec::new()));
            self.all.len() - 1
        });
        if let Some((_, _, prefixes)) = self.all.get_mut(place) {
            prefixes.push(prefix);
        }
    }
}

/// Messages in pieces, each for all members but one.
struct Pieces {
    dialect: Dialect,
    done: Vec<Piece>,
    current: Option<(PeerId, Packing)>,
}

impl Pieces {
    fn packing(&mut self, except: PeerId) -> &mut Packing {
        let fits = |(one, packing): &(PeerId, Packing)| *one == except && packing.len() < PIECE;
        if !self.current.as_ref().is_some_and(fits) {
            self.close();
        }
        let dialect = self.dialect;
        &mut self.current.get_or_insert_with(|| (except, Packing::new(dialect))).1
    }

    fn close(&mut self) {
        if let Some((except, packing)) = self.current.take().filter(|(_, packing)| !packing.is_empty()) {
            self.done.push(Piece::of(except, packing));
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        self.close();
        self.done
    }
}

impl Behind {
    /// Queues a change for later.
    fn note(&mut self, peer: PeerId, change: &Change, is_ahead: bool) {
        let family = Family::from(change.prefix);
        let reached = match self.walk.of(family) {
            None => true,
            Some(walk) => walk.again || walk.after.is_some_and(|after| change.prefix <= after),
        };
        if reached || *self.ahead.of(family) && is_ahead {
            let is_told = |shown: &Option<Shown>| shown.as_ref().is_some_and(|shown| shown.source != peer);
            let (had, has) = (is_told(&change.old), is_told(&change.new));
            match self.changed.entry(change.prefix) {
                Entry::Vacant(queued) if had || has => drop(queued.insert(had)),
                // It came and went before the neighbour could be told. Prefixes that are never twice the same would grow the queue without bound.
                Entry::Occupied(queued) if !*queued.get() && !has => drop(queued.remove()),
                Entry::Vacant(_) | Entry::Occupied(_) => {}
            }
        }
    }

    /// Takes the next portion; `None` when nothing may be sent.
    fn portion(&mut self, stretches: &mut Stretches, held: PerFamily<bool>, most: usize) -> Option<Portion> {
        if !self.changed.is_empty() {
            let rest = self.changed.keys().nth(most).copied();
            let later = rest.map(|rest| self.changed.split_off(&rest)).unwrap_or_default();
            let now = std::mem::replace(&mut self.changed, later);
            return Some(Portion { prefixes: now.into_iter().collect(), ends: None });
        }
        let next = Family::BOTH.into_iter().find(|family| self.walk.of(*family).is_some() && !*held.of(*family))?;
        let walk = self.walk.of_mut(next);
        let Walk { after, again, .. } = (*walk)?;
        let whole = match again {
            true => Whole::Again,
            false if *self.ahead.of(next) => Whole::ButAhead,
            false => Whole::First,
        };
        let stretch = stretches.behind(after, next, whole);
        let prefixes = stretch.prefixes.iter().map(|prefix| (*prefix, again)).collect();
        if let Some(walk) = walk.as_mut()
            && stretch.end.is_some()
        {
            walk.after = stretch.end;
            return Some(Portion { prefixes, ends: None });
        }
        let ends = walk.take().map(|walk| (next, walk));
        Some(Portion { prefixes, ends })
    }

    fn is_over(&self) -> bool {
        self.changed.is_empty() && self.walk.v4.is_none() && self.walk.v6.is_none()
    }
}

#[cfg(test)]
mod tests;
