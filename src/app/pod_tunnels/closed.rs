//! Pods of this node that answer for service addresses, and whose ingress policies keep every packet from a tunnel out.
//!
//! The firewall sees the tunnel: a packet of IP protocol 4 (IPv6: 41) from the node that the client came to. A policy lets it in by a rule that names no
//! ports, and everybody or a range with the address of any Node, of the pod's address family: a pod of two families may be closed in one of them. Until Nodes with addresses of a family
//! are known any range of it counts as one. Other addresses of this host do not count: from the pods' gateway come this node's own tunnels at most. Where a pod's rules let some Nodes in and others not, it answers
//! the clients of those alone, which is told.
//!
//! A rule of a ClusterNetworkPolicy that denies a port, a namespace or pods something says nothing about a tunnel, in which that may be. So a pod that such a
//! policy may deny anything is closed as well; one of the Baseline tier says nothing about pods that NetworkPolicies isolate. Pods that are closed have no tunnel at all: what comes
//! to them is for nobody.
//!
//! A change of policies costs a look at the followed pods of their namespaces, and at the policies of these alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::model::{
    Action, ClusterNetworkPolicy, Host, Namespace, NetworkPolicy, Node, NodeAddress, NodeAddressKind, ObjectName, Peer,
    Peers, Pod, PolicyRule, Ports, Subject, Table, Tier, World,
};
use crate::net::{Family, PerFamily};
use crate::pod_tunnels::places::{KnownPod, KnownPods};

/// Why such a pod does not answer, and has no tunnel.
pub const REASON: &str = "its ingress policies keep tunnels out: a tunnel is a packet of a node without a port, which no NetworkPolicy of the pod allows, or a ClusterNetworkPolicy may deny it what is inside";

/// The pods that no packet from a tunnel reaches, or not one of each Node, followed with the policies.
#[derive(Default)]
pub struct ClosedPods {
    /// The policies, namespaces and nodes that they follow from.
    policies: Table<ObjectName, NetworkPolicy>,
    cluster_policies: Table<CompactString, ClusterNetworkPolicy>,
    namespaces: Table<CompactString, Namespace>,
    of_nodes: Table<CompactString, Node>,
    host: Arc<Host>,
    nodes: NodeAddresses,
    /// Of the pods that are not open to all.
    verdicts: BTreeMap<IpAddr, Verdict>,
}

/// Whose tunnels a pod's policies let in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Verdict {
    Open,
    /// Those of some Nodes, and not those of the one with this address.
    NotFrom(IpAddr),
    Closed,
}

/// The addresses from which tunnels may come.
#[derive(PartialEq, Eq, Default)]
struct NodeAddresses {
    /// All of all Nodes, but for InternalIPs in place of which others route to another address.
    any: PerFamily<BTreeSet<IpAddr>>,
    /// By which others route to each: most probably its tunnels come from there.
    usual: PerFamily<BTreeSet<IpAddr>>,
}

impl ClosedPods {
    /// Follows a newer World, where these pods have tunnels; `differ`: they, or anything about them, may have changed. Returns whether others are closed than
    /// before, or in another way. Without the firewall no policies are known, and none hold.
    pub fn follow(&mut self, world: &World, pods: &KnownPods, differ: bool) -> bool {
        if pods.is_empty() {
            let verdicts = std::mem::take(self).verdicts;
            return !verdicts.is_empty();
        }
        let cluster = &world.cluster;
        let nodes_moved = self.follow_nodes(world);
        let of_cluster = cluster.cluster_policies.changes_since(&self.cluster_policies).next().is_some();
        let all = differ || nodes_moved || of_cluster;
        let policies = cluster.policies.changes_since(&self.policies).map(|change| change.key().namespace.as_str());
        let namespaces = cluster.namespaces.changes_since(&self.namespaces).map(|change| change.key().as_str());
        let moved: BTreeSet<CompactString> = policies.chain(namespaces).map(CompactString::from).collect();
        self.policies = cluster.policies.clone();
        self.cluster_policies = cluster.cluster_policies.clone();
        self.namespaces = cluster.namespaces.clone();
        if !all && moved.is_empty() {
            return false;
        }
        let former = self.verdicts.clone();
        self.verdicts.retain(|address, _| pods.contains_key(address));
        let is_concerned = |pod: &KnownPod| all || moved.contains(pod.name.namespace.as_str());
        for (address, its) in pods.iter().filter(|(_, its)| its.iter().any(is_concerned)) {
            let of_pod = |pod: &KnownPod| {
                let known = cluster.pods.get(&pod.name)?;
                Some(verdict(world, &self.nodes, Family::from(*address), &pod.name, known))
            };
            match its.iter().filter_map(of_pod).max() {
                None | Some(Verdict::Open) => self.verdicts.remove(address),
                Some(verdict) => self.verdicts.insert(*address, verdict),
            };
        }
        self.verdicts != former
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
        self.verdicts.get(pod) == Some(&Verdict::Closed)
    }

    /// Returns the addresses of all closed pods.
    pub fn pods(&self) -> impl Iterator<Item = &IpAddr> {
        self.verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Closed).map(|(pod, _)| pod)
    }

    /// Returns the addresses of pods that let in the tunnels of some Nodes alone, each with the address of one whose tunnels are kept out.
    pub fn open_in_part(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        self.verdicts.iter().filter_map(|(pod, verdict)| match verdict {
            Verdict::NotFrom(node) => Some((*pod, *node)),
            Verdict::Open | Verdict::Closed => None,
        })
    }
}

/// Returns the addresses from which tunnels may come. Where there is no Node of this host's name, the host's own stand for it.
fn node_addresses(world: &World) -> NodeAddresses {
    let (nodes, host) = (&world.cluster.nodes, &world.host);
    let of_nodes = nodes.iter().flat_map(|(_, node)| {
        let is_replaced = |one: &NodeAddress| {
            one.kind == NodeAddressKind::Internal && node.detected(Family::from(one.address)).is_some()
        };
        // One that is both is there as the one that was detected as well.
        node.addresses.iter().filter(move |one| !is_replaced(one)).map(|one| one.address)
    });
    let own = host.addresses.iter().filter(|own| own.global && nodes.get(&host.node_name).is_none());
    let all: BTreeSet<IpAddr> = of_nodes.chain(own.map(|own| own.address)).collect();
    NodeAddresses {
        any: PerFamily::from_fn(|family| all.iter().copied().filter(|it| Family::from(*it) == family).collect()),
        usual: PerFamily::from_fn(|family| nodes.iter().filter_map(|(_, node)| node.routing_address(family)).collect()),
    }
}

/// Returns whose tunnels of a family reach a pod: those of all Nodes unless NetworkPolicies isolate it for ingress, and else of those that rules without ports let in; nobody's where a ClusterNetworkPolicy may deny it anything.
fn verdict(world: &World, nodes: &NodeAddresses, family: Family, name: &ObjectName, pod: &Pod) -> Verdict {
    let namespace = CompactString::from(name.namespace.as_str());
    let by_namespace = world.cluster.namespaces.get(&namespace).is_some_and(|namespace| namespace.isolated);
    let all = world.cluster.policies.iter_from(&ObjectName::new(&namespace, ""));
    let its = all.take_while(|(policy, _)| policy.namespace == name.namespace);
    let mut its = its.filter(|(_, policy)| policy.ingress.is_some() && policy.pods.selects(&pod.labels)).peekable();
    let is_isolated = by_namespace || its.peek().is_some();
    let judges = |tier: Tier| tier == Tier::Admin || !is_isolated;
    if may_be_denied(world, name, pod, judges) {
        return Verdict::Closed;
    }
    if !is_isolated {
        return Verdict::Open;
    }
    of_rules(its.flat_map(|(_, policy)| policy.ingress.iter().flatten()), nodes, family)
}

/// Returns the Nodes of a family that these rules let in with a packet that has no port.
fn of_rules<'a>(rules: impl Iterator<Item = &'a PolicyRule>, nodes: &NodeAddresses, family: Family) -> Verdict {
    let mut ranges: Vec<(&IpNet, &[IpNet])> = Vec::new();
    for rule in rules.filter(|rule| rule.ports == Ports::Any) {
        let Peers::Of(peers) = &rule.peers else { return Verdict::Open };
        for peer in peers.iter() {
            match peer {
                Peer::Nodes(_) => return Verdict::Open,
                Peer::Block { cidr, except } if Family::from(*cidr) == family => ranges.push((cidr, &**except)),
                Peer::Block { .. } | Peer::Pods { .. } => {}
            }
        }
    }
    let is_in = |node: &IpAddr| {
        ranges.iter().any(|(cidr, except)| cidr.contains(node) && !except.iter().any(|hole| hole.contains(node)))
    };
    let (any, usual) = (nodes.any.of(family), nodes.usual.of(family));
    if ranges.is_empty() || !any.is_empty() && !any.iter().any(is_in) {
        return Verdict::Closed;
    }
    usual.iter().find(|node| !is_in(node)).map_or(Verdict::Open, |node| Verdict::NotFrom(*node))
}

/// Returns whether a ClusterNetworkPolicy of a tier that judges a pod may deny it anything that comes to it. One whose namespace is not known may be selected.
fn may_be_denied(world: &World, name: &ObjectName, pod: &Pod, judges: impl Fn(Tier) -> bool) -> bool {
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
