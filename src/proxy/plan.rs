//! The desired state of the service proxy, kept up to date at the cost of what changed.
//!
//! Every Service has a part (`part`); the union of all parts is the desired kernel state. When the World changes, the
//! tables say which Services differ, their parts are recomputed, and only differences of the union are reported as
//! changed. When a common input of all parts changes (the node's addresses, say), all parts are recomputed. After any
//! history the plan equals the one computed at once from the newest World; `tests/properties.rs` verifies that with
//! random histories.
//!
//! A key that several Services claim has one owner (`owners`).

mod addresses;
mod asked;
mod closing;
mod draining;
mod elements;
mod host;
mod problems;
mod tunnels;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{ProxyConfig, ServiceRanges};
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::route::Route;
use crate::model::{Endpoints, ObjectName, Scheduler, Service, Table, World};
use crate::net::{Family, PerFamily, Protocol};
use crate::packed::Put;

pub use self::addresses::{local_route_key, marked_route_key};
use self::draining::{Listed, PartChange};
use self::problems::Problems;
use self::tunnels::Tunnels;
use super::clients::{Clients, Restrictions, Shape};
use super::closing::Closing;
use super::desired::{Desired, ProxyChanges};
use super::drain::Draining;
use super::dsr::Untunnelled;
use super::external_ip::Refusals;
use super::health_check::HealthCheckPorts;
use super::local_node::LocalNode;
use super::names::Set;
use super::other_nodes::{OtherNodes, asks_for};
use super::owners::{Owned, Owner, Owners};
use super::part::{Claim, OwnEndpoint, Part, Wanted, part};
use super::scheduler;
use super::{endpoints, source_ranges, unallocated};

/// The desired state, with what is needed to update it by parts.
pub struct Plan {
    config: Arc<ProxyConfig>,
    /// The ranges of the flags.
    flags: ServiceRanges,
    families: PerFamily<bool>,
    /// The kernel's version, major and minor.
    kernel: (u32, u32),
    world: World,
    node: LocalNode,
    others: OtherNodes,
    /// Number of external and load balancer addresses that are not served.
    refused: usize,
    desired: Desired,
    /// The newest route of each family that many keys share.
    shared_routes: PerFamily<Option<Arc<Route>>>,
    parts: foldhash::HashMap<ObjectName, Arc<ClaimedPart>>,
    owners: Owners,
    health_checks: HealthCheckPorts,
    /// Number of desired elements of each set.
    sizes: BTreeMap<(Set, Family), usize>,
    /// Number of Services of each endpoint on this node.
    own_endpoints: BTreeMap<OwnEndpoint, usize>,
    restrictions: Restrictions,
    /// The part of them that the rules depend on.
    shape: Shape,
    draining: Draining,
    /// Addresses that routers may still send traffic for.
    believed: Table<IpAddr, ()>,
    closing: Closing,
    problems: Problems,
    tunnels: Tunnels,
    untunnelled: Untunnelled,
    /// The ranges of cluster IPs whose free addresses are refused, or are not.
    unallocated: unallocated::Judged,
}

/// A part, and the fields of its Service that decide about conflicts and draining.
struct ClaimedPart {
    /// Sorted by key, without duplicates: each key with its strongest claim.
    claims: Box<[Claim]>,
    created: i64,
    scheduler: Scheduler,
    refused: Refusals,
    /// Sorted, without duplicates.
    own_endpoints: Box<[OwnEndpoint]>,
    too_many_sources: Option<u32>,
}

impl Plan {
    pub fn new(config: Arc<ProxyConfig>, families: PerFamily<bool>, kernel: (u32, u32)) -> Plan {
        Plan {
            flags: config.ranges.clone(),
            config,
            families,
            kernel,
            world: World::empty(),
            node: LocalNode::default(),
            others: OtherNodes::default(),
            refused: 0,
            desired: Desired::default(),
            shared_routes: PerFamily::default(),
            parts: Default::default(),
            owners: Owners::default(),
            health_checks: HealthCheckPorts::default(),
            sizes: BTreeMap::new(),
            own_endpoints: BTreeMap::new(),
            restrictions: Restrictions::default(),
            shape: Shape::default(),
            draining: Draining::default(),
            believed: Table::default(),
            closing: Closing::default(),
            problems: Problems::default(),
            tunnels: Tunnels::default(),
            untunnelled: Untunnelled::default(),
            unallocated: unallocated::Judged::default(),
        }
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Rebuilds more densely what was filled one by one.
    pub fn pack(&mut self) {
        self.desired.pack();
    }

    pub fn node(&self) -> &LocalNode {
        &self.node
    }

    /// Returns the Service that owns a virtual service.
    pub fn owner(&self, key: &ServiceKey) -> Option<&ObjectName> {
        self.owners.of(key)
    }

    /// Returns the owners of all virtual services; cheap to clone.
    pub fn owners(&self) -> &Table<ServiceKey, Owner> {
        self.owners.all()
    }

    /// Returns all virtual services with their owners.
    pub fn owned(&self) -> Owned {
        Owned { owners: self.owners.all().clone(), marked: Arc::new(self.desired.marked.clone()) }
    }

    /// Returns when draining destinations expire or are to be checked, or a closing virtual service is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.draining.deadline().into_iter().chain(self.closing.deadline()).min()
    }

    /// Returns the virtual services that stay open for now.
    pub fn closing(&self) -> impl Iterator<Item = ServiceKey> + '_ {
        self.closing.keys()
    }

    /// Returns the addresses of a Service's endpoints, on whichever node and in whatever condition.
    pub fn endpoints_of(&self, service: &ObjectName) -> BTreeSet<IpAddr> {
        let slices = self.world.cluster.endpoints.get(service).into_iter().flat_map(|its| its.slices.values());
        slices.flat_map(|slice| slice.endpoints.listed()).map(|endpoint| endpoint.address).collect()
    }

    /// Returns the addresses of a Service's endpoints that are ready: all of them, or those on this node.
    pub fn ready_endpoints_of(&self, service: &ObjectName, is_own: bool) -> BTreeSet<IpAddr> {
        let slices = self.world.cluster.endpoints.get(service).into_iter().flat_map(|its| its.slices.values());
        let all = slices.flat_map(|slice| slice.endpoints.listed().map(move |endpoint| (slice.family, endpoint)));
        let ready = all.filter(|(_, endpoint)| endpoint.conditions.ready);
        let asked = ready.filter(|(family, endpoint)| !is_own || endpoints::is_here(endpoint, *family, &self.node));
        asked.map(|(_, endpoint)| endpoint.address).collect()
    }

    /// Takes the endpoints on this node in which no tunnel ends; returns what changed.
    pub fn set_untunnelled(&mut self, untunnelled: Untunnelled, now: Instant) -> ProxyChanges {
        let former = std::mem::replace(&mut self.untunnelled, untunnelled);
        let concerned = different_keys(&former, &self.untunnelled);
        self.update_with(&self.world.clone(), &concerned, now)
    }

    /// Updates the plan from a newer World; returns what changed.
    pub fn update(&mut self, world: &World, now: Instant) -> ProxyChanges {
        self.update_with(world, &[], now)
    }

    /// Updates the plan from a newer World, with Services of which something else has changed.
    fn update_with(&mut self, world: &World, others: &[ObjectName], now: Instant) -> ProxyChanges {
        let older = std::mem::replace(&mut self.world, world.clone());
        let other_host = !Arc::ptr_eq(&older.host, &world.host);
        let settings = other_host && older.host.links != world.host.links;
        let mut changed = ProxyChanges { settings, ..Default::default() };
        let (services, endpoints) = (&world.cluster.services, &world.cluster.endpoints);
        // Most Worlds differ in Services alone: their node is the one before.
        let node = if LocalNode::may_differ(&older, world) { Some(LocalNode::new(world, self.families)) } else { None };
        // Only Services with hints for zones ask for it.
        let zone = |node: &LocalNode| std::mem::replace(&mut self.node.zone, node.zone.clone()) != node.zone;
        let other_zone = node.as_ref().is_some_and(zone);
        let node = node.filter(|node| *node != self.node);
        let (same, parts_stay) = (node.is_none(), node.as_ref().is_none_or(|node| self.parts_stay(node)));
        let moved = self.others.update([&older, world], [&self.node, node.as_ref().unwrap_or(&self.node)]);
        let parts_stay = !self.others.note_known(world) && parts_stay;
        let ranges_move = self.follow_service_cidrs(&older, world);
        if let Some(node) = node {
            self.node = node;
        }
        changed.health_checks |= !same;
        if other_host || !same {
            self.note_mtu();
        }
        if !same {
            self.replace_common(&mut changed);
        }
        let of_endpoints = endpoints.changes_since(&older.cluster.endpoints).map(|change| change.key());
        let of_endpoints: Vec<&ObjectName> = of_endpoints.collect();
        if !same || ranges_move || unallocated::may_differ([&older, world], &of_endpoints) {
            self.follow_ranges(&mut changed);
        }
        if parts_stay {
            let mut dirty: Vec<&ObjectName> = others.iter().collect();
            dirty.extend(services.changes_since(&older.cluster.services).map(|change| change.key()));
            dirty.extend(&of_endpoints);
            if !moved.is_empty() {
                // An address of a node is one of a pod on the host's network.
                let is_tunnelled = |it: &Service| self.config.tunnel_mode && it.annotations.dsr;
                dirty.extend(services.iter().filter(|(_, it)| is_tunnelled(it)).map(|(name, _)| name));
                dirty.extend(services.iter().filter(|(_, it)| asks_for(it, &moved)).map(|(name, _)| name));
            }
            if ranges_move {
                let asks = |service: &Service| service.external_addresses().next().is_some();
                dirty.extend(services.iter().filter(|(_, it)| asks(it)).map(|(name, _)| name));
            }
            if other_zone {
                dirty.extend(endpoints.iter().filter(|(_, its)| its.have_zone_hints()).map(|(name, _)| name));
            }
            dirty.sort();
            dirty.dedup();
            for name in dirty {
                let service = services.get(name).map(|service| (&**service, endpoints.get(name)));
                self.update_service(name, service, now, &mut changed);
            }
        } else {
            for (name, _) in older.cluster.services.iter().filter(|(name, _)| services.get(name).is_none()) {
                self.update_service(name, None, now, &mut changed);
            }
            self.parts.reserve(services.len().saturating_sub(self.parts.len()));
            let mut endpoints = endpoints.iter().peekable();
            for (name, service) in services.iter() {
                while endpoints.next_if(|(other, _)| *other < name).is_some() {}
                let its = endpoints.next_if(|(other, _)| *other == name).map(|(_, its)| its);
                self.update_service(name, Some((service, its)), now, &mut changed);
            }
        }
        self.close_what_others_keep_open(&mut changed);
        self.release_marks(&mut changed);
        self.tell_unmarked(&mut changed);
        self.follow_restrictions(&mut changed);
        self.resize_sets(&mut changed);
        changed
    }

    /// Takes the ranges of cluster IPs that a newer World names; returns whether they are others.
    fn follow_service_cidrs(&mut self, older: &World, newer: &World) -> bool {
        let (before, after) = (&older.cluster.service_cidrs, &newer.cluster.service_cidrs);
        if after.changes_since(before).next().is_none() {
            return false;
        }
        let ranges = self.flags.in_cluster(newer.cluster.service_ranges());
        ProxyConfig::follow(&mut self.config, ranges)
    }

    /// Removes destinations whose drain period is over, and closes virtual services whose wait is over.
    pub fn expire(&mut self, now: Instant) -> ProxyChanges {
        let mut changed = ProxyChanges::default();
        self.close(self.closing.overdue(now), &mut changed);
        for key in self.draining.expire(now) {
            self.compose(key, &mut changed);
        }
        self.tell_unmarked(&mut changed);
        self.follow_restrictions(&mut changed);
        changed
    }

    fn update_service(
        &mut self,
        name: &ObjectName,
        service: Option<(&Service, Option<&Arc<Endpoints>>)>,
        now: Instant,
        changed: &mut ProxyChanges,
    ) {
        changed.parts_computed += 1;
        let refused = self.note_refused(name, service.map(|(service, _)| service), changed);
        self.note_health_check(name, service, changed);
        let new = service.map(|(service, endpoints)| Arc::new(self.held((name, service), endpoints, refused)));
        let old = match &new {
            Some(new) => self.parts.insert(name.clone(), new.clone()),
            None => self.parts.remove(name),
        };
        let (new, old) = (new.as_deref(), old.as_deref());
        changed.notes.extend(source_ranges::refusal(name, [old, new].map(|part| part?.too_many_sources)));
        self.count_own_endpoints([old, new], changed);
        let mut others = Vec::new();
        // Looked through only where a destination has left or drains.
        let listed = LazyCell::new(|| Listed::of(service.and_then(|(_, endpoints)| endpoints).map(|its| &**its)));
        for key in different_claims(old, new) {
            if let (Some(old), Some(new)) = (old, new) {
                self.note_left(key, PartChange { name, old, new }, &listed, now);
            }
            let claim = new.and_then(|new| new.claim(&key));
            let created = new.map_or(0, |new| new.created);
            let bid = claim.map(|claim| Owner { rank: claim.rank, created, name: name.clone() });
            let claims = bid.is_some();
            let owners = self.owners.update(key, name, bid, &mut changed.notes);
            let [before, owner] = owners.each_ref().map(|owner| owner.as_ref().map(|owner| &owner.name));
            // Those who lost are told whose claim it is, and by what it comes first.
            let tells_otherwise = owners.first() != owners.last();
            if owner != before {
                changed.owners = true;
                self.note_new_owner(key, now);
            }
            self.problems.note_owner(key, name, claims, [before, owner]);
            if tells_otherwise {
                let claimants = self.owners.rivals(&key).chain(owner);
                others.extend(claimants.filter(|other| *other != name).cloned());
            }
            let claim = if owner == Some(name) { claim } else { self.claim(&key) };
            let wanted = claim.map(|claim| claim.wanted.clone());
            if self.is_to_stay(key, wanted.as_ref()) {
                self.closing.begin(key, now);
            } else {
                self.closing.end(&key);
                self.put_virtual(key, wanted, changed);
            }
        }
        self.note_listed(name, &listed, now, changed);
        others.sort_unstable();
        others.dedup();
        others.iter().for_each(|name| self.find_problems(name, changed));
        let its = service.map(|(service, endpoints)| (service, endpoints.map(|its| &**its)));
        let problems = self.problems_of(name, its);
        self.put_problems(name, problems, changed);
    }

    fn held(
        &self,
        (name, service): (&ObjectName, &Service),
        endpoints: Option<&Arc<Endpoints>>,
        refused: Refusals,
    ) -> ClaimedPart {
        let none = Default::default();
        let endpoints = endpoints.map_or(&none, |endpoints| &**endpoints);
        let Part { mut claims, mut own_endpoints } = part(service, endpoints, self.inputs_of(name));
        own_endpoints.sort_unstable();
        own_endpoints.dedup();
        let own_endpoints = own_endpoints.into_boxed_slice();
        claims.sort_by_key(|claim| (claim.key, claim.rank));
        claims.dedup_by(Claim::joins);
        let scheduler = service.annotations.scheduler;
        let (claims, created) = (claims.into_boxed_slice(), service.created);
        let too_many_sources = source_ranges::too_many(service);
        ClaimedPart { claims, created, scheduler, refused, own_endpoints, too_many_sources }
    }

    /// Returns the strongest claim to a key.
    fn claim(&self, key: &ServiceKey) -> Option<&Claim> {
        self.parts.get(self.owner(key)?)?.claim(key)
    }

    /// Updates one virtual service, and what follows from it, in the desired state.
    fn compose(&mut self, key: ServiceKey, changed: &mut ProxyChanges) {
        if self.closing.contains(&key) {
            return;
        }
        let wanted = self.claim(&key).map(|claim| claim.wanted.clone());
        self.put_virtual(key, wanted, changed);
    }

    fn put_virtual(&mut self, key: ServiceKey, wanted: Option<Wanted>, changed: &mut ProxyChanges) {
        let Some(Wanted { virtual_service, clients, is_tunnelled }) = wanted else {
            self.restrict(key, Clients::default(), changed);
            self.draining.end_service(key);
            let kernel_key = self.desired.kernel_key(&key);
            if self.desired.virtuals.remove(&kernel_key).is_some() {
                changed.virtuals.push(kernel_key);
                self.put_mark(key, false, changed);
                self.follow_virtual(key, false, changed);
            }
            return;
        };
        self.restrict(key, clients, changed);
        let wanted = self.with_draining(key, virtual_service, is_tunnelled);
        self.put_mark(key, is_tunnelled, changed);
        let wanted = self.in_its_mode(&key, wanted);
        let key_in_kernel = self.desired.kernel_key(&key);
        let put = self.desired.virtuals.set(key_in_kernel, wanted);
        if put != Put::Same {
            changed.virtuals.push(key_in_kernel);
        }
        if put == Put::New {
            self.follow_virtual(key, true, changed);
        }
    }
}

/// Returns the range of all possible virtual services of an address.
pub fn services_on(address: IpAddr) -> RangeInclusive<ServiceKey> {
    let [first, .., last] = Protocol::ALL;
    let key = |protocol, port| ServiceKey::Address { address, protocol, port };
    key(first, 0)..=key(last, u16::MAX)
}

/// Returns whether a virtual service may have destinations that are no endpoints any more. Not with `mh` in tunnel mode: they have places in
/// its table, and end at another time on each node, while all nodes are to find the same endpoint for a client.
fn can_drain(scheduler: Option<Scheduler>, key: &ServiceKey, is_tunnelled: bool) -> bool {
    let ServiceKey::Address { protocol, .. } = *key else { return false };
    let is_same_everywhere = is_tunnelled && scheduler == Some(Scheduler::Mh);
    !is_same_everywhere && scheduler.is_some_and(|scheduler| scheduler::can_drain(scheduler, protocol))
}

/// Returns the address of a virtual service; `None` for one for a mark of packets.
pub fn address_of(key: &ServiceKey) -> Option<IpAddr> {
    match key {
        ServiceKey::Address { address, .. } => Some(*address),
        ServiceKey::Mark { .. } => None,
    }
}

impl ClaimedPart {
    fn claim(&self, key: &ServiceKey) -> Option<&Claim> {
        let index = self.claims.binary_search_by_key(key, |claim| claim.key).ok()?;
        self.claims.get(index)
    }
}

/// Returns the keys whose claims differ between two parts of one Service.
fn different_claims(old: Option<&ClaimedPart>, new: Option<&ClaimedPart>) -> Vec<ServiceKey> {
    fn claims(held: Option<&ClaimedPart>) -> impl Iterator<Item = &Claim> {
        held.into_iter().flat_map(|held| &held.claims)
    }
    let is_younger = matches!((old, new), (Some(old), Some(new)) if old.created != new.created);
    let differs = |claim: &&Claim| is_younger || old.and_then(|old| old.claim(&claim.key)) != Some(claim);
    let is_gone = |claim: &&Claim| new.and_then(|new| new.claim(&claim.key)).is_none();
    claims(new).filter(differs).chain(claims(old).filter(is_gone)).map(|claim| claim.key).collect()
}

fn different_keys<K: Ord + Clone, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    old.keys().chain(new.keys()).filter(|key| old.get(key) != new.get(key)).cloned().collect()
}
