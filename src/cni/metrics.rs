//! Metrics of pods that wait for their network policies (`--netpol-cni`).

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge};

use crate::observe::metrics::Registry;

/// Metrics of the calls of the plugin.
#[derive(Clone)]
pub struct Metrics {
    /// Time from a call of the plugin to its answer.
    pub waited: Histogram,
    /// 1 while the socket is open on which the plugin calls.
    pub open: IntGauge,
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
            open: IntGauge::new(
                "sluice_cni_socket_open",
                "1 if pods that start can be announced on the CNI socket, else 0: no pod starts then",
            )?,
            refused: IntCounter::new(
                "sluice_cni_refused_total",
                "Starts of pods that were put off because their network policies were not in force in time",
            )?,
        };
        registry.register(Box::new(metrics.waited.clone()))?;
        registry.register(Box::new(metrics.open.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        Ok(metrics)
    }
}
