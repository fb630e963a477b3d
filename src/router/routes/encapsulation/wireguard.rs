//! `wireguard`: one device, which knows by the destination which node gets a packet. Its peers are in `plan/wireguard`, the walls behind its routes in
//! [`walls`](super::super::walls).

use crate::kernel::link::LinkName;
use crate::kernel::route::NextHop;

/// Returns the next hop of packets that a device encrypts.
pub(in crate::router::routes) fn next_hop(link: LinkName) -> NextHop {
    NextHop { link, gateway: None, on_link: false }
}
