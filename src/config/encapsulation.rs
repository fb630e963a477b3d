//! How packets between nodes are encapsulated. What one kind is and adds is in the file of its name.
//!
//! `--overlay-encap`, `--overlay-encap-receive`, `--overlay-encap-port`, `--overlay-vxlan-port`, `--overlay-vxlan-id`, `--overlay-wireguard-port`.

mod fou;
mod ipip;
mod vxlan;
mod wireguard;

use crate::net::Family;

pub use fou::Fou;
use ipip::Ipip;
pub use vxlan::VxlanNetwork;
pub use wireguard::Encryption;

/// One kind of tunnels: its word, what it adds, what it asks of the kernel.
trait Kind {
    /// The word that the flags have for it.
    fn name(&self) -> &'static str;

    /// Number of bytes between the outer IP header and the packet.
    fn headers(&self) -> u32;

    /// The UDP port of all nodes, where there is one.
    fn port(&self) -> Option<u16>;

    /// The modules of the kernel for tunnels that begin and end at addresses of this family: of tunnels, and of what they are inside.
    fn modules(&self, outer: Family) -> &'static [&'static str];

    /// Those of them that are loaded at the start; the kernel loads others with the first tunnel.
    fn modules_at_start(&self, outer: Family) -> &'static [&'static str];
}

/// Length of a UDP header.
const UDP: u32 = 8;

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

impl Encapsulation {
    fn kind(&self) -> &dyn Kind {
        match self {
            Encapsulation::Ipip => &Ipip,
            Encapsulation::Fou(fou) => fou,
            Encapsulation::Vxlan(network) => network,
            Encapsulation::Wireguard(encryption) => encryption,
        }
    }

    /// Returns the word that the flags have for it.
    pub fn name(self) -> &'static str {
        self.kind().name()
    }

    /// Returns the number of bytes that are added to a packet on its way to an address of this family.
    pub fn overhead(self, outer: Family) -> u32 {
        let ip = match outer {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        ip + self.kind().headers()
    }

    /// Returns the UDP port of all nodes, where there is one.
    pub fn port(self) -> Option<u16> {
        self.kind().port()
    }

    /// Returns the modules of the kernel for tunnels that begin and end at addresses of this family: of tunnels, and of what they are inside.
    pub fn modules(self, outer: Family) -> &'static [&'static str] {
        self.kind().modules(outer)
    }

    /// Returns those of them that are loaded at the start; the kernel loads others with the first tunnel.
    pub fn modules_at_start(self, outer: Family) -> &'static [&'static str] {
        self.kind().modules_at_start(outer)
    }

    /// Returns the tunnels inside UDP, where it is these.
    pub fn fou(self) -> Option<Fou> {
        match self {
            Encapsulation::Ipip | Encapsulation::Vxlan(_) | Encapsulation::Wireguard(_) => None,
            Encapsulation::Fou(fou) => Some(fou),
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
