use std::sync::Arc;

use super::*;
use crate::config::{Config, Environment, Mistakes, ProxyConfig, Request, request};
use crate::kernel::ipvs::ServiceKey;
use crate::model::{Authority, ProxyAnnotations, TrafficPolicy, World};
use crate::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Node, NodeAddress, NodeAddressKind, ServiceType,
};
use crate::net::{PerFamily, Protocol};
use crate::proxy::local_node::LocalNode;
use crate::proxy::other_nodes::OtherNodes;
use crate::proxy::part::{self, Wanted};

/// This node has 192.0.2.1 and the pods 10.244.1.0/24; other nodes have other addresses.
struct Rig {
    node: LocalNode,
    others: OtherNodes,
    config: ProxyConfig,
}

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn rig() -> Rig {
    let words = ["sluice", "--strict-external-ip-validation=false", "--enable-ipv6=true"];
    let words: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
    let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
    let config = Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default());
    let node = LocalNode {
        name: "node1".into(),
        families: PerFamily { v4: true, v6: true },
        address: PerFamily { v4: Some(at("192.0.2.1")), v6: None },
        pod_cidrs: PerFamily { v4: vec!["10.244.1.0/24".parse().expect("a range")], v6: Vec::new() },
        ..LocalNode::default()
    };
    let mut world = World::empty();
    world.host = Arc::new(crate::model::Host { node_name: "node1".into(), ..Default::default() });
    let addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, address: at("192.0.2.2") }];
    world.cluster.nodes.insert("node2".into(), Node { addresses, ..Node::default() });
    let mut others = OtherNodes::default();
    world.authority.proxy = Authority::Complete;
    others.note_known(&world);
    others.update([&World::empty(), &world], [&node, &node]);
    let config = ProxyConfig { tunnel_mode: true, ..config.proxy.expect("it runs") };
    Rig { node, others, config }
}

impl Rig {
    fn inputs(&self) -> PartInputs<'_> {
        PartInputs { node: &self.node, others: &self.others, config: &self.config, untunnelled: None }
    }
}

const PORT: u16 = 8080;

/// A Service with the annotation and an address of each family, whose port 8080 leads to this one of these endpoints: address and node.
fn service() -> Service {
    Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![at("10.96.0.1"), at("fd00:96::1")],
        external_ips: vec![at("203.0.113.7"), at("2001:db8::7")],
        load_balancer: Vec::new(),
        source_ranges: None,
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: PORT, node_port: None }].into(),
        affinity_seconds: None,
        internal_traffic_policy: Default::default(),
        external_traffic_policy: Default::default(),
        health_check_node_port: None,
        annotations: ProxyAnnotations { dsr: true, ..ProxyAnnotations::default() },
        announce: Default::default(),
        created: 0,
    }
}

fn endpoints(target: u16, pods: &[(&str, &str)]) -> Endpoints {
    let slice = |family: Family| {
        let its = pods.iter().filter(|(address, _)| Family::from(at(address)) == family);
        let endpoint = |(address, node): &(&str, &str)| Endpoint {
            address: at(address),
            node: Some((*node).into()),
            conditions: Conditions::READY,
            hints: None,
        };
        EndpointSlice {
            family,
            ports: [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: target }].into(),
            endpoints: its.map(endpoint).collect(),
        }
    };
    let slices = Family::BOTH.map(|family| (family.to_string().into(), Arc::new(slice(family))));
    Endpoints { slices: slices.into() }
}

fn named(found: Vec<Obstacle>) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn tunnels_end_in_the_pods_of_this_node_for_all_external_addresses_of_their_family() {
    let rig = rig();
    let pods = [
        ("10.244.1.7", "node1"),
        ("fd00:10:244:1::7", "node1"),
        ("10.244.2.8", "node2"),
        // On the host's network, here and there.
        ("192.0.2.1", "node1"),
        ("192.0.2.2", "node1"),
    ];
    let mut service = service();
    let found = pod_addresses(&service, &endpoints(PORT, &pods), rig.inputs());
    let expected = [("10.244.1.7", "203.0.113.7"), ("fd00:10:244:1::7", "2001:db8::7")];
    assert_eq!(found, expected.map(|(pod, address)| (at(pod), BTreeSet::from([at(address)]))).into());
    // Served by the other node alone, whose packets come here all the same.
    service.external_ips = vec![at("192.0.2.2")];
    let found = pod_addresses(&service, &endpoints(PORT, &pods), rig.inputs());
    assert_eq!(found, [(at("10.244.1.7"), BTreeSet::from([at("192.0.2.2")]))].into());
    service.annotations.dsr = false;
    assert_eq!(pod_addresses(&service, &endpoints(PORT, &pods), rig.inputs()), PodAddresses::new());
}

#[test]
fn a_port_that_endpoints_do_not_have_is_served_with_nat_and_named() {
    let rig = rig();
    let (service, address) = (service(), at("203.0.113.7"));
    let port = &service.ports[0];
    let uses = |endpoints: &Endpoints| uses_tunnel(&service, endpoints, port, address, rig.inputs());
    let same = endpoints(PORT, &[("10.244.1.7", "node1")]);
    let other = endpoints(80, &[("10.244.1.7", "node1")]);
    assert!(uses(&same) && uses(&Endpoints::default()) && !uses(&other));
    assert_eq!(named(obstacles(&service, &same, rig.inputs())), [""; 0]);
    assert_eq!(
        named(obstacles(&service, &other, rig.inputs())),
        ["port 8080 is served with NAT, because its targetPort is 80: a tunnel does not change ports"]
    );
    assert_eq!(pod_addresses(&service, &other, rig.inputs()), PodAddresses::new());
}

#[test]
fn a_port_with_nat_beside_one_with_tunnels_is_out_of_reach_for_the_pods_and_that_is_said() {
    let rig = rig();
    let mut service = service();
    let more = ServicePort { name: "https".into(), protocol: Protocol::Tcp, port: 443, node_port: None };
    service.ports = service.ports.iter().cloned().chain([more]).collect();
    let mut endpoints = endpoints(PORT, &[("10.244.1.7", "node1")]);
    let more = EndpointPort { name: "https".into(), protocol: Protocol::Tcp, port: 8443 };
    let of_both = endpoints.slices.iter().map(|(name, slice)| {
        let ports = slice.ports.iter().cloned().chain([more.clone()]).collect();
        (name.clone(), Arc::new(EndpointSlice { ports, family: slice.family, endpoints: slice.endpoints.clone() }))
    });
    endpoints = Endpoints { slices: of_both.collect() };
    let expected = "port 443 is served with NAT, because its targetPort is 8443: a tunnel does not change ports; pods that answer for the \
                    Service's other ports do not reach it at addresses that they have for these";
    assert_eq!(named(obstacles(&service, &endpoints, rig.inputs())), [expected]);
    // What it is about: the pod has the address as its own.
    let has = pod_addresses(&service, &endpoints, rig.inputs());
    assert!(has[&at("10.244.1.7")].contains(&at("203.0.113.7")));
}

#[test]
fn pods_on_the_hosts_network_get_no_packets_through_tunnels_and_are_named() {
    let rig = rig();
    let pods = [("10.244.1.7", "node1"), ("192.0.2.1", "node1"), ("192.0.2.2", "node2")];
    let (all, those) = (endpoints(PORT, &pods), endpoints(PORT, &pods[..1]));
    assert_eq!(*that_end_tunnels(&all, rig.inputs()), those);
    assert!(matches!(that_end_tunnels(&those, rig.inputs()), Cow::Borrowed(_)), "nothing is copied");
    let named = named(obstacles(&service(), &endpoints(PORT, &pods), rig.inputs()));
    let of = |address| {
        format!("endpoint {address} gets no connections through tunnels, because it is on the host's network")
    };
    assert_eq!(named, ["192.0.2.1", "192.0.2.2"].map(of));
}

#[test]
fn an_address_of_this_host_is_served_with_nat_and_named() {
    let rig = rig();
    let service = Service { external_ips: vec![at("192.0.2.1")], ..service() };
    let same = endpoints(PORT, &[("10.244.1.7", "node1")]);
    assert!(!uses_tunnel(&service, &same, &service.ports[0], at("192.0.2.1"), rig.inputs()));
    assert_eq!(pod_addresses(&service, &same, rig.inputs()), PodAddresses::new());
    let expected = ["address 192.0.2.1 is served with NAT, because it is this host's own"];
    assert_eq!(named(obstacles(&service, &same, rig.inputs())), expected);
}

#[test]
fn an_address_that_moves_between_hosts_keeps_the_pods_of_its_present_one_out_and_that_is_said() {
    let mut rig = rig();
    rig.node.addresses.extend([at("203.0.113.7"), at("2001:db8::7")]);
    let own = |address: &str| format!("address {address} is served with NAT, because it is this host's own");
    let lost = "; pods of this node do not answer for it, and what other nodes that serve it too send them through tunnels is lost";
    let both = ["203.0.113.7", "2001:db8::7"];
    let pods = |node| endpoints(PORT, &[("10.244.1.7", node), ("fd00:10:244:1::7", node)]);
    let told = |endpoints: &Endpoints| named(obstacles(&service(), endpoints, rig.inputs()));
    assert_eq!(told(&pods("node1")), both.map(|address| own(address) + lost));
    assert_eq!(told(&pods("node2")), both.map(own), "the pods are elsewhere");
    let on_the_host = told(&endpoints(PORT, &[("192.0.2.1", "node1")]));
    assert!(on_the_host.contains(&own(both[0])), "no pod has a tunnel there: {on_the_host:?}");
}

#[test]
fn endpoints_on_the_hosts_network_serve_clients_outside_with_nat_where_no_pod_does() {
    let rig = rig();
    let served = |policy, pods: &[(&str, &str)]| {
        let mut service = service();
        service.external_traffic_policy = policy;
        let claims = part::part(&service, &endpoints(PORT, pods), rig.inputs()).claims;
        let key = ServiceKey::Address { address: at("203.0.113.7"), protocol: Protocol::Tcp, port: PORT };
        let wanted = claims.into_iter().find(|claim| claim.key == key).expect("it is claimed").wanted;
        let destinations = wanted.virtual_service.destinations.iter().map(|one| one.address.ip().to_string());
        (wanted.is_tunnelled, wanted.clients.inside_only, destinations.collect::<Vec<_>>().join(" "))
    };
    let (own, others) = (("192.0.2.1", "node1"), ("192.0.2.2", "node2"));
    let (pod, far) = (("10.244.1.7", "node1"), ("10.244.2.8", "node2"));
    let (nat, tunnel) = (false, true);
    for (policy, pods, expected) in [
        (TrafficPolicy::Local, &[own, far][..], (nat, false, "192.0.2.1")),
        (TrafficPolicy::Local, &[own, pod, far], (tunnel, false, "10.244.1.7")),
        (TrafficPolicy::Local, &[far, others], (tunnel, true, "10.244.2.8")),
        (TrafficPolicy::Cluster, &[own, others], (nat, false, "192.0.2.1 192.0.2.2")),
        (TrafficPolicy::Cluster, &[own, far], (tunnel, false, "10.244.2.8")),
        (TrafficPolicy::Cluster, &[], (tunnel, false, "")),
    ] {
        let (is_tunnelled, inside_only, destinations) = expected;
        assert_eq!(served(policy, pods), (is_tunnelled, inside_only, destinations.to_owned()), "{policy:?} {pods:?}");
    }
}

#[test]
fn a_pod_of_this_node_without_a_tunnel_is_left_out_and_served_with_nat_where_nobody_else_can_be_reached() {
    let rig = rig();
    let served = |policy, lacking: &str, pods: &[(&str, &str)]| {
        let mut service = service();
        service.external_traffic_policy = policy;
        let lacking: BTreeSet<IpAddr> = lacking.split_whitespace().map(at).collect();
        let inputs = PartInputs { untunnelled: Some(&lacking), ..rig.inputs() };
        let claims = part::part(&service, &endpoints(PORT, pods), inputs).claims;
        let at_address = |text| {
            let key = ServiceKey::Address { address: at(text), protocol: Protocol::Tcp, port: PORT };
            claims.iter().find(|claim| claim.key == key).expect("it is claimed").wanted.clone()
        };
        let wanted = at_address("203.0.113.7");
        let of = |wanted: &Wanted| -> Vec<String> {
            wanted.virtual_service.destinations.iter().map(|one| one.address.ip().to_string()).collect()
        };
        assert_eq!(of(&at_address("10.96.0.1")).len(), pods.len(), "a cluster IP is served with NAT in any case");
        (wanted.is_tunnelled, wanted.clients.inside_only, of(&wanted).join(" "))
    };
    let (one, other, far) = (("10.244.1.7", "node1"), ("10.244.1.8", "node1"), ("10.244.2.8", "node2"));
    let (nat, tunnel) = (false, true);
    for (policy, lacking, pods, expected) in [
        (TrafficPolicy::Cluster, "", &[one, other, far][..], (tunnel, false, "10.244.1.7 10.244.1.8 10.244.2.8")),
        (TrafficPolicy::Cluster, "10.244.1.7", &[one, other, far], (tunnel, false, "10.244.1.8 10.244.2.8")),
        (TrafficPolicy::Cluster, "10.244.1.7 10.244.1.8", &[one, other, far], (tunnel, false, "10.244.2.8")),
        (TrafficPolicy::Cluster, "10.244.1.7 10.244.1.8", &[one, other], (nat, false, "10.244.1.7 10.244.1.8")),
        (TrafficPolicy::Local, "10.244.1.7", &[one, other, far], (tunnel, false, "10.244.1.8")),
        (TrafficPolicy::Local, "10.244.1.7 10.244.1.8", &[one, other, far], (nat, false, "10.244.1.7 10.244.1.8")),
    ] {
        let (is_tunnelled, inside_only, destinations) = expected;
        let expected = (is_tunnelled, inside_only, destinations.to_owned());
        assert_eq!(served(policy, lacking, pods), expected, "{policy:?}, without {lacking}");
    }
}
