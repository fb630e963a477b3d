mod chance;
mod sample;

use std::net::{IpAddr, Ipv4Addr};

use compact_str::CompactString;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;

use self::chance::*;
use self::sample::sample;
use super::*;
use crate::model::{
    Action, AnnounceAnnotations, ClusterNetworkPolicy, ClusterRule, Conditions, Endpoint, EndpointPort, EndpointSlice,
    Hints, Labels, LoadBalancerAddress, NamedPort, Namespace, Namespaces, NetworkPolicy, Node, NodeAddress,
    NodeAddressKind, Operator, Peer, Peers, PolicyPort, PolicyRule, PortMatch, Ports, Prepend, ProxyAnnotations,
    Reflection, Requirement, Routing, Scheduler, SchedulerFlags, Selector, Service, ServicePort, ServiceType, Shared,
    Subject, Taint, Tier, TrafficPolicy,
};
use crate::net::{Bfd, ExternalPeer, Family, Password, Protocol, Secret};

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
            ..Node::default()
        },
    );
    let conditions = Conditions { ready: true, serving: true, terminating: false };
    let endpoint =
        Endpoint { address: "10.244.1.1".parse().expect("sound"), node: Some("n".into()), conditions, hints: None };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: [EndpointPort { name: "p".into(), protocol: Protocol::Tcp, port: 300 }].into(),
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
