//! Audits of several kinds, one portion at a time, so that none of them holds up a change for long.

use super::mirror::{Drift, Reflection};
use super::moment::Moment;

/// A finding of an audit, and the name of the kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub kind: &'static str,
    pub drift: Drift,
}

/// Progress of a subsystem's audit: the index of the kind whose turn it is.
#[derive(Clone, Copy, Default, Debug)]
pub struct Audits(usize);

impl Audits {
    /// Audits the next portion. Returns the findings, and whether the audit of all kinds is finished.
    /// The kinds must be the same each time, in the same order.
    pub fn next_portion(&mut self, kinds: &mut [&mut dyn Reflection], at: Moment) -> (Vec<Found>, bool) {
        let count = kinds.len();
        let Some(kind) = kinds.get_mut(self.0) else { return (Vec::new(), true) };
        let (found, finished) = audit(*kind, at);
        if finished {
            self.0 = (self.0 + 1) % count;
        }
        (found, finished && self.0 == 0)
    }
}

/// Looks for traces of changes in one kind, and reads what may have changed.
pub fn glance(kind: &mut dyn Reflection, at: Moment) -> Vec<Found> {
    let name = kind.name();
    kind.glance(at).into_iter().map(|drift| Found { kind: name, drift }).collect()
}

/// Finds what others changed in one kind just now, as a notice says.
pub fn compare_after_notice(kind: &mut dyn Reflection, at: Moment) -> Vec<Found> {
    let name = kind.name();
    kind.compare_after_notice(at).into_iter().map(|drift| Found { kind: name, drift }).collect()
}

/// Looks for every change in one kind, and reads what may have changed.
pub fn scan(kind: &mut dyn Reflection, at: Moment) -> Vec<Found> {
    let name = kind.name();
    kind.scan(at).into_iter().map(|drift| Found { kind: name, drift }).collect()
}

/// Audits the next portion of one kind; also returns whether that was the last.
pub fn audit(kind: &mut dyn Reflection, at: Moment) -> (Vec<Found>, bool) {
    let name = kind.name();
    let audited = kind.audit(at);
    (audited.drift.into_iter().map(|drift| Found { kind: name, drift }).collect(), audited.finished)
}
