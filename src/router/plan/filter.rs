//! The packet filter's part of the plan, in the backend that is used: the sets of all nodes, and the rules.

use std::collections::BTreeMap;

use crate::config::Backend;
use crate::kernel::ipset::{ElementKey, Entry};
use crate::kernel::nftables::{Content, Object};
use crate::net::Family;

use super::{Plan, replace};
use crate::router::desired::RouterChanges;
use crate::router::forward::AnswersBy;
use crate::router::names::Set;
use crate::router::{forward, node_sets, overlay_guard, pod_egress};

impl Plan {
    /// Updates what follows from our own node alone.
    pub(super) fn replace_filter(&mut self, changed: &mut RouterChanges) {
        let families: Vec<Family> = self.own.enabled_families().filter(|_| self.known.has_nodes).collect();
        let overlay = self.config.overlay;
        match self.config.backend {
            Backend::Iptables => {
                let mut rules = BTreeMap::new();
                for family in families {
                    rules.extend(forward::rules(&self.own, overlay, family));
                    rules.extend(
                        overlay.map(|overlay| overlay_guard::rules(&self.own, overlay, family)).unwrap_or_default(),
                    );
                    if self.config.pod_egress {
                        rules.extend(pod_egress::rules(family));
                    }
                }
                changed.rules.extend(replace(&mut self.desired.rules, rules));
            }
            Backend::Nftables => {
                let sets = families.iter().flat_map(|family| Set::ALL.map(|set| node_sets::table_set(set, *family)));
                let mut table: BTreeMap<Object, Content> = sets.collect();
                let passages = |family: &Family| forward::passages(&self.own, overlay, *family, self.answers_by);
                let passages = families.iter().flat_map(passages).collect();
                if self.answers_by == AnswersBy::Mark && !families.is_empty() {
                    table.extend(forward::marking_chains(&self.own, overlay, &families));
                }
                let guard = |overlay| overlay_guard::table_chains(&self.own, overlay, &families);
                table.extend(overlay.map(guard).unwrap_or_default());
                if self.config.pod_egress && !families.is_empty() {
                    table.extend([pod_egress::table_chain(families.into_iter())]);
                }
                let elements = self.desired.table.iter().filter(|(object, _)| matches!(object, Object::Element(..)));
                table.extend(elements.map(|(object, content)| (object.clone(), content.clone())));
                changed.table.extend(replace(&mut self.desired.table, table));
                changed.passages.extend(replace(&mut self.desired.passages, passages));
            }
        }
    }

    /// Updates one element of the sets of all nodes.
    pub(super) fn put_element(&mut self, key: ElementKey, changed: &mut RouterChanges) {
        if self.config.backend == Backend::Nftables {
            return self.put_object(&key, changed);
        }
        let set = Set::of_element(&key).expect("only sets of ours have elements here");
        let size = self.sizes.entry((set, key.entry.family())).or_default();
        if self.nodes.has_element(&key) {
            *size += usize::from(self.desired.elements.insert(key.clone(), ()).is_none());
        } else {
            *size -= usize::from(self.desired.elements.remove(&key).is_some());
        }
        changed.elements.push(key);
    }

    fn put_object(&mut self, key: &ElementKey, changed: &mut RouterChanges) {
        let set = Set::of_element(key).expect("only sets of ours have elements here");
        let is_there = self.nodes.has_element(key);
        let Entry::Net(range) = key.entry else { return self.put(set.object(&key.entry), is_there, changed) };
        if self.nodes.is_within_another(range) {
            return self.put(set.object(&key.entry), false, changed);
        }
        // Ranges within it come and go with it, the other way round.
        let inner = self.nodes.widest_within(range).into_iter().filter(|inner| *inner != range);
        let inner: Vec<Object> = match is_there {
            false => inner.map(|inner| set.object(&Entry::Net(inner))).collect(),
            true => {
                let (first, last) =
                    (set.object(&key.entry), set.object(&Entry::Net(Family::host_prefix(range.broadcast()))));
                let within = self.desired.table.range(first.clone()..=last).map(|(object, _)| object);
                within.filter(|object| **object != first).cloned().collect()
            }
        };
        for object in inner {
            self.put(object, !is_there, changed);
        }
        self.put(set.object(&key.entry), is_there, changed);
    }

    fn put(&mut self, object: Object, is_there: bool, changed: &mut RouterChanges) {
        let differs = match is_there {
            true => self.desired.table.insert(object.clone(), Content::Element).is_none(),
            false => self.desired.table.remove(&object).is_some(),
        };
        changed.table.extend(differs.then_some(object));
    }

    /// Keeps the sets of ipset large enough for their desired elements. Those of nf_tables have no size.
    pub(super) fn resize_sets(&mut self, changed: &mut RouterChanges) {
        let mut sets = BTreeMap::new();
        for family in self.own.enabled_families().filter(|_| self.known.has_nodes) {
            for set in Set::ALL.into_iter().filter(|_| self.config.backend == Backend::Iptables) {
                let size = self.sizes.get(&(set, family)).copied().unwrap_or_default();
                sets.insert(set.name(family), node_sets::spec(set, family, size));
            }
        }
        changed.sets.extend(replace(&mut self.desired.sets, sets));
    }
}
