//! A node that drains, as routers outside see it: its service addresses lose first, then they go; pods and the session stay.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::agent::{Agent, node, put};
use crate::cell::{Cell, Daemon};
use crate::ground::{Host, Topology, eventually, with_hosts};
use crate::other::Other;

const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers: ''";
const GRACEFUL_SHUTDOWN: &str = "65535:0";

/// Prefixes with their communities and LOCAL_PREF, as the daemon has them of our node.
fn seen(other: &Other) -> BTreeSet<String> {
    let ours = |prefix: &str| prefix.starts_with("10.") || prefix.starts_with("fd00:");
    let routes = other.routes().into_iter().filter(|route| ours(&route.prefix));
    let line = |route: crate::route::Route| {
        let mut words = vec![route.prefix];
        words.extend(route.communities);
        words.extend(
            route.preference.filter(|preference| *preference != 100).map(|preference| format!("pref {preference}")),
        );
        words.join(" ")
    };
    routes.map(line).collect()
}

/// The ranges of pods, and the service addresses with these words behind each.
fn expected(services: Option<&str>) -> BTreeSet<String> {
    let pods = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(str::to_owned);
    let services = services
        .map(|words| ["10.96.0.9/32", "fd00:10:96::9/128"].map(|one| format!("{one} {words}").trim_end().to_owned()));
    pods.into_iter().chain(services.into_iter().flatten()).collect()
}

fn since(host: &Host) -> (Value, Value) {
    let text =
        host.ask(&[env!("CARGO_BIN_EXE_sluice"), "bgp", "peers", "-o", "json", &socket(host)]).unwrap_or_default();
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    (answer["neighbours"][0]["sessionsEnded"].clone(), answer["serviceAddresses"].clone())
}

fn socket(host: &Host) -> String {
    format!("--socket={}", host.file("sluice.sock").display())
}

fn drains(cell: Cell, words_while_leaving: &str) {
    with_hosts(2, Topology::Link, |hosts| {
        let asns = format!("--peer-router-asns={}", cell.asns[1]);
        let _agent = Agent::start(&hosts[0], &[&asns, "--drain-delay=5s"]);
        let other = Other::start(&cell, &hosts[1], vec![&hosts[0]]);
        eventually("all of the node", &expected(Some("")), || seen(&other));
        put(&hosts[0], "node", &node(1, LABEL));
        eventually("the addresses lose", &expected(Some(words_while_leaving)), || seen(&other));
        eventually("the addresses are gone", &expected(None), || seen(&other));
        assert_eq!(since(&hosts[0]), (0.into(), "withdrawn".into()), "the session stays");
        put(&hosts[0], "node", &node(1, ""));
        eventually("all of the node again", &expected(Some("")), || seen(&other));
        assert_eq!(since(&hosts[0]), (0.into(), "announced".into()));
    });
}

#[test]
fn bird_outside_sees_the_addresses_of_a_draining_node_lose_and_go() {
    drains(Cell::with(Daemon::Bird), GRACEFUL_SHUTDOWN);
}

#[test]
fn bird_in_the_same_system_sees_a_preference_of_zero_too() {
    drains(Cell::inside(Daemon::Bird), &format!("{GRACEFUL_SHUTDOWN} pref 0"));
}

#[test]
fn gobgp_outside_sees_the_addresses_of_a_draining_node_lose_and_go() {
    drains(Cell::with(Daemon::Gobgp), GRACEFUL_SHUTDOWN);
}

#[test]
fn frr_outside_gives_the_addresses_of_a_draining_node_a_preference_of_zero_by_itself() {
    // Its name for 65535:0.
    drains(Cell::with(Daemon::Frr), "graceful-shutdown pref 0");
}

#[test]
fn a_newer_gobgp_outside_sees_the_addresses_of_a_draining_node_lose_and_go() {
    drains(Cell::with(Daemon::Gobgp4), GRACEFUL_SHUTDOWN);
}
