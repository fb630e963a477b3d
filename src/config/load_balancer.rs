//! Configuration of the allocator of load balancer addresses.

use std::time::Duration;

use super::duration::GoDuration;
use super::environment::Environment;
use super::flags::Flags;
use super::mistakes::Mistakes;
use super::service_ranges::ServiceRanges;

/// The allocator's part of the configuration, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadBalancerConfig {
    /// The ranges of Services: addresses come from `--loadbalancer-ip-range`.
    pub ranges: ServiceRanges,
    /// Says which entries of `externalIPs` are in use. Without the service proxy all of them are: another proxy serves them, whatever
    /// the ranges are.
    pub served_external_ips: ServiceRanges,
    /// `--loadbalancer-default-class`: Services without a class are given addresses too.
    pub takes_default_class: bool,
    /// `--loadbalancer-sync-period`: between two lists of all Services; a second at least.
    pub sync_period: Duration,
    /// The namespace of the Lease and of the ConfigMap of pools: the agent's own.
    pub namespace: String,
    /// The beginning of the identity with which the agent is elected: its pod's name, or else its node's.
    pub identity: String,
}

/// The namespace of an agent that is told none.
const NAMESPACE: &str = "kube-system";

impl LoadBalancerConfig {
    /// Reads and checks the allocator's flags, which is done even when it does not run. The ranges of Services are those of the
    /// service proxy, whose flags are read before.
    pub(super) fn from_flags(
        flags: &Flags,
        environment: &Environment,
        ranges: &ServiceRanges,
        node_name: &str,
        mistakes: &mut Mistakes,
    ) -> LoadBalancerConfig {
        let is_asked = flags.run_loadbalancer && !flags.cleanup_config;
        if is_asked && ranges.strict && flags.loadbalancer_ip_range.is_empty() {
            mistakes.add(
                "--run-loadbalancer needs ranges that addresses come from: add --loadbalancer-ip-range, for example \
                 --loadbalancer-ip-range=203.0.113.0/24."
                    .to_owned(),
            );
        }
        let named = |name: &Option<String>| name.clone().filter(|name| !name.trim().is_empty());
        LoadBalancerConfig {
            ranges: ranges.clone(),
            served_external_ips: ServiceRanges { strict: ranges.strict && flags.run_service_proxy, ..ranges.clone() },
            takes_default_class: flags.loadbalancer_default_class,
            sync_period: sync_period(flags.loadbalancer_sync_period, mistakes),
            namespace: named(&environment.pod_namespace)
                .map_or_else(|| NAMESPACE.to_owned(), |name| name.trim().to_owned()),
            identity: named(&environment.pod_name).unwrap_or_else(|| node_name.to_owned()),
        }
    }
}

fn sync_period(typed: GoDuration, mistakes: &mut Mistakes) -> Duration {
    let period = typed.positive_or_zero().filter(|period| *period >= Duration::from_secs(1));
    period.unwrap_or_else(|| {
        mistakes.add(format!("--loadbalancer-sync-period must be 1s or longer, for example 1m; it is {typed}."));
        Duration::from_secs(1)
    })
}
