//! The age of the oldest event that a consumer of the World has not processed yet.
//!
//! This is what programming latency is measured from: an event is seen on a socket, several of them become
//! one World, several Worlds may pass while a consumer is busy, and the first of them all counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The earliest event not processed yet, for one consumer.
///
/// `world` notes events while it holds the channel's write lock; a consumer takes the time while it still
/// borrows the World that it copies. So what is taken always belongs to the World that was copied.
#[derive(Debug)]
pub struct EventClock {
    origin: Instant,
    /// Nanoseconds after `origin`; `NOTHING` while everything is processed.
    earliest: AtomicU64,
}

const NOTHING: u64 = u64::MAX;

impl EventClock {
    /// A clock without an event. Events before `origin` count as seen at `origin`.
    pub fn new(origin: Instant) -> EventClock {
        EventClock { origin, earliest: AtomicU64::new(NOTHING) }
    }

    /// Records that an event seen at this time is part of the World from now on.
    pub fn note(&self, seen: Instant) {
        let nanoseconds = u64::try_from(seen.saturating_duration_since(self.origin).as_nanos()).unwrap_or(NOTHING - 1);
        self.earliest.fetch_min(nanoseconds, Ordering::Relaxed);
    }

    /// Returns when the earliest event since the last call was seen; `None` where there was none.
    pub fn take(&self) -> Option<Instant> {
        match self.earliest.swap(NOTHING, Ordering::Relaxed) {
            NOTHING => None,
            nanoseconds => Some(self.origin + Duration::from_nanos(nanoseconds)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_event_counts_until_it_is_taken() {
        let origin = Instant::now();
        let clock = EventClock::new(origin);
        assert_eq!(clock.take(), None);
        for milliseconds in [7, 3, 5] {
            clock.note(origin + Duration::from_millis(milliseconds));
        }
        assert_eq!(clock.take(), Some(origin + Duration::from_millis(3)));
        assert_eq!(clock.take(), None);
    }
}
