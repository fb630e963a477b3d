//! A Service, as far as a node agent needs it.
//!
//! Kubernetes: `Service.spec` and `Service.status.loadBalancer`. Services that no node agent serves
//! (headless, ExternalName, another proxy's) never become a value of this type; see `k8s::parse::service`.

use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::shared_value::Shared;
use crate::net::Protocol;

/// A Service that has at least one cluster address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub kind: ServiceType,
    /// `spec.clusterIPs` (and `spec.clusterIP`), without duplicates, in the API's order; never empty.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, as written; which of them are allowed is configuration (`proxy::external_ip`).
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[]` entries that have an `ip`.
    pub load_balancer: Vec<LoadBalancerAddress>,
    /// `spec.loadBalancerSourceRanges`, or else the annotation `service.beta.kubernetes.io/load-balancer-source-ranges`: the
    /// clients of load balancer addresses, of both families, without host bits. `None` where neither is given; empty where
    /// no range makes sense, so that nobody is a client.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// Services with the same ports share the list.
    pub ports: Shared<[ServicePort]>,
    /// `spec.sessionAffinity: ClientIP` and its `timeoutSeconds` (10800 where absent); `None` without affinity.
    pub affinity_seconds: Option<u32>,
    pub internal_traffic_policy: TrafficPolicy,
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    pub annotations: ProxyAnnotations,
    pub announce: AnnounceAnnotations,
    /// `metadata.creationTimestamp` in seconds since 1970 (0 where absent). When two Services claim one
    /// address and port the older one has it, so that a newcomer cannot take what another already serves.
    pub created: i64,
}

/// The field that names an external address of a Service, which decides by which flag it is allowed, and who has it where several Services name it: the
/// status, where controllers write, comes before the spec, where anybody may write what he likes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ExternalField {
    /// `status.loadBalancer.ingress[]`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIps,
}

/// `spec.type`. ExternalName is absent: such a Service has no cluster address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// One entry of `status.loadBalancer.ingress[]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadBalancerAddress {
    pub address: IpAddr,
    /// `ipMode: Proxy`: traffic must go through the load balancer, so nodes do not serve the address themselves.
    pub through_balancer: bool,
}

/// One entry of `spec.ports[]`. The target port is not here: endpoint slices carry the resolved one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServicePort {
    /// Empty for the single unnamed port. Endpoint slices are matched by this name.
    pub name: CompactString,
    pub protocol: Protocol,
    pub port: u16,
    /// `nodePort`, where it is not 0.
    pub node_port: Option<u16>,
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// The `kube-router.io/service.*` annotations that the service proxy obeys, parsed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ProxyAnnotations {
    /// `kube-router.io/service.scheduler`; `rr` where absent or not understood.
    pub scheduler: Scheduler,
    /// `kube-router.io/service.schedflags`.
    pub scheduler_flags: SchedulerFlags,
    /// `kube-router.io/service.local: "true"`: external traffic policy Local, whatever the spec says.
    pub local: bool,
    /// `kube-router.io/service.skiplbips`: load balancer addresses are not served.
    pub skip_load_balancer_ips: bool,
    /// `kube-router.io/service.dsr: tunnel`: direct server return for external and load balancer addresses.
    pub dsr: bool,
}

/// The `kube-router.io/service.advertise.*` annotations, which say more than the flags; `None` where absent or not understood.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AnnounceAnnotations {
    /// `kube-router.io/service.advertise.clusterip`.
    pub cluster_ips: Option<bool>,
    /// `kube-router.io/service.advertise.externalip`.
    pub external_ips: Option<bool>,
    /// `kube-router.io/service.advertise.loadbalancerip`.
    pub load_balancer_ips: Option<bool>,
}

/// An IPVS scheduler, by the name that the kernel knows it by (`ip_vs_<name>`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Scheduler {
    /// Round robin.
    #[default]
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Source hashing.
    Sh,
    /// Destination hashing.
    Dh,
    /// Maglev hashing (of the source).
    Mh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Locality-based least connections.
    Lblc,
    /// Locality-based least connections with replication.
    Lblcr,
    /// Weighted failover.
    Fo,
    /// Weighted overflow.
    Ovf,
}

impl Service {
    /// A Service of type ClusterIP with these addresses and ports, and the API's defaults for everything else.
    pub fn new(cluster_ips: Vec<IpAddr>, ports: Vec<ServicePort>) -> Service {
        Service {
            kind: ServiceType::ClusterIp,
            cluster_ips,
            external_ips: Vec::new(),
            load_balancer: Vec::new(),
            source_ranges: None,
            ports: ports.into(),
            affinity_seconds: None,
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            annotations: ProxyAnnotations::default(),
            announce: AnnounceAnnotations::default(),
            created: 0,
        }
    }

    /// Returns the external and load balancer addresses that the Service asks nodes to serve. Which of them are
    /// allowed is configuration. Left out are addresses of load balancers that traffic must pass (`ipMode: Proxy`), and all
    /// of load balancers with the annotation `kube-router.io/service.skiplbips`.
    pub fn external_addresses(&self) -> impl Iterator<Item = (IpAddr, ExternalField)> {
        let external = self.external_ips.iter().map(|address| (*address, ExternalField::ExternalIps));
        let wanted = !self.annotations.skip_load_balancer_ips;
        let direct = self.load_balancer.iter().filter(move |entry| wanted && !entry.through_balancer);
        external.chain(direct.map(|entry| (entry.address, ExternalField::LoadBalancer)))
    }

    /// Returns the traffic policy of node ports, external and load balancer addresses, with the annotation
    /// `kube-router.io/service.local` applied.
    pub fn external_policy(&self) -> TrafficPolicy {
        if self.annotations.local { TrafficPolicy::Local } else { self.external_traffic_policy }
    }
}

impl Scheduler {
    pub const ALL: [Scheduler; 13] = [
        Scheduler::Rr,
        Scheduler::Wrr,
        Scheduler::Lc,
        Scheduler::Wlc,
        Scheduler::Sh,
        Scheduler::Dh,
        Scheduler::Mh,
        Scheduler::Sed,
        Scheduler::Nq,
        Scheduler::Lblc,
        Scheduler::Lblcr,
        Scheduler::Fo,
        Scheduler::Ovf,
    ];

    /// The kernel's name, which is also the annotation's value.
    pub fn name(self) -> &'static str {
        match self {
            Scheduler::Rr => "rr",
            Scheduler::Wrr => "wrr",
            Scheduler::Lc => "lc",
            Scheduler::Wlc => "wlc",
            Scheduler::Sh => "sh",
            Scheduler::Dh => "dh",
            Scheduler::Mh => "mh",
            Scheduler::Sed => "sed",
            Scheduler::Nq => "nq",
            Scheduler::Lblc => "lblc",
            Scheduler::Lblcr => "lblcr",
            Scheduler::Fo => "fo",
            Scheduler::Ovf => "ovf",
        }
    }

    /// The scheduler of this name; `None` for a name that no kernel has.
    pub fn from_name(name: &str) -> Option<Scheduler> {
        Scheduler::ALL.into_iter().find(|scheduler| scheduler.name() == name)
    }
}

/// The three flags whose meaning each scheduler defines for itself; `sh` and `mh`: 1 = fallback, 2 = port.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SchedulerFlags {
    pub flag_1: bool,
    pub flag_2: bool,
    pub flag_3: bool,
}
