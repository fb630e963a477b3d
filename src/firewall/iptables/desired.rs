//! What the firewall wants of the kernel: one sorted map for each family of objects.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rules};

/// What the kernel shall hold, family by family.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    pub sets: BTreeMap<SetName, SetSpec>,
    pub elements: BTreeMap<ElementKey, ()>,
    pub rules: BTreeMap<Piece, Rules>,
    /// Those of the sets that say where pods of this node listen: what a pod itself accepts depends on them.
    pub ports_here: BTreeSet<SetName>,
}

/// Which keys of [`Desired`] changed, in any order; a key may stand there twice.
#[derive(Default, Debug)]
pub struct Changed {
    pub sets: Vec<SetName>,
    pub elements: Vec<ElementKey>,
    pub rules: Vec<Piece>,
    /// Those of the elements that were wanted and are no longer: something says so, which absence alone does not.
    pub left: Vec<ElementKey>,
}

impl Changed {
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.elements.is_empty() && self.rules.is_empty()
    }
}
