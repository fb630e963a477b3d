//! Routes through tunnels, by the kind of tunnels; each has the file of its name.

use std::net::IpAddr;

use super::{Place, RouteTableChanges, Routes};
use crate::config::Encapsulation;
use crate::kernel::route::NextHop;

mod fou;
mod ipip;
mod vxlan;
pub(super) mod wireguard;

/// Returns the next hop of packets through the tunnel to a node.
pub(super) fn through(remote: IpAddr, place: Place<'_>) -> NextHop {
    match place.config.overlay.map(|overlay| overlay.encapsulation) {
        Some(Encapsulation::Vxlan(_)) => vxlan::next_hop(remote),
        Some(Encapsulation::Wireguard(_)) => wireguard::next_hop((place.device)(remote)),
        Some(Encapsulation::Ipip | Encapsulation::Fou(_)) | None => ipip::next_hop(remote, place),
    }
}

/// Returns whether the kernel can tell the tunnel to a node from those to others. By `wireguard` a key does.
pub(super) fn is_distinct(remote: IpAddr, place: Place<'_>) -> bool {
    match place.config.overlay.map(|overlay| overlay.encapsulation) {
        Some(Encapsulation::Vxlan(_)) => !(place.has_anothers_link_address)(remote),
        Some(Encapsulation::Wireguard(_)) => true,
        Some(Encapsulation::Ipip | Encapsulation::Fou(_)) | None => !(place.is_nameless)(remote),
    }
}

impl Routes {
    /// Updates the tunnel to a node, and the routes through it in the tunnel table.
    pub(super) fn put_tunnel(&mut self, remote: IpAddr, place: Place<'_>, changed: &mut RouteTableChanges) {
        let is_used = self.is_led_through(remote);
        let Some(overlay) = place.config.overlay else { return };
        if overlay.device_of_each_node().is_some() {
            self.put_device(remote, is_used || self.ends.is_expected(remote), place, changed);
        }
        match overlay.encapsulation {
            Encapsulation::Vxlan(_) => self.put_entry(remote, is_used, changed),
            // Whether or not a route uses the tunnel (`walls`).
            Encapsulation::Wireguard(_) => return,
            Encapsulation::Ipip | Encapsulation::Fou(_) => {}
        }
        self.put_ways_to_node(remote, place, changed);
    }

    /// Returns whether routes lead through the tunnel to a node, by one of the kinds that have something for each.
    pub(super) fn has_tunnel(&self, remote: IpAddr, place: Place<'_>) -> bool {
        match place.config.overlay.map(|overlay| overlay.encapsulation) {
            Some(Encapsulation::Vxlan(_)) => self.has_entry(remote),
            Some(Encapsulation::Ipip | Encapsulation::Fou(_) | Encapsulation::Wireguard(_)) | None => {
                self.is_led_through(remote) && self.has_device(remote, place)
            }
        }
    }

    /// Returns whether a route leads through the tunnel to a node.
    pub(super) fn is_led_through(&self, remote: IpAddr) -> bool {
        self.tunnelled.contains_key(&remote)
    }
}
