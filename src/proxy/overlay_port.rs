//! No Service leads into the tunnels between nodes that end on this host.
//!
//! A device of `vxlan` takes packets from whoever sends to its port (`router::overlay_guard`). With nftables, rules judge what comes behind IPVS. With iptables none can: the last chain that may drop what
//! arrives is before IPVS, where the packet still has the Service's port. So an endpoint at this host's own port of tunnels gets nothing; pods of the host's network cannot have that port anyway, because the
//! kernel has it. What IPVS sends to the port of another node is judged on its way out (`KUBE-ROUTER-OVERLAY-OUT`).

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Backend, ProxyConfig};
use crate::model::{EndpointSlice, Endpoints, ServicePort};
use crate::net::Protocol;

use super::local_node::LocalNode;

/// Returns whether an endpoint is the port of this host at which tunnels end, and nothing else keeps others' packets from it.
pub fn is_it(config: &ProxyConfig, node: &LocalNode, protocol: Protocol, endpoint: IpAddr, port: u16) -> bool {
    let is_port = config.vxlan_port == Some(port) && protocol == Protocol::Udp && config.backend == Backend::Iptables;
    is_port && node.addresses.contains(&endpoint)
}

/// Returns the endpoints for one port of a Service: without those that are such a port.
pub fn without<'a>(
    endpoints: &'a Endpoints,
    port: &ServicePort,
    config: &ProxyConfig,
    node: &LocalNode,
) -> Cow<'a, Endpoints> {
    if config.vxlan_port.is_none() || port.protocol != Protocol::Udp {
        return Cow::Borrowed(endpoints);
    }
    let is_closed = |slice: &EndpointSlice, endpoint: IpAddr| {
        let mut numbers = slice.ports.iter().filter(|one| one.name == port.name && one.protocol == port.protocol);
        numbers.any(|number| is_it(config, node, port.protocol, endpoint, number.port))
    };
    let has_closed = |slice: &EndpointSlice| slice.endpoints.listed().any(|one| is_closed(slice, one.address));
    if !endpoints.slices.values().any(|slice| has_closed(slice)) {
        return Cow::Borrowed(endpoints);
    }
    let open = |slice: &EndpointSlice| {
        let endpoints = slice.endpoints.iter().filter(|endpoint| !is_closed(slice, endpoint.address)).collect();
        Arc::new(EndpointSlice { endpoints, ports: slice.ports.clone(), family: slice.family })
    };
    let slices = endpoints.slices.iter().map(|(name, slice)| (name.clone(), open(slice))).collect();
    Cow::Owned(Endpoints { slices })
}
