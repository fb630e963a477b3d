//! Virtual services in tunnel mode (`dsr`): their marks, and what all of them share.
//!
//! Everything in the plan knows a virtual service by its address, protocol and port, whichever way it is served. The kernel knows one in tunnel
//! mode by its mark, which may become another one when a Service comes or goes whose mark collides with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::config::Backend;
use crate::kernel::ipset::Entry;
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::ipvs::{Destination, Forwarding, ServiceKey, Virtual};
use crate::kernel::nftables::Content;
use crate::model::{Authority, NamespaceName, ObjectName, Scheduler};
use crate::net::{Family, PerFamily};

use super::{Plan, address_of, different_keys, services_on};
use crate::proxy::desired::{ProxyChanges, keyed};
use crate::proxy::dsr::packet_marks::{Moved, PacketMarks};
use crate::proxy::dsr::rules;
use crate::proxy::dsr::tunnels::Unmarked;
use crate::proxy::names::Set;
use crate::proxy::part::Claim;

/// All that the plan knows of virtual services in tunnel mode, besides their marks in the desired state.
#[derive(Default)]
pub struct Tunnels {
    marks: PacketMarks,
    /// The ports whose Services ask for tunnel mode, whether they may have it or not.
    asking: BTreeSet<ServiceKey>,
    /// The namespace that decides about each address at which any port asks.
    firsts: BTreeMap<IpAddr, NamespaceName>,
    /// The ports that have got a mark since the last World was taken, and had none before.
    newly_marked: BTreeSet<ServiceKey>,
    /// Services that have got a mark, or lost one, by what another one asks for.
    concerned: BTreeSet<ObjectName>,
    /// The MTU of the link that carries the node's address; `None` where it is not known.
    mtu: PerFamily<Option<u32>>,
    /// Rules of the other packet filter give marks, also to ports that no Service has any more: those marks are nobody else's yet.
    keeps_marks: bool,
    /// Something that rules or settings follow from has changed.
    is_changed: bool,
}

impl Tunnels {
    /// Called before a World is taken: all marks that ports have by now have stood before it.
    pub(super) fn begin(&mut self) {
        self.newly_marked.clear();
    }

    /// Returns whether a port had a mark before the newest World, or its packets were given one by an earlier run.
    fn stands(&self, key: &ServiceKey) -> bool {
        self.marks.is_reserved(key) || self.marks.of(key).is_some() && !self.newly_marked.contains(key)
    }

    /// Returns whether any port at an address is to be served in tunnel mode, with a mark or without.
    pub(super) fn asks_on(&self, address: IpAddr) -> bool {
        self.marks.asks_among(services_on(address))
    }
}

/// Of a link whose MTU is not known.
const USUAL_MTU: u32 = 1500;

impl Plan {
    /// Notes whether the Service that has a port asks for tunnel mode. Returns whether it gets it: the mode is the whole address's, so Services of one namespace
    /// alone decide about it: that which has the address in tunnel mode, as long as it asks, else that of the Service which comes first there.
    pub(super) fn ask_for_tunnel(&mut self, key: ServiceKey, asks: bool) -> bool {
        match asks {
            true => self.tunnels.asking.insert(key),
            false => self.tunnels.asking.remove(&key),
        };
        asks && self.is_of_first(&key)
    }

    /// Returns whether a port is a Service's of the namespace that comes first at its address, as far as is known.
    fn is_of_first(&self, key: &ServiceKey) -> bool {
        let first = address_of(key).and_then(|address| self.tunnels.firsts.get(&address));
        first.is_none_or(|first| self.owner(key).is_some_and(|owner| owner.namespace == *first))
    }

    /// Finds out who decides about the addresses of these ports, and changes the mode of others where that is another one. An older Service that comes to an address in tunnel mode does not take
    /// it out of that: each turn ends connections, and anybody could bring one about as often as they like.
    pub(super) fn follow_first_at(&mut self, keys: &[ServiceKey], changed: &mut ProxyChanges) {
        if self.tunnels.asking.is_empty() && self.tunnels.firsts.is_empty() {
            return;
        }
        let addresses: BTreeSet<IpAddr> = keys.iter().filter_map(address_of).collect();
        for address in addresses {
            let all = services_on(address);
            let asking: Vec<ServiceKey> = self.tunnels.asking.range(all.clone()).copied().collect();
            let owners = self.owners.all().iter_from(all.start()).take_while(|(key, _)| *key <= all.end());
            let first = owners.map(|(_, owner)| owner).min().filter(|_| !asking.is_empty());
            let stands = |key: &&ServiceKey| self.tunnels.stands(key);
            let standing = asking.iter().filter(stands).filter_map(|key| self.owners.all().get(key)).min();
            let first = standing.or(first);
            match first.map(|first| first.name.namespace.clone()) {
                Some(first) => drop(self.tunnels.firsts.insert(address, first)),
                None => drop(self.tunnels.firsts.remove(&address)),
            }
            for key in asking {
                if self.is_of_first(&key) != self.tunnels.marks.asks_among(key..=key) {
                    self.tunnels.concerned.extend(self.owner(&key).cloned());
                    self.compose(key, changed);
                }
            }
        }
    }

    /// Returns an address at which a Service asks for tunnel mode and does not get it, because another namespace decides there.
    pub(super) fn outranked(&self, name: &ObjectName) -> Option<IpAddr> {
        let part = self.parts.get(name).filter(|_| !self.tunnels.firsts.is_empty())?;
        let claims =
            part.claims.iter().filter(|claim| claim.wanted.is_tunnelled && self.owner(&claim.key) == Some(name));
        claims.map(|claim| claim.key).find(|key| !self.is_of_first(key)).as_ref().and_then(address_of)
    }

    /// Gives a virtual service a mark, or takes it away. Others may get another one by that, and go there.
    pub(super) fn put_mark(&mut self, key: ServiceKey, is_tunnelled: bool, changed: &mut ProxyChanges) {
        let address = address_of(&key);
        let asks = |plan: &Plan| address.is_some_and(|address| plan.tunnels.asks_on(address));
        let asked = asks(self);
        let owner = is_tunnelled.then(|| self.owners.all().get(&key)).flatten();
        let seniority = owner.map(|owner| (owner.created, owner.name.clone()));
        let stood = self.tunnels.stands(&key);
        let moved = self.tunnels.marks.put(key, seniority);
        if !stood && self.tunnels.marks.of(&key).is_some() {
            self.tunnels.newly_marked.insert(key);
        }
        self.follow_marks(&moved, changed);
        let differs = asks(self) != asked;
        self.tunnels.is_changed |= is_tunnelled || differs;
        if let Some(address) = address.filter(|_| differs) {
            let used = self.desired.virtuals_on(address).next().is_some();
            self.follow_use(address, used, changed);
        }
    }

    /// Goes on with the marks that packets are given ([`PacketMarks::adopt`]): to be called once, and before the kernel is changed.
    pub fn adopt_marks(&mut self, given: &BTreeMap<ServiceKey, u32>) -> ProxyChanges {
        let mut changed = ProxyChanges::default();
        let moved = self.tunnels.marks.adopt(given);
        if !moved.is_empty() {
            self.follow_marks(&moved, &mut changed);
        }
        // Whose packets are given a mark decides about its address, and who was taken for that before does not.
        let is_new = |key: &&ServiceKey| !given.contains_key(key);
        self.tunnels.newly_marked = self.desired.marks.keys().filter(is_new).copied().collect();
        let asking: Vec<ServiceKey> = given.keys().filter(|key| self.tunnels.asking.contains(key)).copied().collect();
        self.follow_first_at(&asking, &mut changed);
        self.tell_unmarked(&mut changed);
        self.follow_restrictions(&mut changed);
        changed
    }

    /// Keeps the marks that packets to unknown ports are given, whatever is known, or no longer: while rules of the other packet filter stand.
    pub fn keep_marks(&mut self, keeps: bool) {
        self.tunnels.keeps_marks = keeps;
    }

    /// Gives back the marks that were kept for Services that were not known yet, where everything is.
    pub(super) fn release_marks(&mut self, changed: &mut ProxyChanges) {
        if self.world.authority.proxy == Authority::Complete && !self.tunnels.keeps_marks {
            let moved = self.tunnels.marks.release();
            self.follow_marks(&moved, changed);
        }
    }

    /// Finds the problems of those Services anew that have got a mark or lost one.
    pub(super) fn tell_unmarked(&mut self, changed: &mut ProxyChanges) {
        for name in std::mem::take(&mut self.tunnels.concerned) {
            self.find_problems(&name, changed);
        }
    }

    /// Returns why ports of a Service that would be served in tunnel mode are not: no mark is left for them.
    pub(super) fn unmarked(&self, name: &ObjectName) -> Option<Unmarked> {
        let part = self.parts.get(name).filter(|_| self.tunnels.marks.has_waiting())?;
        let is_tunnelled = |claim: &&Claim| {
            claim.wanted.is_tunnelled && self.owner(&claim.key) == Some(name) && self.is_of_first(&claim.key)
        };
        let mut waiting = part.claims.iter().filter(is_tunnelled).map(|claim| claim.key);
        let first = waiting.find(|key| self.tunnels.marks.of(key).is_none())?;
        let more = waiting.filter(|key| self.tunnels.marks.of(key).is_none()).count();
        Some(Unmarked { first, more, is_namespace_full: self.tunnels.marks.is_full(&name.namespace) })
    }

    fn follow_marks(&mut self, moved: &[Moved], changed: &mut ProxyChanges) {
        let owners = moved.iter().filter_map(|it| self.owners.of(&it.key)).cloned();
        self.tunnels.concerned.extend(owners);
        let mut held: Vec<(ServiceKey, Virtual)> = Vec::new();
        for it in moved {
            let before = keyed(&it.key, it.before);
            if let Some(found) = self.desired.virtuals.remove(&before) {
                changed.virtuals.push(before);
                held.push((it.key, found));
            }
        }
        for it in moved.iter().filter(|it| it.before.is_some()) {
            self.desired.marked.remove(&keyed(&it.key, it.before));
            self.put_given_mark(it.before, false, changed);
        }
        for it in moved {
            match it.after {
                Some(mark) => {
                    self.desired.marked.insert(keyed(&it.key, it.after), it.key);
                    self.desired.marks.insert(it.key, mark)
                }
                None => self.desired.marks.remove(&it.key),
            };
            self.put_tunnel_port(it.key, it.after, changed);
            self.put_given_mark(it.after, true, changed);
        }
        for (key, found) in held {
            let (kernel_key, found) = (self.desired.kernel_key(&key), self.in_its_mode(&key, found));
            self.desired.virtuals.insert(kernel_key, found);
            changed.virtuals.push(kernel_key);
        }
        for address in moved.iter().filter_map(|it| address_of(&it.key)) {
            let used = self.desired.virtuals_on(address).next().is_some();
            self.follow_use(address, used, changed);
        }
        self.tunnels.is_changed |= !moved.is_empty();
        changed.owners |= !moved.is_empty();
    }

    /// Returns a virtual service with its destinations in tunnel mode if it has a mark, and with NAT otherwise.
    pub(super) fn in_its_mode(&self, key: &ServiceKey, found: Virtual) -> Virtual {
        let forwarding = if self.desired.marks.contains_key(key) { Forwarding::Tunnel } else { Forwarding::Nat };
        if found.destinations.iter().all(|destination| destination.forwarding == forwarding) {
            return found;
        }
        let destinations = found.destinations.iter().map(|destination| Destination { forwarding, ..destination });
        Virtual { destinations: destinations.collect(), ..found }
    }

    fn put_tunnel_port(&mut self, key: ServiceKey, mark: Option<u32>, changed: &mut ProxyChanges) {
        let ServiceKey::Address { address, protocol, port } = key else { return };
        let entry = Entry::IpPort(address, protocol, port);
        match (mark, self.config.backend) {
            (Some(mark), Backend::Nftables) => {
                let object = Set::TunnelPorts.object(&entry);
                self.desired.table.insert(object.clone(), Content::Mark(mark));
                changed.table.push(object);
            }
            (mark, _) => self.put_element(Set::TunnelPorts, entry, mark.is_some(), changed),
        }
    }

    /// Has packets that IPVS sends on lose a mark, or no longer. With iptables the rules say that.
    fn put_given_mark(&mut self, mark: Option<u32>, present: bool, changed: &mut ProxyChanges) {
        let Some(object) = mark.filter(|_| self.config.backend == Backend::Nftables).map(rules::given_mark) else {
            return;
        };
        match present {
            true => drop(self.desired.table.insert(object.clone(), Content::Element)),
            false => drop(self.desired.table.remove(&object)),
        }
        changed.table.push(object);
    }

    /// Notes the MTU of the links that carry the node's addresses.
    pub(super) fn note_mtu(&mut self) {
        let links = &self.world.host.links;
        let mtu = PerFamily::from_fn(|family| {
            let name = self.node.link(family)?;
            links.iter().find(|link| link.name == name).map(|link| link.mtu)
        });
        self.tunnels.is_changed |= mtu != self.tunnels.mtu;
        self.tunnels.mtu = mtu;
    }

    /// Returns whether something that rules or settings follow from has changed since the last call.
    pub(super) fn tunnels_have_changed(&mut self) -> bool {
        std::mem::take(&mut self.tunnels.is_changed)
    }

    /// Returns the families that have addresses in tunnel mode.
    pub(super) fn tunnelled_families(&self) -> PerFamily<bool> {
        let ends = self.tunnels.marks.ends();
        PerFamily::from_fn(|family| ends.iter().flatten().any(|key| key.family() == family))
    }

    /// Returns whether connections of another director are taken over: any virtual service in tunnel mode has the scheduler `mh`.
    pub(super) fn takes_over(&self) -> bool {
        let is_mh = |key: &ServiceKey| {
            self.desired.virtual_of(key).is_some_and(|found| found.service.scheduler == Scheduler::Mh.name())
        };
        self.desired.marks.keys().any(is_mh)
    }

    /// Updates the rules of routing.
    pub(super) fn replace_policy_rules(&mut self, changed: &mut ProxyChanges) {
        let used = self.shape.tunnels;
        let families = Family::BOTH.into_iter().filter(|family| *used.of(*family));
        let wanted = families.map(|family| (rules::policy_rule(family), ())).collect();
        let old = std::mem::replace(&mut self.desired.policy_rules, wanted);
        changed.policy_rules.extend(different_keys(&old, &self.desired.policy_rules));
    }

    /// Returns the rules of iptables that mark packets of a family.
    pub(super) fn marking_rules(&self, family: Family) -> BTreeMap<Piece, Rules> {
        if !*self.shape.tunnels.of(family) {
            return BTreeMap::new();
        }
        let marks = self.desired.marks.iter().filter(|(key, _)| key.family() == family);
        rules::rules(family, marks.map(|(key, mark)| (key, *mark)), self.segment_size(family))
    }

    /// Returns the largest segments of each enabled family; none where nothing is in tunnel mode. Both families, because a chain of both that named one
    /// alone would no longer mark packets of a Service that is not known yet.
    pub(super) fn segment_sizes(&self) -> PerFamily<Option<u16>> {
        let is_any = self.shape.tunnels.v4 || self.shape.tunnels.v6;
        PerFamily::from_fn(|family| (is_any && *self.node.families.of(family)).then(|| self.segment_size(family)))
    }

    /// A packet in a tunnel may go through one of the overlay too: then the MTU is that of the path between nodes.
    fn segment_size(&self, family: Family) -> u16 {
        let link = self.tunnels.mtu.of(family).unwrap_or(USUAL_MTU);
        rules::segment_size(family, link.saturating_sub(*self.config.overlay_overhead.of(family)))
    }
}
