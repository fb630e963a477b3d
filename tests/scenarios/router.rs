//! The router's scenarios: neighbours, what is announced to whom, and what learned routes become in the kernel.
//!
//! A line of `learned` is `10.244.2.0/24 via 192.0.2.2`, or with `from 192.0.2.9` where another neighbour than the next hop told
//! it. It goes through import policy: what that refuses is listed under `refused` and becomes no route.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use sluice::bgp::message::Attributes;
use sluice::bgp::policy::Outcome;
use sluice::bgp::rib::{Best, PeerId, Policies, RouteChange};
use sluice::bgp::speaker::WantedNeighbour;
use sluice::kernel::route::{Route, RouteKey, RouteKind};
use sluice::router::desired::Desired;
use sluice::router::plan::Plan;

use crate::file::{File, Known};
use crate::objects;
use crate::support::flags as words;

pub const KNOWN: Known = Known {
    given: &["flags", "host", "objects", "learned"],
    expected: &[
        "warnings",
        "problems",
        "speaker",
        "neighbours",
        "announced",
        "refused",
        "routes",
        "tunnels",
        "source rules",
        "sets",
        "rules",
        "settings",
        "cni",
    ],
    never_silent: &["warnings", "problems", "refused"],
};

/// A route that a neighbour told.
struct Learned {
    prefix: IpNet,
    next_hop: IpAddr,
    from: IpAddr,
}

/// The file with what was found.
pub fn check(file: &File) -> File {
    let alone = ["sluice", "--run-firewall=false", "--run-service-proxy=false"];
    let config = words::meant(&alone.into_iter().chain(file.lines("flags")).collect::<Vec<_>>());
    let families = config.families;
    let config = Arc::new(config.router.expect("the router is not switched off"));
    let (world, warnings) = objects::world(file.text("objects"), file.lines("host"));
    let mut plan = Plan::new(config, families);
    plan.update(&world);
    let learned: Vec<Learned> = file.lines("learned").map(learned).collect();
    let policies = plan.desired().policies.clone().filter(|_| plan.desired().speaker.is_some());
    let taken = |route: &Learned| policies.as_ref().is_some_and(|policies| is_taken(policies, route));
    let (taken, refused): (Vec<Learned>, Vec<Learned>) = learned.into_iter().partition(taken);
    plan.learn(&taken.iter().map(route_change).collect::<Vec<_>>());
    let refused: Vec<String> = refused.iter().map(|route| format!("{} from {}", route.prefix, route.from)).collect();
    file.with(|section| match section {
        "warnings" => warnings.clone(),
        "refused" => refused.clone(),
        "routes" => plan.routes().routes().iter().map(|(key, route)| route_line(key, route)).collect(),
        "tunnels" => {
            let tunnels = plan.routes().tunnels().iter();
            tunnels
                .map(|(name, tunnel)| format!("{name} {} to {} mtu {:?}", tunnel.local, tunnel.remote, tunnel.mtu))
                .collect()
        }
        section => lines(plan.desired(), section),
    })
}

fn lines(desired: &Desired, section: &str) -> Vec<String> {
    match section {
        "problems" => desired.problems.iter().map(|problem| format!("{}: {}", problem.about, problem.text)).collect(),
        "speaker" => desired.speaker.iter().flat_map(speaker).collect(),
        "neighbours" => desired.peers.values().map(|wanted| neighbour(wanted)).collect(),
        "announced" => {
            let to_whom = |(prefix, attributes): (&IpNet, &Attributes)| {
                let told = desired.peers.keys().filter(|peer| is_told(desired, **peer, *prefix, attributes));
                let told: Vec<String> = told.map(ToString::to_string).collect();
                format!("{prefix} next hop {} to {}", attributes.next_hop, told.join(" "))
            };
            desired.announcements.iter().map(to_whom).collect()
        }
        "source rules" => desired.source_rules.keys().map(ToString::to_string).collect(),
        "sets" => desired.elements.keys().map(ToString::to_string).collect(),
        "rules" => objects::rules(&desired.rules),
        "settings" => desired.settings.iter().map(|(key, wanted)| format!("{key} {wanted:?}")).collect(),
        "cni" => desired.cni.iter().map(|conf| format!("{conf:?}")).collect(),
        _ => panic!("{section} is no section that is found"),
    }
}

fn speaker(speaker: &sluice::router::desired::Speaker) -> Vec<String> {
    let mut lines = vec![format!("AS {} router id {}", speaker.own.asn, speaker.own.identifier)];
    lines.extend(speaker.listen.iter().map(|at| format!("listens on {at}")));
    lines
}

fn neighbour(wanted: &WantedNeighbour) -> String {
    let asn = wanted.settings.asn.map_or_else(|| "any AS".to_owned(), |asn| format!("AS {asn}"));
    let client = if wanted.client { " client" } else { "" };
    let password = if wanted.transport.password.is_some() { " password" } else { "" };
    format!("{} {asn} hold time {}{client}{password}", wanted.address, wanted.settings.hold_time)
}

/// Whether export policy lets a route of ours through to a neighbour.
fn is_told(desired: &Desired, peer: IpAddr, prefix: IpNet, attributes: &Attributes) -> bool {
    let Some(policies) = &desired.policies else { return false };
    let applicable = policies.export.applicable(Some(peer));
    policies.export.outcome(&applicable, prefix, attributes, Some(attributes.next_hop)) != Outcome::Rejected
}

fn is_taken(policies: &Policies, route: &Learned) -> bool {
    let applicable = policies.import.applicable(Some(route.from));
    policies.import.outcome(&applicable, route.prefix, &Attributes::local(route.next_hop), None) != Outcome::Rejected
}

fn learned(line: &str) -> Learned {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (prefix, next_hop, from) = match words.as_slice() {
        [prefix, "via", next_hop] => (prefix, next_hop, next_hop),
        [prefix, "via", next_hop, "from", from] => (prefix, next_hop, from),
        _ => panic!("a learned route is `10.244.2.0/24 via 192.0.2.2`; this is {line:?}"),
    };
    let address = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text} is no address: {line:?}"));
    let prefix = prefix.parse().unwrap_or_else(|_| panic!("{prefix} is no prefix: {line:?}"));
    Learned { prefix, next_hop: address(next_hop), from: address(from) }
}

fn route_change(route: &Learned) -> RouteChange {
    let attributes = Arc::new(Attributes::local(route.next_hop));
    let best = Some(Best { source: PeerId(7), attributes });
    RouteChange { prefix: route.prefix, best, next_hops: vec![route.next_hop] }
}

/// As `ip route` would print it.
fn route_line(key: &RouteKey, route: &Route) -> String {
    assert_eq!(route.kind, RouteKind::Unicast, "a learned route leads to a neighbour");
    let hops = route.next_hops.iter().map(|hop| match hop.gateway {
        Some(gateway) => format!(" via {gateway} dev {}", hop.link),
        None => format!(" dev {}", hop.link),
    });
    let source = route.source.map_or_else(String::new, |source| format!(" src {source}"));
    format!("{key}{}{source} proto {}", hops.collect::<String>(), route.protocol)
}
