//! Connection tracking: forgetting flows.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_CTNETLINK` (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::net::SocketAddr;

use crate::net::Protocol;

/// Flows that were sent to one address and translated to one backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flows {
    pub protocol: Protocol,
    /// The destination of the original direction: the service address and port.
    pub original_destination: SocketAddr,
    /// The source of the reply direction: the backend.
    pub reply_source: SocketAddr,
}
