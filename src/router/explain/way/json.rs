//! A way for programs.

use serde_json::{Value, json};

use super::text::{heading, lines, masquerade, standing};
use super::{Origin, Owner, Planned, Tunnel, Way, Ways, differences, text};
use crate::kernel::route::{Fate, NextHop, Taken};
use crate::model::Authority;
use crate::net::Family;
use crate::router::explain::RouteInKernel;

/// Formats the answer.
pub fn json(ways: &Ways) -> String {
    let known = match ways.authority {
        Authority::Complete => "complete",
        Authority::Partial => "partial",
        Authority::Remembered => "remembered",
        Authority::Nothing => "nothing",
    };
    let pod = ways.pod.as_ref().map(|(name, pod)| {
        json!({
            "namespace": name.namespace.as_str(),
            "name": name.name.as_str(),
            "node": pod.node.as_deref(),
            "hostNetwork": pod.host_network,
        })
    });
    let answer = json!({
        "known": known,
        "pod": pod,
        "heading": heading(ways),
        "ways": ways.ways.iter().map(|(way, origin)| of_way(way, origin)).collect::<Vec<_>>(),
    });
    format!("{answer:#}\n")
}

fn of_way(way: &Way, origin: &Origin) -> Value {
    let (owner, node, range) = match &way.owner {
        Owner::ThisNode => ("thisNode", None, None),
        _ if way.is_served => ("service", None, None),
        Owner::ThisNodeOutside => ("thisNodeOutside", None, None),
        Owner::OwnPods(range) => ("ownPods", None, Some(range)),
        Owner::PodsOf { node, range } => ("podsOfNode", Some(node), Some(range)),
        Owner::Node(node) => ("node", Some(node), None),
        Owner::Other => ("other", None, None),
    };
    let masquerade = masquerade(way);
    let (is_masqueraded, why_masqueraded) =
        masquerade.unwrap_or_else(|| (false, "the kernel refuses the packets".to_owned()));
    let fits = |fits: Option<(u32, String)>| fits.map(|(mtu, why)| json!({ "bytes": mtu, "reason": why }));
    let of_pods = way.kernel_of_pods.as_ref().map(|taken| taken.as_ref().map_or(Value::Null, of_taken));
    json!({
        "address": way.address.to_string(),
        "owner": owner,
        "whose": text::owner(way),
        "node": node.map(ToString::to_string),
        "podRange": range.map(ToString::to_string),
        "route": way.planned.as_ref().map(|planned| of_planned(planned, &origin.used)),
        "routeOfPods": way.planned_of_pods.as_ref().map(|planned| of_planned(planned, &[])),
        "noRoute": way.why_none.iter().chain(&origin.refused).collect::<Vec<_>>(),
        "mtu": fits(text::fits(way)),
        "mtuOfPods": fits(text::fits_of_pods(way)),
        "podsMtu": way.pods_mtu,
        "masqueraded": { "fromPods": is_masqueraded, "reason": why_masqueraded },
        "kernel": {
            "ofNode": way.kernel.as_ref().map_or_else(|error| json!({ "error": error }), of_taken),
            "ofPods": of_pods.unwrap_or_else(|error| json!({ "error": error })),
        },
        "differences": differences(way),
        "text": lines(way, origin),
    })
}

fn of_planned(planned: &Planned, from: &[String]) -> Value {
    let state = match &planned.kernel.route {
        RouteInKernel::InPlace(_) => "inPlace",
        RouteInKernel::Waiting { .. } => "waiting",
        RouteInKernel::Failed { .. } => "failed",
        RouteInKernel::Kept(_) | RouteInKernel::Absent => "absent",
        RouteInKernel::Unread(_) => "notRead",
    };
    let hops = planned.route.next_hops.iter().zip(&planned.tunnels).map(|(hop, tunnel)| of_hop(hop, tunnel.as_ref()));
    json!({
        "prefix": planned.key.destination.to_string(),
        "table": planned.key.table,
        "source": planned.route.source.map(|source| source.to_string()),
        "from": from,
        "givenByNodes": planned.kernel.given_by.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "nextHops": hops.collect::<Vec<_>>(),
        "kernel": { "standing": state, "reason": standing(planned), "inTheWay": planned.kernel.in_the_way },
    })
}

fn of_hop(hop: &NextHop, tunnel: Option<&Tunnel>) -> Value {
    let tunnel = tunnel.map(|Tunnel { ends, is_in_place }| {
        json!({
            "encapsulation": ends.encapsulation.name(),
            "local": ends.local.to_string(),
            "remote": ends.remote.to_string(),
            "port": ends.port,
            "overhead": ends.encapsulation.overhead(Family::from(ends.remote)),
            "mtu": ends.mtu,
            "inPlace": is_in_place,
        })
    });
    json!({
        "link": hop.link.to_string(),
        "gateway": hop.gateway.map(|gateway| gateway.to_string()),
        "tunnel": tunnel,
    })
}

fn of_taken(taken: &Taken) -> Value {
    let fate = match taken.fate {
        Fate::Forwarded => "forwarded",
        Fate::Local => "local",
        Fate::Refused | Fate::RefusedOrMartian => "refused",
        Fate::Other(_) => "other",
    };
    json!({
        "fate": fate,
        "link": taken.link.as_ref().map(ToString::to_string),
        "gateway": taken.gateway.map(|gateway| gateway.to_string()),
        "source": taken.source.map(|source| source.to_string()),
        "linkMtu": taken.link_mtu,
        "pathMtu": taken.path_mtu,
        "prefix": taken.decided_by.as_ref().map(|(key, _)| key.destination.to_string()),
        "table": taken.decided_by.as_ref().map(|(key, _)| key.table),
        "protocol": taken.decided_by.as_ref().map(|(_, protocol)| *protocol),
    })
}
