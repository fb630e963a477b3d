//! Which virtual services are ours, as it is told to who reads them: the kernel keeps no mark of who made one.

use std::collections::BTreeSet;

use super::{Kernel, Mirrors, Owned};
use crate::kernel::ipvs::{ServiceKey, Whose};
use crate::proxy::desired::Desired;
use crate::proxy::marks::left_by_kube_router;
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

    /// Passes on which virtual services are ours, from the set in the kernel. Any program may use a mark that a port of ours may have, so one for a
    /// mark that is seen for the first time is ours only in tunnel mode, also where it is desired; and one without any destination only if
    /// it is desired or packets are given its mark.
    pub(super) fn tell_ownership(&mut self, desired: &Desired) {
        let excluded = |key: &ServiceKey| match key {
            ServiceKey::Address { address, .. } => self.excluded.iter().any(|cidr| cidr.contains(address)),
            ServiceKey::Mark { .. } => false,
        };
        let rules = self.policy_rules.seen().into_iter().flat_map(|seen| seen.keys());
        let left: Vec<ServiceKey> = rules.filter_map(left_by_kube_router).collect();
        let is_mark = |key: &ServiceKey| matches!(key, ServiceKey::Mark { .. });
        let seen = self.virtuals.seen().into_iter().flat_map(|seen| seen.keys()).filter(|key| is_mark(key)).copied();
        let certain: BTreeSet<ServiceKey> = left.iter().copied().chain(seen).collect();
        let tunnels = self.tunnels();
        let given: BTreeSet<ServiceKey> = tunnels.given_keys(|port| !excluded(port)).collect();
        let given: BTreeSet<ServiceKey> = given.into_iter().chain(desired.marked.keys().copied()).collect();
        let tunnelled = tunnels.likely_keys(|port| !excluded(port));
        let by_address = self.marks().services().filter(|key| !is_mark(key));
        let elsewhere = self.marked_elsewhere.iter().flat_map(|marked| &marked.services).copied();
        let marked = by_address.chain(left).chain(tunnelled).chain(given.iter().copied()).chain(elsewhere);
        let mut ours: BTreeSet<ServiceKey> = marked.filter(|key| !excluded(key)).collect();
        ours.extend(desired.virtuals.keys());
        // A virtual service of ours stays ours, whichever program removed its element.
        ours.extend(self.virtuals.known_keys());
        self.told_for = Some(self.told_now());
        self.virtuals.target().set_ownership(Box::new(move |key| match ours.contains(key) {
            false => Whose::SomebodyElses,
            true if is_mark(key) && !certain.contains(key) && given.contains(key) => Whose::OursInTunnelMode,
            true if is_mark(key) && !certain.contains(key) => Whose::OursWithTunnels,
            true => Whose::Ours,
        }));
    }
}
