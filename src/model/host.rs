//! Facts of this host: its name and the addresses on its links.

use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::net::PerFamily;

/// Facts of this host that desired state depends on. Read from the kernel; changes arrive as events.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Host {
    /// The name of this host's Node object.
    pub node_name: CompactString,
    /// The addresses of the host's own links, sorted: the destinations of packets to this host.
    /// Devices that carry service addresses or pods are not the host's own and are left out (`world`).
    pub addresses: Vec<HostAddress>,
    /// The networks that the host's own links are on, sorted: reachable without a gateway.
    pub on_link: Vec<OnLink>,
    /// The host's own links that carry addresses, sorted by name.
    pub links: Vec<HostLink>,
    /// The addresses at which this program asks the API server, or the proxy on the way to it, sorted: those that its configuration names, and those that
    /// a name there stood for. Empty with a directory of manifests.
    pub api_server: Vec<IpAddr>,
    /// `--node-ip-autodetect`: the addresses by which other nodes route to this one; `None` without the flag.
    pub detected: Option<DetectedAddresses>,
    /// Direct server return is asked for, and waits for the socket of the container runtime: Services with it are served with NAT until then.
    pub runtime_awaited: bool,
}

/// Addresses of this host that were detected, in place of the InternalIP of its Node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DetectedAddresses {
    /// `None` where none is found or looked for: the InternalIP is used.
    pub addresses: PerFamily<Option<IpAddr>>,
    /// Why nothing is found of a family that is looked for, as a sentence. An address that was found before may still be in use.
    pub problems: PerFamily<Option<String>>,
}

/// A network that a link is on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OnLink {
    /// Host bits are zero; never a host prefix.
    pub prefix: IpNet,
    pub link: CompactString,
}

/// One link.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostLink {
    pub name: CompactString,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is a bridge: packets that enter by one of its ports may leave by another without being routed.
    pub bridge: bool,
}

/// One address on one link.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostAddress {
    pub address: IpAddr,
    pub link: CompactString,
    /// True for addresses of scope global; false for link and host scope (`fe80::/10`, `127.0.0.0/8`).
    pub global: bool,
}
