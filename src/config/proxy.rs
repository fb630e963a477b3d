//! Configuration of the service proxy.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::duration::GoDuration;
use super::flags::{DEFAULT_CLUSTER_IP_RANGE, Flags};
use super::mistakes::Mistakes;
use super::netfilter::Backend;
use super::service_ranges::ServiceRanges;
use super::value::Strings;
use crate::net::{Family, PerFamily, Protocol};

/// The service proxy's part of the configuration, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyConfig {
    /// `--netfilter`, as it was decided for this host.
    pub backend: Backend,
    /// `--ipvs-sync-period`: time between two audits of the kernel; longer than zero.
    pub sync_period: Duration,
    /// `--ipvs-graceful-termination`: endpoints that go away first get weight 0 and are removed later.
    pub graceful_termination: bool,
    /// `--ipvs-graceful-period`: time that such an endpoint stays when its pod sets none; may be zero.
    pub graceful_period: Duration,
    /// `--ipvs-permit-all`, whose name says the opposite: service addresses answer only on the ports of Services.
    pub guard: bool,
    /// `--excluded-cidrs`: IPVS virtual services with addresses in here are never removed.
    pub excluded_cidrs: Vec<IpNet>,
    /// `--masquerade-all`: all traffic to Services leaves with this node's address as its source.
    pub masquerade_all: bool,
    /// `--nodeport-bindon-all-ip`: node ports answer on every address of the host.
    pub nodeport_bindon_all_ip: bool,
    /// `--strict-external-ip-validation`, `--service-cluster-ip-range`, `--service-external-ip-range` and
    /// `--loadbalancer-ip-range`: which external addresses are served.
    pub ranges: ServiceRanges,
    /// The ranges of `--service-cluster-ip-range` were typed: the default is a guess about the cluster.
    pub cluster_ips_are_typed: bool,
    /// `--service-tcp-timeout` in whole seconds; `None` keeps the kernel's. The same for the next two.
    pub tcp_timeout: Option<u32>,
    /// `--service-tcpfin-timeout`, in seconds.
    pub tcp_fin_timeout: Option<u32>,
    /// `--service-udp-timeout`, in seconds.
    pub udp_timeout: Option<u32>,
    /// `--service-node-port-range`: the first and the last node port.
    pub service_node_port_range: RangeInclusive<u16>,
    /// Services with `kube-router.io/service.dsr: tunnel` are served through tunnels. No flag: whoever starts the service proxy says whether the
    /// pods' side, where these tunnels end, is kept too.
    pub tunnel_mode: bool,
    /// The largest number of bytes that the router's overlay adds to a packet between nodes, by any kind of tunnels; 0 where this program runs none.
    pub overlay_overhead: PerFamily<u32>,
    /// The UDP ports of the router's overlay at which the kernel takes packets from whoever sends them (`vxlan`, `fou`).
    pub overlay_ports: Vec<u16>,
    /// TCP ports at which nodes and routers outside speak BGP: 179, `--bgp-port` and `--peer-router-ports`.
    pub bgp_ports: Vec<u16>,
    /// UDP ports at which neighbours several hops away watch the path by BFD: 4784 (RFC 5883 5), and that of `--bfd-port`.
    pub bfd_ports: Vec<u16>,
    /// Ports of speakers, from which no client of a Service comes: those of BGP, and of BFD where nodes several hops away watch each other (`--enable-bfd-mesh`). A client may
    /// have one of them above 1023 by chance.
    pub speakers: Vec<(Protocol, u16)>,
}

/// The longest IPVS timeout in seconds: the kernel counts it in ticks, up to 1000 in a second, as an `int`.
const LONGEST_TIMEOUT: u64 = i32::MAX as u64 / 1000;

impl ProxyConfig {
    /// Replaces the ranges of Services where they differ; returns whether they did.
    pub fn follow(config: &mut Arc<ProxyConfig>, ranges: ServiceRanges) -> bool {
        let differs = config.ranges != ranges;
        if differs {
            *config = Arc::new(ProxyConfig { ranges, ..(**config).clone() });
        }
        differs
    }

    /// Reads and checks the service proxy's flags, which is done even when it does not run.
    pub(super) fn from_flags(flags: &Flags, families: PerFamily<bool>, mistakes: &mut Mistakes) -> ProxyConfig {
        let ranges = |flag: &str, typed: &[Strings], mistakes: &mut Mistakes| {
            let prefixes = mistakes.prefixes(flag, typed.iter().flat_map(|list| &list.0));
            families_must_be_enabled(flag, &prefixes, families, mistakes);
            prefixes
        };
        ProxyConfig {
            backend: Backend::default(),
            sync_period: mistakes.longer_than_zero("ipvs-sync-period", flags.ipvs_sync_period, "5m"),
            graceful_termination: flags.ipvs_graceful_termination,
            graceful_period: graceful_period(flags.ipvs_graceful_period, mistakes),
            guard: flags.ipvs_permit_all,
            excluded_cidrs: mistakes.prefixes("excluded-cidrs", flags.excluded_cidrs.iter().flat_map(|list| &list.0)),
            masquerade_all: flags.masquerade_all,
            nodeport_bindon_all_ip: flags.nodeport_bindon_all_ip,
            ranges: ServiceRanges {
                strict: flags.strict_external_ip_validation,
                cluster_ips: cluster_ip_ranges(&flags.service_cluster_ip_range, families, mistakes),
                external_ips: ranges("service-external-ip-range", &flags.service_external_ip_range, mistakes),
                load_balancer_ips: ranges("loadbalancer-ip-range", &flags.loadbalancer_ip_range, mistakes),
            },
            cluster_ips_are_typed: !flags.service_cluster_ip_range.is_empty(),
            tcp_timeout: timeout("service-tcp-timeout", flags.service_tcp_timeout, mistakes),
            tcp_fin_timeout: timeout("service-tcpfin-timeout", flags.service_tcpfin_timeout, mistakes),
            udp_timeout: timeout("service-udp-timeout", flags.service_udp_timeout, mistakes),
            service_node_port_range: node_port_range(&flags.service_node_port_range, mistakes),
            tunnel_mode: false,
            overlay_overhead: PerFamily::default(),
            overlay_ports: Vec::new(),
            bgp_ports: Vec::new(),
            bfd_ports: Vec::new(),
            speakers: Vec::new(),
        }
    }
}

fn graceful_period(typed: GoDuration, mistakes: &mut Mistakes) -> Duration {
    typed.positive_or_zero().unwrap_or_else(|| {
        mistakes.add(format!("--ipvs-graceful-period must be 0s or longer, for example 30s; it is {typed}."));
        Duration::ZERO
    })
}

/// A timeout of IPVS, in whole seconds. Part of a second is cut off, but never down to nothing.
fn timeout(flag: &str, typed: GoDuration, mistakes: &mut Mistakes) -> Option<u32> {
    let seconds = match typed.positive_or_zero() {
        Some(Duration::ZERO) => return None,
        Some(duration) => duration.as_secs(),
        None => 0,
    };
    if (1..=LONGEST_TIMEOUT).contains(&seconds) {
        return u32::try_from(seconds).ok();
    }
    mistakes.add(format!("--{flag} must be 0s to keep the kernel's, or from 1s to {LONGEST_TIMEOUT}s; it is {typed}."));
    None
}

/// The ranges of cluster IPs. The default is IPv4; without IPv4 it says nothing, and only what was typed counts.
fn cluster_ip_ranges(typed: &[Strings], families: PerFamily<bool>, mistakes: &mut Mistakes) -> Vec<IpNet> {
    const FLAG: &str = "service-cluster-ip-range";
    let default = [DEFAULT_CLUSTER_IP_RANGE.to_owned()];
    if typed.is_empty() {
        let usable = default.iter().filter(|_| families.v4);
        return mistakes.prefixes(FLAG, usable);
    }
    let written = || typed.iter().flat_map(|list| &list.0);
    if !(1..=2).contains(&written().count()) {
        mistakes.add(format!(
            "--{FLAG} must be one or two ranges, for example {DEFAULT_CLUSTER_IP_RANGE}; it has {}.",
            written().count()
        ));
    }
    let prefixes = mistakes.prefixes(FLAG, written());
    families_must_be_enabled(FLAG, &prefixes, families, mistakes);
    prefixes
}

fn families_must_be_enabled(flag: &str, prefixes: &[IpNet], families: PerFamily<bool>, mistakes: &mut Mistakes) {
    for prefix in prefixes {
        let family = Family::from(*prefix);
        if !families.of(family) {
            let switch = family.to_string().to_lowercase();
            mistakes.add(format!(
                "--{flag} has {prefix}, but {family} is off: remove that range or start with --enable-{switch}=true."
            ));
        }
    }
}

/// `FIRST-LAST` or `FIRST:LAST`, two ports in rising order.
fn node_port_range(typed: &str, mistakes: &mut Mistakes) -> RangeInclusive<u16> {
    let port = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u16>().ok(),
        false => None,
    };
    let bounds = typed.split_once(['-', ':']).and_then(|(first, last)| Some((port(first)?, port(last)?)));
    match bounds {
        Some((first, last)) if first < last => first..=last,
        _ => {
            mistakes.add(format!(
                "--service-node-port-range must be two ports in rising order, for example 30000-32767; it is {typed:?}."
            ));
            0..=0
        }
    }
}
