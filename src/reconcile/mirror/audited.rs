//! Comparing the next portion of the last seen state with the kernel.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{Audited, Course, Doubt, Drift, Kept, Mirror, Sorted};
use crate::reconcile::target::{Glance, Target};

/// The first and the last key.
type Range<K> = (Bound<K>, Bound<K>);

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    pub(super) fn audit_next_portion(&mut self) -> Result<Audited, T::Error> {
        let Some(seen) = self.seen.as_ref().map(S::form) else {
            return Ok(Audited { drift: Vec::new(), finished: true });
        };
        let most = self.target.audit_portion();
        let begins = self.audit_from.is_none();
        if begins && seen.count() <= most {
            let found = self.target.read()?;
            return Ok(Audited { drift: self.compare_all(found), finished: true });
        }
        let begin = self.audit_from.take().map_or(Bound::Unbounded, Bound::Included);
        let mut range = seen.between((begin, Bound::Unbounded));
        let portion: Vec<T::Key> = range.by_ref().take(most).map(|(key, _)| key.clone()).collect();
        self.audit_from = range.next().map(|(key, _)| key.clone());
        drop(range);
        let keys: Vec<T::Key> = portion.into_iter().filter(|key| !self.doubtful.contains_key(key)).collect();
        // Glances may rest, and one that comes now sees what this audit leaves to them.
        let suspects = if begins { self.target.glance(seen) } else { Glance::Alike };
        let mut keys: BTreeSet<T::Key> = self.target.to_audit(seen, &keys).into_iter().collect();
        if let Glance::These(suspects) = suspects {
            let is_known = |key: &T::Key| seen.value(key).is_some() && !self.doubtful.contains_key(key);
            keys.extend(suspects.into_iter().filter(is_known));
        }
        let keys: Vec<T::Key> = keys.into_iter().collect();
        let mut found = self.target.read_some(&keys)?;
        let mut drift = Vec::new();
        for key in keys {
            self.compare_one(key, &mut found, &mut drift);
        }
        let finished = self.audit_from.is_none();
        if finished {
            let existing = self.target.keys()?;
            for key in self.unknown_among(existing) {
                self.doubt_unexpected(key, &mut drift);
            }
        }
        Ok(Audited { drift, finished })
    }

    /// Compares everything that is seen with everything that was found. Both are in the order of keys, so what is alike is passed by at the price of one
    /// comparison, where a look for each key takes many.
    fn compare_all(&mut self, mut found: BTreeMap<T::Key, T::Value>) -> Vec<Drift> {
        let Some(seen) = self.seen.as_ref().map(S::form) else { return Vec::new() };
        let (mut differing, mut unexpected) = (Vec::new(), Vec::new());
        let mut there = found.iter().peekable();
        for (key, value) in seen.entries() {
            let place = loop {
                match there.peek().map_or(Ordering::Greater, |(other, _)| (*other).cmp(key)) {
                    Ordering::Less => unexpected.extend(there.next().map(|(other, _)| other.clone())),
                    place => break place,
                }
            };
            let same_key = if place == Ordering::Equal { there.next() } else { None };
            if same_key.is_none_or(|(_, other)| other != value) {
                differing.push(key.clone());
            }
        }
        unexpected.extend(there.map(|(other, _)| other.clone()));
        let mut drift = Vec::new();
        differing.retain(|key| !self.doubtful.contains_key(key));
        unexpected.retain(|key| !self.doubtful.contains_key(key));
        for key in differing {
            self.compare_one(key, &mut found, &mut drift);
        }
        for key in unexpected {
            self.doubt_unexpected(key, &mut drift);
        }
        drift
    }

    pub(super) fn compare_next_of(
        &mut self,
        range: Range<T::Key>,
        course: &mut Course<T::Key>,
    ) -> Result<Audited, T::Error> {
        let nothing = || Audited { drift: Vec::new(), finished: true };
        let Some(seen) = self.seen.as_ref().map(S::form) else { return Ok(nothing()) };
        let begin = course.next.take().map_or(range.0, Bound::Included);
        let mut rest = seen.between((begin, range.1));
        let portion: Vec<T::Key> = rest.by_ref().take(course.portion).map(|(key, _)| key.clone()).collect();
        course.next = rest.next().map(|(key, _)| key.clone());
        drop(rest);
        let keys: Vec<T::Key> = portion.into_iter().filter(|key| !self.doubtful.contains_key(key)).collect();
        if keys.is_empty() {
            return Ok(Audited { drift: Vec::new(), finished: course.next.is_none() });
        }
        let suspects = self.target.unlike(seen, &keys)?;
        let mut drift = Vec::new();
        if !suspects.is_empty() {
            let mut found = self.target.read_some(&suspects)?;
            suspects.into_iter().for_each(|key| self.compare_one(key, &mut found, &mut drift));
        }
        Ok(Audited { drift, finished: course.next.is_none() })
    }

    pub(super) fn compare_what_a_glance_tells(&mut self) -> Result<Vec<Drift>, T::Error> {
        let Some(seen) = self.seen.as_ref().map(S::form) else { return Ok(Vec::new()) };
        let told = self.target.glance(seen);
        self.compare_told(told)
    }

    pub(super) fn compare_what_a_scan_tells(&mut self) -> Result<Vec<Drift>, T::Error> {
        let Some(seen) = self.seen.as_ref().map(S::form) else { return Ok(Vec::new()) };
        let told = self.target.scan(seen)?;
        self.compare_told(told)
    }

    fn compare_told(&mut self, told: Glance<T::Key>) -> Result<Vec<Drift>, T::Error> {
        let Some(seen) = self.seen() else { return Ok(Vec::new()) };
        let keys = match told {
            Glance::Alike => return Ok(Vec::new()),
            Glance::These(keys) => keys,
            Glance::Somewhere => {
                let mut drift = Vec::new();
                self.audit_from = None;
                loop {
                    let portion = self.audit_next_portion()?;
                    drift.extend(portion.drift);
                    if portion.finished {
                        return Ok(drift);
                    }
                }
            }
        };
        let (known, unknown): (Vec<T::Key>, Vec<T::Key>) =
            keys.into_iter().filter(|key| !self.doubtful.contains_key(key)).partition(|key| seen.value(key).is_some());
        let all: Vec<T::Key> = known.iter().chain(&unknown).cloned().collect();
        let mut found = self.target.read_some(&all)?;
        let mut drift = Vec::new();
        for key in known {
            self.compare_one(key, &mut found, &mut drift);
        }
        for key in unknown.into_iter().filter(|key| found.contains_key(key)) {
            self.doubt_unexpected(key, &mut drift);
        }
        Ok(drift)
    }

    fn doubt_unexpected(&mut self, key: T::Key, drift: &mut Vec<Drift>) {
        drift.push(Drift::Unexpected(key.to_string()));
        self.doubtful.insert(key.clone(), Doubt::Unknown);
        self.mark(key);
    }

    fn unknown_among(&self, existing: BTreeSet<T::Key>) -> Vec<T::Key> {
        // Both are in the order of keys.
        let mut seen = self.seen().into_iter().flat_map(|seen| seen.entries().map(|(key, _)| key)).peekable();
        let mut is_known = |key: &T::Key| {
            while seen.next_if(|one| *one < key).is_some() {}
            seen.next_if(|one| *one == key).is_some()
        };
        existing.into_iter().filter(|key| !is_known(key) && !self.doubtful.contains_key(key)).collect()
    }
}
