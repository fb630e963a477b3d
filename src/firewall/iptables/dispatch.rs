//! The fixed chains: which pod's chain judges a packet, and what passes regardless of policies.
//!
//! ```text
//! FORWARD → KUBE-ROUTER-FORWARD    packets between pods, and between pods and the outside
//! OUTPUT  → KUBE-ROUTER-OUTPUT     packets of the host, and of pods that IPVS gave their real destination
//! INPUT   → KUBE-ROUTER-INPUT      packets of pods to the host: only what they send is judged
//!
//! each:  IPv6 that comes from elsewhere with an address of this host, in INPUT only (`own_source`)
//!        to a bridge of pods: multicast and broadcast, in FORWARD only (`multicast`)
//!        IPv6 from a bridge of pods: what has a link-local address, not in OUTPUT (`link_local`)
//!        Services with a denied endpoint on this node, in INPUT only (`host_endpoints`)
//!        exemptions, in INPUT only (`exemptions`)
//!        from or to a pod of this node → KUBE-NWPLCY-COMMON: what belongs to a connection, and some ICMP (`icmp`);
//!                            before, connections that policies newly deny are refused (`established`)
//!        -s POD ! -d POD → the pod's chain for egress        only for pods that policies judge in that direction
//!        ! -s POD -d POD → the pod's chain for ingress       not in INPUT
//!        → KUBE-NWPLCY-TAIL
//! ```
//!
//! Packets from or to a pod of this node that were not refused are accepted at the end, as kube-router does it: on
//! hosts whose FORWARD drops by default pods would be cut off otherwise. Everything else falls through to the rules of
//! other programs.
//!
//! Packets from the host itself to a pod of this node are accepted in TCP, UDP, SCTP and ICMP: the kubelet's probes have to
//! arrive, regardless of policies. What else the host sends to one, tunnels of direct server return above all, is judged as another
//! node's. A pod that sends to its own address, through a Service, is let through as well.
//!
//! `--netpol-default-deny`: the tail refuses new connections from and to addresses of this node's pod CIDRs that are
//! not in the set of pods whose rules are in the kernel. Addresses of the host itself are exempt: the pods' gateway
//! lies in the pod CIDR too. Tunnels, which the host sends, come to the tail for that, past the jumps of all pods; what else it sends does not.

use ipnet::IpNet;

use crate::config::FirewallConfig;
use crate::kernel::ipset::SetName;
use crate::kernel::iptables::rule::{IpProtocol, Mark, SetSides, Side, States};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::net::{Family, Protocol, icmp};

use super::super::bridges::ClosedBridges;
use super::super::established::ENDED;
use super::super::link_local::UNICAST;
use super::super::multicast::GROUPS_V6;
use super::super::own_source::{LOOPBACK, SAID};
use super::super::rules::{Direction, RuleSet};
use super::comment::comment;
use super::names::{
    self, CHAIN_COMMON, CHAIN_DEFAULT, CHAIN_DENY, CHAIN_FORWARD, CHAIN_INPUT, CHAIN_OUTPUT, CHAIN_PASS, CHAIN_TAIL,
    ChainKind, MARK, kind, rule_id,
};
use super::{exemptions, host_endpoints, link_local, multicast, pod_chain};

/// The built-in chains, each with the chain of ours that is entered from it.
pub const ENTRANCES: [(&str, &str); 3] = [("INPUT", CHAIN_INPUT), ("FORWARD", CHAIN_FORWARD), ("OUTPUT", CHAIN_OUTPUT)];

/// Returns the three dispatch chains of a family.
pub fn chains(rules: &RuleSet, config: &FirewallConfig, family: Family, closed: &ClosedBridges) -> [(Piece, Rules); 3] {
    let egress = jumps(rules, Direction::Egress, family);
    let ingress = jumps(rules, Direction::Ingress, family);
    let common = |of| of_local_pods(family, of, "of local pods", Verdict::Jump(CHAIN_COMMON.into()));
    // kube-router's own comment: if it ever takes over again, it finds its rule by it and puts it last.
    let said = comment("rule to explicitly handle traffic for network policies ACCEPT/REJECT decision");
    let tail = Rule::new([said], Verdict::Jump(CHAIN_TAIL.into()));

    let mut input: Vec<Rule> = own_source(family).collect();
    input.extend(of_bridges(closed, family, CHAIN_INPUT));
    input.extend(config.tunnel_mode.then(host_endpoints::jump_in_tunnel_mode));
    input.push(host_endpoints::jump());
    input.extend(exemptions::rules(config, family));
    input.push(common(Side::Source));
    input.extend(egress.iter().cloned());
    input.push(tail.clone());

    let mut forward = of_bridges(closed, family, CHAIN_FORWARD);
    forward.extend([common(Side::Source), common(Side::Destination)]);
    forward.extend(egress.iter().chain(&ingress).cloned());
    forward.push(tail.clone());

    let local = Match::HostAddress { of: Side::Source, negated: false };
    let said = comment("from local node");
    let to_pods = Match::in_set(names::local_pods(family), SetSides::Address(Side::Destination));
    let not_to_pods = Match::not_in_set(names::local_pods(family), SetSides::Address(Side::Destination));
    let mut output = vec![common(Side::Source), common(Side::Destination)];
    // A packet that IPVS sends through a tunnel (direct server return) has an address of the host as well, and anybody's inside: it
    // is judged as one of another node's. Those of an overlay go to nodes.
    let of_probes = || Protocol::ALL.map(IpProtocol::Transport).into_iter().chain([IpProtocol::Icmp(family)]);
    let from_here =
        |protocol, to, verdict| Rule::new([Match::Protocol(protocol), said.clone(), to, local.clone()], verdict);
    output.extend(of_probes().map(|protocol| from_here(protocol, to_pods.clone(), Verdict::Accept)));
    if config.tunnel_mode && config.default_deny {
        // A tunnel to an address that is no known pod's goes to the tail, which refuses those of this node's ranges. It leaves others alone:
        // an overlay sends every packet through one.
        output.extend(of_probes().map(|protocol| from_here(protocol, not_to_pods.clone(), Verdict::Return)));
        // Its comment is not that of the tail's own rule, by which kube-router finds that one.
        let to_no_pod = [comment("tunnels to no known pod (default-deny)"), not_to_pods.clone(), local.clone()];
        output.push(Rule::new(to_no_pod, Verdict::Jump(CHAIN_TAIL.into())));
    }
    // No pod's chain concerns them.
    output.push(Rule::new([said, not_to_pods, local], Verdict::Return));
    output.extend(egress.into_iter().chain(ingress));
    output.push(tail);

    [(CHAIN_INPUT, input), (CHAIN_FORWARD, forward), (CHAIN_OUTPUT, output)]
        .map(|(name, rules)| (chain(family, name), Rules(rules)))
}

/// Returns the rules that drop what no host but this one sends ([`own_source`](super::super::own_source)). What the host sends to itself is
/// no pod's, and meets no other rule of the chain for INPUT.
fn own_source(family: Family) -> impl Iterator<Item = Rule> {
    let known = States::RELATED.or(States::ESTABLISHED);
    let itself = [Match::InputLink(LOOPBACK.into()), comment("from the host to itself")];
    let refused = [
        Match::Source { range: UNICAST, negated: true },
        Match::Destination { range: GROUPS_V6, negated: true },
        comment(SAID),
        Match::State { states: known, negated: true },
        Match::HostAddress { of: Side::Source, negated: false },
    ];
    let rules = [Rule::new(itself, Verdict::Return), Rule::new(refused, Verdict::Drop)];
    rules.into_iter().filter(move |_| family == Family::V6)
}

/// Returns the first rules of the chains for INPUT and FORWARD: what is closed on bridges comes before what any address
/// allows.
fn of_bridges(closed: &ClosedBridges, family: Family, chain: &str) -> Vec<Rule> {
    let multicast: &[_] = if chain == CHAIN_FORWARD { &closed.multicast } else { &[] };
    let link_local: &[_] = if family == Family::V6 { &closed.link_local } else { &[] };
    multicast::jumps(multicast, family).chain(link_local::jumps(link_local)).collect()
}

/// Returns whether a rule is one of those.
pub fn is_of_bridge(rule: &Rule) -> bool {
    pod_chain::jump(rule).is_some_and(|to| kind(to) == Some(ChainKind::Bridge))
}

/// Returns the chains that filter what is closed on bridges; without rules where nothing is.
pub fn bridge_chains(closed: &ClosedBridges, family: Family) -> Vec<(Piece, Option<Rules>)> {
    let link_local = (family == Family::V6).then(|| link_local::rules(&closed.link_local));
    link_local.into_iter().chain([multicast::rules(&closed.multicast, family)]).collect()
}

/// Returns the chains and jumps that lead to those of IPv6, where policies do not apply to it (without
/// `--enable-ipv6`): the addresses that every pod has nevertheless are closed.
pub fn without_policies(closed: &ClosedBridges) -> Vec<(Piece, Option<Rules>)> {
    let entrances = entrances(Family::V6).filter(|(_, to, _)| [CHAIN_INPUT, CHAIN_FORWARD].contains(to));
    let pieces = entrances.flat_map(|(jump, to, rules)| {
        [(chain(Family::V6, to), Rules(of_bridges(closed, Family::V6, to))), (jump, rules)]
    });
    pieces.map(|(piece, rules)| (piece, (!closed.link_local.is_empty()).then_some(rules))).collect()
}

/// Returns the chains and jumps that depend neither on pods nor on the node. `ends_connections`: marked connections are refused.
pub fn fixed(family: Family, ends_connections: bool) -> Vec<(Piece, Rules)> {
    let mark = Rule::new([comment("rule to mark traffic matching a network policy")], Verdict::SetMark(MARK));
    let mut pieces = vec![
        (chain(family, CHAIN_DEFAULT), Rules(vec![mark])),
        (chain(family, CHAIN_COMMON), common(family, ends_connections)),
    ];
    pieces.extend(entrances(family).map(|(jump, _, rules)| (jump, rules)));
    pieces
}

/// Returns the chains that mark what ClusterNetworkPolicies decide.
pub fn deciding(family: Family) -> [(Piece, Rules); 2] {
    let marks =
        |name, said, mark| (chain(family, name), Rules(vec![Rule::new([comment(said)], Verdict::SetMark(mark))]));
    [
        marks(CHAIN_DENY, "denied by a cluster network policy", names::DENIED),
        marks(CHAIN_PASS, "passed on by a cluster network policy", names::PASSED),
    ]
}

/// Returns the jumps from the built-in chains, each with the chain of ours that it enters.
pub fn entrances(family: Family) -> impl Iterator<Item = (Piece, &'static str, Rules)> {
    ENTRANCES.into_iter().map(move |(from, to)| {
        let saying = |said: &str| Rule::new([Match::Comment(said.into())], Verdict::Jump(to.into()));
        let said = "kube-router netpol";
        let id = rule_id(from, &saying(said));
        let jump = Piece::Jump { family, table: Table::Filter, from: from.into(), to: to.into() };
        (jump, to, Rules(vec![saying(&format!("{said} - {id}"))]))
    })
}

/// Returns the tail. `closed` are the ranges in which only known pods may be reached, with `--netpol-default-deny`.
pub fn tail(family: Family, closed: &[IpNet]) -> (Piece, Rules) {
    let pods = names::local_pods(family);
    let mut rules = Vec::new();
    for range in closed.iter().copied().filter(|range| Family::from(*range) == family) {
        let (to_range, from_range) =
            (Match::Destination { range, negated: false }, Match::Source { range, negated: false });
        rules.push(Rule::new(
            [
                to_range.clone(),
                comment("from a pod to its gateway (default-deny)"),
                Match::not_in_set(pods, SetSides::Address(Side::Source)),
                Match::HostAddress { of: Side::Destination, negated: false },
            ],
            Verdict::Return,
        ));
        for (in_range, of) in [(from_range, Side::Source), (to_range, Side::Destination)] {
            rules.push(closing(in_range, of, pods, family));
        }
    }
    let passed = |of| of_local_pods(family, of, "passed network policies", Verdict::Accept);
    rules.extend([Side::Source, Side::Destination].map(passed));
    (chain(family, CHAIN_TAIL), Rules(rules))
}

/// Returns the rule that refuses new connections from or to addresses of this range that are no known pods.
fn closing(in_range: Match, of: Side, pods: &SetName, family: Family) -> Rule {
    let known = States::RELATED.or(States::ESTABLISHED).or(States::UNTRACKED);
    Rule::new(
        [
            in_range,
            comment("reject unprogrammed local pod (default-deny)"),
            Match::not_in_set(pods, SetSides::Address(of)),
            Match::State { states: known, negated: true },
            Match::HostAddress { of, negated: true },
        ],
        Verdict::Reject(family),
    )
}

/// Returns whether the rules of the tail chain close a range.
pub fn closes(tail: &Rules) -> bool {
    tail.0.iter().any(|rule| matches!(rule.verdict(), Some(Verdict::Reject(_))))
}

/// Returns the key of a chain of ours.
pub fn chain(family: Family, name: &str) -> Piece {
    Piece::Chain { family, table: Table::Filter, chain: name.into() }
}

/// Returns the jump to the pod's chain for each address of each pod that is isolated in this direction.
fn jumps(rules: &RuleSet, direction: Direction, family: Family) -> Vec<Rule> {
    let judged = rules.pods.iter().filter(|(_, pod)| pod.is_judged(direction));
    judged
        .flat_map(|(name, pod)| {
            let chain = names::pod_chain(name, direction);
            let said = comment(&format!("{name} {}", direction.name()));
            let addresses = pod.addresses.iter().filter(|address| Family::from(**address) == family);
            addresses.map(move |address| {
                let range = Family::host_prefix(*address);
                let is_egress = direction == Direction::Egress;
                let ends =
                    [Match::Source { range, negated: !is_egress }, Match::Destination { range, negated: is_egress }];
                let [source, destination] = ends;
                Rule::new([source, destination, said.clone()], Verdict::Jump(chain.clone()))
            })
        })
        .collect()
}

fn common(family: Family, ends_connections: bool) -> Rules {
    let mut rules: Vec<Rule> = ends_connections.then(|| ended(family)).into_iter().collect();
    let established = Match::State { states: States::RELATED.or(States::ESTABLISHED), negated: false };
    rules.push(Rule::new([comment("rule for stateful firewall for pod"), established], Verdict::Accept));
    rules.extend(icmp::always_pass(family).iter().map(|kind| {
        Rule::of_icmp(family, kind.number(family), comment(&format!("allow icmp {}", kind.name())), Verdict::Accept)
    }));
    Rules(rules)
}

/// Returns the rule that refuses packets of connections that policies newly deny, in both directions. The error that answers
/// such a packet belongs to the connection as well, as related.
fn ended(family: Family) -> Rule {
    let mark = Mark { value: ENDED, mask: ENDED };
    let refused = [
        comment("connections that policies newly deny"),
        Match::State { states: States::RELATED, negated: true },
        Match::ConnectionMark { mark, negated: false },
    ];
    Rule::new(refused, Verdict::Reject(family))
}

/// Returns the rule for packets whose address on this side is that of a pod of this node.
fn of_local_pods(family: Family, of: Side, said: &str, verdict: Verdict) -> Rule {
    Rule::new([comment(said), Match::in_set(names::local_pods(family), SetSides::Address(of))], verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_from_the_built_in_chains_are_those_of_running_nodes() {
        let jumps: Vec<String> = fixed(Family::V6, false)
            .into_iter()
            .filter(|(piece, _)| matches!(piece, Piece::Jump { .. }))
            .flat_map(|(_, rules)| rules.0)
            .map(|rule| rule.to_string())
            .collect();
        assert_eq!(
            jumps,
            [
                "-m comment --comment \"kube-router netpol - 4IA2OSFRMVNDXBVV\" -j KUBE-ROUTER-INPUT",
                "-m comment --comment \"kube-router netpol - TEMCG2JMHZYE7H7T\" -j KUBE-ROUTER-FORWARD",
                "-m comment --comment \"kube-router netpol - VEAAIY32XVBHCSCY\" -j KUBE-ROUTER-OUTPUT",
            ]
        );
    }

    #[test]
    fn without_policies_for_ipv6_only_what_bridges_need_is_wanted_and_only_while_they_are_closed() {
        let wanted = |closed| without_policies(&closed).into_iter().filter_map(|(piece, rules)| Some((piece, rules?)));
        assert_eq!(wanted(ClosedBridges::default()).count(), 0);
        let link_local = vec!["kube-bridge".into()];
        assert_eq!(wanted(ClosedBridges { link_local, ..ClosedBridges::default() }).count(), 4);
    }

    /// No kernel takes the chain of what is allowed and refuses one of those of the tiers, so these need no stand-in.
    #[test]
    fn the_chains_of_the_tiers_need_of_the_kernel_what_that_of_allowed_packets_needs() {
        let needs = |rules: &Rules| -> Vec<_> {
            let of_rule = |rule: &Rule| {
                let matches: Vec<_> = rule.matches().iter().map(std::mem::discriminant).collect();
                (matches, rule.verdict().map(std::mem::discriminant))
            };
            rules.0.iter().map(of_rule).collect()
        };
        for family in Family::BOTH {
            let accepting = chain(family, CHAIN_DEFAULT);
            let accepts =
                fixed(family, false).into_iter().find(|(piece, _)| *piece == accepting).expect("it always exists").1;
            for (piece, rules) in deciding(family) {
                assert_eq!(needs(&rules), needs(&accepts), "{piece}");
            }
        }
    }

    #[test]
    fn nothing_is_closed_by_default() {
        let range = ["10.244.1.0/24".parse().unwrap()];
        assert!(!closes(&tail(Family::V4, &[]).1) && !closes(&tail(Family::V6, &range).1));
        assert!(closes(&tail(Family::V4, &range).1));
    }
}
