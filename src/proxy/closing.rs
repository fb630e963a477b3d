//! Withdraw first, close after: an address that routers may still send traffic for is served a moment longer.
//!
//! The router and the service proxy learn at the same time that a Service has lost its last endpoint here, or was
//! deleted. The router withdraws its addresses, and reports which ones its neighbours may still have routes for
//! (`router::withdrawals`). A virtual service on one of them that is to be deleted, or to lose its last destination
//! that takes new connections, is left unchanged until its address is no longer among them; so no packet reaches an
//! address that is already closed and is routed back to where it came from.
//!
//! The wait is bounded: a neighbour that reads slowly, or a busy router, delays the end of a service by no more than
//! that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kernel::ipvs::{ServiceKey, Virtual};

use super::endpoints::DRAINING;

/// Virtual services that are kept unchanged for now, with their deadlines.
#[derive(Default, Debug)]
pub struct Closing {
    until: BTreeMap<ServiceKey, Instant>,
}

/// Maximum wait.
const PATIENCE: Duration = Duration::from_millis(300);

impl Closing {
    /// Starts waiting for a virtual service. One that waits already keeps its deadline.
    pub fn begin(&mut self, key: ServiceKey, now: Instant) {
        self.until.entry(key).or_insert(now + PATIENCE);
    }

    /// Ends a wait; returns whether there was one.
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

    /// Returns when the first wait ends.
    pub fn deadline(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }

    /// Returns the virtual services whose wait is over.
    pub fn overdue(&self, now: Instant) -> Vec<ServiceKey> {
        self.until.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect()
    }
}

/// Returns whether a virtual service takes new connections.
pub fn serves(virtual_service: &Virtual) -> bool {
    virtual_service.destinations.iter().any(|destination| destination.weight != DRAINING)
}
