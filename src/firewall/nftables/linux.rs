//! The firewall's kinds of kernel objects on Linux.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::{info, warn};

use crate::kernel::nftables::{InetTable, Object};
use crate::kernel::sysctl::Settings;
use crate::kernel::{Error, module};
use crate::model::Authority;
use crate::reconcile::Moment;

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
        let targets = match iptables::linux::open_for_cleanup() {
            Ok((targets, _)) => targets,
            Err(error) => return vec![error.to_string()],
        };
        let mut left = iptables::apply::Mirrors::new(targets);
        let nothing = iptables::desired::Desired::default();
        let at = Moment { now: Instant::now(), jitter: 0 };
        let removed = left.round(&nothing, Authority::Complete, at).steps;
        if removed > 0 {
            info!(removed, "Removed the rules and sets of the iptables backend");
        }
        left.remove_abandoned()
    }
}

impl Refusing for InetTable {
    fn take_refused(&mut self) -> BTreeMap<Object, String> {
        InetTable::take_refused(self).into_iter().map(|(object, error)| (object, error.to_string())).collect()
    }
}
