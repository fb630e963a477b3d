//! What this host itself says: its name and the addresses on its links.

use std::net::IpAddr;

use compact_str::CompactString;

/// Facts of this host that desired state depends on. Read from the kernel; changes arrive as events.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Host {
    /// The name of this host's Node object.
    pub node_name: CompactString,
    /// The addresses of the host's own links, sorted: what a packet "to this host" may be addressed to.
    /// Devices that carry service addresses or pods are not the host's own and are left out (`world`).
    pub addresses: Vec<HostAddress>,
}

/// One address on one link.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostAddress {
    pub address: IpAddr,
    pub link: CompactString,
    /// True for addresses of scope global; false for link and host scope (`fe80::/10`, `127.0.0.0/8`).
    pub global: bool,
}
