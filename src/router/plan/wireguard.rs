//! Other nodes on our device of `wireguard` (`--overlay-encap=wireguard`), and the walls where there is no tunnel.
//!
//! Of each public key in Node objects there is one peer, at the first of the Nodes with it: a machine that was renamed has two Nodes for a while.
//! Packets between nodes carry as source or destination a pod, or the node itself (who asks a pod of another node from a node's own network). So a
//! peer may use, of each of its Nodes:
//!
//! - the pod CIDRs of the Node for which routes are accepted ([`Refusal`](super::Refusal)), which no node with another key has, in part or whole;
//! - the addresses of the Node, those in pods of others aside;
//! - what else routes lead to through the tunnel to it, which holds neither pods nor addresses of nodes ([`Protection`](crate::router::routes::Protection)).
//!
//! Each of these belongs to one peer, because the kernel gives a range to the last one that is given it. What several nodes with different keys
//! claim, our own addresses and pod CIDRs belong to none.
//!
//! A peer is there whether or not a route leads through its tunnel: that node may send by it where this one does not.
//!
//! With `--overlay-encap-receive=wireguard` there are the same peers without any route to them, and no walls: what is sent leaves by another kind of tunnels.
//!
//! Packets go to the IPv4 address of the node, where both have one, and otherwise to its IPv6 address: both ends choose the same family.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use super::protection::TooManyHoles;
use crate::kernel::link::LinkName;
use crate::kernel::wireguard::{Peer, PeerKey};
use crate::net::{Family, Prefixes, PublicKey};
use crate::router::desired::RouterChanges;
use crate::router::names::WIREGUARD;
use crate::router::problem::{About, Problem};
use crate::router::routes::RouteTableChanges;

mod devices;
mod second;

pub use second::OwnKeys;
use second::Second;

/// Maximum number of ranges without a wall that are problems: each is a log message and an Event.
const NAMED: usize = 10;

/// State of the peers, kept up to date at the cost of what changed.
#[derive(Default, Debug)]
pub(super) struct Peers {
    /// The peers of each node that has any: the one on the first device, and that on the second where there is one.
    by_node: BTreeMap<CompactString, Vec<PeerKey>>,
    /// The keys of our own devices, once the kernel has told them.
    own: OwnKeys,
    second: Second,
    /// Nodes whose peers may be others.
    stale: BTreeSet<CompactString>,
    /// Destinations whose walls may be others: pod CIDRs, and what has lost its tunnel.
    stale_walls: BTreeSet<IpNet>,
    /// Addresses of nodes to which the ways of our pods may be others.
    stale_addresses: BTreeSet<IpAddr>,
    /// The pod CIDRs of other nodes.
    pub(super) ranges: Prefixes,
    /// Ranges that have no wall, because the addresses of too many nodes are in them.
    open: BTreeSet<IpNet>,
}

impl Peers {
    /// Takes down pod CIDRs of other nodes that were added or removed.
    pub(super) fn note_ranges(&mut self, ranges: &[(IpNet, bool)]) {
        for (range, is_there) in ranges {
            if *is_there {
                self.ranges.insert(*range)
            } else {
                self.ranges.remove(*range)
            };
        }
    }
}

impl Plan {
    /// Returns whether packets to other nodes are encrypted.
    pub(super) fn encrypts(&self) -> bool {
        self.config.overlay.is_some_and(|overlay| overlay.encapsulation.wireguard().is_some())
    }

    /// Returns whether encrypted packets of other nodes are received.
    pub(super) fn decrypts(&self) -> bool {
        self.config.overlay.is_some_and(|overlay| overlay.wireguard().is_some())
    }

    /// Returns the public key of a Node.
    pub fn key_in_node(&self, node: &CompactString) -> Option<PublicKey> {
        self.known.nodes.get(node)?.wireguard_key
    }

    /// Returns the public key of a Node that follows that one.
    pub fn next_key_in_node(&self, node: &CompactString) -> Option<PublicKey> {
        self.known.nodes.get(node)?.wireguard_next_key
    }

    /// Returns the nodes that are `Ready` and are sent to by a peer of these, by name. While a key changes a node has another one, by which nothing need pass.
    /// Whether they peer with us does not matter: clients of reflectors do not, and send to each other.
    pub fn ready_nodes_sent_to_by(&self, is_of_these: impl Fn(&PeerKey) -> bool) -> Vec<&CompactString> {
        let nodes = self.wireguard.by_node.iter().filter(|(node, keys)| {
            let link = self.wireguard.second.device_to(node);
            keys.iter().any(|key| key.link.0 == link && is_of_these(key)) && self.is_ready_for_pods(node)
        });
        nodes.map(|(node, _)| node).collect()
    }

    /// Has the peer of a node looked at again, and those of nodes with which it shares anything. Called before and after a change of the node.
    pub(super) fn mark_peer(&mut self, node: &CompactString) {
        if !self.decrypts() {
            return;
        }
        let (ranges, key) = (self.nodes.ranges_of(node), self.nodes.key_of(node));
        let addresses = self.nodes.addresses_of(node);
        let sharing = ranges.iter().flat_map(|range| self.nodes.with_range(range));
        let sharing = sharing.chain(addresses.iter().flat_map(|one| self.nodes.with_address(one)));
        let sharing = sharing.chain(key.iter().flat_map(|key| self.nodes.with_key(key)));
        let second = self.nodes.second_key_of(node);
        let sharing = sharing.chain(second.iter().flat_map(|key| self.nodes.with_second_key(key)));
        for node in sharing.chain([node]) {
            self.wireguard.stale_walls.extend(self.nodes.ranges_of(node));
            self.wireguard.stale.insert(node.clone());
        }
        self.wireguard.stale_addresses.extend(addresses);
        // Whose a prefix, or a next hop, is decides which next hops count, and walls leave out addresses.
        addresses.iter().for_each(|address| self.routes.look_again(*address));
        let hosts = addresses.iter().map(|address| Family::host_prefix(*address));
        let mut concerned = ranges.to_vec();
        for host in hosts {
            self.routes.look_again_at(host);
            let around = (0..=host.prefix_len()).filter_map(|length| IpNet::new(host.addr(), length).ok());
            let has_wall = |range: &IpNet| self.wireguard.ranges.contains(*range) || self.routes.has_lost(*range);
            concerned.extend(around.map(|range| range.trunc()).filter(has_wall));
        }
        let wider = |range: &IpNet| range.supernet();
        let around = ranges.iter().flat_map(|range| std::iter::successors(range.supernet(), wider));
        concerned.extend(around.filter(|prefix| self.routes.has_lost(*prefix)));
        self.mark_ranges(&concerned);
    }

    /// Has all that follows from who has these pod CIDRs looked at again.
    pub(super) fn mark_ranges(&mut self, ranges: &[IpNet]) {
        if self.decrypts() {
            self.wireguard.stale_walls.extend(ranges);
            ranges.iter().for_each(|range| self.routes.look_again_at(*range));
            self.mark_peers_with(ranges);
            let inside = ranges.iter().flat_map(|range| self.nodes.with_address_in(*range));
            self.wireguard.stale.extend(inside.map(|(_, node)| node.clone()));
        }
    }

    /// Has all that follows from addresses looked at again that are new on this host, or gone from it.
    pub(super) fn mark_moved(&mut self, moved: &[IpAddr]) {
        self.mark_peers_at(moved);
        // A route may have led to one of them through a tunnel.
        let remotes: Vec<IpAddr> =
            moved.iter().filter_map(|address| self.routes.tunnel_to(Family::host_prefix(*address))).collect();
        self.mark_peers_at(&remotes);
        if self.encrypts() {
            self.wireguard.stale_addresses.extend(moved);
        }
    }

    /// Has the peers of nodes with these pod CIDRs looked at again.
    pub(super) fn mark_peers_with(&mut self, ranges: &[IpNet]) {
        if self.decrypts() {
            let nodes = ranges.iter().flat_map(|range| self.nodes.with_range(range));
            self.wireguard.stale.extend(nodes.cloned());
        }
    }

    /// Has the peers with these addresses looked at again.
    pub(super) fn mark_peers_at<'a>(&mut self, addresses: impl IntoIterator<Item = &'a IpAddr>) {
        if self.decrypts() {
            let nodes = addresses.into_iter().flat_map(|address| self.nodes.with_address(address));
            self.wireguard.stale.extend(nodes.cloned());
        }
    }

    /// Has the peers looked at again through whose tunnels the routes lead that are looked at again. Where packets are not encrypted, a route does not turn when
    /// something comes to be inside of its prefix, or around it; what its peer may use does.
    pub(super) fn mark_peers_of_routes(&mut self) {
        if self.decrypts() && !self.encrypts() {
            let remotes = self.routes.dirty().filter_map(|prefix| self.routes.tunnel_to(prefix));
            let remotes: BTreeSet<IpAddr> = remotes.collect();
            self.mark_peers_at(&remotes);
        }
    }

    /// Has everything looked at again after a change of our own place.
    pub(super) fn mark_all_peers(&mut self) {
        if self.decrypts() {
            let others = self.known.nodes.iter().map(|(name, _)| name.clone());
            self.wireguard.stale.extend(others.chain(self.wireguard.by_node.keys().cloned()));
            self.wireguard.stale_walls.extend(self.nodes.ranges());
            self.wireguard.stale_walls.extend(self.routes.lost());
            self.wireguard.stale_addresses.extend(self.nodes.addresses());
        }
    }

    /// Brings the peers up to date.
    pub(super) fn settle_peers(&mut self, changed: &mut RouterChanges) {
        let mut stale = std::mem::take(&mut self.wireguard.stale);
        let keys: Vec<PublicKey> = stale.iter().filter_map(|node| self.nodes.key_of(node)).collect();
        let of_one_peer: Vec<CompactString> = keys.iter().flat_map(|key| self.nodes.with_key(key)).cloned().collect();
        stale.extend(of_one_peer);
        let seconds: BTreeSet<PublicKey> = stale.iter().filter_map(|node| self.nodes.second_key_of(node)).collect();
        let of_one_peer: Vec<CompactString> =
            seconds.iter().flat_map(|key| self.nodes.with_second_key(key)).cloned().collect();
        stale.extend(of_one_peer);
        let mut before: BTreeMap<PeerKey, Peer> = BTreeMap::new();
        for node in &stale {
            for key in self.wireguard.by_node.remove(node).into_iter().flatten() {
                if let Some(peer) = self.desired.wireguard_peers.remove(&key) {
                    before.insert(key, peer);
                }
            }
        }
        let mut keys: BTreeSet<PeerKey> = before.keys().cloned().collect();
        for node in stale {
            self.pod_ranges.mark(&node, &self.nodes);
            let peers = self.peers(&node);
            if peers.is_empty() {
                continue;
            }
            self.wireguard.by_node.insert(node, peers.iter().map(|(key, _)| key.clone()).collect());
            for (key, peer) in peers {
                keys.insert(key.clone());
                self.desired.wireguard_peers.insert(key, peer);
            }
        }
        let differs = |key: &PeerKey| before.get(key) != self.desired.wireguard_peers.get(key);
        changed.wireguard_peers.extend(keys.into_iter().filter(differs));
    }

    /// Brings the walls, and the ways of our pods to nodes, up to date. Returns whether other ranges than before have no wall.
    pub(super) fn settle_walls(&mut self, changed: &mut RouteTableChanges) -> bool {
        if !self.encrypts() {
            self.wireguard.stale_walls.clear();
            self.wireguard.stale_addresses.clear();
            return false;
        }
        let mut is_otherwise = false;
        let lost = std::mem::take(&mut changed.lost);
        // The walls of a prefix leave out narrower ones that have a way.
        let around = |prefix: &IpNet| std::iter::successors(Some(*prefix), IpNet::supernet);
        let moved: BTreeSet<IpNet> = match self.routes.lost().next() {
            Some(_) => changed.moved.iter().flat_map(around).filter(|prefix| self.routes.has_lost(*prefix)).collect(),
            None => BTreeSet::new(),
        };
        for range in std::mem::take(&mut self.wireguard.stale_walls).into_iter().chain(lost).chain(moved) {
            let is_wanted = self.is_encrypted(range) || self.is_refused(range);
            let walls = if is_wanted { self.without_nodes(range) } else { Ok(BTreeSet::new()) };
            is_otherwise |= match walls {
                Err(TooManyHoles) => self.wireguard.open.insert(range),
                Ok(_) => self.wireguard.open.remove(&range),
            };
            self.routes.put_walls(range, walls.unwrap_or_default(), changed);
        }
        for address in std::mem::take(&mut self.wireguard.stale_addresses) {
            let is_walled = self.is_encrypted_node(address);
            // Without an address of our own there is no device.
            let is_led = is_walled && self.own.primary.is_some();
            let device = is_led.then(|| self.device_to(address));
            self.routes.put_encrypted_node(address, device, is_walled, changed);
        }
        is_otherwise
    }

    /// Returns the problems of ranges that have no wall.
    pub(super) fn problems_of_walls(&self) -> Vec<Problem> {
        let text = "the addresses of too many nodes are in it: what is sent there leaves without encryption where no route leads to it";
        let named = self.wireguard.open.iter().take(NAMED);
        named.map(|range| Problem::new(About::PodRange(*range), text)).collect()
    }

    /// Returns why nothing can be sent through the tunnel by which a pod CIDR of a node is reached; in words that end a sentence.
    pub(super) fn lacks_peer(&self, node: &CompactString, range: IpNet) -> Option<&'static str> {
        let is_tunnelled = self.encrypts() && self.routes.tunnel_to(range).is_some();
        let key = self.nodes.key_of(node);
        let first = key.and_then(|key| self.nodes.with_key(&key).next());
        if !is_tunnelled || first.is_some_and(|first| self.wireguard.by_node.contains_key(first)) {
            return None;
        }
        Some(match key {
            None => "its Node has no kube-router.io/wireguard-public-key, without which nothing is sent to it",
            Some(_) => "its WireGuard key is that of this node, or there is no way to its addresses",
        })
    }

    /// Returns the peers of a node on our devices.
    fn peers(&self, node: &CompactString) -> Vec<(PeerKey, Peer)> {
        self.peer(node).into_iter().chain(self.second_peer(node)).collect()
    }

    fn peer(&self, node: &CompactString) -> Option<(PeerKey, Peer)> {
        let encryption = self.config.overlay?.wireguard()?;
        let key = self.nodes.key_of(node)?;
        let address = self.reached_at(node).filter(|_| self.nodes.with_key(&key).next() == Some(node))?;
        let endpoint = Some(SocketAddr::new(address, encryption.port));
        let of_machine = self.nodes.with_key(&key).filter(|name| **name != self.own.name);
        let allowed: BTreeSet<IpNet> = of_machine.flat_map(|name| self.allowed(name)).collect();
        let allowed = Arc::from_iter(allowed);
        Some((
            PeerKey { link: LinkName(WIREGUARD.into()), key },
            Peer { endpoint, allowed, keepalive: self.keepalive_of_first(&key), is_plain: true },
        ))
    }

    /// Returns the address that packets of the tunnel to a node with a key are sent to; `None` for this machine, and where there is no way.
    fn reached_at(&self, node: &CompactString) -> Option<IpAddr> {
        let key = self.nodes.key_of(node)?;
        if *node == self.own.name || self.wireguard.own.first == Some(key) {
            return None;
        }
        let both = self.nodes.both_of(node);
        let reached = |family: &Family| {
            let address = (*both.of(*family)).filter(|address| !self.is_here(address));
            address.filter(|_| self.own.addresses.of(*family).is_some())
        };
        Family::BOTH.iter().find_map(reached)
    }

    fn allowed(&self, node: &CompactString) -> BTreeSet<IpNet> {
        let addresses = self.nodes.addresses_of(node);
        let hosts = addresses.iter().map(|address| Family::host_prefix(*address));
        let pods = self.nodes.ranges_of(node).iter().copied().filter(|range| !self.pod_ranges.is_disputed(range));
        let routed = addresses.iter().flat_map(|address| self.routes.through_tunnel(*address));
        let is_on = |range: &IpNet| *self.own.families.of(Family::from(*range));
        hosts.chain(pods).chain(routed).filter(is_on).filter(|range| self.is_owned_by(node, *range)).collect()
    }

    fn is_owned_by(&self, node: &CompactString, range: IpNet) -> bool {
        let has_pods = |pods: &IpNet| {
            !self.pod_ranges.is_disputed(pods) && self.nodes.with_range(pods).any(|holder| holder == node)
        };
        let pods = self.pods_around(range);
        if self.own.all_pod_cidrs().any(|ours| ours.contains(&range)) {
            return false;
        }
        let address = range.addr();
        if range.prefix_len() == range.max_prefix_len() && (self.nodes.has(address) || self.is_here(&address)) {
            let is_its = self.holder_of(&address).is_some_and(|holder| self.nodes.are_one(holder, node));
            return !self.is_here(&address) && is_its && !self.is_in_pods_of_others(node, range);
        }
        match pods {
            Some(pods) => has_pods(&pods),
            // No route leads through an encrypted tunnel to what is around others (`protection`).
            None if self.is_around_others(range) => false,
            None => self.routes.tunnel_to(range).is_some_and(|remote| self.holder_of(&remote) == Some(node)),
        }
    }
}

#[cfg(test)]
mod tests;
