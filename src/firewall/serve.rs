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
    descriptions: [Desc; 2],
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

const NAME_ON_BRIDGES: &str = "sluice_firewall_bridge_dropped_packets_total";
const HELP_ON_BRIDGES: &str = "Packets of pods dropped on bridges, for addresses that policies cannot name, a second VLAN tag or a group that bridges do not forward";
const REASON: &str = "reason";

impl<D: Dropped> Refused<D> {
    /// Creates the collector of refused packets from these counters.
    ///
    /// # Errors
    /// If the metric's name or labels are invalid, which they are not.
    pub fn new(drops: D) -> Result<Refused<D>, prometheus::Error> {
        let describe = |name: &str, help: &str, labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
        };
        let descriptions = [describe(NAME, HELP, &LABELS)?, describe(NAME_ON_BRIDGES, HELP_ON_BRIDGES, &[REASON])?];
        Ok(Refused { descriptions, last: Mutex::new(Last { at: None, drops }) })
    }
}

impl<D: Dropped + Send> Collector for Refused<D> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.at.is_none_or(|at| at.elapsed() >= FRESH) {
            match last.drops.count() {
                Ok(()) => last.at = Some(Instant::now()),
                Err(error) => warn!(%error, "Reading drop counters failed"),
            }
        }
        let of_policies = last.drops.sums().iter().map(|(owner, packets)| of_policy(owner, *packets)).collect();
        let on_bridges = last.drops.on_bridges().iter();
        let on_bridges =
            on_bridges.map(|(reason, packets)| metric([(REASON, (*reason).to_owned())].into(), *packets)).collect();
        vec![family(NAME, HELP, of_policies), family(NAME_ON_BRIDGES, HELP_ON_BRIDGES, on_bridges)]
    }
}

fn family(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::COUNTER);
    family.set_metric(metrics);
    family
}

fn of_policy(owner: &Owner, packets: u64) -> Metric {
    let values = [owner.direction.name().to_owned(), owner.namespace.to_string(), owner.policy.to_string()];
    metric(LABELS.into_iter().zip(values).collect(), packets)
}

fn metric(labels: Vec<(&str, String)>, packets: u64) -> Metric {
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    let mut metric = Metric::from_label(labels.into_iter().map(pair).collect());
    let mut counter = Counter::default();
    counter.set_value(packets as f64);
    metric.set_counter(counter);
    metric
}
