//! The firewall's scenarios: sets and chains, what becomes of packets in them, and why.
//!
//! A line of `trace` is `tcp 10.244.0.7 to 10.244.0.8:80`, or `icmp 8 10.244.0.7 to 10.244.0.8`. The packet walks through the
//! chains as they are written, from `INPUT`, `OUTPUT` or `FORWARD`; beside that stands what each side's policies say.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sluice::firewall::iptables::desired::Desired;
use sluice::firewall::iptables::lowering::Lowering;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::RuleSet;
use sluice::firewall::verdict::{Decision, Packet, Traffic, verdict};
use sluice::net::Protocol;

use crate::file::{File, Known};
use crate::objects;
use crate::support::chains::{Chains, Fate, State, Traced};
use crate::support::flags as words;

pub const KNOWN: Known = Known {
    given: &["flags", "host", "objects"],
    expected: &["warnings", "sets", "rules", "counts", "trace"],
    never_silent: &["warnings"],
};

/// The file with what was found.
pub fn check(file: &File) -> File {
    let alone = ["sluice", "--run-router=false", "--run-service-proxy=false"];
    let config = words::meant(&alone.into_iter().chain(file.lines("flags")).collect::<Vec<_>>());
    let families = config.families;
    let config = Arc::new(config.firewall.expect("the firewall is not switched off"));
    let (world, warnings) = objects::world(file.text("objects"), file.lines("host"));
    let mut plan = Plan::new();
    let changed = plan.update(&world);
    let mut lowering = Lowering::new(config, families);
    lowering.update(plan.rules(), &world, &changed);
    let desired = lowering.desired();
    let local: BTreeSet<IpAddr> = world.host.addresses.iter().map(|known| known.address).collect();
    let served: BTreeSet<IpAddr> =
        world.cluster.services.iter().flat_map(|(_, service)| service.cluster_ips.iter().copied()).collect();
    file.with(|section| match section {
        "warnings" => warnings.clone(),
        "sets" => desired.elements.keys().map(ToString::to_string).collect(),
        "rules" => objects::rules(&desired.rules),
        "counts" => vec![
            format!("sets {}", desired.sets.len()),
            format!("elements {}", desired.elements.len()),
            format!("chains and jumps {}", desired.rules.len()),
        ],
        "trace" => {
            let (rules, to) = (plan.rules(), [&local, &served]);
            file.lines("trace").map(|line| traced(line, rules, desired, to)).collect()
        }
        _ => panic!("{section} is no section that is found"),
    })
}

/// The question, what becomes of the packet in the chains, and what the policies of each side say. The addresses of
/// Services are served here like those of the host.
fn traced(line: &str, rules: &RuleSet, desired: &Desired, [local, served]: [&BTreeSet<IpAddr>; 2]) -> String {
    let question = line.split(" → ").next().unwrap_or_default().trim();
    let packet = Packet { from_this_node: false, ..packet(question) };
    let packet = Packet { from_this_node: local.contains(&packet.source), ..packet };
    let builtin = match (local.contains(&packet.source), local.contains(&packet.destination)) {
        (true, _) => "OUTPUT",
        (_, true) => "INPUT",
        _ if served.contains(&packet.destination) => "INPUT",
        _ => "FORWARD",
    };
    let chains = Chains { rules: &desired.rules, elements: &desired.elements, local };
    let (fate, _) = chains.fate(builtin, Traced { packet, state: State::New, mark: 0 });
    let fate = match fate {
        Fate::Accepted => "accepted",
        Fate::Rejected => "rejected",
        Fate::Dropped => "dropped",
        Fate::Left => "left to other rules",
    };
    let judged = verdict(rules, &packet);
    format!("{question} → {fate} ({builtin}; egress {}; ingress {})", said(&judged.egress), said(&judged.ingress))
}

fn packet(question: &str) -> Packet {
    let words: Vec<&str> = question.split_whitespace().collect();
    let address = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text} is no address: {question:?}"));
    let (source, destination, traffic) = match words.as_slice() {
        ["icmp", kind, from, "to", to] => {
            let kind = kind.parse().unwrap_or_else(|_| panic!("{kind} is no kind of ICMP: {question:?}"));
            (address(from), address(to), Traffic::Icmp { kind })
        }
        [protocol, from, "to", to] => {
            let protocol = Protocol::from_api(&protocol.to_uppercase());
            let protocol = protocol.unwrap_or_else(|| panic!("{question:?} begins with no protocol"));
            let to: SocketAddr = to.parse().unwrap_or_else(|_| panic!("{to} is no address and port: {question:?}"));
            (address(from), to.ip(), Traffic::Port { protocol, port: to.port() })
        }
        _ => panic!("{question:?} is no packet"),
    };
    Packet { source, destination, traffic, from_this_node: false }
}

fn said(decision: &Decision) -> String {
    match decision {
        Decision::NotHere => "not decided here".to_owned(),
        Decision::Exempt(why) => format!("exempt, {why:?}"),
        Decision::Open { pod } => format!("open, no policy selects {pod}"),
        Decision::Allowed { policy, rule, .. } => format!("allowed by {policy} rule {rule}"),
        Decision::Denied { policies, by_namespace, .. } => {
            let mut by: Vec<String> = policies.iter().map(ToString::to_string).collect();
            by.extend(by_namespace.then(|| "the namespace's annotation".to_owned()));
            format!("denied by {}", by.join(", "))
        }
        Decision::DeniedBehind { endpoint, .. } => format!("denied, {endpoint} is behind it"),
        Decision::LinkLocal => "closed, a link-local address".to_owned(),
        Decision::Multicast => "closed, multicast or broadcast".to_owned(),
        Decision::ByCluster { policy, rule, denies, .. } => {
            format!("{} by {} {rule}", if *denies { "denied" } else { "accepted" }, policy.policy)
        }
        Decision::Closed => "closed by default".to_owned(),
    }
}
