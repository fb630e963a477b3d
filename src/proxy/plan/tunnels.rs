//! Virtual services in tunnel mode (`dsr`): their marks, and what all of them share.
//!
//! Everything in the plan knows a virtual service by its address, protocol and port, whichever way it is served. The kernel knows one in tunnel
//! mode by its mark, which may become another one when a Service comes or goes whose mark collides with it.
//!
//! The mode of a port is what its own Service asks for, and nothing else: not who has the address's other ports, nor what was served before. So all nodes find the same, also one that was
//! booted a moment ago. An address is local for marked packets alone ([`follow_use`](Plan::follow_use)) as soon as any port at it is to be in tunnel mode, of whichever namespace: others send to
//! pods of this node through tunnels then, and what these answer has the address as source.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::config::Backend;
use crate::kernel::ipset::Entry;
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::ipvs::{Destination, Forwarding, ServiceKey, Virtual};
use crate::kernel::nftables::Content;
use crate::model::{Authority, ObjectName, Scheduler};
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
    /// Returns whether any port at an address is to be served in tunnel mode, with a mark or without.
    pub(super) fn asks_on(&self, address: IpAddr) -> bool {
        self.marks.asks_among(services_on(address))
    }
}

/// Of a link whose MTU is not known.
const USUAL_MTU: u32 = 1500;

impl Plan {
    /// Gives a virtual service a mark, or takes it away. Others may get another one by that, and go there.
    pub(super) fn put_mark(&mut self, key: ServiceKey, is_tunnelled: bool, changed: &mut ProxyChanges) {
        let address = address_of(&key);
        let asks = |plan: &Plan| address.is_some_and(|address| plan.tunnels.asks_on(address));
        let asked = asks(self);
        let owner = is_tunnelled.then(|| self.owners.all().get(&key)).flatten();
        let seniority = owner.map(|owner| (owner.created, owner.name.clone()));
        let moved = self.tunnels.marks.put(key, seniority);
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
        let is_tunnelled = |claim: &&Claim| claim.wanted.is_tunnelled && self.owner(&claim.key) == Some(name);
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
