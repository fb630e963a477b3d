//! The sessions with neighbours, for the metrics endpoint.
//!
//! Series are made on request: there may be thousands of neighbours, and a series that is kept takes half a kilobyte.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::bgp::session::State;
use crate::bgp::speaker::{Neighbour, Summary};

/// The state of each session, as it was last shown. Clones refer to the same.
#[derive(Clone)]
pub struct Shown {
    description: Desc,
    paths: Desc,
    failures: Desc,
    rows: Arc<Mutex<BTreeMap<IpAddr, Row>>>,
}

/// One neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its address.
    pub name: String,
    /// 0 where any AS number is accepted.
    pub asn: u32,
    pub is_internal: bool,
    pub summary: Summary,
}

const NAME: &str = "kube_router_bgp_peer_info";
const HELP: &str = "Neighbours and how their sessions stand";
const PATH_NAME: &str = "sluice_router_bfd_session_up";
const PATH_HELP: &str = "Whether the BFD session with a neighbour is up: 1 or 0";
const FAILURES_NAME: &str = "sluice_router_bfd_failures_total";
const FAILURES_HELP: &str = "Times that BFD has found the path to a neighbour failed";
/// The labels in the order of the text format.
const LABELS: [&str; 4] = ["address", "asn", "state", "type"];

impl Shown {
    /// Shows no neighbours yet.
    ///
    /// # Errors
    /// If the metric's name or labels are invalid, which they are not.
    pub fn new() -> Result<Shown, prometheus::Error> {
        let labels = LABELS.map(str::to_owned).into();
        let description = Desc::new(NAME.to_owned(), HELP.to_owned(), labels, Default::default())?;
        let address = vec![LABELS[0].to_owned()];
        let paths = Desc::new(PATH_NAME.to_owned(), PATH_HELP.to_owned(), address.clone(), Default::default())?;
        let failures = Desc::new(FAILURES_NAME.to_owned(), FAILURES_HELP.to_owned(), address, Default::default())?;
        Ok(Shown { description, paths, failures, rows: Arc::default() })
    }

    /// Shows these neighbours as they are now, or no longer, beside the others.
    pub fn change(&self, changes: impl IntoIterator<Item = (IpAddr, Option<Row>)>) {
        let mut rows = self.rows();
        for (address, row) in changes {
            match row {
                Some(row) => rows.insert(address, row),
                None => rows.remove(&address),
            };
        }
    }

    /// Shows these neighbours in place of all others.
    pub fn replace(&self, rows: impl Iterator<Item = (IpAddr, Row)>) {
        *self.rows() = rows.collect();
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    pub fn of(neighbour: &Neighbour) -> Row {
        let settings = &neighbour.wanted().settings;
        Row {
            name: neighbour.wanted().name(),
            asn: settings.asn.unwrap_or_default(),
            is_internal: settings.asn == Some(settings.local.asn),
            summary: neighbour.summary(),
        }
    }
}

impl Collector for Shown {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description, &self.paths, &self.failures]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let rows: Vec<Row> = self.rows().values().cloned().collect();
        let paths = family(PATH_NAME, PATH_HELP, rows.iter().filter_map(path).collect());
        let mut failures = family(FAILURES_NAME, FAILURES_HELP, rows.iter().filter_map(failures).collect());
        failures.set_field_type(MetricType::COUNTER);
        vec![family(NAME, HELP, rows.iter().map(metric).collect()), paths, failures]
    }
}

fn family(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::GAUGE);
    family.set_metric(metrics);
    family
}

fn path(row: &Row) -> Option<Metric> {
    let is_up = row.summary.path_is_up?;
    Some(series([row.name.clone()], if is_up { 1.0 } else { 0.0 }))
}

fn failures(row: &Row) -> Option<Metric> {
    let mut metric = series([row.name.clone()], 0.0);
    let mut counter = Counter::default();
    counter.set_value(row.summary.path_failures? as f64);
    metric.set_counter(counter);
    Some(metric)
}

fn metric(row: &Row) -> Metric {
    let kind = if row.is_internal { "internal" } else { "external" };
    let values = [row.name.clone(), row.asn.to_string(), word(row.summary.state).to_owned(), kind.to_owned()];
    series(values, 1.0)
}

/// Returns a series with these values of the first labels.
fn series(labels: impl IntoIterator<Item = String>, value: f64) -> Metric {
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    let mut metric = Metric::from_label(LABELS.into_iter().zip(labels).map(pair).collect());
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

fn word(state: State) -> &'static str {
    match state {
        State::Idle => "idle",
        State::Connect => "connect",
        State::Active => "active",
        State::OpenSent => "opensent",
        State::OpenConfirm => "openconfirm",
        State::Established => "established",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Registry;

    #[test]
    fn each_neighbour_has_one_series_and_none_once_it_is_gone() {
        let registry = Registry::new("v0.1.0", "rustc");
        let shown = Shown::new().expect("the metric is valid");
        registry.register(Box::new(shown.clone())).expect("its name is free");
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let watched = |last: u8, state, path_is_up: Option<bool>| {
            let path_failures = path_is_up.map(|_| 5);
            let summary = Summary { state, is_kept: false, path_is_up, path_failures };
            let row = Row { name: address(last).to_string(), asn: 64512, is_internal: last < 3, summary };
            (address(last), Some(row))
        };
        let row = |last: u8, state| watched(last, state, None);
        let series = || -> Vec<String> {
            registry.text().lines().filter(|line| line.starts_with(NAME)).map(str::to_owned).collect()
        };
        let line = |last: u8, state: &str, kind: &str| {
            format!("{NAME}{{address=\"192.0.2.{last}\",asn=\"64512\",state=\"{state}\",type=\"{kind}\"}} 1")
        };
        shown.change([row(2, State::Connect), row(3, State::Established)]);
        assert_eq!(series(), [line(2, "connect", "internal"), line(3, "established", "external")]);
        shown.change([row(2, State::Established), (address(3), None)]);
        assert_eq!(series(), [line(2, "established", "internal")]);
        let paths =
            || registry.text().lines().filter(|line| line.starts_with(PATH_NAME)).collect::<Vec<_>>().join("\n");
        assert_eq!(paths(), "", "nobody is watched");
        for (is_up, number) in [(true, 1), (false, 0)] {
            shown.change([watched(4, State::Established, Some(is_up))]);
            assert_eq!(paths(), format!("{PATH_NAME}{{address=\"192.0.2.4\"}} {number}"));
            assert_eq!(series().len(), 2, "the other one stays");
        }
        let failed = |line: &str| line.starts_with(FAILURES_NAME) || line.starts_with("# TYPE sluice_router_bfd_f");
        let failures = || registry.text().lines().filter(|line| failed(line)).collect::<Vec<_>>().join("\n");
        let counter = format!("# TYPE {FAILURES_NAME} counter\n{FAILURES_NAME}{{address=\"192.0.2.4\"}} 5");
        assert_eq!(failures(), counter);
        shown.replace(std::iter::empty());
        assert_eq!(series(), Vec::<String>::new());
        assert_eq!(failures(), "", "a neighbour that is gone has no series");
    }
}
