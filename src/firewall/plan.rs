//! The rule set, kept up to date at the cost of what changed.
//!
//! When the World changes, the tables say which pods, namespaces and policies differ. From there:
//!
//! - a changed pod is a change at its addresses: only sets whose selectors could select it, before or after, are asked
//!   about these addresses (`index`, `membership`);
//! - a namespace whose labels changed concerns the sets whose `namespaceSelector` now says something else of it, and in
//!   them the pods of that namespace;
//! - a pod of this node, or a policy of its namespace, may change which policies select the pod (`isolation`);
//! - a policy is compiled (`compile`) while it selects a pod of this node, and its sets exist while a rule names them. A
//!   set that is new is filled in one pass over the pods of the namespaces that it looks into.
//!
//! After any history the rule set equals the one made at once from the newest World; `tests/firewall.rs` walks random
//! histories to hold it to that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use crate::model::{Change, Cluster, Labels, Namespace, NetworkPolicy, ObjectName, Pod, Table, World};
use crate::net::Family;

use super::claims::{Claimant, Claims};
use super::index::{Index, SetIndex};
use super::rules::{
    Contents, Direction, Element, Isolation, LocalPod, PolicyKey, PortOwners, Rule, RuleSet, Scope, Selection, SetKey,
};
use super::{compile, fill, isolation, membership, selection};

/// The rule set and everything needed to change it by parts.
#[derive(Default)]
pub struct Plan {
    /// The name of this node.
    node: CompactString,
    cluster: Cluster,
    rules: RuleSet,
    claims: Claims,
    /// All policies, by the pods that they select.
    policies: Index<ObjectName>,
    /// The sets in use, by the pods that may belong to them.
    sets: SetIndex<Arc<SetKey>>,
    /// How many matches name each set.
    uses: BTreeMap<Arc<SetKey>, usize>,
    /// The policies that select each pod of this node, whatever their directions; sorted.
    selecting: BTreeMap<ObjectName, Box<[ObjectName]>>,
    /// How many pods of this node each policy selects; none that selects no pod.
    selected: BTreeMap<ObjectName, usize>,
}

/// What of the rule set changed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Changed {
    pub pods: BTreeSet<ObjectName>,
    pub policies: BTreeSet<PolicyKey>,
    /// Sets that appeared, went, or are to be compared as a whole.
    pub sets: BTreeSet<Arc<SetKey>>,
    /// Elements that entered or left other sets.
    pub elements: Vec<(Arc<SetKey>, Element)>,
    /// How many times a pod was asked whether it belongs somewhere; what the work is proportional to.
    pub pods_asked: usize,
}

/// What is found out on the way, before it is put into the rule set.
#[derive(Default)]
struct Dirty {
    /// Sets that may differ at an address.
    places: Vec<(IpAddr, Arc<SetKey>)>,
    /// Pods of this node, before or after, that other policies may select, or that are new or changed themselves.
    pods: BTreeSet<ObjectName>,
    policies: BTreeSet<ObjectName>,
}

impl Plan {
    pub fn new() -> Plan {
        Plan::default()
    }

    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Takes in a newer World and says what that changed.
    pub fn update(&mut self, world: &World) -> Changed {
        let mut changed = Changed::default();
        if self.node != world.host.node_name {
            // Which pods are local is different for all of them: begin again.
            let fresh = Plan { node: world.host.node_name.clone(), ..Plan::default() };
            let before = std::mem::replace(self, fresh).rules;
            changed.pods.extend(before.pods.into_keys());
            changed.policies.extend(before.policies.into_keys());
            changed.sets.extend(before.sets.into_keys());
        }
        let older = std::mem::replace(&mut self.cluster, world.cluster.clone());
        let mut dirty = Dirty::default();
        self.take_in_pods(&older, &mut dirty);
        self.take_in_namespaces(&older, &mut dirty);
        self.take_in_policies(&older, &mut dirty);
        for name in std::mem::take(&mut dirty.pods) {
            self.update_local_pod(&name, &mut dirty, &mut changed);
        }
        let fresh = self.compile_policies(&dirty.policies, &mut changed);
        self.fill_sets(&fresh, &mut changed);
        self.update_places(dirty.places, &fresh, &mut changed);
        changed
    }

    /// Brings the claims to addresses up to date, and finds where sets may differ by them.
    fn take_in_pods(&mut self, older: &Cluster, dirty: &mut Dirty) {
        let newer = self.cluster.clone();
        self.claims.reserve(newer.pods.len().saturating_sub(older.pods.len()));
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
            // Whoever shares an address with the pod is asked too, so the answer holds for all that have it, first by
            // the older labels of their namespaces and then by the newer.
            let addresses = || before.into_iter().chain(after).flat_map(|pod| &pod.addresses);
            addresses().for_each(|address| self.note_places(*address, &older.namespaces, dirty));
            self.move_claims(change.key(), before, after);
            addresses().for_each(|address| self.note_places(*address, &newer.namespaces, dirty));
        }
    }

    fn move_claims(&mut self, name: &ObjectName, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) {
        for address in before.into_iter().flat_map(|pod| &pod.addresses) {
            self.claims.remove(*address, name);
        }
        let Some(pod) = after else { return };
        let claimant = Arc::new(Claimant { name: name.clone(), pod: pod.clone(), is_local: self.is_local(pod) });
        for address in &pod.addresses {
            self.claims.add(*address, &claimant);
        }
    }

    /// Notes the sets that those who have an address now may belong to.
    fn note_places(&self, address: IpAddr, namespaces: &Table<CompactString, Namespace>, dirty: &mut Dirty) {
        if self.sets.is_empty() {
            return;
        }
        for claimant in self.claims.of(address) {
            let namespace = &claimant.name.namespace;
            let labels = namespaces.get(namespace).map(|namespace| &namespace.labels);
            let sets = self.sets.candidates(namespace, labels, &claimant.pod);
            dirty.places.extend(sets.map(|set| (address, set.clone())));
        }
    }

    fn take_in_namespaces(&self, older: &Cluster, dirty: &mut Dirty) {
        for change in self.cluster.namespaces.changes_since(&older.namespaces) {
            let name = change.key();
            let (before, after) = (older.namespaces.get(name), self.cluster.namespaces.get(name));
            let isolated = |namespace: Option<&Arc<Namespace>>| namespace.is_some_and(|namespace| namespace.isolated);
            if isolated(before) != isolated(after) {
                dirty.pods.extend(self.local_pods_of(name).cloned());
            }
            let labels = |namespace: Option<&Arc<Namespace>>| namespace.map(|namespace| namespace.labels.clone());
            self.note_namespace(name, labels(before).as_ref(), labels(after).as_ref(), dirty);
        }
    }

    /// Notes the pods of a namespace in the sets that now look into it, and did not before, or the reverse. Pods that
    /// changed at the same time are noted already.
    fn note_namespace(&self, name: &str, before: Option<&Labels>, after: Option<&Labels>, dirty: &mut Dirty) {
        let looks = |set: &SetKey, labels| {
            selection_of(set).is_some_and(|asked| selection::looks_into(&asked.namespaces, name, labels))
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

    /// Brings the index of policies up to date, and finds the pods that they select, or selected.
    fn take_in_policies(&mut self, older: &Cluster, dirty: &mut Dirty) {
        let newer = self.cluster.clone();
        for change in newer.policies.changes_since(&older.policies) {
            let name = change.key();
            let (before, after) = (older.policies.get(name), newer.policies.get(name));
            if let Some(policy) = before {
                self.policies.remove(&targets(name, policy), name);
            }
            if let Some(policy) = after {
                self.policies.insert(&targets(name, policy), name);
            }
            let selects = |pod: &&ObjectName| {
                let selected = self.selecting.get(*pod).is_some_and(|policies| policies.contains(name));
                let labels = newer.pods.get(pod).map(|pod| &pod.labels);
                selected || after.zip(labels).is_some_and(|(policy, labels)| policy.pods.selects(labels))
            };
            dirty.pods.extend(self.local_pods_of(&name.namespace).filter(selects).cloned());
            dirty.policies.insert(name.clone());
        }
    }

    /// Finds out anew what isolates one pod of this node, or that it is none.
    fn update_local_pod(&mut self, name: &ObjectName, dirty: &mut Dirty, changed: &mut Changed) {
        changed.pods_asked += 1;
        let pod = self.cluster.pods.get(name).filter(|pod| pod.takes_part() && self.is_local(pod)).cloned();
        let selecting = pod.as_ref().map(|pod| self.selecting(name, pod));
        let before = match selecting.clone() {
            Some(selecting) => self.selecting.insert(name.clone(), selecting),
            None => self.selecting.remove(name),
        };
        self.count(selecting.as_deref().unwrap_or_default(), before.as_deref().unwrap_or_default(), dirty);
        let wanted = pod.zip(selecting).map(|(pod, selecting)| LocalPod {
            addresses: pod.addresses.clone(),
            ingress: self.isolation(Direction::Ingress, name, &selecting),
            egress: self.isolation(Direction::Egress, name, &selecting),
        });
        if self.rules.pods.get(name) == wanted.as_ref() {
            return;
        }
        match wanted {
            Some(pod) => drop(self.rules.pods.insert(name.clone(), pod)),
            None => drop(self.rules.pods.remove(name)),
        }
        changed.pods.insert(name.clone());
    }

    /// The policies that select a pod, sorted.
    fn selecting(&self, name: &ObjectName, pod: &Pod) -> Box<[ObjectName]> {
        let selects = |policy: &&ObjectName| {
            self.cluster.policies.get(policy).is_some_and(|policy| policy.pods.selects(&pod.labels))
        };
        let candidates = self.policies.candidates(&name.namespace, None, &pod.labels);
        let mut selecting: Vec<ObjectName> = candidates.filter(selects).cloned().collect();
        selecting.sort();
        selecting.into()
    }

    fn isolation(&self, direction: Direction, name: &ObjectName, selecting: &[ObjectName]) -> Isolation {
        let policies = selecting.iter().filter_map(|name| Some((name, &**self.cluster.policies.get(name)?)));
        let namespace = self.cluster.namespaces.get(&name.namespace);
        isolation::isolation(direction, policies, namespace.map(|namespace| &**namespace))
    }

    /// Counts that other policies select a pod than before; those that select their first or lose their last are dirty.
    fn count(&mut self, after: &[ObjectName], before: &[ObjectName], dirty: &mut Dirty) {
        for policy in after.iter().filter(|policy| !before.contains(policy)) {
            let count = self.selected.entry(policy.clone()).or_default();
            *count += 1;
            if *count == 1 {
                dirty.policies.insert(policy.clone());
            }
        }
        for policy in before.iter().filter(|policy| !after.contains(policy)) {
            let count = self.selected.get_mut(policy).expect("a policy that selects a pod is counted");
            *count -= 1;
            if *count == 0 {
                self.selected.remove(policy);
                dirty.policies.insert(policy.clone());
            }
        }
    }

    /// Compiles policies anew; the sets that no rule named before.
    fn compile_policies(&mut self, dirty: &BTreeSet<ObjectName>, changed: &mut Changed) -> BTreeSet<Arc<SetKey>> {
        let mut fresh = BTreeSet::new();
        let mut replaced = Vec::new();
        for policy in dirty {
            for direction in Direction::BOTH {
                let key = PolicyKey { policy: policy.clone(), direction };
                let wanted = self.compiled(&key);
                if self.rules.policies.get(&key) == wanted.as_ref() {
                    continue;
                }
                if let Some(rules) = &wanted {
                    self.use_sets(rules, &mut fresh);
                }
                replaced.extend(match wanted {
                    Some(rules) => self.rules.policies.insert(key.clone(), rules),
                    None => self.rules.policies.remove(&key),
                });
                changed.policies.insert(key);
            }
        }
        // After all are in use that will be: a set that goes from one policy to another keeps what it holds.
        for rules in replaced {
            self.release_sets(&rules, changed);
        }
        changed.sets.extend(fresh.iter().cloned());
        fresh
    }

    fn compiled(&self, key: &PolicyKey) -> Option<Arc<[Rule]>> {
        let policy = self.cluster.policies.get(&key.policy)?;
        let is_needed = self.selected.contains_key(&key.policy);
        is_needed.then(|| compile::rules(&key.policy.namespace, policy, key.direction))?
    }

    fn use_sets(&mut self, rules: &[Rule], fresh: &mut BTreeSet<Arc<SetKey>>) {
        for set in rules.iter().flat_map(Rule::sets) {
            if let Some(count) = self.uses.get_mut(set) {
                *count += 1;
                continue;
            }
            self.uses.insert(set.clone(), 1);
            self.sets.insert(set, set);
            self.rules.sets.insert(set.clone(), Contents::default());
            fresh.insert(set.clone());
        }
    }

    fn release_sets(&mut self, rules: &[Rule], changed: &mut Changed) {
        for set in rules.iter().flat_map(Rule::sets) {
            let count = self.uses.get_mut(set).expect("a set that a rule names is counted");
            *count -= 1;
            if *count == 0 {
                self.uses.remove(set);
                self.sets.remove(set, set);
                self.rules.sets.remove(set);
                changed.sets.insert(set.clone());
            }
        }
    }

    fn fill_sets(&mut self, fresh: &BTreeSet<Arc<SetKey>>, changed: &mut Changed) {
        let around = fill::Surroundings {
            pods: &self.cluster.pods,
            namespaces: &self.cluster.namespaces,
            claims: &self.claims,
            local: &self.rules.pods,
        };
        let (filled, asked) = fill::contents(fresh, around);
        changed.pods_asked += asked;
        self.rules.sets.extend(filled);
    }

    /// Asks the sets that may differ at some addresses what they hold there now.
    fn update_places(
        &mut self,
        mut places: Vec<(IpAddr, Arc<SetKey>)>,
        fresh: &BTreeSet<Arc<SetKey>>,
        changed: &mut Changed,
    ) {
        places.sort();
        places.dedup();
        for (address, set) in places {
            let Some(contents) = self.rules.sets.get_mut(&set).filter(|_| !fresh.contains(&set)) else { continue };
            changed.pods_asked += 1;
            let now = membership::elements_now(contents, &set, address);
            let claimants = self.claims.of(address);
            let namespaces = &self.cluster.namespaces;
            let wanted: Vec<Element> = membership::elements_at(&set, address, claimants, namespaces).collect();
            let elements = contents.elements.of_mut(Family::from(address));
            for element in now.iter().filter(|element| !wanted.contains(element)) {
                elements.remove(element);
                changed.elements.push((set.clone(), *element));
            }
            for element in wanted.iter().filter(|element| !now.contains(element)) {
                elements.insert(*element);
                changed.elements.push((set.clone(), *element));
            }
        }
    }

    fn is_local(&self, pod: &Pod) -> bool {
        pod.node.as_deref() == Some(self.node.as_str())
    }

    /// The pods of this node in one namespace, as the rule set has them.
    fn local_pods_of(&self, namespace: &str) -> impl Iterator<Item = &ObjectName> {
        let all = self.rules.pods.range(ObjectName::new(namespace, "")..).map(|(name, _)| name);
        all.take_while(move |name| name.namespace == namespace)
    }
}

impl Changed {
    /// Whether the rule set is as it was.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.policies.is_empty() && self.sets.is_empty() && self.elements.is_empty()
    }
}

/// What a policy's `podSelector` selects.
fn targets(name: &ObjectName, policy: &NetworkPolicy) -> Selection {
    Selection { namespaces: Scope::Named(name.namespace.clone()), pods: policy.pods.clone() }
}

/// The selectors that decide about a set, where selectors do.
fn selection_of(set: &SetKey) -> Option<&Selection> {
    match set {
        SetKey::Pods(selection) | SetKey::NamedPort { pods: PortOwners::Selected(selection), .. } => Some(selection),
        SetKey::Blocks(_) | SetKey::NamedPort { .. } => None,
    }
}
