//! Which external and load balancer addresses a Service may have.
//!
//! Kubernetes: anybody who may write a Service may write any address into `spec.externalIPs`, so an address
//! is served only where the administrator allowed it: it must lie in `--service-external-ip-range` (for
//! `externalIPs`) or `--loadbalancer-ip-range` (for load balancer addresses) and outside
//! `--service-cluster-ip-range`. No range means none is allowed. `--strict-external-ip-validation=false`
//! allows all.
//!
//! Addresses of load balancers with `ipMode: Proxy` are left out: traffic for them must pass the balancer.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::ProxyConfig;
use crate::model::Service;

/// The entries of `externalIPs` that are served.
pub fn external_ips<'a>(service: &'a Service, config: &'a ProxyConfig) -> impl Iterator<Item = IpAddr> + 'a {
    service.external_ips.iter().copied().filter(|address| is_allowed(*address, &config.external_ip_ranges, config))
}

/// The load balancer addresses that are served.
pub fn load_balancer_ips<'a>(service: &'a Service, config: &'a ProxyConfig) -> impl Iterator<Item = IpAddr> + 'a {
    let wanted = !service.annotations.skip_load_balancer_ips;
    let direct = service.load_balancer.iter().filter(move |entry| wanted && !entry.through_balancer);
    direct.map(|entry| entry.address).filter(|address| is_allowed(*address, &config.load_balancer_ip_ranges, config))
}

/// The addresses of a Service that are refused, for the log.
pub fn refused<'a>(service: &'a Service, config: &'a ProxyConfig) -> impl Iterator<Item = IpAddr> + 'a {
    let external =
        service.external_ips.iter().filter(|address| !is_allowed(**address, &config.external_ip_ranges, config));
    let balanced = service.load_balancer.iter().map(|entry| &entry.address);
    external.chain(balanced.filter(|address| !is_allowed(**address, &config.load_balancer_ip_ranges, config))).copied()
}

fn is_allowed(address: IpAddr, ranges: &[IpNet], config: &ProxyConfig) -> bool {
    let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
    !config.strict_external_ip_validation || (within(ranges) && !within(&config.service_cluster_ip_ranges))
}
