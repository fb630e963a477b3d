//! Services in the clusters made by chance, and the way of a pod's packet to one: INPUT with the service address, then
//! IPVS chooses any endpoint; what it sends to others passes OUTPUT with the endpoint's address, what it delivers on
//! this node itself (LOCAL_IN) passes nothing more, and what it sends through tunnels (direct server return) passes as a packet of the
//! node.
//!
//! So what INPUT has to refuse is said here by the oracle alone: packets of pods that may not reach some endpoint at
//! which the way would end on this node, or go into a tunnel. Nothing of `firewall::host_endpoints` is used. Of several Services with one external
//! address the oldest has it, and by name the first of one age.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use sluice::firewall::rules::Direction;
use sluice::firewall::verdict::{Packet, Traffic};
use sluice::model::{
    Cluster, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, LoadBalancerAddress, ObjectName, Service,
    ServicePort, World,
};
use sluice::net::{Family, Protocol};

use super::oracle;
use super::support::random::Random;

const SERVICES: usize = 4;
const NODE_PORTS: [u16; 3] = [30080, 30081, 30443];
const PORTS: [(&str, u16); 2] = [("web", 443), ("dns", 53)];
const TARGETS: [u16; 3] = [53, 80, 8080];

/// A Service with one port at these addresses, and its endpoints.
pub fn put(world: &mut World, name: &str, (addresses, port): (&str, u16), endpoints: &[&str]) {
    let addresses = addresses.split_whitespace().map(|text| text.parse().expect("an address")).collect();
    let ports = vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port, node_port: Some(NODE_PORTS[0]) }];
    let (namespace, name) = name.split_once('/').expect("shop/web");
    let name = ObjectName::new(namespace, name);
    let at: Vec<SocketAddr> = endpoints.iter().map(|text| text.parse().expect("an endpoint")).collect();
    let slices = at.iter().enumerate().map(|(number, at)| {
        let ports = [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: at.port() }].into();
        let endpoint = Endpoint { address: at.ip(), node: None, conditions: Conditions::READY, hints: None };
        let slice = EndpointSlice { family: Family::from(at.ip()), ports, endpoints: [endpoint].into() };
        (number.to_string().into(), Arc::new(slice))
    });
    world.cluster.endpoints.insert(name.clone(), Endpoints { slices: slices.collect() });
    world.cluster.services.insert(name, Service::new(addresses, ports));
}

/// An external address that several Services have at times.
fn outside(number: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, 200 + number / 2])
}

/// Changes one Service or its endpoints, whose addresses are among these, and says how.
pub fn change(cluster: &mut Cluster, random: &mut Random, addresses: &[IpAddr]) -> String {
    let number = random.below(SERVICES) as u8;
    let name = ObjectName::new("a", &format!("s{number}"));
    match random.below(10) {
        0 => drop(cluster.services.remove(&name)),
        1 => drop(cluster.endpoints.remove(&name)),
        2..=4 => {
            let own =
                [IpAddr::from([10, 96, 0, number]), IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into()])];
            let port = |random: &mut Random, (name, port): (&str, u16)| ServicePort {
                name: name.into(),
                protocol: protocol(random),
                port,
                node_port: random.chance(50).then(|| *random.pick(&NODE_PORTS)),
            };
            let ports = PORTS.into_iter().map(|one| port(random, one)).collect();
            let mut service = Service::new(own[random.below(2)..].to_vec(), ports);
            service.created = random.below(3) as i64;
            service.annotations.dsr = random.chance(30);
            let outside = outside(number);
            match random.below(3) {
                0 => service.external_ips.push(outside),
                1 => service.load_balancer.push(LoadBalancerAddress { address: outside, through_balancer: false }),
                _ => {}
            }
            cluster.services.insert(name.clone(), service);
        }
        _ => {
            let mut endpoints = Endpoints::default();
            for number in 0..random.below(3) {
                endpoints.slices.insert(number.to_string().into(), Arc::new(slice(random, addresses)));
            }
            cluster.endpoints.insert(name.clone(), endpoints);
        }
    }
    format!("Service {name}: {:?} {:?}", cluster.services.get(&name), cluster.endpoints.get(&name))
}

fn slice(random: &mut Random, addresses: &[IpAddr]) -> EndpointSlice {
    let family = *random.pick(&Family::BOTH);
    // The API takes no endpoint at an address of a link, and an endpoint is one host.
    let on_link =
        ["fe80::1", "255.255.255.255", "10.244.0.255"].map(|text| text.parse::<IpAddr>().expect("an address"));
    let is_host = |one: &IpAddr| !one.is_multicast() && !on_link.contains(one);
    let is_its = |one: &&IpAddr| Family::from(**one) == family && is_host(one);
    let addresses: Vec<IpAddr> = addresses.iter().filter(is_its).copied().collect();
    let nodes = if family == Family::V4 { ["192.0.2.11", "192.0.2.12"] } else { ["2001:db8:2::11", "2001:db8:2::12"] };
    let of_node = |random: &mut Random| random.pick(&nodes).parse().expect("an address");
    let endpoint = |random: &mut Random| Endpoint {
        address: match random.below(10) {
            0..=5 => of_node(random),
            6 => service_address(random, family),
            _ => *random.pick(&addresses),
        },
        node: None,
        conditions: Conditions { ready: random.chance(70), serving: random.chance(50), terminating: random.chance(20) },
        hints: None,
    };
    let port = |random: &mut Random, name: &str| EndpointPort {
        name: name.into(),
        protocol: protocol(random),
        port: *random.pick(&TARGETS),
    };
    let endpoints = (0..random.below(4)).map(|_| endpoint(random)).collect();
    EndpointSlice { family, ports: PORTS.into_iter().map(|(name, _)| port(random, name)).collect(), endpoints }
}

/// An address that a Service has, or may have: whoever may write endpoints may write it.
fn service_address(random: &mut Random, family: Family) -> IpAddr {
    let number = random.below(SERVICES) as u8;
    match family {
        Family::V4 if random.chance(50) => outside(number),
        Family::V4 => IpAddr::from([10, 96, 0, number]),
        Family::V6 => IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into()]),
    }
}

fn protocol(random: &mut Random) -> Protocol {
    if random.chance(80) { Protocol::Tcp } else { *random.pick(&Protocol::ALL) }
}

/// A packet from one of these addresses to where Services are reached on this node, mostly to one that there is.
pub fn packet(random: &mut Random, world: &World, addresses: &[IpAddr]) -> Packet {
    let source = *random.pick(addresses);
    let asked = if random.chance(80) { asked_of_one(random, world, source.is_ipv4()) } else { None };
    let (destination, protocol, port) = asked.unwrap_or_else(|| asked_of_any(random, world, source.is_ipv4()));
    Packet { source, destination, traffic: Traffic::Port { protocol, port }, from_this_node: false }
}

/// Where a Service of this World is reached; `None` where there is none, or not in this family.
fn asked_of_one(random: &mut Random, world: &World, is_v4: bool) -> Option<(IpAddr, Protocol, u16)> {
    let (_, service) = random.pick_from(world.cluster.services.iter())?;
    let one = random.pick(&service.ports);
    let balanced = service.load_balancer.iter().map(|one| one.address);
    let fixed = service.cluster_ips.iter().chain(&service.external_ips).copied().chain(balanced);
    let at_service = fixed.map(|address| (address, one.port));
    let own = world.host.addresses.iter().map(|own| own.address);
    let at_node = own.filter_map(|address| Some((address, one.node_port?)));
    let of_family = at_service.chain(at_node).filter(|(address, _)| address.is_ipv4() == is_v4);
    random.pick_from(of_family).map(|(address, port)| (address, one.protocol, port))
}

/// Where a Service may be reached, whether there is one or not.
fn asked_of_any(random: &mut Random, world: &World, is_v4: bool) -> (IpAddr, Protocol, u16) {
    let own: Vec<IpAddr> = world.host.addresses.iter().map(|own| own.address).collect();
    let node = own.into_iter().find(|own| own.is_ipv4() == is_v4).expect("a host has both families");
    let number = random.below(SERVICES) as u8;
    let (destination, port) = match (random.below(3), is_v4) {
        (0, _) => (node, *random.pick(&NODE_PORTS)),
        (1, true) => (outside(number), random.pick(&PORTS).1),
        (_, true) => (IpAddr::from([10, 96, 0, number]), random.pick(&PORTS).1),
        (_, false) => (IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into()]), random.pick(&PORTS).1),
    };
    (destination, protocol(random), port)
}

/// The packet as each endpoint that IPVS may choose would get it, where the address is translated.
pub fn translated(world: &World, packet: &Packet) -> Vec<Packet> {
    ways(world, packet).into_iter().filter(|(_, is_tunnel)| !is_tunnel).map(|(sent, _)| sent).collect()
}

/// The packet as each endpoint that IPVS may choose would get it by NAT, and whether it goes through a tunnel instead.
fn ways(world: &World, packet: &Packet) -> Vec<(Packet, bool)> {
    let Traffic::Port { protocol, port } = packet.traffic else { return Vec::new() };
    let mut all = Vec::new();
    let is_balanced = |service: &Service| service.load_balancer.iter().any(|one| one.address == packet.destination);
    let is_outside = |service: &Service| {
        let is_named = service.external_ips.contains(&packet.destination) || is_balanced(service);
        is_named && service.ports.iter().any(|one| one.protocol == protocol && one.port == port)
    };
    let outside = world.cluster.services.iter().filter(|(_, service)| is_outside(service));
    // What a load balancer gave comes before what somebody wrote.
    let order =
        |(name, service): &(&ObjectName, &Arc<Service>)| (!is_balanced(service), service.created, (*name).clone());
    let has_outside = outside.min_by_key(order).map(|(name, _)| name);
    for (name, service) in world.cluster.services.iter() {
        let is_inside = service.cluster_ips.contains(&packet.destination);
        let is_its = is_inside || has_outside == Some(name);
        let is_tunnel = is_its && !is_inside && service.annotations.dsr;
        let is_node = world.host.addresses.iter().any(|own| own.address == packet.destination);
        for one in service.ports.iter().filter(|one| one.protocol == protocol) {
            if !(is_its && one.port == port || is_node && one.node_port == Some(port)) {
                continue;
            }
            for slice in world.cluster.endpoints.get(name).into_iter().flat_map(|all| all.slices.values()) {
                let targets =
                    slice.ports.iter().filter(|target| target.name == one.name && target.protocol == protocol);
                for target in targets {
                    let same_family = |one: &Endpoint| one.address.is_ipv4() == packet.destination.is_ipv4();
                    let traffic = Traffic::Port { protocol, port: target.port };
                    let to = |endpoint: Endpoint| Packet { destination: endpoint.address, traffic, ..*packet };
                    // Who gets no connections is no way, but on this node it counts always.
                    let of_host =
                        |one: &Endpoint| is_delivered_here(world, &Packet { destination: one.address, ..*packet });
                    let is_used = |one: &Endpoint| {
                        let Conditions { ready, serving, terminating } = one.conditions;
                        !is_tunnel || ready || serving && terminating || of_host(one)
                    };
                    let its = slice.endpoints.iter().filter(same_family).filter(|one| is_used(one));
                    all.extend(its.map(|endpoint| (to(endpoint), is_tunnel)));
                }
            }
        }
    }
    all
}

/// Whether the way of a packet from an endpoint's hand ends on this node itself: at an address of the host, of a Service, or
/// of the ranges of cluster IPs.
pub fn is_delivered_here(world: &World, packet: &Packet) -> bool {
    let flags: [IpNet; 2] = ["10.96.0.0/12", "fd00:10:96::/108"].map(|range| range.parse().expect("a range"));
    // Those that the cluster names take the place of the flag's, family by family.
    let named: Vec<IpNet> = world.cluster.service_cidrs.iter().flat_map(|(_, of)| of.ranges.iter().copied()).collect();
    let is_4 = |range: &IpNet| range.addr().is_ipv4();
    let of_flags = flags.into_iter().filter(|one| !named.iter().any(|other| is_4(other) == is_4(one)));
    let ranges: Vec<IpNet> = of_flags.chain(named.iter().copied()).collect();
    let is_its = |service: &Service| {
        let mut balanced = service.load_balancer.iter().map(|one| one.address);
        service.external_ips.contains(&packet.destination) || balanced.any(|address| address == packet.destination)
    };
    let is_of_service = || world.cluster.services.iter().any(|(_, service)| is_its(service));
    let is_own = world.host.addresses.iter().any(|own| own.address == packet.destination);
    is_own || ranges.iter().any(|range| range.contains(&packet.destination)) || is_of_service()
}

/// Whether INPUT has to refuse a packet to a Service: nothing would judge it later.
pub fn is_refused(world: &World, packet: &Packet) -> bool {
    let is_seen = |(sent, is_tunnel): &(Packet, bool)| !is_tunnel && !is_delivered_here(world, sent);
    let ways = ways(world, packet);
    ways.iter().filter(|way| !is_seen(way)).any(|(sent, _)| !oracle::passes(world, sent, Direction::Egress))
}
