//! Reading the kernel for a user who asks what differs. Nothing is concluded from it: no key becomes dirty, and nothing that was seen is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{Dirty, Kept, Mirror, Sorted};
use crate::reconcile::target::Target;

/// A difference between the kernel and what is to be in place by now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The object's key.
    pub object: String,
    pub state: State,
    /// The desired object; `None` for nothing, or where that is not known here (`State::Failed`).
    pub desired: Option<String>,
    /// The object in the kernel.
    pub seen: Option<String>,
}

/// The sort of a difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Somebody else deleted it.
    Missing,
    /// Somebody else changed it.
    Different,
    /// It is recognised as ours, and nobody here made it.
    Unexpected,
    /// Our own last change of it failed, for this reason.
    Failed(String),
}

/// One portion of looking through a kind.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Inspected {
    /// The first differences.
    pub differences: Vec<Difference>,
    /// The number of the others.
    pub more: usize,
    /// The number of objects compared.
    pub compared: usize,
    /// The number of objects that are about to change, or that what is known of the cluster does not allow to change.
    pub waiting: usize,
    /// The objects in the kernel, a line each, where they were asked for.
    pub objects: String,
    /// The number of objects that are in the kernel and for which there was no room.
    pub unlisted: usize,
    /// Why the kind could not be read.
    pub unreadable: Option<String>,
    /// It was the last portion.
    pub finished: bool,
}

/// Most differences that are described, of one kind.
pub const DESCRIBED: usize = 100;
/// Most bytes of the description of one object, in a difference and in a list of objects.
const LONGEST: usize = 2000;
const LONGEST_LISTED: usize = 64 << 10;

/// Room in an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Number of differences that are described.
    pub differences: usize,
    /// Bytes for objects that are in the kernel; further ones are counted. `None` where nobody asks for them.
    pub objects: Option<usize>,
}

impl Room {
    /// Room for these differences, and for no objects.
    pub fn of_differences(differences: usize) -> Room {
        Room { differences, objects: None }
    }
}

impl<T: Target, S: Kept<T::Key, T::Value>> Mirror<T, S> {
    pub(super) fn inspect_next_portion(&mut self, room: Room) -> Result<Inspected, T::Error> {
        let mut inspected = Inspected { finished: true, ..Inspected::default() };
        let Some(seen) = self.seen.as_ref().map(S::form) else {
            let trouble = self.trouble.as_ref().map(|trouble| trouble.error.clone());
            inspected.unreadable = Some(trouble.unwrap_or_else(|| "it has not been read yet".to_owned()));
            return Ok(inspected);
        };
        let most = self.target.audit_portion();
        let begin = self.inspected_to.take();
        let (is_first, at_once) = (begin.is_none(), seen.count() <= most && begin.is_none());
        let mut range = seen.between((begin.map_or(Bound::Unbounded, Bound::Included), Bound::Unbounded));
        let portion: Vec<T::Key> = range.by_ref().take(most).map(|(key, _)| key.clone()).collect();
        self.inspected_to = range.next().map(|(key, _)| key.clone());
        drop(range);
        inspected.finished = self.inspected_to.is_none();
        let mut found = if at_once { self.target.view()? } else { self.target.read_some(&portion)? };
        let mut noted = Noted { inspected, room };
        noted.list::<T>(&found);
        if is_first {
            self.note_unsettled(&mut noted);
        }
        for key in portion {
            let there = found.remove(&key);
            if there.is_none() && self.target.is_of_others(&key) {
                continue;
            }
            if !self.is_unsettled(&key) {
                let desired = self.seen().and_then(|seen| seen.value(&key));
                noted.inspected.compared += 1;
                noted.compare::<T>(&key, desired, there.as_ref());
            }
        }
        if noted.inspected.finished {
            self.note_unknown(found, at_once, &mut noted)?;
        }
        Ok(noted.inspected)
    }

    /// Notes the objects whose last change failed, and counts those that wait.
    fn note_unsettled(&self, noted: &mut Noted) {
        let error = self.trouble.as_ref().map_or("it could not be changed", |trouble| &trouble.error);
        let failed: BTreeSet<&T::Key> = self.doubtful.keys().chain(self.failing.keys()).collect();
        for key in &failed {
            let state = State::Failed(error.to_owned());
            noted.note(|| Difference { object: key.to_string(), state, desired: None, seen: None });
        }
        if let Dirty::Keys(keys) = &self.dirty {
            noted.inspected.waiting = keys.iter().chain(&self.postponed).filter(|key| !failed.contains(key)).count();
        }
    }

    /// Notes the objects that are ours and unknown. `found`: what is left of all objects where they were read `at_once`.
    fn note_unknown(
        &mut self,
        found: BTreeMap<T::Key, T::Value>,
        at_once: bool,
        noted: &mut Noted,
    ) -> Result<(), T::Error> {
        let is_unknown =
            |key: &T::Key| !self.is_unsettled(key) && self.seen().is_none_or(|seen| seen.value(key).is_none());
        let unknown: BTreeMap<T::Key, T::Value> = match at_once {
            true => found.into_iter().filter(|(key, _)| is_unknown(key)).collect(),
            false => {
                let keys: Vec<T::Key> = self.target.keys()?.into_iter().collect();
                let is_unknown =
                    |key: &T::Key| !self.is_unsettled(key) && self.seen().is_none_or(|seen| seen.value(key).is_none());
                let unknown: Vec<T::Key> = keys.into_iter().filter(is_unknown).collect();
                if unknown.is_empty() { BTreeMap::new() } else { self.target.read_some(&unknown)? }
            }
        };
        if !at_once {
            noted.list::<T>(&unknown);
        }
        for (key, value) in &unknown {
            noted.compare::<T>(key, None, Some(value));
        }
        Ok(())
    }

    /// Returns whether an object is at work: it may differ from what was last seen by our own doing.
    fn is_unsettled(&self, key: &T::Key) -> bool {
        let is_dirty = match &self.dirty {
            Dirty::Keys(keys) => keys.contains(key),
            // What is desired has not been compared with what was seen; what others did since is found all the same.
            Dirty::All => false,
        };
        is_dirty || self.postponed.contains(key) || self.doubtful.contains_key(key)
    }
}

/// A portion, and the room that is left before it.
struct Noted {
    inspected: Inspected,
    room: Room,
}

impl Noted {
    /// Lists objects of the kernel, where that is asked for and there is room.
    fn list<T: Target>(&mut self, objects: &BTreeMap<T::Key, T::Value>) {
        let Some(room) = self.room.objects else { return };
        for (key, value) in objects {
            if self.inspected.objects.len() >= room {
                self.inspected.unlisted += 1;
                continue;
            }
            let mut text = T::describe(value);
            text.truncate(text.floor_char_boundary(LONGEST_LISTED));
            self.inspected.objects.push_str(&format!("{key}: {text}\n"));
        }
    }

    fn compare<T: Target>(&mut self, key: &T::Key, desired: Option<&T::Value>, seen: Option<&T::Value>) {
        let state = match (desired, seen) {
            (Some(desired), Some(seen)) if desired == seen => return,
            (None, None) => return,
            (Some(_), None) => State::Missing,
            (None, Some(_)) => State::Unexpected,
            (Some(_), Some(_)) => State::Different,
        };
        let described = |value: Option<&T::Value>| {
            value.map(|value| {
                let mut text = T::describe(value);
                text.truncate(text.floor_char_boundary(LONGEST));
                text
            })
        };
        self.note(|| Difference { object: key.to_string(), state, desired: described(desired), seen: described(seen) });
    }

    fn note(&mut self, difference: impl FnOnce() -> Difference) {
        if self.inspected.differences.len() < self.room.differences {
            self.inspected.differences.push(difference());
        } else {
            self.inspected.more += 1;
        }
    }
}
