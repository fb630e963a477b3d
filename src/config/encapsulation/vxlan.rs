//! `vxlan`: Ethernet inside UDP (RFC 7348).

use super::{Kind, UDP};
use crate::net::Family;

/// The one network between all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VxlanNetwork {
    /// `--overlay-vxlan-port`: the UDP port of all nodes.
    pub port: u16,
    /// `--overlay-vxlan-id`: its number (VNI), 24 bits.
    pub id: u32,
}

/// Length of its own header, and of Ethernet's.
const VXLAN: u32 = 8;
const ETHERNET: u32 = 14;

impl Kind for VxlanNetwork {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn headers(&self) -> u32 {
        UDP + VXLAN + ETHERNET
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn modules(&self, _: Family) -> &'static [&'static str] {
        &["vxlan"]
    }

    fn modules_at_start(&self, outer: Family) -> &'static [&'static str] {
        self.modules(outer)
    }
}
