//! Bounds on the memory for attributes of routes.
//!
//! Limits on prefixes and on long sets of attributes bound one neighbour. Millions of routes, each with a short set of its
//! own, still add up, and so do many neighbours: above the bound the one with the most is refused, and the others go on.

use std::net::IpAddr;

use super::super::message::{Notification, Reason};
use super::super::rib::PeerId;
use super::super::session::{Event, Moment};
use super::{FLOODED, Fact, Output, Speaker};

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

    /// Ends the session with a neighbour that has exceeded a limit, and makes no other one for a while, however its path is.
    pub(super) fn refuse(&mut self, at: Moment, address: IpAddr, notification: Notification) {
        if let Some(neighbour) = self.neighbours.get_mut(&address) {
            neighbour.path.let_go();
        }
        self.event(at, address, Event::Refuse(notification, FLOODED));
    }
}
