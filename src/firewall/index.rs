//! Index of selectors by label, so that a change of one pod evaluates only a few of them.
//!
//! A selector can only select pods with one of the values that it names for some label, or with that label at all. So
//! each is indexed under one of its requirements, the one with the fewest values, and a pod with eight labels needs
//! some twenty lookups. A selector that requires no label (`{}`, or only labels that must be absent) is indexed under
//! everything. Results are candidates: the other requirements still have to be evaluated.

use std::collections::{BTreeMap, BTreeSet};

use compact_str::CompactString;

use crate::model::{Labels, Operator, Pod, Selector};

use super::rules::{PortOwners, Scope, Selection, SetKey};

/// Items indexed by the pods that they select.
pub struct Index<T> {
    /// By the name of the single namespace that they select.
    named: BTreeMap<CompactString, ByLabel<BTreeSet<T>>>,
    /// By labels of the namespace, and then of the pod.
    selected: ByLabel<ByLabel<BTreeSet<T>>>,
}

/// Sets of addresses and of ports, indexed by the pods that may belong to them.
pub struct SetIndex<T> {
    selections: Index<T>,
    /// Sets of named ports without a selector, by the name of the port.
    ports: BTreeMap<CompactString, BTreeSet<T>>,
}

/// Places indexed under a label with a value, under a label alone, or under neither.
struct ByLabel<P> {
    rest: P,
    keys: BTreeMap<CompactString, OfKey<P>>,
}

struct OfKey<P> {
    rest: P,
    values: BTreeMap<CompactString, P>,
}

/// A place in the index; an empty one is removed.
trait Place: Default {
    fn is_empty(&self) -> bool;
}

impl<T: Ord + Clone> Index<T> {
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.selected.is_empty()
    }

    pub fn insert(&mut self, selection: &Selection, item: &T) {
        self.visit(selection, &mut |place| {
            place.insert(item.clone());
        });
    }

    pub fn remove(&mut self, selection: &Selection, item: &T) {
        self.visit(selection, &mut |place| {
            place.remove(item);
        });
    }

    /// Returns the items that may select a pod of this namespace with these labels. `namespace`: the labels of the
    /// namespace, if known.
    pub fn candidates<'a>(
        &'a self,
        name: &str,
        namespace: Option<&'a Labels>,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a T> {
        let selected = namespace.into_iter().flat_map(|namespace| self.selected.of(namespace));
        self.named.get(name).into_iter().chain(selected).flat_map(|by_label| by_label.of(labels)).flatten()
    }

    /// Returns the items with a selector of namespaces that may select a pod with these labels, whatever those of its namespace.
    pub fn candidates_anywhere<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a T> {
        self.selected.all().flat_map(|by_label| by_label.of(labels)).flatten()
    }

    fn visit(&mut self, selection: &Selection, act: &mut dyn FnMut(&mut BTreeSet<T>)) {
        match &selection.namespaces {
            Scope::Named(name) => {
                let by_label = self.named.entry(name.clone()).or_default();
                by_label.visit(&selection.pods, act);
                if by_label.is_empty() {
                    self.named.remove(name);
                }
            }
            Scope::Selected(namespaces) => {
                self.selected.visit(namespaces, &mut |by_label| by_label.visit(&selection.pods, act));
            }
        }
    }
}

impl<T: Ord + Clone> SetIndex<T> {
    /// Indexes a set. A set of blocks does not depend on pods and is not indexed.
    pub fn insert(&mut self, key: &SetKey, item: &T) {
        match key {
            SetKey::Pods(selection) | SetKey::NamedPort { pods: PortOwners::Selected(selection), .. } => {
                self.selections.insert(selection, item);
            }
            SetKey::NamedPort { name, .. } => {
                self.ports.entry(name.clone()).or_default().insert(item.clone());
            }
            SetKey::Denied(set) => self.insert(set, item),
            SetKey::Blocks(_) => {}
        }
    }

    pub fn remove(&mut self, key: &SetKey, item: &T) {
        match key {
            SetKey::Pods(selection) | SetKey::NamedPort { pods: PortOwners::Selected(selection), .. } => {
                self.selections.remove(selection, item);
            }
            SetKey::NamedPort { name, .. } => {
                let left = self.ports.get_mut(name).map(|items| {
                    items.remove(item);
                    items.len()
                });
                if left == Some(0) {
                    self.ports.remove(name);
                }
            }
            SetKey::Denied(set) => self.remove(set, item),
            SetKey::Blocks(_) => {}
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.selections.is_empty()
    }

    /// Returns the sets that a pod of this namespace may belong to; may contain duplicates. Where the labels of the namespace are
    /// not known they are all that they may select.
    pub fn candidates<'a>(
        &'a self,
        name: &str,
        namespace: Option<&'a Labels>,
        pod: &'a Pod,
    ) -> impl Iterator<Item = &'a T> {
        let named = pod.ports.iter().filter_map(|port| self.ports.get(&port.name)).flatten();
        let anywhere = namespace.is_none().then(|| self.selections.candidates_anywhere(&pod.labels));
        let selected = self.selections.candidates(name, namespace, &pod.labels);
        selected.chain(anywhere.into_iter().flatten()).chain(named)
    }
}

impl<P: Place> ByLabel<P> {
    /// Returns the places where these labels may match.
    fn of<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a P> {
        let of_label = |(key, value)| {
            let of_key = self.keys.get(key);
            let of_value = of_key.and_then(|of_key| of_key.values.get(value));
            of_key.map(|of_key| &of_key.rest).into_iter().chain(of_value)
        };
        // Without any key no label needs a lookup: most namespaces are like that.
        let labels = (!self.keys.is_empty()).then(|| labels.iter().flat_map(of_label));
        std::iter::once(&self.rest).chain(labels.into_iter().flatten())
    }

    /// Returns all places.
    fn all(&self) -> impl Iterator<Item = &P> {
        let of_keys = self.keys.values().flat_map(|of_key| std::iter::once(&of_key.rest).chain(of_key.values.values()));
        std::iter::once(&self.rest).chain(of_keys)
    }

    /// Calls `act` on each place where a selector is indexed.
    fn visit(&mut self, selector: &Selector, act: &mut dyn FnMut(&mut P)) {
        let (key, values) = match narrowest(selector) {
            None => return act(&mut self.rest),
            Some(found) => found,
        };
        let of_key = self.keys.entry(key.clone()).or_default();
        match values {
            None => act(&mut of_key.rest),
            Some(values) => {
                for value in values {
                    let place = of_key.values.entry(value.clone()).or_default();
                    act(place);
                    if place.is_empty() {
                        of_key.values.remove(value);
                    }
                }
            }
        }
        if of_key.rest.is_empty() && of_key.values.is_empty() {
            self.keys.remove(key);
        }
    }
}

/// Returns the requirement under which a selector is indexed: the label, and its values if it names some.
fn narrowest(selector: &Selector) -> Option<(&CompactString, Option<&[CompactString]>)> {
    let narrow = selector.requirements.iter().filter_map(|requirement| match &requirement.operator {
        Operator::In(values) => Some((&requirement.key, Some(&**values))),
        Operator::Exists => Some((&requirement.key, None)),
        Operator::NotIn(_) | Operator::DoesNotExist => None,
    });
    narrow.min_by_key(|(_, values)| values.map_or(usize::MAX, <[_]>::len))
}

impl<T: Ord> Place for BTreeSet<T> {
    fn is_empty(&self) -> bool {
        BTreeSet::is_empty(self)
    }
}

impl<P: Place> Place for ByLabel<P> {
    fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.keys.is_empty()
    }
}

impl<P: Place> Default for ByLabel<P> {
    fn default() -> Self {
        ByLabel { rest: P::default(), keys: BTreeMap::new() }
    }
}

impl<P: Place> Default for OfKey<P> {
    fn default() -> Self {
        OfKey { rest: P::default(), values: BTreeMap::new() }
    }
}

impl<T: Ord> Default for Index<T> {
    fn default() -> Self {
        Index { named: BTreeMap::new(), selected: ByLabel::default() }
    }
}

impl<T: Ord> Default for SetIndex<T> {
    fn default() -> Self {
        SetIndex { selections: Index::default(), ports: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::given::{labels, pod, selector};
    use super::*;
    use crate::net::Protocol;

    fn selection(namespaces: &str, pods: &str) -> Selection {
        let namespaces = match namespaces.strip_prefix("name=") {
            Some(name) => Scope::Named(name.into()),
            None => Scope::Selected(selector(namespaces)),
        };
        Selection { namespaces, pods: selector(pods) }
    }

    fn index(selections: &[(&str, &str)]) -> Index<usize> {
        let mut index = Index::default();
        for (place, (namespaces, pods)) in selections.iter().enumerate() {
            index.insert(&selection(namespaces, pods), &place);
        }
        index
    }

    fn found(index: &Index<usize>, namespace: Option<&str>, of: &str) -> Vec<usize> {
        let (namespace, of) = (namespace.map(labels), labels(of));
        let mut found: Vec<usize> = index.candidates("shop", namespace.as_ref(), &of).copied().collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_selector_is_found_by_what_it_asks_for() {
        let index = index(&[
            ("name=shop", "app=web"),
            ("name=other", "app=web"),
            ("name=shop", "app=web,db tier=front,back,middle"),
            ("name=shop", "canary"),
            ("name=shop", "app!=web"),
            ("name=shop", "!app"),
            ("name=shop", ""),
        ]);
        assert_eq!(found(&index, None, "app=web"), [0, 2, 4, 5, 6]);
        assert_eq!(found(&index, None, "app=db canary=no"), [2, 3, 4, 5, 6]);
        assert_eq!(found(&index, None, ""), [4, 5, 6]);
    }

    #[test]
    fn a_selector_of_namespaces_is_found_by_their_labels() {
        let index = index(&[("team=red", "app=web"), ("", "app=web"), ("team", "app=db"), ("team!=red", "")]);
        assert_eq!(found(&index, Some("team=red"), "app=web"), [0, 1, 3]);
        assert_eq!(found(&index, Some("team=blue"), "app=db"), [2, 3]);
        assert_eq!(found(&index, Some(""), "app=web"), [1, 3]);
        assert_eq!(found(&index, None, "app=web"), [] as [usize; 0], "a namespace that is not known is not selected");
    }

    #[test]
    fn a_value_of_an_empty_list_is_never_found() {
        let nothing = [crate::model::Requirement { key: "app".into(), operator: Operator::In([].into()) }];
        let asked = Selection { namespaces: Scope::Named("shop".into()), pods: nothing.into_iter().collect() };
        let mut index = Index::default();
        index.insert(&asked, &0);
        assert_eq!(found(&index, None, "app=web"), [] as [usize; 0]);
    }

    #[test]
    fn nothing_is_left_of_what_is_removed() {
        let mut sets = SetIndex::default();
        let port = |pods| SetKey::NamedPort { pods, name: "http".into(), protocol: Protocol::Tcp };
        let keys = [
            SetKey::Pods(selection("name=shop", "app=web,db")),
            SetKey::Pods(selection("team=red,blue stage", "tier")),
            SetKey::Pods(selection("", "")),
            port(PortOwners::Local),
            port(PortOwners::Selected(selection("team", "app=web"))),
        ];
        keys.iter().for_each(|key| sets.insert(key, key));
        let (namespace, web) = (labels("team=red stage=test"), pod("10.244.1.1", "app=web tier=x", "http/tcp/80"));
        let found = |sets: &SetIndex<SetKey>| sets.candidates("shop", Some(&namespace), &web).count();
        assert_eq!(found(&sets), keys.len());
        keys.iter().for_each(|key| sets.remove(key, key));
        assert_eq!(found(&sets), 0);
        assert!(sets.is_empty(), "no empty place is kept");
    }
}
