//! Clusters with policies, made by chance, how they change, and packets to try on them.
//!
//! The pools are small on purpose: pods replace each other at one address, selectors select several of them, blocks
//! cover pods and each other's holes, port names mean other numbers elsewhere, and names of namespaces and policies run
//! together to the same text.

use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;
use sluice::firewall::verdict::{Packet, Traffic};
use sluice::model::{
    Authority, Cluster, Host, HostAddress, Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, ObjectName,
    Operator, Peer, Peers, Pod, PolicyPort, PolicyRule, PortMatch, Ports, Requirement, Selector, Shared, World,
};
use sluice::net::Protocol;

use super::support::generate;
use super::support::random::Random;
use super::{services, tiers};

const NAMESPACES: [&str; 3] = ["a", "ab", "b"];
const PODS: [&str; 6] = ["p0", "p1", "p2", "p3", "p4", "p5"];
const POLICIES: [&str; 4] = ["bc", "c", "x", "y"];
const NODES: [&str; 2] = ["node1", "node2"];
pub const LABELS: [(&str, &[&str]); 3] =
    [("app", &["web", "db", "api"]), ("tier", &["front", "back"]), ("canary", &[""])];
pub const OF_NAMESPACES: [(&str, &[&str]); 2] = [("team", &["red", "blue"]), ("stage", &["test", "live"])];
const PORT_NAMES: [&str; 3] = ["http", "dns", "nobody"];
const NUMBERS: [u16; 4] = [53, 80, 81, 8080];
/// Addresses of pods are the first of these prefixes, so that blocks can cover some of them.
const POD_ADDRESSES: usize = 8;
const BLOCKS: [&str; 20] = [
    "0.0.0.0/0",
    "::/0",
    "10.244.0.0/29",
    "10.244.0.0/30",
    "10.244.0.4/30",
    "10.244.0.2/31",
    "10.244.0.5/32",
    "10.244.0.0/16",
    "fd00:10:244::/125",
    "fd00:10:244::/126",
    "fd00:10:244::4/127",
    "fd00:10:244::6/128",
    "203.0.113.0/24",
    "203.0.113.8/29",
    "203.0.113.9/32",
    "192.0.2.0/24",
    "2001:db8:113::/64",
    "2001:db8:113::9/128",
    "64:ff9b::/96",
    "128.0.0.0/1",
];
const OTHERS: [&str; 13] = [
    "192.0.2.11",
    "192.0.2.12",
    "203.0.113.1",
    "203.0.113.9",
    "2001:db8:2::11",
    "2001:db8:2::12",
    "2001:db8:113::9",
    "64:ff9b::1",
    "fe80::1",
    "224.0.0.251",
    "255.255.255.255",
    "ff02::fb",
    "ff05::fb",
];

/// A World in which nothing but this host is known.
pub fn empty_world() -> World {
    let mut world = World::empty();
    world.host = Arc::new(host(NODES[0]));
    world.authority.proxy = Authority::Complete;
    world
}

fn host(name: &str) -> Host {
    let own = if name == NODES[0] { [OTHERS[0], OTHERS[4]] } else { [OTHERS[1], OTHERS[5]] };
    let own =
        own.map(|text| HostAddress { address: text.parse().expect("an address"), link: "eth0".into(), global: true });
    Host { node_name: name.into(), addresses: own.into(), ..Host::default() }
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
    let cluster = &mut world.cluster;
    match random.below(100) {
        0..=29 => put_pod(cluster, random),
        30..=41 => edit_pod(cluster, random),
        42..=47 => remove_one(&mut cluster.pods, random),
        48..=59 => put_namespace(cluster, random),
        60..=62 => remove_one(&mut cluster.namespaces, random),
        63..=83 => put_policy(cluster, random),
        84..=90 => services::change(cluster, random, &addresses()),
        91 => generate::put_service_cidr(cluster, random),
        92..=94 => remove_one(&mut cluster.policies, random),
        95..=98 => tiers::change(cluster, random),
        _ => {
            let name = *random.pick(&NODES);
            world.host = Arc::new(host(name));
            format!("this node is {name}")
        }
    }
}

/// The same World, taken in by somebody who shares nothing with the one who made it.
pub fn copied(world: &World) -> World {
    let mut copy = World { cluster: Cluster::default(), ..world.clone() };
    for (name, pod) in world.cluster.pods.iter() {
        copy.cluster.pods.insert(name.clone(), (**pod).clone());
    }
    for (name, namespace) in world.cluster.namespaces.iter() {
        copy.cluster.namespaces.insert(name.clone(), (**namespace).clone());
    }
    for (name, service) in world.cluster.services.iter() {
        copy.cluster.services.insert(name.clone(), (**service).clone());
    }
    for (name, of) in world.cluster.service_cidrs.iter() {
        copy.cluster.service_cidrs.insert(name.clone(), (**of).clone());
    }
    for (name, endpoints) in world.cluster.endpoints.iter() {
        copy.cluster.endpoints.insert(name.clone(), (**endpoints).clone());
    }
    for (name, node) in world.cluster.nodes.iter() {
        copy.cluster.nodes.insert(name.clone(), (**node).clone());
    }
    for (name, policy) in world.cluster.policies.iter() {
        copy.cluster.policies.insert(name.clone(), (**policy).clone());
    }
    for (name, policy) in world.cluster.cluster_policies.iter() {
        copy.cluster.cluster_policies.insert(name.clone(), (**policy).clone());
    }
    copy
}

/// A pod of this node that no policy selects.
pub fn put_plain_pod(world: &mut World, address: &str) {
    let pod = plain_pod(address.parse().expect("an address"), NODES[0]);
    world.cluster.pods.insert(ObjectName::new("plain", address), pod);
}

/// Many pods of another node, and one of this node that all of them may reach.
pub fn put_many_pods(world: &mut World, count: u32) {
    for number in 0..count {
        let address = IpAddr::from((0x0a80_0000 + number).to_be_bytes());
        world.cluster.pods.insert(ObjectName::new("many", &number.to_string()), plain_pod(address, NODES[1]));
    }
    world.cluster.pods.insert(ObjectName::new("many", "here"), plain_pod([10, 244, 0, 7].into(), NODES[0]));
    let peer = Peer::Pods { namespaces: Namespaces::Own, pods: Selector::everything() };
    let rule = PolicyRule { peers: Peers::Of([peer].into()), ports: Ports::Any };
    let policy = NetworkPolicy { pods: Selector::everything(), ingress: Some([rule].into()), egress: None };
    world.cluster.policies.insert(ObjectName::new("many", "all"), policy);
}

fn plain_pod(address: IpAddr, node: &str) -> Pod {
    Pod {
        uid: None,
        labels: Labels::default(),
        addresses: [address].into(),
        node: Some(node.into()),
        host_network: false,
        finished: false,
        ports: [].into(),
    }
}

/// A packet between any two of the addresses in use and some outside.
pub fn packet(random: &mut Random) -> Packet {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses().into_iter().partition(IpAddr::is_ipv4);
    let family = if random.chance(50) { v4 } else { v6 };
    let (source, destination) = (*random.pick(&family), *random.pick(&family));
    let traffic = match random.below(13) {
        12 => Traffic::Tunnel,
        0 => Traffic::Icmp { kind: *random.pick(&[0, 1, 2, 3, 8, 11, 13, 128, 129, 133, 134, 135, 136, 137, 143]) },
        _ => Traffic::Port { protocol: *random.pick(&Protocol::ALL), port: *random.pick(&[53, 80, 81, 82, 8080]) },
    };
    let from_this_node = OTHERS[0].parse() == Ok(source) || OTHERS[4].parse() == Ok(source);
    Packet { source, destination, traffic, from_this_node }
}

/// All addresses in use.
pub fn addresses() -> Vec<IpAddr> {
    let others = OTHERS.iter().map(|text| text.parse().expect("an address"));
    (0..POD_ADDRESSES).flat_map(pod_addresses).chain(others).collect()
}

fn pod_addresses(number: usize) -> [IpAddr; 2] {
    let number = u16::try_from(number).expect("there are few pods");
    [IpAddr::from([10, 244, 0, number as u8]), IpAddr::from([0xfd00, 0x10, 0x244, 0, 0, 0, 0, number])]
}

fn put_pod(cluster: &mut Cluster, random: &mut Random) -> String {
    let name = name(random, &NAMESPACES, &PODS);
    let host_network = random.chance(8);
    let node = *random.pick(&NODES);
    let own = pod_addresses(random.below(POD_ADDRESSES));
    let addresses: Vec<IpAddr> = match random.below(20) {
        _ if host_network => vec![if node == NODES[0] { OTHERS[0] } else { OTHERS[1] }.parse().expect("an address")],
        0 => Vec::new(),
        1..=4 => own[..1].to_vec(),
        5..=7 => own[1..].to_vec(),
        8 => vec![own[0], pod_addresses(random.below(POD_ADDRESSES))[1]],
        _ => own.to_vec(),
    };
    let pod = Pod {
        uid: None,
        labels: labels(random, &LABELS),
        addresses: addresses.into(),
        node: random.chance(95).then(|| node.into()),
        host_network,
        finished: random.chance(10),
        ports: ports(random),
    };
    let told = format!("pod {name} {pod:?}");
    cluster.pods.insert(name, pod);
    told
}

fn edit_pod(cluster: &mut Cluster, random: &mut Random) -> String {
    let Some((name, pod)) = random.pick_from(cluster.pods.iter()) else { return "nothing".into() };
    let (name, mut pod) = (name.clone(), (**pod).clone());
    match random.below(4) {
        0 => pod.finished = !pod.finished,
        1 => pod.addresses = pod_addresses(random.below(POD_ADDRESSES)).into(),
        _ => pod.labels = labels(random, &LABELS),
    }
    let told = format!("pod {name} {pod:?}");
    cluster.pods.insert(name, pod);
    told
}

pub fn remove_one<K: Ord + Clone + std::fmt::Debug, V: PartialEq>(
    table: &mut sluice::model::Table<K, V>,
    random: &mut Random,
) -> String {
    let Some(key) = random.pick_from(table.iter()).map(|(key, _)| key.clone()) else { return "nothing".into() };
    table.remove(&key);
    format!("{key:?} is gone")
}

fn put_namespace(cluster: &mut Cluster, random: &mut Random) -> String {
    let name: CompactString = (*random.pick(&NAMESPACES)).into();
    let namespace = Namespace { labels: labels(random, &OF_NAMESPACES), isolated: random.chance(20) };
    let told = format!("namespace {name} {namespace:?}");
    cluster.namespaces.insert(name, namespace);
    told
}

fn put_policy(cluster: &mut Cluster, random: &mut Random) -> String {
    let name = name(random, &NAMESPACES, &POLICIES);
    let policy = NetworkPolicy {
        pods: selector(random, &LABELS),
        ingress: random.chance(70).then(|| rules(random)),
        egress: random.chance(60).then(|| rules(random)),
    };
    let told = format!("policy {name} {policy:?}");
    cluster.policies.insert(name, policy);
    told
}

fn rules(random: &mut Random) -> Box<[PolicyRule]> {
    (0..random.below(3)).map(|_| PolicyRule { peers: peers(random), ports: policy_ports(random) }).collect()
}

fn peers(random: &mut Random) -> Peers {
    if random.chance(25) {
        return Peers::Any;
    }
    let peer = |random: &mut Random| match random.below(10) {
        0..=2 => Peer::Pods { namespaces: Namespaces::Own, pods: selector(random, &LABELS) },
        3..=5 => {
            let namespaces = Namespaces::Selected(selector(random, &OF_NAMESPACES));
            Peer::Pods { namespaces, pods: selector(random, &LABELS) }
        }
        _ => {
            let cidr = block(random);
            Peer::Block { cidr, except: (0..random.below(3)).map(|_| block(random)).collect() }
        }
    };
    let count = *random.pick(&[0, 1, 1, 1, 1, 2, 2, 3]);
    Peers::Of((0..count).map(|_| peer(random)).collect())
}

fn name(random: &mut Random, namespaces: &[&str], names: &[&str]) -> ObjectName {
    ObjectName::new(namespaces[random.below(namespaces.len())], names[random.below(names.len())])
}

pub fn block(random: &mut Random) -> IpNet {
    random.pick(&BLOCKS).parse().expect("a prefix")
}

pub fn policy_ports(random: &mut Random) -> Ports {
    if random.chance(35) {
        return Ports::Any;
    }
    let port = |random: &mut Random| PolicyPort {
        protocol: if random.chance(60) { Protocol::Tcp } else { *random.pick(&Protocol::ALL) },
        number: match random.below(10) {
            0 => PortMatch::Any,
            1..=4 => PortMatch::Named((*random.pick(&PORT_NAMES)).into()),
            5..=6 => PortMatch::Range { first: 80, last: *random.pick(&[80, 81, 8079, 8080]) },
            _ => {
                let number = *random.pick(&NUMBERS);
                PortMatch::Range { first: number, last: number }
            }
        },
    };
    Ports::Of((0..random.below(4)).map(|_| port(random)).collect())
}

pub fn selector(random: &mut Random, pool: &[(&str, &[&str])]) -> Selector {
    let count = *random.pick(&[0, 1, 1, 1, 2]);
    let requirement = |random: &mut Random| {
        let (key, values) = *random.pick(pool);
        let some = |random: &mut Random| {
            let mut some: Vec<CompactString> = (0..=random.below(2)).map(|_| (*random.pick(values)).into()).collect();
            some.sort();
            some.dedup();
            some.into_boxed_slice()
        };
        let operator = match random.below(8) {
            0..=4 => Operator::In(some(random)),
            5 => Operator::NotIn(some(random)),
            6 => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        Requirement { key: key.into(), operator }
    };
    (0..count).map(|_| requirement(random)).collect()
}

pub fn labels(random: &mut Random, pool: &[(&str, &[&str])]) -> Labels {
    let present = pool.iter().filter(|_| random.next() % 10 < 7).copied().collect::<Vec<_>>();
    present.into_iter().map(|(key, values)| (key, *random.pick(values))).collect()
}

fn ports(random: &mut Random) -> Shared<[NamedPort]> {
    let port = |random: &mut Random| NamedPort {
        name: (*random.pick(&PORT_NAMES[..2])).into(),
        protocol: if random.chance(75) { Protocol::Tcp } else { *random.pick(&Protocol::ALL) },
        number: *random.pick(&NUMBERS),
    };
    let mut ports: Vec<NamedPort> = (0..random.below(3)).map(|_| port(random)).collect();
    ports.sort();
    ports.dedup();
    ports.into()
}
