//! Addresses and keys that Nodes list, which of them count, and who has one that several list.
//!
//! Kubernetes: `Node.status.addresses`, which who has a node's token may write, with any address in it. So
//!
//! - of a Node eight addresses count: the first ones of each family, which are that by which other nodes speak with it and that by which the cluster knows it
//!   (`kube-router.io/node-address` may make them two), then its other internal ones, then its external ones. What it lists behind them is outside of the cluster for the router: pods reach it under the node's address, and through no tunnel;
//! - an address that is a first one of a Node is not taken from it by a Node that lists it among others;
//! - of two Nodes with equal claims the older one comes first (`metadata.creationTimestamp`, which the API server writes): who joins takes nothing away.
//!   Where all Nodes have one InternalIP, as virtual machines behind address translation do, it is the oldest one's. No route follows from it, as it is each
//!   node's own address as well.
//!
//! Where an address is does not say whose it is: nodes may have any, also public ones. So a Node that lists eight addresses outside of the cluster gets
//! the packets of pods to these. An admission policy for `nodes/status` is the place that can know better (`docs/user-guide.md`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use compact_str::CompactString;

use crate::model::{Node, NodeAddressKind};
use crate::net::Family;

/// Maximum number of a Node's addresses that count for routing. Each may be a route of pods into a tunnel, an element of a set and a hole in a wall.
pub const COUNTED: usize = 8;

/// A Node with a claim to an address or a key. The smallest has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claimant {
    /// The claim is behind those of others: to an address that is no first one of the Node, or to a key without any address.
    pub is_behind: bool,
    /// When the Node was created, in seconds since 1970.
    pub created: i64,
    pub node: CompactString,
}

/// Returns all addresses of a Node, the first ones of all families before the others.
pub(super) fn all(node: &Node) -> Vec<IpAddr> {
    let of_kind = |kind| node.addresses.iter().filter(move |one| one.kind == kind).map(|one| one.address);
    let others = of_kind(NodeAddressKind::Internal).chain(of_kind(NodeAddressKind::External));
    let mut seen = BTreeSet::new();
    first(node).chain(others).filter(|address| seen.insert(*address)).collect()
}

/// Returns the addresses by which a Node is spoken with, and behind them those by which the cluster knows it: a detected address takes nothing of its
/// protection from the InternalIP, at which the API server and kubelets are reached.
pub(super) fn first(node: &Node) -> impl Iterator<Item = IpAddr> {
    let spoken_with = Family::BOTH.into_iter().filter_map(|family| node.routing_address(family));
    let known_by = Family::BOTH.into_iter().filter_map(|family| node.address(family));
    let mut seen = BTreeSet::new();
    spoken_with.chain(known_by).filter(move |address| seen.insert(*address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeAddress;
    use crate::router::given::address;

    #[test]
    fn the_first_of_each_family_then_internal_and_then_external_addresses_count_eight_in_all() {
        let of = |kind, text: &str| NodeAddress { kind, address: address(text) };
        let (internal, external) = (NodeAddressKind::Internal, NodeAddressKind::External);
        let mut node = Node {
            addresses: vec![
                of(external, "203.0.113.1"),
                of(external, "2001:db8:e::1"),
                of(internal, "192.0.2.1"),
                of(internal, "10.0.0.1"),
            ],
            ..Node::default()
        };
        let texts = |node: &Node| all(node).iter().take(COUNTED).map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&node), ["192.0.2.1", "2001:db8:e::1", "10.0.0.1", "203.0.113.1"]);
        node.addresses.extend((2..200).map(|number| of(internal, &format!("10.0.0.{number}"))));
        assert_eq!(
            texts(&node),
            ["192.0.2.1", "2001:db8:e::1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
    }
}
