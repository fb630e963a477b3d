//! The policies that select the pods of this node, and the resulting isolation.
//!
//! A changed pod looks up the policies that may select it; a changed policy is evaluated for the pods of its namespace
//! on this node. The number of pods that a policy selects decides whether it is needed here at all.

use std::sync::Arc;

use super::{Dirty, Plan, RuleSetChanges};
use crate::firewall::isolation;
use crate::firewall::rules::{Direction, Isolation, LocalPod, Scope, Selection};
use crate::model::{Cluster, NetworkPolicy, ObjectName, Pod, PolicyRule};

impl Plan {
    /// Updates the index of policies, and the isolation by each of them. Dirty pods are recomputed separately; for the
    /// others a policy is added or removed, however many there are.
    pub(super) fn take_in_policies(&mut self, older: &Cluster, dirty: &mut Dirty, changed: &mut RuleSetChanges) {
        let newer = self.cluster.clone();
        for change in newer.policies.changes_since(&older.policies) {
            let name = change.key();
            let (before, after) = (older.policies.get(name), newer.policies.get(name));
            dirty.policies.insert(name.clone());
            self.note_size(name.clone(), after.into_iter().flat_map(|policy| rules(policy)));
            let isolates = |policy: &NetworkPolicy| Direction::BOTH.map(|side| isolation::isolates(policy, side));
            let same = |(one, other): (&Arc<NetworkPolicy>, &Arc<NetworkPolicy>)| {
                one.pods == other.pods && isolates(one) == isolates(other)
            };
            if before.zip(after).is_some_and(same) {
                continue;
            }
            if let Some(policy) = before {
                self.policies.remove(&targets(name, policy), name);
            }
            if let Some(policy) = after {
                self.policies.insert(&targets(name, policy), name);
            }
            let pods = self.local_pods_of(&name.namespace).filter(|pod| !dirty.pods.contains(pod));
            for pod in pods.cloned().collect::<Vec<_>>() {
                self.update_one_policy(&pod, (name, after), dirty, changed);
            }
        }
    }

    /// Updates whether one policy selects an unchanged pod.
    fn update_one_policy(
        &mut self,
        name: &ObjectName,
        (policy_name, policy): (&ObjectName, Option<&Arc<NetworkPolicy>>),
        dirty: &mut Dirty,
        changed: &mut RuleSetChanges,
    ) {
        changed.pods_asked += 1;
        let pod = self.cluster.pods.get(name).expect("a pod in the rule set is in the World");
        let policy = policy.filter(|policy| policy.pods.selects(&pod.labels));
        let selecting = self.selecting.get_mut(name).expect("a pod in the rule set knows its policies");
        match (selecting.binary_search(policy_name), policy) {
            (Err(place), Some(_)) => {
                selecting.insert(place, policy_name.clone());
                self.count_up(policy_name, dirty);
            }
            (Ok(place), None) => {
                selecting.remove(place);
                self.count_down(policy_name, dirty);
            }
            _ => {}
        }
        for direction in Direction::BOTH {
            let isolating = policy.is_some_and(|policy| isolation::isolates(policy, direction));
            let local = self.rules.pods.isolation_mut(name, direction).expect("only pods of this node are asked");
            if isolation::set_isolating(local, policy_name, isolating) {
                changed.pods.insert(name.clone());
            }
        }
    }

    /// Recomputes the isolation of one pod of this node, or removes it if it no longer is one.
    pub(super) fn update_local_pod(&mut self, name: &ObjectName, dirty: &mut Dirty, changed: &mut RuleSetChanges) {
        changed.pods_asked += 1;
        let pod = self.cluster.pods.get(name).filter(|pod| pod.takes_part() && self.is_local(pod)).cloned();
        let selecting = pod.as_ref().map(|pod| self.selecting(name, pod));
        let before = match selecting.clone() {
            Some(selecting) => self.selecting.insert(name.clone(), selecting),
            None => self.selecting.remove(name),
        };
        let (now, before) = (selecting.as_deref().unwrap_or_default(), before.as_deref().unwrap_or_default());
        for policy in now.iter().filter(|policy| !holds(before, policy)) {
            self.count_up(policy, dirty);
        }
        for policy in before.iter().filter(|policy| !holds(now, policy)) {
            self.count_down(policy, dirty);
        }
        let wanted = pod.zip(selecting).map(|(pod, selecting)| LocalPod {
            uid: pod.uid,
            addresses: pod.addresses.to_vec().into(),
            ingress: self.isolation(Direction::Ingress, name, &selecting),
            egress: self.isolation(Direction::Egress, name, &selecting),
            cluster_policies: self.cluster_policies_of(name, &pod),
        });
        self.count_cluster_policies(name, wanted.as_ref(), dirty);
        if self.rules.pods.get(name) == wanted.as_ref() {
            return;
        }
        match wanted {
            Some(pod) => self.rules.pods.insert(name.clone(), pod),
            None => self.rules.pods.remove(name),
        }
        changed.pods.insert(name.clone());
    }

    /// Returns the policies that select a pod, sorted.
    fn selecting(&self, name: &ObjectName, pod: &Pod) -> Vec<ObjectName> {
        let selects = |policy: &&ObjectName| {
            self.cluster.policies.get(policy).is_some_and(|policy| policy.pods.selects(&pod.labels))
        };
        let candidates = self.policies.candidates(&name.namespace, None, &pod.labels);
        let mut selecting: Vec<ObjectName> = candidates.filter(selects).cloned().collect();
        selecting.sort();
        selecting
    }

    fn isolation(&self, direction: Direction, name: &ObjectName, selecting: &[ObjectName]) -> Isolation {
        let policies = selecting.iter().filter_map(|name| Some((name, &**self.cluster.policies.get(name)?)));
        let namespace = self.cluster.namespaces.get(&name.namespace);
        isolation::isolation(direction, policies, namespace.map(|namespace| &**namespace))
    }

    /// Counts one more selected pod; a policy that selects its first pod is to be compiled.
    fn count_up(&mut self, policy: &ObjectName, dirty: &mut Dirty) {
        let count = self.selected.entry(policy.clone()).or_default();
        *count += 1;
        if *count == 1 {
            dirty.policies.insert(policy.clone());
        }
    }

    /// Counts one selected pod less; a policy that loses its last pod is not needed here.
    fn count_down(&mut self, policy: &ObjectName, dirty: &mut Dirty) {
        let count = self.selected.get_mut(policy).expect("a policy that selects a pod is counted");
        *count -= 1;
        if *count == 0 {
            self.selected.remove(policy);
            dirty.policies.insert(policy.clone());
        }
    }

    /// Returns the pods of this node in one namespace, as in the rule set.
    pub(super) fn local_pods_of(&self, namespace: &str) -> impl Iterator<Item = &ObjectName> {
        let all = self.rules.pods.range(ObjectName::new(namespace, "")..).map(|(name, _)| name);
        all.take_while(move |name| name.namespace == namespace)
    }
}

/// Returns the rules of both directions.
fn rules(policy: &NetworkPolicy) -> impl Iterator<Item = &PolicyRule> + Clone {
    policy.ingress.iter().chain(&policy.egress).flatten()
}

/// Returns whether a name is in a sorted list.
fn holds(sorted: &[ObjectName], name: &ObjectName) -> bool {
    sorted.binary_search(name).is_ok()
}

/// Returns the selection of a policy's `podSelector`.
fn targets(name: &ObjectName, policy: &NetworkPolicy) -> Selection {
    Selection { namespaces: Scope::Named((*name.namespace).clone()), pods: policy.pods.clone() }
}
