//! The difference for programs.

use serde_json::{Value, json};

use crate::kernel::conntrack::Transport;
use crate::model::ObjectName;

use super::pairs::PairChange;
use super::text::{refusal, word};
use super::{Difference, RefusedConnection};

/// Formats the difference for programs.
pub fn json(difference: &Difference) -> Value {
    let Difference { policies, isolation, pairs, connections } = difference;
    let (refused, unknown) = match connections {
        Ok(refused) => (Some(refused), None),
        Err(why) => (None, Some(why)),
    };
    json!({
        "policies": policies.iter().map(|(name, change)| json!({
            "kind": name.kind(), "policy": name.to_string(), "change": word(*change),
        })).collect::<Vec<_>>(),
        "isolation": isolation.iter().map(|change| json!({
            "pod": change.pod.to_string(), "direction": change.direction.name(), "isolated": change.isolated,
        })).collect::<Vec<_>>(),
        "pairs": pairs.changes.iter().map(of_pairs).collect::<Vec<_>>(),
        "morePairs": pairs.is_cut,
        "connections": {
            "refused": refused.map(|refused| refused.all),
            "first": refused.iter().flat_map(|refused| &refused.first).map(of_connection).collect::<Vec<_>>(),
            "error": unknown,
        },
    })
}

fn of_pairs(change: &PairChange) -> Value {
    let PairChange { direction, opens, only, pods, ports, peers } = change;
    let of_protocol = |(protocol, ranges): (&crate::net::Protocol, &Vec<crate::net::PortRange>)| {
        let ranges: Vec<_> = ranges.iter().map(|range| json!({ "first": range.first, "last": range.last })).collect();
        (protocol.to_string(), json!(ranges))
    };
    let mut at: serde_json::Map<String, Value> = ports.ranges.iter().map(of_protocol).collect();
    at.insert("otherProtocols".to_owned(), json!(ports.others));
    json!({
        "change": if *opens { "opens" } else { "closes" },
        "direction": direction.name(),
        "onlyFamily": only.map(|family| family.to_string()),
        "pods": pods.iter().map(ObjectName::to_string).collect::<Vec<_>>(),
        "ports": at,
        "peers": peers.namespaces.iter().map(|one| json!({
            "namespace": one.namespace.as_str(),
            "pods": one.pods.iter().map(|pod| pod.as_str()).collect::<Vec<_>>(),
            "count": one.all,
            "allOfNamespace": one.is_whole,
        })).collect::<Vec<_>>(),
        "ranges": peers.ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rangeCount": peers.all_ranges,
    })
}

fn of_connection(refused: &RefusedConnection) -> Value {
    let RefusedConnection { connection, from, to, decision } = refused;
    let name = |name: &Option<ObjectName>| name.as_ref().map(ObjectName::to_string);
    let (protocol, source, destination) = match connection.transport {
        Transport::Ports { protocol, source, replier, .. } => (protocol.to_string(), Some(source), Some(replier)),
        Transport::Icmp { .. } => ("icmp".to_owned(), None, None),
    };
    json!({
        "protocol": protocol,
        "from": { "address": connection.source.to_string(), "port": source, "pod": name(from) },
        "to": { "address": connection.replier.to_string(), "port": destination, "pod": name(to) },
        "reason": refusal(decision),
    })
}
