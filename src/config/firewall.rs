//! Configuration of the firewall.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::flags::Flags;
use super::mistakes::Mistakes;
use super::proxy::ProxyConfig;

/// The firewall's part of the configuration, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FirewallConfig {
    /// `--iptables-sync-period`: time between two audits of the kernel; longer than zero.
    pub sync_period: Duration,
    /// `--netpol-default-deny`: a pod of this node is closed until its rules are in the kernel.
    pub default_deny: bool,
    /// `--service-cluster-ip-range`: on their way from a pod to these, packets are judged behind the Service, where
    /// their real destination is known. The same for the next three.
    pub service_cluster_ip_ranges: Vec<IpNet>,
    /// `--service-external-ip-range`.
    pub external_ip_ranges: Vec<IpNet>,
    /// `--strict-external-ip-validation`: the service proxy serves external addresses of these ranges alone.
    pub strict_external_ip_validation: bool,
    /// `--loadbalancer-ip-range`.
    pub load_balancer_ip_ranges: Vec<IpNet>,
    /// `--service-node-port-range`: the first and the last node port.
    pub service_node_port_range: RangeInclusive<u16>,
}

impl FirewallConfig {
    /// Returns whether an entry of `spec.externalIPs` may be served. One that is a cluster IP never is: that belongs to
    /// another Service, whoever names it.
    pub fn may_serve_external_ip(&self, address: IpAddr) -> bool {
        self.may_serve(address, &self.external_ip_ranges)
    }

    /// The same for a load balancer address.
    pub fn may_serve_load_balancer_ip(&self, address: IpAddr) -> bool {
        self.may_serve(address, &self.load_balancer_ip_ranges)
    }

    fn may_serve(&self, address: IpAddr, ranges: &[IpNet]) -> bool {
        let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
        !within(&self.service_cluster_ip_ranges) && (!self.strict_external_ip_validation || within(ranges))
    }

    /// Reads and checks the firewall's flags, which is done even when it does not run. The ranges of Services are
    /// those of the service proxy, whose flags are read before.
    pub(super) fn from_flags(flags: &Flags, proxy: &ProxyConfig, mistakes: &mut Mistakes) -> FirewallConfig {
        FirewallConfig {
            sync_period: mistakes.longer_than_zero("iptables-sync-period", flags.iptables_sync_period, "5m"),
            default_deny: flags.netpol_default_deny,
            service_cluster_ip_ranges: proxy.ranges.cluster_ips.clone(),
            external_ip_ranges: proxy.ranges.external_ips.clone(),
            strict_external_ip_validation: proxy.ranges.strict,
            load_balancer_ip_ranges: proxy.ranges.load_balancer_ips.clone(),
            service_node_port_range: proxy.service_node_port_range.clone(),
        }
    }
}
