//! The rules for IPv6 link-local addresses (the other [`link_local`](super::super::link_local) explains them).
//!
//! In the kernel, first in the chains for FORWARD (where `br_netfilter` shows frames between two ports of a bridge) and
//! INPUT, before the exemptions of Services, because a pod may send to a Service from such an address, too:
//!
//! ```text
//! ip6tables -A KUBE-ROUTER-FORWARD -i kube-bridge -j KUBE-NWPLCY-LINK-LOCAL
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -p ipv6-icmp -m icmp6 --icmpv6-type 130 -j RETURN        and the other kinds
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -s fe80::/10 -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -s fe80::/10 -j DROP
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -d fe80::/10 -j DROP       each with a rule that logs before it
//! ip6tables -A KUBE-NWPLCY-LINK-LOCAL -d ff02::/16 -j DROP
//! ```
//!
//! Packets are dropped, not rejected: the sender of a packet to a group hears nothing either way. Where the kernel cannot
//! log, the chain does without (`overlay`).

use compact_str::CompactString;

use crate::kernel::iptables::rule::States;
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Verdict};
use crate::net::{Family, icmp};

use super::super::link_local::{MULTICAST, UNICAST};
use super::comment::comment;
use super::dispatch::chain;
use super::names::CHAIN_LINK_LOCAL;
use super::pod_chain::{LOG, LOG_LIMIT};

/// Returns the first rules of the chains for INPUT and FORWARD, one for each of the bridges.
pub fn jumps(bridges: &[CompactString]) -> impl Iterator<Item = Rule> {
    let said = comment("link-local traffic of pods");
    bridges.iter().map(move |bridge| {
        let from_bridge = Match::InputLink(bridge.as_str().into());
        Rule::new([from_bridge, said.clone()], Verdict::Jump(CHAIN_LINK_LOCAL.into()))
    })
}

/// Returns the chain; `None` if nothing is closed.
pub fn rules(bridges: &[CompactString]) -> (Piece, Option<Rules>) {
    let established = Match::State { states: States::RELATED.or(States::ESTABLISHED), negated: false };
    let said = comment("rule for stateful firewall for link-local traffic");
    let mut rules = vec![Rule::new([said, established], Verdict::Return)];
    rules.extend(icmp::OF_LINKS.iter().map(|kind| {
        let said = comment(&format!("allow icmp {}", kind.name()));
        Rule::of_icmp(Family::V6, kind.number(Family::V6), said, Verdict::Return)
    }));
    let said = comment("drop link-local traffic of pods");
    let from = |range| Match::Source { range, negated: false };
    let to = |range| Match::Destination { range, negated: false };
    for concerned in [from(UNICAST), to(UNICAST), to(MULTICAST)] {
        rules.push(Rule::new([concerned.clone(), said.clone(), LOG_LIMIT], LOG));
        rules.push(Rule::new([concerned, said.clone()], Verdict::Drop));
    }
    (chain(Family::V6, CHAIN_LINK_LOCAL), (!bridges.is_empty()).then_some(Rules(rules)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_wanted_while_nothing_is_closed() {
        assert!(rules(&[]).1.is_none() && jumps(&[]).next().is_none());
        assert!(rules(&["kube-bridge".into()]).1.is_some());
    }
}
