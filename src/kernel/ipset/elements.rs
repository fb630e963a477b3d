//! The elements of sets as a kind of kernel objects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::acts::Ipset;
use super::fault::error;
use super::{ElementKey, Entry, SetName};
use crate::kernel::netlink::Fault;
use crate::kernel::{Error, Name};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Failure, Glance, Phase, Sorted, Step, Target};

/// The elements of the sets of one owner. The sets are a kind of their own, [`Sets`](super::Sets), that has to
/// be there first.
#[derive(Debug)]
pub struct Elements {
    ipset: Ipset,
    ours: Vec<Name>,
    took: PerFamily<Duration>,
    may_be_missing: bool,
}

/// Up to this many elements are tested one by one; for more, their sets are listed whole.
const FEW: usize = 4096;
/// Number of elements changed at once.
const PORTION: usize = 8192;

impl Elements {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(ours: Vec<Name>) -> Result<Elements, Error> {
        Ok(Elements { ipset: Ipset::open()?, ours, took: PerFamily::default(), may_be_missing: false })
    }

    /// For cleanup: a kernel without ipset holds no elements, which is no error.
    pub fn accept_missing_ipset(&mut self) {
        self.may_be_missing = true;
    }

    /// Returns the time spent changing the elements of each family since the last call.
    pub fn take_took(&mut self) -> PerFamily<Duration> {
        std::mem::take(&mut self.took)
    }

    /// Adds or deletes elements of one family. Returns the steps that failed.
    fn change(&mut self, grows: bool, family: Family, steps: &[Step<'_, ElementKey, ()>]) -> BTreeMap<usize, Fault> {
        let mut entries: BTreeMap<&SetName, Vec<(usize, Entry)>> = BTreeMap::new();
        let is_meant =
            |step: &Step<'_, ElementKey, ()>| step.key.entry.family() == family && step.want.is_some() == grows;
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| is_meant(step)) {
            entries.entry(&step.key.set).or_default().push((index, step.key.entry.clone()));
        }
        if entries.is_empty() {
            return BTreeMap::new();
        }
        let begun = Instant::now();
        let failed = if grows { self.ipset.add(&entries) } else { self.ipset.delete(&entries) };
        *self.took.of_mut(family) += begun.elapsed();
        failed
    }

    /// Returns the sets of ours that exist and of which no element is known: others may have added some.
    fn unseen(&mut self, seen: &impl Sorted<ElementKey, ()>) -> Result<Vec<SetName>, Error> {
        let mut known: Vec<&SetName> = seen.entries().map(|(key, ())| &key.set).collect();
        known.dedup();
        let is_unseen =
            |set: &SetName| self.ours.iter().any(|own| own.matches(&set.0)) && known.binary_search(&set).is_err();
        Ok(self.ipset.names()?.into_iter().filter(is_unseen).collect())
    }

    fn entries(&mut self, set: &SetName, asked: &[Entry]) -> Result<Vec<Entry>, Error> {
        let has_prefixes = asked.iter().any(|entry| matches!(entry, Entry::Net(_) | Entry::IpPortNet(_)));
        if has_prefixes || asked.len() > FEW {
            let asked: BTreeSet<&Entry> = asked.iter().collect();
            let mut entries = self.ipset.entries(set)?;
            entries.retain(|entry| asked.contains(entry));
            return Ok(entries);
        }
        let exist = self.ipset.test(set, asked)?;
        Ok(asked.iter().zip(exist).filter(|(_, exists)| *exists).map(|(entry, _)| entry.clone()).collect())
    }
}

impl Target for Elements {
    type Key = ElementKey;
    type Value = ();
    type Error = Error;

    fn name(&self) -> &'static str {
        "elements"
    }

    fn read(&mut self) -> Result<BTreeMap<ElementKey, ()>, Error> {
        let mut found = BTreeMap::new();
        let names = match self.ipset.names() {
            Err(error) if self.may_be_missing && error.is_unsupported() => return Ok(found),
            names => names?,
        };
        for set in names {
            if self.ours.iter().any(|own| own.matches(&set.0)) {
                let entries = self.ipset.entries(&set)?;
                found.extend(entries.into_iter().map(|entry| (ElementKey { set: set.clone(), entry }, ())));
            }
        }
        Ok(found)
    }

    fn read_some(&mut self, keys: &[ElementKey]) -> Result<BTreeMap<ElementKey, ()>, Error> {
        let mut asked: BTreeMap<&SetName, Vec<Entry>> = BTreeMap::new();
        for key in keys {
            asked.entry(&key.set).or_default().push(key.entry.clone());
        }
        let mut found = BTreeMap::new();
        for (set, asked) in asked {
            let entries = self.entries(set, &asked)?;
            found.extend(entries.into_iter().map(|entry| (ElementKey { set: set.clone(), entry }, ())));
        }
        Ok(found)
    }

    fn portion(&self) -> usize {
        PORTION
    }

    /// Compares the number of elements of each set, for which the kernel walks all of them.
    fn glance(&mut self, seen: &impl Sorted<ElementKey, ()>) -> Glance<ElementKey> {
        let mut counts: Vec<(&SetName, usize)> = Vec::new();
        for (key, ()) in seen.entries() {
            match counts.last_mut() {
                Some((set, count)) if **set == key.set => *count += key.entry.parts().count(),
                _ => counts.push((&key.set, key.entry.parts().count())),
            }
        }
        let differs = |(set, count): (&SetName, usize)| self.ipset.count(set).is_none_or(|held| held != count);
        if counts.into_iter().any(differs) {
            return Glance::Somewhere;
        }
        // Sets that cannot be listed are left to the audit, which reports that.
        let unseen = self.unseen(seen).unwrap_or_default();
        let is_filled = |set: &SetName| self.ipset.count(set).is_some_and(|held| held > 0);
        if unseen.iter().any(is_filled) { Glance::Somewhere } else { Glance::Alike }
    }

    /// Lists all elements.
    fn scan(&mut self, seen: &impl Sorted<ElementKey, ()>) -> Result<Glance<ElementKey>, Error> {
        let mut known = seen.entries().map(|(key, ())| key).peekable();
        let mut differing = Vec::new();
        while let Some(set) = known.peek().map(|key| key.set.clone()) {
            let mut listed = self.ipset.entries(&set)?.into_iter().peekable();
            while let Some(key) = known.next_if(|key| key.set == set) {
                while let Some(entry) = listed.next_if(|entry| *entry < key.entry) {
                    differing.push(ElementKey { set: set.clone(), entry });
                }
                if listed.next_if_eq(&key.entry).is_none() {
                    differing.push(key.clone());
                }
            }
            differing.extend(listed.map(|entry| ElementKey { set: set.clone(), entry }));
        }
        for set in self.unseen(seen)? {
            let listed = self.ipset.entries(&set)?;
            differing.extend(listed.into_iter().map(|entry| ElementKey { set: set.clone(), entry }));
        }
        Ok(if differing.is_empty() { Glance::Alike } else { Glance::These(differing) })
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, ElementKey, ()>]) -> Vec<Failure<Error>> {
        let parts = [true, false].into_iter().flat_map(|grows| Family::BOTH.map(|family| (grows, family)));
        let failed = parts.flat_map(|(grows, family)| self.change(grows, family, steps));
        failed
            .filter_map(|(step, fault)| {
                let Step { key, want, .. } = steps.get(step)?;
                let operation = if want.is_some() { "add element" } else { "delete element" };
                Some(Failure { step, error: error(operation, &key.to_string(), fault) })
            })
            .collect()
    }
}
