use std::time::Duration;

use super::*;
use crate::config::{Environment, Mistakes, Request, request};
use crate::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, PodUid, ProxyAnnotations, Service, ServicePort,
    ServiceType,
};
use crate::net::{Family, Protocol};
use crate::pod_tunnels::machine::LeftOut;

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

fn joined() -> Joined {
    let words: Vec<std::ffi::OsString> =
        ["sluice", "--strict-external-ip-validation=false"].iter().map(Into::into).collect();
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let config = Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default());
    let proxy = Arc::new(config.proxy.expect("it runs"));
    Joined { pods: LocalPods::new(proxy, PerFamily { v4: true, v6: false }), known: NodePods::default() }
}

fn service(dsr: bool) -> Service {
    Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![at("10.96.0.1")],
        external_ips: vec![at("203.0.113.7")],
        load_balancer: Vec::new(),
        source_ranges: None,
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into(),
        affinity_seconds: None,
        internal_traffic_policy: Default::default(),
        external_traffic_policy: Default::default(),
        health_check_node_port: None,
        annotations: ProxyAnnotations { dsr, ..ProxyAnnotations::default() },
        announce: Default::default(),
        created: 7,
    }
}

fn pod(address: &str, uid: u32) -> Pod {
    Pod {
        uid: PodUid::from_number(uid),
        labels: Default::default(),
        addresses: vec![at(address)].into(),
        node: Some("node1".into()),
        host_network: false,
        finished: false,
        ports: Default::default(),
    }
}

/// The Service `web`, with one pod of this node.
fn world(dsr: bool) -> World {
    let mut world = World::empty();
    world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
    world.authority.proxy = Authority::Complete;
    let endpoint =
        Endpoint { address: at("10.244.1.5"), node: Some("node1".into()), conditions: Conditions::READY, hints: None };
    let ports = [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }].into();
    let slice = EndpointSlice { family: Family::V4, ports, endpoints: [endpoint].into_iter().collect() };
    world.cluster.services.insert(web(), service(dsr));
    world.cluster.endpoints.insert(web(), Endpoints { slices: [("slice".into(), Arc::new(slice))].into() });
    world
}

#[test]
fn nothing_is_wanted_without_the_annotation_and_pods_are_known_where_they_are_watched() {
    let (mut joined, nothing) = (joined(), Wanted::default());
    assert_eq!(joined.wanted(&World::empty(), &nothing), None, "nothing is known");
    let wanted = joined.wanted(&world(false), &nothing).expect("now the cluster is");
    assert_eq!(wanted, Wanted { complete: true, ..Wanted::default() });
    let mut world = world(true);
    let wanted = joined.wanted(&world, &wanted).expect("a pod");
    let tunnels = [(at("10.244.1.5"), [at("203.0.113.7")].into())].into();
    assert_eq!(wanted, Wanted { tunnels, pods: KnownPods::new(), complete: true });
    assert_eq!(joined.wanted(&world, &wanted), None);
    // Of the pods only those that end tunnels are told, also where two have the address for a moment.
    for (name, pod) in [("a", pod("10.244.1.5", 1)), ("b", pod("10.244.1.6", 2)), ("c", pod("10.244.1.5", 3))] {
        world.cluster.pods.insert(ObjectName::new("shop", name), pod);
    }
    let known = |wanted: &Wanted| -> Vec<String> {
        let pods = wanted.pods.get(&at("10.244.1.5")).into_iter().flatten();
        pods.map(|pod| format!("{} {:?}", pod.name.name, pod.uid.map(PodUid::number))).collect()
    };
    let wanted = joined.wanted(&world, &wanted).expect("pods are known");
    assert_eq!((known(&wanted), wanted.pods.len()), (vec!["a Some(1)".to_owned(), "c Some(3)".to_owned()], 1));
    world.cluster.pods.insert(ObjectName::new("shop", "a"), Pod { finished: true, ..pod("10.244.1.5", 1) });
    world.cluster.pods.insert(ObjectName::new("shop", "c"), pod("10.244.1.5", 4));
    let wanted = joined.wanted(&world, &wanted).expect("another pod");
    assert_eq!(known(&wanted), ["c Some(4)"]);
    world.cluster.services.remove(&web());
    world.authority.proxy = Authority::Partial;
    assert_eq!(joined.wanted(&world, &wanted), Some(Wanted::default()));
}

#[test]
fn a_pod_that_cannot_be_set_up_is_a_problem_of_its_services() {
    let mut joined = joined();
    joined.wanted(&world(true), &Wanted::default());
    let left_out = |pod: &str| LeftOut {
        pod: at(pod),
        services: [at("203.0.113.7")].into(),
        reason: "no container runtime answers".to_owned(),
    };
    let standing = Standing { left_out: vec![left_out("10.244.1.5"), left_out("10.244.1.9")], ..Standing::default() };
    let problems = joined.problems(&standing);
    let problem = &problems.get(&web()).expect("it is named")[0];
    assert_eq!(
        problem.text,
        "pod 10.244.1.5 does not answer for 203.0.113.7 (direct server return): no container runtime answers"
    );
    assert_eq!((problem.cause.reason(), &*problem.subject, problem.created), ("PodTunnelMissing", "pod 10.244.1.5", 7));
    assert!(joined.problems(&Standing::default()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_and_what_cannot_be_set_up_go_both_ways() {
    let (world_out, world_in) = watch::channel(World::empty());
    let (wanted, mut wanted_in) = watch::channel(Arc::default());
    let (standing, standing_in) = watch::channel(Arc::default());
    let (problems, mut problems_in) = watch::channel(ServiceProblems::default());
    let following = tokio::spawn(follow(joined(), world_in, wanted, standing_in, problems));
    world_out.send_replace(world(true));
    wanted_in.changed().await.expect("it is told");
    assert_eq!(wanted_in.borrow().tunnels.len(), 1);
    let left_out = LeftOut { pod: at("10.244.1.5"), services: Default::default(), reason: "why".to_owned() };
    standing.send_replace(Arc::new(Standing { left_out: vec![left_out], ..Standing::default() }));
    problems_in.changed().await.expect("it is told");
    assert_eq!(problems_in.borrow_and_update().len(), 1);
    standing.send_replace(Arc::default());
    problems_in.changed().await.expect("it is told");
    assert!(problems_in.borrow_and_update().is_empty());
    // The thread of the pods ends before the World does.
    drop(standing);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world_out.send_replace(world(false));
    wanted_in.changed().await.expect("it is told");
    drop(world_out);
    following.await.expect("it ends");
}
