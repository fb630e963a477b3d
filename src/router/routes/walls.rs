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
//! A range in which addresses of nodes are has several, around these addresses: nobody may cut hosts off from a node by a claim to its address.
//!
//! A prefix has one, too, while a next hop that was behind a tunnel is no node any more, or several Nodes claim it, and the speaker has that next hop still:
//! it hears of the Node at the same time as we do, and what it says in the meantime may be older. On a link the route would turn plain.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::encapsulation::wireguard;
use super::ways::{encrypted, is_lost};
use super::{Place, RouteTableChanges, Routes};
use crate::kernel::link::LinkName;
use crate::kernel::route::{Route, RouteKey, RouteKind, TABLE_MAIN};
use crate::net::Family;
use crate::router::claims::Claims;
use crate::router::names::{PROTOCOL, TUNNEL_PROTOCOL, TUNNEL_TABLE, WALL_METRIC};

/// Next hops that are, or were, behind encrypted tunnels, by the prefixes learned with them. One that a prefix has had no more for once begins anew.
#[derive(Default, Debug)]
pub(super) struct Behind {
    next_hops: BTreeMap<IpNet, BTreeSet<IpAddr>>,
    /// The prefixes with one of them that is no node any more, or several.
    lost: BTreeSet<IpNet>,
}

/// The walls of each range, and the ranges of each wall.
#[derive(Default, Debug)]
pub(super) struct Walls {
    of: BTreeMap<IpNet, BTreeSet<IpNet>>,
    walls: Claims<IpNet, IpNet, ()>,
}

impl Behind {
    pub(super) fn of(&self, prefix: IpNet) -> Option<&BTreeSet<IpAddr>> {
        self.next_hops.get(&prefix)
    }

    /// Forgets all but these next hops of a prefix.
    pub(super) fn keep(&mut self, prefix: IpNet, next_hops: &[IpAddr]) {
        let Some(behind) = self.next_hops.get_mut(&prefix) else { return };
        behind.retain(|next_hop| next_hops.contains(next_hop));
        if behind.is_empty() {
            self.next_hops.remove(&prefix);
        }
    }

    /// Takes down where the next hops of a prefix are now; returns whether that one of them was lost is otherwise than before.
    pub(super) fn note(&mut self, prefix: IpNet, next_hops: &[IpAddr], place: Place<'_>) -> bool {
        let behind = next_hops.iter().filter(|next_hop| encrypted(prefix, **next_hop, place));
        let behind: Vec<IpAddr> = behind.copied().collect();
        if !behind.is_empty() {
            self.next_hops.entry(prefix).or_default().extend(behind);
        }
        let mut all = self.next_hops.get(&prefix).into_iter().flatten();
        let is_lost = all.any(|next_hop| is_lost(prefix, *next_hop, place));
        if is_lost { self.lost.insert(prefix) } else { self.lost.remove(&prefix) }
    }
}

impl Routes {
    /// Updates the walls behind the route to a range: prefixes that are the range, or parts of it; none without a wall. Ranges that overlap may
    /// have one in common.
    pub fn put_walls(&mut self, range: IpNet, walls: BTreeSet<IpNet>, changed: &mut RouteTableChanges) {
        let before = match walls.is_empty() {
            true => self.walls.of.remove(&range),
            false => self.walls.of.insert(range, walls.clone()),
        };
        for part in &before.unwrap_or_default() | &walls {
            self.walls.walls.put(&part, &range, walls.contains(&part).then_some(()));
            let route = self.walls.walls.contains(&part).then(|| self.refusing(PROTOCOL));
            self.put_route(wall(part), route, changed);
        }
    }

    /// Returns the ranges that have walls.
    pub fn walled(&self) -> impl Iterator<Item = IpNet> {
        self.walls.of.keys().copied()
    }

    /// Returns whether a destination is a range with walls, or lies behind one of them.
    pub fn is_walled(&self, destination: IpNet) -> bool {
        let mut around = std::iter::successors(Some(destination), IpNet::supernet);
        self.walls.of.contains_key(&destination) || around.any(|prefix| self.walls.walls.contains(&prefix))
    }

    /// Updates the route of pods to an address of a node itself through a device of `wireguard`, and the wall behind it.
    pub fn put_encrypted_node(
        &mut self,
        address: IpAddr,
        device: Option<LinkName>,
        is_walled: bool,
        changed: &mut RouteTableChanges,
    ) {
        let through = |device| Route {
            kind: RouteKind::Unicast,
            protocol: TUNNEL_PROTOCOL,
            source: None,
            next_hops: [wireguard::next_hop(device)].into(),
        };
        let route = device.map(|device| self.lists.routes.intern_owned(Arc::new(through(device))));
        self.put_route(RouteKey::new(TUNNEL_TABLE, Family::host_prefix(address)), route, changed);
        let refusing = is_walled.then(|| self.refusing(TUNNEL_PROTOCOL));
        self.put_route(wall_before_node(address), refusing, changed);
    }

    /// Returns whether a next hop of a prefix that was behind an encrypted tunnel is no node any more, or several Nodes claim it.
    pub fn has_lost(&self, prefix: IpNet) -> bool {
        self.behind.lost.contains(&prefix)
    }

    /// Returns the prefixes of which that is so.
    pub fn lost(&self) -> impl Iterator<Item = IpNet> {
        self.behind.lost.iter().copied()
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
