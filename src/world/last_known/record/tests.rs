use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn word() -> impl Strategy<Value = CompactString> {
    "[a-z0-9.-]{0,40}".prop_map(CompactString::from)
}

fn name() -> impl Strategy<Value = ObjectName> {
    (word(), word()).prop_map(|(namespace, name)| ObjectName { namespace, name })
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
    fn service()(
        kind in prop_oneof![Just(ServiceType::ClusterIp), Just(ServiceType::NodePort), Just(ServiceType::LoadBalancer)],
        (cluster_ips, external_ips) in (vec(address(), 1..3), vec(address(), 0..3)),
        balancer in vec((address(), any::<bool>()), 0..3),
        ports in service_ports(),
        affinity_seconds in any::<Option<u32>>(),
        (internal_traffic_policy, external_traffic_policy) in (policy(), policy()),
        health_check_node_port in any::<Option<u16>>(),
        annotations in annotations(),
        created in any::<i64>(),
    ) -> Service {
        let load_balancer =
            balancer.into_iter().map(|(address, through_balancer)| LoadBalancerAddress { address, through_balancer });
        Service {
            kind, cluster_ips, external_ips, load_balancer: load_balancer.collect(), ports, affinity_seconds,
            internal_traffic_policy, external_traffic_policy, health_check_node_port, annotations, created,
        }
    }
}

prop_compose! {
    fn endpoint()(address in address(), node in proptest::option::of(word()), is in any::<[bool; 3]>()) -> Endpoint {
        let [ready, serving, terminating] = is;
        Endpoint {
            address,
            node: node.map(|name| Arc::from(name.as_str())),
            conditions: Conditions { ready, serving, terminating },
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
    ) -> Node {
        let kind = |internal| if internal { NodeAddressKind::Internal } else { NodeAddressKind::External };
        Node {
            addresses: addresses.into_iter().map(|(it, address)| NodeAddress { kind: kind(it), address }).collect(),
            pod_cidrs: ranges.into_iter().map(|(it, length)| IpNet::new(it, length).expect("short enough")).collect(),
        }
    }
}

prop_compose! {
    fn cluster()(
        services in vec((name(), service()), 0..6),
        slices in vec((name(), vec((word(), slice()), 1..4)), 0..6),
        nodes in vec((word(), node()), 0..3),
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
        cluster
    }
}

fn assert_equal(one: &Cluster, other: &Cluster) {
    assert!(one.services.iter().eq(other.services.iter()));
    assert!(one.endpoints.iter().eq(other.endpoints.iter()));
    assert!(one.nodes.iter().eq(other.nodes.iter()));
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(cluster in cluster()) {
        let bytes = encode(&cluster);
        assert_equal(&cluster, &decode(&bytes).expect("it was just written"));
        prop_assert_eq!(encode(&decode(&bytes).expect("it was just written")), bytes);
    }

    #[test]
    fn no_flipped_bit_and_no_missing_end_goes_unnoticed(cluster in cluster(), place in any::<proptest::sample::Index>(), bit in 0..8u8) {
        let bytes = encode(&cluster);
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
    fn any_bytes_are_read_without_a_crash(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&bytes).is_err());
        // Behind a sound header any body is reached.
        let mut framed = MAGIC.to_vec();
        framed.extend_from_slice(&VERSION.to_le_bytes());
        framed.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        let checksum = crc32(crc32(CRC_START, &framed), &bytes) ^ CRC_START;
        framed.extend_from_slice(&checksum.to_le_bytes());
        framed.extend_from_slice(&bytes);
        drop(decode(&framed));
    }
}

#[test]
fn the_checksum_is_the_one_that_everybody_knows() {
    assert_eq!(crc32(CRC_START, b"123456789") ^ CRC_START, 0xcbf4_3926);
}

/// The bytes of one cluster, as the first program that wrote this form wrote them. If this fails the form has
/// changed, and `VERSION` must change with it.
#[test]
fn the_form_is_a_promise() {
    let mut cluster = Cluster::default();
    cluster.nodes.insert(
        "n".into(),
        Node {
            addresses: vec![NodeAddress {
                kind: NodeAddressKind::Internal,
                address: "192.0.2.1".parse().expect("sound"),
            }],
            pod_cidrs: vec!["10.244.1.0/24".parse().expect("sound")],
        },
    );
    let conditions = Conditions { ready: true, serving: true, terminating: false };
    let endpoint = Endpoint { address: "10.244.1.1".parse().expect("sound"), node: Some("n".into()), conditions };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![EndpointPort { name: "p".into(), protocol: Protocol::Tcp, port: 300 }],
        endpoints: [endpoint].into(),
    };
    let slices = [("s".into(), Arc::new(slice))].into_iter().collect();
    cluster.endpoints.insert(ObjectName::new("a", "b"), Endpoints { slices });
    let body: &[u8] = &[
        1, 1, b'n', 0, 1, 1, b'a', 1, b'b', 1, b's', 0, 1, 1, b'p', 6, 0xac, 2, 0, 1, 0, 10, 244, 1, 1, 1, 3, 1, 1,
        b'n', 1, 1, 0, 192, 0, 2, 1, 1, 0, 10, 244, 1, 0, 24,
    ];
    assert_eq!(&encode(&cluster)[HEADER..], body);
}
