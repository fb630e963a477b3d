//! Rules as the kernel's expressions.
//!
//! A table of the family `inet` sees packets of both families and of all protocols, so a field is loaded only behind a comparison of
//! `meta nfproto` or `meta l4proto`; `nft` writes the same and does not print them. A rule compares each once, for its first match that
//! needs it. [`Match::Family`] and [`Match::Protocol`] are comparisons of their own, also where a match behind them needs the
//! same: so different rules have different expressions.

use std::net::IpAddr;

use ipnet::IpNet;

use super::expression::{
    Data, Expression, FIRST, VERDICT, base, compare, connection, fib, meta, nat, register, reject, tcp,
};
use super::rule::{FrameField, Lookup, Mark, Match, Rule, Side, Statement, States, Verdict};
use super::wire::data;
use crate::net::{Family, PortRange, Protocol};

/// Returns the expressions of a rule.
pub(super) fn expressions(rule: &Rule) -> Vec<Expression> {
    let mut writer = Writer { written: Vec::with_capacity(16), family: None, protocol: None };
    rule.matches().iter().for_each(|one| writer.condition(one));
    rule.statements().iter().for_each(|one| writer.statement(one));
    rule.verdict().into_iter().for_each(|verdict| writer.verdict(verdict));
    writer.written
}

/// The states of connections in the kernel (`NF_CT_STATE_BIT`).
pub(super) const STATES: [(States, u32); 5] =
    [(States::INVALID, 1), (States::ESTABLISHED, 2), (States::RELATED, 4), (States::NEW, 8), (States::UNTRACKED, 64)];

/// The protocol number of ICMP, and of ICMPv6.
pub(super) fn icmp(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 58,
    }
}

/// The protocol number of a packet of this family in another one.
pub(super) fn encapsulation(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 41,
    }
}

/// The protocol number of an Authentication Header.
pub(super) const AUTHENTICATION: u8 = 51;

/// Number of bytes of an address.
pub(super) fn length(family: Family) -> u32 {
    u32::from(family.host_bits()) / 8
}

/// Where an address stands in the header of its family.
pub(super) fn offset(family: Family, side: Side) -> u32 {
    match (family, side) {
        (Family::V4, Side::Source) => 12,
        (Family::V4, Side::Destination) => 16,
        (Family::V6, Side::Source) => 8,
        (Family::V6, Side::Destination) => 24,
    }
}

/// Loads what is looked up, field by field, each at the beginning of a register.
pub(super) fn loads(lookup: Lookup) -> Vec<Expression> {
    let protocol = |word| Expression::Meta { key: meta::PROTOCOL, to: register(word) };
    match lookup {
        Lookup::Address(family, side) => vec![address(family, side, 0)],
        Lookup::Addresses(family) => {
            vec![address(family, Side::Source, 0), address(family, Side::Destination, words(family))]
        }
        Lookup::DestinationService(family) => {
            let behind = words(family);
            vec![address(family, Side::Destination, 0), protocol(behind), port(behind + 1)]
        }
        Lookup::ServiceSource(family, bits) => {
            let source = words(family) + 2;
            let mut loads = loads(Lookup::DestinationService(family));
            loads.push(address(family, Side::Source, source));
            let (from, to) = (register(source), register(source));
            let xor = Data::zero(length(family) as usize);
            loads.push(Expression::Bitwise { from, to, mask: leading(family, bits), xor });
            loads
        }
        Lookup::ServiceItself(family) => {
            let mut loads = loads(Lookup::DestinationService(family));
            loads.push(address(family, Side::Destination, words(family) + 2));
            loads
        }
        Lookup::OriginalService(family) => {
            let behind = words(family);
            let key = match family {
                Family::V4 => connection::DESTINATION_IPV4,
                Family::V6 => connection::DESTINATION_IPV6,
            };
            vec![original(key, 0), protocol(behind), original(connection::DESTINATION_PORT, behind + 1)]
        }
        Lookup::DestinationProtocolPort => vec![protocol(0), port(1)],
        Lookup::DestinationPort(_) => vec![port(0)],
        Lookup::Mark => vec![Expression::Meta { key: meta::MARK, to: FIRST }],
        Lookup::InputLink => vec![Expression::Meta { key: meta::INPUT_LINK, to: FIRST }],
        Lookup::OutputLink => vec![Expression::Meta { key: meta::OUTPUT_LINK, to: FIRST }],
        Lookup::InputBridge => vec![Expression::Meta { key: meta::INPUT_BRIDGE, to: FIRST }],
        Lookup::InputLinkWith(field) => {
            vec![Expression::Meta { key: meta::INPUT_LINK, to: FIRST }, frame_field(field, LINK_WORDS)]
        }
    }
}

/// The mask of so many leading bits of an address.
fn leading(family: Family, bits: u8) -> Data {
    let all = IpAddr::from([0xff; 16]);
    let all = if family == Family::V4 { IpAddr::from([0xff; 4]) } else { all };
    octets(IpNet::new(all, bits.min(family.host_bits())).map_or(all, |range| range.netmask()))
}

/// Words of the name of a link.
const LINK_WORDS: u32 = 4;

/// Loads a field of a frame.
pub(super) fn frame_field(field: FrameField, word: u32) -> Expression {
    let (base, offset, length) = match field {
        FrameField::EtherSource => (base::LINK, 6, 6),
        FrameField::Source(family) => (base::NETWORK, offset(family, Side::Source), length(family)),
        FrameField::ArpEther => (base::NETWORK, 8, 6),
        FrameField::ArpSource => (base::NETWORK, 14, 4),
        FrameField::NeighborTarget => (base::TRANSPORT, 8, 16),
    };
    Expression::Payload { base, offset, length, to: register(word) }
}

/// Compares the type of the link, which says that there is a header of Ethernet, and the frame's destination.
pub(super) fn to_bridge_group() -> [Expression; 5] {
    let equal = |value| Expression::Compare { from: FIRST, operation: compare::EQUAL, value };
    let (mask, xor) = (Data::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]), Data::zero(6));
    [
        Expression::Meta { key: meta::INPUT_TYPE, to: FIRST },
        equal(Data::new(&ETHERNET.to_ne_bytes())),
        Expression::Payload { base: base::LINK, offset: 0, length: 6, to: FIRST },
        Expression::Bitwise { from: FIRST, to: FIRST, mask, xor },
        equal(Data::new(&[0x01, 0x80, 0xc2, 0, 0, 0])),
    ]
}

/// `ARPHRD_ETHER` (include/uapi/linux/if_arp.h).
const ETHERNET: u16 = 1;

/// Where the number of the network stands behind the header of UDP and the flags of VXLAN.
pub(super) const VXLAN_NUMBER: u32 = 12;

fn words(family: Family) -> u32 {
    length(family) / 4
}

fn address(family: Family, side: Side, word: u32) -> Expression {
    let (offset, length) = (offset(family, side), length(family));
    Expression::Payload { base: base::NETWORK, offset, length, to: register(word) }
}

/// The destination port stands at the same place in all protocols that have ports.
fn port(word: u32) -> Expression {
    Expression::Payload { base: base::TRANSPORT, offset: 2, length: 2, to: register(word) }
}

fn original(key: u32, word: u32) -> Expression {
    Expression::Connection { key, direction: Some(connection::ORIGINAL), to: register(word) }
}

/// The name of a link in a rule: whole, or the beginning of names, which has a `+` behind it, as with iptables.
fn links(name: &str) -> Data {
    name.strip_suffix('+').map_or_else(|| link(name), |beginning| Data::new(beginning.as_bytes()))
}

/// The name of a link as the kernel compares it: whole, filled up with zeros.
pub(super) fn link(name: &str) -> Data {
    let mut bytes = [0; 16];
    // The last byte stays zero: no link has a longer name.
    for (place, byte) in bytes.iter_mut().take(15).zip(name.as_bytes()) {
        *place = *byte;
    }
    Data::new(&bytes)
}

/// The value of an address.
pub(super) fn octets(address: std::net::IpAddr) -> Data {
    match address {
        std::net::IpAddr::V4(address) => Data::new(&address.octets()),
        std::net::IpAddr::V6(address) => Data::new(&address.octets()),
    }
}

struct Writer {
    written: Vec<Expression>,
    /// The comparisons that the rule has made already for its matches.
    family: Option<Family>,
    protocol: Option<u8>,
}

impl Writer {
    fn push(&mut self, expression: Expression) {
        self.written.push(expression);
    }

    fn compare(&mut self, operation: u32, value: Data) {
        self.push(Expression::Compare { from: FIRST, operation, value });
    }

    fn equal(&mut self, negated: bool, value: Data) {
        self.compare(if negated { compare::UNEQUAL } else { compare::EQUAL }, value);
    }

    fn meta(&mut self, key: u32) {
        self.push(Expression::Meta { key, to: FIRST });
    }

    fn mask(&mut self, mask: Data, xor: Data) {
        self.push(Expression::Bitwise { from: FIRST, to: FIRST, mask, xor });
    }

    fn compare_family(&mut self, family: Family) {
        self.meta(meta::FAMILY);
        self.equal(false, Data::new(&[family.number()]));
    }

    fn compare_protocol(&mut self, number: u8) {
        self.meta(meta::PROTOCOL);
        self.equal(false, Data::new(&[number]));
    }

    fn need_family(&mut self, family: Family) {
        if self.family != Some(family) {
            self.compare_family(family);
            self.family = Some(family);
        }
    }

    fn need_protocol(&mut self, number: u8) {
        if self.protocol != Some(number) {
            self.compare_protocol(number);
            self.protocol = Some(number);
        }
    }

    fn condition(&mut self, one: &Match) {
        match one {
            Match::Family(family) => self.compare_family(*family),
            Match::Address { of, range, negated } => self.address(*of, *range, *negated),
            Match::InSet { lookup, set, negated } => {
                self.load(*lookup);
                self.push(Expression::Lookup { set: set.clone(), from: FIRST, to: None, inverted: *negated });
            }
            Match::HostAddress { of, negated } => {
                self.address_type(*of);
                self.equal(*negated, Data::number(fib::LOCAL));
            }
            Match::ToMany => {
                self.address_type(Side::Destination);
                self.push(Expression::LookupMany { from: FIRST });
            }
            Match::Protocol(protocol) => self.compare_protocol(protocol.number()),
            Match::Icmp(family) => self.compare_protocol(icmp(*family)),
            Match::Encapsulated(family) => self.compare_protocol(encapsulation(*family)),
            Match::Authenticated { negated } => self.authentication(*negated),
            Match::IcmpKind { family, number } => {
                self.need_family(*family);
                self.transport_field(icmp(*family), 0, &[*number]);
            }
            Match::SourcePort { protocol, port } => self.transport_field(protocol.number(), 0, &port.to_be_bytes()),
            Match::DestinationPort { protocol, range } => self.port(*protocol, *range),
            Match::VxlanNumber(number) => {
                let [_, octets @ ..] = number.to_be_bytes();
                self.transport_field(Protocol::Udp.number(), VXLAN_NUMBER, &octets);
            }
            Match::Opening => {
                self.need_protocol(Protocol::Tcp.number());
                self.push(Expression::Payload { base: base::TRANSPORT, offset: tcp::FLAGS, length: 1, to: FIRST });
                // SYN is the second bit, RST the third.
                self.mask(Data::new(&[6]), Data::zero(1));
                self.equal(false, Data::new(&[2]));
            }
            Match::State { states, negated } => self.state(*states, *negated),
            Match::Answer => {
                self.push(Expression::Connection { key: connection::DIRECTION, direction: None, to: FIRST });
                self.equal(false, Data::new(&[connection::REPLY]));
            }
            Match::Mark { mark, negated } => {
                self.meta(meta::MARK);
                self.mark(*mark, *negated);
            }
            Match::ConnectionMark { mark, negated } => {
                self.push(Expression::Connection { key: connection::MARK, direction: None, to: FIRST });
                self.mark(*mark, *negated);
            }
            Match::InputLink { name, negated } => {
                self.meta(meta::INPUT_LINK);
                self.equal(*negated, links(name));
            }
            Match::OutputLink { name, negated } => {
                self.meta(meta::OUTPUT_LINK);
                self.equal(*negated, links(name));
            }
            Match::EtherType { number, negated } => {
                self.meta(meta::ETHER_TYPE);
                self.equal(*negated, Data::new(&number.to_be_bytes()));
            }
            Match::ToBridgeGroup => self.written.extend(to_bridge_group()),
            Match::FrameAddress { of, range } => {
                self.push(frame_field(*of, 0));
                self.within(*range, false);
            }
            Match::NeighborMessage(number) => self.transport_field(icmp(Family::V6), 0, &[*number]),
            Match::Limit { per_minute, burst } => {
                self.push(Expression::Limit { rate: u64::from(*per_minute), seconds: 60, burst: *burst });
            }
        }
    }

    fn authentication(&mut self, negated: bool) {
        self.meta(meta::PROTOCOL);
        self.equal(negated, Data::new(&[AUTHENTICATION]));
    }

    /// Compares a field behind the IP header, in packets of this protocol.
    fn transport_field(&mut self, protocol: u8, offset: u32, value: &[u8]) {
        self.need_protocol(protocol);
        let length = u32::try_from(value.len()).expect("fields are short");
        self.push(Expression::Payload { base: base::TRANSPORT, offset, length, to: FIRST });
        self.equal(false, Data::new(value));
    }

    fn address(&mut self, of: Side, range: IpNet, negated: bool) {
        let family = Family::from(range);
        self.need_family(family);
        self.push(address(family, of, 0));
        self.within(range, negated);
    }

    /// Compares an address that has been loaded.
    fn within(&mut self, range: IpNet, negated: bool) {
        let family = Family::from(range);
        if range.prefix_len() != family.host_bits() {
            self.mask(octets(range.netmask()), Data::zero(length(family) as usize));
        }
        self.equal(negated, octets(range.network()));
    }

    /// Compares a mark that has been loaded.
    fn mark(&mut self, Mark { value, mask }: Mark, negated: bool) {
        if mask != u32::MAX {
            self.mask(Data::number(mask), Data::zero(4));
        }
        self.equal(negated, Data::number(value));
    }

    fn address_type(&mut self, of: Side) {
        let flags = match of {
            Side::Source => fib::SOURCE,
            Side::Destination => fib::DESTINATION,
        };
        self.push(Expression::Fib { result: fib::ADDRESS_TYPE, flags, to: FIRST });
    }

    fn port(&mut self, protocol: Protocol, range: PortRange) {
        self.need_protocol(protocol.number());
        self.push(port(0));
        if range.first == range.last {
            return self.equal(false, Data::new(&range.first.to_be_bytes()));
        }
        self.compare(compare::AT_LEAST, Data::new(&range.first.to_be_bytes()));
        self.compare(compare::AT_MOST, Data::new(&range.last.to_be_bytes()));
    }

    fn state(&mut self, states: States, negated: bool) {
        self.push(Expression::Connection { key: connection::STATE, direction: None, to: FIRST });
        let bits = STATES.iter().filter(|(state, _)| states.includes(*state)).fold(0, |bits, (_, bit)| bits | bit);
        self.mask(Data::number(bits), Data::zero(4));
        self.equal(!negated, Data::zero(4));
    }

    fn load(&mut self, lookup: Lookup) {
        match lookup {
            Lookup::Address(family, _)
            | Lookup::Addresses(family)
            | Lookup::DestinationService(family)
            | Lookup::ServiceItself(family)
            | Lookup::ServiceSource(family, _) => {
                self.need_family(family);
            }
            Lookup::DestinationPort(protocol) => self.need_protocol(protocol.number()),
            // Connection tracking knows the family of a connection itself, and a name is a name, as a mark is a mark.
            Lookup::OriginalService(_)
            | Lookup::DestinationProtocolPort
            | Lookup::Mark
            | Lookup::InputLink
            | Lookup::OutputLink
            | Lookup::InputBridge
            | Lookup::InputLinkWith(_) => {}
        }
        self.written.extend(loads(lookup));
    }

    fn statement(&mut self, one: &Statement) {
        let set_mark = Expression::SetMeta { key: meta::MARK, from: FIRST };
        match one {
            Statement::Count(name) => self.push(Expression::Counter(name.clone())),
            Statement::Log { group, prefix } => self.push(Expression::Log { group: *group, prefix: prefix.clone() }),
            Statement::SetMark(Mark { value, mask: u32::MAX }) => {
                self.push(Expression::Immediate { to: FIRST, value: Data::number(*value) });
                self.push(set_mark);
            }
            Statement::SetMark(Mark { value, mask }) => {
                self.meta(meta::MARK);
                self.mask(Data::number(!mask), Data::number(value & mask));
                self.push(set_mark);
            }
            Statement::Untrack => self.push(Expression::Untrack),
            Statement::SetMss(size) => {
                self.push(Expression::Immediate { to: FIRST, value: Data::new(&size.to_be_bytes()) });
                self.push(Expression::SetMss { from: FIRST });
            }
            Statement::MarkFrom { lookup, map } => {
                self.load(*lookup);
                let (set, to) = (map.clone(), Some(FIRST));
                self.push(Expression::Lookup { set, from: FIRST, to, inverted: false });
                self.push(set_mark);
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let flags = |random_ports: bool| if random_ports { nat::RANDOM_PORTS } else { 0 };
        let expression = match verdict {
            Verdict::Reject => Expression::Reject { kind: reject::ANY_FAMILY, code: reject::PORT_UNREACHABLE },
            Verdict::Map { lookup, map } => {
                self.load(*lookup);
                Expression::Lookup { set: map.clone(), from: FIRST, to: Some(VERDICT), inverted: false }
            }
            Verdict::Masquerade { random_ports } => Expression::Masquerade { flags: flags(*random_ports) },
            Verdict::SourceNat { to, random_ports } => {
                self.push(Expression::Immediate { to: FIRST, value: octets(*to) });
                let family = u32::from(Family::from(*to).number());
                Expression::SourceNat { family, from: FIRST, flags: flags(*random_ports) }
            }
            Verdict::Accept | Verdict::Drop | Verdict::Return | Verdict::Jump(_) | Verdict::Goto(_) => {
                let (code, chain) = plain(verdict).expect("these verdicts are plain");
                Expression::Verdict { code, chain: chain.cloned() }
            }
        };
        self.push(expression);
    }
}

/// The code of a verdict, and the chain that it names; `None` for one that takes more than that.
pub(super) fn plain(verdict: &Verdict) -> Option<(i32, Option<&super::object::Name>)> {
    Some(match verdict {
        Verdict::Accept => (data::ACCEPT, None),
        Verdict::Drop => (data::DROP, None),
        Verdict::Return => (data::RETURN, None),
        Verdict::Jump(chain) => (data::JUMP, Some(chain)),
        Verdict::Goto(chain) => (data::GOTO, Some(chain)),
        Verdict::Reject | Verdict::Map { .. } | Verdict::Masquerade { .. } | Verdict::SourceNat { .. } => return None,
    })
}
