//! Tunnels as far as our own node needs them of the kernel, whether or not a route leads through one: it receives in any case, by the kind that it sends by
//! and by those of `--overlay-encap-receive`. What a kind has there is in the file of its name, of `wireguard` beside its peers (`plan/wireguard/devices.rs`).

mod fou;
mod vxlan;

use super::{Plan, replace};
use crate::config::{Encapsulation, Overlay};
use crate::kernel::link::LinkName;
use crate::kernel::rule::RuleKey;
use crate::net::PerFamily;
use crate::router::desired::RouterChanges;
use crate::router::names::TUNNEL_TABLE;
use crate::router::settings;

impl Plan {
    /// Updates the rules that choose the tunnel table, the ports at which tunnels inside UDP arrive, and the devices of `vxlan` and `wireguard`.
    pub(super) fn replace_overlay(&mut self, changed: &mut RouterChanges) {
        let overlay = self.config.overlay;
        let sources = self.own.all_pod_cidrs().filter(|_| overlay.is_some());
        let source_rules = sources.map(|source| (RuleKey { source, table: TUNNEL_TABLE }, ())).collect();
        changed.source_rules.extend(replace(&mut self.desired.source_rules, source_rules));
        self.desired.keeps_source_rules = self.keeps_source_rules();
        let (ports, devices) = (self.receive_ports(), self.vxlan_devices());
        self.desired.has_tunnels = overlay.and_then(Overlay::device_of_each_node).is_some();
        changed.receive_ports.extend(replace(&mut self.desired.receive_ports, ports));
        changed.overlay_devices.extend(replace(&mut self.desired.overlay_devices, devices));
        let devices = self.wireguard_devices();
        changed.wireguard_devices.extend(replace(&mut self.desired.wireguard_devices, devices));
    }

    /// Returns the families of which rules of former pod ranges stay until there are others.
    fn keeps_source_rules(&self) -> PerFamily<bool> {
        PerFamily::from_fn(|family| {
            self.encrypts() && *self.families.of(family) && self.own.pod_cidrs.of(family).is_empty()
        })
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
