//! The rules of the policies that are needed here, and the sets that these rules use.
//!
//! A set exists while a rule uses it, whichever policy the rule belongs to, and keeps its elements when its user
//! changes. A new one is filled as a whole; afterwards it is updated at single addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Dirty, Plan, RuleSetChanges};
use crate::firewall::claims::Claimant;
use crate::firewall::node_peers::Nodes;
use crate::firewall::rules::{ClusterPolicyKey, ClusterRule, Contents, Direction, Element, PolicyKey, Rule, SetKey};
use crate::firewall::{compile, fill, membership};
use crate::model::ObjectName;
use crate::net::Family;

impl Plan {
    /// Recompiles policies; returns the sets that no rule used before.
    pub(super) fn compile_policies(&mut self, dirty: &Dirty, changed: &mut RuleSetChanges) -> BTreeSet<Arc<SetKey>> {
        let mut fresh = BTreeSet::new();
        // After all new uses are counted: a set that passes from one policy to another keeps its elements.
        let mut released = Vec::new();
        for policy in &dirty.policies {
            for direction in Direction::BOTH {
                let key = PolicyKey { policy: policy.clone(), direction };
                let wanted = self.compiled(&key);
                if self.rules.policies.get(&key) == wanted.as_ref() {
                    continue;
                }
                self.use_sets(wanted.iter().flat_map(|rules| &**rules).flat_map(Rule::sets), &mut fresh);
                let replaced = match wanted {
                    Some(rules) => self.rules.policies.insert(key.clone(), rules),
                    None => self.rules.policies.remove(&key),
                };
                released.extend(replaced.iter().flat_map(|rules| &**rules).flat_map(Rule::sets).cloned());
                changed.policies.insert(key);
            }
        }
        for key in &dirty.cluster_policies {
            let wanted = self.cluster_compiled(key);
            if self.rules.cluster_policies.get(key) == wanted.as_ref() {
                continue;
            }
            let sets = |rules: &Arc<[ClusterRule]>| -> Vec<Arc<SetKey>> {
                rules.iter().flat_map(ClusterRule::sets).cloned().collect()
            };
            self.use_sets(wanted.iter().flat_map(sets).collect::<Vec<_>>().iter(), &mut fresh);
            let replaced = match wanted {
                Some(rules) => self.rules.cluster_policies.insert(key.clone(), rules),
                None => self.rules.cluster_policies.remove(key),
            };
            released.extend(replaced.iter().flat_map(sets));
            changed.cluster_policies.insert(key.clone());
        }
        self.release_sets(&released, changed);
        changed.sets.extend(fresh.iter().cloned());
        fresh
    }

    fn compiled(&self, key: &PolicyKey) -> Option<Arc<[Rule]>> {
        let policy = self.cluster.policies.get(&key.policy)?;
        let is_needed = self.selected.contains_key(&key.policy);
        let excess = self.oversized.get(&key.policy).copied();
        is_needed.then(|| compile::rules(&key.policy.namespace, policy, key.direction, excess))?
    }

    fn cluster_compiled(&self, key: &ClusterPolicyKey) -> Option<Arc<[ClusterRule]>> {
        let policy = self.cluster.cluster_policies.get(&key.policy)?;
        let is_needed = self.cluster_selected.contains_key(key);
        let nodes = Nodes { all: &self.cluster.nodes, host: &self.host, are_known: self.knows_nodes };
        let excess = self.oversized.get(&ObjectName::new("", &key.policy)).copied();
        is_needed.then(|| compile::cluster_rules(policy, key.direction, nodes, excess))?
    }

    fn use_sets<'a>(&mut self, sets: impl Iterator<Item = &'a Arc<SetKey>>, fresh: &mut BTreeSet<Arc<SetKey>>) {
        for set in sets {
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

    fn release_sets(&mut self, sets: &[Arc<SetKey>], changed: &mut RuleSetChanges) {
        for set in sets {
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

    pub(super) fn fill_sets(&mut self, fresh: &BTreeSet<Arc<SetKey>>, changed: &mut RuleSetChanges) {
        let inputs = fill::FillInputs {
            pods: &self.cluster.pods,
            namespaces: &self.cluster.namespaces,
            claims: &self.claims,
            local: &self.rules.pods,
            node: &self.node,
            room: self.room,
        };
        let filled = fill::contents(fresh, inputs);
        changed.pods_asked += filled.asked;
        changed.is_cut = filled.is_cut;
        self.rules.sets.extend(filled.sets);
    }

    /// Updates the sets that may differ at some addresses.
    pub(super) fn update_places(
        &mut self,
        mut places: Vec<(IpAddr, Arc<SetKey>)>,
        fresh: &BTreeSet<Arc<SetKey>>,
        changed: &mut RuleSetChanges,
    ) {
        places.sort();
        places.dedup();
        for (address, set) in places {
            let Some(contents) = self.rules.sets.get_mut(&set).filter(|_| !fresh.contains(&set)) else { continue };
            changed.pods_asked += 1;
            let now = membership::elements_now(contents, &set, address);
            let (pods, namespaces) = (&self.cluster.pods, &self.cluster.namespaces);
            let claimants: Vec<Claimant<'_>> = self.claims.pods_at(address, pods, &self.node).collect();
            let wanted: Vec<Element> = membership::elements_at(&set, address, &claimants, namespaces).collect();
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
}
