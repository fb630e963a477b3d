//! Problems that keep a part of the router from working, as sentences for the administrator.
//!
//! A problem is state, not an event: it exists while its cause does. It is reported once when it appears and once when
//! it is resolved.

use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;

use crate::net::Remote;

/// One problem. The text is a whole sentence and never holds a secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    pub about: About,
    pub text: String,
}

/// The object that a problem is about. Nothing else is affected.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum About {
    /// Our own node: the problem prevents all sessions.
    Speaker,
    /// One family on our own node.
    Family(crate::net::Family),
    ExternalPeer(Remote),
    /// The annotations that name external peers.
    ExternalPeers,
    /// Another node.
    Node(CompactString),
    /// A pod CIDR of another node.
    PodRange(ipnet::IpNet),
    /// More other nodes than are named.
    OtherNodes,
    /// An address of a Service.
    ServiceAddress(IpAddr),
    CniFile,
}

impl Problem {
    pub fn new(about: About, text: impl Into<String>) -> Problem {
        Problem { about, text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.about, self.text)
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            About::Speaker => f.write_str("BGP"),
            About::Family(family) => write!(f, "{family}"),
            About::ExternalPeer(remote) => write!(f, "external peer {remote}"),
            About::Node(name) => write!(f, "Node {name}"),
            About::ExternalPeers => f.write_str("external peers"),
            About::PodRange(range) => write!(f, "pod range {range}"),
            About::OtherNodes => f.write_str("other nodes"),
            About::ServiceAddress(address) => write!(f, "service address {address}"),
            About::CniFile => f.write_str("CNI file"),
        }
    }
}
