//! The families of the router: devices that packets go through, routes that were learned, and rules that choose a table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use sluice::config::Backend;
use sluice::kernel::Error;
use sluice::kernel::bridge::Bridge;
use sluice::kernel::ipset::SetName;
use sluice::kernel::iptables::{Piece, Table};
use sluice::kernel::link::LinkName;
use sluice::kernel::nftables::passages::{InHostChain, Passage, Passing};
use sluice::kernel::route::{Fate, Route, RouteKey, TABLE_MAIN, Taken};
use sluice::kernel::rule::RuleKey;
use sluice::kernel::tunnel::{ReceivePort, Tunnel};
use sluice::kernel::vxlan::{Entry, EntryKey, Vxlan, is_same_device};
use sluice::kernel::wireguard::{Contact, Peer, PeerKey, Peers, Wireguard};
use sluice::net::{Family, PerFamily, PublicKey};
use sluice::reconcile::{Optional, Target};
use sluice::router::apply::{HasKeys, HasSessions, Kernel, OwnsPorts, PodRoutes, Targets, set_names};
use sluice::router::linux::learned_routes;
use sluice::router::names::{BRIDGE, CHAINS, TUNNEL_TABLE, WIREGUARD_SECOND, is_tunnel, is_vxlan, is_wireguard};

use super::kinds::{Elements, Routes, Rows, RuleRows, Sets, Settings};
use super::table::RouterTable;
use super::{Memory, MemoryKernel, Object, State};

pub enum Bridges {}
pub enum Tunnels {}
pub enum OverlayDevices {}
pub enum OverlayEntries {}
pub enum WireguardDevices {}
pub enum WireguardPeers {}
pub enum ReceivePorts {}
pub enum LearnedRoutes {}
pub enum SourceRules {}
pub enum Passages {}

/// The port that is configured where nothing else is.
const PORT: u16 = 5555;

impl Rows for Bridges {
    type Key = LinkName;
    type Value = Bridge;
    const NAME: &'static str = "bridges";

    fn rows(state: &mut State) -> &mut BTreeMap<LinkName, Bridge> {
        &mut state.bridges
    }

    fn object(key: &LinkName) -> Object {
        Object::Bridge(key.clone())
    }

    fn is_ours(key: &LinkName, _: &Bridge) -> bool {
        key.0 == BRIDGE
    }
}

impl Rows for Tunnels {
    type Key = LinkName;
    type Value = Tunnel;
    const NAME: &'static str = "tunnels";

    fn rows(state: &mut State) -> &mut BTreeMap<LinkName, Tunnel> {
        &mut state.tunnels
    }

    fn object(key: &LinkName) -> Object {
        Object::Tunnel(key.clone())
    }

    fn is_ours(key: &LinkName, _: &Tunnel) -> bool {
        is_tunnel(&key.0)
    }

    /// Two ends have one tunnel (`ip_tunnel_newlink`).
    fn refusal(state: &State, key: &LinkName, want: Option<&Tunnel>) -> Option<Errno> {
        let ends = want.map(|tunnel| (tunnel.local, tunnel.remote))?;
        let mut others = state.tunnels.iter().filter(|(name, _)| *name != key);
        others.any(|(_, other)| (other.local, other.remote) == ends).then_some(Errno::EXIST)
    }

    /// One of another family is made anew, and has lost its routes.
    fn lose(state: &mut State, key: &LinkName, _: &Tunnel, want: Option<&Tunnel>) {
        let found = state.tunnels.get(key).copied();
        let stays = |(found, want): (Tunnel, &Tunnel)| Family::from(found.local) == Family::from(want.local) && want.up;
        if !found.zip(want).is_some_and(stays) {
            lose_routes(state, key);
        }
    }
}

impl Rows for OverlayDevices {
    type Key = LinkName;
    type Value = Vxlan;
    const NAME: &'static str = "overlay devices";

    fn rows(state: &mut State) -> &mut BTreeMap<LinkName, Vxlan> {
        &mut state.overlay_devices
    }

    fn object(key: &LinkName) -> Object {
        Object::OverlayDevice(key.clone())
    }

    fn is_ours(key: &LinkName, _: &Vxlan) -> bool {
        is_vxlan(&key.0)
    }

    /// There is one device with a number and a port in each address family.
    fn refusal(state: &State, key: &LinkName, want: Option<&Vxlan>) -> Option<Errno> {
        let want = want?;
        let place = |device: &Vxlan| (device.id, device.port, device.local.is_ipv4());
        let mut others = state.overlay_devices.iter().filter(|(name, _)| *name != key);
        others.any(|(_, other)| place(other) == place(want)).then_some(Errno::EXIST)
    }

    /// One with another number or port is made anew, and has lost its routes and entries.
    fn lose(state: &mut State, key: &LinkName, _: &Vxlan, want: Option<&Vxlan>) {
        let found = state.overlay_devices.get(key).copied();
        let is_same = found.zip(want).is_some_and(|(found, want)| is_same_device(&found, want));
        if !is_same {
            state.overlay_entries.retain(|entry, _| entry.link != *key);
        }
        if !is_same || !want.is_some_and(|want| want.up) {
            lose_routes(state, key);
        }
    }
}

impl Rows for OverlayEntries {
    type Key = EntryKey;
    type Value = Entry;
    const NAME: &'static str = "overlay entries";

    fn rows(state: &mut State) -> &mut BTreeMap<EntryKey, Entry> {
        &mut state.overlay_entries
    }

    fn object(key: &EntryKey) -> Object {
        Object::OverlayEntry(key.clone())
    }

    fn is_ours(key: &EntryKey, _: &Entry) -> bool {
        is_vxlan(&key.link.0)
    }

    fn refusal(state: &State, key: &EntryKey, want: Option<&Entry>) -> Option<Errno> {
        want.filter(|_| !state.overlay_devices.contains_key(&key.link)).map(|_| Errno::NODEV)
    }
}

impl Rows for WireguardDevices {
    type Key = LinkName;
    type Value = Wireguard;
    const NAME: &'static str = "wireguard devices";

    fn rows(state: &mut State) -> &mut BTreeMap<LinkName, Wireguard> {
        &mut state.wireguard_devices
    }

    fn object(key: &LinkName) -> Object {
        Object::WireguardDevice(key.clone())
    }

    fn is_ours(key: &LinkName, _: &Wireguard) -> bool {
        is_wireguard(&key.0)
    }

    fn lose(state: &mut State, key: &LinkName, _: &Wireguard, want: Option<&Wireguard>) {
        if want.is_none() {
            state.wireguard_peers.retain(|peer, _| peer.link != *key);
        }
        if !want.is_some_and(|want| want.up) {
            lose_routes(state, key);
        }
    }
}

impl Rows for WireguardPeers {
    type Key = PeerKey;
    type Value = Peer;
    const NAME: &'static str = "wireguard peers";

    fn rows(state: &mut State) -> &mut BTreeMap<PeerKey, Peer> {
        &mut state.wireguard_peers
    }

    fn object(key: &PeerKey) -> Object {
        Object::WireguardPeer(key.clone())
    }

    fn is_ours(key: &PeerKey, _: &Peer) -> bool {
        is_wireguard(&key.link.0)
    }

    fn refusal(state: &State, key: &PeerKey, want: Option<&Peer>) -> Option<Errno> {
        want.filter(|_| !state.wireguard_devices.contains_key(&key.link)).map(|_| Errno::NODEV)
    }

    fn grown(have: &Peer, want: &Peer) -> Peer {
        <Peers as Target>::grown(have, want)
    }

    /// A range belongs to the peer of a device that was given it last.
    fn follow(state: &mut State, key: &PeerKey, want: Option<&Peer>) {
        let Some(want) = want else { return };
        let others = state.wireguard_peers.iter_mut().filter(|(other, _)| other.link == key.link && *other != key);
        for (_, other) in others {
            other.allowed = other.allowed.iter().filter(|range| !want.allowed.contains(range)).copied().collect();
        }
    }
}

/// Memory makes a public key of nothing: all its devices have the same, but for a second one where a key follows.
impl HasKeys for Memory<WireguardDevices> {
    fn public_key(&self, link: &LinkName) -> Option<PublicKey> {
        let is_there = self.machine.with(|machine| machine.state.wireguard_devices.contains_key(link));
        self.next_key().filter(|_| link.0 == WIREGUARD_SECOND).or(PublicKey::new(&[1; 32])).filter(|_| is_there)
    }

    fn next_key(&self) -> Option<PublicKey> {
        PublicKey::new(&[2; 32]).filter(|_| self.is_changing())
    }

    fn has_next(&self) -> bool {
        self.machine.with(|machine| machine.key_files.has_next)
    }

    fn is_changing(&self) -> bool {
        let second = LinkName(WIREGUARD_SECOND.into());
        self.has_next() && self.machine.with(|machine| machine.state.wireguard_devices.contains_key(&second))
    }

    fn key_age(&self) -> Option<Duration> {
        self.machine.with(|machine| machine.key_files.age)
    }

    fn make_next(&mut self) -> Result<(), Error> {
        self.machine.with(|machine| {
            if machine.key_files.fail {
                machine.key_files.failed += 1;
                return Err(Error::errno("make private key", "wireguard.key", Errno::NOSPC));
            }
            machine.key_files.has_next = true;
            Ok(())
        })
    }

    fn take_next(&mut self) -> Result<(), Error> {
        self.machine.with(|machine| machine.key_files.has_next = false);
        Ok(())
    }
}

/// Nobody is at the other ends.
impl HasSessions for Memory<WireguardPeers> {
    fn contacts(&mut self) -> Result<BTreeMap<PeerKey, Contact>, Error> {
        Ok(BTreeMap::new())
    }
}

/// A device that goes takes its routes along, and of shared ones its part.
pub fn lose_routes(state: &mut State, link: &LinkName) {
    state.routes.retain(|_, route| {
        if route.next_hops.is_empty() {
            return true;
        }
        let route = Arc::make_mut(route);
        route.next_hops = route.next_hops.iter().filter(|hop| hop.link != *link).cloned().collect();
        !route.next_hops.is_empty()
    });
}

impl Rows for ReceivePorts {
    type Key = ReceivePort;
    type Value = ();
    const NAME: &'static str = "receiving ports";

    fn rows(state: &mut State) -> &mut BTreeMap<ReceivePort, ()> {
        &mut state.receive_ports
    }

    fn object(key: &ReceivePort) -> Object {
        Object::ReceivePort(*key)
    }

    fn is_ours(key: &ReceivePort, (): &()) -> bool {
        key.port == PORT
    }
}

impl OwnsPorts for Memory<ReceivePorts> {
    fn own(&mut self, ports: &BTreeSet<u16>) -> bool {
        let is_new = |port: &u16| !(self.ours)(&ReceivePort { family: Family::V4, port: *port }, &());
        let new: BTreeSet<u16> = ports.iter().copied().filter(is_new).collect();
        if new.is_empty() {
            return false;
        }
        let before = std::mem::replace(&mut self.ours, Box::new(|_: &ReceivePort, _: &()| false));
        self.ours = Box::new(move |key: &ReceivePort, value: &()| new.contains(&key.port) || before(key, value));
        true
    }
}

impl Rows for LearnedRoutes {
    type Key = RouteKey;
    type Value = Arc<Route>;
    const NAME: &'static str = "routes";

    fn rows(state: &mut State) -> &mut BTreeMap<RouteKey, Arc<Route>> {
        &mut state.routes
    }

    fn object(key: &RouteKey) -> Object {
        Object::Route(key.clone())
    }

    fn is_ours(key: &RouteKey, route: &Arc<Route>) -> bool {
        learned_routes().iter().any(|ours| (ours.table, ours.protocol) == (key.table, route.protocol))
    }

    fn refusal(state: &State, key: &RouteKey, want: Option<&Arc<Route>>) -> Option<Errno> {
        Routes::refusal(state, key, want)
    }
}

impl Rows for SourceRules {
    type Key = RuleKey;
    type Value = ();
    const NAME: &'static str = "source rules";

    fn rows(state: &mut State) -> &mut BTreeMap<RuleKey, ()> {
        &mut state.source_rules
    }

    fn object(key: &RuleKey) -> Object {
        Object::SourceRule(*key)
    }

    fn is_ours(key: &RuleKey, (): &()) -> bool {
        key.table == TUNNEL_TABLE
    }
}

impl Rows for Passages {
    type Key = Passage;
    type Value = Passing;
    const NAME: &'static str = "forward rules";

    fn rows(state: &mut State) -> &mut BTreeMap<Passage, Passing> {
        &mut state.passages
    }

    fn object(key: &Passage) -> Object {
        Object::Passage(*key)
    }

    fn is_ours(_: &Passage, _: &Passing) -> bool {
        true
    }
}

/// The host has a chain for IPv4 alone.
impl InHostChain for Memory<Passages> {
    fn needed(&mut self, of: &BTreeMap<Passage, Passing>) -> BTreeMap<Passage, Passing> {
        needed(of)
    }
}

/// Those rules for which the host has a chain.
pub fn needed(of: &BTreeMap<Passage, Passing>) -> BTreeMap<Passage, Passing> {
    of.iter().filter(|(key, _)| key.family == Family::V4).map(|(key, passing)| (*key, passing.clone())).collect()
}

impl MemoryKernel {
    /// Targets of the families that the router keeps, of both backends.
    pub fn router_targets(&self) -> Targets<MemoryKernel> {
        self.with(|machine| machine.router_backend = None);
        Targets {
            kernel: self.clone(),
            settings: Memory::new(self),
            bridges: Memory::new(self),
            sets: Optional::used(Memory { ours: Box::new(|set, _| is_our_set(set)), ..Memory::new(self) }),
            elements: Optional::used(Memory { ours: Box::new(|key, _| is_our_set(&key.set)), ..Memory::new(self) }),
            rules: Optional::used(Memory { ours: Box::new(|piece, _| is_our_piece(piece)), ..Memory::new(self) }),
            table: Optional::used(Memory::new(self)),
            passages: Optional::used(Memory::new(self)),
            receive_ports: Memory::new(self),
            tunnels: Memory::new(self),
            overlay_devices: Memory::new(self),
            overlay_entries: Memory::new(self),
            wireguard_devices: Memory::new(self),
            wireguard_peers: Memory::new(self),
            routes: Memory::new(self),
            source_rules: Memory::new(self),
        }
    }

    /// The same of one backend.
    pub fn router_targets_of(&self, backend: Backend) -> Targets<MemoryKernel> {
        let targets = self.router_targets();
        self.with(|machine| machine.router_backend = Some(backend));
        match backend {
            Backend::Iptables => Targets {
                table: Optional::unused(RouterTable::NAME),
                passages: Optional::unused(Passages::NAME),
                ..targets
            },
            Backend::Nftables => Targets {
                sets: Optional::unused(Sets::NAME),
                elements: Optional::unused(Elements::NAME),
                rules: Optional::unused(RuleRows::NAME),
                ..targets
            },
        }
    }
}

fn is_our_set(name: &SetName) -> bool {
    set_names().contains(name)
}

fn is_our_piece(piece: &Piece) -> bool {
    let has = |table: Table, chain: &str| CHAINS.contains(&(table, chain));
    match piece {
        Piece::Chain { table, chain, .. } => has(*table, chain),
        Piece::Jump { table, to, .. } => has(*table, to),
        Piece::Leftover { .. } => false,
    }
}

/// Memory has no routes of others in the place of ours.
impl PodRoutes for Memory<LearnedRoutes> {
    fn note_pod_range(&mut self, _: IpNet, _: bool) {}

    fn is_contested(&mut self, _: IpNet) -> bool {
        false
    }
}

impl Kernel for MemoryKernel {
    type Settings = Memory<Settings>;
    type Bridges = Memory<Bridges>;
    type Sets = Optional<Memory<Sets>>;
    type Elements = Optional<Memory<Elements>>;
    type Rules = Optional<Memory<RuleRows>>;
    type Table = Optional<Memory<RouterTable>>;
    type Passages = Optional<Memory<Passages>>;
    type ReceivePorts = Memory<ReceivePorts>;
    type Tunnels = Memory<Tunnels>;
    type OverlayDevices = Memory<OverlayDevices>;
    type OverlayEntries = Memory<OverlayEntries>;
    type WireguardDevices = Memory<WireguardDevices>;
    type WireguardPeers = Memory<WireguardPeers>;
    type Routes = Memory<LearnedRoutes>;
    type SourceRules = Memory<SourceRules>;

    fn neighbour_limits(&self) -> PerFamily<Option<usize>> {
        self.with(|machine| {
            machine.neighbour_limits_read += 1;
            machine.neighbour_limits
        })
    }

    /// Memory has no pods.
    fn bridge_is_free(&mut self) -> bool {
        true
    }

    /// The longest prefix of ours in the main table decides; memory has no routes of others.
    fn way_to(&mut self, to: IpAddr, pod: Option<(IpAddr, IpNet)>) -> Result<Option<Taken>, String> {
        let state = self.state();
        let around = state.routes.iter().filter(|(key, _)| key.table == TABLE_MAIN && key.destination.contains(&to));
        let found = around.max_by_key(|(key, _)| key.destination.prefix_len());
        let hop = found.and_then(|(_, route)| route.next_hops.first());
        Ok(pod.is_none().then(|| Taken {
            fate: if found.is_some() { Fate::Forwarded } else { Fate::Refused },
            decided_by: found.map(|(key, route)| (key.clone(), route.protocol)),
            link: hop.map(|hop| hop.link.clone()),
            link_mtu: hop.map(|_| 1500),
            gateway: hop.and_then(|hop| hop.gateway),
            source: found.and_then(|(_, route)| route.source),
            path_mtu: None,
        }))
    }

    fn has_other_backend(&mut self) -> bool {
        self.with(|machine| match machine.router_backend {
            Some(Backend::Nftables) => machine.state.sets.keys().any(is_our_set),
            Some(Backend::Iptables) => !machine.state.router_table.is_empty(),
            None => false,
        })
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.with(|machine| match machine.router_backend {
            Some(Backend::Nftables) => {
                machine.lose_all::<RuleRows>(is_our_piece);
                machine.lose_all::<Elements>(|key| is_our_set(&key.set));
                machine.lose_all::<Sets>(is_our_set);
            }
            Some(Backend::Iptables) => {
                machine.lose_all::<RouterTable>(|_| true);
                machine.lose_all::<Passages>(|_| true);
            }
            None => {}
        });
        Some(Vec::new())
    }
}
