//! The bridges of this node's pods, and what is closed between their ports.
//!
//! Pods on one bridge reach each other without being routed. What they send there to addresses that no policy can name
//! is refused while pods are isolated (`link_local`, `multicast`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::model::{Host, Node, Pod, World};

use super::plan::RuleSetChanges;
use super::rules::RuleSet;
use super::{link_local, multicast};

/// The bridge of our own CNI configuration. Its rules exist before the bridge does.
const POD_BRIDGE: &str = "kube-bridge";

/// The bridges on which a kind of traffic is closed, sorted; none while it is open.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ClosedBridges {
    pub link_local: Vec<CompactString>,
    pub multicast: Vec<CompactString>,
}

/// The bridges of this node's pods as of the last change of what they depend on, so that an update that concerns none of it looks at no pod.
#[derive(Default)]
pub struct PodBridges {
    /// The facts of this host at the last look, and its Node.
    host: Option<(Arc<Host>, Option<Arc<Node>>)>,
    closed: ClosedBridges,
    is_any: bool,
}

impl PodBridges {
    /// Updates from changes of the rule set and the facts of this host.
    pub fn update(&mut self, rules: &RuleSet, world: &World, changed: &RuleSetChanges) {
        let node = world.cluster.nodes.get(&world.host.node_name);
        let is_same = self
            .host
            .as_ref()
            .is_some_and(|(host, of_host)| Arc::ptr_eq(host, &world.host) && of_host.as_ref() == node);
        // Without addresses of the Node pods in its network tell them.
        let depends_on_pods = node.is_none_or(|node| node.addresses.is_empty());
        if is_same && !depends_on_pods && changed.pods.is_empty() && changed.cluster_policies.is_empty() {
            return;
        }
        self.host = Some((world.host.clone(), node.cloned()));
        let links = links_of_pods(rules, world);
        self.closed = closed_among(&links, rules, world);
        self.is_any = has_pod_bridge(&links, world);
    }

    /// Returns what is closed on which bridges.
    pub fn closed(&self) -> &ClosedBridges {
        &self.closed
    }

    /// Returns whether the host has a bridge with pods on it, as far as is known.
    pub fn is_any(&self) -> bool {
        self.is_any
    }
}

/// Returns what is closed on which bridges.
pub fn closed(rules: &RuleSet, world: &World) -> ClosedBridges {
    closed_among(&links_of_pods(rules, world), rules, world)
}

fn closed_among(links: &Links<'_>, rules: &RuleSet, world: &World) -> ClosedBridges {
    if !link_local::is_closed(rules) {
        return ClosedBridges::default();
    }
    let link_local = pod_bridges(links, world);
    let multicast = if multicast::is_closed(rules) { link_local.clone() } else { Vec::new() };
    ClosedBridges { link_local, multicast }
}

/// Returns the bridges on which something is closed while pods are isolated, sorted: our own, and those with pods of
/// this node. Not a bridge with an address of the Node, which is the node's own link, where others need link-local
/// addresses and groups (DHCPv6, routing protocols); and not one whose network is wider than the pod CIDR that the pods are
/// in, and which has no address there: it is the host's, and nothing but the width of its network speaks for pods.
fn pod_bridges(links: &Links<'_>, world: &World) -> Vec<CompactString> {
    let own = node_addresses(world);
    let is_nodes_link =
        |link: &str| world.host.addresses.iter().any(|one| one.link == link && own.contains(&one.address));
    let with_pods = links.iter().filter(|(_, place)| **place != Place::WiderNetwork).map(|(link, _)| *link);
    let bridges = with_pods.filter(|link| is_bridge(world, link) && !is_nodes_link(link));
    let all: BTreeSet<CompactString> = bridges.cloned().chain([POD_BRIDGE.into()]).collect();
    all.into_iter().collect()
}

/// Returns whether the host has a bridge with pods on it, as far as is known.
fn has_pod_bridge(links: &Links<'_>, world: &World) -> bool {
    is_bridge(world, POD_BRIDGE) || links.keys().any(|link| is_bridge(world, link))
}

/// Returns those of the bridges that the host has.
pub fn existing(bridges: &[CompactString], world: &World) -> Vec<CompactString> {
    bridges.iter().filter(|bridge| is_bridge(world, bridge)).cloned().collect()
}

/// Why a link is taken for one with pods on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    /// Its network contains a pod, but also the pod CIDR that the pod is in, where no link has an address.
    WiderNetwork,
    /// Its network contains a pod.
    Network,
    /// It has an address in a pod CIDR of this node that contains a pod: it is the gateway of the pods there.
    Gateway,
}

/// The links to pods of this node.
type Links<'a> = BTreeMap<&'a CompactString, Place>;

/// Returns the links to pods of this node, as far as the host's addresses say. The gateway of a pod CIDR has its pods; for
/// other pods the longest prefix decides, as it does for routes.
fn links_of_pods<'a>(rules: &RuleSet, world: &'a World) -> Links<'a> {
    let host = &world.host;
    let node = world.cluster.nodes.get(&host.node_name);
    let ranges: Vec<(&IpNet, BTreeSet<&CompactString>)> = node
        .into_iter()
        .flat_map(|node| &node.pod_cidrs)
        .map(|range| {
            let within = host.addresses.iter().filter(|own| range.contains(&own.address));
            (range, within.map(|own| &own.link).collect())
        })
        .collect();
    let mut links = Links::new();
    let mut note = |link, place| {
        let known = links.entry(link).or_insert(place);
        *known = (*known).max(place);
    };
    for address in rules.pods.values().flat_map(|pod| &pod.addresses) {
        let range = ranges.iter().find(|(range, _)| range.contains(address));
        if let Some((_, gateways)) = range.filter(|(_, gateways)| !gateways.is_empty()) {
            gateways.iter().for_each(|link| note(link, Place::Gateway));
            continue;
        }
        let networks = || host.on_link.iter().filter(|one| one.prefix.contains(address));
        let longest = networks().map(|one| one.prefix.prefix_len()).max();
        for one in networks().filter(|one| Some(one.prefix.prefix_len()) == longest) {
            let is_wider = range.is_some_and(|(range, _)| range.prefix_len() > one.prefix.prefix_len());
            note(&one.link, if is_wider { Place::WiderNetwork } else { Place::Network });
        }
    }
    links
}

/// Returns the addresses of this node. While its Node is not known, those are the addresses of pods in its network:
/// the agent itself is one.
fn node_addresses(world: &World) -> BTreeSet<IpAddr> {
    let name = &world.host.node_name;
    let known = world.cluster.nodes.get(name).into_iter().flat_map(|node| &node.addresses);
    let known: BTreeSet<IpAddr> = known.map(|own| own.address).collect();
    if !known.is_empty() {
        return known;
    }
    let here = |pod: &Pod| pod.host_network && pod.node.as_deref() == Some(name.as_str());
    let pods = world.cluster.pods.iter().filter(|(_, pod)| here(pod));
    pods.flat_map(|(_, pod)| pod.addresses.iter().copied()).collect()
}

fn is_bridge(world: &World, name: &str) -> bool {
    world.host.links.iter().any(|link| link.bridge && link.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::given::{object, pod};
    use crate::firewall::rules::{Isolation, LocalPod};
    use crate::model::{HostAddress, HostLink, NodeAddress, NodeAddressKind, OnLink};

    /// A host with these addresses, `link address/length`, on bridges where the name begins with `br` or `cni`.
    fn world(addresses: &[(&str, &str)]) -> World {
        let mut world = World::empty();
        let networks = addresses.iter().map(|(link, text)| (*link, text.parse::<IpNet>().expect("a network")));
        let is_bridge = |name: &str| name.starts_with("br") || name.starts_with("cni") || name == POD_BRIDGE;
        world.host = Arc::new(Host {
            node_name: "node1".into(),
            addresses: networks
                .clone()
                .map(|(link, network)| HostAddress { address: network.addr(), link: link.into(), global: true })
                .collect(),
            on_link: networks
                .clone()
                .filter(|(_, network)| network.prefix_len() < network.max_prefix_len())
                .map(|(link, network)| OnLink { prefix: network.trunc(), link: link.into() })
                .collect(),
            links: networks
                .map(|(link, _)| HostLink { name: link.into(), mtu: 1500, bridge: is_bridge(link) })
                .collect(),
            ..Host::default()
        });
        world
    }

    fn with_node(mut world: World, address: &str, range: Option<&str>) -> World {
        let own = NodeAddress { kind: NodeAddressKind::Internal, address: address.parse().expect("an address") };
        let pod_cidrs = range.map(|range| range.parse().expect("a range")).into_iter().collect();
        world.cluster.nodes.insert("node1".into(), Node { addresses: vec![own], pod_cidrs, ..Node::default() });
        world
    }

    fn pods(addresses: &[&str]) -> RuleSet {
        let mut rules = RuleSet::default();
        for address in addresses {
            let pod = LocalPod {
                uid: None,
                addresses: [address.parse().expect("an address")].into(),
                ingress: Isolation::Open,
                egress: Isolation::Open,
                cluster_policies: [].into(),
            };
            rules.pods.insert(object(&format!("shop/{address}")), pod);
        }
        rules
    }

    fn check(world: &World, pods_at: &[&str], (closed, has_pods): (&[&str], bool)) {
        let rules = pods(pods_at);
        let links = links_of_pods(&rules, world);
        let told = || format!("{:?} {pods_at:?}", world.host.on_link);
        assert_eq!(pod_bridges(&links, world), [closed, &[POD_BRIDGE]].concat(), "{}", told());
        assert_eq!(has_pod_bridge(&links, world), has_pods, "{}", told());
    }

    #[test]
    fn the_longest_prefix_says_on_which_link_a_pod_is() {
        let host =
            [("br0", "10.0.0.2/8"), ("cni0", "10.244.1.1/24"), ("eth1", "10.244.0.9/16"), ("br9", "172.17.0.1/16")];
        let world = with_node(world(&host), "192.0.2.11", None);
        check(&world, &[], (&[], false));
        check(&world, &["10.244.1.7"], (&["cni0"], true));
        // Whoever is in the network of another link is not on a bridge around it.
        check(&world, &["10.244.2.7"], (&[], false));
        check(&world, &["10.9.0.7"], (&["br0"], true));
    }

    #[test]
    fn a_wide_network_of_the_host_has_no_pods_because_it_contains_their_addresses() {
        let machines = ("br0", "10.0.0.2/8");
        let known = |world| with_node(world, "192.0.2.11", Some("10.244.1.0/24"));
        check(&known(world(&[machines, ("kube-bridge", "10.244.1.1/24")])), &["10.244.1.7"], (&[], true));
        // Each pod has a link of its own to the gateway.
        check(&known(world(&[machines, ("veth1", "10.244.1.1/32")])), &["10.244.1.7"], (&[], false));
        // Before the bridge of the pods is there. The kernel shall show all bridges to the rules in any case.
        check(&known(world(&[machines])), &["10.244.1.7"], (&[], true));
        // The plugin has one network for the pods of all nodes, and this node a part of it.
        check(&known(world(&[machines, ("cni0", "10.244.1.1/16")])), &["10.244.1.7"], (&["cni0"], true));
    }

    #[test]
    fn the_link_of_the_node_is_never_closed_and_its_packets_are_shown_to_rules_if_pods_are_on_it() {
        let lan = world(&[("br0", "192.0.2.11/24")]);
        check(&with_node(lan.clone(), "192.0.2.11", None), &["192.0.2.77"], (&[], true));
        check(&with_node(lan.clone(), "192.0.2.11", None), &["10.244.1.7"], (&[], false));
        // Nobody knows the Node: a pod in its network, like the agent, says what its address is.
        let mut unknown = lan;
        check(&unknown, &["192.0.2.77"], (&["br0"], true));
        let agent = Pod { host_network: true, ..pod("192.0.2.11", "", "") };
        unknown.cluster.pods.insert(object("kube-system/sluice"), agent);
        check(&unknown, &["192.0.2.77"], (&[], true));
    }

    #[test]
    fn pods_are_looked_at_again_where_one_of_them_or_the_host_has_changed_and_not_else() {
        let known = || with_node(world(&[("cni0", "10.244.1.1/24")]), "192.0.2.7", Some("10.244.1.0/24"));
        let mut world = known();
        let mut bridges = PodBridges::default();
        let named =
            |bridges: &PodBridges| bridges.closed().link_local.iter().map(ToString::to_string).collect::<Vec<_>>();
        bridges.update(&pods(&[]), &world, &RuleSetChanges::default());
        assert_eq!((named(&bridges), bridges.is_any()), (Vec::new(), false));
        let mut rules = pods(&["10.244.1.7"]);
        let isolated = Isolation::Isolated { policies: [].into(), by_namespace: true };
        rules.pods.edit_all(|pod| pod.ingress = isolated.clone());
        bridges.update(&rules, &world, &RuleSetChanges::default());
        assert_eq!(named(&bridges), [""; 0], "no change names the pod, so nobody looked");
        let named_pod = RuleSetChanges { pods: [object("shop/web")].into(), ..RuleSetChanges::default() };
        bridges.update(&rules, &world, &named_pod);
        assert_eq!((named(&bridges), bridges.is_any()), (vec!["cni0".to_owned(), POD_BRIDGE.to_owned()], true));
        world.host = Arc::new(Host { links: Vec::new(), ..(*world.host).clone() });
        bridges.update(&rules, &world, &RuleSetChanges::default());
        assert_eq!((named(&bridges), bridges.is_any()), (vec![POD_BRIDGE.to_owned()], false));
        bridges.update(&rules, &known(), &RuleSetChanges::default());
        assert!(bridges.is_any());
        bridges.update(&rules, &with_node(known(), "10.244.1.1", None), &RuleSetChanges::default());
        assert_eq!(named(&bridges), [POD_BRIDGE], "the Node's own link");
    }
}
