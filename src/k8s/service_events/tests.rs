use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::k8s::events::tests::{IN_SHOP, QUICK, events};
use crate::k8s::watch::tests::api_server::{ApiServer, Faults};
use crate::model::{Authorities, Cause, Cluster, Conditions, Endpoint, EndpointSlice, Endpoints, Node, ServiceProblem};
use crate::net::Family;

const SETTLE: Duration = Duration::from_millis(20);

fn service() -> ObjectName {
    ObjectName::new("shop", "web")
}

/// A World with these Nodes, and ready endpoints of the Service on some of them.
fn world(nodes: &[&str], with_endpoints: &[&str], proxy: Authority) -> World {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.nodes.insert((*node).into(), Node::default());
    }
    let endpoint = |node: &&str| Endpoint {
        address: [10, 244, 1, 1].into(),
        node: Some((*node).into()),
        conditions: Conditions::READY,
        hints: None,
    };
    let endpoints = with_endpoints.iter().map(endpoint).collect();
    let slice = Arc::new(EndpointSlice { family: Family::V4, ports: Default::default(), endpoints });
    cluster.endpoints.insert(service(), Endpoints { slices: [("web-1".into(), slice)].into() });
    World { cluster, authority: Authorities { proxy, ..Authorities::default() }, ..World::empty() }
}

fn problems(subjects: &[&str]) -> ServiceProblems {
    let problem = |subject: &&str| ServiceProblem::new(Cause::Refused, subject, format!("{subject} is refused"));
    let mut table = ServiceProblems::default();
    if !subjects.is_empty() {
        table.insert(service(), subjects.iter().map(problem).collect());
    }
    table
}

/// A run of the task beside an API server.
struct Run {
    server: ApiServer,
    world: watch::Sender<World>,
    problems: watch::Sender<ServiceProblems>,
    _task: tokio::task::JoinHandle<()>,
}

impl Run {
    async fn start(known: World) -> Run {
        let server = ApiServer::start().await;
        server.put(IN_SHOP, json!({"metadata": {"name": "web", "uid": "uid-1"}}));
        let (world, world_in) = watch::channel(known);
        let (problems, source) = watch::channel(ServiceProblems::default());
        // A part of the program that does not run ends none of the others.
        let (_, of_a_part_that_does_not_run) = watch::channel(ServiceProblems::default());
        let events = events(&server, QUICK).await;
        let inputs = Inputs {
            world: world_in,
            sources: vec![of_a_part_that_does_not_run, source],
            node: "node-1".to_owned(),
            knows_nodes: true,
            settle: SETTLE,
        };
        Run { server, world, problems, _task: tokio::spawn(run(inputs, events)) }
    }

    /// The number of Events that were sent in a while.
    async fn sent(&self) -> usize {
        tokio::time::sleep(SETTLE * 10).await;
        self.server.take_requests().iter().filter(|request| request.contains("/events")).count()
    }
}

#[tokio::test]
async fn a_problem_becomes_one_event_and_what_is_added_another() {
    let run = Run::start(world(&["node-1"], &[], Authority::Complete)).await;
    run.problems.send_replace(problems(&["203.0.113.1"]));
    assert_eq!(run.sent().await, 1);
    run.problems.send_replace(problems(&["203.0.113.1", "203.0.113.2"]));
    assert_eq!(run.sent().await, 1);
    assert_eq!(run.sent().await, 0, "nothing is repeated");
}

#[tokio::test]
async fn nothing_is_told_before_the_cluster_is_known() {
    let nothing = World::empty();
    let partial = world(&["node-1"], &["node-1"], Authority::Partial);
    for known in [nothing, partial] {
        let run = Run::start(known).await;
        run.problems.send_replace(problems(&["203.0.113.1", "203.0.113.2"]));
        assert_eq!(run.sent().await, 0);
        run.world.send_replace(world(&["node-1"], &[], Authority::Complete));
        run.problems.send_replace(problems(&["203.0.113.2"]));
        assert_eq!(run.sent().await, 1, "what has ended until then is not told");
    }
}

#[tokio::test]
async fn of_what_each_node_finds_for_itself_a_node_tells_little() {
    let run = Run::start(world(&["node-1"], &[], Authority::Complete)).await;
    let subjects: Vec<String> = (0..8).map(|number| format!("port {number}")).collect();
    let of = |subject: &String| ServiceProblem::new(Cause::HealthCheckPort, subject, subject.clone());
    let mut table = ServiceProblems::default();
    table.insert(service(), subjects.iter().map(of).collect());
    run.problems.send_replace(table);
    let mut sent = 0;
    for _ in 0..3 {
        sent += run.sent().await;
    }
    assert_eq!(sent, MOST_OF_ONE_NODE);
}

#[tokio::test]
async fn an_event_that_the_server_has_already_counts_as_told() {
    let run = Run::start(world(&["node-1"], &[], Authority::Complete)).await;
    run.server.set_faults(Faults { forbid: Some("/events"), forbid_as: Some(409), ..Faults::default() });
    run.problems.send_replace(problems(&["203.0.113.1"]));
    assert_eq!(run.sent().await, 1);
    assert_eq!(run.sent().await, 0);
}

#[tokio::test]
async fn a_node_that_others_tell_for_asks_nobody() {
    let nodes: Vec<String> = (1..=50).map(|number| format!("node-{number}")).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    assert_eq!(rank(&service(), "node-1", &sorted(nodes.iter().copied())), None, "the test is about such a node");
    let run = Run::start(world(&nodes, &["node-1"], Authority::Complete)).await;
    run.problems.send_replace(problems(&["203.0.113.1"]));
    tokio::time::sleep(SETTLE * 10).await;
    assert_eq!(run.server.take_requests(), Vec::<String>::new());
}

#[test]
fn exactly_one_node_tells_first_and_two_stand_in_whichever_service_it_is() {
    for count in [1, 2, 3, 10, 5000] {
        let nodes: Vec<String> = (0..count).map(|number| format!("node-{number}")).collect();
        let ring = sorted(nodes.iter().map(String::as_str));
        let mut tellers: BTreeMap<String, usize> = BTreeMap::new();
        for number in 0..30 {
            let service = ObjectName::new("shop", &format!("web-{number}"));
            let mut ranks: Vec<u32> = Vec::new();
            for node in &nodes {
                let rank = rank(&service, node, &ring);
                ranks.extend(rank);
                if rank == Some(0) {
                    *tellers.entry(node.clone()).or_default() += 1;
                }
            }
            ranks.sort_unstable();
            let expected: Vec<u32> = (0..3).take(count).collect();
            assert_eq!(ranks, expected, "{count} nodes");
        }
        assert!(count < 10 || tellers.len() > 4, "it is not one node that tells everything: {tellers:?}");
    }
}

#[test]
fn where_not_all_nodes_are_known_those_with_ready_endpoints_tell_and_nobody_else() {
    let inputs = |node: &str| Inputs {
        world: watch::channel(World::empty()).1,
        sources: Vec::new(),
        node: node.to_owned(),
        knows_nodes: false,
        settle: SETTLE,
    };
    let rank_of = |node: &str, world: &World| place(world, &inputs(node), &mut Ring::default(), (&service(), false)).0;
    // Each node knows itself alone.
    let known = |node: &str, with: &[&str]| world(&[node], with, Authority::Complete);
    let with = ["node-2", "node-3", "node-2"];
    let ranks = ["node-1", "node-2", "node-3"].map(|node| rank_of(node, &known(node, &with)));
    assert_eq!(ranks[0], None, "it has no endpoint");
    let mut others = [ranks[1], ranks[2]];
    others.sort_unstable();
    assert_eq!(others, [Some(0), Some(1)]);
    assert_eq!(rank_of("node-1", &known("node-1", &[])), None);
}

#[test]
fn the_ring_follows_nodes_that_come_and_go() {
    let mut ring = Ring::default();
    for nodes in [&["node-1"][..], &["node-1", "node-2"], &["node-2"]] {
        ring.follow(&world(nodes, &[], Authority::Complete).cluster.nodes);
        assert_eq!(ring.places, sorted(nodes.iter().copied()));
    }
}
