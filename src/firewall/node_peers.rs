//! `nodes`: peers of egress that are Nodes, selected by their labels.
//!
//! Kubernetes: `ClusterNetworkPolicyEgressPeer.nodes`, experimental in `policy.networking.k8s.io/v1beta1`. It stands for the addresses
//! in `Node.status.addresses` of the selected Nodes, of either kind, and so for the pods that use a node's network. An empty
//! selector selects all Nodes; a Node that is not known is none.
//!
//! They become host blocks of the rule's set of blocks: Nodes, their addresses and labels change seldom, and then that one set is made anew.
//!
//! What listens on all addresses of a node answers a pod of this node also at addresses that are in no status: that of the pods' bridge, above all. A rule that
//! denies is for all addresses of the pod's own node, so that it does not depend on which of them a pod takes; not for those of devices that carry service
//! addresses, which are not the host's own (`model::Host`), nor for link-local ones.
//!
//! While a remembered cluster is in force whose Nodes have no labels, because an earlier version did not keep them, nothing is known of whom a rule is about. Then it fails
//! closed, as one that makes no sense.

use compact_str::CompactString;
use ipnet::IpNet;

use crate::model::{
    Action, Authority, ClusterNetworkPolicy, ClusterRule, Host, Labels, Node, NodeAddress, Peer, Peers, Selector,
    Table, World,
};

use super::rules::Block;

/// The Nodes that rules may be about.
#[derive(Clone, Copy)]
pub struct Nodes<'a> {
    pub all: &'a Table<CompactString, Node>,
    /// This host.
    pub host: &'a Host,
    /// The labels of Nodes are known.
    pub are_known: bool,
}

impl<'a> Nodes<'a> {
    /// Returns the addresses of the selected Nodes, as the peers of a rule with this action.
    pub fn blocks(self, selector: &'a Selector, action: Action) -> impl Iterator<Item = Block> + 'a {
        let selected = self.all.iter().filter(|(_, node)| selector.selects(&node.labels));
        selected.flat_map(move |(name, node)| {
            let is_closed_here = action == Action::Deny && *name == self.host.node_name;
            let of_host = self.host.addresses.iter().filter(move |own| is_closed_here && own.global);
            let addresses = node.addresses.iter().map(|own| own.address).chain(of_host.map(|own| own.address));
            addresses.map(|address| Block { cidr: IpNet::from(address), except: [].into() })
        })
    }
}

/// Returns whether the labels of Nodes are known: those of a remembered cluster may not have been kept.
pub fn are_known(world: &World) -> bool {
    world.authority.firewall != Authority::Remembered
        || world.cluster.nodes.iter().any(|(_, node)| node.labels.iter().next().is_some())
}

/// Returns whether a policy has such peers.
pub fn asks(policy: &ClusterNetworkPolicy) -> bool {
    policy.egress.iter().any(is_about_nodes)
}

/// Returns whether a rule has such peers.
pub fn is_about_nodes(rule: &ClusterRule) -> bool {
    match &rule.matches.peers {
        Peers::Of(peers) => peers.iter().any(|peer| matches!(peer, Peer::Nodes(_))),
        Peers::Any => false,
    }
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
    use crate::model::{HostAddress, NodeAddressKind};

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
            let nodes = Nodes { all: &nodes, host: &Host::default(), are_known: true };
            nodes.blocks(&selector, Action::Deny).map(|block| block.cidr.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("pool=gpu"), ["192.0.2.1/32", "2001:db8::1/128"]);
        assert_eq!(found(""), ["192.0.2.1/32", "2001:db8::1/128", "192.0.2.2/32"]);
        assert_eq!(found("pool=db"), [""; 0]);
    }

    #[test]
    fn what_denies_is_for_all_addresses_of_the_pods_own_node() {
        let mut nodes = Table::default();
        nodes.insert("own".into(), node("pool=web", &["192.0.2.1"]));
        nodes.insert("other".into(), node("pool=web", &["192.0.2.2"]));
        let own = |text: &str, link: &str, global| HostAddress {
            address: text.parse().expect("an address"),
            link: link.into(),
            global,
        };
        let addresses = vec![
            own("10.244.1.1", "kube-bridge", true),
            own("127.0.0.1", "lo", false),
            own("192.0.2.1", "eth0", true),
            own("fd00:10:244:1::1", "kube-bridge", true),
        ];
        let host = Host { node_name: "own".into(), addresses, ..Host::default() };
        let found = |of: &str, action| {
            let (selector, nodes) = (selector(of), Nodes { all: &nodes, host: &host, are_known: true });
            let mut found: Vec<String> = nodes.blocks(&selector, action).map(|block| block.cidr.to_string()).collect();
            found.sort();
            found.dedup();
            found
        };
        let status = ["192.0.2.1/32", "192.0.2.2/32"];
        assert_eq!(found("pool=web", Action::Deny), ["10.244.1.1/32", status[0], status[1], "fd00:10:244:1::1/128"]);
        for action in [Action::Accept, Action::Pass] {
            assert_eq!(found("pool=web", action), status, "what is open is what the API says");
        }
        assert_eq!(found("pool=gpu", Action::Deny), [""; 0], "the own node is not selected");
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
