//! Which external and load balancer addresses a Service is served at.
//!
//! Where they may come from is the administrator's (`config::ServiceRanges`). Addresses of load balancers with `ipMode: Proxy`
//! are left out: traffic for them must pass the balancer.

use std::net::IpAddr;

use crate::config::ProxyConfig;
use crate::model::Service;

/// The entries of `externalIPs` that are served.
pub fn external_ips<'a>(service: &'a Service, config: &'a ProxyConfig) -> impl Iterator<Item = IpAddr> + 'a {
    service.external_ips.iter().copied().filter(|address| config.ranges.allow_external_ip(*address))
}

/// The load balancer addresses that are served.
pub fn load_balancer_ips<'a>(service: &'a Service, config: &'a ProxyConfig) -> impl Iterator<Item = IpAddr> + 'a {
    let wanted = !service.annotations.skip_load_balancer_ips;
    let direct = service.load_balancer.iter().filter(move |entry| wanted && !entry.through_balancer);
    direct.map(|entry| entry.address).filter(|address| config.ranges.allow_load_balancer_ip(*address))
}

/// The addresses of a Service that are refused, for the log.
pub fn refused<'a>(service: &'a Service, config: &'a ProxyConfig) -> impl Iterator<Item = IpAddr> + 'a {
    let external = service.external_ips.iter().filter(|address| !config.ranges.allow_external_ip(**address));
    let balanced = service.load_balancer.iter().map(|entry| &entry.address);
    external.chain(balanced.filter(|address| !config.ranges.allow_load_balancer_ip(**address))).copied()
}
