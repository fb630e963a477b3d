//! `fou`: IP in IP, inside UDP with GUE between.

use super::{Kind, UDP};
use crate::net::Family;

/// Tunnels inside UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fou {
    /// `--overlay-encap-port`: the UDP port of all nodes, at which the kernel receives.
    pub port: u16,
}

/// Length of GUE without options.
const GUE: u32 = 4;

impl Kind for Fou {
    fn name(&self) -> &'static str {
        "fou"
    }

    fn headers(&self) -> u32 {
        UDP + GUE
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn modules(&self, outer: Family) -> &'static [&'static str] {
        match outer {
            Family::V4 => &["ipip", "fou"],
            Family::V6 => &["ip6_tunnel", "fou6"],
        }
    }

    fn modules_at_start(&self, outer: Family) -> &'static [&'static str] {
        match outer {
            Family::V4 => &["fou"],
            Family::V6 => &["fou6"],
        }
    }
}
