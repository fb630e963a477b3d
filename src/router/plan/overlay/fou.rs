//! Ports at which the kernel takes tunnels out of UDP.

use std::collections::BTreeMap;

use crate::config::Overlay;
use crate::kernel::tunnel::ReceivePort;
use crate::router::plan::Plan;

impl Plan {
    /// Returns the port, of each family in which this node has an address.
    pub(super) fn receive_ports(&self) -> BTreeMap<ReceivePort, ()> {
        let fou = self.config.overlay.and_then(Overlay::fou);
        let families = self.own.addresses.iter().filter(|(_, address)| address.is_some()).map(|(family, _)| family);
        families.filter_map(|family| Some((ReceivePort { family, port: fou?.port }, ()))).collect()
    }
}
