//! The few figures that say how much each part of the program keeps, and what of it is wrong: sums over series of its metrics.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::observe::metrics::Series;

/// A number and what it counts.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Figure {
    pub name: String,
    pub value: u64,
}

/// Where a figure comes from.
struct Origin {
    component: &'static str,
    metric: &'static str,
    /// Only series with this label and value count.
    label: Option<(&'static str, &'static str)>,
    name: &'static str,
    /// It is worth saying only where it is not zero.
    is_exception: bool,
}

const ORIGINS: [Origin; 25] = [
    always("service proxy", "kube_router_controller_ipvs_services", "IPVS services"),
    exception("service proxy", "sluice_proxy_draining", "destinations draining"),
    exception("service proxy", "sluice_proxy_refused_addresses", "addresses not served"),
    exception("service proxy", "sluice_proxy_failing", "kinds of kernel objects failing"),
    exception("service proxy", "sluice_proxy_drift_total", "objects that others changed, repaired"),
    always("firewall", "kube_router_controller_policy_chains", "chains of policies"),
    always("firewall", "kube_router_controller_policy_ipsets", "sets"),
    exception("firewall", "sluice_firewall_refused_chains", "chains that the kernel refuses"),
    exception("firewall", "sluice_firewall_failing", "kinds of kernel objects failing"),
    exception("firewall", "sluice_firewall_drift_total", "objects that others changed, repaired"),
    of("router", "kube_router_bgp_peer_info", ("state", "established"), "BGP sessions established"),
    always("router", "kube_router_bgp_peer_info", "BGP neighbours"),
    always("router", "kube_router_host_routes_synced", "learned routes"),
    always("router", "sluice_router_routes_present", "of them in the kernel"),
    exception("router", "sluice_router_unreached_ranges", "pod ranges without a route"),
    exception("router", "sluice_router_problems", "problems"),
    exception("router", "sluice_router_failing", "kinds of kernel objects failing"),
    exception("router", "sluice_router_drift_total", "objects that others changed, repaired"),
    always("source guard", "sluice_source_guard_ports", "guarded ports"),
    exception("source guard", "sluice_source_guard_unguarded_pods", "pods that are not guarded"),
    exception("source guard", "sluice_source_guard_failing", "kinds of kernel objects failing"),
    exception("source guard", "sluice_source_guard_drift_total", "objects that others changed, repaired"),
    always("address allocator", "sluice_load_balancer_leader", "holder of the Lease"),
    exception("address allocator", "sluice_load_balancer_pool_addresses_used", "addresses in use"),
    exception("address allocator", "sluice_load_balancer_services_wanting", "Services that lack an address"),
];

const fn always(component: &'static str, metric: &'static str, name: &'static str) -> Origin {
    Origin { component, metric, label: None, name, is_exception: false }
}

const fn exception(component: &'static str, metric: &'static str, name: &'static str) -> Origin {
    Origin { component, metric, label: None, name, is_exception: true }
}

const fn of(
    component: &'static str,
    metric: &'static str,
    label: (&'static str, &'static str),
    name: &'static str,
) -> Origin {
    Origin { component, metric, label: Some(label), name, is_exception: false }
}

/// The names of the metrics that figures come from.
pub fn metrics() -> Vec<&'static str> {
    let mut names: Vec<&str> = ORIGINS.iter().map(|origin| origin.metric).collect();
    names.dedup();
    names
}

/// The figures of a component, of these series.
pub fn figures(component: &str, series: &[Series]) -> Vec<Figure> {
    let of_component = ORIGINS.iter().filter(|origin| origin.component == component);
    let figure = |origin: &Origin| Figure { name: origin.name.to_owned(), value: origin.sum(series) };
    of_component
        .map(|origin| (origin, figure(origin)))
        .filter(|(origin, figure)| !origin.is_exception || figure.value > 0)
        .map(|(_, figure)| figure)
        .collect()
}

impl Origin {
    fn sum(&self, series: &[Series]) -> u64 {
        let counts = |series: &&Series| {
            series.family == self.metric
                && self.label.is_none_or(|(label, value)| series.labels.iter().any(|(l, v)| l == label && v == value))
        };
        let sum: f64 = series.iter().filter(counts).map(|series| series.value).sum();
        // Counts of objects, so the value is whole and below 2^53.
        sum as u64
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(family: &str, labels: &[(&str, &str)], value: f64) -> Series {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        Series { family: family.to_owned(), labels, value }
    }

    fn text(component: &str, series: &[Series]) -> Vec<String> {
        figures(component, series).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn series_of_one_family_are_summed_and_zeroes_of_exceptions_are_not_said() {
        let all = [
            series("kube_router_controller_ipvs_services", &[], 7.0),
            series("sluice_proxy_draining", &[], 0.0),
            series("sluice_proxy_drift_total", &[("kind", "routes"), ("drift", "missing")], 2.0),
            series("sluice_proxy_drift_total", &[("kind", "rules"), ("drift", "missing")], 1.0),
        ];
        assert_eq!(text("service proxy", &all), ["IPVS services 7", "objects that others changed, repaired 3"]);
    }

    #[test]
    fn sessions_are_counted_by_their_state() {
        let peer = |address, state| series("kube_router_bgp_peer_info", &[("address", address), ("state", state)], 1.0);
        let all = [peer("192.0.2.1", "established"), peer("2001:db8::1", "established"), peer("192.0.2.3", "active")];
        assert_eq!(
            text("router", &all),
            ["BGP sessions established 2", "BGP neighbours 3", "learned routes 0", "of them in the kernel 0"]
        );
        assert_eq!(text("main thread", &all), [""; 0]);
    }
}
