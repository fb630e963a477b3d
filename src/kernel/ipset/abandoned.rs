//! Sets of ours that nobody uses any more.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{SetName, Sets};
use crate::kernel::Name;
use crate::reconcile::{Mirror, Moment, Reflection, Target};

/// Removes these sets with their elements; returns why one could not be removed. Rules that name them must have gone. A
/// kernel without ipset has none.
pub fn remove(names: Vec<Name>, temporary: SetName) -> Option<String> {
    let mut sets = match Sets::open(names, temporary) {
        Ok(sets) => sets,
        Err(error) => return Some(error.to_string()),
    };
    if sets.read().is_err_and(|error| error.is_unsupported()) {
        return None;
    }
    let mut mirror = Mirror::new(sets);
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}
