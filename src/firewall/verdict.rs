//! Traces one packet through the rule set: its verdict in each direction, and the policy and rule that decide.
//!
//! This defines the meaning of `rules`: a backend is correct if the kernel does the same. The verdict is this node's. A
//! packet between two pods of different nodes is judged by each node for its own end. The effect of flags is added by
//! the caller that knows the flags (`explain`).

use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;

use crate::model::{Action, ObjectName, Tier};
use crate::net::{Family, Protocol, icmp};

use super::host_endpoints::HostEndpoint;
use super::rules::{
    ClusterPolicyKey, ClusterRule, Direction, Isolation, LocalPod, Match, PolicyKey, PortMatch, Rule, RuleSet,
};
use super::{link_local, multicast};

/// The first packet of a connection, with the addresses that the pods see: after translation of service addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub traffic: Traffic,
    /// Sent by the node itself or a process in its network namespace: a probe of the kubelet, a pod with `hostNetwork`; a
    /// packet in a tunnel that IPVS makes (direct server return), whoever sent the one inside.
    pub from_this_node: bool,
}

/// The packet's protocol and destination port, or ICMP type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Traffic {
    /// `port` is the destination port.
    Port { protocol: Protocol, port: u16 },
    /// ICMP or, between IPv6 addresses, ICMPv6; `kind` is the type number.
    Icmp { kind: u8 },
    /// A packet inside a packet of the same family (IP protocol 4, of IPv6 41): only the outer addresses are seen.
    Tunnel,
}

/// This node's verdict on a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The source's side.
    pub egress: Decision,
    /// The destination's side.
    pub ingress: Decision,
}

/// The decision of one side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// No pod of this node that policies can apply to is on this side: another node decides, or none.
    NotHere,
    /// It passes regardless of policies.
    Exempt(Exemption),
    /// No policy selects the pod for this direction.
    Open { pod: ObjectName },
    /// This rule of this policy allows it: the first match, in the order of names.
    Allowed {
        pod: ObjectName,
        policy: ObjectName,
        /// The rule's index in `spec.ingress[]` or `spec.egress[]`, from 0.
        rule: usize,
    },
    /// The pod is isolated, and no rule matches.
    Denied {
        pod: ObjectName,
        /// The policies that isolate the pod; none if only its namespace's annotation does.
        policies: Box<[ObjectName]>,
        by_namespace: bool,
    },
    /// A rule of a ClusterNetworkPolicy decides: the first one that matches, in the order of evaluation.
    ByCluster {
        pod: ObjectName,
        policy: ClusterPolicyKey,
        /// The rule's index in `spec.ingress[]` or `spec.egress[]`, from 0.
        rule: usize,
        /// The rule's name; may be empty.
        name: CompactString,
        /// Whether it denies the packet, or accepts it.
        denies: bool,
    },
    /// A Service at this address has an endpoint on this node itself, which the pod's policies deny (`host_endpoints`).
    DeniedBehind { pod: ObjectName, endpoint: HostEndpoint },
    /// A link-local address, on a node with isolated pods: its owner is unknown (`link_local`).
    LinkLocal,
    /// To every pod of a bridge at once, on a node with pods that are isolated for ingress (`multicast`).
    Multicast,
    /// No pod of this node is known at this address, and unknown addresses are closed (`--netpol-default-deny`).
    Closed,
}

/// Reason why a packet passes regardless of policies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exemption {
    /// An ICMP type that always passes; its name.
    Icmp(&'static str),
    /// From the node to a pod on it, and not a packet inside another one, whose sender is anybody.
    FromThisNode,
    /// From a pod to its own address: that never leaves the pod.
    ToItself,
    /// From a pod to its own node, on a port of the node port range.
    NodePort,
}

/// Returns the verdict on a packet that passes no bridge of pods.
pub fn routed(rules: &RuleSet, packet: &Packet) -> Verdict {
    let decide = |direction| decision(rules, packet, direction);
    Verdict { egress: decide(Direction::Egress), ingress: decide(Direction::Ingress) }
}

/// Returns the verdict on a packet, which passes a bridge of pods if it is between two of them.
pub fn verdict(rules: &RuleSet, packet: &Packet) -> Verdict {
    if link_local::refuses(packet) && link_local::is_closed(rules) {
        return Verdict { egress: Decision::LinkLocal, ingress: Decision::LinkLocal };
    }
    let routed = routed(rules, packet);
    let is_closed = multicast::refuses(packet) && multicast::is_closed(rules);
    if is_closed { Verdict { ingress: Decision::Multicast, ..routed } } else { routed }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Port { protocol, port } => write!(f, "{protocol} {port}"),
            Traffic::Icmp { kind } => write!(f, "icmp {kind}"),
            Traffic::Tunnel => f.write_str("IP in IP"),
        }
    }
}

impl Verdict {
    /// Returns whether this node lets the packet through.
    pub fn passes(&self) -> bool {
        self.egress.passes() && self.ingress.passes()
    }

    pub fn of(&self, direction: Direction) -> &Decision {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl Decision {
    /// Returns the pod of this node that decides; `None` if none has to.
    pub fn pod(&self) -> Option<&ObjectName> {
        match self {
            Decision::Open { pod }
            | Decision::Allowed { pod, .. }
            | Decision::Denied { pod, .. }
            | Decision::ByCluster { pod, .. }
            | Decision::DeniedBehind { pod, .. } => Some(pod),
            Decision::NotHere | Decision::Exempt(_) | Decision::LinkLocal | Decision::Multicast | Decision::Closed => {
                None
            }
        }
    }

    pub fn passes(&self) -> bool {
        let refuses = matches!(
            self,
            Decision::Denied { .. } | Decision::DeniedBehind { .. } | Decision::ByCluster { denies: true, .. }
        );
        !refuses && !matches!(self, Decision::LinkLocal | Decision::Multicast | Decision::Closed)
    }
}

fn decision(rules: &RuleSet, packet: &Packet, direction: Direction) -> Decision {
    let own = match direction {
        Direction::Ingress => packet.destination,
        Direction::Egress => packet.source,
    };
    // Several pods share an address for a moment at most. All have to allow it, so the first that does not decides.
    let mut decisions = rules.local_pods_at(own).map(|(name, pod)| of_pod(rules, packet, (name, pod), direction));
    let Some(first) = decisions.next() else { return Decision::NotHere };
    if let Some(exemption) = exemption(packet, direction) {
        return Decision::Exempt(exemption);
    }
    if !first.passes() {
        return first;
    }
    decisions.find(|decision| !decision.passes()).unwrap_or(first)
}

fn exemption(packet: &Packet, direction: Direction) -> Option<Exemption> {
    if let Traffic::Icmp { kind } = packet.traffic {
        let family = Family::from(packet.destination);
        if let Some(kind) = icmp::always_pass(family).iter().find(|one| one.number(family) == kind) {
            return Some(Exemption::Icmp(kind.name()));
        }
    }
    if packet.source == packet.destination {
        return Some(Exemption::ToItself);
    }
    let is_nodes = packet.from_this_node && packet.traffic != Traffic::Tunnel;
    (is_nodes && direction == Direction::Ingress).then_some(Exemption::FromThisNode)
}

/// Returns the decision of one pod's policies, whatever passes regardless of them.
pub(super) fn of_pod(
    rules: &RuleSet,
    packet: &Packet,
    (name, pod): (&ObjectName, &LocalPod),
    direction: Direction,
) -> Decision {
    let case = Case { rules, packet, direction };
    let by_tier = |tier| case.by_tier(name, pod, tier);
    let open = || Decision::Open { pod: name.clone() };
    by_tier(Tier::Admin).unwrap_or_else(|| match pod.isolation(direction) {
        Isolation::Open => by_tier(Tier::Baseline).unwrap_or_else(open),
        Isolation::Isolated { policies, by_namespace } => case.by_policies(policies, name).unwrap_or_else(|| {
            Decision::Denied { pod: name.clone(), policies: policies.clone(), by_namespace: *by_namespace }
        }),
    })
}

/// A packet on its way into or out of a pod, and the rules that decide about it.
#[derive(Clone, Copy)]
struct Case<'a> {
    rules: &'a RuleSet,
    packet: &'a Packet,
    direction: Direction,
}

impl Case<'_> {
    /// Returns the decision of one tier of a pod; `None` if no rule of it matches, or one that passes the packet on.
    fn by_tier(self, pod_name: &ObjectName, pod: &LocalPod, tier: Tier) -> Option<Decision> {
        let action = |one: &ClusterRule| {
            self.matches(&one.rule)
                .then_some(one.action)
                .or_else(|| self.matches(&one.contested).then_some(Action::Deny))
        };
        let (policy, rule, (name, action)) = pod.tier(tier, self.direction).find_map(|key| {
            let mut list = self.rules.cluster_policies.get(key)?.iter().enumerate();
            list.find_map(|(rule, one)| Some((key, rule, (&one.name, action(one)?))))
        })?;
        let denies = match action {
            Action::Accept => false,
            Action::Deny => true,
            Action::Pass => return None,
        };
        Some(Decision::ByCluster { pod: pod_name.clone(), policy: policy.clone(), rule, name: name.clone(), denies })
    }

    /// Returns the first rule of these NetworkPolicies of a pod that allows the packet, if any does.
    fn by_policies(self, policies: &[ObjectName], pod: &ObjectName) -> Option<Decision> {
        policies.iter().find_map(|policy| {
            let key = PolicyKey { policy: policy.clone(), direction: self.direction };
            let rule = self.rules.policies.get(&key)?.iter().position(|rule| self.matches(rule))?;
            Some(Decision::Allowed { pod: pod.clone(), policy: policy.clone(), rule })
        })
    }

    fn matches(self, rule: &Rule) -> bool {
        rule.matches.iter().any(|one| self.holds(one))
    }

    fn holds(self, one: &Match) -> bool {
        let other = match self.direction {
            Direction::Ingress => self.packet.source,
            Direction::Egress => self.packet.destination,
        };
        let is_peer = match &one.peer {
            None => true,
            Some(set) => self.rules.sets.get(set).is_some_and(|contents| contents.holds_address(other)),
        };
        is_peer && holds_port(self.rules, &one.port, self.packet)
    }
}

fn holds_port(rules: &RuleSet, wanted: &PortMatch, packet: &Packet) -> bool {
    let Traffic::Port { protocol, port } = packet.traffic else { return *wanted == PortMatch::Any };
    match wanted {
        PortMatch::Any => true,
        PortMatch::Protocol(wanted) => *wanted == protocol,
        PortMatch::Numbers(wanted, ranges) => {
            *wanted == protocol && ranges.iter().any(|range| (range.first..=range.last).contains(&port))
        }
        PortMatch::Named(set) => {
            let contents = rules.sets.get(set).filter(|_| set.protocol() == Some(protocol));
            contents.is_some_and(|contents| contents.holds_port(packet.destination, port))
        }
    }
}
