//! The mark of packets that kube-router gives to a service port: FNV-1a of 32 bits over `203.0.113.7-tcp-80`, of which the lower 14 bits count.

use std::fmt::{self, Write};
use std::net::IpAddr;

use super::Protocol;

/// The bits that such marks are in: below those of kube-proxy (0x4000, 0x8000).
pub const MASK: u32 = 0x3fff;

/// Returns the mark of a service port, which may be 0. `attempt` 0 is the first choice; another is asked for where the mark is taken, and is that of
/// the same text with `-1`, `-2` and so on behind it.
pub fn service_mark(address: IpAddr, protocol: Protocol, port: u16, attempt: u32) -> u32 {
    let mut hash = Fnv(0x811c_9dc5);
    // Writing to a number cannot fail.
    let _ = write!(hash, "{address}-{protocol}-{port}");
    if attempt > 0 {
        let _ = write!(hash, "-{attempt}");
    }
    hash.0 & MASK
}

struct Fnv(u32);

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        Ok(())
    }
}
