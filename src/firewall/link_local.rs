//! IPv6 link-local addresses: traffic between pods of one bridge, and with their node, without any address that the
//! cluster knows.
//!
//! Kubernetes: policies identify pods by their addresses (`status.podIPs`), and the API never names the `fe80::/10`
//! address that the kernel gives every pod, even in clusters without IPv6. So the pod of such an address is unknown,
//! and no policy can allow it. While any pod of this node is isolated, only what IPv6 needs to work on a link passes
//! ([`icmp::OF_LINKS`]), and packets of existing connections; the node itself goes on reaching its pods.
//!
//! Pods that are not isolated lose link-local connections too. The road not taken: identifying pods by bridge port or
//! MAC address. Neither is known before a pod has sent something, and a pod can choose the second.

use std::net::{IpAddr, Ipv6Addr};

use compact_str::CompactString;
use ipnet::{IpNet, Ipv6Net};

use crate::model::World;
use crate::net::icmp;

use super::rules::{Isolation, LocalPod, RuleSet};
use super::verdict::{Packet, Traffic};

/// The bridge of our own CNI configuration. Its rule exists before the bridge does.
const POD_BRIDGE: &str = "kube-bridge";

/// The unicast addresses that are valid on one link only.
pub const UNICAST: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));
pub const MULTICAST: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16));

/// Returns whether link-local traffic between pods is refused: any pod of this node is isolated, in either direction.
pub fn is_closed(rules: &RuleSet) -> bool {
    let is_isolated = |pod: &LocalPod| pod.ingress != Isolation::Open || pod.egress != Isolation::Open;
    rules.pods.values().any(is_isolated)
}

/// Returns whether a packet outside of any connection is refused for its link-local address while those are closed.
pub fn refuses(packet: &Packet) -> bool {
    let is_concerned = UNICAST.contains(&packet.source)
        || UNICAST.contains(&packet.destination)
        || MULTICAST.contains(&packet.destination);
    let is_of_links = matches!(packet.traffic, Traffic::Icmp { kind }
        if icmp::OF_LINKS.iter().any(|(_, number)| *number == kind));
    is_concerned && !is_of_links && !packet.from_this_node
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
    use crate::model::{Host, HostAddress, HostLink, Node, NodeAddress, NodeAddressKind, OnLink};

    fn packet(source: &str, destination: &str, traffic: Traffic) -> Packet {
        let [source, destination] = [source, destination].map(|text| text.parse().expect("an address"));
        Packet { source, destination, traffic, from_this_node: false }
    }

    #[test]
    fn what_a_link_needs_passes_and_nothing_else() {
        let kinds: Vec<u8> =
            (0..=255).filter(|kind| !refuses(&packet("fe80::1", "ff02::1", Traffic::Icmp { kind: *kind }))).collect();
        assert_eq!(kinds, [130, 131, 132, 133, 135, 136, 143]);
        for (source, destination, refused) in [
            ("fe80::1", "fe80::2", true),
            ("fe80::1", "fd00:10:244::1", true),
            ("fd00:10:244::1", "febf::2", true),
            ("fd00:10:244::1", "ff02::fb", true),
            ("fd00:10:244::1", "fec0::1", false),
            ("10.244.1.7", "10.244.1.8", false),
        ] {
            let traffic = Traffic::Port { protocol: crate::net::Protocol::Udp, port: 53 };
            assert_eq!(refuses(&packet(source, destination, traffic)), refused, "{source} {destination}");
        }
    }

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
