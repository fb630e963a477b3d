//! Accepts forwarded packets of pods, even on a host that forwards nothing by default (Docker sets `FORWARD` to drop).
//!
//! In the kernel: a filter chain of our own, entered from `FORWARD` after the network policies:
//!
//! ```text
//! iptables -A KUBE-ROUTER-PODS -i kube-bridge -j ACCEPT
//! iptables -A KUBE-ROUTER-PODS -o kube-bridge -j ACCEPT
//! iptables -A KUBE-ROUTER-PODS -o eth0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
//! iptables -A KUBE-ROUTER-PODS -o tun-+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
//! ```
//!
//! The last ones are for replies of pods on other nodes to clients of node ports, which pass through this node. One stands there for each link
//! that carries an address of the Node: clients come by that of the InternalIP, also where nodes route to each other by addresses on another one (`--node-ip-autodetect`); and
//! one for the devices of tunnels: pods of other nodes are clients too, and may be reached through these alone.
//! kube-router accepts everything that leaves by the node's link; only these replies need that. The chain names the
//! current links: no rule is left behind for an earlier one.
//!
//! With nftables there is no such chain: a table of ours cannot let pass what another one drops. Where the host has a chain
//! `FORWARD` of iptables-nft, the same three rules stand in that chain itself (`kernel::nftables::passages`), as kube-router
//! writes them.
//!
//! Where the kernel has no `xt_conntrack`, a chain of our table in front of that one marks the answers, the third rule there lets the mark
//! pass, and a chain behind it takes the mark away, before IPVS sees the packet:
//!
//! ```text
//! chain answers      { type filter hook forward priority filter - 1; meta nfproto ipv4 oifname "eth0" meta mark set meta mark & ~0x20000
//!     meta nfproto ipv4 oifname "eth0" ct state established,related meta mark set meta mark | 0x20000 }
//! iptables -I FORWARD -o eth0 -m mark --mark 0x20000/0x20000 -m comment --comment "allow outbound node port traffic …" -j ACCEPT
//! chain answer_marks { type filter hook forward priority filter + 1; meta mark & 0x20000 == 0x20000 meta mark set meta mark & ~0x20000 }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use compact_str::CompactString;

use crate::config::{Encapsulation, Overlay};
use crate::kernel::iptables::rule::States;
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::passages::{Passage, Passing};
use crate::kernel::nftables::rule::Mark;
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Hook, Object, Statement};
use crate::net::Family;

use super::identity::Identity;
use super::names::{
    ALL_TUNNELS, BRIDGE, CHAIN_PODS, NFT_ANSWER_MARKS, NFT_ANSWERS, VXLAN, WIREGUARD, WIREGUARD_SECOND,
};

/// How the host's own chain knows answers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AnswersBy {
    /// By the state of their connection.
    #[default]
    State,
    /// By a mark that our table gives them: the kernel has no `xt_conntrack`.
    Mark,
}

/// The bit that answers have between our two chains: kube-router's for packets that passed.
const ANSWERED: Mark = Mark { value: 0x20000, mask: 0x20000 };

const FROM_PODS: &str = "allow outbound traffic from pods";
const TO_PODS: &str = "allow inbound traffic to pods";
const ANSWERS: &str = "allow outbound node port traffic on node interface with which node ip is associated";

/// The comments of the rules, by which ours are known.
pub const COMMENTS: [&str; 3] = [FROM_PODS, TO_PODS, ANSWERS];

/// Returns the links, or the beginnings of their names, by which answers leave.
fn answer_links(own: &Identity, overlay: Option<Overlay>, family: Family) -> BTreeSet<CompactString> {
    // Also those by which packets are received alone: the next step of a change may send by them, or the one before did.
    let of_tunnels = overlay.into_iter().flat_map(Overlay::kinds).flat_map(|kind| match kind {
        Encapsulation::Ipip | Encapsulation::Fou(_) => &[ALL_TUNNELS][..],
        Encapsulation::Vxlan(_) => &[VXLAN.v4, VXLAN.v6],
        Encapsulation::Wireguard(_) => &[WIREGUARD, WIREGUARD_SECOND],
    });
    own.all_links.of(family).iter().cloned().chain(of_tunnels.map(|name| (*name).into())).collect()
}

/// Returns the rules in the host's own chain, for one family: with nftables.
pub fn passages(own: &Identity, overlay: Option<Overlay>, family: Family, by: AnswersBy) -> BTreeMap<Passage, Passing> {
    let key = |comment| Passage { family, comment };
    let mut passages =
        BTreeMap::from([(key(FROM_PODS), Passing::From(BRIDGE.into())), (key(TO_PODS), Passing::To(BRIDGE.into()))]);
    let links = answer_links(own, overlay, family);
    if !links.is_empty() {
        let answers = match by {
            AnswersBy::State => Passing::AnswersTo(links),
            AnswersBy::Mark => Passing::MarkedTo(links, ANSWERED),
        };
        passages.insert(key(ANSWERS), answers);
    }
    passages
}

/// Returns the chains of our table that mark answers of these families and take the mark away.
pub fn marking_chains(own: &Identity, overlay: Option<Overlay>, families: &[Family]) -> BTreeMap<Object, Content> {
    use nftables::{Match, Rule};
    let cleared = || [Statement::SetMark(Mark { value: 0, ..ANSWERED })];
    let mut rules = Vec::new();
    for family in families {
        for name in answer_links(own, overlay, *family) {
            let leaves = [Match::Family(*family), Match::OutputLink { name, negated: false }];
            let answers = Match::State { states: States::RELATED.or(States::ESTABLISHED), negated: false };
            rules.push(Rule::with(leaves.clone(), cleared(), None));
            let matches: Vec<Match> = leaves.into_iter().chain([answers]).collect();
            rules.push(Rule::with(matches, [Statement::SetMark(ANSWERED)], None));
        }
    }
    let marked = Match::Mark { mark: ANSWERED, negated: false };
    let chain = |name: &str, priority, rules| {
        let base = Some(Base { kind: BaseKind::Filter, hook: Hook::Forward, priority });
        (Object::Chain(name.into()), Content::Chain(Arc::new(Chain { base, rules })))
    };
    BTreeMap::from([
        chain(NFT_ANSWERS, -1, rules),
        chain(NFT_ANSWER_MARKS, 1, vec![Rule::with([marked], cleared(), None)]),
    ])
}

/// Returns the chain and the jump to it, for one family.
pub fn rules(own: &Identity, overlay: Option<Overlay>, family: Family) -> BTreeMap<Piece, Rules> {
    let comment = |text: &str| Match::Comment(text.into());
    let (input, output) = (Match::InputLink(BRIDGE.into()), Match::OutputLink(BRIDGE.into()));
    let mut chain: Vec<Rule> = vec![
        Rule::new([input, comment(FROM_PODS)], Verdict::Accept),
        Rule::new([output, comment(TO_PODS)], Verdict::Accept),
    ];
    chain.extend(answer_links(own, overlay, family).iter().map(|link| {
        let answers = Match::State { states: States::RELATED.or(States::ESTABLISHED), negated: false };
        let said = comment(ANSWERS);
        Rule::new([Match::OutputLink(link.as_str().into()), answers, said], Verdict::Accept)
    }));
    BTreeMap::from([
        (Piece::Chain { family, table: Table::Filter, chain: CHAIN_PODS.into() }, Rules(chain)),
        (
            Piece::Jump { family, table: Table::Filter, from: "FORWARD".into(), to: CHAIN_PODS.into() },
            Rules(vec![Rule::new([], Verdict::Jump(CHAIN_PODS.into()))]),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::PerFamily;
    use crate::router::given::config;

    fn own(links: &[&str], family: Family) -> Identity {
        let mut all_links = PerFamily::<BTreeSet<CompactString>>::default();
        *all_links.of_mut(family) = links.iter().map(|link| CompactString::from(*link)).collect();
        Identity { all_links, ..Identity::default() }
    }

    fn chain(links: &[&str], family: Family) -> Vec<String> {
        let chain = Piece::Chain { family, table: Table::Filter, chain: CHAIN_PODS.into() };
        let Rules(rules) = rules(&own(links, family), None, family).remove(&chain).expect("there is a chain");
        rules.iter().map(Rule::to_string).collect()
    }

    #[test]
    fn pods_pass_and_what_leaves_by_the_nodes_link_only_as_an_answer() {
        let rules = chain(&["eth0"], Family::V4);
        assert_eq!(rules[0], "-i kube-bridge -m comment --comment \"allow outbound traffic from pods\" -j ACCEPT");
        assert_eq!(rules[1], "-o kube-bridge -m comment --comment \"allow inbound traffic to pods\" -j ACCEPT");
        assert!(rules[2].starts_with("-o eth0 -m conntrack --ctstate RELATED,ESTABLISHED "), "{}", rules[2]);
        assert_eq!(chain(&["eth1"], Family::V4)[..2], rules[..2]);
        assert_eq!(chain(&[], Family::V4).len(), 2, "no rule is left for a link that carries nothing any more");
    }

    #[test]
    fn answers_to_pods_of_other_nodes_leave_by_the_devices_of_tunnels_also_where_no_link_has_an_address_of_the_family()
    {
        let overlay = |words: &[&str]| config(words).overlay;
        for (words, names) in [
            (&["--overlay-encap=ipip"][..], &["tun-+"][..]),
            (&["--overlay-encap=fou"], &["tun-+"]),
            (&["--overlay-encap=vxlan"], &["sluice-vxlan4", "sluice-vxlan6"]),
            (&["--overlay-encap=wireguard"], &["sluice-wg0", "sluice-wg1"]),
            (&["--enable-overlay=false"], &[]),
        ] {
            for (family, links) in [(Family::V4, &["eth0"][..]), (Family::V6, &[])] {
                let (own, overlay) = (own(&["eth0"], Family::V4), overlay(words));
                let wanted: BTreeSet<CompactString> = links.iter().chain(names).map(|name| (*name).into()).collect();
                assert_eq!(answer_links(&own, overlay, family), wanted, "{words:?} {family}");
                let key = Passage { family, comment: ANSWERS };
                let found = passages(&own, overlay, family, AnswersBy::State).remove(&key);
                assert_eq!(
                    found,
                    (!wanted.is_empty()).then_some(Passing::AnswersTo(wanted.clone())),
                    "{words:?} {family}"
                );
                let chain = Piece::Chain { family, table: Table::Filter, chain: CHAIN_PODS.into() };
                let Rules(rules) = rules(&own, overlay, family).remove(&chain).expect("there is a chain");
                let leaves = |name: &CompactString| format!("-o {name} -m conntrack --ctstate RELATED,ESTABLISHED ");
                let has = |name| rules.iter().any(|rule| rule.to_string().starts_with(&leaves(name)));
                assert!(wanted.iter().all(has) && rules.len() == 2 + wanted.len(), "{words:?} {family}: {rules:?}");
            }
        }
    }

    #[test]
    fn answers_leave_by_every_link_with_an_address_of_the_node() {
        for family in Family::BOTH {
            let rules = chain(&["eth0", "eth1"], family);
            let leaves = |link: &str| format!("-o {link} -m conntrack --ctstate RELATED,ESTABLISHED ");
            assert!(rules[2].starts_with(&leaves("eth0")) && rules[3].starts_with(&leaves("eth1")), "{rules:#?}");
            let own = own(&["eth0", "eth1"], family);
            let links: BTreeSet<CompactString> = ["eth0".into(), "eth1".into()].into();
            let key = Passage { family, comment: ANSWERS };
            assert_eq!(passages(&own, None, family, AnswersBy::State)[&key], Passing::AnswersTo(links.clone()));
            assert_eq!(passages(&own, None, family, AnswersBy::Mark)[&key], Passing::MarkedTo(links, ANSWERED));
            let chains = marking_chains(&own, None, &Family::BOTH);
            let Some(Content::Chain(chain)) = chains.get(&Object::Chain(NFT_ANSWERS.into())) else {
                panic!("there is no chain")
            };
            assert_eq!(chain.rules.len(), 4, "the mark is taken away and given, for each link");
        }
    }
}
