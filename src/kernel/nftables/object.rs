//! The objects of a table: sets and maps, their elements, chains, and counters.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::rule::{Rule, Verdict};
use crate::net::{Family, PortRange, Protocol};

/// Name of a table's chain, set, map or counter: at most 255 bytes. `nft` does not load names that are words of its language
/// (`mark`, `fwd`), so ours contain an underscore, a slash or a digit. Shared, because every element carries it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

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

/// Everything else about an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// What it has counted is not ours to decide.
    Counter,
    Set(SetSpec),
    Chain(Arc<Chain>),
    /// An element of a set.
    Element,
    /// An element of a verdict map.
    Verdict(Arc<Verdict>),
    /// An element of a map to marks.
    Mark(u32),
}

/// Properties of a set or map. Sets with intervals never have concatenated fields: the kernel takes time proportional to the
/// set to delete one element of those.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SetSpec {
    pub fields: Fields,
    pub kind: Kind,
    /// Elements are ranges ([`Key::Prefix`], [`Key::Ports`]), disjoint. Neighbouring ranges may touch.
    pub intervals: bool,
}

/// What a set maps its elements to.
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
    /// Protocol and port.
    ProtocolPort,
    /// The port alone; which protocol it is of the rule says.
    Port,
    /// The name of a link.
    Link,
}

/// The key of an element.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// Of [`Fields::Address`] without intervals.
    Address(IpAddr),
    /// Of [`Fields::Addresses`]: the same address at both ends, a pod that sends to itself.
    Itself(IpAddr),
    /// Of [`Fields::Address`] with intervals: all addresses of this prefix.
    Prefix(IpNet),
    /// Of [`Fields::Service`].
    Service(IpAddr, Protocol, u16),
    /// Of [`Fields::ProtocolPort`].
    ProtocolPort(Protocol, u16),
    /// Of [`Fields::Port`] with intervals.
    Ports(PortRange),
    /// Of [`Fields::Link`].
    Link(Name),
}

/// A chain with its rules.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Chain {
    /// `None` for a chain that is only jumped to.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
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

/// What the rules of a base chain may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BaseKind {
    Filter,
    /// Translates addresses; sees the first packet of a connection only.
    Nat,
    /// In `output`: a packet whose mark changed is routed again.
    Route,
}

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

impl From<&str> for Name {
    fn from(name: &str) -> Name {
        Name(name.into())
    }
}

impl From<String> for Name {
    fn from(name: String) -> Name {
        Name(name.into())
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
            Key::Service(address, protocol, port) => write!(f, "{address} . {protocol} . {port}"),
            Key::ProtocolPort(protocol, port) => write!(f, "{protocol} . {port}"),
            Key::Ports(range) => write!(f, "{}-{}", range.first, range.last),
            Key::Link(name) => write!(f, "{name}"),
        }
    }
}
