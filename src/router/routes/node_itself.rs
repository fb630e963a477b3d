//! Routes of pods to nodes themselves, in the table of tunnels (`ipip`, `fou`, `vxlan`).
//!
//! They lead to the address at which the tunnel to a node ends, and to the InternalIP of that node where that is another one
//! (`--node-ip-autodetect`): kubelets, pods on the host's network and the API server are known by it. Without a route there the packet of a pod would leave
//! outside of the tunnel with the pod's address, which the network drops, or the other host (`rp_filter`), and the answer comes through the tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Place, RouteTableChanges, Routes};
use crate::kernel::route::{Route, RouteKey, RouteKind};
use crate::net::Family;
use crate::router::names::{TUNNEL_PROTOCOL, TUNNEL_TABLE};

use super::encapsulation::through;

/// InternalIPs of nodes that are reached through the tunnel to another address of theirs.
#[derive(Default, Debug)]
pub(super) struct InternalAddresses {
    /// By the end of the tunnel.
    by_end: BTreeMap<IpAddr, IpAddr>,
    /// The end of the tunnel to each.
    ends: BTreeMap<IpAddr, IpAddr>,
}

impl InternalAddresses {
    /// Sets the one behind the tunnel to an address; returns the one before.
    fn put(&mut self, end: IpAddr, internal: Option<IpAddr>) -> Option<IpAddr> {
        let before = match internal {
            Some(internal) => self.by_end.insert(end, internal),
            None => self.by_end.remove(&end),
        };
        if let Some(before) = before.filter(|before| self.ends.get(before) == Some(&end)) {
            self.ends.remove(&before);
        }
        if let Some(internal) = internal {
            self.ends.insert(internal, end);
        }
        before
    }
}

impl Routes {
    /// Updates the routes of pods to a node itself after a change of the tunnel to this address of it.
    pub(super) fn put_ways_to_node(&mut self, end: IpAddr, place: Place<'_>, changed: &mut RouteTableChanges) {
        let internal = (place.internal)(end).filter(|_| self.has_tunnel(end, place));
        let before = self.internal.put(end, internal);
        let concerned: BTreeSet<IpAddr> = [Some(end), before, internal].into_iter().flatten().collect();
        for address in concerned {
            // Its own tunnel precedes that to another address of the node that had it before.
            let is_end = self.has_tunnel(address, place) && !(place.contested)(address);
            let by = if is_end { Some(address) } else { self.internal.ends.get(&address).copied() };
            let route = by.map(|by| Route {
                kind: RouteKind::Unicast,
                protocol: TUNNEL_PROTOCOL,
                source: None,
                next_hops: [through(by, place)].into(),
            });
            self.put_route(RouteKey::new(TUNNEL_TABLE, Family::host_prefix(address)), route.map(Arc::new), changed);
        }
    }
}
