//! A BGP neighbour outside of the cluster, as its administrator names it: by a flag or in an annotation of a node.

use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;

use super::bfd::Bfd;
use super::family::PerFamily;
use super::secret::Secret;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExternalPeer {
    pub remote: Remote,
    pub asn: RemoteAs,
    /// Its TCP port; 179 where absent.
    pub port: Option<u16>,
    pub password: Password,
    /// Our address towards it; the node's own where absent.
    pub local: Option<IpAddr>,
    /// The path to it is watched.
    pub bfd: Option<Bfd>,
    /// The hold time offered to it, in seconds, at least 3; that of the flag where absent.
    pub hold_time: Option<u16>,
    pub distance: Distance,
    /// Long-lived stale time, in seconds, 0 for none; that of the flag where absent.
    pub long_lived: Option<u32>,
    /// Number of its routes of each family above which its session ends; at least 1.
    pub prefix_limits: PerFamily<Option<u32>>,
    /// Whether routes announced to it get our address as the next hop; as the flag says, and as BGP does, where absent.
    pub next_hop_self: Option<bool>,
}

/// How a neighbour is found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Remote {
    Address(IpAddr),
    /// The router that advertises itself on the link of this name (RFC 4861): its link-local address is learned.
    Link(CompactString),
}

/// The autonomous system of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RemoteAs {
    /// This one, which [`asn::is_peer`](super::asn::is_peer).
    Number(u32),
    /// Whichever it has, unless it is ours.
    External,
}

/// The key that both sides sign their segments with.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Password {
    #[default]
    None,
    Key(Secret),
    /// It is in the file of this name, in the one directory where passwords are read.
    File(CompactString),
    /// There is one, but it is not known: it could not be read, or what is known comes from a file that holds no secrets.
    /// The neighbour is not talked to, because without its key a session would be either refused or open to everybody.
    Unknown,
}

/// How many hops away a neighbour may be, which decides the TTL of packets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Distance {
    /// One hop for a neighbour in another system, or what a flag says; any for one in ours.
    #[default]
    Usual,
    /// As many as this TTL allows.
    Multihop(u8),
    /// So many at most, which the kernel checks with each packet that is received (GTSM, RFC 5082); at most 254.
    Secured(u8),
}

impl ExternalPeer {
    /// A neighbour with defaults for everything else.
    pub fn new(address: IpAddr, asn: u32) -> ExternalPeer {
        ExternalPeer::of(Remote::Address(address), RemoteAs::Number(asn))
    }

    /// The same, however it is found.
    pub fn of(remote: Remote, asn: RemoteAs) -> ExternalPeer {
        ExternalPeer {
            remote,
            asn,
            port: None,
            password: Password::None,
            local: None,
            bfd: None,
            hold_time: None,
            distance: Distance::Usual,
            long_lived: None,
            prefix_limits: PerFamily::default(),
            next_hop_self: None,
        }
    }
}

impl Remote {
    /// Longest name of a link in bytes: `IFNAMSIZ` counts a zero at its end.
    const LONGEST: usize = 15;

    /// Reads the name of a link; `None` where no link may have it (`dev_valid_name` of the kernel).
    pub fn link(name: &str) -> Option<Remote> {
        let is_taken = matches!(name, "." | "..");
        let is_odd = |letter: char| letter == '/' || letter == ':' || letter.is_whitespace();
        let fits = (1..=Self::LONGEST).contains(&name.len());
        (fits && !is_taken && !name.contains(is_odd)).then(|| Remote::Link(name.into()))
    }

    /// The name of the link, where that is what is configured.
    pub fn link_name(&self) -> Option<CompactString> {
        match self {
            Remote::Link(name) => Some(name.clone()),
            Remote::Address(_) => None,
        }
    }

    /// The address, where it is configured.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Remote::Address(address) => Some(*address),
            Remote::Link(_) => None,
        }
    }
}

impl RemoteAs {
    /// The number, where it is configured.
    pub fn number(self) -> Option<u32> {
        match self {
            RemoteAs::Number(number) => Some(number),
            RemoteAs::External => None,
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Address(address) => write!(f, "{address}"),
            Remote::Link(name) => f.write_str(name),
        }
    }
}
