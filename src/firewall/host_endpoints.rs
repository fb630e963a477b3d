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
mod tests;
