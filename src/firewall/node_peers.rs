//! `nodes`: peers of egress that are Nodes, selected by their labels.
//!
//! Kubernetes: `ClusterNetworkPolicyEgressPeer.nodes`, experimental in `policy.networking.k8s.io/v1beta1`. It stands for the addresses
//! in `Node.status.addresses` of the selected Nodes, of either kind, and so for the pods that use a node's network. An empty
//! selector selects all Nodes; a Node that is not known is none.
//!
//! They become host blocks of the rule's set of blocks: Nodes, their addresses and labels change seldom, and then that one set is made anew.

use compact_str::CompactString;
use ipnet::IpNet;

use crate::model::{ClusterNetworkPolicy, Labels, Node, NodeAddress, Peer, Peers, Selector, Table};

use super::rules::Block;

/// Returns the addresses of the selected Nodes.
pub fn blocks<'a>(selector: &'a Selector, nodes: &'a Table<CompactString, Node>) -> impl Iterator<Item = Block> + 'a {
    let selected = nodes.iter().filter(|(_, node)| selector.selects(&node.labels));
    let addresses = selected.flat_map(|(_, node)| node.addresses.iter().map(|own| own.address));
    addresses.map(|address| Block { cidr: IpNet::from(address), except: [].into() })
}

/// Returns whether a policy has such peers.
pub fn asks(policy: &ClusterNetworkPolicy) -> bool {
    let is_node = |peer: &Peer| matches!(peer, Peer::Nodes(_));
    policy.egress.iter().any(|rule| match &rule.matches.peers {
        Peers::Of(peers) => peers.iter().any(is_node),
        Peers::Any => false,
    })
}

/// Returns whether a Node that was one thing and is another may be another peer: heartbeats and conditions say nothing of that.
pub fn differ(before: Option<&Node>, after: Option<&Node>) -> bool {
    before.map(peer) != after.map(peer)
}

/// Returns the parts of a Node that policies can ask for.
fn peer(node: &Node) -> (&Labels, &[NodeAddress]) {
    (&node.labels, &node.addresses)
}

#[cfg(test)]
mod tests {
    use super::super::given::{labels, selector};
    use super::*;
    use crate::model::NodeAddressKind;

    fn node(of: &str, addresses: &[&str]) -> Node {
        let address =
            |text: &&str| NodeAddress { kind: NodeAddressKind::Internal, address: text.parse().expect("an address") };
        Node { labels: labels(of), addresses: addresses.iter().map(address).collect(), ..Node::default() }
    }

    #[test]
    fn the_addresses_of_the_selected_nodes_are_the_peers() {
        let mut nodes = Table::default();
        nodes.insert("a".into(), node("pool=gpu", &["192.0.2.1", "2001:db8::1"]));
        nodes.insert("b".into(), node("pool=web", &["192.0.2.2"]));
        let found = |of: &str| {
            let selector = selector(of);
            blocks(&selector, &nodes).map(|block| block.cidr.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("pool=gpu"), ["192.0.2.1/32", "2001:db8::1/128"]);
        assert_eq!(found(""), ["192.0.2.1/32", "2001:db8::1/128", "192.0.2.2/32"]);
        assert_eq!(found("pool=db"), [""; 0]);
    }

    #[test]
    fn only_labels_and_addresses_make_a_node_another_peer() {
        let before = node("pool=gpu", &["192.0.2.1"]);
        let ready = Node { should_announce: true, zone: Some("a".into()), ..before.clone() };
        assert!(!differ(Some(&before), Some(&ready)) && !differ(None, None));
        for after in [node("pool=web", &["192.0.2.1"]), node("pool=gpu", &["192.0.2.2"])] {
            assert!(differ(Some(&before), Some(&after)));
        }
        assert!(differ(Some(&before), None) && differ(None, Some(&before)));
    }
}
