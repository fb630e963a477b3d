//! Tunnels of direct server return that are wanted of the pods of this node, as Worlds say.

mod changes;
mod found_pods;
mod policies;
mod problems;
mod wanted;

use super::*;
use crate::config::{Environment, Mistakes, Request, request};
use crate::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, HostAddress, LoadBalancerAddress,
    Node, NodeAddress, NodeAddressKind, Pod, PodUid, ProxyAnnotations, Service, ServicePort, ServiceType,
};
use crate::net::{Family, Protocol};
use crate::observe::health::Health;
use crate::pod_tunnels::machine::LeftOut;
use crate::pod_tunnels::places::KnownPod;

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
    Joined::new(LocalPods::new(proxy, PerFamily { v4: true, v6: false }))
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
    (world.authority.proxy, world.authority.firewall) = (Authority::Complete, Authority::Complete);
    let endpoint =
        Endpoint { address: at("10.244.1.5"), node: Some("node1".into()), conditions: Conditions::READY, hints: None };
    let ports = [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }].into();
    let slice = EndpointSlice { family: Family::V4, ports, endpoints: [endpoint].into_iter().collect() };
    world.cluster.services.insert(web(), service(dsr));
    world.cluster.endpoints.insert(web(), Endpoints { slices: [("slice".into(), Arc::new(slice))].into() });
    world
}

/// The same with the annotation and the pod.
fn with_pod() -> World {
    let mut world = world(true);
    world.cluster.pods.insert(ObjectName::new("shop", "a"), pod("10.244.1.5", 1));
    world
}

fn node(address: &str) -> Node {
    let addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, address: at(address) }];
    Node { addresses, ..Node::default() }
}

fn config_of(words: &[&str]) -> Config {
    let words: Vec<std::ffi::OsString> = std::iter::once(&"sluice").chain(words).map(Into::into).collect();
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    with_tunnels(Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default()))
}
