//! ipset: named sets of addresses, prefixes and ports, and their elements.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_IPSET` (include/uapi/linux/netfilter/ipset/ip_set.h). Ours, for a process
//! without memory: the sets with the names that their owner lists, and everything in them.
//!
//! Limits and surprises:
//! - Some thousand elements go into one message. That is no transaction: those before a bad one stay. The
//!   kernel names the bad one, and the others are sent again, so it fails alone.
//! - A set holds a fixed number of elements; to hold more it is replaced by a larger one, see [`Sets`].
//! - A set is in use while a rule names it, and with nf_tables some milliseconds longer.
//! - Elements that end by themselves, and those that exclude, are never ours: they read as absent.
//! - Error numbers above 4096 are ipset's own; `fault` knows what they mean.

pub mod abandoned;
mod acts;
mod elements;
mod fault;
mod sets;
mod wire;

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::{Family, Protocol};

pub use self::acts::{Ipset, name_of};
pub use self::elements::Elements;
pub use self::sets::Sets;

/// The name of a set: at most 31 bytes. Shared, because every element carries it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SetName(pub Arc<str>);

/// Properties of a set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SetSpec {
    pub kind: SetKind,
    pub family: Family,
    /// Maximum number of elements. A set that must hold more is replaced by a larger one, atomically.
    pub max_elements: u32,
    /// Whether the set was made with the `timeout` extension. Sets that kube-router shares with us are, and
    /// must stay so: it refuses a set that differs.
    pub timeout: bool,
}

/// The set types in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SetKind {
    HashIp,
    HashIpPort,
    HashNet,
    HashIpPortNet,
    /// A set under our name of another type, or with properties that we never use. Read so that it can be
    /// replaced.
    Other,
}

/// One element of a set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Entry {
    Ip(IpAddr),
    IpPort(IpAddr, Protocol, u16),
    /// Host bits are zero. A prefix of length 0 is written as its two halves, as `hash:net` requires, and both
    /// halves read as that prefix: they must never be desired side by side.
    Net(IpNet),
    /// In a box, because few elements are this large.
    IpPortNet(Box<IpPortNet>),
}

/// An address with protocol and port, and a range of other addresses of the same family.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IpPortNet {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    /// Host bits are zero. The kernel takes no prefix of length 0 here.
    pub range: IpNet,
}

/// An element and the set it is in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ElementKey {
    pub set: SetName,
    pub entry: Entry,
}

impl SetSpec {
    /// Maximum size of kube-router's sets, and of ours until they need more: it refuses a set that differs.
    const USUAL: u32 = 65_536;

    /// Returns the properties of a set for this many elements.
    pub fn for_elements(kind: SetKind, family: Family, elements: usize, timeout: bool) -> SetSpec {
        let needed = u32::try_from(elements).unwrap_or(u32::MAX).checked_next_power_of_two().unwrap_or(u32::MAX);
        SetSpec { kind, family, max_elements: needed.max(SetSpec::USUAL), timeout }
    }
}

impl Entry {
    pub fn family(&self) -> Family {
        match self {
            Entry::Ip(address) | Entry::IpPort(address, ..) => Family::from(*address),
            Entry::Net(prefix) => Family::from(*prefix),
            Entry::IpPortNet(entry) => Family::from(entry.address),
        }
    }

    /// The prefixes of length 0.
    fn everything() -> [Entry; 2] {
        [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
            .map(|address| Entry::Net(IpNet::new(address, 0).expect("0 is a prefix length of both families")))
    }

    /// The elements sent to the kernel for this one: itself, or the halves of a prefix of length 0.
    fn parts(&self) -> impl Iterator<Item = Entry> + use<> {
        let (whole, halves) = match self {
            Entry::Net(prefix) if prefix.prefix_len() == 0 => {
                (None, Some(prefix.subnets(1).expect("a prefix of length 0 has halves")))
            }
            entry => (Some(entry.clone()), None),
        };
        whole.into_iter().chain(halves.into_iter().flatten().map(Entry::Net))
    }
}

impl Ord for SetName {
    /// By text. Elements are compared with others of their own set most of the time, so one pointer decides.
    fn cmp(&self, other: &SetName) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for SetName {
    fn partial_cmp(&self, other: &SetName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Entry {
    /// As `ipset save` prints it: `10.0.0.1`, `10.0.0.1,tcp:80`, `10.0.0.0/24`; but for whole addresses, which it prints without
    /// their length behind a port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Ip(address) => write!(f, "{address}"),
            Entry::IpPort(address, protocol, port) => write!(f, "{address},{protocol}:{port}"),
            Entry::Net(prefix) => write!(f, "{prefix}"),
            Entry::IpPortNet(entry) => {
                let IpPortNet { address, protocol, port, range } = &**entry;
                write!(f, "{address},{protocol}:{port},{range}")
            }
        }
    }
}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.set, self.entry)
    }
}

#[cfg(test)]
mod tests;
