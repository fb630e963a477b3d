//! The firewall's part of forms 2 and 3: pods, namespaces and policies.
//!
//! Labels, ports and nodes are named by their place in a list that holds each once, and a pod's name by what it shares with the
//! one before it.

use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;
use serde::Deserialize;

use super::{Known, NameRecord};
use crate::k8s::Kind;
use crate::model::{
    Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, ObjectName, Operator, Peer, Peers, Pod, PolicyPort,
    PolicyRule, PortMatch, Ports, Requirement, Selector, Shared,
};
use crate::net::Protocol;

#[derive(Deserialize)]
pub struct FirewallRecord {
    /// The kinds, also those of the record before this one, of which everything is written down.
    kinds: Vec<u8>,
    /// Keys and values of labels.
    words: Vec<CompactString>,
    /// Keys and values by their place among the words.
    labels: Vec<Vec<(u32, u32)>>,
    /// Name, protocol and number of each port.
    ports: Vec<Vec<(CompactString, u8, u16)>>,
    nodes: Vec<CompactString>,
    /// By namespace, sorted by name.
    pods: Vec<(CompactString, Vec<PodRecord>)>,
    /// Name, place of the labels, and whether it is isolated.
    namespaces: Vec<(CompactString, u32, bool)>,
    policies: Vec<(NameRecord, PolicyRecord)>,
}

#[derive(Deserialize)]
struct PodRecord {
    /// Number of bytes of the name that it shares with the name before.
    shared: u8,
    rest: CompactString,
    labels: u32,
    ports: u32,
    /// The place of the node's name, counted from 1; 0 without a node.
    node: u32,
    /// 1 host network, 2 finished.
    is: u8,
    addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct PolicyRecord {
    pods: SelectorRecord,
    ingress: Option<Vec<RuleRecord>>,
    egress: Option<Vec<RuleRecord>>,
}

/// Key, operator and values of each requirement. Operators: 0 In, 1 NotIn, 2 Exists, 3 DoesNotExist.
#[derive(Deserialize)]
struct SelectorRecord(Vec<(CompactString, u8, Vec<CompactString>)>);

#[derive(Deserialize)]
struct RuleRecord {
    /// None stands for any.
    peers: Option<Vec<PeerRecord>>,
    /// Protocol and number; none stands for any.
    ports: Option<Vec<(u8, NumberRecord)>>,
}

#[derive(Deserialize)]
enum PeerRecord {
    /// Namespaces, none for the policy's own; pods.
    Pods(Option<SelectorRecord>, SelectorRecord),
    Block((IpAddr, u8), Vec<(IpAddr, u8)>),
}

#[derive(Deserialize)]
enum NumberRecord {
    Any,
    Range(u16, u16),
    Named(CompactString),
}

impl FirewallRecord {
    /// Adds what is written here; `None` where it is invalid.
    pub fn complete(self, known: &mut Known) -> Option<()> {
        let labels: Vec<Labels> = self.labels.iter().map(|pairs| labels(pairs, &self.words)).collect::<Option<_>>()?;
        let ports: Vec<Shared<[NamedPort]>> = self.ports.into_iter().map(named_ports).collect::<Option<_>>()?;
        let nodes: Vec<Shared<str>> = self.nodes.iter().map(|name| name.as_str().into()).collect();
        let shared = SharedLists { labels, ports, nodes };
        for (namespace, records) in self.pods {
            let namespace = crate::model::NamespaceName::from(namespace.as_str());
            let mut before = CompactString::default();
            for record in records {
                let (name, pod) = record.pod(&before, &shared)?;
                known.cluster.pods.insert(ObjectName::of(namespace.clone(), &name), pod);
                before = name;
            }
        }
        for (name, labels, isolated) in self.namespaces {
            let labels = at(&shared.labels, labels)?.clone();
            known.cluster.namespaces.insert(name, Namespace { labels, isolated });
        }
        for (name, policy) in self.policies {
            known.cluster.policies.insert(name.name(), policy.policy()?);
        }
        known.kinds = self.kinds.into_iter().map(kind_of).collect::<Option<_>>()?;
        Some(())
    }
}

/// The shared lists, as read.
struct SharedLists {
    labels: Vec<Labels>,
    ports: Vec<Shared<[NamedPort]>>,
    nodes: Vec<Shared<str>>,
}

fn at<T>(list: &[T], place: u32) -> Option<&T> {
    list.get(usize::try_from(place).ok()?)
}

fn labels(pairs: &[(u32, u32)], words: &[CompactString]) -> Option<Labels> {
    pairs.iter().map(|(key, value)| Some((at(words, *key)?.clone(), at(words, *value)?.clone()))).collect()
}

fn named_ports(record: Vec<(CompactString, u8, u16)>) -> Option<Shared<[NamedPort]>> {
    let port = |(name, protocol, number)| Some(NamedPort { name, protocol: Protocol::from_number(protocol)?, number });
    record.into_iter().map(port).collect()
}

impl PodRecord {
    fn pod(self, before: &str, shared: &SharedLists) -> Option<(CompactString, Pod)> {
        let mut name = CompactString::from(before.get(..usize::from(self.shared))?);
        name.push_str(&self.rest);
        let node = match self.node.checked_sub(1) {
            Some(place) => Some(at(&shared.nodes, place)?.clone()),
            None => None,
        };
        let pod = Pod {
            uid: None,
            labels: at(&shared.labels, self.labels)?.clone(),
            addresses: self.addresses.into(),
            node,
            host_network: self.is & 1 != 0,
            finished: self.is & 2 != 0,
            ports: at(&shared.ports, self.ports)?.clone(),
        };
        Some((name, pod))
    }
}

impl PolicyRecord {
    fn policy(self) -> Option<NetworkPolicy> {
        let rules = |records: Option<Vec<RuleRecord>>| match records {
            Some(records) => records.into_iter().map(RuleRecord::rule).collect::<Option<Box<[_]>>>().map(Some),
            None => Some(None),
        };
        Some(NetworkPolicy { pods: self.pods.selector()?, ingress: rules(self.ingress)?, egress: rules(self.egress)? })
    }
}

impl RuleRecord {
    fn rule(self) -> Option<PolicyRule> {
        Some(PolicyRule {
            peers: match self.peers {
                None => Peers::Any,
                Some(peers) => Peers::Of(peers.into_iter().map(PeerRecord::peer).collect::<Option<_>>()?),
            },
            ports: match self.ports {
                None => Ports::Any,
                Some(ports) => Ports::Of(ports.into_iter().map(policy_port).collect::<Option<_>>()?),
            },
        })
    }
}

impl PeerRecord {
    fn peer(self) -> Option<Peer> {
        let range = |(address, length)| IpNet::new(address, length).ok();
        Some(match self {
            PeerRecord::Pods(None, pods) => Peer::Pods { namespaces: Namespaces::Own, pods: pods.selector()? },
            PeerRecord::Pods(Some(namespaces), pods) => {
                Peer::Pods { namespaces: Namespaces::Selected(namespaces.selector()?), pods: pods.selector()? }
            }
            PeerRecord::Block(cidr, except) => {
                Peer::Block { cidr: range(cidr)?, except: except.into_iter().map(range).collect::<Option<_>>()? }
            }
        })
    }
}

fn policy_port((protocol, number): (u8, NumberRecord)) -> Option<PolicyPort> {
    let number = match number {
        NumberRecord::Any => PortMatch::Any,
        NumberRecord::Range(first, last) => PortMatch::Range { first, last },
        NumberRecord::Named(name) => PortMatch::Named(name),
    };
    Some(PolicyPort { protocol: Protocol::from_number(protocol)?, number })
}

impl SelectorRecord {
    fn selector(self) -> Option<Selector> {
        let requirement = |(key, operator, values): (CompactString, u8, Vec<CompactString>)| {
            let operator = match operator {
                0 => Operator::In(values.into()),
                1 => Operator::NotIn(values.into()),
                2 => Operator::Exists,
                3 => Operator::DoesNotExist,
                _ => return None,
            };
            Some(Requirement { key, operator })
        };
        self.0.into_iter().map(requirement).collect()
    }
}

/// A kind by the number that these forms gave it.
fn kind_of(number: u8) -> Option<Kind> {
    Some(match number {
        0 => Kind::Service,
        1 => Kind::EndpointSlice,
        2 => Kind::Node,
        3 => Kind::Pod,
        4 => Kind::Namespace,
        5 => Kind::NetworkPolicy,
        _ => return None,
    })
}
