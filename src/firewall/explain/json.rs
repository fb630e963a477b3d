//! Answers for programs.

use compact_str::CompactString;
use serde_json::{Value, json};

use crate::model::ObjectName;
use crate::net::Family;

use super::super::verdict::{Decision, Traffic};
use super::text::reason;
use super::{Answer, EndpointState, Explanation, Party, Served, Standing};

/// Formats the answers for programs.
pub fn json(explanation: &Explanation) -> Value {
    let Explanation { served, answers } = explanation;
    json!({
        "service": served.as_ref().map(json_of_service),
        "answers": answers.iter().map(json_of).collect::<Vec<_>>(),
    })
}

fn json_of_service(served: &Served) -> Value {
    let Served { service, entrance, protocol, refused, endpoints } = served;
    json!({
        "name": service.to_string(),
        "address": entrance.ip().to_string(),
        "protocol": protocol.to_string(),
        "port": entrance.port(),
        "endpoints": endpoints,
        "refused": refused.as_ref().map(json_of),
    })
}

fn json_of_endpoint(endpoint: &EndpointState) -> Value {
    let EndpointState { node, on_this_node, host_network, usable } = endpoint;
    json!({ "node": node.as_deref(), "onThisNode": on_this_node, "hostNetwork": host_network, "usable": usable })
}

fn json_of(answer: &Answer) -> Value {
    let Answer { packet, from, to, verdict, endpoint, enforced, .. } = answer;
    let (protocol, port) = match packet.traffic {
        Traffic::Port { protocol, port } => (json!(protocol.to_string()), json!(port)),
        Traffic::Icmp { kind } => (json!("icmp"), json!(kind)),
        Traffic::Tunnel => (json!("ipip"), json!(null)),
    };
    json!({
        "family": Family::from(packet.source).to_string(),
        "from": json_of_party(from),
        "to": json_of_party(to),
        "protocol": protocol,
        "port": port,
        "allowed": verdict.passes(),
        "egress": json_of_decision(&verdict.egress),
        "ingress": json_of_decision(&verdict.ingress),
        "bridges": answer.bridges.iter().map(CompactString::as_str).collect::<Vec<_>>(),
        "endpoint": endpoint.as_ref().map(json_of_endpoint),
        "inKernel": enforced.as_ref().map(Result::is_ok),
        "kernelLacks": enforced.as_ref().and_then(|enforced| enforced.as_ref().err()),
    })
}

fn json_of_party(party: &Party) -> Value {
    let (pod, node, standing) = match &party.standing {
        Standing::Here(pod) => (Some(pod), None, "here"),
        Standing::Elsewhere(pod, node) => (Some(pod), node.as_deref(), "elsewhere"),
        Standing::HostNetwork(pod) => (Some(pod), None, "hostNetwork"),
        Standing::ThisNode => (None, None, "thisNode"),
        Standing::Node(node) => (None, Some(node.as_str()), "node"),
        Standing::Nobody => (None, None, "nobody"),
    };
    json!({
        "address": party.address.to_string(),
        "pod": pod.map(ObjectName::to_string),
        "node": node,
        "standing": standing,
    })
}

fn json_of_decision(decision: &Decision) -> Value {
    let names = |names: &[ObjectName]| names.iter().map(ObjectName::to_string).collect::<Vec<_>>();
    match decision {
        Decision::NotHere => json!({ "decision": "notHere" }),
        Decision::LinkLocal => json!({ "decision": "linkLocal" }),
        Decision::Multicast => json!({ "decision": "multicast" }),
        Decision::Closed => json!({ "decision": "closed" }),
        Decision::DeniedBehind { pod, endpoint } => json!({
            "decision": "deniedBehind", "pod": pod.to_string(), "endpoint": endpoint.to_string(),
        }),
        Decision::Exempt(exemption) => json!({ "decision": "exempt", "reason": reason(*exemption) }),
        Decision::Open { pod } => json!({ "decision": "open", "pod": pod.to_string() }),
        Decision::ByCluster { pod, policy, rule, name, denies } => json!({
            "decision": if *denies { "deniedByClusterPolicy" } else { "allowedByClusterPolicy" },
            "pod": pod.to_string(), "clusterPolicy": policy.policy.as_str(), "tier": policy.tier.name(),
            "priority": policy.priority, "rule": rule, "ruleName": name.as_str(),
        }),
        Decision::Allowed { pod, policy, rule } => json!({
            "decision": "allowed", "pod": pod.to_string(), "policy": policy.to_string(), "rule": rule,
        }),
        Decision::Denied { pod, policies, by_namespace } => json!({
            "decision": "denied", "pod": pod.to_string(), "isolatedBy": names(policies), "byNamespace": by_namespace,
        }),
    }
}
