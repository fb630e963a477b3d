//! Devices of `vxlan`.

use std::collections::BTreeMap;

use crate::config::Encapsulation;
use crate::kernel::link::LinkName;
use crate::kernel::vxlan::{Vxlan, link_address};
use crate::net::Family;
use crate::router::mtu;
use crate::router::names::vxlan;
use crate::router::plan::Plan;

impl Plan {
    /// Returns a device for each family in which this node has an address.
    pub(super) fn vxlan_devices(&self) -> BTreeMap<LinkName, Vxlan> {
        Family::BOTH.into_iter().filter_map(|family| self.vxlan_device(family)).collect()
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
