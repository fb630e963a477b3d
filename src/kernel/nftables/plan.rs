//! The order of what one transaction does.
//!
//! Counters, sets and chains come first, because rules and elements name them; then rules; then elements, those that go before
//! those that come, because ranges must not overlap; at last chains, sets and counters that go, when nothing names them any
//! more. Chains that go are emptied before the first of them does: they may name each other.
//!
//! A transaction takes effect at once, and yet a packet that is being judged at that moment goes on by the rules as they were, and looks into maps and sets as they
//! are now. So some transactions have others beside them:
//!
//! - One before, with everything new that nothing leads to yet ([`Plan::take_unreachable`]): where an element that is replaced leads to a new chain, which has no
//!   rules as the packet sees it; and where a new set has intervals. Kernels that look such a set up in an array (7.0, 6.18.y) publish the array at
//!   the end of a commit, behind the moment at which the rules of the same transaction take effect: for as long, these find it empty. An array that exists is
//!   looked up as it was until then.
//! - One behind, with everything that goes ([`Plan::take_left`]), where a map does: the packet would find it empty. A set keeps its elements until nobody is in it.

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

    /// Takes out everything new that nothing leads to yet, where a packet could meet it before it is all there.
    pub fn take_unreachable(&mut self) -> Option<Plan<'s>> {
        let mut changed_maps = self.deleted.iter().filter(|(_, (spec, _))| spec.kind == Kind::Verdicts);
        let leads_elsewhere = !self.made_chains.is_empty() && changed_maps.any(|(map, _)| self.added.contains_key(map));
        if !leads_elsewhere && !self.made_sets.iter().any(|(_, spec)| spec.intervals) {
            return None;
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
        for (set, _) in &early.made_sets {
            early.added.extend(self.added.remove_entry(set));
        }
        Some(early)
    }

    /// Takes out everything that goes, where a packet that is under way there would miss it.
    pub fn take_left(&mut self) -> Option<Plan<'s>> {
        let is_map = |(_, spec): &(&Name, Option<SetSpec>)| spec.is_none_or(|spec| spec.kind == Kind::Verdicts);
        self.gone_sets.iter().any(is_map).then(|| Plan {
            gone_chains: std::mem::take(&mut self.gone_chains),
            gone_sets: std::mem::take(&mut self.gone_sets),
            gone_counters: std::mem::take(&mut self.gone_counters),
            ..Plan::default()
        })
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::object::{Base, BaseKind, Fields, Hook};
    use super::*;
    use crate::net::PortRange;

    /// A base chain that changes, a new one, a new chain, and an element of a set that exists beside one of a new set. Returns the chains
    /// and elements of the first transaction, and those of the last one.
    fn early_and_late(intervals: bool) -> (Vec<String>, Vec<String>) {
        let spec = |intervals| SetSpec { fields: Fields::Port, kind: Kind::Verdicts, intervals };
        let base = Base { kind: BaseKind::Filter, hook: Hook::Forward, priority: 0 };
        let chain = |base| Content::Chain(Arc::new(Chain { base, rules: Vec::new() }));
        let (of_host, plain) = (chain(Some(base)), chain(None));
        let ports = Key::Ports(PortRange { first: 80, last: 81 });
        let chains = ["changed", "entered", "new"].map(|name| Object::Chain(name.into()));
        let elements = ["known", "fresh"].map(|set| Object::Element(set.into(), ports.clone()));
        let set = (Object::Set("fresh".into()), Content::Set(spec(intervals)));
        let step = |key, have, want| Step { key, have, want: Some(want) };
        let [changed, entered, new] = &chains;
        let [known, fresh] = &elements;
        let steps = [
            step(changed, Some(&of_host), &of_host),
            step(entered, None, &of_host),
            step(new, None, &plain),
            step(&set.0, None, &set.1),
            step(known, None, &Content::Element),
            step(fresh, None, &Content::Element),
        ];
        let mut plan = Plan::of(&steps, &[("known".into(), Some(spec(true)))].into()).expect("its sets exist");
        let named = |plan: &Plan<'_>| {
            let chains = plan.made_chains.iter().chain(&plan.changed_chains).map(|(name, _)| name.to_string());
            chains.chain(plan.added.keys().map(|set| format!("element of {set}"))).collect::<Vec<_>>()
        };
        let early = plan.take_unreachable().map(|early| named(&early)).unwrap_or_default();
        assert!(plan.take_left().is_none(), "nothing goes");
        (early, named(&plan))
    }

    #[test]
    fn a_map_that_goes_does_so_behind_what_leads_there_no_longer_and_a_set_with_it() {
        let of = |kind| SetSpec { fields: Fields::ProtocolPort, kind, intervals: false };
        let sets: Sets = [("map".into(), Some(of(Kind::Verdicts))), ("set".into(), Some(of(Kind::Set)))].into();
        let contents: Vec<(Object, Content)> =
            sets.iter().filter_map(|(name, spec)| Some((Object::Set(name.clone()), Content::Set((*spec)?)))).collect();
        let goes = |(key, have): &'_ (Object, Content)| -> usize {
            let steps = [Step { key, have: Some(have), want: None }];
            let mut plan = Plan::of(&steps, &sets).expect("it exists");
            plan.take_left().map_or(0, |left| left.gone_sets.len())
        };
        assert_eq!(contents.iter().map(goes).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn what_is_new_comes_before_an_element_that_leads_there_in_place_of_elsewhere() {
        let spec = SetSpec { fields: Fields::ProtocolPort, kind: Kind::Verdicts, intervals: false };
        let chain = Content::Chain(Arc::new(Chain { base: None, rules: Vec::new() }));
        let verdict = Content::Verdict(Arc::new(crate::kernel::nftables::Verdict::Jump("new".into())));
        let new = Object::Chain("new".into());
        let element = Object::Element("known".into(), Key::ProtocolPort(crate::net::Protocol::Tcp, 80));
        let sets: Sets = [("known".into(), Some(spec))].into();
        for (have, early) in [(None, false), (Some(&verdict), true)] {
            let steps = [
                Step { key: &new, have: None, want: Some(&chain) },
                Step { key: &element, have, want: Some(&verdict) },
            ];
            let mut plan = Plan::of(&steps, &sets).expect("its set exists");
            assert_eq!(plan.take_unreachable().is_some(), early);
        }
    }

    #[test]
    fn what_is_new_comes_before_what_leads_to_it_where_a_new_set_has_intervals() {
        let (early, late) = early_and_late(true);
        assert_eq!(early, ["new", "element of fresh"]);
        assert_eq!(late, ["entered", "changed", "element of known"]);
    }

    #[test]
    fn everything_comes_together_where_no_new_set_has_intervals() {
        let (early, late) = early_and_late(false);
        assert!(early.is_empty());
        assert_eq!(late, ["entered", "new", "changed", "element of fresh", "element of known"]);
    }
}
