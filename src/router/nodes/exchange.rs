//! The nodes with which routes are exchanged.

use std::net::IpAddr;

use super::Nodes;
use crate::config::{NodeRoutes, RouterConfig};
use crate::model::Reflection;
use crate::router::identity::Identity;

impl Nodes {
    /// Returns whether routes are exchanged with a node that is spoken with by this address: in a session, by way of reflectors, or by Node objects.
    ///
    /// Where sessions have a password nobody counts before what it has told is learned: a Node object, which its kubelet writes, does not show that the host at
    /// its address is a node.
    pub fn exchanges_routes(&self, own: &Identity, config: &RouterConfig, address: IpAddr) -> bool {
        if config.node_routes == NodeRoutes::Api {
            return self.spoken_with_by(&address).next().is_some();
        }
        let is_client = |reflection| matches!(reflection, Reflection::Client(_));
        let mut parts = self.spoken_with_by(&address).filter_map(|name| self.parts.get(name));
        config.mesh_password_file.is_none()
            && parts
                .any(|part| part.neighbour.is_some() || is_client(own.routing.reflection) || is_client(part.reflection))
    }
}
