//! How packets to addresses in tunnel mode find their virtual services: by marks, and a table of routes that makes the addresses local for marked
//! packets alone.
//!
//! An address in tunnel mode is no local route of the table `local`, as other service addresses are: pods of this node answer with it as source, and
//! the kernel takes no packet from a pod whose source is an address of the host (martians). So it is local in a table of its own, which
//! packets with a mark look into. That is every packet to the address: those to a port in tunnel mode have the mark of its virtual service, all
//! others (ports that are served with NAT, ICMP) the mark [`OTHER_PORTS`], which no virtual service has.
//!
//! ```text
//! ip rule add not fwmark 0/0x3fff lookup 78 priority 32764
//! ip route add local 203.0.113.7 dev kube-dummy-if table 78
//! ```
//!
//! The table has these addresses only, so that packets which other programs mark with the same bits go on as if the rule were not there. kube-router has a rule
//! for each mark, and a default route in the table.
//!
//! IPVS compares all 32 bits of a mark, so packets to ports in tunnel mode lose the bits of others. Others keep them.
//!
//! A client's segments get 20 bytes longer (IPv6: 40) on their way to the pod: answers that accept a connection say so.
//!
//! The packet that IPVS puts around one keeps its mark, and so does what an overlay between the nodes makes of both. Where that is a datagram of UDP (`fou`, VXLAN), IPVS
//! would find its virtual service by that mark, and tunnel what it has tunnelled; `ipip` has it not, because IPVS looks at no packet of protocol 4 or 41. The same holds of a packet
//! that IPVS translates: one of a connection that began before its port came into tunnel mode. So the marks are taken away from all that the node sends to an address which
//! is not in tunnel mode, before any overlay has it. With WireGuard between the nodes no packet has such a mark: Services are served with NAT, because a peer takes no answer from a service address
//! (`Config::serves_through_tunnels`). An overlay of another kind needs no rule more, as long as it does not mark packets with these bits itself. Marks of others, by which an operator may route or shape what the node sends, stay: all that no virtual service has, in 32 bits. Without this rule
//! IPVS would take packets with one of these for its own.
//!
//! iptables: the cost of a packet to another address does not grow with Services, that of one to an address in tunnel mode grows by a rule for each port in
//! tunnel mode, and so does that of one with a mark which the node sends elsewhere. (ipset's `skbinfo` would be one rule, and one more kernel module that a host may lack.)
//!
//! ```text
//! -A PREROUTING -m set --match-set kube-router-dsr dst -j KUBE-ROUTER-DSR
//! -A PREROUTING -m set --match-set kube-router-dsr src -j KUBE-ROUTER-DSR-MSS
//! -A OUTPUT -m set --match-set kube-router-dsr dst -j KUBE-ROUTER-DSR
//! -A OUTPUT -m mark ! --mark 0x0/0x3fff -m set ! --match-set kube-router-dsr dst -j KUBE-ROUTER-DSR-SENT
//! -A KUBE-ROUTER-DSR -j MARK --set-xmark 0x3fff/0x3fff
//! -A KUBE-ROUTER-DSR -d 203.0.113.7/32 -p tcp -m multiport --dports 80 -j MARK --set-xmark 0x35c6/0xffffffff
//! -A KUBE-ROUTER-DSR-MSS -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440
//! -A KUBE-ROUTER-DSR-SENT -m mark --mark 0x35c6 -j MARK --set-xmark 0x0/0xffffffff
//! ```
//!
//! With nftables:
//!
//! ```text
//! chain dsr_in { type filter hook prerouting priority mangle; policy accept;
//!     ip daddr @dsr4 meta mark set meta mark & 0xffffc000 | 0x3fff
//!     meta mark set ip daddr . meta l4proto . th dport map @dsr_marks4
//!     ip saddr @dsr4 tcp flags & (syn | rst) == syn tcp option maxseg size set 1440 }
//! chain dsr_out { type route hook output priority mangle; policy accept; … the first two …
//!     meta mark & 0x3fff == 0 accept
//!     meta mark @dsr_given ip daddr != @dsr4 meta mark set 0 }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::kernel::iptables::rule::{IpProtocol, SetSides, Side};
use crate::kernel::iptables::{Match, Piece, Rule, Rules, Table, Verdict};
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::nftables::rule::Mark;
use crate::kernel::nftables::{self, Base, BaseKind, Chain, Content, Fields, Hook, Key, Kind, Lookup, Object, SetSpec};
use crate::kernel::rule::{Packets, PolicyRule};
use crate::net::{Family, PerFamily, PortRange, Protocol};
use crate::proxy::guard;
use crate::proxy::names::{
    CHAIN_DSR, CHAIN_DSR_MSS, CHAIN_DSR_SENT, DSR_TABLE, NFT_DSR_GIVEN, NFT_DSR_IN, NFT_DSR_OUT, Set,
};

use super::packet_marks::{MASK, OTHER_PORTS};

/// Of the table mangle.
const PRIORITY: i32 = -150;

/// Packets that have a mark of these bits.
const MARKED: Match = Match::Mark { mark: Mark { value: 0, mask: MASK }, negated: true };

/// The smallest maximum segment size that is announced (RFC 9293 3.7.1, RFC 8200 5): a link with a smaller MTU is no link of clients.
const SMALLEST: PerFamily<u16> = PerFamily { v4: 536, v6: 1220 };

/// Returns the rule that leads marked packets to the table of addresses in tunnel mode.
pub fn policy_rule(family: Family) -> PolicyRule {
    PolicyRule { family, place: DSR_TABLE, packets: Packets::NotMarked { value: 0, mask: MASK } }
}

/// Returns the maximum segment size that leaves room for the headers of both packets, on a path of this MTU.
pub fn segment_size(family: Family, mtu: u32) -> u16 {
    // Address headers of the packet and of the one around it, and TCP's.
    let headers = match family {
        Family::V4 => 20 + 20 + 20,
        Family::V6 => 40 + 40 + 20,
    };
    u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX).max(*SMALLEST.of(family))
}

/// Returns the chains and the jumps to them, of one family, for these service ports and their marks.
pub fn rules<'a>(
    family: Family,
    marks: impl IntoIterator<Item = (&'a ServiceKey, u32)>,
    segment_size: u16,
) -> BTreeMap<Piece, Rules> {
    let opening = [Match::Protocol(IpProtocol::Transport(Protocol::Tcp)), Match::Opening];
    let segments = vec![Rule::new(opening, Verdict::SetMss(segment_size))];
    let set = Set::TunnelAddresses.name(family);
    let jump = |side, to: &str| {
        Rules(vec![Rule::new([Match::in_set(&set, SetSides::Address(side))], Verdict::Jump(to.into()))])
    };
    let elsewhere = Match::not_in_set(&set, SetSides::Address(Side::Destination));
    let sent = Rule::new([MARKED, elsewhere], Verdict::Jump(CHAIN_DSR_SENT.into()));
    let marks: Vec<(&ServiceKey, u32)> = marks.into_iter().collect();
    let table = Table::Mangle;
    let from = |from: &str, to: &str| Piece::Jump { family, table, from: from.into(), to: to.into() };
    BTreeMap::from([
        (unmarking_chain(family), unmarking(marks.iter().map(|(_, mark)| *mark))),
        (marking_chain(family), marking(marks)),
        (Piece::Chain { family, table, chain: CHAIN_DSR_MSS.into() }, Rules(segments)),
        (from("PREROUTING", CHAIN_DSR), jump(Side::Destination, CHAIN_DSR)),
        (from("PREROUTING", CHAIN_DSR_MSS), jump(Side::Source, CHAIN_DSR_MSS)),
        (from("OUTPUT", CHAIN_DSR), jump(Side::Destination, CHAIN_DSR)),
        (from("OUTPUT", CHAIN_DSR_SENT), Rules(vec![sent])),
    ])
}

/// Returns the rules that mark packets, for service ports of one family and their marks.
pub fn marking<'a>(marks: impl IntoIterator<Item = (&'a ServiceKey, u32)>) -> Rules {
    let others = Verdict::SetMark(Mark { value: OTHER_PORTS, mask: MASK });
    let of_ports = marks.into_iter().filter_map(|(key, mark)| of_port(key, mark));
    Rules([Rule::new([], others)].into_iter().chain(of_ports).collect())
}

/// Returns the rules that take these marks away from packets that IPVS sends on to endpoints.
pub fn unmarking(marks: impl IntoIterator<Item = u32>) -> Rules {
    let marks: BTreeSet<u32> = marks.into_iter().collect();
    let none = Mark { value: 0, mask: u32::MAX };
    let marked = |value| Match::Mark { mark: Mark { value, mask: u32::MAX }, negated: false };
    Rules(marks.into_iter().map(|mark| Rule::new([marked(mark)], Verdict::SetMark(none))).collect())
}

/// Returns the rule that gives packets to a service port this mark.
pub fn of_port(key: &ServiceKey, mark: u32) -> Option<Rule> {
    let ServiceKey::Address { address, protocol, port } = *key else { return None };
    let matches = [
        Match::Destination { range: Family::host_prefix(address), negated: false },
        Match::Protocol(IpProtocol::Transport(protocol)),
        Match::Ports([PortRange { first: port, last: port }].into()),
    ];
    Some(Rule::new(matches, Verdict::SetMark(Mark { value: mark, mask: u32::MAX })))
}

/// Returns the mark that a rule which kube-router left gives to packets, and the address, protocol and port of these.
pub fn left_mark(piece: &Piece) -> Option<(ServiceKey, u32)> {
    let Piece::Leftover { table: Table::Mangle, rule, .. } = piece else { return None };
    match (rule.matches(), rule.verdict()) {
        (
            [
                Match::Destination { range, negated: false },
                Match::Protocol(_),
                Match::Port { protocol, side: Side::Destination, port },
            ],
            Some(Verdict::SetMark(Mark { value, .. })),
        ) => Some((ServiceKey::Address { address: range.addr(), protocol: *protocol, port: *port }, *value)),
        _ => None,
    }
}

/// Returns the sets, maps and chains in our table of nf_tables, with the segment size of each family that has addresses in tunnel mode.
pub fn in_table(segment_sizes: PerFamily<Option<u16>>) -> BTreeMap<Object, Content> {
    use nftables::{Match, Rule, Statement};
    let mut found = BTreeMap::new();
    let (mut entering, mut own) = (Vec::new(), Vec::new());
    let (mut marks, mut segments, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    for (family, size) in segment_sizes.iter() {
        let Some(size) = *size else { continue };
        found.extend([Set::TunnelAddresses, Set::TunnelPorts].map(|set| guard::table_set(set, family)));
        let (addresses, map) = (Set::TunnelAddresses.in_table(family), Set::TunnelPorts.in_table(family));
        let is_in_or_not =
            |side, negated| Match::InSet { lookup: Lookup::Address(family, side), set: addresses.clone(), negated };
        let is_in = |side| is_in_or_not(side, false);
        let others = Statement::SetMark(Mark { value: OTHER_PORTS, mask: MASK });
        marks.push(Rule::with([is_in(Side::Destination)], [others], None));
        let lookup = Lookup::DestinationService(family);
        marks.push(Rule::with([], [Statement::MarkFrom { lookup, map }], None));
        segments.push(Rule::with([is_in(Side::Source), Match::Opening], [Statement::SetMss(size)], None));
        let marked = Match::InSet { lookup: Lookup::Mark, set: NFT_DSR_GIVEN.into(), negated: false };
        let none = Statement::SetMark(Mark { value: 0, mask: u32::MAX });
        sent.push(Rule::with([marked, is_in_or_not(Side::Destination, true)], [none], None));
    }
    if marks.is_empty() {
        return found;
    }
    entering.extend(marks.iter().cloned().chain(segments));
    let has_none = Match::Mark { mark: Mark { value: 0, mask: MASK }, negated: false };
    let unmarked = Rule::new([has_none], nftables::Verdict::Accept);
    own.extend(marks.into_iter().chain([unmarked]).chain(sent));
    let chain = |kind, hook, rules| {
        let base = Some(Base { kind, hook, priority: PRIORITY });
        Content::Chain(Arc::new(Chain { base, rules }))
    };
    let of_marks = SetSpec { fields: Fields::Mark, kind: Kind::Set, intervals: false };
    found.insert(Object::Set(NFT_DSR_GIVEN.into()), Content::Set(of_marks));
    found.insert(Object::Chain(NFT_DSR_IN.into()), chain(BaseKind::Filter, Hook::Prerouting, entering));
    found.insert(Object::Chain(NFT_DSR_OUT.into()), chain(BaseKind::Route, Hook::Output, own));
    found
}

/// Returns the marks that a chain of iptables gives to packets, by address, protocol and port.
pub fn marks_of(rules: &Rules) -> impl Iterator<Item = (ServiceKey, u32)> {
    rules.0.iter().filter_map(|rule| match (rule.matches(), rule.verdict()) {
        (
            [
                Match::Destination { range, negated: false },
                Match::Protocol(IpProtocol::Transport(protocol)),
                Match::Ports(ports),
            ],
            Some(Verdict::SetMark(Mark { value, .. })),
        ) => {
            let (address, port) = (range.addr(), ports.first()?.first);
            Some((ServiceKey::Address { address, protocol: *protocol, port }, *value))
        }
        _ => None,
    })
}

/// Returns the chain of iptables that marks packets of a family.
pub fn marking_chain(family: Family) -> Piece {
    Piece::Chain { family, table: Table::Mangle, chain: CHAIN_DSR.into() }
}

/// Returns the element of our table of nf_tables by which packets that IPVS sends on to endpoints lose this mark.
pub fn given_mark(mark: u32) -> Object {
    Object::Element(NFT_DSR_GIVEN.into(), Key::Mark(mark))
}

/// Returns the mark of such an element.
pub fn of_given_mark(object: &Object) -> Option<u32> {
    match object {
        Object::Element(set, Key::Mark(mark)) if set.as_str() == NFT_DSR_GIVEN => Some(*mark),
        _ => None,
    }
}

/// Returns the chain of iptables that takes the marks of a family away from packets that IPVS sends on to endpoints.
pub fn unmarking_chain(family: Family) -> Piece {
    Piece::Chain { family, table: Table::Mangle, chain: CHAIN_DSR_SENT.into() }
}

/// Returns whether a piece of rules is one of these.
pub fn is_rule(piece: &Piece) -> bool {
    const ALL: [&str; 3] = [CHAIN_DSR, CHAIN_DSR_MSS, CHAIN_DSR_SENT];
    match piece {
        Piece::Chain { chain, .. } => ALL.contains(&chain.as_str()),
        Piece::Jump { to, .. } => ALL.contains(&to.as_str()),
        Piece::Leftover { .. } => false,
    }
}

/// The same of chains in our table of nf_tables.
pub fn is_chain(object: &Object) -> bool {
    matches!(object, Object::Chain(name) if [NFT_DSR_IN, NFT_DSR_OUT].contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_leave_room_for_both_headers() {
        let sizes = |mtu| Family::BOTH.map(|family| segment_size(family, mtu));
        assert_eq!(sizes(1500), [1440, 1400]);
        assert_eq!(sizes(9000), [8940, 8900]);
        assert_eq!(sizes(100), [536, 1220], "no client could work with less");
        assert_eq!(sizes(u32::MAX), [u16::MAX; 2]);
    }

    #[test]
    fn each_service_port_has_its_mark_and_all_else_at_its_address_the_one_that_nobody_has() {
        let key = |address: &str| ServiceKey::Address {
            address: address.parse().expect("an address"),
            protocol: Protocol::Tcp,
            port: 80,
        };
        for (family, address, prefix, set) in [
            (Family::V4, "203.0.113.7", "203.0.113.7/32", "kube-router-dsr"),
            (Family::V6, "2001:db8::7", "2001:db8::7/128", "inet6:kube-router-dsr"),
        ] {
            let key = key(address);
            let rules = rules(family, [(&key, 13766)], 1440);
            let texts = |piece: Piece| rules[&piece].0.iter().map(ToString::to_string).collect::<Vec<_>>();
            let table = Table::Mangle;
            let chain = |chain: &str| Piece::Chain { family, table, chain: chain.into() };
            let expected = [
                "-j MARK --set-xmark 0x3fff/0x3fff".to_owned(),
                format!("-d {prefix} -p tcp -m multiport --dports 80 -j MARK --set-xmark 0x35c6/0xffffffff"),
            ];
            assert_eq!(texts(chain("KUBE-ROUTER-DSR")), expected);
            let segments = "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440";
            assert_eq!(texts(chain("KUBE-ROUTER-DSR-MSS")), [segments]);
            let sent = "-m mark --mark 0x35c6 -j MARK --set-xmark 0x0/0xffffffff";
            assert_eq!(texts(chain("KUBE-ROUTER-DSR-SENT")), [sent], "marks of others stay");
            let to = "KUBE-ROUTER-DSR-SENT";
            let jump = Piece::Jump { family, table, from: "OUTPUT".into(), to: to.into() };
            let elsewhere = format!("-m mark ! --mark 0x0/0x3fff -m set ! --match-set {set} dst -j {to}");
            assert_eq!(texts(jump), [elsewhere], "IPVS also sends on what it translates");
            for (from, side, to) in [
                ("PREROUTING", "dst", "KUBE-ROUTER-DSR"),
                ("OUTPUT", "dst", "KUBE-ROUTER-DSR"),
                ("PREROUTING", "src", "KUBE-ROUTER-DSR-MSS"),
            ] {
                let jump = Piece::Jump { family, table, from: from.into(), to: to.into() };
                assert_eq!(texts(jump), [format!("-m set --match-set {set} {side} -j {to}")]);
            }
        }
    }

    #[test]
    fn in_a_table_rules_are_of_the_families_in_use_and_do_not_grow_with_services() {
        let count = |sizes| {
            let table = in_table(sizes);
            let rules = |name: &str| match table.get(&Object::Chain(name.into())) {
                Some(Content::Chain(chain)) => chain.rules.len(),
                _ => 0,
            };
            (table.len(), rules(NFT_DSR_IN), rules(NFT_DSR_OUT))
        };
        assert_eq!(count(PerFamily { v4: None, v6: None }), (0, 0, 0));
        assert_eq!(count(PerFamily { v4: Some(1440), v6: None }), (5, 3, 4));
        assert_eq!(count(PerFamily { v4: Some(1440), v6: Some(1400) }), (7, 6, 7));
        let given = given_mark(13766);
        assert_eq!(of_given_mark(&given), Some(13766));
        for family in Family::BOTH {
            let map = Object::Element(Set::TunnelPorts.in_table(family), Key::Mark(0));
            assert!(given < map, "a mark is taken away before any packet is given it");
        }
    }

    #[test]
    fn rules_of_an_earlier_version_that_take_marks_away_stay_while_not_all_is_known() {
        use nftables::{Match, Rule, Statement};
        let Content::Chain(now) =
            in_table(PerFamily { v4: Some(1440), v6: None })[&Object::Chain(NFT_DSR_OUT.into())].clone()
        else {
            panic!("it is a chain")
        };
        let marked = Match::Mark { mark: Mark { value: 3, mask: u32::MAX }, negated: false };
        let none = Statement::SetMark(Mark { value: 0, mask: u32::MAX });
        let former = Rule::with([marked, Match::Family(Family::V4), Match::Encapsulated(Family::V4)], [none], None);
        let with = |rules: Vec<Rule>| Content::Chain(Arc::new(Chain { base: now.base, rules }));
        let before = with(now.rules.iter().take(3).cloned().chain([former.clone()]).collect());
        let grown = before.grown(&with(now.rules.clone()));
        assert_eq!(grown, with(now.rules.iter().cloned().chain([former]).collect()));
    }
}
