//! The rule set, kept up to date at the cost of what changed.
//!
//! When the World changes, the tables say which pods, namespaces and policies differ. From there:
//!
//! - a changed pod is a change at its addresses: only sets whose selectors could select it, before or after, are
//!   evaluated at these addresses (`index`, `membership`);
//! - a namespace whose labels changed concerns the sets whose `namespaceSelector` now gives another result for it, and
//!   in them the pods of that namespace;
//! - a pod of this node, or a policy of its namespace, may change which policies select the pod (`isolation`);
//! - a Node whose labels or addresses changed has the ClusterNetworkPolicies compiled that have Nodes as peers;
//! - a policy with more blocks than the kernel is given is noted when it changes (`oversized`), wherever its pods are;
//! - a policy is compiled (`compile`) while it selects a pod of this node, and its sets exist while a rule uses them. A
//!   new set is filled in one pass over the pods of the namespaces that it selects.
//!
//! The first half is here; `selecting` finds the policies that select a pod of this node, `subjects` the
//! ClusterNetworkPolicies, `sets` the sets they need.
//!
//! After any history the rule set equals the one computed at once from the newest World; `tests/firewall.rs` verifies
//! that with random histories.

mod selecting;
mod sets;
mod subjects;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use crate::config::Backend;
use crate::model::{Change, Cluster, Host, Labels, Namespace, ObjectName, Pod, PolicyRule, World};

use super::claims::Claims;
use super::index::{Index, SetIndex};
use super::oversized::{Bound, Excess};
use super::rules::{ClusterPolicyKey, Element, PolicyKey, PortOwners, RuleSet, Selection, SetKey};
use super::{fill, selection};

/// The rule set, with what is needed to update it by parts.
#[derive(Default)]
pub struct Plan {
    /// The name of this node.
    node: CompactString,
    /// This host, as the rules about Nodes were compiled last.
    host: Arc<Host>,
    /// The labels of Nodes are known.
    knows_nodes: bool,
    cluster: Cluster,
    rules: RuleSet,
    claims: Claims,
    /// All policies, by the pods that they select.
    policies: Index<ObjectName>,
    /// The sets in use, by the pods that may belong to them.
    sets: SetIndex<Arc<SetKey>>,
    /// Number of matches that use each set.
    uses: BTreeMap<Arc<SetKey>, usize>,
    /// The policies that select each pod of this node, whatever their directions; sorted.
    selecting: BTreeMap<ObjectName, Vec<ObjectName>>,
    /// Number of this node's pods that each policy selects; without policies that select none.
    selected: BTreeMap<ObjectName, usize>,
    /// All ClusterNetworkPolicies, by their subjects.
    cluster_policies: Index<CompactString>,
    /// Those with peers that are Nodes.
    node_policies: BTreeSet<CompactString>,
    /// Number of this node's pods that each of them selects; without those that select none.
    cluster_selected: BTreeMap<ClusterPolicyKey, usize>,
    /// The most elements that the new sets of one update may have together; `None`: as many as there are.
    room: Option<usize>,
    /// Of what one policy may have.
    bound: Bound,
    /// The policies that exceed it; those of the cluster without a namespace.
    oversized: BTreeMap<ObjectName, Excess>,
}

/// Changes of the rule set.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RuleSetChanges {
    pub pods: BTreeSet<ObjectName>,
    pub policies: BTreeSet<PolicyKey>,
    pub cluster_policies: BTreeSet<ClusterPolicyKey>,
    /// Sets that were added, removed, or have to be compared as a whole.
    pub sets: BTreeSet<Arc<SetKey>>,
    /// Elements that entered or left other sets.
    pub elements: Vec<(Arc<SetKey>, Element)>,
    /// Number of evaluations of whether a pod belongs to a set; the work is proportional to it.
    pub pods_asked: usize,
    /// New sets lack elements, because there was no room for all of them: the rule set is not that of the World.
    pub is_cut: bool,
}

/// Pending changes, before they are applied to the rule set.
#[derive(Default)]
struct Dirty {
    /// Sets that may differ at an address.
    places: Vec<(IpAddr, Arc<SetKey>)>,
    /// Pods of this node, before or after, that changed, or whose namespace changed what isolates them.
    pods: BTreeSet<ObjectName>,
    policies: BTreeSet<ObjectName>,
    cluster_policies: BTreeSet<ClusterPolicyKey>,
}

impl Plan {
    pub fn new() -> Plan {
        Plan::default()
    }

    /// Makes one for a backend, on which it depends how many blocks a policy may have.
    pub fn of(backend: Backend) -> Plan {
        Plan::with_bound(Bound::of(backend))
    }

    /// Makes one with this bound for the blocks of one policy.
    pub fn with_bound(bound: Bound) -> Plan {
        Plan { bound, ..Plan::default() }
    }

    /// Returns the policies with more than the kernel is given, those of the cluster without a namespace; and how much that is.
    pub fn oversized(&self) -> (&BTreeMap<ObjectName, Excess>, Bound) {
        (&self.oversized, self.bound)
    }

    /// Bounds the memory of the next updates, for a rule set that is made for a question alone.
    pub fn set_room(&mut self, elements: usize) {
        self.room = Some(elements);
    }

    /// Gives the rule set away, and all else up.
    pub fn into_rules(self) -> RuleSet {
        self.rules
    }

    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Returns the running pods of the whole cluster, by address.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Packs what the first World filled one by one.
    pub fn pack(&mut self) {
        self.claims.pack();
    }

    /// Updates the rule set from a newer World; returns what changed.
    pub fn update(&mut self, world: &World) -> RuleSetChanges {
        let mut changed = RuleSetChanges::default();
        if self.node != world.host.node_name {
            // A new node name changes which pods are local, so start over.
            let (node, room, bound) = (world.host.node_name.clone(), self.room, self.bound);
            let fresh = Plan { node, room, bound, ..Plan::default() };
            let before = std::mem::replace(self, fresh).rules;
            changed.pods.extend(before.pods.into_names());
            changed.policies.extend(before.policies.into_keys());
            changed.cluster_policies.extend(before.cluster_policies.into_keys());
            changed.sets.extend(before.sets.into_keys());
        }
        let older = std::mem::replace(&mut self.cluster, world.cluster.clone());
        let mut dirty = Dirty::default();
        self.take_in_pods(&older, &mut dirty);
        self.take_in_namespaces(&older, &mut dirty);
        self.take_in_policies(&older, &mut dirty, &mut changed);
        self.take_in_cluster_policies(&older, &mut dirty);
        self.take_in_nodes(&older, world, &mut dirty);
        for name in std::mem::take(&mut dirty.pods) {
            self.update_local_pod(&name, &mut dirty, &mut changed);
        }
        let fresh = self.compile_policies(&dirty, &mut changed);
        self.fill_sets(&fresh, &mut changed);
        self.update_places(dirty.places, &fresh, &mut changed);
        changed
    }

    /// Updates the claims to addresses, and finds the sets that may differ at them.
    fn take_in_pods(&mut self, older: &Cluster, dirty: &mut Dirty) {
        let newer = self.cluster.clone();
        for change in newer.pods.changes_since(&older.pods) {
            let (before, after) = match change {
                Change::Added(_, new) => (None, Some(new)),
                Change::Updated(_, old, new) => (Some(old), Some(new)),
                Change::Removed(_, old) => (Some(old), None),
            };
            let before = before.filter(|pod| pod.takes_part());
            let after = after.filter(|pod| pod.takes_part());
            if before.into_iter().chain(after).any(|pod| self.is_local(pod)) {
                dirty.pods.insert(change.key().clone());
            }
            // Pods that share an address with this pod are evaluated too, so the result holds for all of them: before the
            // first of them is changed as all of them were, and behind the last of them as all of them are.
            let addresses = || before.into_iter().chain(after).flat_map(|pod| &pod.addresses);
            addresses().for_each(|address| self.note_places(*address, older, dirty));
            self.move_claims(change.key(), before, after);
            addresses().for_each(|address| self.note_places(*address, &newer, dirty));
        }
    }

    fn move_claims(&mut self, name: &ObjectName, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) {
        for address in before.into_iter().flat_map(|pod| &pod.addresses) {
            self.claims.remove(*address, name);
        }
        for address in after.into_iter().flat_map(|pod| &pod.addresses) {
            self.claims.add(*address, name);
        }
    }

    /// Marks the sets that the current pods of an address may belong to, as these pods and their namespaces are in `cluster`.
    fn note_places(&self, address: IpAddr, cluster: &Cluster, dirty: &mut Dirty) {
        if self.sets.is_empty() {
            return;
        }
        for claimant in self.claims.pods_at(address, &cluster.pods, &self.node) {
            let namespace = &claimant.name.namespace;
            let labels = cluster.namespaces.get(namespace).map(|namespace| &namespace.labels);
            let sets = self.sets.candidates(namespace, labels, claimant.pod);
            dirty.places.extend(sets.map(|set| (address, set.clone())));
        }
    }

    fn take_in_namespaces(&self, older: &Cluster, dirty: &mut Dirty) {
        for change in self.cluster.namespaces.changes_since(&older.namespaces) {
            let name = change.key();
            let (before, after) = (older.namespaces.get(name), self.cluster.namespaces.get(name));
            let isolated = |namespace: Option<&Arc<Namespace>>| namespace.is_some_and(|namespace| namespace.isolated);
            let labels = |namespace: Option<&Arc<Namespace>>| namespace.map(|namespace| namespace.labels.clone());
            let may_be_subject = !self.cluster_policies.is_empty() && labels(before) != labels(after);
            if isolated(before) != isolated(after) || may_be_subject {
                dirty.pods.extend(self.local_pods_of(name).cloned());
            }
            self.note_namespace(name, labels(before).as_ref(), labels(after).as_ref(), dirty);
        }
    }

    /// Marks the pods of a namespace in the sets that now select it and did not before, or the reverse. Pods that
    /// changed at the same time are marked already.
    fn note_namespace(&self, name: &str, before: Option<&Labels>, after: Option<&Labels>, dirty: &mut Dirty) {
        let looks = |set: &SetKey, labels: Option<&Labels>| {
            selection_of(set).is_some_and(|asked| {
                let may = set.closes() && labels.is_none() && selection::may_look_into(&asked.namespaces);
                may || selection::looks_into(&asked.namespaces, name, labels)
            })
        };
        let turned: Vec<&Arc<SetKey>> =
            self.rules.sets.keys().filter(|set| looks(set, before) != looks(set, after)).collect();
        if turned.is_empty() {
            return;
        }
        for (_, pod) in fill::pods_of(&self.cluster.pods, name).filter(|(_, pod)| pod.takes_part()) {
            let selects = |set: &SetKey| selection_of(set).is_some_and(|asked| asked.pods.selects(&pod.labels));
            for set in turned.iter().filter(|set| selects(set)) {
                dirty.places.extend(pod.addresses.iter().map(|address| (*address, Arc::clone(set))));
            }
        }
    }

    /// Returns whether the Namespace of a pod is not known, on which it depends what ClusterNetworkPolicies say of the pod.
    pub fn lacks_namespace(&self, pod: &ObjectName) -> bool {
        !self.cluster_policies.is_empty() && self.cluster.namespaces.get(&pod.namespace).is_none()
    }

    /// Notes whether a policy with these rules, or without any because it is gone, has more than the kernel is given.
    fn note_size<'a>(&mut self, policy: ObjectName, rules: impl Iterator<Item = &'a PolicyRule> + Clone) {
        match self.bound.excess(rules) {
            Some(excess) => self.oversized.insert(policy, excess),
            None => self.oversized.remove(&policy),
        };
    }

    fn is_local(&self, pod: &Pod) -> bool {
        pod.node.as_deref() == Some(self.node.as_str())
    }
}

impl RuleSetChanges {
    /// Returns whether the rule set is unchanged.
    pub fn is_empty(&self) -> bool {
        let policies = self.policies.is_empty() && self.cluster_policies.is_empty();
        self.pods.is_empty() && policies && self.sets.is_empty() && self.elements.is_empty()
    }
}

/// Returns the selectors of a set, if it has any.
fn selection_of(set: &SetKey) -> Option<&Selection> {
    match set.plain() {
        SetKey::Pods(selection) | SetKey::NamedPort { pods: PortOwners::Selected(selection), .. } => Some(selection),
        SetKey::Blocks(_) | SetKey::NamedPort { .. } | SetKey::Denied(_) => None,
    }
}

#[cfg(test)]
mod tests;
