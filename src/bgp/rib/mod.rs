//! The RIB: received routes, best-path selection, and advertisement.
//!
//! RFC 4271 3.2 and 9.
//!
//! ```text
//!  UPDATE ─► import: loops, policy ─► table: all routes, best first ─► changes ─┬► exports: groups ─► UPDATEs
//!                                                                                └► routes for the kernel
//! ```
//!
//! [`Rib::flush`] is called after input: it processes the prefixes changed since, and updates all neighbours.

mod best_path;
mod bounds;
mod export;
mod exports;
mod import;
mod inspection;
mod intern;
mod long_sets;
mod paths;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::message::{Announced, Attributes, Community, Refresh, RefreshKind, Update};
use super::policy::{Applicable, ChangedPolicy, Difference, Policy};
use crate::net::{Family, PerFamily};

pub use best_path::{Kind, Source, Step};
pub use bounds::Bounds;
pub use export::{NextHops, Own, View, Withheld};
pub use exports::{Advertisement, Parcel};
pub use import::Refusal;
pub use inspection::{PathState, PrefixState, Standing};
pub use table::{Best, Count, Path, PeerId, Selection, Table};

use import::{imported, placed, unplaced, unusable};

/// Both address families.
const ALL: PerFamily<bool> = PerFamily { v4: true, v6: true };

/// Policies of both directions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policies {
    pub import: Arc<Policy>,
    pub export: Arc<Policy>,
}

/// Parameters of the table.
#[derive(Clone, Debug)]
pub struct Rules {
    pub own: Own,
    pub policies: Policies,
    /// Local addresses: routes with such a next hop are not used.
    pub addresses: BTreeSet<IpAddr>,
    /// Maximum number of next hops for multipath; 1 disables it.
    pub sharing: usize,
    /// Address families not advertised yet, because we have restarted.
    pub held: PerFamily<bool>,
    pub bounds: Bounds,
    /// Random seed for hashes.
    pub seed: u64,
}

/// Route to a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteChange {
    pub prefix: IpNet,
    /// Current best route; `None` when there is none.
    pub best: Option<Best>,
    /// Next hops, the best first.
    pub next_hops: Vec<IpAddr>,
}

/// A prefix whose best route has changed, or whose multipath set may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    pub prefix: IpNet,
    /// There was a route before.
    pub had: bool,
    /// There is one now.
    pub has: bool,
}

/// Result of a flush.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Flushed {
    /// Changes in their order; the current route is queried with [`Rib::route`] when it is needed: until then it may have changed again.
    pub routes: Vec<Changed>,
    pub parcels: Vec<Parcel>,
}

/// All routes, and their advertisement.
#[derive(Debug)]
pub struct Rib {
    rules: Rules,
    table: Table,
    interned: intern::Interned,
    exports: exports::Exports,
    sessions: BTreeMap<PeerId, Session>,
    /// Local addresses towards neighbours with a session that were not told of their change yet.
    changed_addresses: BTreeMap<PeerId, PerFamily<Option<IpAddr>>>,
    /// Output that has not been handed over.
    flushed: Flushed,
}

/// Routing state of a neighbour with an established session.
#[derive(Debug)]
struct Session {
    address: IpAddr,
    applicable: Applicable,
    /// Address families disabled until the session ends (RFC 4760 7).
    disabled: PerFamily<bool>,
    /// Address families in an enhanced route refresh, between BoRR and EoRR (RFC 7313).
    refreshing: PerFamily<bool>,
}

/// Parameters of a newly established session.
#[derive(Clone, Debug)]
pub struct Joining {
    pub peer: PeerId,
    pub source: Source,
    pub view: View,
}

impl Rib {
    pub fn new(rules: Rules, now: Instant) -> Rib {
        let exports = exports::Exports::new(rules.own, rules.bounds, rules.policies.export.clone(), rules.held);
        let mut table = Table::new(now);
        table.share(rules.sharing);
        // No neighbour has this address. Of two equal routes our own is chosen.
        let ours = [(PeerId::LOCAL, IpAddr::V4(Ipv4Addr::UNSPECIFIED)), (PeerId::OPERATOR, PeerId::OPERATOR_ADDRESS)];
        for (id, address) in ours {
            let identifier = rules.own.identifier;
            table.set_source(id, Source { kind: Kind::Local, identifier, address, first: None });
        }
        let interned = intern::Interned::new(rules.seed);
        let (sessions, changed_addresses) = (BTreeMap::new(), BTreeMap::new());
        Rib { rules, table, interned, exports, sessions, changed_addresses, flushed: Flushed::default() }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Packs the table, for which there is time when nothing is received.
    pub fn pack(&mut self) {
        self.table.pack();
    }

    /// Sets the time of receipt of the routes that follow.
    pub fn set_time(&mut self, now: Instant) {
        self.table.set_time(now);
    }

    pub fn policies(&self) -> &Policies {
        &self.rules.policies
    }

    /// Local identity, as far as it appears in routes.
    pub fn own(&self) -> &Own {
        &self.rules.own
    }

    /// Adds an established session. The statements of the view are filled in here.
    pub fn join(&mut self, joining: Joining) {
        let Joining { peer, source, mut view } = joining;
        let address = source.address;
        if self.table.source(peer).is_some_and(|before| *before != source) {
            // Retained routes belong to the old source; their removal is advertised before it is forgotten.
            self.table.withdraw_all(peer, ALL, |_| true);
            self.settle();
        }
        self.table.set_source(peer, source);
        let applicable = self.rules.policies.import.applicable(Some(address));
        let session = Session { address, applicable, disabled: PerFamily::default(), refreshing: PerFamily::default() };
        self.sessions.insert(peer, session);
        view.statements = self.rules.policies.export.applicable(Some(address));
        self.exports.add(peer, view, &self.table);
    }

    /// Ends a session. The routes of the `kept` address families become stale; the others are removed.
    pub fn leave(&mut self, peer: PeerId, kept: PerFamily<bool>) {
        self.sessions.remove(&peer);
        self.changed_addresses.remove(&peer);
        self.exports.remove(peer);
        self.table.withdraw_all(peer, PerFamily::from_fn(|family| !*kept.of(family)), |_| true);
        self.table.mark_stale(peer, kept);
    }

    /// Keeps the stale routes of a neighbour as the last resort: they get LLGR_STALE, and those with NO_LLGR go (RFC 9494 4.2).
    pub fn keep_long(&mut self, peer: PeerId, families: PerFamily<bool>) {
        self.table.withdraw_all(peer, families, |path| path.is_stale() && path.received.has(Community::NO_LLGR));
        let Some(source) = self.table.source(peer).copied() else { return };
        let (rules, interned) = (&self.rules, &mut self.interned);
        let applicable = rules.policies.import.applicable(Some(source.address));
        self.table.change_stale(peer, families, |prefix, received| {
            let mut marked = (**received).clone();
            marked.add_communities(&[Community::LLGR_STALE]);
            let marked = interned.intern(marked);
            let is_usable = unusable(rules, &source, &marked).is_none();
            let used = is_usable.then(|| imported(rules, &applicable, (prefix, &marked), interned).ok()).flatten();
            (marked, used)
        });
    }

    /// Removes the routes of a neighbour that are still stale.
    pub fn drop_stale(&mut self, peer: PeerId, families: PerFamily<bool>) {
        let counts = self.table.count(peer);
        let has_stale = PerFamily::from_fn(|family| *families.of(family) && counts.of(family).stale > 0);
        self.table.withdraw_all(peer, has_stale, Path::is_stale);
    }

    /// Forgets a removed neighbour whose session has ended.
    pub fn forget(&mut self, peer: PeerId) {
        self.leave(peer, PerFamily::default());
        self.settle();
        self.table.forget_source(peer);
    }

    /// Processes an UPDATE.
    pub fn receive(&mut self, peer: PeerId, update: Update) {
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        let disabled: Vec<Family> = update.disabled().collect();
        for family in disabled {
            *session.disabled.of_mut(family) = true;
            self.table.withdraw_all(peer, PerFamily::from_fn(|one| one == family), |_| true);
        }
        for prefix in update.withdrawn {
            self.table.withdraw(prefix, peer);
        }
        for Announced { attributes, prefixes } in update.announced {
            self.announce(peer, attributes, prefixes);
        }
    }

    /// Neighbour to refuse because all sets of attributes together are too large: the one with the most. `None` where
    /// those of our own routes alone are too large.
    pub fn excess(&mut self) -> Option<PeerId> {
        let most = self.rules.bounds.attributes;
        self.interned.exceed(most).then(|| self.table.heaviest(most)).flatten()
    }

    /// Limits in force.
    pub fn bounds(&self) -> &Bounds {
        &self.rules.bounds
    }

    /// Processes announced routes of a neighbour.
    fn announce(&mut self, peer: PeerId, attributes: Attributes, prefixes: Vec<IpNet>) {
        let (Some(session), Some(source)) = (self.sessions.get(&peer), self.table.source(peer)) else { return };
        let attributes = placed(attributes, source.address);
        let usable = unusable(&self.rules, source, &attributes).is_none();
        let received = self.interned.intern(attributes);
        for prefix in prefixes {
            if *session.disabled.of(Family::from(prefix)) {
                continue;
            }
            let mut used = None;
            if usable {
                used = imported(&self.rules, &session.applicable, (prefix, &received), &mut self.interned).ok();
            }
            self.table.announce(prefix, peer, received.clone(), used);
        }
    }

    /// Originates a route of our own, or an operator's. It passes import policy like the others; an operator's as if
    /// received from a neighbour with [`PeerId::OPERATOR_ADDRESS`].
    pub fn originate(&mut self, whose: PeerId, prefix: IpNet, attributes: Attributes) {
        let attributes = if whose == PeerId::OPERATOR { unplaced(attributes) } else { attributes };
        let received = self.interned.intern(attributes);
        let operator = (whose == PeerId::OPERATOR).then_some(PeerId::OPERATOR_ADDRESS);
        let applicable = self.rules.policies.import.applicable(operator);
        let used = imported(&self.rules, &applicable, (prefix, &received), &mut self.interned).ok();
        self.table.announce(prefix, whose, received, used);
    }

    /// Removes a route of our own, or an operator's.
    pub fn retract(&mut self, whose: PeerId, prefix: IpNet) {
        self.table.withdraw(prefix, whose);
    }

    /// Sets the unreachable next hops; all others are reachable.
    pub fn set_unreachable(&mut self, next_hops: BTreeSet<IpAddr>) {
        self.table.set_unreachable(next_hops);
    }

    /// Processes a ROUTE-REFRESH, each of which costs a walk through the table. `marks`: enhanced route refresh (RFC 7313) is negotiated.
    pub fn refresh(&mut self, peer: PeerId, refresh: Refresh, marks: bool) {
        let Refresh { family, kind } = refresh;
        let only = PerFamily::from_fn(|one| one == family);
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        match kind {
            RefreshKind::Request => self.exports.refresh(peer, family, marks),
            RefreshKind::Begin if marks => {
                *session.refreshing.of_mut(family) = true;
                self.table.mark_stale(peer, only);
            }
            RefreshKind::End if *session.refreshing.of(family) => {
                *session.refreshing.of_mut(family) = false;
                self.drop_stale(peer, only);
            }
            RefreshKind::Begin | RefreshKind::End => {}
        }
    }

    /// Sends all routes to a neighbour again (outbound soft reset).
    pub fn resend(&mut self, peer: PeerId, family: Family) {
        self.exports.refresh(peer, family, false);
    }

    /// Replaces the policies: they apply to all present routes, and all neighbours are sent the difference.
    pub fn set_policies(&mut self, policies: Policies) {
        if policies.import != self.rules.policies.import {
            let before = std::mem::replace(&mut self.rules.policies.import, policies.import);
            self.import_again(&before);
        }
        self.settle();
        if policies.export != self.rules.policies.export {
            let difference = self.rules.policies.export.difference(&policies.export);
            self.rules.policies.export = policies.export.clone();
            let sessions = &self.sessions;
            let view_of = |peer: PeerId, old: &View| {
                let address = sessions.get(&peer).map(|session| session.address);
                View { statements: policies.export.applicable(address), ..old.clone() }
            };
            let newer = ChangedPolicy { policy: policies.export.clone(), difference };
            self.exports.change_views(newer, view_of, &self.table, &mut self.interned);
        }
    }

    /// Replaces the local addresses towards a neighbour with a session, which are the next hops of what it is sent: it is sent what differs with the next flush, once for all
    /// neighbours towards which they change.
    pub fn set_addresses_towards(&mut self, peer: PeerId, own: PerFamily<Option<IpAddr>>) {
        if self.sessions.contains_key(&peer) {
            self.changed_addresses.insert(peer, own);
        }
    }

    /// Replaces the local addresses: routes with such a next hop are not used.
    pub fn set_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.rules.addresses == addresses {
            return;
        }
        self.rules.addresses = addresses;
        for (peer, source) in self.table.sources() {
            let neighbour = (peer != PeerId::LOCAL).then_some(source.address);
            let applicable = self.rules.policies.import.applicable(neighbour);
            self.reconsider((peer, source), &applicable, &Difference::Anywhere);
        }
    }

    /// Applies import policy again to received routes for which it may differ.
    fn import_again(&mut self, before: &Policy) {
        let import = self.rules.policies.import.clone();
        let difference = before.difference(&import);
        for (peer, source) in self.table.sources() {
            let neighbour = (peer != PeerId::LOCAL).then_some(source.address);
            let applicable = import.applicable(neighbour);
            let is_same = before.applicable(neighbour) == applicable;
            let scope = if is_same { &difference } else { &Difference::Anywhere };
            self.reconsider((peer, source), &applicable, scope);
            if let Some(session) = self.sessions.get_mut(&peer) {
                session.applicable = applicable;
            }
        }
    }

    fn reconsider(&mut self, (peer, source): (PeerId, Source), applicable: &Applicable, scope: &Difference) {
        let (rules, interned) = (&self.rules, &mut self.interned);
        self.table.reconsider(peer, scope, |prefix, received| {
            if source.kind != Kind::Local && unusable(rules, &source, received).is_some() {
                return None;
            }
            imported(rules, applicable, (prefix, received), interned).ok()
        });
    }

    /// Counts bytes that a neighbour's socket has accepted.
    pub fn taken(&mut self, peer: PeerId, bytes: usize) {
        self.exports.taken(peer, bytes);
    }

    /// Number of bytes that a neighbour's socket has still to accept.
    pub fn on_the_way(&self, peer: PeerId) -> usize {
        self.exports.on_the_way(peer)
    }

    /// Ends our restart for these address families: they are advertised.
    pub fn release(&mut self, families: PerFamily<bool>) {
        self.exports.release(families);
    }

    /// Advertises all changes.
    pub fn flush(&mut self) -> Flushed {
        self.settle();
        self.flushed.parcels.extend(self.exports.finish(&self.table, &mut self.interned));
        std::mem::take(&mut self.flushed)
    }

    /// Current route to a prefix.
    pub fn route(&self, prefix: IpNet) -> RouteChange {
        RouteChange { prefix, best: self.table.best(prefix), next_hops: self.table.next_hops(prefix) }
    }

    /// Attributes of the route to a prefix that is advertised to a neighbour.
    pub fn shown_to(&mut self, peer: PeerId, prefix: IpNet) -> Option<Arc<Attributes>> {
        let shown = self.exports.shown_to(peer, prefix, &self.table, &mut self.interned);
        shown.map(|shown| shown.attributes)
    }

    /// Returns whether a neighbour has been sent everything.
    pub fn is_told(&self, peer: PeerId) -> bool {
        self.exports.is_told(peer)
    }

    /// Number of update groups.
    pub fn groups(&self) -> usize {
        self.exports.groups()
    }

    /// Processes all changes of the table, and then those of local addresses.
    fn settle(&mut self) {
        while self.table.is_dirty() {
            let dirty = self.table.take_dirty(self.rules.bounds.portion);
            self.exports.changed(&self.table, &dirty, &mut self.interned);
            for (prefix, before) in dirty {
                let now = self.table.best(prefix);
                if self.rules.sharing > 1 || now != before {
                    self.flushed.routes.push(Changed { prefix, had: before.is_some(), has: now.is_some() });
                }
            }
        }
        if self.changed_addresses.is_empty() {
            return;
        }
        let changed = std::mem::take(&mut self.changed_addresses);
        let view_of = |peer: PeerId, old: &View| {
            let own = changed.get(&peer).copied().unwrap_or(old.own);
            View { own, ..old.clone() }
        };
        let (policy, difference) = (self.rules.policies.export.clone(), Difference::Inside(BTreeSet::new()));
        let same = ChangedPolicy { policy, difference };
        self.exports.change_views(same, view_of, &self.table, &mut self.interned);
    }
}
