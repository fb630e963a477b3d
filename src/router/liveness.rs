//! BFD with neighbours: which of them, by which kind of session, with which times.
//!
//! Flags `--enable-bfd`, `--bfd-*` for the peers of the flags, `bfd` in the annotation `kube-router.io/peers` for those of a node,
//! `--enable-bfd-mesh` for other nodes; `--peer-router-multihop-ttl`.
//!
//! An external peer in another AS is on our link unless the multihop flag says that it may be farther. The flag is not about peers in our AS: such
//! a one is on our link if its address is in a network there, and keeps its kind of session while there is none. The port of RFC 5883 makes a peer one that may be farther. Nodes may have routers between them, and both ends
//! must choose the same kind, so sessions between nodes are always those of RFC 5883.

use std::time::Duration;

use crate::bfd::{MULTIHOP, Path, Settings, Wanted};
use crate::bgp::speaker::Liveness;
use crate::net::Bfd;

/// Returns the kind of session with an external peer. The port of one kind is that of no other.
pub fn distance(bfd: Bfd, is_on_link: bool) -> Path {
    if is_on_link && bfd.port != MULTIHOP { Path::SingleHop } else { Path::Multihop }
}

/// Returns the BFD session with a neighbour at this distance, from which nothing is taken that has passed more hops than these. Any other port than the default one is that of the neighbour.
pub fn liveness(bfd: Bfd, path: Path, hops: Option<u8>) -> Liveness {
    let settings = Settings {
        multiplier: bfd.multiplier,
        send: Duration::from_millis(bfd.send.into()),
        receive: Duration::from_millis(bfd.receive.into()),
    };
    let port = if bfd.port == Bfd::PORT { path.port() } else { bfd.port };
    Liveness { path, wanted: Wanted { settings, port, hops } }
}
