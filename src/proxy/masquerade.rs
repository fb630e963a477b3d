//! Masquerading: which connections to a backend must return through this node.
//!
//! A client outside the cluster that is sent to a backend on another node must see the reply come from where
//! it sent its packet. So connections that IPVS sent on get this node's source address, unless the reply
//! returns here by itself:
//! - the backend is in a pod range of this node, or this node itself (a pod on the host's network);
//! - the Node has no pod range of the family (another network plugin gives addresses), and the backend is an endpoint on this node, as its slice
//!   says. Where there are ranges they decide alone: whoever may write slices could otherwise have a pod of another node answer past this one;
//! - the client is in a pod range of this node.
//!
//! In these cases the backend sees the client's own address. A pod that reaches itself through its own Service (hairpin) gets the
//! node's address too: it would take an answer to itself for one that does not belong to the connection. One rule and one set
//! of the endpoints on this node say when, at whatever number of Services ([`Set::Hairpin`]), and which endpoints are on this node: each element has
//! the endpoint's address as destination and as source. With `--masquerade-all` everything gets the node's address.
//! Where the node's pod ranges are not known, all that leaves the node does.
//!
//! Never masqueraded is what goes to a port of BGP (`speaker_port`), not even what a pod there sends to itself, which it does not reach so: a slice may say of another node's address
//! that it is an endpoint here. An endpoint there sees who asks, and is reached where the reply returns here by itself.
//!
//! The node's address is here the one by which other nodes route to it (`--node-ip-autodetect`): a pod of another node answers by the routes of that node. What
//! leaves by the link of the InternalIP, where that is another link, gets the InternalIP: it goes to programs on hosts, which know no other address.
//!
//! Kernel: nat chain `KUBE-ROUTER-SNAT`, entered from POSTROUTING for what IPVS has translated:
//! `iptables -t nat -A POSTROUTING -m ipvs --ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-SNAT`.
//! A chain of our own, because several pod CIDRs of one family would otherwise masquerade each other's pods, and
//! because rules in it need no other mark to be recognised as ours. Unlike kube-router's, these rules do not depend on
//! `--run-router`: a proxy that runs alone has to ensure its own return path.
//!
//! With nftables, which has no match for IPVS, such a connection is known by what connection tracking keeps of its first
//! packet, whose destination was a service port of ours:
//!
//! ```text
//! chain service_snat { type nat hook postrouting priority srcnat - 2; policy accept;
//!     meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst @ports4 jump translated4 }
//! chain translated4 { tcp dport 179 return
//!     ip daddr . meta l4proto . th dport . ip saddr @hairpin4 snat ip to 192.0.2.1 fully-random
//!     ip daddr . meta l4proto . th dport . ip daddr @hairpin4 return
//!     ip saddr 10.244.1.0/24 return; ip daddr 10.244.1.0/24 return; fib daddr type local return;
//!     meta nfproto ipv4 snat ip to 192.0.2.1 fully-random }
//! ```
//!
//! That needs `net.ipv4.vs.conntrack` (`settings`), as the match for IPVS does.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::iptables::rule::{IpProtocol, SetSides, Side};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Hook, Lookup, Object};
use crate::net::{Family, PortRange, Protocol};

use super::local_node::LocalNode;
use super::names::{CHAIN_SNAT, NFT_SNAT, NFT_TRANSLATED, Set};

/// Of all chains that translate a connection the first does: before the router's (99) and those of others (100).
const PRIORITY: i32 = 98;

/// Returns the masquerading chain and the jump to it, for one family. `bgp_ports`: at which nodes and routers speak BGP.
pub fn rules(node: &LocalNode, masquerade_all: bool, bgp_ports: &[u16], family: Family) -> BTreeMap<Piece, Rules> {
    let mut chain: Vec<Rule> = Vec::new();
    let translation = match node.source(family) {
        Some(to) => Verdict::SourceNat { to, random_ports: true },
        None => Verdict::Masquerade { random_ports: true },
    };
    let protocol = Protocol::Tcp;
    chain.extend(bgp_ports.iter().map(|port| {
        let to_speaker = Match::Port { protocol, side: Side::Destination, port: *port };
        Rule::new([Match::Protocol(IpProtocol::Transport(protocol)), to_speaker], Verdict::Return)
    }));
    if !masquerade_all {
        let to_itself = Match::in_set(&Set::Hairpin.name(family), SetSides::DestinationPortSource);
        chain.push(Rule::new([to_itself], translation.clone()));
        if node.pod_cidrs.of(family).is_empty() {
            let to_endpoint_here = Match::in_set(&Set::Hairpin.name(family), SetSides::DestinationPortItself);
            chain.push(Rule::new([to_endpoint_here], Verdict::Return));
        }
        for cidr in node.pod_cidrs.of(family) {
            let (range, negated) = (*cidr, false);
            chain.push(Rule::new([Match::Source { range, negated }], Verdict::Return));
            chain.push(Rule::new([Match::Destination { range, negated }], Verdict::Return));
        }
        chain.push(Rule::new([Match::HostAddress { of: Side::Destination, negated: false }], Verdict::Return));
    }
    if let Some((link, to)) = node.apart(family) {
        chain.push(Rule::new([Match::OutputLink(link.as_str().into())], Verdict::SourceNat { to, random_ports: true }));
    }
    chain.push(Rule::new([], translation));
    // As iptables prints it: `--ipvs` is omitted where another IPVS match is given.
    let jump = Rule::new([Match::ByIpvs { prints_ipvs: false }], Verdict::Jump(CHAIN_SNAT.into()));
    BTreeMap::from([
        (Piece::Chain { family, table: Table::Nat, chain: CHAIN_SNAT.into() }, Rules(chain)),
        (
            Piece::Jump { family, table: Table::Nat, from: "POSTROUTING".into(), to: CHAIN_SNAT.into() },
            Rules(vec![jump]),
        ),
    ])
}

/// Returns the masquerading chains in our table of nf_tables, for the enabled families.
pub fn table_chains(node: &LocalNode, masquerade_all: bool, bgp_ports: &[u16]) -> BTreeMap<Object, Content> {
    use nftables::{Match, Rule, Verdict};
    let mut chains = BTreeMap::new();
    let mut entered = Vec::new();
    for family in node.enabled_families() {
        let name = *NFT_TRANSLATED.of(family);
        for protocol in Protocol::ALL {
            let (lookup, set) = (Lookup::OriginalService(family), Set::ServicePorts.in_table(family));
            // `nft` reads a port of `ct original` only behind its protocol.
            let of_service = [Match::Protocol(protocol), Match::InSet { lookup, set, negated: false }];
            entered.push(Rule::new(of_service, Verdict::Jump(name.into())));
        }
        let mut rules = Vec::new();
        let translation = match node.source(family) {
            Some(to) => Verdict::SourceNat { to, random_ports: true },
            None => Verdict::Masquerade { random_ports: true },
        };
        rules.extend(bgp_ports.iter().map(|port| {
            let range = PortRange { first: *port, last: *port };
            let to_speaker = Match::DestinationPort { protocol: Protocol::Tcp, range };
            Rule::new([to_speaker], Verdict::Return).commented("who speaks BGP does so as itself")
        }));
        if !masquerade_all {
            let lookup = Lookup::ServiceSource(family, family.host_bits());
            let to_itself = Match::InSet { lookup, set: Set::Hairpin.in_table(family), negated: false };
            rules.push(Rule::new([to_itself], translation.clone()).commented("a pod reaches itself"));
            if node.pod_cidrs.of(family).is_empty() {
                let lookup = Lookup::ServiceItself(family);
                let to_endpoint_here = Match::InSet { lookup, set: Set::Hairpin.in_table(family), negated: false };
                rules.push(Rule::new([to_endpoint_here], Verdict::Return).commented("an endpoint on this node"));
            }
            for range in node.pod_cidrs.of(family) {
                let ends =
                    [Side::Source, Side::Destination].map(|of| Match::Address { of, range: *range, negated: false });
                rules.extend(ends.map(|end| Rule::new([end], Verdict::Return)));
            }
            rules.push(Rule::new([Match::HostAddress { of: Side::Destination, negated: false }], Verdict::Return));
        }
        if let Some((name, to)) = node.apart(family) {
            let leaves = Match::OutputLink { name, negated: false };
            rules.push(Rule::new([leaves], Verdict::SourceNat { to, random_ports: true }));
        }
        rules.push(Rule::new([Match::Family(family)], translation));
        chains.insert(Object::Chain(name.into()), Content::Chain(Arc::new(Chain { base: None, rules })));
    }
    let base = Base { kind: BaseKind::Nat, hook: Hook::Postrouting, priority: PRIORITY };
    let chain = Chain { base: Some(base), rules: entered };
    chains.insert(Object::Chain(NFT_SNAT.into()), Content::Chain(Arc::new(chain)));
    chains
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::PerFamily;

    const BGP: &[u16] = &[1179];

    fn rules_of(chains: &BTreeMap<Object, Content>, name: &str) -> Vec<nftables::Rule> {
        match chains.get(&Object::Chain(name.into())) {
            Some(Content::Chain(chain)) => chain.rules.clone(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn is_to_speaker(rule: &nftables::Rule) -> bool {
        matches!(rule.matches(), [nftables::Match::DestinationPort { .. }])
    }

    /// The verdicts for connections to Services on a node with two pod ranges, in the order of the rules.
    fn verdicts(masquerade_all: bool, is_own: bool) -> Vec<nftables::Verdict> {
        let address = "192.0.2.1".parse().expect("an address");
        let range = |text: &str| text.parse().expect("a range");
        let node = LocalNode {
            families: PerFamily { v4: true, v6: false },
            address: PerFamily { v4: Some(address), v6: None },
            addresses: is_own.then_some(address).into_iter().collect(),
            pod_cidrs: PerFamily { v4: vec![range("10.244.1.0/24"), range("10.244.9.0/24")], v6: Vec::new() },
            ..LocalNode::default()
        };
        let chains = table_chains(&node, masquerade_all, BGP);
        assert_eq!(rules_of(&chains, NFT_SNAT).len(), Protocol::ALL.len(), "each protocol of the one family");
        rules_of(&chains, "translated4")
            .iter()
            .filter(|rule| !is_to_speaker(rule))
            .filter_map(|rule| rule.verdict().cloned())
            .collect()
    }

    #[test]
    fn nobody_speaks_bgp_with_the_nodes_address_through_a_service_not_even_who_is_told_to_reach_itself() {
        let node = LocalNode { families: PerFamily { v4: true, v6: true }, ..LocalNode::default() };
        for masquerade_all in [false, true] {
            let chains = table_chains(&node, masquerade_all, BGP);
            for (family, name) in [(Family::V4, "translated4"), (Family::V6, "translated6")] {
                let rule = rules_of(&chains, name).into_iter().next().expect("a rule");
                let range = PortRange { first: 1179, last: 1179 };
                assert_eq!(rule.matches(), [nftables::Match::DestinationPort { protocol: Protocol::Tcp, range }]);
                assert_eq!(rule.verdict(), Some(&nftables::Verdict::Return));
                let chain = Piece::Chain { family, table: Table::Nat, chain: CHAIN_SNAT.into() };
                let rule = rules(&node, masquerade_all, BGP, family)[&chain].0.first().map(ToString::to_string);
                assert_eq!(rule.as_deref(), Some("-p tcp -m tcp --dport 1179 -j RETURN"));
            }
        }
    }

    #[test]
    fn a_pod_that_reaches_itself_gets_the_nodes_address_by_one_rule_and_one_set() {
        let node = LocalNode {
            families: PerFamily { v4: true, v6: true },
            pod_cidrs: PerFamily {
                v4: vec!["10.244.1.0/24".parse().expect("a range")],
                v6: vec!["fd00:10:244:1::/64".parse().expect("a range")],
            },
            ..LocalNode::default()
        };
        let chains = table_chains(&node, false, BGP);
        for (family, name, set) in [(Family::V4, "translated4", "hairpin4"), (Family::V6, "translated6", "hairpin6")] {
            let first = rules_of(&chains, name).into_iter().nth(1).expect("a rule");
            let lookup = Lookup::ServiceSource(family, family.host_bits());
            assert_eq!(first.matches(), [nftables::Match::InSet { lookup, set: set.into(), negated: false }]);
            assert_eq!(first.verdict(), Some(&nftables::Verdict::Masquerade { random_ports: true }));
            let rules = rules(&node, false, BGP, family);
            let chain = Piece::Chain { family, table: Table::Nat, chain: CHAIN_SNAT.into() };
            let first = rules[&chain].0.get(1).map(ToString::to_string);
            let six = if family == Family::V6 { "inet6:" } else { "" };
            let wanted =
                format!("-m set --match-set {six}kube-router-hairpin dst,dst,src -j MASQUERADE --random-fully");
            assert_eq!(first, Some(wanted), "before the rule that leaves pods their addresses");
        }
    }

    #[test]
    fn without_pod_ranges_endpoints_here_keep_the_clients_address_and_with_them_slices_decide_nothing() {
        let ranges = vec!["10.244.1.0/24".parse().expect("a range")];
        let node = LocalNode {
            families: PerFamily { v4: true, v6: true },
            pod_cidrs: PerFamily { v4: ranges, v6: Vec::new() },
            ..LocalNode::default()
        };
        let chains = table_chains(&node, false, BGP);
        for (family, name, is_there) in [(Family::V4, "translated4", false), (Family::V6, "translated6", true)] {
            let itself = nftables::Match::InSet {
                lookup: Lookup::ServiceItself(family),
                set: Set::Hairpin.in_table(family),
                negated: false,
            };
            let returns = |rule: &nftables::Rule| rule.matches() == [itself.clone()];
            assert_eq!(rules_of(&chains, name).get(2).is_some_and(returns), is_there, "{family}");
            let chain = Piece::Chain { family, table: Table::Nat, chain: CHAIN_SNAT.into() };
            let second = rules(&node, false, BGP, family)[&chain].0.get(2).map(ToString::to_string);
            let wanted = "-m set --match-set inet6:kube-router-hairpin dst,dst,dst -j RETURN";
            assert_eq!(second.as_deref() == Some(wanted), is_there, "{family}: {second:?}");
        }
    }

    #[test]
    fn in_a_table_too_pods_of_this_node_and_the_host_keep_the_clients_address() {
        use nftables::Verdict;
        let to = "192.0.2.1".parse().expect("an address");
        let translates = Verdict::SourceNat { to, random_ports: true };
        let expected = |returns: usize, last: &Verdict| {
            std::iter::repeat_n(Verdict::Return, returns).chain([last.clone()]).collect::<Vec<_>>()
        };
        let hairpin = [translates.clone()];
        assert_eq!(verdicts(false, true), [&hairpin[..], &expected(5, &translates)].concat());
        assert_eq!(verdicts(true, true), expected(0, &translates));
        assert_eq!(verdicts(true, false), expected(0, &Verdict::Masquerade { random_ports: true }));
    }

    #[test]
    fn packets_to_pods_get_the_address_that_nodes_route_to_and_those_over_the_link_of_the_internal_ip_that_one() {
        let at = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
        let internal = PerFamily { v4: at("192.0.2.1"), v6: at("2001:db8::1") };
        let routing = PerFamily { v4: at("198.51.100.1"), v6: at("2001:db8:1::1") };
        let carried = |routing_link: &str| {
            let on = |link: &str, both: PerFamily<std::net::IpAddr>| [(both.v4, link.into()), (both.v6, link.into())];
            [on("eth0", internal), on(routing_link, routing)].concat().into_iter().collect()
        };
        let node = |routing_link: &str| {
            let links: BTreeMap<_, compact_str::CompactString> = carried(routing_link);
            LocalNode {
                families: PerFamily { v4: true, v6: true },
                address: PerFamily { v4: Some(internal.v4), v6: Some(internal.v6) },
                routing_address: PerFamily { v4: Some(routing.v4), v6: Some(routing.v6) },
                addresses: links.keys().copied().collect(),
                links,
                ..LocalNode::default()
            }
        };
        for (family, name) in [(Family::V4, "translated4"), (Family::V6, "translated6")] {
            let (internal, routing) = (*internal.of(family), *routing.of(family));
            let snat = |to| Some(nftables::Verdict::SourceNat { to, random_ports: true });
            let last = |node: &LocalNode, masquerade_all: bool| {
                let rules = rules_of(&table_chains(node, masquerade_all, BGP), name);
                let of = |rule: &nftables::Rule| (rule.matches().to_vec(), rule.verdict().cloned());
                rules.iter().rev().take(2).map(of).collect::<Vec<_>>()
            };
            let printed = |node: &LocalNode| {
                let chain = Piece::Chain { family, table: Table::Nat, chain: CHAIN_SNAT.into() };
                let all = &rules(node, true, BGP, family)[&chain].0;
                all.iter().skip(1).map(ToString::to_string).collect::<Vec<_>>()
            };
            for masquerade_all in [false, true] {
                let found = last(&node("eth1"), masquerade_all);
                assert_eq!(found[0], (vec![nftables::Match::Family(family)], snat(routing)));
                let leaves = nftables::Match::OutputLink { name: "eth0".into(), negated: false };
                assert_eq!(found[1], (vec![leaves], snat(internal)));
            }
            let to = |address| format!("-j SNAT --to-source {address} --random-fully");
            assert_eq!(printed(&node("eth1")), [format!("-o eth0 {}", to(internal)), to(routing)]);
            assert_eq!(printed(&node("eth0")), [to(routing)], "one link cannot tell who is asked");
            let mut former = node("eth1");
            former.addresses.remove(&routing);
            assert_eq!(printed(&former), [to(internal)], "the host has it no more");
        }
    }
}
