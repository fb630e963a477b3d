//! Masquerading: which connections to a backend must return through this node.
//!
//! A client outside the cluster that is sent to a backend on another node must see the reply come from where
//! it sent its packet. So connections that IPVS sent on get this node's source address, unless the reply
//! returns here by itself:
//! - the backend is a pod of this node, or this node itself (a pod on the host's network);
//! - the client is a pod of this node.
//!
//! In these cases the backend sees the client's own address. With `--masquerade-all` everything gets the
//! node's address. Where the node's pod ranges are not known, all that leaves the node does.
//!
//! Kernel: nat chain `KUBE-ROUTER-SNAT`, entered from POSTROUTING for what IPVS has translated:
//! `iptables -t nat -A POSTROUTING -m ipvs --ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-SNAT`.
//! A chain of our own, because several pod CIDRs of one family would otherwise masquerade each other's pods, and
//! because rules in it need no other mark to be recognised as ours. Unlike kube-router's, these rules do not depend on
//! `--run-router`: a proxy that runs alone has to ensure its own return path.

use std::collections::BTreeMap;

use crate::kernel::iptables::rule::Side;
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::net::Family;

use super::local_node::LocalNode;
use super::names::CHAIN_SNAT;

/// Returns the masquerading chain and the jump to it, for one family.
pub fn rules(node: &LocalNode, masquerade_all: bool, family: Family) -> BTreeMap<Piece, Rules> {
    let mut chain: Vec<Rule> = Vec::new();
    if !masquerade_all {
        for cidr in node.pod_cidrs.of(family) {
            let (range, negated) = (*cidr, false);
            chain.push(Rule::new([Match::Source { range, negated }], Verdict::Return));
            chain.push(Rule::new([Match::Destination { range, negated }], Verdict::Return));
        }
        chain.push(Rule::new([Match::HostAddress { of: Side::Destination, negated: false }], Verdict::Return));
    }
    let translation = match node.source(family) {
        Some(to) => Verdict::SourceNat { to, random_ports: true },
        None => Verdict::Masquerade { random_ports: true },
    };
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
