//! The plan for who asks: where neighbours come from, which of them are missing and why, and why a learned route has no path.

use std::collections::BTreeMap;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::{PeerOwner, Plan};
use crate::router::problem::{About, Problem};
use crate::router::routes::NoWay;

/// Origin of a neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerSource {
    /// The Node object of this name.
    Node(CompactString),
    /// The flags `--peer-router-*`.
    Flags,
    /// An annotation of our own Node.
    Annotation,
}

impl Plan {
    /// Returns the origin of each desired neighbour, by its address.
    pub fn peer_sources(&self) -> BTreeMap<IpAddr, PeerSource> {
        let external = if self.config.peers.is_empty() { PeerSource::Annotation } else { PeerSource::Flags };
        let source = |address: &IpAddr| match self.peers.owners(address).next()? {
            PeerOwner::External => Some((*address, external.clone())),
            PeerOwner::Node(_, name) => Some((*address, PeerSource::Node(name.clone()))),
        };
        self.desired.peers.keys().filter_map(source).collect()
    }

    /// Returns the problems for which BGP does not run, or for which there is no session with a neighbour.
    pub fn peer_problems(&self) -> Vec<Problem> {
        let is_of_peers = |problem: &&Problem| {
            // What concerns nodes together is said once of them all.
            let of_nodes = matches!(problem.about, About::Node(_) | About::OtherNodes);
            of_nodes || matches!(problem.about, About::Speaker | About::ExternalPeer(_) | About::ExternalPeers)
        };
        self.desired.problems.iter().filter(is_of_peers).cloned().collect()
    }

    /// Returns the next hops of a learned route, each with the reason for which there is no path to it.
    pub fn ways_to(&self, prefix: IpNet) -> Vec<(IpAddr, Option<NoWay>)> {
        let next_hops = self.routes.next_hops_to(prefix);
        self.in_place(|place| {
            next_hops.iter().map(|next_hop| (*next_hop, self.routes.no_way(prefix, *next_hop, place))).collect()
        })
    }
}
