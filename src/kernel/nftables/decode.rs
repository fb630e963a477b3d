//! Rules from the kernel's expressions: the reverse of [`encode`](super::encode).
//!
//! What is read is written again and compared: a rule that is not exactly as ours are written is a foreign one, so nothing can be
//! changed in a rule of ours without a difference.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use compact_str::{CompactString, format_compact};
use ipnet::IpNet;

use super::encode::{
    AUTHENTICATION, STATES, VXLAN_NUMBER, encapsulation, expressions, frame_field, icmp, length, loads, offset,
    to_bridge_group,
};
use super::expression::{Data, Expression, FIRST, VERDICT, base, compare, connection, fib, meta, nat, reject, tcp};
use super::object::Name;
use super::rule::{FrameField, Lookup, Mark, Match, Rule, Side, Statement, States, Verdict};
use super::wire::{data, is_made_up};
use crate::net::{Family, PortRange, Protocol};

/// Returns the rule with these expressions; `None` for one that was never written here.
pub(super) fn rule(read: &[Expression], comment: Option<&str>) -> Option<Rule> {
    let mut reader = Reader { rest: read, family: None, protocol: None, parts: Parts::default() };
    reader.read_all()?;
    let Parts { matches, statements, verdict } = reader.parts;
    let rule = Rule::with(matches, statements, verdict);
    if expressions(&rule) != read {
        return None;
    }
    Some(match comment {
        Some(comment) => rule.commented(comment),
        None => rule,
    })
}

/// The verdict with this code; `None` also where it leads to a chain that is part of a rule.
pub(super) fn plain(code: i32, chain: Option<&Name>) -> Option<Verdict> {
    if chain.is_some_and(|chain| is_made_up(chain.as_str())) {
        return None;
    }
    Some(match (code, chain) {
        (data::ACCEPT, None) => Verdict::Accept,
        (data::DROP, None) => Verdict::Drop,
        (data::RETURN, None) => Verdict::Return,
        (data::JUMP, Some(chain)) => Verdict::Jump(chain.clone()),
        (data::GOTO, Some(chain)) => Verdict::Goto(chain.clone()),
        _ => return None,
    })
}

#[derive(Default)]
struct Parts {
    matches: Vec<Match>,
    statements: Vec<Statement>,
    verdict: Option<Verdict>,
}

struct Reader<'a> {
    rest: &'a [Expression],
    /// The comparisons that were read for the matches behind it.
    family: Option<Family>,
    protocol: Option<u8>,
    parts: Parts,
}

impl<'a> Reader<'a> {
    fn read_all(&mut self) -> Option<()> {
        while let [first, rest @ ..] = self.rest {
            if self.parts.verdict.is_some() {
                return None;
            }
            self.read_one(first, rest)?;
        }
        Some(())
    }

    /// Reads what begins with this expression.
    fn read_one(&mut self, first: &'a Expression, rest: &'a [Expression]) -> Option<()> {
        match first {
            Expression::Meta { key, to: FIRST } => self.meta(*key, rest),
            Expression::Payload { base: base::NETWORK, offset, length, to: FIRST } => {
                self.address((*offset, *length), rest)
            }
            Expression::Payload { base: base::TRANSPORT, offset, to: FIRST, .. } => self.transport(*offset, rest),
            Expression::Connection { key: connection::STATE, direction: None, to: FIRST } => self.state(rest),
            Expression::Connection { key: connection::MARK, direction: None, to: FIRST } => {
                let (mark, negated, rest) = compared_mark(rest)?;
                self.condition(Match::ConnectionMark { mark, negated }, rest)
            }
            Expression::Connection { key: connection::DIRECTION, direction: None, to: FIRST } => match rest {
                [Expression::Compare { value, .. }, rest @ ..] if value.as_byte() == Some(connection::REPLY) => {
                    self.condition(Match::Answer, rest)
                }
                _ => None,
            },
            Expression::Connection { .. } => self.any_lookup(&Family::BOTH.map(Lookup::OriginalService)),
            Expression::Fib { result: fib::ADDRESS_TYPE, flags, to: FIRST } => self.address_type(*flags, rest),
            Expression::Immediate { to: FIRST, value } => self.immediate(value, rest),
            Expression::Limit { rate, seconds: 60, burst } => {
                self.condition(Match::Limit { per_minute: u32::try_from(*rate).ok()?, burst: *burst }, rest)
            }
            Expression::Log { group, prefix } => {
                self.statement(Statement::Log { group: *group, prefix: prefix.clone() }, rest)
            }
            Expression::Untrack => self.statement(Statement::Untrack, rest),
            Expression::Counter(name) => self.statement(Statement::Count(name.clone()), rest),
            Expression::Verdict { code, chain } => self.end(plain(*code, chain.as_ref())?, rest),
            Expression::Reject { kind: reject::ANY_FAMILY, code: reject::PORT_UNREACHABLE } => {
                self.end(Verdict::Reject, rest)
            }
            Expression::Masquerade { flags } => {
                self.end(Verdict::Masquerade { random_ports: random_ports(*flags)? }, rest)
            }
            _ => None,
        }
    }

    fn condition(&mut self, one: Match, rest: &'a [Expression]) -> Option<()> {
        self.parts.matches.push(one);
        self.rest = rest;
        Some(())
    }

    fn statement(&mut self, one: Statement, rest: &'a [Expression]) -> Option<()> {
        self.parts.statements.push(one);
        self.rest = rest;
        Some(())
    }

    fn end(&mut self, verdict: Verdict, rest: &'a [Expression]) -> Option<()> {
        self.parts.verdict = Some(verdict);
        self.rest = rest;
        Some(())
    }

    fn meta(&mut self, key: u32, rest: &'a [Expression]) -> Option<()> {
        match (key, rest) {
            (meta::FAMILY, [Expression::Compare { from: FIRST, operation: compare::EQUAL, value }, rest @ ..]) => {
                self.compared_family(Family::from_number(value.as_byte()?)?, rest)
            }
            (meta::PROTOCOL, [Expression::Compare { from: FIRST, operation, value }, rest @ ..])
                if value.as_byte() == Some(AUTHENTICATION) =>
            {
                self.condition(Match::Authenticated { negated: is_negated(*operation)? }, rest)
            }
            (meta::PROTOCOL, [Expression::Compare { from: FIRST, operation: compare::EQUAL, value }, rest @ ..]) => {
                self.compared_protocol(value.as_byte()?, rest)
            }
            (meta::PROTOCOL, _) => self.any_lookup(&[Lookup::DestinationProtocolPort]),
            (meta::MARK, [Expression::Lookup { .. }, ..]) => self.any_lookup(&[Lookup::Mark]),
            (meta::MARK, rest) => self.mark(rest),
            (meta::INPUT_LINK, [Expression::Compare { from: FIRST, operation, value }, rest @ ..]) => {
                let (name, negated) = (link(value)?, is_negated(*operation)?);
                self.condition(Match::InputLink { name, negated }, rest)
            }
            (meta::OUTPUT_LINK, [Expression::Compare { from: FIRST, operation, value }, rest @ ..]) => {
                let (name, negated) = (link(value)?, is_negated(*operation)?);
                self.condition(Match::OutputLink { name, negated }, rest)
            }
            (meta::ETHER_TYPE, [Expression::Compare { from: FIRST, operation, value }, rest @ ..]) => {
                self.condition(Match::EtherType { number: value.as_port()?, negated: is_negated(*operation)? }, rest)
            }
            (meta::INPUT_LINK, _) => {
                let with = FrameField::ALL.map(Lookup::InputLinkWith);
                self.any_lookup(&[&with[..], &[Lookup::InputLink]].concat())
            }
            (meta::OUTPUT_LINK, _) => self.any_lookup(&[Lookup::OutputLink]),
            (meta::INPUT_TYPE, _) => {
                let rest = self.rest.strip_prefix(to_bridge_group().as_slice())?;
                self.condition(Match::ToBridgeGroup, rest)
            }
            (meta::INPUT_BRIDGE, _) => self.any_lookup(&[Lookup::InputBridge]),
            _ => None,
        }
    }

    /// A comparison of the family is part of the match behind it if that needs one and had none before.
    fn compared_family(&mut self, family: Family, rest: &'a [Expression]) -> Option<()> {
        let is_needed = match rest {
            [Expression::Payload { base: base::NETWORK, .. }, ..] => true,
            [
                Expression::Meta { key: meta::PROTOCOL, .. },
                Expression::Compare { value, .. },
                Expression::Payload { base: base::TRANSPORT, .. },
                ..,
            ] => value.as_byte() == Some(icmp(family)),
            _ => false,
        };
        if !is_needed || self.family == Some(family) {
            return self.condition(Match::Family(family), rest);
        }
        self.family = Some(family);
        self.rest = rest;
        Some(())
    }

    fn compared_protocol(&mut self, number: u8, rest: &'a [Expression]) -> Option<()> {
        let is_needed = matches!(rest, [Expression::Payload { base: base::TRANSPORT, to: FIRST, .. }, ..]);
        if !is_needed || self.protocol == Some(number) {
            let family_of = |number_of: fn(Family) -> u8| Family::BOTH.into_iter().find(|it| number_of(*it) == number);
            let other = family_of(icmp).map(Match::Icmp).or_else(|| family_of(encapsulation).map(Match::Encapsulated));
            return self.condition(other.or_else(|| Protocol::from_number(number).map(Match::Protocol))?, rest);
        }
        self.protocol = Some(number);
        self.rest = rest;
        Some(())
    }

    fn address(&mut self, place: (u32, u32), rest: &'a [Expression]) -> Option<()> {
        let Some(family) = self.family else { return self.frame_address(base::NETWORK, place, rest) };
        let of = [Side::Source, Side::Destination]
            .into_iter()
            .find(|side| place == (offset(family, *side), length(family)))?;
        match rest {
            [
                Expression::Bitwise { from: FIRST, to: FIRST, mask, .. },
                Expression::Compare { from: FIRST, operation, value },
                rest @ ..,
            ] => {
                let range = IpNet::with_netmask(address(value)?, address(mask)?).ok()?;
                self.condition(Match::Address { of, range, negated: is_negated(*operation)? }, rest)
            }
            [Expression::Compare { from: FIRST, operation, value }, rest @ ..] => {
                let range = IpNet::from(address(value)?);
                self.condition(Match::Address { of, range, negated: is_negated(*operation)? }, rest)
            }
            _ => {
                let mut several = vec![
                    Lookup::Address(family, of),
                    Lookup::Addresses(family),
                    Lookup::DestinationService(family),
                    Lookup::ServiceItself(family),
                ];
                let bits = match rest {
                    [_, _, _, Expression::Bitwise { mask, .. }, ..] => address(mask).and_then(leading_bits),
                    _ => None,
                };
                several.extend(bits.map(|bits| Lookup::ServiceSource(family, bits)));
                self.any_lookup(&several)
            }
        }
    }

    /// Reads the comparison of a field of a frame that begins at this place.
    fn frame_address(&mut self, base: u32, (offset, length): (u32, u32), rest: &'a [Expression]) -> Option<()> {
        let load = Expression::Payload { base, offset, length, to: FIRST };
        let of = FrameField::ALL.into_iter().find(|field| frame_field(*field, 0) == load)?;
        let (range, rest) = match rest {
            [Expression::Bitwise { mask, .. }, Expression::Compare { value, .. }, rest @ ..] => {
                (IpNet::with_netmask(address(value)?, address(mask)?).ok()?, rest)
            }
            [Expression::Compare { value, .. }, rest @ ..] => (IpNet::from(address(value)?), rest),
            _ => return None,
        };
        self.condition(Match::FrameAddress { of, range }, rest)
    }

    fn transport(&mut self, offset: u32, rest: &'a [Expression]) -> Option<()> {
        let number = self.protocol?;
        if number == icmp(Family::V6) && self.family.is_none() {
            return match (offset, rest) {
                (0, [Expression::Compare { from: FIRST, value, .. }, rest @ ..]) => {
                    self.condition(Match::NeighborMessage(value.as_byte()?), rest)
                }
                _ => self.frame_address(base::TRANSPORT, (offset, 16), rest),
            };
        }
        match (offset, rest) {
            (tcp::FLAGS, [Expression::Bitwise { .. }, Expression::Compare { .. }, rest @ ..]) => {
                self.condition(Match::Opening, rest)
            }
            (VXLAN_NUMBER, [Expression::Compare { from: FIRST, value, .. }, rest @ ..]) => {
                let [a, b, c] = *value.bytes() else { return None };
                self.condition(Match::VxlanNumber(u32::from_be_bytes([0, a, b, c])), rest)
            }
            (0, [Expression::Compare { from: FIRST, value, .. }, rest @ ..]) => {
                if let Some(protocol) = Protocol::from_number(number) {
                    return self.condition(Match::SourcePort { protocol, port: value.as_port()? }, rest);
                }
                let family = self.family.filter(|family| icmp(*family) == number)?;
                self.condition(Match::IcmpKind { family, number: value.as_byte()? }, rest)
            }
            (
                _,
                [
                    Expression::Compare { value: first, .. },
                    Expression::Compare { operation: compare::AT_MOST, value, .. },
                    rest @ ..,
                ],
            ) => {
                let range = PortRange { first: first.as_port()?, last: value.as_port()? };
                self.condition(Match::DestinationPort { protocol: Protocol::from_number(number)?, range }, rest)
            }
            (_, [Expression::Compare { value, .. }, rest @ ..]) => {
                let port = value.as_port()?;
                let range = PortRange { first: port, last: port };
                self.condition(Match::DestinationPort { protocol: Protocol::from_number(number)?, range }, rest)
            }
            _ => self.any_lookup(&[Lookup::DestinationPort(Protocol::from_number(number)?)]),
        }
    }

    fn state(&mut self, rest: &'a [Expression]) -> Option<()> {
        let [Expression::Bitwise { mask, .. }, Expression::Compare { operation, .. }, rest @ ..] = rest else {
            return None;
        };
        let bits = mask.as_number()?;
        let states = STATES.iter().filter(|(_, bit)| bits & bit != 0).map(|(state, _)| *state);
        let states = states.reduce(States::or)?;
        self.condition(Match::State { states, negated: !is_negated(*operation)? }, rest)
    }

    fn address_type(&mut self, flags: u32, rest: &'a [Expression]) -> Option<()> {
        match rest {
            [Expression::LookupMany { .. }, rest @ ..] => self.condition(Match::ToMany, rest),
            [Expression::Compare { operation, .. }, rest @ ..] => {
                let of = if flags == fib::SOURCE { Side::Source } else { Side::Destination };
                self.condition(Match::HostAddress { of, negated: is_negated(*operation)? }, rest)
            }
            _ => None,
        }
    }

    fn mark(&mut self, rest: &'a [Expression]) -> Option<()> {
        if let [Expression::Bitwise { mask, xor, .. }, Expression::SetMeta { .. }, rest @ ..] = rest {
            let mark = Mark { value: xor.as_number()?, mask: !mask.as_number()? };
            return self.statement(Statement::SetMark(mark), rest);
        }
        let (mark, negated, rest) = compared_mark(rest)?;
        self.condition(Match::Mark { mark, negated }, rest)
    }

    fn immediate(&mut self, value: &Data, rest: &'a [Expression]) -> Option<()> {
        match rest {
            [Expression::SetMeta { .. }, rest @ ..] => {
                self.statement(Statement::SetMark(Mark { value: value.as_number()?, mask: u32::MAX }), rest)
            }
            [Expression::SetMss { .. }, rest @ ..] => self.statement(Statement::SetMss(value.as_port()?), rest),
            [Expression::SourceNat { flags, .. }, rest @ ..] => {
                let random_ports = random_ports(*flags)?;
                self.end(Verdict::SourceNat { to: address(value)?, random_ports }, rest)
            }
            _ => None,
        }
    }

    /// Reads one of these lookups, and what is done with its result.
    fn any_lookup(&mut self, those: &[Lookup]) -> Option<()> {
        those.iter().find_map(|lookup| self.lookup(*lookup))
    }

    fn lookup(&mut self, lookup: Lookup) -> Option<()> {
        let rest = self.rest.strip_prefix(loads(lookup).as_slice())?;
        let [Expression::Lookup { set, from: FIRST, to, inverted }, rest @ ..] = rest else { return None };
        let map = set.clone();
        match (to, rest) {
            (None, _) => self.condition(Match::InSet { lookup, set: map, negated: *inverted }, rest),
            (Some(VERDICT), _) => self.end(Verdict::Map { lookup, map }, rest),
            (Some(FIRST), [Expression::SetMeta { key: meta::MARK, .. }, rest @ ..]) => {
                self.statement(Statement::MarkFrom { lookup, map }, rest)
            }
            _ => None,
        }
    }
}

/// Reads the comparison of a mark that has been loaded, and whether it is negated; returns what follows.
fn compared_mark(expressions: &[Expression]) -> Option<(Mark, bool, &[Expression])> {
    match expressions {
        [Expression::Bitwise { mask, .. }, Expression::Compare { operation, value, .. }, rest @ ..] => {
            let mark = Mark { value: value.as_number()?, mask: mask.as_number()? };
            Some((mark, is_negated(*operation)?, rest))
        }
        [Expression::Compare { operation, value, .. }, rest @ ..] => {
            Some((Mark { value: value.as_number()?, mask: u32::MAX }, is_negated(*operation)?, rest))
        }
        _ => None,
    }
}

fn is_negated(operation: u32) -> Option<bool> {
    match operation {
        compare::EQUAL => Some(false),
        compare::UNEQUAL => Some(true),
        _ => None,
    }
}

fn random_ports(flags: u32) -> Option<bool> {
    match flags {
        0 => Some(false),
        nat::RANDOM_PORTS => Some(true),
        _ => None,
    }
}

/// A name that no zero ends is the beginning of names.
fn link(value: &Data) -> Option<CompactString> {
    let name = std::str::from_utf8(value.bytes().split(|byte| *byte == 0).next()?).ok()?;
    let is_beginning = value.bytes().len() == name.len();
    Some(if is_beginning { format_compact!("{name}+") } else { name.into() })
}

fn leading_bits(mask: IpAddr) -> Option<u8> {
    ipnet::ip_mask_to_prefix(mask).ok()
}

fn address(value: &Data) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value.bytes()) {
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    <[u8; 16]>::try_from(value.bytes()).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
}
