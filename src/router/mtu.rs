//! The MTU of the pod bridge, of the CNI file and of tunnels.
//!
//! `--auto-mtu`. Pods get the MTU of the link that carries the node's address, so that nothing is lost between nodes of one
//! subnet; where the two families leave by different links, the smaller one. With `--overlay-type=full` all traffic between pods of different nodes goes through tunnels, and what a tunnel adds
//! is taken off; of the kinds by which packets are received (`--overlay-encap-receive`) the one that adds most counts, because other nodes send by it. With `subnet` it is not: a packet that is too large for a tunnel is answered by this node ("fragmentation
//! needed", "packet too big"), and the pod sends smaller ones on that path alone.

use std::net::IpAddr;

use crate::config::{Encapsulation, Reach, RouterConfig};
use crate::model::{Host, HostAddress, Node};
use crate::net::{Family, PerFamily};

use super::names::BRIDGE;

/// The minimum MTU of an IPv6 link (RFC 8200 5).
const LEAST: u32 = 1280;

/// The loopback device. Its MTU says nothing about a link: packets from an address on it leave by another one.
const LOOPBACK: &str = "lo";

/// Returns the MTU of the link by which packets from our address of each family leave, in bytes; `None` without an address, or a link. That is the link which carries the address.
/// Of one on the loopback device, or on no link, it is that of the other family. Where neither is on a link, and one on the loopback device, the smallest MTU of the host's
/// links with a global address counts for both, of bridges only where there is no other link; links of pods are none of them. So all tunnels have an MTU or none.
/// Addresses that are nowhere may be back in a moment.
pub fn links(host: &Host, own: PerFamily<Option<IpAddr>>, node: &Node) -> PerFamily<Option<u32>> {
    let link = |name: &str| host.links.iter().find(|link| link.name == name);
    let carrying = |address: IpAddr| host.addresses.iter().find(|one| one.address == address && one.link != LOOPBACK);
    let carried =
        PerFamily::from_fn(|family| own.of(family).and_then(|address| Some(link(&carrying(address)?.link)?.mtu)));
    let is_of_pods = |address: IpAddr| node.pod_cidrs.iter().any(|range| range.contains(&address));
    let leads_out =
        |one: &&HostAddress| one.global && ![LOOPBACK, BRIDGE].contains(&one.link.as_str()) && !is_of_pods(one.address);
    let smallest = |bridge: bool| {
        let links = host.addresses.iter().filter(leads_out).filter_map(|one| link(&one.link));
        links.filter(|link| link.bridge == bridge).map(|link| link.mtu).min()
    };
    let is_on_loopback =
        |address: IpAddr| host.addresses.iter().any(|one| one.address == address && one.link == LOOPBACK);
    let guessed = || smallest(false).or_else(|| smallest(true));
    let is_guessed = [own.v4, own.v6].into_iter().flatten().any(is_on_loopback);
    let other = carried.v4.or(carried.v6).or_else(|| if is_guessed { guessed() } else { None });
    PerFamily::from_fn(|family| own.of(family).and_then(|_| carried.of(family).or(other)))
}

/// Returns the MTU of pods and their bridge; `None` to leave it alone. `links`: of the links of each family; `families`: those in which there may be tunnels.
pub fn pods(links: PerFamily<Option<u32>>, config: &RouterConfig, families: PerFamily<bool>) -> Option<u32> {
    let through_tunnels = config.overlay.filter(|overlay| overlay.reach == Reach::Full);
    let of_family = |family: Family| {
        let link = links.of(family).filter(|_| config.auto_mtu && *families.of(family))?;
        Some(inside(link, through_tunnels.map_or(0, |overlay| overlay.overhead(family))))
    };
    Family::BOTH.into_iter().filter_map(of_family).min()
}

/// Returns the MTU of a tunnel of this kind to an address; `None` to leave it to the kernel. `links`: as in [`pods`].
pub fn tunnel(
    links: PerFamily<Option<u32>>,
    config: &RouterConfig,
    kind: Encapsulation,
    remote: IpAddr,
) -> Option<u32> {
    let link = links.of(Family::from(remote)).filter(|_| config.auto_mtu)?;
    Some(inside(link, kind.overhead(Family::from(remote))))
}

/// Returns what a link leaves inside a tunnel that adds so many bytes. No link becomes too small for IPv6 by that.
fn inside(link: u32, added: u32) -> u32 {
    link.saturating_sub(added).max(LEAST.min(link))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HostLink;
    use crate::router::given::{address, config, node};

    const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };
    const V4: PerFamily<bool> = PerFamily { v4: true, v6: false };

    /// Both families leave by one link.
    fn one(mtu: u32) -> PerFamily<Option<u32>> {
        PerFamily { v4: Some(mtu), v6: Some(mtu) }
    }

    #[test]
    fn pods_lose_what_tunnels_add_only_where_all_their_traffic_goes_through_them() {
        for (words, families, mtu) in [
            (&[][..], V4, 1500),
            (&["--enable-overlay=false"], V4, 1500),
            (&["--overlay-type=full"], V4, 1480),
            (&["--overlay-type=full"], BOTH, 1460),
            (&["--overlay-type=full", "--overlay-encap=fou"], V4, 1468),
            (&["--overlay-type=full", "--overlay-encap=fou"], BOTH, 1448),
            (&["--overlay-type=full", "--overlay-encap=vxlan"], V4, 1450),
            (&["--overlay-type=full", "--overlay-encap=vxlan"], BOTH, 1430),
            (&["--overlay-type=full", "--overlay-encap=wireguard"], V4, 1440),
            (&["--overlay-type=full", "--overlay-encap=wireguard"], BOTH, 1420),
            (&["--overlay-type=full", "--overlay-encap-receive=vxlan"], V4, 1450),
            (&["--overlay-type=full", "--overlay-encap-receive=vxlan,wireguard"], BOTH, 1420),
            (&["--overlay-type=full", "--overlay-encap=wireguard", "--overlay-encap-receive=ipip"], BOTH, 1420),
            (&["--overlay-encap-receive=vxlan"], BOTH, 1500),
        ] {
            assert_eq!(pods(one(1500), &config(words), families), Some(mtu), "{words:?}");
        }
        assert_eq!(pods(one(1500), &config(&["--auto-mtu=false"]), V4), None);
        assert_eq!(pods(PerFamily::default(), &config(&[]), V4), None, "nothing is guessed");
    }

    #[test]
    fn where_the_families_leave_by_different_links_each_tunnel_has_its_own_and_pods_the_smaller_one() {
        let links = PerFamily { v4: Some(9000), v6: Some(1500) };
        for (words, families, mtu) in [
            (&[][..], BOTH, 1500),
            (&[], V4, 9000),
            (&["--overlay-type=full"], BOTH, 1460),
            (&["--overlay-type=full", "--overlay-encap=vxlan"], V4, 8950),
        ] {
            assert_eq!(pods(links, &config(words), families), Some(mtu), "{words:?} {families:?}");
        }
        let config = config(&[]);
        let kind = config.overlay.expect("there are tunnels").encapsulation;
        let of = |remote: &str| tunnel(links, &config, kind, address(remote));
        assert_eq!((of("192.0.2.2"), of("2001:db8::2")), (Some(8980), Some(1460)));
        let unknown = PerFamily { v4: Some(9000), v6: None };
        assert_eq!(pods(unknown, &config, BOTH), Some(9000));
    }

    /// A host of addresses with their links, and of links with their MTUs; those whose names begin with `br` are bridges.
    fn host(addresses: &[(&str, &str)], links: &[(&str, u32)]) -> Host {
        let on = |(text, link): &(&str, &str)| HostAddress {
            address: address(text),
            link: (*link).into(),
            global: !address(text).is_loopback(),
        };
        let link =
            |(name, mtu): &(&str, u32)| HostLink { name: (*name).into(), mtu: *mtu, bridge: name.starts_with("br") };
        Host {
            addresses: addresses.iter().map(on).collect(),
            links: links.iter().map(link).collect(),
            ..Host::default()
        }
    }

    #[test]
    fn packets_leave_by_the_link_with_the_address_or_else_by_one_of_the_hosts_links() {
        let mtus =
            [("lo", 65536), ("eth0", 9000), ("eth1", 1400), ("kube-bridge", 1280), ("br-pods", 1280), ("br0", 1300)];
        let own = node("192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64");
        let around = [
            ("127.0.0.1", "lo"),
            ("198.51.100.1", "eth0"),
            ("198.51.101.1", "eth1"),
            ("172.17.0.1", "br0"),
            ("10.244.1.1", "kube-bridge"),
            ("10.245.0.1", "kube-bridge"),
            ("10.244.1.129", "br-pods"),
        ];
        let both = PerFamily { v4: Some(address("192.0.2.1")), v6: Some(address("2001:db8::1")) };
        let of = |more: &[(&str, &str)]| links(&host(&[&around[..], more].concat(), &mtus), both, &own);
        let of_each = |v4, v6| PerFamily { v4: Some(v4), v6: Some(v6) };
        for (carried, expected) in [
            (&[("192.0.2.1", "eth0"), ("2001:db8::1", "eth0")][..], of_each(9000, 9000)),
            (&[("192.0.2.1", "eth0"), ("2001:db8::1", "eth1")], of_each(9000, 1400)),
            (&[("192.0.2.1", "br0"), ("2001:db8::1", "eth0")], of_each(1300, 9000)),
            // One on no link of this host, as where a gateway translates it, has that of the other.
            (&[("192.0.2.1", "eth0")], of_each(9000, 9000)),
            (&[("192.0.2.1", "lo"), ("2001:db8::1", "eth0")], of_each(9000, 9000)),
            // A host that speaks BGP to its racks.
            (&[("192.0.2.1", "lo"), ("2001:db8::1", "lo")], of_each(1400, 1400)),
        ] {
            assert_eq!(of(carried), expected, "{carried:?}");
        }
        assert_eq!(of(&[]), PerFamily::default(), "the addresses are away for a moment");
        assert_eq!(
            of(&[("192.0.2.1", "lo")]),
            of_each(1400, 1400),
            "the other one is away, or translated by a gateway"
        );
        let alone = PerFamily { v4: None, ..both };
        let on_loopback =
            |more: &[(&str, &str)]| links(&host(&[&[("2001:db8::1", "lo")][..], more].concat(), &mtus), alone, &own);
        assert_eq!(on_loopback(&[]), PerFamily::default(), "nothing is guessed");
        assert_eq!(on_loopback(&[("172.17.0.1", "br0")]), PerFamily { v4: None, v6: Some(1300) });
    }

    #[test]
    fn no_link_becomes_too_small_for_ipv6() {
        let full = config(&["--overlay-type=full"]);
        assert_eq!(pods(one(1290), &full, BOTH), Some(1280));
        assert_eq!(pods(one(900), &full, BOTH), Some(900));
    }

    #[test]
    fn a_tunnel_has_room_for_what_it_adds() {
        let of = |words: &[&str], remote: &str| {
            let config = config(words);
            let overlay = config.overlay.expect("there are tunnels");
            tunnel(one(9000), &config, overlay.encapsulation, remote.parse().expect("an address"))
        };
        assert_eq!(of(&[], "192.0.2.1"), Some(8980));
        assert_eq!(of(&[], "2001:db8::1"), Some(8960));
        assert_eq!(of(&["--overlay-encap=fou"], "192.0.2.1"), Some(8968));
        assert_eq!(of(&["--overlay-encap=fou"], "2001:db8::1"), Some(8948));
        assert_eq!(of(&["--overlay-encap=vxlan"], "192.0.2.1"), Some(8950));
        assert_eq!(of(&["--overlay-encap=vxlan"], "2001:db8::1"), Some(8930));
        assert_eq!(of(&["--overlay-encap=wireguard"], "192.0.2.1"), Some(8940));
        assert_eq!(of(&["--overlay-encap=wireguard"], "2001:db8::1"), Some(8920));
        assert_eq!(of(&["--auto-mtu=false"], "192.0.2.1"), None);
    }
}
