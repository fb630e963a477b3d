//! Devices of `wireguard`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::Encapsulation;
use crate::kernel::link::LinkName;
use crate::kernel::wireguard::Wireguard;
use crate::router::mtu;
use crate::router::names::{WIREGUARD, WIREGUARD_SECOND};
use crate::router::plan::Plan;

impl Plan {
    /// Returns the devices of `wireguard`: one, and a second one while the key of any node changes.
    pub(in crate::router::plan) fn wireguard_devices(&self) -> BTreeMap<LinkName, Wireguard> {
        let second = |(_, device): &(LinkName, Wireguard)| {
            let encryption = self.config.overlay?.wireguard().filter(|_| self.wants_second())?;
            Some((LinkName(WIREGUARD_SECOND.into()), Wireguard { port: encryption.second_port(), ..*device }))
        };
        let first = self.wireguard_device();
        let second = first.as_ref().and_then(second);
        first.into_iter().chain(second).collect()
    }

    /// The device has room for what either family adds in which this node has an address, on its link.
    fn wireguard_device(&self) -> Option<(LinkName, Wireguard)> {
        let encryption = self.config.overlay?.wireguard()?;
        let kind = Encapsulation::Wireguard(encryption);
        let ends: Vec<IpAddr> = self.own.addresses.iter().filter_map(|(_, address)| *address).collect();
        if ends.is_empty() {
            return None;
        }
        let mtu = ends.into_iter().filter_map(|end| mtu::tunnel(self.own.mtus, &self.config, kind, end)).min();
        let device = Wireguard { port: encryption.port, mtu, up: true, has_key: true, is_numbered: true };
        Some((LinkName(WIREGUARD.into()), device))
    }
}
