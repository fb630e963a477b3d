//! Whether policies isolate who is asked for, and which question tells more (`sluice route`): no verdict, which depends on both sides and a port.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::party::{Party, Standing, standing};
use super::{End, Known, Unanswerable, addresses, is_of_services};
use crate::firewall::rules::{Direction, Isolation};
use crate::model::ObjectName;
use crate::observe::local::{Answer, Question};

/// Answers a question for the isolation of a pod, or of who has an address.
///
/// # Errors
/// There is no such pod, or the word is odd: a sentence without its end.
pub fn isolated(known: Known<'_>, question: &Question) -> Answer {
    let word = question.about.get("what").map_or("", String::as_str);
    let end: End = word.trim().parse()?;
    let answer = of_end(known, &end).map_err(|why| why.to_string())?;
    Ok(format!("{answer:#}\n"))
}

fn of_end(known: Known<'_>, end: &End) -> Result<Value, Unanswerable> {
    let addresses = addresses(known.world, end)?;
    let Some(address) = addresses.first().copied() else { return Ok(Value::Null) };
    let party = Party { address, standing: standing(known, end, address) };
    let directions: Vec<(Direction, Isolation)> = match &party.standing {
        Standing::Here(pod) => known
            .rules
            .pods
            .get(pod)
            .map(|pod| Direction::BOTH.map(|direction| (direction, pod.isolation(direction).clone())).into()),
        _ => None,
    }
    .unwrap_or_default();
    let by_cluster = match &party.standing {
        Standing::Here(pod) => known.rules.pods.get(pod).map_or(0, |pod| pod.cluster_policies.len()),
        _ => 0,
    };
    let ask = ask(&party, address);
    let mut text: Vec<String> =
        directions.iter().map(|(direction, isolation)| sentence(*direction, isolation)).collect();
    if by_cluster > 0 {
        text.push(format!("rules of {by_cluster} ClusterNetworkPolicies are about it"));
    }
    text.extend(elsewhere(known, &party));
    text.push(format!("whether a packet passes: {ask}"));
    let isolations = directions.iter().map(|(direction, isolation)| of_direction(*direction, isolation));
    Ok(json!({
        "party": party.to_string(),
        "isolation": isolations.collect::<Vec<_>>(),
        "clusterPolicies": by_cluster,
        "ask": ask,
        "text": text,
    }))
}

/// Returns the command that tells whether packets of another pod to it pass.
fn ask(party: &Party, address: IpAddr) -> String {
    let whom = match party.standing.pod() {
        Some(pod) => pod.to_string(),
        None if address.is_ipv6() => format!("[{address}]"),
        None => address.to_string(),
    };
    format!("sluice policy explain --from NAMESPACE/POD --to {whom}:PORT")
}

fn sentence(direction: Direction, isolation: &Isolation) -> String {
    match isolation {
        Isolation::Open => format!("not isolated for {}", direction.name()),
        Isolation::Isolated { policies, by_namespace } => {
            let mut by: Vec<String> = policies.iter().map(ToString::to_string).collect();
            if *by_namespace {
                by.push("the annotation of its namespace".to_owned());
            }
            format!("isolated for {} by {}: what none of its rules allows is dropped", direction.name(), by.join(", "))
        }
    }
}

fn of_direction(direction: Direction, isolation: &Isolation) -> Value {
    let (policies, by_namespace): (&[ObjectName], bool) = match isolation {
        Isolation::Open => (&[], false),
        Isolation::Isolated { policies, by_namespace } => (policies, *by_namespace),
    };
    json!({
        "direction": direction.name(),
        "isolated": matches!(isolation, Isolation::Isolated { .. }),
        "policies": policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "byNamespace": by_namespace,
    })
}

/// Returns who judges its packets, where that is not this node, and by what.
fn elsewhere(known: Known<'_>, party: &Party) -> Option<String> {
    match &party.standing {
        Standing::Here(_) => None,
        Standing::Elsewhere(_, Some(node)) => Some(format!("its own node {node} judges what it receives and sends")),
        Standing::Elsewhere(_, None) => Some("its own node judges what it receives and sends".to_owned()),
        Standing::HostNetwork(_) => Some("it is on the host network: policies do not apply to it".to_owned()),
        Standing::ThisNode | Standing::Node(_) => Some("a node itself: policies do not apply to it".to_owned()),
        Standing::Nobody if is_of_services(known.config, party.address) => Some(
            "an address of Services: packets to it are judged behind the Service, by the policies of the sender and of the endpoint's pod"
                .to_owned(),
        ),
        Standing::Nobody if known.closed.iter().any(|range| range.contains(&party.address)) => Some(
            "no pod of this node is known at this address, and --netpol-default-deny closes it to all but this node"
                .to_owned(),
        ),
        Standing::Nobody => Some("no running pod's: only the policies of the sender decide".to_owned()),
    }
}
