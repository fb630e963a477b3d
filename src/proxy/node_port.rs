//! Node ports: the node addresses that they listen on.
//!
//! Kubernetes: `Service.spec.ports[].nodePort`. By default a node port listens on the node's address in each
//! family that the Service has; with `--nodeport-bindon-all-ip` on every address by which others can reach
//! the host. Loopback and link-local addresses are never among them: a virtual service on `127.0.0.1`
//! would take the port from the host's own programs and could not answer anyway.

use std::net::IpAddr;

use crate::net::Family;

use super::local_node::LocalNode;

/// Returns the addresses of one family that node ports listen on.
pub fn node_port_addresses(node: &LocalNode, on_all: bool, family: Family) -> Vec<IpAddr> {
    if on_all {
        node.global_addresses.iter().filter(|address| Family::from(**address) == family).copied().collect()
    } else {
        node.address.of(family).iter().copied().collect()
    }
}
