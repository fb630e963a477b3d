//! Problems that keep a Service from being served as its object asks, for Events and for `sluice svc`.
//!
//! Only what all nodes find alike, or what the kernel of one refuses, and what lasts: that no endpoint is ready is no problem of the Service object, and that a node has no
//! local endpoint is what the traffic policy Local is about. Where no endpoint says its node, no node ever has one.

pub mod driver;

use std::net::SocketAddr;

use compact_str::{CompactString, ToCompactString, format_compact};

use crate::kernel::ipvs::ServiceKey;
use crate::model::{
    Cause, Endpoints, Listed, MOST_OF_A_SERVICE, Scheduler, Service, ServicePort, ServiceProblem, TrafficPolicy, Use,
};

use super::apply::Refused;
use super::dsr::tunnels::{self, Obstacle, Unmarked};
use super::external_ip::{self, Reason};
use super::owners::Owner;
use super::part::{PartInputs, Rank};
use super::{source_ranges, traffic_policy};

/// The annotation for direct server return.
const TUNNEL_FIELD: &str = "kube-router.io/service.dsr";

/// Returns what follows from the Service itself and its endpoints.
pub fn of_service(service: &Service, endpoints: &Endpoints, inputs: PartInputs<'_>) -> Vec<ServiceProblem> {
    let mut problems = Vec::new();
    // That not all Nodes are known ends by itself.
    let refused = external_ip::refused(service, inputs).into_iter().filter(|one| one.reason != Reason::NodesUnknown);
    for refused in refused.take(MOST_OF_A_SERVICE) {
        let text = format!("the external address {} is not served: {}", refused.address, refused.reason);
        let subject = format_compact!("{} {}", refused.address, refused.reason);
        problems.push(problem(Cause::Refused, subject, text));
    }
    if let Some(elements) = source_ranges::too_many(service) {
        let text = format!(
            "the source ranges take {elements} elements (ranges, addresses and ports), {} at most: \
             its load balancer addresses are closed to everybody",
            source_ranges::MOST_ELEMENTS
        );
        problems.push(problem(Cause::SourceRanges, "source ranges".into(), text));
    }
    if let Some(field) = policy_without_nodes(service, endpoints) {
        let text =
            format!("{field} is Local, and no endpoint that is ready names its node: no node has a local endpoint");
        problems.push(problem(Cause::NoLocalEndpoint, field.into(), text));
    }
    for port in service.ports.iter().filter(|port| lacks_port(endpoints, port)) {
        let (protocol, number, name) = (port.protocol, port.port, &port.name);
        let text = format!(
            "no endpoint has a port of the name {name:?} and protocol {protocol}, so port {number} has no endpoint"
        );
        problems.push(problem(Cause::NoEndpointPort, format_compact!("{protocol} {number} {name}"), text));
    }
    problems.extend(without_tunnel(service, endpoints, inputs));
    problems.into_iter().map(|problem| problem.of(service.created)).collect()
}

/// Returns what keeps a Service with the annotation for direct server return from it.
fn without_tunnel(service: &Service, endpoints: &Endpoints, inputs: PartInputs<'_>) -> Vec<ServiceProblem> {
    if !inputs.config.tunnel_mode || inputs.node.runtime_awaited {
        let is_asked_for = service.annotations.dsr && external_ip::served(service, inputs).next().is_some();
        let text = format!(
            "{TUNNEL_FIELD}: a node without --enable-direct-server-return and the socket of a container runtime, or with --netpol-source-guard or --overlay-encap=wireguard, \
             serves it with NAT, and its pods answer nobody whom others send through tunnels"
        );
        return is_asked_for.then(|| problem(Cause::NoTunnelHere, "off".into(), text)).into_iter().collect();
    }
    let of_obstacle = |obstacle: Obstacle| {
        let cause = match obstacle {
            Obstacle::OwnAddress { .. } => Cause::NoTunnelHere,
            Obstacle::OtherPort { .. } | Obstacle::HostNetwork(_) => Cause::NoTunnel,
        };
        problem(cause, format_compact!("{obstacle:?}"), format!("{TUNNEL_FIELD}: {obstacle}"))
    };
    tunnels::obstacles(service, endpoints, inputs).into_iter().map(of_obstacle).collect()
}

/// Returns that no mark is left for ports of a Service on this node.
pub fn unmarked(unmarked: &Unmarked) -> ServiceProblem {
    problem(Cause::NoTunnelHere, "packet marks".into(), format!("{TUNNEL_FIELD}: {unmarked}"))
}

/// Returns that another Service has a virtual service that one claims. `is_own`: its address is one of the node's.
pub fn lost(key: &ServiceKey, owner: &Owner, rank: Rank, is_own: bool) -> ServiceProblem {
    let has_it = if owner.rank < rank { "whose claim comes first" } else { "which is older" };
    let text = format!("{key} is served for Service {}, {has_it}", owner.name);
    let (cause, subject) = match (rank, key) {
        // Of the addresses of a node one stands for all.
        (Rank::NodePort, ServiceKey::Address { protocol, port, .. }) => {
            (Cause::NodeConflict, format_compact!("node port {protocol} {port}"))
        }
        _ => (if is_own { Cause::NodeConflict } else { Cause::Conflict }, key.to_compact_string()),
    };
    problem(cause, subject, text)
}

/// Returns what the kernel refuses of one virtual service.
pub fn refused_by_kernel(refused: &Refused) -> Vec<ServiceProblem> {
    let Refused { scheduler, destinations } = refused;
    let of_scheduler = scheduler.map(|name| {
        let text = format!(
            "the kernel of this node has no scheduler {name} (module ip_vs_{name}): virtual services keep the scheduler that they \
             have, and new ones get {}",
            Scheduler::default().name()
        );
        problem(Cause::Kernel, format_compact!("scheduler {name}"), text)
    });
    let of_destination = |address: &SocketAddr| {
        let text = format!(
            "the kernel of this node takes no endpoint at {address}, which is left out: it may be a broadcast address of this host"
        );
        problem(Cause::Kernel, format_compact!("endpoint {address}"), text)
    };
    of_scheduler.into_iter().chain(destinations.iter().take(MOST_OF_A_SERVICE).map(of_destination)).collect()
}

fn problem(cause: Cause, subject: CompactString, text: String) -> ServiceProblem {
    ServiceProblem::new(cause, &subject, text)
}

/// Returns the field that says Local although no ready endpoint says which node it is on; none while no endpoint is ready.
fn policy_without_nodes(service: &Service, endpoints: &Endpoints) -> Option<&'static str> {
    let is_external = traffic_policy::external(service) == TrafficPolicy::Local && has_external_places(service);
    let field = match () {
        () if is_external && service.annotations.local => "kube-router.io/service.local",
        () if is_external => "externalTrafficPolicy",
        () if traffic_policy::internal(service) == TrafficPolicy::Local => "internalTrafficPolicy",
        () => return None,
    };
    let is_ready = |endpoint: &Listed<'_>| endpoint.conditions.use_of() == Some(Use::Ready);
    let mut ready = endpoints.slices.values().flat_map(|slice| slice.endpoints.listed()).filter(is_ready).peekable();
    ready.peek()?;
    ready.all(|endpoint| endpoint.node.is_none()).then_some(field)
}

fn has_external_places(service: &Service) -> bool {
    service.external_addresses().next().is_some() || service.ports.iter().any(|port| port.node_port.is_some())
}

/// Returns whether there are endpoints, and none has a port of this name and protocol.
fn lacks_port(endpoints: &Endpoints, port: &ServicePort) -> bool {
    let mut slices = endpoints.slices.values().filter(|slice| !slice.endpoints.is_empty()).peekable();
    let has_it = |protocol, name: &str| protocol == port.protocol && name == port.name;
    slices.peek().is_some() && slices.all(|slice| !slice.ports.iter().any(|it| has_it(it.protocol, &it.name)))
}
