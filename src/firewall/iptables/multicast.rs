//! The rules for multicast and broadcast (the other [`multicast`](super::super::multicast) explains them).
//!
//! In the kernel, first in the chain for FORWARD, where `br_netfilter` shows frames between two ports of a bridge: what
//! connection tracking takes for an answer is no answer if it goes to a group.
//!
//! ```text
//! iptables -A KUBE-ROUTER-FORWARD -o kube-bridge -m addrtype --dst-type BROADCAST,MULTICAST -j KUBE-NWPLCY-MULTICAST
//! iptables -A KUBE-NWPLCY-MULTICAST -d 255.255.255.255/32 -p udp -m multiport --dports 67:68 -j RETURN
//! iptables -A KUBE-NWPLCY-MULTICAST -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100
//! iptables -A KUBE-NWPLCY-MULTICAST -j DROP
//!
//! ip6tables -A KUBE-ROUTER-FORWARD -d ff00::/8 -o kube-bridge -j KUBE-NWPLCY-MULTICAST
//! ip6tables -A KUBE-NWPLCY-MULTICAST -p ipv6-icmp -m icmp6 --icmpv6-type 130 -j RETURN        and the other kinds
//! ip6tables -A KUBE-NWPLCY-MULTICAST -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100
//! ip6tables -A KUBE-NWPLCY-MULTICAST -j DROP
//! ```
//!
//! In IPv4 the kernel says what is broadcast, by its routes: the last address of the bridge's own network is.

use compact_str::CompactString;

use crate::kernel::iptables::rule::IpProtocol;
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Verdict};
use crate::net::{Family, Protocol, icmp};

use super::super::multicast::{DHCP, EVERYBODY, GROUPS_V6};
use super::comment::comment;
use super::dispatch::chain;
use super::names::CHAIN_MULTICAST;
use super::pod_chain::{LOG, LOG_LIMIT};

/// Returns the first rules of the chain for FORWARD, one for each of the bridges.
pub fn jumps(bridges: &[CompactString], family: Family) -> impl Iterator<Item = Rule> {
    let said = comment("multicast and broadcast to pods");
    bridges.iter().map(move |bridge| {
        let to_bridge = Match::OutputLink(bridge.as_str().into());
        let jump = Verdict::Jump(CHAIN_MULTICAST.into());
        match family {
            Family::V4 => Rule::new([to_bridge, said.clone(), Match::ToMany], jump),
            Family::V6 => {
                Rule::new([Match::Destination { range: GROUPS_V6, negated: false }, to_bridge, said.clone()], jump)
            }
        }
    })
}

/// Returns the chain; `None` if nothing is closed.
pub fn rules(bridges: &[CompactString], family: Family) -> (Piece, Option<Rules>) {
    let mut rules: Vec<Rule> = match family {
        Family::V4 => vec![Rule::new(
            [
                Match::Destination { range: EVERYBODY, negated: false },
                Match::Protocol(IpProtocol::Transport(Protocol::Udp)),
                comment("allow DHCP"),
                Match::Ports([DHCP].into()),
            ],
            Verdict::Return,
        )],
        Family::V6 => icmp::OF_LINKS
            .iter()
            .map(|kind| {
                let said = comment(&format!("allow icmp {}", kind.name()));
                Rule::of_icmp(family, kind.number(family), said, Verdict::Return)
            })
            .collect(),
    };
    let said = comment("drop multicast and broadcast to pods");
    rules.push(Rule::new([said.clone(), LOG_LIMIT], LOG));
    rules.push(Rule::new([said], Verdict::Drop));
    (chain(family, CHAIN_MULTICAST), (!bridges.is_empty()).then_some(Rules(rules)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_wanted_while_nothing_is_closed() {
        for family in Family::BOTH {
            assert!(rules(&[], family).1.is_none() && jumps(&[], family).next().is_none());
            assert!(rules(&["kube-bridge".into()], family).1.is_some());
        }
    }
}
