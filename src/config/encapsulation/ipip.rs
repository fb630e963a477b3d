//! `ipip`: IP in IP (RFC 2003, RFC 2473).

use super::Kind;
use crate::net::Family;

pub(super) struct Ipip;

impl Kind for Ipip {
    fn name(&self) -> &'static str {
        "ipip"
    }

    fn headers(&self) -> u32 {
        0
    }

    fn port(&self) -> Option<u16> {
        None
    }

    fn modules(&self, outer: Family) -> &'static [&'static str] {
        match outer {
            Family::V4 => &["ipip"],
            Family::V6 => &["ip6_tunnel"],
        }
    }

    fn modules_at_start(&self, _: Family) -> &'static [&'static str] {
        &[]
    }
}
