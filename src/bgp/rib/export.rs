//! Export of a route to a neighbour.
//!
//! RFC 4271 5.1 and 9.1.3, RFC 4456 8 (reflection), RFC 1997 (NO_EXPORT and the like), RFC 9494 4.3, RFC 8950 (next hops). Besides
//! the route, the result depends on a [`View`]: neighbours with equal views are sent the same, and share the work.
//!
//! | to | AS_PATH | next hop | LOCAL_PREF | MED | reflection attributes |
//! |---|---|---|---|---|---|
//! | EBGP | our AS prepended | ours; kept for our own routes, and if configured | removed | only of our own routes | removed |
//! | IBGP | kept | kept; ours for EBGP routes if configured | kept, or 100 | kept | added on reflection |
//!
//! Our own routes without a next hop get ours, and so do those whose next hop is a link-local address, to whomever they go. Export policy is applied last, so that it sees and modifies what would
//! be sent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::super::message::{Attributes, Community, Dialect};
use super::super::policy::{Applicable, Line, Outcome, Policy};
use super::best_path::{Kind, Source};
use super::intern::{Interned, Seed};
use super::table::{Best, PeerId, Table};
use crate::net::{Family, LinkLocal, PerFamily};

/// Local identity, as far as it appears in routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    pub asn: u32,
    pub identifier: Ipv4Addr,
    /// Cluster ID of reflected routes; by default the BGP identifier.
    pub cluster: Ipv4Addr,
}

/// Everything that determines the export of routes to a neighbour.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct View {
    pub kind: Kind,
    pub dialect: Dialect,
    /// Local addresses towards the neighbour.
    pub own: PerFamily<Option<IpAddr>>,
    pub next_hops: NextHops,
    /// The neighbour has long-lived graceful restart. Else EBGP neighbours are told of no route with LLGR_STALE (RFC 9494 4.3), and IBGP
    /// neighbours of one that loses to any other one and goes no further (RFC 9494 4.6).
    pub knows_long_lived: bool,
    pub statements: Applicable,
}

impl View {
    /// Returns whether routes of such sources go to neighbours of the view at all (RFC 4456).
    pub(super) fn takes_from(&self, source: Kind) -> bool {
        match (source, self.kind) {
            (_, Kind::Local) | (Kind::Internal, Kind::Internal) => false,
            (_, Kind::External | Kind::Client) => true,
            (Kind::Local | Kind::External | Kind::Client, Kind::Internal) => true,
        }
    }
}

/// Next hop of routes of other speakers, as a neighbour is told. Routes of our own have ours unless they say otherwise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum NextHops {
    /// Ours towards EBGP, kept towards IBGP.
    #[default]
    Usual,
    /// Next-hop-self: also ours for routes from EBGP towards IBGP.
    Ours,
    /// Kept towards EBGP, too: on a link that the neighbour shares with the next hop packets take no detour (RFC 4271
    /// 5.1.3, *third party*).
    Kept,
}

/// Route as sent to a neighbour. It is not sent to its source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub source: PeerId,
    pub attributes: Arc<Attributes>,
}

/// Reason for which a route is not advertised to a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Withheld {
    /// No route to the prefix is used.
    NoRoute,
    /// The best route is its own.
    Source,
    /// The session does not carry the address family.
    Family,
    /// The route is kept as the last resort, and the neighbour would not know that (RFC 9494 4.3).
    LongLived,
    /// A community of the route keeps it here, or inside of this AS (RFC 1997).
    Community(Community),
    /// The route is from an IBGP neighbour, the receiver is another one, and neither is a reflector client (RFC 4456).
    NotReflected,
    /// Our address would be its next hop, and we have none of the family.
    NoAddress,
    /// Export policy rejects it in this line.
    Policy(Line),
    /// The neighbour does not support a next hop of the other address family (RFC 8950).
    NextHop(IpAddr),
    /// Its attributes do not fit into a message to the neighbour (RFC 8654 6).
    Unfit,
    /// Our restart is not over: routes of others are not advertised before all are known (RFC 4724 4.1).
    Restarting,
    /// It follows: the neighbour has only just connected, or reads slowly.
    Behind,
}

/// Renders routes for one view, and caches the results.
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

    /// Renders the best route to a prefix; `None` when it is not advertised.
    pub fn shown(&mut self, prefix: IpNet, best: Option<&Best>, interned: &mut Interned) -> Option<Shown> {
        self.rendered(prefix, best, interned).ok()
    }

    /// Renders the best route to a prefix.
    ///
    /// # Errors
    /// It is not advertised, and why.
    pub fn rendered(&mut self, prefix: IpNet, best: Option<&Best>, interned: &mut Interned) -> Result<Shown, Withheld> {
        let best = best.ok_or(Withheld::NoRoute)?;
        let family = Family::from(prefix);
        let source = self.table.source(best.source).ok_or(Withheld::NoRoute)?;
        if let Some(withheld) = self.holds_back(family, source, &best.attributes) {
            return Err(withheld);
        }
        let key = (Arc::as_ptr(&best.attributes) as usize, best.source, family);
        let base = match self.made.get(&key) {
            Some(known) => known.clone(),
            None => {
                let made = self.base(family, source, &best.attributes).map(|made| interned.intern(made));
                self.made.insert(key, made.clone());
                made
            }
        };
        let base = base.ok_or(Withheld::NoAddress)?;
        let own = *self.view.own.of(family);
        let attributes = match self.policy.verdict(&self.view.statements, prefix, &base, own) {
            (Outcome::Rejected, line) => return Err(Withheld::Policy(line)),
            (Outcome::Unchanged, _) => base,
            (Outcome::Changed(changed), _) => interned.intern(changed),
        };
        match self.can_carry(family, attributes.next_hop) {
            true => Ok(Shown { source: best.source, attributes }),
            false => Err(Withheld::NextHop(attributes.next_hop)),
        }
    }

    /// Returns why the route is not advertised to neighbours of the view at all, whatever the policy.
    fn holds_back(&self, family: Family, source: &Source, attributes: &Attributes) -> Option<Withheld> {
        if !*self.view.dialect.families.of(family) {
            return Some(Withheld::Family);
        }
        if self.view.kind == Kind::External && self.is_unknown_stale(attributes) {
            return Some(Withheld::LongLived);
        }
        // We are in no confederation, so that the last two mean the same.
        let inside = [Community::NO_ADVERTISE, Community::NO_EXPORT, Community::NO_EXPORT_SUBCONFED];
        let kept = if self.view.kind == Kind::External { &inside[..] } else { &inside[..1] };
        if let Some(community) = kept.iter().find(|community| attributes.has(**community)) {
            return Some(Withheld::Community(*community));
        }
        (!self.view.takes_from(source.kind)).then_some(Withheld::NotReflected)
    }

    /// Renders the route before export policy.
    fn base(&self, family: Family, source: &Source, attributes: &Attributes) -> Option<Attributes> {
        let mut made = attributes.clone();
        // A link-local next hop has no meaning beyond its link.
        made.change_rare(|rare| rare.link_local = None);
        if source.kind == Kind::Local && made.next_hop.is_unspecified() {
            made = made.with_next_hop((*self.view.own.of(family))?);
        }
        // Nor has one of another neighbour on a link, which nobody else is sure to reach: the route goes by us.
        if LinkLocal::within(made.next_hop).is_some() {
            made = made.with_next_hop((*self.view.own.of(family))?);
        }
        if self.view.kind == Kind::External {
            made.as_path = made.as_path.prepended(self.own.asn, 1);
            made.local_pref = None;
            if source.kind != Kind::Local {
                made.med = None;
                if self.view.next_hops != NextHops::Kept {
                    made = made.with_next_hop((*self.view.own.of(family))?);
                }
            }
            made.change_rare(|rare| {
                rare.originator = None;
                rare.clusters = Box::default();
                rare.extended = rare.extended.iter().copied().filter(|one| one.is_transitive()).collect();
            });
            return Some(made);
        }
        made.local_pref = Some(made.preference());
        if self.is_unknown_stale(attributes) {
            made.local_pref = Some(0);
            made.add_communities(&[Community::NO_EXPORT]);
        }
        match source.kind {
            Kind::Local => {}
            Kind::External if self.view.next_hops == NextHops::Ours => {
                made = made.with_next_hop((*self.view.own.of(family))?)
            }
            Kind::External => {}
            Kind::Internal | Kind::Client => made.change_rare(|rare| {
                rare.originator = rare.originator.or(Some(source.identifier));
                rare.clusters = std::iter::once(self.own.cluster).chain(rare.clusters.iter().copied()).collect();
            }),
        }
        Some(made)
    }

    /// Returns whether a route is kept as the last resort and the neighbour would not know that.
    fn is_unknown_stale(&self, attributes: &Attributes) -> bool {
        !self.view.knows_long_lived && attributes.has(Community::LLGR_STALE)
    }

    /// Returns whether the neighbour supports such a next hop.
    fn can_carry(&self, family: Family, next_hop: IpAddr) -> bool {
        match (family, next_hop) {
            (Family::V4, IpAddr::V4(_)) | (Family::V6, IpAddr::V6(_)) => true,
            (Family::V4, IpAddr::V6(_)) => self.view.dialect.extended_next_hop,
            (Family::V6, IpAddr::V4(_)) => false,
        }
    }
}
