//! ipset: named sets of addresses, prefixes and ports, and their elements.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_IPSET` (include/uapi/linux/netfilter/ipset/ip_set.h).

use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::net::{Family, Protocol};

/// The name of a set: at most 31 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SetName(pub CompactString);

/// What a set is made to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetSpec {
    pub kind: SetKind,
    pub family: Family,
    /// How many elements fit. A set that must hold more is replaced by a larger one, atomically.
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
}

/// One element of a set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Entry {
    Ip(IpAddr),
    IpPort(IpAddr, Protocol, u16),
    /// Host bits are zero. A prefix of length 0 is written as its two halves, which `hash:net` wants.
    Net(IpNet),
}

/// An element and the set it is in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ElementKey {
    pub set: SetName,
    pub entry: Entry,
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Entry {
    /// As `ipset save` prints it: `10.0.0.1`, `10.0.0.1,tcp:80`, `10.0.0.0/24`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Ip(address) => write!(f, "{address}"),
            Entry::IpPort(address, protocol, port) => write!(f, "{address},{protocol}:{port}"),
            Entry::Net(prefix) => write!(f, "{prefix}"),
        }
    }
}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.set, self.entry)
    }
}
