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
            of: Subjects::Services,
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

/// Problems that each node finds for itself, twice as many as it tells.
fn of_one_node() -> ServiceProblems {
    let subjects: Vec<String> = (0..2 * MOST_OF_ONE_NODE).map(|number| format!("port {number}")).collect();
    let of = |subject: &String| ServiceProblem::new(Cause::HealthCheckPort, subject, subject.clone());
    let mut table = ServiceProblems::default();
    table.insert(service(), subjects.iter().map(of).collect());
    table
}

/// Those problems, each with its name.
fn keys() -> Vec<Key> {
    let table = of_one_node();
    let (name, all) = table.iter().next().expect("one Service");
    all.iter().map(|problem| (name.clone(), problem.clone())).collect()
}

#[test]
fn what_the_server_did_not_take_makes_room_long_before_what_was_told() {
    let begin = Instant::now();
    let keys = keys();
    let (tried, next) = (&keys[..MOST_OF_ONE_NODE], &keys[MOST_OF_ONE_NODE]);
    for (outcome, room_after) in [(Outcome::Told, HOUR), (Outcome::Failed, UNTOLD)] {
        let mut places = OwnPlaces::default();
        assert_eq!(places.full_until(next, begin), None);
        tried.iter().for_each(|key| places.take(key, &outcome, begin));
        assert_eq!(places.full_until(next, begin), Some(begin + room_after));
        assert_eq!(places.full_until(next, begin + room_after), None);
    }
}

#[test]
fn a_problem_that_fails_again_and_again_takes_one_place_and_what_its_namespace_forbids_takes_none() {
    let begin = Instant::now();
    let keys = keys();
    let mut places = OwnPlaces::default();
    for attempt in 0..10 {
        places.take(&keys[0], &Outcome::Failed, begin + Duration::from_secs(attempt));
        places.take(&keys[1], &Outcome::Forbidden(begin + HOUR), begin);
    }
    assert_eq!(places.full_until(&keys[2], begin), None);
    (2..=MOST_OF_ONE_NODE).for_each(|number| places.take(&keys[number], &Outcome::Failed, begin));
    assert_eq!(places.full_until(&keys[0], begin), None, "it has its place");
    assert_eq!(places.full_until(&keys[1], begin), Some(begin + UNTOLD));
    places.take(&keys[0], &Outcome::Told, begin);
    assert_eq!(places.full_until(&keys[2], begin), None, "what is told at last has one place");
}

#[tokio::test]
async fn a_server_that_takes_nothing_is_asked_for_as_few_as_one_that_does() {
    let run = Run::start(world(&["node-1"], &[], Authority::Complete)).await;
    run.server.set_faults(Faults { forbid: Some("/events"), forbid_as: Some(500), ..Faults::default() });
    run.problems.send_replace(of_one_node());
    assert_eq!(run.sent().await, MOST_OF_ONE_NODE);
}

#[tokio::test]
async fn of_what_each_node_finds_for_itself_a_node_tells_little() {
    let run = Run::start(world(&["node-1"], &[], Authority::Complete)).await;
    run.problems.send_replace(of_one_node());
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

/// The inputs of a node that does not read the others.
fn inputs(node: &str) -> Inputs {
    Inputs {
        of: Subjects::Services,
        world: watch::channel(World::empty()).1,
        sources: Vec::new(),
        node: node.to_owned(),
        knows_nodes: false,
        settle: SETTLE,
    }
}

#[test]
fn where_not_all_nodes_are_known_those_with_ready_endpoints_tell_and_nobody_else() {
    let rank_of = |node: &str, world: &World| place(world, &inputs(node), &mut Rings::default(), &service(), false).0;
    // Each node knows itself alone.
    let known = |node: &str, with: &[&str]| world(&[node], with, Authority::Complete);
    let with = ["node-2", "node-3", "node-2"];
    let ranks = ["node-1", "node-2", "node-3"].map(|node| rank_of(node, &known(node, &with)));
    assert_eq!(ranks[0], None, "it has no endpoint");
    let mut others = [ranks[1], ranks[2]];
    others.sort_unstable();
    assert_eq!(others, [Some(0), Some(1)]);
    assert_eq!(rank_of("node-1", &known("node-1", &[])), None, "no endpoint in the whole cluster names a node");
}

#[test]
fn of_a_service_without_ready_endpoints_nodes_with_endpoints_of_others_tell() {
    let nodes = ["node-1", "node-2", "node-3", "node-4"];
    let mut of_others = world(&[], &nodes[1..], Authority::Complete);
    let others = of_others.cluster.endpoints.get(&service()).expect("they were put").as_ref().clone();
    of_others.cluster.endpoints.remove(&service());
    of_others.cluster.endpoints.insert(ObjectName::new("kube-system", "dns"), others);
    let rank_of = |node: &str| place(&of_others, &inputs(node), &mut Rings::default(), &service(), false).0;
    let mut ranks = nodes.map(rank_of);
    assert_eq!(ranks[0], None, "no endpoint names it");
    ranks.sort_unstable();
    assert_eq!(ranks, [None, Some(0), Some(1), Some(2)]);
    let mut ring = RingOfEndpoints::default();
    let now = Instant::now();
    ring.follow(&of_others.cluster.endpoints, now);
    ring.follow(&Table::default(), now + LOOK_AT_ENDPOINTS / 2);
    assert_eq!(ring.places.len(), 3, "not all endpoints are looked through for each Event");
    ring.follow(&Table::default(), now + LOOK_AT_ENDPOINTS);
    assert!(ring.places.is_empty());
}

#[test]
fn the_ring_follows_nodes_that_come_and_go() {
    let mut ring = Ring::default();
    for nodes in [&["node-1"][..], &["node-1", "node-2"], &["node-2"]] {
        ring.follow(&world(nodes, &[], Authority::Complete).cluster.nodes);
        assert_eq!(ring.places, sorted(nodes.iter().copied()));
    }
}

#[tokio::test]
async fn what_is_not_understood_of_a_policy_becomes_an_event_of_it() {
    let server = ApiServer::start().await;
    let of_policies = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies";
    let of_cluster = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
    server.put(of_policies, json!({"metadata": {"name": "web", "uid": "uid-1"}}));
    server.put(of_cluster, json!({"metadata": {"name": "guard", "uid": "uid-2"}}));
    let mut known = world(&["node-1"], &[], Authority::Nothing);
    known.authority.firewall = Authority::Partial;
    let problem = |text: &str| ServiceProblem::new(Cause::Policy, text, text.to_owned());
    known.policy_problems.insert(ObjectName::new("shop", "web"), vec![problem("spec.podSelector: is odd")]);
    let (out, world_in) = watch::channel(known.clone());
    let events = events(&server, QUICK).await;
    let inputs = Inputs {
        of: Subjects::Policies,
        sources: vec![of_policies_in(&world_in)],
        world: world_in,
        node: "node-1".to_owned(),
        knows_nodes: true,
        settle: SETTLE,
    };
    tokio::spawn(run(inputs, events));
    let asked = async || {
        tokio::time::sleep(SETTLE * 10).await;
        server.take_requests()
    };
    assert_eq!(asked().await, [""; 0], "policies are not known completely");
    known.authority.firewall = Authority::Complete;
    out.send_replace(known.clone());
    assert_eq!(asked().await, [format!("{of_policies}/web"), "/api/v1/namespaces/shop/events?".to_owned()]);
    known.policy_problems.insert(ObjectName::new("", "guard"), vec![problem("spec.egress[0]: is not supported")]);
    out.send_replace(known.clone());
    let newest = of_cluster.replace("v1alpha2", "v1beta1");
    let expected =
        [format!("{newest}/guard"), format!("{of_cluster}/guard"), "/api/v1/namespaces/default/events?".into()];
    assert_eq!(asked().await, expected);
    known.policy_problems = Default::default();
    out.send_replace(known);
    assert_eq!(asked().await, [""; 0]);
}

fn of_policies_in(world: &watch::Receiver<World>) -> watch::Receiver<ServiceProblems> {
    super::of_policies(world.clone())
}
