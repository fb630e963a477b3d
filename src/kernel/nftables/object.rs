//! The objects of a table: sets and maps, their elements, chains, and counters.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::rule::{Lookup, Mark, Match, Rule, Statement, Verdict};
use crate::net::{Family, PortRange, Protocol};

/// Name of a table's chain, set, map or counter: at most 255 bytes. `nft` does not load names that are words of its language
/// (`mark`, `fwd`), so ours contain an underscore, a slash or a digit. Shared, because every element carries it, which
/// is also why it is one pointer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Arc<Box<str>>);

/// Key of one object of a table, in the order of growing as far as that is one: rules and elements need sets and chains.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Object {
    /// A named counter.
    Counter(Name),
    /// A set, or a map.
    Set(Name),
    /// A chain with its rules.
    Chain(Name),
    /// One element of this set or map.
    Element(Name, Key),
}

impl Object {
    /// Returns the chain that a verdict leads to.
    pub fn led_to(verdict: &Verdict) -> Option<Object> {
        match verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(Object::Chain(chain.clone())),
            _ => None,
        }
    }

    /// Returns the objects that a rule names: sets, maps, counters, and the chain that it leads to.
    pub fn named_by(rule: &Rule) -> impl Iterator<Item = Object> + '_ {
        let sets = rule.matches().iter().filter_map(|one| match one {
            Match::InSet { set, .. } => Some(Object::Set(set.clone())),
            _ => None,
        });
        let others = rule.statements().iter().filter_map(|statement| match statement {
            Statement::Count(counter) => Some(Object::Counter(counter.clone())),
            Statement::MarkFrom { map, .. } => Some(Object::Set(map.clone())),
            Statement::Log { .. } | Statement::SetMark(_) | Statement::SetMss(_) | Statement::Untrack => None,
        });
        let verdict = rule.verdict().and_then(|verdict| match verdict {
            Verdict::Map { map, .. } => Some(Object::Set(map.clone())),
            verdict => Object::led_to(verdict),
        });
        sets.chain(others).chain(verdict)
    }
}

/// Everything else about an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// A counter; its count is not ours to decide.
    Counter,
    Set(SetSpec),
    Chain(Arc<Chain>),
    /// An element of a set.
    Element,
    /// An element of a verdict map.
    Verdict(Arc<Verdict>),
    /// An element of a map to marks.
    Mark(u32),
    /// An object of somebody else under a name of ours, in a form that we never use. It is only ever read.
    Foreign,
}

/// Properties of a set or map. Sets with intervals never have concatenated fields: the kernel takes time proportional to the
/// set to delete one element of those.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SetSpec {
    pub fields: Fields,
    pub kind: Kind,
    /// Elements are ranges ([`Key::Prefix`], [`Key::Range`], [`Key::Ports`]), disjoint. Neighbouring ranges may touch.
    pub intervals: bool,
}

/// Type of the values of a set's elements.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Nothing: an element is in the set or not.
    Set,
    Verdicts,
    Marks,
}

/// The type of a set's elements, field by field.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fields {
    /// `ipv4_addr` or `ipv6_addr`.
    Address(Family),
    /// Two addresses: the source's and the destination's.
    Addresses(Family),
    /// Address, protocol and port (`ipv4_addr . inet_proto . inet_service`).
    Service(Family),
    /// The same, and one more address: the source's.
    ServiceSource(Family),
    /// Protocol and port.
    ProtocolPort,
    /// The port alone; which protocol it is of the rule says.
    Port,
    /// The mark of a packet, all 32 bits of it.
    Mark,
    /// The name of a link.
    Link,
    /// The name of a link and an address of Ethernet (`ifname . ether_addr`).
    LinkEther,
    /// The name of a link and an address (`ifname . ipv4_addr`).
    LinkAddress(Family),
}

/// The key of an element.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// Of [`Fields::Address`] without intervals.
    Address(IpAddr),
    /// Of [`Fields::Addresses`]: the same address at both ends, a pod that sends to itself.
    Itself(IpAddr),
    /// Of [`Fields::Address`] with intervals: all addresses of this prefix, which has no bits behind its length, see
    /// [`Key::prefix`].
    Prefix(IpNet),
    /// Of [`Fields::Address`] with intervals: all addresses from the first to the last, of one family. A range that is a prefix
    /// has to be called so, see [`Key::range`].
    Range(Box<(IpAddr, IpAddr)>),
    /// Of [`Fields::Service`].
    Service(IpAddr, Protocol, u16),
    /// Of [`Fields::ServiceSource`]; the last address is the source's. In a box, because few elements are this large.
    ServiceSource(Box<(IpAddr, Protocol, u16, IpAddr)>),
    /// Of [`Fields::ProtocolPort`].
    ProtocolPort(Protocol, u16),
    /// Of [`Fields::Port`] with intervals.
    Ports(PortRange),
    /// Of [`Fields::Mark`].
    Mark(u32),
    /// Of [`Fields::Link`].
    Link(Name),
    /// Of [`Fields::LinkEther`].
    LinkEther(Name, [u8; 6]),
    /// Of [`Fields::LinkAddress`]. Few, and longer than all others.
    LinkAddress(Box<(Name, IpAddr)>),
    /// An element of somebody else in a set of ours, in a form that we never use, as the kernel has it. It is only ever read, and removed.
    Foreign(Box<[u8]>),
}

/// A chain with its rules.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Chain {
    /// `None` for a chain that is only jumped to.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

impl Content {
    /// Returns the growing half of a change to `want`. A chain that drops all but the sources in its sets keeps the sets that it
    /// has: elements of one may be those of a Service that is not known yet. A base chain that sends packets to services in sets on to other chains goes on
    /// to send all of them: what is closed by that stays closed until it is gone. One that takes marks away from packets that are in others goes on to take all of them.
    pub fn grown(&self, want: &Content) -> Content {
        let (Content::Chain(have), Content::Chain(wanted)) = (self, want) else { return want.clone() };
        if sends_on(have) && sends_on(wanted) && have.base == wanted.base {
            let kept = have.rules.iter().filter(|rule| !wanted.rules.contains(rule));
            let rules = wanted.rules.iter().chain(kept).cloned().collect();
            return Content::Chain(Arc::new(Chain { base: wanted.base, rules }));
        }
        let stays = |rule: &&Rule| takes_mark_away(rule) && !wanted.rules.contains(rule);
        if have.base == wanted.base && have.rules.iter().any(|rule| stays(&rule)) {
            let rules = wanted.rules.iter().chain(have.rules.iter().filter(stays)).cloned().collect();
            return Content::Chain(Arc::new(Chain { base: wanted.base, rules }));
        }
        let (Some(kept), Some(new)) = (source_rules(have), source_rules(wanted)) else { return want.clone() };
        let lengths: BTreeMap<u8, &Rule> = kept.lengths.into_iter().chain(new.lengths).collect();
        let rules = new.first.into_iter().chain(lengths.into_values()).chain(wanted.rules.last()).cloned().collect();
        Content::Chain(Arc::new(Chain { base: wanted.base, rules }))
    }
}

/// Returns whether a base chain does nothing but send packets to services in sets to other chains.
fn sends_on(chain: &Chain) -> bool {
    let is_jump = |rule: &Rule| {
        let by_set =
            matches!(rule.matches(), [Match::InSet { lookup: Lookup::DestinationService(_), negated: false, .. }]);
        by_set && matches!(rule.verdict(), Some(Verdict::Jump(_))) && rule.statements().is_empty()
    };
    chain.base.is_some() && chain.rules.iter().all(is_jump)
}

/// Returns whether a rule takes a mark away from packets that are in others.
fn takes_mark_away(rule: &Rule) -> bool {
    let takes = matches!(rule.statements(), [Statement::SetMark(Mark { value: 0, .. })]);
    takes && rule.matches().iter().any(|one| matches!(one, Match::Encapsulated(_)))
}

/// The rules of a chain that drops all but some sources, without the last one, which drops.
struct SourceRules<'a> {
    /// Those that let packets in whatever their source is.
    first: Vec<&'a Rule>,
    /// Those that let sources in, with the length of their prefixes.
    lengths: Vec<(u8, &'a Rule)>,
}

/// Returns the rules of such a chain; `None` for another one.
fn source_rules(chain: &Chain) -> Option<SourceRules<'_>> {
    let (last, rules) = chain.rules.split_last()?;
    let of_sources = |rule: &'_ Rule| match (rule.matches(), rule.verdict()) {
        ([Match::InSet { lookup: Lookup::ServiceSource(_, length), negated: false, .. }], Some(Verdict::Return))
            if rule.statements().is_empty() =>
        {
            Some(*length)
        }
        _ => None,
    };
    let drops = last.matches().is_empty() && last.verdict() == Some(&Verdict::Drop);
    if !drops || chain.base.is_some() {
        return None;
    }
    let (mut first, mut lengths) = (Vec::new(), Vec::new());
    for rule in rules {
        match of_sources(rule) {
            Some(length) => lengths.push((length, rule)),
            None if lengths.is_empty() && rule.verdict() == Some(&Verdict::Return) => first.push(rule),
            None => return None,
        }
    }
    Some(SourceRules { first, lengths })
}

/// The place at which the kernel enters a base chain. Its policy is to accept: an accept is not final, so other tables judge
/// the packet too, and a drop anywhere is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Base {
    pub kind: BaseKind,
    pub hook: Hook,
    /// Lower numbers come first (include/uapi/linux/netfilter_ipv4.h: filter is 0, mangle -150, NAT of sources 100, of
    /// destinations -100).
    pub priority: i32,
}

/// Type of a base chain: the actions that its rules may perform.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BaseKind {
    Filter,
    /// Translates addresses; sees the first packet of a connection only.
    Nat,
    /// In `output`: a packet whose mark changed is routed again.
    Route,
}

/// Called as in the families `inet` and `bridge`. The family `arp` has two hooks: its `input` has the number of `Prerouting`, its `output` that of `Input`
/// (`NF_ARP_IN`, `NF_ARP_OUT` in include/uapi/linux/netfilter_arp.h).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ord for Name {
    /// By text. Elements are compared with others of their own set most of the time, so one pointer decides.
    fn cmp(&self, other: &Name) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Key {
    /// A key that none comes before.
    pub(super) fn first() -> Key {
        Key::Address(IpAddr::from([0; 4]))
    }

    /// All addresses of this prefix.
    pub fn prefix(range: IpNet) -> Key {
        Key::Prefix(range.trunc())
    }

    /// The addresses from the first to the last, both included and of one family: a prefix, where they are one.
    pub fn range(first: IpAddr, last: IpAddr) -> Key {
        let alike = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
            (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
            _ => return Key::Range(Box::new((first, last))),
        };
        match IpNet::new(first, alike as u8) {
            Ok(prefix) if prefix.network() == first && prefix.broadcast() == last => Key::Prefix(prefix),
            _ => Key::Range(Box::new((first, last))),
        }
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Name {
        Name(Arc::new(name.into()))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Name {
        Name(Arc::new(name.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Counter(name) => write!(f, "counter {name}"),
            Object::Set(name) => write!(f, "set {name}"),
            Object::Chain(name) => write!(f, "chain {name}"),
            Object::Element(set, key) => write!(f, "element {key} of {set}"),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Address(address) => write!(f, "{address}"),
            Key::Itself(address) => write!(f, "{address} . {address}"),
            Key::Prefix(prefix) => write!(f, "{prefix}"),
            Key::Range(ends) => write!(f, "{}-{}", ends.0, ends.1),
            Key::Foreign(bytes) => write!(f, "{bytes:02x?}"),
            Key::Service(address, protocol, port) => write!(f, "{address} . {protocol} . {port}"),
            Key::ServiceSource(fields) => {
                let (address, protocol, port, source) = &**fields;
                write!(f, "{address} . {protocol} . {port} . {source}")
            }
            Key::ProtocolPort(protocol, port) => write!(f, "{protocol} . {port}"),
            Key::Ports(range) => write!(f, "{}-{}", range.first, range.last),
            Key::Mark(mark) => write!(f, "{mark:#x}"),
            Key::Link(name) => write!(f, "{name}"),
            Key::LinkEther(name, [a, b, c, d, e, g]) => {
                write!(f, "{name} . {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Key::LinkAddress(fields) => write!(f, "{} . {}", fields.0, fields.1),
        }
    }
}
