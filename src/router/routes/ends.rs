//! The ends of tunnels at other nodes where the kernel takes packets by a device for each node (`ipip`, `fou`).
//!
//! The other node may send as soon as it has our routes, which can be before we have its own: its packets would find no device and be dropped with an ICMP error.
//! So the device is wanted as soon as the Node is known, if routes are exchanged with it and a tunnel would lead to it. Until a route leads through it, it only
//! takes packets (`Mirrors::grow_tunnels` leaves one alone that routes of an earlier run may lead through). Where nodes learn from other routers alone
//! (`--enable-ibgp=false`), there is none.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::ways::{Way, way_to};
use super::{Place, Routes};
use crate::net::Family;

#[derive(Default, Debug)]
pub(super) struct Ends {
    /// The addresses of other nodes at which a tunnel would end.
    expected: BTreeSet<IpAddr>,
    /// The addresses of which that is decided anew next.
    dirty: BTreeSet<IpAddr>,
    /// It is of all.
    all_are_dirty: bool,
}

impl Ends {
    pub(super) fn is_expected(&self, address: IpAddr) -> bool {
        self.expected.contains(&address)
    }

    /// Decides about an address anew after a change of who has it.
    pub(super) fn look_again(&mut self, address: IpAddr) {
        self.dirty.insert(address);
    }

    /// Decides about all anew after a change of our own place.
    pub(super) fn look_at_all_again(&mut self) {
        self.all_are_dirty = true;
    }
}

impl Routes {
    /// Decides anew what has to be; returns the ends whose devices may differ from before.
    pub(super) fn settle_ends(&mut self, place: Place<'_>) -> BTreeSet<IpAddr> {
        let mut dirty = std::mem::take(&mut self.ends.dirty);
        let all_are_dirty = std::mem::take(&mut self.ends.all_are_dirty);
        let overlay = place.config.overlay;
        // A wall decides there which Node is believed, and that takes a route.
        if place.encrypts() || overlay.is_none_or(|overlay| overlay.device_of_each_node().is_none()) {
            return BTreeSet::new();
        }
        if all_are_dirty {
            dirty.extend((place.addresses)());
            dirty.extend(&self.ends.expected);
        }
        dirty.into_iter().filter(|address| self.settle_end(*address, place)).collect()
    }

    /// Decides about one; returns whether there is, or was, a device for it.
    fn settle_end(&mut self, address: IpAddr, place: Place<'_>) -> bool {
        let (family, node) = (Family::from(address), (place.node)(address));
        // Inside and outside are of one family: without pods of it nothing comes.
        let has_pods = !place.own.pod_cidrs.of(family).is_empty();
        let is_exchanging = node.is_some() && has_pods && (place.exchanges)(address);
        let is_end = |way: Way| way == Way::Tunnel(address);
        let is_awaited = is_exchanging && way_to(family, address, node, place).is_ok_and(is_end);
        let was_awaited = match is_awaited {
            true => !self.ends.expected.insert(address),
            false => self.ends.expected.remove(&address),
        };
        is_awaited || was_awaited
    }
}
