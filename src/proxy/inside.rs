//! External addresses on a node without a local endpoint: served to this node's pods and to the node itself only.
//!
//! Kubernetes: `externalTrafficPolicy: Local`. Clients outside the node get endpoints of the node they have reached, with their own
//! address, and nothing from a node that has none: their packets are dropped, as kube-proxy does. For clients on the node the policy
//! has no use, as their packets have arrived nowhere yet: they are served from all endpoints of the cluster.
//!
//! So on a node without a local endpoint the virtual services of node ports, external and load balancer addresses have all endpoints, and are
//! in a set by which packets from elsewhere are dropped before IPVS sees them. Where there is a local endpoint they are as before:
//! local endpoints, for everybody. A node learns of the first local endpoint by a change of the destinations, and only when the
//! kernel has no others left that take new connections does the element go (`apply::elements`): no new client outside is sent to another node,
//! because `vs/expire_quiescent_template` keeps those with session affinity from a destination of weight 0. TCP connections of clients
//! outside that exist when the last local endpoint becomes unready go on, as with kube-proxy: connection tracking knows them for as long as IPVS does,
//! because the end of an IPVS connection deletes its entry. So they are no way in for a segment of an unknown connection either, which IPVS
//! schedules while `vs/sloppy_tcp` is set (`settings`): it counts as new here. UDP has no end of connection, and its packets would be sent to another endpoint.
//!
//! Not by marks, which packets of pods and of the node could get, with virtual services of their own for these: every such address would be two virtual
//! services with all their destinations, and two tables of clients with session affinity; its mark would have to be another than those of
//! other programs, in all 32 bits, and be given by a rule or an element for each port, by which a process without memory knows the virtual
//! service as ours; and what arrives with the mark of a Service could not get it from somebody else. Packets are dropped by one rule and one set in place of all that. What marks would give besides, all
//! endpoints for clients on a node that has a local one, costs those clients a way to another node, and nothing asks for it.
//!
//! Clients on this node are known by the node's pod ranges. Where these are not known, its pods could not be told from others, and
//! such an address is left out: packets for it go where routing says.
//!
//! Kernel: mangle chain `KUBE-ROUTER-INSIDE`, entered from INPUT alone: IPVS takes the node's own packets in OUTPUT. Set and rules exist only
//! while any virtual service needs them, and the cost of a packet does not grow with Services:
//!
//! ```text
//! -A INPUT -m set --match-set kube-router-inside dst,dst -j KUBE-ROUTER-INSIDE
//! -A KUBE-ROUTER-INSIDE -s 10.244.1.0/24 -j RETURN
//! -A KUBE-ROUTER-INSIDE -m addrtype --src-type LOCAL -j RETURN
//! -A KUBE-ROUTER-INSIDE -p tcp -m conntrack --ctstate ESTABLISHED -j RETURN
//! -A KUBE-ROUTER-INSIDE -j DROP
//! ```
//!
//! With nftables:
//!
//! ```text
//! chain inside_services { type filter hook input priority mangle; policy accept;
//!     ip daddr . meta l4proto . th dport @inside4 jump from_inside4 }
//! chain from_inside4 { ip saddr 10.244.1.0/24 return; fib saddr type local return;
//!                      meta l4proto tcp ct state established return; drop }
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::iptables::rule::{IpProtocol, SetSides, Side, States};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Hook, Lookup, Object};
use crate::net::{Family, PerFamily, Protocol};

use super::guard;
use super::local_node::LocalNode;
use super::names::{CHAIN_INSIDE, NFT_INSIDE, NFT_INSIDE_IN, Set};

/// Of the table mangle: before all rules of the table filter, and before IPVS.
const PRIORITY: i32 = -150;

const DROPS: &str = "no local endpoint for clients outside";

/// Returns whether the pods of this node are known in a family.
pub fn knows_pods(node: &LocalNode, family: Family) -> bool {
    !node.pod_cidrs.of(family).is_empty()
}

/// Returns the chain and the jump to it, for one family.
pub fn rules(node: &LocalNode, family: Family) -> BTreeMap<Piece, Rules> {
    let pods = node.pod_cidrs.of(family).iter().map(|range| Match::Source { range: *range, negated: false });
    let inside = pods.chain([Match::HostAddress { of: Side::Source, negated: false }]);
    let mut chain: Vec<Rule> = inside.map(|one| Rule::new([one], Verdict::Return)).collect();
    let established = Match::State { states: States::ESTABLISHED, negated: false };
    chain.push(Rule::new([Match::Protocol(IpProtocol::Transport(Protocol::Tcp)), established], Verdict::Return));
    chain.push(Rule::new([Match::Comment(DROPS.into())], Verdict::Drop));
    let to_those = Match::in_set(&Set::InsideOnly.name(family), SetSides::DestinationPort);
    let jump = Rule::new([to_those], Verdict::Jump(CHAIN_INSIDE.into()));
    let table = Table::Mangle;
    BTreeMap::from([
        (Piece::Chain { family, table, chain: CHAIN_INSIDE.into() }, Rules(chain)),
        (Piece::Jump { family, table, from: "INPUT".into(), to: CHAIN_INSIDE.into() }, Rules(vec![jump])),
    ])
}

/// Returns whether a piece of rules is one of these.
pub fn is_rule(piece: &Piece) -> bool {
    match piece {
        Piece::Chain { chain, .. } => chain == CHAIN_INSIDE,
        Piece::Jump { to, .. } => to == CHAIN_INSIDE,
        Piece::Leftover { .. } => false,
    }
}

/// The same of chains in our table of nf_tables.
pub fn is_chain(object: &Object) -> bool {
    family_of(object).is_some() || matches!(object, Object::Chain(name) if name.as_str() == NFT_INSIDE_IN)
}

/// Returns the family of a chain that knows the pod ranges; `None` for another object.
pub fn family_of(object: &Object) -> Option<Family> {
    let Object::Chain(name) = object else { return None };
    Family::BOTH.into_iter().find(|family| *NFT_INSIDE.of(*family) == name.as_str())
}

/// Returns the sets and chains in our table of nf_tables: of all enabled families, or none where no virtual service is for this node only.
pub fn in_table(node: &LocalNode, used: &PerFamily<bool>) -> BTreeMap<Object, Content> {
    use nftables::{Match, Rule, Verdict};
    let mut found = BTreeMap::new();
    let mut entered = Vec::new();
    for family in node.enabled_families().filter(|_| used.v4 || used.v6) {
        found.extend([guard::table_set(Set::InsideOnly, family)]);
        let name = *NFT_INSIDE.of(family);
        let set = Set::InsideOnly.in_table(family);
        let to_those = Match::InSet { lookup: Lookup::DestinationService(family), set, negated: false };
        entered.push(Rule::new([to_those], Verdict::Jump(name.into())));
        let pods = node.pod_cidrs.of(family).iter();
        let pods = pods.map(|range| Match::Address { of: Side::Source, range: *range, negated: false });
        let inside = pods.chain([Match::HostAddress { of: Side::Source, negated: false }]);
        let mut rules: Vec<Rule> = inside.map(|one| Rule::new([one], Verdict::Return)).collect();
        let established = Match::State { states: States::ESTABLISHED, negated: false };
        rules.push(Rule::new([Match::Protocol(Protocol::Tcp), established], Verdict::Return));
        rules.push(Rule::new([], Verdict::Drop).commented(DROPS));
        found.insert(Object::Chain(name.into()), Content::Chain(Arc::new(Chain { base: None, rules })));
    }
    if !entered.is_empty() {
        let base = Some(Base { kind: BaseKind::Filter, hook: Hook::Input, priority: PRIORITY });
        let chain = Chain { base, rules: entered };
        found.insert(Object::Chain(NFT_INSIDE_IN.into()), Content::Chain(Arc::new(chain)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> LocalNode {
        let range = |text: &str| text.parse().expect("a range");
        LocalNode {
            families: PerFamily { v4: true, v6: true },
            pod_cidrs: PerFamily {
                v4: vec![range("10.244.1.0/24"), range("10.244.9.0/24")],
                v6: vec![range("fd00:10:244:1::/64")],
            },
            ..LocalNode::default()
        }
    }

    #[test]
    fn pods_of_this_node_and_the_node_itself_are_inside() {
        let chain = Piece::Chain { family: Family::V4, table: Table::Mangle, chain: CHAIN_INSIDE.into() };
        let texts: Vec<String> = rules(&node(), Family::V4)[&chain].0.iter().map(ToString::to_string).collect();
        let expected = [
            "-s 10.244.1.0/24 -j RETURN",
            "-s 10.244.9.0/24 -j RETURN",
            "-m addrtype --src-type LOCAL -j RETURN",
            "-p tcp -m conntrack --ctstate ESTABLISHED -j RETURN",
            "-m comment --comment \"no local endpoint for clients outside\" -j DROP",
        ];
        assert_eq!(texts, expected);
        let table = in_table(&node(), &PerFamily { v4: true, v6: false });
        for (name, ranges) in [("from_inside4", 2), ("from_inside6", 1)] {
            let Some(Content::Chain(chain)) = table.get(&Object::Chain(name.into())) else { panic!("no {name}") };
            let verdicts: Vec<_> = chain.rules.iter().filter_map(|rule| rule.verdict()).collect();
            let (last, first) = verdicts.split_last().expect("rules");
            assert_eq!((first.len(), *last), (ranges + 2, &nftables::Verdict::Drop), "{name}");
        }
        assert!(in_table(&node(), &PerFamily::default()).is_empty());
    }
}
