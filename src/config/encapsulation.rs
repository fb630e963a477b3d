//! How packets between nodes are encapsulated, and what each way adds to them.
//!
//! `--overlay-encap`, `--overlay-encap-receive`, `--overlay-encap-port`, `--overlay-vxlan-port`, `--overlay-vxlan-id`, `--overlay-wireguard-port`.

use crate::net::Family;

/// `--overlay-encap`: the kind of tunnels between nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encapsulation {
    /// IP in IP (RFC 2003, RFC 2473).
    Ipip,
    /// The same inside UDP, with GUE between.
    Fou(Fou),
    /// Ethernet inside UDP (RFC 7348).
    Vxlan(VxlanNetwork),
    /// Encrypted packets inside UDP (WireGuard).
    Wireguard(Encryption),
}

/// Tunnels inside UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fou {
    /// `--overlay-encap-port`: the UDP port of all nodes.
    pub port: u16,
}

/// The one network between all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VxlanNetwork {
    /// `--overlay-vxlan-port`: the UDP port of all nodes.
    pub port: u16,
    /// `--overlay-vxlan-id`: its number (VNI), 24 bits.
    pub id: u32,
}

/// Tunnels by WireGuard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encryption {
    /// `--overlay-wireguard-port`: the UDP port of all nodes.
    pub port: u16,
}

impl Encryption {
    /// Returns the second UDP port of all nodes, at which they receive besides while the key of any of them changes: the next one.
    pub fn second_port(self) -> u16 {
        self.port.checked_add(1).unwrap_or(self.port - 1)
    }
}

/// `--overlay-encap-receive`: other kinds of tunnels in which packets of nodes are taken, by which nothing is sent. In the order of the kinds, each once.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Received([Option<Encapsulation>; 3]);

impl Received {
    /// Returns the kinds that are among `kinds` and are not `sent`; in the order of `kinds`, so far as there is room for them.
    pub fn besides(sent: Encapsulation, kinds: impl IntoIterator<Item = Encapsulation>) -> Received {
        let mut received = Received::default();
        let others = kinds.into_iter().filter(|kind| *kind != sent);
        received.0.iter_mut().zip(others).for_each(|(place, kind)| *place = Some(kind));
        received
    }

    pub fn kinds(self) -> impl Iterator<Item = Encapsulation> {
        self.0.into_iter().flatten()
    }
}

/// Length of a UDP header, of GUE without options, of the header of VXLAN, and of Ethernet's.
const UDP: u32 = 8;
const GUE: u32 = 4;
const VXLAN: u32 = 8;
const ETHERNET: u32 = 14;
/// Header and authentication tag of a data message of WireGuard.
const WIREGUARD: u32 = 16 + 16;

impl Encapsulation {
    /// Returns the word that the flags have for it.
    pub fn name(self) -> &'static str {
        match self {
            Encapsulation::Ipip => "ipip",
            Encapsulation::Fou(_) => "fou",
            Encapsulation::Vxlan(_) => "vxlan",
            Encapsulation::Wireguard(_) => "wireguard",
        }
    }

    /// Returns the number of bytes that are added to a packet on its way to an address of this family.
    pub fn overhead(self, outer: Family) -> u32 {
        let ip = match outer {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        match self {
            Encapsulation::Ipip => ip,
            Encapsulation::Fou(_) => ip + UDP + GUE,
            Encapsulation::Vxlan(_) => ip + UDP + VXLAN + ETHERNET,
            Encapsulation::Wireguard(_) => ip + UDP + WIREGUARD,
        }
    }

    /// Returns the UDP port at which the kernel receives packets inside GUE; `None` where it receives none.
    pub fn gue_port(self) -> Option<u16> {
        match self {
            Encapsulation::Ipip | Encapsulation::Vxlan(_) | Encapsulation::Wireguard(_) => None,
            Encapsulation::Fou(Fou { port }) => Some(port),
        }
    }

    /// Returns the UDP port of all nodes, where there is one.
    pub fn port(self) -> Option<u16> {
        match self {
            Encapsulation::Ipip => None,
            Encapsulation::Fou(fou) => Some(fou.port),
            Encapsulation::Vxlan(network) => Some(network.port),
            Encapsulation::Wireguard(encryption) => Some(encryption.port),
        }
    }

    /// Returns the network of the nodes, where there is one.
    pub fn vxlan(self) -> Option<VxlanNetwork> {
        match self {
            Encapsulation::Ipip | Encapsulation::Fou(_) | Encapsulation::Wireguard(_) => None,
            Encapsulation::Vxlan(network) => Some(network),
        }
    }

    /// Returns how packets are encrypted, where they are.
    pub fn wireguard(self) -> Option<Encryption> {
        match self {
            Encapsulation::Ipip | Encapsulation::Fou(_) | Encapsulation::Vxlan(_) => None,
            Encapsulation::Wireguard(encryption) => Some(encryption),
        }
    }

    /// Returns the modules of the kernel for tunnels that begin and end at addresses of this family: of tunnels, and of what they are inside.
    pub fn modules(self, outer: Family) -> &'static [&'static str] {
        match (self, outer) {
            (Encapsulation::Ipip, Family::V4) => &["ipip"],
            (Encapsulation::Ipip, Family::V6) => &["ip6_tunnel"],
            (Encapsulation::Fou(_), Family::V4) => &["ipip", "fou"],
            (Encapsulation::Fou(_), Family::V6) => &["ip6_tunnel", "fou6"],
            (Encapsulation::Vxlan(_), _) => &["vxlan"],
            (Encapsulation::Wireguard(_), _) => &["wireguard"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_port_is_beside_the_first() {
        let second = |port| Encryption { port }.second_port();
        assert_eq!((second(51820), second(65535)), (51821, 65534));
    }

    #[test]
    fn each_kind_adds_its_headers() {
        let fou = Encapsulation::Fou(Fou { port: 5555 });
        let vxlan = Encapsulation::Vxlan(VxlanNetwork { port: 4789, id: 1 });
        let wireguard = Encapsulation::Wireguard(Encryption { port: 51820 });
        for (kind, v4, v6) in [(Encapsulation::Ipip, 20, 40), (fou, 32, 52), (vxlan, 50, 70), (wireguard, 60, 80)] {
            assert_eq!((kind.overhead(Family::V4), kind.overhead(Family::V6)), (v4, v6), "{kind:?}");
        }
    }
}
