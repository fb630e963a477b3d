//! A part of what a member that is behind is sent: newest routes to some prefixes, and withdrawals of those that have none.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::super::super::message::{self, Packing, Refresh, RefreshKind};
use super::super::export::Renderer;
use super::super::intern::Interned;
use super::{PeerId, Piece, Sets, Walk};
use crate::net::Family;

/// Some prefixes to send to a member, and the end marker behind them.
pub(super) struct Portion {
    /// With whether the member may have a route to each.
    pub prefixes: Vec<(IpNet, bool)>,
    pub ends: Option<(Family, Walk)>,
}

impl Portion {
    /// Encodes the portion for the member.
    pub fn written(&self, peer: PeerId, renderer: &mut Renderer, interned: &mut Interned) -> Piece {
        let dialect = renderer.view.dialect;
        let mut gone: BTreeMap<Family, Vec<IpNet>> = BTreeMap::new();
        let mut sets = Sets::default();
        for (prefix, has) in &self.prefixes {
            let best = renderer.table.best(*prefix);
            match renderer.shown(*prefix, best.as_ref(), interned).filter(|shown| shown.source != peer) {
                Some(shown) => sets.add(Family::from(*prefix), &shown, *prefix),
                None if *has => gone.entry(Family::from(*prefix)).or_default().push(*prefix),
                None => {}
            }
        }
        let mut packing = Packing::new(dialect);
        for (shown, family, prefixes) in sets.all {
            if !packing.announce(family, &shown.attributes, &prefixes) {
                packing.give_up(family, &prefixes);
            }
        }
        gone.into_iter().for_each(|(family, prefixes)| packing.withdraw(family, &prefixes));
        let unfit = packing.unfit();
        let (mut bytes, mut messages) = packing.finish();
        if let Some((family, walk)) = self.ends {
            let end = match walk.marked {
                true => message::refresh(&Refresh { family, kind: RefreshKind::End }),
                false => message::end_of_rib(family),
            };
            bytes.extend(end);
            messages += 1;
        }
        Piece { except: PeerId::LOCAL, bytes: bytes.into(), messages, unfit }
    }
}
