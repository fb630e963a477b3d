//! This node as its neighbours see it: its addresses, its numbers, its pod CIDRs.
//!
//! Kubernetes: `Node.status.addresses`, `Node.spec.podCIDRs` and the annotations of our own Node object; and the links
//! of the host. Families disabled by `--enable-ipv4` and `--enable-ipv6` do not exist here.
//!
//! Without pod CIDRs in the Node there are none: those in the CNI file may be of an earlier life of this node, and
//! belong to another one by now.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use compact_str::CompactString;
use ipnet::IpNet;

use crate::config::{NodeRoutes, RouterConfig};
use crate::model::{Host, HostAddress, Node, OnLink, Reflection, Routing};
use crate::net::{Family, PerFamily};

use super::external_peers::{external_peers, unread};
use super::mtu;
use super::problem::{About, Problem};
use super::router_id::router_id;

/// Our own node. A change of any field recomputes everything that depends on it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Identity {
    pub name: CompactString,
    /// The enabled families.
    pub families: PerFamily<bool>,
    /// Our address for other nodes; `None` without a Node object that has one.
    pub primary: Option<IpAddr>,
    /// Our address in each family, used for next hops and tunnels.
    pub addresses: PerFamily<Option<IpAddr>>,
    /// The same, if it is configured on this host: only such an address can be the source of a route.
    pub sources: PerFamily<Option<IpAddr>>,
    /// All addresses of the Node.
    pub all: BTreeSet<IpAddr>,
    /// Those of them that this host has, of the enabled families: the ones by which other nodes route to us first, then in the order of the Node.
    pub here: Vec<HostAddress>,
    /// Other nodes route to another address than that by which the cluster knows the Node (`--node-ip-autodetect`).
    pub is_detected: bool,
    /// The link that carries our address in each family.
    pub links: PerFamily<Option<CompactString>>,
    /// The links that carry any address of the Node in each family: by these clients of node ports come, and nodes that route by another one.
    pub all_links: PerFamily<BTreeSet<CompactString>>,
    /// The networks of the links that carry any address of the Node: neighbours there need no router.
    pub networks: Vec<OnLink>,
    /// The MTU of the link by which packets from our address of each family leave, in bytes; `None` without an address, or a link.
    pub mtus: PerFamily<Option<u32>>,
    pub pod_cidrs: PerFamily<Vec<IpNet>>,
    /// The spec of our Node names pod ranges, used or not: the control plane gives some to nodes.
    pub is_given_ranges: bool,
    /// Why no address of a family was detected, where one is looked for.
    pub undetected: PerFamily<Option<String>>,
    pub asn: Option<u32>,
    pub router_id: Option<Ipv4Addr>,
    /// Routing annotations of the Node.
    pub routing: Routing,
}

impl Identity {
    /// Computes our identity from our Node object, this host and the configuration.
    pub fn new(host: &Host, node: Option<&Node>, config: &RouterConfig, families: PerFamily<bool>) -> Identity {
        let nothing = Node::default();
        let node = node.unwrap_or(&nothing);
        let routing = node.routing().clone();
        let addresses = PerFamily::from_fn(|family| node.routing_address(family).filter(|_| *families.of(family)));
        let carrying = |address: IpAddr| host.addresses.iter().find(|own| own.address == address);
        let primary = node.primary(families);
        let link = |address: Option<IpAddr>| Some(carrying(address?)?.link.clone());
        let links = PerFamily::from_fn(|family| link(*addresses.of(family)));
        let all: BTreeSet<IpAddr> = node.addresses.iter().map(|own| own.address).collect();
        let carries =
            |name: &CompactString| host.addresses.iter().any(|own| own.link == *name && all.contains(&own.address));
        let routed = addresses.iter().filter_map(|(_, address)| *address);
        let mut seen = BTreeSet::new();
        let here = routed.chain(node.addresses.iter().map(|one| one.address));
        let here = here.filter(|address| *families.of(Family::from(*address)) && seen.insert(*address));
        let here: Vec<HostAddress> = here.filter_map(|address| carrying(address).cloned()).collect();
        let all_links = PerFamily::from_fn(|family| {
            let of_family = here.iter().filter(|own| Family::from(own.address) == family);
            of_family.map(|own| own.link.clone()).collect()
        });
        let networks = host.on_link.iter().filter(|network| carries(&network.link)).cloned().collect();
        Identity {
            name: host.node_name.clone(),
            families,
            primary,
            addresses,
            sources: PerFamily::from_fn(|family| addresses.of(family).filter(|own| carrying(*own).is_some())),
            all,
            here,
            is_detected: addresses.iter().any(|(family, own)| own.is_some() && *own != node.address(family)),
            networks,
            links,
            all_links,
            mtus: mtu::links(host, addresses, node),
            pod_cidrs: PerFamily::from_fn(|family| {
                let of_family = node.pod_cidrs.iter().filter(|range| Family::from(**range) == family);
                of_family.filter(|_| *families.of(family)).copied().collect()
            }),
            is_given_ranges: !node.spec_pod_cidrs.as_deref().unwrap_or(&node.pod_cidrs).is_empty(),
            undetected: host.detected.as_ref().map(|detected| detected.problems.clone()).unwrap_or_default(),
            asn: if config.full_mesh { Some(config.cluster_asn) } else { routing.asn },
            router_id: primary.map(|primary| router_id(config.router_id, primary, node.routing_address(Family::V4))),
            routing,
        }
    }

    /// Returns the enabled families in which the node has an address, which are routed and carried by BGP.
    pub fn capable(&self) -> PerFamily<bool> {
        PerFamily::from_fn(|family| self.addresses.of(family).is_some())
    }

    /// Returns the enabled families, IPv4 first.
    pub fn enabled_families(&self) -> impl Iterator<Item = Family> {
        self.families.iter().filter(|(_, enabled)| **enabled).map(|(family, _)| family)
    }

    /// Returns our pod CIDRs, IPv4 first.
    pub fn all_pod_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.pod_cidrs.v4.iter().chain(&self.pod_cidrs.v6).copied()
    }

    /// Returns our addresses for a router outside, of the session with it and as next hops. Such a router may know the node by its InternalIP, and be in
    /// that address's network: so where others route to a detected address it is the Node's address on this host whose network the router is in, and
    /// of the other family the one on the same link. Else it is our address for other nodes.
    pub fn towards(&self, router: IpAddr) -> PerFamily<Option<IpAddr>> {
        let is_near = |own: &&HostAddress| {
            let mut around = self.networks.iter().filter(|network| network.link == own.link);
            around.any(|network| network.prefix.contains(&router) && network.prefix.contains(&own.address))
        };
        let Some(near) = self.here.iter().find(is_near).filter(|_| self.is_detected) else { return self.addresses };
        PerFamily::from_fn(|family| {
            let is_beside = |own: &&HostAddress| own.link == near.link && Family::from(own.address) == family;
            let beside = if Family::from(router) == family { Some(near) } else { self.here.iter().find(is_beside) };
            beside.map(|own| own.address).or(*self.addresses.of(family))
        })
    }

    /// Returns whether we are a route reflector.
    pub fn is_reflector(&self) -> bool {
        matches!(self.routing.reflection, Reflection::Server(_))
    }

    /// Returns the problems of our own node.
    pub fn problems(&self, config: &RouterConfig) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.primary.is_none() {
            let text =
                format!("the Node {} has no usable InternalIP or ExternalIP, so there are no sessions", self.name);
            return vec![Problem::new(About::Speaker, text)];
        }
        // Routes that Node objects give need no speaker.
        let has_sessions = config.node_routes == NodeRoutes::Bgp || !external_peers(config, self).is_empty();
        if self.asn.is_none() && has_sessions {
            let text = "--nodes-full-mesh is off and the annotation kube-router.io/node.asn is absent or no number, so there \
                        are no sessions";
            problems.push(Problem::new(About::Speaker, text));
        }
        problems.extend(unread(config, self));
        for (family, problem) in self.undetected.iter() {
            problems.extend(problem.as_ref().map(|text| Problem::new(About::Family(family), text.clone())));
        }
        for family in self.enabled_families() {
            if self.addresses.of(family).is_none() {
                let text = "it is on, but the Node has no address of it";
                problems.push(Problem::new(About::Family(family), text));
            } else if self.pod_cidrs.of(family).is_empty() {
                let text = "the Node has no pod range of it (spec.podCIDRs), so pods get no address of it";
                problems.push(Problem::new(About::Family(family), text));
            }
        }
        problems
    }
}
