//! The router's metrics: names, help texts and values.
//!
//! Names that kube-router's users graph are kept (`kube_router_controller_bgp_…`, `kube_router_host_routes_…`); metrics
//! that kube-router lacks are called `sluice_router_…`. `docs/metrics.md` lists them all.

use std::collections::BTreeMap;
use std::time::Instant;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts};

use crate::bfd::sessions::Ignored;
use crate::bgp::speaker::Order;
use crate::observe::metrics::Registry;

use super::apply::RouterRound;
use super::identity::Identity;
use super::serve::Shown;

/// Metrics of the router's task.
pub struct Metrics {
    /// Changes of best routes.
    pub received: IntCounter,
    /// Announcements and withdrawals, by kind of prefix.
    sent: IntCounterVec,
    /// Duration of passing the desired neighbours to the speaker.
    pub peers_sync: Histogram,
    /// Duration of a round.
    pub round: Histogram,
    /// Session state, by neighbour.
    pub peers: Shown,
    /// Desired kernel routes.
    pub routes: IntGauge,
    /// Those of them that the kernel was seen to hold.
    pub routes_present: IntGauge,
    pub routes_added: IntCounter,
    pub routes_removed: IntCounter,
    pub routes_sync: Histogram,
    /// Time from a learned route to the kernel's last acknowledgement.
    pub programming: Histogram,
    /// Problems that keep parts of the router from working.
    pub problems: IntGauge,
    /// Pod CIDRs of other nodes without a route in the kernel.
    pub unreached: IntGauge,
    /// How service addresses stand with routers outside (`drain::Stage`).
    pub drain: IntGauge,
    /// Packets of BFD that were ignored, by reason.
    ignored: IntCounterVec,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let histogram = |name: &str, help: &str| Histogram::with_opts(HistogramOpts::new(name, help));
        let programming = HistogramOpts::new(
            "sluice_router_programming_seconds",
            "Time from a learned route to the kernel's last acknowledgement, in seconds",
        );
        let metrics = Metrics {
            received: IntCounter::new(
                "kube_router_controller_bgp_advertisements_received",
                "Best routes that have changed, ours included",
            )?,
            sent: IntCounterVec::new(
                Opts::new("kube_router_controller_bgp_advertisements_sent", "Routes of ours announced and withdrawn"),
                &["type"],
            )?,
            peers_sync: histogram(
                "kube_router_controller_bgp_internal_peers_sync_time",
                "Time it took to tell the speaker which neighbours are wanted, in seconds",
            )?,
            round: histogram(
                "kube_router_controller_routes_sync_time",
                "Time it took to bring changes of nodes and routes into the kernel, in seconds",
            )?,
            peers: Shown::new()?,
            routes: IntGauge::new("kube_router_host_routes_synced", "Learned routes that the kernel shall hold")?,
            routes_present: IntGauge::new(
                "sluice_router_routes_present",
                "Learned routes that the kernel shall hold and was seen to hold",
            )?,
            routes_added: IntCounter::new("kube_router_host_routes_added", "Learned routes added or replaced")?,
            routes_removed: IntCounter::new("kube_router_host_routes_removed", "Learned routes deleted")?,
            routes_sync: histogram(
                "kube_router_host_routes_sync_time",
                "Time it took to bring learned routes into the kernel, in seconds",
            )?,
            programming: Histogram::with_opts(programming.buckets(prometheus::exponential_buckets(0.000_1, 2.0, 16)?))?,
            problems: IntGauge::new(
                "sluice_router_problems",
                "What keeps parts of the router from working; the log says what it is",
            )?,
            unreached: IntGauge::new(
                "sluice_router_unreached_ranges",
                "Pod ranges of other nodes to which the kernel has no route",
            )?,
            drain: IntGauge::new(
                "sluice_router_drain",
                "Service addresses: 0 announced, 1 announced with GRACEFUL_SHUTDOWN because this node drains, or their withdrawal is not sent to all neighbours yet, 2 none announced",
            )?,
            ignored: IntCounterVec::new(
                Opts::new("sluice_router_bfd_packets_ignored_total", "BFD packets received and ignored, by reason"),
                &["reason"],
            )?,
        };
        metrics.add_to(registry)?;
        Ok(metrics)
    }

    fn add_to(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        for counter in [&self.received, &self.routes_added, &self.routes_removed] {
            registry.register(Box::new(counter.clone()))?;
        }
        for histogram in [&self.peers_sync, &self.round, &self.routes_sync, &self.programming] {
            registry.register(Box::new(histogram.clone()))?;
        }
        for gauge in [&self.routes, &self.routes_present, &self.problems, &self.unreached, &self.drain] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(self.sent.clone()))?;
        registry.register(Box::new(self.ignored.clone()))?;
        registry.register(Box::new(self.peers.clone()))
    }

    /// Counts a round: routes added and deleted, when the first was learned, and when the kernel was changed.
    pub fn count_round(&self, round: RouterRound, learned: Option<Instant>, began: Instant, done: Instant) {
        self.round.observe((done - began).as_secs_f64());
        self.routes_added.inc_by(round.routes_grown as u64);
        self.routes_removed.inc_by(round.routes_gone as u64);
        if round.routes_grown + round.routes_gone > 0 {
            self.routes_sync.observe((done - began).as_secs_f64());
            learned.into_iter().for_each(|learned| self.programming.observe((done - learned).as_secs_f64()));
        }
    }

    /// Counts packets of BFD that were ignored.
    pub fn count_ignored(&self, counts: &BTreeMap<Ignored, u64>) {
        for (reason, count) in counts {
            self.ignored.with_label_values(&[reason.word()]).inc_by(*count);
        }
    }

    /// Counts the orders to announce and to withdraw.
    pub fn count(&self, orders: &[Order], own: &Identity) {
        for order in orders {
            let (prefix, kind) = match order {
                Order::Originate(prefix, _) => (prefix, "advertise-vip"),
                Order::Retract(prefix) => (prefix, "withdraw-vip"),
                _ => continue,
            };
            let is_pods = own.all_pod_cidrs().any(|range| range == *prefix);
            self.sent.with_label_values(&[if is_pods { "pod-route" } else { kind }]).inc();
        }
    }
}
