//! `ipip`, and `fou`, which is the same inside UDP: a device for each node, by which packets leave without a gateway.

use std::net::IpAddr;

use super::super::{Place, RouteTableChanges, Routes};
use super::fou;
use crate::kernel::link::LinkName;
use crate::kernel::route::NextHop;
use crate::kernel::tunnel::Tunnel;
use crate::net::Family;
use crate::router::mtu;
use crate::router::names::{other_tunnel, tunnel};

/// Plain tunnels inherit the inner packet's.
const TTL: u8 = 0;

pub(super) fn next_hop(remote: IpAddr, place: Place<'_>) -> NextHop {
    NextHop { link: (place.tunnel_name)(remote), gateway: None, on_link: false }
}

/// Returns the parameters of the device for tunnels to and from a node; `None` where no kind of tunnels has such devices.
fn parameters(remote: IpAddr, place: Place<'_>) -> Option<Tunnel> {
    let kind = place.config.overlay?.device_of_each_node()?;
    let local = (*place.own.addresses.of(Family::from(remote)))?;
    let udp_port = kind.fou().map(|fou| fou.port);
    let ttl = kind.fou().map_or(TTL, |_| fou::TTL);
    let mtu = mtu::tunnel(place.own.mtus, place.config, kind, remote);
    Some(Tunnel { local, remote, udp_port, ttl, mtu, up: true, has_options: true, is_numbered: true })
}

impl Routes {
    pub(super) fn has_device(&self, remote: IpAddr, place: Place<'_>) -> bool {
        self.tunnels.get(&(place.tunnel_name)(remote)).is_some_and(|tunnel| tunnel.remote == remote)
    }

    /// Updates the device of the tunnel to a node.
    pub(super) fn put_device(
        &mut self,
        remote: IpAddr,
        is_used: bool,
        place: Place<'_>,
        changed: &mut RouteTableChanges,
    ) {
        let name = (place.tunnel_name)(remote);
        // Without a name of its own it would be the device of another node's tunnel.
        let is_used = is_used && !(place.is_nameless)(remote);
        let wanted = is_used.then(|| parameters(remote, place)).flatten();
        // The names that it does not have, or no longer has.
        let others = [tunnel(remote), other_tunnel(remote)].into_iter().filter(|other| *other != name);
        let others: Vec<LinkName> = others.collect();
        for other in others {
            if self.tunnels.get(&other).is_some_and(|tunnel| tunnel.remote == remote) {
                self.tunnels.remove(&other);
                changed.tunnels.push(other);
            }
        }
        let before = self.tunnels.get(&name).copied();
        if before != wanted && (wanted.is_some() || before.is_some_and(|before| before.remote == remote)) {
            match wanted {
                Some(wanted) => self.tunnels.insert(name.clone(), wanted),
                None => self.tunnels.remove(&name),
            };
            changed.tunnels.push(name);
        }
    }
}
