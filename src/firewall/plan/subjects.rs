//! The ClusterNetworkPolicies that select the pods of this node.
//!
//! A changed pod looks up the policies that may select it; a changed policy is evaluated for all pods of this node. As for
//! NetworkPolicies, the number of pods that a policy selects decides whether it is needed here at all.
//!
//! A pod whose Namespace is not known yet (the two are watched apart) is a subject where the one label that every Namespace has
//! decides. Where others do, it is one of what denies something, and not of what only accepts or passes on: what may have to be
//! refused is refused from the start. Behind one of the Admin tier that may have to pass something on, nothing that only accepts counts in it either: the NetworkPolicies
//! may have to judge that.

use std::sync::Arc;

use compact_str::CompactString;

use super::{Dirty, Plan};
use crate::firewall::node_peers;
use crate::firewall::rules::{ClusterPolicyKey, Direction, LocalPod, Scope, Selection};
use crate::model::{
    Action, Cluster, ClusterNetworkPolicy, ClusterRule, ObjectName, Pod, Requirement, Selector, Tier, World,
};

/// The label that every Namespace has, with its own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Plan {
    /// Updates the index of ClusterNetworkPolicies, and marks the pods of this node that one of them turns to or from.
    pub(super) fn take_in_cluster_policies(&mut self, older: &Cluster, dirty: &mut Dirty) {
        let newer = self.cluster.clone();
        for change in newer.cluster_policies.changes_since(&older.cluster_policies) {
            let name = change.key();
            let (before, after) = (older.cluster_policies.get(name), newer.cluster_policies.get(name));
            if let Some(policy) = before {
                self.cluster_policies.remove(&subject(policy), name);
                dirty.cluster_policies.extend(keys(name, policy));
            }
            let rules = after.into_iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
            self.note_size(ObjectName::new("", name), rules.map(|rule| &rule.matches));
            self.node_policies.remove(name);
            if let Some(policy) = after {
                if node_peers::asks(policy) {
                    self.node_policies.insert(name.clone());
                }
                self.cluster_policies.insert(&subject(policy), name);
                dirty.cluster_policies.extend(keys(name, policy));
            }
            for (pod_name, local) in &self.rules.pods {
                let pod = newer.pods.get(pod_name);
                let both = after.zip(pod).into_iter();
                let wanted = both.flat_map(|(policy, pod)| self.turned_to((name, policy), (pod_name, pod)));
                let known = local.cluster_policies.iter().filter(|key| key.policy == *name).cloned();
                // Of a pod whose Namespace is not known one policy has a say in what becomes of others.
                let concerns =
                    |policy: &ClusterNetworkPolicy| pod.is_some_and(|pod| self.may_select(policy, (pod_name, pod)).0);
                let has_say = || {
                    newer.namespaces.get(&pod_name.namespace).is_none()
                        && [before, after].into_iter().flatten().any(|policy| concerns(policy))
                };
                if !known.eq(wanted) || has_say() {
                    dirty.pods.insert(pod_name.clone());
                }
            }
        }
    }

    /// Marks the policies whose peers a change of the Nodes, or of this host's addresses, may have changed.
    pub(super) fn take_in_nodes(&mut self, older: &Cluster, world: &World, dirty: &mut Dirty) {
        let knew = std::mem::replace(&mut self.knows_nodes, node_peers::are_known(world));
        let had = std::mem::replace(&mut self.host, world.host.clone());
        let (before, after) = (&older.nodes, &self.cluster.nodes);
        let is_other = |name: &CompactString| {
            let [before, after] = [before, after].map(|nodes| nodes.get(name).map(|node| &**node));
            node_peers::differ(before, after)
        };
        let is_moved = knew != self.knows_nodes || had.addresses != self.host.addresses;
        if self.node_policies.is_empty()
            || !is_moved && !after.changes_since(before).any(|change| is_other(change.key()))
        {
            return;
        }
        for name in &self.node_policies {
            let policy = self.cluster.cluster_policies.get(name).into_iter();
            dirty.cluster_policies.extend(policy.flat_map(|policy| keys(name, policy)));
        }
    }

    /// Returns the ClusterNetworkPolicies that select a pod of this node, in the order of evaluation.
    pub(super) fn cluster_policies_of(&self, name: &ObjectName, pod: &Pod) -> Box<[ClusterPolicyKey]> {
        if self.cluster_policies.is_empty() {
            return Box::default();
        }
        let namespace = self.cluster.namespaces.get(&name.namespace).map(|namespace| &namespace.labels);
        let candidates = self.cluster_policies.candidates(&name.namespace, namespace, &pod.labels);
        let anywhere = namespace.is_none().then(|| self.cluster_policies.candidates_anywhere(&pod.labels));
        let candidates = candidates.chain(anywhere.into_iter().flatten());
        let known = candidates.filter_map(|policy| Some((policy, self.cluster.cluster_policies.get(policy)?)));
        let mut all: Vec<ClusterPolicyKey> = known.flat_map(|policy| self.turned_to(policy, (name, pod))).collect();
        all.sort();
        // A policy may be found by several labels.
        all.dedup();
        if namespace.is_none() {
            self.leave_out_behind_passes(&mut all, (name, pod));
        }
        all.into()
    }

    /// Leaves out the policies of the Admin tier that only accept, behind one that may have to pass something on, for a pod whose Namespace is not known. `of_pod` is sorted. Behind the
    /// Baseline tier nobody judges.
    fn leave_out_behind_passes(&self, of_pod: &mut Vec<ClusterPolicyKey>, pod: (&ObjectName, &Pod)) {
        for direction in Direction::BOTH {
            let possible = self.cluster_policies.candidates_anywhere(&pod.1.labels);
            let possible = possible.filter_map(|policy| Some((policy, self.cluster.cluster_policies.get(policy)?)));
            let passes = |policy: &ClusterNetworkPolicy| {
                rules_of(policy, direction).iter().any(|rule| rule.action == Action::Pass)
            };
            let may_pass = possible
                .filter(|(_, policy)| policy.tier == Tier::Admin && passes(policy) && self.may_select(policy, pod).0)
                .flat_map(|(name, policy)| keys(name, policy).filter(|key| key.direction == direction));
            let Some(first) = may_pass.filter(|key| of_pod.binary_search(key).is_err()).min() else { continue };
            of_pod.retain(|key| {
                let is_behind = key.tier == Tier::Admin && key.direction == direction && first < *key;
                !is_behind || !self.only_accepts(key)
            });
        }
    }

    fn only_accepts(&self, key: &ClusterPolicyKey) -> bool {
        let policy = self.cluster.cluster_policies.get(&key.policy);
        policy.is_some_and(|policy| rules_of(policy, key.direction).iter().all(|rule| rule.action == Action::Accept))
    }

    /// Counts the pods of ClusterNetworkPolicies, for a pod that shall be as given; those that get their first or lose their
    /// last pod are to be compiled.
    pub(super) fn count_cluster_policies(&mut self, name: &ObjectName, wanted: Option<&LocalPod>, dirty: &mut Dirty) {
        let before = self.rules.pods.get(name).map(|pod| pod.cluster_policies.clone()).unwrap_or_default();
        let after = wanted.map(|pod| &*pod.cluster_policies).unwrap_or_default();
        for key in after.iter().filter(|key| !before.contains(key)) {
            let count = self.cluster_selected.entry(key.clone()).or_default();
            *count += 1;
            if *count == 1 {
                dirty.cluster_policies.insert(key.clone());
            }
        }
        for key in before.iter().filter(|key| !after.contains(key)) {
            let count = self.cluster_selected.get_mut(key).expect("a policy that selects a pod is counted");
            *count -= 1;
            if *count == 0 {
                self.cluster_selected.remove(key);
                dirty.cluster_policies.insert(key.clone());
            }
        }
    }

    /// Returns the directions in which a policy selects a pod; sorted.
    fn turned_to(
        &self,
        (name, policy): (&CompactString, &Arc<ClusterNetworkPolicy>),
        pod: (&ObjectName, &Pod),
    ) -> Vec<ClusterPolicyKey> {
        let (is_subject, is_certain) = self.may_select(policy, pod);
        let counts = |key: &ClusterPolicyKey| is_certain || self.denies(name, policy, key.direction);
        keys(name, policy).filter(|key| is_subject && counts(key)).collect()
    }

    /// Returns whether a policy may select a pod, and whether that is certain.
    fn may_select(&self, policy: &ClusterNetworkPolicy, (pod_name, pod): (&ObjectName, &Pod)) -> (bool, bool) {
        let wanted = &policy.subject.namespaces;
        let (selects, is_certain) = match self.cluster.namespaces.get(&pod_name.namespace) {
            Some(namespace) => (wanted.selects(&namespace.labels), true),
            None => {
                let is_known = |requirement: &&Requirement| requirement.key == NAME_LABEL;
                let known: Selector = wanted.requirements.iter().filter(is_known).cloned().collect();
                let labels = [(NAME_LABEL, pod_name.namespace.as_str())].into_iter().collect();
                (known.selects(&labels), wanted.requirements.iter().all(|requirement| is_known(&requirement)))
            }
        };
        (selects && policy.subject.pods.selects(&pod.labels), is_certain)
    }

    /// Returns whether a policy denies anything in a direction.
    fn denies(&self, name: &CompactString, policy: &ClusterNetworkPolicy, direction: Direction) -> bool {
        let oversized = Some(&self.oversized).filter(|all| !all.is_empty());
        let excess = oversized.and_then(|all| all.get(&ObjectName::new("", name)).copied());
        // Of one with too much, what passes it on denies everything.
        let is_closed = |rule: &ClusterRule| {
            rule.action == Action::Pass && excess.is_some_and(|excess| excess.closes(&rule.matches))
        };
        rules_of(policy, direction).iter().any(|rule| rule.action == Action::Deny || is_closed(rule))
    }
}

fn rules_of(policy: &ClusterNetworkPolicy, direction: Direction) -> &[ClusterRule] {
    match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    }
}

/// Returns the directions in which a policy has rules; sorted.
fn keys<'a>(
    name: &'a CompactString,
    policy: &'a ClusterNetworkPolicy,
) -> impl Iterator<Item = ClusterPolicyKey> + use<'a> {
    let ClusterNetworkPolicy { tier, priority, ingress, egress, .. } = policy;
    let directions = [(Direction::Ingress, ingress), (Direction::Egress, egress)];
    directions.into_iter().filter(|(_, rules)| !rules.is_empty()).map(move |(direction, _)| ClusterPolicyKey {
        tier: *tier,
        priority: *priority,
        policy: name.clone(),
        direction,
    })
}

fn subject(policy: &ClusterNetworkPolicy) -> Selection {
    Selection { namespaces: Scope::Selected(policy.subject.namespaces.clone()), pods: policy.subject.pods.clone() }
}
