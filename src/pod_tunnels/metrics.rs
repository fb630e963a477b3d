//! Metrics of the tunnels in pods.

use prometheus::{IntCounter, IntGauge};

use super::machine::Standing;
use crate::observe::metrics::Registry;

/// Metrics of the tunnels in pods.
#[derive(Clone)]
pub struct Metrics {
    set_up: IntGauge,
    left_out: IntGauge,
    not_closed: IntGauge,
    not_taken_down: IntGauge,
    /// Changes made inside pods.
    pub changes: IntCounter,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let metrics = Metrics {
            set_up: IntGauge::new(
                "sluice_dsr_pod_addresses",
                "Addresses of this node's pods that answer for Services with direct server return",
            )?,
            left_out: IntGauge::new(
                "sluice_dsr_pod_addresses_left_out",
                "Addresses of this node's pods that should answer for Services with direct server return and cannot be set up",
            )?,
            not_closed: IntGauge::new(
                "sluice_dsr_pod_addresses_not_closed",
                "Addresses of this node's pods that network policies close to tunnels, and that may have the tunnel of an earlier run because nobody can look",
            )?,
            not_taken_down: IntGauge::new(
                "sluice_dsr_pod_addresses_not_taken_down",
                "Addresses of this node's pods that are to answer no more for Services with direct server return, and whose tunnel cannot be taken down",
            )?,
            changes: IntCounter::new(
                "sluice_dsr_pod_changes_total",
                "Changes of devices and addresses made inside pods for direct server return",
            )?,
        };
        registry.register(Box::new(metrics.set_up.clone()))?;
        registry.register(Box::new(metrics.left_out.clone()))?;
        registry.register(Box::new(metrics.not_closed.clone()))?;
        registry.register(Box::new(metrics.not_taken_down.clone()))?;
        registry.register(Box::new(metrics.changes.clone()))?;
        Ok(metrics)
    }

    /// Sets how the pods stand.
    pub fn set(&self, standing: &Standing) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.set_up.set(number(standing.set_up.len()));
        self.left_out.set(number(standing.left_out.len()));
        self.not_closed.set(number(standing.not_closed.len()));
        self.not_taken_down.set(number(standing.not_taken_down.len()));
    }
}
