//! Routes to pods of other nodes that Node objects give (`--node-routes=api`).
//!
//! Kubernetes: `Node.spec.podCIDRs` or the annotation that wins over it, and `Node.status.addresses`. The next hop of a pod CIDR is its
//! node's address of the same family, which is what that node would announce: both ways give the same routes. Which way a packet
//! takes to the next hop is decided as for any route (`routes`). A node that is down keeps its routes as long as it has a Node object, and
//! this node keeps them while its own Node object, or the addresses in it, are gone.
//!
//! Ranges that import policy would refuse get no route (`pod_ranges::Refusal`). Of a range that several nodes have, the next hops are
//! in the order in which the decision process of BGP prefers them: by identifier, then by address (RFC 4271 9.1.2.2).

use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use crate::config::NodeRoutes;
use crate::kernel::route::RouteKey;
use crate::net::Family;
use crate::router::desired::SHARING;
use crate::router::external_peers::external_peers;
use crate::router::names::TUNNEL_TABLE;
use crate::router::router_id::router_id;

impl Plan {
    /// Returns where routes to pods of other nodes come from.
    pub fn node_routes(&self) -> NodeRoutes {
        self.config.node_routes
    }

    /// Returns whether routes to pods of other nodes come from Node objects.
    pub(super) fn takes_node_objects(&self) -> bool {
        self.config.node_routes == NodeRoutes::Api
    }

    /// Returns whether no speaker can run and none is needed: Node objects give all routes, and this node has neither an AS number nor
    /// routers outside to speak with. Then the desired routes are complete as soon as the nodes are.
    pub fn needs_no_speaker(&self) -> bool {
        let is_known = self.known.has_nodes && self.own.primary.is_some();
        let has_peers = !external_peers(&self.config, &self.own).is_empty();
        self.takes_node_objects() && is_known && self.own.asn.is_none() && !has_peers
    }

    /// Returns whether a route that is not desired any more stays in the kernel until our own Node has an address again: without one
    /// no tunnel has an end here, which says nothing about the node that the route leads to.
    pub(super) fn keeps(&self, key: &RouteKey) -> bool {
        self.own.primary.is_none() && (key.table == TUNNEL_TABLE || self.routes.has(key.destination))
    }

    /// Returns the family of a pod CIDR in which its node has no address, so that no Node object gives its next hop.
    pub(super) fn lacks_address(&self, node: &CompactString, range: IpNet) -> Option<Family> {
        let family = Family::from(range);
        let node = self.known.nodes.get(node).filter(|_| self.takes_node_objects())?;
        node.address(family).is_none().then_some(family)
    }

    /// Returns the names of the Nodes that give the next hops of a prefix; none with `--node-routes=bgp`.
    pub fn given_by(&self, prefix: IpNet) -> Vec<CompactString> {
        let is_given = self.routes.is_given(prefix);
        self.nodes.with_range(&prefix).filter(|_| is_given).cloned().collect()
    }

    /// Has the pod CIDRs of a node looked at again. Called before and after a change of the node.
    pub(super) fn mark_given(&mut self, node: &CompactString) {
        if self.takes_node_objects() {
            self.given_otherwise.extend(self.nodes.ranges_of(node));
        }
    }

    /// Gives the routes their next hops from Node objects.
    pub(super) fn settle_given(&mut self) {
        for prefix in std::mem::take(&mut self.given_otherwise) {
            if self.takes_node_objects() {
                let next_hops = self.next_hops_by_nodes(prefix);
                self.routes.give(prefix, &next_hops);
            }
        }
    }

    /// Returns the addresses of the nodes with a pod CIDR, the best first; none of a range for which no route is accepted.
    fn next_hops_by_nodes(&self, range: IpNet) -> Vec<IpAddr> {
        let family = Family::from(range);
        // An address of a node, or of a Service that we announce, is no pod CIDR.
        let is_host = range.prefix_len() == family.host_bits();
        let is_taken = is_host && (self.nodes.has(range.addr()) || self.desired.announcements.contains_key(&range));
        // While our own Node is gone, or has no address at all, routes stay as the other Nodes would have them.
        let is_ours = self.own.primary.is_none() || self.own.addresses.of(family).is_some();
        if is_taken || self.pod_ranges.is_refused(&range) || !is_ours || !self.own.families.of(family) {
            return Vec::new();
        }
        let next_hop = |name: &CompactString| {
            let node = self.known.nodes.get(name)?;
            let address = node.address(family).filter(|address| !self.own.all.contains(address))?;
            let primary = node.primary(self.own.families)?;
            Some((router_id(self.config.router_id, primary, node.address(Family::V4)), primary, address))
        };
        let mut all: Vec<_> = self.nodes.with_range(&range).filter_map(next_hop).collect();
        all.sort_unstable();
        let mut next_hops: Vec<IpAddr> = Vec::new();
        for (.., address) in all {
            if !next_hops.contains(&address) {
                next_hops.push(address);
            }
        }
        next_hops.truncate(SHARING);
        next_hops
    }
}
