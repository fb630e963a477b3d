//! A BGP neighbour outside of the cluster, as its administrator names it: by a flag or in an annotation of a node.

use std::net::IpAddr;

use super::bfd::Bfd;
use super::secret::Secret;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExternalPeer {
    pub address: IpAddr,
    /// Its autonomous system; one that [`asn::is_peer`](super::asn::is_peer).
    pub asn: u32,
    /// Its TCP port; 179 where absent.
    pub port: Option<u16>,
    pub password: Password,
    /// Our address towards it; the node's own where absent.
    pub local: Option<IpAddr>,
    /// The path to it is watched.
    pub bfd: Option<Bfd>,
}

/// The key that both sides sign their segments with.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Password {
    #[default]
    None,
    Key(Secret),
    /// There is one, but it is not known: it could not be read, or what is known comes from a file that holds no secrets.
    /// The neighbour is not talked to, because without its key a session would be either refused or open to everybody.
    Unknown,
}

impl ExternalPeer {
    /// A neighbour with defaults for everything else.
    pub fn new(address: IpAddr, asn: u32) -> ExternalPeer {
        ExternalPeer { address, asn, port: None, password: Password::None, local: None, bfd: None }
    }
}
