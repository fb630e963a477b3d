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

use compact_str::CompactString;

/// A Node with a claim to an address or a key. The smallest has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claimant {
    /// The claim is behind those of others: to an address that is no first one of the Node, or to a key without any address.
    pub is_behind: bool,
    /// When the Node was created, in seconds since 1970.
    pub created: i64,
    pub node: CompactString,
}
