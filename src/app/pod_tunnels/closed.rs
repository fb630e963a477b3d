//! Pods of this node that answer for service addresses, and whose ingress policies keep every packet from a tunnel out.
//!
//! The firewall sees the tunnel: a packet of IP protocol 4 (IPv6: 41) from the node that the client came to. A policy lets it in by a rule that names no
//! ports, and everybody or a range with the address of any node, of the pod's address family: a pod of two families may be closed in one of them. Until Nodes with addresses of a family
//! are known any range of it counts as one.
//!
//! A rule of a ClusterNetworkPolicy that denies a port, a namespace or pods something says nothing about a tunnel, in which that may be. So a pod that such a
//! policy may deny anything is closed as well; one of the Baseline tier says nothing about pods that NetworkPolicies isolate. Pods that are closed have no tunnel at all: what comes
//! to them is for nobody.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::model::{
    Action, ClusterNetworkPolicy, Host, Namespace, NetworkPolicy, Node, ObjectName, Peer, Peers, Pod, PolicyRule,
    Ports, Subject, Table, Tier, World,
};
use crate::net::Family;
use crate::pod_tunnels::places::{KnownPod, KnownPods};

/// Why such a pod does not answer, and has no tunnel.
pub const REASON: &str = "its ingress policies keep tunnels out: a tunnel is a packet of a node without a port, which no NetworkPolicy of the pod allows, or a ClusterNetworkPolicy may deny it what is inside";

/// The pods that no packet from a tunnel reaches, followed with the policies.
#[derive(Default)]
pub struct ClosedPods {
    /// The policies, namespaces and nodes that they follow from.
    policies: Table<ObjectName, NetworkPolicy>,
    cluster_policies: Table<CompactString, ClusterNetworkPolicy>,
    namespaces: Table<CompactString, Namespace>,
    of_nodes: Table<CompactString, Node>,
    host: Arc<Host>,
    /// The addresses of all nodes, and those of this host.
    nodes: BTreeSet<IpAddr>,
    closed: BTreeSet<IpAddr>,
}

impl ClosedPods {
    /// Follows a newer World, where these pods have tunnels; `differ`: they, or anything about them, may have changed. Returns whether others may be closed than
    /// before. Without the firewall no policies are known, and none hold.
    pub fn follow(&mut self, world: &World, pods: &KnownPods, differ: bool) -> bool {
        if pods.is_empty() {
            let closed = std::mem::take(self).closed;
            return !closed.is_empty();
        }
        let cluster = &world.cluster;
        let is_same = !differ
            && !self.follow_nodes(world)
            && cluster.policies.changes_since(&self.policies).next().is_none()
            && cluster.cluster_policies.changes_since(&self.cluster_policies).next().is_none()
            && cluster.namespaces.changes_since(&self.namespaces).next().is_none();
        if !is_same {
            self.follow_nodes(world);
            self.policies = cluster.policies.clone();
            self.cluster_policies = cluster.cluster_policies.clone();
            self.namespaces = cluster.namespaces.clone();
            let nodes = &self.nodes;
            let is_closed = |name: &ObjectName, family| {
                cluster.pods.get(name).is_some_and(|pod| is_closed(world, (nodes, family), (name, pod)))
            };
            let is_closed_at = |address: &IpAddr, its: &BTreeSet<KnownPod>| {
                its.iter().any(|pod| is_closed(&pod.name, Family::from(*address)))
            };
            let closed = pods.iter().filter(|(address, its)| is_closed_at(address, its));
            self.closed = closed.map(|(address, _)| *address).collect();
        }
        !is_same
    }

    /// Follows the addresses of nodes; returns whether they have changed.
    fn follow_nodes(&mut self, world: &World) -> bool {
        let nodes = &world.cluster.nodes;
        if self.host.addresses == world.host.addresses && nodes.changes_since(&self.of_nodes).next().is_none() {
            return false;
        }
        (self.of_nodes, self.host) = (nodes.clone(), world.host.clone());
        let addresses = node_addresses(world);
        std::mem::replace(&mut self.nodes, addresses) != self.nodes
    }

    /// Returns whether a pod is closed at this address, and so to tunnels of its family.
    pub fn has(&self, pod: &IpAddr) -> bool {
        self.closed.contains(pod)
    }

    /// Returns the addresses of all closed pods.
    pub fn pods(&self) -> impl Iterator<Item = &IpAddr> {
        self.closed.iter()
    }
}

/// Returns the addresses from which tunnels may come: those of all Nodes, and of this host.
fn node_addresses(world: &World) -> BTreeSet<IpAddr> {
    let nodes = world.cluster.nodes.iter().flat_map(|(_, node)| node.addresses.iter().map(|one| one.address));
    nodes.chain(world.host.addresses.iter().map(|own| own.address)).collect()
}

/// Returns whether NetworkPolicies isolate a pod for ingress, and none may let a packet of a node in that has no port and is of this family; or a ClusterNetworkPolicy may deny it anything.
fn is_closed(world: &World, nodes: (&BTreeSet<IpAddr>, Family), (name, pod): (&ObjectName, &Pod)) -> bool {
    let namespace = CompactString::from(name.namespace.as_str());
    let by_namespace = world.cluster.namespaces.get(&namespace).is_some_and(|namespace| namespace.isolated);
    let its = world.cluster.policies.iter().filter(|(policy, _)| policy.namespace == name.namespace);
    let mut its = its.filter(|(_, policy)| policy.ingress.is_some() && policy.pods.selects(&pod.labels)).peekable();
    let is_isolated = by_namespace || its.peek().is_some();
    let lets_in = |rule: &PolicyRule| may_let_nodes_in(rule, nodes);
    let by_policies = is_isolated && !its.flat_map(|(_, policy)| policy.ingress.iter().flatten()).any(lets_in);
    let judges = |tier: Tier| tier == Tier::Admin || !is_isolated;
    by_policies || may_be_denied(world, (name, pod), judges)
}

/// Returns whether a ClusterNetworkPolicy of a tier that judges a pod may deny it anything that comes to it. One whose namespace is not known may be selected.
fn may_be_denied(world: &World, (name, pod): (&ObjectName, &Pod), judges: impl Fn(Tier) -> bool) -> bool {
    let namespace = world.cluster.namespaces.get(&CompactString::from(name.namespace.as_str()));
    let is_subject = |subject: &Subject| {
        namespace.is_none_or(|namespace| subject.namespaces.selects(&namespace.labels))
            && subject.pods.selects(&pod.labels)
    };
    let denies = |policy: &ClusterNetworkPolicy| {
        judges(policy.tier) && policy.ingress.iter().any(|rule| rule.action == Action::Deny)
    };
    world.cluster.cluster_policies.iter().any(|(_, policy)| denies(policy) && is_subject(&policy.subject))
}

fn may_let_nodes_in(rule: &PolicyRule, (nodes, family): (&BTreeSet<IpAddr>, Family)) -> bool {
    let has = |cidr: &IpNet, except: &[IpNet]| {
        let is_in = |node: &IpAddr| cidr.contains(node) && !except.iter().any(|hole| hole.contains(node));
        let mut nodes = nodes.iter().filter(|node| Family::from(**node) == family).peekable();
        Family::from(*cidr) == family && (nodes.peek().is_none() || nodes.any(is_in))
    };
    let is_node = |peer: &Peer| match peer {
        Peer::Block { cidr, except } => has(cidr, except),
        Peer::Nodes(_) => true,
        Peer::Pods { .. } => false,
    };
    let peers = match &rule.peers {
        Peers::Any => true,
        Peers::Of(peers) => peers.iter().any(is_node),
    };
    peers && rule.ports == Ports::Any
}
