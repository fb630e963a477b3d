use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::ServiceRanges;
use crate::firewall::given::{address, object};
use crate::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Host, HostAddress, LoadBalancerAddress, ServiceType,
    TrafficPolicy,
};

fn service() -> Service {
    let port = |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    let addresses = vec![address("10.96.0.1"), address("fd00:10:96::1")];
    let ports = vec![port("https", Protocol::Tcp, 443, Some(30443)), port("dns", Protocol::Udp, 53, None)];
    Service {
        kind: ServiceType::LoadBalancer,
        external_ips: vec![address("203.0.113.1")],
        load_balancer: vec![LoadBalancerAddress { address: address("203.0.113.2"), through_balancer: false }],
        external_traffic_policy: TrafficPolicy::Local,
        ..Service::new(addresses, ports)
    }
}

fn slice(addresses: &[&str], conditions: Conditions) -> Endpoints {
    let endpoint = |text: &&str| Endpoint { address: address(text), node: None, conditions, hints: None };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: [EndpointPort { name: "https".into(), protocol: Protocol::Tcp, port: 6443 }].into(),
        endpoints: addresses.iter().map(endpoint).collect(),
    };
    Endpoints { slices: [("one".into(), Arc::new(slice))].into() }
}

fn world(own: &[&str], endpoints: Endpoints) -> World {
    let mut world = World::empty();
    let on_link = |text: &&str| HostAddress { address: address(text), link: "eth0".into(), global: true };
    world.host = Arc::new(Host { addresses: own.iter().map(on_link).collect(), ..Host::default() });
    world.cluster.services.insert(object("shop/web"), service());
    world.cluster.endpoints.insert(object("shop/web"), endpoints);
    world
}

/// External addresses of 203.0.113.0/29 are served, load balancer addresses of all ranges but those of cluster IPs.
fn config() -> FirewallConfig {
    let ranges = |text: &str| vec![text.parse().expect("a range")];
    FirewallConfig {
        ranges: ServiceRanges {
            strict: true,
            cluster_ips: ranges("10.96.0.0/12"),
            external_ips: ranges("203.0.113.0/29"),
            load_balancer_ips: ranges("0.0.0.0/0"),
        },
        backend: crate::config::Backend::default(),
        sync_period: Duration::from_secs(300),
        default_deny: false,
        flush_established: false,
        knows_services: true,
        tunnel_mode: false,
        service_node_port_range: 30000..=32767,
    }
}

fn found(all: &HostEndpoints) -> Vec<String> {
    let entrances = |endpoint: &HostEndpoint| -> Vec<String> {
        all.entrances(endpoint).map(|one| SocketAddr::new(one.address, one.port).to_string()).collect()
    };
    all.all().map(|endpoint| format!("{endpoint} at {}", entrances(endpoint).join(" "))).collect()
}

const INSIDE: &str = "192.0.2.11:6443/tcp at 10.96.0.1:443 192.0.2.11:30443";
const SERVED: &str = "192.0.2.11:6443/tcp at 10.96.0.1:443 192.0.2.11:30443 203.0.113.1:443 203.0.113.2:443";

#[test]
fn an_endpoint_on_this_node_is_found_at_all_addresses_of_its_service_in_its_family() {
    let mut all = HostEndpoints::default();
    all.update(
        &world(&["192.0.2.11", "2001:db8:2::11"], slice(&["192.0.2.11", "192.0.2.12"], Conditions::READY)),
        &config(),
    );
    assert_eq!(found(&all), [SERVED]);
    let not_ready = Conditions { ready: false, serving: false, terminating: false };
    let changed = all.update(&world(&["192.0.2.11", "2001:db8:2::11"], slice(&["192.0.2.11"], not_ready)), &config());
    assert!(found(&all) == [SERVED] && changed.is_empty(), "whether it is ready does not count");
}

#[test]
fn every_endpoint_behind_a_tunnel_is_found_at_the_addresses_that_tunnels_serve() {
    let mut world = world(&["192.0.2.11"], slice(&["192.0.2.11", "10.244.2.8"], Conditions::READY));
    let mut tunnelled = service();
    tunnelled.annotations.dsr = true;
    world.cluster.services.insert(object("shop/web"), tunnelled);
    let mut all = HostEndpoints::default();
    let behind = "10.244.2.8:6443/tcp at 203.0.113.1:443 203.0.113.2:443";
    for (tunnel_mode, expected) in [(true, &[behind, SERVED][..]), (false, &[SERVED])] {
        let mut all = HostEndpoints::default();
        all.update(&world, &FirewallConfig { tunnel_mode, ..config() });
        assert_eq!(found(&all), expected, "tunnel mode {tunnel_mode}");
    }
    let config = FirewallConfig { tunnel_mode: true, ..config() };
    let awaited = |is| Arc::new(Host { runtime_awaited: is, ..(*world.host).clone() });
    for (is_awaited, expected) in [(true, &[SERVED][..]), (false, &[behind, SERVED])] {
        all.update(&World { host: awaited(is_awaited), ..world.clone() }, &config);
        assert_eq!(found(&all), expected, "nothing is sent through tunnels while the runtime is awaited");
    }
    world.cluster.services.insert(object("shop/web"), service());
    assert_eq!(all.update(&world, &config).len(), 1);
    assert_eq!(found(&all), [SERVED], "the annotation went");
    assert_eq!(all.at_address(address("10.244.2.8")).count(), 0);
}

#[test]
fn endpoints_of_other_nodes_are_not_found_and_those_that_leave_are_gone() {
    let mut all = HostEndpoints::default();
    let here = world(&["192.0.2.11"], slice(&["192.0.2.11"], Conditions::READY));
    assert_eq!(all.update(&here, &config()).len(), 1);
    assert_eq!(all.update(&here, &config()).len(), 0);
    let elsewhere = world(&["192.0.2.11"], slice(&["192.0.2.12"], Conditions::READY));
    assert_eq!((all.update(&elsewhere, &config()).len(), found(&all).len()), (1, 0));
    assert_eq!((all.update(&here, &config()).len(), found(&all).len()), (1, 1));
    let moved = world(&["192.0.2.99"], slice(&["192.0.2.11"], Conditions::READY));
    assert_eq!(
        (all.update(&moved, &config()).len(), found(&all).len()),
        (1, 0),
        "the address is no longer this host's"
    );
}

#[test]
fn an_endpoint_at_a_service_address_is_on_this_node_while_a_service_has_the_address() {
    let mut all = HostEndpoints::default();
    let mut world = world(&["192.0.2.11"], slice(&["10.96.0.10", "203.0.113.5"], Conditions::READY));
    let mut after = |other: Option<&str>| {
        match other {
            Some(external) => {
                let other = Service {
                    external_ips: vec![address(external)],
                    ..Service::new(vec![address("10.96.0.10")], Vec::new())
                };
                world.cluster.services.insert(object("shop/other"), other);
            }
            None => drop(world.cluster.services.remove(&object("shop/other"))),
        }
        all.update(&world, &config());
        all.all().map(ToString::to_string).collect::<Vec<_>>()
    };
    // Cluster IPs are known by their range.
    assert_eq!(after(None), ["10.96.0.10:6443/tcp"]);
    assert_eq!(after(Some("203.0.113.5")), ["10.96.0.10:6443/tcp", "203.0.113.5:6443/tcp"]);
    assert_eq!(after(Some("203.0.113.6")), ["10.96.0.10:6443/tcp"]);
    assert_eq!(after(Some("203.0.113.5")), ["10.96.0.10:6443/tcp", "203.0.113.5:6443/tcp"]);
    assert_eq!(after(None), ["10.96.0.10:6443/tcp"]);
}

#[test]
fn ranges_that_change_are_as_if_they_had_always_been_so() {
    let world = world(&["192.0.2.11"], slice(&["192.0.2.11", "10.96.0.10", "10.0.0.10"], Conditions::READY));
    let mut all = HostEndpoints::default();
    for named in [&[][..], &["10.0.0.0/16"], &["10.0.0.0/16", "203.0.113.0/24"], &["10.96.0.0/12"], &[]] {
        let named = named.iter().map(|text| text.parse().expect("a range"));
        let config = FirewallConfig { ranges: config().ranges.in_cluster(named), ..config() };
        let before: BTreeSet<HostEndpoint> = all.all().copied().collect();
        let changed = all.update(&world, &config);
        let mut fresh = HostEndpoints::default();
        fresh.update(&world, &config);
        assert_eq!(found(&all), found(&fresh));
        let after: BTreeSet<HostEndpoint> = all.all().copied().collect();
        assert!(before.symmetric_difference(&after).all(|endpoint| changed.contains(endpoint)));
    }
}

#[test]
fn addresses_that_the_service_proxy_refuses_close_nothing() {
    let mut world = world(&["192.0.2.11"], slice(&["192.0.2.11"], Conditions::READY));
    let through_proxy = LoadBalancerAddress { address: address("203.0.113.3"), through_balancer: true };
    let of_another = LoadBalancerAddress { address: address("10.96.0.10"), through_balancer: false };
    let tenants = Service {
        // Another Service's cluster IP, and an address outside the ranges.
        external_ips: vec![address("10.96.0.10"), address("198.51.100.1")],
        load_balancer: vec![through_proxy, of_another],
        ..service()
    };
    world.cluster.services.insert(object("shop/web"), tenants);
    let mut all = HostEndpoints::default();
    all.update(&world, &config());
    assert_eq!(found(&all), [INSIDE]);
}

#[test]
fn an_address_of_the_cluster_range_that_the_service_proxy_serves_for_a_tenant_is_refused() {
    let mut world = world(&["192.0.2.11"], slice(&["192.0.2.11"], Conditions::READY));
    let through_balancer = false;
    let tenants = Service {
        external_ips: vec![address("10.96.0.10"), address("10.96.0.77"), address("198.51.100.1")],
        load_balancer: vec![LoadBalancerAddress { address: address("10.96.0.78"), through_balancer }],
        ..service()
    };
    world.cluster.services.insert(object("shop/web"), tenants);
    let lenient = FirewallConfig { ranges: ServiceRanges { strict: false, ..config().ranges }, ..config() };
    let mut all = HostEndpoints::default();
    let mut after = |others: Option<Service>| {
        match others {
            Some(others) => drop(world.cluster.services.insert(object("shop/others"), others)),
            None => drop(world.cluster.services.remove(&object("shop/others"))),
        }
        all.update(&world, &lenient);
        found(&all)
    };
    let open = "192.0.2.11:6443/tcp at 10.96.0.1:443 10.96.0.10:443 10.96.0.77:443 10.96.0.78:443 192.0.2.11:30443 198.51.100.1:443";
    let without = open.replace(" 10.96.0.10:443", "");
    assert_eq!(after(None), [open], "nobody has these cluster IPs");
    let others = Service { created: 9, ..Service::new(vec![address("10.96.0.10")], service().ports.to_vec()) };
    assert_eq!(after(Some(others.clone())), [without], "a cluster IP with this port is never another Service's");
    let dns = Service { ports: [others.ports[1].clone()].into(), ..others };
    assert_eq!(after(Some(dns)), [open], "another port is another entrance");
    assert_eq!(after(None), [open]);
}

#[test]
fn an_external_address_closes_only_for_the_service_that_the_service_proxy_gives_it_to() {
    let mut world = world(&["192.0.2.11"], slice(&["192.0.2.11"], Conditions::READY));
    let mut all = HostEndpoints::default();
    let older = Service {
        external_ips: vec![address("203.0.113.1"), address("203.0.113.2")],
        external_traffic_policy: TrafficPolicy::Cluster,
        created: -1,
        ..Service::new(vec![address("10.96.0.2")], service().ports.to_vec())
    };
    let mut after = |older: Option<Service>| {
        match older {
            Some(older) => drop(world.cluster.services.insert(object("shop/older"), older)),
            None => drop(world.cluster.services.remove(&object("shop/older"))),
        }
        all.update(&world, &config());
        found(&all)
    };
    // What a load balancer has given to the younger one stays its own.
    let inside = format!("{INSIDE} 203.0.113.2:443");
    assert_eq!(after(Some(older.clone())), [inside.as_str()]);
    let both = Service { load_balancer: service().load_balancer, ..older.clone() };
    assert_eq!(after(Some(both)), [INSIDE], "it has both from a load balancer too");
    assert_eq!(after(Some(Service { created: 1, ..older.clone() })), [SERVED], "a younger one has nothing of it");
    assert_eq!(after(Some(older.clone())), [inside.as_str()]);
    let local = Service { external_traffic_policy: TrafficPolicy::Local, ..older.clone() };
    assert_eq!(after(Some(local)), [SERVED], "it may have no endpoint on this node");
    let dns = Service { ports: [older.ports[1].clone()].into(), ..older.clone() };
    assert_eq!(after(Some(dns)), [SERVED], "another port is another entrance");
    assert_eq!(after(Some(older)), [inside.as_str()]);
    assert_eq!(after(None), [SERVED]);
}

#[test]
fn an_entrance_of_two_services_stays_while_one_of_them_has_it() {
    let mut all = HostEndpoints::default();
    let mut both = world(&["192.0.2.11"], slice(&["192.0.2.11"], Conditions::READY));
    both.cluster.services.insert(object("shop/other"), service());
    both.cluster.endpoints.insert(object("shop/other"), slice(&["192.0.2.11"], Conditions::READY));
    all.update(&both, &config());
    both.cluster.services.remove(&object("shop/web"));
    all.update(&both, &config());
    assert_eq!(found(&all), [SERVED]);
    both.cluster.endpoints.remove(&object("shop/other"));
    all.update(&both, &config());
    assert!(found(&all).is_empty() && all.parts.is_empty());
}
