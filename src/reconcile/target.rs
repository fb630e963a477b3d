//! One kind of kernel objects, as the reconcile core sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};

use super::sorted::Sorted;

/// A kind of kernel objects that are ours.
///
/// Implemented by each file of `kernel/` on the real kernel, and once more in memory for tests.
pub trait Target {
    /// Key of one object in the kernel.
    type Key: Ord + Clone + Debug + Display;
    /// Everything else about it that we decide.
    type Value: PartialEq + Clone + Debug;
    type Error: Display;

    /// Name of the kind in logs, health and metrics: plural, lower case.
    fn name(&self) -> &'static str;

    /// Everything of ours that exists. Must recognise it without memory of an earlier run, and must not
    /// return, not even read where that is avoidable, what belongs to others.
    ///
    /// # Errors
    /// The kernel refused, or its answer was malformed. Nothing is known then.
    fn read(&mut self) -> Result<BTreeMap<Self::Key, Self::Value>, Self::Error>;

    /// Like [`read`](Target::read), for these keys only: those of them that exist. Kinds whose full read is
    /// expensive override this, so that an audit and a read-back can go in portions.
    ///
    /// # Errors
    /// As for [`read`](Target::read).
    fn read_some(&mut self, keys: &[Self::Key]) -> Result<BTreeMap<Self::Key, Self::Value>, Self::Error> {
        let mut all = self.read()?;
        Ok(keys.iter().filter_map(|key| all.remove_entry(key)).collect())
    }

    /// Like [`read`](Target::read), for a user's question: takes nothing over, and nothing that is known of this kind follows from it.
    ///
    /// # Errors
    /// As for [`read`](Target::read).
    fn view(&mut self) -> Result<BTreeMap<Self::Key, Self::Value>, Self::Error> {
        self.read()
    }

    /// The keys of everything of ours that exists.
    ///
    /// # Errors
    /// As for [`read`](Target::read).
    fn keys(&mut self) -> Result<BTreeSet<Self::Key>, Self::Error> {
        Ok(self.read()?.into_keys().collect())
    }

    /// Looks for traces of others' changes at a small part of the price of reading, to be called every few seconds.
    /// `seen` is the last seen state of this kind. What a glance does not see an audit finds.
    fn glance(&mut self, _seen: &impl Sorted<Self::Key, Self::Value>) -> Glance<Self::Key> {
        Glance::Alike
    }

    /// Returns whether a glance sees every change by others, so that nothing has to be read to find out what a notice is about.
    fn sees_all_at_a_glance(&self) -> bool {
        false
    }

    /// Compares these of the last seen objects with the kernel; returns those that may differ. Nothing is concluded from its
    /// answer but that they have to be read, so a kind that can compare at less cost than it reads overrides this.
    ///
    /// # Errors
    /// As for [`read`](Target::read).
    fn unlike(
        &mut self,
        seen: &impl Sorted<Self::Key, Self::Value>,
        keys: &[Self::Key],
    ) -> Result<Vec<Self::Key>, Self::Error> {
        let found = self.read_some(keys)?;
        Ok(keys.iter().filter(|key| found.get(key) != seen.value(key)).cloned().collect())
    }

    /// Returns those of the last seen objects that a portion of an audit has to read: those that may differ by what no glance compares.
    /// An audit in portions begins with a glance. A kind that can compare that at less cost than it reads overrides this.
    fn to_audit(&mut self, _seen: &impl Sorted<Self::Key, Self::Value>, keys: &[Self::Key]) -> Vec<Self::Key> {
        keys.to_vec()
    }

    /// Like [`glance`](Target::glance), for a higher price: sees every change. A kind without a way that costs much less than
    /// an audit leaves that to audits.
    ///
    /// # Errors
    /// As for [`read`](Target::read).
    fn scan(&mut self, _seen: &impl Sorted<Self::Key, Self::Value>) -> Result<Glance<Self::Key>, Self::Error> {
        Ok(Glance::Alike)
    }

    /// Returns whether an object that is not returned (any more) is there and others decide about it by now, so that nothing is missing.
    fn is_of_others(&mut self, _key: &Self::Key) -> bool {
        false
    }

    /// Returns the number of objects that an audit reads at once. For a kind whose objects are read one by one, as many
    /// as may hold up a change; where one request reads all, all is right.
    fn audit_portion(&self) -> usize {
        usize::MAX
    }

    /// Returns the number of steps performed at once, so that describing them to the kernel takes bounded memory. A
    /// kind whose change is one transaction takes all of them.
    fn portion(&self) -> usize {
        usize::MAX
    }

    /// Performs the steps and returns those that failed; every other one is done. Independent steps go on
    /// after a failure. A kind whose change is one transaction reports all of its steps when it fails, but for those that it did before.
    fn apply(&mut self, phase: Phase, steps: &[Step<'_, Self::Key, Self::Value>]) -> Vec<Failure<Self::Error>>;

    /// The state of an object after the growing half of a change from `have` to `want`.
    ///
    /// For most kinds a change is one operation and nothing is left to shrink. A kind whose values contain
    /// parts (a virtual service and its destinations) returns both the old parts and the new ones, and
    /// gets a second step, in the shrinking phase, to lose the old.
    fn grown(_have: &Self::Value, want: &Self::Value) -> Self::Value {
        want.clone()
    }

    /// Describes an object for a user. One that has nothing beside its key is `present`.
    fn describe(value: &Self::Value) -> String {
        let text = format!("{value:?}");
        if text == "()" { "present".to_owned() } else { text }
    }

    /// An object that exists and is of no use because it has no parts, with the parts that it shall have; `None` for any other
    /// object. A kind whose values contain parts (a virtual service and its destinations) fills such an object also
    /// from a remembered cluster.
    fn filled(_have: &Self::Value, _want: &Self::Value) -> Option<Self::Value> {
        None
    }
}

/// Result of a glance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Glance<K> {
    /// No trace of a change.
    Alike,
    /// These may differ.
    These(Vec<K>),
    /// Something differs, and it is not known which object.
    Somewhere,
}

/// The half of a round that steps belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Create, change, add parts. Steps have a `want`.
    Grow,
    /// Delete, remove parts. Steps have a `have`.
    Shrink,
    /// Both, in any order: for a kind whose change is one transaction.
    Whole,
}

/// The change of one object from its last seen state to that after this phase. Never `None` on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a, K, V> {
    pub key: &'a K,
    /// The present value, or `None` where the object is absent.
    pub have: Option<&'a V>,
    /// The value after the step, or `None` where the object is to be deleted.
    pub want: Option<&'a V>,
}

/// A step that failed.
#[derive(Debug)]
pub struct Failure<E> {
    /// Index into the steps given to `apply`.
    pub step: usize,
    pub error: E,
}
