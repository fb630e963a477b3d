//! Objects of a cluster made by chance.

use super::*;
use crate::net::{Distance, PerFamily, Remote, RemoteAs};

pub(super) fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

pub(super) fn word() -> impl Strategy<Value = CompactString> {
    "[a-z0-9.-]{0,40}".prop_map(CompactString::from)
}

pub(super) fn name() -> impl Strategy<Value = ObjectName> {
    (word(), word()).prop_map(|(namespace, name)| ObjectName::new(&namespace, &name))
}

pub(super) fn protocol() -> impl Strategy<Value = Protocol> {
    (0..3usize).prop_map(|index| Protocol::ALL[index])
}

pub(super) fn policy() -> impl Strategy<Value = TrafficPolicy> {
    any::<bool>().prop_map(|local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster })
}

pub(super) fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = (word(), protocol(), any::<u16>(), proptest::option::of(1..u16::MAX));
    vec(port.prop_map(|(name, protocol, port, node_port)| ServicePort { name, protocol, port, node_port }), 0..4)
}

prop_compose! {
    pub(super) fn annotations()(scheduler in 0..Scheduler::ALL.len(), flags in any::<[bool; 6]>()) -> ProxyAnnotations {
        let [flag_1, flag_2, flag_3, local, skip_load_balancer_ips, dsr] = flags;
        ProxyAnnotations {
            scheduler: Scheduler::ALL[scheduler],
            scheduler_flags: SchedulerFlags { flag_1, flag_2, flag_3 },
            local,
            skip_load_balancer_ips,
            dsr,
        }
    }
}

prop_compose! {
    pub(super) fn announce()(said in any::<[Option<bool>; 3]>()) -> AnnounceAnnotations {
        let [cluster_ips, external_ips, load_balancer_ips] = said;
        AnnounceAnnotations { cluster_ips, external_ips, load_balancer_ips }
    }
}

prop_compose! {
    pub(super) fn service()(
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
            kind, cluster_ips, external_ips, load_balancer: load_balancer.collect(), source_ranges: source_ranges.map(Into::into), ports: ports.into(), affinity_seconds,
            internal_traffic_policy, external_traffic_policy, health_check_node_port, annotations, announce, created,
        }
    }
}

prop_compose! {
    pub(super) fn hints()(zones in vec(word(), 0..3), nodes in vec(word(), 0..3)) -> Arc<Hints> {
        Arc::new(Hints { zones: zones.into(), nodes: nodes.into() })
    }
}

prop_compose! {
    pub(super) fn endpoint()(
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
    pub(super) fn slice()(
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
    pub(super) fn node()(
        created in any::<i64>(),
        addresses in vec((any::<bool>(), address()), 0..4),
        ranges in vec((address(), 0..=32u8), 0..3),
        spec in proptest::option::of(vec((address(), 0..=32u8), 0..3)),
        zone in proptest::option::of("[a-c]{1,2}"),
        labels in labels(),
        taints in vec("[a-c]{1,3}(=[a-c]{1,2})?:No(Schedule|Execute)".prop_map(|text| text.parse::<Taint>().expect("a taint")), 0..2),
        wireguard_key in proptest::option::of(any::<[u8; 32]>().prop_filter_map("none", |key| crate::net::PublicKey::new(&key))),
        wireguard_next_key in proptest::option::of(any::<[u8; 32]>().prop_filter_map("none", |key| crate::net::PublicKey::new(&key))),
        routing in proptest::option::of(routing()),
        detected in proptest::option::of(address()),
    ) -> Node {
        let kind = |internal| if internal { NodeAddressKind::Internal } else { NodeAddressKind::External };
        let mut node = Node {
            created,
            addresses: addresses.into_iter().map(|(it, address)| NodeAddress { kind: kind(it), address }).collect(),
            pod_cidrs: ranges.into_iter().map(|(it, length)| IpNet::new(it, length).expect("short enough")).collect(),
            spec_pod_cidrs: spec.map(|spec| {
                spec.into_iter().map(|(it, length)| IpNet::new(it, length).expect("short enough")).collect()
            }),
            zone: zone.map(CompactString::from),
            labels,
            taints,
            wireguard_key,
            wireguard_next_key,
            routing: routing.map(Box::new),
            ..Node::default()
        };
        let of_family = |family| detected.filter(|address| Family::from(*address) == family);
        node.set_detected(PerFamily::from_fn(of_family));
        node
    }
}

pub(super) fn reflection() -> impl Strategy<Value = Reflection> {
    prop_oneof![
        Just(Reflection::None),
        any::<u32>().prop_map(|id| Reflection::Server(id.into())),
        any::<u32>().prop_map(|id| Reflection::Client(id.into())),
    ]
}

prop_compose! {
    pub(super) fn external_peer()(
        remote in prop_oneof![
            address().prop_map(Remote::Address), "[a-z]{1,9}".prop_map(|name| Remote::Link(name.into())),
        ],
        asn in prop_oneof![any::<u32>().prop_map(RemoteAs::Number), Just(RemoteAs::External)],
        port in any::<Option<u16>>(),
        password in prop_oneof![
            Just(Password::None), Just(Password::Unknown), "[a-z]{1,9}".prop_map(|name| Password::File(name.into())),
        ],
        local in proptest::option::of(address()),
        bfd in proptest::option::of(bfd()),
        (hold_time, next_hop_self, long_lived) in any::<(Option<u16>, Option<bool>, Option<u32>)>(),
        distance in prop_oneof![
            Just(Distance::Usual), any::<u8>().prop_map(Distance::Multihop), any::<u8>().prop_map(Distance::Secured),
        ],
        (v4, v6) in any::<(Option<u32>, Option<u32>)>(),
    ) -> ExternalPeer {
        let prefix_limits = PerFamily { v4, v6 };
        ExternalPeer {
            remote, asn, port, password, local, bfd, hold_time, distance, long_lived, prefix_limits, next_hop_self,
        }
    }
}

fn bfd() -> impl Strategy<Value = Bfd> {
    let parts = (any::<u16>(), 1..=u8::MAX, 1..=u32::MAX, 1..=u32::MAX);
    parts.prop_map(|(port, multiplier, send, receive)| Bfd { port, multiplier, send, receive })
}

prop_compose! {
    pub(super) fn routing()(
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
            import_reject: import_reject.collect(), peers, local_addresses, ..Routing::default()
        }
    }
}

pub(super) fn labels() -> impl Strategy<Value = Labels> {
    vec(("[ab]", word()), 0..3).prop_map(|pairs| pairs.into_iter().collect())
}

prop_compose! {
    pub(super) fn pod()(
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

pub(super) fn selector() -> impl Strategy<Value = Selector> {
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

pub(super) fn range() -> impl Strategy<Value = IpNet> {
    (address(), 0..=32u8).prop_map(|(address, length)| IpNet::new(address, length).expect("short enough"))
}

pub(super) fn peer() -> impl Strategy<Value = Peer> {
    let pods = |(namespaces, pods): (Option<Selector>, Selector)| Peer::Pods {
        namespaces: namespaces.map_or(Namespaces::Own, Namespaces::Selected),
        pods,
    };
    prop_oneof![
        (proptest::option::of(selector()), selector()).prop_map(pods),
        (range(), vec(range(), 0..3)).prop_map(|(cidr, except)| Peer::Block { cidr, except: except.into() }),
        selector().prop_map(Peer::Nodes),
    ]
}

pub(super) fn policy_port() -> impl Strategy<Value = PolicyPort> {
    let number = prop_oneof![
        Just(PortMatch::Any),
        any::<(u16, u16)>().prop_map(|(first, last)| PortMatch::Range { first, last }),
        word().prop_map(PortMatch::Named),
    ];
    (protocol(), number).prop_map(|(protocol, number)| PolicyPort { protocol, number })
}

pub(super) fn rules() -> impl Strategy<Value = Option<Box<[PolicyRule]>>> {
    let rule = (proptest::option::of(vec(peer(), 0..3)), proptest::option::of(vec(policy_port(), 0..3)));
    let rule = rule.prop_map(|(peers, ports)| PolicyRule {
        peers: peers.map_or(Peers::Any, |peers| Peers::Of(peers.into())),
        ports: ports.map_or(Ports::Any, |ports| Ports::Of(ports.into())),
    });
    proptest::option::of(vec(rule, 0..3).prop_map(Box::from))
}

prop_compose! {
    pub(super) fn network_policy()(pods in selector(), ingress in rules(), egress in rules()) -> NetworkPolicy {
        NetworkPolicy { pods, ingress, egress }
    }
}

pub(super) fn cluster_rules() -> impl Strategy<Value = Box<[ClusterRule]>> {
    let action = prop_oneof![Just(Action::Accept), Just(Action::Deny), Just(Action::Pass)];
    let rule = (word(), action, rules()).prop_map(|(name, action, rules)| {
        let matches = rules.into_iter().flatten().next();
        let matches = matches.unwrap_or(PolicyRule { peers: Peers::Any, ports: Ports::Any });
        ClusterRule { name, action, matches }
    });
    vec(rule, 0..3).prop_map(Box::from)
}

prop_compose! {
    pub(super) fn cluster_policy()(
        is_admin: bool, priority in 0..=1000_u16, namespaces in selector(), pods in selector(),
        ingress in cluster_rules(), egress in cluster_rules(),
    ) -> ClusterNetworkPolicy {
        let tier = if is_admin { Tier::Admin } else { Tier::Baseline };
        ClusterNetworkPolicy { tier, priority, subject: Subject { namespaces, pods }, ingress, egress }
    }
}
