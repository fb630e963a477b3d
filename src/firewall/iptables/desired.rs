//! Desired kernel state of the firewall: one sorted map for each kind of objects.

use std::collections::{BTreeMap, BTreeSet};

use compact_str::CompactString;

use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::sysctl::{Setting, WantedSetting};
use crate::packed::BlockMap;

use super::super::frames::Frames;
use super::super::lost::LostChains;
use super::host_endpoints::Unsure;

/// Desired elements, or those that were last seen: what is equal in both is in memory once.
pub type Elements = BlockMap<ElementKey, ()>;

/// Desired kernel objects, kind by kind.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    pub settings: BTreeMap<Setting, WantedSetting>,
    pub frames: Frames,
    pub sets: BTreeMap<SetName, SetSpec>,
    pub elements: Elements,
    pub rules: BTreeMap<Piece, Rules>,
    /// The sets of named ports of this node's pods: a pod's own ingress depends on them.
    pub ports_here: BTreeSet<SetName>,
    /// The sets whose elements close paths: the addresses of Services that pods are refused (`host_endpoints`).
    pub closing: BTreeSet<SetName>,
    /// The sets of rules that deny: their elements close paths too, and do not depend on Services.
    pub denied: BTreeSet<SetName>,
    /// Services are not completely known, so for these pods more may be closed than is desired here.
    pub unsure: Option<Unsure>,
    /// ClusterNetworkPolicies are not known that may be in force.
    pub lost: Option<Lost>,
}

/// The objects that an earlier run may have left for them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    pub chains: LostChains,
    /// The chains that pods of this node have where something judges them.
    pub pods: BTreeSet<CompactString>,
}

/// Changed keys of [`Desired`], in any order; a key may occur twice.
#[derive(Default, Debug)]
pub struct LoweredChanges {
    pub settings: bool,
    pub frames: bool,
    pub sets: Vec<SetName>,
    pub elements: Vec<ElementKey>,
    pub rules: Vec<Piece>,
    /// Elements that were removed explicitly, which absence alone does not prove.
    pub left: Vec<ElementKey>,
}

impl Desired {
    /// Returns whether an element that is not desired may stay because Services are not completely known.
    pub fn is_unsure(&self, key: &ElementKey) -> bool {
        self.unsure.is_some() && self.closing.contains(&key.set)
    }

    /// Returns whether an element closes a path, where all others open one.
    pub fn closes(&self, key: &ElementKey) -> bool {
        self.closing.contains(&key.set) || self.denied.contains(&key.set)
    }
}

impl LoweredChanges {
    pub fn is_empty(&self) -> bool {
        !self.settings && !self.frames && self.sets.is_empty() && self.elements.is_empty() && self.rules.is_empty()
    }
}
