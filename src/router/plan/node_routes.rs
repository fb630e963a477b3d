//! Routes to pods of other nodes that Node objects give (`--node-routes=api`).
//!
//! Kubernetes: `Node.spec.podCIDRs` or the annotation that wins over it, and `Node.status.addresses`. The next hop of a pod CIDR is its
//! node's address of the same family, which is what that node would announce: both ways give the same routes. Which way a packet
//! takes to the next hop is decided as for any route (`routes`). A node that is down keeps its routes as long as it has a Node object, and
//! this node keeps them while its own Node object, or the addresses in it, are gone.
//!
//! Ranges that import policy would refuse get no route (`pod_ranges::Refusal`). Of a range that several nodes have, the next hops are
//! in the order in which the decision process of BGP prefers them: by identifier, then by address (RFC 4271 9.1.2.2).

use std::collections::BTreeMap;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use crate::config::NodeRoutes;
use crate::kernel::route::{RouteKey, TABLE_MAIN};
use crate::model::Host;
use crate::net::Family;
use crate::router::desired::{RouterChanges, SHARING};
use crate::router::external_peers::external_peers;
use crate::router::names::TUNNEL_TABLE;
use crate::router::router_id::router_id;
use crate::router::routes::wall;

/// Routes that stay in the kernel although they are not desired, because our own Node is gone, with their next hops.
pub(super) type Kept = BTreeMap<IpNet, Box<[IpAddr]>>;

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

    /// Has the ranges of Nodes looked at again whose addresses are new on this host, or gone from it: an address of ours is no next hop,
    /// whichever Node has it. A machine that comes up under another name finds its own in a Node of the old one.
    pub(super) fn note_host(&mut self, host: &Host) {
        let here = host.addresses.iter().map(|own| own.address).collect();
        let before = std::mem::replace(&mut self.here, here);
        let moved: Vec<IpAddr> = before.symmetric_difference(&self.here).copied().collect();
        self.mark_moved(&moved);
        if self.encrypts() && self.own.primary.is_none() && !moved.is_empty() {
            self.mark_all_peers();
            self.routes.look_at_all_again();
        }
        let nodes = moved.iter().flat_map(|address| self.nodes.with_address(address));
        let ranges: Vec<IpNet> = nodes.flat_map(|node| self.nodes.ranges_of(node)).copied().collect();
        self.given_otherwise.extend(ranges);
    }

    /// Withdraws routes that are not desired any more, but for those that stay: these go when their next hops become others or none, as
    /// when their Node is deleted.
    pub(super) fn keep_some(&mut self, withdrawn: Vec<RouteKey>, changed: &mut RouterChanges) {
        if self.own.primary.is_some() {
            self.kept.clear();
        }
        let routes = &self.routes;
        let goes = |prefix: &IpNet, next_hops: &[IpAddr]| routes.next_hops_to(*prefix) != next_hops;
        for (prefix, _) in self.kept.extract_if(.., |prefix, next_hops| goes(prefix, next_hops)) {
            changed.routes.push(RouteKey::new(TABLE_MAIN, prefix));
            changed.withdrawn.push(RouteKey::new(TABLE_MAIN, prefix));
        }
        for key in withdrawn {
            if !self.keeps(&key) {
                changed.withdrawn.push(key);
            } else if !is_aside(&key) {
                self.kept.insert(key.destination, self.routes.next_hops_to(key.destination).into());
            }
        }
    }

    /// Returns whether a route that is not desired any more stays in the kernel until our own Node has an address again: without one
    /// no tunnel has an end here, which says nothing about the node that the route leads to.
    fn keeps(&self, key: &RouteKey) -> bool {
        self.own.primary.is_none() && (is_aside(key) || self.routes.has(key.destination))
    }

    /// Returns the family of a pod CIDR in which its node has no address, so that no Node object gives its next hop.
    pub(super) fn lacks_address(&self, node: &CompactString, range: IpNet) -> Option<Family> {
        let family = Family::from(range);
        let node = self.known.nodes.get(node).filter(|_| self.takes_node_objects())?;
        node.routing_address(family).is_none().then_some(family)
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
            let address = node
                .routing_address(family)
                .filter(|address| !self.own.all.contains(address) && !self.here.contains(address))?;
            let primary = node.primary(self.own.families)?;
            Some((router_id(self.config.router_id, primary, node.routing_address(Family::V4)), primary, address))
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

/// Returns whether a route is none to a prefix that was learned or given.
fn is_aside(key: &RouteKey) -> bool {
    key.table == TUNNEL_TABLE || *key == wall(key.destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouterConfig;
    use crate::net::PerFamily;
    use crate::router::given::{address, config, host, node, prefix, world};
    use std::sync::Arc;

    const HOST: &str = "192.0.2.1/24 2001:db8::1/64";

    fn plan() -> Plan {
        let config: RouterConfig = config(&["--node-routes=api", "--overlay-type=full"]);
        Plan::new(Arc::new(config), PerFamily { v4: true, v6: true })
    }

    fn withdrawn(changed: &RouterChanges) -> Vec<IpNet> {
        let main = changed.withdrawn.iter().filter(|key| key.table == TABLE_MAIN);
        let ranges: Vec<IpNet> = main.map(|key| key.destination).collect();
        assert!(ranges.iter().all(|range| changed.routes.contains(&RouteKey::new(TABLE_MAIN, *range))));
        ranges
    }

    #[test]
    fn while_our_own_node_is_gone_the_routes_to_a_deleted_node_go_and_all_others_stay() {
        let own = || ("node-1", node("192.0.2.1 2001:db8::1", "10.244.1.0/24"));
        let of = |name, number: u8, ranges| (name, node(&format!("192.0.2.{number} 2001:db8::{number}"), ranges));
        let second = || of("node-2", 2, "10.244.2.0/24 fd00:10:244:2::/64");
        let third = || of("node-3", 3, "10.244.3.0/24");
        let with = |nodes: &[(&str, crate::model::Node)]| world(host(HOST), nodes);
        for (then, gone) in [
            (vec![second(), third()], vec![]),
            (vec![second()], vec!["10.244.3.0/24"]),
            // Its range is another node's since.
            (vec![second(), of("node-4", 4, "10.244.3.0/24")], vec!["10.244.3.0/24"]),
            (vec![third()], vec!["10.244.2.0/24", "fd00:10:244:2::/64"]),
        ] {
            let mut plan = plan();
            plan.update(&with(&[own(), second(), third()]));
            assert_eq!(plan.routes().routes().iter().filter(|(key, _)| key.table == TABLE_MAIN).count(), 3);
            assert_eq!(withdrawn(&plan.update(&with(&[second(), third()]))), Vec::<IpNet>::new(), "they stay");
            let gone: Vec<IpNet> = gone.into_iter().map(prefix).collect();
            assert_eq!(withdrawn(&plan.update(&with(&then))), gone);
            assert_eq!(withdrawn(&plan.update(&with(&then))), Vec::<IpNet>::new(), "once");
        }
    }

    #[test]
    fn an_address_of_this_host_is_no_next_hop_whichever_node_has_it() {
        let nodes =
            [("node-of-old", node("192.0.2.1", "10.244.7.0/24")), ("node-2", node("192.0.2.2", "10.244.2.0/24"))];
        let range = prefix("10.244.7.0/24");
        let mut plan = plan();
        let next_hops = |plan: &Plan| plan.routes().next_hops_to(range).to_vec();
        plan.update(&world(host(HOST), &nodes));
        assert_eq!(next_hops(&plan), Vec::<IpAddr>::new());
        plan.update(&world(host("192.0.2.9/24"), &nodes));
        assert_eq!(next_hops(&plan), [address("192.0.2.1")], "it is another machine's since");
        plan.update(&world(host(HOST), &nodes));
        assert_eq!(next_hops(&plan), Vec::<IpAddr>::new());
    }
}
