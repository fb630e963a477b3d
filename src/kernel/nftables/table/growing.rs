//! Steps as transactions; where objects only grow, without the elements that the kernel refuses: one bad entry keeps no other out.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::kernel::{Cause, Error};
use crate::reconcile::{Failure, Step};

use super::super::object::{Content, Name, Object};
use super::super::plan::Plan;
use super::{OwnTable, Undone};

/// Elements of one set come in one message, so which of them are refused is found out by the second try, and the third is without them. Where sets are filled
/// in transactions before the rest, each of these may need as many.
const TRIES: usize = 12;

impl OwnTable {
    /// Performs steps that create and change. Those whose elements are refused fail alone.
    pub(super) fn grow(&mut self, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<Error>> {
        let mut refused = Vec::new();
        let mut left: Vec<usize> = (0..steps.len()).collect();
        for again in (0..TRIES).rev() {
            let named = self.one_by_one.len();
            let those = left.iter().filter_map(|place| steps.get(*place));
            let those = those.map(|one| Step { key: one.key, have: one.have, want: one.want });
            let those: Vec<Step<'_, Object, Content>> = those.collect();
            let of_all = |failure: Failure<Error>| Some(Failure { step: *left.get(failure.step)?, ..failure });
            let failed: Vec<Failure<Error>> = self.transact(&those).into_iter().filter_map(of_all).collect();
            let is_element =
                |object: &Object| matches!(object, Object::Element(..)) && self.refused.contains_key(object);
            let is_refused =
                |failure: &Failure<Error>| steps.get(failure.step).is_some_and(|step| is_element(step.key));
            let (alone, others): (Vec<_>, Vec<_>) = failed.into_iter().partition(is_refused);
            let may_be_found = !alone.is_empty() || self.one_by_one.len() > named;
            refused.extend(alone);
            if others.is_empty() || again == 0 || !may_be_found {
                refused.extend(others);
                break;
            }
            left = others.into_iter().map(|failure| failure.step).collect();
        }
        refused
    }

    /// Blames the largest of the sets that were to be filled before the rest, where the kernel lacks memory for that: it blames nobody itself, and the
    /// set would keep out all that comes behind it, each time anew.
    pub(super) fn blame_largest(&mut self, filling: &Plan<'_>, sizes: &BTreeMap<&Name, usize>, error: &Error) {
        if matches!(error.cause, Cause::Errno(Errno::NOMEM | Errno::NOBUFS, _))
            && let Some(set) = filling.largest_set(sizes)
        {
            self.refused.insert(Object::Set(set.clone()), error.clone());
        }
    }

    /// Performs steps. All that change something for packets are one transaction, so all of them fail together. What came before it is done
    /// then, and what has failed behind it leaves it done.
    pub(super) fn transact(&mut self, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<Error>> {
        self.refused.clear();
        let result = self.perform(steps);
        self.may_rename = result.is_ok();
        let Err(Undone { steps: undone, error }) = result else {
            self.one_by_one.clear();
            return Vec::new();
        };
        let undone = undone.unwrap_or_else(|| (0..steps.len()).collect());
        let failure = |step: usize| {
            let own = steps.get(step).and_then(|one| self.refused.get(one.key)).unwrap_or(&error);
            Failure { step, error: own.clone() }
        };
        undone.into_iter().map(failure).collect()
    }
}
