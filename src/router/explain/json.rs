//! Answers for programs.

use serde_json::{Value, json};

use crate::bgp::message::Attributes;
use crate::bgp::policy::Policy;
use crate::bgp::rib::{Advertisement, PathState, PrefixState, Standing, Withheld};
use crate::bgp::speaker::{NeighbourState, PathStatus};
use crate::config::NodeRoutes;
use crate::kernel::route::Route;
use crate::model::Authority;
use crate::net::{LinkNames, PerFamily};

use super::routes::{describe, kernel_lines, reason};
use super::words::{MEMBERS, WIDE, as_path, bfd_state, families, source, state, step, why_down, withheld};
use super::{InKernel, LONGEST, Peers, PeersKnown, RouteInKernel, Routes};

/// Formats the neighbours.
pub fn peers_json(peers: &Peers) -> String {
    let speaker = peers.speaker.as_ref().map(|speaker| {
        json!({
            "asn": speaker.asn,
            "identifier": speaker.identifier.to_string(),
            "prefixes": speaker.prefixes,
            "restarting": speaker.is_restarting,
        })
    });
    let problems = peers.known.problems.iter();
    let problems = problems.map(|one| json!({ "about": one.about.to_string(), "problem": one.text }));
    let answer = json!({
        "known": known(&peers.known),
        "nodeRoutes": match peers.known.node_routes {
            NodeRoutes::Bgp => "bgp",
            NodeRoutes::Api => "api",
        },
        "serviceAddresses": peers.known.outside.word(),
        "speaker": speaker,
        "neighbours": peers.neighbours.iter().map(|one| of_neighbour(peers, one)).collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    });
    format!("{answer:#}\n")
}

fn known(known: &PeersKnown) -> &'static str {
    match known.authority {
        Authority::Complete => "complete",
        Authority::Partial => "partial",
        Authority::Remembered => "remembered",
        Authority::Nothing => "nothing",
    }
}

fn of_neighbour(peers: &Peers, neighbour: &NeighbourState) -> Value {
    let counts = neighbour.counts;
    let announced = peers.announced.as_ref().map(|all| all.get(&neighbour.id).copied().unwrap_or_default());
    json!({
        "address": neighbour.name.as_str(),
        "asn": neighbour.asn,
        "internal": neighbour.is_internal,
        "reflectorClient": neighbour.is_client,
        "password": neighbour.has_password,
        "state": state(neighbour.state),
        "sinceSeconds": neighbour.since.as_secs(),
        "hasBeenEstablished": neighbour.has_been_up,
        "sessionsEnded": neighbour.flops,
        "families": families(neighbour.families),
        "staleFamilies": families(neighbour.stale),
        "longLivedFamilies": families(neighbour.long_lived),
        "received": per_family(PerFamily::from_fn(|family| counts.of(family).received)),
        "accepted": per_family(PerFamily::from_fn(|family| counts.of(family).used)),
        "announced": announced.map(per_family),
        "everythingSent": neighbour.is_told,
        "reasons": why_down(neighbour),
        "bfd": neighbour.path.as_ref().map(of_path),
        "source": source(peers.known.sources.get(&neighbour.address), neighbour.address),
    })
}

fn per_family(counts: PerFamily<u32>) -> Value {
    json!({ "ipv4": counts.v4, "ipv6": counts.v6 })
}

fn of_path(path: &PathStatus) -> Value {
    json!({
        "state": path.status.map(|status| bfd_state(status.state)),
        "diagnostic": path.status.map(|status| status.diagnostic.to_string()),
        "remoteDiagnostic": path.status.map(|status| status.remote_diagnostic.to_string()),
        "failedSecondsAgo": path.failed.map(|failed| failed.as_secs()),
    })
}

/// Formats routes. One prefix after the other, so that no more than the text is in memory.
pub fn routes_json(routes: &Routes) -> String {
    let (known, restarting) = (known(&routes.known), routes.is_restarting);
    let mut text = format!("{{\n\"known\": \"{known}\",\n\"restarting\": {restarting},\n\"prefixes\": [");
    let mut left_off = routes.left_off;
    for (number, (prefix, kernel)) in routes.prefixes.iter().enumerate() {
        if text.len() > LONGEST {
            left_off += 1;
            continue;
        }
        text.push_str(if number == 0 { "\n" } else { ",\n" });
        text.push_str(&format!("{:#}", of_prefix(routes, prefix, kernel)));
    }
    text.push_str(&format!("\n],\n\"prefixesLeftOff\": {left_off}\n}}\n"));
    text
}

fn of_prefix(routes: &Routes, prefix: &PrefixState, kernel: &InKernel) -> Value {
    let next_hops = prefix.next_hops.iter().map(|next_hop| routes.known.links.text(*next_hop));
    let mut value = json!({
        "prefix": prefix.prefix.to_string(),
        "nextHops": next_hops.collect::<Vec<_>>(),
        "paths": prefix.paths.iter().map(|path| of_route(routes, prefix, path)).collect::<Vec<_>>(),
        "pathsLeftOff": prefix.paths_left_off,
        "givenByNodes": kernel.given_by.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "kernel": of_kernel(routes, prefix, kernel),
    });
    if let (Some(told), Some(members)) = (&prefix.told, value.as_object_mut()) {
        members.insert("neighbours".to_owned(), of_told(routes, told, &prefix.policies.export));
        let (sent, not_sent) = told.others;
        members.insert("neighboursLeftOff".to_owned(), json!({ "announced": sent, "notAnnounced": not_sent }));
    }
    value
}

fn of_route(routes: &Routes, prefix: &PrefixState, path: &PathState) -> Value {
    let (standing, lost) = match path.standing {
        Standing::Best(_) => ("best", None),
        Standing::Lost { step: at, by } => ("lost", Some(json!({ "step": step(at), "to": routes.source(by) }))),
        Standing::Unreachable => ("unreachable", None),
        Standing::Refused(_) => ("refused", None),
    };
    json!({
        "from": routes.source(path.source),
        "neighbour": routes.addresses.get(&path.source).map(|address| routes.known.links.text(*address)),
        "ageSeconds": path.age.as_secs(),
        "stale": path.is_stale,
        "standing": standing,
        "lost": lost,
        "inUse": path.is_in_use,
        "reason": reason(routes, prefix, path),
        "received": of_attributes(&path.received, &routes.known.links),
        "used": path.used.as_ref().map(|used| of_attributes(used, &routes.known.links)),
    })
}

fn of_attributes(attributes: &Attributes, links: &LinkNames) -> Value {
    let rare = attributes.rare();
    let texts = |all: &mut dyn Iterator<Item = String>| all.take(MEMBERS).collect::<Vec<_>>();
    let counts = [attributes.communities.len(), rare.large.len(), rare.extended.len(), rare.clusters.len()];
    let left_off: usize = counts.into_iter().map(|count| count.saturating_sub(MEMBERS)).sum();
    json!({
        "nextHop": links.text(attributes.next_hop),
        "asPath": as_path(attributes, WIDE),
        "origin": attributes.origin.to_string(),
        "med": attributes.med,
        "localPref": attributes.local_pref,
        "communities": texts(&mut attributes.communities.iter().map(ToString::to_string)),
        "largeCommunities": texts(&mut rare.large.iter().map(ToString::to_string)),
        "extendedCommunities": texts(&mut rare.extended.iter().map(|one| format!("{:#018x}", one.0))),
        "originator": rare.originator.map(|originator| originator.to_string()),
        "clusters": texts(&mut rare.clusters.iter().map(ToString::to_string)),
        "membersLeftOff": left_off,
    })
}

fn of_kernel(routes: &Routes, prefix: &PrefixState, kernel: &InKernel) -> Value {
    let (standing, desired, seen): (_, Option<&Route>, Option<&Route>) = match &kernel.route {
        RouteInKernel::Absent => ("absent", None, None),
        RouteInKernel::InPlace(route) => ("inPlace", Some(route), Some(route)),
        RouteInKernel::Waiting { desired, seen } => ("waiting", Some(desired), seen.as_deref()),
        RouteInKernel::Failed { desired, .. } => ("failed", Some(desired), None),
        RouteInKernel::Kept(route) => ("notWanted", None, Some(route)),
        RouteInKernel::Unread(_) => ("notRead", None, None),
    };
    let why = if routes.question.why { kernel_lines(prefix, kernel, &routes.known.links) } else { Vec::new() };
    json!({
        "standing": standing,
        "desired": desired.map(describe),
        "seen": seen.map(describe),
        "inTheWay": kernel.in_the_way,
        "reasons": why,
    })
}

fn of_told(routes: &Routes, told: &Advertisement, export: &Policy) -> Value {
    let of_neighbour = |(peer, sent): &(_, Result<_, Withheld>)| {
        let sent: Result<&std::sync::Arc<Attributes>, &Withheld> = sent.as_ref();
        json!({
            "neighbour": routes.addresses.get(peer).map(|address| routes.known.links.text(*address)),
            "announced": sent.is_ok(),
            "attributes": sent.ok().map(|sent| of_attributes(sent, &routes.known.links)),
            "reason": sent.err().map(|why| withheld(*why, export, &routes.known.links)),
        })
    };
    told.neighbours.iter().map(of_neighbour).collect()
}
