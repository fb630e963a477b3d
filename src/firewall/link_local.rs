//! IPv6 link-local addresses: what pods of one bridge send each other, and their node, without any address that the
//! cluster knows.
//!
//! Kubernetes: a policy is about pods by their addresses (`status.podIPs`), and the API never names the `fe80::/10` address
//! that the kernel gives every pod, also where the cluster has no IPv6. So which pod such an address belongs to cannot be
//! told, and no policy can allow it. While any pod of this node is isolated, only what IPv6 needs to work on a link passes
//! there ([`icmp::OF_LINKS`]), and what belongs to a connection; the node itself goes on reaching its pods.
//!
//! In the kernel, first of all in the chains for FORWARD (where `br_netfilter` shows frames between two ports of a bridge)
//! and INPUT, before the exemptions of Services, because a pod may send to a Service from such an address, too:
//!
//! ```text
//! ip6tables -A KUBE-ROUTER-FORWARD -i kube-bridge -j KUBE-NWPLCY-LINK-LOCAL
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -p ipv6-icmp -m icmp6 --icmpv6-type 130 -j RETURN        and the other kinds
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -s fe80::/10 -j DROP
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -d fe80::/10 -j DROP
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -d ff02::/16 -j DROP
//! ```
//!
//! It is dropped, not answered: nothing stands in for this chain, so it asks the kernel for no more than the others that
//! nothing stands in for. Pods that nothing isolates lose link-local connections with it. The road not taken: telling pods apart by the port of the
//! bridge or the hardware address. Neither is known before a pod has sent something, and a pod can choose the second.

use std::net::{IpAddr, Ipv6Addr};

use compact_str::CompactString;
use ipnet::{IpNet, Ipv6Net};

use crate::kernel::iptables::rule::States;
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Verdict};
use crate::model::World;
use crate::net::{Family, icmp};

use super::comment::comment;
use super::dispatch::{self, chain};
use super::names::{CHAIN_FORWARD, CHAIN_INPUT, CHAIN_LINK_LOCAL, ChainKind, kind};
use super::rules::{Isolation, LocalPod, RuleSet};
use super::verdict::{Packet, Traffic};

/// The bridge of our own CNI configuration. Its rule does not wait until it is there.
const POD_BRIDGE: &str = "kube-bridge";

const UNICAST: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));
const MULTICAST: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16));

/// Whether link-local traffic between pods is refused: any pod of this node is isolated, in whatever direction.
pub fn is_closed(rules: &RuleSet) -> bool {
    let is_isolated = |pod: &LocalPod| pod.ingress != Isolation::Open || pod.egress != Isolation::Open;
    rules.pods.values().any(is_isolated)
}

/// Whether a packet that does not belong to a connection is refused for its link-local address while that is closed.
pub fn refuses(packet: &Packet) -> bool {
    let is_concerned = UNICAST.contains(&packet.source)
        || UNICAST.contains(&packet.destination)
        || MULTICAST.contains(&packet.destination);
    let is_of_links = matches!(packet.traffic, Traffic::Icmp { kind }
        if icmp::OF_LINKS.iter().any(|(_, number)| *number == kind));
    is_concerned && !is_of_links && !packet.from_this_node
}

/// The bridges that pods of this node are on, sorted: our own, and those whose network holds the address of one. A bridge that
/// has an address of the Node is the node's own link, where others need link-local addresses (DHCPv6, routing protocols).
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

/// The rules that stand first in the chains for INPUT and FORWARD, one for each of the bridges.
pub fn jumps(bridges: &[CompactString]) -> impl Iterator<Item = Rule> {
    let said = comment("link-local traffic of pods");
    bridges.iter().map(move |bridge| {
        let from_bridge = Match::InputLink(bridge.as_str().into());
        Rule::new([from_bridge, said.clone()], Verdict::Jump(CHAIN_LINK_LOCAL.into()))
    })
}

/// Whether a rule is one of those.
pub fn is_jump(rule: &Rule) -> bool {
    super::pod_chain::jump(rule).is_some_and(|to| kind(to) == Some(ChainKind::LinkLocal))
}

/// The chain; `None` where nothing is closed.
pub fn rules(bridges: &[CompactString]) -> (Piece, Option<Rules>) {
    let established = Match::State { states: States::RELATED.or(States::ESTABLISHED), negated: false };
    let said = comment("rule for stateful firewall for link-local traffic");
    let mut rules = vec![Rule::new([said, established], Verdict::Return)];
    rules.extend(icmp::OF_LINKS.iter().map(|(kind, number)| {
        let said = comment(&format!("allow icmp {}", kind.name()));
        Rule::of_icmp(Family::V6, *number, said, Verdict::Return)
    }));
    let said = comment("drop link-local traffic of pods");
    let from = |range| Match::Source { range, negated: false };
    let to = |range| Match::Destination { range, negated: false };
    rules.extend(
        [from(UNICAST), to(UNICAST), to(MULTICAST)]
            .map(|concerned| Rule::new([concerned, said.clone()], Verdict::Drop)),
    );
    (chain(Family::V6, CHAIN_LINK_LOCAL), (!bridges.is_empty()).then_some(Rules(rules)))
}

/// All that is wanted of IPv6 apart from [`rules`] where policies do not speak of it (without `--enable-ipv6`).
pub fn alone(bridges: &[CompactString]) -> Vec<(Piece, Option<Rules>)> {
    let is_closed = !bridges.is_empty();
    let entrances = dispatch::entrances(Family::V6).filter(|(_, to, _)| [CHAIN_INPUT, CHAIN_FORWARD].contains(to));
    let pieces = entrances
        .flat_map(|(jump, to, rules)| [(chain(Family::V6, to), Rules(jumps(bridges).collect())), (jump, rules)]);
    pieces.map(|(piece, rules)| (piece, is_closed.then_some(rules))).collect()
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
        assert_eq!(kinds, [130, 131, 132, 133, 134, 135, 136, 137, 143]);
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
    }

    #[test]
    fn nothing_is_wanted_while_nothing_is_closed() {
        assert!(rules(&[]).1.is_none() && alone(&[]).iter().all(|(_, rules)| rules.is_none()));
        let pieces: Vec<String> = alone(&["kube-bridge".into()]).iter().map(|(piece, _)| piece.to_string()).collect();
        assert_eq!(pieces.len(), 4, "{pieces:?}");
    }
}
