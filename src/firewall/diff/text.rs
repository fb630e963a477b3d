//! The difference as text.

use std::fmt::Write;

use crate::kernel::conntrack::{Connection, Transport};
use crate::model::ObjectName;

use super::super::rules::Direction;
use super::super::verdict::Decision;
use super::pairs::{NamespacePods, PairChange, Peers};
use super::ranges::is_everywhere;
use super::{Difference, IsolationChange, PolicyChange, Refused, RefusedConnection};

/// The most connections that are written out.
const WRITTEN: usize = 20;

/// Formats the difference as lines, each ending with a line break.
pub fn text(difference: &Difference) -> String {
    let Difference { policies, isolation, pairs, connections } = difference;
    let mut text = String::new();
    for (name, change) in policies {
        let _ = writeln!(text, "{} {name}: {}", name.kind(), word(*change));
    }
    if isolation.is_empty() && pairs.changes.is_empty() && !pairs.is_cut {
        text.push_str("Nothing changes for the pods of this node.\n");
    }
    for isolated in [true, false] {
        let turned: Vec<&IsolationChange> = isolation.iter().filter(|change| change.isolated == isolated).collect();
        if !turned.is_empty() {
            let what = if isolated { "become isolated" } else { "are not isolated any more" };
            let _ = writeln!(text, "Pods of this node that {what}: {}", turned.len());
            for IsolationChange { pod, direction, .. } in turned {
                let _ = writeln!(text, "  {pod}: {}", direction.name());
            }
        }
    }
    for opens in [false, true] {
        let turned: Vec<&PairChange> = pairs.changes.iter().filter(|change| change.opens == opens).collect();
        if !turned.is_empty() {
            text.push_str(if opens { "Opens:\n" } else { "Closes:\n" });
            turned.iter().for_each(|change| write_pairs(&mut text, change));
        }
    }
    if pairs.is_cut {
        text.push_str("There may be more: too many pairs to look at all of them.\n");
    }
    write_connections(&mut text, connections);
    text
}

pub(super) fn word(change: PolicyChange) -> &'static str {
    match change {
        PolicyChange::New => "new",
        PolicyChange::Changed => "changed",
        PolicyChange::Same => "as it is",
        PolicyChange::Deleted => "deleted",
        PolicyChange::Absent => "not there, so there is nothing to delete",
    }
}

fn write_pairs(text: &mut String, change: &PairChange) {
    let PairChange { direction, only, pods, ports, peers, .. } = change;
    let only = only.map_or_else(String::new, |family| format!(", {family} only"));
    let names: Vec<String> = pods.iter().take(super::pairs::NAMES).map(ObjectName::to_string).collect();
    let more = pods.len() - names.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let word = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let _ = writeln!(text, "  {}{more}: {} {word} {}{only}: {ports}", names.join(", "), direction.name(), words(peers));
}

/// The other ends, in one line.
fn words(Peers { namespaces, ranges, all_ranges }: &Peers) -> String {
    let mut words: Vec<String> = namespaces.iter().map(of_namespace).collect();
    words.extend(ranges.iter().map(|range| match is_everywhere(range) {
        true => format!("every other address ({range})"),
        false => range.to_string(),
    }));
    if *all_ranges > ranges.len() {
        words.push(format!("{} more ranges", all_ranges - ranges.len()));
    }
    words.join(", ")
}

fn of_namespace(NamespacePods { namespace, pods, all, is_whole }: &NamespacePods) -> String {
    match (all, is_whole) {
        (1, _) => pods.iter().map(|pod| format!("{namespace}/{pod}")).collect(),
        (_, true) => format!("all {all} pods of namespace {namespace}"),
        _ => {
            let names: Vec<String> = pods.iter().map(|pod| format!("{namespace}/{pod}")).collect();
            let more = all - names.len();
            let more = if more > 0 { format!(" and {more} more of namespace {namespace}") } else { String::new() };
            format!("{}{more}", names.join(", "))
        }
    }
}

fn write_connections(text: &mut String, connections: &Result<Refused, String>) {
    match connections {
        Err(why) => text.push_str(&format!("Connections: not known, {why}\n")),
        Ok(Refused { all: 0, .. }) => text.push_str("Connections that would be refused: none\n"),
        Ok(Refused { first, all }) => {
            let _ = writeln!(text, "Connections that would be refused: {all}");
            for refused in first.iter().take(WRITTEN) {
                let RefusedConnection { connection, from, to, decision } = refused;
                let _ = writeln!(text, "  {}: {}", ends(connection, from.as_ref(), to.as_ref()), refusal(decision));
            }
            if *all > WRITTEN {
                let _ = writeln!(text, "  and {} more", all - WRITTEN);
            }
        }
    }
}

fn ends(connection: &Connection, from: Option<&ObjectName>, to: Option<&ObjectName>) -> String {
    let named = |address: String, name: Option<&ObjectName>| match name {
        Some(name) => format!("{name} ({address})"),
        None => address,
    };
    let Connection { source, replier, transport, .. } = connection;
    let (from, to) = (named(source.to_string(), from), named(replier.to_string(), to));
    match transport {
        Transport::Ports { protocol, source, replier, .. } => {
            format!("{from} port {source} to {to}, {protocol} {replier}")
        }
        Transport::Icmp { kind } => format!("{from} to {to}, icmp {kind}"),
    }
}

/// Says who would refuse a connection.
pub(super) fn refusal(decision: &Decision) -> String {
    match decision {
        Decision::Denied { pod, policies, by_namespace } => {
            let mut isolating: Vec<String> = policies.iter().map(ObjectName::to_string).collect();
            if *by_namespace {
                isolating.push(format!("the annotation of namespace {}", pod.namespace));
            }
            format!("{pod} would be isolated by {}", isolating.join(", "))
        }
        Decision::ByCluster { pod, policy, rule, .. } => {
            let (name, tier) = (&policy.policy, policy.tier.name());
            format!("{pod} would be denied it by ClusterNetworkPolicy {name} ({tier} tier), rule {rule}")
        }
        _ => "it would be dropped on the bridge of the pods".to_owned(),
    }
}
