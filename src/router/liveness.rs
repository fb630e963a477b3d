//! BFD with neighbours: which of them, by which kind of session, with which times.
//!
//! Flags `--enable-bfd`, `--bfd-*` for the peers of the flags, `bfd` in the annotation `kube-router.io/peers` for those of a node,
//! `--enable-bfd-mesh` for other nodes; `--peer-router-multihop-ttl`.
//!
//! An external peer is on our link unless the multihop flag says that it may be farther. Nodes may have routers between them, and both ends
//! must choose the same kind, so sessions between nodes are always those of RFC 5883.

use std::time::Duration;

use crate::bfd::{Path, Settings, Wanted};
use crate::bgp::speaker::Liveness;
use crate::net::Bfd;

/// Returns the BFD session with a neighbour at this distance. Any other port than the default one is that of the neighbour.
pub fn liveness(bfd: Bfd, path: Path) -> Liveness {
    let settings = Settings {
        multiplier: bfd.multiplier,
        send: Duration::from_millis(bfd.send.into()),
        receive: Duration::from_millis(bfd.receive.into()),
    };
    let port = if bfd.port == Bfd::PORT { path.port() } else { bfd.port };
    Liveness { path, wanted: Wanted { settings, port } }
}
