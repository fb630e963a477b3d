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

use compact_str::{CompactString, format_compact};

use crate::kernel::ipset::{SetKind, SetSpec};
use crate::kernel::iptables::{Piece, Rules, Table};
use crate::net::Family;

use super::names::{CHAIN_GUARD, Set};

/// How many elements kube-router's sets hold. Ours have the same size as long as that is enough, because
/// it refuses a set that differs.
const USUAL_CAPACITY: u32 = 65_536;

/// What a set is made like when it must hold so many elements.
pub fn set_spec(set: Set, family: Family, elements: usize) -> SetSpec {
    let kind = match set {
        Set::LocalAddresses | Set::ServiceAddresses => SetKind::HashIp,
        Set::ServicePorts => SetKind::HashIpPort,
    };
    let needed = u32::try_from(elements).unwrap_or(u32::MAX / 2).next_power_of_two();
    SetSpec { kind, family, max_elements: needed.max(USUAL_CAPACITY), timeout: true }
}

/// The guard's chain and the jump to it, for one family.
pub fn rules(family: Family) -> BTreeMap<Piece, Rules> {
    let set = |set: Set| set.name(family);
    let unreachable = match family {
        Family::V4 => "icmp-port-unreachable",
        Family::V6 => "icmp6-port-unreachable",
    };
    let mut chain: Vec<CompactString> = passing_icmp(family)
        .iter()
        .map(|(number, comment)| match family {
            Family::V4 => {
                format_compact!("-p icmp -m comment --comment \"{comment}\" -m icmp --icmp-type {number} -j ACCEPT")
            }
            Family::V6 => {
                format_compact!(
                    "-p ipv6-icmp -m comment --comment \"{comment}\" -m icmp6 --icmpv6-type {number} -j ACCEPT"
                )
            }
        })
        .collect();
    chain.push(format_compact!(
        "-m comment --comment \"allow input traffic to ipvs services\" -m set --match-set {} dst,dst -j ACCEPT",
        set(Set::ServicePorts)
    ));
    chain.push(format_compact!(
        "-m comment --comment \"reject all unexpected traffic to service IPs\" -m set ! --match-set {} dst -j REJECT --reject-with {unreachable}",
        set(Set::LocalAddresses)
    ));
    let jump = format_compact!(
        "-m comment --comment \"handle traffic to IPVS service IPs in custom chain\" -m set --match-set {} dst -j {CHAIN_GUARD}",
        set(Set::ServiceAddresses)
    );
    BTreeMap::from([
        (Piece::Chain { family, table: Table::Filter, chain: CHAIN_GUARD.into() }, Rules(chain)),
        (Piece::Jump { family, table: Table::Filter, from: "INPUT".into(), to: CHAIN_GUARD.into() }, Rules(vec![jump])),
    ])
}

/// ICMP types that always pass, with the comment of their rule.
fn passing_icmp(family: Family) -> &'static [(u8, &'static str)] {
    match family {
        Family::V4 => &[
            (8, "allow icmp echo requests"),
            (3, "allow icmp destination unreachable messages"),
            (11, "allow icmp time exceeded messages"),
        ],
        Family::V6 => &[
            (128, "allow icmp echo requests"),
            (1, "allow icmp destination unreachable messages"),
            (2, "allow icmp packet too big messages"),
            (3, "allow icmp time exceeded messages"),
            (135, "allow icmp neighbor solicitation messages"),
            (136, "allow icmp neighbor advertisement messages"),
            (129, "allow icmp echo reply messages"),
        ],
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
        assert!(rules[&chain].0.iter().any(|rule| rule.contains("--icmpv6-type 2 ")));
    }
}
