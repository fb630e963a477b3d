//! No Service leads into the tunnels between nodes.
//!
//! A device of `vxlan` takes packets from whoever sends to its port, and so does the port of `fou` (`router::overlay_guard`). With nftables, rules judge what comes behind IPVS. With iptables none can: the last chain that may drop what
//! arrives is before IPVS, where the packet still has the Service's port. So an endpoint of UDP at that port gets nothing there, whatever its address: this host has many that are listed nowhere (those of
//! Services, the anycast address of each IPv6 network, routes of others), and IPVS delivers at each of them.

use std::borrow::Cow;
use std::sync::Arc;

use crate::config::{Backend, ProxyConfig};
use crate::model::{EndpointSlice, Endpoints, ServicePort};
use crate::net::Protocol;

use super::endpoints::numbers;

/// Returns whether endpoints at this port get nothing, because tunnels between nodes end at it and nothing else keeps others' packets from them.
pub fn is_it(config: &ProxyConfig, protocol: Protocol, port: u16) -> bool {
    config.overlay_ports.contains(&port) && protocol == Protocol::Udp && config.backend == Backend::Iptables
}

/// Returns the endpoints for one port of a Service: without those at such a port.
pub fn without<'a>(endpoints: &'a Endpoints, port: &ServicePort, config: &ProxyConfig) -> Cow<'a, Endpoints> {
    if config.overlay_ports.is_empty() || port.protocol != Protocol::Udp {
        return Cow::Borrowed(endpoints);
    }
    let leads_there =
        |slice: &Arc<EndpointSlice>| numbers(slice, port).any(|number| is_it(config, number.protocol, number.port));
    if !endpoints.slices.values().any(leads_there) {
        return Cow::Borrowed(endpoints);
    }
    let others = endpoints.slices.iter().filter(|(_, slice)| !leads_there(slice));
    Cow::Owned(Endpoints { slices: others.map(|(name, slice)| (name.clone(), slice.clone())).collect() })
}
