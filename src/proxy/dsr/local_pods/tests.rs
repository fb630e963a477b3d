use super::*;
use crate::config::{Config, Environment, Mistakes, Request, request};
use crate::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Host, Node, NodeAddress, NodeAddressKind,
    ProxyAnnotations, Service, ServicePort, ServiceType,
};
use crate::net::{Family, Protocol};

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn config() -> Arc<ProxyConfig> {
    let words: Vec<std::ffi::OsString> =
        ["sluice", "--strict-external-ip-validation=false"].iter().map(Into::into).collect();
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let config = Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default());
    Arc::new(config.proxy.expect("it runs"))
}

fn local_pods() -> LocalPods {
    LocalPods::new(config(), PerFamily { v4: true, v6: false })
}

fn name(number: u64) -> ObjectName {
    ObjectName::new("shop", &format!("web-{number}"))
}

fn service(number: u64, dsr: bool) -> Service {
    Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![at(&format!("10.96.0.{}", number + 1))],
        external_ips: vec![at(&format!("203.0.113.{}", number + 1))],
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

/// Pods of this node, by the last byte of their addresses.
fn endpoints(pods: impl Iterator<Item = u64>) -> Endpoints {
    let endpoint = |number: u64| Endpoint {
        address: at(&format!("10.244.1.{number}")),
        node: Some("node1".into()),
        conditions: Conditions::READY,
        hints: None,
    };
    let ports = [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }].into();
    let slice = EndpointSlice { family: Family::V4, ports, endpoints: pods.map(endpoint).collect() };
    Endpoints { slices: [("slice".into(), Arc::new(slice))].into() }
}

fn node(address: &str) -> Node {
    let addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, address: at(address) }];
    Node { addresses, ..Node::default() }
}

fn world() -> World {
    let mut world = World::empty();
    world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
    world.authority.proxy = Authority::Complete;
    world.cluster.nodes.insert("node1".into(), node("192.0.2.1"));
    world
}

fn lines(pods: &LocalPods) -> Vec<String> {
    let line = |(pod, addresses): (&IpAddr, &BTreeSet<IpAddr>)| {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        format!("{pod}: {}", addresses.join(" "))
    };
    pods.all().iter().map(line).collect()
}

#[test]
fn pods_of_this_node_answer_for_the_addresses_of_all_their_services() {
    let (mut pods, mut world) = (local_pods(), world());
    world.cluster.services.insert(name(1), service(1, false));
    world.cluster.endpoints.insert(name(1), endpoints([5].into_iter()));
    assert!(!pods.follow(&world), "without the annotation nothing is wanted");
    world.cluster.services.insert(name(1), service(1, true));
    world.cluster.services.insert(name(2), service(2, true));
    world.cluster.endpoints.insert(name(2), endpoints([5, 6].into_iter()));
    assert!(pods.follow(&world));
    assert_eq!(lines(&pods), ["10.244.1.5: 203.0.113.2 203.0.113.3", "10.244.1.6: 203.0.113.3"]);
    let of: Vec<String> =
        pods.of_pod(at("10.244.1.5")).map(|(name, _, created)| format!("{} {created}", name.name)).collect();
    assert_eq!(of, ["web-1 7", "web-2 7"]);
    // An address of a pod that turns out to be a node's is that of a pod on the host's network.
    world.cluster.nodes.insert("node2".into(), node("10.244.1.6"));
    assert!(pods.follow(&world));
    assert_eq!(lines(&pods), ["10.244.1.5: 203.0.113.2 203.0.113.3"]);
    world.cluster.services.remove(&name(2));
    world.cluster.services.insert(name(1), service(1, false));
    assert!(pods.follow(&world) && lines(&pods).is_empty());
}

#[test]
fn after_any_history_it_is_what_the_newest_world_says() {
    for seed in 0..200_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut chance = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut pods, mut world) = (local_pods(), world());
        for _ in 0..30 {
            let which = chance(3);
            match chance(6) {
                0 => drop(world.cluster.services.remove(&name(which))),
                1 | 2 => drop(world.cluster.services.insert(name(which), service(which, chance(3) > 0))),
                3 => {
                    let from = chance(4);
                    world.cluster.endpoints.insert(name(which), endpoints(from..from + chance(3)));
                }
                4 => drop(world.cluster.nodes.insert("node2".into(), node(&format!("10.244.1.{}", chance(5))))),
                _ => drop(world.cluster.nodes.remove(&"node2".into())),
            }
            if chance(3) == 0 {
                continue;
            }
            let before = pods.all();
            let differs = pods.follow(&world);
            assert!(differs || before == pods.all(), "seed {seed}: a change is told");
            let mut fresh = local_pods();
            fresh.follow(&world);
            assert_eq!(pods.all(), fresh.all(), "seed {seed}");
            for pod in (0..10).map(|last| at(&format!("10.244.1.{last}"))) {
                let asks = |(name, its): (&ObjectName, &PodAddresses)| its.contains_key(&pod).then(|| name.clone());
                let expected: Vec<ObjectName> = pods.services().filter_map(asks).collect();
                assert_eq!(pods.of_pod(pod).map(|(name, ..)| name.clone()).collect::<Vec<_>>(), expected);
            }
        }
    }
}
