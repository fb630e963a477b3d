//! The frames that the source guard has dropped, for the metrics endpoint. The kernel is read only on request.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts};
use tracing::debug;

use super::table::{BY_PORT_REASON, REASONS, TABLE};
use crate::kernel::Error;
use crate::kernel::nftables::{CounterReader, Name};

/// Collector that reads the counters when metrics are requested. What a counter has counted before the table was made anew stays in
/// the sum.
pub struct DroppedFrames {
    sums: IntCounterVec,
    reading: Mutex<Reading>,
}

/// One of each table.
#[derive(Default)]
struct Reading {
    frames: Last,
    by_port: Last,
    arp: Last,
}

#[derive(Default)]
struct Last {
    reader: Option<CounterReader>,
    last: BTreeMap<Name, u64>,
}

impl DroppedFrames {
    /// Creates the collector for the network namespace of the threads that request metrics.
    ///
    /// # Errors
    /// If the metric's name or labels are invalid, which they are not.
    pub fn new() -> Result<DroppedFrames, prometheus::Error> {
        let name = "sluice_source_guard_dropped_frames_total";
        let help = "Frames dropped because they do not come from the addresses of the pod that sent them, by what is wrong in them";
        let sums = IntCounterVec::new(Opts::new(name, help), &["reason"])?;
        REASONS.iter().chain([&BY_PORT_REASON]).for_each(|(_, reason)| drop(sums.with_label_values(&[reason])));
        Ok(DroppedFrames { sums, reading: Mutex::new(Reading::default()) })
    }

    fn read(&self) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.frames.read(&self.sums, &REASONS, || CounterReader::open_bridge(TABLE));
        reading.by_port.read(&self.sums, &[BY_PORT_REASON], || CounterReader::open(TABLE));
        reading.arp.read(&self.sums, &[BY_PORT_REASON], || CounterReader::open_arp(TABLE));
    }
}

impl Last {
    fn read(
        &mut self,
        sums: &IntCounterVec,
        reasons: &[(&str, &str)],
        open: impl FnOnce() -> Result<CounterReader, Error>,
    ) {
        if self.reader.is_none() {
            self.reader = open().ok();
        }
        let Some(counted) = self.reader.as_mut().map(|reader| reader.counts("")) else { return };
        let counted = counted.unwrap_or_else(|error| {
            // Without a guarded port there is no table.
            debug!(%error, "Reading the counters of the source guard failed");
            BTreeMap::new()
        });
        for (counter, reason) in reasons {
            let name = Name::from(*counter);
            let now = counted.get(&name).map_or(0, |count| count.packets);
            let before = self.last.insert(name, now).filter(|before| *before <= now).unwrap_or_default();
            sums.with_label_values(&[*reason]).inc_by(now - before);
        }
    }
}

impl Collector for DroppedFrames {
    fn desc(&self) -> Vec<&Desc> {
        self.sums.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.sums.collect()
    }
}
