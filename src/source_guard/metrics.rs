//! Metrics of the source guard.

use prometheus::IntGauge;

use crate::observe::metrics::Registry;

/// Metrics of the source guard's task.
pub struct Metrics {
    /// Guarded ports.
    pub ports: IntGauge,
    /// Pods of this node with an address that no guarded port has.
    pub unguarded: IntGauge,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let metrics = Metrics {
            ports: IntGauge::new(
                "sluice_source_guard_ports",
                "Ports of bridges from which only the addresses of their pods are accepted (--netpol-source-guard)",
            )?,
            unguarded: IntGauge::new(
                "sluice_source_guard_unguarded_pods",
                "Pods of this node that can send with any address, because they were started before the guard or are on no bridge",
            )?,
        };
        registry.register(Box::new(metrics.ports.clone()))?;
        registry.register(Box::new(metrics.unguarded.clone()))?;
        Ok(metrics)
    }
}
