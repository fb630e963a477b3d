//! Next hops that a destination may have where packets between nodes are encrypted.

use std::net::IpAddr;

use crate::net::PerFamily;

/// Demand of a destination on its next hop, with `--overlay-encap=wireguard`.
///
/// A neighbour may announce anything, and for a moment what it said of a Node that is another one since: Node objects alone say who has which pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Nothing; always so with other encapsulations.
    None,
    /// It is a pod CIDR of other nodes, or a part of one: the next hop has to be one of these nodes.
    Pods {
        /// The addresses of that one of them that has the next hop; `None` where none has it.
        node: Option<PerFamily<Option<IpAddr>>>,
        /// It has to be reached through a tunnel.
        encrypted: bool,
    },
    /// Nodes of several machines say that the next hop is theirs: nobody knows who would get what is sent there.
    Contested,
    /// Pods or addresses of nodes are in it: no tunnel leads to it, because the node behind the tunnel could send, and would get, what is theirs.
    Around,
}
