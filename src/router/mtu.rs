//! The MTU of the pod bridge, of the CNI file and of tunnels.
//!
//! `--auto-mtu`. Pods get the MTU of the link that carries the node's address, so that nothing is lost between nodes of one
//! subnet. With `--overlay-type=full` all traffic between pods of different nodes goes through tunnels, and what a tunnel adds
//! is taken off; of the kinds by which packets are received (`--overlay-encap-receive`) the one that adds most counts, because other nodes send by it. With `subnet` it is not: a packet that is too large for a tunnel is answered by this node ("fragmentation
//! needed", "packet too big"), and the pod sends smaller ones on that path alone.

use std::net::IpAddr;

use crate::config::{Encapsulation, Reach, RouterConfig};
use crate::net::{Family, PerFamily};

/// The minimum MTU of an IPv6 link (RFC 8200 5).
const LEAST: u32 = 1280;

/// Returns the MTU of pods and their bridge; `None` to leave it alone. `families`: those in which there may be tunnels.
pub fn pods(link: Option<u32>, config: &RouterConfig, families: PerFamily<bool>) -> Option<u32> {
    let link = link.filter(|_| config.auto_mtu)?;
    let through_tunnels = config.overlay.filter(|overlay| overlay.reach == Reach::Full);
    let added = through_tunnels.map_or(0, |overlay| {
        let possible = Family::BOTH.into_iter().filter(|family| *families.of(*family));
        possible.map(|family| overlay.overhead(family)).max().unwrap_or_default()
    });
    Some(link.saturating_sub(added).max(LEAST.min(link)))
}

/// Returns the MTU of a tunnel of this kind to an address; `None` to leave it to the kernel.
pub fn tunnel(link: Option<u32>, config: &RouterConfig, kind: Encapsulation, remote: IpAddr) -> Option<u32> {
    let link = link.filter(|_| config.auto_mtu)?;
    Some(link.saturating_sub(kind.overhead(Family::from(remote))).max(LEAST.min(link)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::given::config;

    const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };
    const V4: PerFamily<bool> = PerFamily { v4: true, v6: false };

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
            assert_eq!(pods(Some(1500), &config(words), families), Some(mtu), "{words:?}");
        }
        assert_eq!(pods(Some(1500), &config(&["--auto-mtu=false"]), V4), None);
        assert_eq!(pods(None, &config(&[]), V4), None, "nothing is guessed");
    }

    #[test]
    fn no_link_becomes_too_small_for_ipv6() {
        let full = config(&["--overlay-type=full"]);
        assert_eq!(pods(Some(1290), &full, BOTH), Some(1280));
        assert_eq!(pods(Some(900), &full, BOTH), Some(900));
    }

    #[test]
    fn a_tunnel_has_room_for_what_it_adds() {
        let of = |words: &[&str], remote: &str| {
            let config = config(words);
            let overlay = config.overlay.expect("there are tunnels");
            tunnel(Some(9000), &config, overlay.encapsulation, remote.parse().expect("an address"))
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
