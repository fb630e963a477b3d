//! Which service ports are served in tunnel mode, by which endpoints, and which tunnels end in the pods of this node.
//!
//! Served in tunnel mode are the external and load balancer addresses of a Service with the annotation. Cluster IPs and node ports stay with NAT.
//! A tunnel leaves a packet as it is, so a port of the Service has to be the port of its endpoints: where it is not, the port is
//! served with NAT. So it is at an address of this host itself, because answers of pods with such a source would not be accepted from them (martians).
//! An endpoint with the address of a node (a pod on the host's network) cannot end a tunnel, and gets no packets from such an address. Where the only
//! endpoints for clients outside are such ones, the port is served with NAT. The same holds of a pod of this node of which it is known that no tunnel
//! ends in it ([`Untunnelled`](super::Untunnelled)): what this node sent it through one would be lost.
//!
//! A pod that answers for an address has it as its own, at all ports. Where other ports of the address are served with NAT its own packets to these stay in the
//! pod, where nothing listens at them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::ipvs::ServiceKey;
use crate::model::{EndpointSlice, Endpoints, Service, ServicePort};
use crate::net::Family;
use crate::proxy::part::PartInputs;
use crate::proxy::{endpoints, external_ip};

use super::PodAddresses;
use super::packet_marks::MOST_OF_A_NAMESPACE;

/// Why something of a Service with the annotation is not served in tunnel mode.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Obstacle {
    /// The endpoints have another port; this port is served with NAT.
    OtherPort {
        port: u16,
        target: u16,
        /// Other ports of the Service are served in tunnel mode, so its pods have the addresses as their own.
        beside_tunnels: bool,
    },
    /// The endpoint is on the host's network, and is left out.
    HostNetwork(IpAddr),
    /// It is an address of this host; it is served with NAT.
    OwnAddress {
        address: IpAddr,
        /// Other nodes may serve it too (an address that moves between hosts), and pods of this node are endpoints.
        keeps_pods_out: bool,
    },
}

/// Ports of a Service that could be served in tunnel mode, and for whose packets there is no mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmarked {
    /// One of them, by address, protocol and port.
    pub first: ServiceKey,
    /// Number of the others.
    pub more: usize,
    /// The Services of its namespace have as many marks as they may.
    pub is_namespace_full: bool,
}

/// Returns whether a port of a Service can be served in tunnel mode in a family, and at which port its endpoints are otherwise.
/// Without any slice it can.
pub fn other_port(endpoints: &Endpoints, port: &ServicePort, family: Family) -> Option<u16> {
    let slices = endpoints.slices.values().filter(|slice| slice.family == family);
    let numbers = slices.flat_map(|slice| &slice.ports);
    let its = numbers.filter(|other| other.name == port.name && other.protocol == port.protocol);
    its.map(|other| other.port).filter(|number| *number != port.port).min()
}

/// Returns whether an address of a Service is served in tunnel mode at a port.
pub fn uses_tunnel(
    service: &Service,
    endpoints: &Endpoints,
    port: &ServicePort,
    address: IpAddr,
    inputs: PartInputs<'_>,
) -> bool {
    inputs.config.tunnel_mode
        && !inputs.node.runtime_awaited
        && service.annotations.dsr
        && other_port(endpoints, port, Family::from(address)).is_none()
        && !inputs.node.is_own(address)
}

/// Returns the endpoints in which a tunnel can end: without those on the host's network, and without the pods of this node that have none.
pub fn that_end_tunnels<'a>(endpoints: &'a Endpoints, inputs: PartInputs<'_>) -> Cow<'a, Endpoints> {
    let ends = |address: IpAddr| !is_nodes(address, inputs) && !inputs.is_untunnelled(address);
    if endpoints.slices.values().flat_map(|slice| slice.endpoints.listed()).all(|endpoint| ends(endpoint.address)) {
        return Cow::Borrowed(endpoints);
    }
    let kept = |slice: &EndpointSlice| {
        let endpoints = slice.endpoints.iter().filter(|endpoint| ends(endpoint.address)).collect();
        Arc::new(EndpointSlice { endpoints, ports: slice.ports.clone(), family: slice.family })
    };
    let slices = endpoints.slices.iter().map(|(name, slice)| (name.clone(), kept(slice))).collect();
    Cow::Owned(Endpoints { slices })
}

/// Returns what keeps a Service with the annotation from being served in tunnel mode, sorted, without duplicates.
pub fn obstacles(service: &Service, endpoints: &Endpoints, inputs: PartInputs<'_>) -> Vec<Obstacle> {
    if !service.annotations.dsr {
        return Vec::new();
    }
    let addresses: BTreeSet<IpAddr> = external_ip::served(service, inputs).collect();
    let families: BTreeSet<Family> = addresses.iter().map(|address| Family::from(*address)).collect();
    let keeps_pods_out = |address: IpAddr| {
        let family = Family::from(address);
        let has_pods = |port: &ServicePort| {
            let pods = endpoints::on_node(endpoints, port, family, inputs.node);
            pods.into_iter().any(|pod| !is_nodes(pod.ip(), inputs))
        };
        *inputs.node.address.of(family) != Some(address) && service.ports.iter().any(has_pods)
    };
    let own = addresses.into_iter().filter(|address| inputs.node.is_own(*address));
    let own = own.map(|address| Obstacle::OwnAddress { address, keeps_pods_out: keeps_pods_out(address) });
    let mut found: BTreeSet<Obstacle> = own.collect();
    for (family, port) in families.iter().flat_map(|family| service.ports.iter().map(move |port| (*family, port))) {
        if let Some(target) = other_port(endpoints, port, family) {
            let beside_tunnels = service.ports.iter().any(|port| other_port(endpoints, port, family).is_none());
            found.insert(Obstacle::OtherPort { port: port.port, target, beside_tunnels });
            continue;
        }
        let of_port = endpoints::of_port(endpoints, port, family).map(|(_, endpoint)| endpoint.address);
        found.extend(of_port.filter(|address| is_nodes(*address, inputs)).map(Obstacle::HostNetwork));
    }
    found.into_iter().collect()
}

/// Returns the tunnels that have to end in pods of this node for one Service, whatever the condition of its endpoints: also those for addresses that
/// another node serves. Pods come with their family's addresses.
pub fn pod_addresses(service: &Service, endpoints: &Endpoints, inputs: PartInputs<'_>) -> PodAddresses {
    let mut found = PodAddresses::new();
    if !service.annotations.dsr {
        return found;
    }
    let allowed = external_ip::allowed(service, inputs);
    let addresses: BTreeSet<IpAddr> = allowed.filter(|address| !inputs.node.is_own(*address)).collect();
    for port in &service.ports {
        for family in inputs.node.enabled_families().filter(|family| other_port(endpoints, port, *family).is_none()) {
            let its = addresses.iter().copied().filter(|address| Family::from(*address) == family);
            let its: BTreeSet<IpAddr> = its.collect();
            let pods = endpoints::on_node(endpoints, port, family, inputs.node);
            let pods = pods.into_iter().map(|pod| pod.ip()).filter(|pod| !its.is_empty() && !is_nodes(*pod, inputs));
            pods.for_each(|pod| found.entry(pod).or_default().extend(&its));
        }
    }
    found
}

/// Returns whether an address is that of a node: a pod with it is on the host's network.
fn is_nodes(address: IpAddr, inputs: PartInputs<'_>) -> bool {
    inputs.node.is_own(address) || inputs.others.holder(address).is_some()
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::OtherPort { port, target, beside_tunnels } => {
                write!(
                    f,
                    "port {port} is served with NAT, because its targetPort is {target}: a tunnel does not change ports"
                )?;
                match beside_tunnels {
                    true => f.write_str(
                        "; pods that answer for the Service's other ports do not reach it at addresses that they have for these",
                    ),
                    false => Ok(()),
                }
            }
            Obstacle::HostNetwork(address) => {
                write!(f, "endpoint {address} gets no connections through tunnels, because it is on the host's network")
            }
            Obstacle::OwnAddress { address, keeps_pods_out } => {
                write!(f, "address {address} is served with NAT, because it is this host's own")?;
                match keeps_pods_out {
                    true => f.write_str(
                        "; pods of this node do not answer for it, and what other nodes that serve it too send them through tunnels is lost",
                    ),
                    false => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for Unmarked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        match self.more {
            0 => f.write_str(" is served with NAT, because ")?,
            more => write!(f, " and {more} others are served with NAT, because ")?,
        }
        match self.is_namespace_full {
            true => write!(
                f,
                "its namespace has {MOST_OF_A_NAMESPACE} addresses and ports in tunnel mode, the most that it may"
            ),
            false => f.write_str("all marks of packets are taken"),
        }
    }
}

#[cfg(test)]
mod tests;
