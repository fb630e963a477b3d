//! Computes the contents of new sets, all at once.
//!
//! One pass over the pods fills all new sets, and reads only the namespaces that one of them selects. Blocks need no
//! pods at all. Pods of one template have names that follow each other and share their labels, so which sets they may belong to is
//! found once for all of them: beside that a pod that belongs to none costs a look at it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use compact_str::CompactString;

use crate::model::{Labels, NamedPort, Namespace, ObjectName, Pod, Table};

use super::claims::{Claimant, Claims};
use super::index::SetIndex;
use super::rules::{Contents, Element, LocalPod, PortOwners, Scope, Selection, SetKey};
use super::{ip_block, membership, selection};

/// Inputs of the contents, besides the sets.
#[derive(Clone, Copy)]
pub struct FillInputs<'a> {
    pub pods: &'a Table<ObjectName, Pod>,
    pub namespaces: &'a Table<CompactString, Namespace>,
    pub claims: &'a Claims,
    pub local: &'a BTreeMap<ObjectName, LocalPod>,
    /// The name of this node.
    pub node: &'a str,
    /// The most elements of all sets together; `None`: as many as there are.
    pub room: Option<usize>,
}

/// Contents of sets.
pub struct Filled {
    pub sets: Vec<(Arc<SetKey>, Contents)>,
    /// The number of pods examined.
    pub asked: usize,
    /// Elements are missing, because all of them would take more than the room.
    pub is_cut: bool,
}

/// Returns the contents of these sets.
pub fn contents(sets: &BTreeSet<Arc<SetKey>>, inputs: FillInputs<'_>) -> Filled {
    let mut filling = Filling {
        inputs,
        sets: sets.iter().collect(),
        elements: vec![Vec::new(); sets.len()],
        asked: 0,
        room: inputs.room.unwrap_or(usize::MAX),
        is_cut: false,
        template: None,
    };
    filling.make_room_for_blocks();
    filling.ask_pods_of_this_node();
    filling.ask_pods_of_the_cluster();
    let Filling { sets, elements, asked, is_cut, .. } = filling;
    let filled = |(set, elements): (&Arc<SetKey>, Vec<Element>)| match &**set {
        SetKey::Blocks(blocks) if !is_cut => (set.clone(), Contents::of_blocks(blocks)),
        _ => (set.clone(), elements.into_iter().collect()),
    };
    Filled { sets: sets.into_iter().zip(elements).map(filled).collect(), asked, is_cut }
}

/// Returns all pods of one namespace.
pub fn pods_of<'a>(
    pods: &'a Table<ObjectName, Pod>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectName, &'a Arc<Pod>)> {
    pods.iter_from(&ObjectName::new(namespace, "")).take_while(move |(name, _)| name.namespace == namespace)
}

struct Filling<'a> {
    inputs: FillInputs<'a>,
    sets: Vec<&'a Arc<SetKey>>,
    /// Elements of the set with the same index.
    elements: Vec<Vec<Element>>,
    asked: usize,
    /// The number of elements that may still be added.
    room: usize,
    is_cut: bool,
    /// Of the pod that was asked last.
    template: Option<Template<'a>>,
}

/// Namespace, labels and ports of pods that may belong to the same sets.
struct Template<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    ports: &'a [NamedPort],
    /// The sets that they may belong to.
    places: Vec<usize>,
}

impl Template<'_> {
    /// Returns whether a pod has them in common, in the same memory.
    fn is_of(&self, name: &ObjectName, pod: &Pod) -> bool {
        self.labels.is_same(&pod.labels) && std::ptr::eq(self.ports, &*pod.ports) && name.namespace == *self.namespace
    }
}

impl<'a> Filling<'a> {
    /// Takes room for blocks, which are not among the elements.
    fn make_room_for_blocks(&mut self) {
        for set in &self.sets {
            let SetKey::Blocks(blocks) = &***set else { continue };
            // Before the ranges are made.
            let most = ip_block::most_spans(blocks);
            if self.inputs.room.is_some() && most > self.room {
                self.is_cut = true;
                return;
            }
            self.room -= most.min(self.room);
        }
    }

    fn ask_pods_of_this_node(&mut self) {
        let index = self.index(membership::is_of_this_node);
        if index.is_empty() {
            return;
        }
        for name in self.inputs.local.keys() {
            if let Some(pod) = self.inputs.pods.get(name) {
                self.ask(&index, name, pod);
            }
        }
    }

    fn ask_pods_of_the_cluster(&mut self) {
        let index = self.index(|set| !membership::is_of_this_node(set));
        if index.is_empty() {
            return;
        }
        self.template = None;
        let pods = self.inputs.pods;
        let Some(namespaces) = self.namespaces() else {
            pods.iter().for_each(|(name, pod)| self.ask(&index, name, pod));
            return;
        };
        for namespace in namespaces {
            pods_of(pods, namespace).for_each(|(name, pod)| self.ask(&index, name, pod));
        }
    }

    /// Indexes the sets that pass, by their position.
    fn index(&self, pass: impl Fn(&SetKey) -> bool) -> SetIndex<usize> {
        let mut index = SetIndex::default();
        for (place, set) in self.sets.iter().enumerate().filter(|(_, set)| pass(set)) {
            index.insert(set, &place);
        }
        index
    }

    /// Returns the namespaces that the sets select; `None` for all pods, whatever their namespace.
    fn namespaces(&self) -> Option<BTreeSet<&'a str>> {
        let mut names = BTreeSet::new();
        for set in &self.sets {
            match set.plain() {
                SetKey::Pods(selection) | SetKey::NamedPort { pods: PortOwners::Selected(selection), .. } => {
                    names.extend(self.looked_into(selection));
                    if set.closes() && selection::may_look_into(&selection.namespaces) {
                        names.extend(self.unknown_namespaces());
                    }
                }
                SetKey::NamedPort { pods: PortOwners::All | PortOwners::Inside(_), .. } => return None,
                SetKey::NamedPort { pods: PortOwners::Local, .. } | SetKey::Blocks(_) | SetKey::Denied(_) => {}
            }
        }
        Some(names)
    }

    /// Returns the namespaces of pods that are not known themselves.
    fn unknown_namespaces(&self) -> Vec<&'a str> {
        let FillInputs { pods, namespaces, .. } = self.inputs;
        let (mut unknown, mut from) = (Vec::new(), ObjectName::new("", ""));
        while let Some((name, _)) = pods.iter_from(&from).next() {
            if namespaces.get(&name.namespace).is_none() {
                unknown.push(name.namespace.as_str());
            }
            // The first name behind all of this namespace.
            from = ObjectName::new(&format!("{}\0", name.namespace), "");
        }
        unknown
    }

    fn looked_into(&self, asked: &'a Selection) -> Vec<&'a str> {
        match &asked.namespaces {
            Scope::Named(name) => vec![name],
            Scope::Selected(_) => {
                let all = self.inputs.namespaces.iter();
                let looks = |(name, namespace): &(&CompactString, &Arc<Namespace>)| {
                    selection::looks_into(&asked.namespaces, name, Some(&namespace.labels))
                };
                all.filter(looks).map(|(name, _)| name.as_str()).collect()
            }
        }
    }

    /// Adds a pod's elements to each set that it may belong to.
    fn ask(&mut self, index: &SetIndex<usize>, name: &'a ObjectName, pod: &'a Pod) {
        self.asked += 1;
        if !pod.takes_part() || self.is_cut {
            return;
        }
        let FillInputs { pods, namespaces, claims, node, .. } = self.inputs;
        let template = self.template.take().filter(|template| template.is_of(name, pod)).unwrap_or_else(|| {
            let of_namespace = namespaces.get(&name.namespace).map(|namespace| &namespace.labels);
            let places = index.candidates(&name.namespace, of_namespace, pod).copied().collect();
            Template { namespace: &name.namespace, labels: &pod.labels, ports: &pod.ports, places }
        });
        for place in &template.places {
            let (Some(set), Some(elements)) = (self.sets.get(*place), self.elements.get_mut(*place)) else { continue };
            let before = elements.len();
            for address in &pod.addresses {
                if let [_] = claims.of(*address) {
                    let alone = [Claimant::new(name, pod, node)];
                    elements.extend(membership::elements_at(set, *address, &alone, namespaces));
                    continue;
                }
                // Pods that share an address give the same elements, which a set holds once.
                let all: Vec<Claimant<'_>> = claims.pods_at(*address, pods, node).collect();
                elements.extend(membership::elements_at(set, *address, &all, namespaces));
            }
            let added = elements.len() - before;
            self.is_cut |= added > self.room;
            self.room -= added.min(self.room);
        }
        self.template = Some(template);
    }
}
