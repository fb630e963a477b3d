//! Who has what several Services claim: by rank first (`part::Rank`), then the older Service, then by name.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::kernel::ipvs::ServiceKey;
use crate::model::{Claim, Claims, ObjectName, Table};

use super::part::Rank;

/// Who has each virtual service, and who would have it next.
#[derive(Default)]
pub struct Owners(Claims<ServiceKey, Arc<Owner>, Table<ServiceKey, Owner>>);

/// One Service's claim to a key, in the order of precedence.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner {
    pub rank: Rank,
    /// Seconds since 1970.
    pub created: i64,
    pub name: ObjectName,
}

impl Claim for Owner {
    type Claimant = ObjectName;

    fn claimant(&self) -> &ObjectName {
        &self.name
    }

    fn order(&self, other: &Owner) -> Ordering {
        self.cmp(other)
    }
}

impl Owners {
    /// The Service that a virtual service belongs to.
    pub fn of(&self, key: &ServiceKey) -> Option<&ObjectName> {
        self.0.first(key).map(|owner| &owner.name)
    }

    /// Which Service every virtual service belongs to, as a value that others may keep.
    pub fn all(&self) -> &Table<ServiceKey, Owner> {
        self.0.all()
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
        let was_shared = self.0.of(&key).len() > 1;
        self.0.put(&key, name, claim.map(Arc::new));
        if let ([first, second, ..], false) = (self.0.of(&key), was_shared) {
            notes.push(format!(
                "{key} is claimed by {} and by {}; {} has it, because cluster addresses come before others and older Services before newer ones",
                first.name, second.name, first.name
            ));
        }
        self.of(&key) == Some(name)
    }
}
