//! A cluster with something of everything, as the files of earlier programs hold it.

use super::*;

/// A cluster in which every field that was ever written says something; a field that comes later is left as it is
/// where nothing is said.
pub(super) fn sample() -> Known {
    let mut cluster = Cluster::default();
    sample_services(&mut cluster);
    sample_slices(&mut cluster);
    sample_nodes(&mut cluster);
    sample_pods(&mut cluster);
    sample_policies(&mut cluster);
    Known { cluster, kinds: Kind::ALL.to_vec(), all_nodes: true }
}

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn network(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn sample_services(cluster: &mut Cluster) {
    let plain = Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![at("10.96.0.10")],
        external_ips: vec![],
        load_balancer: vec![],
        source_ranges: None,
        ports: [ServicePort { name: "".into(), protocol: Protocol::Udp, port: 53, node_port: None }].into(),
        affinity_seconds: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        annotations: ProxyAnnotations::default(),
        announce: AnnounceAnnotations::default(),
        created: 0,
    };
    let full = Service {
        kind: ServiceType::LoadBalancer,
        cluster_ips: vec![at("10.96.0.11"), at("fd00:96::b")],
        external_ips: vec![at("203.0.113.1")],
        load_balancer: vec![
            LoadBalancerAddress { address: at("203.0.113.2"), through_balancer: false },
            LoadBalancerAddress { address: at("2001:db8::2"), through_balancer: true },
        ],
        source_ranges: None,
        ports: [
            ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) },
            ServicePort { name: "sctp".into(), protocol: Protocol::Sctp, port: 3868, node_port: None },
        ]
        .into(),
        affinity_seconds: Some(10800),
        internal_traffic_policy: TrafficPolicy::Local,
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(32000),
        annotations: ProxyAnnotations {
            scheduler: Scheduler::Mh,
            scheduler_flags: SchedulerFlags { flag_1: true, flag_2: false, flag_3: true },
            local: true,
            skip_load_balancer_ips: true,
            dsr: false,
        },
        announce: AnnounceAnnotations { cluster_ips: Some(true), external_ips: Some(false), load_balancer_ips: None },
        created: 1_795_000_000,
    };
    cluster.services.insert(ObjectName::new("kube-system", "dns"), plain.clone());
    cluster.services.insert(ObjectName::new("shop", "web"), full);
    cluster.services.insert(ObjectName::new("shop", "node-port"), Service { kind: ServiceType::NodePort, ..plain });
}

fn sample_slices(cluster: &mut Cluster) {
    let on = |node: Option<&str>, text: &str, [ready, serving, terminating]: [bool; 3]| Endpoint {
        address: at(text),
        node: node.map(Shared::from),
        conditions: Conditions { ready, serving, terminating },
        hints: None,
    };
    let ports: Shared<[EndpointPort]> = [
        EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 },
        EndpointPort { name: "".into(), protocol: Protocol::Udp, port: 53 },
    ]
    .into();
    let v4 = EndpointSlice {
        family: Family::V4,
        ports: ports.clone(),
        endpoints: [
            on(Some("node-1"), "10.244.1.5", [true, true, false]),
            on(Some("node-2"), "10.244.2.5", [false, true, true]),
            on(None, "203.0.113.9", [false, false, false]),
        ]
        .into(),
    };
    let endpoints = [on(Some("node-2"), "fd00:244:2::5", [true, true, false])].into();
    let v6 = EndpointSlice { family: Family::V6, ports, endpoints };
    let slices = [("web-a".into(), Arc::new(v4)), ("web-b".into(), Arc::new(v6))].into_iter().collect();
    cluster.endpoints.insert(ObjectName::new("shop", "web"), Endpoints { slices });
}

fn sample_nodes(cluster: &mut Cluster) {
    let routing = Routing {
        asn: Some(65001),
        reflection: Reflection::Client(Ipv4Addr::new(0, 0, 0, 42)),
        prepend: Some(Prepend { asn: 65001, times: 2 }),
        communities: vec![0xfde9_0001, 7],
        import_reject: vec![network("10.0.0.0/8"), network("fd00::/16")],
        peers: vec![
            ExternalPeer {
                port: Some(1179),
                password: Password::Unknown,
                local: Some(at("192.0.2.1")),
                ..ExternalPeer::new(at("203.0.113.7"), 65002)
            },
            ExternalPeer::new(at("2001:db8::7"), 65003),
        ],
        local_addresses: vec![at("192.0.2.1"), at("2001:db8::1")],
        ..Routing::default()
    };
    let of_node = |kind, text| NodeAddress { kind, address: at(text) };
    let node = Node {
        addresses: vec![
            of_node(NodeAddressKind::External, "203.0.113.20"),
            of_node(NodeAddressKind::Internal, "192.0.2.1"),
        ],
        pod_cidrs: vec![network("10.244.1.0/24"), network("fd00:244:1::/64")],
        routing: Some(Box::new(routing)),
        ..Node::default()
    };
    cluster.nodes.insert("node-1".into(), node);
    let server = Routing { reflection: Reflection::Server(Ipv4Addr::new(10, 0, 0, 1)), ..Routing::default() };
    let node = Node {
        addresses: vec![of_node(NodeAddressKind::Internal, "2001:db8::2")],
        routing: Some(Box::new(server)),
        ..Node::default()
    };
    cluster.nodes.insert("node-2".into(), node);
}

fn sample_pods(cluster: &mut Cluster) {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Labels>();
    let pod = |addresses: &[&str], node: Option<&str>| Pod {
        uid: None,
        labels: labels(&[("app", "web"), ("tier", "front")]),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        node: node.map(Shared::from),
        host_network: false,
        finished: false,
        ports: [NamedPort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 }].into(),
    };
    let web = pod(&["10.244.1.5", "fd00:244:1::5"], Some("node-1"));
    cluster.pods.insert(ObjectName::new("shop", "web-1"), web.clone());
    cluster.pods.insert(ObjectName::new("shop", "web-2"), pod(&["10.244.2.5"], Some("node-2")));
    let alone = Pod { labels: Labels::default(), ports: [].into(), ..pod(&[], None) };
    cluster.pods.insert(ObjectName::new("shop", "unplaced"), alone.clone());
    let host = Pod { host_network: true, ..pod(&["192.0.2.1"], Some("node-1")) };
    cluster.pods.insert(ObjectName::new("kube-system", "agent"), host);
    cluster.pods.insert(ObjectName::new("kube-system", "job"), Pod { finished: true, ..alone });
    cluster.namespaces.insert("shop".into(), Namespace { labels: labels(&[("team", "shop")]), isolated: true });
    cluster.namespaces.insert("kube-system".into(), Namespace::default());
}

fn sample_policies(cluster: &mut Cluster) {
    let requirement = |key: &str, operator| Requirement { key: key.into(), operator };
    let selector: Selector = [
        requirement("app", Operator::In(["api".into(), "web".into()].into())),
        requirement("canary", Operator::DoesNotExist),
        requirement("stage", Operator::NotIn(["test".into()].into())),
        requirement("tier", Operator::Exists),
    ]
    .into_iter()
    .collect();
    let own = Peer::Pods { namespaces: Namespaces::Own, pods: selector.clone() };
    let other = Peer::Pods { namespaces: Namespaces::Selected(selector.clone()), pods: Selector::everything() };
    let block =
        Peer::Block { cidr: network("10.0.0.0/8"), except: [network("10.1.0.0/16"), network("10.2.0.0/16")].into() };
    let port = |protocol, number| PolicyPort { protocol, number };
    let ports = [
        port(Protocol::Tcp, PortMatch::Any),
        port(Protocol::Udp, PortMatch::Range { first: 53, last: 54 }),
        port(Protocol::Sctp, PortMatch::Named("http".into())),
    ];
    let rule = PolicyRule { peers: Peers::Of([own, other, block].into()), ports: Ports::Of(ports.into()) };
    let open = PolicyRule { peers: Peers::Any, ports: Ports::Any };
    let nobody = PolicyRule { peers: Peers::Of([].into()), ports: Ports::Of([].into()) };
    let policy = NetworkPolicy { pods: selector, ingress: Some([rule, open, nobody].into()), egress: None };
    cluster.policies.insert(ObjectName::new("shop", "web"), policy);
    let policy = NetworkPolicy { pods: Selector::everything(), ingress: None, egress: Some([].into()) };
    cluster.policies.insert(ObjectName::new("shop", "closed"), policy);
}
