//! Warnings already logged of invalid objects, so that none is logged twice.
//!
//! An object is parsed again at every event; a mistake in it is worth one line when it appears and
//! none until it changes. Memory is bounded: beyond a number of invalid objects the rest is not named.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::k8s::{ObjectId, Warning};

/// The warnings that stand, by object.
#[derive(Default)]
pub struct Warned {
    said: HashMap<ObjectId, Vec<u64>>,
    is_full: bool,
}

/// The warnings to log.
#[derive(PartialEq, Eq, Debug)]
pub enum Verdict {
    /// These warnings are new.
    Say(Vec<Warning>),
    /// There is no room for more; answered once.
    TooMany,
}

const OBJECTS: usize = 1000;

impl Warned {
    pub fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    /// Returns those of an object's present warnings that were not among its warnings before.
    pub fn news(&mut self, object: &ObjectId, mut warnings: Vec<Warning>) -> Verdict {
        if warnings.is_empty() {
            if self.said.remove(object).is_some() {
                self.is_full = false;
            }
            return Verdict::Say(warnings);
        }
        let hashes: Vec<u64> = warnings.iter().map(hash).collect();
        if let Some(before) = self.said.get_mut(object) {
            warnings.retain(|warning| !before.contains(&hash(warning)));
            *before = hashes;
            return Verdict::Say(warnings);
        }
        if self.said.len() < OBJECTS {
            self.said.insert(object.clone(), hashes);
            return Verdict::Say(warnings);
        }
        if std::mem::replace(&mut self.is_full, true) { Verdict::Say(Vec::new()) } else { Verdict::TooMany }
    }
}

fn hash(warning: &Warning) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(warning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::Kind;
    use crate::model::ObjectName;

    fn id(name: &str) -> ObjectId {
        ObjectId { kind: Kind::Service, name: ObjectName::new("default", name) }
    }

    fn warning(text: &str) -> Warning {
        Warning { field: "spec.ports[0].port".into(), text: text.to_owned() }
    }

    #[test]
    fn a_warning_is_said_when_it_is_new_and_again_after_it_was_gone() {
        let mut warned = Warned::default();
        let say = |texts: &[&str]| Verdict::Say(texts.iter().map(|text| warning(text)).collect());
        assert_eq!(warned.news(&id("a"), vec![warning("x")]), say(&["x"]));
        assert_eq!(warned.news(&id("a"), vec![warning("x")]), say(&[]));
        assert_eq!(warned.news(&id("a"), vec![warning("x"), warning("y")]), say(&["y"]));
        assert_eq!(warned.news(&id("b"), vec![warning("x")]), say(&["x"]));
        assert_eq!(warned.news(&id("a"), vec![]), say(&[]));
        assert_eq!(warned.news(&id("a"), vec![warning("x")]), say(&["x"]));
    }

    #[test]
    fn memory_is_bounded_and_the_bound_is_said_once() {
        let mut warned = Warned::default();
        let verdicts: Vec<Verdict> =
            (0..OBJECTS + 5).map(|index| warned.news(&id(&index.to_string()), vec![warning("x")])).collect();
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::TooMany).count(), 1);
        assert_eq!(warned.said.len(), OBJECTS);
    }
}
