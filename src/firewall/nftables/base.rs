//! The base chains: which packets are judged at all, and what passes regardless of policies.
//!
//! ```text
//! forward_egress   forward_ingress    packets between pods, and between pods and the outside
//! output_egress    output_ingress     packets of the host, and of pods that IPVS gave their real destination
//! input_egress                        packets of pods to the host: only what they send is judged
//!
//! each:  to a bridge of pods: multicast and broadcast, in forward_egress only (`multicast`)
//!        with --netpol-flush-established, in the chains for egress: connections that policies newly deny (`established`)
//!        with direct server return, packets to ports in tunnel mode: Services with a denied endpoint, in input only
//!        ct state established,related accept
//!        IPv6 that comes from elsewhere with an address of this host, in input only (`own_source`)
//!        IPv6 from a bridge of pods: what has a link-local address, not in output (`link_local`)
//!        Services with a denied endpoint on this node, and addresses of Services, in input only
//!        ICMP that always passes; in output, what the host itself sends
//!        a pod that sends to its own address: accept
//!        ct state invalid ip saddr vmap @egress4, or ip daddr vmap @ingress4: a class drops these, whatever the Admin tier accepts
//!        ip saddr vmap @admin_egress4, or ip daddr vmap @admin_ingress4: the Admin tier of ClusterNetworkPolicies
//!        ip saddr vmap @egress4, or ip daddr vmap @ingress4: the chain of the pod's class, or its Baseline tier
//!        jump closed_egress, or closed_ingress, where unknown addresses are closed
//! ```
//!
//! A direction has base chains of its own, so that its `accept` ends this direction alone: a packet passes if both accept it, or
//! have nothing to say. The priorities are those before the table `filter` of iptables, egress first.
//!
//! Packets from the host itself to a pod of this node are accepted in TCP, UDP, SCTP and ICMP: the kubelet's probes have to arrive,
//! regardless of policies. What else the host sends, tunnels of direct server return above all, is judged as another node's.
//!
//! Packets from pods to Services are judged after translation to their real destination: they enter input with the address of
//! the Service, IPVS translates it and sends them through output, with the pod still as their source. The price: pods
//! reach every service of the host itself on a port of the node port range, regardless of their egress policies.
//!
//! `--netpol-default-deny`: new connections from and to addresses of this node's pod CIDRs that no known pod has are refused.
//! Addresses of the host itself are exempt: the pods' gateway lies in the pod CIDR too. ICMP that always passes is that of known
//! pods then.

use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::config::{FirewallConfig, ServiceRanges};
use crate::kernel::nftables::rule::{Mark, Side, States};
use crate::kernel::nftables::{
    Base, BaseKind, Chain, Content, Fields, Hook, Kind, Lookup, Match, Name, Object, Rule, SetSpec, Statement, Verdict,
};
use crate::net::service_mark::MASK;
use crate::net::{Family, PerFamily, PortRange, Protocol, icmp};

use super::super::bridges::ClosedBridges;
use super::super::established::ENDED;
use super::super::link_local::{MULTICAST as MULTICAST_OF_LINKS, UNICAST};
use super::super::multicast::{DHCP, EVERYBODY, GROUPS_V6};
use super::super::own_source::{self, LOOPBACK};
use super::super::rules::Direction;
use super::class::{IS_INVALID, LOG_LIMIT, log};
use super::names::{
    self, FORWARD_EGRESS, FORWARD_INGRESS, INPUT_EGRESS, LINK_LOCAL, MULTICAST, OUTPUT_EGRESS, OUTPUT_INGRESS,
};
use super::parts::Lowered;

/// The inputs of the base chains.
#[derive(Clone, Copy)]
pub struct BaseChainInputs<'a> {
    pub config: &'a FirewallConfig,
    pub families: PerFamily<bool>,
    /// The ranges in which only known pods may be reached.
    pub closed: &'a [IpNet],
    pub bridges: &'a ClosedBridges,
}

/// Priority of the base chains for egress; those for ingress come next.
const PRIORITY: i32 = -10;

impl BaseChainInputs<'_> {
    /// Returns the base chains with the sets and chains that they use.
    pub fn lower(&self) -> Lowered {
        let mut lowered = Lowered::default();
        for family in self.enabled() {
            self.lower_sets(family, &mut lowered);
            let always = icmp::always_pass(family).iter();
            let rules = always.map(|kind| {
                let of_kind = Match::IcmpKind { family, number: kind.number(family) };
                Rule::new([of_kind], Verdict::Accept).commented(kind.name())
            });
            lowered.chain(names::icmp(family), rules.collect());
        }
        for direction in Direction::BOTH.into_iter().filter(|_| self.closes()) {
            lowered.chain(names::closed(direction), self.closing(direction));
        }
        if !self.bridges.link_local.is_empty() {
            lowered.objects.insert(Object::Counter(LINK_LOCAL.into()), Content::Counter);
            lowered.chain(LINK_LOCAL.into(), link_local());
        }
        if !self.bridges.multicast.is_empty() {
            lowered.objects.insert(Object::Counter(MULTICAST.into()), Content::Counter);
            lowered.chain(MULTICAST.into(), multicast());
        }
        let bases = [
            (FORWARD_EGRESS, Hook::Forward, PRIORITY, self.forward_egress()),
            (INPUT_EGRESS, Hook::Input, PRIORITY, self.input_egress()),
            (OUTPUT_EGRESS, Hook::Output, PRIORITY, self.output(Direction::Egress)),
            (FORWARD_INGRESS, Hook::Forward, PRIORITY + 1, self.forward_ingress()),
            (OUTPUT_INGRESS, Hook::Output, PRIORITY + 1, self.output(Direction::Ingress)),
        ];
        for (name, hook, priority, rules) in bases {
            let chain = Chain { base: Some(Base { kind: BaseKind::Filter, hook, priority }), rules };
            lowered.objects.insert(Object::Chain(name.into()), Content::Chain(Arc::new(chain)));
        }
        lowered
    }

    fn enabled(&self) -> impl Iterator<Item = Family> + use<> {
        let families = self.families;
        Family::BOTH.into_iter().filter(move |family| *families.of(*family))
    }

    fn lower_sets(&self, family: Family, lowered: &mut Lowered) {
        let address = SetSpec { fields: Fields::Address(family), kind: Kind::Set, intervals: false };
        let map = SetSpec { kind: Kind::Verdicts, ..address };
        let itself = SetSpec { fields: Fields::Addresses(family), ..address };
        let of = |direction| [names::admin(direction, family), names::isolated(direction, family)];
        let maps = Direction::BOTH.into_iter().flat_map(of).map(|name| (name, map));
        let others = [(names::to_itself(family), itself), (names::host_endpoints(family), map)];
        let pods = self.config.default_deny.then(|| (names::pods(family), address));
        let ids = (names::pod_ids(family), SetSpec { kind: Kind::Marks, ..address });
        for (name, spec) in maps.chain(others).chain(pods).chain([ids]) {
            lowered.map(&name, spec);
        }
    }

    fn forward_egress(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> =
            self.bridges.multicast.iter().flat_map(|bridge| self.jumps_to_multicast(bridge)).collect();
        rules.extend(self.ended());
        rules.push(established());
        rules.extend(self.jumps_to_link_local());
        rules.extend(self.icmp());
        rules.extend(self.judged(Direction::Egress));
        rules
    }

    fn forward_ingress(&self) -> Vec<Rule> {
        let judged = self.judged(Direction::Ingress);
        [established()].into_iter().chain(self.icmp()).chain(judged).collect()
    }

    fn input_egress(&self) -> Vec<Rule> {
        let refusing = |marked: Vec<Match>| {
            let rule = move |family| {
                let (lookup, map) = (Lookup::Address(family, Side::Source), names::host_endpoints(family));
                Rule::new(marked.clone(), Verdict::Map { lookup, map })
            };
            self.enabled().map(rule).collect::<Vec<Rule>>()
        };
        let mut rules: Vec<Rule> = self.ended().into_iter().collect();
        if self.config.tunnel_mode {
            // IPVS may send the next packet of a connection to another endpoint, and no rule sees it behind that. So these packets, which the service proxy
            // marks, are judged whatever they belong to.
            let of_port = |value| Match::Mark { mark: Mark { value, mask: MASK }, negated: true };
            rules.extend(refusing([0, MASK].map(of_port).to_vec()));
        }
        rules.push(established());
        rules.extend(self.families.v6.then(own_source));
        rules.extend(self.jumps_to_link_local());
        // Also what connection tracking cannot assign: the addresses of Services are accepted before that is dropped.
        rules.extend(refusing(Vec::new()));
        rules.extend(self.exemptions());
        rules.extend(self.icmp());
        rules.extend(self.judged(Direction::Egress));
        rules
    }

    fn output(&self, direction: Direction) -> Vec<Rule> {
        // A packet that IPVS sends through a tunnel (direct server return) has an address of the host as well, and anybody's inside:
        // it is judged as one of another node's.
        let local = Match::HostAddress { of: Side::Source, negated: false };
        let from_host = |matches: Vec<Match>| Rule::new(matches, Verdict::Accept).commented("from local node");
        let of_probes = Protocol::ALL.map(Match::Protocol).into_iter().chain(self.enabled().map(Match::Icmp));
        let from_host: Vec<Rule> = match direction {
            Direction::Egress => vec![from_host(vec![local])],
            Direction::Ingress => of_probes.map(|protocol| from_host(vec![protocol, local.clone()])).collect(),
        };
        let judged = self.judged(direction);
        let ended = self.ended().filter(|_| direction == Direction::Egress);
        let known = ended.into_iter().chain([established()]);
        known.chain(self.icmp()).chain(from_host).chain(judged).collect()
    }

    fn ended(&self) -> Option<Rule> {
        self.config.flush_established.then(ended)
    }

    /// Returns the rules that let Services be judged behind their address.
    fn exemptions(&self) -> Vec<Rule> {
        let ServiceRanges { cluster_ips, external_ips, load_balancer_ips, .. } = &self.config.ranges;
        let lists = [
            ("service addresses", cluster_ips),
            ("external addresses", external_ips),
            ("load balancer addresses", load_balancer_ips),
        ];
        let ranges = lists.into_iter().flat_map(|(said, ranges)| ranges.iter().map(move |range| (said, *range)));
        let ranges = ranges.filter(|(_, range)| *self.families.of(Family::from(*range)));
        let to_ranges = ranges.map(|(said, range)| {
            let to = Match::Address { of: Side::Destination, range, negated: false };
            Rule::new([to], Verdict::Accept).commented(said)
        });
        let node_ports = &self.config.service_node_port_range;
        let range = PortRange { first: *node_ports.start(), last: *node_ports.end() };
        let to_node_ports = Protocol::ALL.map(|protocol| {
            let to_port = Match::DestinationPort { protocol, range };
            let to_host = Match::HostAddress { of: Side::Destination, negated: false };
            Rule::new([to_port, to_host], Verdict::Accept).commented("node ports")
        });
        to_ranges.chain(to_node_ports).collect()
    }

    /// Returns the rules for ICMP that always passes. Where unknown addresses are closed, it does so from and to known pods only, so
    /// that the others are refused it like everything else.
    fn icmp(&self) -> impl Iterator<Item = Rule> {
        let known: &[Side] = if self.closes() { &[Side::Source, Side::Destination] } else { &[] };
        self.enabled().flat_map(move |family| {
            let jump = move |of_known: Option<Match>| {
                let matches: Box<[Match]> = of_known.into_iter().chain([Match::Icmp(family)]).collect();
                Rule::new(matches, Verdict::Jump(names::icmp(family)))
            };
            let of_known = move |of: &Side| {
                let (lookup, set) = (Lookup::Address(family, *of), names::pods(family));
                jump(Some(Match::InSet { lookup, set, negated: false }))
            };
            known.iter().map(of_known).chain(known.is_empty().then(|| jump(None)))
        })
    }

    /// Returns the rules that judge what a pod sends or what it gets.
    fn judged(&self, direction: Direction) -> Vec<Rule> {
        let side = match direction {
            Direction::Egress => Side::Source,
            Direction::Ingress => Side::Destination,
        };
        let to_itself = self.enabled().map(|family| {
            let set = names::to_itself(family);
            Rule::new([Match::InSet { lookup: Lookup::Addresses(family), set, negated: false }], Verdict::Accept)
        });
        // What connection tracking cannot assign is dropped where any policy of the pod may refuse something: the accepting rule of
        // an Admin tier must not come first. The chains that are looked up here drop such a packet, or return.
        let maps: [(fn(_, _) -> _, bool); 3] =
            [(names::isolated, true), (names::admin, false), (names::isolated, false)];
        let maps = maps.into_iter().flat_map(|(named, is_invalid)| {
            self.enabled().map(move |family| {
                let matches = Vec::from_iter(is_invalid.then_some(IS_INVALID));
                let (lookup, map) = (Lookup::Address(family, side), named(direction, family));
                Rule::new(matches, Verdict::Map { lookup, map })
            })
        });
        let closing = self.closes().then(|| Rule::new([], Verdict::Jump(names::closed(direction))));
        to_itself.chain(maps).chain(closing).collect()
    }

    fn closes(&self) -> bool {
        self.closed.iter().any(|range| *self.families.of(Family::from(*range)))
    }

    /// Returns the rules that refuse addresses in closed ranges that no known pod has.
    fn closing(&self, direction: Direction) -> Vec<Rule> {
        let known = States::RELATED.or(States::ESTABLISHED).or(States::UNTRACKED);
        let state = Match::State { states: known, negated: true };
        let mut rules = Vec::new();
        for range in self.closed.iter().copied().filter(|range| *self.families.of(Family::from(*range))) {
            let family = Family::from(range);
            let within = |of| Match::Address { of, range, negated: false };
            let unknown =
                |of| Match::InSet { lookup: Lookup::Address(family, of), set: names::pods(family), negated: true };
            let of = match direction {
                Direction::Egress => Side::Source,
                Direction::Ingress => Side::Destination,
            };
            if direction == Direction::Egress {
                let here = Match::HostAddress { of: Side::Destination, negated: false };
                let to_gateway = [within(Side::Destination), unknown(Side::Source), here];
                rules.push(Rule::new(to_gateway, Verdict::Return).commented("from a pod to its gateway"));
            }
            let not_here = Match::HostAddress { of, negated: true };
            let refused = Rule::new([within(of), unknown(of), state.clone(), not_here], Verdict::Reject);
            rules.push(refused.commented("unknown pod (default-deny)"));
        }
        rules
    }

    /// Returns the rules for packets to everybody on a bridge. In IPv4 the kernel says what is broadcast, by its routes: the
    /// last address of the bridge's own network is.
    fn jumps_to_multicast(&self, bridge: &CompactString) -> impl Iterator<Item = Rule> {
        let to_bridge = Match::OutputLink { name: bridge.clone(), negated: false };
        let groups = Match::Address { of: Side::Destination, range: GROUPS_V6, negated: false };
        let jump = || Verdict::Jump(MULTICAST.into());
        let v4 = [Match::Family(Family::V4), to_bridge.clone(), Match::ToMany];
        let v4 = self.families.v4.then(|| Rule::new(v4, jump()));
        v4.into_iter().chain([Rule::new([to_bridge, groups], jump())])
    }

    /// Returns the rules for IPv6 packets that come from a bridge of pods. They stand without IPv6 policies too: every pod has
    /// link-local addresses.
    fn jumps_to_link_local(&self) -> impl Iterator<Item = Rule> {
        self.bridges.link_local.iter().map(|bridge| {
            let from_bridge = Match::InputLink { name: bridge.clone(), negated: false };
            Rule::new([Match::Family(Family::V6), from_bridge], Verdict::Jump(LINK_LOCAL.into()))
        })
    }
}

/// Returns the rule that refuses packets of connections that policies newly deny, in both directions. The error that answers
/// such a packet belongs to the connection as well, as related.
fn ended() -> Rule {
    let related = Match::State { states: States::RELATED, negated: true };
    let marked = Match::ConnectionMark { mark: Mark { value: ENDED, mask: ENDED }, negated: false };
    Rule::new([related, marked], Verdict::Reject).commented("connections that policies newly deny")
}

fn established() -> Rule {
    let states = States::RELATED.or(States::ESTABLISHED);
    Rule::new([Match::State { states, negated: false }], Verdict::Accept)
}

/// Returns the rule that drops what no host but this one sends ([`own_source`](super::super::own_source)).
fn own_source() -> Rule {
    let refused = [
        Match::Family(Family::V6),
        Match::InputLink { name: LOOPBACK.into(), negated: true },
        Match::Address { of: Side::Source, range: UNICAST, negated: true },
        Match::Address { of: Side::Destination, range: GROUPS_V6, negated: true },
        Match::HostAddress { of: Side::Source, negated: false },
    ];
    Rule::new(refused, Verdict::Drop).commented(own_source::SAID)
}

fn link_local() -> Vec<Rule> {
    let mut rules: Vec<Rule> = of_links().collect();
    let from = |range| Match::Address { of: Side::Source, range, negated: false };
    let to = |range| Match::Address { of: Side::Destination, range, negated: false };
    for concerned in [from(UNICAST), to(UNICAST), to(MULTICAST_OF_LINKS)] {
        rules.extend(dropping(&[concerned], LINK_LOCAL));
    }
    rules
}

fn multicast() -> Vec<Rule> {
    let everybody = Match::Address { of: Side::Destination, range: EVERYBODY, negated: false };
    let dhcp = Match::DestinationPort { protocol: Protocol::Udp, range: DHCP };
    let mut rules = vec![Rule::new([everybody, dhcp], Verdict::Return).commented("DHCP")];
    rules.extend(of_links());
    rules.extend(dropping(&[], MULTICAST));
    rules
}

/// Returns the rules that let pass what a link needs.
fn of_links() -> impl Iterator<Item = Rule> {
    icmp::OF_LINKS.iter().map(|kind| {
        let of_kind = Match::IcmpKind { family: Family::V6, number: kind.number(Family::V6) };
        Rule::new([of_kind], Verdict::Return).commented(kind.name())
    })
}

/// Returns the rules that drop, count and log a packet. It is dropped, not rejected: the sender of a packet to a group hears
/// nothing either way.
fn dropping(matches: &[Match], counter: &str) -> [Rule; 2] {
    let limited: Box<[Match]> = matches.iter().cloned().chain([LOG_LIMIT]).collect();
    let count = Statement::Count(Name::from(counter));
    [Rule::with(limited, [log(counter)], None), Rule::with(matches, [count], Some(Verdict::Drop))]
}
