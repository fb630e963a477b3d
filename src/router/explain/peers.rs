//! Neighbours as text: a table, and below it why each of them has no session.

use crate::bgp::session::State;
use crate::bgp::speaker::NeighbourState;
use crate::config::NodeRoutes;
use crate::model::Authority;
use crate::router::plan::PeerSource;

use super::words::{families, source, state, time, why_down};
use super::{Peers, PeersKnown};

/// Formats the neighbours as lines of text, each ending with a line break.
pub fn peers_text(peers: &Peers) -> String {
    let mut text = known(&peers.known);
    match &peers.speaker {
        None => text.push_str("BGP does not run on this node\n"),
        Some(speaker) => {
            text.push_str(&format!(
                "AS {}, identifier {}, {} prefixes\n",
                speaker.asn, speaker.identifier, speaker.prefixes
            ));
            if speaker.is_restarting {
                text.push_str(
                    "nothing is announced yet: this node has restarted and waits for the routes of all neighbours\n",
                );
            }
        }
    }
    if peers.known.node_routes == NodeRoutes::Api {
        let is_node = |one: &NeighbourState| matches!(peers.known.sources.get(&one.address), Some(PeerSource::Node(_)));
        let sessions = match peers.neighbours.iter().any(is_node) {
            true => "sessions with nodes are those of nodes that have --node-routes=bgp",
            false => "nodes have no sessions",
        };
        text.push_str(&format!(
            "routes to pods of other nodes come from Node objects (--node-routes=api); {sessions}\n"
        ));
    }
    text.extend(peers.known.outside.note().map(|note| format!("{note}\n")));
    if !peers.neighbours.is_empty() {
        text.push_str(&table(peers));
    }
    for neighbour in &peers.neighbours {
        let why = why_down(neighbour);
        if !why.is_empty() {
            text.push_str(&format!("{}: not established: {}\n", neighbour.name, why.join("; ")));
        }
        text.extend(beside(neighbour).map(|beside| format!("{}: {beside}\n", neighbour.name)));
    }
    text.extend(peers.known.problems.iter().map(|problem| format!("{problem}\n")));
    text
}

/// Says how far the cluster is known, where that is not all of it as of now.
pub(super) fn known(known: &PeersKnown) -> String {
    let how = match known.authority {
        Authority::Complete => return String::new(),
        Authority::Partial => "partial: some objects cannot be read",
        Authority::Remembered => "remembered: from the last known state of an earlier run",
        Authority::Nothing => "nothing is known",
    };
    format!("known of the cluster: {how}\n")
}

/// Says what a neighbour with a session lacks, or has too much.
fn beside(neighbour: &NeighbourState) -> Option<String> {
    let stale = families(neighbour.stale);
    let is_up = neighbour.state == State::Established;
    let long_lived = families(neighbour.long_lived);
    match (stale.is_empty(), is_up) {
        (false, false) if !long_lived.is_empty() => {
            let last = format!(
                "its {} routes are kept as the last resort (long-lived graceful restart)",
                long_lived.join(" and ")
            );
            let others: Vec<_> = stale.into_iter().filter(|family| !long_lived.contains(family)).collect();
            match others.is_empty() {
                true => Some(last),
                false => Some(format!("{last}, and its {} routes while it restarts", others.join(" and "))),
            }
        }
        (false, false) => Some(format!("its {} routes are kept while it restarts", stale.join(" and "))),
        (false, true) => {
            Some(format!("its {} routes are kept until it has sent all of them again", stale.join(" and ")))
        }
        (true, true) if !neighbour.is_told => Some("routes to it are still being sent".to_owned()),
        (true, _) => None,
    }
}

const HEADER: [&str; 10] =
    ["NEIGHBOUR", "AS", "STATE", "SINCE", "FAMILIES", "RECEIVED", "ACCEPTED", "ANNOUNCED", "PASSWORD", "FROM"];

fn table(peers: &Peers) -> String {
    let header = HEADER.map(str::to_owned);
    let rows = std::iter::once(header).chain(peers.neighbours.iter().map(|neighbour| row(peers, neighbour)));
    aligned(rows.collect())
}

fn row(peers: &Peers, neighbour: &NeighbourState) -> [String; 10] {
    let counts = neighbour.counts;
    let announced = peers.announced.as_ref().map(|all| all.get(&neighbour.id).copied().unwrap_or_default());
    let is_up = neighbour.state == State::Established;
    let since = match is_up || neighbour.has_been_up {
        true => time(neighbour.since),
        false => "never".to_owned(),
    };
    [
        neighbour.name.clone(),
        neighbour.asn.map_or("any".to_owned(), |asn| asn.to_string()),
        state(neighbour.state).to_owned(),
        since,
        families(neighbour.families).join(","),
        (counts.v4.received + counts.v6.received).to_string(),
        (counts.v4.used + counts.v6.used).to_string(),
        announced.map_or("-".to_owned(), |announced| (announced.v4 + announced.v6).to_string()),
        if neighbour.has_password { "yes" } else { "no" }.to_owned(),
        source(peers.known.sources.get(&neighbour.address), neighbour.address),
    ]
}

/// Writes rows in columns.
pub(super) fn aligned<const N: usize>(rows: Vec<[String; N]>) -> String {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
