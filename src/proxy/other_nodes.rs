//! The addresses of the other nodes.
//!
//! Kubernetes: `Node.status.addresses`, internal and external. A Service that names one of them as its external or load balancer
//! address is not served there (`external_ip`). Other Nodes than our own are watched only where some external
//! address can be allowed at all, or where the router needs them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use compact_str::CompactString;

use super::local_node::LocalNode;
use crate::model::{Authority, Change, Node, Service, World};

/// Addresses of all Nodes but our own, with their holders.
#[derive(Default, Debug)]
pub struct OtherNodes {
    /// Several Nodes may claim one address: the first by name counts.
    holders: BTreeSet<(IpAddr, CompactString)>,
    are_known: bool,
}

impl OtherNodes {
    /// Returns the other Node that has this address.
    pub fn holder(&self, address: IpAddr) -> Option<&CompactString> {
        let (held, holder) = self.holders.range((address, CompactString::default())..).next()?;
        (*held == address).then_some(holder)
    }

    /// Returns whether all Nodes are known. Otherwise any address may be another node's.
    pub fn are_known(&self) -> bool {
        self.are_known
    }

    /// Notes whether all Nodes are known; returns whether that has changed. A last known state may hold our own Node alone, because no
    /// other was watched when it was written.
    pub fn note_known(&mut self, world: &World) -> bool {
        let are_known = world.authority.proxy != Authority::Remembered || world.authority.router != Authority::Nothing;
        std::mem::replace(&mut self.are_known, are_known) != are_known
    }

    /// Updates from a newer World. Returns the addresses that may have become, or ceased to be, another node's.
    pub fn update(&mut self, [older, newer]: [&World; 2], [was, is]: [&LocalNode; 2]) -> BTreeSet<IpAddr> {
        let mut moved: BTreeSet<IpAddr> = BTreeSet::new();
        for change in newer.cluster.nodes.changes_since(&older.cluster.nodes) {
            let name = change.key();
            if *name == newer.host.node_name {
                continue;
            }
            let (old, new) = match change {
                Change::Added(_, new) => (None, Some(new)),
                Change::Updated(_, old, new) => (Some(old), Some(new)),
                Change::Removed(_, old) => (Some(old), None),
            };
            let addresses = |node: &Node| node.addresses.iter().map(|it| it.address).collect::<BTreeSet<IpAddr>>();
            let (old, new) = (old.map(|node| addresses(node)), new.map(|node| addresses(node)));
            let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
            for address in old.difference(&new) {
                self.holders.remove(&(*address, name.clone()));
            }
            self.holders.extend(new.difference(&old).map(|address| (*address, name.clone())));
            moved.extend(old.symmetric_difference(&new));
        }
        if was != is {
            let own = |node: &LocalNode| {
                let named = node.address.iter().filter_map(|(_, address)| *address);
                node.addresses.iter().copied().chain(named).collect::<BTreeSet<IpAddr>>()
            };
            moved.extend(own(was).symmetric_difference(&own(is)));
        }
        moved
    }
}

/// Returns whether a Service asks for one of these addresses.
pub fn asks_for(service: &Service, addresses: &BTreeSet<IpAddr>) -> bool {
    let balanced = service.load_balancer.iter().map(|entry| entry.address);
    service.external_ips.iter().copied().chain(balanced).any(|address| addresses.contains(&address))
}
