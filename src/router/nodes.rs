//! All nodes: what each of them contributes, and what they have in common.
//!
//! A node contributes addresses and pod CIDRs, which several may claim for a moment while a cluster changes, and its
//! peering. It is recomputed when that node changes, and for all of them when our own does. Which of its addresses count, and who has one
//! that several list: `nodes/claimants.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::bgp::session::Local;
use crate::bgp::speaker::WantedNeighbour;
use crate::config::{NodeRoutes, RouterConfig, RouterId};
use crate::kernel::ipset::{ElementKey, Entry};
use crate::model::{COUNTED_ADDRESSES, Node, Reflection};
use crate::net::{Family, Password, PerFamily, PublicKey};
use crate::packed::BlockMap;

use super::claims::Claims;
use super::identity::Identity;
use super::link_addresses::LinkAddresses;
use super::mesh::{self, Obstacle, Peering};
use super::names::Set;
use super::node_sets;
use super::router_id::router_id;
use super::tunnel_names::TunnelNames;

mod annotated_ranges;
mod claimants;
mod exchange;
mod keys;
mod problems;
mod tunnels;

use annotated_ranges::{AnnotatedRanges, Judged, around};
use claimants::Claimant;

/// Contributions of all nodes, with the contributing node.
#[derive(Default, Debug)]
pub struct Nodes {
    parts: BlockMap<CompactString, Part>,
    elements: Claims<ElementKey, CompactString, ()>,
    /// The addresses of nodes that count, each with the addresses of its node in both families.
    addresses: Claims<IpAddr, Claimant, PerFamily<Option<IpAddr>>>,
    tunnel_names: TunnelNames,
    link_addresses: LinkAddresses,
    /// The pod CIDRs of other nodes.
    ranges: Claims<IpNet, CompactString, ()>,
    /// The peering addresses of all nodes, ours too.
    peering: Claims<IpAddr, Claimant, ()>,
    /// The addresses of neighbours that are route reflectors. Of Nodes with one address only those count that have a session at it, and no older name of the machine.
    reflectors: Claims<IpAddr, CompactString, ()>,
    identifiers: Claims<Ipv4Addr, CompactString, ()>,
    /// The public keys of all nodes, ours too.
    keys: Claims<PublicKey, Claimant, ()>,
    /// The public keys of their second devices.
    second_keys: Claims<PublicKey, Claimant, ()>,
    /// The nodes whose keys change.
    changing: BTreeSet<CompactString>,
    /// The nodes that should be peers and cannot be.
    obstacles: BTreeMap<CompactString, Obstacle>,
    /// The nodes with more addresses than count.
    lavish: BTreeSet<CompactString>,
    annotated: AnnotatedRanges,
}

/// The contribution of one node, except for its neighbour, which is returned and not kept, and its obstacle.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Part {
    created: i64,
    elements: Box<[ElementKey]>,
    /// Those that count.
    addresses: Box<[IpAddr]>,
    /// It lists more.
    is_lavish: bool,
    /// Those of them that no Node takes from it by listing them among others.
    first: Box<[IpAddr]>,
    /// The node's address in each family, stored with each of its addresses.
    both: PerFamily<Option<IpAddr>>,
    /// The address by which the cluster knows the node, in each enabled family.
    internal: PerFamily<Option<IpAddr>>,
    ranges: Box<[IpNet]>,
    /// All that an annotation alone names, also where it is not among them.
    annotated: Box<[IpNet]>,
    /// Ranges that were given to it, inside of wider ones that an annotation names.
    given_inside: Box<[IpNet]>,
    peering: Option<IpAddr>,
    reflection: Reflection,
    /// Routes are exchanged with it.
    exchanges: bool,
    /// The address of the neighbour.
    neighbour: Option<IpAddr>,
    identifier: Option<Ipv4Addr>,
    key: Option<PublicKey>,
    /// The key that follows it.
    next_key: Option<PublicKey>,
}

/// Changes caused by a change of one node.
#[derive(Default, Debug)]
pub struct NodeChanges {
    pub elements: Vec<ElementKey>,
    /// Pod CIDRs of other nodes that were added or removed.
    pub ranges: Vec<(IpNet, bool)>,
    /// Addresses that now belong to another node, to none any more, or to a node for the first time.
    pub addresses: Vec<IpAddr>,
    /// Addresses at which tunnels end to nodes whose other addresses may be reached through them otherwise than before.
    pub ends: BTreeSet<IpAddr>,
    /// The former neighbour with the time at which its Node was created, and the present one.
    pub before: Option<(IpAddr, i64)>,
    pub wanted: Option<Arc<WantedNeighbour>>,
    /// Any input of policies.
    pub policies: bool,
    /// Nodes that have to be updated as well, because of what was given to this one, when all others that have changed are updated.
    pub again: BTreeSet<CompactString>,
}

/// Our own node and the configuration; without our own BGP parameters nobody peers.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    pub own: &'a Identity,
    pub config: &'a RouterConfig,
    pub local: Option<Local>,
    /// The password of sessions between nodes.
    pub password: &'a Password,
}

impl Nodes {
    /// Packs what a World fills in the order of names.
    pub fn pack(&mut self) {
        self.parts.pack();
        self.elements.pack();
        self.addresses.pack();
        self.ranges.pack();
        self.peering.pack();
        self.identifiers.pack();
        self.keys.pack();
        self.second_keys.pack();
        self.annotated.pack();
    }

    /// Updates one node; `None` removes it.
    pub fn update(&mut self, name: &CompactString, node: Option<&Node>, around: Around<'_>) -> NodeChanges {
        let judged = self.judge_ranges(name, node, around.own);
        let (new, peering) = node.map_or((Part::default(), Peering::None), |node| part(name, node, &judged, around));
        let (wanted, obstacle) = match peering {
            Peering::None => (None, None),
            Peering::Impossible(why) => (None, Some(why)),
            Peering::With(wanted) => (Some(wanted), None),
        };
        match obstacle {
            Some(obstacle) => drop(self.obstacles.insert(name.clone(), obstacle)),
            None => drop(self.obstacles.remove(name)),
        }
        let old = match node {
            Some(_) => self.parts.insert(name.clone(), new.clone()),
            None => self.parts.remove(name),
        };
        let old = old.unwrap_or_default();
        match new.is_lavish {
            true => drop(self.lavish.insert(name.clone())),
            false => drop(self.lavish.remove(name)),
        }
        let mut changed = NodeChanges::default();
        let mut note_ends =
            |both: &PerFamily<Option<IpAddr>>| changed.ends.extend(both.iter().filter_map(|(_, end)| *end));
        let mut moved: BTreeSet<IpAddr> = BTreeSet::new();
        if !old.has_same_ends(&new) {
            let all = [&old.both, &new.both, &old.internal, &new.internal];
            moved.extend(all.into_iter().flat_map(PerFamily::iter).filter_map(|(_, address)| *address));
        }
        for key in different(&old.elements, &new.elements) {
            let is_there = new.elements.contains(key).then_some(());
            if self.elements.put(key, name, is_there) {
                changed.elements.push(key.clone());
            }
        }
        let addresses: BTreeSet<IpAddr> = old.addresses.iter().chain(&new.addresses).copied().collect();
        for address in addresses {
            let claim = |part: &Part| Some((part.address_claim(name, address)?, part.both));
            let before = self.addresses.first(&address).copied();
            let is_changed = self.addresses.replace(&address, claim(&old), claim(&new));
            moved.extend(self.note_tunnel(address, around));
            if is_changed {
                changed.addresses.push(address);
                [before.as_ref(), self.addresses.first(&address)].into_iter().flatten().for_each(&mut note_ends);
            }
        }
        // Another node may have one of these before it.
        moved.iter().filter_map(|address| self.addresses.first(address)).for_each(&mut note_ends);
        for range in different(&old.ranges, &new.ranges) {
            if self.ranges.put(range, name, new.ranges.contains(range).then_some(())) {
                changed.ranges.push((*range, self.ranges.contains(range)));
                self.routed_in(*range).for_each(&mut note_ends);
            }
        }
        for address in [old.peering, new.peering].into_iter().flatten() {
            let claim = |part: &Part| (part.peering == Some(address)).then(|| (part.claimant(name), ()));
            changed.policies |= self.peering.replace(&address, claim(&old), claim(&new));
            changed.policies |= self.reflectors.put(&address, name, new.is_reflector_at(&address).then_some(()));
        }
        for identifier in [old.identifier, new.identifier].into_iter().flatten() {
            let is_its = new.identifier == Some(identifier);
            self.identifiers.put(&identifier, name, is_its.then_some(()));
        }
        self.update_keys(name, &old, &new);
        self.note_annotated(name, &old, judged, &mut changed);
        changed.ends.extend(moved);
        // Nodes with one key may have one range.
        // Which nodes share an address or a pod CIDR counts, too: a range may contain addresses of its own nodes alone.
        // And so does who was given one.
        changed.policies |= old.key != new.key || !old.has_same_places(&new);
        // Which ranges a neighbour may bring follows from all Nodes with its address, and from which are clients of reflectors.
        changed.policies |= old.peering != new.peering || old.reflection != new.reflection;
        changed.before = old.neighbour.map(|neighbour| (neighbour, old.created));
        changed.wanted = wanted;
        changed
    }

    /// Returns the addresses in both families of the node with this address, if it is not this node: the first one that is spoken with by it, else the
    /// one that has it. An older Node that names another one's address as its InternalIP does not get the packets for that one's pods.
    pub fn other(&self, own: &CompactString, address: IpAddr) -> Option<PerFamily<Option<IpAddr>>> {
        let is_own = self.with_address(&address).any(|name| name == own);
        let first = self.addresses.first(&address).filter(|_| !is_own)?;
        let speaking = || self.parts.get(self.spoken_with_by(&address).next()?).map(|part| part.both);
        Some(if is_spoken_with(first, address) { *first } else { speaking().unwrap_or(*first) })
    }

    /// Returns whether a node is spoken with by an address that is the InternalIP of another one which comes first: where the host with that address is, nobody can say.
    pub fn is_contested(&self, address: IpAddr) -> bool {
        let first = self.addresses.first(&address);
        first.is_some_and(|first| !is_spoken_with(first, address)) && self.spoken_with_by(&address).next().is_some()
    }

    /// Returns the nodes, with the best claim first, that are spoken with by an address.
    fn spoken_with_by<'a>(&'a self, address: &'a IpAddr) -> impl Iterator<Item = &'a CompactString> {
        let is_by =
            |name: &&CompactString| self.parts.get(*name).is_some_and(|part| is_spoken_with(&part.both, *address));
        self.with_address(address).filter(is_by)
    }

    /// Returns, for each address of a node in a range, the addresses by which that node is spoken with.
    fn routed_in(&self, range: IpNet) -> impl Iterator<Item = &PerFamily<Option<IpAddr>>> {
        let inside = self.addresses.within(range.network(), range.broadcast());
        inside.filter_map(|address| self.addresses.first(address))
    }

    /// Returns the InternalIP of the node that has this address, in the same family, where it is another address, which no other node has before it and
    /// which is no pod's.
    pub fn internal_beside(&self, own: &CompactString, address: IpAddr) -> Option<IpAddr> {
        let holder = |address: &IpAddr| self.with_address(address).next();
        let node = holder(&address)?;
        let internal = self.parts.get(node)?.internal.of(Family::from(address)).filter(|other| *other != address)?;
        let is_its =
            holder(&internal) == Some(node) && self.other(own, internal).is_some() && !self.is_contested(internal);
        let is_pod = || self.is_within_another(Family::host_prefix(internal));
        (is_its && !is_pod()).then_some(internal)
    }

    /// Returns whether any node has this address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    pub fn has_element(&self, key: &ElementKey) -> bool {
        self.elements.contains(key)
    }

    /// Returns whether a node has a range that contains this one and is another one.
    pub fn is_within_another(&self, range: IpNet) -> bool {
        around(range).skip(1).any(|wider| self.has_element(&Set::PodRanges.element(Entry::Net(wider))))
    }

    /// Returns the ranges of nodes within this one that are within no other one of them, in order.
    pub fn widest_within(&self, range: IpNet) -> Vec<IpNet> {
        let element = |range| Set::PodRanges.element(Entry::Net(range));
        let last = Family::host_prefix(range.broadcast());
        let mut widest: Vec<IpNet> = Vec::new();
        for key in self.elements.within(element(range), element(last)) {
            let Entry::Net(inner) = key.entry else { continue };
            if range.contains(&inner) && !widest.last().is_some_and(|other| other.contains(&inner)) {
                widest.push(inner);
            }
        }
        widest
    }

    pub fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.keys().copied().collect()
    }

    pub fn ranges(&self) -> Vec<IpNet> {
        self.ranges.keys().copied().collect()
    }

    pub fn peering(&self) -> Vec<IpAddr> {
        self.peering.keys().copied().collect()
    }

    /// Returns whether the neighbour at a peering address is a route reflector, as any Node says that has its session there.
    pub fn is_reflector(&self, peering: &IpAddr) -> bool {
        self.reflectors.contains(peering)
    }

    /// Returns the pod CIDRs of the nodes at each peering address. Two Nodes at one are a machine that was renamed, which announces those of its newest one.
    pub fn ranges_by_peering(&self) -> impl Iterator<Item = (IpAddr, IpNet)> {
        self.parts.values().flat_map(|part| {
            let peering = part.peering.into_iter();
            peering.flat_map(move |peering| part.ranges.iter().map(move |range| (peering, *range)))
        })
    }

    /// Returns the pod CIDRs of other nodes that are clients of reflectors.
    pub fn ranges_of_clients(&self) -> BTreeSet<IpNet> {
        let is_client = |part: &&Part| matches!(part.reflection, Reflection::Client(_));
        let clients = self.parts.values().filter(is_client);
        clients.flat_map(|part| part.ranges.iter().copied()).collect()
    }

    /// Returns the pod CIDRs of other nodes with the nodes that have them.
    pub fn ranges_by_node(&self) -> impl Iterator<Item = (&CompactString, IpNet)> {
        self.parts.iter().flat_map(|(name, part)| part.ranges.iter().map(move |range| (name, *range)))
    }

    /// Returns the pod CIDRs of a node; none of our own.
    pub fn ranges_of(&self, node: &CompactString) -> &[IpNet] {
        self.parts.get(node).map(|part| &*part.ranges).unwrap_or_default()
    }

    /// Returns the other nodes with this pod CIDR.
    pub fn with_range(&self, range: &IpNet) -> impl Iterator<Item = &CompactString> {
        self.ranges.owners(range)
    }

    /// Returns all addresses of a node.
    pub fn addresses_of(&self, node: &CompactString) -> &[IpAddr] {
        self.parts.get(node).map(|part| &*part.addresses).unwrap_or_default()
    }

    /// Returns the address of a node in each enabled family.
    pub fn both_of(&self, node: &CompactString) -> PerFamily<Option<IpAddr>> {
        self.parts.get(node).map(|part| part.both).unwrap_or_default()
    }

    /// Returns the nodes with this address, the one that has it first.
    pub fn with_address(&self, address: &IpAddr) -> impl Iterator<Item = &CompactString> {
        self.addresses.owners(address).map(|claimant| &claimant.node)
    }

    /// Returns the nodes that may have this address: those of which it is a first one, else all that list it.
    pub fn with_claim_to(&self, address: &IpAddr) -> impl Iterator<Item = &CompactString> {
        let mut owners = self.addresses.owners(address).peekable();
        let is_behind = owners.peek().is_some_and(|first| first.is_behind);
        owners.take_while(move |claimant| claimant.is_behind == is_behind).map(|claimant| &claimant.node)
    }

    /// Returns why a node that should be a peer cannot be one.
    pub fn obstacle(&self, node: &CompactString) -> Option<Obstacle> {
        self.obstacles.get(node).copied()
    }

    /// Returns whether a node is no peer because the password of sessions between nodes is not known.
    pub fn lack_password(&self) -> bool {
        self.obstacles.values().any(|obstacle| *obstacle == Obstacle::NoPassword)
    }

    /// Returns another node with this pod CIDR of a node. A machine that was renamed has two Nodes for a while, which peer
    /// under one address and count as one.
    pub fn rival(&self, node: &CompactString, range: &IpNet) -> Option<&CompactString> {
        let peering = |name: &CompactString| self.parts.get(name).and_then(|part| part.peering);
        let own = peering(node);
        self.with_range(range).find(|other| *other != node && (own.is_none() || peering(other) != own))
    }

    /// Returns the address under which we peer with a node.
    pub fn peer(&self, node: &CompactString) -> Option<IpAddr> {
        self.parts.get(node)?.neighbour
    }

    /// Returns an address in a pod CIDR that belongs to none of the nodes with that CIDR, and its node. A node's own
    /// address in its own pod CIDR is harmless: some clouds list the bridge's.
    pub fn address_of_another_in(&self, range: IpNet) -> Option<(IpAddr, &CompactString)> {
        self.others_in(range).next()
    }

    /// Returns all of these addresses, each with all such nodes.
    pub fn others_in(&self, range: IpNet) -> impl Iterator<Item = (IpAddr, &CompactString)> {
        let is_other = move |node: &CompactString| self.ranges.owners(&range).all(|owner| owner != node);
        self.with_address_in(range).filter(move |(_, node)| is_other(node))
    }

    /// Returns the addresses of nodes in a range, each with the nodes that have it.
    pub fn with_address_in(&self, range: IpNet) -> impl Iterator<Item = (IpAddr, &CompactString)> {
        let inside = self.addresses.within(range.network(), range.broadcast());
        inside.flat_map(|address| self.with_address(address).map(move |node| (*address, node)))
    }

    /// Returns whether an address of a node, or a pod CIDR of another node, is in a prefix.
    pub fn any_in(&self, prefix: IpNet) -> bool {
        let last = Family::host_prefix(prefix.broadcast());
        self.with_address_in(prefix).next().is_some() || self.ranges.within(prefix, last).next().is_some()
    }
}

/// Returns whether an address is the one of its family among those by which a node is spoken with.
fn is_spoken_with(both: &PerFamily<Option<IpAddr>>, address: IpAddr) -> bool {
    *both.of(Family::from(address)) == Some(address)
}

impl Part {
    /// Returns whether addresses and ranges are the same, by the same who gave them.
    fn has_same_places(&self, other: &Part) -> bool {
        let are_ranges_same = self.ranges == other.ranges && self.annotated == other.annotated;
        self.addresses == other.addresses && are_ranges_same && self.given_inside == other.given_inside
    }

    /// Returns the claim of its node, of this name, to what nodes have once.
    fn claimant(&self, name: &CompactString) -> Claimant {
        Claimant { is_behind: false, created: self.created, node: name.clone() }
    }

    fn address_claim(&self, name: &CompactString, address: IpAddr) -> Option<Claimant> {
        let is_behind = !self.first.contains(&address);
        self.addresses.contains(&address).then(|| Claimant { is_behind, ..self.claimant(name) })
    }

    /// Returns whether it is a route reflector that has a session with us at this address.
    fn is_reflector_at(&self, address: &IpAddr) -> bool {
        self.neighbour.as_ref() == Some(address) && matches!(self.reflection, Reflection::Server(_))
    }

    fn key_claim(&self, name: &CompactString) -> Claimant {
        let has_address = self.both.iter().any(|(_, address)| address.is_some());
        Claimant { is_behind: !has_address, ..self.claimant(name) }
    }
}

fn part(name: &CompactString, node: &Node, judged: &Judged, around: Around<'_>) -> (Part, Peering) {
    let Around { own, config, local, password } = around;
    let is_own = *name == own.name;
    let both = PerFamily::from_fn(|family| node.routing_address(family).filter(|_| *own.families.of(family)));
    let internal = PerFamily::from_fn(|family| node.address(family).filter(|_| *own.families.of(family)));
    let primary = node.primary(own.families);
    let peering = match local {
        Some(local) if !is_own => mesh::peering(own, node, config, local, password),
        _ => Peering::None,
    };
    let neighbour = match &peering {
        Peering::With(wanted) => Some(wanted.address),
        Peering::None | Peering::Impossible(_) => None,
    };
    // Identifiers set by flags of other nodes are unknown.
    // Without sessions between nodes equal ones harm nobody.
    let is_told = !matches!(config.router_id, RouterId::Is(_)) && config.node_routes == NodeRoutes::Bgp;
    let identifier = primary.filter(|_| is_told);
    let mut addresses: Vec<IpAddr> = node.ordered_addresses().collect();
    // What our own Node lists is ours, however much it is.
    let is_lavish = !is_own && addresses.len() > COUNTED_ADDRESSES;
    if is_lavish {
        addresses.truncate(COUNTED_ADDRESSES);
    }
    let part = Part {
        created: node.created,
        is_lavish,
        elements: node_sets::elements(&judged.ranges, &addresses, own.families).into(),
        addresses: addresses.into(),
        first: node.first_addresses().collect(),
        both,
        internal,
        ranges: judged.ranges.iter().filter(|_| !is_own).copied().collect(),
        annotated: judged.annotated.clone(),
        given_inside: judged.given_inside.clone(),
        peering: neighbour.or(primary),
        reflection: node.routing().reflection,
        identifier: identifier.map(|own| router_id(config.router_id, own, node.routing_address(Family::V4))),
        exchanges: !is_own && mesh::exchanges_routes(own, node, config),
        neighbour,
        key: node.wireguard_key,
        next_key: node.wireguard_next_key,
    };
    (part, peering)
}

/// Returns the items that are in only one of two lists.
fn different<'a, T: PartialEq>(old: &'a [T], new: &'a [T]) -> impl Iterator<Item = &'a T> {
    old.iter().filter(|one| !new.contains(one)).chain(new.iter().filter(|one| !old.contains(one)))
}
