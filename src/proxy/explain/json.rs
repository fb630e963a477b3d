//! Answers for programs.

use serde_json::{Value, json};

use crate::kernel::ipvs::{Connections, ServiceKey, Stats};
use crate::model::Authority;

use super::text::{kind, policy, why_not};
use super::{EndpointState, Explanation, KernelState, Place, Role, Served, ServiceState, Standing};

/// Formats the answer for programs. One Service after the other, so that no more than the text is in memory.
pub fn json(explanation: &Explanation) -> String {
    let Explanation { authority, notes, services, left_off, outside } = explanation;
    let known = match authority {
        Authority::Complete => "complete",
        Authority::Partial => "partial",
        Authority::Remembered => "remembered",
        Authority::Nothing => "nothing",
    };
    let notes = json!(notes);
    let mut text = format!("{{\n\"known\": \"{known}\",\n\"notes\": {notes},\n\"servicesLeftOff\": {left_off},\n");
    if let Some(outside) = outside {
        let packets = match outside {
            Ok(packets) => json!({ "ipv4": packets.v4, "ipv6": packets.v6 }),
            Err(error) => json!({ "error": error }),
        };
        text.push_str(&format!("\"outsideSourceRangesPackets\": {packets},\n"));
    }
    text.push_str("\"services\": [");
    for (number, service) in services.iter().enumerate() {
        text.push_str(if number == 0 { "\n" } else { ",\n" });
        text.push_str(&format!("{:#}", of_service(service)));
    }
    text.push_str("\n]\n}\n");
    text
}

fn of_service(state: &ServiceState) -> Value {
    let service = &state.service;
    let ranges = service.source_ranges.as_ref();
    json!({
        "namespace": state.name.namespace.as_str(),
        "name": state.name.name.as_str(),
        "type": kind(service),
        "scheduler": service.annotations.scheduler.name(),
        "affinitySeconds": service.affinity_seconds,
        "internalTrafficPolicy": policy(service.internal_traffic_policy),
        "externalTrafficPolicy": policy(service.external_policy()),
        "sourceRanges": ranges.map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "endpoints": { "serving": state.serving(), "all": state.endpoints },
        "healthCheck": state.health_check.as_ref().map(|check| json!({
            "port": check.port,
            "localEndpoints": check.local_endpoints,
            "lostTo": check.lost_to.as_ref().map(ToString::to_string),
            "pending": check.is_pending,
        })),
        "problems": state.problems,
        "addresses": state.places.iter().map(of_place).collect::<Vec<_>>(),
        "addressesLeftOff": state.places_left_off,
    })
}

fn of_place(place: &Place) -> Value {
    let (address, protocol, port) = match place.key {
        ServiceKey::Address { address, protocol, port } => (Some(address), Some(protocol), Some(port)),
        ServiceKey::Mark { .. } => (None, None, None),
    };
    let field = match place.role {
        Role::ClusterIp => "clusterIP",
        Role::ExternalIp => "externalIP",
        Role::LoadBalancer => "loadBalancer",
        Role::NodePort => "nodePort",
    };
    let (standing, lost_to) = match &place.standing {
        Standing::Served(_) => ("served", None),
        Standing::Refused(_) => ("refused", None),
        Standing::LostTo(owner) => ("lost", Some(owner.to_string())),
        Standing::NoLocalEndpoint => ("noLocalEndpoint", None),
        Standing::Closing => ("closing", None),
        Standing::ThroughBalancer => ("throughBalancer", None),
        Standing::Skipped => ("skipped", None),
        Standing::FamilyOff => ("familyOff", None),
        Standing::SpeakerPort => ("speakerPort", None),
    };
    let served = match &place.standing {
        Standing::Served(served) => Some(&**served),
        _ => None,
    };
    json!({
        "address": address.map(|address| address.to_string()),
        "protocol": protocol.map(|protocol| protocol.to_string()),
        "port": port,
        "portName": place.port_name.as_str(),
        "field": field,
        "standing": standing,
        "reason": Some(why_not(&place.standing)).filter(|why| !why.is_empty()),
        "lostTo": lost_to,
        "virtualService": served.map(of_served),
    })
}

fn of_served(served: &Served) -> Value {
    let (state, error, stats, present) = match &served.kernel {
        KernelState::Unread(error) => ("notRead", Some(error), None, None),
        KernelState::Missing => ("missing", None, None, None),
        KernelState::Present { is_desired, observed } => {
            let state = if *is_desired { "inPlace" } else { "different" };
            let stats = observed.as_ref().map(|observed| of_stats(&observed.stats));
            (state, None, stats, observed.as_ref().map(|observed| observed.without_counters().to_string()))
        }
    };
    json!({
        "desired": served.desired.to_string(),
        "insideOnly": served.clients.inside_only,
        "sources": served.clients.sources.as_ref().map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "kernel": state,
        "lacks": served.beside.lacks.iter().map(|lack| lack.word()).collect::<Vec<_>>(),
        "doubtful": served.beside.is_doubtful,
        "error": error,
        "present": present,
        "stats": stats,
        "endpoints": served.endpoints.iter().map(of_endpoint).collect::<Vec<_>>(),
        "endpointsLeftOff": served.left_off,
        "endpointsWithoutPort": served.without_port,
    })
}

fn of_endpoint(endpoint: &EndpointState) -> Value {
    let of = |(connections, stats): &(Connections, Stats)| {
        let Connections { active, inactive, persistent } = connections;
        json!({ "active": active, "inactive": inactive, "persistent": persistent, "stats": of_stats(stats) })
    };
    json!({
        "address": endpoint.address.ip().to_string(),
        "port": endpoint.address.port(),
        "node": endpoint.node.as_deref(),
        "state": endpoint.standing.word(),
        "reason": endpoint.standing.reason(),
        "connections": endpoint.traffic.as_ref().map(of),
    })
}

fn of_stats(stats: &Stats) -> Value {
    json!({
        "connections": stats.connections,
        "packetsIn": stats.packets_in,
        "packetsOut": stats.packets_out,
        "bytesIn": stats.bytes_in,
        "bytesOut": stats.bytes_out,
        "connectionsPerSecond": stats.connections_rate,
        "packetsInPerSecond": stats.packets_in_rate,
        "packetsOutPerSecond": stats.packets_out_rate,
        "bytesInPerSecond": stats.bytes_in_rate,
        "bytesOutPerSecond": stats.bytes_out_rate,
    })
}
