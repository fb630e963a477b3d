//! The order of what one transaction does.
//!
//! Counters, sets and chains come first, because rules and elements name them; then rules; then elements, those that go before
//! those that come, because ranges must not overlap; at last chains, sets and counters that go, when nothing names them any
//! more. Chains that go are emptied before the first of them does: they may name each other.

use std::collections::{BTreeMap, BTreeSet};

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
    gone_sets: Vec<(&'s Name, Option<SetSpec>)>,
    gone_counters: Vec<&'s Name>,
}

/// The changes of elements, by their sets.
type OfSets<'s, E> = BTreeMap<&'s Name, (SetSpec, Vec<E>)>;

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

    /// Takes out what may come before the rest without an effect: new sets with many elements, which no rule names yet.
    pub fn take_portions(&mut self) -> Vec<Plan<'s>> {
        let is_early = |(_, spec): &(&Name, SetSpec)| spec.kind != Kind::Verdicts;
        let early: Vec<(&'s Name, SetSpec)> = self.made_sets.iter().copied().filter(is_early).collect();
        let count = |set: &Name| self.added.get(set).map_or(0, |(_, elements)| elements.len());
        if early.iter().map(|(set, _)| count(set)).sum::<usize>() < MANY {
            return Vec::new();
        }
        self.made_sets.retain(|set| !is_early(set));
        let mut portions = vec![Plan { made_sets: early.clone(), ..Plan::default() }];
        let mut room = PORTION;
        for (set, spec) in early {
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
        portions.retain(|portion| !portion.made_sets.is_empty() || !portion.added.is_empty());
        portions
    }

    /// How many sets, chains and counters come, and how many go.
    pub fn balance(&self) -> (usize, usize) {
        let made = self.made_counters.len() + self.made_sets.len() + self.made_chains.len();
        (made, self.gone_counters.len() + self.gone_sets.len() + self.gone_chains.len())
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
        for name in &self.gone_chains {
            others.remove(&Object::Chain((*name).clone()));
        }
    }
}
