//! Rules of ours in tables that a host no longer uses.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Families, Ownership, Tables};
use crate::reconcile::{Mirror, Moment, Reflection};

/// Removes everything of ours from the tables of these programs; returns why something could not be removed.
pub fn remove(programs: Families, ownership: Ownership) -> Option<String> {
    let mut mirror = Mirror::new(Tables::new(programs, ownership));
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}
