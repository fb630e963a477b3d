//! Two whole agents on one link, with their Nodes from directories: routes to each other's pods by BGP and by Node objects, and
//! what the kernel notices when both change from one to the other and back.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::agent::{Agent, node, put};
use crate::ground::{Host, Topology, eventually, with_hosts};

const FLAGS: [&str; 8] = [
    "--run-service-proxy=false",
    "--run-firewall=false",
    "--enable-ipv6",
    "--enable-cni=false",
    "--health-port=0",
    "--gobgp-admin-port=0",
    "--hostname-override=node-1",
    "--node-routes=bgp",
];
/// What `ip monitor` says on a host.
const MONITOR: &str = "monitor.log";

fn agent<'a>(hosts: &'a [Host], place: usize, node_routes: &str) -> Agent<'a> {
    agent_with(hosts, place, node_routes, &[])
}

fn agent_with<'a>(hosts: &'a [Host], place: usize, node_routes: &str, more: &[&str]) -> Agent<'a> {
    let (name, node_routes) =
        (format!("--hostname-override=node-{}", place + 1), format!("--node-routes={node_routes}"));
    Agent::run(&hosts[place], &FLAGS, &[&[&*name, &node_routes], more].concat())
}

/// Runs a test on two hosts that know each other's Nodes.
fn with_nodes(test: impl FnOnce(&[Host]) + Send) {
    with_hosts(2, Topology::Link, |hosts| {
        for host in &hosts[..2] {
            fs::create_dir(host.file("manifests")).expect("a directory");
            (1..=2).for_each(|number| put(host, &format!("node-{number}"), &node(number, "")));
        }
        test(hosts);
    });
}

/// The routes of ours, as `ip route` prints them.
fn routes(host: &Host) -> Vec<String> {
    let of = |family: &str| host.ask(&["ip", family, "route", "show", "proto", "17"]).unwrap_or_default();
    let text = of("-4") + &of("-6");
    text.lines().map(|line| line.split(" metric").next().unwrap_or_default().trim().to_owned()).collect()
}

fn expected(other: usize) -> Vec<String> {
    vec![
        format!("10.244.{other}.0/24 via 192.0.2.{other} dev eth0"),
        format!("fd00:10:244:{other}::/64 via 2001:db8::{other} dev eth0"),
    ]
}

/// The neighbours with a session, as the agent answers.
fn sessions(host: &Host) -> usize {
    let socket = format!("--socket={}", host.file("sluice.sock").display());
    let text = host.ask(&[env!("CARGO_BIN_EXE_sluice"), "bgp", "peers", &socket]).unwrap_or_default();
    text.lines().filter(|line| line.contains(" Established ")).count()
}

/// A node that is changed alone stays so for longer than nodes keep each other's routes, here 15 s.
#[test]
fn a_node_whose_routes_come_from_node_objects_answers_one_with_bgp_however_long_they_differ_and_whichever_starts() {
    let more = ["--bgp-graceful-restart", "--bgp-graceful-restart-time=15s", "--enable-bfd-mesh"];
    with_nodes(|hosts| {
        let start = |place: usize, node_routes: &str| agent_with(hosts, place, node_routes, &more);
        let both = || [routes(&hosts[0]), routes(&hosts[1])];
        let counts = || [sessions(&hosts[0]), sessions(&hosts[1])];
        let sends_bfd = |host: &Host| host.ask(&["ss", "-Hun"]).is_some_and(|text| text.contains(":4784"));
        let watched = || [sends_bfd(&hosts[0]), sends_bfd(&hosts[1])];
        let mut agents = [start(0, "bgp"), start(1, "bgp")];
        eventually("routes by BGP", &[expected(2), expected(1)], both);
        agents[0].end();
        agents[0] = start(0, "api");
        eventually("the agent works", &true, || answers(&hosts[0], "api"));
        eventually("the session is back", &[1; 2], counts);
        eventually("BFD watches the path", &[true; 2], watched);
        thread::sleep(Duration::from_secs(20));
        assert_eq!((both(), counts()), ([expected(2), expected(1)], [1; 2]), "one with Node objects, one with BGP");

        // One that has nothing yet, as a node that was booted while the others wait.
        agents[1].end();
        for family in ["-4", "-6"] {
            hosts[1].ask(&["ip", family, "route", "flush", "proto", "17"]).expect("its routes go");
        }
        assert_eq!(routes(&hosts[1]), [""; 0]);
        agents[1] = start(1, "bgp");
        eventually("it has learned all", &[expected(2), expected(1)], both);

        agents[1].end();
        agents[1] = start(1, "api");
        eventually("both work by Node objects", &true, || answers(&hosts[1], "api"));
        eventually("no session is left", &[0; 2], counts);
        // For as long as routes are retained, and up to the next look at who is watched.
        thread::sleep(Duration::from_secs(15));
        eventually("BFD is over with what was retained", &[false; 2], watched);
        assert_eq!(both(), [expected(2), expected(1)]);
    });
}

#[test]
fn nodes_that_change_the_source_of_their_routes_one_after_the_other_and_back_change_no_route_in_the_kernel() {
    with_nodes(|hosts| {
        let mut agents = [agent(hosts, 0, "bgp"), agent(hosts, 1, "bgp")];
        let both = || [routes(&hosts[0]), routes(&hosts[1])];
        eventually("routes by BGP", &[expected(2), expected(1)], both);
        let monitors = [0, 1].map(|place| hosts[place].start(&["ip", "monitor", "route"], MONITOR));
        for node_routes in ["api", "bgp"] {
            for place in [0, 1] {
                agents[place].end();
                agents[place] = agent(hosts, place, node_routes);
                let is_as_said = || answers(&hosts[place], node_routes);
                eventually("the agent works", &true, is_as_said);
            }
            let count = usize::from(node_routes == "bgp");
            eventually("sessions", &[count; 2], || [sessions(&hosts[0]), sessions(&hosts[1])]);
            assert_eq!(both(), [expected(2), expected(1)], "with {node_routes}");
        }
        for (place, mut monitor) in monitors.into_iter().enumerate() {
            monitor.kill().expect("it runs");
            monitor.wait().expect("it ends");
            let said = fs::read_to_string(hosts[place].file(MONITOR)).expect("its output");
            let about_pods: Vec<&str> =
                said.lines().filter(|line| line.contains("10:244") || line.contains("10.244")).collect();
            assert_eq!(about_pods, [""; 0], "node {}", place + 1);
        }
    });
}

/// Whether the agent answers that its routes come from there.
fn answers(host: &Host, node_routes: &str) -> bool {
    let socket = format!("--socket={}", host.file("sluice.sock").display());
    let asked = host.ask(&[env!("CARGO_BIN_EXE_sluice"), "bgp", "peers", "-o", "json", &socket]);
    asked.is_some_and(|text| text.contains(&format!("\"nodeRoutes\": \"{node_routes}\"")))
}
