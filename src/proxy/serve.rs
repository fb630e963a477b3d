//! The counters of every virtual service, for the metrics endpoint.
//!
//! Kernel: the 64-bit counters and rates of IPVS services, read on request through a separate socket, so that reading
//! never delays a change. A reading is reused for all requests within a second: the kernel itself sums its counters
//! every two.
//!
//! Names and labels are kube-router's. Unlike there, node ports of both families and of all addresses are included, and
//! packets do not wrap at 32 bits.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Histogram, HistogramOpts};
use tokio::sync::watch;
use tracing::warn;

use super::owners::Owned;
use crate::kernel::ipvs::{ServiceKey, Services, Stats};

/// Collector that reads the counters when metrics are requested.
pub struct Counters {
    owners: watch::Receiver<Owned>,
    descriptions: Vec<Desc>,
    export_time: Histogram,
    last: Mutex<Option<(Instant, Vec<MetricFamily>)>>,
}

/// Validity of a reading.
const FRESH: Duration = Duration::from_secs(1);

/// One metric of each virtual service.
struct Reading {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&Stats) -> u64,
}

const READINGS: [Reading; 10] = [
    counter("kube_router_service_total_connections", "Total incoming connections", |s| s.connections),
    counter("kube_router_service_packets_in", "Total incoming packets", |s| s.packets_in),
    counter("kube_router_service_packets_out", "Total outgoing packets", |s| s.packets_out),
    counter("kube_router_service_bytes_in", "Total incoming bytes", |s| s.bytes_in),
    counter("kube_router_service_bytes_out", "Total outgoing bytes", |s| s.bytes_out),
    gauge("kube_router_service_pps_in", "Incoming packets per second", |s| s.packets_in_rate),
    gauge("kube_router_service_pps_out", "Outgoing packets per second", |s| s.packets_out_rate),
    gauge("kube_router_service_cps", "Service connections per second", |s| s.connections_rate),
    gauge("kube_router_service_bps_in", "Incoming bytes per second", |s| s.bytes_in_rate),
    gauge("kube_router_service_bps_out", "Outgoing bytes per second", |s| s.bytes_out_rate),
];

const LABELS: [&str; 5] = ["svc_namespace", "service_name", "service_vip", "protocol", "port"];

impl Counters {
    /// Creates the collector for virtual services with these owners.
    ///
    /// # Errors
    /// If a metric's name or labels are invalid, which they are not.
    pub fn new(owners: watch::Receiver<Owned>) -> Result<Counters, prometheus::Error> {
        let labels: Vec<String> = LABELS.into_iter().map(str::to_owned).collect();
        let describe = |reading: &Reading| {
            Desc::new(reading.name.to_owned(), reading.help.to_owned(), labels.clone(), Default::default())
        };
        let export_time = Histogram::with_opts(HistogramOpts::new(
            "kube_router_controller_ipvs_metrics_export_time",
            "Time it took to read the counters of all services, in seconds",
        ))?;
        let mut descriptions = READINGS.iter().map(describe).collect::<Result<Vec<Desc>, _>>()?;
        descriptions.extend(export_time.desc().into_iter().cloned());
        Ok(Counters { owners, descriptions, export_time, last: Mutex::new(None) })
    }

    fn read(&self) -> Vec<MetricFamily> {
        let begun = Instant::now();
        let owners = self.owners.borrow().clone();
        let ours = owners.clone();
        let stats = Services::open(Box::new(move |key| ours.of(key).is_some())).and_then(|mut s| s.stats());
        let stats = match stats {
            Ok(stats) => stats,
            Err(error) => {
                warn!(%error, "Reading IPVS counters failed");
                Vec::new()
            }
        };
        let families = families(stats, &owners);
        self.export_time.observe(begun.elapsed().as_secs_f64());
        families
    }
}

impl Collector for Counters {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut families = match last.as_ref() {
            Some((at, families)) if at.elapsed() < FRESH => families.clone(),
            _ => {
                let families = self.read();
                *last = Some((Instant::now(), families.clone()));
                families
            }
        };
        families.extend(self.export_time.collect());
        families
    }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Stats) -> u64) -> Reading {
    Reading { name, help, kind: MetricType::COUNTER, value }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Stats) -> u64) -> Reading {
    Reading { name, help, kind: MetricType::GAUGE, value }
}

/// The series of the virtual services that have an owner.
fn families(stats: Vec<(ServiceKey, Stats)>, owners: &Owned) -> Vec<MetricFamily> {
    let labelled: Vec<(Vec<LabelPair>, Stats)> =
        stats.into_iter().filter_map(|(key, stats)| Some((labels(&key, owners)?, stats))).collect();
    READINGS.iter().map(|reading| family(reading, &labelled)).collect()
}

fn labels(key: &ServiceKey, owners: &Owned) -> Option<Vec<LabelPair>> {
    let (key, owner) = owners.of(key)?;
    let owner = &owner.name;
    let ServiceKey::Address { address, protocol, port } = key else { return None };
    let values = [
        owner.namespace.to_string(),
        owner.name.to_string(),
        address.to_string(),
        protocol.to_string(),
        port.to_string(),
    ];
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    let mut labels: Vec<LabelPair> = LABELS.into_iter().zip(values).map(pair).collect();
    labels.sort_by(|a, b| a.name().cmp(b.name()));
    Some(labels)
}

fn family(reading: &Reading, labelled: &[(Vec<LabelPair>, Stats)]) -> MetricFamily {
    let metric = |(labels, stats): &(Vec<LabelPair>, Stats)| {
        let mut metric = Metric::from_label(labels.clone());
        let value = (reading.value)(stats) as f64;
        if reading.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    };
    let mut family = MetricFamily::default();
    family.set_name(reading.name.to_owned());
    family.set_help(reading.help.to_owned());
    family.set_field_type(reading.kind);
    family.set_metric(labelled.iter().map(metric).collect());
    family
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::super::owners::Owner;
    use super::super::part::Rank;
    use super::*;
    use crate::model::ObjectName;
    use crate::net::Protocol;

    fn key(address: impl Into<IpAddr>) -> ServiceKey {
        ServiceKey::Address { address: address.into(), protocol: Protocol::Tcp, port: 80 }
    }

    fn owner(service: &str) -> Owner {
        Owner { rank: Rank::Cluster, created: 0, name: ObjectName::new("shop", service) }
    }

    /// The labels of every series, as pairs.
    fn series(families: &[MetricFamily]) -> Vec<(&str, String)> {
        let of_metric = |metric: &Metric| {
            let pairs = metric.get_label().iter().map(|pair| format!("{}={}", pair.name(), pair.value()));
            pairs.collect::<Vec<_>>().join(" ")
        };
        let of_family = |family: &'_ MetricFamily| family.get_metric().iter().map(of_metric).collect::<Vec<_>>();
        families.iter().flat_map(|one| of_family(one).into_iter().map(|labels| (one.name(), labels))).collect()
    }

    #[test]
    fn a_service_that_is_gone_has_no_series_although_its_connections_still_drain() {
        let addresses = [key(Ipv4Addr::new(10, 96, 0, 1)), key(Ipv6Addr::LOCALHOST)];
        let mut owners = Owned::default();
        for one in addresses {
            owners.owners.insert(one, owner("web"));
        }
        let in_the_kernel = || addresses.map(|key| (key, Stats::default())).to_vec();
        let both = families(in_the_kernel(), &owners);
        assert_eq!(series(&both).len(), 2 * READINGS.len());
        let labels = "port=80 protocol=tcp service_name=web service_vip=10.96.0.1 svc_namespace=shop";
        assert_eq!(series(&both).first(), Some(&("kube_router_service_total_connections", labels.to_owned())));
        owners.owners.remove(&addresses[0]);
        let left = families(in_the_kernel(), &owners);
        assert!(series(&left).iter().all(|(_, labels)| !labels.contains("10.96.0.1")), "{left:?}");
        assert_eq!(series(&left).len(), READINGS.len());
        assert_eq!(series(&families(Vec::new(), &owners)), [], "and neither has one that the kernel lacks");
    }

    #[test]
    fn a_virtual_service_for_a_mark_has_the_labels_of_its_address() {
        let port = key(Ipv4Addr::new(203, 0, 113, 7));
        let mark = ServiceKey::Mark { mark: 13766, family: crate::net::Family::V4 };
        let mut owners = Owned { marked: std::sync::Arc::new([(mark, port)].into()), ..Owned::default() };
        owners.owners.insert(port, owner("web"));
        let found = families(vec![(mark, Stats::default())], &owners);
        let labels = "port=80 protocol=tcp service_name=web service_vip=203.0.113.7 svc_namespace=shop";
        assert_eq!(series(&found).first(), Some(&("kube_router_service_total_connections", labels.to_owned())));
        owners.marked = Default::default();
        assert_eq!(series(&families(vec![(mark, Stats::default())], &owners)), [], "a mark that nobody has");
    }
}
