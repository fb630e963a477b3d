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

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv6Net};

use crate::net::{Family, icmp};

use super::rules::{Direction, LocalPod, RuleSet};
use super::verdict::{Packet, Traffic};

/// The unicast addresses that are valid on one link only.
pub const UNICAST: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));
pub const MULTICAST: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16));

/// Returns whether link-local traffic between pods is refused: any pod of this node is isolated, or a ClusterNetworkPolicy denies
/// it something, in either direction.
pub fn is_closed(rules: &RuleSet) -> bool {
    rules.pods.values().any(|pod| closes_for(rules, pod))
}

/// Returns whether this pod is a reason for that.
pub fn closes_for(rules: &RuleSet, pod: &LocalPod) -> bool {
    Direction::BOTH.iter().any(|direction| rules.may_refuse(pod, *direction))
}

/// Returns whether a packet outside of any connection is refused for its link-local address while those are closed.
pub fn refuses(packet: &Packet) -> bool {
    let is_concerned = UNICAST.contains(&packet.source)
        || UNICAST.contains(&packet.destination)
        || MULTICAST.contains(&packet.destination);
    let is_of_links = matches!(packet.traffic, Traffic::Icmp { kind }
        if icmp::OF_LINKS.iter().any(|one| one.number(Family::V6) == kind));
    is_concerned && !is_of_links && !packet.from_this_node
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
