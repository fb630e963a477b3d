//! A bundle carries the cluster: for clusters made by chance, what is read of the bundle of a node is what the node knew.
//!
//! Every value is made field by field, so that a field which is added to the model does not compile here before somebody has thought of it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use compact_str::CompactString;
use ipnet::IpNet;
use sluice::ask::bundle::make;
use sluice::bundle::serve;
use sluice::k8s::manifests::document::{Format, Reader, documents};
use sluice::k8s::outage::Outages;
use sluice::k8s::{Kind, Object, Wanted, manifests, render};
use sluice::model::{
    Action, AnnounceAnnotations, Authorities, Authority, Cluster, ClusterNetworkPolicy, ClusterRule, Conditions,
    Endpoint, EndpointPort, EndpointSlice, Endpoints, Hints, Host, Labels, LoadBalancerAddress, NamedPort, Namespace,
    Namespaces, NetworkPolicy, Node, NodeAddress, NodeAddressKind, ObjectName, Operator, Peer, Peers, Pod, PodUid,
    PolicyPort, PolicyRule, PortMatch, Ports, Prepend, ProxyAnnotations, Reflection, Report, Requirement, Routing,
    Scheduler, SchedulerFlags, Selector, Service, ServiceCidr, ServicePort, ServiceProblems, ServiceType, Slices,
    Subject, Table, Taint, Tier, TrafficPolicy, World,
};
use sluice::net::{
    Bfd, Distance, ExternalPeer, Family, Password, PerFamily, Protocol, PublicKey, Remote, RemoteAs, Secret,
};
use sluice::observe::health::Health;
use sluice::observe::local::{self, Answerers};
use sluice::observe::metrics::Registry;
use sluice::observe::recent::Recent;
use sluice::world;
use tokio::sync::{mpsc, watch};

use crate::support::random::{Random, for_many};

const HERE: &str = "node-1";
const SECRET: &str = "c2VjcmV0LXdvcmQ=";

#[test]
fn an_object_says_all_of_the_value_that_it_was_made_of() {
    for_many(300, |random| {
        let mut cluster = cluster(random);
        let read = read_back(&cluster);
        forget_what_stays_behind(&mut cluster);
        assert_same(&cluster, &read);
    });
}

#[test]
fn a_world_is_read_of_a_bundle_as_the_node_knew_it() {
    for_many(8, |random| {
        let mut cluster = cluster(random);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("bundle.tar");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let read = runtime.block_on(async {
            write(&cluster, &file, directory.path()).await;
            read_world(&file).await
        });
        let bytes = std::fs::read(&file).expect("it is there");
        for secret in [SECRET, "secret-word"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
        }
        forget_what_stays_behind(&mut cluster);
        assert_same(&cluster, &read.cluster);
    });
}

/// Makes a bundle of a program that knows this cluster.
async fn write(cluster: &Cluster, file: &Path, directory: &Path) {
    let host = Host { node_name: HERE.into(), ..Host::default() };
    let complete = Authority::Complete;
    let authority = Authorities { proxy: complete, firewall: complete, router: complete };
    let known = World { number: 7, cluster: cluster.clone(), host: Arc::new(host), authority, ..World::empty() };
    let (_world_out, world) = watch::channel(known);
    let sources = serve::Sources {
        config: "".into(),
        registry: Registry::new("test", "test"),
        recent: Recent::default(),
        world,
        kinds: Kind::ALL.into(),
        preflight: Arc::new(String::new),
    };
    let socket = directory.join("sluice.sock");
    let (ask, questions) = mpsc::channel(1);
    let answerers: Answerers = serve::PATHS.iter().map(|path| (*path, ask.clone())).collect();
    let answering = tokio::spawn(serve::run(sources, questions));
    let listening = tokio::spawn(local::serve(local::bind(&socket).expect("the socket is made"), answerers, 8));
    let answered = make(Some(file), &socket).await.expect("it can be written");
    // Nobody answers for the status, and nothing else failed.
    assert!(answered.text.contains("bundle.tar"), "{}", answered.text);
    assert!(!answered.text.contains("cluster:"), "{}", answered.text);
    listening.abort();
    answering.abort();
}

/// The World of a program that starts with this file as its manifests.
async fn read_world(file: &Path) -> World {
    let wanted = vec![
        Wanted::Services,
        Wanted::EndpointSlices,
        Wanted::Nodes,
        Wanted::Pods,
        Wanted::Namespaces,
        Wanted::NetworkPolicies,
        Wanted::ClusterNetworkPolicies,
        Wanted::ServiceCidrs,
    ];
    let (out, messages) = mpsc::channel(64);
    manifests::spawn(file.to_owned(), wanted.clone(), Outages::new().expect("valid names"), out).expect("a thread");
    let host = Host { node_name: HERE.into(), ..Host::default() };
    let (_host_out, host) = watch::channel(Arc::new(host));
    let (world_out, mut world) = watch::channel(World::empty());
    let health = Health::default();
    let inputs = world::Inputs {
        messages,
        wanted,
        annotations: sluice::net::NodeAnnotations::default(),
        host,
        last_known: None,
        clocks: Vec::new(),
        report: watch::channel(Report::default()).0,
        service_warnings: watch::channel(ServiceProblems::default()).0,
        sync_timeout: Duration::from_secs(60),
        note: health.note("node"),
        age: health.note("last known state"),
        attaching: None,
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(world::run(inputs, world_out, async move { drop(stopped.await) }));
    let is_known = |world: &World| {
        let Authorities { proxy, firewall, router } = world.authority;
        [proxy, firewall, router].iter().all(|authority| *authority == Authority::Complete)
    };
    let known = tokio::time::timeout(Duration::from_secs(60), world.wait_for(is_known)).await;
    let known = known.expect("it is read in time").expect("the task runs").clone();
    drop(stop);
    running.await.expect("it ends");
    known
}

/// The cluster that the objects of this one are parsed to.
fn read_back(cluster: &Cluster) -> Cluster {
    let (mut read, mut reader) = (Cluster::default(), Reader::default());
    for kind in Kind::ALL {
        let mut from = Some(0);
        while let Some(place) = from {
            let page = render::page(cluster, kind, place, 2000);
            for document in documents(Format::Json, &page.text) {
                let content = document.content(&mut reader);
                assert!(content.broken.is_empty() && content.skipped.is_empty(), "{content:?}");
                content.objects.into_iter().for_each(|(object, _)| put(&mut read, object));
            }
            from = page.next;
        }
    }
    read
}

fn put(cluster: &mut Cluster, object: Object) {
    match object {
        Object::Service(name, Some(value)) => {
            cluster.services.insert_shared(name, value);
        }
        Object::EndpointSlice(name, Some(of)) => {
            let service = ObjectName::of(name.namespace.clone(), &of.service);
            let known = cluster.endpoints.get(&service).map(|known| Endpoints::clone(known)).unwrap_or_default();
            let mut slices = known.slices;
            slices.insert(name.name.to_compact(), of.slice);
            cluster.endpoints.insert(service, Endpoints { slices });
        }
        Object::Node(name, Some(value)) => {
            cluster.nodes.insert_shared(name, value);
        }
        Object::Pod(name, Some(value)) => {
            cluster.pods.insert_shared(name, value);
        }
        Object::Namespace(name, Some(value)) => {
            cluster.namespaces.insert_shared(name, value);
        }
        Object::NetworkPolicy(name, Some(value)) => {
            cluster.policies.insert_shared(name, value);
        }
        Object::ClusterNetworkPolicy(name, Some(value)) => {
            cluster.cluster_policies.insert_shared(name, value);
        }
        Object::ServiceCidr(name, Some(value)) => {
            cluster.service_cidrs.insert_shared(name, value);
        }
        other => panic!("nothing usable was written: {other:?}"),
    }
}

/// A bundle says of a password only that there is one, and not which instance of a cloud a Node is.
fn forget_what_stays_behind(cluster: &mut Cluster) {
    let nodes: Vec<(CompactString, Node)> =
        cluster.nodes.iter().map(|(name, node)| (name.clone(), Node::clone(node))).collect();
    for (name, mut node) in nodes {
        node.ec2_instance = None;
        for peer in node.routing.iter_mut().flat_map(|routing| &mut routing.peers) {
            if matches!(peer.password, Password::Key(_)) {
                peer.password = Password::Unknown;
            }
        }
        cluster.nodes.insert(name, node);
    }
}

fn assert_same(one: &Cluster, other: &Cluster) {
    let Cluster { services, endpoints, nodes, pods, namespaces, policies, cluster_policies, service_cidrs } = one;
    assert_tables(services, &other.services);
    assert_tables(endpoints, &other.endpoints);
    assert_tables(nodes, &other.nodes);
    assert_tables(pods, &other.pods);
    assert_tables(namespaces, &other.namespaces);
    assert_tables(policies, &other.policies);
    assert_tables(cluster_policies, &other.cluster_policies);
    assert_tables(service_cidrs, &other.service_cidrs);
}

fn assert_tables<K: Ord + Clone + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    one: &Table<K, V>,
    other: &Table<K, V>,
) {
    assert_eq!(one.len(), other.len());
    for ((name, value), (other_name, other_value)) in one.iter().zip(other.iter()) {
        assert_eq!((name, value), (other_name, other_value));
    }
}

/// A cluster in which every field has every sort of value that an object of the API can give it.
fn cluster(random: &mut Random) -> Cluster {
    let mut cluster = Cluster::default();
    for number in 0..random.below(6) {
        cluster.services.insert(name(random, number), service(random));
    }
    for number in 0..random.below(6) {
        let service = name(random, number);
        let slices: Slices = (0..1 + random.below(3))
            .map(|slice| {
                let odd = if random.chance(20) { "by-hand" } else { &*service.name };
                (format!("{odd}-{number}{slice}").into(), Arc::new(slice_of(random)))
            })
            .collect();
        cluster.endpoints.insert(service, Endpoints { slices });
    }
    for number in 0..1 + random.below(4) {
        cluster.nodes.insert(format!("node-{number}").into(), node(random));
    }
    for number in 0..random.below(10) {
        cluster.pods.insert(name(random, number), pod(random));
    }
    for number in 0..random.below(4) {
        let name = format!("space-{number}");
        let all = labels(random);
        let own = [("kubernetes.io/metadata.name", name.as_str())];
        let labels = all.iter().chain(own).collect();
        cluster.namespaces.insert(name.as_str().into(), Namespace { labels, isolated: random.chance(50) });
    }
    for number in 0..random.below(5) {
        cluster.policies.insert(name(random, number), network_policy(random));
    }
    for number in 0..random.below(4) {
        cluster.cluster_policies.insert(format!("guard-{number}").into(), cluster_policy(random));
    }
    for number in 0..random.below(3) {
        let ranges = (0..random.below(3)).map(|_| range(random)).collect();
        cluster.service_cidrs.insert(format!("cidr-{number}").into(), ServiceCidr { ranges });
    }
    cluster
}

fn name(random: &mut Random, number: usize) -> ObjectName {
    let long = if random.chance(10) { "x".repeat(60) } else { String::new() };
    ObjectName::new(random.pick::<&str>(&["shop", "default", "kube-system"]), &format!("it{long}-{number}"))
}

fn word(random: &mut Random) -> CompactString {
    (*random.pick(&["a", "web", "shop.example/tier", "x-1", "Ä\"\\\n", "123", "true"])).into()
}

fn address_of(random: &mut Random, family: Family) -> IpAddr {
    let number = random.next();
    let [_, a, b, c, d, e, f, g] = number.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([10, a, b, c]),
        Family::V6 => IpAddr::from([0xfd, 0, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 1]),
    }
}

fn family(random: &mut Random) -> Family {
    if random.chance(50) { Family::V4 } else { Family::V6 }
}

fn address(random: &mut Random) -> IpAddr {
    let family = family(random);
    address_of(random, family)
}

fn addresses(random: &mut Random, least: usize, most: usize) -> Vec<IpAddr> {
    (0..least + random.below(most - least + 1)).map(|_| address(random)).collect()
}

fn range(random: &mut Random) -> IpNet {
    IpNet::new(address(random), random.below(33) as u8).expect("short enough").trunc()
}

/// A range that pods can have: of a host's address, and of up to the 24 bits in front of it.
fn range_of_pods(random: &mut Random) -> IpNet {
    let address = address(random);
    let longest = if address.is_ipv4() { 32 } else { 128 };
    IpNet::new(address, longest - random.below(25) as u8).expect("short enough").trunc()
}

/// Ranges in the order in which they are kept.
fn sorted(mut ranges: Vec<IpNet>) -> Box<[IpNet]> {
    ranges.sort();
    ranges.dedup();
    ranges.into()
}

fn some<T>(random: &mut Random, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
    if random.chance(50) { Some(make(random)) } else { None }
}

fn port(random: &mut Random) -> u16 {
    1 + random.below(65_535) as u16
}

fn protocol(random: &mut Random) -> Protocol {
    *random.pick(&Protocol::ALL)
}

fn labels(random: &mut Random) -> Labels {
    (0..random.below(4)).map(|_| (word(random), if random.chance(20) { "".into() } else { word(random) })).collect()
}

fn traffic_policy(random: &mut Random) -> TrafficPolicy {
    if random.chance(50) { TrafficPolicy::Cluster } else { TrafficPolicy::Local }
}

fn service(random: &mut Random) -> Service {
    let kind = *random.pick(&[ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer]);
    let is_balanced = kind == ServiceType::LoadBalancer;
    let ports = (0..random.below(4)).map(|number| ServicePort {
        name: format!("port-{number}").into(),
        protocol: protocol(random),
        port: 80 + number as u16,
        node_port: some(random, |_| 30_000 + number as u16).filter(|_| kind != ServiceType::ClusterIp),
    });
    let ports: Vec<ServicePort> = ports.collect();
    let single = vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }];
    let scheduler = *random.pick(&Scheduler::ALL);
    let has_flags = matches!(scheduler, Scheduler::Sh | Scheduler::Mh);
    let mut flag = || has_flags && random.chance(50);
    let scheduler_flags = SchedulerFlags { flag_1: flag(), flag_2: flag(), flag_3: flag() };
    let balancer: Vec<IpAddr> = addresses(random, 0, 3).into_iter().filter(|_| is_balanced).collect();
    let source_ranges = some(random, |random| sorted((0..random.below(3)).map(|_| range(random)).collect()));
    Service {
        kind,
        cluster_ips: addresses(random, 1, 2),
        external_ips: addresses(random, 0, 2),
        load_balancer: balancer
            .into_iter()
            .map(|address| LoadBalancerAddress { address, through_balancer: random.chance(50) })
            .collect(),
        source_ranges: source_ranges.filter(|_| is_balanced),
        ports: if ports.is_empty() { single.into() } else { ports.into() },
        affinity_seconds: some(random, |random| 1 + random.below(86_400) as u32),
        internal_traffic_policy: traffic_policy(random),
        external_traffic_policy: traffic_policy(random),
        health_check_node_port: some(random, port),
        annotations: ProxyAnnotations {
            scheduler,
            scheduler_flags,
            local: random.chance(50),
            skip_load_balancer_ips: random.chance(50),
            dsr: random.chance(50),
        },
        announce: AnnounceAnnotations {
            cluster_ips: some(random, |random| random.chance(50)),
            external_ips: some(random, |random| random.chance(50)),
            load_balancer_ips: some(random, |random| random.chance(50)),
        },
        created: if random.chance(30) { 0 } else { random.below(4_000_000_000) as i64 },
    }
}

fn slice_of(random: &mut Random) -> EndpointSlice {
    let family = family(random);
    let ports = (0..1 + random.below(3)).map(|number| EndpointPort {
        name: if number == 0 { "".into() } else { format!("port-{number}").into() },
        protocol: protocol(random),
        port: port(random),
    });
    let ports: Vec<EndpointPort> = ports.collect();
    let has_hints = random.chance(30);
    let endpoints = (0..random.below(6)).map(|_| Endpoint {
        address: address_of(random, family),
        node: some(random, |random| format!("node-{}", random.below(4)).as_str().into()),
        conditions: Conditions { ready: random.chance(50), serving: random.chance(50), terminating: random.chance(50) },
        hints: some(random, hints).filter(|hints| has_hints && **hints != Hints::default()),
    });
    let endpoints: Vec<Endpoint> = endpoints.collect();
    EndpointSlice { family, ports: ports.into(), endpoints: endpoints.into() }
}

fn hints(random: &mut Random) -> Arc<Hints> {
    let mut words = || (0..random.below(3)).map(|_| word(random)).collect();
    Arc::new(Hints { zones: words(), nodes: words() })
}

fn node(random: &mut Random) -> Node {
    let listed = addresses(random, 0, 3).into_iter().map(|address| NodeAddress {
        kind: if random.chance(50) { NodeAddressKind::Internal } else { NodeAddressKind::External },
        address,
    });
    let listed = listed.collect();
    let zone = some(random, word);
    let system = some(random, |random| *random.pick(&["linux", "windows"]));
    let all = labels(random);
    let own = zone.iter().map(|zone| ("topology.kubernetes.io/zone", zone.as_str()));
    let own = own.chain(system.map(|system| ("kubernetes.io/os", system)));
    let mut pod_cidrs: Vec<IpNet> = Vec::new();
    for range in (0..random.below(3)).map(|_| range_of_pods(random)).collect::<Vec<_>>() {
        if !pod_cidrs.contains(&range) {
            pod_cidrs.push(range);
        }
    }
    let spec_pod_cidrs = (!pod_cidrs.is_empty() && random.chance(30)).then(|| {
        let other = range_of_pods(random);
        let spec: Vec<IpNet> = pod_cidrs.iter().skip(1).copied().chain(random.chance(50).then_some(other)).collect();
        spec.into_boxed_slice()
    });
    let spec_pod_cidrs = spec_pod_cidrs.filter(|spec| **spec != *pod_cidrs);
    let should_announce = random.chance(50) && system != Some("windows");
    let detected = some(random, |random| addresses(random, 1, 1)).into_iter().flatten().next();
    let mut node = Node {
        created: if random.chance(30) { 0 } else { random.below(4_000_000_000) as i64 },
        addresses: listed,
        pod_cidrs,
        spec_pod_cidrs,
        network_unavailable: random.chance(50),
        should_announce,
        is_shutting_down: !should_announce && random.chance(50),
        ec2_instance: some(random, |_| "i-0123456789abcdef0".into()),
        wireguard_key: some(random, |random| PublicKey::new(&[1 + random.below(255) as u8; 32])).flatten(),
        wireguard_next_key: some(random, |random| PublicKey::new(&[1 + random.below(255) as u8; 32])).flatten(),
        labels: all.iter().chain(own).collect(),
        zone,
        taints: (0..random.below(3))
            .map(|_| Taint { key: word(random), value: some(random, word).unwrap_or_default(), effect: word(random) })
            .collect(),
        routing: some(random, routing).filter(|routing| *routing != Routing::default()).map(Box::new),
    };
    node.set_detected(PerFamily::from_fn(|family| detected.filter(|address| Family::from(*address) == family)));
    node
}

fn routing(random: &mut Random) -> Routing {
    let id = (1 + random.below(1000) as u32).into();
    let mut communities: Vec<u32> = (0..random.below(3)).map(|_| random.next() as u32).collect();
    communities.dedup();
    Routing {
        asn: some(random, |random| 64_512 + random.below(100) as u32),
        reflection: *random.pick(&[Reflection::None, Reflection::Server(id), Reflection::Client(id)]),
        prepend: some(random, |random| Prepend { asn: 64_512, times: 1 + random.below(255) as u8 }),
        communities,
        import_reject: sorted((0..random.below(3)).map(|_| range(random)).collect()).into(),
        peers: (0..random.below(3)).map(|_| external_peer(random)).collect(),
        local_addresses: addresses(random, 0, 2),
        ..Routing::default()
    }
}

fn external_peer(random: &mut Random) -> ExternalPeer {
    let family = family(random);
    let secret = Secret::from_base64(SECRET).expect("sound").expect("a secret");
    let mut number = |most: u64| 1 + random.below(most as usize);
    let bfd = Bfd {
        port: number(65_535) as u16,
        multiplier: number(255) as u8,
        send: number(*Bfd::MILLISECONDS.end()) as u32,
        receive: number(*Bfd::MILLISECONDS.end()) as u32,
    };
    // One behind an interface is on the link, has link-local addresses, and may be of any other system.
    let link = random.chance(20).then(|| Remote::link(&format!("eth{}", random.below(1 << 16))).expect("a name"));
    let number = RemoteAs::Number(64_600 + random.below(100) as u32);
    let is_link = link.is_some();
    let distances = [Distance::Usual, Distance::Multihop(4), Distance::Secured(2)];
    ExternalPeer {
        remote: link.unwrap_or_else(|| Remote::Address(address_of(random, family))),
        asn: if is_link && random.chance(50) { RemoteAs::External } else { number },
        port: some(random, port),
        password: random
            .pick(&[Password::None, Password::Unknown, Password::Key(secret), Password::File("tor.key".into())])
            .clone(),
        local: some(random, |random| address_of(random, family)).filter(|_| !is_link),
        bfd: some(random, |_| bfd),
        hold_time: some(random, |random| 3 + random.below(100) as u16),
        distance: if is_link { Distance::Usual } else { *random.pick(&distances) },
        long_lived: some(random, |random| random.below(1 << 24) as u32),
        prefix_limits: PerFamily {
            v4: some(random, |random| 1 + random.below(1000) as u32),
            v6: some(random, |random| 1 + random.below(1000) as u32),
        },
        next_hop_self: some(random, |random| random.chance(50)),
    }
}

fn pod(random: &mut Random) -> Pod {
    let node = some(random, |random| *random.pick(&[HERE, "node-2"]));
    let ports = (0..random.below(3)).map(|number| NamedPort {
        name: format!("port-{number}").into(),
        protocol: protocol(random),
        number: port(random),
    });
    let mut ports: Vec<NamedPort> = ports.collect();
    ports.sort();
    Pod {
        // The World has those of this node alone.
        uid: some(random, |random| PodUid::from_number(random.next() as u32)).flatten().filter(|_| node == Some(HERE)),
        labels: labels(random),
        addresses: addresses(random, 0, 3).into(),
        node: node.map(Into::into),
        host_network: random.chance(50),
        finished: random.chance(50),
        ports: ports.into(),
    }
}

fn selector(random: &mut Random) -> Selector {
    let requirement = |random: &mut Random| {
        let mut values: Vec<CompactString> = (0..1 + random.below(3)).map(|_| word(random)).collect();
        values.sort();
        values.dedup();
        let operator = match random.below(4) {
            0 => Operator::In(values.into()),
            1 => Operator::NotIn(values.into()),
            2 => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        // The API server refuses an empty key, and a manifest may have one.
        let key = match &operator {
            Operator::In(values) if values.len() == 1 && random.chance(5) => "".into(),
            _ => word(random),
        };
        Requirement { key, operator }
    };
    let all: Vec<Requirement> = (0..random.below(4)).map(|_| requirement(random)).collect();
    let mut nameless = 0;
    all.into_iter().filter(|one| !one.key.is_empty() || std::mem::replace(&mut nameless, 1) == 0).collect()
}

fn network_policy(random: &mut Random) -> NetworkPolicy {
    let rules = |random: &mut Random| -> Box<[PolicyRule]> {
        (0..random.below(4)).map(|_| PolicyRule { peers: peers(random), ports: ports(random) }).collect()
    };
    let (ingress, egress) = (some(random, rules), some(random, rules));
    // A policy has a direction.
    let ingress = ingress.or_else(|| egress.is_none().then(Box::default));
    NetworkPolicy { pods: selector(random), ingress, egress }
}

fn peers(random: &mut Random) -> Peers {
    let peer = |random: &mut Random| match random.below(3) {
        0 => block(random),
        1 => Peer::Pods { namespaces: Namespaces::Own, pods: selector(random) },
        _ => Peer::Pods { namespaces: Namespaces::Selected(selector(random)), pods: selector(random) },
    };
    match random.below(4) {
        0 => Peers::Any,
        // None of them was understood.
        1 => Peers::Of([].into()),
        _ => Peers::Of((0..1 + random.below(3)).map(|_| peer(random)).collect()),
    }
}

fn block(random: &mut Random) -> Peer {
    let cidr = range(random);
    let length = cidr.prefix_len();
    let hole = |random: &mut Random| match random.chance(20) {
        true => cidr,
        false => {
            IpNet::new(cidr.addr(), (length + 1 + random.below(4) as u8).min(cidr.max_prefix_len())).expect("short")
        }
    };
    let holes =
        (0..random.below(3)).map(|_| hole(random)).filter(|hole| length < cidr.max_prefix_len() || *hole == cidr);
    Peer::Block { cidr, except: sorted(holes.collect()) }
}

fn ports(random: &mut Random) -> Ports {
    let number = |random: &mut Random| match random.below(3) {
        0 => PortMatch::Any,
        1 => PortMatch::Named("web-1".into()),
        _ => range_of_ports(random),
    };
    match random.below(4) {
        0 => Ports::Any,
        1 => Ports::Of([].into()),
        _ => {
            let port = |random: &mut Random| PolicyPort { protocol: protocol(random), number: number(random) };
            Ports::Of((0..1 + random.below(3)).map(|_| port(random)).collect())
        }
    }
}

fn range_of_ports(random: &mut Random) -> PortMatch {
    let first = port(random);
    let last = if random.chance(50) { first } else { first.saturating_add(random.below(100) as u16) };
    PortMatch::Range { first, last }
}

fn cluster_policy(random: &mut Random) -> ClusterNetworkPolicy {
    let rules = |random: &mut Random, is_egress| -> Box<[ClusterRule]> {
        (0..random.below(4)).map(|_| cluster_rule(random, is_egress)).collect()
    };
    ClusterNetworkPolicy {
        tier: *random.pick(&[Tier::Admin, Tier::Baseline]),
        priority: random.below(1001) as u16,
        subject: Subject { namespaces: selector(random), pods: selector(random) },
        ingress: rules(random, false),
        egress: rules(random, true),
    }
}

fn cluster_rule(random: &mut Random, is_egress: bool) -> ClusterRule {
    let name = some(random, word).unwrap_or_default();
    // A rule that makes no sense fails closed.
    if random.chance(20) {
        let nothing = PolicyRule { peers: Peers::Of([].into()), ports: Ports::Of([].into()) };
        let everything = PolicyRule { peers: Peers::Any, ports: Ports::Any };
        let (action, matches) = if random.chance(50) { (Action::Accept, nothing) } else { (Action::Deny, everything) };
        return ClusterRule { name, action, matches };
    }
    let peer = |random: &mut Random| match random.below(if is_egress { 4 } else { 2 }) {
        0 | 1 => Peer::Pods { namespaces: Namespaces::Selected(selector(random)), pods: selector(random) },
        2 => Peer::Block { cidr: range(random), except: [].into() },
        _ => Peer::Nodes(selector(random)),
    };
    let peers: Box<[Peer]> = (0..1 + random.below(3)).map(|_| peer(random)).collect();
    let may_be_named = peers.iter().all(|peer| matches!(peer, Peer::Pods { .. }));
    let port = |random: &mut Random| match may_be_named && random.chance(30) {
        true => {
            Protocol::ALL.map(|protocol| PolicyPort { protocol, number: PortMatch::Named("web-1".into()) }).to_vec()
        }
        false => vec![PolicyPort { protocol: protocol(random), number: range_of_ports(random) }],
    };
    let ports = some(random, |random| (0..1 + random.below(3)).flat_map(|_| port(random)).collect());
    ClusterRule {
        name,
        action: *random.pick(&[Action::Accept, Action::Deny, Action::Pass]),
        matches: PolicyRule { peers: Peers::Of(peers), ports: ports.map_or(Ports::Any, Ports::Of) },
    }
}
