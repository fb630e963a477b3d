//! Operations common to all kinds of kernel objects.

use std::time::Instant;

use super::{Audited, Dirty, Drift, Inspected, Kept, Mirror, Room, Trouble};
use crate::reconcile::moment::Moment;
use crate::reconcile::target::Target;

/// A mirror of any kind.
pub trait Reflection {
    fn name(&self) -> &'static str;
    fn is_settled(&self) -> bool;
    fn trouble(&self) -> Option<&Trouble>;
    fn retry_at(&self) -> Option<Instant>;
    fn failures(&self) -> u32;
    fn steps_done(&self) -> u64;
    fn forget(&mut self);
    fn pack(&mut self);
    fn audit(&mut self, at: Moment) -> Audited;
    fn glance(&mut self, at: Moment) -> Vec<Drift>;
    fn compare_after_notice(&mut self, at: Moment) -> Vec<Drift>;
    fn scan(&mut self, at: Moment) -> Vec<Drift>;
    fn begin_inspection(&mut self);
    fn inspect(&mut self, room: Room) -> Inspected;
    fn retry_now(&mut self);
}

impl<T: Target, S: Kept<T::Key, T::Value>> Reflection for Mirror<T, S> {
    /// The kind's name.
    fn name(&self) -> &'static str {
        self.target.name()
    }

    /// Returns whether the kernel is known to hold what was desired in the last round.
    fn is_settled(&self) -> bool {
        let is_clean = matches!(&self.dirty, Dirty::Keys(keys) if keys.is_empty());
        is_clean && self.postponed.is_empty() && self.seen.is_some()
    }

    /// The present trouble; `None` while all is well.
    fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Returns when a failed step or a failed reading is due again. While nothing is known steps wait for the reading.
    fn retry_at(&self) -> Option<Instant> {
        self.reading.retry_at().or(self.backoff.retry_at())
    }

    /// Returns how many tries have failed in a row, of steps or of reading.
    fn failures(&self) -> u32 {
        self.backoff.failures().max(self.reading.failures())
    }

    /// Returns the number of steps since the start: a restart with everything in place performs none.
    fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// Records that somebody else changed the kernel: the next round reads everything again.
    fn forget(&mut self) {
        self.forgotten.extend(self.seen.take().into_iter().flat_map(S::into_keys));
        self.forgotten.extend(std::mem::take(&mut self.doubtful).into_keys());
        self.mark_all();
        self.audit_from = None;
    }

    /// Packs the last seen state, for which there is time when nothing is to be done.
    fn pack(&mut self) {
        self.seen.iter_mut().for_each(S::pack);
    }

    /// Compares the next portion of the last seen state with the kernel, and marks what somebody else changed as
    /// dirty. The last portion also looks for objects that are ours and unknown.
    fn audit(&mut self, at: Moment) -> Audited {
        match self.audit_next_portion() {
            Ok(audited) => audited,
            Err(error) => {
                self.unreadable(error.to_string(), at);
                Audited { drift: Vec::new(), finished: true }
            }
        }
    }

    /// Looks for traces of others' changes, reads what may have changed, and marks what did as dirty.
    fn glance(&mut self, at: Moment) -> Vec<Drift> {
        self.compare_what_a_glance_tells().unwrap_or_else(|error| {
            self.unreadable(error.to_string(), at);
            Vec::new()
        })
    }

    /// Finds what others changed just now: at a glance where that sees all, else by an audit of the next portion.
    fn compare_after_notice(&mut self, at: Moment) -> Vec<Drift> {
        if self.target.sees_all_at_a_glance() { self.glance(at) } else { self.audit(at).drift }
    }

    /// Makes the next portion of an inspection the first one.
    fn begin_inspection(&mut self) {
        self.inspected_to = None;
    }

    /// Compares the next portion of the last seen state with the kernel for a user, and changes nothing. The last portion also looks
    /// for objects that are ours and unknown. Of differences and objects as many are described as there is `room`.
    fn inspect(&mut self, room: Room) -> Inspected {
        self.inspect_next_portion(room).unwrap_or_else(|error| {
            self.inspected_to = None;
            Inspected { unreadable: Some(error.to_string()), finished: true, ..Inspected::default() }
        })
    }

    /// Makes failed steps and failed readings due now.
    fn retry_now(&mut self) {
        self.try_at_once();
    }

    /// Looks for every change by others, reads what may have changed, and marks what did as dirty.
    fn scan(&mut self, at: Moment) -> Vec<Drift> {
        self.compare_what_a_scan_tells().unwrap_or_else(|error| {
            self.unreadable(error.to_string(), at);
            Vec::new()
        })
    }
}
