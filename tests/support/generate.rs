//! Clusters made by chance, and how they change.
//!
//! The pools are small on purpose: Services claim each other's addresses and ports, name the host's own address and
//! each other's cluster addresses as external ones, lose their endpoints and get them back, and share slices.

use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;
use sluice::model::{
    AnnounceAnnotations, Authority, Cluster, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Hints, Host,
    HostAddress, LoadBalancerAddress, Node, NodeAddress, NodeAddressKind, ObjectName, ProxyAnnotations, Scheduler,
    SchedulerFlags, Service, ServiceCidr, ServicePort, ServiceType, Table, TrafficPolicy, World,
};
use sluice::net::{Family, Protocol};

use super::memory::{HOST_V4, HOST_V6};
use super::random::Random;

const PORTS: [u16; 3] = [53, 80, 443];
const PORT_NAMES: [&str; 3] = ["", "http", "dns"];
const NODES: [&str; 3] = ["node1", "node2", "node3"];
const ZONES: [&str; 2] = ["east", "west"];

/// The words of [`change`] for a Node that got another zone and nothing else.
pub const OTHER_ZONE: &str = "change the zone of the Node";

/// A World in which nothing but this host is known.
pub fn empty_world() -> World {
    let mut world = World::empty();
    world.host = Arc::new(host(true));
    (world.authority.proxy, world.authority.router) = (Authority::Complete, Authority::Complete);
    world
}

/// A World with so many changes in it.
pub fn world(random: &mut Random, changes: usize) -> World {
    let mut world = empty_world();
    for _ in 0..changes {
        change(&mut world, random);
    }
    world
}

/// Changes one thing, and says what.
pub fn change(world: &mut World, random: &mut Random) -> String {
    match random.below(100) {
        0..=19 => put_service(&mut world.cluster, random),
        20..=29 => edit_service(&mut world.cluster, random),
        30..=37 => remove_service(&mut world.cluster, random),
        38..=39 => put_zone(&mut world.cluster, random),
        40..=57 => put_slice(&mut world.cluster, random),
        58..=89 => edit_endpoint(&mut world.cluster, random),
        90..=93 => remove_slice(&mut world.cluster, random),
        94 => put_service_cidr(&mut world.cluster, random),
        95..=96 => put_node(&mut world.cluster, random),
        _ => put_host(world, random),
    }
}

/// The same World, taken in all at once by somebody who shares nothing with the one who made it.
pub fn copied(world: &World) -> World {
    let mut copy = World { cluster: Cluster::default(), ..world.clone() };
    copy_rows(&world.cluster.services, &mut copy.cluster.services);
    copy_rows(&world.cluster.endpoints, &mut copy.cluster.endpoints);
    copy_rows(&world.cluster.nodes, &mut copy.cluster.nodes);
    copy_rows(&world.cluster.service_cidrs, &mut copy.cluster.service_cidrs);
    copy
}

fn copy_rows<K: Ord + Clone + std::hash::Hash, V: PartialEq + Clone>(from: &Table<K, V>, to: &mut Table<K, V>) {
    for (key, row) in from.iter() {
        to.insert(key.clone(), (**row).clone());
    }
}

/// Changes the ranges that cluster IPs come from: some with external addresses in them, some beside those of the flag.
pub fn put_service_cidr(cluster: &mut Cluster, random: &mut Random) -> String {
    let name = *random.pick(&["kubernetes", "more"]);
    if random.chance(30) {
        cluster.service_cidrs.remove(&name.into());
        return format!("remove ServiceCIDR {name}");
    }
    let pool =
        ["10.96.0.0/12", "10.0.0.0/16", "203.0.113.0/30", "203.0.113.4/30", "fd00:10:96::/108", "2001:db8:113::/64"];
    let ranges: Box<[IpNet]> = (0..1 + random.below(2)).map(|_| random.pick(&pool).parse().expect("a range")).collect();
    let told = format!("put ServiceCIDR {name} {ranges:?}");
    cluster.service_cidrs.insert(name.into(), ServiceCidr { ranges });
    told
}

/// A Service with this in every field that chance does not decide.
pub fn service(random: &mut Random) -> Service {
    let mut cluster_ips = vec![address(random, "10.96.0.", "fd00:10:96::", 8)];
    if random.chance(40) {
        let second = address(random, "10.96.0.", "fd00:10:96::", 8);
        if Family::from(second) != Family::from(cluster_ips[0]) {
            cluster_ips.push(second);
        }
    }
    let annotated = random.chance(40);
    Service {
        kind: *random.pick(&[ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer]),
        cluster_ips,
        external_ips: (0..random.below(3)).map(|_| outer_address(random)).collect(),
        load_balancer: (0..random.below(2))
            .map(|_| LoadBalancerAddress { address: outer_address(random), through_balancer: random.chance(20) })
            .collect(),
        source_ranges: source_ranges(random),
        ports: ports(random).into(),
        affinity_seconds: random.chance(20).then(|| *random.pick(&[60, 10_800])),
        internal_traffic_policy: policy(random),
        external_traffic_policy: policy(random),
        health_check_node_port: random.chance(30).then(|| 30_100 + random.below(4) as u16),
        annotations: if annotated { annotations(random) } else { ProxyAnnotations::default() },
        announce: AnnounceAnnotations::default(),
        created: random.below(4) as i64,
    }
}

/// Ranges with the clients that packets are traced for, without them, and such that make no sense.
fn source_ranges(random: &mut Random) -> Option<Box<[IpNet]>> {
    let pool = ["198.51.100.0/24", "2001:db8:100::/48", "10.0.0.0/8", "203.0.113.128/25", "0.0.0.0/0", "fd00::/8"];
    let some = (0..random.below(4)).map(|_| random.pick(&pool).parse().expect("a range"));
    let mut ranges: Vec<IpNet> = some.collect();
    ranges.sort();
    ranges.dedup();
    random.chance(50).then(|| ranges.into())
}

fn ports(random: &mut Random) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for _ in 0..1 + random.below(3) {
        let port = ServicePort {
            name: (*random.pick(&PORT_NAMES)).into(),
            protocol: *random.pick(&Protocol::ALL),
            port: *random.pick(&PORTS),
            node_port: random.chance(40).then(|| 30_000 + random.below(4) as u16),
        };
        // The door lets no port and no name in twice.
        if !ports.iter().any(|p| p.name == port.name || (p.port, p.protocol) == (port.port, port.protocol)) {
            ports.push(port);
        }
    }
    ports
}

fn annotations(random: &mut Random) -> ProxyAnnotations {
    // Those that treat draining each in their own way come often.
    let often: &[Scheduler] = &[Scheduler::Rr, Scheduler::Sh, Scheduler::Dh];
    let schedulers = if random.chance(50) { often } else { &Scheduler::ALL };
    let mut flag = || random.chance(30);
    let scheduler_flags = SchedulerFlags { flag_1: flag(), flag_2: flag(), flag_3: flag() };
    ProxyAnnotations {
        scheduler: *random.pick(schedulers),
        scheduler_flags,
        local: random.chance(20),
        skip_load_balancer_ips: random.chance(20),
        dsr: random.chance(50),
    }
}

fn policy(random: &mut Random) -> TrafficPolicy {
    if random.chance(25) { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// Mostly an address from outside; sometimes the host's own, or one of another Service.
fn outer_address(random: &mut Random) -> IpAddr {
    match random.below(10) {
        0 => *random.pick(&[HOST_V4, HOST_V6]),
        1 => address(random, "10.96.0.", "fd00:10:96::", 8),
        _ => address(random, "203.0.113.", "2001:db8:113::", 4),
    }
}

fn address(random: &mut Random, v4: &str, v6: &str, count: usize) -> IpAddr {
    let number = 1 + random.below(count);
    let text = if random.chance(65) { format!("{v4}{number}") } else { format!("{v6}{number}") };
    text.parse().expect("an address")
}

fn service_name(random: &mut Random) -> ObjectName {
    let namespace = *random.pick(&["default", "shop"]);
    let name: &str = random.pick::<&str>(&["web", "api", "dns", "db", "queue"]);
    ObjectName::new(namespace, name)
}

fn put_service(cluster: &mut Cluster, random: &mut Random) -> String {
    let name = service_name(random);
    let service = service(random);
    cluster.services.insert(name.clone(), service);
    if random.chance(80) {
        put_slice_of(cluster, name.clone(), random);
    }
    format!("put Service {name}")
}

fn edit_service(cluster: &mut Cluster, random: &mut Random) -> String {
    let Some((name, old)) = random.pick_from(cluster.services.iter().map(|(n, s)| (n.clone(), s.clone()))) else {
        return put_service(cluster, random);
    };
    let (mut edited, other) = ((*old).clone(), service(random));
    let part = *random.pick(&[
        "external IPs",
        "balancer",
        "sources",
        "ports",
        "affinity",
        "policies",
        "annotations",
        "age",
        "kind",
    ]);
    match part {
        "external IPs" => edited.external_ips = other.external_ips,
        "balancer" => edited.load_balancer = other.load_balancer,
        "sources" => edited.source_ranges = source_ranges(random),
        "ports" => edited.ports = other.ports,
        "affinity" => edited.affinity_seconds = other.affinity_seconds,
        "policies" => {
            edited.internal_traffic_policy = other.internal_traffic_policy;
            edited.external_traffic_policy = other.external_traffic_policy;
        }
        "annotations" => edited.annotations = annotations(random),
        "age" => edited.created = other.created,
        _ => edited.kind = other.kind,
    }
    cluster.services.insert(name.clone(), edited);
    format!("edit {part} of {name}")
}

fn remove_service(cluster: &mut Cluster, random: &mut Random) -> String {
    let Some(name) = random.pick_from(cluster.services.iter().map(|(name, _)| name.clone())) else {
        return put_service(cluster, random);
    };
    cluster.services.remove(&name);
    format!("remove Service {name}")
}

fn put_slice(cluster: &mut Cluster, random: &mut Random) -> String {
    let known = random.pick_from(cluster.services.iter().map(|(name, _)| name.clone()));
    let name = known.unwrap_or_else(|| service_name(random));
    put_slice_of(cluster, name.clone(), random);
    format!("put a slice of {name}")
}

fn put_slice_of(cluster: &mut Cluster, name: ObjectName, random: &mut Random) {
    let mut endpoints = cluster.endpoints.get(&name).map_or_else(Endpoints::default, |known| (**known).clone());
    let slice = format!("{}-{}", name.name, random.below(3));
    endpoints.slices.insert(slice.as_str().into(), Arc::new(endpoint_slice(random)));
    cluster.endpoints.insert(name, endpoints);
}

fn endpoint_slice(random: &mut Random) -> EndpointSlice {
    let family = if random.chance(65) { Family::V4 } else { Family::V6 };
    let port = |name: &str, random: &mut Random| EndpointPort {
        name: name.into(),
        protocol: *random.pick(&Protocol::ALL),
        // Often that of a Service, as tunnels need it.
        port: *random.pick(&[8080, 8443, 80, 80, 53, 443]),
    };
    let mut ports = Vec::new();
    for name in PORT_NAMES {
        for _ in 0..random.below(3) {
            ports.push(port(name, random));
        }
    }
    let endpoints = (0..random.below(5)).map(|_| endpoint(family, random)).collect();
    EndpointSlice { family, ports: ports.into(), endpoints }
}

fn endpoint(family: Family, random: &mut Random) -> Endpoint {
    let number = 1 + random.below(6);
    let address = match family {
        Family::V4 => format!("10.244.{}.{number}", random.below(2)),
        Family::V6 => format!("fd00:10:244:{}::{number}", random.below(2)),
    };
    Endpoint {
        address: address.parse().expect("an address"),
        node: random.chance(90).then(|| (*random.pick(&NODES)).into()),
        conditions: conditions(random),
        hints: random.chance(70).then(|| hints(random)).flatten(),
    }
}

/// For each sort none, or one, so that all endpoints of a slice often have some.
fn hints(random: &mut Random) -> Option<Arc<Hints>> {
    let mut list = |pool: &[&str], percent| -> Box<[CompactString]> {
        random.chance(percent).then(|| (*random.pick(pool)).into()).into_iter().collect()
    };
    let hints = Hints { zones: list(&ZONES, 90), nodes: list(&NODES, 50) };
    (hints != Hints::default()).then(|| Arc::new(hints))
}

fn conditions(random: &mut Random) -> Conditions {
    if random.chance(60) {
        return Conditions::READY;
    }
    Conditions { ready: random.chance(30), serving: random.chance(60), terminating: random.chance(60) }
}

/// Changes the conditions of one endpoint, adds one or takes one away.
fn edit_endpoint(cluster: &mut Cluster, random: &mut Random) -> String {
    let Some((name, old)) = random.pick_from(cluster.endpoints.iter().map(|(n, e)| (n.clone(), e.clone()))) else {
        return put_slice(cluster, random);
    };
    let mut endpoints = (*old).clone();
    let Some((slice_name, slice)) = random.pick_from(endpoints.slices.iter().map(|(n, s)| (n.clone(), s.clone())))
    else {
        return put_slice(cluster, random);
    };
    let mut slice = (*slice).clone();
    let mut list = slice.endpoints.to_vec();
    let what = if list.is_empty() || random.chance(25) {
        list.push(endpoint(slice.family, random));
        "add an endpoint to"
    } else {
        let index = random.below(list.len());
        if random.chance(30) {
            list.remove(index);
            "take an endpoint from"
        } else {
            list[index].conditions = conditions(random);
            "change an endpoint of"
        }
    };
    slice.endpoints = list.into();
    endpoints.slices.insert(slice_name, Arc::new(slice));
    cluster.endpoints.insert(name.clone(), endpoints);
    format!("{what} {name}")
}

fn remove_slice(cluster: &mut Cluster, random: &mut Random) -> String {
    let Some((name, old)) = random.pick_from(cluster.endpoints.iter().map(|(n, e)| (n.clone(), e.clone()))) else {
        return put_slice(cluster, random);
    };
    let mut endpoints = (*old).clone();
    if let Some(slice) = random.pick_from(endpoints.slices.keys().cloned()) {
        endpoints.slices.remove(&slice);
    }
    if endpoints.slices.is_empty() {
        cluster.endpoints.remove(&name);
    } else {
        cluster.endpoints.insert(name.clone(), endpoints);
    }
    format!("remove a slice of {name}")
}

/// The label of this host's Node alone.
fn put_zone(cluster: &mut Cluster, random: &mut Random) -> String {
    let name = "node1".into();
    let Some(node) = cluster.nodes.get(&name).map(|node| (**node).clone()) else { return put_node(cluster, random) };
    let zone = random.chance(80).then(|| (*random.pick(&ZONES)).into());
    cluster.nodes.insert(name, Node { zone, ..node });
    OTHER_ZONE.to_owned()
}

fn put_node(cluster: &mut Cluster, random: &mut Random) -> String {
    if random.chance(30) {
        return put_other_node(cluster, random);
    }
    let name = "node1".into();
    if random.chance(25) {
        cluster.nodes.remove(&name);
        return "remove the Node".to_owned();
    }
    let internal = |address| NodeAddress { kind: NodeAddressKind::Internal, address };
    let zone = random.chance(70).then(|| (*random.pick(&ZONES)).into());
    let mut node = Node { addresses: vec![internal(HOST_V4)], zone, ..Node::default() };
    if random.chance(70) {
        node.addresses.push(internal(HOST_V6));
    }
    for cidr in ["10.244.0.0/24", "10.244.9.0/24", "fd00:10:244::/64"] {
        if random.chance(60) {
            node.pod_cidrs.push(cidr.parse().expect("a prefix"));
        }
    }
    cluster.nodes.insert(name, node);
    "put the Node".to_owned()
}

/// Another node comes, goes, or has other addresses: such as Services name as external ones, and one that it shares with us.
fn put_other_node(cluster: &mut Cluster, random: &mut Random) -> String {
    let name: CompactString = (*random.pick(&["node0", "node2"])).into();
    if random.chance(30) {
        cluster.nodes.remove(&name);
        return "remove the Node".to_owned();
    }
    let mut addresses: Vec<IpAddr> =
        (0..random.below(3)).map(|_| address(random, "203.0.113.", "2001:db8:113::", 4)).collect();
    if random.chance(20) {
        addresses.push(HOST_V4);
    }
    let external = |address| NodeAddress { kind: NodeAddressKind::External, address };
    let node = Node { addresses: addresses.into_iter().map(external).collect(), ..Node::default() };
    cluster.nodes.insert(name, node);
    "put the Node".to_owned()
}

fn put_host(world: &mut World, random: &mut Random) -> String {
    world.host = Arc::new(host(random.chance(60)));
    "change the host's addresses".to_owned()
}

/// This host, with one device or with a second one.
pub fn host(second: bool) -> Host {
    let on = |link: &str, address: IpAddr, global| HostAddress { address, link: link.into(), global };
    let parse = |text: &str| text.parse().expect("an address");
    let mut addresses = vec![
        on("lo", parse("127.0.0.1"), false),
        on("eth0", HOST_V4, true),
        on("eth0", HOST_V6, true),
        on("eth0", parse("fe80::1"), false),
    ];
    if second {
        addresses.push(on("eth1", parse("192.0.2.65"), true));
    }
    addresses.sort();
    Host { node_name: "node1".into(), addresses, ..Host::default() }
}
