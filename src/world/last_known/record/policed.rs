//! What the firewall needs, as it is written down: pods, namespaces and policies.
//!
//! There are many pods, and every node writes down all of them, so their form is small: labels, ports and nodes are
//! named by their place in a list that holds each once, and a pod's name by what it shares with the one before it, which
//! for pods of one template is all but the last few letters.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Known, NameRecord};
use crate::k8s::Kind;
use crate::model::{
    Cluster, Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, ObjectName, Operator, Peer, Peers, Pod,
    PolicyPort, PolicyRule, PortMatch, Ports, Requirement, Selector,
};
use crate::net::Protocol;

#[derive(Serialize, Deserialize)]
pub struct PolicedRecord {
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

#[derive(Serialize, Deserialize)]
struct PodRecord {
    /// So many bytes of the name are those of the name before.
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

#[derive(Serialize, Deserialize)]
struct PolicyRecord {
    pods: SelectorRecord,
    ingress: Option<Vec<RuleRecord>>,
    egress: Option<Vec<RuleRecord>>,
}

/// Key, operator and values of each requirement. Operators: 0 In, 1 NotIn, 2 Exists, 3 DoesNotExist.
#[derive(Serialize, Deserialize)]
struct SelectorRecord(Vec<(CompactString, u8, Vec<CompactString>)>);

#[derive(Serialize, Deserialize)]
struct RuleRecord {
    /// None stands for any.
    peers: Option<Vec<PeerRecord>>,
    /// Protocol and number; none stands for any.
    ports: Option<Vec<(u8, NumberRecord)>>,
}

#[derive(Serialize, Deserialize)]
enum PeerRecord {
    /// Namespaces, none for the policy's own; pods.
    Pods(Option<SelectorRecord>, SelectorRecord),
    Block((IpAddr, u8), Vec<(IpAddr, u8)>),
}

#[derive(Serialize, Deserialize)]
enum NumberRecord {
    Any,
    Range(u16, u16),
    Named(CompactString),
}

impl PolicedRecord {
    pub fn of(known: &Known) -> PolicedRecord {
        let Cluster { pods, namespaces, policies, .. } = &known.cluster;
        let mut lists = Lists::default();
        let mut by_namespace: Vec<(CompactString, Vec<PodRecord>)> = Vec::new();
        let mut before = "";
        for (name, pod) in pods.iter() {
            if by_namespace.last().is_none_or(|(namespace, _)| *namespace != name.namespace) {
                by_namespace.push((name.namespace.clone(), Vec::new()));
                before = "";
            }
            let record = PodRecord::of(&name.name, before, pod, &mut lists);
            by_namespace.last_mut().expect("one was just pushed").1.push(record);
            before = &name.name;
        }
        let namespaces = namespaces
            .iter()
            .map(|(name, namespace)| (name.clone(), lists.place_of_labels(&namespace.labels), namespace.isolated))
            .collect();
        PolicedRecord {
            kinds: known.kinds.iter().map(|kind| number_of(*kind)).collect(),
            words: lists.words.in_order,
            labels: lists.labels,
            ports: lists.ports.in_order.iter().map(|ports| ports_record(ports)).collect(),
            nodes: lists.nodes.in_order.iter().map(|name| CompactString::from(&**name)).collect(),
            pods: by_namespace,
            namespaces,
            policies: policies.iter().map(|(name, policy)| (NameRecord::of(name), PolicyRecord::of(policy))).collect(),
        }
    }

    /// Adds what is written here; `None` where it makes no sense.
    pub fn complete(self, known: &mut Known) -> Option<()> {
        let labels: Vec<Labels> = self.labels.iter().map(|pairs| labels(pairs, &self.words)).collect::<Option<_>>()?;
        let ports: Vec<Arc<[NamedPort]>> = self.ports.into_iter().map(named_ports).collect::<Option<_>>()?;
        let nodes: Vec<Arc<str>> = self.nodes.iter().map(|name| Arc::from(name.as_str())).collect();
        let shared = Shared { labels, ports, nodes };
        for (namespace, records) in self.pods {
            let mut before = CompactString::default();
            for record in records {
                let (name, pod) = record.pod(&before, &shared)?;
                known.cluster.pods.insert(ObjectName { namespace: namespace.clone(), name: name.clone() }, pod);
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

/// What is written down once, while it is being collected.
#[derive(Default)]
struct Lists<'a> {
    words: List<CompactString>,
    labels: Vec<Vec<(u32, u32)>>,
    places_of_labels: HashMap<&'a Labels, u32>,
    ports: List<Arc<[NamedPort]>>,
    nodes: List<Arc<str>>,
}

/// Values, each once, and their places.
struct List<T> {
    in_order: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { in_order: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> List<T> {
    fn place(&mut self, value: &T) -> u32 {
        if let Some(place) = self.places.get(value) {
            return *place;
        }
        let place = next(self.in_order.len());
        self.in_order.push(value.clone());
        self.places.insert(value.clone(), place);
        place
    }
}

impl<'a> Lists<'a> {
    fn place_of_labels(&mut self, labels: &'a Labels) -> u32 {
        if let Some(place) = self.places_of_labels.get(labels) {
            return *place;
        }
        let place = next(self.labels.len());
        let words = &mut self.words;
        let pairs = labels.iter().map(|(key, value)| (words.place(&key.into()), words.place(&value.into())));
        self.labels.push(pairs.collect());
        self.places_of_labels.insert(labels, place);
        place
    }
}

fn next(len: usize) -> u32 {
    u32::try_from(len).expect("a cluster has fewer objects than there are numbers")
}

/// What is written down once, as it was read.
struct Shared {
    labels: Vec<Labels>,
    ports: Vec<Arc<[NamedPort]>>,
    nodes: Vec<Arc<str>>,
}

fn at<T>(list: &[T], place: u32) -> Option<&T> {
    list.get(usize::try_from(place).ok()?)
}

fn labels(pairs: &[(u32, u32)], words: &[CompactString]) -> Option<Labels> {
    pairs.iter().map(|(key, value)| Some((at(words, *key)?.clone(), at(words, *value)?.clone()))).collect()
}

fn ports_record(ports: &[NamedPort]) -> Vec<(CompactString, u8, u16)> {
    ports.iter().map(|port| (port.name.clone(), port.protocol.number(), port.number)).collect()
}

fn named_ports(record: Vec<(CompactString, u8, u16)>) -> Option<Arc<[NamedPort]>> {
    let port = |(name, protocol, number)| Some(NamedPort { name, protocol: Protocol::from_number(protocol)?, number });
    record.into_iter().map(port).collect()
}

impl PodRecord {
    fn of<'a>(name: &str, before: &str, pod: &'a Pod, lists: &mut Lists<'a>) -> PodRecord {
        let shared: usize =
            name.chars().zip(before.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
        let shared = if shared > usize::from(u8::MAX) { 0 } else { shared };
        PodRecord {
            shared: u8::try_from(shared).unwrap_or(0),
            rest: name.get(shared..).unwrap_or(name).into(),
            labels: lists.place_of_labels(&pod.labels),
            ports: lists.ports.place(&pod.ports),
            node: pod.node.as_ref().map_or(0, |name| lists.nodes.place(name) + 1),
            is: u8::from(pod.host_network) | u8::from(pod.finished) << 1,
            addresses: pod.addresses.to_vec(),
        }
    }

    fn pod(self, before: &str, shared: &Shared) -> Option<(CompactString, Pod)> {
        let mut name = CompactString::from(before.get(..usize::from(self.shared))?);
        name.push_str(&self.rest);
        let node = match self.node.checked_sub(1) {
            Some(place) => Some(at(&shared.nodes, place)?.clone()),
            None => None,
        };
        let pod = Pod {
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
    fn of(policy: &NetworkPolicy) -> PolicyRecord {
        let rules = |rules: &Option<Box<[PolicyRule]>>| {
            rules.as_ref().map(|rules| rules.iter().map(RuleRecord::of).collect::<Vec<_>>())
        };
        PolicyRecord {
            pods: SelectorRecord::of(&policy.pods),
            ingress: rules(&policy.ingress),
            egress: rules(&policy.egress),
        }
    }

    fn policy(self) -> Option<NetworkPolicy> {
        let rules = |records: Option<Vec<RuleRecord>>| match records {
            Some(records) => records.into_iter().map(RuleRecord::rule).collect::<Option<Box<[_]>>>().map(Some),
            None => Some(None),
        };
        Some(NetworkPolicy { pods: self.pods.selector()?, ingress: rules(self.ingress)?, egress: rules(self.egress)? })
    }
}

impl RuleRecord {
    fn of(rule: &PolicyRule) -> RuleRecord {
        RuleRecord {
            peers: match &rule.peers {
                Peers::Any => None,
                Peers::Of(peers) => Some(peers.iter().map(PeerRecord::of).collect()),
            },
            ports: match &rule.ports {
                Ports::Any => None,
                Ports::Of(ports) => Some(ports.iter().map(port_record).collect()),
            },
        }
    }

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
    fn of(peer: &Peer) -> PeerRecord {
        let range = |range: &IpNet| (range.addr(), range.prefix_len());
        match peer {
            Peer::Pods { namespaces: Namespaces::Own, pods } => PeerRecord::Pods(None, SelectorRecord::of(pods)),
            Peer::Pods { namespaces: Namespaces::Selected(namespaces), pods } => {
                PeerRecord::Pods(Some(SelectorRecord::of(namespaces)), SelectorRecord::of(pods))
            }
            Peer::Block { cidr, except } => PeerRecord::Block(range(cidr), except.iter().map(range).collect()),
        }
    }

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

fn port_record(port: &PolicyPort) -> (u8, NumberRecord) {
    let number = match &port.number {
        PortMatch::Any => NumberRecord::Any,
        PortMatch::Range { first, last } => NumberRecord::Range(*first, *last),
        PortMatch::Named(name) => NumberRecord::Named(name.clone()),
    };
    (port.protocol.number(), number)
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
    fn of(selector: &Selector) -> SelectorRecord {
        let record = |requirement: &Requirement| {
            let (operator, values) = match &requirement.operator {
                Operator::In(values) => (0, values.to_vec()),
                Operator::NotIn(values) => (1, values.to_vec()),
                Operator::Exists => (2, Vec::new()),
                Operator::DoesNotExist => (3, Vec::new()),
            };
            (requirement.key.clone(), operator, values)
        };
        SelectorRecord(selector.requirements.iter().map(record).collect())
    }

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

fn number_of(kind: Kind) -> u8 {
    match kind {
        Kind::Service => 0,
        Kind::EndpointSlice => 1,
        Kind::Node => 2,
        Kind::Pod => 3,
        Kind::Namespace => 4,
        Kind::NetworkPolicy => 5,
    }
}

fn kind_of(number: u8) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| number_of(*kind) == number)
}
