//! Network policies on disk.
//!
//! Absence allows nothing: that a direction is left alone, or that every peer or port is allowed, is explicit. So a
//! record in which a later program uses a new field closes more for an earlier one, and opens nothing.

use compact_str::CompactString;

use super::lists::protocol;
use super::packed::{Packed, only_range, ranges};
use crate::model::{
    Action, ClusterNetworkPolicy, ClusterRule, Namespaces, NetworkPolicy, ObjectName, Operator, Peer, Peers,
    PolicyPort, PolicyRule, PortMatch, Ports, Requirement, Selector, Subject, Tier,
};

#[derive(Clone, PartialEq, prost::Message)]
pub struct PolicyRecord {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "3")]
    pods: Option<SelectorRecord>,
    #[prost(bool, tag = "4")]
    leaves_ingress: bool,
    #[prost(message, repeated, tag = "5")]
    ingress: Vec<RuleRecord>,
    #[prost(bool, tag = "6")]
    leaves_egress: bool,
    #[prost(message, repeated, tag = "7")]
    egress: Vec<RuleRecord>,
}

/// A policy of the whole cluster. A record in which a later program uses a new field has to use a new number for its tier or
/// action, as for those absence would be read as something else: such a policy is left out, and its kind is not known in full.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterPolicyRecord {
    #[prost(string, tag = "1")]
    name: String,
    /// 1 Admin, 2 Baseline.
    #[prost(uint32, tag = "2")]
    tier: u32,
    #[prost(uint32, tag = "3")]
    priority: u32,
    #[prost(message, optional, tag = "4")]
    namespaces: Option<SelectorRecord>,
    #[prost(message, optional, tag = "5")]
    pods: Option<SelectorRecord>,
    #[prost(message, repeated, tag = "6")]
    ingress: Vec<ClusterRuleRecord>,
    #[prost(message, repeated, tag = "7")]
    egress: Vec<ClusterRuleRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ClusterRuleRecord {
    #[prost(string, tag = "1")]
    name: String,
    /// 1 Accept, 2 Deny, 3 Pass.
    #[prost(uint32, tag = "2")]
    action: u32,
    #[prost(message, optional, tag = "3")]
    matches: Option<RuleRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SelectorRecord {
    #[prost(message, repeated, tag = "1")]
    requirements: Vec<RequirementRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RequirementRecord {
    #[prost(string, tag = "1")]
    key: String,
    /// 1 In, 2 NotIn, 3 Exists, 4 DoesNotExist.
    #[prost(uint32, tag = "2")]
    operator: u32,
    #[prost(string, repeated, tag = "3")]
    values: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuleRecord {
    #[prost(bool, tag = "1")]
    any_peer: bool,
    #[prost(message, repeated, tag = "2")]
    peers: Vec<PeerRecord>,
    #[prost(bool, tag = "3")]
    any_port: bool,
    #[prost(message, repeated, tag = "4")]
    ports: Vec<PolicyPortRecord>,
}

/// Pods, or a block, or nodes.
#[derive(Clone, PartialEq, prost::Message)]
struct PeerRecord {
    #[prost(message, optional, tag = "1")]
    pods: Option<SelectorRecord>,
    /// Absent for the policy's own.
    #[prost(message, optional, tag = "2")]
    namespaces: Option<SelectorRecord>,
    #[prost(bytes = "vec", tag = "3")]
    cidr: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    except: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    nodes: Option<SelectorRecord>,
}

/// A range of numbers, or a name, or every port.
#[derive(Clone, PartialEq, prost::Message)]
struct PolicyPortRecord {
    /// As in the IP header (IANA).
    #[prost(uint32, tag = "1")]
    protocol: u32,
    #[prost(bool, tag = "2")]
    any: bool,
    #[prost(message, optional, tag = "3")]
    range: Option<RangeRecord>,
    #[prost(string, optional, tag = "4")]
    name: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRecord {
    #[prost(uint32, tag = "1")]
    first: u32,
    #[prost(uint32, tag = "2")]
    last: u32,
}

impl PolicyRecord {
    pub fn of(name: &ObjectName, policy: &NetworkPolicy) -> PolicyRecord {
        let NetworkPolicy { pods, ingress, egress } = policy;
        let rules = |rules: &Option<Box<[PolicyRule]>>| rules.iter().flatten().map(RuleRecord::of).collect();
        PolicyRecord {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            pods: Some(SelectorRecord::of(pods)),
            leaves_ingress: ingress.is_none(),
            ingress: rules(ingress),
            leaves_egress: egress.is_none(),
            egress: rules(egress),
        }
    }

    pub fn policy(self) -> Option<(ObjectName, NetworkPolicy)> {
        let rules = |is_left, records: Vec<RuleRecord>| -> Option<Option<Box<[PolicyRule]>>> {
            if is_left {
                return Some(None);
            }
            records.into_iter().map(RuleRecord::rule).collect::<Option<_>>().map(Some)
        };
        let policy = NetworkPolicy {
            pods: self.pods?.selector()?,
            ingress: rules(self.leaves_ingress, self.ingress)?,
            egress: rules(self.leaves_egress, self.egress)?,
        };
        Some((ObjectName::new(&self.namespace, &self.name), policy))
    }
}

impl ClusterPolicyRecord {
    pub fn of(name: &CompactString, policy: &ClusterNetworkPolicy) -> ClusterPolicyRecord {
        let ClusterNetworkPolicy { tier, priority, subject, ingress, egress } = policy;
        let Subject { namespaces, pods } = subject;
        ClusterPolicyRecord {
            name: name.to_string(),
            tier: match tier {
                Tier::Admin => 1,
                Tier::Baseline => 2,
            },
            priority: u32::from(*priority),
            namespaces: Some(SelectorRecord::of(namespaces)),
            pods: Some(SelectorRecord::of(pods)),
            ingress: ingress.iter().map(ClusterRuleRecord::of).collect(),
            egress: egress.iter().map(ClusterRuleRecord::of).collect(),
        }
    }

    pub fn policy(self) -> Option<(CompactString, ClusterNetworkPolicy)> {
        let rules = |records: Vec<ClusterRuleRecord>| -> Option<Box<[ClusterRule]>> {
            records.into_iter().map(ClusterRuleRecord::rule).collect()
        };
        let subject = Subject { namespaces: self.namespaces?.selector()?, pods: self.pods?.selector()? };
        let policy = ClusterNetworkPolicy {
            tier: match self.tier {
                1 => Tier::Admin,
                2 => Tier::Baseline,
                _ => return None,
            },
            priority: u16::try_from(self.priority).ok()?,
            subject,
            ingress: rules(self.ingress)?,
            egress: rules(self.egress)?,
        };
        Some((self.name.into(), policy))
    }
}

impl ClusterRuleRecord {
    fn of(rule: &ClusterRule) -> ClusterRuleRecord {
        let ClusterRule { name, action, matches } = rule;
        let action = match action {
            Action::Accept => 1,
            Action::Deny => 2,
            Action::Pass => 3,
        };
        ClusterRuleRecord { name: name.to_string(), action, matches: Some(RuleRecord::of(matches)) }
    }

    fn rule(self) -> Option<ClusterRule> {
        let action = match self.action {
            1 => Action::Accept,
            2 => Action::Deny,
            3 => Action::Pass,
            _ => return None,
        };
        Some(ClusterRule { name: self.name.into(), action, matches: self.matches?.rule()? })
    }
}

impl RuleRecord {
    fn of(rule: &PolicyRule) -> RuleRecord {
        let PolicyRule { peers, ports } = rule;
        let (any_peer, peers) = match peers {
            Peers::Any => (true, Vec::new()),
            Peers::Of(peers) => (false, peers.iter().map(PeerRecord::of).collect()),
        };
        let (any_port, ports) = match ports {
            Ports::Any => (true, Vec::new()),
            Ports::Of(ports) => (false, ports.iter().map(PolicyPortRecord::of).collect()),
        };
        RuleRecord { any_peer, peers, any_port, ports }
    }

    fn rule(self) -> Option<PolicyRule> {
        Some(PolicyRule {
            peers: match self.any_peer {
                true => Peers::Any,
                false => Peers::Of(self.peers.into_iter().map(PeerRecord::peer).collect::<Option<_>>()?),
            },
            ports: match self.any_port {
                true => Ports::Any,
                false => Ports::Of(self.ports.into_iter().map(PolicyPortRecord::port).collect::<Option<_>>()?),
            },
        })
    }
}

impl PeerRecord {
    fn of(peer: &Peer) -> PeerRecord {
        match peer {
            Peer::Pods { namespaces, pods } => PeerRecord {
                pods: Some(SelectorRecord::of(pods)),
                namespaces: match namespaces {
                    Namespaces::Own => None,
                    Namespaces::Selected(namespaces) => Some(SelectorRecord::of(namespaces)),
                },
                ..PeerRecord::default()
            },
            Peer::Block { cidr, except } => {
                PeerRecord { cidr: ranges([cidr]), except: ranges(except), ..PeerRecord::default() }
            }
            Peer::Nodes(nodes) => PeerRecord { nodes: Some(SelectorRecord::of(nodes)), ..PeerRecord::default() },
        }
    }

    fn peer(self) -> Option<Peer> {
        if let Some(nodes) = self.nodes {
            return Some(Peer::Nodes(nodes.selector()?));
        }
        let Some(pods) = self.pods else {
            let except = Packed::new(&self.except).all_ranges()?;
            return Some(Peer::Block { cidr: only_range(&self.cidr)?, except: except.into() });
        };
        let namespaces = match self.namespaces {
            None => Namespaces::Own,
            Some(namespaces) => Namespaces::Selected(namespaces.selector()?),
        };
        Some(Peer::Pods { namespaces, pods: pods.selector()? })
    }
}

impl PolicyPortRecord {
    fn of(port: &PolicyPort) -> PolicyPortRecord {
        let PolicyPort { protocol, number } = port;
        let record = PolicyPortRecord { protocol: u32::from(protocol.number()), ..PolicyPortRecord::default() };
        match number {
            PortMatch::Any => PolicyPortRecord { any: true, ..record },
            PortMatch::Range { first, last } => {
                let range = RangeRecord { first: u32::from(*first), last: u32::from(*last) };
                PolicyPortRecord { range: Some(range), ..record }
            }
            PortMatch::Named(name) => PolicyPortRecord { name: Some(name.to_string()), ..record },
        }
    }

    fn port(self) -> Option<PolicyPort> {
        let number = match (self.any, self.range, self.name) {
            (true, None, None) => PortMatch::Any,
            (false, Some(RangeRecord { first, last }), None) => {
                PortMatch::Range { first: u16::try_from(first).ok()?, last: u16::try_from(last).ok()? }
            }
            (false, None, Some(name)) => PortMatch::Named(name.into()),
            _ => return None,
        };
        Some(PolicyPort { protocol: protocol(self.protocol)?, number })
    }
}

impl SelectorRecord {
    fn of(selector: &Selector) -> SelectorRecord {
        let Selector { requirements } = selector;
        SelectorRecord { requirements: requirements.iter().map(RequirementRecord::of).collect() }
    }

    fn selector(self) -> Option<Selector> {
        self.requirements.into_iter().map(RequirementRecord::requirement).collect()
    }
}

impl RequirementRecord {
    fn of(requirement: &Requirement) -> RequirementRecord {
        let Requirement { key, operator } = requirement;
        let (operator, values) = match operator {
            Operator::In(values) => (1, &**values),
            Operator::NotIn(values) => (2, &**values),
            Operator::Exists => (3, &[][..]),
            Operator::DoesNotExist => (4, &[][..]),
        };
        RequirementRecord { key: key.to_string(), operator, values: values.iter().map(ToString::to_string).collect() }
    }

    fn requirement(self) -> Option<Requirement> {
        let values = || self.values.iter().map(Into::into).collect();
        let operator = match self.operator {
            1 => Operator::In(values()),
            2 => Operator::NotIn(values()),
            3 => Operator::Exists,
            4 => Operator::DoesNotExist,
            _ => return None,
        };
        Some(Requirement { key: self.key.into(), operator })
    }
}
