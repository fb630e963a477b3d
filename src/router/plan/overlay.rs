//! Tunnels as far as our own node needs them of the kernel, whether or not a route leads through one: it receives in any case.

use super::{Plan, replace};
use crate::kernel::link::LinkName;
use crate::kernel::rule::RuleKey;
use crate::kernel::tunnel::ReceivePort;
use crate::kernel::vxlan::{Vxlan, link_address};
use crate::kernel::wireguard::Wireguard;
use crate::net::Family;
use crate::router::desired::RouterChanges;
use crate::router::mtu;
use crate::router::names::{TUNNEL_TABLE, WIREGUARD, vxlan};

impl Plan {
    /// Updates the rules that choose the tunnel table, the ports at which tunnels inside UDP arrive, and the devices of `vxlan` and `wireguard`.
    pub(super) fn replace_overlay(&mut self, changed: &mut RouterChanges) {
        let overlay = self.config.overlay;
        let sources = self.own.all_pod_cidrs().filter(|_| overlay.is_some());
        let source_rules = sources.map(|source| (RuleKey { source, table: TUNNEL_TABLE }, ())).collect();
        changed.source_rules.extend(replace(&mut self.desired.source_rules, source_rules));
        let port = overlay.and_then(|overlay| overlay.encapsulation.gue_port());
        let capable = || self.own.addresses.iter().filter_map(|(family, address)| Some((family, (*address)?)));
        let ports = capable().filter_map(|(family, _)| Some((ReceivePort { family, port: port? }, ()))).collect();
        let devices = capable().filter_map(|(family, _)| self.vxlan_device(family)).collect();
        changed.receive_ports.extend(replace(&mut self.desired.receive_ports, ports));
        changed.overlay_devices.extend(replace(&mut self.desired.overlay_devices, devices));
        let devices = self.wireguard_device().into_iter().collect();
        changed.wireguard_devices.extend(replace(&mut self.desired.wireguard_devices, devices));
    }

    fn vxlan_device(&self, family: Family) -> Option<(LinkName, Vxlan)> {
        let overlay = self.config.overlay?;
        let network = overlay.encapsulation.vxlan()?;
        let local = (*self.own.addresses.of(family))?;
        let mtu = mtu::tunnel(self.own.mtu, &self.config, overlay, local);
        let (id, port, address) = (network.id, network.port, link_address(local));
        Some((vxlan(family), Vxlan { local, id, port, address, mtu, up: true, is_fixed: true }))
    }
}

impl Plan {
    /// The device has room for what the larger of the families adds in which this node has an address.
    fn wireguard_device(&self) -> Option<(LinkName, Wireguard)> {
        let overlay = self.config.overlay?;
        let encryption = overlay.encapsulation.wireguard()?;
        let ends = self.own.addresses.iter().filter_map(|(_, address)| *address);
        let mtu = ends.map(|end| mtu::tunnel(self.own.mtu, &self.config, overlay, end)).min()?;
        let device = Wireguard { port: encryption.port, mtu, up: true, has_key: true };
        Some((LinkName(WIREGUARD.into()), device))
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
