//! Sentences for reasons, in text and JSON alike.

use std::net::IpAddr;
use std::time::Duration;

use crate::bfd;
use crate::bgp::message::{Attributes, Community};
use crate::bgp::policy::{Line, Policy};
use crate::bgp::rib::{Refusal, Step, Withheld};
use crate::bgp::session::State;
use crate::bgp::speaker::{FailureCause, Idle, NeighbourState, PathStatus};
use crate::net::{Family, LinkNames, PerFamily};
use crate::router::plan::PeerSource;
use crate::router::policy::{meaning, meaning_for_neighbours};
use crate::router::routes::NoWay;
use crate::router::told::because;

/// Returns a time as `3 s`, `4 min`, `5 h 6 min` or `7 d 8 h`.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

pub fn families(families: PerFamily<bool>) -> Vec<&'static str> {
    let named = [(families.v4, "IPv4"), (families.v6, "IPv6")];
    named.into_iter().filter(|(is_on, _)| *is_on).map(|(_, name)| name).collect()
}

pub fn state(state: State) -> &'static str {
    match state {
        State::Idle => "Idle",
        State::Connect => "Connect",
        State::Active => "Active",
        State::OpenSent => "OpenSent",
        State::OpenConfirm => "OpenConfirm",
        State::Established => "Established",
    }
}

/// Returns where a neighbour comes from; one that the cluster does not want was added by an operator. Those that flags name by interface are the ones with link-local addresses.
pub fn source(source: Option<&PeerSource>, address: IpAddr) -> String {
    match source {
        Some(PeerSource::Node(name)) => format!("Node {name}"),
        Some(PeerSource::Flags) if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) => {
            "--peer-router-interfaces".to_owned()
        }
        Some(PeerSource::Flags) => "--peer-router-ips".to_owned(),
        Some(PeerSource::Annotation) => "annotation of this Node".to_owned(),
        None => "gobgp neighbor add".to_owned(),
    }
}

/// Returns the reasons for which a neighbour has no session, the weightiest first; none where it has one.
pub fn why_down(neighbour: &NeighbourState) -> Vec<String> {
    let NeighbourState { state, idle, next_dial, is_passive, last_failure, path, .. } = neighbour;
    if *state == State::Established {
        return Vec::new();
    }
    let mut reasons = Vec::new();
    reasons.extend(idle.map(|idle| match idle {
        Idle::Stopped => "stopped by an operator (gobgp neighbor enable starts it)".to_owned(),
        Idle::PathFailed(left) => {
            format!("BFD has found that the path failed; waits for BFD, {} at most", time(left))
        }
        Idle::Refused(left) => format!("refused for {} after what it sent", time(left)),
    }));
    reasons.extend(last_failure.as_ref().map(|(cause, ago)| match cause {
        FailureCause::Dial(error) => format!("last dial failed {} ago: {error}", time(*ago)),
        FailureCause::Ended(cause) => format!("last connection ended {} ago: {}", time(*ago), because(cause)),
    }));
    reasons.extend(path.as_ref().and_then(path_is_down));
    if *is_passive && *idle != Some(Idle::Stopped) {
        reasons.push("the neighbour is to dial".to_owned());
    }
    reasons.extend(next_dial.map(|next| format!("next dial in {}", time(next))));
    match (reasons.is_empty(), state) {
        (true, State::Connect) => reasons.push("a dial is under way".to_owned()),
        (true, _) => reasons.push("a connection is being made".to_owned()),
        (false, _) => {}
    }
    reasons
}

fn path_is_down(path: &PathStatus) -> Option<String> {
    let Some(status) = path.status else { return Some("BFD has heard nothing from it".to_owned()) };
    let ago = path.failed.map(|failed| format!(", last failure {} ago", time(failed))).unwrap_or_default();
    (status.state != bfd::State::Up).then(|| format!("BFD is {}: {}{ago}", bfd_state(status.state), status.diagnostic))
}

pub fn bfd_state(state: bfd::State) -> &'static str {
    match state {
        bfd::State::AdminDown => "AdminDown",
        bfd::State::Down => "Down",
        bfd::State::Init => "Init",
        bfd::State::Up => "Up",
    }
}

/// Returns where a policy decided, and what the line is about.
pub fn line(policy: &Policy, line: Line) -> String {
    let Line::Statement(place) = line else { return format!("{}, which has no line for it", policy.name) };
    let statement = policy.statement(line);
    let name = statement.map_or("", |statement| statement.name.as_str());
    let set = statement.and_then(|statement| statement.prefixes.as_ref());
    let about = set.and_then(|condition| meaning(&condition.set.name));
    let about = about.map(|about| format!(": the prefix is {about}"));
    let about =
        about.or_else(|| meaning_for_neighbours(name).map(|meaning| format!(": {meaning}"))).unwrap_or_default();
    format!("{}, line {} {name}{about}", policy.name, u32::from(place) + 1)
}

/// Returns why a received route is not used.
pub fn refusal(refusal: Refusal, import: &Policy, links: &LinkNames) -> String {
    match refusal {
        Refusal::AsLoop(asn) => format!("a loop: its AS path contains our AS number {asn}"),
        Refusal::OriginatorLoop(id) => format!("a loop: its ORIGINATOR_ID {id} is ours"),
        Refusal::ClusterLoop(id) => format!("a loop: its CLUSTER_LIST contains our cluster ID {id}"),
        Refusal::OwnNextHop(address) => format!("its next hop {} is an address of this node", links.text(address)),
        Refusal::InvalidNextHop(address) => format!("{} can be no next hop", links.text(address)),
        Refusal::FirstAs(None) => {
            "its AS path is empty, or begins with a set, although the neighbour is in another AS".to_owned()
        }
        Refusal::FirstAs(Some(asn)) => format!("its AS path does not begin with {asn}, the neighbour's AS number"),
        Refusal::Policy(by) => format!("rejected by import policy {}", line(import, by)),
    }
}

/// Returns why a route is not advertised to a neighbour.
pub fn withheld(withheld: Withheld, export: &Policy, links: &LinkNames) -> String {
    match withheld {
        Withheld::NoRoute => "no route is used".to_owned(),
        Withheld::Source => "the best route is its own".to_owned(),
        Withheld::Family => "the session does not carry the address family".to_owned(),
        Withheld::Community(Community::NO_ADVERTISE) => "the route has the community NO_ADVERTISE".to_owned(),
        Withheld::Community(Community::NO_EXPORT) => "the route has the community NO_EXPORT".to_owned(),
        Withheld::Community(_) => "the route has the community NO_EXPORT_SUBCONFED".to_owned(),
        Withheld::LongLived => {
            "it is kept as the last resort, and the neighbour has no long-lived graceful restart (RFC 9494)".to_owned()
        }
        Withheld::NotReflected => {
            "routes of IBGP neighbours go to others only by a route reflector (kube-router.io/rr.server)".to_owned()
        }
        Withheld::NoAddress => "this node has no address of the family to be the next hop".to_owned(),
        Withheld::Policy(by) => format!("rejected by export policy {}", line(export, by)),
        Withheld::NextHop(address) => format!("it does not take {} as a next hop (RFC 8950)", links.text(address)),
        Withheld::Unfit => "the attributes do not fit into a message".to_owned(),
        Withheld::Restarting => "this node has restarted and waits for the routes of all neighbours".to_owned(),
        Withheld::Behind => "it follows: the neighbour has just connected, or reads slowly".to_owned(),
    }
}

/// Returns a step of the decision process by the name of what it compares.
pub fn step(step: Step) -> &'static str {
    match step {
        Step::LongLived => "kept as the last resort (LLGR_STALE)",
        Step::LocalPref => "LOCAL_PREF",
        Step::Local => "locally originated",
        Step::AsPathLength => "AS_PATH length",
        Step::Origin => "ORIGIN",
        Step::Med => "MED",
        Step::External => "EBGP before IBGP",
        Step::Identifier => "BGP identifier",
        Step::ClusterList => "CLUSTER_LIST length",
        Step::Address => "neighbour address",
    }
}

/// Returns the values that a step compared: the loser's and the winner's. Empty where the step's name says it.
pub fn compared(step: Step, lost: &Attributes, won: &Attributes) -> String {
    let both = |lost: &dyn std::fmt::Display, won: &dyn std::fmt::Display| format!(": {lost}, not {won}");
    match step {
        Step::LocalPref => both(&lost.preference(), &won.preference()),
        Step::AsPathLength => both(&lost.as_path.length(), &won.as_path.length()),
        Step::Origin => both(&lost.origin, &won.origin),
        Step::Med => both(&lost.med.unwrap_or(0), &won.med.unwrap_or(0)),
        Step::ClusterList => both(&lost.rare().clusters.len(), &won.rare().clusters.len()),
        Step::LongLived | Step::Local | Step::External | Step::Identifier | Step::Address => String::new(),
    }
}

/// Returns why there is no path to a next hop.
pub fn no_way(next_hop: IpAddr, why: NoWay, links: &LinkNames) -> String {
    let family = Family::from(next_hop);
    let next_hop = links.text(next_hop);
    match why {
        NoWay::NodeWithoutAddress => format!("the node {next_hop} has no address of the route's family"),
        NoWay::OtherFamily => format!("the kernel has no IPv6 routes via {next_hop}"),
        NoWay::NodeWithoutTunnel => {
            format!("the node {next_hop} is on no link of this host, and there are no tunnels (--enable-overlay)")
        }
        NoWay::RouterElsewhere => format!("{next_hop} is on no link of this host"),
        NoWay::NoOwnAddress => {
            format!("this node has no {family} address for a tunnel to {next_hop}")
        }
        NoWay::NotItsNode => format!(
            "packets between nodes are encrypted, and no Node with the address {next_hop} is the only one that has these pods"
        ),
        NoWay::Unencrypted => {
            format!("packets to these pods have to be encrypted, and {next_hop} is on a link of this host")
        }
        NoWay::AroundOthers => format!(
            "packets between nodes are encrypted, and pods or addresses of nodes are in the prefix, so that {next_hop} would have them"
        ),
        NoWay::NodeIsGone => format!("{next_hop} is no address of a Node any more"),
        NoWay::LikeAnother => format!(
            "the tunnel to {next_hop} would have the device name, or the link address, of the tunnel to another node, which comes first"
        ),
    }
}

/// Returns attributes in one line.
pub fn attributes(attributes: &Attributes, links: &LinkNames) -> String {
    let rare = attributes.rare();
    let path = as_path(attributes, WIDE);
    let mut words = vec![format!("next hop {}", links.text(attributes.next_hop))];
    words.push(if path.is_empty() { "empty AS path".to_owned() } else { format!("AS path {path}") });
    words.push(format!("origin {}", attributes.origin));
    words.extend(attributes.local_pref.map(|preference| format!("LOCAL_PREF {preference}")));
    words.extend(attributes.med.map(|med| format!("MED {med}")));
    words.extend(list("communities", attributes.communities.iter()));
    words.extend(list("large communities", rare.large.iter()));
    words.extend(list("extended communities", rare.extended.iter().map(|one| format!("{:#018x}", one.0))));
    words.extend(rare.originator.map(|originator| format!("originator {originator}")));
    words.extend(list("clusters", rare.clusters.iter()));
    words.join(", ")
}

/// Most members of a list that are named, and the longest AS path, in bytes.
pub const MEMBERS: usize = 16;
pub const WIDE: usize = 400;

/// Returns an AS path, or the beginning of one that is longer than so many bytes.
pub fn as_path(attributes: &Attributes, longest: usize) -> String {
    let mut text = attributes.as_path.to_string();
    if text.len() > longest {
        // Numbers are not cut.
        let end = text.get(..longest).and_then(|text| text.rfind(' ')).unwrap_or(longest);
        text.truncate(end);
        text.push_str(" …");
    }
    text
}

fn list(name: &str, members: impl ExactSizeIterator<Item: std::fmt::Display>) -> Option<String> {
    let (count, mut text) = (members.len(), name.to_owned());
    for member in members.take(MEMBERS) {
        text.push_str(&format!(" {member}"));
    }
    if count > MEMBERS {
        text.push_str(&format!(" and {} more", count - MEMBERS));
    }
    (count > 0).then_some(text)
}
