//! Source ranges: the only clients of a Service's load balancer addresses.
//!
//! Kubernetes: `Service.spec.loadBalancerSourceRanges`, or else the annotation
//! `service.beta.kubernetes.io/load-balancer-source-ranges`. As with kube-proxy they concern the addresses in
//! `status.loadBalancer` alone, for every client, the node itself and its pods included: cluster addresses, node ports and
//! `spec.externalIPs` stay open. A list says who may come: where it names no range of a family, nobody of that family
//! does, which kube-proxy reads as everybody.
//!
//! Packets of others are dropped before IPVS sees them, whatever connection they belong to, so a range that is taken away
//! ends connections too. The cost of a packet does not grow with Services: it is looked up in one set of restricted
//! services, and only where it is for one of these, in another together with its source.
//!
//! Kernel: mangle chain `KUBE-ROUTER-SOURCES`, entered from INPUT, and from OUTPUT for the node's own packets, which IPVS takes
//! behind the table mangle and before the table filter. Sets and rules exist only while any Service has source ranges:
//!
//! ```text
//! -A INPUT -m set --match-set kube-router-restricted dst,dst -j KUBE-ROUTER-SOURCES
//! -A KUBE-ROUTER-SOURCES -m set --match-set kube-router-local-ips dst -m conntrack --ctdir REPLY -j RETURN
//! -A KUBE-ROUTER-SOURCES -m set ! --match-set kube-router-allowed-src dst,dst,src -j DROP
//! ```
//!
//! A load balancer address may be the host's own, as with a load balancer that gives Services the addresses of Nodes. The host itself may have opened a connection from a
//! port that is such a Service's: the answers are not for the Service, and pass. No other address can be the near end of a connection of the host's own.
//!
//! What is dropped is counted, for all Services of a family together ([`serve`]): a count for each Service would need a rule for each, or a counter in each element
//! of a second set, and both cost more the more Services there are.
//!
//! With nftables the sources stand in one set for each length of prefixes, because a set of ranges of several fields takes
//! time proportional to its size to change:
//!
//! ```text
//! chain service_sources { type filter hook input priority mangle; policy accept;
//!     ip daddr . meta l4proto . th dport @restricted4 jump source_ranges4 }
//! chain source_ranges4 { ip daddr @own4 ct direction reply return
//!                        ip daddr . meta l4proto . th dport . ip saddr & 255.255.255.0 @sources4_24 return; counter name outside_sources4 drop }
//! ```

pub mod serve;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::kernel::ipset::Entry;
use crate::kernel::iptables::rule::{SetSides, Side};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Fields, Hook, Lookup, Object};
use crate::model::{ObjectName, Service, ServiceType};
use crate::net::{Family, PerFamily};

use super::clients::Shape;
use super::guard;
use super::names::{CHAIN_SOURCES, NFT_OUTSIDE_SOURCES, NFT_SOURCES, NFT_SOURCES_IN, NFT_SOURCES_OUT, Set};

/// The only clients of one virtual service, sorted; `None` for everybody. No range is of length 0.
pub type Sources = Option<Arc<[IpNet]>>;

/// Of the table mangle: in OUTPUT before IPVS (-99), and in INPUT before all rules of the table filter.
const PRIORITY: i32 = -150;

/// The most elements that the source ranges of one Service may take: every node holds all of them.
pub const MOST_ELEMENTS: usize = 5_000;

/// Returns the clients of a Service at one of its addresses.
pub fn sources(service: &Service, address: IpAddr) -> Sources {
    let given = service.source_ranges.as_ref().filter(|_| service.kind == ServiceType::LoadBalancer)?;
    service.load_balancer.iter().find(|entry| entry.address == address)?;
    let of_family = || given.iter().filter(|range| Family::from(**range) == Family::from(address));
    let is_open = of_family().any(|range| range.prefix_len() == 0);
    // What is too much for the kernel lets nobody in, instead of everybody.
    (!is_open).then(|| if too_many(service).is_some() { Arc::default() } else { of_family().copied().collect() })
}

/// Returns the number of elements that the source ranges of a Service take, one for each range, load balancer address and port, if
/// that is above [`MOST_ELEMENTS`].
pub fn too_many(service: &Service) -> Option<u32> {
    let given = service.source_ranges.as_ref().filter(|_| service.kind == ServiceType::LoadBalancer)?;
    let of_family = PerFamily::from_fn(|family| {
        let ranges = given.iter().filter(|range| Family::from(**range) == family);
        let (count, is_open) = ranges.fold((0, false), |(n, open), range| (n + 1, open || range.prefix_len() == 0));
        if is_open { 0_usize } else { count }
    });
    let ranges: usize = service.load_balancer.iter().map(|entry| *of_family.of(Family::from(entry.address))).sum();
    let elements = ranges.saturating_mul(service.ports.len());
    (elements > MOST_ELEMENTS).then(|| u32::try_from(elements).unwrap_or(u32::MAX))
}

/// Returns the message for the administrator where a Service has too many source ranges since now.
pub fn refusal(name: &ObjectName, [before, now]: [Option<u32>; 2]) -> Option<String> {
    let elements = now.filter(|_| before.is_none())?;
    Some(format!(
        "Service {name}: its source ranges take {elements} elements (ranges, addresses and ports), {MOST_ELEMENTS} at most: \
         its load balancer addresses are closed to everybody"
    ))
}

/// Returns the restricted service that an element of [`Set::AllowedSources`] belongs to.
pub fn restricted_by(entry: &Entry) -> Option<Entry> {
    match entry {
        Entry::IpPortNet(entry) => Some(Entry::IpPort(entry.address, entry.protocol, entry.port)),
        _ => None,
    }
}

/// Returns the chain and the jumps to it, for one family.
pub fn rules(family: Family) -> BTreeMap<Piece, Rules> {
    let allowed =
        Match::Set { set: Set::AllowedSources.name(family), of: SetSides::DestinationPortSource, negated: true };
    let own = Match::in_set(&Set::LocalAddresses.name(family), SetSides::Address(Side::Destination));
    let answers = Rule::new([own, Match::Answer], Verdict::Return);
    let drop = Rule::new([Match::Comment("drop clients outside of source ranges".into()), allowed], Verdict::Drop);
    let restricted = Match::in_set(&Set::Restricted.name(family), SetSides::DestinationPort);
    let jump = Rule::new([restricted], Verdict::Jump(CHAIN_SOURCES.into()));
    let table = Table::Mangle;
    let jump_from = |from: &str| {
        let piece = Piece::Jump { family, table, from: from.into(), to: CHAIN_SOURCES.into() };
        (piece, Rules(vec![jump.clone()]))
    };
    let chain = (Piece::Chain { family, table, chain: CHAIN_SOURCES.into() }, Rules(vec![answers, drop]));
    BTreeMap::from([chain, jump_from("INPUT"), jump_from("OUTPUT")])
}

/// Returns whether a piece of rules of this family drops packets of clients outside of source ranges.
pub fn is_rule(piece: &Piece, of: Family) -> bool {
    match piece {
        Piece::Chain { family, chain, .. } => *family == of && chain == CHAIN_SOURCES,
        Piece::Jump { family, to, .. } => *family == of && to == CHAIN_SOURCES,
        Piece::Leftover { .. } => false,
    }
}

/// The same of chains in our table of nf_tables.
pub fn is_chain(object: &Object) -> bool {
    let is_named = |name: &str| name == NFT_SOURCES_IN || name == NFT_SOURCES_OUT;
    family_of(object).is_some() || matches!(object, Object::Chain(name) if is_named(name.as_str()))
}

/// Returns the family of a chain that knows the lengths of prefixes; `None` for another object.
pub fn family_of(object: &Object) -> Option<Family> {
    let Object::Chain(name) = object else { return None };
    Family::BOTH.into_iter().find(|family| *NFT_SOURCES.of(*family) == name.as_str())
}

/// Returns the sets and chains in our table of nf_tables: of all these families, or none where nothing is restricted, because what is
/// restricted still must not be opened by a change of a chain.
pub fn in_table(shape: &Shape, families: &[Family]) -> BTreeMap<Object, Content> {
    use nftables::{Match, Rule, SetSpec, Statement, Verdict};
    let mut found = BTreeMap::new();
    let mut entered = Vec::new();
    let is_used = shape.ranged.v4 || shape.ranged.v6;
    for family in families.iter().copied().filter(|_| is_used) {
        found.extend([guard::table_set(Set::Restricted, family)]);
        let name = *NFT_SOURCES.of(family);
        let set = Set::Restricted.in_table(family);
        let restricted = Match::InSet { lookup: Lookup::DestinationService(family), set, negated: false };
        entered.push(Rule::new([restricted], Verdict::Jump(name.into())));
        let (lookup, set) = (Lookup::Address(family, Side::Destination), Set::LocalAddresses.in_table(family));
        let own = Match::InSet { lookup, set, negated: false };
        let mut rules = vec![Rule::new([own, Match::Answer], Verdict::Return)];
        for (_, length) in shape.lengths.iter().filter(|(its, _)| *its == family) {
            let set = Set::sources_in_table(family, *length);
            let fields = Fields::ServiceSource(family);
            let spec = SetSpec { fields, kind: nftables::Kind::Set, intervals: false };
            found.insert(Object::Set(set.clone()), Content::Set(spec));
            let allowed = Match::InSet { lookup: Lookup::ServiceSource(family, *length), set, negated: false };
            rules.push(Rule::new([allowed], Verdict::Return));
        }
        let counter = nftables::Name::from(*NFT_OUTSIDE_SOURCES.of(family));
        found.insert(Object::Counter(counter.clone()), Content::Counter);
        let drop = Rule::with([], [Statement::Count(counter)], Some(Verdict::Drop));
        rules.push(drop.commented("not in the source ranges of the Service"));
        found.insert(Object::Chain(name.into()), Content::Chain(Arc::new(Chain { base: None, rules })));
    }
    if entered.is_empty() {
        return found;
    }
    for (name, hook) in [(NFT_SOURCES_IN, Hook::Input), (NFT_SOURCES_OUT, Hook::Output)] {
        let base = Some(Base { kind: BaseKind::Filter, hook, priority: PRIORITY });
        let chain = Chain { base, rules: entered.clone() };
        found.insert(Object::Chain(name.into()), Content::Chain(Arc::new(chain)));
    }
    found
}

/// Returns such a chain of one family with the lengths of these sets as well, which exist: somebody has deleted the chain, and elements may be of Services that are not
/// known. `None` where it has all of them.
pub fn with_lengths(chain: &Content, of: Family, sets: impl Iterator<Item = nftables::Name>) -> Option<Content> {
    use nftables::{Match, Rule, Verdict};
    let Content::Chain(wanted) = chain else { return None };
    let allows = |set: nftables::Name| {
        let (_, length) = Set::sources_of_table(&set).filter(|(family, _)| *family == of)?;
        let allowed = Match::InSet { lookup: Lookup::ServiceSource(of, length), set, negated: false };
        Some(Rule::new([allowed], Verdict::Return)).filter(|rule| !wanted.rules.contains(rule))
    };
    let missing: Vec<Rule> = sets.filter_map(allows).collect();
    let (last, rules) = wanted.rules.split_last().filter(|_| !missing.is_empty())?;
    let rules = rules.iter().chain(&missing).chain([last]).cloned().collect();
    Some(Content::Chain(Arc::new(Chain { base: wanted.base, rules })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadBalancerAddress, ServicePort};
    use crate::net::Protocol;

    const V4: &str = "203.0.113.20";
    const V6: &str = "2001:db8:113::20";

    fn service(ranges: Option<&[&str]>) -> Service {
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) };
        let balancer = |text: &str| LoadBalancerAddress { address: ip(text), through_balancer: false };
        Service {
            kind: ServiceType::LoadBalancer,
            external_ips: vec![ip("203.0.113.7")],
            load_balancer: vec![balancer(V4), balancer(V6)],
            source_ranges: ranges.map(|ranges| ranges.iter().map(|range| range.parse().expect("a range")).collect()),
            ..Service::new(vec![ip("10.96.0.9")], vec![port])
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn clients(ranges: Option<&[&str]>, address: &str) -> Option<Vec<String>> {
        sources(&service(ranges), ip(address)).map(|found| found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn source_ranges_concern_load_balancer_addresses_alone() {
        for open in ["10.96.0.9", "203.0.113.7", "192.0.2.1"] {
            assert_eq!(clients(Some(&["198.51.100.0/24"]), open), None, "{open}");
        }
        assert_eq!(clients(Some(&["198.51.100.0/24"]), V4), Some(vec!["198.51.100.0/24".to_owned()]));
        assert_eq!(clients(None, V4), None);
        let of_another_type = Service { kind: ServiceType::NodePort, ..service(Some(&["198.51.100.0/24"])) };
        assert_eq!(sources(&of_another_type, ip(V4)), None);
    }

    #[test]
    fn a_list_without_a_range_of_the_family_lets_nobody_of_it_in() {
        assert_eq!(clients(Some(&["198.51.100.0/24"]), V6), Some(Vec::new()));
        assert_eq!(clients(Some(&["2001:db8::/32"]), V4), Some(Vec::new()));
        assert_eq!(clients(Some(&[]), V4), Some(Vec::new()), "no range made sense");
    }

    #[test]
    fn a_range_of_everybody_restricts_nobody_of_its_family() {
        assert_eq!(clients(Some(&["10.0.0.0/8", "0.0.0.0/0"]), V4), None);
        assert_eq!(clients(Some(&["0.0.0.0/0"]), V6), Some(Vec::new()));
        assert_eq!(clients(Some(&["0.0.0.0/0", "::/0"]), V6), None);
    }

    #[test]
    fn a_list_that_is_too_long_lets_nobody_in() {
        let texts: Vec<String> = (0..MOST_ELEMENTS).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        let mut list: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(clients(Some(&list), V4).map(|found| found.len()), Some(MOST_ELEMENTS));
        list.push("10.200.0.0/16");
        assert_eq!(clients(Some(&list), V4), Some(Vec::new()));
        assert_eq!(too_many(&service(Some(&list))), u32::try_from(MOST_ELEMENTS + 1).ok());
        list.push("0.0.0.0/0");
        assert_eq!(clients(Some(&list), V4), None, "one element would do");
    }

    #[test]
    fn the_cost_of_a_packet_does_not_grow_with_services() {
        let lengths = [(Family::V4, 8), (Family::V4, 24), (Family::V6, 64)].into();
        let ranged = PerFamily { v4: true, v6: true };
        let shape = Shape { ranged, lengths, ..Shape::default() };
        let table = in_table(&shape, &Family::BOTH);
        let rules = |name: &str| match table.get(&Object::Chain(name.into())) {
            Some(Content::Chain(chain)) => chain.rules.len(),
            other => panic!("{name} is {other:?}"),
        };
        // One for each family; the first, one for each length of prefixes, and the last.
        assert_eq!([rules(NFT_SOURCES_IN), rules(NFT_SOURCES_OUT)], [2, 2]);
        assert_eq!([rules("source_ranges4"), rules("source_ranges6")], [4, 3]);
        assert!(in_table(&Shape::default(), &Family::BOTH).is_empty(), "nothing where no Service has source ranges");
        let rules: usize = super::rules(Family::V4).values().map(|rules| rules.0.len()).sum();
        assert_eq!(rules, 4, "two jumps and two rules");
    }
}
