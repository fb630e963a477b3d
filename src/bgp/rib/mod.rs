//! Routes: what has come from the neighbours, what is the best of it, and what goes to them.
//!
//! RFC 4271 3.2 and 9.
//!
//! ```text
//!  UPDATE ─► import: loops, policy ─► table: all routes, best first ─► changes ─┬► exports: groups ─► UPDATEs
//!                                                                                └► routes for the kernel
//! ```
//!
//! [`Rib::flush`] is called when something has come in: it takes the prefixes that have changed since, and tells everybody.

mod best_path;
mod export;
mod exports;
mod intern;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::message::{Announced, Attributes, Refresh, RefreshKind, Update};
use super::policy::{Applicable, Outcome, Policy};
use crate::net::{Family, PerFamily};

pub use best_path::{Kind, Source};
pub use export::{Own, View};
pub use exports::{Bounds, Parcel};
pub use table::{Best, Count, Path, PeerId, Table};

/// Both families.
const ALL: PerFamily<bool> = PerFamily { v4: true, v6: true };

/// Policies of both directions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policies {
    pub import: Arc<Policy>,
    pub export: Arc<Policy>,
}

/// How the table is kept.
#[derive(Clone, Debug)]
pub struct Rules {
    pub own: Own,
    pub policies: Policies,
    /// Our own addresses: routes that lead to ourselves are not used.
    pub addresses: BTreeSet<IpAddr>,
    /// Among how many next hops traffic is shared at the most; 1 for no sharing.
    pub sharing: usize,
    /// Families of which nobody is told anything yet, because we have restarted.
    pub held: PerFamily<bool>,
    pub bounds: Bounds,
    /// A number by chance, for hashes.
    pub seed: u64,
}

/// The best route to a prefix has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteChange {
    pub prefix: IpNet,
    /// The best route now; `None` when there is none.
    pub best: Option<Best>,
    /// Where traffic goes, the best first.
    pub next_hops: Vec<IpAddr>,
}

/// What comes of a flush.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Flushed {
    pub routes: Vec<RouteChange>,
    pub parcels: Vec<Parcel>,
}

/// All routes, and everybody who is told of them.
#[derive(Debug)]
pub struct Rib {
    rules: Rules,
    table: Table,
    interned: intern::Interned,
    exports: exports::Exports,
    sessions: BTreeMap<PeerId, Session>,
    /// What is to be said and has not been handed over.
    flushed: Flushed,
}

/// What counts of a neighbour with a session.
#[derive(Debug)]
struct Session {
    address: IpAddr,
    applicable: Applicable,
    /// Families that are ignored until the session ends (RFC 4760 7).
    disabled: PerFamily<bool>,
    /// Families that it is sending again from the beginning (RFC 7313).
    refreshing: PerFamily<bool>,
}

/// A neighbour's session, as it begins.
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
        let address = IpAddr::V4(rules.own.identifier);
        table.set_source(
            PeerId::LOCAL,
            Source { kind: Kind::Local, identifier: rules.own.identifier, address, first: None },
        );
        let interned = intern::Interned::new(rules.seed);
        Rib { rules, table, interned, exports, sessions: BTreeMap::new(), flushed: Flushed::default() }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// It is so late: routes that come now came now.
    pub fn set_time(&mut self, now: Instant) {
        self.table.set_time(now);
    }

    pub fn policies(&self) -> &Policies {
        &self.rules.policies
    }

    /// A session is established. The statements of the view are filled in here.
    pub fn join(&mut self, joining: Joining) {
        let Joining { peer, source, mut view } = joining;
        let address = source.address;
        if self.table.source(peer).is_some_and(|before| *before != source) {
            // What is kept of it came from somebody else, so to say; the others are told so before that is forgotten.
            self.table.withdraw_all(peer, ALL, |_| true);
            self.settle();
        }
        self.table.set_source(peer, source);
        let applicable = self.rules.policies.import.applicable(Some(address));
        let session = Session { address, applicable, disabled: PerFamily::default(), refreshing: PerFamily::default() };
        self.sessions.insert(peer, session);
        view.statements = self.rules.policies.export.applicable(Some(address));
        self.exports.add(peer, view);
    }

    /// A session has ended. The routes of these families are kept for a while; the others go.
    pub fn leave(&mut self, peer: PeerId, kept: PerFamily<bool>) {
        self.sessions.remove(&peer);
        self.exports.remove(peer);
        self.table.withdraw_all(peer, PerFamily::from_fn(|family| !*kept.of(family)), |_| true);
        self.table.mark_stale(peer, kept);
    }

    /// What has been kept of a neighbour and has not come again goes.
    pub fn drop_stale(&mut self, peer: PeerId, families: PerFamily<bool>) {
        self.table.withdraw_all(peer, families, Path::is_stale);
    }

    /// A neighbour is no more, and its session has ended.
    pub fn forget(&mut self, peer: PeerId) {
        self.leave(peer, PerFamily::default());
        self.settle();
        self.table.forget_source(peer);
    }

    /// Takes in an UPDATE.
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

    /// Takes in routes that a neighbour announces.
    fn announce(&mut self, peer: PeerId, attributes: Attributes, prefixes: Vec<IpNet>) {
        let (Some(session), Some(source)) = (self.sessions.get(&peer), self.table.source(peer)) else { return };
        let usable = is_usable(&self.rules, source, &attributes);
        let received = self.interned.intern(attributes);
        for prefix in prefixes {
            if *session.disabled.of(Family::from(prefix)) || !is_unicast(prefix) {
                continue;
            }
            let mut used = None;
            if usable {
                let import = &self.rules.policies.import;
                used = match import.outcome(&session.applicable, prefix, &received, None) {
                    Outcome::Rejected => None,
                    Outcome::Unchanged => Some(received.clone()),
                    Outcome::Changed(changed) => Some(self.interned.intern(changed)),
                };
            }
            self.table.announce(prefix, peer, received.clone(), used);
        }
    }

    /// A route of our own. It goes through import policy like the others.
    pub fn originate(&mut self, prefix: IpNet, attributes: Attributes) {
        let received = self.interned.intern(attributes);
        let used = self.imported_here(prefix, &received);
        self.table.announce(prefix, PeerId::LOCAL, received, used);
    }

    fn imported_here(&mut self, prefix: IpNet, received: &Arc<Attributes>) -> Option<Arc<Attributes>> {
        let import = &self.rules.policies.import;
        match import.outcome(&import.applicable(None), prefix, received, None) {
            Outcome::Rejected => None,
            Outcome::Unchanged => Some(received.clone()),
            Outcome::Changed(changed) => Some(self.interned.intern(changed)),
        }
    }

    /// Takes back a route of our own.
    pub fn retract(&mut self, prefix: IpNet) {
        self.table.withdraw(prefix, PeerId::LOCAL);
    }

    /// A next hop can be reached, or not any more.
    pub fn set_reachable(&mut self, next_hop: IpAddr, reachable: bool) {
        self.table.set_reachable(next_hop, reachable);
    }

    /// A ROUTE-REFRESH. `marks`: both sides know the marks of RFC 7313.
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

    /// A neighbour is told everything again (soft reset outwards).
    pub fn resend(&mut self, peer: PeerId, family: Family) {
        self.exports.refresh(peer, family, false);
    }

    /// Other policies: they hold for all routes that are there, and everybody is told the difference.
    pub fn set_policies(&mut self, policies: Policies) {
        if policies.import != self.rules.policies.import {
            self.rules.policies.import = policies.import;
            self.import_again();
        }
        self.settle();
        if policies.export != self.rules.policies.export {
            self.rules.policies.export = policies.export.clone();
            let sessions = &self.sessions;
            let view_of = |peer: PeerId, old: &View| {
                let address = sessions.get(&peer).map(|session| session.address);
                View { statements: policies.export.applicable(address), ..old.clone() }
            };
            self.exports.change_views(policies.export.clone(), view_of, &self.table, &mut self.interned);
        }
    }

    /// Decides anew about all routes that have come.
    fn import_again(&mut self) {
        let import = self.rules.policies.import.clone();
        for (peer, source) in self.table.sources() {
            let applicable = import.applicable((source.kind != Kind::Local).then_some(source.address));
            let (rules, interned) = (&self.rules, &mut self.interned);
            self.table.reconsider(peer, |prefix, received| {
                if source.kind != Kind::Local && !is_usable(rules, &source, received) {
                    return None;
                }
                match import.outcome(&applicable, prefix, received, None) {
                    Outcome::Rejected => None,
                    Outcome::Unchanged => Some(received.clone()),
                    Outcome::Changed(changed) => Some(interned.intern(changed)),
                }
            });
            if let Some(session) = self.sessions.get_mut(&peer) {
                session.applicable = applicable;
            }
        }
    }

    /// A neighbour has taken so many bytes of what was sent.
    pub fn taken(&mut self, peer: PeerId, bytes: usize) {
        self.exports.taken(peer, bytes);
    }

    /// How many bytes are on their way to a neighbour.
    pub fn on_the_way(&self, peer: PeerId) -> usize {
        self.exports.on_the_way(peer)
    }

    /// Our restart is over for these families: the neighbours are told.
    pub fn release(&mut self, families: PerFamily<bool>) {
        self.exports.release(families);
    }

    /// Tells everybody what has changed.
    pub fn flush(&mut self) -> Flushed {
        self.settle();
        self.flushed.parcels.extend(self.exports.finish(&self.table, &mut self.interned));
        std::mem::take(&mut self.flushed)
    }

    /// What a neighbour sees of a prefix.
    pub fn shown_to(&mut self, peer: PeerId, prefix: IpNet) -> Option<Arc<Attributes>> {
        let shown = self.exports.shown_to(peer, prefix, &self.table, &mut self.interned);
        shown.map(|shown| shown.attributes)
    }

    /// Whether a neighbour has been told everything.
    pub fn is_told(&self, peer: PeerId) -> bool {
        self.exports.is_told(peer)
    }

    /// How many groups of neighbours share their work.
    pub fn groups(&self) -> usize {
        self.exports.groups()
    }

    /// Works on all changes in the table.
    fn settle(&mut self) {
        while self.table.is_dirty() {
            let dirty = self.table.take_dirty(self.rules.bounds.portion);
            self.exports.changed(&self.table, &dirty, &mut self.interned);
            for (prefix, before) in dirty {
                let best = self.table.best(prefix);
                if best != before || self.rules.sharing > 1 {
                    let next_hops = self.table.next_hops(prefix);
                    self.flushed.routes.push(RouteChange { prefix, best, next_hops });
                }
            }
        }
    }
}

/// Whether a route may be used at all: it is no loop, and it leads somewhere else.
fn is_usable(rules: &Rules, source: &Source, attributes: &Attributes) -> bool {
    let own = &rules.own;
    let rare = attributes.rare();
    // RFC 4271 9.1.2; RFC 4456 8.
    let looped = attributes.as_path.contains(own.asn)
        || rare.originator == Some(own.identifier)
        || rare.clusters.contains(&own.cluster);
    // RFC 4271 6.3: a next hop that is our own address, or none.
    let next_hop = attributes.next_hop;
    // Among speakers on one host, as in tests, the addresses of the loopback device lead somewhere.
    let loopback = next_hop.is_loopback() && !source.address.is_loopback();
    let nowhere = next_hop.is_unspecified() || next_hop.is_multicast() || loopback;
    let broadcast = matches!(next_hop, IpAddr::V4(next_hop) if next_hop.is_broadcast());
    // A neighbour outside that does not begin the path with its own number hides where the route came from.
    let first = attributes.as_path.neighbour();
    let headless =
        source.kind == Kind::External && (first.is_none() || source.first.is_some() && first != source.first);
    !(looped || nowhere || broadcast || headless || rules.addresses.contains(&next_hop))
}

/// RFC 4271 6.3: prefixes that no unicast route can have are ignored.
fn is_unicast(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => {
            let [first, ..] = prefix.network().octets();
            let local = prefix.prefix_len() >= 8 && (first == 0 || first == 127);
            !(local || prefix.prefix_len() >= 4 && first >= 224)
        }
        IpNet::V6(prefix) => {
            let network = prefix.network();
            let local = prefix.prefix_len() == 128 && (network.is_loopback() || network.is_unspecified());
            let link = prefix.prefix_len() >= 10 && network.is_unicast_link_local();
            !(local || link || prefix.prefix_len() >= 8 && network.is_multicast())
        }
    }
}
