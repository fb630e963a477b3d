//! Which virtual services are ours, as it is told to who reads them: the kernel keeps no mark of who made one.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Kernel, Mirrors, Owned};
use crate::kernel::ipset::{ElementKey, Entry};
use crate::kernel::ipvs::{ServiceKey, Virtual, Whose};
use crate::kernel::nftables::{Content, Object};
use crate::packed::BlockMap;
use crate::proxy::desired::Desired;
use crate::proxy::marks::left_by_kube_router;
use crate::proxy::names::Set;
use crate::reconcile::Reflection;

impl<K: Kernel> Mirrors<K> {
    /// Calls [`tell_ownership`](Self::tell_ownership) if something has changed since the last call.
    pub(super) fn tell_new_ownership(&mut self, desired: &Desired) {
        if self.told_for != Some(self.told_now()) {
            self.tell_ownership(desired);
        }
    }

    /// Returns what ownership follows from, as numbers that change with it.
    fn told_now(&self) -> (u64, u64, u64) {
        let rules = self.rules.steps_done() + self.policy_rules.steps_done();
        let marking = self.elements.steps_done() + self.table.steps_done() + rules;
        (self.marks, marking, self.virtuals.steps_done())
    }

    /// Notes the virtual services for marks that are there.
    pub(super) fn note_marks(&mut self) {
        let Some(seen) = self.virtuals.seen() else { return };
        let is_known = |key: &ServiceKey| seen.contains_key(key) || self.virtuals.is_doubtful(key);
        let mut marks: BTreeSet<ServiceKey> = self.seen_marks.iter().copied().filter(is_known).collect();
        marks.extend(seen.range(ServiceKey::first_of_marks()..).map(|(key, _)| *key));
        self.seen_marks = marks;
    }

    /// Passes on which virtual services are ours, from the set in the kernel. Any program may use a mark that a port of ours may have, so one for a
    /// mark that is seen for the first time is ours only in tunnel mode, also where it is desired; and one without any destination only if
    /// it is desired or packets are given its mark.
    ///
    /// What decides about addresses is as large as the cluster: it is passed on as the maps that exist, which share their blocks.
    pub(super) fn tell_ownership(&mut self, desired: &Desired) {
        let is_excluded = |key: &ServiceKey| is_within(&self.excluded, key);
        let rules = self.policy_rules.seen().into_iter().flat_map(|seen| seen.keys());
        let left: Vec<ServiceKey> = rules.filter_map(left_by_kube_router).collect();
        let from_marks = ServiceKey::first_of_marks()..;
        let seen = self.virtuals.seen();
        let seen_now = seen.into_iter().flat_map(|seen| seen.range(from_marks.clone())).map(|(key, _)| *key);
        let failed = self.virtuals.uncertain_keys().filter(|key| self.seen_marks.contains(*key)).copied();
        let certain: BTreeSet<ServiceKey> = left.iter().copied().chain(seen_now).chain(failed).collect();
        let tunnels = self.tunnels();
        let given: BTreeSet<ServiceKey> = tunnels.given_keys(|port| !is_excluded(port)).collect();
        let given: BTreeSet<ServiceKey> = given.into_iter().chain(desired.marked.keys().copied()).collect();
        let tunnelled = tunnels.likely_keys(|port| !is_excluded(port));
        let elsewhere = self.marked_elsewhere.iter().flat_map(|marked| &marked.services).copied();
        let elsewhere = elsewhere.filter(|key| !is_excluded(key));
        // A virtual service of ours stays ours, whichever program removed its element.
        let uncertain = self.virtuals.uncertain_keys().copied();
        let desired_marks = desired.virtuals.range(from_marks).map(|(key, _)| *key);
        let marks = certain.iter().chain(&given).copied().chain(tunnelled).chain(desired_marks);
        let evidence = Evidence {
            one_by_one: marks.chain(elsewhere).chain(uncertain).collect(),
            certain,
            given,
            excluded: self.excluded.clone(),
            spared: self.spared.clone(),
            desired: desired.virtuals.clone(),
            seen: seen.cloned().unwrap_or_default(),
            elements: self.elements.seen().cloned().unwrap_or_default(),
            table: self.table.seen().cloned().unwrap_or_default(),
        };
        self.told_for = Some(self.told_now());
        self.virtuals.target().set_ownership(Box::new(move |key| evidence.whose(key)));
    }

    /// Calls [`tell_ownership`](Self::tell_ownership) although nobody asks, if much has changed: the maps that were passed on keep all that has gone since.
    pub(super) fn tell_ownership_after_many_changes(&mut self, desired: &Desired) {
        let sum = |(_, marking, virtuals): (u64, u64, u64)| marking + virtuals;
        let is_behind = |told| sum(self.told_now()).saturating_sub(sum(told)) > MANY;
        if self.told_for.is_some_and(is_behind) && self.marks().are_known() {
            self.tell_ownership(desired);
        }
    }
}

/// Number of changes.
const MANY: u64 = 32;

/// Everything that tells whose a virtual service is.
struct Evidence {
    /// Those that are ours by themselves, whatever else is known of them.
    one_by_one: BTreeSet<ServiceKey>,
    /// Those for marks of which the content need not be known.
    certain: BTreeSet<ServiceKey>,
    /// Those for marks that packets are given, or shall be.
    given: BTreeSet<ServiceKey>,
    /// Where elements say nothing.
    excluded: Vec<IpNet>,
    /// Those of which elements say nothing.
    spared: BTreeSet<ServiceKey>,
    desired: BlockMap<ServiceKey, Virtual>,
    seen: BlockMap<ServiceKey, Virtual>,
    elements: BlockMap<ElementKey, ()>,
    table: BlockMap<Object, Content>,
}

impl Evidence {
    fn whose(&self, key: &ServiceKey) -> Whose {
        match *key {
            ServiceKey::Address { .. } if self.is_ours(key) => Whose::Ours,
            ServiceKey::Mark { .. } if !self.one_by_one.contains(key) => Whose::SomebodyElses,
            ServiceKey::Mark { .. } if self.certain.contains(key) => Whose::Ours,
            ServiceKey::Mark { .. } if self.given.contains(key) => Whose::OursInTunnelMode,
            ServiceKey::Mark { .. } => Whose::OursWithTunnels,
            ServiceKey::Address { .. } => Whose::SomebodyElses,
        }
    }

    /// Of an address, a protocol and a port.
    fn is_ours(&self, key: &ServiceKey) -> bool {
        let is_known = self.desired.contains_key(key) || self.seen.contains_key(key) || self.one_by_one.contains(key);
        is_known || !is_within(&self.excluded, key) && !self.spared.contains(key) && self.is_marked(key)
    }

    /// Returns whether an element in the kernel marks it as ours.
    fn is_marked(&self, key: &ServiceKey) -> bool {
        let ServiceKey::Address { address, protocol, port } = *key else { return false };
        let entry = Entry::IpPort(address, protocol, port);
        let set = Set::ServicePorts;
        self.table.contains_key(&set.object(&entry)) || self.elements.contains_key(&set.element(entry))
    }
}

/// Returns whether it stands at an address of these ranges.
fn is_within(ranges: &[IpNet], key: &ServiceKey) -> bool {
    match key {
        ServiceKey::Address { address, .. } => ranges.iter().any(|range| range.contains(address)),
        ServiceKey::Mark { .. } => false,
    }
}
