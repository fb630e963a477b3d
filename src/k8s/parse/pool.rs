//! Values that many objects have in common, in memory once.
//!
//! Fifty thousand pods have some hundred sets of labels, fewer sets of ports and a few hundred nodes between them. What
//! nobody holds any more is dropped when a pool has doubled since the last time somebody looked.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::model::{Labels, NamedPort};

/// The shared values of all objects that are parsed with it.
#[derive(Default, Debug)]
pub struct Pool {
    nodes: Once<Arc<str>>,
    labels: Once<Labels>,
    ports: Once<Arc<[NamedPort]>>,
}

/// Values of one type, each once.
#[derive(Debug)]
struct Once<T> {
    known: HashSet<T>,
    sweep_at: usize,
}

/// A pool of so few values is never looked through.
const FEW: usize = 1024;

impl Pool {
    /// The one copy of a node's name.
    pub fn node(&mut self, name: &str) -> Arc<str> {
        self.nodes.find(name).unwrap_or_else(|| self.nodes.keep(name.into(), |name| Arc::strong_count(name) > 1))
    }

    /// The one copy of these labels.
    pub fn labels(&mut self, labels: Labels) -> Labels {
        self.labels.find(&labels).unwrap_or_else(|| self.labels.keep(labels, Labels::is_shared))
    }

    /// The one copy of these ports.
    pub fn ports(&mut self, ports: &[NamedPort]) -> Arc<[NamedPort]> {
        self.ports.find(ports).unwrap_or_else(|| self.ports.keep(ports.into(), |ports| Arc::strong_count(ports) > 1))
    }
}

impl<T: Clone + Eq + Hash> Once<T> {
    fn find<Q: ?Sized + Eq + Hash>(&self, value: &Q) -> Option<T>
    where
        T: Borrow<Q>,
    {
        self.known.get(value).cloned()
    }

    fn keep(&mut self, value: T, is_held: impl Fn(&T) -> bool) -> T {
        if self.known.len() >= self.sweep_at {
            self.known.retain(is_held);
            self.known.shrink_to(self.known.len() * 2);
            self.sweep_at = (self.known.len() * 2).max(FEW);
        }
        self.known.insert(value.clone());
        value
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once { known: HashSet::new(), sweep_at: FEW }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_what_nobody_holds_is_dropped() {
        let mut pool = Pool::default();
        let labels = |value: usize| -> Labels { [("app", value.to_string())].into_iter().collect() };
        let kept = pool.labels(labels(7));
        assert!(kept.is_shared() && pool.labels(labels(7)) == kept);
        for value in 0..10 * FEW {
            pool.labels(labels(value));
        }
        assert!(pool.labels.known.len() <= FEW, "{}", pool.labels.known.len());
        assert!(pool.labels.known.contains(&kept));
        let held: Vec<Arc<str>> = (0..3 * FEW).map(|index| pool.node(&format!("node-{index}"))).collect();
        assert_eq!(pool.nodes.known.len(), held.len());
        assert!(Arc::ptr_eq(&held[0], &pool.node("node-0")));
    }
}
