//! Who has what several Services claim: by rank first (`part::Rank`), then the older Service, then by name.
//!
//! Nearly every key is claimed once, so the others who want it stand apart.

use std::collections::BTreeMap;

use crate::kernel::ipvs::ServiceKey;
use crate::model::{ObjectName, Table};

use super::part::Rank;

/// Who has each virtual service, and who would have it next.
#[derive(Default)]
pub struct Owners {
    /// A value that others may keep.
    first: Table<ServiceKey, Owner>,
    /// In their order; only where several claim one key.
    rivals: BTreeMap<ServiceKey, Vec<Owner>>,
}

/// One Service's claim to a key, in the order of precedence.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner {
    pub rank: Rank,
    /// Seconds since 1970.
    pub created: i64,
    pub name: ObjectName,
}

impl Owners {
    /// The Service that a virtual service belongs to.
    pub fn of(&self, key: &ServiceKey) -> Option<&ObjectName> {
        self.first.get(key).map(|owner| &owner.name)
    }

    /// Which Service every virtual service belongs to.
    pub fn all(&self) -> &Table<ServiceKey, Owner> {
        &self.first
    }

    /// Takes in what the Service of this name claims now, or that it no longer does. True if it has the key. Tells
    /// in `notes` when a key begins to be claimed by several.
    pub fn update(
        &mut self,
        key: ServiceKey,
        name: &ObjectName,
        claim: Option<Owner>,
        notes: &mut Vec<String>,
    ) -> bool {
        let owner = self.first.get(&key);
        if owner.is_none_or(|owner| owner.name == *name) && !self.rivals.contains_key(&key) {
            let has_it = claim.is_some();
            match claim {
                Some(claim) => drop(self.first.insert(key, claim)),
                None => drop(self.first.remove(&key)),
            }
            return has_it;
        }
        let rivals = self.rivals.remove(&key).unwrap_or_default();
        let was_shared = !rivals.is_empty();
        let mut all: Vec<Owner> = owner.into_iter().map(|owner| (**owner).clone()).chain(rivals).collect();
        all.retain(|owner| owner.name != *name);
        all.extend(claim);
        all.sort();
        if let ([first, second, ..], false) = (all.as_slice(), was_shared) {
            notes.push(format!(
                "{key} is claimed by {} and by {}; {} has it, because cluster addresses come before others and older Services before newer ones",
                first.name, second.name, first.name
            ));
        }
        self.put(key, all) == Some(name)
    }

    /// Puts all who claim a key in place; the one who has it.
    fn put(&mut self, key: ServiceKey, all: Vec<Owner>) -> Option<&ObjectName> {
        let mut all = all.into_iter();
        let Some(first) = all.next() else {
            self.first.remove(&key);
            return None;
        };
        self.first.insert(key, first);
        if all.len() > 0 {
            self.rivals.insert(key, all.collect());
        }
        self.of(&key)
    }
}
