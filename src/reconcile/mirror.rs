//! A target and its last seen state.
//!
//! A mirror keeps its own list of dirty keys: a round costs what is dirty, not what exists. A key stays
//! dirty until the kernel is seen to hold what is desired, so a round that is cut short, by a failure or
//! because shrinking is not allowed yet, is simply continued by the next one.

mod audited;
mod deleting;
mod differing;
mod doubt;
mod growing;
mod inspected;
mod kept;
mod portions;
mod postponed;
mod reflection;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Instant;

use self::differing::side_by_side;
use self::doubt::Doubt;
use super::backoff::Backoff;
use super::moment::Moment;
use super::sorted::Sorted;
use super::target::{Phase, Target};
use crate::packed::PackedMap;

pub use self::differing::Differing;
pub use self::growing::MayGrow;
pub use self::inspected::{DESCRIBED, Difference, Inspected, Room, State as DifferenceState};
pub use self::kept::Kept;
pub use self::reflection::Reflection;

/// How far growing may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Growth {
    /// Create what is missing and change what differs.
    Full,
    /// Create what is missing and fill what is empty ([`Target::filled`]), leave alone what exists in any other form: for a
    /// remembered cluster, which may be older than the kernel.
    OnlyMissing,
    /// Only read what exists.
    Nothing,
}

/// An object that differs from how we left it, found by an audit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Drift {
    /// Ours, and gone.
    Missing(String),
    /// Ours, and different.
    Different(String),
    /// Recognised as ours, and not known to us.
    Unexpected(String),
}

/// Why the kernel is not as desired.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// Number of objects in doubt; 0 where the kind could not even be read.
    pub objects: usize,
    /// The first error of the last round that failed.
    pub error: String,
    pub since: Instant,
}

/// A target and its last seen state: success updates it, any failure makes it forget.
///
/// `S` is the form in which that state is kept: what is desired has it too.
pub struct Mirror<T: Target, S = PackedMap<<T as Target>::Key, <T as Target>::Value>> {
    target: T,
    /// Last seen state; `None` before the first read and after a failed one.
    seen: Option<S>,
    dirty: Dirty<T::Key>,
    /// Keys that are dirty and that no round looks at for now. None of them is among the dirty ones.
    postponed: BTreeSet<T::Key>,
    /// Keys whose last step failed. They are read back, when the delay is over, before they are compared.
    doubtful: BTreeMap<T::Key, Doubt<T::Value>>,
    /// Keys whose last step failed, with the half of a round in which it did. They stay here while they are tried
    /// again: only a success, or nothing left to do, ends the trouble.
    failing: BTreeMap<T::Key, Phase>,
    /// Keys that were known before the last seen state was given up, until it is read again.
    forgotten: BTreeSet<T::Key>,
    /// Tries of failed steps.
    backoff: Backoff,
    /// Tries of reading all. A step that fails for good must not have it wait: nothing is done while nothing is known.
    reading: Backoff,
    trouble: Option<Trouble>,
    steps_done: u64,
    /// Start of the next portion of an audit; `None` at the beginning.
    audit_from: Option<T::Key>,
    /// Start of the next portion of an inspection.
    inspected_to: Option<T::Key>,
}

enum Dirty<K> {
    All,
    Keys(BTreeSet<K>),
}

/// The parts of steps: the key, the present value and the desired one.
type Planned<T> = Vec<(<T as Target>::Key, Option<<T as Target>::Value>, Option<<T as Target>::Value>)>;

/// Progress of comparing a range of objects, portion by portion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Course<K> {
    /// Start of the next portion; `None` at the beginning.
    next: Option<K>,
    /// Maximum number of objects in one portion.
    pub portion: usize,
}

impl<K> Default for Course<K> {
    fn default() -> Course<K> {
        Course { next: None, portion: usize::MAX }
    }
}

/// One portion of an audit.
#[derive(Default, Debug)]
pub struct Audited {
    pub drift: Vec<Drift>,
    /// The whole kind has been audited.
    pub finished: bool,
}

impl<T: Target> Mirror<T> {
    /// Returns a mirror that has seen nothing yet.
    pub fn new(target: T) -> Mirror<T> {
        Mirror::keeping(target)
    }
}

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    /// Returns a mirror that has seen nothing yet, and will keep what it sees in this form.
    pub fn keeping(target: T) -> Mirror<T, S> {
        Mirror {
            target,
            seen: None,
            dirty: Dirty::All,
            postponed: BTreeSet::new(),
            doubtful: BTreeMap::new(),
            failing: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            backoff: Backoff::default(),
            reading: Backoff::default(),
            trouble: None,
            steps_done: 0,
            audit_from: None,
            inspected_to: None,
        }
    }

    /// Marks this key as possibly desired differently.
    pub fn mark(&mut self, key: T::Key) {
        self.postponed.remove(&key);
        if let Dirty::Keys(keys) = &mut self.dirty {
            keys.insert(key);
        }
    }

    /// Marks everything as possibly desired differently.
    pub fn mark_all(&mut self) {
        self.postponed.clear();
        self.dirty = Dirty::All;
    }

    /// Has this object read back at once, before it is compared again: what is wanted of it may have another effect now.
    pub fn doubt(&mut self, key: T::Key) {
        if self.seen.is_some() {
            self.doubtful.insert(key.clone(), Doubt::Unknown);
            self.mark(key);
            self.backoff.tried();
        }
    }

    /// Returns the last seen state; `None` while it is unknown.
    pub fn seen(&self) -> Option<&S::Form> {
        self.seen.as_ref().map(S::form)
    }

    /// Returns the keys whose objects may differ from what is desired, in doubt or not, beside those [postponed](Mirror::postponed); `None` if any may.
    pub fn unsettled(&self) -> Option<&BTreeSet<T::Key>> {
        match &self.dirty {
            Dirty::Keys(keys) if self.seen.is_some() => Some(keys),
            Dirty::Keys(_) | Dirty::All => None,
        }
    }

    /// Returns the keys that exist or may exist, as far as is known; while nothing is, those known before. Some may come
    /// more than once.
    pub fn known_keys(&self) -> impl Iterator<Item = &T::Key> {
        self.seen().into_iter().flat_map(|seen| seen.entries().map(|(key, _)| key)).chain(self.uncertain_keys())
    }

    /// Returns the keys of which it is not known whether they are there: those in doubt, and those that were known when a reading failed.
    pub fn uncertain_keys(&self) -> impl Iterator<Item = &T::Key> {
        self.doubtful.keys().chain(&self.forgotten)
    }

    /// Returns whether this object is known to exist, in whatever form.
    pub fn has(&self, key: &T::Key) -> bool {
        self.seen().is_some_and(|seen| seen.value(key).is_some())
    }

    /// Returns whether some object is in doubt: it could not be read, changed or deleted.
    pub fn is_in_doubt(&self) -> bool {
        self.seen.is_none() || !self.doubtful.is_empty()
    }

    /// Returns the keys whose last step failed and that were not read back since: the kernel may hold anything there.
    pub fn doubts(&self) -> impl Iterator<Item = &T::Key> {
        self.doubtful.keys()
    }

    /// The keys of objects that could not be created or changed when that was tried the last time.
    pub fn failing_to_grow(&self) -> impl Iterator<Item = &T::Key> {
        self.failing.iter().filter(|(_, phase)| **phase == Phase::Grow).map(|(key, _)| key)
    }

    /// The target itself, for reading.
    pub fn peek(&self) -> &T {
        &self.target
    }

    /// The target itself, for anything that is not a step.
    pub fn target(&mut self) -> &mut T {
        &mut self.target
    }

    /// Keeps the last seen state in the memory of what is desired, if the two are equal.
    pub fn share(&mut self, want: &S::Form) {
        self.seen.iter_mut().for_each(|seen| seen.share(want));
    }

    /// The growing half of a round: creates and changes what is dirty and differs from `want`. Returns the
    /// keys whose objects were created or changed in the kernel.
    pub fn grow(&mut self, want: &S::Form, growth: Growth, at: Moment) -> Vec<T::Key> {
        self.grow_where(want, growth, at, |_| true)
    }

    /// The shrinking half of a round: deletes what is dirty and not in `want`, and takes from what grew
    /// its old parts. Returns the keys of the objects that were deleted or became smaller.
    pub fn shrink(&mut self, want: &S::Form, at: Moment) -> Vec<T::Key> {
        self.shrink_where(want, at, |_, _| true)
    }

    /// Like [`shrink`](Mirror::shrink), for objects that others need without the kernel knowing: deletes only those
    /// that nobody needs any more according to `may_go`, which also gets the last seen state of the kind.
    pub fn shrink_where(
        &mut self,
        want: &S::Form,
        at: Moment,
        may_go: impl Fn(&T::Key, &S::Form) -> bool,
    ) -> Vec<T::Key> {
        self.shrink_those(want, at, may_go, |_| true)
    }

    /// Compares the next portion of the objects in a range with the kernel, and marks what somebody else changed as dirty.
    /// Does not look for objects that are ours and unknown.
    pub fn compare_some(
        &mut self,
        range: (Bound<T::Key>, Bound<T::Key>),
        course: &mut Course<T::Key>,
        at: Moment,
    ) -> Audited {
        self.compare_next_of(range, course).unwrap_or_else(|error| {
            self.unreadable(error.to_string(), at);
            Audited { drift: Vec::new(), finished: true }
        })
    }

    fn compare_one(&mut self, key: T::Key, found: &mut BTreeMap<T::Key, T::Value>, drift: &mut Vec<Drift>) {
        let Some(seen) = self.seen.as_mut() else { return };
        match found.remove(&key) {
            None => {
                drift.push(Drift::Missing(key.to_string()));
                seen.drop_key(&key);
            }
            Some(value) if seen.form().value(&key) != Some(&value) => {
                drift.push(Drift::Different(key.to_string()));
                seen.set(key.clone(), value);
            }
            Some(_) => return,
        }
        self.mark(key);
    }

    /// Returns whether [`learn`](Mirror::learn) would read now.
    pub fn would_read(&self, at: Moment) -> bool {
        match self.seen {
            None => self.reading.is_due(at.now),
            Some(_) => !self.doubtful.is_empty() && self.backoff.is_due(at.now),
        }
    }

    /// Makes the next try wait for another kind, whose own retry will bring it about.
    pub fn wait_for_others(&mut self) {
        self.try_at_once();
    }

    /// Notes that what has to be known before this kind can be read is not: trouble, as if the kernel had not listed it.
    pub fn cannot_learn(&mut self, error: String, at: Moment) {
        self.unreadable(error, at);
    }

    /// Makes failed steps due at once, and reading where that has failed: something else is desired in their place.
    pub fn try_at_once(&mut self) {
        self.backoff.tried();
        self.reading.tried();
    }

    /// Reads what is about to be compared where it is not known; returns false while nothing can be compared.
    pub fn learn(&mut self, at: Moment) -> bool {
        if self.seen.is_none() {
            if !self.reading.is_due(at.now) {
                return false;
            }
            match self.target.read() {
                Ok(found) => {
                    self.seen = Some(found.into());
                    self.mark_all();
                    self.doubtful.clear();
                    self.forgotten.clear();
                    self.reading.succeeded();
                    self.backoff.tried();
                }
                Err(error) => {
                    self.unreadable(error.to_string(), at);
                    return false;
                }
            }
        } else if self.backoff.is_due(at.now) && !self.doubtful.is_empty() {
            let keys: Vec<T::Key> = self.doubtful.keys().cloned().collect();
            match self.target.read_some(&keys) {
                Ok(found) => {
                    let seen = self.seen.as_mut().expect("seen was checked above");
                    keys.iter().for_each(|key| seen.drop_key(key));
                    seen.extend(found);
                    self.doubtful.clear();
                    self.backoff.tried();
                    keys.into_iter().for_each(|key| self.mark(key));
                }
                Err(error) => {
                    self.unreadable(error.to_string(), at);
                    return false;
                }
            }
        }
        true
    }

    /// Returns the steps for all dirty keys for which `after` names a state to reach.
    fn planned(
        &self,
        want: &S::Form,
        after: impl Fn(&T::Key, Option<&T::Value>, Option<&T::Value>) -> Option<Option<T::Value>>,
    ) -> Planned<T> {
        let Some(seen) = self.seen() else { return Vec::new() };
        let plan = |(key, have, wanted): (&T::Key, Option<&T::Value>, Option<&T::Value>)| {
            if self.doubtful.contains_key(key) {
                return None;
            }
            after(key, have, wanted).map(|then| (key.clone(), have.cloned(), then))
        };
        match &self.dirty {
            Dirty::Keys(keys) => {
                keys.iter().map(|key| (key, seen.value(key), want.value(key))).filter_map(plan).collect()
            }
            Dirty::All => side_by_side(seen, want).filter_map(plan).collect(),
        }
    }

    fn perform(&mut self, phase: Phase, planned: Planned<T>, at: Moment) -> Vec<T::Key> {
        if planned.is_empty() {
            return Vec::new();
        }
        let failed = portions::apply(&mut self.target, phase, &planned);
        let first_error = failed.values().next().cloned();
        let mut done = Vec::with_capacity(planned.len());
        let mut there = Vec::with_capacity(planned.len());
        let seen = self.seen.as_mut().expect("steps are planned only from what was seen");
        for (index, (key, have, want)) in planned.into_iter().enumerate() {
            if failed.contains_key(&index) {
                seen.drop_key(&key);
                let half = if want.is_some() { Phase::Grow } else { Phase::Shrink };
                self.failing.insert(key.clone(), if phase == Phase::Whole { half } else { phase });
                self.doubtful.insert(key, Doubt::OneOf([have, want]));
                continue;
            }
            self.failing.remove(&key);
            done.push(key.clone());
            match want {
                Some(value) => there.push((key, value)),
                None => seen.drop_key(&key),
            }
        }
        if seen.form().count() == 0 {
            // Building a map at once costs a fraction of filling it.
            *seen = there.into_iter().collect();
        } else {
            seen.extend(there);
        }
        self.steps_done += done.len() as u64;
        if let Some(error) = first_error {
            self.step_failed(error, at);
        }
        done
    }

    /// Removes the dirty keys that are as desired, and ends the trouble when nothing fails any more.
    fn clean(&mut self, phase: Phase, want: &S::Form) {
        let Some(seen) = self.seen() else { return };
        let left: BTreeSet<T::Key> = match &self.dirty {
            Dirty::Keys(keys) => {
                let settled = |key: &&T::Key| seen.value(key) == want.value(key) && !self.doubtful.contains_key(key);
                keys.iter().filter(|key| !settled(key)).cloned().collect()
            }
            Dirty::All => {
                let differing = side_by_side(seen, want).filter(|(_, have, wanted)| have != wanted);
                differing.map(|(key, ..)| key).chain(self.doubtful.keys()).cloned().collect()
            }
        };
        // A key that failed in this half, is not in doubt and was not tried again has nothing left to do in it.
        self.failing
            .retain(|key, failed_in| self.doubtful.contains_key(key) || (*failed_in != phase && left.contains(key)));
        self.dirty = Dirty::Keys(left);
        if self.doubtful.is_empty() && self.failing.is_empty() && self.trouble.is_some() {
            self.trouble = None;
            self.backoff.succeeded();
        }
    }

    fn unreadable(&mut self, error: String, at: Moment) {
        self.forget();
        if self.reading.is_due(at.now) {
            self.reading.failed(at.now, at.jitter);
        }
        self.note_trouble(error, at);
    }

    fn step_failed(&mut self, error: String, at: Moment) {
        // What fails while a try waits has not been tried again: it waits for the same one.
        if self.backoff.is_due(at.now) {
            self.backoff.failed(at.now, at.jitter);
        }
        self.note_trouble(error, at);
    }

    fn note_trouble(&mut self, error: String, at: Moment) {
        let since = self.trouble.as_ref().map_or(at.now, |trouble| trouble.since);
        self.trouble = Some(Trouble { objects: self.doubtful.len(), error, since });
    }
}

#[cfg(test)]
mod tests;
