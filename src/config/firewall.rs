//! Configuration of the firewall.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::flags::Flags;
use super::mistakes::Mistakes;
use super::netfilter::Backend;
use super::proxy::ProxyConfig;
use super::service_ranges::ServiceRanges;

/// The firewall's part of the configuration, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FirewallConfig {
    /// `--netfilter`, as it was decided for this host.
    pub backend: Backend,
    /// `--iptables-sync-period`: time between two audits of the kernel; longer than zero.
    pub sync_period: Duration,
    /// `--netpol-default-deny`: a pod of this node is closed until its rules are in the kernel.
    pub default_deny: bool,
    /// `--netpol-flush-established`: connections that a changed policy denies are ended.
    pub flush_established: bool,
    /// The ranges of Services, as the service proxy has them: on their way from a pod to addresses in these, packets are
    /// judged behind the Service, where their real destination is known.
    pub ranges: ServiceRanges,
    /// Services are watched, because the service proxy or the router runs as well (`--run-service-proxy`, `--run-router`).
    pub knows_services: bool,
    /// The service proxy serves Services with `kube-router.io/service.dsr: tunnel` through tunnels (`ProxyConfig::tunnel_mode`).
    pub tunnel_mode: bool,
    /// `--service-node-port-range`: the first and the last node port.
    pub service_node_port_range: RangeInclusive<u16>,
}

impl FirewallConfig {
    /// Replaces the ranges of Services where they differ; returns whether they did.
    pub fn follow(config: &mut Arc<FirewallConfig>, ranges: ServiceRanges) -> bool {
        let differs = config.ranges != ranges;
        if differs {
            *config = Arc::new(FirewallConfig { ranges, ..(**config).clone() });
        }
        differs
    }

    /// Reads and checks the firewall's flags, which is done even when it does not run. The ranges of Services are
    /// those of the service proxy, whose flags are read before.
    pub(super) fn from_flags(flags: &Flags, proxy: &ProxyConfig, mistakes: &mut Mistakes) -> FirewallConfig {
        FirewallConfig {
            backend: Backend::default(),
            sync_period: mistakes.longer_than_zero("iptables-sync-period", flags.iptables_sync_period, "5m"),
            default_deny: flags.netpol_default_deny,
            flush_established: flags.netpol_flush_established,
            ranges: proxy.ranges.clone(),
            knows_services: flags.run_service_proxy || flags.run_router,
            tunnel_mode: proxy.tunnel_mode,
            service_node_port_range: proxy.service_node_port_range.clone(),
        }
    }
}
