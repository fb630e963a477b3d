//! The firewall's kinds of kernel objects on Linux.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::{info, warn};

use crate::kernel::nftables::{self, InetTable, Object};
use crate::kernel::sysctl::Settings;
use crate::kernel::{Error, module};
use crate::reconcile::{Mirror, Moment, Reflection};

use super::super::{iptables, settings};
use super::apply::{Kernel, Refusing, Targets};
use super::names::TABLE;

/// Kernel of the network namespace in which it was opened.
pub struct Linux;

/// Opens all kinds in the network namespace of the calling thread.
///
/// # Errors
/// If the kernel refuses netlink sockets.
pub fn open() -> Result<Targets<Linux>, Error> {
    for error in module::load(&settings::MODULES) {
        warn!(%error, "Loading a kernel module failed");
    }
    open_for_cleanup()
}

/// Like [`open`], without loading anything.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup() -> Result<Targets<Linux>, Error> {
    Ok(Targets { kernel: Linux, settings: Settings::new([]), table: InetTable::open(TABLE)? })
}

impl Kernel for Linux {
    type Settings = Settings;
    type Table = InetTable;

    fn remove_abandoned(&mut self) -> Vec<String> {
        iptables::linux::remove_all()
    }
}

/// Removes the table where there is one; returns why it could not be removed.
pub fn remove() -> Option<String> {
    let table = match nftables::has_inet_table(TABLE) {
        Ok(false) => return None,
        Ok(true) => InetTable::open(TABLE),
        Err(error) => Err(error),
    };
    let table = match table {
        Ok(table) => table,
        Err(error) => return Some(error.to_string()),
    };
    info!(table = TABLE, "Removing the network policies' table of nf_tables");
    let mut mirror = Mirror::new(table);
    mirror.shrink(&BTreeMap::new(), Moment { now: Instant::now(), jitter: 0 });
    mirror.trouble().map(|trouble| trouble.error.clone())
}

impl Refusing for InetTable {
    fn take_refused(&mut self) -> BTreeMap<Object, String> {
        InetTable::take_refused(self).into_iter().map(|(object, error)| (object, error.to_string())).collect()
    }
}
