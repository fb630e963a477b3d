//! What all families have in common, whatever their objects are.

use std::time::Instant;

use super::{Audited, Dirty, Drift, Mirror, Trouble};
use crate::reconcile::moment::Moment;
use crate::reconcile::target::Target;

/// What can be asked of any mirror, whatever its family.
pub trait Reflection {
    fn name(&self) -> &'static str;
    fn is_settled(&self) -> bool;
    fn trouble(&self) -> Option<&Trouble>;
    fn retry_at(&self) -> Option<Instant>;
    fn steps_done(&self) -> u64;
    fn forget(&mut self);
    fn audit(&mut self, at: Moment) -> Audited;
    fn glance(&mut self, at: Moment) -> Vec<Drift>;
}

impl<T: Target> Reflection for Mirror<T> {
    /// The family's name.
    fn name(&self) -> &'static str {
        self.target.name()
    }

    /// True when the kernel is known to hold what was wanted in the last round.
    fn is_settled(&self) -> bool {
        matches!(&self.dirty, Dirty::Keys(keys) if keys.is_empty()) && self.seen.is_some()
    }

    /// What currently fails; `None` while all is well.
    fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// When a failed step is due again.
    fn retry_at(&self) -> Option<Instant> {
        self.backoff.retry_at()
    }

    /// How many steps were performed since the start: a restart with everything in place performs none.
    fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// Says that the kernel was changed by somebody else: the next round reads everything again.
    fn forget(&mut self) {
        self.seen = None;
        self.dirty = Dirty::All;
        self.doubtful.clear();
        self.audit_from = None;
    }

    /// Compares the next portion of what was last seen with the kernel, and makes dirty what was changed by
    /// somebody else. The last portion also looks for objects that are ours and unknown.
    fn audit(&mut self, at: Moment) -> Audited {
        match self.audit_next_portion() {
            Ok(audited) => audited,
            Err(error) => {
                self.unreadable(error.to_string(), at);
                Audited { drift: Vec::new(), finished: true }
            }
        }
    }

    /// Looks for traces of others' changes, reads what may have changed, and makes dirty what did.
    fn glance(&mut self, at: Moment) -> Vec<Drift> {
        self.compare_what_a_glance_tells().unwrap_or_else(|error| {
            self.unreadable(error.to_string(), at);
            Vec::new()
        })
    }
}
