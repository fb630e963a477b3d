//! Adj-RIB-Out for who asks: what each neighbour is sent of a prefix and else why not, and how many routes each is sent.
//!
//! It is not stored, so it is rendered again, once for each group: an answer costs what a change costs, not more with more
//! neighbours. Its size is bounded by the caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::super::export::{Renderer, Shown, Withheld};
use super::super::intern::Interned;
use super::super::table::{PeerId, Table};
use super::{Ahead, Behind, Exports, Member, PerFamily};
use crate::bgp::message::{Attributes, Dialect, Packing};
use crate::net::Family;

/// Advertisement of one prefix to the neighbours with a session.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Advertisement {
    pub neighbours: Vec<(PeerId, Result<Arc<Attributes>, Withheld>)>,
    /// Number of others that are sent the route, and that are not.
    pub others: (usize, usize),
}

impl Exports {
    /// Route to a prefix as advertised to a neighbour with an established session.
    pub fn shown_to(&self, peer: PeerId, prefix: IpNet, table: &Table, interned: &mut Interned) -> Option<Shown> {
        let (view, _) = self.groups.iter().find(|(_, members)| members.contains_key(&peer))?;
        let mut renderer = Renderer::new(self.own, view, &self.policy, table);
        let shown = renderer.shown(prefix, table.best(prefix).as_ref(), interned);
        shown.filter(|shown| shown.source != peer)
    }

    /// Advertisement of a prefix to each neighbour, `most` of them by name.
    pub fn told(&self, prefix: IpNet, table: &Table, interned: &mut Interned, most: usize) -> Advertisement {
        let (best, mut told) = (table.best(prefix), Advertisement::default());
        for (view, members) in &self.groups {
            let rendered = Renderer::new(self.own, view, &self.policy, table).rendered(prefix, best.as_ref(), interned);
            let rendered = rendered.and_then(|shown| match fits(view.dialect, prefix, &shown.attributes) {
                true => Ok(shown),
                false => Err(Withheld::Unfit),
            });
            for (peer, member) in members {
                let sent = rendered.clone().and_then(|shown| match self.obstacle(*peer, member, prefix, &shown) {
                    None => Ok(shown.attributes),
                    Some(withheld) => Err(withheld),
                });
                match (told.neighbours.len() < most, &sent) {
                    (true, _) => told.neighbours.push((*peer, sent)),
                    (false, Ok(_)) => told.others.0 += 1,
                    (false, Err(_)) => told.others.1 += 1,
                }
            }
        }
        told.neighbours.sort_by_key(|(peer, _)| *peer);
        told
    }

    /// Number of routes to some prefixes that are advertised to each neighbour. Of a family that is held back after a restart these are our own routes.
    pub fn count(
        &self,
        prefixes: &[IpNet],
        table: &Table,
        interned: &mut Interned,
    ) -> BTreeMap<PeerId, PerFamily<u32>> {
        let mut counts = BTreeMap::new();
        for (view, members) in &self.groups {
            let mut renderer = Renderer::new(self.own, view, &self.policy, table);
            let mut all = PerFamily::<u32>::default();
            let mut own: BTreeMap<PeerId, PerFamily<u32>> = BTreeMap::new();
            let mut local: Vec<IpNet> = Vec::new();
            for prefix in prefixes {
                let shown = renderer.shown(*prefix, table.best(*prefix).as_ref(), interned);
                let Some(source) = shown.map(|shown| shown.source) else { continue };
                *all.of_mut(Family::from(*prefix)) += 1;
                if source.is_local() {
                    local.push(*prefix);
                } else if members.contains_key(&source) {
                    *own.entry(source).or_default().of_mut(Family::from(*prefix)) += 1;
                }
            }
            counts.extend(members.iter().map(|(peer, member)| {
                let own = own.get(peer).copied().unwrap_or_default();
                let sent = |family: Family| match *self.held.of(family) {
                    true => member.count_ahead(&local, family, &self.ahead),
                    false => all.of(family) - own.of(family),
                };
                (*peer, PerFamily::from_fn(sent))
            }));
        }
        counts
    }

    /// Returns why a route of the group is not with one of its members.
    fn obstacle(&self, peer: PeerId, member: &Member, prefix: IpNet, shown: &Shown) -> Option<Withheld> {
        if shown.source == peer {
            return Some(Withheld::Source);
        }
        let behind = member.behind.as_ref()?;
        // Our own routes wait for nothing but the neighbour.
        let is_held = *self.held.of(Family::from(prefix)) && !shown.source.is_local();
        behind.owes(prefix, &self.ahead).then_some(if is_held { Withheld::Restarting } else { Withheld::Behind })
    }
}

impl Member {
    /// Number of those of our own routes that the member has been sent while others are held back.
    fn count_ahead(&self, own: &[IpNet], family: Family, ahead: &Ahead) -> u32 {
        let is_sent = |prefix: &&IpNet| self.behind.as_ref().is_none_or(|behind| !behind.owes(**prefix, ahead));
        own.iter().filter(|prefix| Family::from(**prefix) == family).filter(is_sent).count() as u32
    }
}

impl Behind {
    /// Returns whether the newest route to a prefix is still to be sent.
    fn owes(&self, prefix: IpNet, ahead: &Ahead) -> bool {
        let family = Family::from(prefix);
        let is_ahead = *self.ahead.of(family) && ahead.contains(prefix);
        let walk = self.walk.of(family).filter(|walk| !walk.again && !is_ahead);
        let is_to_come = walk.is_some_and(|walk| walk.after.is_none_or(|after| prefix > after));
        is_to_come || self.changed.contains_key(&prefix)
    }
}

/// Returns whether the attributes of a route fit into a message to a neighbour.
fn fits(dialect: Dialect, prefix: IpNet, attributes: &Attributes) -> bool {
    Packing::new(dialect).announce(Family::from(prefix), attributes, &[prefix])
}
