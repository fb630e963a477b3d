//! The firewall's kinds of kernel objects on Linux.

use std::collections::BTreeMap;

use tracing::warn;

use crate::kernel::iptables::abandoned::Removal;
use crate::kernel::nftables::dropping_chains::ChainsOfOthers;
use crate::kernel::nftables::{self, Object, OwnTable, TableFamily};
use crate::kernel::sysctl::Settings;
use crate::kernel::{Error, module};

use super::super::frames::linux::FrameTables;
use super::super::frames::{self, FrameTable};
use super::super::{iptables, settings};
use super::apply::{Kernel, Refusing, Targets};
use super::names::TABLE;

/// Kernel of the network namespace in which it was opened.
pub struct Linux {
    others: ChainsOfOthers,
    removal: Removal,
}

/// Opens all kinds in the network namespace of the calling thread.
///
/// # Errors
/// If the kernel refuses netlink sockets.
pub fn open() -> Result<Targets<Linux>, Error> {
    for error in module::load(&settings::MODULES) {
        warn!(%error, "Loading a kernel module failed");
    }
    let frames = frames::linux::open()?;
    Ok(targets(OwnTable::open(TABLE)?, frames))
}

/// Like [`open`], without loading anything.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup() -> Result<Targets<Linux>, Error> {
    Ok(targets(OwnTable::open(TABLE)?, frames::linux::open_for_cleanup()?))
}

fn targets(table: OwnTable, FrameTables { tags, groups }: FrameTables) -> Targets<Linux> {
    let kernel = Linux { others: ChainsOfOthers::default(), removal: iptables::linux::removal() };
    Targets { kernel, settings: Settings::new([]), frames: tags, groups, table }
}

impl Kernel for Linux {
    type Settings = Settings;
    type Frames = FrameTable;
    type Table = OwnTable;

    fn dropping_chains(&mut self) -> Vec<String> {
        self.others.notes(|_| true)
    }

    fn has_abandoned(&mut self) -> bool {
        self.removal.finds_any()
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.removal.step()
    }
}

/// Removes the table where there is one; returns why it could not be removed.
pub fn remove() -> Option<String> {
    nftables::abandoned::remove(TableFamily::Inet, TABLE)
}

impl Refusing for OwnTable {
    fn take_refused(&mut self) -> BTreeMap<Object, String> {
        OwnTable::take_refused(self).into_iter().map(|(object, error)| (object, error.to_string())).collect()
    }
}
