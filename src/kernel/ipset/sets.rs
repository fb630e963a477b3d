//! Sets as a kind of kernel objects.

use std::collections::BTreeMap;

use super::acts::Ipset;
use super::fault::{TYPE_MISMATCH, error};
use super::{SetName, SetSpec};
use crate::kernel::{Cause, Error, Name};
use crate::reconcile::{Failure, Phase, Step, Target};

/// The sets of one owner, without their elements.
///
/// A set whose properties change is replaced at once for every packet: a second set gets its elements and
/// then its name. Where the types differ too much for that, the set is deleted and created again, which the kernel
/// refuses while a rule names it.
#[derive(Debug)]
pub struct Sets {
    ipset: Ipset,
    ours: Vec<Name>,
    temporary: SetName,
    emptied: Vec<SetName>,
    may_be_missing: bool,
}

impl Sets {
    /// Opens a socket in the network namespace of the calling thread. `temporary` is the name of the second set
    /// during a replacement; no other owner may use it. A crash may leave it behind: it reads as ours and is
    /// never desired.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(ours: Vec<Name>, temporary: SetName) -> Result<Sets, Error> {
        Ok(Sets { ipset: Ipset::open()?, ours, temporary, emptied: Vec::new(), may_be_missing: false })
    }

    /// For cleanup: a kernel without ipset holds no sets, which is no error.
    pub fn accept_missing_ipset(&mut self) {
        self.may_be_missing = true;
    }

    /// Returns the sets that lost their elements since the last call because their type was wrong.
    /// The last seen state of their elements has to be dropped.
    pub fn take_emptied(&mut self) -> Vec<SetName> {
        std::mem::take(&mut self.emptied)
    }

    /// Performs one step: creates, replaces or deletes a set.
    fn perform(&mut self, step: &Step<'_, SetName, SetSpec>) -> Result<(), Error> {
        match (step.have, step.want) {
            (_, None) => self.ipset.destroy(step.key),
            (None, Some(want)) => self.ipset.create(step.key, *want),
            (Some(have), Some(want)) => {
                self.ipset.destroy(&self.temporary)?;
                self.ipset.create(&self.temporary, *want)?;
                let replaced = self.replace(step.key, *have, *want);
                // After the swap it is the old set, otherwise the new one that is not needed.
                replaced.and(self.ipset.destroy(&self.temporary))
            }
        }
    }

    fn replace(&mut self, name: &SetName, have: SetSpec, want: SetSpec) -> Result<(), Error> {
        let is_alike = have.kind == want.kind && have.family == want.family;
        if is_alike {
            self.copy(name)?;
        }
        match self.ipset.swap(name, &self.temporary) {
            Err(Error { cause: Cause::Ipset(TYPE_MISMATCH, _), .. }) => {
                self.ipset.destroy(name)?;
                self.ipset.create(name, want)?;
            }
            result => result?,
        }
        if !is_alike {
            self.emptied.push(name.clone());
        }
        Ok(())
    }

    /// Copies the elements of a set into the temporary one.
    fn copy(&mut self, name: &SetName) -> Result<(), Error> {
        let elements = self.ipset.entries(name)?.into_iter().map(|entry| (0, entry)).collect();
        let failed = self.ipset.add(&BTreeMap::from([(&self.temporary, elements)]));
        match failed.into_values().next() {
            Some(fault) => Err(error("copy the elements of set", &name.0, fault)),
            None => Ok(()),
        }
    }
}

impl Target for Sets {
    type Key = SetName;
    type Value = SetSpec;
    type Error = Error;

    fn name(&self) -> &'static str {
        "sets"
    }

    fn read(&mut self) -> Result<BTreeMap<SetName, SetSpec>, Error> {
        let (ours, temporary) = (&self.ours, &self.temporary);
        match self.ipset.specs(|name| name == temporary || ours.iter().any(|own| own.matches(&name.0))) {
            Err(error) if self.may_be_missing && error.is_unsupported() => Ok(BTreeMap::new()),
            specs => specs,
        }
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, SetName, SetSpec>]) -> Vec<Failure<Error>> {
        let perform = |(index, step)| Some(Failure { step: index, error: self.perform(step).err()? });
        steps.iter().enumerate().filter_map(perform).collect()
    }

    /// A set becomes larger at once, and smaller when its surplus elements are gone.
    fn grown(have: &SetSpec, want: &SetSpec) -> SetSpec {
        SetSpec { max_elements: have.max_elements.max(want.max_elements), ..*want }
    }
}
