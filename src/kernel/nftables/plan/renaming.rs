//! Chains that others take the place of, under another name.
//!
//! Where all pods of a chain come under other policies together, the chain goes, a new one comes, and what led to the one leads to the other. The kernel can give the
//! chain that exists the other name instead: no element changes then, the rules change with all others of the transaction, and a packet that is being judged goes on by those of before. So
//! nothing has to come in a transaction before the change, for which the kernel would check the whole table once more.
//!
//! Kernel: `NFT_MSG_NEWCHAIN` with the handle of a chain and a name that none has. Until the end of the transaction the chain is found by its former name.

use std::collections::{BTreeMap, BTreeSet};

use super::super::batch::Batch;
use super::super::object::{Chain, Content, Key, Name, Object};
use super::super::rule::{Rule, Verdict};
use super::{OfSets, Plan, Unreached};
use crate::reconcile::Step;

/// A chain that exists, and gets another name and other rules.
pub(super) struct Renaming<'s> {
    pub from: &'s Name,
    pub to: &'s Name,
    chain: &'s Chain,
    /// The kernel's number of the chain.
    handle: u64,
    /// The elements that lead there, of which nothing but the chain's name changes.
    pub elements: Vec<(&'s Name, &'s Key)>,
}

/// An element that leads from one chain to another one by the same verdict.
pub(super) struct Move<'s> {
    element: (&'s Name, &'s Key),
    from: &'s Name,
    to: &'s Name,
}

impl<'s> Move<'s> {
    pub fn of(element: (&'s Name, &'s Key), step: &Step<'s, Object, Content>) -> Option<Move<'s>> {
        let (Some(Content::Verdict(have)), Some(Content::Verdict(want))) = (step.have, step.want) else { return None };
        let (from, to) = match (&**have, &**want) {
            (Verdict::Jump(from), Verdict::Jump(to)) | (Verdict::Goto(from), Verdict::Goto(to)) => (from, to),
            _ => return None,
        };
        Some(Move { element, from, to })
    }
}

impl<'s> Plan<'s> {
    /// Returns the chains that go and those that may take their place by another name: everything that is to lead to these leads to the former so far. A chain that
    /// nothing leads to is none of them: it is removed before everything else.
    pub fn successors(&self, unreached: &Unreached) -> Vec<(&'s Name, &'s Name)> {
        if self.gone_chains.is_empty() || self.made_chains.is_empty() || self.moves.is_empty() {
            return Vec::new();
        }
        let mut coming: BTreeMap<&Name, Vec<&Move<'s>>> = BTreeMap::new();
        self.moves.iter().for_each(|one| coming.entry(one.to).or_default().push(one));
        let gone: BTreeSet<&Name> = self.gone_chains.iter().copied().collect();
        let named = self.named_otherwise(&coming);
        let mut taken = BTreeSet::new();
        let mut successors = Vec::new();
        for (to, chain) in &self.made_chains {
            let Some([first, rest @ ..]) = coming.get(to).map(|moves| &**moves) else { continue };
            let is_left = !unreached.is_empty() && unreached.contains(&Object::Chain(first.from.clone()));
            let is_one = rest.iter().all(|other| other.from == first.from) && gone.contains(first.from) && !is_left;
            if chain.base.is_none() && is_one && !named.contains(to) && taken.insert(first.from) {
                successors.push((first.from, *to));
            }
        }
        successors
    }

    /// Returns those of these chains that rules name, or elements that did not lead to another chain.
    fn named_otherwise(&self, coming: &BTreeMap<&'s Name, Vec<&Move<'s>>>) -> BTreeSet<&'s Name> {
        let rules = self.made_chains.iter().chain(&self.changed_chains).flat_map(|(_, chain)| &chain.rules);
        let of_rules = rules.filter_map(Rule::verdict);
        let elements = self.added.iter().flat_map(|(set, (_, all))| all.iter().map(move |(key, of)| (*set, *key, *of)));
        let of_elements = elements.filter_map(|(set, key, content)| match content {
            Content::Verdict(verdict) => Some((Some((set, key)), &**verdict)),
            _ => None,
        });
        let all = of_rules.map(|verdict| (None, verdict)).chain(of_elements);
        let otherwise = all.filter_map(|(element, verdict)| {
            let (Verdict::Jump(to) | Verdict::Goto(to)) = verdict else { return None };
            let (to, moves) = coming.get_key_value(to)?;
            let is_move = element.is_some_and(|element| moves.iter().any(|one| one.element == element));
            (!is_move).then_some(*to)
        });
        otherwise.collect()
    }

    /// Lets a chain with this handle have the name of its successor.
    pub fn rename(&mut self, from: &'s Name, to: &'s Name, handle: u64) {
        let Some(place) = self.made_chains.iter().position(|(name, _)| *name == to) else { return };
        let (_, chain) = self.made_chains.remove(place);
        self.gone_chains.retain(|name| *name != from);
        let (moves, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.moves).into_iter().partition(|one| one.to == to);
        self.moves = rest;
        let elements: Vec<(&'s Name, &'s Key)> = moves.into_iter().map(|one| one.element).collect();
        for (set, key) in &elements {
            take_out(&mut self.deleted, set, |one| one == key);
            take_out(&mut self.added, set, |(one, _)| one == key);
        }
        self.renamed.push(Renaming { from, to, chain, handle, elements });
    }
}

impl Renaming<'_> {
    /// Appends the messages. The chain has its former name until the transaction is done.
    pub fn write(&self, batch: &mut Batch<'_>) {
        batch.empty_chain(self.from);
        self.chain.rules.iter().for_each(|rule| batch.add_rule_of(self.to, self.from, rule));
        batch.rename_chain(self.handle, self.to);
    }
}

/// Takes an element out of those of its set.
fn take_out<E>(of_sets: &mut OfSets<'_, E>, set: &Name, is_it: impl Fn(&E) -> bool) {
    let Some((_, elements)) = of_sets.get_mut(set) else { return };
    elements.retain(|one| !is_it(one));
    if elements.is_empty() {
        of_sets.remove(set);
    }
}
