//! Tables of ours that a run with another packet filter left.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::info;

use super::{OwnTable, TableFamily};
use crate::kernel::RULES;
use crate::reconcile::{Mirror, Moment, Reflection};

/// Removes the table of this family and name where there is one; returns why it could not be removed.
pub fn remove(family: TableFamily, name: &'static str) -> Option<String> {
    let table = match OwnTable::open_existing(family, name, RULES) {
        Ok(table) => table?,
        Err(error) => return Some(error.to_string()),
    };
    info!(table = name, "Removing a table of nf_tables that an earlier run left");
    let mut mirror = Mirror::new(table);
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}
