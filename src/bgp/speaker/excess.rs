//! Limits on the prefixes of a neighbour (RFC 4486 4), and bounds on the memory for attributes of routes.
//!
//! Limits on prefixes and on long sets of attributes bound one neighbour. Millions of routes, each with a short set of its
//! own, still add up, and so do many neighbours: above the bound the one with the most is refused, and the others go on.

use std::net::IpAddr;

use super::super::message::{Notification, Reason};
use super::super::rib::{Count, PeerId};
use super::super::session::{Cause, Event, Moment};
use super::{FLOODED, Fact, FailureCause, Neighbour, Output, Speaker};
use crate::net::{Family, PerFamily};

/// Limit on the size in bytes of the long attribute sets of one neighbour's routes.
pub(super) const LONG_ATTRIBUTES: usize = 64 << 20;

impl Speaker {
    /// Returns whether the neighbour that has just sent routes is to be refused for their attributes. Where those of another
    /// neighbour are too many, that one is refused here.
    pub(super) fn has_too_many_attributes(&mut self, at: Moment, address: IpAddr, id: PeerId) -> bool {
        if self.rib.table().long_attributes(id) > LONG_ATTRIBUTES {
            self.outputs.push(Output::Fact(address, Fact::TooLong { most: LONG_ATTRIBUTES }));
            return true;
        }
        let Some(heaviest) = self.rib.excess() else { return false };
        let Some(address) = self.addresses.get(&heaviest).copied() else { return false };
        self.outputs.push(Output::Fact(address, Fact::TooLong { most: self.rib.bounds().attributes }));
        if heaviest != id {
            self.refuse(at, address, Notification::new(Reason::OUT_OF_RESOURCES));
        }
        heaviest == id
    }

    /// Returns the NOTIFICATION that refuses a neighbour for the number of its prefixes, and reports that. Stale ones do not count: one that restarts, or
    /// sends all again (RFC 7313 4.2), may bring others in their place, and they go when it has said all (RFC 4724 4.2). As it says itself when that is,
    /// and may begin anew before, all together are twice the limit at most: as many as were there, and as many in their place.
    pub(super) fn too_many_prefixes(&mut self, address: IpAddr) -> Option<Notification> {
        let neighbour = self.neighbours.get(&address)?;
        let counts = self.rib.table().count(neighbour.id);
        let exceeded = |family: &Family| {
            let Count { received, stale, .. } = *counts.of(*family);
            let is_above = |most: u32| received.saturating_sub(stale) > most || received > most.saturating_mul(2);
            neighbour.most(*family).is_some_and(is_above)
        };
        let family = Family::BOTH.into_iter().find(exceeded)?;
        let most = neighbour.most(family).unwrap_or_default();
        self.outputs.push(Output::Fact(address, Fact::TooMany { family, most }));
        // RFC 4486 4: the data is the address family and the limit.
        let afi = if family == Family::V4 { 1 } else { 2 };
        Some(Notification::with(Reason::MAXIMUM_PREFIXES, [&[0, afi, 1][..], &most.to_be_bytes()].concat()))
    }

    /// Removes what is retained of earlier sessions of a neighbour where it and what the session that ends has sent are together above the limit: one
    /// that comes and goes with other prefixes each time has no more of them retained than one that stays.
    pub(super) fn bound_retained(&mut self, address: IpAddr, kept: PerFamily<bool>) {
        self.drop_stale_above(address, kept, |count| count.received);
    }

    /// Removes the stale routes of a neighbour in those of these families where the number of its prefixes, as counted, is above the limit.
    fn drop_stale_above(&mut self, address: IpAddr, families: PerFamily<bool>, counted: fn(&Count) -> u32) {
        let Some(neighbour) = self.neighbours.get(&address) else { return };
        let counts = self.rib.table().count(neighbour.id);
        let exceeds = |family: Family| neighbour.most(family).is_some_and(|most| counted(counts.of(family)) > most);
        let excess = PerFamily::from_fn(|family| *families.of(family) && exceeds(family));
        self.rib.drop_stale(neighbour.id, excess);
    }

    /// Applies limits that have changed: a neighbour that exceeds them is refused, and one that was refused for the earlier ones may
    /// have a session at once. What is retained of earlier sessions goes where that alone exceeds them, and does not count against the session.
    pub(super) fn apply_prefix_limits(&mut self, at: Moment, address: IpAddr) {
        self.settle(address);
        let Some(retained) = self.neighbours.get(&address).map(|neighbour| neighbour.peer.stale()) else { return };
        self.drop_stale_above(address, retained, |count| count.stale);
        let Some(neighbour) = self.neighbours.get(&address) else { return };
        if neighbour.peer.session().is_some() {
            if let Some(notification) = self.too_many_prefixes(address) {
                self.refuse(at, address, notification);
            }
        } else if neighbour.was_refused_for_prefixes() {
            self.start_if_idle(at, address);
        }
    }

    /// Ends the session with a neighbour that has exceeded a limit, and makes no other one for a while, however its path is.
    pub(super) fn refuse(&mut self, at: Moment, address: IpAddr, notification: Notification) {
        if let Some(neighbour) = self.neighbours.get_mut(&address) {
            neighbour.path.let_go();
        }
        self.event(at, address, Event::Refuse(notification, FLOODED));
    }
}

impl Neighbour {
    /// Returns whether its last session was ended for the number of its prefixes.
    fn was_refused_for_prefixes(&self) -> bool {
        let failure = self.failure.as_ref().map(|failure| &failure.cause);
        matches!(failure, Some(FailureCause::Ended(Cause::Sent(said))) if said.reason == Reason::MAXIMUM_PREFIXES)
    }
}
