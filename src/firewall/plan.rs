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
    selecting: BTreeMap<ObjectName, Vec<ObjectName>>,
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
    /// Pods of this node, before or after, that changed, or whose namespace changed what isolates them.
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
        self.take_in_policies(&older, &mut dirty, &mut changed);
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

    /// Brings the index of policies up to date, and what each of them isolates. Pods that are dirty find out for
    /// themselves; for the others a policy is one more or one less, however many there are.
    fn take_in_policies(&mut self, older: &Cluster, dirty: &mut Dirty, changed: &mut Changed) {
        let newer = self.cluster.clone();
        for change in newer.policies.changes_since(&older.policies) {
            let name = change.key();
            let (before, after) = (older.policies.get(name), newer.policies.get(name));
            dirty.policies.insert(name.clone());
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

    /// Brings up to date whether one policy, or none any more, selects a pod that is itself as it was.
    fn update_one_policy(
        &mut self,
        name: &ObjectName,
        (policy_name, policy): (&ObjectName, Option<&Arc<NetworkPolicy>>),
        dirty: &mut Dirty,
        changed: &mut Changed,
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
        let local = self.rules.pods.get_mut(name).expect("only pods of this node are asked");
        for direction in Direction::BOTH {
            let isolating = policy.is_some_and(|policy| isolation::isolates(policy, direction));
            if isolation::set_isolating(local.isolation_mut(direction), policy_name, isolating) {
                changed.pods.insert(name.clone());
            }
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
        let (now, before) = (selecting.as_deref().unwrap_or_default(), before.as_deref().unwrap_or_default());
        for policy in now.iter().filter(|policy| !holds(before, policy)) {
            self.count_up(policy, dirty);
        }
        for policy in before.iter().filter(|policy| !holds(now, policy)) {
            self.count_down(policy, dirty);
        }
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

    /// Counts that one pod more is selected; a policy that selects its first is to be compiled.
    fn count_up(&mut self, policy: &ObjectName, dirty: &mut Dirty) {
        let count = self.selected.entry(policy.clone()).or_default();
        *count += 1;
        if *count == 1 {
            dirty.policies.insert(policy.clone());
        }
    }

    /// Counts that one pod less is selected; a policy that loses its last is not needed here.
    fn count_down(&mut self, policy: &ObjectName, dirty: &mut Dirty) {
        let count = self.selected.get_mut(policy).expect("a policy that selects a pod is counted");
        *count -= 1;
        if *count == 0 {
            self.selected.remove(policy);
            dirty.policies.insert(policy.clone());
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

/// Whether a name is in a sorted list.
fn holds(sorted: &[ObjectName], name: &ObjectName) -> bool {
    sorted.binary_search(name).is_ok()
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

#[cfg(test)]
mod tests {
    use super::super::given::{address, labels, object, pod, pods, pods_in, policy, rule};
    use super::*;
    use crate::model::Host;

    /// A World with two namespaces, and so many pods in each, of which the first of `shop` is this node's.
    fn world(pods: usize) -> World {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), addresses: Vec::new() });
        for (place, name) in ["other", "shop"].into_iter().enumerate() {
            put_namespace(&mut world, name, "team=red");
            for number in 0..pods {
                let mut pod =
                    pod(&format!("10.244.{}.{}", 100 * place + number / 250, number % 250), "app=web", "http/tcp/80");
                pod.node = (number > 0 || place == 0).then(|| "node2".into()).or(pod.node);
                world.cluster.pods.insert(ObjectName::new(name, &format!("pod-{number}")), pod);
            }
        }
        world
    }

    fn put_namespace(world: &mut World, name: &str, of: &str) {
        world.cluster.namespaces.insert(name.into(), Namespace { labels: labels(of), isolated: false });
    }

    fn put_policy(world: &mut World, name: &str, policy: NetworkPolicy) {
        world.cluster.policies.insert(object(name), policy);
    }

    fn relabel(world: &mut World, name: &str, of: &str) {
        let mut pod = (**world.cluster.pods.get(&object(name)).unwrap()).clone();
        pod.labels = labels(of);
        world.cluster.pods.insert(object(name), pod);
    }

    fn allows(peers: &[crate::model::Peer], ports: &[&str]) -> NetworkPolicy {
        policy("app=web", Some(&[rule(peers, ports)]), None)
    }

    #[test]
    fn a_changed_label_asks_about_one_pod_however_many_there_are() {
        let mut asked = Vec::new();
        for size in [10, 1000] {
            let mut world = world(size);
            put_policy(&mut world, "shop/in", allows(&[pods_in("team=red", "app=web")], &["tcp/80"]));
            let mut plan = Plan::new();
            plan.update(&world);
            relabel(&mut world, "other/pod-3", "app=db");
            let changed = plan.update(&world);
            let set = plan.rules().sets.keys().next().unwrap().clone();
            assert_eq!(changed.elements, [(set, Element::Address(address("10.244.0.3")))]);
            assert!(changed.pods.is_empty() && changed.policies.is_empty() && changed.sets.is_empty());
            asked.push(changed.pods_asked);
        }
        assert_eq!(asked, [1, 1]);
    }

    #[test]
    fn a_pod_that_no_selector_could_select_is_not_asked() {
        let mut world = world(10);
        put_policy(&mut world, "shop/in", allows(&[pods("app=db")], &[]));
        let mut plan = Plan::new();
        plan.update(&world);
        relabel(&mut world, "other/pod-3", "app=cache");
        assert_eq!(plan.update(&world), Changed::default());
    }

    #[test]
    fn a_new_set_looks_only_into_the_namespaces_that_it_is_about() {
        let mut world = world(100);
        let mut plan = Plan::new();
        plan.update(&world);
        put_policy(&mut world, "shop/in", allows(&[pods("app=db")], &["tcp/http"]));
        let changed = plan.update(&world);
        assert_eq!(changed.sets.len(), 2);
        assert_eq!(
            changed.pods_asked,
            100 + 2,
            "the pods of one namespace, and this node's pod for its port and itself"
        );
    }

    #[test]
    fn labels_of_a_namespace_move_its_pods_into_the_sets_that_ask_for_them() {
        let mut world = world(5);
        put_policy(&mut world, "shop/in", allows(&[pods_in("team=blue", "app=web")], &[]));
        let mut plan = Plan::new();
        plan.update(&world);
        put_namespace(&mut world, "other", "team=red note=new");
        assert_eq!(plan.update(&world), Changed::default(), "no selector asks for that label");
        put_namespace(&mut world, "other", "team=blue");
        assert_eq!(plan.update(&world).elements.len(), 5);
        world.cluster.namespaces.remove(&"other".into());
        assert_eq!(plan.update(&world).elements.len(), 5);
        assert!(plan.rules().sets.values().all(Contents::is_empty));
    }

    #[test]
    fn a_policy_is_compiled_while_it_selects_a_pod_of_this_node() {
        let mut world = world(5);
        let key = PolicyKey { policy: object("shop/in"), direction: Direction::Ingress };
        put_policy(&mut world, "shop/in", policy("app=db", Some(&[rule(&[pods("app=web")], &[])]), None));
        let mut plan = Plan::new();
        plan.update(&world);
        assert!(plan.rules().policies.is_empty() && plan.rules().sets.is_empty());
        relabel(&mut world, "shop/pod-0", "app=db");
        let changed = plan.update(&world);
        assert!(changed.policies.contains(&key) && changed.pods.contains(&object("shop/pod-0")));
        assert_eq!((plan.rules().policies.len(), plan.rules().sets.len()), (1, 1));
        relabel(&mut world, "shop/pod-0", "app=web");
        let changed = plan.update(&world);
        assert!(changed.policies.contains(&key) && changed.sets.len() == 1);
        assert!(plan.rules().policies.is_empty() && plan.rules().sets.is_empty());
    }

    #[test]
    fn a_set_that_goes_from_one_policy_to_another_keeps_what_it_holds() {
        let mut world = world(5);
        put_policy(&mut world, "shop/one", allows(&[pods("app=web")], &["tcp/80"]));
        let mut plan = Plan::new();
        plan.update(&world);
        world.cluster.policies.remove(&object("shop/one"));
        put_policy(&mut world, "shop/two", allows(&[pods("app=web")], &["tcp/443"]));
        let changed = plan.update(&world);
        assert_eq!((changed.policies.len(), changed.pods.len()), (2, 1));
        assert!(changed.sets.is_empty() && changed.elements.is_empty());
    }

    #[test]
    fn a_changed_rule_asks_no_pod() {
        let mut world = world(5);
        put_policy(&mut world, "shop/in", allows(&[pods("app=web")], &["tcp/80"]));
        let mut plan = Plan::new();
        plan.update(&world);
        put_policy(&mut world, "shop/in", allows(&[pods("app=web")], &["tcp/443"]));
        let changed = plan.update(&world);
        assert_eq!((changed.policies.len(), changed.pods_asked), (1, 0));
        assert!(changed.pods.is_empty() && changed.sets.is_empty() && changed.elements.is_empty());
    }

    #[test]
    fn another_name_of_this_node_makes_other_pods_local() {
        let mut world = world(5);
        put_policy(&mut world, "shop/in", allows(&[pods("app=web")], &[]));
        let mut plan = Plan::new();
        plan.update(&world);
        world.host = Arc::new(Host { node_name: "node2".into(), addresses: Vec::new() });
        let changed = plan.update(&world);
        assert!(changed.pods.contains(&object("shop/pod-0")) && changed.pods.contains(&object("shop/pod-1")));
        assert!(!plan.rules().pods.contains_key(&object("shop/pod-0")));
        assert_eq!(plan.rules().pods.len(), 9);
    }

    #[test]
    fn the_annotation_of_a_namespace_isolates_its_pods_of_this_node() {
        let mut world = world(5);
        let mut plan = Plan::new();
        plan.update(&world);
        let isolated = Namespace { labels: labels("team=red"), isolated: true };
        world.cluster.namespaces.insert("shop".into(), isolated);
        let changed = plan.update(&world);
        assert_eq!(changed.pods.into_iter().collect::<Vec<_>>(), [object("shop/pod-0")]);
        let pod = &plan.rules().pods[&object("shop/pod-0")];
        assert_eq!(pod.ingress, Isolation::Isolated { policies: [].into(), by_namespace: true });
        assert_eq!(pod.egress, Isolation::Open);
    }
}
