//! Consequences of the virtual services of an address: it is in the sets of the guard, and a route makes it local.

use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::ipset::Entry;
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::link::LinkName;
use crate::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_LOCAL};
use crate::net::Family;
use crate::packed::Put;

use super::Plan;
use crate::proxy::desired::ProxyChanges;
use crate::proxy::names::{DEVICE, DSR_TABLE, Set};

/// `RTPROT_KERNEL`, which kube-router's local routes have too: programs that remove routes of unknown protocols leave
/// it alone.
const PROTOCOL_KERNEL: u8 = 2;

/// Returns the key of the route that makes an address local.
pub fn local_route_key(address: IpAddr) -> RouteKey {
    RouteKey::new(TABLE_LOCAL, Family::host_prefix(address))
}

/// Returns the key of the route that makes an address in tunnel mode local for marked packets.
pub fn marked_route_key(address: IpAddr) -> RouteKey {
    RouteKey::new(DSR_TABLE.table, Family::host_prefix(address))
}

impl Plan {
    /// Handles the appearance or removal of a virtual service: its port and address enter or leave the sets, and its
    /// address becomes or ceases to be local.
    pub(super) fn follow_virtual(&mut self, key: ServiceKey, appeared: bool, changed: &mut ProxyChanges) {
        let ServiceKey::Address { address, protocol, port } = key else { return };
        self.put_element(Set::ServicePorts, Entry::IpPort(address, protocol, port), appeared, changed);
        let is_only = self.desired.virtuals_on(address).all(|(other, _)| other == key);
        if is_only {
            self.follow_use(address, appeared, changed);
        }
    }

    /// Updates what depends on whether an address is used at all, and whether it is in tunnel mode: any port at it is to be, also one that
    /// has no mark here and is served with NAT. Other nodes may have one for it, and answers of pods of this node have the address as source, which
    /// must not be local.
    pub(super) fn follow_use(&mut self, address: IpAddr, used: bool, changed: &mut ProxyChanges) {
        self.put_element(Set::ServiceAddresses, Entry::Ip(address), used, changed);
        let is_tunnelled = used && self.tunnels.asks_on(address);
        if self.config.tunnel_mode {
            self.put_element(Set::TunnelAddresses, Entry::Ip(address), is_tunnelled, changed);
        }
        let route = (used && !self.node.is_own(address)).then(|| self.shared_route(Family::from(address)));
        let (marked, other) = if is_tunnelled { (route, None) } else { (None, route) };
        self.put_route(local_route_key(address), other, changed);
        if self.config.tunnel_mode {
            self.put_route(marked_route_key(address), marked, changed);
        }
    }

    pub(super) fn put_route(&mut self, key: RouteKey, wanted: Option<Arc<Route>>, changed: &mut ProxyChanges) {
        let differs = match wanted {
            Some(route) => self.desired.routes.set(key.clone(), route) != Put::Same,
            None => self.desired.routes.remove(&key).is_some(),
        };
        changed.routes.extend(differs.then_some(key));
    }

    /// Returns the route of all service addresses of a family, in memory once.
    pub(super) fn shared_route(&mut self, family: Family) -> Arc<Route> {
        // All else is the same for all.
        let source = self.node.source(family);
        match self.shared_routes.of(family) {
            Some(known) if known.source == source => known.clone(),
            _ => {
                let route = Arc::new(self.local_route(family));
                self.shared_routes.of_mut(family).insert(route).clone()
            }
        }
    }

    /// `ip route add local ADDRESS dev kube-dummy-if table local src NODE`: the address is this host's, and
    /// the host's own packets to it come from the node's address, not from the service's.
    pub(super) fn local_route(&self, family: Family) -> Route {
        Route {
            kind: RouteKind::Local,
            protocol: PROTOCOL_KERNEL,
            source: self.node.source(family),
            next_hops: [NextHop { link: LinkName(DEVICE.into()), gateway: None, on_link: false }].into(),
        }
    }
}
