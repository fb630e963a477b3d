//! Explains to users why a packet passes or not: the question, the parties, the decision of each direction.
//!
//! `sluice policy explain --from NS/POD --to NS/POD:PORT[/PROTO]`, either side also an address (`10.244.1.7`,
//! `[fd00::7]:80/udp`). The answer comes from the rule set that is being enforced (`verdict`), one for each family in
//! which both sides have an address. As text or, for programs, as JSON (`-o json`).
//!
//! What is refused for addresses that policies cannot name is refused on the bridges of pods, and the answer names these.
//!
//! The effect of flags is part of the answer: a pod reaches the node ports of its own node, `--netpol-default-deny`
//! closes unknown addresses, and policies do not apply to service addresses, except where an endpoint on this node itself
//! closes one (`host_endpoints`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use compact_str::CompactString;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::FirewallConfig;
use crate::model::{ObjectName, OnLink, Pod, World};
use crate::net::{Family, Protocol};

use super::bridges::{self, ClosedBridges};
use super::host_endpoints::{Entrance, HostEndpoints, is_denied};
use super::rules::{Direction, RuleSet};
use super::verdict::{Decision, Exemption, Packet, Traffic, Verdict, routed, verdict};

/// A question about one packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    pub from: End,
    pub to: End,
    pub protocol: Protocol,
    pub port: u16,
}

/// Inputs of an answer.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub rules: &'a RuleSet,
    pub world: &'a World,
    pub config: &'a FirewallConfig,
    /// The ranges in which only known pods may be reached.
    pub closed: &'a [IpNet],
    /// Whether they exist or not.
    pub bridges: &'a ClosedBridges,
}

/// One side of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    Pod(ObjectName),
    Address(IpAddr),
}

/// The verdict on the packets of one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub packet: Packet,
    pub from: Party,
    pub to: Party,
    pub verdict: Verdict,
    /// The bridges of this host on which the packet is refused for an address that policies cannot name, if it is.
    pub bridges: Vec<CompactString>,
    /// Ok if the kernel enforces the verdict, otherwise what it lacks; `None` if it was not checked.
    pub enforced: Option<Result<(), String>>,
}

/// The party at one side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Party {
    pub address: IpAddr,
    pub standing: Standing,
}

/// Standing of a party towards policies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// A pod of this node, which enforces its rules.
    Here(ObjectName),
    /// A pod of another node, which enforces its rules; with the node's name if known.
    Elsewhere(ObjectName, Option<CompactString>),
    /// A pod on the host network: policies do not apply to it, and only ipBlocks match it.
    HostNetwork(ObjectName),
    /// This node itself.
    ThisNode,
    /// An address of no running pod of the cluster.
    Nobody,
}

/// Reason why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unanswerable {
    NoPod(ObjectName),
    /// A finished pod, whose address may belong to another pod by now.
    Finished(ObjectName),
    NoAddress(ObjectName),
    /// One side has IPv4 only and the other IPv6 only.
    NoCommonFamily,
    /// A service address: ask about the pod that the Service chooses, with the port of that pod.
    OfServices(IpAddr),
}

impl Question {
    /// Parses a question from command line arguments.
    ///
    /// # Errors
    /// Their defect, as a sentence.
    pub fn parse(from: &str, to: &str) -> Result<Question, String> {
        let wanted = || format!("{to:?} must be NAMESPACE/POD:PORT[/PROTOCOL] or ADDRESS:PORT[/PROTOCOL]");
        let (end, port) = to.rsplit_once(':').ok_or_else(wanted)?;
        let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let protocol = Protocol::from_api(&protocol.to_uppercase())
            .ok_or_else(|| format!("{protocol:?} must be tcp, udp or sctp"))?;
        let port = port.parse().map_err(|_| wanted())?;
        let bare = end.strip_prefix('[').and_then(|end| end.strip_suffix(']')).unwrap_or(end);
        Ok(Question { from: from.parse()?, to: bare.parse()?, protocol, port })
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<End, String> {
        if let Ok(address) = text.parse() {
            return Ok(End::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(End::Pod(ObjectName::new(namespace, name)))
            }
            _ => Err(format!("{text:?} must be NAMESPACE/POD or an address")),
        }
    }
}

/// Returns the answers to a question, IPv4 first; at least one.
///
/// # Errors
/// Why there is no answer.
pub fn answers(known: Known<'_>, question: &Question) -> Result<Vec<Answer>, Unanswerable> {
    let Known { world, config, .. } = known;
    let mut host_endpoints = HostEndpoints::default();
    host_endpoints.update(world, config);
    let (from, to) = (addresses(world, &question.from)?, addresses(world, &question.to)?);
    let first = |addresses: &[IpAddr], family| addresses.iter().copied().find(|ip| Family::from(*ip) == family);
    let pairs = Family::BOTH.into_iter().filter_map(|family| Some((first(&from, family)?, first(&to, family)?)));
    let answers: Vec<Answer> = pairs
        .map(|(source, destination)| {
            let from = Party { address: source, standing: standing(world, &question.from, source) };
            let to = Party { address: destination, standing: standing(world, &question.to, destination) };
            let traffic = Traffic::Port { protocol: question.protocol, port: question.port };
            let from_this_node = is_this_node(world, source);
            let packet = Packet { source, destination, traffic, from_this_node };
            let (verdict, bridges) = judged(known, &host_endpoints, &packet);
            Answer { packet, from, to, verdict, bridges, enforced: None }
        })
        .collect();
    let is_refused = |answer: &Answer| matches!(answer.verdict.egress, Decision::DeniedBehind { .. });
    if let End::Address(address) = question.to
        && is_of_services(config, address)
        && !answers.iter().any(is_refused)
    {
        return Err(Unanswerable::OfServices(address));
    }
    if answers.is_empty() { Err(Unanswerable::NoCommonFamily) } else { Ok(answers) }
}

/// Returns this node's verdict on a packet: by policies, then by flags, then by the endpoints of Services; and the bridges
/// that the verdict is about.
fn judged(known: Known<'_>, host_endpoints: &HostEndpoints, packet: &Packet) -> (Verdict, Vec<CompactString>) {
    let Known { rules, world, config, closed, .. } = known;
    let (mut verdict, bridges) = on_bridges(known, packet);
    let to_this_node = is_this_node(world, packet.destination);
    if let Traffic::Port { port, .. } = packet.traffic
        && verdict.egress.pod().is_some()
        && to_this_node
        && config.service_node_port_range.contains(&port)
    {
        verdict.egress = Decision::Exempt(Exemption::NodePort);
    }
    if let Some(refused) = denied_behind(rules, host_endpoints, packet) {
        verdict.egress = refused;
    }
    let is_closed = |address| closed.iter().any(|range| range.contains(&address));
    if verdict.egress == Decision::NotHere && !packet.from_this_node && is_closed(packet.source) {
        verdict.egress = Decision::Closed;
    }
    let is_sent_by_us = packet.from_this_node || to_this_node;
    if verdict.ingress == Decision::NotHere && !is_sent_by_us && is_closed(packet.destination) {
        verdict.ingress = Decision::Closed;
    }
    (verdict, bridges)
}

/// Returns the verdict by policies. Where the host has no bridge on which an address is closed, it is open.
fn on_bridges(known: Known<'_>, packet: &Packet) -> (Verdict, Vec<CompactString>) {
    let Known { rules, world, bridges, .. } = known;
    let mut verdict = verdict(rules, packet);
    let existing = |closed: &[CompactString]| bridges::existing(closed, world);
    let is_broadcast = |one: &&OnLink| one.prefix.broadcast() == packet.destination && packet.destination.is_ipv4();
    let closed = match (&verdict.egress, &verdict.ingress) {
        (Decision::LinkLocal, _) => existing(&bridges.link_local),
        (_, Decision::Multicast) => existing(&bridges.multicast),
        _ if packet.from_this_node => return (verdict, Vec::new()),
        _ => {
            let networks = world.host.on_link.iter().filter(is_broadcast).map(|one| one.link.clone());
            let closed = existing(&networks.filter(|link| bridges.multicast.contains(link)).collect::<Vec<_>>());
            if !closed.is_empty() {
                verdict.ingress = Decision::Multicast;
            }
            return (verdict, closed);
        }
    };
    if closed.is_empty() {
        verdict = routed(rules, packet);
    }
    (verdict, closed)
}

/// Returns the decision on a packet of a pod to a Service that is refused because of an endpoint on this node.
fn denied_behind(rules: &RuleSet, host_endpoints: &HostEndpoints, packet: &Packet) -> Option<Decision> {
    let Traffic::Port { protocol, port } = packet.traffic else { return None };
    let entrance = Entrance { address: packet.destination, port };
    rules.local_pods_at(packet.source).find_map(|(name, pod)| {
        let mut behind = host_endpoints.behind(entrance, protocol);
        let endpoint = *behind.find(|endpoint| is_denied(rules, (name, pod), endpoint))?;
        Some(Decision::DeniedBehind { pod: name.clone(), endpoint })
    })
}

/// Returns whether packets to this address pass to the service proxy, and are judged after translation.
fn is_of_services(config: &FirewallConfig, address: IpAddr) -> bool {
    let FirewallConfig { service_cluster_ip_ranges, external_ip_ranges, load_balancer_ip_ranges, .. } = config;
    let mut ranges = service_cluster_ip_ranges.iter().chain(external_ip_ranges).chain(load_balancer_ip_ranges);
    ranges.any(|range| range.contains(&address))
}

/// Formats the answers as lines of text, each ending with a line break.
pub fn text(answers: &[Answer]) -> String {
    answers.iter().map(text_of).collect()
}

/// Formats the answers for programs.
pub fn json(answers: &[Answer]) -> Value {
    json!({ "answers": answers.iter().map(json_of).collect::<Vec<_>>() })
}

fn addresses(world: &World, end: &End) -> Result<Vec<IpAddr>, Unanswerable> {
    let name = match end {
        End::Address(address) => return Ok(vec![*address]),
        End::Pod(name) => name,
    };
    let pod = world.cluster.pods.get(name).ok_or_else(|| Unanswerable::NoPod(name.clone()))?;
    match pod {
        pod if pod.finished => Err(Unanswerable::Finished(name.clone())),
        pod if pod.addresses.is_empty() => Err(Unanswerable::NoAddress(name.clone())),
        pod => Ok(pod.addresses.to_vec()),
    }
}

fn standing(world: &World, end: &End, address: IpAddr) -> Standing {
    let has = |pod: &Pod| pod.takes_part() && pod.addresses.contains(&address);
    let found = match end {
        End::Pod(name) => world.cluster.pods.get(name).map(|pod| (name, pod)),
        End::Address(_) => world.cluster.pods.iter().find(|(_, pod)| has(pod)),
    };
    match found {
        None if is_this_node(world, address) => Standing::ThisNode,
        None => Standing::Nobody,
        Some((name, pod)) if pod.host_network => Standing::HostNetwork(name.clone()),
        Some((name, pod)) => match pod.node.as_deref() {
            Some(node) if node == world.host.node_name => Standing::Here(name.clone()),
            node => Standing::Elsewhere(name.clone(), node.map(CompactString::from)),
        },
    }
}

fn is_this_node(world: &World, address: IpAddr) -> bool {
    let node = world.cluster.nodes.get(&world.host.node_name);
    let known = node.is_some_and(|node| node.addresses.iter().any(|own| own.address == address));
    known || world.host.addresses.iter().any(|own| own.address == address)
}

fn text_of(answer: &Answer) -> String {
    let Answer { packet, from, to, verdict, enforced, .. } = answer;
    let passes = if verdict.passes() { "allowed" } else { "denied" };
    let egress = side((&verdict.egress, &answer.bridges), from, Direction::Egress);
    let ingress = side((&verdict.ingress, &answer.bridges), to, Direction::Ingress);
    let mut text = format!("{from} to {to}, {}: {passes}\n  egress: {egress}\n  ingress: {ingress}\n", packet.traffic);
    match enforced {
        Some(Ok(())) => text.push_str("  kernel: has these rules\n"),
        Some(Err(lacks)) => text.push_str(&format!("  kernel: does not do so now: {lacks}\n")),
        None => {}
    }
    text
}

/// Describes the decision of one side, as a sentence without its end.
fn side((decision, bridges): (&Decision, &[CompactString]), party: &Party, direction: Direction) -> String {
    match decision {
        Decision::NotHere => nothing_here(party),
        Decision::Exempt(exemption) => format!("allowed: {}", reason(*exemption)),
        Decision::Open { pod } => format!("allowed: no policy isolates {pod} for {}", direction.name()),
        Decision::Allowed { policy, rule, .. } => {
            format!("allowed by {policy}, rule {rule} (spec.{}[{rule}])", direction.name())
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
        Standing::Nobody => "not concerned: no pod of the cluster has this address".to_owned(),
    }
}

fn reason(exemption: Exemption) -> String {
    match exemption {
        Exemption::Icmp(kind) => format!("ICMP {kind} always passes"),
        Exemption::FromThisNode => "a node always reaches its own pods".to_owned(),
        Exemption::ToItself => "a pod always reaches itself".to_owned(),
        Exemption::NodePort => "a pod always reaches the node ports of its own node".to_owned(),
    }
}

fn json_of(answer: &Answer) -> Value {
    let Answer { packet, from, to, verdict, enforced, .. } = answer;
    let (protocol, port) = match packet.traffic {
        Traffic::Port { protocol, port } => (json!(protocol.to_string()), json!(port)),
        Traffic::Icmp { kind } => (json!("icmp"), json!(kind)),
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
        Decision::Allowed { pod, policy, rule } => json!({
            "decision": "allowed", "pod": pod.to_string(), "policy": policy.to_string(), "rule": rule,
        }),
        Decision::Denied { pod, policies, by_namespace } => json!({
            "decision": "denied", "pod": pod.to_string(), "isolatedBy": names(policies), "byNamespace": by_namespace,
        }),
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.standing {
            Standing::Here(pod) | Standing::Elsewhere(pod, _) | Standing::HostNetwork(pod) => {
                write!(f, "{pod} ({})", self.address)
            }
            Standing::ThisNode => write!(f, "this node ({})", self.address),
            Standing::Nobody => write!(f, "{}", self.address),
        }
    }
}

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswerable::NoPod(pod) => write!(f, "there is no pod {pod}"),
            Unanswerable::Finished(pod) => write!(f, "{pod} has finished; its address may be another pod's by now"),
            Unanswerable::NoAddress(pod) => write!(f, "{pod} has no address yet"),
            Unanswerable::NoCommonFamily => f.write_str("the two sides have no address of the same family"),
            Unanswerable::OfServices(address) => write!(
                f,
                "{address} is an address of Services: policies speak of the pod behind it and of that pod's port, so ask about that"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::given::{labels, object, pod, pods, policy, rule};
    use super::super::plan::Plan;
    use super::*;
    use crate::model::{
        Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, HostAddress, HostLink, Namespace, Service,
        ServicePort, ServiceType, TrafficPolicy,
    };

    fn world() -> World {
        let mut world = World::empty();
        let own = HostAddress { address: [192, 0, 2, 11].into(), link: "eth0".into(), global: true };
        world.host = Arc::new(Host { node_name: "node1".into(), addresses: vec![own], ..Host::default() });
        let cluster = &mut world.cluster;
        cluster.namespaces.insert("shop".into(), Namespace { labels: labels(""), isolated: true });
        cluster.pods.insert(object("shop/web"), pod("10.244.1.7 fd00:10:244:1::7", "app=web", ""));
        cluster.pods.insert(object("shop/db"), pod("10.244.1.8", "app=db", ""));
        let mut far = pod("10.244.2.9 fd00:10:244:2::9", "app=far", "");
        far.node = Some("node2".into());
        cluster.pods.insert(object("shop/far"), far);
        let mut done = pod("10.244.1.8", "", "");
        done.finished = true;
        cluster.pods.insert(object("shop/done"), done);
        let allows = [rule(&[pods("app=nobody")], &[]), rule(&[pods("app=web")], &["tcp/5432"])];
        cluster.policies.insert(object("shop/db"), policy("app=db", Some(&allows), None));
        cluster.policies.insert(object("shop/out"), policy("app=db", None, Some(&[])));
        world
    }

    fn asked(from: &str, to: &str) -> Result<Vec<Answer>, Unanswerable> {
        asked_in(&world(), from, to)
    }

    fn asked_in(world: &World, from: &str, to: &str) -> Result<Vec<Answer>, Unanswerable> {
        let mut plan = Plan::new();
        plan.update(world);
        let ranges = |text: &str| vec![text.parse().unwrap()];
        let config = FirewallConfig {
            sync_period: std::time::Duration::from_secs(300),
            default_deny: true,
            service_cluster_ip_ranges: ranges("10.96.0.0/12"),
            strict_external_ip_validation: true,
            external_ip_ranges: ranges("203.0.113.128/25"),
            load_balancer_ip_ranges: Vec::new(),
            service_node_port_range: 30000..=32767,
        };
        let closed = ranges("10.244.1.0/24");
        let bridges = bridges::closed(plan.rules(), world);
        let known = Known { rules: plan.rules(), world, config: &config, closed: &closed, bridges: &bridges };
        answers(known, &Question::parse(from, to).unwrap())
    }

    fn check(from: &str, to: &str, expected: &str) {
        assert_eq!(text(&asked(from, to).unwrap()), expected);
    }

    #[test]
    fn the_rule_that_allows_is_named() {
        check(
            "shop/web",
            "shop/db:5432",
            "shop/web (10.244.1.7) to shop/db (10.244.1.8), tcp 5432: allowed\n\
             \x20 egress: allowed: no policy isolates shop/web for egress\n\
             \x20 ingress: allowed by shop/db, rule 1 (spec.ingress[1])\n",
        );
    }

    #[test]
    fn everything_that_isolates_is_named_where_nothing_allows() {
        check(
            "shop/db",
            "shop/db:80",
            "shop/db (10.244.1.8) to shop/db (10.244.1.8), tcp 80: allowed\n\
             \x20 egress: allowed: a pod always reaches itself\n\
             \x20 ingress: allowed: a pod always reaches itself\n",
        );
        check(
            "203.0.113.1",
            "shop/db:80/udp",
            "203.0.113.1 to shop/db (10.244.1.8), udp 80: denied\n\
             \x20 egress: not concerned: no pod of the cluster has this address\n\
             \x20 ingress: denied: shop/db is isolated by shop/db, the annotation of namespace shop, and nothing allows it\n",
        );
    }

    #[test]
    fn both_families_are_answered_and_other_nodes_decide_for_themselves() {
        check(
            "shop/far",
            "shop/web:80",
            "shop/far (10.244.2.9) to shop/web (10.244.1.7), tcp 80: denied\n\
             \x20 egress: not decided here: shop/far runs on node2\n\
             \x20 ingress: denied: shop/web is isolated by the annotation of namespace shop, and nothing allows it\n\
             shop/far (fd00:10:244:2::9) to shop/web (fd00:10:244:1::7), tcp 80: denied\n\
             \x20 egress: not decided here: shop/far runs on node2\n\
             \x20 ingress: denied: shop/web is isolated by the annotation of namespace shop, and nothing allows it\n",
        );
    }

    #[test]
    fn an_address_is_told_by_the_pod_that_has_it() {
        check(
            "192.0.2.11",
            "10.244.1.8:80/sctp",
            "this node (192.0.2.11) to shop/db (10.244.1.8), sctp 80: allowed\n\
             \x20 egress: not concerned: this node itself\n\
             \x20 ingress: allowed: a node always reaches its own pods\n",
        );
    }

    #[test]
    fn what_flags_add_is_part_of_the_answer() {
        check(
            "shop/db",
            "192.0.2.11:30080",
            "shop/db (10.244.1.8) to this node (192.0.2.11), tcp 30080: allowed\n\
             \x20 egress: allowed: a pod always reaches the node ports of its own node\n\
             \x20 ingress: not concerned: this node itself\n",
        );
        check(
            "shop/db",
            "192.0.2.11:80",
            "shop/db (10.244.1.8) to this node (192.0.2.11), tcp 80: denied\n\
             \x20 egress: denied: shop/db is isolated by shop/out, and nothing allows it\n\
             \x20 ingress: not concerned: this node itself\n",
        );
        let unknown = asked("10.244.1.99", "203.0.113.1:80").unwrap();
        assert!(
            text(&unknown).contains("tcp 80: denied\n  egress: denied: no pod of this node is known"),
            "{unknown:?}"
        );
        let unknown = asked("shop/far", "10.244.1.99:80").unwrap();
        assert!(!unknown[0].verdict.passes() && unknown[0].verdict.ingress == Decision::Closed, "{unknown:?}");
        assert!(asked("192.0.2.11", "10.244.1.99:80").unwrap()[0].verdict.passes(), "the node itself is never cut");
        for address in ["10.96.0.10", "203.0.113.200"] {
            let told = asked("shop/db", &format!("{address}:53/udp")).unwrap_err().to_string();
            assert!(told.starts_with(&format!("{address} is an address of Services")), "{told}");
        }
    }

    #[test]
    fn what_is_closed_on_bridges_is_said_with_their_names_and_only_where_they_are() {
        let with_bridges = |names: &[&str]| {
            let mut world = world();
            let mut host = (*world.host).clone();
            let on = |name: &&str| OnLink { prefix: "10.244.1.0/24".parse().unwrap(), link: (*name).into() };
            host.on_link = names.iter().map(on).collect();
            host.links = names.iter().map(|name| HostLink { name: (*name).into(), mtu: 1500, bridge: true }).collect();
            world.host = Arc::new(host);
            world
        };
        for (from, to) in [("fe80::7", "[fe80::8]:80"), ("shop/far", "224.0.0.251:5353/udp")] {
            assert!(
                asked_in(&with_bridges(&[]), from, to).unwrap()[0].verdict.passes(),
                "each pod has a link of its own"
            );
            let answers = asked_in(&with_bridges(&["kube-bridge", "cni0"]), from, to).unwrap();
            assert!(text(&answers).contains("denied on cni0, kube-bridge, not judged on other links"), "{answers:?}");
            assert_eq!(json(&answers)["answers"][0]["bridges"], json!(["cni0", "kube-bridge"]));
        }
        let everybody = asked_in(&with_bridges(&["cni0"]), "shop/web", "10.244.1.255:5353/udp").unwrap();
        assert!(text(&everybody).contains("denied on cni0"), "{everybody:?}");
    }

    #[test]
    fn a_service_that_is_refused_for_an_endpoint_on_this_node_names_the_endpoint() {
        let mut world = world();
        let port = |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
        let api = Service {
            kind: ServiceType::NodePort,
            cluster_ips: vec![[10, 96, 0, 1].into()],
            external_ips: Vec::new(),
            load_balancer: Vec::new(),
            ports: vec![port("https", Protocol::Tcp, 443, Some(30443))],
            affinity_seconds: None,
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            annotations: Default::default(),
            announce: Default::default(),
            created: 0,
        };
        let endpoint = Endpoint { address: [192, 0, 2, 11].into(), node: None, conditions: Conditions::READY };
        let ports = vec![EndpointPort { name: "https".into(), protocol: Protocol::Tcp, port: 6443 }];
        let slice = Arc::new(EndpointSlice { family: Family::V4, ports, endpoints: [endpoint].into() });
        world.cluster.services.insert(object("shop/api"), api);
        world.cluster.endpoints.insert(object("shop/api"), Endpoints { slices: [("one".into(), slice)].into() });
        for to in ["10.96.0.1:443", "192.0.2.11:30443"] {
            let answer = text(&asked_in(&world, "shop/db", to).unwrap());
            let denied = "egress: denied: a Service at this address has the endpoint 192.0.2.11:6443/tcp on this node";
            assert!(answer.contains(denied), "{to}: {answer}");
            let open = asked_in(&world, "shop/web", to);
            assert!(open.is_err() || open.is_ok_and(|answers| answers[0].verdict.passes()), "web is not isolated");
        }
        assert!(asked_in(&world, "shop/db", "10.96.0.1:444").is_err(), "another port is another question");
    }

    #[test]
    fn what_cannot_be_answered_says_why() {
        assert_eq!(asked("shop/none", "shop/db:80"), Err(Unanswerable::NoPod(object("shop/none"))));
        assert_eq!(asked("shop/done", "shop/db:80"), Err(Unanswerable::Finished(object("shop/done"))));
        assert_eq!(asked("2001:db8:113::1", "shop/db:80"), Err(Unanswerable::NoCommonFamily));
    }

    #[test]
    fn programs_get_the_same_as_people() {
        let mut answers = asked("shop/web", "shop/db:5432/tcp").unwrap();
        answers[0].enforced = Some(Err("a chain is missing".to_owned()));
        let found = json(&answers);
        let expected = json!({ "answers": [{
            "family": "IPv4",
            "from": { "address": "10.244.1.7", "pod": "shop/web", "node": null, "standing": "here" },
            "to": { "address": "10.244.1.8", "pod": "shop/db", "node": null, "standing": "here" },
            "protocol": "tcp",
            "port": 5432,
            "allowed": true,
            "bridges": [],
            "egress": { "decision": "open", "pod": "shop/web" },
            "ingress": { "decision": "allowed", "pod": "shop/db", "policy": "shop/db", "rule": 1 },
            "inKernel": false,
            "kernelLacks": "a chain is missing",
        }] });
        assert_eq!(found, expected);
    }

    #[test]
    fn words_that_are_no_question_are_refused_with_what_was_wanted() {
        for (from, to) in
            [("shop", "shop/db:80"), ("shop/web", "shop/db"), ("shop/web", "shop/db:80/icmp"), ("a/b", "a/:1")]
        {
            assert!(Question::parse(from, to).is_err_and(|text| text.contains("must be")), "{from} {to}");
        }
        let v6 = Question::parse("a/b", "[fd00::7]:80/udp").unwrap();
        assert_eq!((v6.to, v6.protocol, v6.port), (End::Address("fd00::7".parse().unwrap()), Protocol::Udp, 80));
    }
}
