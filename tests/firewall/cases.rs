//! Clusters written by hand, in few words, and what is expected of single packets.
//!
//! An expectation is what the decision says: `open`, `exempt`, `not here`, `shop/web 0` (allowed by rule 0 of that
//! policy), or `denied` with the policies that isolate the pod. The oracle is asked too: it has to agree.

use std::net::IpAddr;

use sluice::firewall::rules::{Direction, RuleSet};
use sluice::firewall::verdict::{Decision, Packet, Traffic, verdict};
use sluice::model::{
    Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, ObjectName, Operator, Peer, Peers, Pod, PolicyPort,
    PolicyRule, PortMatch, Ports, Requirement, Selector, World,
};
use sluice::net::Protocol;

use super::{clusters, histories, oracle};

pub const HERE: &str = "node1";
pub const ELSEWHERE: &str = "node2";

/// A World, as it is written down.
pub struct Case(pub World);

impl Case {
    pub fn new() -> Case {
        Case(clusters::empty_world())
    }

    pub fn namespace(mut self, name: &str, of: &str) -> Case {
        self.0.cluster.namespaces.insert(name.into(), Namespace { labels: labels(of), isolated: false });
        self
    }

    /// A running pod with these addresses, labels and named ports (`http/tcp/80`).
    pub fn pod(mut self, name: &str, node: &str, [addresses, of, ports]: [&str; 3]) -> Case {
        let pod = Pod {
            uid: None,
            labels: labels(of),
            addresses: addresses.split_whitespace().map(address).collect(),
            node: Some(node.into()),
            host_network: false,
            finished: false,
            ports: ports.split_whitespace().map(named_port).collect(),
        };
        self.0.cluster.pods.insert(object(name), pod);
        self
    }

    pub fn edit_pod(mut self, name: &str, edit: impl Fn(&mut Pod)) -> Case {
        let mut pod = (**self.0.cluster.pods.get(&object(name)).expect("the pod is there")).clone();
        edit(&mut pod);
        self.0.cluster.pods.insert(object(name), pod);
        self
    }

    /// A policy that isolates the pods with these labels in the directions that have rules.
    pub fn policy(mut self, name: &str, of: &str, rules: [Option<&[PolicyRule]>; 2]) -> Case {
        let [ingress, egress] = rules.map(|rules| rules.map(Box::from));
        self.0.cluster.policies.insert(object(name), NetworkPolicy { pods: is(of), ingress, egress });
        self
    }

    pub fn rules(&self) -> RuleSet {
        histories::rules(&self.0)
    }

    /// `from` and `to` are addresses; what is expected is [egress, ingress].
    pub fn expect(&self, from: &str, to: &str, port: &str, expected: [&str; 2]) -> &Case {
        let (protocol, port) = port.split_once('/').expect("tcp/80");
        let traffic = match protocol {
            "icmp" => Traffic::Icmp { kind: port.parse().expect("a kind") },
            protocol => Traffic::Port { protocol: protocol_of(protocol), port: port.parse().expect("a port") },
        };
        let packet =
            Packet { source: address(from), destination: address(to), traffic, from_this_node: from == "192.0.2.11" };
        let verdict = verdict(&self.rules(), &packet);
        assert_eq!(
            [told(&verdict.egress), told(&verdict.ingress)],
            expected.map(str::to_owned),
            "{from} {to} {packet:?}"
        );
        for direction in Direction::BOTH {
            let wanted = oracle::passes(&self.0, &packet, direction);
            assert_eq!(verdict.of(direction).passes(), wanted, "the oracle disagrees: {direction:?} {packet:?}");
        }
        self
    }
}

/// A rule with these peers and ports; without any it is for any.
pub fn rule(peers: &[Peer], ports: &[PolicyPort]) -> PolicyRule {
    PolicyRule {
        peers: if peers.is_empty() { Peers::Any } else { Peers::Of(peers.into()) },
        ports: if ports.is_empty() { Ports::Any } else { Ports::Of(ports.into()) },
    }
}

pub fn pods(of: &str) -> Peer {
    Peer::Pods { namespaces: Namespaces::Own, pods: is(of) }
}

pub fn pods_in(namespaces: &str, of: &str) -> Peer {
    Peer::Pods { namespaces: Namespaces::Selected(is(namespaces)), pods: is(of) }
}

pub fn block(cidr: &str, except: &[&str]) -> Peer {
    let net = |text: &str| text.parse().expect("a prefix");
    Peer::Block { cidr: net(cidr), except: except.iter().map(|text| net(text)).collect() }
}

/// `tcp/80`, `tcp/80-90`, `tcp/http`, `tcp/*`.
pub fn port(text: &str) -> PolicyPort {
    let (protocol, number) = text.split_once('/').expect("tcp/80");
    let (first, last) = number.split_once('-').unwrap_or((number, number));
    let number = match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) => PortMatch::Range { first, last },
        _ if number == "*" => PortMatch::Any,
        _ => PortMatch::Named(number.into()),
    };
    PolicyPort { protocol: protocol_of(protocol), number }
}

pub fn object(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    ObjectName::new(namespace, name)
}

pub fn labels(text: &str) -> Labels {
    text.split_whitespace().map(|pair| pair.split_once('=').expect("key=value")).collect()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn is(text: &str) -> Selector {
    let requirement = |pair: &str| {
        let (key, value) = pair.split_once('=').expect("key=value");
        Requirement { key: key.into(), operator: Operator::In(Box::new([value.into()])) }
    };
    text.split_whitespace().map(requirement).collect()
}

fn named_port(text: &str) -> NamedPort {
    let words: Vec<&str> = text.split('/').collect();
    NamedPort { name: words[0].into(), protocol: protocol_of(words[1]), number: words[2].parse().expect("a port") }
}

fn protocol_of(text: &str) -> Protocol {
    Protocol::from_api(&text.to_uppercase()).expect("a protocol")
}

fn told(decision: &Decision) -> String {
    match decision {
        Decision::NotHere => "not here".into(),
        Decision::Exempt(_) => "exempt".into(),
        Decision::Open { .. } => "open".into(),
        Decision::DeniedBehind { endpoint, .. } => format!("denied behind {endpoint}"),
        Decision::LinkLocal => "link-local".into(),
        Decision::Multicast => "multicast".into(),
        Decision::Closed => "closed".into(),
        Decision::Allowed { policy, rule, .. } => format!("{policy} {rule}"),
        Decision::ByCluster { policy, rule, denies, .. } => {
            format!("{} {} {rule}", if *denies { "denied by" } else { "accepted by" }, policy.policy)
        }
        Decision::Denied { policies, .. } => {
            let names: Vec<String> = policies.iter().map(ObjectName::to_string).collect();
            format!("denied {}", names.join(" ")).trim_end().to_owned()
        }
    }
}
