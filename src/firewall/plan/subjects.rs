//! The ClusterNetworkPolicies that select the pods of this node.
//!
//! A changed pod looks up the policies that may select it; a changed policy is evaluated for all pods of this node. As for
//! NetworkPolicies, the number of pods that a policy selects decides whether it is needed here at all.
//!
//! A pod whose Namespace is not known yet (the two are watched apart) is a subject as if that had the one label that every
//! Namespace has: what is to be refused for all of them is refused for it from the start.

use std::sync::Arc;

use compact_str::CompactString;

use super::{Dirty, Plan};
use crate::firewall::rules::{ClusterPolicyKey, Direction, LocalPod, Scope, Selection};
use crate::model::{Cluster, ClusterNetworkPolicy, Labels, ObjectName, Pod};

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
            if let Some(policy) = after {
                self.cluster_policies.insert(&subject(policy), name);
                dirty.cluster_policies.extend(keys(name, policy));
            }
            for (pod_name, local) in &self.rules.pods {
                let selects = |policy: &&Arc<ClusterNetworkPolicy>| {
                    let pod = newer.pods.get(pod_name);
                    pod.is_some_and(|pod| selects(policy, &self.namespace_labels(pod_name), pod))
                };
                let wanted = after.filter(selects).into_iter().flat_map(|policy| keys(name, policy));
                let known = local.cluster_policies.iter().filter(|key| key.policy == *name).cloned();
                if !known.eq(wanted) {
                    dirty.pods.insert(pod_name.clone());
                }
            }
        }
    }

    /// Returns the ClusterNetworkPolicies that select a pod of this node, in the order of evaluation.
    pub(super) fn cluster_policies_of(&self, name: &ObjectName, pod: &Pod) -> Box<[ClusterPolicyKey]> {
        if self.cluster_policies.is_empty() {
            return Box::default();
        }
        let namespace = self.namespace_labels(name);
        let candidates = self.cluster_policies.candidates(&name.namespace, Some(&namespace), &pod.labels);
        let known = candidates.filter_map(|name| Some((name, self.cluster.cluster_policies.get(name)?)));
        let selecting = known.filter(|(_, policy)| selects(policy, &namespace, pod));
        let mut all: Vec<ClusterPolicyKey> = selecting.flat_map(|(name, policy)| keys(name, policy)).collect();
        all.sort();
        // A policy may be found by several labels.
        all.dedup();
        all.into()
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

    fn namespace_labels(&self, pod: &ObjectName) -> Labels {
        match self.cluster.namespaces.get(&pod.namespace) {
            Some(namespace) => namespace.labels.clone(),
            None => [(NAME_LABEL, pod.namespace.clone())].into_iter().collect(),
        }
    }
}

fn selects(policy: &ClusterNetworkPolicy, namespace: &Labels, pod: &Pod) -> bool {
    policy.subject.namespaces.selects(namespace) && policy.subject.pods.selects(&pod.labels)
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
