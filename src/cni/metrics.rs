//! Metrics of pods that wait for their network policies (`--netpol-cni`).

use prometheus::{Histogram, HistogramOpts, IntCounter};

use crate::observe::metrics::Registry;

/// Metrics of the calls of the plugin.
#[derive(Clone)]
pub struct Metrics {
    /// Time from a call of the plugin to its answer.
    pub waited: Histogram,
    /// Calls that were answered with a failure.
    pub refused: IntCounter,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let waited = HistogramOpts::new(
            "sluice_cni_wait_seconds",
            "Time that a starting pod waited for its network policies, in seconds",
        );
        let metrics = Metrics {
            waited: Histogram::with_opts(waited.buckets(prometheus::exponential_buckets(0.000_5, 2.0, 14)?))?,
            refused: IntCounter::new(
                "sluice_cni_refused_total",
                "Starts of pods that were put off because their network policies were not in force in time",
            )?,
        };
        registry.register(Box::new(metrics.waited.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        Ok(metrics)
    }
}
