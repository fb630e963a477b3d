//! The addresses of the other nodes.
//!
//! Kubernetes: `Node.status.addresses`, internal and external, as many of a Node as count for the router, too: otherwise an address would be announced that nobody serves. A Service that names one of them as its external or load balancer
//! address is not served there (`external_ip`). Other Nodes than our own are watched only where some external
//! address can be allowed at all, or where the router needs them.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;

use compact_str::CompactString;

use super::local_node::LocalNode;
use crate::model::{Authority, COUNTED_ADDRESSES, Change, Claim, Claims, Node, Service, World};

/// Addresses of all Nodes but our own, with their holders.
#[derive(Default, Debug)]
pub struct OtherNodes {
    holders: Claims<IpAddr, Holder>,
    are_known: bool,
}

/// The name of a Node that claims an address. Of several the first by name counts.
#[derive(Clone, Debug)]
struct Holder(CompactString);

impl Claim for Holder {
    type Claimant = CompactString;

    fn claimant(&self) -> &CompactString {
        &self.0
    }

    fn order(&self, other: &Holder) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl OtherNodes {
    /// Returns the other Node that has this address.
    pub fn holder(&self, address: IpAddr) -> Option<&CompactString> {
        self.holders.first(&address).map(|holder| &holder.0)
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
            let addresses =
                |node: &Node| node.ordered_addresses().take(COUNTED_ADDRESSES).collect::<BTreeSet<IpAddr>>();
            let (old, new) = (old.map(|node| addresses(node)), new.map(|node| addresses(node)));
            let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
            for address in old.difference(&new) {
                self.holders.put(address, name, None);
            }
            for address in new.difference(&old) {
                self.holders.put(address, name, Some(Holder(name.clone())));
            }
            moved.extend(old.symmetric_difference(&new));
        }
        if !std::ptr::eq(was, is) && was != is {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeAddress, NodeAddressKind};

    #[test]
    fn of_a_node_that_lists_thousands_of_addresses_those_count_that_count_for_the_router() {
        let (mut others, node, older) = (OtherNodes::default(), LocalNode::default(), World::empty());
        let listed = |number: u16| IpAddr::from([10, 0, (number / 250) as u8, (number % 250) as u8 + 1]);
        let kind = NodeAddressKind::Internal;
        let addresses = (0..5000).map(|number| NodeAddress { kind, address: listed(number) }).collect();
        let mut world = older.clone();
        world.cluster.nodes.insert("node2".into(), Node { addresses, ..Node::default() });
        assert_eq!(others.update([&older, &world], [&node, &node]).len(), COUNTED_ADDRESSES);
        assert_eq!(others.holder(listed(7)).map(CompactString::as_str), Some("node2"));
        assert_eq!(others.holder(listed(8)), None);
    }

    #[test]
    fn an_address_that_several_nodes_claim_is_that_of_the_first_by_name_while_it_claims_it() {
        let address: IpAddr = "192.0.2.9".parse().expect("an address");
        let (mut others, node) = (OtherNodes::default(), LocalNode::default());
        let mut world = World::empty();
        for (name, claims, holder) in [
            ("node3", true, Some("node3")),
            ("node2", true, Some("node2")),
            ("node4", true, Some("node2")),
            ("node2", false, Some("node3")),
            ("node4", false, Some("node3")),
            ("node3", false, None),
        ] {
            let older = world.clone();
            if claims {
                let addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, address }];
                world.cluster.nodes.insert(name.into(), Node { addresses, ..Node::default() });
            } else {
                world.cluster.nodes.remove(&name.into());
            }
            let moved = others.update([&older, &world], [&node, &node]);
            assert_eq!(moved.into_iter().collect::<Vec<_>>(), [address]);
            assert_eq!(others.holder(address).map(CompactString::as_str), holder, "{name} {claims}");
        }
    }
}
