//! The bridges of this node's pods, and what is closed between their ports.
//!
//! Pods on one bridge reach each other without being routed. What they send there to addresses that no policy can name
//! is refused while pods are isolated (`link_local`, `multicast`).

use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::model::World;

use super::rules::RuleSet;
use super::{link_local, multicast};

/// The bridge of our own CNI configuration. Its rules exist before the bridge does.
const POD_BRIDGE: &str = "kube-bridge";

/// The bridges on which a kind of traffic is closed, sorted; none while it is open.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ClosedBridges {
    pub link_local: Vec<CompactString>,
    pub multicast: Vec<CompactString>,
}

/// Returns what is closed on which bridges.
pub fn closed(rules: &RuleSet, world: &World) -> ClosedBridges {
    if !link_local::is_closed(rules) {
        return ClosedBridges::default();
    }
    let link_local = pod_bridges(rules, world);
    let multicast = if multicast::is_closed(rules) { link_local.clone() } else { Vec::new() };
    ClosedBridges { link_local, multicast }
}

/// Returns the bridges of this node's pods, sorted: our own, and those whose subnet contains a pod's address. A bridge
/// with a Node address is the node's own link, where others need link-local addresses (DHCPv6, routing protocols).
pub fn pod_bridges(rules: &RuleSet, world: &World) -> Vec<CompactString> {
    let node = world.cluster.nodes.get(&world.host.node_name);
    let is_nodes = |address: &IpAddr| node.is_some_and(|node| node.addresses.iter().any(|own| own.address == *address));
    let is_nodes_link = |link: &str| world.host.addresses.iter().any(|own| own.link == link && is_nodes(&own.address));
    let holds_pod =
        |prefix: &IpNet| rules.pods.values().any(|pod| pod.addresses.iter().any(|one| prefix.contains(one)));
    let has_pods = |link: &str| world.host.on_link.iter().any(|one| one.link == link && holds_pod(&one.prefix));
    let bridges = world.host.links.iter().filter(|link| link.bridge).map(|link| &link.name);
    let mut bridges: Vec<CompactString> =
        bridges.filter(|link| **link != POD_BRIDGE && !is_nodes_link(link) && has_pods(link)).cloned().collect();
    bridges.push(POD_BRIDGE.into());
    bridges.sort();
    bridges
}

/// Returns whether the host has a bridge with pods on it, as far as is known.
pub fn has_pod_bridge(rules: &RuleSet, world: &World) -> bool {
    let is_there = |name: &CompactString| world.host.links.iter().any(|link| link.bridge && link.name == *name);
    pod_bridges(rules, world).iter().any(is_there)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::firewall::given::object;
    use crate::firewall::rules::{Isolation, LocalPod};
    use crate::model::{Host, HostAddress, HostLink, Node, NodeAddress, NodeAddressKind, OnLink};

    #[test]
    fn pods_are_on_our_bridge_and_on_those_whose_network_holds_them() {
        let mut world = World::empty();
        let link = |name: &str, bridge| HostLink { name: name.into(), mtu: 1500, bridge };
        let on = |prefix: &str, link: &str| OnLink { prefix: prefix.parse().expect("a prefix"), link: link.into() };
        let node: IpAddr = "192.0.2.11".parse().expect("an address");
        world.host = Arc::new(Host {
            node_name: "node1".into(),
            addresses: vec![HostAddress { address: node, link: "br0".into(), global: true }],
            on_link: vec![
                on("10.244.1.0/24", "cni0"),
                on("10.244.0.0/16", "eth1"),
                on("172.17.0.0/16", "docker0"),
                on("192.0.2.0/24", "br0"),
            ],
            links: vec![link("br0", true), link("cni0", true), link("docker0", true), link("eth1", false)],
        });
        let own = NodeAddress { kind: NodeAddressKind::Internal, address: node };
        world.cluster.nodes.insert("node1".into(), Node { addresses: vec![own], ..Node::default() });
        let pod = |text: &str| LocalPod {
            addresses: [text.parse().expect("an address")].into(),
            ingress: Isolation::Open,
            egress: Isolation::Open,
        };
        let mut rules = RuleSet::default();
        assert_eq!(pod_bridges(&rules, &world), ["kube-bridge"]);
        rules.pods.insert(object("shop/a"), pod("10.244.1.7"));
        rules.pods.insert(object("shop/b"), pod("192.0.2.77"));
        assert_eq!(pod_bridges(&rules, &world), ["cni0", "kube-bridge"]);
        assert!(has_pod_bridge(&rules, &world) && !has_pod_bridge(&RuleSet::default(), &world));
    }
}
