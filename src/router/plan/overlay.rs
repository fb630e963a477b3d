//! Tunnels as far as our own node needs them of the kernel, whether or not a route leads through one: it receives in any case, by the kind that it sends by
//! and by those of `--overlay-encap-receive`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Plan, replace};
use crate::config::{Encapsulation, Overlay};
use crate::kernel::link::LinkName;
use crate::kernel::rule::RuleKey;
use crate::kernel::tunnel::ReceivePort;
use crate::kernel::vxlan::{Vxlan, link_address};
use crate::kernel::wireguard::Wireguard;
use crate::net::Family;
use crate::router::desired::RouterChanges;
use crate::router::names::{TUNNEL_TABLE, WIREGUARD, WIREGUARD_SECOND, vxlan};
use crate::router::{mtu, settings};

impl Plan {
    /// Updates the rules that choose the tunnel table, the ports at which tunnels inside UDP arrive, and the devices of `vxlan` and `wireguard`.
    pub(super) fn replace_overlay(&mut self, changed: &mut RouterChanges) {
        let overlay = self.config.overlay;
        let sources = self.own.all_pod_cidrs().filter(|_| overlay.is_some());
        let source_rules = sources.map(|source| (RuleKey { source, table: TUNNEL_TABLE }, ())).collect();
        changed.source_rules.extend(replace(&mut self.desired.source_rules, source_rules));
        let port = overlay.and_then(Overlay::gue_port);
        let capable = || self.own.addresses.iter().filter_map(|(family, address)| Some((family, (*address)?)));
        let ports = capable().filter_map(|(family, _)| Some((ReceivePort { family, port: port? }, ()))).collect();
        let devices = capable().filter_map(|(family, _)| self.vxlan_device(family)).collect();
        self.desired.has_tunnels = overlay.and_then(Overlay::device_of_each_node).is_some();
        changed.receive_ports.extend(replace(&mut self.desired.receive_ports, ports));
        changed.overlay_devices.extend(replace(&mut self.desired.overlay_devices, devices));
        let devices = self.wireguard_devices();
        changed.wireguard_devices.extend(replace(&mut self.desired.wireguard_devices, devices));
    }

    fn vxlan_device(&self, family: Family) -> Option<(LinkName, Vxlan)> {
        let network = self.config.overlay?.vxlan()?;
        let local = (*self.own.addresses.of(family))?;
        let mtu = mtu::tunnel(self.own.mtus, &self.config, Encapsulation::Vxlan(network), local);
        let (id, port, address) = (network.id, network.port, link_address(local));
        let device = Vxlan { local, id, port, address, mtu, up: true, is_fixed: true, is_numbered: true };
        Some((vxlan(family), device))
    }
}

impl Plan {
    /// Returns the devices of `wireguard`: one, and a second one while the key of any node changes.
    pub(super) fn wireguard_devices(&self) -> BTreeMap<LinkName, Wireguard> {
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

/// Settings.
impl Plan {
    /// Updates all settings: those of every node, and those of devices by which packets are received alone, or may be although another one leads back.
    pub(super) fn replace_settings(&mut self, changed: &mut RouterChanges) {
        let mut wanted = settings::settings(self.families);
        if let Some(overlay) = self.config.overlay.filter(|_| self.families.v4) {
            let is_sent = |kind: Option<Encapsulation>| kind == Some(overlay.encapsulation);
            let vxlan =
                self.desired.overlay_devices.iter().filter(|_| !is_sent(overlay.vxlan().map(Encapsulation::Vxlan)));
            let vxlan = vxlan.filter(|(_, device)| device.local.is_ipv4()).map(|(name, _)| name);
            let wireguard = overlay.wireguard().map(Encapsulation::Wireguard);
            let has_two = self.desired.wireguard_devices.len() > 1;
            // The second one is made so (`kernel::wireguard`), since a setting comes after the device; this is for what others write later.
            let wireguard = self.desired.wireguard_devices.keys().filter(|_| has_two || !is_sent(wireguard));
            let tunnels = self.routes.tunnels().keys().filter(|name| self.receives_alone_by(name));
            wanted.extend(vxlan.chain(wireguard).chain(tunnels).map(settings::received_by));
        }
        if self.desired.settings != wanted {
            self.desired.settings = wanted;
            changed.settings = true;
        }
    }

    /// Updates the settings of devices for tunnels to nodes that came, changed or went.
    pub(super) fn settle_settings(&mut self, tunnels: &[LinkName], changed: &mut RouterChanges) {
        for name in tunnels {
            let (setting, value) = settings::received_by(name);
            let is_wanted = self.receives_alone_by(name);
            let before = match is_wanted {
                true => self.desired.settings.insert(setting, value),
                false => self.desired.settings.remove(&setting),
            };
            changed.settings |= before.is_some() != is_wanted;
        }
    }

    /// Returns whether this device for tunnels to a node over IPv4 takes packets and no route leads through it.
    fn receives_alone_by(&self, name: &LinkName) -> bool {
        let is_sent = |overlay: Overlay| overlay.device_of_each_node() == Some(overlay.encapsulation);
        self.families.v4
            && self.config.overlay.is_some_and(|overlay| !is_sent(overlay))
            && self.routes.tunnels().get(name).is_some_and(|tunnel| tunnel.local.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::World;
    use crate::router::given::{host, node, world};
    use crate::router::plan::tests::planned;

    fn devices(words: &[&str], world: &World) -> Vec<String> {
        let plan = planned(words, world);
        let line = |(name, device): (&LinkName, &Vxlan)| {
            format!("{name} {} {} {} {:?}", device.local, device.id, device.port, device.mtu)
        };
        plan.desired().overlay_devices.iter().map(line).collect()
    }

    #[test]
    fn a_node_receives_by_vxlan_in_each_family_of_its_addresses_whether_or_not_a_route_leads_through_it() {
        let alone = |addresses: &str| world(host("192.0.2.1/24 2001:db8::1/64"), &[("node-1", node(addresses, ""))]);
        let both = alone("192.0.2.1 2001:db8::1");
        assert_eq!(
            devices(&["--overlay-encap=vxlan"], &both),
            ["sluice-vxlan4 192.0.2.1 1 4789 Some(1450)", "sluice-vxlan6 2001:db8::1 1 4789 Some(1430)"]
        );
        let numbers =
            ["--overlay-encap=vxlan", "--overlay-vxlan-id=7", "--overlay-vxlan-port=8472", "--auto-mtu=false"];
        assert_eq!(devices(&numbers, &alone("192.0.2.1")), ["sluice-vxlan4 192.0.2.1 7 8472 None"]);
        assert_eq!(devices(&[], &both), Vec::<String>::new());
        assert_eq!(devices(&["--overlay-encap=vxlan", "--enable-overlay=false"], &both), Vec::<String>::new());
    }
}
