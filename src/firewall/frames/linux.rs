//! The table of frames in the kernel, and what it has dropped.

use rustix::io::Errno;
use tracing::warn;

use crate::kernel::nftables::{CounterReader, Name, OwnTable, has_bridge_table, probe_bridge};
use crate::kernel::{Cause, Error};
use crate::reconcile::Optional;

use super::{FrameTable, NAME, TABLE, TWO_TAGS, frames};

/// Opens the table in the network namespace of the calling thread.
///
/// # Errors
/// If the kernel refuses netlink sockets, or does not say whether it has such tables.
pub fn open() -> Result<FrameTable, Error> {
    let error = match probe_bridge(&frames(&["kube-bridge".into()])) {
        Ok(()) => return Ok(Optional::used(OwnTable::open_bridge(TABLE, NAME)?)),
        Err(error) => error,
    };
    if is_missing(&error) {
        warn!(%error, "Frames with two VLAN tags pass between pods without network policies: the kernel has no nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE, module nft_meta_bridge)");
        return Ok(Optional::unused(NAME));
    }
    Err(error)
}

/// Returns whether the kernel has no such tables, or not all that they need; any other refusal says nothing of that.
fn is_missing(error: &Error) -> bool {
    error.is_unsupported() || matches!(error.cause, Cause::Errno(Errno::NOENT | Errno::INVAL, _))
}

/// Opens the table where there is one.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup() -> Result<FrameTable, Error> {
    if !has_bridge_table(TABLE)? {
        return Ok(Optional::unused(NAME));
    }
    Ok(Optional::used(OwnTable::open_bridge(TABLE, NAME)?))
}

/// Reads how many packets were dropped. What was counted before the table was made anew stays in the sum.
#[derive(Default)]
pub struct DroppedFrames {
    reader: Option<CounterReader>,
    last: u64,
    sum: u64,
}

impl DroppedFrames {
    /// Returns the number of packets dropped since the start, as far as the kernel tells.
    pub fn count(&mut self) -> u64 {
        if self.reader.is_none() {
            self.reader = CounterReader::open_bridge(TABLE).ok();
        }
        // What cannot be read now is counted with what comes.
        let Some(Ok(counted)) = self.reader.as_mut().map(|reader| reader.counts(TWO_TAGS)) else { return self.sum };
        let now = counted.get(&Name::from(TWO_TAGS)).map_or(0, |count| count.packets);
        self.sum += if now >= self.last { now - self.last } else { now };
        self.last = now;
        self.sum
    }
}
