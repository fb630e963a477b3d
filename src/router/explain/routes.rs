//! Routes as text: a table with one line for each route, or a paragraph with all reasons for each prefix.

use std::net::IpAddr;
use std::sync::Arc;

use crate::bgp::message::{Attributes, Community};
use crate::bgp::policy::Policy;
use crate::bgp::rib::{Advertisement, PathState, PeerId, PrefixState, Standing};
use crate::kernel::route::{NextHop, Route};
use crate::net::LinkNames;

use super::peers::{aligned, known};
use super::way::{Origin, Owner, Way};
use super::words::{as_path, attributes, compared, line, no_way, refusal, step, time, withheld};
use super::{InKernel, LONGEST, RouteInKernel, Routes};

/// Formats routes as lines of text, each ending with a line break.
pub fn routes_text(routes: &Routes) -> String {
    let mut text = known(&routes.known);
    let mut left_off = routes.left_off;
    if !routes.question.why {
        text.push_str(&table(routes));
    }
    for (prefix, kernel) in routes.prefixes.iter().filter(|_| routes.question.why) {
        match text.len() < LONGEST {
            true => text.push_str(&in_full(routes, prefix, kernel)),
            false => left_off += 1,
        }
    }
    if left_off > 0 {
        text.push_str(&format!("{left_off} more prefixes; name one to see it\n"));
    }
    text
}

/// Longest AS path in the table, in bytes.
const NARROW: usize = 60;

fn table(routes: &Routes) -> String {
    let mut rows = vec![["PREFIX", "FROM", "NEXT HOP", "AS PATH", "STATE"].map(str::to_owned)];
    for (prefix, kernel) in &routes.prefixes {
        rows.extend(given(prefix, kernel));
        for path in &prefix.paths {
            let is_best = matches!(path.standing, Standing::Best(_));
            let in_kernel = is_best.then(|| kernel_word(kernel)).flatten();
            let state = [Some(standing_word(path).to_owned()), in_kernel.map(str::to_owned)];
            let as_path = as_path(&path.received, NARROW);
            rows.push([
                prefix.prefix.to_string(),
                routes.source(path.source),
                routes.known.links.text(path.received.next_hop),
                if as_path.is_empty() { "-".to_owned() } else { as_path },
                state.into_iter().flatten().collect::<Vec<_>>().join(", "),
            ]);
        }
        if prefix.paths_left_off > 0 {
            let more = format!("and {} more", prefix.paths_left_off);
            rows.push([prefix.prefix.to_string(), more, String::new(), String::new(), String::new()]);
        }
    }
    aligned(rows)
}

/// Returns the line of a route that Node objects give.
fn given(prefix: &PrefixState, kernel: &InKernel) -> Option<[String; 5]> {
    let next_hops: Vec<String> = kernel.next_hops.iter().map(|(next_hop, _)| next_hop.to_string()).collect();
    let state = ["given"].into_iter().chain(kernel_word(kernel)).collect::<Vec<_>>().join(", ");
    let is_given = !kernel.given_by.is_empty();
    is_given.then(|| [prefix.prefix.to_string(), nodes(kernel), next_hops.join(" "), "-".to_owned(), state])
}

/// Names the Nodes that give a route.
fn nodes(kernel: &InKernel) -> String {
    kernel.given_by.iter().map(|node| format!("Node {node}")).collect::<Vec<_>>().join(", ")
}

pub(super) fn standing_word(path: &PathState) -> &'static str {
    match path.standing {
        Standing::Best(_) => "best",
        Standing::Lost { .. } if path.is_in_use => "shares traffic with the best",
        Standing::Lost { .. } => "lost",
        Standing::Unreachable => "next hop unreachable",
        Standing::Refused(_) => "refused",
    }
}

/// The kernel in a word; `None` of a route that is not for it.
fn kernel_word(kernel: &InKernel) -> Option<&'static str> {
    match &kernel.route {
        RouteInKernel::InPlace(_) if kernel.in_the_way.is_empty() => Some("in the kernel"),
        RouteInKernel::InPlace(_) => Some("another route in the way"),
        RouteInKernel::Waiting { .. } => Some("about to be written"),
        RouteInKernel::Failed { .. } => Some("refused by the kernel"),
        RouteInKernel::Kept(_) => Some("an earlier route is in the kernel"),
        RouteInKernel::Unread(_) => Some("kernel not read"),
        RouteInKernel::Absent if kernel.next_hops.is_empty() => None,
        RouteInKernel::Absent => Some("no way to the next hop"),
    }
}

fn in_full(routes: &Routes, prefix: &PrefixState, kernel: &InKernel) -> String {
    let mut text = format!("{}\n", prefix.prefix);
    if !kernel.given_by.is_empty() {
        let next_hops: Vec<String> = kernel.next_hops.iter().map(|(next_hop, _)| next_hop.to_string()).collect();
        let (nodes, next_hops) = (nodes(kernel), next_hops.join(" "));
        text.push_str(&format!(
            "  from {nodes}: next hop {next_hops}; given by the Node object (--node-routes=api), whatever neighbours say\n"
        ));
    }
    text.extend(prefix.paths.iter().map(|path| of_path(routes, prefix, path)));
    if prefix.paths_left_off > 0 {
        text.push_str(&format!("  {} more routes\n", prefix.paths_left_off));
    }
    text.extend(
        kernel_lines(prefix, kernel, &routes.known.links).into_iter().map(|line| format!("  kernel: {line}\n")),
    );
    let best = prefix.paths.first().and_then(|path| path.used.as_ref());
    text.extend(prefix.told.iter().map(|told| of_told(routes, told, best, &prefix.policies.export)));
    text
}

fn of_path(routes: &Routes, prefix: &PrefixState, path: &PathState) -> String {
    let stale = match (path.is_stale, path.received.has(Community::LLGR_STALE)) {
        (true, true) => ", kept as the last resort (long-lived graceful restart)",
        (true, false) => ", kept while it restarts",
        (false, _) => "",
    };
    let mut text = format!(
        "  from {}, {}{stale}: {}\n    {}\n",
        routes.source(path.source),
        time(path.age),
        reason(routes, prefix, path),
        attributes(&path.received, &routes.known.links)
    );
    if let Some(used) = path.used.as_ref().filter(|used| **used != path.received) {
        text.push_str(&format!("    changed by import policy: {}\n", attributes(used, &routes.known.links)));
    }
    text
}

/// Returns why a route is used, or not.
pub(super) fn reason(routes: &Routes, prefix: &PrefixState, path: &PathState) -> String {
    match path.standing {
        Standing::Best(by) => format!("best; accepted by import policy {}", line(&prefix.policies.import, by)),
        Standing::Lost { step: at, by } => {
            let winner = prefix.paths.iter().find(|other| other.source == by).and_then(|other| other.used.as_ref());
            let values = path.used.as_ref().zip(winner).map(|(lost, won)| compared(at, lost, won)).unwrap_or_default();
            let shares = if path.is_in_use { "; its next hop shares the traffic (multipath)" } else { "" };
            format!("lost to the one from {} at {}{values}{shares}", routes.source(by), step(at))
        }
        Standing::Unreachable => {
            let next_hop = path.used.as_ref().map(|used| routes.known.links.text(used.next_hop)).unwrap_or_default();
            format!(
                "not used: the kernel has no way to its next hop {next_hop}, the link there is down, or the way leads by a gateway where the next hop was on a link"
            )
        }
        Standing::Refused(why) => format!("refused: {}", refusal(why, &prefix.policies.import, &routes.known.links)),
    }
}

/// Returns from whom the route of a way is, or why routes around its address are not used; beside a route that is used, narrower ones.
pub(super) fn origin(routes: &Routes, states: &[PrefixState], way: &Way) -> Origin {
    let mut origin = Origin::default();
    let used = way.planned.as_ref().map(|planned| planned.key.destination.prefix_len());
    // Links lead to this node's own pods, whatever others announce.
    let is_own = matches!(way.owner, Owner::OwnPods(_));
    for state in states {
        let would_decide = used.is_none_or(|used| used < state.prefix.prefix_len() && !is_own);
        let is_used = way.planned.as_ref().is_some_and(|planned| planned.key.destination == state.prefix);
        for path in &state.paths {
            let said = format!("{}: {}", routes.source(path.source), reason(routes, state, path));
            match path.standing {
                Standing::Best(_) | Standing::Lost { .. } if is_used && path.is_in_use => origin.used.push(said),
                Standing::Best(_) if path.source.is_local() => {}
                _ if would_decide => origin.refused.push(format!("{} from {said}", state.prefix)),
                _ => {}
            }
        }
    }
    origin
}

/// Returns how the kernel stands, a sentence a line; none for a prefix whose best route is our own.
pub(super) fn kernel_lines(prefix: &PrefixState, kernel: &InKernel, links: &LinkNames) -> Vec<String> {
    let is_own = prefix.paths.first().is_some_and(|path| path.source.is_local());
    let has_best = prefix.paths.first().is_some_and(|path| matches!(path.standing, Standing::Best(_)));
    let mut lines: Vec<String> = match &kernel.route {
        RouteInKernel::InPlace(route) => vec![format!("in place: {}", describe(route))],
        RouteInKernel::Waiting { desired, seen: None } => vec![format!("about to get {}", describe(desired))],
        RouteInKernel::Waiting { desired, seen: Some(seen) } => {
            vec![format!("has {}, about to get {}", describe(seen), describe(desired))]
        }
        RouteInKernel::Failed { desired, error } => {
            vec![format!(
                "not in place: {}: the last changes of routes failed, the first one with: {error}",
                describe(desired)
            )]
        }
        RouteInKernel::Kept(route) => vec![format!("has {} still, which is not wanted any more", describe(route))],
        RouteInKernel::Unread(why) => vec![format!("routes cannot be read: {why}")],
        RouteInKernel::Absent if is_own => {
            let by_operator = prefix.paths.first().is_some_and(|path| path.source == PeerId::OPERATOR);
            let whose = if by_operator { "announced from here by an operator" } else { "this node's own" };
            vec![format!("no route: the prefix is {whose}")]
        }
        RouteInKernel::Absent if !has_best => vec!["no route: none is used".to_owned()],
        RouteInKernel::Absent if kernel.next_hops.is_empty() => {
            vec!["no route yet: it has just been learned".to_owned()]
        }
        RouteInKernel::Absent => vec!["no route".to_owned()],
    };
    let without = kernel.next_hops.iter().filter_map(|(next_hop, why)| Some(no_way(*next_hop, (*why)?, links)));
    lines.extend(without.map(|why| format!("not used: {why}")));
    lines.extend(kernel.in_the_way.iter().cloned());
    lines
}

/// A route as `ip route` prints its next hops.
pub(super) fn describe(route: &Route) -> String {
    let hop = |NextHop { link, gateway, .. }: &NextHop| match gateway {
        Some(gateway) => format!("via {gateway} dev {link}"),
        None => format!("dev {link}"),
    };
    route.next_hops.iter().map(hop).collect::<Vec<_>>().join(", ")
}

/// Most neighbours that are named in one line.
const IN_A_LINE: usize = 8;

/// Says to whom the best route is announced. Neighbours for which the same holds share a line.
fn of_told(routes: &Routes, told: &Advertisement, best: Option<&Arc<Attributes>>, export: &Policy) -> String {
    let mut groups: Vec<(String, Vec<IpAddr>)> = Vec::new();
    for (peer, sent) in &told.neighbours {
        let Some(address) = routes.addresses.get(peer) else { continue };
        let how = match sent {
            Ok(sent) if Some(sent) == best => "announced".to_owned(),
            Ok(sent) => format!("announced with {}", attributes(sent, &routes.known.links)),
            Err(why) => format!("not announced: {}", withheld(*why, export, &routes.known.links)),
        };
        match groups.iter_mut().find(|(known, _)| *known == how) {
            Some((_, addresses)) => addresses.push(*address),
            None => groups.push((how, vec![*address])),
        }
    }
    let mut text = String::new();
    for (how, addresses) in groups {
        let named: Vec<String> = addresses.iter().take(IN_A_LINE).map(|address| routes.known.name(*address)).collect();
        let more = addresses.len().saturating_sub(IN_A_LINE);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text.push_str(&format!("  to {}{more}: {how}\n", named.join(", ")));
    }
    let (sent, not_sent) = told.others;
    if sent + not_sent > 0 {
        text.push_str(&format!("  to {} more neighbours: announced to {sent} of them\n", sent + not_sent));
    }
    if told.neighbours.is_empty() {
        text.push_str("  announced to nobody: no neighbour has a session\n");
    }
    text
}
