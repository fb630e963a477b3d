//! The cluster of the benchmarks: Services with one port and one cluster address each, and their endpoints.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, HostAddress, ObjectName, Service,
    ServicePort, Shared, World,
};
use sluice::net::{Family, Protocol};

/// A World with so many Services of so many endpoints each.
pub fn world(services: usize, endpoints: usize) -> World {
    let mut world = World::empty();
    world.authority.proxy = Authority::Complete;
    world.host = Arc::new(Host {
        node_name: "node1".into(),
        addresses: vec![HostAddress { address: [192, 0, 2, 11].into(), link: "eth0".into(), global: true }],
        ..Host::default()
    });
    for index in 0..services {
        world.cluster.services.insert(name(index), service(index));
        let slice = slice((0..endpoints).map(|number| endpoint_address(index, number)));
        world.cluster.endpoints.insert(name(index), slice);
    }
    world
}

/// Replaces one endpoint of one Service; each call with another `turn` by another address.
pub fn change_endpoint(world: &mut World, index: usize, turn: usize) {
    let old = world.cluster.endpoints.get(&name(index)).expect("every Service has endpoints");
    let old = old.slices.values().next().expect("in one slice");
    let fresh = endpoint_address(index, 100 + turn);
    let addresses = old.endpoints.iter().skip(1).map(|endpoint| endpoint.address).chain([fresh]);
    let slice = slice(addresses.collect::<Vec<_>>().into_iter());
    assert!(world.cluster.endpoints.insert(name(index), slice), "the new endpoints differ");
}

fn name(index: usize) -> ObjectName {
    ObjectName::new("bench", &format!("service-{index:05}"))
}

fn service(index: usize) -> Service {
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Service::new(vec![nth([10, 96, 1, 0], index)], vec![port])
}

fn slice(addresses: impl Iterator<Item = IpAddr>) -> Endpoints {
    let node: Shared<str> = "node2".into();
    let endpoint = |address| Endpoint { address, node: Some(node.clone()), conditions: Conditions::READY, hints: None };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: addresses.map(endpoint).collect(),
    };
    Endpoints { slices: [("slice".into(), Arc::new(slice))].into() }
}

/// Many pods serve several Services, so addresses come again.
fn endpoint_address(index: usize, number: usize) -> IpAddr {
    nth([10, 244, 0, 1], (index * 7 + number) % 60_000)
}

fn nth(first: [u8; 4], index: usize) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::from(first)) + u32::try_from(index).expect("few addresses")).into()
}
