//! The tables of frames in the kernel, and what they have dropped.

use rustix::io::Errno;
use tracing::warn;

use crate::kernel::nftables::abandoned;
use crate::kernel::nftables::{CounterReader, Name, OwnTable, TableFamily, probe_bridge, probe_inet};
use crate::kernel::{Cause, Error};
use crate::reconcile::Optional;

use super::{
    BRIDGE_GROUP, Contents, FrameTable, GROUPS_NAME, GROUPS_PASS, NAME, REASONS, TABLE, TAGS_PASS, TWO_TAGS, frames,
};

/// The tables, each of its family.
pub struct FrameTables {
    /// Of the family `bridge`.
    pub tags: FrameTable,
    /// Of the family `inet`.
    pub groups: FrameTable,
}

/// Opens the tables in the network namespace of the calling thread.
///
/// # Errors
/// If the kernel refuses netlink sockets, or does not say whether it has such tables.
pub fn open() -> Result<FrameTables, Error> {
    let trial = frames(&["kube-bridge".into()]);
    let tags = match usable(probe_bridge, &trial.tags)? {
        None => Optional::used(OwnTable::open_bridge(TABLE, NAME)?),
        Some(error) => {
            warn!(%error, "Not available in this kernel: {TAGS_PASS}");
            Optional::unused(NAME)
        }
    };
    let groups = match usable(probe_inet, &trial.groups)? {
        None => Optional::used(OwnTable::open_as(TABLE, GROUPS_NAME)?),
        Some(error) => {
            warn!(%error, "Not available in this kernel: {GROUPS_PASS}");
            Optional::unused(GROUPS_NAME)
        }
    };
    Ok(FrameTables { tags, groups })
}

/// Tries these contents. Returns why the kernel can have no such table, if it can not.
fn usable(probe: impl FnOnce(&Contents) -> Result<(), Error>, contents: &Contents) -> Result<Option<Error>, Error> {
    match probe(contents) {
        Ok(()) => Ok(None),
        Err(error) if is_missing(&error) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// Returns whether the kernel has no such tables, or not all that they need; any other refusal says nothing of that.
fn is_missing(error: &Error) -> bool {
    error.is_unsupported() || matches!(error.cause, Cause::Errno(Errno::NOENT | Errno::INVAL, _))
}

/// Opens the tables that are there.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup() -> Result<FrameTables, Error> {
    let open = |family, kind| {
        let table = OwnTable::open_existing(family, TABLE, kind)?;
        Ok::<_, Error>(table.map_or_else(|| Optional::unused(kind), Optional::used))
    };
    let (tags, groups) = (open(TableFamily::Bridge, NAME)?, open(TableFamily::Inet, GROUPS_NAME)?);
    Ok(FrameTables { tags, groups })
}

/// Removes the tables that are there; returns why one could not be removed.
pub fn remove() -> Option<String> {
    let [tags, groups] = [TableFamily::Bridge, TableFamily::Inet].map(|family| abandoned::remove(family, TABLE));
    tags.or(groups)
}

/// Reads how many packets were dropped. What was counted before a table was made anew stays in the sum.
#[derive(Default)]
pub struct DroppedFrames {
    tags: Dropped,
    groups: Dropped,
}

/// The count of one counter.
#[derive(Default)]
struct Dropped {
    reader: Option<CounterReader>,
    last: u64,
    sum: u64,
}

impl DroppedFrames {
    /// Returns the number of packets dropped since the start, as far as the kernel tells, by the reason.
    pub fn counts(&mut self) -> [(&'static str, u64); 2] {
        let [vlan_tags, bridge_group] = REASONS;
        let tags = self.tags.count(|| CounterReader::open_bridge(TABLE), TWO_TAGS);
        let groups = self.groups.count(|| CounterReader::open(TABLE), BRIDGE_GROUP);
        [(vlan_tags, tags), (bridge_group, groups)]
    }
}

impl Dropped {
    fn count(&mut self, open: impl FnOnce() -> Result<CounterReader, Error>, counter: &str) -> u64 {
        if self.reader.is_none() {
            self.reader = open().ok();
        }
        // What cannot be read now is counted with what comes.
        let Some(Ok(counted)) = self.reader.as_mut().map(|reader| reader.counts(counter)) else { return self.sum };
        let now = counted.get(&Name::from(counter)).map_or(0, |count| count.packets);
        self.sum += if now >= self.last { now - self.last } else { now };
        self.last = now;
        self.sum
    }
}
