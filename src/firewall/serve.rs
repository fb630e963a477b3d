//! The refused packets of every policy, for the metrics endpoint.
//!
//! The kernel is read only on request. A reading is reused for all requests within a second of it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType};
use tracing::warn;

use super::backend::{Dropped, Owner};

/// Collector that reads the counters when metrics are requested.
pub struct Refused<D> {
    description: Desc,
    last: Mutex<Last<D>>,
}

struct Last<D> {
    at: Option<Instant>,
    drops: D,
}

/// Validity of a reading.
const FRESH: Duration = Duration::from_secs(1);

const NAME: &str = "sluice_firewall_refused_packets_total";
const HELP: &str = "Packets that a pod's policies did not allow; each counts for every policy that isolates the pod";
/// The labels in the order of the text format.
const LABELS: [&str; 3] = ["direction", "namespace", "policy"];

impl<D: Dropped> Refused<D> {
    /// Creates the collector of refused packets from these counters.
    ///
    /// # Errors
    /// If the metric's name or labels are invalid, which they are not.
    pub fn new(drops: D) -> Result<Refused<D>, prometheus::Error> {
        let labels = LABELS.into_iter().map(str::to_owned).collect();
        let description = Desc::new(NAME.to_owned(), HELP.to_owned(), labels, Default::default())?;
        Ok(Refused { description, last: Mutex::new(Last { at: None, drops }) })
    }
}

impl<D: Dropped + Send> Collector for Refused<D> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.at.is_none_or(|at| at.elapsed() >= FRESH) {
            match last.drops.count() {
                Ok(()) => last.at = Some(Instant::now()),
                Err(error) => warn!(%error, "Reading drop counters failed"),
            }
        }
        let mut family = MetricFamily::default();
        family.set_name(NAME.to_owned());
        family.set_help(HELP.to_owned());
        family.set_field_type(MetricType::COUNTER);
        family.set_metric(last.drops.sums().iter().map(|(owner, packets)| metric(owner, *packets)).collect());
        vec![family]
    }
}

fn metric(owner: &Owner, packets: u64) -> Metric {
    let values = [owner.direction.name().to_owned(), owner.namespace.to_string(), owner.policy.to_string()];
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    let mut metric = Metric::from_label(LABELS.into_iter().zip(values).map(pair).collect());
    let mut counter = Counter::default();
    counter.set_value(packets as f64);
    metric.set_counter(counter);
    metric
}
