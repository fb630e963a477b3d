//! A cell of the matrix: with whom, over what, and how the session is set up on both sides; what each announces, and what
//! the other is to have then.

use std::collections::BTreeSet;

use sluice::net::{Family, PerFamily};

use crate::ground::{Host, Topology};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Daemon {
    /// Debian's release, 3.x.
    Gobgp,
    /// The newest release, 4.x, which `scripts/test` builds.
    Gobgp4,
    Bird,
    Frr,
}

impl Daemon {
    pub fn is_gobgp(self) -> bool {
        matches!(self, Daemon::Gobgp | Daemon::Gobgp4)
    }
}

/// How a session is set up. Only what differs from [`Cell::with`] is said in the matrix.
#[derive(Clone, Debug)]
pub struct Cell {
    pub daemon: Daemon,
    /// Our number and theirs.
    pub asns: [u32; 2],
    /// The family of the addresses between which the session is.
    pub over: Family,
    /// Address families that the session negotiates.
    pub families: PerFamily<bool>,
    /// IPv4 routes have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Our password and theirs.
    pub passwords: [Option<&'static str>; 2],
    pub topology: Topology,
    pub hops: Hops,
    pub dials: Dials,
    pub reflects: Reflects,
    pub graceful: bool,
    /// Long-lived stale time of both sides, in seconds; the restart time is short then.
    pub long_lived: Option<u32>,
    /// How many prefixes of a family we take, and they.
    pub most: [Option<u32>; 2],
    /// The daemon says only what fits into two octets (RFC 6793).
    pub two_octets: bool,
}

/// How far the other side may be, as both are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hops {
    /// One hop outside, any inside.
    Plain,
    Multihop(u8),
    /// GTSM.
    Secured(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dials {
    Both,
    We,
    They,
}

/// Who reflects routes to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reflects {
    Nobody,
    /// They are our client.
    We,
    /// We are their client.
    They,
}

/// The attributes of the second route of each family, as a daemon is to have them.
const OUR_ATTRIBUTES: &str =
    "origin incomplete med 50{pref} community 65001:100 community 65001:200 extended rt:65001:300 large 65001:1:2";
const THEIR_ATTRIBUTES: &str = "med 70{pref} community 65002:70 extended rt:65002:700 large 65002:7:8";
/// LOCAL_PREF of the second route in iBGP sessions, on both sides.
pub const PREFERENCE: u32 = 200;

pub const OURS: PerFamily<[&str; 2]> =
    PerFamily { v4: ["10.244.1.0/24", "10.244.2.0/24"], v6: ["fd00:10:244:1::/64", "fd00:10:244:2::/64"] };
pub const THEIRS: PerFamily<[&str; 2]> =
    PerFamily { v4: ["203.0.113.0/25", "203.0.113.128/25"], v6: ["2001:db8:113::/64", "2001:db8:113:1::/64"] };

impl Cell {
    /// A plain session outside that carries both families over IPv4.
    pub fn with(daemon: Daemon) -> Cell {
        Cell {
            daemon,
            asns: [65001, 65002],
            over: Family::V4,
            families: PerFamily { v4: true, v6: true },
            extended_next_hop: false,
            passwords: [None, None],
            topology: Topology::Link,
            hops: Hops::Plain,
            dials: Dials::Both,
            reflects: Reflects::Nobody,
            graceful: false,
            long_lived: None,
            most: [None, None],
            two_octets: false,
        }
    }

    pub fn inside(daemon: Daemon) -> Cell {
        Cell { asns: [65001, 65001], ..Cell::with(daemon) }
    }

    pub fn is_inside(&self) -> bool {
        self.asns[0] == self.asns[1]
    }

    /// Restart time of both sides, in seconds.
    pub fn restart_time(&self) -> u16 {
        if self.long_lived.is_some() { 3 } else { 600 }
    }

    /// The next hop of routes of a family that a host announces.
    pub fn next_hop(&self, host: &Host, family: Family) -> String {
        let family = if self.extended_next_hop { Family::V6 } else { family };
        host.address(family).to_string()
    }

    /// Routes of ours as the other speaker is to list them.
    pub fn they_have(&self, us: &Host) -> BTreeSet<String> {
        self.announced(us, OURS, (self.asns[0], OUR_ATTRIBUTES))
    }

    /// Routes of the other speaker as ours is to list them.
    pub fn we_have(&self, them: &Host) -> BTreeSet<String> {
        self.announced(them, THEIRS, (self.asns[1], THEIR_ATTRIBUTES))
    }

    fn announced(&self, by: &Host, prefixes: PerFamily<[&str; 2]>, of: (u32, &str)) -> BTreeSet<String> {
        let (asn, attributes) = of;
        let path = if self.is_inside() { String::new() } else { format!(" path {asn}") };
        let preference = if self.is_inside() { format!(" pref {PREFERENCE}") } else { String::new() };
        let attributes = attributes.replace("{pref}", &preference);
        let spoken = Family::BOTH.into_iter().filter(|family| *self.families.of(*family));
        spoken
            .flat_map(|family| {
                let [plain, rich] = prefixes.of(family);
                let via = self.next_hop(by, family);
                [format!("{plain} via {via}{path}"), format!("{rich} via {via}{path} {attributes}")]
            })
            .collect()
    }
}
