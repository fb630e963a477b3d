//! Public keys of nodes for WireGuard: whose they are, and which nodes are one machine.

use std::collections::BTreeSet;

use compact_str::CompactString;

use super::{Nodes, Part};
use crate::net::PublicKey;

impl Nodes {
    /// Updates whose the public keys of one node are, and whether its key changes.
    pub(super) fn update_keys(&mut self, name: &CompactString, old: &Part, new: &Part) {
        for key in [old.key, new.key].into_iter().flatten() {
            let claim = |part: &Part| (part.key == Some(key)).then(|| (part.key_claim(name), ()));
            self.keys.replace(&key, claim(old), claim(new));
        }
        for key in [old.second_key(), new.second_key()].into_iter().flatten() {
            let claim = |part: &Part| (part.second_key() == Some(key)).then(|| (part.key_claim(name), ()));
            self.second_keys.replace(&key, claim(old), claim(new));
        }
        match new.is_changing() {
            true => self.changing.insert(name.clone()),
            false => self.changing.remove(name),
        };
    }

    /// Returns the public key of a node.
    pub fn key_of(&self, node: &CompactString) -> Option<PublicKey> {
        self.parts.get(node)?.key
    }

    /// Returns the nodes with this public key: those with an address first, and of them the oldest.
    pub fn with_key(&self, key: &PublicKey) -> impl Iterator<Item = &CompactString> {
        self.keys.owners(key).map(|claimant| &claimant.node)
    }

    /// Returns the public key of a node's second device: the next key while it changes, else the present one.
    pub fn second_key_of(&self, node: &CompactString) -> Option<PublicKey> {
        self.parts.get(node)?.second_key()
    }

    /// Returns the nodes with this public key of their second device, in the same order.
    pub fn with_second_key(&self, key: &PublicKey) -> impl Iterator<Item = &CompactString> {
        self.second_keys.owners(key).map(|claimant| &claimant.node)
    }

    /// Returns the nodes whose keys change.
    pub fn changing(&self) -> &BTreeSet<CompactString> {
        &self.changing
    }

    /// Returns whether two Nodes are of one machine, because they have one public key.
    pub fn are_one(&self, one: &CompactString, other: &CompactString) -> bool {
        one == other || self.key_of(one).is_some_and(|key| self.key_of(other) == Some(key))
    }

    /// Returns the first node in a list that is of another machine than this one.
    pub fn another<'a>(
        &self,
        one: &CompactString,
        mut all: impl Iterator<Item = &'a CompactString>,
    ) -> Option<&'a CompactString> {
        all.find(|other| !self.are_one(one, other))
    }
}

impl Part {
    fn second_key(&self) -> Option<PublicKey> {
        self.next_key.filter(|_| self.key.is_some()).or(self.key)
    }

    fn is_changing(&self) -> bool {
        self.key.is_some() && self.next_key.is_some_and(|next| Some(next) != self.key)
    }
}
