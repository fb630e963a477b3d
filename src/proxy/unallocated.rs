//! Cluster IPs that no Service has are refused, in place of leaving the cluster by the default route.
//!
//! Kubernetes: the API server gives cluster IPs from the ranges of ServiceCIDR objects (`--service-cluster-ip-range` before 1.33). A
//! service address is local to the host, so a packet that is routed on to an address of these ranges is for none: its Service was deleted, or there
//! was a mistake. kube-proxy with nftables drops it; here who asks is told at once, as at an unknown port of a Service.
//!
//! Only ranges that somebody has named count: not the flag's default, which is a guess that may be a network of somebody else. A range in which anything else
//! is known to have addresses is left out as a whole, because to refuse these would cut nodes off: networks and addresses of this host, addresses and pod
//! ranges of Nodes, the endpoints of the API server (Service default/kubernetes), the address at which this program asks the API server, unless that is a
//! Service's. No sound cluster has that. Only what opens a connection is refused: answers to a
//! client in the range, and connections that exist, go on.
//!
//! Nobody may be refused whose Service is merely not known yet. So the rules come, and ranges are added, only when all Services are known and the kernel
//! has the addresses of all of them (`apply::unallocated`); they stay while less is known, as do the addresses. A range that is not to be refused any more
//! goes at once, also while the cluster is only remembered. An address enters the set before anything of its Service is there, and leaves it behind everything.
//!
//! Kernel: the filter chain `KUBE-ROUTER-UNALLOCATED`, entered from FORWARD and, behind IPVS, from OUTPUT:
//!
//! ```text
//! -A FORWARD -d 10.96.0.0/12 -j KUBE-ROUTER-UNALLOCATED
//! -A KUBE-ROUTER-UNALLOCATED -m conntrack --ctstate NEW -m set ! --match-set kube-router-svip dst -m addrtype ! --dst-type LOCAL -j REJECT
//! ```
//!
//! With nftables two base chains of our table:
//!
//! ```text
//! chain unallocated_forwarded { type filter hook forward priority filter - 5; policy accept;
//!     ip daddr 10.96.0.0/12 ct state new ip daddr != @addresses4 fib daddr type != local reject }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::ProxyConfig;
use crate::kernel::iptables::rule::{SetSides, Side, States};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Hook, Lookup, Object};
use crate::model::{Change, Host, ObjectName, Service, World};
use crate::net::{Family, PerFamily};

use super::guard;
use super::local_node::LocalNode;
use super::names::{CHAIN_UNALLOCATED, NFT_UNALLOCATED_FORWARDED, NFT_UNALLOCATED_OUT, Set};

const WORDS: &str = "no Service has this cluster IP";

/// Namespace and name of the Service of the API server.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// The ranges of each enabled family whose free addresses are refused, sorted.
pub type Ranges = PerFamily<BTreeSet<IpNet>>;

/// The ranges of cluster IPs that somebody has named, judged.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Judged {
    pub refused: Ranges,
    /// Those that are left out, each with the reason.
    pub left_out: BTreeMap<IpNet, String>,
}

/// Returns the ranges whose free addresses are refused, and those that are left out.
pub fn judged(config: &ProxyConfig, world: &World, node: &LocalNode) -> Judged {
    let named: BTreeSet<IpNet> = world.cluster.service_ranges().collect();
    let is_named = |range: &&IpNet| config.cluster_ips_are_typed || named.contains(*range);
    let is_on = |range: &&IpNet| config.guard && *node.families.of(Family::from(**range));
    let mut judged = Judged::default();
    for range in config.ranges.cluster_ips.iter().filter(is_named).filter(is_on).map(IpNet::trunc) {
        match used(range, world, node) {
            Some(reason) => drop(judged.left_out.insert(range, reason)),
            None => drop(judged.refused.of_mut(Family::from(range)).insert(range)),
        }
    }
    judged
}

/// Returns who else is known to have addresses in a range.
fn used(range: IpNet, world: &World, node: &LocalNode) -> Option<String> {
    let meets = |other: &IpNet| range.contains(other) || other.contains(&range);
    let (host, cluster) = (&world.host, &world.cluster);
    if let Some(network) = host.on_link.iter().find(|network| meets(&network.prefix)) {
        return Some(format!("{} of this host is on the network {}", network.link, network.prefix));
    }
    let of_host = node.addresses.iter().chain(node.address.iter().filter_map(|(_, address)| address.as_ref()));
    if let Some(address) = of_host.copied().find(|address| range.contains(address)) {
        return Some(format!("{address} is an address of this host"));
    }
    for (name, node) in cluster.nodes.iter() {
        if let Some(found) = node.addresses.iter().find(|found| range.contains(&found.address)) {
            return Some(format!("{} is an address of Node {name}", found.address));
        }
        if let Some(pods) = node.pod_cidrs.iter().find(|pods| meets(pods)) {
            return Some(format!("{pods} are pods of Node {name}"));
        }
    }
    let of_server = cluster.endpoints.get(&api_server());
    let mut endpoints =
        of_server.into_iter().flat_map(|its| its.slices.values()).flat_map(|its| its.endpoints.listed());
    if let Some(endpoint) = endpoints.find(|endpoint| range.contains(&endpoint.address)) {
        return Some(format!("{} is an endpoint of the API server", endpoint.address));
    }
    let mut asked = host.api_server.iter().filter(|address| range.contains(*address));
    let address = asked.find(|address| !has_service(world, **address))?;
    Some(format!("{address} is where the API server is asked, and is no Service's"))
}

/// Returns whether an address is the cluster IP of a Service.
fn has_service(world: &World, address: IpAddr) -> bool {
    let services = &world.cluster.services;
    let has_it = |service: &Service| service.cluster_ips.contains(&address);
    // In a pod it is that of the API server's own, as a rule.
    services.get(&api_server()).is_some_and(|service| has_it(service))
        || services.iter().any(|(_, service)| has_it(service))
}

/// Returns the name of the Service of the API server.
fn api_server() -> ObjectName {
    let (namespace, name) = API_SERVER;
    ObjectName::new(namespace, name)
}

fn is_api_server(service: &ObjectName) -> bool {
    let (namespace, name) = API_SERVER;
    service.namespace == *namespace && service.name == *name
}

/// Returns whether anything differs between two Worlds that decides about the ranges. `endpoints`: the Services whose endpoints differ.
pub fn may_differ([older, newer]: [&World; 2], endpoints: &[&ObjectName]) -> bool {
    let (before, after) = (&older.cluster, &newer.cluster);
    !Arc::ptr_eq(&older.host, &newer.host)
        || after.nodes.changes_since(&before.nodes).next().is_some()
        || after.service_cidrs.changes_since(&before.service_cidrs).next().is_some()
        || endpoints.iter().any(|service| is_api_server(service))
        || after.services.changes_since(&before.services).any(|change| match change {
            Change::Added(_, service) | Change::Removed(_, service) => is_asked(&newer.host, service),
            Change::Updated(_, old, new) => is_asked(&newer.host, old) != is_asked(&newer.host, new),
        })
}

/// Returns whether the API server is asked at a cluster IP of this Service.
fn is_asked(host: &Host, service: &Service) -> bool {
    service.cluster_ips.iter().any(|address| host.api_server.contains(address))
}

/// Returns the chain and the jumps to it, for one family; nothing where it has no range.
pub fn rules(ranges: &BTreeSet<IpNet>, family: Family) -> BTreeMap<Piece, Rules> {
    if ranges.is_empty() {
        return BTreeMap::new();
    }
    let table = Table::Filter;
    let free = [
        Match::Comment(WORDS.into()),
        Match::State { states: States::NEW, negated: false },
        Match::not_in_set(&Set::ServiceAddresses.name(family), SetSides::Address(Side::Destination)),
        Match::HostAddress { of: Side::Destination, negated: true },
    ];
    let refused = Rules(vec![Rule::new(free, Verdict::Reject(family))]);
    let to_range = |range: &IpNet| Match::Destination { range: *range, negated: false };
    let jumps = |from: &str| {
        let jump = |range| Rule::new([to_range(range)], Verdict::Jump(CHAIN_UNALLOCATED.into()));
        let piece = Piece::Jump { family, table, from: from.into(), to: CHAIN_UNALLOCATED.into() };
        (piece, Rules(ranges.iter().map(jump).collect()))
    };
    let chain = (Piece::Chain { family, table, chain: CHAIN_UNALLOCATED.into() }, refused);
    BTreeMap::from([chain, jumps("FORWARD"), jumps("OUTPUT")])
}

/// Returns whether a piece of rules is one of these.
pub fn is_rule(piece: &Piece) -> bool {
    match piece {
        Piece::Chain { chain, .. } => chain == CHAIN_UNALLOCATED,
        Piece::Jump { to, .. } => to == CHAIN_UNALLOCATED,
        Piece::Leftover { .. } => false,
    }
}

/// Returns the chains in our table of nf_tables; none where there is no range.
pub fn table_chains(ranges: &Ranges) -> BTreeMap<Object, Content> {
    use nftables::{Match, Rule, Verdict};
    let refused = |family: Family, range: &IpNet| {
        let destination = Lookup::Address(family, Side::Destination);
        let free = [
            Match::Address { of: Side::Destination, range: *range, negated: false },
            Match::State { states: States::NEW, negated: false },
            Match::InSet { lookup: destination, set: Set::ServiceAddresses.in_table(family), negated: true },
            Match::HostAddress { of: Side::Destination, negated: true },
        ];
        Rule::new(free, Verdict::Reject).commented(WORDS)
    };
    let of_family = |family| ranges.of(family).iter().map(move |range| refused(family, range));
    let rules: Vec<Rule> = Family::BOTH.into_iter().flat_map(of_family).collect();
    if rules.is_empty() {
        return BTreeMap::new();
    }
    let hooked = |(name, hook): (&str, Hook)| {
        let base = Some(Base { kind: BaseKind::Filter, hook, priority: guard::PRIORITY });
        (Object::Chain(name.into()), Content::Chain(Arc::new(Chain { base, rules: rules.clone() })))
    };
    [(NFT_UNALLOCATED_FORWARDED, Hook::Forward), (NFT_UNALLOCATED_OUT, Hook::Output)].into_iter().map(hooked).collect()
}

/// Returns the rules of such a piece that refuse what they refused before too; `None` where there are none.
pub fn narrowed(seen: &Rules, desired: Option<&Rules>) -> Option<Rules> {
    let kept: Vec<Rule> =
        seen.0.iter().filter(|rule| desired.is_some_and(|its| its.0.contains(rule))).cloned().collect();
    (!kept.is_empty()).then_some(Rules(kept))
}

/// The same of a chain in our table.
pub fn narrowed_chain(seen: &Content, desired: Option<&Content>) -> Option<Content> {
    let (Content::Chain(seen), Some(Content::Chain(desired))) = (seen, desired) else { return None };
    let kept: Vec<nftables::Rule> = seen.rules.iter().filter(|rule| desired.rules.contains(rule)).cloned().collect();
    (!kept.is_empty()).then(|| Content::Chain(Arc::new(Chain { base: desired.base, rules: kept })))
}

/// Returns whether an object of our table is one of these chains.
pub fn is_chain(object: &Object) -> bool {
    let names = [NFT_UNALLOCATED_FORWARDED, NFT_UNALLOCATED_OUT];
    matches!(object, Object::Chain(name) if names.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::{Config, Environment, Mistakes, Request, request};
    use crate::model::{
        Conditions, Endpoint, EndpointSlice, Endpoints, Node, NodeAddress, NodeAddressKind, OnLink, ServiceCidr,
    };

    const V4: &str = "10.96.0.0/12";
    const V6: &str = "fd00:10:96::/108";

    fn range(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    fn node() -> LocalNode {
        LocalNode {
            families: PerFamily { v4: true, v6: true },
            address: PerFamily { v4: "192.0.2.1".parse().ok(), v6: "2001:db8:2::1".parse().ok() },
            pod_cidrs: PerFamily { v4: vec![range("10.244.1.0/24")], v6: vec![range("fd00:10:244:1::/64")] },
            ..LocalNode::default()
        }
    }

    fn world() -> World {
        let mut world = World::empty();
        let on_link = vec![OnLink { prefix: range("198.51.100.0/24"), link: "eth0".into() }];
        // Of the second one, which is in a sound range, a Service is known.
        let asked = vec![ip("10.112.0.1"), ip("10.208.0.5")];
        world.host = Arc::new(Host { on_link, api_server: asked, ..Host::default() });
        world.cluster.services.insert(api_server(), Service::new(vec![ip("10.112.0.1")], Vec::new()));
        let addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, address: ip("10.100.1.5") }];
        let pod_cidrs = vec![range("10.244.2.0/24"), range("fd00:10:244:2::/64")];
        world.cluster.nodes.insert("node2".into(), Node { addresses, pod_cidrs, ..Node::default() });
        let endpoint = Endpoint { address: ip("10.200.1.5"), node: None, conditions: Conditions::READY, hints: None };
        let slice = EndpointSlice { family: Family::V4, ports: Default::default(), endpoints: [endpoint].into() };
        let slices = [("one".into(), Arc::new(slice))].into_iter().collect();
        world.cluster.endpoints.insert(api_server(), Endpoints { slices });
        world
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// The ranges with this configuration, where the cluster names these, and the reasons of those that are left out.
    fn of_cluster(configure: impl Fn(&mut ProxyConfig), named: &[&str], node: &LocalNode) -> (Vec<String>, String) {
        let words = ["sluice", "--run-router=false", "--run-firewall=false", "--enable-ipv6"].map(OsString::from);
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        let meant = Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default());
        let mut config = meant.proxy.expect("it runs");
        configure(&mut config);
        let mut world = world();
        let ranges = named.iter().map(|text| range(text)).collect();
        world.cluster.service_cidrs.insert("kubernetes".into(), ServiceCidr { ranges });
        config.ranges = config.ranges.in_cluster(world.cluster.service_ranges());
        let found = judged(&config, &world, node);
        let refused =
            [found.refused.v4, found.refused.v6].into_iter().flatten().map(|range| range.to_string()).collect();
        (refused, found.left_out.into_values().collect::<Vec<_>>().join(", "))
    }

    fn typed(config: &mut ProxyConfig) {
        config.cluster_ips_are_typed = true;
    }

    const SOUND: &str = "10.112.0.0/12";

    #[test]
    fn ranges_that_somebody_named_are_refused_and_the_flags_default_is_not() {
        let check = |configure: fn(&mut ProxyConfig), named: &[&str], node: &LocalNode, expected: &[&str]| {
            let (refused, left_out) = of_cluster(configure, named, node);
            assert_eq!(
                (refused.iter().map(String::as_str).collect::<Vec<_>>(), left_out.as_str()),
                (expected.to_vec(), "")
            );
        };
        fn in_another(config: &mut ProxyConfig) {
            config.ranges.cluster_ips = vec![range(SOUND)];
        }
        check(in_another, &[], &node(), &[]);
        check(|config| (in_another(config), typed(config)).0, &[], &node(), &[SOUND]);
        check(|_| (), &[SOUND, V6], &node(), &[SOUND, V6]);
        check(in_another, &[V6], &node(), &[V6]);
        check(typed, &["10.0.0.0/16", "10.112.0.0/24"], &node(), &["10.0.0.0/16", "10.112.0.0/24"]);
        check(|config| config.guard = false, &[SOUND, V6], &node(), &[]);
        let without_ipv6 = LocalNode { families: PerFamily { v4: true, v6: false }, ..node() };
        check(|_| (), &[SOUND, V6], &without_ipv6, &[SOUND]);
    }

    #[test]
    fn a_range_in_which_anybody_else_has_addresses_is_left_out_as_a_whole_and_the_reason_is_told() {
        for (wrong, reason) in [
            ("192.0.2.0/28", "192.0.2.1 is an address of this host"),
            ("198.51.100.128/25", "eth0 of this host is on the network 198.51.100.0/24"),
            ("198.51.0.0/16", "eth0 of this host is on the network 198.51.100.0/24"),
            (V4, "10.100.1.5 is an address of Node node2"),
            ("10.244.0.0/16", "10.244.2.0/24 are pods of Node node2"),
            ("10.244.2.128/25", "10.244.2.0/24 are pods of Node node2"),
            ("10.192.0.0/12", "10.200.1.5 is an endpoint of the API server"),
            ("10.208.0.0/12", "10.208.0.5 is where the API server is asked, and is no Service's"),
        ] {
            let found = of_cluster(|_| (), &[wrong, SOUND, V6], &node());
            assert_eq!(found, (vec![SOUND.to_owned(), V6.to_owned()], reason.to_owned()), "{wrong}");
        }
        let (refused, _) = of_cluster(|_| (), &[SOUND, "fd00:10:244::/48"], &node());
        assert_eq!(refused, [SOUND], "pods of IPv6");
    }

    #[test]
    fn a_range_is_judged_anew_when_the_service_at_which_the_api_server_is_asked_comes_or_goes() {
        let before = world();
        let changed = |change: fn(&mut World)| {
            let mut after = before.clone();
            change(&mut after);
            let of_endpoints = after.cluster.endpoints.changes_since(&before.cluster.endpoints);
            let of_endpoints: Vec<&ObjectName> = of_endpoints.map(|change| change.key()).collect();
            may_differ([&before, &after], &of_endpoints)
        };
        assert!(!changed(|_| ()));
        assert!(changed(|world| drop(world.cluster.services.remove(&api_server()))));
        assert!(changed(|world| drop(world.cluster.endpoints.remove(&api_server()))));
        fn put(world: &mut World, address: &str) {
            world.cluster.services.insert(ObjectName::new("shop", "web"), Service::new(vec![ip(address)], Vec::new()));
        }
        assert!(!changed(|world| put(world, "10.112.0.9")));
        assert!(changed(|world| put(world, "10.208.0.5")));
    }

    #[test]
    fn what_is_in_the_set_of_service_addresses_and_what_is_the_hosts_passes() {
        let two = BTreeSet::from([range(V4), range("10.0.0.0/16")]);
        let rules = rules(&two, Family::V4);
        let texts: Vec<String> = rules.values().flat_map(|rules| &rules.0).map(ToString::to_string).collect();
        let to = |range: &str| format!("-d {range} -j KUBE-ROUTER-UNALLOCATED");
        let refused = "-m comment --comment \"no Service has this cluster IP\" -m conntrack --ctstate NEW -m set ! --match-set kube-router-svip dst \
                       -m addrtype ! --dst-type LOCAL -j REJECT --reject-with icmp-port-unreachable";
        let [first, second] = [to("10.0.0.0/16"), to(V4)];
        assert_eq!(texts, [refused.to_owned(), first.clone(), second.clone(), first, second]);
        assert!(rules.keys().all(is_rule));
        assert!(super::rules(&BTreeSet::new(), Family::V6).is_empty());
        let chains = table_chains(&PerFamily { v4: two, v6: BTreeSet::from([range(V6)]) });
        assert_eq!(chains.len(), 2, "one for what is forwarded, one for the host's own packets");
        for (object, content) in &chains {
            assert!(is_chain(object), "{object}");
            let Content::Chain(chain) = content else { panic!("{object} is no chain") };
            assert_eq!(chain.rules.len(), 3, "one for each range");
            assert!(chain.rules.iter().all(|rule| rule.matches().len() == 4));
        }
        assert!(table_chains(&Ranges::default()).is_empty());
    }
}
