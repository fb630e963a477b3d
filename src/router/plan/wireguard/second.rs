//! The second device of `wireguard`: whether there is one, the peers on it, and which packets are sent by it.
//!
//! Why, and what follows from it: [`rotation`](crate::router::rotation). All of it is a function of Node objects, of our own keys and of the sessions that the kernel
//! tells, so a process that has just started decides as the one before.
//!
//! On the first device the Nodes with one key are one machine, with one peer that has the ranges of all. Here each Node is for itself: whoever may write an older Node can copy the first key of another one
//! and tell a next key of its own, which it can decrypt with. So a key has the ranges of the Nodes alone that say that it is theirs, and what several of them say is theirs
//! is sent by the first device, where who has the first key alone can decrypt it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use crate::kernel::link::LinkName;
use crate::kernel::wireguard::{Peer, PeerKey, Session};
use crate::net::{Family, PublicKey};
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

impl Second {
    /// Returns the device by which packets to a node are sent.
    pub(super) fn device_to(&self, node: &CompactString) -> &'static str {
        if self.used.contains(node) { WIREGUARD_SECOND } else { WIREGUARD }
    }
}

impl Plan {
    /// Sets the keys of our own devices, as the kernel and the files tell them.
    pub fn set_own_keys(&mut self, keys: OwnKeys) -> RouterChanges {
        let mut changed = RouterChanges::default();
        let before = std::mem::replace(&mut self.wireguard.own, keys);
        if before != keys && self.decrypts() {
            self.mark_all_keys();
            let own = [before.first, keys.first];
            let others: Vec<CompactString> =
                own.iter().flatten().flat_map(|key| self.nodes.with_key(key)).cloned().collect();
            self.wireguard.stale.extend(others);
            self.settle_routes(&mut changed);
        }
        changed
    }

    /// Has the peers of all nodes looked at again: one that has none yet may get one on the second device, where another Node has its first key.
    fn mark_all_keys(&mut self) {
        let others = self.known.nodes.iter().map(|(name, _)| name);
        let all: Vec<CompactString> = others.chain(self.wireguard.by_node.keys()).cloned().collect();
        self.wireguard.stale.extend(all);
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
            let first = keys.iter().find(|key| key.link.0 == WIREGUARD)?;
            let has_next = || self.nodes.with_key(&first.key).any(|node| self.is_live_by_second(node));
            (self.session(first) != Session::Over).then(|| (node, has_next()))
        })
    }

    /// Returns the device by which packets to a node with this address are sent.
    pub(in crate::router::plan) fn device_to(&self, remote: IpAddr) -> LinkName {
        let second = &self.wireguard.second;
        // Whose address it is is looked up only where that matters.
        let node = (!second.used.is_empty()).then(|| self.holder_of(&remote)).flatten();
        LinkName(node.map_or(WIREGUARD, |node| second.device_to(node)).into())
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
            self.mark_all_keys();
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

    /// Returns whether packets to a node are sent by the second device: while its key or ours changes, as soon as there is a session, and behind that
    /// until there is one on the first device. That it went by the second one before has to be known of no node that was never looked at: then the kernel's routes may.
    fn goes_by_second(&self, node: &CompactString) -> bool {
        // Neither end sends by it what the other one does not take there.
        if self.is_contested(node) || self.is_contested(&self.own.name) {
            return false;
        }
        // Tunnels lead to addresses. One that two machines say is theirs leads by the first device, whose session is to last until that is settled.
        let both = self.nodes.both_of(node);
        if Family::BOTH.iter().filter_map(|family| *both.of(*family)).any(|address| self.holder_of(&address).is_none())
        {
            return false;
        }
        let Some(first) = self.nodes.key_of(node) else { return false };
        let is_other = *node != self.own.name && self.wireguard.own.first != Some(first);
        let Some(second) = self.second_key(node).filter(|_| is_other && self.wants_second()) else { return false };
        let by_first = PeerKey { link: LinkName(WIREGUARD.into()), key: first };
        // A session on the first device that ends because nobody sends is no reason to go back.
        let may_have_gone = self.wireguard.second.used.contains(node) || !self.wireguard.by_node.contains_key(node);
        let may_go = may_have_gone || !self.is_disputed(node, &second);
        let is_wanted = self.is_changing(node) && may_go || may_have_gone && self.session(&by_first) != Session::Live;
        is_wanted && self.is_live_by_second(node)
    }

    fn is_live_by_second(&self, node: &CompactString) -> bool {
        let key = self.second_key(node).map(|key| PeerKey { link: LinkName(WIREGUARD_SECOND.into()), key });
        key.is_some_and(|key| self.session(&key) == Session::Live)
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

    /// The key of a node's second device; none where it is ours.
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

    /// Returns the peer of a node on the second device. A key that several Nodes say is theirs has one peer, of the first of them that is reached, with the ranges of all: only who has
    /// the private key can use them, and which of them that is nobody knows. Where it is the next key of any of them it has no endpoint but the one that the kernel has, which is where packets with that
    /// key come from: its holder knows our endpoint, and sends every five seconds.
    pub(super) fn second_peer(&self, node: &CompactString) -> Option<(PeerKey, Peer)> {
        let encryption = self.config.overlay?.wireguard().filter(|_| self.wants_second())?;
        let key = self.second_key(node)?;
        let claimants = self.nodes.with_second_key(&key).filter_map(|other| Some((other, self.reached_at(other)?)));
        let claimants: Vec<(&CompactString, IpAddr)> = claimants.collect();
        let address = claimants.first().filter(|(first, _)| *first == node).map(|(_, address)| *address)?;
        let is_next = |(node, _): &(&CompactString, IpAddr)| self.nodes.key_of(node) != Some(key);
        let is_sure = claimants.len() == 1 || !claimants.iter().any(is_next);
        let endpoint = is_sure.then(|| SocketAddr::new(address, encryption.second_port()));
        let allowed: BTreeSet<IpNet> = claimants.iter().flat_map(|(node, _)| self.allowed_by_second(node)).collect();
        let is_shown = |node: &CompactString| self.is_changing(node) || self.wireguard.second.used.contains(node);
        let keepalive = if claimants.iter().any(|(node, _)| is_shown(node)) { KEEPALIVE } else { 0 };
        let peer = Peer { endpoint, allowed: Arc::from_iter(allowed), keepalive, is_plain: true };
        Some((PeerKey { link: LinkName(WIREGUARD_SECOND.into()), key }, peer))
    }

    /// Returns what a node's peer on the second device may use: nothing that touches what a rival there says is its own, and nothing that is reached by an address of both.
    fn allowed_by_second(&self, node: &CompactString) -> BTreeSet<IpNet> {
        let mut of_rivals = self.claims_of_rivals(node);
        let addresses = self.nodes.addresses_of(node).iter();
        let of_both = addresses.filter(|address| of_rivals.contains(&Family::host_prefix(**address)));
        let behind: Vec<IpNet> = of_both.flat_map(|address| self.routes.through_tunnel(*address)).collect();
        of_rivals.extend(behind);
        self.allowed(node).into_iter().filter(|range| !touches(&of_rivals, range)).collect()
    }

    /// Returns what rivals of a node say is their own: Nodes that are one machine with it by the first key, and another one by that of the second device. One of them may be a copy.
    fn claims_of_rivals(&self, node: &CompactString) -> BTreeSet<IpNet> {
        let (first, second) = (self.nodes.key_of(node), self.nodes.second_key_of(node));
        let of_machine = first.iter().flat_map(|key| self.nodes.with_key(key));
        let rivals = of_machine.filter(|other| self.nodes.second_key_of(other) != second);
        rivals.flat_map(|rival| self.claims(rival)).collect()
    }

    /// Returns whether an address or a pod CIDR of a node is a rival's as well, in part or whole.
    fn is_contested(&self, node: &CompactString) -> bool {
        let of_rivals = self.claims_of_rivals(node);
        !of_rivals.is_empty() && self.claims(node).any(|range| touches(&of_rivals, &range))
    }

    /// Returns what a Node says is its own: addresses and pod CIDRs.
    fn claims(&self, node: &CompactString) -> impl Iterator<Item = IpNet> {
        let ours = (*node == self.own.name).then(|| self.own.all_pod_cidrs());
        let hosts = self.nodes.addresses_of(node).iter().map(|address| Family::host_prefix(*address));
        hosts.chain(self.nodes.ranges_of(node).iter().copied()).chain(ours.into_iter().flatten())
    }

    /// Returns the interval at which the machine with this first key is shown that the session on the first device is used although a key changes, or is wanted again. All Nodes with the
    /// key count: which of them are copies nobody knows, and one that is none may have nothing but that session.
    pub(super) fn keepalive_of_first(&self, key: &PublicKey) -> u16 {
        let is_turned = |node: &CompactString| self.is_changing(node) != self.wireguard.second.used.contains(node);
        if self.wants_second() && self.nodes.with_key(key).any(is_turned) { KEEPALIVE } else { 0 }
    }
}

fn touches(ranges: &BTreeSet<IpNet>, range: &IpNet) -> bool {
    ranges.iter().any(|other| other.contains(range) || range.contains(other))
}
