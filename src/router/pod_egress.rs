//! Masquerades packets from pods to the outside (`--enable-pod-egress`).
//!
//! Inside of the cluster, to pods and to nodes, a pod keeps its address. Elsewhere there may be no route back to it.
//!
//! In the kernel: a nat chain of our own, entered from `POSTROUTING` for packets of pods:
//!
//! ```text
//! iptables -t nat -A POSTROUTING -m set --match-set kube-router-pod-subnets src -j KUBE-ROUTER-EGRESS
//! iptables -t nat -A KUBE-ROUTER-EGRESS -m set ! --match-set kube-router-pod-subnets dst
//!     -m set ! --match-set kube-router-node-ips dst -j MASQUERADE --random-fully
//! ```
//!
//! kube-router has one rule for both, in `POSTROUTING` itself; it is a leftover once this chain is in place. With nftables
//! there is one too, in our own table:
//!
//! ```text
//! chain pod_snat { type nat hook postrouting priority srcnat - 1; policy accept;
//!     ip saddr @pods4 ip daddr != @pods4 ip daddr != @nodes4 masquerade fully-random }
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::iptables::rule::{SetSides, Side};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Hook, Lookup, Object};
use crate::net::Family;

use super::names::{CHAIN_EGRESS, NFT_EGRESS, Set};

/// Behind what the service proxy translates (98), before others (100): the first chain that translates a connection does.
const PRIORITY: i32 = 99;

/// Returns the chain and the jump to it, for one family.
pub fn rules(family: Family) -> BTreeMap<Piece, Rules> {
    let (pods, nodes) = (Set::PodRanges.name(family), Set::NodeAddresses.name(family));
    let (source, destination) = (SetSides::Address(Side::Source), SetSides::Address(Side::Destination));
    let jump = Rule::new([Match::in_set(&pods, source)], Verdict::Jump(CHAIN_EGRESS.into()));
    let masquerade = Rule::new(
        [Match::not_in_set(&pods, destination), Match::not_in_set(&nodes, destination)],
        Verdict::Masquerade { random_ports: true },
    );
    BTreeMap::from([
        (Piece::Chain { family, table: Table::Nat, chain: CHAIN_EGRESS.into() }, Rules(vec![masquerade])),
        (
            Piece::Jump { family, table: Table::Nat, from: "POSTROUTING".into(), to: CHAIN_EGRESS.into() },
            Rules(vec![jump]),
        ),
    ])
}

/// Returns the chain in our table of nf_tables, for these families.
pub fn table_chain(families: impl Iterator<Item = Family>) -> (Object, Content) {
    use nftables::{Match, Rule, Verdict};
    let rule = |family: Family| {
        let is_in = |of: Side, set: Set, negated: bool| Match::InSet {
            lookup: Lookup::Address(family, of),
            set: set.in_table(family),
            negated,
        };
        let outside = [
            is_in(Side::Source, Set::PodRanges, false),
            is_in(Side::Destination, Set::PodRanges, true),
            is_in(Side::Destination, Set::NodeAddresses, true),
        ];
        Rule::new(outside, Verdict::Masquerade { random_ports: true })
    };
    let base = Base { kind: BaseKind::Nat, hook: Hook::Postrouting, priority: PRIORITY };
    let chain = Chain { base: Some(base), rules: families.map(rule).collect() };
    (Object::Chain(NFT_EGRESS.into()), Content::Chain(Arc::new(chain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_chain_of_our_table_masquerades_both_families() {
        let (_, Content::Chain(chain)) = table_chain(Family::BOTH.into_iter()) else { panic!("it is a chain") };
        assert_eq!(chain.rules.len(), 2);
        for (rule, family) in chain.rules.iter().zip(Family::BOTH) {
            let asked: Vec<_> = rule
                .matches()
                .iter()
                .map(|one| match one {
                    nftables::Match::InSet { lookup: Lookup::Address(its, side), set, negated } if *its == family => {
                        (set.to_string(), *side, *negated)
                    }
                    other => panic!("{other:?}"),
                })
                .collect();
            let digit = if family == Family::V4 { 4 } else { 6 };
            let [pods, nodes] = ["pods", "nodes"].map(|name| format!("{name}{digit}"));
            let expected = [
                (pods.clone(), Side::Source, false),
                (pods, Side::Destination, true),
                (nodes, Side::Destination, true),
            ];
            assert_eq!(asked, expected);
        }
    }

    #[test]
    fn what_leaves_the_cluster_is_masqueraded_and_nothing_else() {
        let text = |family| {
            let line = |(piece, rules): (Piece, Rules)| format!("{piece:?}: {}", rules.0[0]);
            rules(family).into_iter().map(line).collect::<Vec<_>>()
        };
        let [v4, v6] = Family::BOTH.map(text);
        assert_eq!(v4.len(), 2);
        assert!(v4[0].ends_with(
            ": -m set ! --match-set kube-router-pod-subnets dst -m set ! --match-set kube-router-node-ips dst \
             -j MASQUERADE --random-fully"
        ));
        assert!(v4[1].ends_with(": -m set --match-set kube-router-pod-subnets src -j KUBE-ROUTER-EGRESS"));
        assert!(v6.iter().all(|line| line.contains("inet6:kube-router-pod-subnets")), "{v6:?}");
    }
}
