//! Packets to service addresses over IPv6 whose port no rule sees, and IPVS does.
//!
//! IPVS and connection tracking go through all headers in front of TCP, UDP or SCTP (`ipv6_find_hdr`, `ipv6_skip_exthdr`). nf_tables stops at an Authentication
//! Header (RFC 4302), which is the protocol then (`IP6_FH_F_AUTH` in `nft_set_pktinfo_ipv6`), and since Linux 6.2 knows no protocol at all where the headers are longer than
//! 65,535 bytes, as fragments may make them. A pod with raw sockets would pass all that is said of ports here: the guard, source ranges, who may come from outside, and the
//! rules by which nobody speaks as a node at the ports of BGP ([`speaker_port`](super::speaker_port)). So such packets are dropped, the node's own left aside.
//!
//! No rule can say "the protocol is not known", but every rule about it fails then: a chain that returns for any protocol but that header drops both kinds.
//! iptables of nf_tables is nf_tables in this, but for its sets; the legacy variant goes through all headers itself, and its chain always returns.
//! Over IPv4 IPVS does not look behind such a header, and nothing else hides a port.
//!
//! ```text
//! chain hidden_ports { type filter hook input priority mangle; policy accept;
//!     ip6 daddr @addresses6 jump hidden_ports6 }
//! chain hidden_ports6 { meta l4proto != ah return
//!                       counter name hidden_ports_dropped drop }
//! ```
//!
//! Whoever protects what it says to a node with an Authentication Header cannot do so at an address of it with node ports: whether what is inside is for one is
//! what nobody sees.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::iptables::rule::{SetSides, Side};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Hook, Lookup, Name, Object, Statement};
use crate::net::Family;

use super::names::{CHAIN_HIDDEN, NFT_HIDDEN, NFT_HIDDEN_COUNT, NFT_HIDDEN_IN, Set};

/// Of the table mangle: before all that is said of ports, and before IPVS.
const PRIORITY: i32 = -150;

/// The comment of the rule that drops them.
const WORDS: &str = "headers hide the port from all rules";

/// Returns the chain and the jump to it; nothing of IPv4.
pub fn rules(family: Family) -> BTreeMap<Piece, Rules> {
    if family == Family::V4 {
        return BTreeMap::new();
    }
    let table = Table::Filter;
    let seen = Rule::new([Match::Unauthenticated], Verdict::Return);
    let hidden = Rule::new([Match::Comment(WORDS.into())], Verdict::Drop);
    let to_service = Match::in_set(&Set::ServiceAddresses.name(family), SetSides::Address(Side::Destination));
    let jump = Rule::new([to_service], Verdict::Jump(CHAIN_HIDDEN.into()));
    BTreeMap::from([
        (Piece::Chain { family, table, chain: CHAIN_HIDDEN.into() }, Rules(vec![seen, hidden])),
        (Piece::Jump { family, table, from: "INPUT".into(), to: CHAIN_HIDDEN.into() }, Rules(vec![jump])),
    ])
}

/// Returns the chains and the counter in our table of nf_tables; nothing where these families are IPv4 alone.
pub fn in_table(families: &[Family]) -> BTreeMap<Object, Content> {
    use nftables::{Match, Rule, Verdict};
    let family = Family::V6;
    if !families.contains(&family) {
        return BTreeMap::new();
    }
    let (lookup, set) = (Lookup::Address(family, Side::Destination), Set::ServiceAddresses.in_table(family));
    let to_service = Match::InSet { lookup, set, negated: false };
    let entered = Rule::new([to_service], Verdict::Jump(NFT_HIDDEN.into()));
    let seen = Rule::new([Match::Authenticated { negated: true }], Verdict::Return);
    let counter = Name::from(NFT_HIDDEN_COUNT);
    let hidden = Rule::with([], [Statement::Count(counter.clone())], Some(Verdict::Drop)).commented(WORDS);
    let base = Some(Base { kind: BaseKind::Filter, hook: Hook::Input, priority: PRIORITY });
    let chain = |base, rules: &[Rule]| Content::Chain(Arc::new(Chain { base, rules: rules.to_vec() }));
    BTreeMap::from([
        (Object::Counter(counter), Content::Counter),
        (Object::Chain(NFT_HIDDEN.into()), chain(None, &[seen, hidden])),
        (Object::Chain(NFT_HIDDEN_IN.into()), chain(base, &[entered])),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hides_its_port_from_rules_is_dropped_over_ipv6_alone() {
        assert!(rules(Family::V4).is_empty() && in_table(&[Family::V4]).is_empty());
        let rules: Vec<String> =
            rules(Family::V6).into_values().flat_map(|rules| rules.0).map(|rule| rule.to_string()).collect();
        assert_eq!(
            rules,
            [
                "! -p ah -j RETURN".to_owned(),
                format!("-m comment --comment \"{WORDS}\" -j DROP"),
                "-m set --match-set inet6:kube-router-svip dst -j KUBE-ROUTER-HIDDEN".to_owned(),
            ]
        );
        let table = in_table(&Family::BOTH);
        let verdicts = |name: &str| match table.get(&Object::Chain(name.into())) {
            Some(Content::Chain(chain)) => chain.rules.iter().filter_map(|rule| rule.verdict().cloned()).collect(),
            other => panic!("{name} is {other:?}"),
        };
        let jumps: Vec<nftables::Verdict> = verdicts(NFT_HIDDEN_IN);
        assert_eq!(jumps, [nftables::Verdict::Jump(NFT_HIDDEN.into())]);
        assert_eq!(verdicts(NFT_HIDDEN), [nftables::Verdict::Return, nftables::Verdict::Drop]);
    }
}
