//! Peering with the other nodes: which nodes peer, and with which parameters.
//!
//! Flags `--enable-ibgp`, `--nodes-full-mesh`, `--bgp-port`, `--bgp-graceful-restart*`, `--bgp-mesh-*`; annotations
//! `kube-router.io/node.asn`, `rr.server` and `rr.client`. Both ends apply the same rule, so no dial stays unanswered:
//!
//! | we are \ it is | nothing | reflector | client |
//! |---|---|---|---|
//! | nothing | peer | peer | – |
//! | reflector | peer | peer | client, in the same cluster |
//! | client | – | peer, in the same cluster | – |
//!
//! With `--node-routes=api` a node dials nobody, and answers the nodes that have `bgp`: those learn its ranges, as while a cluster changes over. A reflector with
//! `api` answers the other ones of its cluster alone: who learns from it keeps what is known as long as without it.
//!
//! Without a full mesh only nodes of one AS peer with each other. A session runs between the primary addresses of two nodes,
//! or where these are of different families, between addresses of the first family that both have.
//!
//! In the kernel: one TCP connection for each node, which carries the routes of both families.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::bfd::Path;
use crate::bgp::rib::NextHops;
use crate::bgp::session::{Local, Restart, Settings};
use crate::bgp::speaker::WantedNeighbour;
use crate::bgp::transport::{self, TimeToLive, Transport};
use crate::config::{GracefulRestart, NodeRoutes, RouterConfig};
use crate::model::{Node, Reflection};
use crate::net::{Bfd, Family, Password, PerFamily};

use super::identity::Identity;
use super::liveness::liveness;

/// Maximum connect retry time of external peers.
pub const RETRY: Duration = Duration::from_secs(120);
/// Maximum connect retry time of nodes, as long as few do not answer: both ends of a cut wait for it.
const AMONG_NODES_RETRY: Duration = Duration::from_secs(30);
/// Maximum number of prefixes of one family from an external neighbour: more than the whole Internet has.
pub const MOST: u32 = 2_000_000;

/// Nodes always support each other's graceful restarts, so that no packet between pods is lost during a short absence;
/// `--bgp-graceful-restart` is for external neighbours.
const AMONG_NODES: GracefulRestart =
    GracefulRestart { seconds: 90, deferral: Duration::from_secs(360), long_lived: 0, notifications: true };

/// Problem of all nodes together that cannot be peers for [`Obstacle::NoPassword`].
pub const NO_PASSWORD: &str = "the password of --bgp-mesh-password-file is not known (yet): the file must be there, with base64; there are no sessions with them";

/// Peering with a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peering {
    /// No peer of ours, as intended.
    None,
    /// Should be a peer, and cannot be.
    Impossible(Obstacle),
    With(Arc<WantedNeighbour>),
}

/// Reason why a node cannot be a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// It has no address at all, as before its cloud has said which.
    NoAddress,
    /// It has addresses, and none of a family that this node uses.
    NoCommonFamily,
    /// Its address is ours, as that of a Node left behind by a renaming.
    OwnAddress,
    /// The password of sessions between nodes is not known.
    NoPassword,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Obstacle::NoAddress => "it has no usable InternalIP or ExternalIP, so nobody peers with it",
            Obstacle::NoCommonFamily => "it has no address of a family that this node uses, so they cannot peer",
            Obstacle::NoPassword => {
                "the password of --bgp-mesh-password-file is not known (yet), so there is no session with it"
            }
            Obstacle::OwnAddress => "its address is that of this node, so there is no session with it",
        })
    }
}

/// Returns the peering with another node. `local`: our parameters towards all neighbours; `password`: that of all sessions
/// between nodes.
pub fn peering(own: &Identity, node: &Node, config: &RouterConfig, local: Local, password: &Password) -> Peering {
    let same_system = config.full_mesh || node.routing().asn == Some(local.asn);
    let Some(client) = relation(own.routing.reflection, node.routing().reflection) else { return Peering::None };
    let expected = config.internal_peers;
    // A reflector that takes nothing from nodes has nothing to reflect, and would tell those who learn its clients from it that these are gone. Another
    // reflector of its cluster hears the clients itself.
    let reflection = own.routing.reflection;
    let is_believed = own.is_reflector() && node.routing().reflection != reflection;
    let answers = config.answers_nodes && !is_believed;
    if !same_system || !expected && !answers {
        return Peering::None;
    }
    // Who only answers misses nobody; but a password that is missing is somebody's mistake.
    let impossible = |why| if expected { Peering::Impossible(why) } else { Peering::None };
    let Some(here) = own.primary else { return Peering::None };
    let Some(there) = node.primary(own.families) else {
        let has_none = node.addresses.is_empty();
        return impossible(if has_none { Obstacle::NoAddress } else { Obstacle::NoCommonFamily });
    };
    let Some((here, there)) = session_addresses(here, there, own, node) else {
        return impossible(Obstacle::NoCommonFamily);
    };
    // A renamed Node leaves its old object behind for a while; dialling it would reach ourselves.
    // So would a Node of ours without the address that was detected here.
    if own.all.contains(&there) {
        return impossible(Obstacle::OwnAddress);
    }
    let password = match password {
        Password::None => None,
        Password::Key(secret) => transport::Password::new(secret.key()).ok(),
        Password::File(_) | Password::Unknown => return Peering::Impossible(Obstacle::NoPassword),
    };
    let secured = config.mesh.ttl_security.map(|hops| TimeToLive::Secured { hops });
    let time_to_live = secured.unwrap_or(TimeToLive::System);
    let capable = own.capable();
    let families = PerFamily::from_fn(|family| *capable.of(family) && node.routing_address(family).is_some());
    Peering::With(Arc::new(WantedNeighbour {
        address: there,
        settings: Settings {
            local,
            // In a full mesh all nodes have the same AS number.
            asn: Some(local.asn),
            is_external: false,
            passive: !expected,
            hold_time: config.mesh.hold_time,
            connect_retry: AMONG_NODES_RETRY,
            mutual: true,
            families,
            // A dead node has no pods that could be reached by another path.
            restart: Some(Restart {
                notifications: true,
                long_lived: 0,
                ..restart(config.graceful_restart.unwrap_or(AMONG_NODES))
            }),
        },
        expected,
        transport: Transport { port: config.port, local: Some(here), password, time_to_live, link: None },
        client,
        own: own.addresses,
        next_hops: NextHops::Usual,
        liveness: config
            .bfd_mesh
            .map(|bfd| liveness(Bfd { port: Bfd::PORT, ..bfd }, Path::Multihop, config.mesh.ttl_security)),
        first_as: false,
        most: PerFamily::from_fn(|_| Some(config.mesh.most_prefixes)),
    }))
}

/// Returns whether routes are exchanged with another node, as soon as both run: in a session, by way of reflectors, or by Node objects.
///
/// Where sessions have a password nobody counts before what it has told is learned: a Node object, which its kubelet writes, does not show that the host at
/// its address is a node.
pub fn exchanges_routes(own: &Identity, node: &Node, config: &RouterConfig) -> bool {
    let same_system = config.full_mesh || own.asn.is_some_and(|asn| node.routing().asn == Some(asn));
    let by_sessions = config.internal_peers && same_system && config.mesh_password_file.is_none();
    config.node_routes == NodeRoutes::Api || by_sessions
}

/// Returns our graceful restart parameters.
pub fn restart(config: GracefulRestart) -> Restart {
    let GracefulRestart { seconds, deferral, long_lived, notifications } = config;
    Restart { seconds, stale: deferral, long_lived, notifications }
}

/// Returns whether two nodes peer, and whether the other one is a reflector client of ours.
fn relation(own: Reflection, other: Reflection) -> Option<bool> {
    match (own, other) {
        (Reflection::None, Reflection::Client(_))
        | (Reflection::Client(_), Reflection::None | Reflection::Client(_)) => None,
        (Reflection::Client(own), Reflection::Server(other)) => (own == other).then_some(false),
        (Reflection::Server(own), Reflection::Client(other)) => (own == other).then_some(true),
        (Reflection::None | Reflection::Server(_), Reflection::None | Reflection::Server(_)) => Some(false),
    }
}

/// Returns both ends of a session, ours first; both ends compute the same pair.
pub fn session_addresses(here: IpAddr, there: IpAddr, own: &Identity, node: &Node) -> Option<(IpAddr, IpAddr)> {
    if Family::from(here) == Family::from(there) {
        return Some((here, there));
    }
    Family::BOTH.into_iter().find_map(|family| Some(((*own.addresses.of(family))?, node.routing_address(family)?)))
}

#[cfg(test)]
mod tests;
