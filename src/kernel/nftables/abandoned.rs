//! Tables of ours that a run with another packet filter left.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::info;

use super::foreign::has_table;
use super::wire::ARP;
use super::{OwnTable, has_bridge_table, has_inet_table};
use crate::kernel::Error;
use crate::reconcile::{Mirror, Moment, Reflection};

/// Removes the table of this name where there is one; returns why it could not be removed.
pub fn remove(name: &'static str) -> Option<String> {
    remove_if(has_inet_table(name), name, || OwnTable::open(name))
}

/// The same for the table of the family `bridge` with this name, which is of this kind of kernel objects.
pub fn remove_bridge(name: &'static str, kind: &'static str) -> Option<String> {
    remove_if(has_bridge_table(name), name, || OwnTable::open_bridge(name, kind))
}

/// The same for the table of the family `arp`.
pub fn remove_arp(name: &'static str, kind: &'static str) -> Option<String> {
    remove_if(has_table(ARP, name), name, || OwnTable::open_arp(name, kind))
}

fn remove_if(
    is_there: Result<bool, Error>,
    name: &str,
    open: impl FnOnce() -> Result<OwnTable, Error>,
) -> Option<String> {
    let table = match is_there {
        Ok(false) => return None,
        Ok(true) => open(),
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
