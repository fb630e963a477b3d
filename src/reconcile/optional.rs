//! A kind of kernel objects that this run may not use at all: then none exist, and none may be desired.

use std::collections::{BTreeMap, BTreeSet};

use super::sorted::Sorted;
use super::target::{Failure, Glance, Phase, Step, Target};

/// A target, or none.
pub struct Optional<T> {
    name: &'static str,
    target: Option<T>,
}

impl<T: Target> Optional<T> {
    pub fn used(target: T) -> Optional<T> {
        Optional { name: target.name(), target: Some(target) }
    }

    /// A kind that is not used. `name`: as [`Target::name`] would say.
    pub fn unused(name: &'static str) -> Optional<T> {
        Optional { name, target: None }
    }

    pub fn is_used(&self) -> bool {
        self.target.is_some()
    }

    /// The target itself, where it is used.
    pub fn target(&mut self) -> Option<&mut T> {
        self.target.as_mut()
    }
}

impl<T: Target> Target for Optional<T> {
    type Key = T::Key;
    type Value = T::Value;
    type Error = T::Error;

    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&mut self) -> Result<BTreeMap<T::Key, T::Value>, T::Error> {
        self.target.as_mut().map_or_else(|| Ok(BTreeMap::new()), T::read)
    }

    fn view(&mut self) -> Result<BTreeMap<T::Key, T::Value>, T::Error> {
        self.target.as_mut().map_or_else(|| Ok(BTreeMap::new()), T::view)
    }

    fn read_some(&mut self, keys: &[T::Key]) -> Result<BTreeMap<T::Key, T::Value>, T::Error> {
        self.target.as_mut().map_or_else(|| Ok(BTreeMap::new()), |target| target.read_some(keys))
    }

    fn keys(&mut self) -> Result<BTreeSet<T::Key>, T::Error> {
        self.target.as_mut().map_or_else(|| Ok(BTreeSet::new()), T::keys)
    }

    fn glance(&mut self, seen: &impl Sorted<T::Key, T::Value>) -> Glance<T::Key> {
        self.target.as_mut().map_or(Glance::Alike, |target| target.glance(seen))
    }

    fn sees_all_at_a_glance(&self) -> bool {
        self.target.as_ref().is_some_and(T::sees_all_at_a_glance)
    }

    fn unlike(&mut self, seen: &impl Sorted<T::Key, T::Value>, keys: &[T::Key]) -> Result<Vec<T::Key>, T::Error> {
        self.target.as_mut().map_or_else(|| Ok(Vec::new()), |target| target.unlike(seen, keys))
    }

    fn scan(&mut self, seen: &impl Sorted<T::Key, T::Value>) -> Result<Glance<T::Key>, T::Error> {
        self.target.as_mut().map_or(Ok(Glance::Alike), |target| target.scan(seen))
    }

    fn audit_portion(&self) -> usize {
        self.target.as_ref().map_or(usize::MAX, T::audit_portion)
    }

    fn portion(&self) -> usize {
        self.target.as_ref().map_or(usize::MAX, T::portion)
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, T::Key, T::Value>]) -> Vec<Failure<T::Error>> {
        let target = self.target.as_mut().expect("nothing is desired of a kind that is not used");
        target.apply(phase, steps)
    }

    fn grown(have: &T::Value, want: &T::Value) -> T::Value {
        T::grown(have, want)
    }

    fn describe(value: &T::Value) -> String {
        T::describe(value)
    }

    fn filled(have: &T::Value, want: &T::Value) -> Option<T::Value> {
        T::filled(have, want)
    }
}
