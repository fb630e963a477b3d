//! The rules of the policies that are needed here, and the sets that these rules use.
//!
//! A set exists while a rule uses it, whichever policy the rule belongs to, and keeps its elements when its user
//! changes. A new one is filled as a whole; afterwards it is updated at single addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Plan, RuleSetChanges};
use crate::firewall::claims::Claimant;
use crate::firewall::rules::{Contents, Direction, Element, PolicyKey, Rule, SetKey};
use crate::firewall::{compile, fill, membership};
use crate::model::ObjectName;
use crate::net::Family;

impl Plan {
    /// Recompiles policies; returns the sets that no rule used before.
    pub(super) fn compile_policies(
        &mut self,
        dirty: &BTreeSet<ObjectName>,
        changed: &mut RuleSetChanges,
    ) -> BTreeSet<Arc<SetKey>> {
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
        // After all new uses are counted: a set that passes from one policy to another keeps its elements.
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

    fn release_sets(&mut self, rules: &[Rule], changed: &mut RuleSetChanges) {
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

    pub(super) fn fill_sets(&mut self, fresh: &BTreeSet<Arc<SetKey>>, changed: &mut RuleSetChanges) {
        let inputs = fill::FillInputs {
            pods: &self.cluster.pods,
            namespaces: &self.cluster.namespaces,
            claims: &self.claims,
            local: &self.rules.pods,
            node: &self.node,
        };
        let (filled, asked) = fill::contents(fresh, inputs);
        changed.pods_asked += asked;
        self.rules.sets.extend(filled);
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
