//! The service proxy's metrics: names, help texts and values.
//!
//! Names and labels that kube-router's users graph are kept (`kube_router_…`). Metrics that kube-router lacks are
//! called `sluice_proxy_…`. Counters have no `_total` where kube-router's have none. `docs/metrics.md` lists them all.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntGauge};

use crate::observe::metrics::Registry;

/// Metrics of the proxy's task.
pub struct Metrics {
    /// Virtual services last seen in the kernel.
    pub services: IntGauge,
    /// Duration of a round.
    pub round: Histogram,
    /// Time from an event on the source's socket to the kernel's last acknowledgement.
    pub programming: Histogram,
    /// Services recomputed.
    pub parts: prometheus::IntCounter,
    /// Draining destinations.
    pub draining: IntGauge,
    /// External and load balancer addresses that are not served.
    pub refused: IntGauge,
    /// Virtual services of which the kernel refuses the scheduler or a destination.
    pub refused_by_kernel: IntGauge,
    /// 1 while the kernel counts others' IPVS commands.
    pub commands_counted: IntGauge,
    /// Destinations in tunnel mode that were used before the firewall had judged them.
    pub unjudged: prometheus::IntCounter,
    /// Endpoints on this node that get nothing through tunnels although their Services ask for them, by Service.
    pub untunnelled: IntGauge,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let histogram = |name: &str, help: &str, finest: f64| {
            let buckets = prometheus::exponential_buckets(finest, 2.0, 16)?;
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        };
        let metrics = Metrics {
            services: IntGauge::new(
                "kube_router_controller_ipvs_services",
                "Number of IPVS services that this agent keeps",
            )?,
            round: Histogram::with_opts(HistogramOpts::new(
                "kube_router_controller_ipvs_services_sync_time",
                "Time it took to bring changed services into the kernel, in seconds",
            ))?,
            programming: histogram(
                "sluice_proxy_programming_seconds",
                "Time from seeing a change of the cluster to the kernel's last acknowledgement, in seconds",
                0.000_1,
            )?,
            parts: prometheus::IntCounter::new("sluice_proxy_services_computed_total", "Services computed anew")?,
            draining: IntGauge::new("sluice_proxy_draining", "Destinations that are kept for their connections only")?,
            refused: IntGauge::new(
                "sluice_proxy_refused_addresses",
                "External and load balancer addresses of Services that are not served here, but for those of other Nodes, which serve them",
            )?,
            refused_by_kernel: IntGauge::new(
                "sluice_proxy_refused_by_kernel",
                "Virtual services whose scheduler this kernel has not, or of which it takes an endpoint not",
            )?,
            commands_counted: IntGauge::new(
                "sluice_proxy_ipvs_commands_counted",
                "1 while a kprobe counts the IPVS commands of other programs; 0 while drift is looked for at intervals",
            )?,
            unjudged: prometheus::IntCounter::new(
                "sluice_proxy_unjudged_endpoints_total",
                "Endpoints behind tunnels that were used after a second, before network policies for them were in place",
            )?,
            untunnelled: IntGauge::new(
                "sluice_proxy_untunnelled_endpoints",
                "Endpoints on this node that get no connections through tunnels, because their pods do not answer what comes through them",
            )?,
        };
        registry.register(Box::new(metrics.services.clone()))?;
        registry.register(Box::new(metrics.round.clone()))?;
        registry.register(Box::new(metrics.programming.clone()))?;
        registry.register(Box::new(metrics.parts.clone()))?;
        registry.register(Box::new(metrics.draining.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.refused_by_kernel.clone()))?;
        registry.register(Box::new(metrics.commands_counted.clone()))?;
        registry.register(Box::new(metrics.unjudged.clone()))?;
        registry.register(Box::new(metrics.untunnelled.clone()))?;
        Ok(metrics)
    }

    pub(super) fn observe_round(&self, took: Duration) {
        self.round.observe(took.as_secs_f64());
    }
}
