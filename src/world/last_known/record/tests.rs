use std::net::{IpAddr, Ipv4Addr};

use compact_str::CompactString;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::{
    Action, AnnounceAnnotations, ClusterNetworkPolicy, ClusterRule, Conditions, Endpoint, EndpointPort, EndpointSlice,
    Hints, Labels, LoadBalancerAddress, NamedPort, Namespace, Namespaces, NetworkPolicy, Node, NodeAddress,
    NodeAddressKind, Operator, Peer, Peers, PolicyPort, PolicyRule, PortMatch, Ports, Prepend, ProxyAnnotations,
    Reflection, Requirement, Routing, Scheduler, SchedulerFlags, Selector, Service, ServicePort, ServiceType, Shared,
    Subject, Tier, TrafficPolicy,
};
use crate::net::{ExternalPeer, Family, Password, Protocol, Secret};

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn word() -> impl Strategy<Value = CompactString> {
    "[a-z0-9.-]{0,40}".prop_map(CompactString::from)
}

fn name() -> impl Strategy<Value = ObjectName> {
    (word(), word()).prop_map(|(namespace, name)| ObjectName::of(namespace, name))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    (0..3usize).prop_map(|index| Protocol::ALL[index])
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    any::<bool>().prop_map(|local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster })
}

fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = (word(), protocol(), any::<u16>(), proptest::option::of(1..u16::MAX));
    vec(port.prop_map(|(name, protocol, port, node_port)| ServicePort { name, protocol, port, node_port }), 0..4)
}

prop_compose! {
    fn annotations()(scheduler in 0..Scheduler::ALL.len(), flags in any::<[bool; 5]>()) -> ProxyAnnotations {
        let [flag_1, flag_2, flag_3, local, skip_load_balancer_ips] = flags;
        ProxyAnnotations {
            scheduler: Scheduler::ALL[scheduler],
            scheduler_flags: SchedulerFlags { flag_1, flag_2, flag_3 },
            local,
            skip_load_balancer_ips,
        }
    }
}

prop_compose! {
    fn announce()(said in any::<[Option<bool>; 3]>()) -> AnnounceAnnotations {
        let [cluster_ips, external_ips, load_balancer_ips] = said;
        AnnounceAnnotations { cluster_ips, external_ips, load_balancer_ips }
    }
}

prop_compose! {
    fn service()(
        kind in prop_oneof![Just(ServiceType::ClusterIp), Just(ServiceType::NodePort), Just(ServiceType::LoadBalancer)],
        (cluster_ips, external_ips) in (vec(address(), 1..3), vec(address(), 0..3)),
        balancer in vec((address(), any::<bool>()), 0..3),
        source_ranges in proptest::option::of(vec(range(), 0..3)),
        ports in service_ports(),
        affinity_seconds in any::<Option<u32>>(),
        (internal_traffic_policy, external_traffic_policy) in (policy(), policy()),
        health_check_node_port in any::<Option<u16>>(),
        annotations in annotations(),
        announce in announce(),
        created in any::<i64>(),
    ) -> Service {
        let load_balancer =
            balancer.into_iter().map(|(address, through_balancer)| LoadBalancerAddress { address, through_balancer });
        Service {
            kind, cluster_ips, external_ips, load_balancer: load_balancer.collect(), source_ranges: source_ranges.map(Into::into), ports, affinity_seconds,
            internal_traffic_policy, external_traffic_policy, health_check_node_port, annotations, announce, created,
        }
    }
}

prop_compose! {
    fn hints()(zones in vec(word(), 0..3), nodes in vec(word(), 0..3)) -> Arc<Hints> {
        Arc::new(Hints { zones: zones.into(), nodes: nodes.into() })
    }
}

prop_compose! {
    fn endpoint()(
        address in address(),
        node in proptest::option::of(word()),
        is in any::<[bool; 3]>(),
        hints in proptest::option::of(hints()),
    ) -> Endpoint {
        let [ready, serving, terminating] = is;
        Endpoint {
            address,
            node: node.map(|name| name.as_str().into()),
            conditions: Conditions { ready, serving, terminating },
            hints,
        }
    }
}

prop_compose! {
    fn slice()(
        v6 in any::<bool>(),
        ports in vec((word(), protocol(), any::<u16>()), 0..3),
        endpoints in vec(endpoint(), 0..12),
    ) -> EndpointSlice {
        EndpointSlice {
            family: if v6 { Family::V6 } else { Family::V4 },
            ports: ports.into_iter().map(|(name, protocol, port)| EndpointPort { name, protocol, port }).collect(),
            endpoints: endpoints.into(),
        }
    }
}

prop_compose! {
    fn node()(
        addresses in vec((any::<bool>(), address()), 0..4),
        ranges in vec((address(), 0..=32u8), 0..3),
        zone in proptest::option::of("[a-c]{1,2}"),
        routing in proptest::option::of(routing()),
    ) -> Node {
        let kind = |internal| if internal { NodeAddressKind::Internal } else { NodeAddressKind::External };
        Node {
            addresses: addresses.into_iter().map(|(it, address)| NodeAddress { kind: kind(it), address }).collect(),
            pod_cidrs: ranges.into_iter().map(|(it, length)| IpNet::new(it, length).expect("short enough")).collect(),
            network_unavailable: false,
            is_on_aws: false,
            zone: zone.map(CompactString::from),
            routing: routing.map(Box::new),
        }
    }
}

fn reflection() -> impl Strategy<Value = Reflection> {
    prop_oneof![
        Just(Reflection::None),
        any::<u32>().prop_map(|id| Reflection::Server(id.into())),
        any::<u32>().prop_map(|id| Reflection::Client(id.into())),
    ]
}

prop_compose! {
    fn external_peer()(
        address in address(),
        (asn, port, has_password) in any::<(u32, Option<u16>, bool)>(),
        local in proptest::option::of(address()),
    ) -> ExternalPeer {
        let password = if has_password { Password::Unknown } else { Password::None };
        ExternalPeer { address, asn, port, password, local }
    }
}

prop_compose! {
    fn routing()(
        asn in any::<Option<u32>>(),
        reflection in reflection(),
        prepend in any::<Option<(u32, u8)>>(),
        communities in vec(any::<u32>(), 0..3),
        ranges in vec((address(), 0..=32u8), 0..3),
        peers in vec(external_peer(), 0..3),
        local_addresses in vec(address(), 0..3),
    ) -> Routing {
        let import_reject = ranges.into_iter().map(|(it, length)| IpNet::new(it, length).expect("short enough"));
        Routing {
            asn, reflection, prepend: prepend.map(|(asn, times)| Prepend { asn, times }), communities,
            import_reject: import_reject.collect(), peers, local_addresses,
        }
    }
}

fn labels() -> impl Strategy<Value = Labels> {
    vec(("[ab]", word()), 0..3).prop_map(|pairs| pairs.into_iter().collect())
}

prop_compose! {
    fn pod()(
        labels in labels(),
        addresses in vec(address(), 0..3),
        node in proptest::option::of("[a-c]"),
        (host_network, finished) in any::<(bool, bool)>(),
        ports in vec(("[ab]", protocol(), any::<u16>()), 0..3),
    ) -> Pod {
        Pod {
            uid: None,
            labels,
            addresses: addresses.into(),
            node: node.map(|name| name.as_str().into()),
            host_network,
            finished,
            ports: ports.into_iter().map(|(name, protocol, number)| NamedPort { name: name.into(), protocol, number }).collect(),
        }
    }
}

fn selector() -> impl Strategy<Value = Selector> {
    let requirement = (word(), 0..4u8, vec(word(), 1..3)).prop_map(|(key, operator, values)| {
        let operator = match operator {
            0 => Operator::In(values.into()),
            1 => Operator::NotIn(values.into()),
            2 => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        Requirement { key, operator }
    });
    vec(requirement, 0..3).prop_map(|requirements| requirements.into_iter().collect())
}

fn range() -> impl Strategy<Value = IpNet> {
    (address(), 0..=32u8).prop_map(|(address, length)| IpNet::new(address, length).expect("short enough"))
}

fn peer() -> impl Strategy<Value = Peer> {
    let pods = |(namespaces, pods): (Option<Selector>, Selector)| Peer::Pods {
        namespaces: namespaces.map_or(Namespaces::Own, Namespaces::Selected),
        pods,
    };
    prop_oneof![
        (proptest::option::of(selector()), selector()).prop_map(pods),
        (range(), vec(range(), 0..3)).prop_map(|(cidr, except)| Peer::Block { cidr, except: except.into() }),
    ]
}

fn policy_port() -> impl Strategy<Value = PolicyPort> {
    let number = prop_oneof![
        Just(PortMatch::Any),
        any::<(u16, u16)>().prop_map(|(first, last)| PortMatch::Range { first, last }),
        word().prop_map(PortMatch::Named),
    ];
    (protocol(), number).prop_map(|(protocol, number)| PolicyPort { protocol, number })
}

fn rules() -> impl Strategy<Value = Option<Box<[PolicyRule]>>> {
    let rule = (proptest::option::of(vec(peer(), 0..3)), proptest::option::of(vec(policy_port(), 0..3)));
    let rule = rule.prop_map(|(peers, ports)| PolicyRule {
        peers: peers.map_or(Peers::Any, |peers| Peers::Of(peers.into())),
        ports: ports.map_or(Ports::Any, |ports| Ports::Of(ports.into())),
    });
    proptest::option::of(vec(rule, 0..3).prop_map(Box::from))
}

prop_compose! {
    fn network_policy()(pods in selector(), ingress in rules(), egress in rules()) -> NetworkPolicy {
        NetworkPolicy { pods, ingress, egress }
    }
}

fn cluster_rules() -> impl Strategy<Value = Box<[ClusterRule]>> {
    let action = prop_oneof![Just(Action::Accept), Just(Action::Deny), Just(Action::Pass)];
    let rule = (word(), action, rules()).prop_map(|(name, action, rules)| {
        let matches = rules.into_iter().flatten().next();
        let matches = matches.unwrap_or(PolicyRule { peers: Peers::Any, ports: Ports::Any });
        ClusterRule { name, action, matches }
    });
    vec(rule, 0..3).prop_map(Box::from)
}

prop_compose! {
    fn cluster_policy()(
        is_admin: bool, priority in 0..=1000_u16, namespaces in selector(), pods in selector(),
        ingress in cluster_rules(), egress in cluster_rules(),
    ) -> ClusterNetworkPolicy {
        let tier = if is_admin { Tier::Admin } else { Tier::Baseline };
        ClusterNetworkPolicy { tier, priority, subject: Subject { namespaces, pods }, ingress, egress }
    }
}

prop_compose! {
    fn cluster()(
        services in vec((name(), service()), 0..6),
        slices in vec((name(), vec((word(), slice()), 1..4)), 0..6),
        nodes in vec((word(), node()), 0..3),
        pods in vec((name(), pod()), 0..12),
        namespaces in vec((word(), labels(), any::<bool>()), 0..3),
        policies in vec((name(), network_policy()), 0..4),
        cluster_policies in vec((word(), cluster_policy()), 0..3),
        service_cidrs in vec((word(), vec(range(), 0..3)), 0..3),
    ) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, service) in services {
            cluster.services.insert(name, service);
        }
        for (name, slices) in slices {
            let slices = slices.into_iter().map(|(name, slice)| (name, Arc::new(slice))).collect();
            cluster.endpoints.insert(name, Endpoints { slices });
        }
        for (name, node) in nodes {
            cluster.nodes.insert(name, node);
        }
        for (name, pod) in pods {
            cluster.pods.insert(name, pod);
        }
        for (name, ranges) in service_cidrs {
            cluster.service_cidrs.insert(name, ServiceCidr { ranges: ranges.into() });
        }
        for (name, labels, isolated) in namespaces {
            cluster.namespaces.insert(name, Namespace { labels, isolated });
        }
        for (name, policy) in policies {
            cluster.policies.insert(name, policy);
        }
        for (name, policy) in cluster_policies {
            cluster.cluster_policies.insert(name, policy);
        }
        cluster
    }
}

fn known() -> impl Strategy<Value = Known> {
    (cluster(), vec(0..Kind::ALL.len(), 0..6), any::<bool>()).prop_map(|(cluster, kinds, all_nodes)| Known {
        cluster,
        all_nodes,
        kinds: with_later_kinds(kinds.into_iter().map(|index| Kind::ALL[index]).collect()),
    })
}

fn assert_equal(one: &Known, other: &Known) {
    assert_eq!((&one.kinds, one.all_nodes), (&other.kinds, other.all_nodes));
    let (one, other) = (&one.cluster, &other.cluster);
    assert!(one.pods.iter().eq(other.pods.iter()));
    assert!(one.namespaces.iter().eq(other.namespaces.iter()));
    assert!(one.policies.iter().eq(other.policies.iter()));
    assert!(one.cluster_policies.iter().eq(other.cluster_policies.iter()));
    assert!(one.services.iter().eq(other.services.iter()));
    assert!(one.endpoints.iter().eq(other.endpoints.iter()));
    assert!(one.nodes.iter().eq(other.nodes.iter()));
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(known in known()) {
        let bytes = encode(&known);
        assert_equal(&known, &decode(&bytes).expect("it was just written"));
        prop_assert_eq!(encode(&decode(&bytes).expect("it was just written")), bytes);
    }

    #[test]
    fn no_flipped_bit_and_no_missing_end_goes_unnoticed(known in known(), place in any::<proptest::sample::Index>(), bit in 0..8u8) {
        let bytes = encode(&known);
        let place = place.index(bytes.len());
        let mut flipped = bytes.clone();
        flipped[place] ^= 1u8 << bit;
        prop_assert!(decode(&flipped).is_err());
        prop_assert!(decode(&bytes[..place]).is_err());
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(decode(&longer).is_err());
    }

    #[test]
    fn a_body_with_a_wrong_byte_behind_a_sound_header_is_read_without_a_crash(
        known in known(), place in any::<proptest::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut body = encode(&known).split_off(HEADER);
        let length = body.len().max(1);
        if let Some(one) = body.get_mut(place.index(length)) {
            *one = byte;
        }
        drop(decode(&framed(VERSION, &body)));
    }

    #[test]
    fn any_bytes_are_read_without_a_crash(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&bytes).is_err());
        // Behind a sound header any body is reached, and of form 3 behind an empty first record any second one.
        drop(decode(&framed(VERSION, &bytes)));
        drop(decode(&framed(3, &bytes)));
        drop(decode(&framed(3, &[&[0; 4], &bytes[..]].concat())));
    }
}

/// A file of this form with this body.
fn framed(version: u32, body: &[u8]) -> Vec<u8> {
    let mut framed = MAGIC.to_vec();
    framed.extend_from_slice(&version.to_le_bytes());
    framed.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let checksum = crc32(crc32(CRC_START, &framed), body) ^ CRC_START;
    framed.extend_from_slice(&checksum.to_le_bytes());
    framed.extend_from_slice(body);
    framed
}

#[test]
fn the_checksum_is_the_one_that_everybody_knows() {
    assert_eq!(crc32(CRC_START, b"123456789") ^ CRC_START, 0xcbf4_3926);
}

/// The common beginning of forms 1 and 2.
fn proxied_cluster() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.nodes.insert(
        "n".into(),
        Node {
            addresses: vec![NodeAddress {
                kind: NodeAddressKind::Internal,
                address: "192.0.2.1".parse().expect("sound"),
            }],
            pod_cidrs: vec!["10.244.1.0/24".parse().expect("sound")],
            network_unavailable: false,
            is_on_aws: false,
            zone: None,
            routing: None,
        },
    );
    let conditions = Conditions { ready: true, serving: true, terminating: false };
    let endpoint =
        Endpoint { address: "10.244.1.1".parse().expect("sound"), node: Some("n".into()), conditions, hints: None };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![EndpointPort { name: "p".into(), protocol: Protocol::Tcp, port: 300 }],
        endpoints: [endpoint].into(),
    };
    let slices = [("s".into(), Arc::new(slice))].into_iter().collect();
    cluster.endpoints.insert(ObjectName::new("a", "b"), Endpoints { slices });
    cluster
}

const PROXIED_BYTES: &[u8] = &[
    1, 1, b'n', 0, 1, 1, b'a', 1, b'b', 1, b's', 0, 1, 1, b'p', 6, 0xac, 2, 0, 1, 0, 10, 244, 1, 1, 1, 3, 1, 1, b'n',
    1, 1, 0, 192, 0, 2, 1, 1, 0, 10, 244, 1, 0, 24,
];

#[test]
fn the_form_of_programs_without_a_firewall_is_still_read() {
    let known = decode(&framed(1, PROXIED_BYTES)).expect("form 1 is known");
    let kinds = vec![Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];
    let expected = Known { cluster: proxied_cluster(), kinds, all_nodes: false };
    assert_equal(&known, &expected);
    assert!(decode(&framed(1, &[PROXIED_BYTES, &[0][..]].concat())).is_err());
    assert!(decode(&framed(2, PROXIED_BYTES)).is_err(), "the second record is missing");
}

#[test]
fn the_form_of_programs_without_a_router_is_still_read() {
    let mut cluster = proxied_cluster();
    let pod = |last: u8, host_network| Pod {
        uid: None,
        labels: [("k", "v")].into_iter().collect(),
        addresses: [IpAddr::from([10, 244, 1, last])].into(),
        node: Some("n".into()),
        host_network,
        finished: host_network,
        ports: [NamedPort { name: "p".into(), protocol: Protocol::Udp, number: 53 }].into(),
    };
    cluster.pods.insert(ObjectName::new("a", "web-1"), pod(1, false));
    cluster.pods.insert(ObjectName::new("a", "web-2"), pod(2, true));
    let labels: Labels = [("k", "v")].into_iter().collect();
    cluster.namespaces.insert("a".into(), Namespace { labels, isolated: true });
    let selector = |operator| [Requirement { key: "k".into(), operator }].into_iter().collect::<Selector>();
    let block = Peer::Block {
        cidr: "10.0.0.0/8".parse().expect("sound"),
        except: ["10.1.0.0/16".parse().expect("sound")].into(),
    };
    let own = Peer::Pods { namespaces: Namespaces::Own, pods: selector(Operator::Exists) };
    let other = Peer::Pods { namespaces: Namespaces::Selected(Selector::everything()), pods: Selector::everything() };
    let port = |number| PolicyPort { protocol: Protocol::Tcp, number };
    let numbers = [PortMatch::Any, PortMatch::Range { first: 1, last: 2 }, PortMatch::Named("p".into())];
    let rule = PolicyRule { peers: Peers::Of([block, own, other].into()), ports: Ports::Of(numbers.map(port).into()) };
    let policy = NetworkPolicy {
        pods: selector(Operator::In(["v".into()].into())),
        ingress: Some([rule, PolicyRule { peers: Peers::Any, ports: Ports::Any }].into()),
        egress: None,
    };
    cluster.policies.insert(ObjectName::new("a", "p"), policy);
    let body: &[u8] = &[
        6, 0, 1, 2, 3, 4, 5, // kinds
        2, 1, b'k', 1, b'v', 1, 1, 0, 1, // words, labels
        1, 1, 1, b'p', 17, 53, 1, 1, b'n', // ports, nodes
        1, 1, b'a', 2, 0, 5, b'w', b'e', b'b', b'-', b'1', 0, 0, 1, 0, 1, 0, 10, 244, 1, 1, // the first pod
        4, 1, b'2', 0, 0, 1, 3, 1, 0, 10, 244, 1, 2, // the second
        1, 1, b'a', 0, 1, // namespaces
        1, 1, b'a', 1, b'p', 1, 1, b'k', 0, 1, 1, b'v', // the policy's name and selector
        1, 2, 1, 3, // two rules for ingress, the first with three peers
        1, 0, 10, 0, 0, 0, 8, 1, 0, 10, 1, 0, 0, 16, 0, 0, 1, 1, b'k', 2, 0, 0, 1, 0, 0, // they are these
        1, 3, 6, 0, 6, 1, 1, 2, 6, 2, 1, b'p', 0, 0, // its ports; the second rule
        0, // no egress
    ];
    let known = decode(&framed(2, &[PROXIED_BYTES, body].concat())).expect("form 2 is known");
    assert_equal(&known, &Known { cluster, kinds: Kind::ALL.to_vec(), all_nodes: false });
}

/// Files of [`sample`], written by the programs of these forms.
const FORM_3: &[u8] = include_bytes!("form_3.bin");
const FORM_4: &[u8] = include_bytes!("form_4.bin");

#[test]
fn what_earlier_programs_wrote_is_still_read() {
    assert_equal(&decode(FORM_3).expect("a file of form 3"), &sample());
    assert_equal(&decode(FORM_4).expect("a file of form 4"), &sample());
}

#[test]
fn a_file_that_was_cut_off_anywhere_is_damaged() {
    for whole in [FORM_3, FORM_4] {
        for length in 0..whole.len() {
            assert!(matches!(decode(&whole[..length]), Err(Unusable::Damaged(_))), "{length}");
        }
    }
}

#[test]
fn no_password_is_written() {
    let mut known = sample();
    let mut node = Node::clone(known.cluster.nodes.get(&"node-1".into()).expect("it is in the sample"));
    let key = Secret::from_base64("c2VjcmV0LXdvcmQ=").expect("sound").expect("a secret");
    node.routing.as_mut().expect("it is in the sample").peers[0].password = Password::Key(key);
    known.cluster.nodes.insert("node-1".into(), node);
    let bytes = encode(&known);
    assert!(!bytes.windows(11).any(|window| window == b"secret-word"));
    assert_equal(&decode(&bytes).expect("it was just written"), &sample());
}

/// A Service and a cluster of a program that knows more, and less, than this one.
#[derive(Clone, PartialEq, Message)]
struct OtherService {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, tag = "3")]
    kind: u32,
    #[prost(bytes = "vec", tag = "4")]
    cluster_ips: Vec<u8>,
    #[prost(string, tag = "1000")]
    later: String,
    #[prost(message, repeated, tag = "1001")]
    more: Vec<OtherService>,
}

#[derive(Clone, PartialEq, Message)]
struct OtherCluster {
    #[prost(uint32, repeated, tag = "1")]
    kinds: Vec<u32>,
    #[prost(message, repeated, tag = "3")]
    services: Vec<OtherService>,
    #[prost(message, repeated, tag = "1000")]
    later: Vec<OtherService>,
}

fn other(kind: u32) -> OtherCluster {
    let service = OtherService {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        kind,
        cluster_ips: packed::addresses(&["10.96.0.11".parse().expect("an address")]),
        later: "said by a later program".to_owned(),
        more: vec![OtherService::default()],
    };
    OtherCluster { kinds: vec![1, 3, 77], services: vec![service.clone()], later: vec![service] }
}

#[test]
fn what_a_later_program_says_beside_is_skipped_and_what_an_earlier_one_did_not_say_is_empty() {
    let known = decode(&framed(VERSION, &other(1).encode_to_vec())).expect("fields that are not known do no harm");
    assert_eq!(
        known.kinds,
        [Kind::Service, Kind::Node, Kind::ServiceCidr],
        "of a kind that is not known nothing is needed, and one that its program did not know had none"
    );
    let service = known.cluster.services.get(&ObjectName::new("shop", "web")).expect("it is in the file");
    assert_eq!((service.kind, service.cluster_ips.len()), (ServiceType::NodePort, 1));
    assert_eq!((service.ports.len(), service.affinity_seconds, service.created), (0, None, 0));
    assert_eq!(service.annotations, ProxyAnnotations::default());
}

#[test]
fn an_object_with_a_value_that_is_not_known_is_left_out_and_its_kind_is_not_known_in_full() {
    let known = decode(&framed(VERSION, &other(9).encode_to_vec())).expect("the rest is sound");
    assert_eq!((known.kinds, known.cluster.services.len()), (vec![Kind::Node, Kind::ServiceCidr], 0));
    let mut node = ClusterRecord { kinds: vec![1, 3], all_nodes: true, ..ClusterRecord::default() };
    node.nodes = vec![NodeRecord::default()];
    let sound = decode(&framed(VERSION, &node.encode_to_vec())).expect("sound");
    assert!(sound.all_nodes && sound.kinds == [Kind::Service, Kind::Node, Kind::ServiceCidr]);
    // A later program's third kind of address.
    let unclear = [&node.encode_to_vec()[..], &[0x2a, 9, 0x12, 5, 4, 192, 0, 2, 1, 0x18, 2]].concat();
    let known = decode(&framed(VERSION, &unclear)).expect("the rest is sound");
    assert_eq!((known.kinds, known.all_nodes), (vec![Kind::Service, Kind::ServiceCidr], false));
}

#[test]
fn a_pod_takes_few_bytes_and_shares_its_memory_with_its_like() {
    let mut cluster = Cluster::default();
    for index in 0..1000u16 {
        let [high, low] = index.to_be_bytes();
        let pod = Pod {
            uid: None,
            labels: [("app.kubernetes.io/name", "web"), ("pod-template-hash", "7d9f8b6c5")].into_iter().collect(),
            addresses: [IpAddr::from([10, 244, high, low])].into(),
            node: Some(format!("node-{}", index % 10).as_str().into()),
            host_network: false,
            finished: false,
            ports: [NamedPort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 }].into(),
        };
        cluster.pods.insert(ObjectName::new("shop", &format!("web-7d9f8b6c5-{index:05}")), pod);
    }
    let bytes = encode(&Known { cluster, kinds: vec![Kind::Pod], all_nodes: false });
    assert!(bytes.len() < 20_000, "{}", bytes.len());
    let known = decode(&bytes).expect("it was just written");
    let places = |place: fn(&Pod) -> usize| {
        known.cluster.pods.iter().map(|(_, pod)| place(pod)).collect::<std::collections::HashSet<_>>().len()
    };
    assert_eq!(places(|pod| pod.labels.value("pod-template-hash").map_or(0, |text| text.as_ptr() as usize)), 1);
    assert_eq!(places(|pod| pod.ports.as_ptr() as usize), 1);
    assert_eq!(places(|pod| pod.node.as_ref().map_or(0, |name| name.as_ptr() as usize)), 10);
}

/// A cluster in which every field that was ever written says something; a field that comes later is left as it is
/// where nothing is said.
fn sample() -> Known {
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
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Udp, port: 53, node_port: None }],
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
        ports: vec![
            ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) },
            ServicePort { name: "sctp".into(), protocol: Protocol::Sctp, port: 3868, node_port: None },
        ],
        affinity_seconds: Some(10800),
        internal_traffic_policy: TrafficPolicy::Local,
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(32000),
        annotations: ProxyAnnotations {
            scheduler: Scheduler::Mh,
            scheduler_flags: SchedulerFlags { flag_1: true, flag_2: false, flag_3: true },
            local: true,
            skip_load_balancer_ips: true,
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
    let ports = vec![
        EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 },
        EndpointPort { name: "".into(), protocol: Protocol::Udp, port: 53 },
    ];
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
    };
    let of_node = |kind, text| NodeAddress { kind, address: at(text) };
    let node = Node {
        addresses: vec![
            of_node(NodeAddressKind::External, "203.0.113.20"),
            of_node(NodeAddressKind::Internal, "192.0.2.1"),
        ],
        pod_cidrs: vec![network("10.244.1.0/24"), network("fd00:244:1::/64")],
        network_unavailable: false,
        is_on_aws: false,
        zone: None,
        routing: Some(Box::new(routing)),
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
