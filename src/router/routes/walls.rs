//! Walls: routes that refuse packets to pods, and of pods to nodes, where an encrypted tunnel is wanted and there is none.
//!
//! Without them a packet would leave by the host's default route, readable for everybody on the way, while a session is down or the device is
//! missing. In the kernel, behind every other route to the same destination:
//!
//! ```text
//! ip route add unreachable 10.244.2.0/24 metric 4294967295 proto 17
//! ip route add unreachable 192.0.2.2/32 table 77 metric 4294967295 proto boot      # of pods to the node itself
//! ```
//!
//! A prefix has one, too, while a next hop that was behind a tunnel is no node any more and the speaker has not said anything about the prefix since: it
//! hears of the Node at the same time as we do, and would leave the route on a link for that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::ways::encrypted;
use super::{Place, RouteTableChanges, Routes};
use crate::kernel::route::{Route, RouteKey, RouteKind, TABLE_MAIN};
use crate::net::Family;
use crate::router::names::{PROTOCOL, TUNNEL_PROTOCOL, TUNNEL_TABLE, WALL_METRIC};

/// Next hops that are, or were, behind encrypted tunnels, by the prefixes learned with them. What is learned again begins anew.
#[derive(Default, Debug)]
pub(super) struct Behind {
    next_hops: BTreeMap<IpNet, BTreeSet<IpAddr>>,
    /// The prefixes with one of them that is no node any more.
    lost: BTreeSet<IpNet>,
}

impl Behind {
    pub(super) fn of(&self, prefix: IpNet) -> Option<&BTreeSet<IpAddr>> {
        self.next_hops.get(&prefix)
    }

    pub(super) fn forget(&mut self, prefix: IpNet) {
        self.next_hops.remove(&prefix);
    }

    /// Takes down where the next hops of a prefix are now; returns whether that one of them was lost is otherwise than before.
    pub(super) fn note(&mut self, prefix: IpNet, next_hops: &[IpAddr], place: Place<'_>) -> bool {
        let behind = next_hops.iter().filter(|next_hop| encrypted(prefix, **next_hop, place));
        let behind: Vec<IpAddr> = behind.copied().collect();
        if !behind.is_empty() {
            self.next_hops.entry(prefix).or_default().extend(behind);
        }
        let mut all = self.next_hops.get(&prefix).into_iter().flatten();
        let is_lost = all.any(|next_hop| (place.node)(*next_hop).is_none());
        if is_lost { self.lost.insert(prefix) } else { self.lost.remove(&prefix) }
    }
}

impl Routes {
    /// Updates the wall behind the route to a range.
    pub fn put_wall(&mut self, range: IpNet, is_wanted: bool, changed: &mut RouteTableChanges) {
        let route = is_wanted.then(|| self.refusing(PROTOCOL));
        self.put_route(wall(range), route, changed);
    }

    /// Updates the route of pods to an address of a node itself through the device of `wireguard`, and the wall behind it.
    pub fn put_encrypted_node(&mut self, address: IpAddr, is_wanted: bool, changed: &mut RouteTableChanges) {
        let through = || Route {
            kind: RouteKind::Unicast,
            protocol: TUNNEL_PROTOCOL,
            source: None,
            next_hops: [super::ways::device()].into(),
        };
        let route = is_wanted.then(|| self.lists.routes.intern_owned(Arc::new(through())));
        self.put_route(RouteKey::new(TUNNEL_TABLE, Family::host_prefix(address)), route, changed);
        let refusing = is_wanted.then(|| self.refusing(TUNNEL_PROTOCOL));
        self.put_route(wall_before_node(address), refusing, changed);
    }

    /// Returns whether a next hop of a prefix that was behind an encrypted tunnel is no node any more.
    pub fn has_lost(&self, prefix: IpNet) -> bool {
        self.behind.lost.contains(&prefix)
    }

    fn refusing(&mut self, protocol: u8) -> Arc<Route> {
        let route = Route { kind: RouteKind::Unreachable, protocol, source: None, next_hops: [].into() };
        self.lists.routes.intern_owned(Arc::new(route))
    }
}

/// The key of the wall behind the route to a range.
pub fn wall(range: IpNet) -> RouteKey {
    RouteKey { metric: WALL_METRIC, ..RouteKey::new(TABLE_MAIN, range) }
}

/// The key of the wall behind the route of pods to an address of a node.
pub fn wall_before_node(address: IpAddr) -> RouteKey {
    RouteKey { metric: WALL_METRIC, ..RouteKey::new(TUNNEL_TABLE, Family::host_prefix(address)) }
}
