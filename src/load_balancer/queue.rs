//! Writes that are due, in two lanes. Without I/O.
//!
//! The right to write statuses may be missing for all Services, or for those of one namespace (a role, a policy of admission). So a
//! namespace in which a write was forbidden gets into the slow lane, which has one write a second (`pace.rs`), and holds up nobody else. A
//! write there that is taken says that rights have changed: then everybody is tried again.

use std::collections::BTreeSet;
use std::time::Instant;

use compact_str::CompactString;

use super::allocator::Rank;

/// Services to be written, each with the time when it is due.
#[derive(Debug, Default)]
pub struct Queue {
    fast: BTreeSet<(Instant, Rank)>,
    /// Of namespaces in which the last write was forbidden.
    slow: BTreeSet<(Instant, Rank)>,
    forbidden: BTreeSet<CompactString>,
}

/// One of the two lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    Fast,
    Slow,
}

impl Queue {
    pub fn insert(&mut self, at: Instant, rank: Rank) {
        let is_slow = self.forbidden.contains(rank.1.namespace.as_str());
        let lane = if is_slow { &mut self.slow } else { &mut self.fast };
        lane.insert((at, rank));
    }

    pub fn remove(&mut self, at: Instant, rank: Rank) {
        let entry = (at, rank);
        // Its namespace may have changed lanes since.
        if !self.fast.remove(&entry) {
            self.slow.remove(&entry);
        }
    }

    /// Takes out the first one of a lane that is due.
    pub fn pop(&mut self, lane: Lane, now: Instant) -> Option<Rank> {
        match lane {
            Lane::Slow => pop_due(&mut self.slow, now).map(|(_, rank)| rank),
            Lane::Fast => loop {
                let (at, rank) = pop_due(&mut self.fast, now)?;
                if !self.forbidden.contains(rank.1.namespace.as_str()) {
                    return Some(rank);
                }
                self.slow.insert((at, rank));
            },
        }
    }

    /// The next time at which something in a lane is due.
    pub fn first(&self, lane: Lane) -> Option<Instant> {
        let lane = match lane {
            Lane::Fast => &self.fast,
            Lane::Slow => &self.slow,
        };
        lane.first().map(|(at, _)| *at)
    }

    /// Records that a write in a namespace was forbidden.
    pub fn forbid(&mut self, namespace: &str) {
        if !self.forbidden.contains(namespace) {
            self.forbidden.insert(namespace.into());
        }
    }

    /// Records that a write in a namespace was taken.
    pub fn allow(&mut self, namespace: &str) {
        if self.forbidden.remove(namespace) {
            self.fast.append(&mut self.slow);
            self.forbidden.clear();
        }
    }
}

fn pop_due(lane: &mut BTreeSet<(Instant, Rank)>, now: Instant) -> Option<(Instant, Rank)> {
    if lane.first()?.0 > now { None } else { lane.pop_first() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn rank(namespace: &str, name: &str) -> Rank {
        (0, ObjectName::new(namespace, name))
    }

    #[test]
    fn a_namespace_whose_writes_are_forbidden_holds_up_no_other_and_a_write_that_is_taken_frees_all() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (namespace, name) in [("bank", "a"), ("bank", "b"), ("shop", "a"), ("zoo", "a")] {
            queue.insert(now, rank(namespace, name));
        }
        assert_eq!(queue.pop(Lane::Fast, now), Some(rank("bank", "a")));
        queue.forbid("bank");
        queue.insert(now, rank("bank", "a"));
        assert_eq!(queue.pop(Lane::Fast, now), Some(rank("shop", "a")), "past the others of bank");
        queue.forbid("zoo");
        assert_eq!(queue.pop(Lane::Fast, now), None);
        assert_eq!((queue.first(Lane::Fast), queue.first(Lane::Slow)), (None, Some(now)));
        queue.remove(now, rank("bank", "b"));
        assert_eq!(queue.pop(Lane::Slow, now), Some(rank("bank", "a")));
        queue.allow("shop");
        assert_eq!(queue.pop(Lane::Fast, now), None, "it was never forbidden there");
        queue.allow("bank");
        assert_eq!(queue.pop(Lane::Fast, now), Some(rank("zoo", "a")));
    }
}
