//! Explains to users why a packet passes or not: the question, the parties, the decision of each direction.
//!
//! `sluice policy explain --from NS/POD --to NS/POD:PORT[/PROTO]`, either side also an address (`10.244.1.7`,
//! `[fd00::7]:80/udp`). The answer comes from the rule set that is being enforced (`verdict`), one for each family in
//! which both sides have an address. As text or, for programs, as JSON (`-o json`).
//!
//! What is refused for addresses that policies cannot name is refused on the bridges of pods, and the answer names these.
//!
//! The effect of flags is part of the answer: a pod reaches the node ports of its own node, `--netpol-default-deny`
//! closes unknown addresses, and the address of a Service stands for each of its endpoints.
//!
//! Here are the question, the parties and the answer; [`judged`] is the verdict with the effect of flags, [`service`] answers for the endpoints
//! of a Service, [`isolated`] without a second party, [`text`] and [`json`] are the forms.

pub mod circumstances;
mod isolated;
mod judged;
mod json;
mod party;
mod service;
mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::config::{FirewallConfig, ServiceRanges};
use crate::model::{ObjectName, PolicyProblems, World};
use crate::net::{Family, Protocol};

use super::bridges::ClosedBridges;
use super::claims::Claims;
use super::host_endpoints::HostEndpoints;
use super::policy_name::PolicyName;
use super::rules::{Direction, Isolation, RuleSet};
use super::verdict::{Packet, Traffic, Verdict};

use self::party::standing;
pub use isolated::isolated;
pub use json::json;
pub use judged::judged;
pub use party::{Party, Standing, is_this_node, standing_at};
pub use service::{EndpointState, Served};
pub use text::{side, text};

/// The questions that the firewall answers, by the path on the local socket.
pub const EXPLAIN: &str = "/policy/explain";
pub const DIFF: &str = "/policy/diff";
pub const DROPS: &str = "/policy/drops";
pub const ISOLATION: &str = "/policy/isolation";

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
    /// The running pods of the cluster, by address.
    pub claims: &'a Claims,
    /// The endpoints of Services on this node itself.
    pub host_endpoints: &'a HostEndpoints,
}

/// One side of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    Pod(ObjectName),
    Address(IpAddr),
}

/// The answers to one question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The Service whose endpoints are answered for, if the question is about one.
    pub served: Option<Served>,
    /// One for each family, IPv4 first, or one for each endpoint of the Service.
    pub answers: Vec<Answer>,
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
    /// The endpoint of a Service that the packet is for, if the question is about a Service.
    pub endpoint: Option<EndpointState>,
    /// Ok if the kernel enforces the verdict, otherwise what it lacks; `None` if it was not checked.
    pub enforced: Option<Result<(), String>>,
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
    /// An address for Services, at which none that is known has this port.
    NoService(IpAddr, Protocol, u16),
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

/// Returns the answers to a question; at least one, except for a Service without endpoints.
///
/// # Errors
/// Why there is no answer.
pub fn explanation(known: Known<'_>, question: &Question) -> Result<Explanation, Unanswerable> {
    let Known { world, config, .. } = known;
    let (from, to) = (addresses(world, &question.from)?, addresses(world, &question.to)?);
    let party = |end: &End, address| Party { address, standing: standing(known, end, address) };
    let first = |addresses: &[IpAddr], family| addresses.iter().copied().find(|ip| Family::from(*ip) == family);
    let pairs = Family::BOTH.into_iter().filter_map(|family| Some((first(&from, family)?, first(&to, family)?)));
    let mut answers = Vec::new();
    for (source, destination) in pairs {
        let from = party(&question.from, source);
        if let End::Address(address) = question.to {
            let entrance = SocketAddr::new(address, question.port);
            if let Some(explanation) = service::explanation(known, &from, entrance, question.protocol) {
                return Ok(explanation);
            }
            if is_of_services(config, address) {
                return Err(Unanswerable::NoService(address, question.protocol, question.port));
            }
        }
        let to = party(&question.to, destination);
        let traffic = Traffic::Port { protocol: question.protocol, port: question.port };
        let packet = Packet { source, destination, traffic, from_this_node: is_this_node(world, source) };
        let (verdict, bridges) = judged(known, &packet);
        answers.push(Answer { packet, from, to, verdict, bridges, endpoint: None, enforced: None });
    }
    if answers.is_empty() { Err(Unanswerable::NoCommonFamily) } else { Ok(Explanation { served: None, answers }) }
}

/// Returns what is not understood of the policies that select the pods of this node in the answers, as sentences without their ends: why a rule does not do what its
/// author may expect. `oversized` are those with more than the kernel is given.
pub fn odd_policies(known: Known<'_>, oversized: &PolicyProblems, explanation: &Explanation) -> Vec<String> {
    let Known { rules, world, .. } = known;
    let whole = explanation.served.iter().filter_map(|served| served.refused.as_ref());
    let parties = whole.chain(&explanation.answers).flat_map(|answer| [&answer.from, &answer.to]);
    let pods: BTreeSet<&ObjectName> = parties.filter_map(|party| party.standing.pod()).collect();
    let mut policies: BTreeSet<ObjectName> = BTreeSet::new();
    for pod in pods.into_iter().filter_map(|pod| rules.pods.get(pod)) {
        policies.extend(pod.cluster_policies.iter().map(|key| ObjectName::new("", &key.policy)));
        for direction in Direction::BOTH {
            if let Isolation::Isolated { policies: isolating, .. } = pod.isolation(direction) {
                policies.extend(isolating.iter().cloned());
            }
        }
    }
    let found = [&world.policy_problems, oversized];
    let problems = policies.iter().flat_map(|name| found.map(|of| Some((name, of.get(name)?)))).flatten();
    let said = problems.flat_map(|(name, problems)| {
        let name = PolicyName::from(name);
        problems.iter().map(move |problem| format!("{} {name}: {problem}", name.kind()))
    });
    said.collect()
}

/// Returns whether packets to this address pass to the service proxy, and are judged after translation.
fn is_of_services(config: &FirewallConfig, address: IpAddr) -> bool {
    let ServiceRanges { cluster_ips, external_ips, load_balancer_ips, .. } = &config.ranges;
    let mut ranges = cluster_ips.iter().chain(external_ips).chain(load_balancer_ips);
    ranges.any(|range| range.contains(&address))
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

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswerable::NoPod(pod) => write!(f, "there is no pod {pod}"),
            Unanswerable::Finished(pod) => write!(f, "{pod} has finished; its address may be another pod's by now"),
            Unanswerable::NoAddress(pod) => write!(f, "{pod} has no address yet"),
            Unanswerable::NoCommonFamily => f.write_str("the two sides have no address of the same family"),
            Unanswerable::NoService(address, protocol, port) => write!(
                f,
                "no Service with the port {port}/{protocol} at {address} is known here; policies speak of the pod behind a Service and of that pod's port, so ask about that"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
