//! Metrics: the families that are exported, and their text.
//!
//! Names and labels are those that dashboards for kube-router already query; each subsystem lists its own in its
//! `metrics.rs` and registers them here. The registry is a value of ours that is handed around, not the
//! library's global one, so that two tests in one process do not meet.
//!
//! Beside the registry there is a list of what was registered ([`Metrics::families`]), because the registry
//! itself is silent about families that have no series yet. The list is what `docs/metrics.md` is compared with.
//!
//! Format: the Prometheus text exposition format 0.0.4.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{GaugeVec, Opts, Registry, TextEncoder};

/// The metrics of this process. Clones are the same metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    families: Arc<Mutex<Vec<Family>>>,
}

/// One metric family, as documented.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Family {
    pub name: String,
    pub kind: Kind,
    /// The names of its labels, sorted.
    pub labels: Vec<String>,
    pub help: String,
}

/// What a family's numbers mean.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Metrics {
    /// Metrics with one family: `kube_router_build_info{goversion,version} 1`.
    pub fn new(version: &str, toolchain: &str) -> Metrics {
        let metrics = Metrics { registry: Registry::new(), families: Arc::default() };
        let opts = Opts::new(BUILD_INFO, "The build of this program; always 1. goversion names the toolchain.");
        let build_info = GaugeVec::new(opts, &["goversion", "version"]).expect("the name and the labels are valid");
        let build_info = metrics.register(Kind::Gauge, build_info);
        build_info.with_label_values(&[toolchain, version]).set(1.0);
        metrics
    }

    /// Adds a collector, all of whose families are of one kind, and gives it back for use.
    ///
    /// A name that is registered already is a broken invariant of this program, as families are constants.
    pub fn register<C: Collector + Clone + 'static>(&self, kind: Kind, collector: C) -> C {
        self.register_collector(Box::new(collector.clone()), |_| kind);
        collector
    }

    /// Adds a collector that makes its numbers when asked; `kind` tells the kind of each of its families by name.
    ///
    /// Collectors run on a thread where they may wait for the kernel, one scrape at a time.
    pub fn register_collector(&self, collector: Box<dyn Collector>, kind: impl Fn(&str) -> Kind) {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        for desc in collector.desc() {
            let mut labels = desc.variable_labels.clone();
            labels.extend(desc.const_label_pairs.iter().map(|pair| pair.name().to_owned()));
            labels.sort();
            let (name, help) = (desc.fq_name.clone(), desc.help.clone());
            families.push(Family { kind: kind(&name), name, labels, help });
        }
        self.registry.register(collector).expect("every metric family is registered once");
    }

    /// Every registered family, sorted by name, whether or not it has series yet.
    pub fn families(&self) -> Vec<Family> {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner).clone();
        families.sort();
        families
    }

    /// All series with their current values, as text. May wait for the kernel: not for an async task.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // The encoder fails only on families without a name, which cannot be registered.
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).expect("registered families have names");
        text
    }
}

const BUILD_INFO: &str = "kube_router_build_info";

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        })
    }
}

impl fmt::Display for Family {
    /// One row of the table in `docs/metrics.md`: name, kind, labels, meaning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| `{}` | {} | {} | {} |", self.name, self.kind, self.labels.join(", "), self.help)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Histogram, HistogramOpts, IntCounterVec};

    use super::*;

    #[test]
    fn the_build_is_told_with_the_labels_that_dashboards_know() {
        let text = Metrics::new("0.1.0", "rust1.95").text();
        assert!(text.contains("# TYPE kube_router_build_info gauge"), "{text}");
        assert!(text.contains("kube_router_build_info{goversion=\"rust1.95\",version=\"0.1.0\"} 1\n"), "{text}");
    }

    #[test]
    fn a_family_without_series_is_listed_although_it_is_not_exported() {
        let metrics = Metrics::new("0.1.0", "rust1.95");
        let opts = Opts::new("kube_router_service_total_connections", "Connections");
        let counter = IntCounterVec::new(opts, &["svc_namespace", "port"]).expect("a valid family");
        let counter = metrics.register(Kind::Counter, counter);
        assert!(!metrics.text().contains("service_total_connections"));
        assert_eq!(
            metrics.families().iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "| `kube_router_build_info` | gauge | goversion, version | The build of this program; always 1. goversion names the toolchain. |",
                "| `kube_router_service_total_connections` | counter | port, svc_namespace | Connections |",
            ]
        );
        counter.with_label_values(&["default", "80"]).inc();
        assert!(
            metrics.text().contains("kube_router_service_total_connections{port=\"80\",svc_namespace=\"default\"} 1")
        );
    }

    #[test]
    fn two_registries_do_not_meet() {
        let (one, other) = (Metrics::new("1", "x"), Metrics::new("2", "x"));
        let histogram = Histogram::with_opts(HistogramOpts::new("kube_router_sync_time", "Time")).expect("valid");
        one.register(Kind::Histogram, histogram).observe(0.1);
        assert!(one.text().contains("kube_router_sync_time_count 1"));
        assert!(!other.text().contains("kube_router_sync_time"));
    }

    #[test]
    #[should_panic(expected = "every metric family is registered once")]
    fn a_family_registered_twice_is_a_broken_invariant() {
        let metrics = Metrics::new("1", "x");
        for _ in 0..2 {
            let histogram = Histogram::with_opts(HistogramOpts::new("kube_router_sync_time", "Time")).expect("valid");
            metrics.register(Kind::Histogram, histogram);
        }
    }
}
