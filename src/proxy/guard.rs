//! The guard: only known (address, protocol, port) triples answer on a service address.
//!
//! A service address is local to the host, so without a guard every program that listens on all addresses
//! would answer on it too. Kernel: the filter chain `KUBE-ROUTER-SERVICES`, entered from INPUT for packets to
//! a service address. INPUT comes before IPVS, so it sees the service's own port. The same sets say which
//! virtual services are ours (`apply`), so they are kept even when the guard is off.
//!
//! Packet-too-big passes for IPv6, which kube-router forgets: without it, path MTU discovery of service
//! traffic fails. Addresses of the host itself, which are service addresses because of node ports, are not
//! guarded: their other ports are the host's business.

use std::collections::BTreeMap;

use crate::kernel::ipset::{SetKind, SetSpec};
use crate::kernel::iptables::rule::{SetSides, Side};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::net::Family;
use crate::net::icmp::{self, Kind};

use super::names::{CHAIN_GUARD, Set};

/// Returns the specification of a set for this number of elements.
pub fn set_spec(set: Set, family: Family, elements: usize) -> SetSpec {
    let kind = match set {
        Set::LocalAddresses | Set::ServiceAddresses => SetKind::HashIp,
        Set::ServicePorts => SetKind::HashIpPort,
    };
    SetSpec::for_elements(kind, family, elements, true)
}

/// Returns the guard's chain and the jump to it, for one family.
pub fn rules(family: Family) -> BTreeMap<Piece, Rules> {
    let comment = |text: &str| Match::Comment(text.into());
    let destination = SetSides::Address(Side::Destination);
    let passing = icmp::always_pass(family).iter();
    let mut chain: Vec<Rule> =
        passing.map(|(kind, number)| Rule::of_icmp(family, *number, comment(words(*kind)), Verdict::Accept)).collect();
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
        | Kind::ListenerReportV2 => kind.name(),
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

    #[test]
    fn ipv6_path_mtu_discovery_passes() {
        let rules = rules(Family::V6);
        let chain = Piece::Chain { family: Family::V6, table: Table::Filter, chain: CHAIN_GUARD.into() };
        assert!(rules[&chain].0.iter().any(|rule| rule.to_string().contains("--icmpv6-type 2 ")));
    }
}
