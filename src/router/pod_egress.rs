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
//! kube-router has one rule for both, in `POSTROUTING` itself; it is a leftover once this chain is in place.

use std::collections::BTreeMap;

use crate::kernel::iptables::rule::{SetSides, Side};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::net::Family;

use super::names::{CHAIN_EGRESS, Set};

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

#[cfg(test)]
mod tests {
    use super::*;

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
