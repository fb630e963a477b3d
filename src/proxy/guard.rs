//! The guard: only known (address, protocol, port) triples answer on a service address.
//!
//! A service address is local to the host, so without a guard every program that listens on all addresses
//! would answer on it too. Kernel: the filter chain `KUBE-ROUTER-SERVICES`, entered from INPUT for packets to
//! a service address. INPUT comes before IPVS, so it sees the service's own port. The same sets say which
//! virtual services are ours (`apply`), so they are kept even when the guard is off.
//!
//! Packet-too-big passes for IPv6, which kube-router forgets: without it, path MTU discovery of service
//! traffic fails. Addresses of the host itself, which are service addresses because of node ports, are not
//! guarded: their other ports are the host's business. Addresses of the cluster's ranges that no Service has are no
//! service addresses, and another matter ([`unallocated`](super::unallocated)).
//!
//! Nobody comes from a port of BGP to a Service, nor from one of BFD where nodes watch each other by it: IPVS takes for an answer what an endpoint sends to the client of
//! one of its connections, whoever began, and gives it the Service's address. With a node's speaker as client, whose packets, or packets that its node masquerades, may
//! come by chance from such a port, an endpoint could speak with that one as this node.
//!
//! With nftables the same is in our own table, one chain for both families:
//!
//! ```text
//! chain service_guard { type filter hook input priority filter - 5; policy accept;
//!     tcp sport 179 ip daddr . meta l4proto . th dport @ports4 drop
//!     ip daddr . meta l4proto . th dport @ports4 meta mark set meta mark | 0x20000 accept
//!     ct state established,related accept
//!     ip daddr @addresses4 ip daddr != @own4 jump service_ports }
//! chain service_ports { icmp type echo-request accept; reject }
//! ```
//!
//! Packets of a connection come before the jump because a reply to the host itself may come to a service address. Accepting ends this
//! table alone; the mark is for the host's own rules (`host_input`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::ipset::{SetKind, SetSpec};
use crate::kernel::iptables::rule::{IpProtocol, SetSides, Side, States};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Fields, Hook, Lookup, Object};
use crate::net::icmp::{self, Kind};
use crate::net::{Family, Protocol};

use super::host_input;
use super::names::{CHAIN_GUARD, NFT_GUARD, NFT_PORTS, Set};

/// The comment of the rules that drop what comes from ports of speakers.
const FROM_SPEAKER: &str = "no client of a Service comes from the port of a speaker";

/// Behind policies, which are at -10 and -9, so that what they drop is not answered here; before the host's own rules.
pub const PRIORITY: i32 = -5;

/// Returns the specification of a set for this number of elements.
pub fn set_spec(set: Set, family: Family, elements: usize) -> SetSpec {
    let kind = match set {
        Set::LocalAddresses | Set::ServiceAddresses | Set::TunnelAddresses => SetKind::HashIp,
        Set::ServicePorts | Set::Restricted | Set::InsideOnly | Set::TunnelPorts => SetKind::HashIpPort,
        Set::AllowedSources | Set::Hairpin => SetKind::HashIpPortNet,
    };
    // kube-router's sets have the extension; what it does not know needs none.
    let is_known_to_kube_router = matches!(set, Set::LocalAddresses | Set::ServiceAddresses | Set::ServicePorts);
    SetSpec::for_elements(kind, family, elements, is_known_to_kube_router)
}

/// Returns the guard's chain and the jump to it, for one family. `speakers`: the ports of speakers, from which nobody comes.
pub fn rules(family: Family, speakers: &[(Protocol, u16)]) -> BTreeMap<Piece, Rules> {
    let comment = |text: &str| Match::Comment(text.into());
    let destination = SetSides::Address(Side::Destination);
    let passing = icmp::always_pass(family).iter();
    let of_kind = |kind: &Kind| Rule::of_icmp(family, kind.number(family), comment(words(*kind)), Verdict::Accept);
    let from_speaker = |(protocol, port): &(Protocol, u16)| {
        let from = Match::Port { protocol: *protocol, side: Side::Source, port: *port };
        let to_service = Match::in_set(&Set::ServicePorts.name(family), SetSides::DestinationPort);
        let protocol = Match::Protocol(IpProtocol::Transport(*protocol));
        Rule::new([protocol, from, to_service, comment(FROM_SPEAKER)], Verdict::Drop)
    };
    let mut chain: Vec<Rule> = speakers.iter().map(from_speaker).chain(passing.map(of_kind)).collect();
    chain.push(Rule::new(
        [
            comment("allow input traffic to ipvs services"),
            Match::in_set(&Set::ServicePorts.name(family), SetSides::DestinationPort),
        ],
        Verdict::Accept,
    ));
    chain.push(Rule::new(
        [
            comment("reject all unexpected traffic to service IPs"),
            Match::not_in_set(&Set::LocalAddresses.name(family), destination),
        ],
        Verdict::Reject(family),
    ));
    let jump = Rule::new(
        [
            comment("handle traffic to IPVS service IPs in custom chain"),
            Match::in_set(&Set::ServiceAddresses.name(family), destination),
        ],
        Verdict::Jump(CHAIN_GUARD.into()),
    );
    BTreeMap::from([
        (Piece::Chain { family, table: Table::Filter, chain: CHAIN_GUARD.into() }, Rules(chain)),
        (Piece::Jump { family, table: Table::Filter, from: "INPUT".into(), to: CHAIN_GUARD.into() }, Rules(vec![jump])),
    ])
}

/// Returns one of the sets in our table of nf_tables.
pub fn table_set(set: Set, family: Family) -> (Object, Content) {
    let fields = match set {
        Set::LocalAddresses | Set::ServiceAddresses | Set::TunnelAddresses => Fields::Address(family),
        Set::ServicePorts | Set::Restricted | Set::InsideOnly | Set::TunnelPorts => Fields::Service(family),
        Set::AllowedSources | Set::Hairpin => Fields::ServiceSource(family),
    };
    let kind = if set == Set::TunnelPorts { nftables::Kind::Marks } else { nftables::Kind::Set };
    let spec = nftables::SetSpec { fields, kind, intervals: false };
    (Object::Set(set.in_table(family)), Content::Set(spec))
}

/// Returns the guard's two chains in our table of nf_tables, for these families. `speakers`: as before.
pub fn table_chains(families: &[Family], speakers: &[(Protocol, u16)]) -> BTreeMap<Object, Content> {
    use nftables::{Match, Rule, Verdict};
    let is_in = |set: Set, lookup, family, negated| Match::InSet { lookup, set: set.in_table(family), negated };
    let states = States::RELATED.or(States::ESTABLISHED);
    let known = |family: &Family| is_in(Set::ServicePorts, Lookup::DestinationService(*family), *family, false);
    let accepted = |family| Rule::with([known(family)], [host_input::accepted()], Some(Verdict::Accept));
    let mut entered = Vec::new();
    for (protocol, port) in speakers {
        let from = Match::SourcePort { protocol: *protocol, port: *port };
        let dropped = |family| Rule::new([from.clone(), known(family)], Verdict::Drop).commented(FROM_SPEAKER);
        entered.extend(families.iter().map(dropped));
    }
    entered.extend(families.iter().map(accepted));
    entered.push(Rule::new([Match::State { states, negated: false }], Verdict::Accept));
    let mut ports = Vec::new();
    for family in families {
        let destination = Lookup::Address(*family, Side::Destination);
        entered.push(Rule::new(
            [
                is_in(Set::ServiceAddresses, destination, *family, false),
                is_in(Set::LocalAddresses, destination, *family, true),
            ],
            Verdict::Jump(NFT_PORTS.into()),
        ));
        ports.extend(icmp::always_pass(*family).iter().map(|kind| {
            let of_kind = Match::IcmpKind { family: *family, number: kind.number(*family) };
            Rule::new([of_kind], Verdict::Accept).commented(words(*kind))
        }));
    }
    ports.push(Rule::new([], Verdict::Reject).commented("not a port of a Service"));
    let base = Base { kind: BaseKind::Filter, hook: Hook::Input, priority: PRIORITY };
    BTreeMap::from([
        (Object::Chain(NFT_GUARD.into()), Content::Chain(Arc::new(Chain { base: Some(base), rules: entered }))),
        (Object::Chain(NFT_PORTS.into()), Content::Chain(Arc::new(Chain { base: None, rules: ports }))),
    ])
}

/// Returns the comment of the rule that accepts an ICMP type.
fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::EchoRequest => "allow icmp echo requests",
        Kind::EchoReply => "allow icmp echo reply messages",
        Kind::DestinationUnreachable => "allow icmp destination unreachable messages",
        Kind::TimeExceeded => "allow icmp time exceeded messages",
        Kind::PacketTooBig => "allow icmp packet too big messages",
        Kind::NeighbourSolicitation => "allow icmp neighbor solicitation messages",
        Kind::NeighbourAdvertisement => "allow icmp neighbor advertisement messages",
        // Not among the types that always pass.
        Kind::RouterSolicitation
        | Kind::ListenerQuery
        | Kind::ListenerReport
        | Kind::ListenerDone
        | Kind::ListenerReportV2
        | Kind::RouterAdvertisement
        | Kind::Redirect => kind.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_keep_the_usual_size_until_they_must_grow() {
        let size = |elements| set_spec(Set::ServicePorts, Family::V4, elements).max_elements;
        assert_eq!([size(0), size(65_536), size(65_537), size(200_000)], [65_536, 65_536, 131_072, 262_144]);
    }

    fn rules_of(chains: &BTreeMap<Object, Content>, name: &str) -> Vec<nftables::Rule> {
        match chains.get(&Object::Chain(name.into())) {
            Some(Content::Chain(chain)) => chain.rules.clone(),
            other => panic!("{name} is {other:?}"),
        }
    }

    #[test]
    fn one_table_guards_both_families_and_no_other() {
        use nftables::{Match, Verdict};
        let chains = table_chains(&Family::BOTH, &[]);
        let [guard, ports] = [NFT_GUARD, NFT_PORTS].map(|name| rules_of(&chains, name));
        assert_eq!(guard.len(), 5);
        for (rule, family) in guard.iter().zip(Family::BOTH) {
            let set = Set::ServicePorts.in_table(family);
            let known = Match::InSet { lookup: Lookup::DestinationService(family), set, negated: false };
            assert_eq!((rule.matches(), rule.verdict()), (&[known][..], Some(&Verdict::Accept)));
            assert_eq!(rule.statements(), [host_input::accepted()]);
        }
        assert_eq!(guard[2].verdict(), Some(&Verdict::Accept), "a reply to the host may come to a service address");
        for (rule, family) in guard[3..].iter().zip(Family::BOTH) {
            let named = |set: Set, negated| Match::InSet {
                lookup: Lookup::Address(family, Side::Destination),
                set: set.in_table(family),
                negated,
            };
            let wanted = [named(Set::ServiceAddresses, false), named(Set::LocalAddresses, true)];
            assert_eq!((rule.matches(), rule.verdict()), (&wanted[..], Some(&Verdict::Jump(NFT_PORTS.into()))));
        }
        assert_eq!(ports.last().and_then(|rule| rule.verdict()), Some(&Verdict::Reject));
        let too_big = Match::IcmpKind { family: Family::V6, number: 2 };
        assert!(ports.iter().any(|rule| rule.matches() == [too_big.clone()]), "IPv6 path MTU discovery passes");
        let alone = table_chains(&[Family::V6], &[(Protocol::Tcp, 179)]);
        assert!(!format!("{alone:?}").contains("V4"), "{alone:?}");
    }

    #[test]
    fn what_comes_from_the_port_of_a_speaker_is_dropped_before_anything_is_accepted() {
        use nftables::{Match, Verdict as Of};
        let speakers = [(Protocol::Tcp, 179), (Protocol::Udp, 4784)];
        let guard = rules_of(&table_chains(&Family::BOTH, &speakers), NFT_GUARD);
        for (rule, (at, family)) in
            guard.iter().zip([(0, Family::V4), (0, Family::V6), (1, Family::V4), (1, Family::V6)])
        {
            let (protocol, port) = speakers[at];
            let set = Set::ServicePorts.in_table(family);
            let known = Match::InSet { lookup: Lookup::DestinationService(family), set, negated: false };
            assert_eq!(rule.matches(), [Match::SourcePort { protocol, port }, known]);
            assert_eq!(rule.verdict(), Some(&Of::Drop));
        }
        assert_eq!(guard[4].verdict(), Some(&Of::Accept));
        let chain = Piece::Chain { family: Family::V4, table: Table::Filter, chain: CHAIN_GUARD.into() };
        let rules = &rules(Family::V4, &speakers)[&chain].0;
        for (rule, of) in rules.iter().zip(["-p tcp -m tcp --sport 179", "-p udp -m udp --sport 4784"]) {
            let wanted = format!(
                "{of} -m set --match-set kube-router-svip-prt dst,dst -m comment --comment \"{FROM_SPEAKER}\" -j DROP"
            );
            assert_eq!(rule.to_string(), wanted);
        }
    }

    #[test]
    fn ipv6_path_mtu_discovery_passes() {
        let rules = rules(Family::V6, &[]);
        let chain = Piece::Chain { family: Family::V6, table: Table::Filter, chain: CHAIN_GUARD.into() };
        assert!(rules[&chain].0.iter().any(|rule| rule.to_string().contains("--icmpv6-type 2 ")));
    }
}
