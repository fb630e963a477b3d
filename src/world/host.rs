//! What the kernel says of this host, in the model's words.
//!
//! Devices that carry service addresses are not the host's own: what is on them belongs to Services, and
//! counting it among the host's addresses would make the proxy leave it alone.

use crate::kernel::address::{HostAddress as Found, Scope};
use crate::model::{Host, HostAddress};

/// Devices that carry service addresses: ours and kube-router's, kube-proxy's, and NodeLocal DNSCache's.
const CARRY_SERVICE_ADDRESSES: [&str; 3] = ["kube-dummy-if", "kube-ipvs0", "nodelocaldns"];

/// The facts of the host whose Node object has this name.
pub fn host(node_name: &str, found: Vec<Found>) -> Host {
    let own = found.into_iter().filter(|found| !CARRY_SERVICE_ADDRESSES.contains(&found.link.0.as_str()));
    let mut addresses: Vec<HostAddress> = own
        .map(|found| HostAddress {
            address: found.address.addr(),
            link: found.link.0,
            global: found.scope == Scope::Global,
        })
        .collect();
    addresses.sort();
    Host { node_name: node_name.into(), addresses }
}
