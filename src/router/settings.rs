//! Kernel settings and modules that pod networking needs.
//!
//! Packets between pods of one node over the bridge shall pass the same rules as everything else
//! (`bridge-nf-call-iptables`, which the module `br_netfilter` provides). Where IPv6 is enabled, the kernel shall not
//! have it disabled. Devices by which packets are received alone filter loosely. Forwarding itself is enabled by the CNI plugin, with the first pod.

use std::collections::BTreeMap;

use compact_str::format_compact;

use crate::config::{Overlay, RouterConfig};
use crate::kernel::link::LinkName;
use crate::kernel::sysctl::{Setting, WantedSetting};
use crate::net::PerFamily;

/// Returns the desired settings.
pub fn settings(families: PerFamily<bool>) -> BTreeMap<Setting, WantedSetting> {
    let always = |name: &str, value: &str| (Setting(name.into()), WantedSetting::Always(value.into()));
    let mut settings = BTreeMap::from([always("net/bridge/bridge-nf-call-iptables", "1")]);
    if families.v6 {
        settings.extend([
            always("net/bridge/bridge-nf-call-ip6tables", "1"),
            always("net/ipv6/conf/all/disable_ipv6", "0"),
        ]);
    }
    settings
}

/// Returns the setting of a device by which packets arrive and none are sent (`--overlay-encap-receive`, or another one while a key of WireGuard changes): the route back to their source leads elsewhere, and
/// strict filtering of IPv4 (RFC 3704 2.2) would drop them. So it is loose (RFC 3704 2.4), which passes because the device has an address ([`STAND_IN`](crate::kernel::address::STAND_IN)),
/// and which counts whatever `all` is: of both the larger number does. IPv6 has none.
pub fn received_by(link: &LinkName) -> (Setting, WantedSetting) {
    let setting = Setting(format_compact!("net/ipv4/conf/{link}/rp_filter"));
    (setting, WantedSetting::Always("2".into()))
}

/// Returns the modules that are loaded at the start, each once.
pub fn modules(config: &RouterConfig, families: PerFamily<bool>) -> Vec<&'static str> {
    let mut modules = vec!["br_netfilter"];
    for kind in config.overlay.into_iter().flat_map(Overlay::kinds) {
        for (family, _) in families.iter().filter(|(_, is_on)| **is_on) {
            let more = kind.modules_at_start(family).iter().filter(|module| !modules.contains(module));
            let more: Vec<&str> = more.copied().collect();
            modules.extend(more);
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::given::config;

    #[test]
    fn only_what_is_on_is_asked_for() {
        let names = |v6| settings(PerFamily { v4: true, v6 }).len();
        assert_eq!((names(false), names(true)), (1, 3));
        let modules = |words: &[&str], v6| modules(&config(words), PerFamily { v4: true, v6 });
        assert_eq!(modules(&[], true), ["br_netfilter"]);
        assert_eq!(modules(&["--overlay-encap=vxlan"], true), ["br_netfilter", "vxlan"]);
        assert_eq!(modules(&["--overlay-encap=wireguard"], true), ["br_netfilter", "wireguard"]);
        assert_eq!(modules(&["--overlay-encap=fou"], false), ["br_netfilter", "fou"]);
        assert_eq!(modules(&["--overlay-encap=fou"], true), ["br_netfilter", "fou", "fou6"]);
        assert_eq!(modules(&["--overlay-encap=fou", "--enable-overlay=false"], true), ["br_netfilter"]);
        let received = modules(&["--overlay-encap-receive=vxlan,fou,wireguard"], true);
        assert_eq!(received, ["br_netfilter", "fou", "fou6", "vxlan", "wireguard"]);
    }
}
