//! How a route looks to a neighbour.
//!
//! RFC 4271 5.1 and 9.1.3, RFC 4456 8 (reflection), RFC 1997 (communities that keep a route inside), RFC 8950 (next hops).
//! What decides it, besides the route, is a [`View`]: neighbours with equal views see the same, and share the work.
//!
//! | to | path | next hop | local preference | MED | of reflection |
//! |---|---|---|---|---|---|
//! | outside | our number in front | ours; that of our own routes stays | gone | only of our own routes | gone |
//! | inside | as it is | as it is; ours if so configured and it came from outside | as it is, or 100 | as it is | added when reflected |
//!
//! A route of our own without a next hop has ours. Export policy comes last, so that it sees and changes what would be sent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::super::message::{Attributes, Community, Dialect};
use super::super::policy::{Applicable, Outcome, Policy};
use super::best_path::{Kind, Source};
use super::intern::{Interned, Seed};
use super::table::{Best, PeerId, Table};
use crate::net::{Family, PerFamily};

/// Ourselves, as far as routes show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    pub asn: u32,
    pub identifier: Ipv4Addr,
    /// What reflected routes carry; by default the identifier.
    pub cluster: Ipv4Addr,
}

/// What decides how routes look to a neighbour.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct View {
    pub kind: Kind,
    pub dialect: Dialect,
    /// Our addresses towards it.
    pub own: PerFamily<Option<IpAddr>>,
    /// Routes from outside get our next hop on their way inside.
    pub next_hop_self: bool,
    pub statements: Applicable,
}

/// A route as a neighbour sees it. It is not shown to the neighbour that it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub source: PeerId,
    pub attributes: Arc<Attributes>,
}

/// Makes routes look as they do in one view; remembers what it has made.
pub(super) struct Renderer<'a> {
    pub own: Own,
    pub view: &'a View,
    pub policy: &'a Policy,
    pub table: &'a Table,
    made: HashMap<(usize, PeerId, Family), Option<Arc<Attributes>>, Seed>,
}

impl<'a> Renderer<'a> {
    pub fn new(own: Own, view: &'a View, policy: &'a Policy, table: &'a Table) -> Renderer<'a> {
        Renderer { own, view, policy, table, made: HashMap::default() }
    }

    /// How the best route to a prefix looks; `None` when it is not shown.
    pub fn shown(&mut self, prefix: IpNet, best: Option<&Best>, interned: &mut Interned) -> Option<Shown> {
        let best = best?;
        let family = Family::from(prefix);
        let source = self.table.source(best.source).filter(|source| self.passes(family, source, &best.attributes))?;
        let key = (Arc::as_ptr(&best.attributes) as usize, best.source, family);
        let base = match self.made.get(&key) {
            Some(known) => known.clone(),
            None => {
                let made = self.base(family, source, &best.attributes).map(|made| interned.intern(made));
                self.made.insert(key, made.clone());
                made
            }
        }?;
        let own = *self.view.own.of(family);
        let attributes = match self.policy.outcome(&self.view.statements, prefix, &base, own) {
            Outcome::Rejected => return None,
            Outcome::Unchanged => base,
            Outcome::Changed(changed) => interned.intern(changed),
        };
        self.can_carry(family, attributes.next_hop).then_some(Shown { source: best.source, attributes })
    }

    /// Whether the route goes there at all.
    fn passes(&self, family: Family, source: &Source, attributes: &Attributes) -> bool {
        if !*self.view.dialect.families.of(family) || attributes.has(Community::NO_ADVERTISE) {
            return false;
        }
        match (source.kind, self.view.kind) {
            (_, Kind::Local) => false,
            // We are in no confederation, so that both mean the same.
            (_, Kind::External) => {
                !attributes.has(Community::NO_EXPORT) && !attributes.has(Community::NO_EXPORT_SUBCONFED)
            }
            (Kind::Internal, Kind::Internal) => false,
            (Kind::Local | Kind::External | Kind::Client, Kind::Internal) => true,
            (_, Kind::Client) => true,
        }
    }

    /// The route before policy.
    fn base(&self, family: Family, source: &Source, attributes: &Attributes) -> Option<Attributes> {
        let mut made = attributes.clone();
        // A next hop on the link means nothing beyond it.
        made.change_rare(|rare| rare.link_local = None);
        if source.kind == Kind::Local && made.next_hop.is_unspecified() {
            made = made.with_next_hop((*self.view.own.of(family))?);
        }
        if self.view.kind == Kind::External {
            made.as_path = made.as_path.prepended(self.own.asn, 1);
            made.local_pref = None;
            if source.kind != Kind::Local {
                made.med = None;
                made = made.with_next_hop((*self.view.own.of(family))?);
            }
            made.change_rare(|rare| {
                rare.originator = None;
                rare.clusters = Box::default();
                rare.extended = rare.extended.iter().copied().filter(|one| one.is_transitive()).collect();
            });
            return Some(made);
        }
        made.local_pref = Some(made.preference());
        match source.kind {
            Kind::Local => {}
            Kind::External if self.view.next_hop_self => made = made.with_next_hop((*self.view.own.of(family))?),
            Kind::External => {}
            Kind::Internal | Kind::Client => made.change_rare(|rare| {
                rare.originator = rare.originator.or(Some(source.identifier));
                rare.clusters = std::iter::once(self.own.cluster).chain(rare.clusters.iter().copied()).collect();
            }),
        }
        Some(made)
    }

    /// Whether the neighbour can be told of such a next hop.
    fn can_carry(&self, family: Family, next_hop: IpAddr) -> bool {
        match (family, next_hop) {
            (Family::V4, IpAddr::V4(_)) | (Family::V6, IpAddr::V6(_)) => true,
            (Family::V4, IpAddr::V6(_)) => self.view.dialect.extended_next_hop,
            (Family::V6, IpAddr::V4(_)) => false,
        }
    }
}
