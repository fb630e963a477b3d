//! Answers as text: one paragraph for each family, or for each endpoint of a Service.

use compact_str::CompactString;

use crate::model::ObjectName;

use super::super::rules::Direction;
use super::super::verdict::{Decision, Exemption};
use super::{Answer, EndpointState, Explanation, Party, Served, Standing};

/// Formats the answers as lines of text, each ending with a line break.
pub fn text(explanation: &Explanation) -> String {
    let Explanation { served, answers } = explanation;
    let service = served.as_ref().map(|served| text_of_service(served, answers));
    service.into_iter().chain(answers.iter().map(text_of)).collect()
}

fn text_of_service(served: &Served, answers: &[Answer]) -> String {
    let Served { service, entrance, protocol, refused, endpoints } = served;
    let at = format!("Service {service} at {}, {protocol} {}", entrance.ip(), entrance.port());
    let passing = answers.iter().filter(|answer| answer.verdict.passes()).count();
    let of_them = match answers.len() {
        answered if answered < *endpoints => format!("the first {answered} of {endpoints} endpoints"),
        1 => "its endpoint".to_owned(),
        all => format!("its {all} endpoints"),
    };
    match refused {
        Some(answer) => {
            let egress = side(&answer.verdict.egress, &answer.bridges, &answer.from, Direction::Egress);
            format!("{} to {at}: denied as a whole\n  egress: {egress}\n{}", answer.from, kernel(answer))
        }
        None if answers.is_empty() => format!("{at}: it has no endpoint\n"),
        None if passing == answers.len() => format!("{at}: allowed to {of_them}\n"),
        None if passing == 0 => format!("{at}: denied to {of_them}\n"),
        None => format!("{at}: allowed to {passing} of {of_them}, and which one is chosen is not known here\n"),
    }
}

fn text_of(answer: &Answer) -> String {
    let Answer { packet, from, to, verdict, endpoint, .. } = answer;
    let passes = if verdict.passes() { "allowed" } else { "denied" };
    let egress = side(&verdict.egress, &answer.bridges, from, Direction::Egress);
    let ingress = side(&verdict.ingress, &answer.bridges, to, Direction::Ingress);
    let mut text = format!("{from} to {to}, {}: {passes}\n  egress: {egress}\n  ingress: {ingress}\n", packet.traffic);
    if let Some(endpoint) = endpoint {
        text.push_str(&format!("  endpoint: {}\n", text_of_endpoint(endpoint)));
    }
    text.push_str(&kernel(answer));
    text
}

fn text_of_endpoint(endpoint: &EndpointState) -> String {
    let mut words = vec![match (endpoint.on_this_node, &endpoint.node) {
        (true, _) => "on this node".to_owned(),
        (false, Some(node)) => format!("on node {node}"),
        (false, None) => "on no node that is named".to_owned(),
    }];
    if endpoint.host_network {
        words.push("in its host network".to_owned());
    }
    if !endpoint.usable {
        words.push("not ready".to_owned());
    }
    words.join(", ")
}

/// Describes whether the kernel enforces an answer, as a line; nothing if that was not checked.
fn kernel(answer: &Answer) -> String {
    match &answer.enforced {
        Some(Ok(())) => "  kernel: has these rules\n".to_owned(),
        Some(Err(lacks)) => format!("  kernel: does not do so now: {lacks}\n"),
        None => String::new(),
    }
}

/// Describes the decision of one side, as a sentence without its end.
pub fn side(decision: &Decision, bridges: &[CompactString], party: &Party, direction: Direction) -> String {
    match decision {
        Decision::NotHere => nothing_here(party),
        Decision::Exempt(exemption) => format!("allowed: {}", reason(*exemption)),
        Decision::Open { pod } => format!("allowed: no policy isolates {pod} for {}", direction.name()),
        Decision::Allowed { policy, rule, .. } => {
            format!("allowed by {policy}, rule {rule} (spec.{}[{rule}])", direction.name())
        }
        Decision::ByCluster { policy, rule, name, denies, .. } => {
            let (word, tier) = (if *denies { "denied" } else { "allowed" }, policy.tier.name());
            let named = if name.is_empty() { String::new() } else { format!(" {name:?}") };
            format!(
                "{word} by ClusterNetworkPolicy {} ({tier} tier, priority {}), rule {rule}{named} (spec.{}[{rule}])",
                policy.policy,
                policy.priority,
                direction.name()
            )
        }
        Decision::Denied { pod, policies, by_namespace } => {
            let mut isolating: Vec<String> = policies.iter().map(ObjectName::to_string).collect();
            if *by_namespace {
                isolating.push(format!("the annotation of namespace {}", pod.namespace));
            }
            format!("denied: {pod} is isolated by {}, and nothing allows it", isolating.join(", "))
        }
        Decision::DeniedBehind { pod, endpoint } => {
            format!(
                "denied: a Service at this address has the endpoint {endpoint} on this node itself, which the policies of {pod} deny"
            )
        }
        Decision::LinkLocal => format!(
            "denied on {}, not judged on other links: policies cannot tell whose a link-local address is, and pods of this node are isolated",
            bridges.join(", ")
        ),
        Decision::Multicast => format!(
            "denied on {}, not judged on other links: multicast and broadcast reach every pod of a bridge, and pods of this node are isolated for ingress",
            bridges.join(", ")
        ),
        Decision::Closed => {
            "denied: no pod of this node is known at this address, and --netpol-default-deny closes it".to_owned()
        }
    }
}

fn nothing_here(party: &Party) -> String {
    match &party.standing {
        Standing::Elsewhere(pod, Some(node)) => format!("not decided here: {pod} runs on {node}"),
        Standing::Elsewhere(pod, None) | Standing::Here(pod) => format!("not decided here: {pod} has no node yet"),
        Standing::HostNetwork(pod) => format!("not concerned: {pod} uses the network of its node"),
        Standing::ThisNode => "not concerned: this node itself".to_owned(),
        Standing::Node(node) => format!("not concerned: node {node} itself"),
        Standing::Nobody => "not concerned: no pod of the cluster has this address".to_owned(),
    }
}

pub(super) fn reason(exemption: Exemption) -> String {
    match exemption {
        Exemption::Icmp(kind) => format!("ICMP {kind} always passes"),
        Exemption::FromThisNode => "a node always reaches its own pods".to_owned(),
        Exemption::ToItself => "a pod always reaches itself".to_owned(),
        Exemption::NodePort => "a pod always reaches the node ports of its own node".to_owned(),
    }
}
