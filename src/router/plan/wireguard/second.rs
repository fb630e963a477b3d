//! The second device of `wireguard`: whether there is one, the peers on it, and which packets are sent by it.
//!
//! Why, and what follows from it: [`rotation`](crate::router::rotation). All of it is a function of Node objects, of our own keys and of the sessions that the kernel
//! tells, so a process that has just started decides as the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use crate::kernel::link::LinkName;
use crate::kernel::wireguard::{Peer, PeerKey, Session};
use crate::net::PublicKey;
use crate::router::desired::RouterChanges;
use crate::router::names::{WIREGUARD, WIREGUARD_SECOND};
use crate::router::plan::replace;

/// Seconds between packets that show that a session is wanted, or used.
const KEEPALIVE: u16 = 5;

/// The keys of our own devices.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OwnKeys {
    /// The public key of the first device, once the kernel has told it.
    pub first: Option<PublicKey>,
    /// The public key of the second one, while there is one.
    pub second: Option<PublicKey>,
    /// There is a key that follows the first one.
    pub has_next: bool,
    /// The second device has that key.
    pub is_changing: bool,
}

/// State of the second device.
#[derive(Default, Debug)]
pub(super) struct Second {
    /// The sessions with all peers; `None` before the kernel was asked.
    sessions: Option<BTreeMap<PeerKey, Session>>,
    /// Nodes with peers whose packets are sent by the second device.
    used: BTreeSet<CompactString>,
    /// Others know that our key changes.
    is_known: bool,
}

impl Plan {
    /// Sets the keys of our own devices, as the kernel and the files tell them.
    pub fn set_own_keys(&mut self, keys: OwnKeys) -> RouterChanges {
        let mut changed = RouterChanges::default();
        let before = std::mem::replace(&mut self.wireguard.own, keys);
        if before != keys && self.decrypts() {
            self.wireguard.stale.extend(self.wireguard.by_node.keys().cloned());
            let own = [before.first, keys.first];
            let others: Vec<CompactString> =
                own.iter().flatten().flat_map(|key| self.nodes.with_key(key)).cloned().collect();
            self.wireguard.stale.extend(others);
            self.settle_routes(&mut changed);
        }
        changed
    }

    /// Sets the state of the sessions with peers, as the kernel tells it.
    pub fn set_sessions(&mut self, sessions: BTreeMap<PeerKey, Session>) -> RouterChanges {
        let mut changed = RouterChanges::default();
        if self.wireguard.second.sessions.as_ref() != Some(&sessions) && self.decrypts() {
            if self.wireguard.second.sessions.replace(sessions).is_none() {
                // By which device the kernel's routes lead that an earlier process has left is not known; those that are desired so far lead by the first.
                let all: Vec<CompactString> = self.wireguard.by_node.keys().cloned().collect();
                all.iter().for_each(|node| self.look_at_ways_to(node));
                self.wireguard.second.used.extend(all);
            }
            self.settle_routes(&mut changed);
        }
        changed
    }

    /// Returns whether there is to be a second device: a key changes, as it is or as others know it, or a session on it may still carry packets.
    pub fn wants_second(&self) -> bool {
        let own = self.wireguard.own;
        // One that has another key than the next goes first.
        let is_to_change = own.is_changing || own.has_next && own.second.is_none();
        self.decrypts() && (is_to_change || !self.nodes.changing().is_empty() || self.uses_second())
    }

    /// Returns whether a session on the second device may carry packets. Before anything is known of them one may.
    fn uses_second(&self) -> bool {
        match &self.wireguard.second.sessions {
            None => self.wireguard.own.second.is_some(),
            Some(sessions) => {
                sessions.iter().any(|(key, session)| key.link.0 == WIREGUARD_SECOND && *session != Session::Over)
            }
        }
    }

    /// Returns the other nodes whose keys change.
    pub fn others_change(&self) -> impl Iterator<Item = &CompactString> {
        self.nodes.changing().iter().filter(|node| **node != self.own.name)
    }

    /// Returns the other nodes that say that our key is theirs: one machine with two Nodes.
    pub fn namesakes(&self) -> impl Iterator<Item = &CompactString> {
        let own = self.wireguard.own.first.iter();
        own.flat_map(|key| self.nodes.with_key(key)).filter(|node| **node != self.own.name)
    }

    /// Returns the nodes with which there is a session by our first key, each with whether there is one by the key that follows.
    pub fn by_first_key(&self) -> impl Iterator<Item = (&CompactString, bool)> {
        let by_node = self.wireguard.by_node.iter();
        by_node.filter_map(|(node, keys)| {
            let of = |link: &str| keys.iter().find(|key| key.link.0 == link).map(|key| self.session(key));
            let is_used = of(WIREGUARD).is_some_and(|session| session != Session::Over);
            is_used.then(|| (node, of(WIREGUARD_SECOND) == Some(Session::Live)))
        })
    }

    /// Returns the device by which packets to a node with this address are sent.
    pub(in crate::router::plan) fn device_to(&self, remote: IpAddr) -> LinkName {
        let of_second = |node: &CompactString| {
            let key = self.nodes.key_of(node);
            let owner = key.and_then(|key| self.nodes.with_key(&key).next());
            owner.is_some_and(|owner| self.wireguard.second.used.contains(owner))
        };
        let is_second = !self.wireguard.second.used.is_empty() && self.holder_of(&remote).is_some_and(of_second);
        LinkName(if is_second { WIREGUARD_SECOND } else { WIREGUARD }.into())
    }

    /// Brings the second device up to date, and which packets are sent by it.
    pub(in crate::router::plan) fn settle_second(&mut self, changed: &mut RouterChanges) {
        if !self.decrypts() {
            return;
        }
        let devices = self.wireguard_devices();
        let differing = replace(&mut self.desired.wireguard_devices, devices);
        let has_other_second = differing.iter().any(|name| name.0 == WIREGUARD_SECOND);
        let is_known = self.nodes.changing().contains(&self.own.name);
        if std::mem::replace(&mut self.wireguard.second.is_known, is_known) != is_known || has_other_second {
            self.wireguard.stale.extend(self.wireguard.by_node.keys().cloned());
        }
        if has_other_second {
            self.replace_settings(changed);
        }
        changed.wireguard_devices.extend(differing);
        if self.wireguard.second.used.is_empty() && !self.wants_second() {
            return;
        }
        let candidates = self.wireguard.by_node.keys().chain(&self.wireguard.stale);
        let used: BTreeSet<CompactString> = candidates.filter(|node| self.goes_by_second(node)).cloned().collect();
        let before = std::mem::replace(&mut self.wireguard.second.used, used);
        let others: Vec<CompactString> = before.symmetric_difference(&self.wireguard.second.used).cloned().collect();
        others.iter().for_each(|owner| self.look_at_ways_to(owner));
    }

    /// Has the routes to the machine of a node, and its peers, decided anew.
    fn look_at_ways_to(&mut self, owner: &CompactString) {
        let key = self.nodes.key_of(owner);
        let of_machine = key.iter().flat_map(|key| self.nodes.with_key(key)).chain([owner]);
        let addresses: BTreeSet<IpAddr> = of_machine.flat_map(|node| self.nodes.addresses_of(node)).copied().collect();
        addresses.iter().for_each(|address| self.routes.look_again(*address));
        self.wireguard.stale_addresses.extend(addresses);
        self.wireguard.stale.insert(owner.clone());
    }

    /// Returns whether packets to the machine of a node are sent by the second device: while its key or ours changes, as soon as there is a session, and behind that
    /// until there is one on the first device. That it went by the second one before has to be known of no node that was never looked at: then the kernel's routes may.
    fn goes_by_second(&self, node: &CompactString) -> bool {
        let Some(first) = self.nodes.key_of(node) else { return false };
        let is_owner = *node != self.own.name && self.nodes.with_key(&first).next() == Some(node);
        let Some(second) = self.second_key(node).filter(|_| is_owner && self.wants_second()) else { return false };
        let is_live = |link: &str, key| self.session(&PeerKey { link: LinkName(link.into()), key }) == Session::Live;
        // A session on the first device that ends because nobody sends is no reason to go back.
        let may_have_gone = self.wireguard.second.used.contains(node) || !self.wireguard.by_node.contains_key(node);
        let may_go = may_have_gone || !self.is_disputed(node, &second);
        let is_wanted = self.is_changing(node) && may_go || may_have_gone && !is_live(WIREGUARD, first);
        is_live(WIREGUARD_SECOND, second) && is_wanted
    }

    fn session(&self, key: &PeerKey) -> Session {
        let sessions = self.wireguard.second.sessions.as_ref();
        sessions.and_then(|sessions| sessions.get(key)).copied().unwrap_or(Session::Over)
    }

    /// Returns whether the key of a node changes, or ours; that is over when others know the new one as the first.
    fn is_changing(&self, node: &CompactString) -> bool {
        let changing = self.nodes.changing();
        self.wireguard.own.is_changing || changing.contains(&self.own.name) || changing.contains(node)
    }

    /// The key of the second device of a node's machine; none where it is ours.
    fn second_key(&self, node: &CompactString) -> Option<PublicKey> {
        self.nodes.second_key_of(node).filter(|key| self.wireguard.own.second != Some(*key))
    }

    /// Returns whether another machine than a node's says that this key of its second device is its own: whoever may write a Node can copy a key.
    fn is_disputed(&self, node: &CompactString, key: &PublicKey) -> bool {
        self.nodes.another(node, self.nodes.with_second_key(key)).is_some()
    }

    /// Returns the nodes, this one among them, of which several machines say that one key of a second device is theirs.
    pub fn disputed(&self) -> impl Iterator<Item = &CompactString> {
        let nodes = self.wireguard.by_node.keys().chain([&self.own.name]);
        let disputed = |node: &&CompactString| {
            self.nodes.second_key_of(node).is_some_and(|second| self.is_disputed(node, &second))
        };
        nodes.filter(disputed)
    }

    /// Returns the peer on the second device for one on the first. What several machines say is theirs has one peer, of the first of them that has one, with the ranges
    /// of all: only who has the private key can use them, and which of them that is nobody knows. It has no endpoint but the one that the kernel has, which is where packets with that
    /// key come from: its holder knows our endpoint, and sends every five seconds.
    pub(super) fn second_peer(&self, node: &CompactString, first: &Peer) -> Option<(PeerKey, Peer)> {
        let encryption = self.config.overlay?.wireguard().filter(|_| self.wants_second())?;
        let key = self.second_key(node)?;
        let peer_of =
            |other: &CompactString| if other == node { Some(first.clone()) } else { Some(self.peer(other)?.1) };
        let claimants = self.nodes.with_second_key(&key).filter_map(|other| Some((other, peer_of(other)?)));
        let claimants: Vec<(&CompactString, Peer)> = claimants.collect();
        if claimants.first().is_none_or(|(other, _)| *other != node) {
            return None;
        }
        let at_second = |endpoint: SocketAddr| SocketAddr::new(endpoint.ip(), encryption.second_port());
        let (endpoint, allowed) = match &*claimants {
            [_] => (first.endpoint.map(at_second), Arc::clone(&first.allowed)),
            all => {
                let ranges: BTreeSet<IpNet> = all.iter().flat_map(|(_, peer)| peer.allowed.iter().copied()).collect();
                (None, Arc::from_iter(ranges))
            }
        };
        let is_shown = |node: &CompactString| self.is_changing(node) || self.wireguard.second.used.contains(node);
        let keepalive = if claimants.iter().any(|(node, _)| is_shown(node)) { KEEPALIVE } else { 0 };
        let peer = Peer { endpoint, allowed, keepalive, is_plain: true };
        Some((PeerKey { link: LinkName(WIREGUARD_SECOND.into()), key }, peer))
    }

    /// Returns the interval at which a node is shown that the session on the first device is used although a key changes, or is wanted again.
    pub(super) fn keepalive_of_first(&self, node: &CompactString) -> u16 {
        let is_shown = self.wants_second() && self.is_changing(node) != self.wireguard.second.used.contains(node);
        if is_shown { KEEPALIVE } else { 0 }
    }
}
