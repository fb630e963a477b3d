//! Multicast and broadcast: packets that reach every pod of a bridge at once.
//!
//! Kubernetes: a policy says who may send to a pod, by the pod's address, and a packet to a group or to everybody has
//! none. Which pods get it, the ports of the bridge decide. So while any pod of this node is isolated for ingress, none
//! gets such packets over a bridge of pods, whether from another port or routed. A pod that is isolated for egress only
//! is judged by the source of what it sends, as always. The node itself goes on reaching its pods, and what pods send
//! to groups reaches the node.
//!
//! What a link needs passes: neighbour discovery and MLD ([`icmp::OF_LINKS`]), and DHCP, by which a pod gets its address
//! where the CNI plugin asks a server on the bridge (RFC 2131 4.1: from and to addresses that are not known yet). ARP is
//! not IP. IGMP does not pass: it serves groups that are closed.
//!
//! Pods that are not isolated lose multicast and broadcast too. The road not taken: closing the ports of isolated pods
//! only. Which port is whose is not known here (`link_local`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::net::{Family, PortRange, Protocol, icmp};

use super::rules::{Direction, RuleSet};
use super::verdict::{Packet, Traffic};

/// All groups of IPv6, whatever their scope (RFC 4291 2.7).
pub const GROUPS_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8));

/// Everybody on the link (RFC 919): the destination of DHCP where one side has no address.
pub const EVERYBODY: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32));

/// The ports of DHCP servers and clients, over UDP.
pub const DHCP: PortRange = PortRange { first: 67, last: 68 };

/// Returns whether multicast and broadcast to pods are refused: any pod of this node is isolated for ingress, or a
/// ClusterNetworkPolicy denies it something there.
pub fn is_closed(rules: &RuleSet) -> bool {
    rules.pods.values().any(|pod| rules.may_refuse(pod, Direction::Ingress))
}

/// Returns whether a packet is refused for its destination while those are closed. The broadcast address of a bridge's
/// own network is not known here.
pub fn refuses(packet: &Packet) -> bool {
    let is_needed = match packet.traffic {
        Traffic::Icmp { kind } => {
            packet.destination.is_ipv6() && icmp::OF_LINKS.iter().any(|one| one.number(Family::V6) == kind)
        }
        Traffic::Port { protocol, port } => {
            EVERYBODY.contains(&packet.destination)
                && protocol == Protocol::Udp
                && (DHCP.first..=DHCP.last).contains(&port)
        }
        Traffic::Tunnel => false,
    };
    is_for_many(packet.destination) && !is_needed && !packet.from_this_node
}

/// Returns whether an address is a group's or everybody's. The unspecified address of IPv4 is an old form of broadcast,
/// which the kernel still accepts (RFC 1122 3.2.1.3).
fn is_for_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_needs_passes_and_nothing_else() {
        let refuses = |destination: &str, traffic| {
            let source = if destination.contains(':') { "fd00:10:244::1" } else { "10.244.1.7" };
            let [source, destination] = [source, destination].map(|text| text.parse().expect("an address"));
            refuses(&Packet { source, destination, traffic, from_this_node: false })
        };
        let udp = |port| Traffic::Port { protocol: Protocol::Udp, port };
        for (destination, traffic, refused) in [
            ("224.0.0.251", udp(5353), true),
            ("239.255.255.255", udp(67), true),
            ("255.255.255.255", udp(5353), true),
            ("255.255.255.255", udp(67), false),
            ("255.255.255.255", udp(68), false),
            ("255.255.255.255", Traffic::Port { protocol: Protocol::Tcp, port: 68 }, true),
            ("255.255.255.255", Traffic::Icmp { kind: 135 }, true),
            ("0.0.0.0", udp(5353), true),
            ("10.244.1.8", udp(5353), false),
            ("ff02::fb", udp(5353), true),
            ("ff0e::fb", udp(547), true),
            ("ff02::1:ff00:8", Traffic::Icmp { kind: 135 }, false),
            ("ff02::16", Traffic::Icmp { kind: 143 }, false),
            ("ff02::1", Traffic::Icmp { kind: 128 }, true),
            ("fd00:10:244::8", udp(5353), false),
        ] {
            assert_eq!(refuses(destination, traffic), refused, "{destination} {traffic}");
        }
    }
}
