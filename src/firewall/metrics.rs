//! The firewall's metrics: names, help texts and values.
//!
//! Names that kube-router's users graph are kept (`kube_router_controller_…`); metrics that kube-router lacks are
//! called `sluice_firewall_…`. `docs/metrics.md` lists them all. Refused packets are counted by the kernel and read on
//! request (`serve`).

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge};

use crate::net::{Family, PerFamily};
use crate::observe::metrics::Registry;

/// Metrics of the firewall's task.
pub struct Metrics {
    /// Duration of a round.
    pub round: Histogram,
    /// Duration of reading and writing rules, by family.
    pub save: PerFamily<Histogram>,
    pub restore: PerFamily<Histogram>,
    /// Duration of changing the elements of sets, by family.
    pub elements: PerFamily<Histogram>,
    /// The part of a round spent on rules, and the part spent on sets.
    pub rules: Histogram,
    pub sets_round: Histogram,
    /// Desired policy chains, both families together.
    pub chains: IntGauge,
    /// Desired sets, both families together.
    pub sets: IntGauge,
    /// Time from an event on the source's socket to the kernel's last acknowledgement.
    pub programming: Histogram,
    /// Number of evaluations of whether a pod belongs to a set.
    pub asked: IntCounter,
    /// Number of connections that were ended because policies newly deny them.
    pub ended: IntCounter,
    /// Chains that the kernel refuses.
    pub refused: IntGauge,
    /// Policies with more blocks than the kernel is given.
    pub oversized: IntGauge,
    /// Time when the kernel was last known to be as desired, in seconds since 1970.
    pub last_success: IntGauge,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let histogram = |name: &str, help: &str| Histogram::with_opts(HistogramOpts::new(name, help));
        let metrics = Metrics {
            round: histogram(
                "kube_router_controller_iptables_sync_time",
                "Time it took to bring changed policies and pods into the kernel, in seconds",
            )?,
            save: PerFamily {
                v4: histogram(
                    "kube_router_controller_iptables_v4_save_time",
                    "Time it took to read the rules of IPv4, in seconds",
                )?,
                v6: histogram(
                    "kube_router_controller_iptables_v6_save_time",
                    "Time it took to read the rules of IPv6, in seconds",
                )?,
            },
            restore: PerFamily {
                v4: histogram(
                    "kube_router_controller_iptables_v4_restore_time",
                    "Time it took to write rules of IPv4, in seconds",
                )?,
                v6: histogram(
                    "kube_router_controller_iptables_v6_restore_time",
                    "Time it took to write rules of IPv6, in seconds",
                )?,
            },
            elements: PerFamily {
                v4: histogram(
                    "kube_router_controller_policy_ipset_v4_restore_time",
                    "Time it took to change elements of the sets of IPv4, in seconds",
                )?,
                v6: histogram(
                    "kube_router_controller_policy_ipset_v6_restore_time",
                    "Time it took to change elements of the sets of IPv6, in seconds",
                )?,
            },
            rules: histogram(
                "kube_router_controller_policy_chains_sync_time",
                "Time it took to bring changed rules into the kernel, in seconds",
            )?,
            sets_round: histogram(
                "sluice_firewall_sets_seconds",
                "Time it took to bring changed sets and elements into the kernel, in seconds",
            )?,
            chains: IntGauge::new("kube_router_controller_policy_chains", "Chains of policies, of both families")?,
            sets: IntGauge::new("kube_router_controller_policy_ipsets", "Sets of addresses, of both families")?,
            programming: programming()?,
            asked: IntCounter::new(
                "sluice_firewall_pods_asked_total",
                "How often a pod was asked whether a policy or a set selects it",
            )?,
            ended: IntCounter::new(
                "sluice_firewall_ended_connections_total",
                "Connections that were ended because policies newly deny them (--netpol-flush-established)",
            )?,
            refused: IntGauge::new(
                "sluice_firewall_refused_chains",
                "Chains, and with nftables other objects, that the kernel refuses; what only they would allow is refused",
            )?,
            oversized: IntGauge::new(
                "sluice_firewall_oversized_policies",
                "Policies with more address ranges, or peers times ports, than the kernel is given: these match nothing, or their rules are closed",
            )?,
            last_success: IntGauge::new(
                "sluice_firewall_last_success_timestamp_seconds",
                "When the kernel was last known to be as wanted, in seconds since 1970",
            )?,
        };
        metrics.add_to(registry)?;
        Ok(metrics)
    }

    /// Records the durations of reading and writing rules.
    pub(super) fn observe_rules(&self, read: &[(Family, Duration)], written: &[(Family, Duration)]) {
        for (histograms, times) in [(&self.save, read), (&self.restore, written)] {
            times.iter().for_each(|(family, took)| histograms.of(*family).observe(took.as_secs_f64()));
        }
    }

    /// Records the durations of changing elements, where any changed.
    pub(super) fn observe_elements(&self, took: PerFamily<Duration>) {
        for (family, took) in took.iter().filter(|(_, took)| !took.is_zero()) {
            self.elements.of(family).observe(took.as_secs_f64());
        }
    }

    fn add_to(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        for histogram in [&self.round, &self.rules, &self.sets_round, &self.programming] {
            registry.register(Box::new(histogram.clone()))?;
        }
        for (_, histogram) in self.save.iter().chain(self.restore.iter()).chain(self.elements.iter()) {
            registry.register(Box::new(histogram.clone()))?;
        }
        for gauge in [&self.chains, &self.sets, &self.refused, &self.oversized, &self.last_success] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(self.ended.clone()))?;
        registry.register(Box::new(self.asked.clone()))
    }
}

fn programming() -> Result<Histogram, prometheus::Error> {
    let options = HistogramOpts::new(
        "sluice_firewall_programming_seconds",
        "Time from seeing a change of the cluster to the kernel's last acknowledgement, in seconds",
    );
    Histogram::with_opts(options.buckets(prometheus::exponential_buckets(0.000_1, 2.0, 16)?))
}
