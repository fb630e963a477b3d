//! Oracle for NetworkPolicies: the API's text, evaluated directly for one packet, without any state.
//!
//! Nothing of the compiler is used here, and of the model only its data: selectors, blocks and ports are evaluated by
//! this file's own words.
//!
//! Link-local addresses of IPv6 are in no object: nothing but what links need passes with one while a pod of this node is isolated.
//! Groups and everybody are in none, either: nothing but what links need is for them while a pod of this node is isolated for ingress.
//!
//! Another thing the API does not say: whose packet it is when two running pods have one address. The rule that is checked
//! (`firewall::claims`): a peer is selected when all pods with its address are, a port name stands for a number when
//! all pods with the address say so, and each pod of this node with the address has to agree. A rule that denies is for an
//! address if it would be for any of its pods alone, and one that passes on denies where it would be for some and not for all.
//! A pod whose Namespace is not known yet is a peer of what denies, whatever namespaces that selects, and of nothing else.
//!
//! Tiers are the API's (`policy.networking.k8s.io/v1beta1`), and so is that the first rule decides. Of two policies with
//! the same priority the API does not say which is first: by name.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice::firewall::rules::Direction;
use sluice::firewall::verdict::{Packet, Traffic};
use sluice::model::{
    Action, ClusterNetworkPolicy, ClusterRule, Labels, Namespaces, NetworkPolicy, ObjectName, Operator, Peer, Peers,
    Pod, PolicyPort, PolicyRule, PortMatch, Ports, Selector, Tier, World,
};
use sluice::net::Protocol;

/// Whether this node lets a packet pass on one side.
pub fn passes(world: &World, packet: &Packet, direction: Direction) -> bool {
    let always = match packet.traffic {
        Traffic::Icmp { kind } if packet.destination.is_ipv4() => [3, 8, 11].contains(&kind),
        Traffic::Icmp { kind } => [1, 2, 3, 128, 129, 135, 136].contains(&kind),
        Traffic::Port { .. } | Traffic::Tunnel => false,
    };
    if is_link_local(packet) && Direction::BOTH.iter().any(|direction| isolates(world, *direction)) {
        return false;
    }
    if direction == Direction::Ingress && is_for_many(packet) && isolates(world, Direction::Ingress) {
        return false;
    }
    let (own, _) = sides(packet, direction);
    // In a tunnel it is anybody's.
    let is_nodes = packet.from_this_node && packet.traffic != Traffic::Tunnel;
    let from_node = is_nodes && direction == Direction::Ingress;
    always || packet.source == packet.destination || from_node || {
        running(world, own)
            .into_iter()
            .filter(|(_, pod)| is_here(world, pod))
            .all(|(name, pod)| agrees(world, (name, pod), packet, direction))
    }
}

/// Whether any pod of this node is isolated, or may be denied something by a policy of the cluster.
fn isolates(world: &World, direction: Direction) -> bool {
    let mut here = world
        .cluster
        .pods
        .iter()
        .filter(|(_, pod)| !pod.finished && !pod.host_network && !pod.addresses.is_empty() && is_here(world, pod));
    here.any(|(name, pod)| is_isolated(world, (name, pod), direction))
}

/// Sent by a pod to a group (RFC 1112, RFC 4291) or to everybody (RFC 919), and neither about the link nor DHCP (RFC 2131).
fn is_for_many(packet: &Packet) -> bool {
    let many = match packet.destination {
        IpAddr::V4(address) => address.octets()[0] & 0xf0 == 0xe0 || [[0; 4], [255; 4]].contains(&address.octets()),
        IpAddr::V6(address) => address.octets()[0] == 0xff,
    };
    let needed = match packet.traffic {
        Traffic::Icmp { kind } => packet.destination.is_ipv6() && is_about_the_link(kind),
        Traffic::Port { protocol, port } => {
            packet.destination == IpAddr::from([255; 4]) && protocol == Protocol::Udp && (port == 67 || port == 68)
        }
        Traffic::Tunnel => false,
    };
    many && !needed && !packet.from_this_node
}

fn is_about_the_link(kind: u8) -> bool {
    [130..=133, 135..=136, 143..=143].iter().any(|kinds| kinds.contains(&kind))
}

/// Sent by a pod from or to an address of its link only, and no message about that link (RFC 4861, RFC 3810).
fn is_link_local(packet: &Packet) -> bool {
    let first = |address: IpAddr| match address {
        IpAddr::V6(address) => address.segments()[0],
        IpAddr::V4(_) => 0,
    };
    let on_link = |address| first(address) & 0xffc0 == 0xfe80;
    let needed = matches!(packet.traffic, Traffic::Icmp { kind } if is_about_the_link(kind));
    (on_link(packet.source) || on_link(packet.destination) || first(packet.destination) == 0xff02)
        && !needed
        && !packet.from_this_node
}

fn is_isolated(world: &World, (name, pod): (&ObjectName, &Pod), direction: Direction) -> bool {
    let by_namespace = direction == Direction::Ingress
        && world.cluster.namespaces.get(&name.namespace).is_some_and(|namespace| namespace.isolated);
    let selects = |policy: &NetworkPolicy| selected(&policy.pods, &pod.labels) && rules(policy, direction).is_some();
    let mut policies = world.cluster.policies.iter().filter(|(policy, _)| policy.namespace == name.namespace);
    by_namespace || policies.any(|(_, policy)| selects(policy)) || is_denied_something(world, (name, pod), direction)
}

fn is_denied_something(world: &World, (name, pod): (&ObjectName, &Pod), direction: Direction) -> bool {
    let denies = |policy: &ClusterNetworkPolicy| {
        is_subject(world, policy, (name, pod), direction)
            && cluster_rules(policy, direction).iter().any(|rule| rule.action == Action::Deny)
    };
    world.cluster.cluster_policies.iter().any(|(_, policy)| denies(policy))
}

fn sides(packet: &Packet, direction: Direction) -> (IpAddr, IpAddr) {
    match direction {
        Direction::Ingress => (packet.destination, packet.source),
        Direction::Egress => (packet.source, packet.destination),
    }
}

/// The pods that have this address as their own.
fn running(world: &World, address: IpAddr) -> Vec<(&ObjectName, &Pod)> {
    let has = |pod: &Pod| !pod.finished && !pod.host_network && pod.addresses.contains(&address);
    world.cluster.pods.iter().map(|(name, pod)| (name, &**pod)).filter(|(_, pod)| has(pod)).collect()
}

fn is_here(world: &World, pod: &Pod) -> bool {
    pod.node.as_deref().is_some_and(|node| *node == *world.host.node_name)
}

fn agrees(world: &World, (name, pod): (&ObjectName, &Pod), packet: &Packet, direction: Direction) -> bool {
    match by_tier(world, (name, pod), packet, (Tier::Admin, direction)) {
        Action::Accept => return true,
        Action::Deny => return false,
        Action::Pass => {}
    }
    let mut isolated = match direction {
        Direction::Ingress => world.cluster.namespaces.get(&name.namespace).is_some_and(|ns| ns.isolated),
        Direction::Egress => false,
    };
    for (policy_name, policy) in world.cluster.policies.iter() {
        if policy_name.namespace != name.namespace || !selected(&policy.pods, &pod.labels) {
            continue;
        }
        let Some(rules) = rules(policy, direction) else { continue };
        isolated = true;
        let of = Of { world, own: &policy_name.namespace, alone: [None, None], may: false, denies: false };
        if rules.iter().any(|rule| of.allows(rule, packet, direction)) {
            return true;
        }
    }
    !isolated && by_tier(world, (name, pod), packet, (Tier::Baseline, direction)) != Action::Deny
}

/// Decision of one tier's policies on a packet; without a matching rule it passes on to the next tier.
fn by_tier(
    world: &World,
    subject: (&ObjectName, &Pod),
    packet: &Packet,
    (tier, direction): (Tier, Direction),
) -> Action {
    let all = world.cluster.cluster_policies.iter().filter(|(_, policy)| policy.tier == tier);
    let mut policies: Vec<_> = all.collect();
    policies.sort_by_key(|(name, policy)| (policy.priority, *name));
    // A policy before may have to pass on what a later one accepts: nobody knows as long as the Namespace is not known.
    let mut may_be_passed = false;
    for (_, policy) in policies {
        let has = |action| cluster_rules(policy, direction).iter().any(|rule| rule.action == action);
        if !is_subject(world, policy, subject, direction) {
            may_be_passed |= tier == Tier::Admin && has(Action::Pass) && may_be_subject(world, policy, subject);
            continue;
        }
        if may_be_passed && !has(Action::Deny) && !has(Action::Pass) {
            continue;
        }
        for rule in cluster_rules(policy, direction) {
            let for_all = Of { world, own: "", alone: [None, None], may: false, denies: false }.allows(
                &rule.matches,
                packet,
                direction,
            );
            let for_any = is_for_any(world, rule, packet, direction);
            match rule.action {
                Action::Accept if for_all => return Action::Accept,
                Action::Deny if for_any => return Action::Deny,
                Action::Pass if for_all => return Action::Pass,
                Action::Pass if is_contested(world, rule, packet, direction) => return Action::Deny,
                _ => {}
            }
        }
    }
    Action::Pass
}

/// Whether a rule is for some of the pods of an address. Of one for all pods of the cluster, at any port or some numbers, nobody says
/// so: those that it is not for have no Namespace yet.
fn is_contested(world: &World, rule: &ClusterRule, packet: &Packet, direction: Direction) -> bool {
    let is_for_all = |peer: &Peer| match peer {
        Peer::Pods { namespaces: Namespaces::Selected(namespaces), pods } => {
            namespaces.requirements.is_empty() && pods.requirements.is_empty()
        }
        _ => false,
    };
    let with = |keep_peer: &dyn Fn(&Peer) -> bool, keep_port: &dyn Fn(&PolicyPort) -> bool| {
        let mut part = rule.clone();
        if let Peers::Of(peers) = &mut part.matches.peers {
            *peers = peers.iter().filter(|peer| keep_peer(peer)).cloned().collect();
        }
        match &mut part.matches.ports {
            Ports::Of(ports) => *ports = ports.iter().filter(|port| keep_port(port)).cloned().collect(),
            Ports::Any if keep_port(&PolicyPort { protocol: Protocol::Tcp, number: PortMatch::Any }) => {}
            Ports::Any => part.matches.ports = Ports::Of([].into()),
        }
        is_for_any(world, &part, packet, direction)
    };
    let is_named = |port: &PolicyPort| matches!(port.number, PortMatch::Named(_));
    with(&|peer| !is_for_all(peer), &|_| true) || with(&|_| true, &is_named)
}

/// Whether the rule would be for the packet if only one of the pods had the address at the other end, and one the pod's own.
fn is_for_any(world: &World, rule: &ClusterRule, packet: &Packet, direction: Direction) -> bool {
    let pods = |address| {
        let pods = running(world, address).into_iter().map(|(name, _)| Some(name));
        if running(world, address).is_empty() { vec![None] } else { pods.collect() }
    };
    let (sources, destinations) = (pods(packet.source), pods(packet.destination));
    sources.iter().any(|source| {
        destinations.iter().any(|destination| {
            let alone = [source.map(|name| (packet.source, name)), destination.map(|name| (packet.destination, name))];
            Of { world, own: "", alone, may: true, denies: rule.action == Action::Deny }.allows(
                &rule.matches,
                packet,
                direction,
            )
        })
    })
}

/// The label that every Namespace has, with its own name.
const NAME: &str = "kubernetes.io/metadata.name";

/// Whether the policy may be one for the pod, as far as the labels of its Namespace are known.
fn may_be_subject(world: &World, policy: &ClusterNetworkPolicy, (name, pod): (&ObjectName, &Pod)) -> bool {
    let namespaces = &policy.subject.namespaces;
    let is_namespace = match world.cluster.namespaces.get(&name.namespace) {
        Some(namespace) => selected(namespaces, &namespace.labels),
        None => {
            let by_name = namespaces.requirements.iter().filter(|one| one.key == NAME).cloned().collect();
            selected(&by_name, &[(NAME, name.namespace.as_str())].into_iter().collect())
        }
    };
    is_namespace && selected(&policy.subject.pods, &pod.labels)
}

/// Of a Namespace that is not known yet only the label is known that every Namespace has. Where another one decides, the policy is
/// for its pods if it denies anything in this direction.
fn is_subject(
    world: &World,
    policy: &ClusterNetworkPolicy,
    (name, pod): (&ObjectName, &Pod),
    direction: Direction,
) -> bool {
    let is_certain = world.cluster.namespaces.get(&name.namespace).is_some()
        || policy.subject.namespaces.requirements.iter().all(|one| one.key == NAME);
    let denies = || cluster_rules(policy, direction).iter().any(|rule| rule.action == Action::Deny);
    may_be_subject(world, policy, (name, pod)) && (is_certain || denies())
}

fn cluster_rules(policy: &ClusterNetworkPolicy, direction: Direction) -> &[ClusterRule] {
    match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    }
}

fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&[PolicyRule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// Who is asked about the peers and ports of a rule.
struct Of<'a> {
    world: &'a World,
    /// The namespace of the policy.
    own: &'a str,
    /// Addresses that only these pods have, whoever else claims them.
    alone: [Option<(IpAddr, &'a ObjectName)>; 2],
    /// A Namespace that is not known counts as one that is selected.
    may: bool,
    /// What is asked denies: then this Node is all that the host has for addresses.
    denies: bool,
}

impl Of<'_> {
    fn allows(&self, rule: &PolicyRule, packet: &Packet, direction: Direction) -> bool {
        let (_, other) = sides(packet, direction);
        let peer = match &rule.peers {
            Peers::Any => true,
            Peers::Of(peers) => peers.iter().any(|peer| self.is_peer(peer, other)),
        };
        let port = match &rule.ports {
            Ports::Any => true,
            Ports::Of(ports) => ports.iter().any(|port| self.is_port(port, packet, direction)),
        };
        peer && port
    }

    fn running(&self, address: IpAddr) -> Vec<(&ObjectName, &Pod)> {
        let mut all = running(self.world, address);
        for (_, only) in self.alone.iter().flatten().filter(|(its, _)| *its == address) {
            all.retain(|(name, _)| name == only);
        }
        all
    }

    fn is_peer(&self, peer: &Peer, address: IpAddr) -> bool {
        match peer {
            Peer::Block { cidr, except } => inside(*cidr, address) && !except.iter().any(|hole| inside(*hole, address)),
            Peer::Nodes(wanted) => {
                let host = &self.world.host;
                let of_host = |name: &str| {
                    self.denies
                        && host.node_name == name
                        && host.addresses.iter().any(|own| own.global && own.address == address)
                };
                self.world.cluster.nodes.iter().any(|(name, node)| {
                    let has_it = node.addresses.iter().any(|own| own.address == address) || of_host(name);
                    selected(wanted, &node.labels) && has_it
                })
            }
            Peer::Pods { namespaces, pods } => {
                let all = self.running(address);
                !all.is_empty()
                    && all.iter().all(|(name, pod)| {
                        let right_namespace = match namespaces {
                            Namespaces::Own => name.namespace == self.own,
                            Namespaces::Selected(selector) => {
                                match self.world.cluster.namespaces.get(&name.namespace) {
                                    Some(namespace) => selected(selector, &namespace.labels),
                                    None => self.may,
                                }
                            }
                        };
                        right_namespace && selected(pods, &pod.labels)
                    })
            }
        }
    }

    fn is_port(&self, wanted: &PolicyPort, packet: &Packet, direction: Direction) -> bool {
        let Traffic::Port { protocol, port } = packet.traffic else { return false };
        let name = match &wanted.number {
            _ if wanted.protocol != protocol => return false,
            PortMatch::Any => return true,
            PortMatch::Range { first, last } => return *first <= port && port <= *last,
            PortMatch::Named(name) => name,
        };
        // At ingress the destination is the isolated pod, which is one of this node.
        let mut destinations = self.running(packet.destination);
        destinations.retain(|(_, pod)| direction == Direction::Egress || is_here(self.world, pod));
        let says = |pod: &Pod| pod.ports.iter().any(|p| p.name == *name && p.protocol == protocol && p.number == port);
        !destinations.is_empty() && destinations.iter().all(|(_, pod)| says(pod))
    }
}

fn selected(selector: &Selector, labels: &Labels) -> bool {
    selector.requirements.iter().all(|requirement| {
        let found = labels.iter().find(|(key, _)| *key == requirement.key).map(|(_, value)| value);
        match (&requirement.operator, found) {
            (Operator::In(values), Some(value)) => values.iter().any(|one| one == value),
            (Operator::NotIn(values), Some(value)) => values.iter().all(|one| one != value),
            (Operator::Exists, Some(_)) | (Operator::NotIn(_) | Operator::DoesNotExist, None) => true,
            (Operator::In(_) | Operator::Exists, None) | (Operator::DoesNotExist, Some(_)) => false,
        }
    })
}

/// Whether the first bits of both are the same.
fn inside(prefix: IpNet, address: IpAddr) -> bool {
    let same = |a: &[u8], b: &[u8]| {
        (0..usize::from(prefix.prefix_len())).all(|bit| {
            let mask = 0x80 >> (bit % 8);
            a[bit / 8] & mask == b[bit / 8] & mask
        })
    };
    match (prefix.addr(), address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(&a.octets(), &b.octets()),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(&a.octets(), &b.octets()),
        _ => false,
    }
}
