//! What keeps a part of the router from working, as sentences for whoever runs the cluster.
//!
//! A problem is state, not an event: it is there while its cause is. Whoever shows problems says each once when it appears and
//! once when it goes.

use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;

/// One problem. The text is a whole sentence and never holds a secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    pub about: About,
    pub text: String,
}

/// What the problem is with. Nothing else suffers from it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum About {
    /// Our own node: without it there are no sessions at all.
    Speaker,
    /// One family on our own node.
    Family(crate::net::Family),
    /// What our own node runs on.
    Cloud,
    ExternalPeer(IpAddr),
    /// Another node.
    Node(CompactString),
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
            About::Cloud => f.write_str("AWS"),
            About::ExternalPeer(address) => write!(f, "external peer {address}"),
            About::Node(name) => write!(f, "Node {name}"),
            About::OtherNodes => f.write_str("other nodes"),
            About::ServiceAddress(address) => write!(f, "service address {address}"),
            About::CniFile => f.write_str("CNI file"),
        }
    }
}
