//! Ranges in which the administrator allows addresses of Services.
//!
//! Kubernetes: anybody who may write a Service may write any address into `spec.externalIPs`, so an address
//! is served and announced only where the administrator allowed it: it must lie in `--service-external-ip-range`
//! (for `externalIPs`) or `--loadbalancer-ip-range` (for load balancer addresses) and outside
//! `--service-cluster-ip-range`. No range means none is allowed. `--strict-external-ip-validation=false`
//! allows all.

use std::net::IpAddr;

use ipnet::IpNet;

/// The ranges of Services, checked.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ServiceRanges {
    /// `--strict-external-ip-validation`: the three ranges below decide which external addresses are served.
    pub strict: bool,
    /// `--service-cluster-ip-range`: ranges of cluster IPs; external addresses must lie outside.
    /// One or two ranges of enabled families; none when only the default was there and its family is off.
    pub cluster_ips: Vec<IpNet>,
    /// `--service-external-ip-range`: ranges allowed for `spec.externalIPs`. Empty allows none.
    pub external_ips: Vec<IpNet>,
    /// `--loadbalancer-ip-range`: ranges allowed for load balancer addresses. Empty allows none.
    pub load_balancer_ips: Vec<IpNet>,
}

/// Why an address does not count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Disallowed {
    /// No range for addresses of this kind is configured.
    NoRange,
    /// It lies outside their ranges.
    OutsideRange,
    /// It lies in a range of cluster IPs.
    ClusterIpRange,
}

impl ServiceRanges {
    /// Returns whether an address lies in one of the ranges.
    pub fn contain(&self, address: IpAddr) -> bool {
        let all = [&self.cluster_ips, &self.external_ips, &self.load_balancer_ips];
        all.into_iter().flatten().any(|range| range.contains(&address))
    }

    /// Returns whether an entry of `spec.externalIPs` counts.
    pub fn allow_external_ip(&self, address: IpAddr) -> bool {
        self.disallow_external_ip(address).is_none()
    }

    /// Returns whether a load balancer address counts.
    pub fn allow_load_balancer_ip(&self, address: IpAddr) -> bool {
        self.disallow_load_balancer_ip(address).is_none()
    }

    /// Returns why an entry of `spec.externalIPs` does not count; `None` where it does.
    pub fn disallow_external_ip(&self, address: IpAddr) -> Option<Disallowed> {
        self.disallow(address, &self.external_ips)
    }

    /// Returns why a load balancer address does not count; `None` where it does.
    pub fn disallow_load_balancer_ip(&self, address: IpAddr) -> Option<Disallowed> {
        self.disallow(address, &self.load_balancer_ips)
    }

    /// Returns whether an address is a cluster IP: it belongs to the Service that it was allocated for, whoever names it.
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        within(&self.cluster_ips, address)
    }

    /// Returns whether there are external or load balancer addresses that count.
    pub fn allow_any(&self) -> bool {
        !self.strict || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    fn disallow(&self, address: IpAddr, ranges: &[IpNet]) -> Option<Disallowed> {
        match ranges {
            _ if !self.strict => None,
            [] => Some(Disallowed::NoRange),
            _ if self.is_cluster_ip(address) => Some(Disallowed::ClusterIpRange),
            ranges if !within(ranges, address) => Some(Disallowed::OutsideRange),
            _ => None,
        }
    }
}

fn within(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}
