//! Trace of a packet through a table of nf_tables: its objects as values, evaluated as the kernel evaluates them.
//!
//! Only what our rules use is understood; anything else fails the test, so that a new match gets its meaning here before it
//! goes unnoticed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice::firewall::nftables::desired::{self, elements_of};
use sluice::firewall::verdict::{Packet, Traffic};
use sluice::kernel::iptables::rule::{Side, States};
use sluice::kernel::nftables::{
    Chain, Content, Fields, Hook, Key, Kind, Lookup, Match, Name, Object, Rule, SetSpec, Statement, Verdict,
};
use sluice::net::Family;

use super::chains::State;

/// The mark of some port in tunnel mode.
pub const TUNNEL_MARK: u32 = 4711;

/// A table, and what else its rules look at.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    pub table: &'a desired::Table,
    /// The addresses of the host itself.
    pub local: &'a BTreeSet<IpAddr>,
}

/// Verdict on a packet, with what it met on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traced {
    pub fate: Fate,
    pub met: Met,
}

/// Objects that a packet met on its way.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Met {
    /// The counters that counted it, in order.
    pub counted: Vec<Name>,
    /// The number of rules that were evaluated, each as far as its first match that does not hold: that is what it costs.
    pub rules: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Passes,
    Rejected,
    Dropped,
}

/// Result of one chain.
enum Outcome {
    Accepted,
    Refused(Fate),
    /// The chain came to its end, or returned.
    Returned,
}

impl Table<'_> {
    /// Follows a packet through all base chains of a hook, in the order of their priorities.
    pub fn trace(&self, hook: Hook, packet: &Packet, state: State) -> Traced {
        let mut bases: Vec<(i32, &Name)> = self
            .table
            .iter()
            .filter_map(|(object, content)| match (object, content) {
                (Object::Chain(name), Content::Chain(chain)) => {
                    chain.base.filter(|base| base.hook == hook).map(|base| (base.priority, name))
                }
                _ => None,
            })
            .collect();
        bases.sort();
        let mut met = Met::default();
        for (_, name) in bases {
            if let Outcome::Refused(fate) = self.chain(name, (packet, state), &mut met, 0) {
                return Traced { fate, met };
            }
        }
        Traced { fate: Fate::Passes, met }
    }

    pub fn passes(&self, hook: Hook, packet: &Packet, state: State) -> bool {
        self.trace(hook, packet, state).fate == Fate::Passes
    }

    fn chain(&self, name: &Name, packet: (&Packet, State), met: &mut Met, depth: usize) -> Outcome {
        assert!(depth < 16, "the kernel follows no more than 16 jumps: {name}");
        let Some(Content::Chain(chain)) = self.table.get(&Object::Chain(name.clone())) else {
            panic!("a jump to chain {name}, which does not exist");
        };
        for rule in &chain.rules {
            met.rules += 1;
            if !rule.matches().iter().all(|one| self.holds(one, packet)) {
                continue;
            }
            for statement in rule.statements() {
                match statement {
                    Statement::Count(counter) => met.counted.push(counter.clone()),
                    Statement::Log { group, .. } => assert_eq!(*group, 100),
                    other => panic!("{other:?} is a statement that this reader does not know"),
                }
            }
            let verdict = match rule.verdict() {
                Some(Verdict::Map { lookup, map }) => self.mapped(*lookup, map, packet.0),
                verdict => verdict,
            };
            match verdict {
                None => {}
                Some(Verdict::Accept) => return Outcome::Accepted,
                Some(Verdict::Drop) => return Outcome::Refused(Fate::Dropped),
                Some(Verdict::Reject) => return Outcome::Refused(Fate::Rejected),
                Some(Verdict::Return) => return Outcome::Returned,
                Some(Verdict::Jump(to)) => match self.chain(to, packet, met, depth + 1) {
                    Outcome::Returned => {}
                    outcome => return outcome,
                },
                Some(Verdict::Goto(to)) => return self.chain(to, packet, met, depth + 1),
                Some(other) => panic!("{other:?} is a verdict that this reader does not know"),
            }
        }
        Outcome::Returned
    }

    fn holds(&self, one: &Match, (packet, state): (&Packet, State)) -> bool {
        let family = Family::from(packet.destination);
        let at = |side: &Side| match side {
            Side::Source => packet.source,
            Side::Destination => packet.destination,
        };
        match one {
            Match::Family(wanted) => *wanted == family,
            Match::Address { of, range, negated } => {
                Family::from(*range) == family && range.contains(&at(of)) != *negated
            }
            Match::InSet { lookup, set, negated } => {
                family_of(*lookup).is_none_or(|wanted| wanted == family)
                    && self.found(*lookup, set, Kind::Set, packet).is_some() != *negated
            }
            Match::HostAddress { of, negated } => self.local.contains(&at(of)) != *negated,
            Match::ToMany => match packet.destination {
                // Without routes, so that no broadcast address of a network is known.
                IpAddr::V4(address) => address.is_multicast() || address.is_broadcast() || address.is_unspecified(),
                IpAddr::V6(address) => address.is_multicast(),
            },
            Match::Protocol(wanted) => {
                matches!(packet.traffic, Traffic::Port { protocol, .. } if protocol == *wanted)
            }
            Match::Icmp(wanted) => *wanted == family && matches!(packet.traffic, Traffic::Icmp { .. }),
            Match::Encapsulated(wanted) => *wanted == family && packet.traffic == Traffic::Tunnel,
            Match::IcmpKind { family: wanted, number } => {
                *wanted == family && packet.traffic == Traffic::Icmp { kind: *number }
            }
            Match::DestinationPort { protocol: wanted, range } => match packet.traffic {
                Traffic::Port { protocol, port } => protocol == *wanted && (range.first..=range.last).contains(&port),
                Traffic::Icmp { .. } | Traffic::Tunnel => false,
            },
            // Packets here come from ports that no speaker has, without a header of IPsec.
            Match::SourcePort { .. } => false,
            Match::Authenticated { negated } => *negated,
            Match::VxlanNumber(_) => panic!("packets here say nothing of what is inside UDP"),
            Match::Opening => panic!("packets here say nothing of the flags of TCP"),
            Match::State { states, negated } => {
                let own = match state {
                    State::New => States::NEW,
                    State::Established | State::Tunnelled => States::ESTABLISHED,
                    State::Invalid => States::INVALID,
                };
                (states.or(own) == *states) != *negated
            }
            // Where it matters, packets come in by the bridge of the pods, and leave by it.
            Match::InputLink { name, negated } | Match::OutputLink { name, negated } => {
                (name == "kube-bridge") != *negated
            }
            Match::Answer => panic!("packets here say nothing of who opened a connection"),
            Match::Limit { .. } => true,
            // No connection has one.
            Match::ConnectionMark { mark, negated } => (mark.value == 0) != *negated,
            Match::Mark { mark, negated } => {
                let own = if state == State::Tunnelled { TUNNEL_MARK } else { 0 };
                (own & mark.mask == mark.value) != *negated
            }
            // Frames are for tables of the family bridge, whose contents have tests of their own.
            Match::EtherType { .. } | Match::ToBridgeGroup | Match::FrameAddress { .. } | Match::NeighborMessage(_) => {
                panic!("{one:?} is a match that this reader does not know")
            }
        }
    }

    fn mapped(&self, lookup: Lookup, map: &Name, packet: &Packet) -> Option<&Verdict> {
        match self.found(lookup, map, Kind::Verdicts, packet)? {
            Content::Verdict(verdict) => Some(verdict),
            other => panic!("{other:?} in the verdict map {map}"),
        }
    }

    /// Returns the element of a set that a packet has.
    fn found(&self, lookup: Lookup, set: &Name, kind: Kind, packet: &Packet) -> Option<&Content> {
        let Some(Content::Set(spec)) = self.table.get(&Object::Set(set.clone())) else {
            panic!("a rule looks up {set}, which does not exist");
        };
        assert_eq!((spec.fields, spec.kind), (fields(lookup), kind), "{set} looked up by {lookup:?}");
        if family_of(lookup).is_some_and(|family| family != Family::from(packet.destination)) {
            return None;
        }
        let address = |side| if side == Side::Source { packet.source } else { packet.destination };
        let port = match packet.traffic {
            Traffic::Port { protocol, port } => Some((protocol, port)),
            Traffic::Icmp { .. } | Traffic::Tunnel => None,
        };
        let key = match lookup {
            Lookup::Address(_, side) if spec.intervals => {
                return self
                    .around(set, |key| ends(key).is_some_and(|(first, last)| (first..=last).contains(&address(side))));
            }
            Lookup::DestinationPort(wanted) => {
                let port = port.filter(|(protocol, _)| *protocol == wanted)?.1;
                assert!(spec.intervals, "{set}");
                return self
                    .around(set, |key| matches!(key, Key::Ports(range) if (range.first..=range.last).contains(&port)));
            }
            Lookup::Address(_, side) => Key::Address(address(side)),
            Lookup::Addresses(_) if packet.source == packet.destination => Key::Itself(packet.source),
            Lookup::Addresses(_) => return None,
            Lookup::DestinationService(_) => {
                port.map(|(protocol, port)| Key::Service(packet.destination, protocol, port))?
            }
            Lookup::DestinationProtocolPort => port.map(|(protocol, port)| Key::ProtocolPort(protocol, port))?,
            other => panic!("{other:?} is a lookup that this reader does not know"),
        };
        self.table.get(&Object::Element(set.clone(), key))
    }

    fn around(&self, set: &Name, holds: impl Fn(&Key) -> bool) -> Option<&Content> {
        let is_it = |object: &Object| matches!(object, Object::Element(_, key) if holds(key));
        let found = elements_of(self.table, set).map(|(object, _)| object).find(|object| is_it(object)).cloned();
        self.table.get(&found?)
    }
}

/// First reason for which the kernel would refuse a table: references to missing objects, elements of another type, ranges that
/// overlap, names that are too long. The first of it.
pub fn refusal(table: &desired::Table) -> Option<String> {
    let is_there = |object: Object| match table.contains_key(&object) {
        true => None,
        false => Some(format!("{object} does not exist")),
    };
    table.iter().find_map(|(object, content)| {
        let name = match object {
            Object::Counter(name) | Object::Set(name) | Object::Chain(name) | Object::Element(name, _) => name,
        };
        if name.as_str().len() > 255 {
            return Some(format!("{object}: the name is too long"));
        }
        let missing = match (object, content) {
            (Object::Chain(_), Content::Chain(chain)) => rules_name(chain).find_map(is_there),
            (Object::Element(set, key), content) => match table.get(&Object::Set(set.clone())) {
                Some(Content::Set(spec)) if fits(*spec, key, content) => match content {
                    Content::Verdict(verdict) => named_by(verdict).and_then(is_there),
                    _ => None,
                },
                other => Some(format!("its set is {other:?}")),
            },
            (Object::Set(_), Content::Set(_)) | (Object::Counter(_), Content::Counter) => None,
            (_, content) => Some(format!("its content is {content:?}")),
        };
        let missing = missing.or_else(|| match object {
            Object::Set(set) => overlapping(table, set),
            _ => None,
        });
        missing.map(|why| format!("{object}: {why}"))
    })
}

/// The objects that the rules of a chain name.
pub fn rules_name(chain: &Chain) -> impl Iterator<Item = Object> + '_ {
    chain.rules.iter().flat_map(|rule: &Rule| {
        let sets = rule.matches().iter().filter_map(|one| match one {
            Match::InSet { set, .. } => Some(Object::Set(set.clone())),
            _ => None,
        });
        let counters = rule.statements().iter().filter_map(|statement| match statement {
            Statement::Count(counter) => Some(Object::Counter(counter.clone())),
            _ => None,
        });
        sets.chain(counters).chain(rule.verdict().and_then(named_by))
    })
}

fn named_by(verdict: &Verdict) -> Option<Object> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(Object::Chain(chain.clone())),
        Verdict::Map { map, .. } => Some(Object::Set(map.clone())),
        _ => None,
    }
}

fn fits(spec: SetSpec, key: &Key, content: &Content) -> bool {
    let is_its = match (spec.fields, key) {
        (Fields::Address(family), Key::Address(address)) => !spec.intervals && Family::from(*address) == family,
        (Fields::Address(family), Key::Prefix(_) | Key::Range(_)) => {
            spec.intervals && ends(key).is_some_and(|(first, last)| first <= last && Family::from(first) == family)
        }
        (Fields::Addresses(family), Key::Itself(address)) => Family::from(*address) == family,
        (Fields::Service(family), Key::Service(address, ..)) => Family::from(*address) == family,
        (Fields::ServiceSource(family), Key::ServiceSource(fields)) => Family::from(fields.0) == family,
        (Fields::ProtocolPort, Key::ProtocolPort(..)) => true,
        (Fields::Port, Key::Ports(range)) => spec.intervals && range.first <= range.last,
        (Fields::Mark, Key::Mark(_)) => !spec.intervals,
        _ => false,
    };
    let is_of_kind = matches!(
        (spec.kind, content),
        (Kind::Set, Content::Element) | (Kind::Verdicts, Content::Verdict(_)) | (Kind::Marks, Content::Mark(_))
    );
    is_its && is_of_kind
}

/// The first and the last address of a range.
fn ends(key: &Key) -> Option<(IpAddr, IpAddr)> {
    match key {
        Key::Prefix(range) => Some((range.network(), range.broadcast())),
        Key::Range(ends) => Some(**ends),
        _ => None,
    }
}

/// Two ranges of a set that overlap.
fn overlapping(table: &desired::Table, set: &Name) -> Option<String> {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let mut ranges: Vec<(u128, u128, &Key)> = elements_of(table, set)
        .filter_map(|(object, _)| match object {
            Object::Element(_, key @ Key::Ports(range)) => Some((range.first.into(), range.last.into(), key)),
            Object::Element(_, key) => ends(key).map(|(first, last)| (number(first), number(last), key)),
            _ => None,
        })
        .collect();
    ranges.sort();
    let meeting = ranges.windows(2).find(|two| two[0].1 >= two[1].0)?;
    Some(format!("{} and {} overlap", meeting[0].2, meeting[1].2))
}

fn fields(lookup: Lookup) -> Fields {
    match lookup {
        Lookup::Address(family, _) => Fields::Address(family),
        Lookup::Addresses(family) => Fields::Addresses(family),
        Lookup::DestinationService(family) | Lookup::OriginalService(family) => Fields::Service(family),
        Lookup::ServiceSource(family, _) | Lookup::ServiceItself(family) => Fields::ServiceSource(family),
        Lookup::DestinationProtocolPort => Fields::ProtocolPort,
        Lookup::DestinationPort(_) => Fields::Port,
        Lookup::Mark => Fields::Mark,
        Lookup::InputLink | Lookup::OutputLink | Lookup::InputBridge => Fields::Link,
        Lookup::InputLinkWith(_) => panic!("{lookup:?} is for tables of the family bridge"),
    }
}

fn family_of(lookup: Lookup) -> Option<Family> {
    match lookup {
        Lookup::Address(family, _) | Lookup::Addresses(family) => Some(family),
        Lookup::DestinationService(family) | Lookup::OriginalService(family) => Some(family),
        Lookup::ServiceSource(family, _) | Lookup::ServiceItself(family) => Some(family),
        Lookup::DestinationProtocolPort | Lookup::DestinationPort(_) | Lookup::Mark => None,
        Lookup::InputLink | Lookup::OutputLink | Lookup::InputBridge | Lookup::InputLinkWith(_) => None,
    }
}
