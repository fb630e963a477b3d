//! Tunnels and devices of `vxlan` and `wireguard`, with what they know of other nodes.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{HasKeys, HasSessions, Kernel, Leave, Mirrors};
use crate::kernel::link::LinkName;
use crate::kernel::route::{NextHop, Route, RouteKey, TABLE_MAIN};
use crate::kernel::rule::RuleKey;
use crate::kernel::sysctl;
use crate::kernel::tunnel::{ReceivePort, Tunnel};
use crate::kernel::vxlan::gateway;
use crate::kernel::wireguard::{Contact, Peer, PeerKey};
use crate::model::Authority;
use crate::net::{Family, PerFamily, PublicKey};
use crate::reconcile::{Growth, MayGrow, Moment, Reflection, Target};
use crate::router::desired::Desired;
use crate::router::names::{WIREGUARD, WIREGUARD_SECOND, is_tunnel, is_wireguard, vxlan};
use crate::router::plan::OwnKeys;
use crate::router::problem::{About, Problem};
use crate::router::routes::Routes;
use crate::router::{overlay_guard, settings};

impl<K: Kernel> Mirrors<K> {
    /// Creates and changes devices for tunnels to single nodes; returns those that came or changed.
    pub(super) fn grow_tunnels(&mut self, learned: &Routes, leave: Leave, at: Moment) -> Vec<LinkName> {
        if self.tunnels.is_settled() {
            return Vec::new();
        }
        let there: BTreeSet<LinkName> = self.tunnels.known_keys().cloned().collect();
        let kept = self.kept_tunnels(learned, leave, at);
        let may = MayGrow { come: |_: &LinkName| true, change: |name: &LinkName| !kept.contains(name) };
        let grown = self.tunnels.grow_those(learned.tunnels(), Growth::Full, at, may);
        if grown.iter().any(|name| there.contains(name)) {
            // A tunnel that was recreated, or set up, has lost its routes.
            self.routes.forget();
            self.routes.try_at_once();
        }
        grown
    }

    /// Returns the devices that are not changed yet: nothing that was learned leads through them, and routes of an earlier run, which may, are to go on as they were
    /// sent. One that takes nothing is changed: it is down, has no address, or other ends.
    fn kept_tunnels(&mut self, learned: &Routes, leave: Leave, at: Moment) -> BTreeSet<LinkName> {
        if leave.routes_are_complete && leave.authority >= Authority::Partial || !self.tunnels.learn(at) {
            return BTreeSet::new();
        }
        let ends = |tunnel: &Tunnel| (tunnel.local, tunnel.remote);
        let takes = |(name, have): &(&LinkName, &Tunnel)| {
            have.up && have.is_numbered && learned.tunnels().get(*name).is_some_and(|wanted| ends(wanted) == ends(have))
        };
        let seen = self.tunnels.seen().into_iter().flatten();
        let kept = seen.filter(|(name, _)| !learned.is_led_through_device(name)).filter(takes);
        kept.map(|(name, _)| name.clone()).collect()
    }

    /// Writes settings that differ, those of devices aside that have no address yet: loose filtering drops there what another device leads back to
    /// ([`STAND_IN`](crate::kernel::address::STAND_IN)), which none does not. They get theirs with the address.
    pub(super) fn keep_settings(&mut self, desired: &Desired, at: Moment) {
        if self.settings.is_settled() {
            return;
        }
        let mut rules = desired.settings.clone();
        for name in self.without_address(at) {
            rules.remove(&settings::received_by(&name).0);
        }
        sysctl::keep(&mut self.settings, &rules, at);
        if rules != desired.settings {
            self.settings.forget();
        }
    }

    /// Returns the devices of tunnels that have no address as last seen, and those of which that is not known.
    fn without_address(&mut self, at: Moment) -> BTreeSet<LinkName> {
        let _ = (self.tunnels.learn(at), self.overlay_devices.learn(at), self.wireguard_devices.learn(at));
        let tunnels = self.tunnels.seen().into_iter().flatten().map(|(name, one)| (name, one.is_numbered));
        let overlay = self.overlay_devices.seen().into_iter().flatten().map(|(name, one)| (name, one.is_numbered));
        let wireguard = self.wireguard_devices.seen().into_iter().flatten().map(|(name, one)| (name, one.is_numbered));
        let without = tunnels.chain(overlay).chain(wireguard).filter(|(_, is_numbered)| !is_numbered);
        let uncertain = self.tunnels.uncertain_keys().chain(self.overlay_devices.uncertain_keys());
        let uncertain = uncertain.chain(self.wireguard_devices.uncertain_keys());
        without.map(|(name, _)| name).chain(uncertain).cloned().collect()
    }

    /// Writes the settings of devices that have just come: they have those of new devices, by which packets might be dropped that arrive there.
    pub(super) fn keep_settings_of(&mut self, came: &[LinkName], desired: &Desired, at: Moment) {
        let has_setting = |name: &LinkName| desired.settings.contains_key(&settings::received_by(name).0);
        if came.iter().any(has_setting) {
            self.settings.forget();
            self.keep_settings(desired, at);
        }
    }

    /// A device comes, and changes, only where the rules are in force that keep everybody but nodes from sending into it. Returns those that did.
    pub(super) fn grow_overlay(&mut self, desired: &Desired, learned: &Routes, at: Moment) -> Vec<LinkName> {
        let there: BTreeSet<LinkName> = self.overlay_devices.known_keys().cloned().collect();
        let guarded = PerFamily::from_fn(|family| self.is_guarded(desired, family));
        let is_guarded = |name: &LinkName| guarded.iter().any(|(family, guarded)| *guarded && *name == vxlan(family));
        let grown = self.overlay_devices.grow_among(&desired.overlay_devices, Growth::Full, at, is_guarded);
        if !grown.is_empty() {
            // Those that failed because there was no device, as while it waited for its guard, need not wait any longer.
            self.overlay_entries.try_at_once();
            self.routes.try_at_once();
        }
        if grown.iter().any(|name| there.contains(name)) {
            // A device that was recreated, or set up, has lost its routes and entries.
            self.overlay_entries.forget();
            self.routes.forget();
        }
        self.clear_handed_over(learned, at);
        self.overlay_entries.grow(learned.entries(), Growth::Full, at);
        grown
    }

    /// Returns the devices that came or changed.
    pub(super) fn grow_wireguard(
        &mut self,
        desired: &Desired,
        learned: &Routes,
        leave: Leave,
        at: Moment,
    ) -> Vec<LinkName> {
        let there: BTreeSet<LinkName> = self.wireguard_devices.known_keys().cloned().collect();
        let grown = self.wireguard_devices.grow(&desired.wireguard_devices, Growth::Full, at);
        if !grown.is_empty() {
            // Those that failed because there was no device need not wait any longer.
            self.wireguard_peers.forget();
            self.wireguard_peers.try_at_once();
            self.routes.try_at_once();
        }
        if grown.iter().any(|name| there.contains(name)) {
            // A device that was set up has lost its routes.
            self.routes.forget();
        }
        self.grow_peers(desired, learned, leave, at);
        grown
    }

    /// Peers come before routes lead to them. What an earlier run has given a peer may be known of a route that is not learned yet.
    fn grow_peers(&mut self, desired: &Desired, learned: &Routes, leave: Leave, at: Moment) {
        let Some(growth) = leave.growth() else { return };
        if self.wireguard_peers.is_settled() || !self.wireguard_peers.learn(at) {
            return;
        }
        let wanted = &desired.wireguard_peers;
        let losing = self.losing(wanted);
        let is_known = leave.routes_are_complete || nothing_is_learned(desired, learned);
        let former = (!is_known).then(|| self.with_former_ranges(wanted));
        let grown_to = former.as_ref().unwrap_or(wanted);
        // What is only remembered takes nothing from what the kernel holds, which is newer.
        let come = |key: &PeerKey| growth == Growth::Full || !losing.contains_key(key);
        let may = MayGrow { come, change: |_: &PeerKey| true };
        let grown = self.wireguard_peers.grow_those(grown_to, growth, at, may);
        let has_more = former.iter().flatten().filter(|(key, peer)| wanted.get(key) != Some(peer));
        has_more.for_each(|(key, _)| self.wireguard_peers.mark(key.clone()));
        for key in grown.iter().filter_map(|key| losing.get(key)).flatten() {
            self.wireguard_peers.doubt(key.clone());
        }
    }

    /// Returns which peers in the kernel have ranges of those that may be wanted differently: the kernel takes a range from the peer that had it. No two are wanted with
    /// one range, so who loses one may be wanted differently, too: the work is that of the change.
    fn losing(&self, wanted: &BTreeMap<PeerKey, Peer>) -> BTreeMap<PeerKey, BTreeSet<PeerKey>> {
        let of_all = || wanted.iter().collect::<Vec<_>>();
        let may_differ = self
            .wireguard_peers
            .unsettled()
            .map_or_else(of_all, |keys| keys.iter().filter_map(|key| wanted.get_key_value(key)).collect());
        let mut wanted_by: BTreeMap<(&LinkName, IpNet), Vec<&PeerKey>> = BTreeMap::new();
        for (key, peer) in may_differ {
            peer.allowed.iter().for_each(|range| wanted_by.entry((&key.link, *range)).or_default().push(key));
        }
        let mut losing: BTreeMap<PeerKey, BTreeSet<PeerKey>> = BTreeMap::new();
        let seen = self.wireguard_peers.seen().into_iter();
        let owners: Vec<(&PeerKey, &Peer)> = match self.wireguard_peers.unsettled() {
            Some(keys) => seen.flat_map(|seen| keys.iter().filter_map(|key| seen.get_key_value(key))).collect(),
            None => seen.flatten().collect(),
        };
        for (owner, peer) in owners {
            let takers = peer.allowed.iter().filter_map(|range| wanted_by.get(&(&owner.link, *range))).flatten();
            for taker in takers.filter(|taker| **taker != owner) {
                losing.entry((*taker).clone()).or_default().insert(owner.clone());
            }
        }
        losing
    }

    /// Returns the wanted peers, each with what it has in the kernel besides and no other one wants: a route that is not learned yet may lead there.
    fn with_former_ranges(&self, wanted: &BTreeMap<PeerKey, Peer>) -> BTreeMap<PeerKey, Peer> {
        let of_peer = |(key, peer): (&PeerKey, &Peer)| -> Vec<(LinkName, IpNet)> {
            peer.allowed.iter().map(|range| (key.link.clone(), *range)).collect()
        };
        let taken: BTreeSet<(LinkName, IpNet)> = wanted.iter().flat_map(of_peer).collect();
        let mut grown = wanted.clone();
        for (key, before) in self.wireguard_peers.seen().into_iter().flatten() {
            let Some(peer) = grown.get_mut(key) else { continue };
            let former = before.allowed.iter().filter(|range| !taken.contains(&(key.link.clone(), **range)));
            let allowed: BTreeSet<IpNet> = former.chain(peer.allowed.iter()).copied().collect();
            peer.allowed = Arc::from_iter(allowed);
        }
        grown
    }

    /// Returns the plain routes in the kernel where walls are wanted. A run with other flags has left them, and they are in front of the walls: packets
    /// would leave by them unencrypted. None of them is wanted, so what differs from what is wanted is looked at alone, where that is known.
    pub(super) fn past_walls(&mut self, learned: &Routes, at: Moment) -> BTreeSet<RouteKey> {
        if learned.walled().next().is_none() || self.routes.is_settled() || !self.routes.learn(at) {
            return BTreeSet::new();
        }
        let Some(seen) = self.routes.seen() else { return BTreeSet::new() };
        let is_plain = |route: &Route| route.next_hops.iter().any(|hop| !is_wireguard(&hop.link.0));
        let is_past = |key: &RouteKey, route: &Route| {
            key.table == TABLE_MAIN && is_plain(route) && learned.is_walled(key.destination)
        };
        if let Some(keys) = self.routes.unsettled() {
            let is_there = |key: &&RouteKey| seen.get(key).is_some_and(|route| is_past(key, route));
            return keys.iter().filter(is_there).cloned().collect();
        }
        let inside = |range: IpNet| {
            let last = RouteKey::new(TABLE_MAIN, Family::host_prefix(range.broadcast()));
            let first = RouteKey { metric: 0, ..RouteKey::new(TABLE_MAIN, range) };
            seen.range(first..=RouteKey { metric: u32::MAX, ..last })
        };
        let past = learned.walled().flat_map(inside);
        past.filter(|(key, route)| is_past(key, route)).map(|(key, _)| key.clone()).collect()
    }

    /// Returns those of these routes that go at once. A route through a device of ours by which packets are received still (`--overlay-encap-receive`) is the way
    /// of the run before in a change to encryption: it serves until all routes are learned, as in every other change, because pods would be cut off from nodes
    /// whose session is not up yet. Nothing is certain to be encrypted before the change has reached all nodes.
    pub(super) fn without_received(
        &self,
        mut past_walls: BTreeSet<RouteKey>,
        desired: &Desired,
        leave: Leave,
    ) -> BTreeSet<RouteKey> {
        if !leave.routes_are_complete {
            // A device for a single node is wanted once a route leads through it; until then it is that of the run before.
            let is_received = |name: &LinkName| {
                desired.has_tunnels && is_tunnel(&name.0) || desired.overlay_devices.contains_key(name)
            };
            let serves = |route: &Arc<Route>| route.next_hops.iter().all(|hop| is_received(&hop.link));
            let seen = self.routes.seen();
            past_walls.retain(|key| !seen.and_then(|seen| seen.get(key)).is_some_and(serves));
        }
        past_walls
    }

    /// Returns the wanted rules that choose the tunnel table, with those in the kernel that stay for now ([`Desired::keeps_source_rules`]).
    pub(super) fn with_kept_rules(&mut self, desired: &Desired, at: Moment) -> BTreeMap<RuleKey, ()> {
        let mut rules = desired.source_rules.clone();
        if !self.source_rules.is_settled() && self.source_rules.learn(at) {
            let is_kept = |rule: &&RuleKey| *desired.keeps_source_rules.of(Family::from(rule.source));
            let seen = self.source_rules.seen().into_iter().flat_map(|seen| seen.keys());
            rules.extend(seen.filter(is_kept).map(|rule| (*rule, ())));
        }
        rules
    }

    /// Deletes peers of nodes that are none any more, which no learned route can change. Without an address of our own no device is wanted: where
    /// routes still lead to it, it stays with its peers. A session is not kept alive any more once all routes have left it.
    pub(super) fn shrink_wireguard(&mut self, desired: &Desired, leave: Leave, at: Moment) {
        if leave.routes_are_complete || !desired.wireguard_devices.is_empty() {
            let wanted = &desired.wireguard_peers;
            let failing: BTreeSet<IpNet> = self.routes.failing_to_grow().map(|key| key.destination).collect();
            // Where routes cannot be read none was changed in this round, and none fails.
            let are_known = self.routes.seen().is_some();
            let is_led_to = |peer: &Peer| !are_known || peer.allowed.iter().any(|range| failing.contains(range));
            let may_lessen = |key: &PeerKey| !wanted.get(key).is_some_and(is_led_to);
            self.wireguard_peers.shrink_those(wanted, at, |_, _| true, may_lessen);
        }
    }

    /// Returns the keys of this node, with which others encrypt.
    pub fn own_keys(&self) -> OwnKeys {
        let devices = self.wireguard_devices.peek();
        let key = |name: &str| devices.public_key(&LinkName(name.into()));
        OwnKeys {
            first: key(WIREGUARD),
            second: key(WIREGUARD_SECOND),
            has_next: devices.has_next(),
            is_changing: devices.is_changing(),
        }
    }

    /// Returns the public one of the key that follows the first one, once it is known.
    pub fn next_key(&self) -> Option<PublicKey> {
        self.wireguard_devices.peek().next_key()
    }

    /// Returns the time since the first key was made; `None` where that is not known.
    pub fn key_age(&self) -> Option<Duration> {
        self.wireguard_devices.peek().key_age()
    }

    /// Reads the devices of `wireguard` where they are not known; returns whether they are.
    pub fn learn_wireguard(&mut self, at: Moment) -> bool {
        self.wireguard_devices.learn(at)
    }

    /// Returns whether there is a second device of `wireguard`, as last seen.
    pub fn has_second(&self) -> bool {
        self.wireguard_devices.has(&LinkName(WIREGUARD_SECOND.into()))
    }

    /// Returns the state of the sessions with other nodes, and how much was sent to them.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn contacts(&mut self) -> Result<BTreeMap<PeerKey, Contact>, <K::WireguardPeers as Target>::Error> {
        self.wireguard_peers.target().contacts()
    }

    /// Has the key made that follows the first one, for the second device.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn make_next_key(&mut self) -> Result<(), <K::WireguardDevices as Target>::Error> {
        self.wireguard_devices.forget();
        self.wireguard_devices.target().make_next()
    }

    /// Has the key that follows take the place of the first one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn take_next_key(&mut self) -> Result<(), <K::WireguardDevices as Target>::Error> {
        self.wireguard_devices.forget();
        self.wireguard_devices.target().take_next()
    }

    /// Returns whether all rules that guard the device of a family were seen in the kernel.
    fn is_guarded(&self, desired: &Desired, family: Family) -> bool {
        let pieces =
            desired.rules.iter().filter(|(piece, _)| overlay_guard::guards_vxlan(piece) && piece.family() == family);
        let has_rules = pieces
            .into_iter()
            .all(|(piece, rules)| self.rules.seen().is_some_and(|seen| seen.get(piece) == Some(rules)));
        has_rules
            && overlay_guard::guarding_vxlan(family).iter().all(|chain| {
                let wanted = desired.table.get(chain);
                wanted.is_none() || self.table.seen().is_some_and(|seen| seen.get(chain) == wanted)
            })
    }

    /// Returns the families whose device of `vxlan` waits for rules that cannot be written, or stands without them, as problems.
    pub fn unguarded(&self, desired: &Desired) -> Vec<Problem> {
        let lacks = |family: &Family| {
            desired.overlay_devices.contains_key(&vxlan(*family)) && !self.is_guarded(desired, *family)
        };
        let problem = |family: Family| {
            let name = vxlan(family).0;
            let outcome = match self.overlay_devices.has(&vxlan(family)) {
                true => format!("{name} takes packets of everybody"),
                false => format!("{name} is not made, and no pod of another node is reached through it"),
            };
            let why = "the rules that keep others than nodes from sending into the tunnels are not in force";
            Problem::new(About::Family(family), format!("{outcome}: {why}"))
        };
        let of_devices = Family::BOTH.into_iter().filter(lacks).map(problem);
        let guarded = self.guarded_receive_ports();
        let is_open = |key: &&ReceivePort| !guarded.contains(&(key.family, key.port));
        let of_port = |key: &ReceivePort| {
            let ReceivePort { family, port } = key;
            let outcome = match self.receive_ports.has(key) {
                true => format!("the port {port} of fou takes packets of everybody over {family}"),
                false => format!(
                    "the port {port} of fou is not opened for {family}, and nothing comes through these tunnels"
                ),
            };
            Problem::new(
                About::Family(*family),
                format!("{outcome}: the rules that keep others than nodes from it are not in force"),
            )
        };
        of_devices.chain(desired.receive_ports.keys().filter(is_open).map(of_port)).collect()
    }

    /// Returns whether packets are, or may be, received where none are wanted any more: by a device of `vxlan`, or at a port of `fou`.
    pub(super) fn receives_formerly(&self, desired: &Desired) -> bool {
        let (mut devices, mut ports) = (self.overlay_devices.known_keys(), self.receive_ports.known_keys());
        self.overlay_devices.seen().is_none()
            || self.receive_ports.seen().is_none()
            || devices.any(|name| !desired.overlay_devices.contains_key(name))
            || ports.any(|port| !desired.receive_ports.contains_key(port))
    }

    /// Deletes a tunnel once no route uses it: the kernel would silently delete its routes.
    pub(super) fn shrink_tunnels(&mut self, desired: &Desired, learned: &Routes, at: Moment) {
        let ways = [self.tunnels.is_settled(), self.overlay_entries.is_settled()];
        let devices = [self.overlay_devices.is_settled(), self.wireguard_devices.is_settled()];
        // Who uses what takes a look at all routes.
        if ways.into_iter().chain(devices).all(|is_settled| is_settled) {
            return;
        }
        // A route that could not be changed or deleted may still use the tunnel that it is to leave, and one that could not be made may be there.
        let hops = || self.routes.possible().map(|routes| routes.flat_map(|route| &*route.next_hops));
        // Nothing is looked through where nothing is to go.
        let used = LazyCell::new(|| hops().map(|hops| hops.map(|hop| &hop.link).collect::<BTreeSet<&LinkName>>()));
        let is_unused = |name: &LinkName| used.as_ref().is_some_and(|used| !used.contains(name));
        self.tunnels.shrink_where(learned.tunnels(), at, |name, _| is_unused(name));
        let gateways = LazyCell::new(|| {
            let gateways = |hop: &'_ NextHop| Some((hop.link.clone(), hop.gateway?));
            hops().map(|hops| hops.filter_map(gateways).collect::<BTreeSet<(LinkName, IpAddr)>>())
        });
        self.overlay_entries.shrink_where(learned.entries(), at, |key, _| {
            gateways.as_ref().is_some_and(|used| !used.contains(&(key.link.clone(), gateway(key.remote))))
        });
        self.overlay_devices.shrink_where(&desired.overlay_devices, at, |name, _| is_unused(name));
        self.wireguard_devices.shrink_where(&desired.wireguard_devices, at, |name, _| is_unused(name));
    }
}

/// Returns whether Node objects give all routes and there is nobody to learn others from.
fn nothing_is_learned(desired: &Desired, learned: &Routes) -> bool {
    learned.given().next().is_some() && desired.expected().next().is_none()
}
