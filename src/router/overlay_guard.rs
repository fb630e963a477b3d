//! Keeps everybody but nodes from sending into the tunnels between nodes that are inside UDP.
//!
//! A device of `vxlan` compares the number of the network and the link address inside a packet, not the sender (RFC 7348 7): without
//! these rules whoever reaches the port of a node sends packets with any source into the pods' network. A tunnel of `fou` takes packets from
//! the other node's address alone; but what is in front of it takes any protocol that a packet names (GUE, `gue_udp_recv` in the kernel), and has it delivered on this host behind the
//! chains of INPUT: to a port that a firewall closes, or into a device of `vxlan`.
//!
//! | packet to the port of tunnels | dropped |
//! |---|---|
//! | from the pods' bridge, whatever source it claims, to a node | where it comes in |
//! | from no node's address to a node, leaving this host: a Service or a rule of the host may be about to masquerade it | before addresses are translated |
//! | from no node's address, to this host | where it arrives |
//! | to an address of this host at which no tunnel ends | where it arrives |
//!
//! In the kernel, chains in `mangle` for each kind (those of `fou` are `KUBE-ROUTER-FOU-PODS`, `-IN` and `-OUT`), entered for its port alone:
//!
//! ```text
//! iptables -t mangle -A PREROUTING  -p udp -m udp --dport 4789 -j KUBE-ROUTER-OVERLAY-PODS
//! iptables -t mangle -A INPUT       -p udp -m udp --dport 4789 -j KUBE-ROUTER-OVERLAY-IN
//! iptables -t mangle -A POSTROUTING -p udp -m udp --dport 4789 -j KUBE-ROUTER-OVERLAY-OUT
//! iptables -t mangle -A KUBE-ROUTER-OVERLAY-PODS -i kube-bridge -m set --match-set kube-router-node-ips dst -j DROP
//! iptables -t mangle -A KUBE-ROUTER-OVERLAY-IN -m set ! --match-set kube-router-node-ips src -j DROP
//! iptables -t mangle -A KUBE-ROUTER-OVERLAY-IN ! -d 192.0.2.1/32 -j DROP
//! iptables -t mangle -A KUBE-ROUTER-OVERLAY-OUT ! -s 192.0.2.1/32 -m set --match-set kube-router-node-ips dst
//!     -m set ! --match-set kube-router-node-ips src -j DROP
//! ```
//!
//! With nftables the same, of `vxlan` for packets of our number alone: devices of others at the same port, with peers that are no nodes, go on.
//! What arrives is judged behind IPVS there, so a Service may have the port. Packets between nodes are not tracked. Each kind and family has chains of its own, so
//! that those of one stay as long as its device does, whatever else changes:
//!
//! ```text
//! chain overlay_untracked_vxlan4 { type filter hook prerouting priority raw; udp dport 4789 @th,96,24 1 ip saddr @nodes4 ip daddr 192.0.2.1 notrack }
//! chain overlay_sent_vxlan4 { type filter hook output priority raw; udp dport 4789 @th,96,24 1 ip saddr 192.0.2.1 ip daddr @nodes4 notrack }
//! chain overlay_pods_vxlan4 { type filter hook prerouting priority mangle; udp dport 4789 @th,96,24 1 meta nfproto ipv4
//!     iifname "kube-bridge" drop }
//! chain overlay_in_vxlan4 { type filter hook input priority srcnat + 1; udp dport 4789 @th,96,24 1 ip saddr != @nodes4 drop;
//!     udp dport 4789 @th,96,24 1 ip daddr != 192.0.2.1 drop }
//! chain overlay_out_vxlan4 { type filter hook postrouting priority mangle; udp dport 4789 @th,96,24 1 ip saddr != 192.0.2.1 ip daddr @nodes4
//!     ip saddr != @nodes4 drop }
//! ```
//!
//! The rules are there before a device is, and as long as one is (`apply::overlay`); they outlive the agent. A port of `fou` that is a former one is guarded beside the one that is wanted until
//! it is deleted, by a second jump to each chain, or a second rule in it (`apply::filter`). Limits: a process in the host's network is
//! its node, and a network in which hosts can take nodes' addresses is not closed by this. `ipip` has no such rules: the kernel compares the
//! sender, and to send packets of that protocol takes a privilege (`CAP_NET_RAW`) with which the sender can be forged as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{Encapsulation, Fou, Overlay, VxlanNetwork};
use crate::kernel::iptables::rule::{IpProtocol, SetSides, Side};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Hook, Lookup, Object};
use crate::net::{Family, PortRange, Protocol};

use super::identity::Identity;
use super::names::{
    BRIDGE, CHAIN_FOU_IN, CHAIN_FOU_OUT, CHAIN_FOU_PODS, CHAIN_OVERLAY_IN, CHAIN_OVERLAY_OUT, CHAIN_OVERLAY_PODS,
    NFT_OVERLAY_IN, NFT_OVERLAY_OUT, NFT_OVERLAY_PODS, NFT_OVERLAY_SENT, NFT_OVERLAY_UNTRACKED, Set,
};

/// Before connection tracking.
const RAW: i32 = -300;
/// Before addresses are translated.
const MANGLE: i32 = -150;
/// Behind IPVS, which takes packets to Services at 98 and 99.
const BEHIND_SERVICES: i32 = 101;

/// The beginnings of the names of chains that drop packets.
const DROPPING: [&str; 3] = [NFT_OVERLAY_PODS, NFT_OVERLAY_IN, NFT_OVERLAY_OUT];

/// The chains of iptables that guard ports of `fou`.
const FOU_CHAINS: [&str; 3] = [CHAIN_FOU_PODS, CHAIN_FOU_IN, CHAIN_FOU_OUT];

const BY_PODS: &str = "tunnel packets of pods";
const BY_OTHERS: &str = "tunnel packets of hosts that are no nodes";
const ELSEWHERE: &str = "tunnel packets to addresses where no tunnel ends";
const BORROWED: &str = "tunnel packets that would get the address of a node";

/// Packets of tunnels between nodes, as the packet filter tells them from others.
#[derive(Clone, Copy, Debug)]
enum Carrier {
    Fou(Fou),
    Vxlan(VxlanNetwork),
}

impl Carrier {
    /// Returns those of all kinds of tunnels in which packets are received.
    fn all(overlay: Overlay) -> impl Iterator<Item = Carrier> {
        overlay.kinds().filter_map(|kind| match kind {
            // The kernel takes nothing that another node's key has not sealed.
            Encapsulation::Ipip | Encapsulation::Wireguard(_) => None,
            Encapsulation::Fou(fou) => Some(Carrier::Fou(fou)),
            Encapsulation::Vxlan(network) => Some(Carrier::Vxlan(network)),
        })
    }

    fn port(self) -> u16 {
        match self {
            Carrier::Fou(fou) => fou.port,
            Carrier::Vxlan(network) => network.port,
        }
    }

    /// Returns the number of the network (VNI), where packets have one.
    fn number(self) -> Option<u32> {
        match self {
            Carrier::Fou(_) => None,
            Carrier::Vxlan(network) => Some(network.id),
        }
    }

    /// Returns the name of its base chain for a family.
    fn chain(self, of: &str, family: Family) -> Object {
        let kind = match self {
            Carrier::Fou(_) => "fou",
            Carrier::Vxlan(_) => "vxlan",
        };
        let family = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        Object::Chain(format!("{of}_{kind}{family}").into())
    }
}

/// Returns whether a piece of iptables is part of this.
pub fn is_piece(piece: &Piece) -> bool {
    FOU_CHAINS.contains(&chain_of(piece)) || guards_vxlan(piece)
}

/// Returns whether a piece of iptables guards a device of `vxlan`.
pub fn guards_vxlan(piece: &Piece) -> bool {
    [CHAIN_OVERLAY_PODS, CHAIN_OVERLAY_IN, CHAIN_OVERLAY_OUT].contains(&chain_of(piece))
}

fn chain_of(piece: &Piece) -> &str {
    match piece {
        Piece::Chain { chain, .. } => chain,
        Piece::Jump { to, .. } => to,
        Piece::Leftover { .. } => "",
    }
}

/// Returns the chains of our table that guard the device of `vxlan` of a family.
pub fn guarding_vxlan(family: Family) -> [Object; 3] {
    let any = Carrier::Vxlan(VxlanNetwork { port: 0, id: 0 });
    DROPPING.map(|of| any.chain(of, family))
}

/// Returns whether the chains that drop packets need an object of our table: they themselves, also those that an earlier version has made, and the sets.
pub fn needs(object: &Object) -> bool {
    match object {
        Object::Set(_) => true,
        Object::Chain(name) => DROPPING.iter().any(|of| name.as_str().starts_with(of)),
        _ => false,
    }
}

/// Returns the ports of `fou` that rules of iptables guard: at these packets are, or were, received.
pub fn guarded_ports(rules: &BTreeMap<Piece, Rules>) -> BTreeSet<u16> {
    Family::BOTH.into_iter().flat_map(|family| ports_of_jumps(rules, family, CHAIN_FOU_PODS)).collect()
}

/// Returns the ports of `fou` that chains of our table of nf_tables guard.
pub fn guarded_ports_of_table(table: &BTreeMap<Object, Content>) -> BTreeSet<u16> {
    let any = Carrier::Fou(Fou { port: 0 });
    Family::BOTH
        .into_iter()
        .flat_map(|family| ports_of_chain(table.get(&any.chain(NFT_OVERLAY_PODS, family))))
        .collect()
}

/// Returns the ports of `fou`, with the families of the packets, that rules of iptables guard in each way.
pub fn guarded_fully(rules: &BTreeMap<Piece, Rules>) -> BTreeSet<(Family, u16)> {
    let of_family = |family: Family| {
        let by = |chain: &str| ports_of_jumps(rules, family, chain);
        in_all(FOU_CHAINS.map(by)).into_iter().map(move |port| (family, port))
    };
    Family::BOTH.into_iter().flat_map(of_family).collect()
}

/// Like [`guarded_fully`], of the chains of our table of nf_tables.
pub fn guarded_fully_in_table(table: &BTreeMap<Object, Content>) -> BTreeSet<(Family, u16)> {
    let any = Carrier::Fou(Fou { port: 0 });
    let of_family = |family: Family| {
        let by = |of: &str| ports_of_chain(table.get(&any.chain(of, family)));
        in_all(DROPPING.map(by)).into_iter().map(move |port| (family, port))
    };
    Family::BOTH.into_iter().flat_map(of_family).collect()
}

/// Returns the ports that jumps of a family to a chain name.
fn ports_of_jumps(rules: &BTreeMap<Piece, Rules>, of: Family, chain: &str) -> BTreeSet<u16> {
    let is_jump = |piece: &Piece| matches!(piece, Piece::Jump { family, to, .. } if *family == of && to == chain);
    let jumps = rules.iter().filter(|(piece, _)| is_jump(piece));
    let matches = jumps.flat_map(|(_, Rules(rules))| rules).flat_map(|rule| rule.matches());
    matches.filter_map(|one| if let Match::Port { port, .. } = one { Some(*port) } else { None }).collect()
}

/// Returns the ports that rules of a chain of our table name.
fn ports_of_chain(content: Option<&Content>) -> BTreeSet<u16> {
    let rules = match content {
        Some(Content::Chain(chain)) => chain.rules.as_slice(),
        _ => &[],
    };
    let port = |one: &nftables::Match| match one {
        nftables::Match::DestinationPort { range, .. } => Some(range.first),
        _ => None,
    };
    rules.iter().flat_map(|rule| rule.matches()).filter_map(port).collect()
}

/// Returns what all three have.
fn in_all([first, second, third]: [BTreeSet<u16>; 3]) -> BTreeSet<u16> {
    first.into_iter().filter(|port| second.contains(port) && third.contains(port)).collect()
}

/// Returns those of these pieces that guard the port of `fou`, each for these ports as well, the former ones of tunnels that have another one now.
pub fn guarding_also(ports: &BTreeSet<u16>, wanted: &BTreeMap<Piece, Rules>) -> BTreeMap<Piece, Rules> {
    let is_of_fou = |piece: &Piece| FOU_CHAINS.contains(&chain_of(piece));
    let is_entry = |piece: &Piece| matches!(piece, Piece::Jump { .. }) && is_of_fou(piece);
    let at_port = |rule: &Rule, port: u16| {
        let matches = rule.matches().iter().map(|one| match one {
            Match::Port { protocol, side, .. } => Match::Port { protocol: *protocol, side: *side, port },
            other => other.clone(),
        });
        Some(Rule::new(matches.collect::<Vec<_>>(), rule.verdict()?.clone()))
    };
    let also = |(piece, Rules(rules)): (&Piece, &Rules)| {
        let others = ports.iter().flat_map(|port| rules.iter().filter_map(|rule| at_port(rule, *port)));
        (piece.clone(), Rules(rules.iter().cloned().chain(others).collect()))
    };
    let entries = wanted.iter().filter(|(piece, _)| !ports.is_empty() && is_entry(piece));
    entries.map(also).collect()
}

/// Like [`guarding_also`], of the chains of our table of nf_tables.
pub fn guarding_also_in_table(ports: &BTreeSet<u16>, wanted: &BTreeMap<Object, Content>) -> BTreeMap<Object, Content> {
    let any = Carrier::Fou(Fou { port: 0 });
    let names = Family::BOTH.into_iter().flat_map(|family| DROPPING.map(|of| any.chain(of, family)));
    let at_port = |rule: &nftables::Rule, port: u16| {
        let matches = rule.matches().iter().map(|one| match one {
            nftables::Match::DestinationPort { protocol, .. } => {
                nftables::Match::DestinationPort { protocol: *protocol, range: PortRange { first: port, last: port } }
            }
            other => other.clone(),
        });
        let copy = nftables::Rule::new(matches.collect::<Vec<_>>(), rule.verdict()?.clone());
        Some(rule.comment().map_or(copy.clone(), |comment| copy.commented(comment)))
    };
    let also = |chain: &Chain| {
        let others = ports.iter().flat_map(|port| chain.rules.iter().filter_map(|rule| at_port(rule, *port)));
        let rules = chain.rules.iter().cloned().chain(others).collect();
        Content::Chain(Arc::new(Chain { base: chain.base, rules }))
    };
    let chains = names.filter(|_| !ports.is_empty()).filter_map(|name| match wanted.get(&name)? {
        Content::Chain(chain) => Some((name, also(chain))),
        _ => None,
    });
    chains.collect()
}

/// Returns the chains and the jumps to them, for one family; none where no tunnel of it ends here.
pub fn rules(own: &Identity, overlay: Overlay, family: Family) -> BTreeMap<Piece, Rules> {
    let Some(local) = *own.addresses.of(family) else { return BTreeMap::new() };
    Carrier::all(overlay).flat_map(|carrier| rules_of(carrier, family, Family::host_prefix(local))).collect()
}

fn rules_of(carrier: Carrier, family: Family, local: IpNet) -> BTreeMap<Piece, Rules> {
    let nodes = Set::NodeAddresses.name(family);
    let is_node = |side, negated| Match::Set { set: nodes.clone(), of: SetSides::Address(side), negated };
    let drop = |matches: Vec<Match>, said: &str| {
        Rule::new([matches, vec![Match::Comment(said.into())]].concat(), Verdict::Drop)
    };
    let by_pods = drop(vec![Match::InputLink(BRIDGE.into()), is_node(Side::Destination, false)], BY_PODS);
    let borrowed =
        [Match::Source { range: local, negated: true }, is_node(Side::Destination, false), is_node(Side::Source, true)];
    let borrowed = drop(borrowed.into(), BORROWED);
    let elsewhere = vec![Match::Destination { range: local, negated: true }];
    let arriving = vec![drop(vec![is_node(Side::Source, true)], BY_OTHERS), drop(elsewhere, ELSEWHERE)];
    let [of_pods, of_arriving, of_leaving] = match carrier {
        Carrier::Fou(_) => FOU_CHAINS,
        Carrier::Vxlan(_) => [CHAIN_OVERLAY_PODS, CHAIN_OVERLAY_IN, CHAIN_OVERLAY_OUT],
    };
    let chains = [
        ("PREROUTING", of_pods, vec![by_pods]),
        ("POSTROUTING", of_leaving, vec![borrowed]),
        ("INPUT", of_arriving, arriving),
    ];
    let (protocol, table) = (Protocol::Udp, Table::Mangle);
    let to_port = [
        Match::Protocol(IpProtocol::Transport(protocol)),
        Match::Port { protocol, side: Side::Destination, port: carrier.port() },
    ];
    let pieces = |(from, chain, rules): (&str, &str, Vec<Rule>)| {
        let jump = Rule::new(to_port.clone(), Verdict::Jump(chain.into()));
        [
            (Piece::Chain { family, table, chain: chain.into() }, Rules(rules)),
            (Piece::Jump { family, table, from: from.into(), to: chain.into() }, Rules(vec![jump])),
        ]
    };
    chains.into_iter().flat_map(pieces).collect()
}

/// Returns the chains of our table of nf_tables for these families; none where no tunnel ends here.
pub fn table_chains(own: &Identity, overlay: Overlay, families: &[Family]) -> BTreeMap<Object, Content> {
    let ends = families.iter().filter_map(|family| (*own.addresses.of(*family)).map(|local| (*family, local)));
    ends.flat_map(|end| Carrier::all(overlay).flat_map(move |carrier| chains_of(carrier, end))).collect()
}

fn chains_of(carrier: Carrier, end: (Family, IpAddr)) -> Vec<(Object, Content)> {
    let mut chains = vec![
        (NFT_OVERLAY_PODS, Hook::Prerouting, MANGLE, by_pods(carrier, end)),
        (NFT_OVERLAY_IN, Hook::Input, BEHIND_SERVICES, arriving(carrier, end)),
        (NFT_OVERLAY_OUT, Hook::Postrouting, MANGLE, borrowed(carrier, end)),
    ];
    if carrier.number().is_some() {
        // Packets of `fou` have been tracked for long: a host's own firewall may let them in by their state.
        chains.push((NFT_OVERLAY_UNTRACKED, Hook::Prerouting, RAW, untracked(carrier, end)));
        chains.push((NFT_OVERLAY_SENT, Hook::Output, RAW, sent(carrier, end)));
    }
    let chain = |(name, hook, priority, rules): (&str, Hook, i32, Vec<nftables::Rule>)| {
        let base = Some(Base { kind: BaseKind::Filter, hook, priority });
        (carrier.chain(name, end.0), Content::Chain(Arc::new(Chain { base, rules })))
    };
    chains.into_iter().map(chain).collect()
}

/// The matches for packets of tunnels, and those behind them.
fn carried<const MORE: usize>(carrier: Carrier, more: [nftables::Match; MORE]) -> Vec<nftables::Match> {
    let range = PortRange { first: carrier.port(), last: carrier.port() };
    let port = nftables::Match::DestinationPort { protocol: Protocol::Udp, range };
    [port].into_iter().chain(carrier.number().map(nftables::Match::VxlanNumber)).chain(more).collect()
}

fn is_node(family: Family, of: Side, negated: bool) -> nftables::Match {
    let (lookup, set) = (Lookup::Address(family, of), Set::NodeAddresses.in_table(family));
    nftables::Match::InSet { lookup, set, negated }
}

fn is_local(local: IpAddr, of: Side, negated: bool) -> nftables::Match {
    nftables::Match::Address { of, range: Family::host_prefix(local), negated }
}

fn dropped<const MORE: usize>(carrier: Carrier, more: [nftables::Match; MORE], said: &str) -> nftables::Rule {
    nftables::Rule::new(carried(carrier, more), nftables::Verdict::Drop).commented(said)
}

fn not_tracked<const MORE: usize>(carrier: Carrier, more: [nftables::Match; MORE]) -> nftables::Rule {
    nftables::Rule::with(carried(carrier, more), [nftables::Statement::Untrack], None)
}

fn untracked(carrier: Carrier, (family, local): (Family, IpAddr)) -> Vec<nftables::Rule> {
    vec![not_tracked(carrier, [is_node(family, Side::Source, false), is_local(local, Side::Destination, false)])]
}

fn sent(carrier: Carrier, (family, local): (Family, IpAddr)) -> Vec<nftables::Rule> {
    vec![not_tracked(carrier, [is_local(local, Side::Source, false), is_node(family, Side::Destination, false)])]
}

fn by_pods(carrier: Carrier, (family, _): (Family, IpAddr)) -> Vec<nftables::Rule> {
    let from_pods = nftables::Match::InputLink { name: BRIDGE.into(), negated: false };
    match carrier {
        // Wherever it goes: it may be a node that is not known here any more, or not yet, and would get this node's address as source on its way.
        Carrier::Vxlan(_) => vec![dropped(carrier, [nftables::Match::Family(family), from_pods], BY_PODS)],
        Carrier::Fou(_) => vec![dropped(carrier, [from_pods, is_node(family, Side::Destination, false)], BY_PODS)],
    }
}

fn borrowed(carrier: Carrier, (family, local): (Family, IpAddr)) -> Vec<nftables::Rule> {
    let matches = [
        is_local(local, Side::Source, true),
        is_node(family, Side::Destination, false),
        is_node(family, Side::Source, true),
    ];
    vec![dropped(carrier, matches, BORROWED)]
}

fn arriving(carrier: Carrier, (family, local): (Family, IpAddr)) -> Vec<nftables::Rule> {
    vec![
        dropped(carrier, [is_node(family, Side::Source, true)], BY_OTHERS),
        // Another node's packet to another address of ours passes the first rule.
        dropped(carrier, [is_local(local, Side::Destination, true)], ELSEWHERE),
    ]
}

#[cfg(test)]
mod tests;
