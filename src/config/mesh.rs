//! Configuration of the sessions between nodes: `--bgp-mesh-holdtime`, `--bgp-mesh-ttl-security`, `--bgp-mesh-max-prefixes`.
//!
//! Limits come from the wire formats: RFC 4271 4.2 (hold time: 16 bits of seconds, at least 3), RFC 5082 (TTL: 8 bits).

use std::ops::RangeInclusive;
use std::time::Duration;

use super::duration::GoDuration;
use super::flags::Flags;
use super::mistakes::Mistakes;

/// Settings of the sessions between nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MeshConfig {
    /// Hold time, in seconds, as offered to other nodes.
    pub hold_time: u16,
    /// GTSM: distance of other nodes in hops, at most; `None` for no GTSM.
    pub ttl_security: Option<u8>,
    /// Maximum number of prefixes of one family from a node.
    pub most_prefixes: u32,
}

const HOLD_TIMES: RangeInclusive<Duration> = Duration::from_secs(3)..=Duration::from_secs(65_535);
const MOST_HOPS: u8 = u8::MAX - 1;
const MOST_PREFIXES: u64 = 100_000_000;

impl MeshConfig {
    pub(super) fn from_flags(flags: &Flags, mistakes: &mut Mistakes) -> MeshConfig {
        mistakes.number_within("bgp-mesh-ttl-security", flags.bgp_mesh_ttl_security.into(), 0..=MOST_HOPS.into());
        mistakes.number_within("bgp-mesh-max-prefixes", flags.bgp_mesh_max_prefixes.into(), 1..=MOST_PREFIXES);
        MeshConfig {
            hold_time: hold_time("bgp-mesh-holdtime", flags.bgp_mesh_holdtime, mistakes),
            ttl_security: Some(flags.bgp_mesh_ttl_security).filter(|hops| *hops > 0),
            most_prefixes: flags.bgp_mesh_max_prefixes,
        }
    }
}

/// Reads a hold time, in seconds.
pub(super) fn hold_time(flag: &str, typed: GoDuration, mistakes: &mut Mistakes) -> u16 {
    mistakes.duration_within(flag, typed, HOLD_TIMES);
    typed.positive_or_zero().and_then(|time| u16::try_from(time.as_secs()).ok()).unwrap_or_default()
}
