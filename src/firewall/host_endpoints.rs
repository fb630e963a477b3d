//! Services with endpoints that a pod's egress policies may deny, and whose packets no rule sees behind IPVS: endpoints in the host
//! network of this node, and those that get their packets through tunnels.
//!
//! Kubernetes: an endpoint with `hostNetwork` has its node's address, and policies speak of that address (only an
//! `ipBlock` matches it). Examples: the API server behind `kubernetes.default` on a control-plane node, an ingress
//! controller on every node.
//!
//! Where such an endpoint is on the client's own node, no hook of iptables sees the packet with the endpoint's address:
//! it enters INPUT with the service address, IPVS translates it behind that (`LOCAL_IN`, priority 99), and the packet is
//! delivered; it never passes OUTPUT, where policies judge what IPVS sends to other nodes and to pods. Only `nat INPUT`
//! comes later, which accepts neither DROP nor REJECT.
//!
//! So the decision is made before the translation: for every pod isolated for egress and every host endpoint, the rule
//! set says whether the pod may reach the endpoint; if not, new connections of the pod to the addresses of its Services
//! are rejected in INPUT. Where a Service also has endpoints that the pod may reach, those are not reached through this
//! Service either: which one IPVS chooses is not known there. A refused connection out of several is no service either,
//! and whoever mixes such endpoints has to allow all of them.
//!
//! Not done: `nat INPUT` with NFQUEUE to a queue that nobody reads, which drops exactly the packets for denied endpoints.
//! It needs a second table and two more kernel modules, answers nobody, works only for tracked connections, and a Service that
//! fails at times is what users would see.
//!
//! An endpoint at the address of a Service is on this node as well: every service address is local here (`proxy::plan`), so
//! IPVS delivers to whatever listens on all addresses of the host. Whoever may write EndpointSlices could reach it that way.
//!
//! Direct server return (`service.dsr: tunnel`): IPVS puts a pod's packet into another one, whose source is the node. What OUTPUT sees is a
//! tunnel from the node to the endpoint; the pod and the port are inside. So every endpoint of such a Service, wherever it is,
//! counts as one here does, at the external and load balancer addresses of the Service; at its cluster IPs and node ports it is served with NAT and
//! judged as any other. A port counts also where it is served with NAT for another reason (its targetPort is another one, the
//! address is the node's own): then a pod is refused more than it had to be, and no change of that reason opens anything.
//!
//! A connection through a tunnel is judged with each packet, and not with its first one alone: IPVS keeps its own account of connections, and may send the next packet to another
//! endpoint, above all in UDP. The service proxy's marks tell which packets these are.
//!
//! On the safe side: an endpoint on this node counts whatever its conditions and whatever the traffic policies of its Service say,
//! so that an endpoint that becomes ready finds the rules in place. One behind a tunnel counts while it may get connections: a rollout has endpoints whose Pods are not known yet, or no
//! longer, and the service proxy waits for a moment until one that becomes ready is judged (`model/judged.rs`). Which addresses of a Service count is [`service_addresses`](super::service_addresses)'s matter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::config::{FirewallConfig, ServiceRanges};
use crate::model::{Endpoints, Listed, ObjectName, Service, ServicePort, Table, World};
use crate::net::{Family, Protocol};

use super::rules::{Direction, LocalPod, RuleSet};
use super::service_addresses::{AddressChanges, Entrance, ServiceAddresses, external_addresses};
use super::verdict::{self, Packet, Traffic};

/// An endpoint of a Service at an address that is local on this node (its own, or that of a Service), or one that gets packets through
/// a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostEndpoint {
    pub address: IpAddr,
    pub protocol: Protocol,
    /// The target port.
    pub port: u16,
}

/// The host endpoints of this node, with the entrances of their Services, kept up to date at the cost of what changed.
#[derive(Default)]
pub struct HostEndpoints {
    /// The addresses of this host.
    own: BTreeSet<IpAddr>,
    /// Nothing is served through tunnels yet.
    runtime_awaited: bool,
    service_addresses: ServiceAddresses,
    /// The ranges that these follow from.
    ranges: ServiceRanges,
    services: Table<ObjectName, Service>,
    endpoints: Table<ObjectName, Endpoints>,
    /// The host endpoints of each Service that has any, with its entrances. Those of tunnels among them.
    parts: BTreeMap<ObjectName, Part>,
    /// The union of all parts, with the number of Services that have each entrance.
    all: BTreeMap<HostEndpoint, BTreeMap<Entrance, usize>>,
}

type Part = BTreeSet<(HostEndpoint, Entrance)>;

impl HostEndpoints {
    /// Updates from a newer World; returns the host endpoints that came, went, or have other entrances.
    pub fn update(&mut self, world: &World, config: &FirewallConfig) -> BTreeSet<HostEndpoint> {
        let own: BTreeSet<IpAddr> = world.host.addresses.iter().map(|own| own.address).collect();
        let (services, endpoints) = (&world.cluster.services, &world.cluster.endpoints);
        let moves = self.ranges != config.ranges;
        if moves {
            // The addresses of every Service count otherwise.
            (self.service_addresses, self.services) = Default::default();
            self.ranges = config.ranges.clone();
        }
        let AddressChanges { mut dirty, turned } =
            self.service_addresses.update((&self.services, services), &config.ranges);
        let has_turned = |endpoints: &Endpoints| {
            let mut all = endpoints.slices.values().flat_map(|slice| slice.endpoints.listed());
            all.any(|one| turned.contains(&one.address))
        };
        if !turned.is_empty() {
            dirty.extend(endpoints.iter().filter(|(_, its)| has_turned(its)).map(|(name, _)| name.clone()));
        }
        let awaited = std::mem::replace(&mut self.runtime_awaited, world.host.runtime_awaited);
        if own == self.own && !moves && awaited == self.runtime_awaited {
            dirty.extend(endpoints.changes_since(&self.endpoints).map(|change| change.key().clone()));
        } else {
            self.own = own;
            dirty.extend(self.parts.keys().chain(endpoints.iter().map(|(name, _)| name)).cloned());
        }
        self.services = services.clone();
        self.endpoints = endpoints.clone();
        let mut changed = BTreeSet::new();
        for name in dirty {
            self.update_service(&name, config, &mut changed);
        }
        changed
    }

    /// Returns all host endpoints, sorted.
    pub fn all(&self) -> impl Iterator<Item = &HostEndpoint> {
        self.all.keys()
    }

    /// Returns the entrances of the Services of a host endpoint, sorted; none for an endpoint that is not known.
    pub fn entrances(&self, endpoint: &HostEndpoint) -> impl Iterator<Item = &Entrance> {
        self.all.get(endpoint).into_iter().flat_map(BTreeMap::keys)
    }

    /// Returns the host endpoints behind an entrance.
    pub fn behind(&self, entrance: Entrance, protocol: Protocol) -> impl Iterator<Item = &HostEndpoint> {
        let is_behind = move |(endpoint, entrances): &(&HostEndpoint, &BTreeMap<Entrance, usize>)| {
            endpoint.protocol == protocol && entrances.contains_key(&entrance)
        };
        self.all.iter().filter(is_behind).map(|(endpoint, _)| endpoint)
    }

    /// Returns the endpoints at an address.
    pub fn at_address(&self, address: IpAddr) -> impl Iterator<Item = &HostEndpoint> {
        let first = HostEndpoint { address, protocol: Protocol::Tcp, port: 0 };
        self.all.range(first..).map(|(endpoint, _)| endpoint).take_while(move |endpoint| endpoint.address == address)
    }

    /// Returns whether an address is one of this host.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// Returns whether packets to an address are delivered on this node itself: it is one of the host, or of a Service.
    pub fn is_local(&self, address: IpAddr, config: &FirewallConfig) -> bool {
        self.own.contains(&address) || self.service_addresses.has(address, &config.ranges)
    }

    fn update_service(&mut self, name: &ObjectName, config: &FirewallConfig, changed: &mut BTreeSet<HostEndpoint>) {
        let known = self.services.get(name).zip(self.endpoints.get(name));
        let part = known.map(|(service, endpoints)| self.part((name, service), endpoints, config)).unwrap_or_default();
        let before = match part.is_empty() {
            true => self.parts.remove(name),
            false => self.parts.insert(name.clone(), part.clone()),
        }
        .unwrap_or_default();
        for (endpoint, entrance) in part.difference(&before) {
            *self.all.entry(*endpoint).or_default().entry(*entrance).or_default() += 1;
            changed.insert(*endpoint);
        }
        for (endpoint, entrance) in before.difference(&part) {
            let Some(entrances) = self.all.get_mut(endpoint) else { continue };
            if let Some(count) = entrances.get_mut(entrance) {
                *count -= 1;
            }
            entrances.retain(|_, count| *count > 0);
            if entrances.is_empty() {
                self.all.remove(endpoint);
            }
            changed.insert(*endpoint);
        }
    }

    /// Returns the host endpoints of a Service with its entrances.
    fn part(&self, (name, service): (&ObjectName, &Service), endpoints: &Endpoints, config: &FirewallConfig) -> Part {
        let mut part = Part::new();
        let uses_tunnels = config.tunnel_mode && !self.runtime_awaited && service.annotations.dsr;
        for slice in endpoints.slices.values() {
            let is_here = |one: &Listed<'_>| self.is_local(one.address, config);
            // One that gets no connections is no way to anywhere, and its Pod may not be known yet, or no longer.
            let counts = |one: &Listed<'_>| is_here(one) || uses_tunnels && one.conditions.use_of().is_some();
            let (here, elsewhere): (Vec<Listed<'_>>, Vec<Listed<'_>>) =
                slice.endpoints.listed().filter(counts).partition(is_here);
            let addresses = |all: Vec<Listed<'_>>| all.into_iter().map(|one| one.address).collect::<BTreeSet<IpAddr>>();
            let (here, elsewhere) = (addresses(here), addresses(elsewhere));
            if here.is_empty() && elsewhere.is_empty() {
                continue;
            }
            for target in &slice.ports {
                let is_its = |port: &&ServicePort| port.name == target.name && port.protocol == target.protocol;
                for port in service.ports.iter().filter(is_its) {
                    let node_port = port.node_port.into_iter().flat_map(|number| self.at(slice.family, number));
                    let at = |address| Entrance { address, port: port.port };
                    let external = external_addresses(service, &config.ranges).map(at);
                    let is_of_another =
                        |one: &Entrance| self.service_addresses.is_of_another(name, *one, port.protocol);
                    let external = external.filter(|one| !is_of_another(one));
                    let of_family = |one: &Entrance| Family::from(one.address) == slice.family;
                    let external: Vec<Entrance> = external.filter(of_family).collect();
                    let inside = service.cluster_ips.iter().copied().map(at).filter(of_family).chain(node_port);
                    let everywhere: Vec<Entrance> = inside.chain(external.iter().copied()).collect();
                    for (addresses, entrances) in [(&here, &everywhere), (&elsewhere, &external)] {
                        for address in addresses {
                            let endpoint =
                                HostEndpoint { address: *address, protocol: target.protocol, port: target.port };
                            part.extend(entrances.iter().map(|entrance| (endpoint, *entrance)));
                        }
                    }
                }
            }
        }
        part
    }

    /// Returns the entrances of a node port.
    fn at(&self, family: Family, port: u16) -> impl Iterator<Item = Entrance> {
        let own = self.own.iter().filter(move |address| Family::from(**address) == family);
        own.map(move |address| Entrance { address: *address, port })
    }
}

/// Returns whether the policies that isolate a pod for egress deny it this endpoint.
pub fn is_denied(rules: &RuleSet, (name, pod): (&ObjectName, &LocalPod), endpoint: &HostEndpoint) -> bool {
    let family = Family::from(endpoint.address);
    let Some(source) = pod.addresses.iter().find(|address| Family::from(**address) == family) else { return false };
    if *source == endpoint.address {
        return false;
    }
    let traffic = Traffic::Port { protocol: endpoint.protocol, port: endpoint.port };
    let packet = Packet { source: *source, destination: endpoint.address, traffic, from_this_node: false };
    !verdict::of_pod(rules, &packet, (name, pod), Direction::Egress).passes()
}

impl fmt::Display for HostEndpoint {
    /// As in `192.0.2.11:6443/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

#[cfg(test)]
mod tests {
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
        let changed =
            all.update(&world(&["192.0.2.11", "2001:db8:2::11"], slice(&["192.0.2.11"], not_ready)), &config());
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
        assert_eq!(after(Some(older.clone())), [INSIDE]);
        assert_eq!(after(Some(Service { created: 1, ..older.clone() })), [SERVED], "a younger one has nothing of it");
        assert_eq!(after(Some(older.clone())), [INSIDE]);
        let local = Service { external_traffic_policy: TrafficPolicy::Local, ..older.clone() };
        assert_eq!(after(Some(local)), [SERVED], "it may have no endpoint on this node");
        let dns = Service { ports: [older.ports[1].clone()].into(), ..older.clone() };
        assert_eq!(after(Some(dns)), [SERVED], "another port is another entrance");
        assert_eq!(after(Some(older)), [INSIDE]);
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
}
