//! Metrics: the families that are exported, and their text.
//!
//! Names and labels are those that dashboards for kube-router already query; each subsystem lists its own in its
//! `metrics.rs` and registers them here. The registry is a value of ours that is handed around, not the
//! library's global one, so that two tests in one process do not meet.
//!
//! Beside the registry there is a list of its collectors ([`Registry::families`]), because the registry itself
//! is silent about families that have no series yet. The list is what `docs/metrics.md` is compared with.
//!
//! Format: the Prometheus text exposition format 0.0.4.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{GaugeVec, Opts, TextEncoder};

/// The metrics of this process. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    registry: prometheus::Registry,
    collectors: Arc<Mutex<Vec<Shared>>>,
    sheets: Arc<Mutex<Vec<Arc<dyn Sheet>>>>,
}

/// Families with a series for each Service or the like, which write their own text: as values of the library each series of 10,000 Services
/// is some twenty pieces of memory, and all of them are copied and sorted for each request.
pub trait Sheet: Send + Sync {
    /// All its families, also those without series at the moment.
    fn families(&self) -> Vec<Family>;

    /// Appends the series of its families, in the text format, with [`write_head`] and [`write_label`]; nothing of a family without series.
    /// May wait for the kernel; called once at a time.
    fn write(&self, text: &mut String);
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

/// One number of a counter or a gauge.
#[derive(Clone, PartialEq, Debug)]
pub struct Series {
    pub family: String,
    /// Names and values.
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

/// Meaning of a family's numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Registry {
    /// A registry with one family: `kube_router_build_info{goversion,version} 1`.
    pub fn new(version: &str, toolchain: &str) -> Registry {
        let registry =
            Registry { registry: prometheus::Registry::new(), collectors: Arc::default(), sheets: Arc::default() };
        let opts = Opts::new(BUILD_INFO, "The build of this program; always 1. goversion names the toolchain.");
        let build_info = GaugeVec::new(opts, &["goversion", "version"]).expect("the name and the labels are valid");
        build_info.with_label_values(&[toolchain, version]).set(1.0);
        registry.register(Box::new(build_info)).expect("nothing else is registered yet");
        registry
    }

    /// Adds a collector: counters, gauges and histograms, or one that makes its numbers when asked. The latter
    /// runs on a thread where it may wait for the kernel, once at a time.
    ///
    /// # Errors
    /// A family of that name is registered already.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        let shared = Shared(Arc::from(collector));
        let is_of_a_sheet = |desc: &&Desc| {
            self.sheets().iter().any(|sheet| sheet.families().iter().any(|family| family.name == desc.fq_name))
        };
        if shared.desc().iter().any(is_of_a_sheet) {
            return Err(prometheus::Error::AlreadyReg);
        }
        self.registry.register(Box::new(shared.clone()))?;
        self.collectors.lock().unwrap_or_else(PoisonError::into_inner).push(shared);
        Ok(())
    }

    /// Adds families that write their own text.
    ///
    /// # Errors
    /// A family of that name is registered already.
    pub fn register_sheet(&self, sheet: Arc<dyn Sheet>) -> Result<(), prometheus::Error> {
        let known = self.families();
        if sheet.families().iter().any(|family| known.iter().any(|other| other.name == family.name)) {
            return Err(prometheus::Error::AlreadyReg);
        }
        self.sheets.lock().unwrap_or_else(PoisonError::into_inner).push(sheet);
        Ok(())
    }

    fn sheets(&self) -> Vec<Arc<dyn Sheet>> {
        self.sheets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every registered family, sorted by name, whether or not it has series yet. Asks every collector for its
    /// numbers, to learn their kind: a collector gives all its families, also those without series.
    pub fn families(&self) -> Vec<Family> {
        let collectors = self.collectors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut families: Vec<Family> = collectors.iter().flat_map(|collector| collector.families()).collect();
        families.extend(self.sheets().iter().flat_map(|sheet| sheet.families()));
        families.sort();
        families
    }

    /// The series of counters and gauges of these families, which are none of a [`Sheet`]. Asks the collectors of these alone, which some others are spared by: they
    /// read the kernel.
    pub fn series(&self, names: &[&str]) -> Vec<Series> {
        let collectors = self.collectors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_wanted = |name: &str| names.contains(&name);
        let wanted = collectors.iter().filter(|shared| shared.desc().iter().any(|desc| is_wanted(&desc.fq_name)));
        let families = wanted.flat_map(|shared| shared.collect()).filter(|family| is_wanted(family.name()));
        families.flat_map(|family| series_of(&family)).collect()
    }

    /// All series with their current values, as text. May wait for the kernel: not for an async task.
    pub fn text(&self) -> String {
        // First, because reading for them is measured by other families.
        let mut sheets = String::new();
        self.sheets().iter().for_each(|sheet| sheet.write(&mut sheets));
        let mut text = String::new();
        // The encoder fails only on families without a name, which cannot be registered.
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).expect("registered families have names");
        text.push_str(&sheets);
        text
    }
}

/// Writes what stands before the series of a family.
pub fn write_head(text: &mut String, name: &str, help: &str, kind: Kind) {
    text.extend(["# HELP ", name, " "]);
    help.chars().for_each(|char| push_escaped(text, char, false));
    text.extend(["\n# TYPE ", name, " "]);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{kind}");
}

/// Writes `name="value"`.
pub fn write_label(text: &mut String, name: &str, value: impl fmt::Display) {
    text.extend([name, "=\""]);
    let _ = write!(Escaped(text), "{value}");
    text.push('"');
}

/// Escapes what is written as the format wants it inside of quotes.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, written: &str) -> fmt::Result {
        match written.contains(['\\', '\n', '"']) {
            true => written.chars().for_each(|char| push_escaped(self.0, char, true)),
            false => self.0.push_str(written),
        }
        Ok(())
    }
}

fn push_escaped(text: &mut String, char: char, in_quotes: bool) {
    match char {
        '\\' => text.push_str("\\\\"),
        '\n' => text.push_str("\\n"),
        '"' if in_quotes => text.push_str("\\\""),
        other => text.push(other),
    }
}

/// A collector that the registry and the list both hold.
#[derive(Clone)]
struct Shared(Arc<dyn Collector>);

impl Collector for Shared {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.collect()
    }
}

impl Shared {
    fn families(&self) -> Vec<Family> {
        let collected = self.0.collect();
        let kind = |name: &str| collected.iter().find(|family| family.name() == name).map(kind_of);
        let family = |desc: &Desc| {
            let mut labels = desc.variable_labels.clone();
            labels.extend(desc.const_label_pairs.iter().map(|pair| pair.name().to_owned()));
            labels.sort();
            let kind = kind(&desc.fq_name).unwrap_or(Kind::Gauge);
            Family { name: desc.fq_name.clone(), kind, labels, help: desc.help.clone() }
        };
        self.0.desc().into_iter().map(family).collect()
    }
}

fn series_of(family: &MetricFamily) -> Vec<Series> {
    let one = |metric: &prometheus::proto::Metric| Series {
        family: family.name().to_owned(),
        labels: metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned())).collect(),
        value: match family.get_field_type() {
            MetricType::COUNTER => metric.get_counter().get_value(),
            _ => metric.get_gauge().get_value(),
        },
    };
    family.get_metric().iter().map(one).collect()
}

fn kind_of(family: &MetricFamily) -> Kind {
    match family.get_field_type() {
        MetricType::COUNTER => Kind::Counter,
        MetricType::HISTOGRAM => Kind::Histogram,
        _ => Kind::Gauge,
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

    fn sync_time() -> Histogram {
        Histogram::with_opts(HistogramOpts::new("kube_router_sync_time", "Time")).expect("a valid family")
    }

    #[test]
    fn the_build_is_told_with_the_labels_that_dashboards_know() {
        let text = Registry::new("0.1.0", "rust1.95").text();
        assert!(text.contains("# TYPE kube_router_build_info gauge"), "{text}");
        assert!(text.contains("kube_router_build_info{goversion=\"rust1.95\",version=\"0.1.0\"} 1\n"), "{text}");
    }

    #[test]
    fn a_family_without_series_is_listed_although_it_is_not_exported() {
        let registry = Registry::new("0.1.0", "rust1.95");
        let opts = Opts::new("kube_router_service_total_connections", "Connections");
        let counter = IntCounterVec::new(opts, &["svc_namespace", "port"]).expect("a valid family");
        registry.register(Box::new(counter.clone())).expect("a new name");
        registry.register(Box::new(sync_time())).expect("a new name");
        assert!(!registry.text().contains("service_total_connections"));
        let rows: Vec<String> = registry.families().iter().map(ToString::to_string).collect();
        assert_eq!(
            rows,
            [
                "| `kube_router_build_info` | gauge | goversion, version | The build of this program; always 1. goversion names the toolchain. |",
                "| `kube_router_service_total_connections` | counter | port, svc_namespace | Connections |",
                "| `kube_router_sync_time` | histogram |  | Time |",
            ]
        );
        counter.with_label_values(&["default", "80"]).inc();
        let series = "kube_router_service_total_connections{port=\"80\",svc_namespace=\"default\"} 1";
        assert!(registry.text().contains(series));
    }

    #[test]
    fn series_are_read_of_the_families_that_are_asked_for() {
        let registry = Registry::new("1", "x");
        let opts = Opts::new("kube_router_service_total_connections", "Connections");
        let counter = IntCounterVec::new(opts, &["port"]).expect("a valid family");
        registry.register(Box::new(counter.clone())).expect("a new name");
        counter.with_label_values(&["80"]).inc_by(3);
        let series = registry.series(&["kube_router_service_total_connections"]);
        let labels = vec![("port".to_owned(), "80".to_owned())];
        let family = "kube_router_service_total_connections".to_owned();
        assert_eq!(series, [Series { family, labels, value: 3.0 }]);
        assert_eq!(registry.series(&["kube_router_build_info"])[0].value, 1.0);
        assert_eq!(registry.series(&["kube_router_none"]), []);
    }

    struct Lines;

    impl Sheet for Lines {
        fn families(&self) -> Vec<Family> {
            let (name, labels) = ("sluice_lines".to_owned(), vec!["of".to_owned()]);
            vec![Family { name, kind: Kind::Counter, labels, help: "Lines".to_owned() }]
        }

        fn write(&self, text: &mut String) {
            write_head(text, "sluice_lines", "Lines of a \"file\",\nor \\ more", Kind::Counter);
            text.push_str("sluice_lines{");
            write_label(text, "of", "a \"b\"\n\\");
            text.push_str("} 7\n");
        }
    }

    #[test]
    fn families_that_write_their_own_text_stand_beside_the_others_and_are_escaped_alike() {
        let (registry, libraries) = (Registry::new("1", "x"), Registry::new("1", "x"));
        registry.register_sheet(Arc::new(Lines)).expect("a new name");
        assert!(registry.register_sheet(Arc::new(Lines)).is_err(), "a name is registered once");
        assert_eq!(registry.families().iter().filter(|family| family.name == "sluice_lines").count(), 1);
        let opts = Opts::new("sluice_lines", "Lines of a \"file\",\nor \\ more");
        let counter = IntCounterVec::new(opts, &["of"]).expect("a valid family");
        counter.with_label_values(&["a \"b\"\n\\"]).inc_by(7);
        assert!(registry.register(Box::new(counter.clone())).is_err(), "nor as a collector");
        libraries.register(Box::new(counter)).expect("a new name");
        let lines = |text: String| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(registry.text()), lines(libraries.text()), "as the library writes them");
    }

    #[test]
    fn two_registries_do_not_meet() {
        let (one, other) = (Registry::new("1", "x"), Registry::new("2", "x"));
        let histogram = sync_time();
        one.register(Box::new(histogram.clone())).expect("a new name");
        histogram.observe(0.1);
        assert!(one.text().contains("kube_router_sync_time_count 1"));
        assert!(!other.text().contains("kube_router_sync_time"));
    }

    #[test]
    fn a_name_is_registered_once() {
        let registry = Registry::new("1", "x");
        registry.register(Box::new(sync_time())).expect("a new name");
        assert!(registry.register(Box::new(sync_time())).is_err());
        assert_eq!(registry.families().len(), 2, "what was refused is not listed");
    }
}
