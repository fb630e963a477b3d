//! Tables of ours that a run with another packet filter left.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::info;

use super::{OwnTable, has_inet_table};
use crate::reconcile::{Mirror, Moment, Reflection};

/// Removes the table of this name where there is one; returns why it could not be removed.
pub fn remove(name: &'static str) -> Option<String> {
    let table = match has_inet_table(name) {
        Ok(false) => return None,
        Ok(true) => OwnTable::open(name),
        Err(error) => Err(error),
    };
    let table = match table {
        Ok(table) => table,
        Err(error) => return Some(error.to_string()),
    };
    info!(table = name, "Removing a table of nf_tables that an earlier run left");
    let mut mirror = Mirror::new(table);
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}
