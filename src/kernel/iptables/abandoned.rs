//! Rules of ours in tables that a host no longer uses.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Families, Ownership, Tables, detect};
use crate::reconcile::{Mirror, Moment, Reflection};

/// Removes everything of ours from the tables of these programs; returns why something could not be removed.
pub fn remove(programs: Families, ownership: Ownership) -> Option<String> {
    let mut mirror = Mirror::new(Tables::new(programs, ownership));
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}

/// Removes everything of ours from the tables of both variants; returns why something could not be removed. Without programs
/// of iptables nothing can be removed, and nothing is there.
pub fn remove_all(ownership: &Ownership) -> Vec<String> {
    let detected = detect(ownership);
    let both = [detected.programs, detected.abandoned];
    both.into_iter().filter_map(|programs| remove(programs, ownership.clone())).collect()
}
