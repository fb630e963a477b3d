//! Ranges in which the administrator allows addresses of Services.
//!
//! Kubernetes: anybody who may write a Service may write any address into `spec.externalIPs`, so an address
//! is served and announced only where the administrator allowed it: it must lie in `--service-external-ip-range`
//! (for `externalIPs`) or `--loadbalancer-ip-range` (for load balancer addresses) and outside
//! `--service-cluster-ip-range`. No range means none is allowed. `--strict-external-ip-validation=false`
//! allows all. Where the cluster has ServiceCIDR objects (Kubernetes 1.33), they say what the ranges of cluster IPs are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::Family;

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
    /// Returns these ranges with those of cluster IPs that the cluster itself names (ServiceCIDR objects). They take the place of the
    /// flag's, family by family: where it names none of a family, the flag's are all that is known.
    pub fn in_cluster(&self, named: impl Iterator<Item = IpNet>) -> ServiceRanges {
        let named: BTreeSet<IpNet> = named.collect();
        let is_named = |family| named.iter().any(|range| Family::from(*range) == family);
        let of_flag = self.cluster_ips.iter().filter(|range| !is_named(Family::from(**range)));
        // In the order of the flag where both say the same, so that nothing changes then.
        let both = self.cluster_ips.iter().filter(|range| named.contains(*range));
        let others = named.iter().filter(|range| !self.cluster_ips.contains(range));
        let cluster_ips = of_flag.chain(both).chain(others).copied().collect();
        ServiceRanges { cluster_ips, ..self.clone() }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a range")).collect()
    }

    #[test]
    fn ranges_of_the_cluster_take_the_place_of_the_flags_family_by_family() {
        let check = |flag: &[&str], named: &[&str], expected: &[&str]| {
            let typed = ServiceRanges { cluster_ips: ranges(flag), ..ServiceRanges::default() };
            assert_eq!(typed.in_cluster(ranges(named).into_iter()).cluster_ips, ranges(expected), "{flag:?} {named:?}");
        };
        let (v4, v6) = ("10.96.0.0/12", "fd00:10:96::/108");
        check(&[v4], &[], &[v4]);
        check(&[v6, v4], &[v4, v6], &[v6, v4]);
        check(&[v4, v6], &["10.0.0.0/16"], &[v6, "10.0.0.0/16"]);
        check(&[v4], &[v6], &[v4, v6]);
        check(&[v4], &[v4, "10.0.0.0/16", "10.0.0.0/16"], &[v4, "10.0.0.0/16"]);
        check(&[], &["10.0.0.0/16", v6], &["10.0.0.0/16", v6]);
    }

    #[test]
    fn an_external_address_in_a_range_of_the_cluster_is_refused_also_where_the_flag_does_not_name_it() {
        let typed = ServiceRanges {
            strict: true,
            cluster_ips: ranges(&["10.96.0.0/12"]),
            external_ips: ranges(&["0.0.0.0/0", "::/0"]),
            load_balancer_ips: Vec::new(),
        };
        let live = typed.in_cluster(ranges(&["10.0.0.0/16", "fd00:10:96::/108"]).into_iter());
        for (address, before, after) in
            [("10.0.0.9", true, false), ("fd00:10:96::9", true, false), ("10.96.0.9", false, true)]
        {
            let address = address.parse().expect("an address");
            let allowed = [&typed, &live].map(|ranges| ranges.allow_external_ip(address));
            assert_eq!(allowed, [before, after], "{address}");
        }
    }
}
