//! The counters of every virtual service, for the metrics endpoint.
//!
//! Kernel: the 64-bit counters and rates of IPVS services, read on request through a separate socket, so that reading
//! never delays a change. A reading is reused for all requests within a second: the kernel itself sums its counters
//! every two.
//!
//! Names and labels are kube-router's. Unlike there, node ports of both families and of all addresses are included, and
//! packets do not wrap at 32 bits.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Histogram, HistogramOpts};
use tokio::sync::watch;
use tracing::warn;

use super::owners::Owned;
use crate::kernel::ipvs::{ServiceKey, Services, Stats};
use crate::observe::metrics::{Family, Kind, Registry, Sheet, write_head, write_label};

/// The counters, which are read when metrics are requested.
struct Counters {
    owners: watch::Receiver<Owned>,
    export_time: Histogram,
    last: Mutex<Option<(Instant, Listed)>>,
}

/// The virtual services of the kernel with their counters.
type Listed = Vec<(ServiceKey, Stats)>;

/// Validity of a reading.
const FRESH: Duration = Duration::from_secs(1);

/// One metric of each virtual service.
struct Reading {
    name: &'static str,
    help: &'static str,
    kind: Kind,
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

/// The labels in the order of the text format.
const LABELS: [&str; 5] = ["port", "protocol", "service_name", "service_vip", "svc_namespace"];

/// Registers the counters of virtual services with these owners.
///
/// # Errors
/// A family of these is registered already.
pub fn register(registry: &Registry, owners: watch::Receiver<Owned>) -> Result<(), prometheus::Error> {
    let export_time = Histogram::with_opts(HistogramOpts::new(
        "kube_router_controller_ipvs_metrics_export_time",
        "Time it took to read the counters of all services, in seconds",
    ))?;
    registry.register(Box::new(export_time.clone()))?;
    registry.register_sheet(Arc::new(Counters { owners, export_time, last: Mutex::new(None) }))
}

impl Counters {
    fn read(&self, owners: &Owned) -> Listed {
        let begun = Instant::now();
        let ours = owners.clone();
        let stats = Services::open(Box::new(move |key| ours.of(key).is_some())).and_then(|mut s| s.stats());
        self.export_time.observe(begun.elapsed().as_secs_f64());
        stats.unwrap_or_else(|error| {
            warn!(%error, "Reading IPVS counters failed");
            Vec::new()
        })
    }
}

impl Sheet for Counters {
    fn families(&self) -> Vec<Family> {
        let labels: Vec<String> = LABELS.map(str::to_owned).into();
        let family = |reading: &Reading| Family {
            name: reading.name.to_owned(),
            kind: reading.kind,
            labels: labels.clone(),
            help: reading.help.to_owned(),
        };
        READINGS.iter().map(family).collect()
    }

    fn write(&self, text: &mut String) {
        let owners = self.owners.borrow().clone();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() >= FRESH) {
            *last = Some((Instant::now(), self.read(&owners)));
        }
        write(last.as_ref().map(|(_, stats)| &**stats).unwrap_or_default(), &owners, text);
    }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Stats) -> u64) -> Reading {
    Reading { name, help, kind: Kind::Counter, value }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Stats) -> u64) -> Reading {
    Reading { name, help, kind: Kind::Gauge, value }
}

/// Writes the series of the virtual services that have an owner.
fn write(stats: &[(ServiceKey, Stats)], owners: &Owned, text: &mut String) {
    // The labels of a virtual service are the same in all families.
    let mut labels = String::new();
    let mut series: Vec<(usize, &Stats)> = Vec::with_capacity(stats.len());
    for (key, stats) in stats {
        if write_labels(key, owners, &mut labels) {
            series.push((labels.len(), stats));
        }
    }
    for reading in READINGS.iter().filter(|_| !series.is_empty()) {
        write_head(text, reading.name, reading.help, reading.kind);
        let mut begin = 0;
        for (end, stats) in &series {
            text.extend([reading.name, labels.get(begin..*end).unwrap_or_default()]);
            // Writing to a string cannot fail.
            let _ = writeln!(text, " {}", (reading.value)(stats));
            begin = *end;
        }
    }
}

/// Writes the labels of a virtual service with their braces; returns false for one without an owner.
fn write_labels(key: &ServiceKey, owners: &Owned, text: &mut String) -> bool {
    let Some((ServiceKey::Address { address, protocol, port }, owner)) = owners.of(key) else { return false };
    let [port_label, protocol_label, name_label, address_label, namespace_label] = LABELS;
    text.push('{');
    write_label(text, port_label, port);
    text.push(',');
    write_label(text, protocol_label, protocol);
    text.push(',');
    write_label(text, name_label, &owner.name.name);
    text.push(',');
    write_label(text, address_label, address);
    text.push(',');
    write_label(text, namespace_label, &owner.name.namespace);
    text.push('}');
    true
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

    /// The lines of every series, without help and kind.
    fn series(stats: &[(ServiceKey, Stats)], owners: &Owned) -> Vec<String> {
        let mut text = String::new();
        write(stats, owners, &mut text);
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn a_service_that_is_gone_has_no_series_although_its_connections_still_drain() {
        let addresses = [key(Ipv4Addr::new(10, 96, 0, 1)), key(Ipv6Addr::LOCALHOST)];
        let mut owners = Owned::default();
        for one in addresses {
            owners.owners.insert(one, owner("web"));
        }
        let in_the_kernel = || addresses.map(|key| (key, Stats::default())).to_vec();
        let both = series(&in_the_kernel(), &owners);
        assert_eq!(both.len(), 2 * READINGS.len());
        let labels =
            "port=\"80\",protocol=\"tcp\",service_name=\"web\",service_vip=\"10.96.0.1\",svc_namespace=\"shop\"";
        assert_eq!(both.first(), Some(&format!("kube_router_service_total_connections{{{labels}}} 0")));
        owners.owners.remove(&addresses[0]);
        let left = series(&in_the_kernel(), &owners);
        assert!(left.iter().all(|line| !line.contains("10.96.0.1")), "{left:?}");
        assert_eq!(left.len(), READINGS.len());
        let mut text = String::new();
        write(&[], &owners, &mut text);
        assert_eq!(text, "", "and neither has one that the kernel lacks, nor a family without series");
    }

    #[test]
    fn a_virtual_service_for_a_mark_has_the_labels_of_its_address() {
        let port = key(Ipv4Addr::new(203, 0, 113, 7));
        let mark = ServiceKey::Mark { mark: 13766, family: crate::net::Family::V4 };
        let mut owners = Owned { marked: std::sync::Arc::new([(mark, port)].into()), ..Owned::default() };
        owners.owners.insert(port, owner("web"));
        let stats = [(mark, Stats { connections: 9, ..Stats::default() })];
        let labels =
            "port=\"80\",protocol=\"tcp\",service_name=\"web\",service_vip=\"203.0.113.7\",svc_namespace=\"shop\"";
        let first = format!("kube_router_service_total_connections{{{labels}}} 9");
        assert_eq!(series(&stats, &owners).first(), Some(&first));
        owners.marked = Default::default();
        assert!(series(&stats, &owners).is_empty(), "a mark that nobody has");
    }
}
