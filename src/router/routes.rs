//! Turns learned routes into kernel routes.
//!
//! RFC 4271 9.1.2.1: a route is used via its next hop. That means here:
//!
//! | next hop | without tunnels | `--overlay-type=subnet` | `full` |
//! |---|---|---|---|
//! | a node on one of our links | `via` it | `via` it | a tunnel to it |
//! | a node elsewhere | nothing: the network knows the way, or nobody does | a tunnel to it | a tunnel to it |
//! | another router on one of our links | `via` it | `via` it | `via` it |
//! | another router elsewhere | nothing | nothing | nothing |
//!
//! In the kernel, in the main table with protocol 17:
//!
//! ```text
//! ip route replace 10.244.2.0/24 via 192.0.2.2 dev eth0 proto 17
//! ip route replace 10.244.3.0/24 dev tun-e443169117a src 192.0.2.1 proto 17
//! ip route replace 10.0.0.1/32 dev tun-e443169117a table 77 proto boot       # for packets of pods to the node itself (`node_itself`)
//! ```
//!
//! With `--overlay-encap=vxlan` tunnels are entries on one device, where the routes have gateways (`kernel::vxlan`):
//! `via 10.0.0.1 dev sluice-vxlan4 onlink`.
//!
//! With `wireguard` all tunnels are one device, where the routes have none: `dev sluice-wg0`. Which node gets a packet follows from the peers there
//! (`plan/wireguard.rs`). What Nodes say of their pods limits there which next hops count ([`Protection`]).
//!
//! With `--overlay-encap-receive` a node that would be sent to through a tunnel has a device of its own, too, where that takes what the node sends by `ipip` or
//! `fou`; no route leads through it.
//!
//! No tunnel leads to a node that the kernel could not tell from another one by what tunnels have: the name of a device, or a link address of `vxlan`. Both are
//! hashes, so that somebody may search an address with those of another node (`tunnel_names`, `link_addresses`).
//!
//! The next hops of a router behind an interface are link-local addresses of that link, in both families:
//! `ip route replace 203.0.113.0/24 via inet6 fe80::2 dev eth1 proto 17`.
//!
//! Several next hops share the traffic. A tunnel exists while a route uses it, and one of `ipip` or `fou` as long as its node is known (`ends`): the other node may
//! send before we have learned its routes. Tunnels lead to nodes only. A next hop
//! of the other family stands for the same node's address of the route's own family; another router's IPv6 address
//! serves IPv4 routes directly (RFC 8950), the reverse is not possible in the kernel.
//!
//! With `--node-routes=api` the next hops of a pod CIDR are given by Node objects (`node_routes`), as if its nodes had announced it: they
//! come before what was learned, which is kept beside them.
//!
//! Work is proportional to the change: a route, a next hop of another kind, or everything if our place changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::bgp::rib::RouteChange;
use crate::config::RouterConfig;
use crate::kernel::link::LinkName;
use crate::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_MAIN};
use crate::kernel::tunnel::Tunnel;
use crate::kernel::vxlan::{Entry, EntryKey};
use crate::model::{Interner, OnLink};
use crate::net::link_local::without_link;
use crate::net::{Family, PerFamily};
use crate::packed::{BlockMap, PrefixMap};

use super::identity::Identity;
use super::names::PROTOCOL;

mod encapsulation;
mod ends;
mod node_itself;
mod protection;
mod walls;
mod ways;

use encapsulation::through;
pub use protection::Protection;
pub use walls::{wall, wall_before_node};
pub use ways::NoWay;
use ways::{Way, remote, way_now, ways};

/// Inputs of routes besides the learned routes.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub own: &'a Identity,
    pub config: &'a RouterConfig,
    pub on_link: &'a [OnLink],
    /// Returns the addresses in both families of the node that has this one; `None` for an address of no other node.
    pub node: &'a dyn Fn(IpAddr) -> Option<PerFamily<Option<IpAddr>>>,
    /// Returns the addresses of all nodes.
    pub addresses: &'a dyn Fn() -> Vec<IpAddr>,
    /// Returns whether routes come from, and go to, the node that is spoken with by this address.
    pub exchanges: &'a dyn Fn(IpAddr) -> bool,
    /// Returns the name of the tunnel to the node with this address.
    pub tunnel_name: &'a dyn Fn(IpAddr) -> LinkName,
    /// Returns whether both names of that tunnel are those of tunnels to other nodes.
    pub is_nameless: &'a dyn Fn(IpAddr) -> bool,
    /// Returns whether the link address for `vxlan` that belongs to an address of a node is that of another one, which comes first, or ours.
    pub has_anothers_link_address: &'a dyn Fn(IpAddr) -> bool,
    /// Returns the InternalIP of the node at this address, in its family, which is another address of that node and of no other one; `None` where pods
    /// have no business there.
    pub internal: &'a dyn Fn(IpAddr) -> Option<IpAddr>,
    /// Returns whether an address at which a tunnel ends is another node's InternalIP as well: pods' packets to the host there take no tunnel.
    pub contested: &'a dyn Fn(IpAddr) -> bool,
    /// Returns what a destination asks of a next hop.
    pub protection: &'a dyn Fn(IpNet, IpAddr) -> Protection,
    /// Returns the device of `wireguard` by which packets to a node with this address are sent.
    pub device: &'a dyn Fn(IpAddr) -> LinkName,
}

impl Place<'_> {
    /// Returns whether packets in tunnels are encrypted.
    fn encrypts(&self) -> bool {
        self.config.overlay.is_some_and(|overlay| overlay.encapsulation.wireguard().is_some())
    }
}

/// All learned routes, and the resulting kernel routes.
#[derive(Default, Debug)]
pub struct Routes {
    learned: PrefixMap<Arc<Learned>>,
    by_next_hop: BTreeMap<IpAddr, PrefixMap<()>>,
    /// The routes that use the tunnel to each node.
    tunnelled: BTreeMap<IpAddr, BTreeSet<IpNet>>,
    lists: Lists,
    routes: BlockMap<RouteKey, Arc<Route>>,
    tunnels: BTreeMap<LinkName, Tunnel>,
    /// Nodes on the devices of `vxlan`.
    entries: BTreeMap<EntryKey, Entry>,
    dirty: BTreeSet<IpNet>,
    /// Prefixes whose next hops Node objects give.
    given: BTreeSet<IpNet>,
    /// Next hops learned for these; of few, because import policy refuses them.
    outdone: BTreeMap<IpNet, Box<[IpAddr]>>,
    /// Prefixes learned from a former speaker, and not learned again yet.
    stale: BTreeSet<IpNet>,
    ends: ends::Ends,
    internal: node_itself::InternalAddresses,
    behind: walls::Behind,
    walls: walls::Walls,
}

/// The properties that many routes have in common: a table of 100,000 routes has few next hops.
#[derive(Default, Debug)]
struct Lists {
    learned: Interner<Arc<Learned>>,
    hops: Interner<Arc<[NextHop]>>,
    routes: Interner<Arc<Route>>,
}

/// Where a prefix leads.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
struct Learned {
    /// Next hops as learned, the best first; none of a route that was withdrawn since the last settling.
    next_hops: Box<[IpAddr]>,
    /// The paths to them, as of the last settling.
    ways: Box<[Way]>,
}

/// Keys of what changed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RouteTableChanges {
    pub routes: Vec<RouteKey>,
    /// Those of them that are not desired any more.
    pub withdrawn: Vec<RouteKey>,
    pub tunnels: Vec<LinkName>,
    pub entries: Vec<EntryKey>,
    /// Prefixes with other paths than before, and the nodes to which tunnels on these paths lead or led.
    pub moved: Vec<IpNet>,
    pub remotes: BTreeSet<IpAddr>,
    /// Prefixes of which a next hop that was behind an encrypted tunnel is no node any more, or that were such.
    pub lost: Vec<IpNet>,
}

impl Routes {
    pub fn routes(&self) -> &BlockMap<RouteKey, Arc<Route>> {
        &self.routes
    }

    pub fn tunnels(&self) -> &BTreeMap<LinkName, Tunnel> {
        &self.tunnels
    }

    pub fn entries(&self) -> &BTreeMap<EntryKey, Entry> {
        &self.entries
    }

    /// Returns whether a route to this prefix has been learned.
    pub fn has(&self, prefix: IpNet) -> bool {
        self.learned.get(&prefix).is_some_and(|learned| !learned.next_hops.is_empty())
    }

    /// Returns whether a learned route to this prefix has a path.
    pub fn has_way(&self, prefix: IpNet) -> bool {
        self.learned.get(&prefix).is_some_and(|learned| !learned.ways.is_empty())
    }

    /// Returns the node to which the route to a prefix leads through a tunnel, the first of several.
    pub fn tunnel_to(&self, prefix: IpNet) -> Option<IpAddr> {
        self.learned.get(&prefix)?.ways.iter().find_map(remote)
    }

    /// Returns whether routes lead through the device for the tunnel to a single node.
    pub fn is_led_through_device(&self, name: &LinkName) -> bool {
        self.tunnels.get(name).is_some_and(|tunnel| self.is_led_through(tunnel.remote))
    }

    /// Returns the prefixes whose routes lead through the tunnel to a node.
    pub fn through_tunnel(&self, remote: IpAddr) -> impl Iterator<Item = IpNet> {
        self.tunnelled.get(&remote).into_iter().flatten().copied()
    }

    /// Returns the next hops of the learned route to a prefix, the best first.
    pub fn next_hops_to(&self, prefix: IpNet) -> &[IpAddr] {
        self.learned.get(&prefix).map(|learned| &*learned.next_hops).unwrap_or_default()
    }

    /// Returns why the route to a prefix has no path to a next hop; `None` if it has one.
    pub fn no_way(&self, prefix: IpNet, next_hop: IpAddr, place: Place<'_>) -> Option<NoWay> {
        way_now(prefix, next_hop, self.behind.of(prefix), place).err()
    }

    /// Returns whether Node objects give the next hops of a prefix.
    pub fn is_given(&self, prefix: IpNet) -> bool {
        self.given.contains(&prefix)
    }

    /// Returns the prefixes whose next hops Node objects give.
    pub fn given(&self) -> impl Iterator<Item = IpNet> {
        self.given.iter().copied()
    }

    /// Returns the next hops of all learned routes, without those that Node objects alone give.
    pub fn next_hops(&self) -> impl Iterator<Item = IpAddr> {
        let is_learned = |prefixes: &PrefixMap<()>| prefixes.keys().any(|prefix| !self.given.contains(&prefix));
        self.by_next_hop.iter().filter(move |(_, prefixes)| is_learned(prefixes)).map(|(next_hop, _)| *next_hop)
    }

    /// Returns the prefixes whose routes are recomputed next.
    pub fn dirty(&self) -> impl Iterator<Item = IpNet> {
        self.dirty.iter().copied()
    }

    /// Updates the learned routes. Our own routes have no path.
    pub fn learn(&mut self, changes: &[RouteChange]) {
        for change in changes {
            let is_learned = change.best.as_ref().is_some_and(|best| !best.source.is_local());
            let next_hops = if is_learned { change.next_hops.as_slice() } else { &[] };
            self.stale.remove(&change.prefix);
            if !self.given.contains(&change.prefix) {
                self.set_next_hops(change.prefix, next_hops);
            } else if next_hops.is_empty() {
                self.outdone.remove(&change.prefix);
            } else {
                self.outdone.insert(change.prefix, next_hops.into());
            }
        }
    }

    /// Sets the next hops that Node objects give for a prefix, the best first; with none what was learned counts again.
    pub fn give(&mut self, prefix: IpNet, next_hops: &[IpAddr]) {
        if next_hops.is_empty() {
            if self.given.remove(&prefix) {
                let learned = self.outdone.remove(&prefix).unwrap_or_default();
                self.set_next_hops(prefix, &learned);
            }
            return;
        }
        if self.given.insert(prefix) {
            let learned = self.next_hops_to(prefix);
            if !learned.is_empty() {
                self.outdone.insert(prefix, learned.into());
            }
        }
        if self.next_hops_to(prefix) != next_hops {
            self.set_next_hops(prefix, next_hops);
        }
    }

    fn set_next_hops(&mut self, prefix: IpNet, next_hops: &[IpAddr]) {
        self.behind.keep(prefix, next_hops);
        let before = self.learned.get(&prefix).cloned();
        for gone in before.iter().flat_map(|before| &before.next_hops) {
            if let Some(prefixes) = self.by_next_hop.get_mut(gone) {
                prefixes.remove(&prefix);
                if prefixes.is_empty() {
                    self.by_next_hop.remove(gone);
                }
            }
        }
        for next_hop in next_hops {
            self.by_next_hop.entry(*next_hop).or_default().insert(prefix, ());
        }
        if before.is_some() || !next_hops.is_empty() {
            let ways = before.map(|before| before.ways.clone()).unwrap_or_default();
            let learned = self.lists.learned.intern_owned(Learned { next_hops: next_hops.into(), ways }.into());
            self.learned.insert(prefix, learned);
        }
        self.dirty.insert(prefix);
    }

    /// Marks all routes as stale for a new speaker, until learned routes are complete. Returns whether there are any.
    pub fn mark_stale(&mut self) -> bool {
        let learned = self.learned.iter().filter(|(_, learned)| !learned.next_hops.is_empty());
        let learned = learned.map(|(prefix, _)| prefix).filter(|prefix| !self.given.contains(prefix));
        self.stale = learned.chain(self.outdone.keys().copied()).collect();
        !self.stale.is_empty()
    }

    /// Returns whether any are marked as stale and were not learned again.
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Drops the stale routes that were not learned again: learned routes are complete.
    pub fn drop_stale(&mut self) {
        let gone = std::mem::take(&mut self.stale).into_iter();
        let gone: Vec<RouteChange> =
            gone.map(|prefix| RouteChange { prefix, best: None, next_hops: Vec::new() }).collect();
        self.learn(&gone);
    }

    /// Recomputes the routes via a next hop, and the tunnel to it, after a change of what is known of it.
    pub fn look_again(&mut self, next_hop: IpAddr) {
        self.ends.look_again(next_hop);
        self.dirty.extend(self.by_next_hop.get(&next_hop).into_iter().flat_map(|prefixes| prefixes.keys()));
        self.dirty.extend(self.tunnelled.get(&next_hop).into_iter().flatten());
    }

    /// Recomputes the routes to a range, to parts of it and to what contains it, after a change of who has it.
    pub fn look_again_at(&mut self, range: IpNet) {
        let around = (0..range.prefix_len()).filter_map(|length| Some(IpNet::new(range.addr(), length).ok()?.trunc()));
        let around = around.filter(|prefix| self.learned.get(prefix).is_some());
        let inside = self.learned.at_and_behind(range).map(|(prefix, _)| prefix);
        self.dirty.extend(around.chain(inside.take_while(|prefix| range.contains(prefix))));
    }

    /// Recomputes everything after a change of our own place.
    pub fn look_at_all_again(&mut self) {
        self.ends.look_at_all_again();
        self.dirty.extend(self.learned.keys());
    }

    /// Packs the maps, which whole tables fill one route after the other.
    pub fn pack(&mut self) {
        self.learned.pack();
        self.by_next_hop.values_mut().for_each(PrefixMap::pack);
        self.routes.pack();
    }

    /// Brings routes and tunnels up to date with the learned routes.
    pub fn settle(&mut self, place: Place<'_>) -> RouteTableChanges {
        let mut changed = RouteTableChanges::default();
        let mut remotes = self.settle_ends(place);
        let dirty = std::mem::take(&mut self.dirty);
        for prefix in &dirty {
            let Some(learned) = self.learned.get(prefix).cloned() else { continue };
            let ways = ways(*prefix, &learned.next_hops, self.behind.of(*prefix), place);
            if place.encrypts() && self.behind.note(*prefix, &learned.next_hops, place) {
                changed.lost.push(*prefix);
            }
            // Tunnels whose parameters may differ: to the nodes that routes use now.
            remotes.extend(ways.iter().filter_map(remote));
            if *learned.ways != *ways {
                changed.moved.push(*prefix);
                changed.remotes.extend(learned.ways.iter().chain(&ways).filter_map(remote));
            }
            remotes.extend(self.set_ways(*prefix, &learned, ways.into()));
        }
        for remote in remotes {
            self.put_tunnel(remote, place, &mut changed);
        }
        for prefix in dirty {
            let learned = self.learned.get(&prefix).filter(|learned| !learned.ways.is_empty());
            let route = learned.map(|learned| route(prefix, &learned.ways, place, &mut self.lists));
            self.put_route(RouteKey::new(TABLE_MAIN, prefix), route, &mut changed);
        }
        changed
    }

    /// Sets the paths of a prefix; returns the nodes whose tunnel is now used first or no longer.
    fn set_ways(&mut self, prefix: IpNet, before: &Learned, ways: Box<[Way]>) -> Vec<IpAddr> {
        let mut different = Vec::new();
        for gone in before.ways.iter().filter(|way| !ways.contains(way)).filter_map(remote) {
            let Some(prefixes) = self.tunnelled.get_mut(&gone) else { continue };
            prefixes.remove(&prefix);
            if prefixes.is_empty() {
                self.tunnelled.remove(&gone);
                different.push(gone);
            }
        }
        for remote in ways.iter().filter_map(remote) {
            let prefixes = self.tunnelled.entry(remote).or_default();
            if prefixes.is_empty() {
                different.push(remote);
            }
            prefixes.insert(prefix);
        }
        if before.next_hops.is_empty() {
            self.learned.remove(&prefix);
        } else if before.ways != ways {
            let learned = Learned { next_hops: before.next_hops.clone(), ways };
            self.learned.insert(prefix, self.lists.learned.intern_owned(learned.into()));
        }
        different
    }

    fn put_route(&mut self, key: RouteKey, wanted: Option<Arc<Route>>, changed: &mut RouteTableChanges) {
        match wanted {
            Some(wanted) if self.routes.get(&key) == Some(&wanted) => return,
            Some(wanted) => drop(self.routes.insert(key.clone(), wanted)),
            None if self.routes.remove(&key).is_none() => return,
            None => changed.withdrawn.push(key.clone()),
        }
        changed.routes.push(key);
    }
}

fn route(prefix: IpNet, ways: &[Way], place: Place<'_>, lists: &mut Lists) -> Arc<Route> {
    let through_tunnels = ways.iter().any(|way| remote(way).is_some());
    let source = place.own.sources.of(Family::from(prefix)).filter(|_| through_tunnels);
    let next_hop = |way: &Way| match way {
        Way::Gateway { link, gateway } => {
            NextHop { link: LinkName(link.clone()), gateway: Some(without_link(*gateway)), on_link: false }
        }
        Way::Tunnel(remote) => through(*remote, place),
    };
    let next_hops: Vec<NextHop> = ways.iter().map(next_hop).collect();
    let next_hops = lists.hops.intern(&*next_hops);
    lists.routes.intern_owned(Route { kind: RouteKind::Unicast, protocol: PROTOCOL, source, next_hops }.into())
}

#[cfg(test)]
mod tests;
