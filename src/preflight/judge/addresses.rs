//! Addresses: ranges of pods and Services that networks of this host overlap, and families without an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::config::{Config, Overlay};
use crate::kernel::address::{HostAddress, Scope};
use crate::kernel::vxlan::Vxlan;
use crate::model::{Node, OnLink};
use crate::net::address_detection::{CARRY_SERVICE_ADDRESSES, Candidate, Choice, choose};
use crate::net::{AddressDetection, Family, PerFamily};
use crate::preflight::facts::{ClusterFacts, Facts, FoundRoute, NetworkFacts};
use crate::preflight::{Finding, Level};
use crate::proxy::names::BRIDGE;
use crate::router::cni::{self, CniFileForm};
use crate::router::names::{TUNNELS, is_vxlan};

/// Judges addresses and ranges.
pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.network.unread.iter().map(|reason| unread(reason)).collect();
    findings.extend(families(facts, config));
    let pods = pod_ranges(facts, config);
    let services = service_ranges(facts, config);
    let before = findings.len();
    let attached = Attached::new(facts, config);
    findings.extend(pods.iter().flat_map(|range| in_pod_range(*range, &attached, facts)));
    findings.extend(services.iter().flat_map(|range| in_service_range(*range, facts)));
    let overlapping = pods.iter().flat_map(|pods| {
        services.iter().filter(|services| overlap(**services, *pods)).map(move |services| (pods, services))
    });
    findings.extend(overlapping.map(|(pods, services)| {
        let what = format!("the range of Services {services} and this node's pods {pods} overlap");
        let why = "an address may be given to a pod and to a Service, and only one of them is reached".to_owned();
        let todo = "give the cluster ranges that do not overlap (--cluster-cidr and --service-cluster-ip-range of the control plane)".to_owned();
        Finding::bad(Level::Fatal, "ranges", [what, why, todo])
    }));
    if findings.len() == before {
        let all: Vec<String> = pods.iter().chain(&services).map(ToString::to_string).collect();
        findings.push(Finding::ok(
            "ranges",
            format!(
                "no network of this host is in {}",
                if all.is_empty() { "their way".to_owned() } else { all.join(", ") }
            ),
        ));
    }
    findings.extend(detected(facts, config));
    findings.extend(overlay_numbers(facts, config));
    findings
}

/// Returns the addresses that the agent would find for this node, and what it would not find.
fn detected(facts: &Facts, config: &Config) -> Vec<Finding> {
    let Some(method) = &config.node_address else { return Vec::new() };
    let choice = would_choose(method, facts, config);
    let subject = "address of this node";
    let lacking = choice.problems(method);
    let mut findings: Vec<Finding> = lacking
        .iter()
        .filter_map(|(family, problem)| Some((family, problem.as_ref()?.split_once("; ")?)))
        .map(|(family, (what, why))| {
            let todo = format!("name what fits an {family} address of this host (ip address), or leave the flag out");
            Finding::bad(Level::Degraded, subject, [what.to_owned(), why.to_owned(), todo])
        })
        .collect();
    let found: Vec<String> =
        choice.addresses.iter().filter_map(|(_, address)| address.map(|address| address.to_string())).collect();
    if !found.is_empty() {
        findings.push(Finding::ok(
            subject,
            format!("other nodes route to {} (--node-ip-autodetect={method})", found.join(" and ")),
        ));
    }
    findings
}

fn would_choose(method: &AddressDetection, facts: &Facts, config: &Config) -> Choice {
    let all: Vec<Candidate> = facts.network.addresses.iter().map(Candidate::from).collect();
    choose(method, config.families, &all, facts.network.sources, PerFamily::default())
}

fn unread(reason: &str) -> Finding {
    let why = "conflicts with addresses, routes or ports of others are not known".to_owned();
    Finding::bad(
        Level::Degraded,
        "network of this host",
        [reason.to_owned(), why, "run it as root, in the network namespace of the host".to_owned()],
    )
}

/// Returns the links that carry the addresses of the own Node, by the address: those of its object and those that would be detected; the first global
/// address of a family in which its object has none.
pub fn links_of_node(facts: &Facts, config: &Config) -> BTreeMap<IpAddr, CompactString> {
    let node = node(facts);
    let listed = node.into_iter().flat_map(|node| node.addresses.iter().map(|one| one.address));
    let chosen = config.node_address.as_ref().map(|method| would_choose(method, facts, config).addresses);
    let chosen = chosen.unwrap_or_default();
    let mut its: BTreeSet<IpAddr> = listed.chain(chosen.iter().filter_map(|(_, address)| *address)).collect();
    let global = || theirs(facts).filter(|one| one.scope == Scope::Global);
    let unknown = Family::BOTH.into_iter().filter(|family| node.is_none_or(|node| node.address(*family).is_none()));
    its.extend(
        unknown.filter_map(|family| {
            global().map(|one| one.address.addr()).find(|address| Family::from(*address) == family)
        }),
    );
    let carrying = global().filter(|one| its.contains(&one.address.addr()));
    carrying.map(|one| (one.address.addr(), one.link.0.clone())).collect()
}

/// Returns whether the links that carry addresses of this Node have room for as many nodes as the kernel finds out neighbours.
pub fn may_be_crowded(network: &NetworkFacts, node: &Node, limits: PerFamily<Option<usize>>) -> bool {
    let carries = |link: &str| {
        let of_link = network.addresses.iter().filter(|one| one.link.0 == link);
        of_link.map(|one| one.address.addr()).any(|address| node.addresses.iter().any(|its| its.address == address))
    };
    let prefixes: BTreeSet<IpNet> = networks(network).filter(|one| carries(&one.link)).map(|one| one.prefix).collect();
    let size = |prefix: &IpNet| 1_usize.checked_shl(u32::from(prefix.max_prefix_len() - prefix.prefix_len()));
    limits.iter().any(|(family, limit)| {
        let of_family = prefixes.iter().filter(|prefix| Family::from(**prefix) == family);
        let room = of_family.map(|prefix| size(prefix).unwrap_or(usize::MAX)).fold(0, usize::saturating_add);
        limit.is_some_and(|limit| room >= limit)
    })
}

/// Returns the networks that links of this host are on; none of links that are down, and not those that are on every link.
pub fn networks(network: &NetworkFacts) -> impl Iterator<Item = OnLink> {
    let theirs = network.addresses.iter().filter(|one| is_theirs(one) && one.up && one.scope == Scope::Global);
    let wide = theirs.filter(|one| one.address.prefix_len() < one.address.max_prefix_len());
    wide.map(|one| OnLink { prefix: one.address.trunc(), link: one.link.0.clone() })
}

/// Returns our own Node, where the API server has told it.
pub fn node(facts: &Facts) -> Option<&Node> {
    match &facts.cluster {
        ClusterFacts::Answered(api) => api.node.as_ref().ok(),
        _ => None,
    }
}

/// Pod CIDRs of the own Node, where the router or the CNI file need them.
fn pod_ranges(facts: &Facts, config: &Config) -> Vec<IpNet> {
    let ranges = node(facts).filter(|_| config.router.is_some()).map(|node| node.pod_cidrs.clone()).unwrap_or_default();
    ranges.into_iter().filter(|range| *config.families.of(Family::from(*range))).collect()
}

/// Ranges of cluster IPs, where the service proxy serves them: those of the cluster's ServiceCIDR objects before those of the flag.
pub fn service_ranges(facts: &Facts, config: &Config) -> Vec<IpNet> {
    let Some(proxy) = &config.proxy else { return Vec::new() };
    let named = match &facts.cluster {
        ClusterFacts::Answered(api) => api.service_ranges.as_deref().unwrap_or_default(),
        _ => &[],
    };
    let ranges = proxy.ranges.in_cluster(named.iter().copied()).cluster_ips;
    ranges.into_iter().filter(|range| *config.families.of(Family::from(*range))).collect()
}

/// Addresses of devices that are neither ours nor carry addresses of Services, as kube-proxy's does.
fn theirs(facts: &Facts) -> impl Iterator<Item = &HostAddress> {
    facts.network.addresses.iter().filter(|one| is_theirs(one))
}

fn is_theirs(one: &HostAddress) -> bool {
    !is_own_link(&one.link.0) && one.scope != Scope::Host
}

/// Returns whether a device of this name is an agent's, or carries service addresses for another program.
pub fn is_own_link(name: &str) -> bool {
    name == BRIDGE || CARRY_SERVICE_ADDRESSES.contains(&name) || name.starts_with(TUNNELS)
}

fn families(facts: &Facts, config: &Config) -> Vec<Finding> {
    let lacking = config.families.iter().filter(|(family, is_on)| {
        let has = theirs(facts).any(|one| Family::from(one.address) == *family && one.scope == Scope::Global);
        **is_on && !has
    });
    let of = |family: Family| {
        let what = format!("it is switched on, and no device of this host has a global {family} address");
        let why = format!("the node has no {family} address, without which nothing of {family} works on it");
        let flag = if family == Family::V4 { "--enable-ipv4=false" } else { "--enable-ipv6=false" };
        Finding::bad(
            Level::Fatal,
            family.to_string(),
            [what, why, format!("give the host such an address, or start with {flag}")],
        )
    };
    lacking.map(|(family, _)| of(family)).collect()
}

/// By which devices the pods of this node are attached.
enum Attached {
    /// By the bridge that the CNI file names, and ours.
    ToBridge(Option<String>),
    /// By whatever another program chooses: the agent keeps no CNI file.
    ByOthers,
}

impl Attached {
    fn new(facts: &Facts, config: &Config) -> Attached {
        let Some(path) = config.router.as_ref().and_then(|router| router.cni_file.as_ref()) else {
            return Attached::ByOthers;
        };
        let text = facts.files.cni_text.as_ref().and_then(|text| text.as_ref().ok());
        Attached::ToBridge(text.and_then(|text| cni::bridge(text, CniFileForm::of(path))))
    }

    /// Returns whether a network of a device is that of pods which have their addresses in this range.
    ///
    /// The plugin `ptp` gives the host's end of each pod's veth pair the gateway as an address without a network, and the pod a route of its own.
    fn has(&self, link: &str, net: IpNet, range: IpNet, facts: &Facts) -> bool {
        let is_alone = net.prefix_len() == net.max_prefix_len();
        let is_of_pod = facts.network.pairs.contains(link) && is_alone;
        match self {
            Attached::ToBridge(bridge) => bridge.as_deref() == Some(link) || is_of_pod,
            Attached::ByOthers => is_of_pod || range.contains(&net),
        }
    }
}

/// Conflicts of a range of this node's pods.
fn in_pod_range(range: IpNet, attached: &Attached, facts: &Facts) -> Vec<Finding> {
    let subject = format!("pod range {range}");
    let attaches = |link: &str, net| attached.has(link, net, range, facts);
    let in_range = theirs(facts).filter(|one| overlap(one.address, range));
    let networks = in_range.filter(|one| !attaches(&one.link.0, one.address)).map(|one| {
        let what = format!("the network {} of the device {} overlaps it", one.address.trunc(), one.link);
        // The narrower network of the bridge has the packets to pods then.
        if !range.contains(&one.address.addr()) && one.address.contains(&range) {
            return Finding::ok(
                subject.clone(),
                format!("{what}: hosts there with addresses of this range are not reached from this node"),
            );
        }
        let why = "packets to pods of this node leave by that device, or pods take addresses of hosts there".to_owned();
        let todo = format!(
            "give the node another range, or remove {} from {} (ip address delete {} dev {})",
            one.address, one.link, one.address, one.link
        );
        Finding::bad(Level::Fatal, subject.clone(), [what, why, todo])
    });
    let leads_to_pods =
        |route: &FoundRoute| !route.links.is_empty() && route.links.iter().all(|link| attaches(link, route.to));
    let others = routes_into(range, facts).filter(|route| !leads_to_pods(route));
    let routes = others.map(|FoundRoute { text: route, .. }| {
        let what = format!("another program's route leads into it: {route}");
        let why = "packets to some pods of this node take that route; the agent removes one to exactly a range of pods, and names others in /readyz".to_owned();
        Finding::bad(Level::Degraded, subject.clone(), [what, why, format!("remove it: ip route delete {route}")])
    });
    networks.chain(routes).collect()
}

/// Conflicts of a range of cluster IPs.
fn in_service_range(range: IpNet, facts: &Facts) -> Vec<Finding> {
    let subject = format!("range of Services {range}");
    let networks = theirs(facts).filter(|one| overlap(one.address, range)).map(|one| {
        let what = format!("the network {} of the device {} overlaps it", one.address.trunc(), one.link);
        let why = "a Service may get the address of a host there, which this node then no longer reaches; addresses that no Service has are not \
            refused in such a range".to_owned();
        let todo = "choose a range that no network around the cluster uses; where the cluster's range is another one, say so by \
            --service-cluster-ip-range".to_owned();
        Finding::bad(Level::Degraded, subject.clone(), [what, why, todo])
    });
    let routes = routes_into(range, facts).map(|FoundRoute { text: route, .. }| {
        let what = format!("a route of this host leads into it: {route}");
        let why = "a Service may get the address of a host there, which this node then no longer reaches".to_owned();
        let todo = "choose a range that no network around the cluster uses, or remove the route".to_owned();
        Finding::bad(Level::Degraded, subject.clone(), [what, why, todo])
    });
    networks.chain(routes).collect()
}

/// Returns others' routes to a part of a range.
fn routes_into(range: IpNet, facts: &Facts) -> impl Iterator<Item = &FoundRoute> {
    facts.network.routes.iter().filter(move |route| range.contains(&route.to) && !of_network(route.to, facts))
}

/// Returns whether a route is the one of a device's own network, which is judged with its address.
fn of_network(to: IpNet, facts: &Facts) -> bool {
    facts.network.addresses.iter().any(|one| one.address.trunc() == to)
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Devices of others that have the number and the port of ours: of each address family the kernel makes one.
fn overlay_numbers(facts: &Facts, config: &Config) -> Vec<Finding> {
    let overlay = config.router.as_ref().and_then(|router| router.overlay);
    let Some(network) = overlay.and_then(Overlay::vxlan) else { return Vec::new() };
    let is_met =
        |(name, device): &(&String, &Vxlan)| !is_vxlan(name) && (device.id, device.port) == (network.id, network.port);
    let finding = |(name, device): (&String, &Vxlan)| {
        let what =
            format!("the vxlan device {name} has number {} and port {}, which ours is to have", device.id, device.port);
        let why = "the kernel makes no second one of an address family, so pods of other nodes are not reached".into();
        let todo = "choose another number by --overlay-vxlan-id on all nodes, or delete that device".into();
        Finding::bad(Level::Degraded, "overlay number", [what, why, todo])
    };
    facts.network.vxlan.iter().filter(is_met).map(finding).collect()
}

/// Returns whether an address is one of this host's.
pub fn is_of_host(facts: &Facts, address: IpAddr) -> bool {
    facts.network.addresses.iter().any(|one| one.address.addr() == address)
}
