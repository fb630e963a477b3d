//! How packets between nodes are encapsulated, and what each way adds to them.
//!
//! `--overlay-encap`, `--overlay-encap-port`.

use crate::net::Family;

/// `--overlay-encap`: the kind of tunnels between nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encapsulation {
    /// IP in IP (RFC 2003, RFC 2473).
    Ipip,
    /// The same inside UDP, with GUE between.
    Fou(Fou),
}

/// Tunnels inside UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fou {
    /// `--overlay-encap-port`: the UDP port of all nodes.
    pub port: u16,
}

/// Length of a UDP header, and of GUE without options.
const UDP: u32 = 8;
const GUE: u32 = 4;

impl Encapsulation {
    /// Returns the number of bytes that are added to a packet on its way to an address of this family.
    pub fn overhead(self, outer: Family) -> u32 {
        let ip = match outer {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        match self {
            Encapsulation::Ipip => ip,
            Encapsulation::Fou(_) => ip + UDP + GUE,
        }
    }

    /// Returns the UDP port at which the kernel receives packets inside GUE; `None` where it receives none.
    pub fn gue_port(self) -> Option<u16> {
        match self {
            Encapsulation::Ipip => None,
            Encapsulation::Fou(Fou { port }) => Some(port),
        }
    }

    /// Returns the modules of the kernel for tunnels that begin and end at addresses of this family: of tunnels, and of what they are inside.
    pub fn modules(self, outer: Family) -> &'static [&'static str] {
        match (self, outer) {
            (Encapsulation::Ipip, Family::V4) => &["ipip"],
            (Encapsulation::Ipip, Family::V6) => &["ip6_tunnel"],
            (Encapsulation::Fou(_), Family::V4) => &["ipip", "fou"],
            (Encapsulation::Fou(_), Family::V6) => &["ip6_tunnel", "fou6"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_adds_its_headers() {
        let fou = Encapsulation::Fou(Fou { port: 5555 });
        for (kind, v4, v6) in [(Encapsulation::Ipip, 20, 40), (fou, 32, 52)] {
            assert_eq!((kind.overhead(Family::V4), kind.overhead(Family::V6)), (v4, v6), "{kind:?}");
        }
    }
}
