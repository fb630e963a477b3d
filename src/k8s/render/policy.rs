//! NetworkPolicies and ClusterNetworkPolicies.
//!
//! What of a rule cannot be written, because no object is parsed to it, is written as something that is not understood: that closes, and never opens.

use compact_str::CompactString;
use serde_json::{Value, json};

use super::{Fields, named, object, texts};
use crate::k8s::object::Kind;
use crate::model::{
    ClusterNetworkPolicy, ClusterRule, Namespaces, NetworkPolicy, ObjectName, Operator, Peer, Peers, PolicyPort,
    PolicyRule, PortMatch, Ports, Requirement, Selector, Subject,
};
use crate::net::Protocol;

pub(super) fn network_policy(name: &ObjectName, policy: &NetworkPolicy) -> Value {
    let NetworkPolicy { pods, ingress, egress } = policy;
    let (mut spec, mut types) = (Fields::default(), Vec::new());
    spec.put("podSelector", selector(pods));
    for (rules, kind, field, peers) in [(ingress, "Ingress", "ingress", "from"), (egress, "Egress", "egress", "to")] {
        let Some(rules) = rules else { continue };
        types.push(kind);
        spec.put(field, rules.iter().map(|of| rule(of, peers)).collect::<Value>());
    }
    spec.put("policyTypes", texts(types));
    let mut rest = Fields::default();
    rest.put("spec", spec.value());
    object(Kind::NetworkPolicy, named(name), rest)
}

/// A rule whose peers stand in the field `side`. An entry `null` is not understood, and matches nothing.
fn rule(rule: &PolicyRule, side: &str) -> Value {
    let PolicyRule { peers, ports } = rule;
    let mut fields = Fields::default();
    match peers {
        Peers::Any => {}
        Peers::Of(none) if none.is_empty() => drop(fields.put(side, json!([null]))),
        Peers::Of(all) => drop(fields.put(side, all.iter().map(peer).collect::<Value>())),
    }
    match ports {
        Ports::Any => {}
        Ports::Of(none) if none.is_empty() => drop(fields.put("ports", json!([null]))),
        Ports::Of(all) => drop(fields.put("ports", all.iter().map(port).collect::<Value>())),
    }
    fields.value()
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let mut fields = Fields::default();
            match namespaces {
                Namespaces::Own => {}
                Namespaces::Selected(namespaces) => drop(fields.put("namespaceSelector", selector(namespaces))),
            }
            fields.put("podSelector", selector(pods));
            fields.value()
        }
        Peer::Block { cidr, except } => json!({ "ipBlock": { "cidr": cidr.to_string(), "except": texts(except) } }),
        Peer::Nodes(_) => Value::Null,
    }
}

fn port(port: &PolicyPort) -> Value {
    let PolicyPort { protocol, number } = port;
    let mut fields = Fields::default();
    fields.put("protocol", protocol.api_name());
    match number {
        PortMatch::Any => {}
        PortMatch::Range { first, last } => {
            fields.put("port", *first).put_some("endPort", (first != last).then_some(*last));
        }
        PortMatch::Named(name) => drop(fields.put("port", name.as_str())),
    }
    fields.value()
}

pub(super) fn cluster_policy(name: &CompactString, policy: &ClusterNetworkPolicy) -> Value {
    let ClusterNetworkPolicy { tier, priority, subject, ingress, egress } = policy;
    let Subject { namespaces, pods } = subject;
    let (mut metadata, mut spec) = (Fields::default(), Fields::default());
    metadata.put("name", name.as_str());
    spec.put("tier", tier.name()).put("priority", *priority);
    spec.put("subject", pods_of(namespaces, pods));
    spec.put("ingress", ingress.iter().map(|rule| cluster_rule(rule, "from")).collect::<Value>());
    spec.put("egress", egress.iter().map(|rule| cluster_rule(rule, "to")).collect::<Value>());
    let mut rest = Fields::default();
    rest.put("spec", spec.value());
    object(Kind::ClusterNetworkPolicy, metadata, rest)
}

/// A rule without peers is not understood, and fails closed as the one did that it stands for.
fn cluster_rule(rule: &ClusterRule, side: &str) -> Value {
    let ClusterRule { name, action, matches: PolicyRule { peers, ports } } = rule;
    let mut fields = Fields::default();
    fields.put("name", name.as_str()).put("action", action.name());
    if let Peers::Of(peers) = peers {
        fields.put_filled(side, peers.iter().map(cluster_peer).collect());
    }
    match ports {
        Ports::Any => {}
        Ports::Of(ports) => drop(fields.put("protocols", protocols(ports))),
    }
    fields.value()
}

fn cluster_peer(peer: &Peer) -> Value {
    match peer {
        Peer::Pods { namespaces: Namespaces::Selected(namespaces), pods } => pods_of(namespaces, pods),
        Peer::Block { cidr, except } if except.is_empty() => json!({ "networks": [cidr.to_string()] }),
        Peer::Nodes(nodes) => json!({ "nodes": selector(nodes) }),
        Peer::Pods { namespaces: Namespaces::Own, .. } | Peer::Block { .. } => json!({}),
    }
}

fn pods_of(namespaces: &Selector, pods: &Selector) -> Value {
    json!({ "pods": { "namespaceSelector": selector(namespaces), "podSelector": selector(pods) } })
}

/// A name stands for a port of each protocol, and is written once.
fn protocols(ports: &[PolicyPort]) -> Value {
    let of = |port: &PolicyPort| {
        let PolicyPort { protocol, number } = port;
        let number = match number {
            PortMatch::Named(name) if Protocol::ALL.first() == Some(protocol) => {
                return Some(json!({ "destinationNamedPort": name.as_str() }));
            }
            PortMatch::Named(_) => return None,
            PortMatch::Range { first, last } if first == last => json!({ "number": first }),
            PortMatch::Range { first, last } => json!({ "range": { "start": first, "end": last } }),
            PortMatch::Any => json!({}),
        };
        let protocol = protocol.to_string();
        Some(json!({ protocol: { "destinationPort": number } }))
    };
    ports.iter().filter_map(of).collect()
}

/// A key without letters can only stand among `matchLabels`.
fn selector(selector: &Selector) -> Value {
    let Selector { requirements } = selector;
    let (mut labels, mut expressions, mut fields) = (Fields::default(), Vec::new(), Fields::default());
    for Requirement { key, operator } in requirements {
        let (operator, values) = match operator {
            Operator::In(values) => match &**values {
                [value] if key.is_empty() => {
                    labels.put(key, value.as_str());
                    continue;
                }
                values => ("In", values),
            },
            Operator::NotIn(values) => ("NotIn", &**values),
            Operator::Exists => ("Exists", &[][..]),
            Operator::DoesNotExist => ("DoesNotExist", &[][..]),
        };
        let mut expression = Fields::default();
        expression.put("key", key.as_str()).put("operator", operator).put_filled("values", texts(values));
        expressions.push(expression.value());
    }
    fields.put_filled("matchLabels", labels.value()).put_filled("matchExpressions", Value::Array(expressions));
    fields.value()
}
