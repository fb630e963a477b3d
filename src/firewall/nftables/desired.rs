//! Desired kernel state of the firewall.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::nftables::{Content, Key, Name, Object};
use crate::kernel::sysctl::{Setting, WantedSetting};
use crate::model::UnreadPolicies;
use crate::packed::{BlockMap, Put};
use crate::reconcile::Sorted;

use super::super::frames::Frames;
use super::super::lost::LostChains;
use super::class::Class;
use super::names;

/// Desired contents of the table, or those that were last seen: what is equal in both is in memory once.
pub type Table = BlockMap<Object, Content>;

/// Desired kernel objects.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    pub settings: BTreeMap<Setting, WantedSetting>,
    pub frames: Frames,
    pub table: Table,
    /// Number of sets and maps in the table, and of their elements.
    pub sets: usize,
    pub elements: usize,
    /// Services are not completely known, so that these addresses of isolated pods may be refused more than is desired here.
    pub unsure: Option<BTreeSet<IpAddr>>,
    /// ClusterNetworkPolicies are not known that may be in force.
    pub lost: Option<Lost>,
}

/// The objects that an earlier run may have left for them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The chains that refuse what they deny.
    pub chains: LostChains,
    /// The addresses of the pods of this node.
    pub addresses: BTreeSet<IpAddr>,
}

/// Changed keys of [`Desired`], in any order; a key may occur twice.
#[derive(Default, Debug)]
pub struct LoweredChanges {
    pub settings: bool,
    pub frames: bool,
    /// The objects that stay although they are not desired may differ ([`Desired::unsure`], [`Desired::lost`]).
    pub kept: bool,
    pub objects: Vec<Object>,
    /// Elements that were removed explicitly, which absence alone does not prove.
    pub left: Vec<Object>,
    /// Classes whose counter came or went.
    pub classes: Vec<Arc<Class>>,
}

impl Desired {
    /// Puts an object in place; returns whether it is new or differs.
    pub fn put(&mut self, object: Object, content: Content) -> bool {
        let counted = counted(&object);
        let put = self.table.set(object, content);
        if put == Put::New {
            self.count(counted, 1);
        }
        put != Put::Same
    }

    /// Removes an object; returns whether it was there.
    pub fn remove(&mut self, object: &Object) -> bool {
        let was_there = self.table.remove(object).is_some();
        if was_there {
            self.count(counted(object), -1);
        }
        was_there
    }

    /// Returns the elements of a set.
    pub fn elements_of<'a>(&'a self, set: &'a Name) -> impl Iterator<Item = (&'a Object, &'a Content)> {
        elements_of(&self.table, set)
    }

    /// Returns the name as its set has it, so that all elements share it.
    pub fn known(&self, set: Name) -> Name {
        match self.table.entry_at(&Object::Set(set.clone())) {
            Some((Object::Set(known), _)) => known.clone(),
            _ => set,
        }
    }

    fn count(&mut self, (sets, elements): (bool, bool), by: isize) {
        self.sets = self.sets.saturating_add_signed(by * isize::from(sets));
        self.elements = self.elements.saturating_add_signed(by * isize::from(elements));
    }
}

impl Lost {
    /// Returns what these policies may have; of no pod yet.
    pub fn of(unread: &UnreadPolicies) -> Option<Lost> {
        let chains =
            LostChains::of(unread, |key| [names::denied(key), names::passed(key)].map(|name| name.as_str().into()))?;
        Some(Lost { chains, addresses: BTreeSet::new() })
    }
}

impl LoweredChanges {
    pub fn is_empty(&self) -> bool {
        !self.settings && !self.frames && !self.kept && self.objects.is_empty()
    }
}

/// Returns the elements of a set in a table.
pub fn elements_of<'a, C: 'a>(
    table: &'a impl Sorted<Object, C>,
    set: &'a Name,
) -> impl Iterator<Item = (&'a Object, &'a C)> {
    let first = Object::Element(set.clone(), Key::Address(IpAddr::from([0; 4])));
    let is_its = move |object: &Object| matches!(object, Object::Element(name, _) if name == set);
    table.between(first..).take_while(move |(object, _)| is_its(object))
}

/// Returns whether an object is a set, and whether it is an element.
fn counted(object: &Object) -> (bool, bool) {
    (matches!(object, Object::Set(_)), matches!(object, Object::Element(..)))
}
