//! Owners of keys that several Services claim: by rank first (`part::Rank`), then the older Service, then by name.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::ipvs::ServiceKey;
use crate::model::{Claim, Claims, ObjectName, Table};

use super::part::Rank;

/// The owner of each virtual service, and the claimants that follow.
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

/// All virtual services with their owners, as a value that others may keep.
#[derive(Clone, Default)]
pub struct Owned {
    pub owners: Table<ServiceKey, Owner>,
    /// The address, protocol and port of each virtual service that the kernel knows by a mark.
    pub marked: Arc<BTreeMap<ServiceKey, ServiceKey>>,
}

impl Owned {
    /// Returns the address, protocol and port of a virtual service of the kernel, and its owner.
    pub fn of(&self, kernel_key: &ServiceKey) -> Option<(ServiceKey, &Owner)> {
        let port = match kernel_key {
            ServiceKey::Address { .. } => *kernel_key,
            ServiceKey::Mark { .. } => *self.marked.get(kernel_key)?,
        };
        Some((port, self.owners.get(&port)?))
    }
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
    /// Returns the Service that owns a virtual service.
    pub fn of(&self, key: &ServiceKey) -> Option<&ObjectName> {
        self.0.first(key).map(|owner| &owner.name)
    }

    /// Returns the Services that claim a virtual service, the owner first; none where only one does.
    pub fn rivals(&self, key: &ServiceKey) -> impl Iterator<Item = &ObjectName> {
        self.0.rivals(key).iter().map(|claim| &claim.name)
    }

    /// Returns the owners of all virtual services, as a value that others may keep.
    pub fn all(&self) -> &Table<ServiceKey, Owner> {
        self.0.all()
    }

    /// Sets or removes the claim of the Service of this name. Returns who owned the key before, and who owns it now. Adds a message to
    /// `notes` when several Services begin to claim a key.
    pub fn update(
        &mut self,
        key: ServiceKey,
        name: &ObjectName,
        claim: Option<Owner>,
        notes: &mut Vec<String>,
    ) -> [Option<Arc<Owner>>; 2] {
        if let (Some(claim), Some(first)) = (&claim, self.0.first(&key))
            && *claim == **first
        {
            return [Some(first.clone()), Some(first.clone())];
        }
        let was_shared = !self.0.rivals(&key).is_empty();
        let claim = claim.map(Arc::new);
        let before = self.0.put(&key, name, claim.clone());
        let rivals = self.0.rivals(&key);
        if let ([first, second, ..], false) = (rivals, was_shared) {
            notes.push(format!(
                "{key} is claimed by {} and by {}; {} has it, because cluster addresses come before others, load balancer addresses before external ones, and older Services before newer ones",
                first.name, second.name, first.name
            ));
        }
        let is_alone = before.as_ref().is_none_or(|before| before.name == *name) && rivals.is_empty() && !was_shared;
        let now = if is_alone { claim } else { self.0.first(&key).cloned() };
        [before, now]
    }
}
