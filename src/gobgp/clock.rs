//! Timestamps for clients: wall-clock time, while the speaker counts by a monotonic clock.

use std::time::{Duration, Instant};

use super::wire::messages::Timestamp;

/// One moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub now: Instant,
    pub since_1970: Duration,
}

impl Clock {
    /// Timestamp of a past moment.
    pub fn at(&self, past: Instant) -> Timestamp {
        self.ago(self.now.saturating_duration_since(past))
    }

    /// Timestamp of a moment `age` ago.
    pub fn ago(&self, age: Duration) -> Timestamp {
        let time = self.since_1970.saturating_sub(age);
        Timestamp {
            seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default(),
        }
    }
}
