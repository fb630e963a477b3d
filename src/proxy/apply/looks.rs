//! Looking for drift of virtual services, one family at a time and portion by portion: at intervals, or, where the kernel counts the commands that
//! others give to IPVS, after these.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Instant;

use crate::kernel::ipvs::{Counted, Observed, ServiceKey, Virtual};
use crate::net::{Family, PerFamily};
use crate::packed::BlockMap;
use crate::reconcile::{Found, Moment, Reflection, Target, glance};
use crate::subsystem::{Kinds, LookedAt};

use super::super::desired::Desired;
use super::{Connected, Kernel, Mirrors};

impl<K: Kernel> Mirrors<K> {
    /// Looks for signs of changes by other programs; `virtuals_rest`: not of virtual services.
    pub fn glance(&mut self, desired: &Desired, virtuals_rest: bool, at: Moment) -> Vec<Found> {
        self.tell_new_ownership(desired);
        let rests = virtuals_rest.then(|| self.virtuals.name());
        let kinds = self.kinds().into_iter().filter(|kind| Some(kind.mirror.name()) != rests);
        kinds.flat_map(|kind| glance(kind.mirror, at)).collect()
    }

    /// Returns whether others have given commands to virtual services since the last call.
    pub fn others_commands(&mut self, now: Instant) -> Counted {
        self.virtuals.target().others_commands(now)
    }

    /// Compares all virtual services of both families with the kernel, portion by portion, from the beginning where `begins`.
    pub fn look_at_all_virtuals(&mut self, desired: &Desired, begins: bool, at: Moment) -> LookedAt {
        if begins {
            self.tell_new_ownership(desired);
            self.looks = PerFamily::default();
            self.looks_at_ipv6 = false;
            self.virtuals.target().look_anew();
            let found = glance(&mut self.virtuals, at);
            return LookedAt { found, finished: false, missed: self.virtuals.target().has_missed() };
        }
        let family = if self.looks_at_ipv6 { Family::V6 } else { Family::V4 };
        let (found, finished) = self.look_at_virtuals(desired, family, at);
        self.looks_at_ipv6 |= finished;
        LookedAt { found, finished: finished && family == Family::V6, missed: false }
    }

    /// Compares the next virtual services of one family with the kernel. Returns the drift found, and whether they were the
    /// last.
    pub fn look_at_virtuals(&mut self, desired: &Desired, family: Family, at: Moment) -> (Vec<Found>, bool) {
        self.tell_new_ownership(desired);
        let course = self.looks.of_mut(family);
        // The older interface costs a tenth of netlink, and both portions little enough to hold up no change.
        let (range, mut portion) = match family {
            Family::V4 => ((Bound::Unbounded, Bound::Excluded(ServiceKey::first_of_ipv6())), 128),
            Family::V6 => ((Bound::Included(ServiceKey::first_of_ipv6()), Bound::Unbounded), 64),
        };
        let has_ipv6 = || self.virtuals.seen().is_some_and(|seen| seen.range(range).next().is_some());
        if family == Family::V6 && has_ipv6() {
            match self.virtuals.target().list_some() {
                Some(false) => return (Vec::new(), false),
                Some(true) => portion = usize::MAX,
                None => {}
            }
        }
        course.portion = portion;
        let audited = self.virtuals.compare_some(range, course, at);
        let kind = self.virtuals.name();
        (audited.drift.into_iter().map(|drift| Found { kind, drift }).collect(), audited.finished)
    }

    /// Says which virtual services are ours, for one that reads them.
    pub fn prepare_to_read(&mut self, desired: &Desired) {
        self.tell_new_ownership(desired);
    }

    /// Returns the virtual services as last seen; `None` while they cannot be read.
    pub fn seen_virtuals(&self) -> Option<&BlockMap<ServiceKey, Virtual>> {
        self.virtuals.seen()
    }

    /// Returns the virtual services whose last change or read failed: the kernel may hold anything there.
    pub fn doubtful_virtuals(&self) -> BTreeSet<ServiceKey> {
        self.virtuals.doubts().copied().collect()
    }

    /// Reads a virtual service with its counters, for a user. Nothing follows from it.
    ///
    /// # Errors
    /// The kernel did not describe it.
    pub fn observe(&mut self, key: &ServiceKey) -> Result<Option<Observed>, <K::Virtuals as Target>::Error> {
        self.virtuals.target().observe(key)
    }
}
