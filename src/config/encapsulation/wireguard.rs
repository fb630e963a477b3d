//! `wireguard`: encrypted packets inside UDP (WireGuard).

use super::{Kind, UDP};
use crate::net::Family;

/// Tunnels by WireGuard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encryption {
    /// `--overlay-wireguard-port`: the UDP port of all nodes.
    pub port: u16,
}

/// Header and authentication tag of a data message.
const DATA: u32 = 16 + 16;

impl Encryption {
    /// Returns the second UDP port of all nodes, at which they receive besides while the key of any of them changes: the next one.
    pub fn second_port(self) -> u16 {
        self.port.checked_add(1).unwrap_or(self.port - 1)
    }
}

impl Kind for Encryption {
    fn name(&self) -> &'static str {
        "wireguard"
    }

    fn headers(&self) -> u32 {
        UDP + DATA
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn modules(&self, _: Family) -> &'static [&'static str] {
        &["wireguard"]
    }

    fn modules_at_start(&self, outer: Family) -> &'static [&'static str] {
        self.modules(outer)
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
}
