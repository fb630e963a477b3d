//! Withdraw first, close after: an address that routers may still send traffic for is served a moment longer.
//!
//! The router and the service proxy learn at the same time that a Service has lost its last endpoint here, or has gone. The router
//! withdraws its addresses, and says which ones its neighbours may still believe in (`router::withdrawals`). A virtual service on
//! one of them that is to go, or to lose the last destination that takes new connections, stays as it is until its address is
//! not among them any more; so no packet meets an address that is closed already, and wanders back to where it came from.
//!
//! The wait has a bound: a neighbour that reads slowly, or a router that is busy, delays the end of a service by that and no more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kernel::ipvs::{ServiceKey, Virtual};

use super::endpoints::DRAINING;

/// The virtual services that stay as they are for the moment, and until when.
#[derive(Default, Debug)]
pub struct Closing {
    until: BTreeMap<ServiceKey, Instant>,
}

/// How long at most.
const PATIENCE: Duration = Duration::from_millis(300);

impl Closing {
    /// Begins to wait. What waits already keeps its time.
    pub fn begin(&mut self, key: ServiceKey, now: Instant) {
        self.until.entry(key).or_insert(now + PATIENCE);
    }

    /// Ends a wait; true if there was one.
    pub fn end(&mut self, key: &ServiceKey) -> bool {
        self.until.remove(key).is_some()
    }

    pub fn contains(&self, key: &ServiceKey) -> bool {
        self.until.contains_key(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = ServiceKey> + '_ {
        self.until.keys().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// When the first wait is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }

    /// Those whose time is over.
    pub fn overdue(&self, now: Instant) -> Vec<ServiceKey> {
        self.until.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect()
    }
}

/// Whether a virtual service takes new connections.
pub fn serves(virtual_service: &Virtual) -> bool {
    virtual_service.destinations.iter().any(|destination| destination.weight != DRAINING)
}
