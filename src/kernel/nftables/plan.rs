//! The order of what one transaction does.
//!
//! Counters, sets and chains come first, because rules and elements name them; then rules; then elements, those that go before
//! those that come, because ranges must not overlap; at last chains, sets and counters that go, when nothing names them any
//! more. Chains that go are emptied before the first of them does: they may name each other.
//!
//! A transaction takes effect at once, and yet a packet that is being judged at that moment goes on by the rules as they were, and looks into maps and sets as they
//! are now. So some transactions have others beside them ([`Plan::in_turn`]):
//!
//! - One before, with everything new that nothing leads to yet. Where a chain is new and a verdict goes that was in a map, or is replaced there: the chain has
//!   no rules as the packet sees it, which comes to it by another element of that map, or of a map that is asked behind. And where a new set has intervals: kernels
//!   that look such a set up in an array (7.0, 6.18.y) publish the array at the end of a commit, behind the moment at which the rules of the same transaction take
//!   effect. For as long, these find it empty. An array that exists is looked up as it was until then.
//!   Sets and maps that exist and that nothing leads to ([`unreached`](super::unreached)) are as good as new: an earlier change made them, and then was refused or broken off.
//! - One behind, with everything that goes, where a map does: the packet would find it empty. A set keeps its elements until nobody is in it.
//! - Before all others one for what goes and nothing leads to: where the change itself is refused time and again, what each try made before it would pile up.
//!
//! Where a chain only changes its name and its rules ([`renaming`]), nothing is new.
//!
//! What this does not help: elements that go from one set or map, come to another one that exists, and meet in the packet what neither rule set says; an element
//! that comes to lead to a chain that exists and changes in the same transaction, which the packet meets as it was. To change the chain in a transaction of its own would
//! take effect for everybody who is led there already, before the rest of the change. Who fills maps calls those by what they hold whose elements depend on rules around them
//! (ports, in `firewall/nftables/names.rs`), so that these never change.
//!
//! Nothing waits between these transactions for packets that are under way: `MEMBARRIER_CMD_GLOBAL` would, and took 7.5 ms at the median and 17 ms at most on a busy host with
//! Linux 6.18, many times what the transactions take. A packet takes microseconds, unless its processor stands still meanwhile.

mod renaming;

use std::collections::{BTreeMap, BTreeSet};

use self::renaming::{Move, Renaming};
use super::batch::Batch;
use super::object::{Chain, Content, Key, Kind, Name, Object, SetSpec};
use crate::kernel::{Cause, Error};
use crate::reconcile::Step;

/// The changes of the objects of a table.
#[derive(Default)]
pub(super) struct Plan<'s> {
    /// Something has to change that the kernel does not change.
    pub needs_all_anew: bool,
    made_counters: Vec<&'s Name>,
    made_sets: Vec<(&'s Name, SetSpec)>,
    made_chains: Vec<(&'s Name, &'s Chain)>,
    changed_chains: Vec<(&'s Name, &'s Chain)>,
    added: OfSets<'s, (&'s Key, &'s Content)>,
    deleted: OfSets<'s, &'s Key>,
    gone_chains: Vec<&'s Name>,
    renamed: Vec<Renaming<'s>>,
    /// The changes of elements that lead to another chain.
    moves: Vec<Move<'s>>,
    gone_sets: Vec<(&'s Name, Option<SetSpec>)>,
    gone_counters: Vec<&'s Name>,
}

/// The changes of elements, by their sets.
type OfSets<'s, E> = BTreeMap<&'s Name, (SetSpec, Vec<E>)>;

/// The objects that exist and that no packet comes to.
pub(super) type Unreached = BTreeSet<Object>;

/// The transactions of a change, in their order.
pub(super) struct InTurn<'s> {
    /// Removes objects that nothing leads to. The change itself does not depend on it.
    pub leftovers: Option<Plan<'s>>,
    /// Makes new objects, without an effect on packets.
    pub early: Vec<Plan<'s>>,
    pub main: Plan<'s>,
    /// Removes objects that nothing leads to any more.
    pub late: Option<Plan<'s>>,
}

/// So many elements of new sets are worth transactions of their own, each of so many.
const MANY: usize = 4096;
const PORTION: usize = 16_384;

type Sets = BTreeMap<Name, Option<SetSpec>>;

impl<'s> Plan<'s> {
    /// Orders the steps. `sets` are the sets that exist.
    ///
    /// # Errors
    /// An element is of a set that neither exists nor is made.
    pub fn of(steps: &[Step<'s, Object, Content>], sets: &Sets) -> Result<Plan<'s>, Error> {
        let mut plan = Plan::default();
        let mut elements = Vec::new();
        for step in steps {
            match step.key {
                Object::Counter(name) => plan.counter(name, step.want.is_some()),
                Object::Set(name) => plan.set(name, step.have, step.want, sets),
                Object::Chain(name) => plan.chain(name, step.have, step.want),
                Object::Element(set, key) => elements.push((set, key, step)),
            }
        }
        let made: BTreeMap<&Name, SetSpec> = plan.made_sets.iter().copied().collect();
        let gone: BTreeSet<&Name> = plan.gone_sets.iter().map(|(name, _)| *name).collect();
        for (set, key, step) in elements {
            let there = sets.get(set).copied().flatten();
            if gone.contains(set) {
                continue;
            }
            let Some(spec) = made.get(set).copied().or(there) else {
                // A set in a form that is not ours is made anew with everything else, and so are its elements.
                if plan.needs_all_anew {
                    continue;
                }
                let cause = Cause::Malformed("no such set");
                return Err(Error::new("change", step.key.to_string(), cause));
            };
            plan.moves.extend(Move::of((set, key), step));
            if step.have.is_some() {
                plan.deleted.entry(set).or_insert_with(|| (spec, Vec::new())).1.push(key);
            }
            if let Some(content) = step.want {
                plan.added.entry(set).or_insert_with(|| (spec, Vec::new())).1.push((key, content));
            }
        }
        Ok(plan)
    }

    /// Makes everything.
    pub fn of_all(contents: &'s BTreeMap<Object, Content>) -> Plan<'s> {
        let steps: Vec<Step<'s, Object, Content>> =
            contents.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
        let of_sets = |(object, content): (&Object, &Content)| match (object, content) {
            (Object::Set(name), Content::Set(spec)) => Some((name.clone(), Some(*spec))),
            _ => None,
        };
        // An element without a set that is made is nowhere.
        Plan::of(&steps, &contents.iter().filter_map(of_sets).collect()).unwrap_or_default()
    }

    fn counter(&mut self, name: &'s Name, is_wanted: bool) {
        let names = if is_wanted { &mut self.made_counters } else { &mut self.gone_counters };
        names.push(name);
    }

    fn set(&mut self, name: &'s Name, have: Option<&'s Content>, want: Option<&'s Content>, sets: &Sets) {
        match (have, want) {
            (None, Some(Content::Set(spec))) => self.made_sets.push((name, *spec)),
            (_, None) => self.gone_sets.push((name, sets.get(name).copied().flatten())),
            _ => self.needs_all_anew = true,
        }
    }

    fn chain(&mut self, name: &'s Name, have: Option<&'s Content>, want: Option<&'s Content>) {
        match (have, want) {
            (None, Some(Content::Chain(chain))) => self.made_chains.push((name, chain)),
            (Some(Content::Chain(have)), Some(Content::Chain(chain))) if have.base == chain.base => {
                self.changed_chains.push((name, chain));
            }
            (_, None) => self.gone_chains.push(name),
            _ => self.needs_all_anew = true,
        }
    }

    /// Divides it into the transactions that it takes.
    pub fn in_turn(mut self, unreached: &Unreached) -> InTurn<'s> {
        let leftovers = self.take_leftovers(unreached);
        let mut early = self.take_portions(unreached);
        early.extend(self.take_unreachable(unreached));
        let late = self.take_left();
        InTurn { leftovers, early, main: self, late }
    }

    /// Takes out what goes and nothing leads to: what earlier changes made that were refused. While that is so, no other one brings it away.
    fn take_leftovers(&mut self, unreached: &Unreached) -> Option<Plan<'s>> {
        if unreached.is_empty() {
            return None;
        }
        let is_left = |object: Object| unreached.contains(&object);
        let mut plan = Plan::default();
        let chains = std::mem::take(&mut self.gone_chains);
        (plan.gone_chains, self.gone_chains) =
            chains.into_iter().partition(|name| is_left(Object::Chain((*name).clone())));
        let sets = std::mem::take(&mut self.gone_sets);
        (plan.gone_sets, self.gone_sets) =
            sets.into_iter().partition(|(name, _)| is_left(Object::Set((*name).clone())));
        let counters = std::mem::take(&mut self.gone_counters);
        (plan.gone_counters, self.gone_counters) =
            counters.into_iter().partition(|name| is_left(Object::Counter((*name).clone())));
        (plan.balance() != (0, 0)).then_some(plan)
    }

    /// Takes back what goes.
    pub fn take_back(&mut self, other: Plan<'s>) {
        self.gone_chains.extend(other.gone_chains);
        self.gone_sets.extend(other.gone_sets);
        self.gone_counters.extend(other.gone_counters);
    }

    /// Returns the sets that are new, or as good as new, and whether they have to be made.
    fn new_sets(&self, unreached: &Unreached) -> Vec<(&'s Name, SetSpec, bool)> {
        let is_filled = |(name, _): &(&&'s Name, &(SetSpec, Vec<_>))| {
            !unreached.is_empty() && unreached.contains(&Object::Set((**name).clone()))
        };
        let made = self.made_sets.iter().map(|(name, spec)| (*name, *spec, true));
        let filled = self.added.iter().filter(is_filled).map(|(name, (spec, _))| (*name, *spec, false));
        made.chain(filled).collect()
    }

    /// Takes out what may come before the rest without an effect: new sets with many elements, which no rule names yet.
    fn take_portions(&mut self, unreached: &Unreached) -> Vec<Plan<'s>> {
        let mut early = self.new_sets(unreached);
        early.retain(|(_, spec, _)| spec.kind != Kind::Verdicts);
        let count = |set: &Name| self.added.get(set).map_or(0, |(_, elements)| elements.len());
        if early.iter().map(|(set, ..)| count(set)).sum::<usize>() < MANY {
            return Vec::new();
        }
        let mut first = Plan::default();
        for (set, spec, is_made) in &early {
            first.made_sets.extend(is_made.then_some((*set, *spec)));
            first.deleted.extend(self.deleted.remove_entry(set));
        }
        self.made_sets.retain(|(_, spec)| spec.kind == Kind::Verdicts);
        let mut portions = vec![first];
        let mut room = PORTION;
        for (set, spec, _) in early {
            let Some((_, mut elements)) = self.added.remove(set) else { continue };
            while !elements.is_empty() {
                let rest = elements.split_off(room.min(elements.len()));
                room -= elements.len();
                if let Some(portion) = portions.last_mut() {
                    portion.added.insert(set, (spec, elements));
                }
                elements = rest;
                if room == 0 {
                    portions.push(Plan::default());
                    room = PORTION;
                }
            }
        }
        portions.retain(|portion| !portion.is_empty());
        portions
    }

    /// Returns how many elements each set is given by these transactions together.
    pub fn sizes(all: &[Plan<'s>]) -> BTreeMap<&'s Name, usize> {
        let mut sizes = BTreeMap::new();
        for (set, (_, elements)) in all.iter().flat_map(|plan| &plan.added) {
            *sizes.entry(*set).or_default() += elements.len();
        }
        sizes
    }

    /// Returns the set that this transaction fills and that has the most elements in all of them.
    pub fn largest_set(&self, sizes: &BTreeMap<&'s Name, usize>) -> Option<&'s Name> {
        self.added.keys().copied().max_by_key(|set| sizes.get(set))
    }

    /// Takes out everything new that nothing leads to yet, where a packet could meet it before it is all there.
    fn take_unreachable(&mut self, unreached: &Unreached) -> Option<Plan<'s>> {
        let loses_verdicts = self.deleted.values().any(|(spec, _)| spec.kind == Kind::Verdicts);
        let leads_elsewhere = !self.made_chains.is_empty() && loses_verdicts;
        let mut sets = self.new_sets(unreached);
        let mut with_intervals = sets.iter().filter(|(_, spec, _)| spec.intervals).peekable();
        if !leads_elsewhere && with_intervals.peek().is_none() {
            return None;
        }
        if !leads_elsewhere && with_intervals.all(|(_, spec, _)| spec.kind != Kind::Verdicts) {
            // Nothing but the sets has to come before, and these alone the kernel takes without checking the table.
            sets.retain(|(_, spec, _)| spec.kind != Kind::Verdicts);
            return Some(self.take_sets(&sets));
        }
        let (bases, made_chains): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.made_chains).into_iter().partition(|(_, chain)| chain.base.is_some());
        self.made_chains = bases;
        let mut early = Plan {
            made_counters: std::mem::take(&mut self.made_counters),
            made_sets: std::mem::take(&mut self.made_sets),
            made_chains,
            ..Plan::default()
        };
        for (set, ..) in &sets {
            early.deleted.extend(self.deleted.remove_entry(set));
            early.added.extend(self.added.remove_entry(set));
        }
        Some(early).filter(|early| !early.is_empty())
    }

    /// Takes out these sets, which are new or as good as new, with their elements.
    fn take_sets(&mut self, sets: &[(&'s Name, SetSpec, bool)]) -> Plan<'s> {
        let mut early = Plan::default();
        for (set, spec, is_made) in sets {
            early.made_sets.extend(is_made.then_some((*set, *spec)));
            early.deleted.extend(self.deleted.remove_entry(set));
            early.added.extend(self.added.remove_entry(set));
        }
        self.made_sets.retain(|(name, _)| !early.made_sets.iter().any(|(made, _)| made == name));
        early
    }

    /// Takes out everything that goes, where a packet that is under way there would miss it.
    fn take_left(&mut self) -> Option<Plan<'s>> {
        let is_map = |(_, spec): &(&Name, Option<SetSpec>)| spec.is_none_or(|spec| spec.kind != Kind::Set);
        self.gone_sets.iter().any(is_map).then(|| Plan {
            gone_chains: std::mem::take(&mut self.gone_chains),
            gone_sets: std::mem::take(&mut self.gone_sets),
            gone_counters: std::mem::take(&mut self.gone_counters),
            ..Plan::default()
        })
    }

    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.balance() == (0, 0)
            && self.changed_chains.is_empty()
            && self.renamed.is_empty()
            && self.added.is_empty()
            && self.deleted.is_empty()
    }

    /// How many sets, chains and counters come, and how many go.
    pub fn balance(&self) -> (usize, usize) {
        let made = self.made_counters.len() + self.made_sets.len() + self.made_chains.len();
        (made, self.gone_counters.len() + self.gone_sets.len() + self.gone_chains.len())
    }

    /// Returns the objects that are made.
    pub fn made(&self) -> impl Iterator<Item = Object> {
        let counters = self.made_counters.iter().map(|name| Object::Counter((*name).clone()));
        let sets = self.made_sets.iter().map(|(name, _)| Object::Set((*name).clone()));
        counters.chain(sets).chain(self.made_chains.iter().map(|(name, _)| Object::Chain((*name).clone())))
    }

    /// The sets that are made, as one remembers them.
    pub fn made_sets(&self) -> impl Iterator<Item = (Name, Option<SetSpec>)> {
        self.made_sets.iter().map(|(name, spec)| ((*name).clone(), Some(*spec)))
    }

    /// Appends the messages.
    ///
    /// # Errors
    /// An element is none of its set.
    pub fn write(&self, batch: &mut Batch<'_>) -> Result<(), Error> {
        self.made_counters.iter().for_each(|name| batch.make_counter(name));
        self.made_sets.iter().for_each(|(name, spec)| batch.make_set(name, *spec));
        self.made_chains.iter().for_each(|(name, chain)| batch.make_chain(name, chain.base));
        self.changed_chains.iter().for_each(|(name, _)| batch.empty_chain(name));
        for (name, chain) in self.made_chains.iter().chain(&self.changed_chains) {
            chain.rules.iter().for_each(|rule| batch.add_rule(name, rule));
        }
        self.renamed.iter().for_each(|one| one.write(batch));
        let mut odd = None;
        for (set, (spec, keys)) in &self.deleted {
            let left = batch.delete_elements(set, *spec, keys.iter().copied());
            odd = odd.or(left.first().map(|key| (*set, *key)));
        }
        for (set, (spec, elements)) in &self.added {
            let left = batch.add_elements(set, *spec, elements.iter().copied());
            odd = odd.or(left.first().map(|key| (*set, *key)));
        }
        if let Some((set, key)) = odd {
            let object = Object::Element(set.clone(), key.clone());
            return Err(Error::new("change", object.to_string(), Cause::Malformed("the set is of another type")));
        }
        self.gone_chains.iter().for_each(|name| batch.empty_chain(name));
        // Elements keep the chains that they name, in some kernels also when their set goes in the same transaction.
        let is_map = |(_, spec): &&(&Name, Option<SetSpec>)| spec.is_some_and(|spec| spec.kind == Kind::Verdicts);
        self.gone_sets.iter().filter(is_map).for_each(|(name, _)| batch.empty_set(name));
        self.gone_chains.iter().for_each(|name| batch.delete_chain(name));
        self.gone_sets.iter().for_each(|(name, _)| batch.delete_set(name));
        self.gone_counters.iter().for_each(|name| batch.delete_counter(name));
        Ok(())
    }

    /// Notes what exists when all of it is done.
    pub fn note(&self, sets: &mut Sets, others: &mut BTreeSet<Object>) {
        sets.extend(self.made_sets());
        for (name, _) in &self.gone_sets {
            sets.remove(*name);
        }
        others.extend(self.made_counters.iter().map(|name| Object::Counter((*name).clone())));
        others.extend(self.made_chains.iter().map(|(name, _)| Object::Chain((*name).clone())));
        for name in &self.gone_counters {
            others.remove(&Object::Counter((*name).clone()));
        }
        others.extend(self.renamed.iter().map(|one| Object::Chain(one.to.clone())));
        for name in self.gone_chains.iter().copied().chain(self.renamed.iter().map(|one| one.from)) {
            others.remove(&Object::Chain(name.clone()));
        }
    }
}

/// Returns the places of those steps that are done with these plans.
pub(super) fn places(steps: &[Step<'_, Object, Content>], plans: &[Plan<'_>]) -> Vec<usize> {
    let (mut objects, mut elements, mut gone_sets) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for plan in plans {
        gone_sets.extend(plan.gone_sets.iter().map(|(name, _)| *name));
        objects.extend(plan.made());
        objects.extend(plan.gone_counters.iter().map(|name| Object::Counter((*name).clone())));
        objects.extend(plan.gone_sets.iter().map(|(name, _)| Object::Set((*name).clone())));
        let chains = plan.changed_chains.iter().map(|(name, _)| *name).chain(plan.gone_chains.iter().copied());
        let chains = chains.chain(plan.renamed.iter().flat_map(|one| [one.from, one.to]));
        objects.extend(chains.map(|name| Object::Chain(name.clone())));
        let deleted = plan.deleted.iter().flat_map(|(set, (_, keys))| keys.iter().map(move |key| (*set, *key)));
        let added = plan.added.iter().flat_map(|(set, (_, all))| all.iter().map(move |(key, _)| (*set, *key)));
        let led = plan.renamed.iter().flat_map(|one| one.elements.iter().copied());
        elements.extend(deleted.chain(added).chain(led));
    }
    let is_done = |object: &Object| match object {
        // Elements of a set that goes do so with it.
        Object::Element(set, key) => elements.contains(&(set, key)) || gone_sets.contains(set),
        object => objects.contains(object),
    };
    steps.iter().enumerate().filter(|(_, step)| is_done(step.key)).map(|(place, _)| place).collect()
}

/// One of the transactions of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// The places of its steps.
    pub steps: Vec<usize>,
    /// The chains that it gives another name, by their former and their new one.
    pub renamed: Vec<(Name, Name)>,
}

/// Returns the transactions in which a table with these sets changes, one after the other. With `renames`, chains get other names
/// where that will do.
///
/// # Errors
/// An element is of a set that neither exists nor is made.
pub fn transactions(
    steps: &[Step<'_, Object, Content>],
    sets: &BTreeMap<Name, Option<SetSpec>>,
    renames: bool,
) -> Result<Vec<Transaction>, Error> {
    let mut plan = Plan::of(steps, sets)?;
    if plan.needs_all_anew {
        return Ok(vec![Transaction { steps: (0..steps.len()).collect(), renamed: Vec::new() }]);
    }
    let successors = if renames { plan.successors(&Unreached::new()) } else { Vec::new() };
    successors.into_iter().for_each(|(from, to)| plan.rename(from, to, 0));
    let InTurn { leftovers, early, main, late } = plan.in_turn(&Unreached::new());
    let all = leftovers.into_iter().chain(early).chain([main]).chain(late);
    let all = all.map(|plan| Transaction {
        renamed: plan.renamed.iter().map(|one| (one.from.clone(), one.to.clone())).collect(),
        steps: places(steps, std::slice::from_ref(&plan)),
    });
    Ok(all.filter(|one| !one.steps.is_empty()).collect())
}

#[cfg(test)]
mod tests;
