//! One packet traced through the rule set: what happens to it in each direction, and which policy and rule decide.
//!
//! This is the meaning of `rules`, written down once: a backend is right when the kernel does the same. It tells what
//! this node does. A packet between two pods of different nodes is judged by each node for its own end. What flags add to
//! what policies say is added by whoever knows the flags (`explain`).

use std::fmt;
use std::net::IpAddr;

use crate::model::ObjectName;
use crate::net::{Family, Protocol, icmp};

use super::link_local;
use super::rules::{Direction, Isolation, LocalPod, Match, PolicyKey, PortMatch, Rule, RuleSet};

/// The first packet of a connection, with the addresses that the pods see: those of a Service are translated already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub traffic: Traffic,
    /// It comes from the node itself or a process in its network: a probe of the kubelet, a pod with `hostNetwork`.
    pub from_this_node: bool,
}

/// What the packet is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Traffic {
    /// `port` is the destination's.
    Port { protocol: Protocol, port: u16 },
    /// ICMP or, between IPv6 addresses, ICMPv6; `kind` is the number of the type.
    Icmp { kind: u8 },
}

/// What becomes of a packet on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The source's side.
    pub egress: Decision,
    /// The destination's side.
    pub ingress: Decision,
}

/// What one side says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// No pod of this node that policies can concern is on this side: another node decides, or nobody.
    NotHere,
    /// It passes whatever policies say.
    Exempt(Exemption),
    /// No policy selects the pod for this direction.
    Open { pod: ObjectName },
    /// This rule of this policy allows it: the first that does, in the order of names.
    Allowed {
        pod: ObjectName,
        policy: ObjectName,
        /// The rule's place in `spec.ingress[]` or `spec.egress[]`, from 0.
        rule: usize,
    },
    /// The pod is isolated, and nothing allows it.
    Denied {
        pod: ObjectName,
        /// The policies that isolate the pod; none where its namespace's annotation alone does.
        policies: Box<[ObjectName]>,
        by_namespace: bool,
    },
    /// A link-local address, on a node with isolated pods: whose it is cannot be told (`link_local`).
    LinkLocal,
    /// No pod of this node is known at this address, and unknown ones are closed (`--netpol-default-deny`).
    Closed,
}

/// Why a packet passes whatever policies say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exemption {
    /// A kind of ICMP that always passes; its name.
    Icmp(&'static str),
    /// From the node to a pod on it.
    FromThisNode,
    /// A pod to its own address: that never leaves the pod.
    ToItself,
    /// A pod to its own node on a port of the node port range.
    NodePort,
}

/// What becomes of a packet.
pub fn verdict(rules: &RuleSet, packet: &Packet) -> Verdict {
    if link_local::refuses(packet) && link_local::is_closed(rules) {
        return Verdict { egress: Decision::LinkLocal, ingress: Decision::LinkLocal };
    }
    let decide = |direction| decision(rules, packet, direction);
    Verdict { egress: decide(Direction::Egress), ingress: decide(Direction::Ingress) }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Port { protocol, port } => write!(f, "{protocol} {port}"),
            Traffic::Icmp { kind } => write!(f, "icmp {kind}"),
        }
    }
}

impl Verdict {
    /// Whether this node lets the packet through.
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
    /// The pod of this node that decides; `None` where none has to.
    pub fn pod(&self) -> Option<&ObjectName> {
        match self {
            Decision::Open { pod } | Decision::Allowed { pod, .. } | Decision::Denied { pod, .. } => Some(pod),
            Decision::NotHere | Decision::Exempt(_) | Decision::LinkLocal | Decision::Closed => None,
        }
    }

    pub fn passes(&self) -> bool {
        !matches!(self, Decision::Denied { .. } | Decision::LinkLocal | Decision::Closed)
    }
}

fn decision(rules: &RuleSet, packet: &Packet, direction: Direction) -> Decision {
    let own = match direction {
        Direction::Ingress => packet.destination,
        Direction::Egress => packet.source,
    };
    // Several pods have one address for a moment at most. All have to agree, so the first that does not decides.
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
        let passing = icmp::always_pass(Family::from(packet.destination));
        if let Some((kind, _)) = passing.iter().find(|(_, number)| *number == kind) {
            return Some(Exemption::Icmp(kind.name()));
        }
    }
    if packet.source == packet.destination {
        return Some(Exemption::ToItself);
    }
    (packet.from_this_node && direction == Direction::Ingress).then_some(Exemption::FromThisNode)
}

fn of_pod(rules: &RuleSet, packet: &Packet, (name, pod): (&ObjectName, &LocalPod), direction: Direction) -> Decision {
    let Isolation::Isolated { policies, by_namespace } = pod.isolation(direction) else {
        return Decision::Open { pod: name.clone() };
    };
    let allowing = policies.iter().find_map(|policy| {
        let key = PolicyKey { policy: policy.clone(), direction };
        let allows = |rule: &Rule| rule.matches.iter().any(|one| holds(rules, one, packet, direction));
        Some((policy, rules.policies.get(&key)?.iter().position(allows)?))
    });
    match allowing {
        Some((policy, rule)) => Decision::Allowed { pod: name.clone(), policy: policy.clone(), rule },
        None => Decision::Denied { pod: name.clone(), policies: policies.clone(), by_namespace: *by_namespace },
    }
}

fn holds(rules: &RuleSet, one: &Match, packet: &Packet, direction: Direction) -> bool {
    let other = match direction {
        Direction::Ingress => packet.source,
        Direction::Egress => packet.destination,
    };
    let is_peer = match &one.peer {
        None => true,
        Some(set) => rules.sets.get(set).is_some_and(|contents| contents.holds_address(other)),
    };
    is_peer && holds_port(rules, &one.port, packet)
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
